// Correctly rounded sums: the certificate that a total rounds the right way, and the superaccumulator behind it.
//
// The certificate. A sum in double of n products of floats, each through at most d additions, is off by at most
// gamma(d) * S, S = sum |w*x| (Higham, Accuracy and Stability, section 4.2); S <= norm(w) * norm(window) by Cauchy and
// Schwarz. Where total - bound and total + bound round to the same float, so does the exact sum. For float64 the sum
// is Twofold (Ogita, Rump & Oishi 2005, Dot2), off by at most gamma(2n+4)^2 * S, with S <= max|w| * sum|window|: there
// the bound is so small that a looser S costs nothing, and no square can overflow or underflow.
#pragma once

#include <cstdint>

#include "summation.hpp"

namespace detconv::exact {

__extension__ using Integer128 = unsigned __int128;

// Bound of the error of a total, relative to S, rounded up.
double gamma_wide(Index terms, bool has_bias);     // float32 terms in double, blocks of exact_block
double gamma_twofold(Index terms, bool has_bias);  // float64 terms, Twofold

// At least the true sum of non-negative numbers divided by the one that so many rounded additions made of it.
double rounded_up(Index additions);

// Every finite product of two T is a multiple of 2^lowest; the sum of 2^63 of them fits the accumulator.
// Kulisch's long accumulator, in limbs of 32 bits with deferred carries.
template <class T>
class Superaccumulator {
public:
    void clear();
    void add_product(T w, T x);
    void add(T b);
    T rounded(Rounding rounding =
                  Rounding::nearest) const;  // nearest: ties to even; IEEE's rules where a term was not finite

private:
    static constexpr bool single = sizeof(T) == 4;
    static constexpr int lowest = single ? -2 * 149 : -2 * 1074;
    static constexpr int highest = (single ? 2 * 128 : 2 * 1024) + 64;  // room for 2^63 terms and the sign
    static constexpr int limbs = (highest - lowest + 31) / 32 + 1;
    void add_integer(Integer128 magnitude, int exponent, bool negative);
    void carry();

    std::int64_t limb_[limbs] = {};
    std::int64_t pending_ = 0;  // additions since the last carry
    bool nan_ = false, positive_infinity_ = false, negative_infinity_ = false;
};

extern template class Superaccumulator<float>;
extern template class Superaccumulator<double>;

}  // namespace detconv::exact
