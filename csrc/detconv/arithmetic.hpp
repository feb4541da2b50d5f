// What one accumulator does with one term.
//
// Each struct is one accumulator per lane and the whole numerical meaning of a method; w and x are the factors of the
// term, b is the bias, and every operator is one IEEE operation rounded to the accumulator's type. The contract
// (docs/contract.md) says the same in words, python/detconv/reference.py in Python.
//
//   struct    accumulates in           used by the methods
//   Plain     the element type         naive, pairwise, explicit orders; fp64 of float64
//   Kahan     the element type, twice  kahan
//   Wide      double (terms: float)    fp64, explicit orders with d[...]; exact (float32), before its certificate
//   Twofold   double, twice            exact (float64), before its certificate
//
// An accumulator that can be joined to an older one has join(); one whose total takes a last step has finish(). To add
// one: write the struct, give it rows in kernels.cpp and one in summation.hpp. See docs/adding-a-method.md.
#pragma once

#include "lanes.hpp"
#include "summation.hpp"

namespace detconv::DETCONV_ISA {

// s = s + w*x.
template <class V>
struct Plain {
    using Lanes = V;
    static constexpr Accumulator kind = Accumulator::plain;
    static constexpr int parts = 1;
    V s;

    DETCONV_INLINE void start(V b) { s = b; }
    DETCONV_INLINE void fused(V w, V x, V) { s = fma(w, x, s); }
    DETCONV_INLINE void rounded(V w, V x, V) { s = s + w * x; }
    DETCONV_INLINE void join(Plain older) { s = older.s + s; }
    DETCONV_INLINE void add(V b) { s = s + b; }
};

// Kahan's compensated summation (CACM 8, 1965): c is what the last addition lost, and is taken off the next term.
template <class V>
struct Kahan {
    using Lanes = V;
    static constexpr Accumulator kind = Accumulator::kahan;
    static constexpr int parts = 2;
    V s, c;

    DETCONV_INLINE void start(V b) { s = b, c = V::zero(); }
    DETCONV_INLINE void fused(V w, V x, V one) { step(fma(w, x, -c), one); }
    DETCONV_INLINE void rounded(V w, V x, V one) { step(w * x - c, one); }
    DETCONV_INLINE void add(V b) { s = s + (b - c); }

private:
    DETCONV_INLINE void step(V y, V one) {
        const V t = s + y;
        c = subtract_on_multiplier(t - s, y, one);  // c = (t - s) - y
        s = t;
    }
};

// Terms of float, accumulator of double: the product of two floats is exact there. The narrow forms do one operation in
// float, for explicit orders in which only some nodes are kept in double.
template <class V>
struct Wide {
    using Lanes = V;
    static constexpr Accumulator kind = Accumulator::wide;
    static constexpr int parts = 1;
    V s;

    DETCONV_INLINE void start(V b) { s = b; }
    DETCONV_INLINE void fused(V w, V x, V) { s = fma(w, x, s); }
    DETCONV_INLINE void rounded(V w, V x, V) { s = s + round(w * x); }
    DETCONV_INLINE void join(Wide older) { s = older.s + s; }
    DETCONV_INLINE void add(V b) { s = s + b; }

    DETCONV_INLINE void fused_narrow(V w, V x) {
        s = fma(w.template to<float>(), x.template to<float>(), s.template to<float>()).template to<double>();
    }
    // A sum of two floats rounded to double and then to float is the float sum (53 >= 2 * 24 + 2: Figueroa, 1995).
    DETCONV_INLINE void rounded_narrow(V w, V x) { s = round(s + round(w * x)); }
    DETCONV_INLINE void join_narrow(Wide older) { s = round(older.s + s); }
    DETCONV_INLINE void add_narrow(V b) { s = round(s + b); }
    DETCONV_INLINE void round() { s = round(s); }

private:
    DETCONV_INLINE static V round(V a) { return a.template to<float>().template to<double>(); }
};

// Dot product as if in twice the precision: Ogita, Rump & Oishi, "Accurate sum and dot product" (SIAM J. Sci. Comput.
// 26, 2005), algorithm Dot2. s + c is the sum with an error of the order of the square of the unit roundoff.
template <class V>
struct Twofold {
    using Lanes = V;
    static constexpr Accumulator kind = Accumulator::twofold;
    static constexpr int parts = 2;
    V s, c;

    DETCONV_INLINE void start(V b) { s = b, c = V::zero(); }
    DETCONV_INLINE void fused(V w, V x, V) {
        const V product = w * x, lost = fma(w, x, -product);
        const V sum = s + product, part = sum - s;
        c = c + (((s - (sum - part)) + (product - part)) + lost);
        s = sum;
    }
    DETCONV_INLINE void add(V b) {
        const V sum = s + b, part = sum - s;
        c = c + ((s - (sum - part)) + (b - part));
        s = sum;
    }
};

}  // namespace detconv::DETCONV_ISA
