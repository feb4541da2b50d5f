// The order language (docs/contract.md): explicit orders, parsed and lowered to programs.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "geometry.hpp"
#include "parallel.hpp"
#include "program.hpp"

namespace detconv::order {

struct Item;

struct Expression {
    std::vector<Item> items;
};

struct Term {
    Index number;
    bool fused;
};
struct Bias {};
struct Bracket {
    Expression inner;
    bool wide;  // d[...]: the accumulator is kept in double
};
struct Repeat {
    Index count, stride;
    Expression inner;
};

struct Item {
    std::variant<Term, Bias, Bracket, Repeat> value;
};

// Throws InvalidArgument with the 1-based column of the error; Interrupted, as the others do, for texts can be long.
Expression parse(std::string_view text, const parallel::InterruptCheck& interrupted = parallel::never);

// Canonical text: items separated by single spaces.
std::string print(const Expression& expression, const parallel::InterruptCheck& interrupted = parallel::never);

// Terms 0..terms-1 must each appear once, and the bias once if there is one; throws InvalidArgument otherwise.
Program lower(const Expression& expression, Index terms, bool has_bias, bool is_float32,
              const parallel::InterruptCheck& interrupted = parallel::never);

}  // namespace detconv::order
