// Inputs that are the same everywhere: the generator and the kinds of data of tests/bits.py, written again.
#pragma once

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "detconv/geometry.hpp"

namespace detconv::test {

// Output number i (from 0) of SplitMix64 started at seed (Steele, Lea and Flood, OOPSLA 2014).
inline std::uint64_t word(std::uint64_t seed, std::uint64_t i) {
    std::uint64_t z = seed + (i + 1) * 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
}

template <class T>
T uniform(std::uint64_t word) {
    constexpr int digits = std::numeric_limits<T>::digits - 1;
    const auto top = static_cast<std::int64_t>(word >> (63 - digits)) - (std::int64_t(1) << digits);
    return static_cast<T>(std::ldexp(static_cast<double>(top), -digits));
}

template <class T>
T raw(std::uint64_t word) {
    if constexpr (sizeof(T) == 4)
        return std::bit_cast<float>(static_cast<std::uint32_t>(word >> 32));
    else
        return std::bit_cast<double>(word);
}

template <class T>
T special(std::uint64_t word) {
    using L = std::numeric_limits<T>;
    constexpr T table[] = {0,
                           -T(0),
                           0,
                           -T(0),
                           L::denorm_min(),
                           L::min(),
                           -L::min(),
                           L::max(),
                           -L::max(),
                           1 + L::epsilon(),
                           L::infinity(),
                           -L::infinity(),
                           L::quiet_NaN(),
                           1};
    return word % 2 == 0 ? table[(word >> 8) % std::size(table)] : uniform<T>(word);
}

template <class T>
T value(std::string_view kind, std::uint64_t word) {
    auto integer = [](std::uint64_t n) { return static_cast<double>(static_cast<std::int64_t>(n)); };
    if (kind == "uniform") return uniform<T>(word);
    if (kind == "small-integers") return static_cast<T>(integer(word % 17) - 8);
    if (kind == "bfloat16")
        return static_cast<T>(std::ldexp((integer(word % 511) - 255) / 256, static_cast<int>((word >> 32) % 9) - 4));
    if (kind == "wide") return std::isfinite(raw<T>(word)) ? raw<T>(word) : uniform<T>(word);
    if (kind == "special") return special<T>(word);
    if (kind == "raw") return raw<T>(word);
    throw std::invalid_argument("no kind of data is called " + std::string(kind));
}

inline constexpr std::array<const char*, 6> kinds{"uniform", "small-integers", "bfloat16", "wide", "special", "raw"};

template <class T>
std::vector<T> made(Index size, std::uint64_t seed, std::string_view kind) {
    std::vector<T> values(static_cast<std::size_t>(size));
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = value<T>(kind, word(seed, i));
    return values;
}

// Choices of a test; the same in every run.
class Random {
public:
    explicit Random(std::uint64_t seed) : seed_(seed) {}
    std::uint64_t next() { return word(seed_, count_++); }
    Index between(Index low, Index high) {  // both included
        return low + static_cast<Index>(next() % static_cast<std::uint64_t>(high - low + 1));
    }
    bool chance(int percent) { return between(1, 100) <= percent; }
    template <class Choices>
    const auto& of(const Choices& choices) {
        return choices[static_cast<std::size_t>(between(0, static_cast<Index>(std::size(choices)) - 1))];
    }

private:
    std::uint64_t seed_, count_ = 0;
};

}  // namespace detconv::test
