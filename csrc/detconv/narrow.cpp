#include "narrow.hpp"

#include <bit>

namespace detconv {
namespace {

// Integer arithmetic throughout: the bits do not depend on the caller's floating-point environment.
std::uint16_t to_bfloat16(std::uint32_t bits) {
    const std::uint32_t magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return 0x7fc0;
    return static_cast<std::uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

std::uint16_t to_float16(std::uint32_t bits) {
    const std::uint32_t sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return 0x7e00;
    std::uint32_t result;
    if (magnitude >= 0x38800000) {  // 2^-14 and above: rebias the exponent, drop 13 bits
        result = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
        if (result > 0x7c00) result = 0x7c00;  // 65520 and above round to infinity
    } else {                                   // multiples of 2^-24
        const std::uint32_t drop = 126 - (magnitude >> 23), significand = (magnitude & 0x7fffff) | 0x800000;
        if (drop > 25) return static_cast<std::uint16_t>(sign);  // below 2^-25: to zero (subnormal floats too)
        const std::uint32_t kept = significand >> drop, rest = significand - (kept << drop), half = 1u << (drop - 1);
        result = kept + (rest > half || (rest == half && (kept & 1)) ? 1 : 0);
    }
    return static_cast<std::uint16_t>(sign | result);
}

}  // namespace

void narrow(const float* numbers, Index count, Half type, std::uint16_t* bits) {
    for (Index i = 0; i < count; ++i) {
        const auto given = std::bit_cast<std::uint32_t>(numbers[i]);
        const std::uint16_t rounded = type == Half::bfloat16 ? to_bfloat16(given) : to_float16(given);
        bits[i] = rounded == 0x8000 ? 0 : rounded;  // a zero result is +0
    }
}

}  // namespace detconv
