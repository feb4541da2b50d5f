// Half types. Their arrays are computed as float32: every half number is a float, and a product of two is one term. The
// output is rounded once more, to nearest, ties to even; totals that were kept in double come as floats rounded to odd
// (Rounding::odd), from which that second rounding gives what one rounding would.
#pragma once

#include <cstdint>

#include "geometry.hpp"

namespace detconv {

enum class Half : std::uint8_t { float16, bfloat16 };

// The bits of each number rounded to the half type; NaN becomes the canonical quiet NaN of the type.
void narrow(const float* numbers, Index count, Half type, std::uint16_t* bits);

}  // namespace detconv
