// A SIMD vector of independent outputs.
//
// Lanes<T, N> is N elements of T on which every operator is the IEEE operation of each lane. No operation here mixes
// lanes except the transposition, which only moves them: that is why the bits cannot depend on the vector's width.
//
// This header is compiled once per instruction set, inside a namespace of that set's name (DETCONV_ISA), and everything
// in it is forced inline: the linker must never be given an AVX-512 copy of a function that the baseline also calls.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#if defined(__SSE2__)
#    include <immintrin.h>
#elif defined(__aarch64__)
#    include <arm_neon.h>
#endif
#if defined(__FMA__) || (defined(__aarch64__) && !defined(DETCONV_ISA_BASELINE))
#    define DETCONV_HARDWARE_FMA 1
#else
#    include <cmath>
#endif

#define DETCONV_INLINE [[gnu::always_inline]] inline
// Accumulators live in registers only if every loop over them is unrolled, initialisation included (half speed if not).
#define DETCONV_UNROLL _Pragma("GCC unroll 64")

namespace detconv::DETCONV_ISA {

template <class T, int N>
struct Lanes {
    using Element = T;
    using Integer = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;
    static constexpr int size = N;
    typedef T Vector __attribute__((vector_size(N * sizeof(T))));
    typedef Integer Mask __attribute__((vector_size(N * sizeof(T))));

    Vector v;

    DETCONV_INLINE static Lanes zero() { return {Vector{}}; }

    DETCONV_INLINE static Lanes broadcast(T scalar) {
        return [&]<std::size_t... I>(std::index_sequence<I...>) __attribute__((always_inline)) {
            return Lanes{Vector{((void)I, scalar)...}};
        }(std::make_index_sequence<N>{});
    }

    // Elements of another type are converted as they are loaded; float to double is exact.
    template <class U>
    DETCONV_INLINE static Lanes load(const U* source) {
        typename Lanes<U, N>::Vector raw;
        __builtin_memcpy(&raw, source, sizeof raw);
        return Lanes<U, N>{raw}.template to<T>();
    }

    // All ones in the first `count` lanes.
    DETCONV_INLINE static Mask first(int count) {
        return [&]<std::size_t... I>(std::index_sequence<I...>) __attribute__((always_inline)) {
            return Mask{Integer(I)...} < (Mask{} + Integer(count));
        }(std::make_index_sequence<N>{});
    }

    // The first `count` elements, +0 in the others; no element beyond is read.
    DETCONV_INLINE static Lanes load_first(const T* source, int count) {
#if defined(__AVX512VL__)
        if constexpr (std::is_same_v<T, float> && N == 16)
            return {_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), source)};
        else if constexpr (std::is_same_v<T, double> && N == 8)
            return {_mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << count) - 1), source)};
        else if constexpr (std::is_same_v<T, float> && N == 8)
            return {_mm256_maskz_loadu_ps(static_cast<__mmask8>((1u << count) - 1), source)};
#elif defined(__AVX2__)
        if constexpr (std::is_same_v<T, float> && N == 8)
            return {_mm256_maskload_ps(source, (__m256i)first(count))};
        else if constexpr (std::is_same_v<T, double> && N == 4)
            return {_mm256_maskload_pd(source, (__m256i)first(count))};
        else if constexpr (std::is_same_v<T, float> && N == 4)
            return {_mm_maskload_ps(source, (__m128i)first(count))};
#endif
        T copy[N] = {};
        for (int i = 0; i < count; ++i) copy[i] = source[i];
        return load(copy);
    }

    DETCONV_INLINE void store(T* target) const { __builtin_memcpy(target, &v, sizeof v); }

    DETCONV_INLINE void store_first(T* target, int count) const {
#if defined(__AVX512VL__)
        if constexpr (std::is_same_v<T, float> && N == 16)
            return _mm512_mask_storeu_ps(target, static_cast<__mmask16>((1u << count) - 1), v);
        else if constexpr (std::is_same_v<T, double> && N == 8)
            return _mm512_mask_storeu_pd(target, static_cast<__mmask8>((1u << count) - 1), v);
        else if constexpr (std::is_same_v<T, float> && N == 8)
            return _mm256_mask_storeu_ps(target, static_cast<__mmask8>((1u << count) - 1), v);
#elif defined(__AVX2__)
        if constexpr (std::is_same_v<T, float> && N == 8)
            return _mm256_maskstore_ps(target, (__m256i)first(count), v);
        else if constexpr (std::is_same_v<T, double> && N == 4)
            return _mm256_maskstore_pd(target, (__m256i)first(count), v);
        else if constexpr (std::is_same_v<T, float> && N == 4)
            return _mm_maskstore_ps(target, (__m128i)first(count), v);
#endif
        T copy[N];
        store(copy);
        for (int i = 0; i < count; ++i) target[i] = copy[i];
    }

    // Rounds to the narrower type, or widens exactly.
    template <class U>
    DETCONV_INLINE Lanes<U, N> to() const {
        if constexpr (std::is_same_v<U, T>) return *this;
#if defined(__AVX512F__)
        // GCC 12 converts a 64-byte vector in halves, five instructions for one. (maskz: the plain intrinsics warn
        // there.)
        else if constexpr (std::is_same_v<U, double> && N == 8)
            return {_mm512_maskz_cvtps_pd(0xff, v)};
        else if constexpr (std::is_same_v<U, float> && N == 8)
            return {_mm512_maskz_cvtpd_ps(0xff, v)};
#endif
        else
            return {__builtin_convertvector(v, typename Lanes<U, N>::Vector)};
    }

    // Rounds to the narrower type; an inexact result gets the neighbour whose last bit is 1, so that it can be rounded
    // once more, to a type two bits narrower still, as the exact value would be (Boldo & Melquiond 2008).
    template <class U>
    DETCONV_INLINE Lanes<U, N> to_odd() const {
        using Narrow = Lanes<U, N>;
        const Narrow nearest = to<U>();
        const Lanes back = nearest.template to<T>();
        using Bits = typename Narrow::Mask;
        const Bits bits = (Bits)nearest.v;
        const Bits inexact = __builtin_convertvector((back.v < v) | (back.v > v), Bits);  // false for NaN
        const Bits even = (bits & 1) - 1;
        const Bits outward = __builtin_convertvector(abs(*this).v > abs(back).v, Bits);  // -1: one ulp up in magnitude
        const Bits step = 1 | ~outward;
        return {(typename Narrow::Vector)(bits + (inexact & even & step))};
    }

    DETCONV_INLINE friend Lanes abs(Lanes a) { return {(Vector)((Mask)a.v & ~(Integer(1) << (8 * sizeof(T) - 1)))}; }

    DETCONV_INLINE friend Lanes operator+(Lanes a, Lanes b) { return {a.v + b.v}; }
    DETCONV_INLINE friend Lanes operator-(Lanes a, Lanes b) { return {a.v - b.v}; }
    DETCONV_INLINE friend Lanes operator*(Lanes a, Lanes b) { return {a.v * b.v}; }
    DETCONV_INLINE friend Lanes operator-(Lanes a) { return {-a.v}; }
    DETCONV_INLINE friend Mask operator==(Lanes a, Lanes b) { return a.v == b.v; }
    DETCONV_INLINE friend Mask operator!=(Lanes a, Lanes b) { return a.v != b.v; }
    DETCONV_INLINE static Lanes select(Mask mask, Lanes yes, Lanes no) { return {mask ? yes.v : no.v}; }
};

// a * b + c with one rounding.
template <class T, int N>
DETCONV_INLINE Lanes<T, N> fma(Lanes<T, N> a, Lanes<T, N> b, Lanes<T, N> c) {
    [[maybe_unused]] constexpr bool single = std::is_same_v<T, float>;
#if defined(__AVX512F__)
    if constexpr (single && N == 16)
        return {_mm512_fmadd_ps(a.v, b.v, c.v)};
    else if constexpr (!single && N == 8)
        return {_mm512_fmadd_pd(a.v, b.v, c.v)};
    else
#endif
#if defined(__FMA__)
        if constexpr (single && N == 8)
        return {_mm256_fmadd_ps(a.v, b.v, c.v)};
    else if constexpr (!single && N == 4)
        return {_mm256_fmadd_pd(a.v, b.v, c.v)};
    else {
        static_assert(single && N == 4, "no fused multiply-add for this width");
        return {_mm_fmadd_ps(a.v, b.v, c.v)};
    }
#elif defined(DETCONV_HARDWARE_FMA)
    if constexpr (single && N == 4)
        return {vfmaq_f32(c.v, a.v, b.v)};
    else if constexpr (single && N == 2)
        return {vfma_f32(c.v, a.v, b.v)};
    else {
        static_assert(!single && N == 2, "no fused multiply-add for this width");
        return {vfmaq_f64(c.v, a.v, b.v)};
    }
#else
    if constexpr (single) {
        // No fused instruction, and libm's fmaf costs ~17x. In double the product is exact and the sum is off by a
        // known error; rounding that sum to odd makes the second rounding, to float, the right one (Boldo & Melquiond,
        // "Emulation of FMA and correctly rounded sums", IEEE TC 2008: 53 >= 24 + 2 bits suffice).
        const Lanes<double, N> product = a.template to<double>() * b.template to<double>(),
                               addend = c.template to<double>();
        Lanes<double, N> sum = product + addend;
        const Lanes<double, N> part = sum - product;
        const Lanes<double, N> error = (product - (sum - part)) + (addend - part);
        using Mask = typename Lanes<double, N>::Mask;
        Mask bits = (Mask)sum.v;
        const Mask inexact = (error.v > 0.0) | (error.v < 0.0);   // false for NaN
        const Mask even = (bits & 1) - 1;                         // all ones where the last bit is 0
        const Mask away = ((error.v > 0.0) ^ (sum.v > 0.0)) | 1;  // +1 or -1 ulp, towards the error
        bits += inexact & even & away;
        sum.v = (typename Lanes<double, N>::Vector)bits;
        return sum.template to<float>();
    } else {
        Lanes<T, N> result;
        for (int i = 0; i < N; ++i) result.v[i] = std::fma(a.v[i], b.v[i], c.v[i]);
        return result;
    }
#endif
}

// a - b by way of the multiplier, a * 1 - b: the same bits, but on a machine with separate multiply and add pipes it
// balances Kahan's three additions (50% of peak instead of 30% on Zen 4). The 1 must be opaque to the compiler. With
// AVX2's 16 registers there are too few sums to fill the pipes, and the subtraction's shorter latency counts: 35%
// faster.
template <class V>
DETCONV_INLINE V subtract_on_multiplier(V a, V b, [[maybe_unused]] V one) {
#if defined(DETCONV_HARDWARE_FMA) && (defined(__AVX512F__) || !defined(__AVX2__))
    return fma(a, one, -b);
#else
    return a - b;
#endif
}

template <class V>
DETCONV_INLINE V opaque_one() {
    V one = V::broadcast(typename V::Element(1));
#if defined(__SSE2__)
    asm("" : "+x"(one.v));
#elif defined(__aarch64__)
    asm("" : "+w"(one.v));
#endif
    return one;
}

// The value that leaves the engine: every NaN is the canonical quiet NaN, every zero is +0 (contract, point 7).
template <class V>
DETCONV_INLINE V canonical(V a) {
    using T = typename V::Element;
    const V clean = a + V::zero();
    const T nan = sizeof(T) == 4 ? T(__builtin_nanf("")) : T(__builtin_nan(""));
    return V::select(clean == clean, clean, V::broadcast(nan));
}

namespace detail {

template <class Vector, std::size_t... I>
DETCONV_INLINE Vector shuffle(Vector a, Vector b, std::index_sequence<I...>) {
#if defined(__clang__) || __GNUC__ >= 12
    return __builtin_shufflevector(a, b, I...);
#else
    using Index = std::conditional_t<sizeof(a[0]) == 4, std::int32_t, std::int64_t>;
    typedef Index Indices __attribute__((vector_size(sizeof(Vector))));
    return __builtin_shuffle(a, b, Indices{Index(I)...});
#endif
}

// Exchange of the off-diagonal S x S blocks: lane i comes from `a` where bit S of i is clear.
template <int S, bool High, std::size_t... I>
constexpr auto exchange(std::index_sequence<I...>) {
    constexpr std::size_t n = sizeof...(I), s = S;
    return std::index_sequence<((I & s) ? n + (High ? I : I - s) : (High ? I + s : I))...>{};
}

}  // namespace detail

// Elements 0, 2, 4, ... of a, then those of b.
template <class T, int N>
DETCONV_INLINE Lanes<T, N> even(Lanes<T, N> a, Lanes<T, N> b) {
    return [&]<std::size_t... I>(std::index_sequence<I...>) __attribute__((always_inline)) {
        return Lanes<T, N>{detail::shuffle(a.v, b.v, std::index_sequence<2 * I...>{})};
    }(std::make_index_sequence<N>{});
}

// Transposes the square rows[0..N) in registers: log2(N) rounds of block exchanges.
template <class T, int N>
DETCONV_INLINE void transpose(Lanes<T, N> (&rows)[N]) {
    auto round = [&]<int S>(std::integral_constant<int, S>) __attribute__((always_inline)) {
        using All = std::make_index_sequence<N>;
        DETCONV_UNROLL
        for (int i = 0; i < N; ++i) {
            if (i & S) continue;
            const auto a = rows[i].v, b = rows[i + S].v;
            rows[i].v = detail::shuffle(a, b, decltype(detail::exchange<S, false>(All{})){});
            rows[i + S].v = detail::shuffle(a, b, decltype(detail::exchange<S, true>(All{})){});
        }
    };
    if constexpr (N > 8) round(std::integral_constant<int, 8>{});
    if constexpr (N > 4) round(std::integral_constant<int, 4>{});
    if constexpr (N > 2) round(std::integral_constant<int, 2>{});
    round(std::integral_constant<int, 1>{});
}

}  // namespace detconv::DETCONV_ISA
