// What the passes share when they lower themselves.
#pragma once

#include <utility>

#include "passes.hpp"

namespace detconv {

// The arithmetic of a contraction, from its summation and its program.
template <class T>
void set_arithmetic(Contraction& c, const Summation& summation, Program program, bool has_bias) {
    const MethodRow& method = row_of(summation.method());
    c.is_float32 = sizeof(T) == 4;
    c.certified = method.certified;
    c.accumulator = program.wide ? Accumulator::wide : c.is_float32 ? method.float32 : method.float64;
    c.rescued = method.rescued;
    if (c.rescued) c.rescue = lower_naive(summation, c.terms(), has_bias);
    c.program = std::move(program);
}

}  // namespace detconv
