// Whether roundings explain the difference between two outputs: the elements of a candidate against the exact sums.
#pragma once

#include <array>
#include <cstdint>

#include "geometry.hpp"
#include "parallel.hpp"

namespace detconv {

enum class Status : std::uint8_t { identical, rounding, unlikely, mistake };

// A binary floating-point format: digits of precision, the exponent of its smallest normal number and the one that is
// just too large.
struct Format {
    int digits, smallest, overflow;
};

// What is known of the arithmetic that is claimed. A sum s that it may have computed for an element with magnitude S,
// at position p of the last two axes, is within hard[p] * S + tiny[p] of the exact sum, whatever the order; and, with
// the confidence that went into it, within likely[p] * S + tiny[p]. Where the operands are rounded first, which moves
// the sum by D at most, within hard[p] * (S + D) + D + tiny[p]. A sum with S < exact_below is never rounded.
struct Claim {
    Index positions;
    const double *hard, *likely, *tiny;
    const double* roots;  // sqrt(n), n the terms of a sum
    double exact_below;
    double scale;                // a power of two: no square of a sum, times it, overflows
    Format accumulator, stored;  // the sum is rounded once from the accumulator's format to that of the outputs
};

template <class T>
struct Elements {
    Index count;
    const T *candidate, *exact, *magnitude;
    const T* shift;  // D; null: 0
};

// Sums of squares over the elements that are finite and cannot have overflowed, each number times the claim's scale.
struct Squares {
    Index count = 0;
    double error = 0, exact = 0, magnitude = 0;  // of candidate - exact, exact, S
    double spread = 0;                           // of u * sqrt(n) * S + D / sqrt(n)
};

struct Assessment {
    std::array<Index, 4> counts{};  // by status
    double worst = 0;               // largest |candidate - exact| / bound
    Index worst_at = -1;            // its element; -1: all are identical
    Squares squares;                // in a fixed order: the same on any number of threads
};

// The bound of an element is that of its sum, and the roundings of the exact sum and the candidate to the outputs'
// format. S must never be too small; of terms that are infinite or NaN it says nothing. Writes a Status for each
// element.
template <class T>
Assessment assess(const Elements<T>& elements, const Claim& claim, std::uint8_t* status, int threads,
                  const parallel::InterruptCheck& interrupted);

}  // namespace detconv
