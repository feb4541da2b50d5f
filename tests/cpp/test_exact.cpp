#include "detconv/exact.hpp"

#include <algorithm>

#include "check.hpp"
#include "made.hpp"
#include "oracle.hpp"

namespace detconv::test {
namespace {

template <class T>
using Limits = std::numeric_limits<T>;

template <class T>
T sum_of(const std::vector<std::array<T, 2>>& products) {
    exact::Superaccumulator<T> accumulator;
    for (const auto& [w, x] : products) accumulator.add_product(w, x);
    return accumulator.rounded();
}

template <class T>
void check_known_sums() {
    constexpr T inf = Limits<T>::infinity(), nan = Limits<T>::quiet_NaN(), largest = Limits<T>::max();
    constexpr T tiny = Limits<T>::denorm_min(), eps = Limits<T>::epsilon(), half_ulp = eps / 2;
    CHECK_SAME(sum_of<T>({}), T(0));
    CHECK_SAME(sum_of<T>({{-T(0), 1}}), T(0));
    CHECK_SAME(sum_of<T>({{3, 5}, {-2, 7}}), T(1));
    CHECK_SAME(sum_of<T>({{tiny, 1}}), tiny);
    CHECK_SAME(sum_of<T>({{-tiny, 1}}), -tiny);
    CHECK_SAME(sum_of<T>({{largest, 1}, {tiny, tiny}, {-largest, 1}, {1 / eps, 1}}), 1 / eps);
    // Total cancellation, and what it leaves.
    CHECK_SAME(sum_of<T>({{largest, largest}, {-largest, largest}}), T(0));
    CHECK_SAME(sum_of<T>({{largest, largest}, {tiny, 1}, {-largest, largest}}), tiny);
    // Halfway: to even, unless anything at all is left over.
    CHECK_SAME(sum_of<T>({{1, 1}, {half_ulp, 1}}), T(1));
    CHECK_SAME(sum_of<T>({{1, 1}, {half_ulp, 1}, {tiny, tiny}}), 1 + eps);
    CHECK_SAME(sum_of<T>({{1, 1}, {half_ulp, 1}, {-tiny, tiny}}), T(1));
    CHECK_SAME(sum_of<T>({{1 + eps, 1}, {half_ulp, 1}}), 1 + 2 * eps);
    CHECK_SAME(sum_of<T>({{1 + eps, 1}, {half_ulp, 1}, {-tiny, tiny}}), 1 + eps);
    CHECK_SAME(sum_of<T>({{-1, 1}, {-half_ulp, 1}, {-tiny, tiny}}), -1 - eps);
    CHECK_SAME(sum_of<T>({{2, 1}, {-half_ulp, 1}}), T(2));
    // Half of the smallest subnormal, and the border between subnormal and normal.
    CHECK_SAME(sum_of<T>({{tiny, T(0.5)}}), T(0));
    CHECK_SAME(sum_of<T>({{tiny, T(0.5)}, {tiny, tiny}}), tiny);
    CHECK_SAME(sum_of<T>({{tiny, T(1.5)}}), 2 * tiny);
    CHECK_SAME(sum_of<T>({{-tiny, T(0.5)}}), -T(0));
    CHECK_SAME(sum_of<T>({{Limits<T>::min(), 1}, {tiny, -T(0.5)}}), Limits<T>::min());
    CHECK_SAME(sum_of<T>({{Limits<T>::min(), 1}, {tiny, -1}}), Limits<T>::min() - tiny);
    // Overflow: from halfway to the next power of two.
    const T half = std::ldexp(T(1), Limits<T>::max_exponent - Limits<T>::digits - 1);
    CHECK_SAME(sum_of<T>({{largest, 1}, {half, 1}}), inf);
    CHECK_SAME(sum_of<T>({{largest, 1}, {half, 1}, {-tiny, tiny}}), largest);
    CHECK_SAME(sum_of<T>({{-largest, 1}, {-half, 1}}), -inf);
    CHECK_SAME(sum_of<T>({{largest, largest}}), inf);
    CHECK_SAME(sum_of<T>({{largest, 2}, {-largest, 1}}), largest);
    // IEEE's rules where a factor is not finite.
    CHECK_SAME(sum_of<T>({{inf, 1}, {-largest, largest}}), inf);
    CHECK_SAME(sum_of<T>({{inf, -2}, {largest, largest}}), -inf);
    CHECK_SAME(sum_of<T>({{inf, 1}, {1, -inf}}), nan);
    CHECK_SAME(sum_of<T>({{inf, 0}}), nan);
    CHECK_SAME(sum_of<T>({{1, 1}, {nan, 1}}), nan);
}

TEST("superaccumulator: known sums") {
    check_known_sums<float>();
    check_known_sums<double>();
}

template <class T>
void check_carries() {
    // A run of ones that one last unit carries through, or borrows from, across every border of limbs.
    for (int low = -140; low < 100; low += 7)
        for (int length = 1; length < 120; length += 13) {
            exact::Superaccumulator<T> up, down;
            for (int e = low; e < low + length; ++e)
                up.add_product(std::ldexp(T(1), e / 2), std::ldexp(T(1), e - e / 2));
            up.add(0), up.add_product(std::ldexp(T(1), low / 2), std::ldexp(T(1), low - low / 2));
            const int top = low + length;
            CHECK_SAME(up.rounded(), std::ldexp(T(1), top), low << ' ' << length);
            down.add_product(std::ldexp(T(-1), top / 2), std::ldexp(T(1), top - top / 2));
            for (int e = low; e < top; ++e) down.add_product(std::ldexp(T(1), e / 2), std::ldexp(T(1), e - e / 2));
            CHECK_SAME(down.rounded(), -std::ldexp(T(1), low), low << ' ' << length);
            down.clear();
            CHECK_SAME(down.rounded(), T(0));
        }
}

TEST("superaccumulator: carries and borrows over limbs") {
    check_carries<float>();
    check_carries<double>();
}

template <class T>
void check_against_long_integer(std::uint64_t seed) {
    Random random(seed);
    for (int i = 0; i < 6000; ++i) {
        const Index terms = random.between(1, 30);
        auto w = made<T>(terms, random.next(), random.of(kinds)), x = made<T>(terms, random.next(), random.of(kinds));
        if (random.chance(50))  // the terms again, all but one of them negative: what is left is far below
            for (Index k = 1; k < terms; ++k) {
                w.push_back(-w[static_cast<std::size_t>(k)]);
                x.push_back(x[static_cast<std::size_t>(k)]);
            }
        const T bias = value<T>(random.of(kinds), random.next());
        exact::Superaccumulator<T> accumulator;
        for (std::size_t k = 0; k < w.size(); ++k) accumulator.add_product(w[k], x[k]);
        accumulator.add(bias);
        const T total = accumulator.rounded();
        CHECK_SAME(total, exact_sum(w, x, bias), i);
        CHECK_SAME(accumulator.rounded(), total, "asked twice");
    }
}

TEST("superaccumulator: random sums of every exponent") {
    check_against_long_integer<float>(8);
    check_against_long_integer<double>(9);
}

TEST("oracle: the long integer against the host's fused multiply-add") {
    Random random(10);
    for (int i = 0; i < 100000; ++i) {
        auto any = [&]<class T>(T) { return value<T>(random.of(kinds), random.next()); };
        const float a = any(float()), b = any(float()), c = any(float());
        CHECK(same(exact_fma(a, b, c), std::fma(a, b, c)), text(a) << ' ' << text(b) << ' ' << text(c));
        const double d = any(double()), e = any(double()), f = any(double());
        CHECK(same(exact_fma(d, e, f), std::fma(d, e, f)), text(d) << ' ' << text(e) << ' ' << text(f));
    }
}

// low <= high, where each is a product of doubles or a sum of them, exactly.
bool at_most(std::vector<std::array<double, 2>> low, const std::vector<std::array<double, 2>>& high) {
    LongInteger difference;
    for (const auto& [a, b] : high) difference.add(a, b);
    for (const auto& [a, b] : low) difference.add(-a, b);
    return difference.rounded<double>() >= 0;
}

TEST("certificate: gamma is an upper bound of n u / (1 - n u), and a close one") {
    for (const Index terms : {Index(0), Index(1), Index(63), Index(64), Index(65), Index(1000), Index(4608),
                              Index(1) << 20, Index(1) << 40})
        for (const bool bias : {false, true}) {
            // Roundings that one product passes through: its block, the joins above it, the bias.
            Index joins = 0;
            for (Index blocks = (terms + exact_block - 1) / exact_block; blocks > 1; blocks = (blocks + 1) / 2) ++joins;
            const double n = static_cast<double>(std::min(exact_block, terms) + joins + bias), u = 0x1p-53;
            const double g = exact::gamma_wide(terms, bias);
            // g >= n u / (1 - n u)  where  g >= n u + g n u
            CHECK(at_most({{n, u}, {g * n, u}}, {{g, 1}}), terms);
            CHECK(g <= (static_cast<double>(exact_block) + static_cast<double>(joins) + 3) * u * (1 + 0x1p-30), terms);

            const double m = 2 * static_cast<double>(terms + bias) + 4, twofold = exact::gamma_twofold(terms, bias);
            // Its root r satisfies the same with m in n's place; (1 + 2^-50) makes up for the root's rounding.
            const double root = std::sqrt(twofold);
            CHECK(at_most({{m, u}, {root * m, u}}, {{root, 1}}), terms);
            CHECK(twofold <= m * u * m * u * (1 + 4 * m * u + 0x1p-30), terms);
        }
}

TEST("certificate: sums are rounded up, and not far") {
    Random random(11);
    for (int i = 0; i < 3000; ++i) {
        const Index terms = random.between(1, 200);
        double magnitudes = 0;
        LongInteger exact_magnitudes;
        for (const float v : made<float>(terms, random.next(), random.chance(50) ? "uniform" : "wide"))
            magnitudes += std::abs(v), exact_magnitudes.add(std::abs(v), 1);
        const double bound = exact::rounded_up(terms) * magnitudes;
        exact_magnitudes.add(-bound, 1);
        CHECK(exact_magnitudes.rounded<double>() <= 0, i);
        CHECK(bound <= magnitudes * (1 + 0x1p-38), i);
    }
}

}  // namespace
}  // namespace detconv::test
