#include "exact.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

namespace detconv::exact {
namespace {

constexpr double unit = 0x1p-53;

// Covers the rounding of the few operations that compute a bound itself.
double up(double bound) { return bound * (1 + 0x1p-40); }

double gamma(double n) { return up(n * unit / (1 - n * unit)); }

template <class T>
struct Parts {
    std::uint64_t significand;
    int exponent;  // value = significand * 2^exponent
    bool negative;
};

template <class T>
Parts<T> parts(T value) {
    if constexpr (sizeof(T) == 4) {
        const auto bits = std::bit_cast<std::uint32_t>(value);
        const int biased = (bits >> 23) & 0xff;
        const std::uint64_t fraction = bits & 0x7fffff;
        return {biased ? fraction | 0x800000 : fraction, (biased ? biased : 1) - 150, bits >> 31 != 0};
    } else {
        const auto bits = std::bit_cast<std::uint64_t>(value);
        const int biased = static_cast<int>((bits >> 52) & 0x7ff);
        const std::uint64_t fraction = bits & 0xfffffffffffff;
        return {biased ? fraction | 0x10000000000000 : fraction, (biased ? biased : 1) - 1075, bits >> 63 != 0};
    }
}

}  // namespace

double gamma_wide(Index terms, bool has_bias) {
    const Index blocks = terms / exact_block + 1;
    const int joins = blocks == 1 ? 0 : std::bit_width(static_cast<std::uint64_t>(blocks));
    return gamma(static_cast<double>(std::min(terms, exact_block) + joins + (has_bias ? 1 : 0)));
}

double gamma_twofold(Index terms, bool has_bias) {
    const double g = gamma(2.0 * static_cast<double>(terms + (has_bias ? 1 : 0)) + 4);
    return up(g * g);
}

double rounded_up(Index additions) { return up(1 + static_cast<double>(additions + 2) * unit); }

template <class T>
void Superaccumulator<T>::clear() {
    *this = Superaccumulator();
}

template <class T>
void Superaccumulator<T>::add_product(T w, T x) {
    if (!std::isfinite(w) || !std::isfinite(x)) {
        const T product = w * x;  // IEEE: infinity times zero is NaN
        if (std::isnan(product))
            nan_ = true;
        else
            (product > 0 ? positive_infinity_ : negative_infinity_) = true;
        return;
    }
    const Parts<T> a = parts(w), b = parts(x);
    add_integer(static_cast<Integer128>(a.significand) * b.significand, a.exponent + b.exponent,
                a.negative != b.negative);
}

template <class T>
void Superaccumulator<T>::add(T b) {
    add_product(b, T(1));
}

template <class T>
void Superaccumulator<T>::add_integer(Integer128 magnitude, int exponent, bool negative) {
    if (magnitude == 0) return;
    const int position = exponent - lowest, shift = position & 31;
    // At most 106 bits, so after a shift of up to 31 five limbs hold them.
    std::int64_t* limb = limb_ + (position >> 5);
    const auto low = static_cast<std::uint64_t>(magnitude), high = static_cast<std::uint64_t>(magnitude >> 64);
    const Integer128 a = static_cast<Integer128>(low) << shift;
    const Integer128 b = (static_cast<Integer128>(high) << shift) + (a >> 64);
    const std::uint32_t digits[5] = {static_cast<std::uint32_t>(a), static_cast<std::uint32_t>(a >> 32),
                                     static_cast<std::uint32_t>(b), static_cast<std::uint32_t>(b >> 32),
                                     static_cast<std::uint32_t>(b >> 64)};
    for (int i = 0; i < 5; ++i)
        if (digits[i] != 0) limb[i] += negative ? -std::int64_t(digits[i]) : std::int64_t(digits[i]);
    if (++pending_ == std::int64_t(1) << 30) carry();  // a limb holds 2^31 additions of 32 bits
}

template <class T>
void Superaccumulator<T>::carry() {
    std::int64_t carried = 0;
    for (int i = 0; i + 1 < limbs; ++i) {
        const std::int64_t value = limb_[i] + carried;
        limb_[i] = value & 0xffffffff;
        carried = value >> 32;  // floor: the sign stays in the top limb
    }
    limb_[limbs - 1] += carried;
    pending_ = 0;
}

template <class T>
T Superaccumulator<T>::rounded(Rounding rounding) const {
    constexpr T infinity = std::numeric_limits<T>::infinity();
    if (nan_ || (positive_infinity_ && negative_infinity_)) return std::numeric_limits<T>::quiet_NaN();
    if (positive_infinity_) return infinity;
    if (negative_infinity_) return -infinity;

    Superaccumulator sum = *this;
    sum.carry();
    const bool negative = sum.limb_[limbs - 1] < 0;
    if (negative) {
        for (std::int64_t& limb : sum.limb_) limb = -limb;
        sum.carry();
    }
    int top = limbs - 1;
    while (top >= 0 && sum.limb_[top] == 0) --top;
    if (top < 0) return T(0);

    // The result keeps `digits` bits below the leading one, or fewer where the result is subnormal.
    constexpr int digits = std::numeric_limits<T>::digits, smallest = std::numeric_limits<T>::min_exponent - digits;
    const int leading = 32 * top + std::bit_width(static_cast<std::uint64_t>(sum.limb_[top])) - 1;
    const int last = std::max(leading - (digits - 1), smallest - lowest);
    auto bit = [&](int i) { return (sum.limb_[i >> 5] >> (i & 31)) & 1; };
    std::uint64_t significand = 0;
    for (int i = leading; i >= last; --i) significand = significand << 1 | static_cast<std::uint64_t>(bit(i));
    if (last > 0) {
        bool sticky = false;
        for (int i = last - 2; i >= 0 && !sticky; --i) {
            if ((i & 31) == 31 && sum.limb_[i >> 5] == 0) i -= 31;  // a whole limb of zeros
            sticky = bit(i) != 0;
        }
        const bool half = bit(last - 1) != 0;
        if (rounding == Rounding::nearest)
            significand += half && (sticky || (significand & 1)) ? 1 : 0;
        else if (half || sticky)
            significand |= 1;
    }
    // The significand is at most 2^digits, so both steps are exact but for an overflow: to infinity, or to the odd
    // neighbour.
    T result = std::ldexp(static_cast<T>(significand), last + lowest);
    if (rounding == Rounding::odd) result = std::min(result, std::numeric_limits<T>::max());
    return negative ? -result : result;
}

template class Superaccumulator<float>;
template class Superaccumulator<double>;

}  // namespace detconv::exact
