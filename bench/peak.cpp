// The most multiply-adds a second that one core does: as many independent chains as hide the latency of one, no memory.
// Compiled when the benchmark runs; every function may be called only where its instruction set exists.

#include <cstdint>

#if defined(__x86_64__)
#    include <immintrin.h>
#elif defined(__aarch64__)
#    include <arm_neon.h>
#endif

// The returned sum keeps the chains alive; the factors keep the numbers from growing. Every loop over the chains is
// unrolled: one that is not keeps them in memory, at half the speed.
#define CHAINS(COUNT) _Pragma("GCC unroll 24") for (int c = 0; c < COUNT; ++c)
#define PEAK(NAME, TARGET, VECTOR, ELEMENT, COUNT, SET, STEP)       \
    extern "C" TARGET double NAME(std::int64_t rounds) {            \
        VECTOR s[COUNT];                                            \
        const VECTOR w = SET(ELEMENT(0.5)), x = SET(ELEMENT(0.25)); \
        CHAINS(COUNT) s[c] = x;                                     \
        for (std::int64_t i = 0; i < rounds; ++i) {                 \
            CHAINS(COUNT) { STEP(s[c], w, x); }                     \
            CHAINS(COUNT) { __asm__ volatile("" : KEPT(s[c])); }    \
        }                                                           \
        double total = 0;                                           \
        CHAINS(COUNT) total += s[c][0];                             \
        return total;                                               \
    }                                                               \
    extern "C" std::int64_t NAME##_flops() { return 2 * COUNT * (sizeof(VECTOR) / sizeof(ELEMENT)); }

#if defined(__x86_64__)
#    define KEPT(S) "+v"(S)
#    define FMA512F(S, W, X) S = _mm512_fmadd_ps(S, W, X)
#    define FMA512D(S, W, X) S = _mm512_fmadd_pd(S, W, X)
#    define FMA256F(S, W, X) S = _mm256_fmadd_ps(S, W, X)
#    define FMA256D(S, W, X) S = _mm256_fmadd_pd(S, W, X)
#    define MUL_ADD128F(S, W, X) S = _mm_add_ps(_mm_mul_ps(S, W), X)
#    define MUL_ADD128D(S, W, X) S = _mm_add_pd(_mm_mul_pd(S, W), X)
PEAK(avx512_float32, __attribute__((target("avx512f"))), __m512, float, 24, _mm512_set1_ps, FMA512F)
PEAK(avx512_float64, __attribute__((target("avx512f"))), __m512d, double, 24, _mm512_set1_pd, FMA512D)
PEAK(avx2_float32, __attribute__((target("avx2,fma"))), __m256, float, 12, _mm256_set1_ps, FMA256F)
PEAK(avx2_float64, __attribute__((target("avx2,fma"))), __m256d, double, 12, _mm256_set1_pd, FMA256D)
PEAK(baseline_float32, , __m128, float, 12, _mm_set1_ps, MUL_ADD128F)
PEAK(baseline_float64, , __m128d, double, 12, _mm_set1_pd, MUL_ADD128D)
#elif defined(__aarch64__)
#    define KEPT(S) "+w"(S)
#    define FMANEONF(S, W, X) S = vfmaq_f32(X, S, W)
#    define FMANEOND(S, W, X) S = vfmaq_f64(X, S, W)
PEAK(neon_float32, , float32x4_t, float, 24, vdupq_n_f32, FMANEONF)
PEAK(neon_float64, , float64x2_t, double, 24, vdupq_n_f64, FMANEOND)
#endif
