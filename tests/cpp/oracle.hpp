// What the right answer is, by slow and plain means: exact sums in one long integer, and every method one output at a
// time, one operation after the other.
#pragma once

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "detconv/program.hpp"
#include "detconv/summation.hpp"

namespace detconv::test {

// A sum of products of doubles (so of floats) as an integer, in units of the square of the smallest subnormal.
class LongInteger {
public:
    // Adds w * x; both are finite.
    void add(double w, double x) {
        __extension__ using Wide = unsigned __int128;
        const Parts a(w), b(x);
        const Wide product = Wide(a.significand) * b.significand;
        const int position = a.position + b.position, shift = position % 64;
        const std::uint64_t low = static_cast<std::uint64_t>(product), high = static_cast<std::uint64_t>(product >> 64);
        const Wide first = Wide(low) << shift, second = (Wide(high) << shift) + (first >> 64);
        const std::array<std::uint64_t, 3> digits{static_cast<std::uint64_t>(first), static_cast<std::uint64_t>(second),
                                                  static_cast<std::uint64_t>(second >> 64)};
        const bool negative = a.negative != b.negative;
        std::uint64_t carry = 0;
        for (std::size_t i = static_cast<std::size_t>(position) / 64, k = 0; i < limbs && (k < 3 || carry); ++i, ++k) {
            const Wide digit = Wide(k < 3 ? digits[k] : 0) + carry;
            const std::uint64_t before = limb_[i], part = static_cast<std::uint64_t>(digit);
            limb_[i] = negative ? before - part : before + part;
            carry = static_cast<std::uint64_t>(digit >> 64) + (negative ? limb_[i] > before : limb_[i] < before);
        }
    }

    bool is_zero() const { return *this == LongInteger(); }

    // To nearest, ties to even.
    template <class T>
    T rounded() const {
        using Limits = std::numeric_limits<T>;
        const bool negative = limb_[limbs - 1] >> 63 != 0;
        LongInteger magnitude = *this;
        if (negative) {
            std::uint64_t carry = 1;
            for (std::uint64_t& limb : magnitude.limb_) limb = ~limb + carry, carry = carry && limb == 0;
        }
        std::size_t top = limbs;
        while (top > 0 && magnitude.limb_[top - 1] == 0) --top;
        if (top == 0) return 0;
        const int leading = static_cast<int>(64 * top) - 1 - std::countl_zero(magnitude.limb_[top - 1]);
        const int last = std::max(leading - unit, Limits::min_exponent - 1) + unit - (Limits::digits - 1);
        std::uint64_t significand = 0;
        for (int i = leading; i >= last; --i) significand = 2 * significand + magnitude.bit(i);
        bool below = false;  // anything under the half
        for (int i = 0; i < last - 1 && !below; ++i) below = magnitude.bit(i) != 0;
        if (magnitude.bit(last - 1) && (below || significand % 2 != 0)) ++significand;
        const T result = static_cast<T>(std::ldexp(static_cast<double>(significand), last - unit));
        return negative ? -result : result;
    }

    friend bool operator==(const LongInteger&, const LongInteger&) = default;

private:
    static constexpr int unit = 2 * 1074;
    static constexpr std::size_t limbs = (unit + 2 * 1024) / 64 + 2;

    struct Parts {  // of significand * 2^(position - 1074)
        std::uint64_t significand;
        int position;
        bool negative;

        explicit Parts(double value) {
            const auto bits = std::bit_cast<std::uint64_t>(value);
            const int biased = static_cast<int>(bits >> 52 & 0x7ff);
            significand = (bits & 0xfffffffffffff) | std::uint64_t(biased != 0) << 52;
            position = biased == 0 ? 0 : biased - 1;
            negative = bits >> 63 != 0;
        }
    };

    std::uint64_t bit(int i) const { return limb_[static_cast<std::size_t>(i) / 64] >> (i % 64) & 1; }

    std::array<std::uint64_t, limbs> limb_{};
};

// w * x + c, rounded once.
template <class T>
T exact_fma(T w, T x, T c) {
    if (!std::isfinite(w) || !std::isfinite(x)) return w * x + c;
    if (!std::isfinite(c)) return c;
    LongInteger sum;
    sum.add(w, x);
    sum.add(c, 1);
    // A zero of two zeros has the sign that addition gives it.
    if (sum.is_zero()) return w == 0 || x == 0 ? w * x + c : T(0);
    return sum.rounded<T>();
}

// The terms of one output and its bias, exactly summed and rounded once.
template <class T>
T exact_sum(const std::vector<T>& w, const std::vector<T>& x, T bias) {
    LongInteger finite;
    T other = 0;
    auto add = [&](T a, T b) {
        if (std::isfinite(a) && std::isfinite(b))
            finite.add(a, b);
        else
            other += a * b;
    };
    for (std::size_t r = 0; r < w.size(); ++r) add(w[r], x[r]);
    add(bias, 1);
    return other == 0 ? finite.rounded<T>() : other;
}

// The parts of an accumulator; c is that of Kahan's and of the twofold one.
struct Total {
    double s = 0, c = 0;
};

// Runs a program on the terms of one output, given in the program's sequence.
template <class T>
Total evaluate(const Program& program, Accumulator accumulator, const std::vector<T>& w, const std::vector<T>& x,
               T bias) {
    auto run = [&]<class A>(A) {  // A is the type of the accumulator
        struct State {
            A s = 0, c = 0;
        } now;
        std::vector<State> stack;
        auto kahan_step = [&](A y) {
            const A t = now.s + y;
            now.c = (t - now.s) - y;
            now.s = t;
        };
        auto twofold_step = [&](A product, A lost) {
            const A sum = now.s + product, part = sum - now.s;
            now.c += ((now.s - (sum - part)) + (product - part)) + lost;
            now.s = sum;
        };
        auto term = [&](T a, T b, const Instruction& i) {
            const bool fused = i.op == Op::fused;
            if (accumulator == Accumulator::kahan)
                kahan_step(fused ? std::fma(A(a), A(b), -now.c) : A(a * b) - now.c);
            else if (accumulator == Accumulator::twofold)
                twofold_step(A(a) * A(b), std::fma(A(a), A(b), -(A(a) * A(b))));
            else if (i.narrow)
                now.s = fused ? std::fma(a, b, T(now.s)) : T(T(now.s) + T(a * b));
            else
                now.s = fused ? std::fma(A(a), A(b), now.s) : now.s + A(T(a * b));
        };
        for (const Instruction& i : program.code) {
            switch (i.op) {
                case Op::zero:
                    now = {};
                    break;
                case Op::bias:
                    now = {A(bias), 0};
                    break;
                case Op::fused:
                case Op::rounded:
                    for (Index r = i.begin; r < i.end; ++r)
                        term(w[static_cast<std::size_t>(r)], x[static_cast<std::size_t>(r)], i);
                    break;
                case Op::push:
                    stack.push_back(now);
                    break;
                case Op::join:
                    now.s = i.narrow ? A(T(T(stack.back().s) + T(now.s))) : stack.back().s + now.s;
                    stack.pop_back();
                    break;
                case Op::add_bias:
                    if (accumulator == Accumulator::kahan)
                        now.s += A(bias) - now.c;
                    else if (accumulator == Accumulator::twofold)
                        twofold_step(A(bias), A(-0.0));
                    else
                        now.s = i.narrow ? A(T(T(now.s) + bias)) : now.s + A(bias);
                    break;
                case Op::round:
                    now.s = A(T(now.s));
                    break;
            }
        }
        return Total{static_cast<double>(now.s), static_cast<double>(now.c)};
    };
    return accumulator == Accumulator::wide ? run(double()) : run(T());
}

// What leaves the engine: one NaN, one zero.
template <class T>
T canonical(T value) {
    return std::isnan(value) ? std::numeric_limits<T>::quiet_NaN() : value + T(0);
}

}  // namespace detconv::test
