// What a summation becomes when it runs: a short list of instructions on a stack of accumulators.
//
// This header is the only thing that orders (order.cpp, which writes programs) and kernels (contraction.hpp, which run
// them) know of each other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace detconv {

enum class Op : std::uint8_t {
    zero,      // the current accumulator becomes +0
    bias,      // the current accumulator becomes the bias
    fused,     // terms begin..end of the sequence enter by one fma each
    rounded,   // terms begin..end enter as rounded products
    push,      // the current accumulator is put on the stack
    join,      // the current accumulator becomes (popped from the stack) + (current)
    add_bias,  // the bias is added to the current accumulator
    round,     // a wide accumulator is rounded to the element type (its value stays in the wide accumulator)
};

struct Instruction {
    Op op;
    bool narrow = false;  // in a wide (double) accumulator: do this one operation in the element type
    std::int64_t begin = 0, end = 0;
};

// A part of a long program, after which the one who runs it may stop to look around.
struct Stretch {
    std::size_t begin, end;  // instructions
    int depth = 0;           // of the stack, at the start
};

struct Program {
    std::vector<Instruction> code;
    std::vector<std::int64_t> sequence;  // term number of each position; empty: position r is term r
    int depth = 0;                       // stack levels needed
    bool wide = false;                   // some accumulator is kept in double
};

}  // namespace detconv
