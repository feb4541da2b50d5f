// Compiled once per instruction set, with DETCONV_ISA naming it: the table of tile kernels and the few loops over
// memory that feed them. No standard library code that could be shared with another instruction set's object is used
// here.
#include "kernels.hpp"

#include "contraction.hpp"

namespace detconv::DETCONV_ISA {
namespace {

// Widths of the vectors: all the lanes of a register, and half of them for problems with few output channels.
#if defined(__AVX512F__)
constexpr int register_bytes = 64;
#elif defined(__AVX2__)
constexpr int register_bytes = 32;
#else
constexpr int register_bytes = 16;
#endif
using F = Lanes<float, register_bytes / 4>;
using D = Lanes<double, register_bytes / 8>;

template <class V, class Element>
DETCONV_INLINE void store_as(V values, Index count, Element* target) {
    if (count >= V::size)
        values.template to<Element>().store(target);
    else
        values.template to<Element>().store_first(target, static_cast<int>(count));
}

template <class U, class V>
DETCONV_INLINE U rounded(V total, Rounding rounding) {
    if constexpr (sizeof(typename V::Element) > sizeof(typename U::Element))
        if (rounding == Rounding::odd) return total.template to_odd<typename U::Element>();
    return total.template to<typename U::Element>();
}

template <class Arithmetic, class Term, class S>
void store(const TileOutput& out) {
    using V = typename Arithmetic::Lanes;
    using U = Lanes<Term, V::size>;
    constexpr int L = V::size, lanes = S::vectors * L;
    const auto* totals = static_cast<const typename V::Element*>(out.totals);
    auto* const output = static_cast<Term*>(out.output);
    auto load = [&](const typename V::Element* from)
                    __attribute__((always_inline)) { return canonical(rounded<U>(V::load(from), out.rounding)); };

    if constexpr (!S::rows_are_lanes) {
        constexpr int columns = S::per_row * L;
        for (int m = 0; m < out.rows; ++m)
            for (int h = 0; h < out.image_rows; ++h) {
                const auto* from = totals + m * lanes + h * columns;
                Term* to = output + m * out.row_stride + h * out.image_row_stride;
                for (int w = 0; w < out.columns; w += L) {
                    const U values = load(from + w);
                    const int count = out.columns - w < L ? out.columns - w : L;
                    if (out.column_stride != 1)
                        for (int i = 0; i < count; ++i) to[(w + i) * out.column_stride] = values.v[i];
                    else if (count == L)
                        values.store(to + w);
                    else
                        values.store_first(to + w, count);
                }
            }
    } else {
        // Upright, an image row has one column: these follow each other in memory, if any do.
        constexpr bool upright = S::per_row == 1;
        const int image_rows = upright ? 1 : out.image_rows, columns = upright ? out.image_rows : out.columns;
        const Index column_stride = upright ? out.image_row_stride : out.column_stride;
        for (int h = 0; h < image_rows; ++h) {
            const auto* from = totals + h * S::per_row * lanes;
            Term* to = output + h * out.image_row_stride;
            for (int m = 0; m < out.rows; m += L) {
                const int rows = out.rows - m < L ? out.rows - m : L;
                if (out.row_stride == 1) {  // channels last: a column's rows lie side by side
                    for (int w = 0; w < columns; ++w)
                        store_as(load(from + w * lanes + m), rows, to + w * column_stride + m);
                    continue;
                }
                for (int w = 0; w < columns; w += L) {
                    const int count = columns - w < L ? columns - w : L;
                    U square[L];
                    for (int i = 0; i < L; ++i) square[i] = i < count ? load(from + (w + i) * lanes + m) : U::zero();
                    transpose(square);
                    for (int i = 0; i < rows; ++i) {
                        Term* row = to + (m + i) * out.row_stride + w * column_stride;
                        if (column_stride != 1)
                            for (int j = 0; j < count; ++j) row[j * column_stride] = square[i].v[j];
                        else if (count == L)
                            square[i].store(row);
                        else
                            square[i].store_first(row, count);
                    }
                }
            }
        }
    }
}

// Whether every total rounds one way; where not, marks those that may round either way. Twofold totals are normalised:
// the sum is what it rounds to, the second part the rest.
template <class Arithmetic, class Term, class S>
bool certify(const Certificate& c) {
    using V = typename Arithmetic::Lanes;
    constexpr int L = V::size, size = S::vectors * S::broadcasts * L;
    constexpr bool rows_are_lanes = S::rows_are_lanes;
    static_assert(sizeof(typename V::Element) == 8);
    auto* const totals = static_cast<double*>(c.totals);

    auto bound = [&](int n, int j) __attribute__((always_inline)) {
        V row_norm, bias_bound, norm;
        if constexpr (rows_are_lanes) {
            row_norm = V::load(c.row_norm + n * L), bias_bound = V::load(c.bias_bound + n * L);
            const double* const column = c.column_norm + j / S::per_row * c.column_norm_stride +
                                         j % S::per_row * (S::diagonal ? S::vectors * L : 1);
            norm = S::diagonal ? V::load(column + n * L) : V::broadcast(*column);
        } else {
            row_norm = V::broadcast(c.row_norm[j]), bias_bound = V::broadcast(c.bias_bound[j]);
            norm = V::load(c.column_norm + n / S::per_row * c.column_norm_stride + n % S::per_row * L);
        }
        // The norms first: their product is of the size of the sum, while a factor of it may be tiny.
        return row_norm * norm * V::broadcast(c.gamma) + bias_bound;
    };
    auto is_certain = [&]<bool ToOdd>(int n, int j, std::bool_constant<ToOdd>) __attribute__((always_inline)) {
        double* const at = totals + (j * S::vectors + n) * L;
        const V s = V::load(at);
        if constexpr (sizeof(Term) == 4) {
            // The slack covers the rounding of s - bound and s + bound, and of the bound itself.
            const V slack = (bound(n, j) + abs(s) * V::broadcast(0x1p-52)) * V::broadcast(1 + 0x1p-40);
            using U = Lanes<Term, L>;
            constexpr Rounding rounding = ToOdd ? Rounding::odd : Rounding::nearest;
            return rounded<U>(s - slack, rounding) == rounded<U>(s + slack, rounding);
        } else {
            double* const rest_at = at + size;
            const V c_part = V::load(rest_at);
            const V rounded = s + c_part, part = rounded - s;
            const V rest = (s - (rounded - part)) + (c_part - part);  // exact: rounded + rest = s + c
            const V slack =
                (bound(n, j) + abs(rest) * V::broadcast(0x1p-50) + V::broadcast(0x1p-1022)) * V::broadcast(1 + 0x1p-40);
            rounded.store(at), rest.store(rest_at);
            return (rounded + (rest - slack) == rounded) & (rounded + (rest + slack) == rounded) &
                   ((rounded - rounded) == V::zero());
        }
    };
    // Nearly always all are certain: one pass finds that out, without a look at single lanes (it took a third of a 1x1
    // layer's time).
    auto judge = [&](auto to_odd) __attribute__((always_inline)) {
        auto all = is_certain(0, 0, to_odd);
        for (int n = 0; n < S::vectors; ++n)
            for (int j = 0; j < S::broadcasts; ++j) all &= is_certain(n, j, to_odd);
        bool every = true;
        for (int i = 0; i < L; ++i) every &= all[i] != 0;
        if (every) return true;
        every = true;
        for (int j = 0; j < S::broadcasts; ++j)
            for (int n = 0; n < S::vectors; ++n) {
                const auto certain = is_certain(n, j, to_odd);
                for (int i = 0; i < L; ++i) {
                    const int at = (j * S::vectors + n) * L + i;
                    // A total of float32 terms that is not finite comes from terms that are not finite, as sums of
                    // their products cannot overflow a double; it stands.
                    const bool stands = sizeof(Term) == 4 && totals[at] - totals[at] != 0;
                    c.uncertain[at] = certain[i] == 0 && !stands;
                    every &= c.uncertain[at] == 0;
                }
            }
        return every;
    };
    return c.rounding == Rounding::odd ? judge(std::true_type{}) : judge(std::false_type{});
}

template <class Arithmetic, class Term, class S>
constexpr TileKernel row(double fused_cycles, double rounded_cycles = 0) {  // 0: its products are always fused
    using V = typename Arithmetic::Lanes;
    TileKernel k{};
    k.is_float32 = sizeof(Term) == 4;
    k.side = S::side;
    k.lanes = V::size, k.vectors = S::vectors, k.broadcasts = S::broadcasts, k.per_row = S::per_row;
    k.fused_cycles = static_cast<float>(fused_cycles), k.rounded_cycles = static_cast<float>(rounded_cycles);
    k.run = contract<Arithmetic, S>;
    k.store = store<Arithmetic, Term, S>;
    k.accumulator = Arithmetic::kind;
    k.joins = requires(Arithmetic a) { a.join(a); };
    if constexpr (sizeof(Term) == sizeof(typename V::Element)) k.rescue = contract<Plain<V>, S>;
    // A certificate is for totals kept in double (or in two of them).
    if constexpr (Arithmetic::kind == Accumulator::wide || Arithmetic::kind == Accumulator::twofold)
        k.certify = certify<Arithmetic, Term, S>;
    return k;
}

template <int Vectors, int Broadcasts, int PerRow = Broadcasts>
using Rows = Shape<Side::rows, Vectors, Broadcasts, PerRow>;
template <int Vectors, int Broadcasts, int PerRow = Vectors>
using Columns = Shape<Side::columns, Vectors, Broadcasts, PerRow>;
template <int Vectors, int Columns, int PerRow = Columns>
using Diagonal = Shape<Side::diagonal, Vectors, Columns, PerRow>;

// Rough cost of a term, for fused and for rounded products; only the proportions count, and 29 is that of Rows<2, 14>.
// For AVX-512 the unit is a cycle of Zen 4, which adds and multiplies 64 bytes a cycle on separate pipes, or half a
// cycle of Sapphire Rapids, whose two pipes do either; each figure is the larger of what was measured on the two. What
// makes them differ from the number of vectors is the loads: two a cycle at best, half as many where they cross a line
// (shapes of one row or one broadcast are bound by them), and on Zen 4 a broadcast shared by two rounded products. On
// the diagonal 28 columns cost what twice 14 do, but outputs are written in longer pieces (96 channels of 112x112,
// batch 8: 15.0 ms to 8.2).
#if defined(__AVX512F__)
using F8 = Lanes<float, 8>;
constexpr TileKernel tiles[] = {
    row<Plain<F>, float, Rows<2, 14>>(29, 45),        row<Plain<F>, float, Rows<2, 12>>(26, 39),
    row<Plain<F>, float, Rows<2, 14, 7>>(30, 45),     row<Plain<F>, float, Rows<3, 7>>(22.5, 34),
    row<Plain<F>, float, Rows<2, 7>>(16, 23),         row<Plain<F>, float, Rows<2, 8>>(19, 26),
    row<Plain<F>, float, Rows<3, 8>>(25.5, 39),       row<Plain<F>, float, Rows<1, 28>>(35, 35),
    row<Plain<F>, float, Rows<1, 28, 14>>(36, 36),    row<Plain<F>, float, Rows<1, 28, 7>>(36, 36),
    row<Plain<F>, float, Rows<1, 24>>(31, 31),        row<Plain<F>, float, Rows<1, 16>>(22, 22),
    row<Plain<F>, float, Rows<2, 9, 3>>(20, 28),      row<Plain<F>, float, Rows<1, 27, 3>>(36, 36),
    row<Plain<F>, float, Rows<1, 9, 3>>(11, 15),      row<Plain<F>, float, Rows<1, 25, 5>>(35, 35),
    row<Plain<F>, float, Rows<4, 1>>(12, 12),         row<Plain<F>, float, Rows<2, 14, 1>>(31, 46),
    row<Kahan<F>, float, Rows<1, 14, 1>>(31, 45),     row<Plain<D>, double, Rows<2, 14, 1>>(31, 46),
    row<Plain<F8>, float, Rows<1, 28>>(28, 28),       row<Plain<F8>, float, Rows<1, 28, 14>>(28, 28),
    row<Plain<F>, float, Columns<3, 8>>(26, 30),      row<Plain<F>, float, Columns<1, 8>>(12, 13),
    row<Plain<F>, float, Columns<16, 1, 4>>(40, 42),  row<Plain<F>, float, Columns<14, 1, 2>>(36, 38),
    row<Plain<F>, float, Columns<14, 1, 1>>(40, 42),  row<Plain<F>, float, Columns<4, 1, 1>>(12, 13),
    row<Plain<F8>, float, Columns<7, 1, 1>>(11, 12),  row<Plain<F8>, float, Columns<14, 1, 7>>(20, 22),

    row<Plain<F>, float, Diagonal<2, 14>>(30, 32),    row<Plain<F>, float, Diagonal<2, 14, 7>>(30, 32),
    row<Plain<F>, float, Diagonal<2, 9, 3>>(21, 22),  row<Plain<F>, float, Diagonal<1, 14>>(16, 17),
    row<Plain<F>, float, Diagonal<1, 28>>(29, 31),

    row<Kahan<F>, float, Rows<1, 14>>(30, 44),        row<Kahan<F>, float, Rows<1, 12>>(26, 38),
    row<Kahan<F>, float, Rows<1, 14, 7>>(30, 44),     row<Kahan<F>, float, Rows<1, 9, 3>>(20, 29),
    row<Kahan<F>, float, Rows<1, 10, 5>>(22, 32),     row<Kahan<F>, float, Rows<4, 1>>(17, 25),
    row<Kahan<F8>, float, Rows<1, 14>>(18, 25),       row<Kahan<F>, float, Columns<2, 6>>(26, 38),
    row<Kahan<F>, float, Columns<8, 1, 4>>(20, 27),   row<Kahan<F>, float, Columns<8, 1, 1>>(20, 27),
    row<Kahan<F>, float, Columns<2, 1, 1>>(12, 15),   row<Kahan<F>, float, Diagonal<1, 14>>(30, 44),
    row<Kahan<F>, float, Diagonal<1, 14, 7>>(30, 44), row<Kahan<F>, float, Diagonal<1, 9, 3>>(20, 29),

    row<Wide<D>, float, Rows<2, 14>>(29, 90),         row<Wide<D>, float, Rows<2, 12>>(26, 78),
    row<Wide<D>, float, Rows<2, 14, 7>>(30, 90),      row<Wide<D>, float, Rows<3, 7>>(22.5, 70),
    row<Wide<D>, float, Rows<3, 8>>(25.5, 78),        row<Wide<D>, float, Rows<1, 28>>(35, 90),
    row<Wide<D>, float, Rows<1, 28, 7>>(36, 90),      row<Wide<D>, float, Rows<1, 24>>(31, 78),
    row<Wide<D>, float, Rows<1, 16>>(22, 52),         row<Wide<D>, float, Rows<2, 9, 3>>(20, 60),
    row<Wide<D>, float, Rows<1, 25, 5>>(35, 80),      row<Wide<D>, float, Rows<4, 1>>(12, 16),
    row<Wide<D>, float, Columns<3, 8>>(26, 80),       row<Wide<D>, float, Columns<8, 1, 2>>(20, 30),
    row<Wide<D>, float, Columns<16, 1>>(38, 55),      row<Wide<D>, float, Columns<4, 1, 1>>(12, 16),
    row<Wide<D>, float, Diagonal<2, 14>>(29, 60),     row<Wide<D>, float, Diagonal<2, 14, 7>>(29, 60),
    row<Wide<D>, float, Diagonal<2, 9, 3>>(20, 40),   row<Wide<D>, float, Diagonal<1, 28>>(28, 58),

    row<Plain<D>, double, Rows<2, 14>>(29, 45),       row<Plain<D>, double, Rows<2, 14, 7>>(30, 45),
    row<Plain<D>, double, Rows<1, 28>>(35, 35),       row<Plain<D>, double, Rows<1, 28, 14>>(36, 36),
    row<Plain<D>, double, Columns<3, 8>>(26, 30),     row<Plain<D>, double, Columns<4, 1, 1>>(12, 13),
    row<Kahan<D>, double, Rows<1, 14>>(30, 44),       row<Kahan<D>, double, Rows<1, 14, 7>>(30, 44),
    row<Kahan<D>, double, Columns<4, 1, 1>>(16, 20),  row<Twofold<D>, double, Rows<1, 12>>(72),
    row<Twofold<D>, double, Rows<1, 14, 7>>(84),      row<Twofold<D>, double, Columns<4, 1, 1>>(24),
    row<Plain<D>, double, Diagonal<1, 14>>(15, 15),   row<Kahan<D>, double, Diagonal<1, 14>>(30, 44),
    row<Twofold<D>, double, Diagonal<1, 9, 3>>(54),   row<Plain<D>, double, Diagonal<1, 28>>(29, 31),
};
#elif defined(__AVX2__)
constexpr TileKernel tiles[] = {
    row<Plain<F>, float, Rows<2, 6>>(6.3, 9),         row<Plain<F>, float, Rows<3, 4>>(6.5, 9),
    row<Plain<F>, float, Rows<1, 12>>(8.5, 10),       row<Plain<F>, float, Rows<1, 14, 7>>(10.5, 11.5),
    row<Plain<F>, float, Columns<3, 4>>(6.8, 9.5),    row<Plain<F>, float, Columns<4, 1, 2>>(4.3, 5),
    row<Plain<F>, float, Columns<4, 1, 1>>(4.4, 5),   row<Plain<F>, float, Columns<7, 1>>(7.2, 8),
    row<Plain<F>, float, Diagonal<1, 12>>(6.5, 7),    row<Plain<F>, float, Diagonal<1, 14, 7>>(7.5, 8),
    row<Plain<F>, float, Diagonal<1, 9, 3>>(5, 6),    row<Plain<F>, float, Rows<2, 6, 1>>(6.5, 9.3),
    row<Plain<F>, float, Rows<1, 9, 3>>(5.2, 7),

    row<Kahan<F>, float, Rows<1, 6>>(11.3, 12.5),     row<Kahan<F>, float, Rows<1, 7>>(10.7, 12.2),
    row<Kahan<F>, float, Columns<4, 1, 1>>(9.4, 10),  row<Kahan<F>, float, Diagonal<1, 6>>(11.3, 12.5),
    row<Kahan<F>, float, Diagonal<1, 7>>(10.7, 12.2),

    row<Wide<D>, float, Rows<2, 6>>(6.3, 20),         row<Wide<D>, float, Rows<3, 4>>(6.5, 20),
    row<Wide<D>, float, Rows<2, 7>>(9.5, 24),         row<Wide<D>, float, Columns<3, 4>>(6.8, 20),
    row<Wide<D>, float, Columns<7, 1>>(7.5, 14),      row<Wide<D>, float, Columns<4, 1, 1>>(4.6, 8),
    row<Wide<D>, float, Diagonal<1, 12>>(6.5, 14),    row<Wide<D>, float, Diagonal<1, 14, 7>>(7.5, 14),
    row<Wide<D>, float, Diagonal<1, 9, 3>>(5, 10),

    row<Plain<D>, double, Rows<2, 6>>(6.3, 9),        row<Plain<D>, double, Rows<2, 7>>(11, 11.5),
    row<Plain<D>, double, Columns<3, 4>>(6.8, 9.5),   row<Plain<D>, double, Columns<4, 1, 1>>(4.5, 5),
    row<Kahan<D>, double, Rows<1, 6>>(11.5, 12.5),    row<Kahan<D>, double, Columns<4, 1, 1>>(10, 10.5),
    row<Twofold<D>, double, Rows<1, 6>>(18),          row<Twofold<D>, double, Columns<4, 1, 1>>(12),
    row<Plain<D>, double, Diagonal<1, 12>>(6.5, 7),   row<Kahan<D>, double, Diagonal<1, 6>>(11.5, 12.5),
    row<Twofold<D>, double, Diagonal<1, 6>>(18),
};
#elif defined(DETCONV_ISA_NEON)
constexpr TileKernel tiles[] = {
    row<Plain<F>, float, Rows<2, 12>>(12, 12),     row<Plain<F>, float, Rows<2, 14, 7>>(14, 14),
    row<Plain<F>, float, Columns<3, 8>>(12, 12),   row<Plain<F>, float, Columns<4, 1, 1>>(4, 4),
    row<Kahan<F>, float, Rows<1, 12>>(24, 24),     row<Kahan<F>, float, Columns<4, 1, 1>>(8, 8),
    row<Wide<D>, float, Rows<2, 12>>(12, 40),      row<Wide<D>, float, Columns<4, 1, 1>>(4, 10),
    row<Plain<D>, double, Rows<2, 12>>(12, 12),    row<Plain<D>, double, Columns<4, 1, 1>>(4, 4),
    row<Kahan<D>, double, Rows<1, 12>>(24, 24),    row<Kahan<D>, double, Columns<4, 1, 1>>(8, 8),
    row<Twofold<D>, double, Rows<1, 8>>(40),       row<Twofold<D>, double, Columns<4, 1, 1>>(20),
    row<Plain<F>, float, Diagonal<1, 14>>(8, 8),   row<Kahan<F>, float, Diagonal<1, 7>>(14, 14),
    row<Wide<D>, float, Diagonal<2, 7>>(8, 20),    row<Plain<D>, double, Diagonal<1, 14>>(8, 8),
    row<Kahan<D>, double, Diagonal<1, 7>>(14, 14), row<Twofold<D>, double, Diagonal<1, 7>>(35),
};
#else
constexpr TileKernel tiles[] = {
    row<Plain<F>, float, Rows<2, 4>>(80, 9),       row<Plain<F>, float, Columns<4, 1, 1>>(40, 5),
    row<Kahan<F>, float, Rows<1, 4>>(44, 12),      row<Kahan<F>, float, Columns<4, 1, 1>>(44, 12),
    row<Wide<D>, float, Rows<2, 4>>(9, 20),        row<Wide<D>, float, Columns<4, 1, 1>>(5, 10),
    row<Plain<D>, double, Rows<2, 4>>(80, 9),      row<Plain<D>, double, Columns<4, 1, 1>>(40, 5),
    row<Kahan<D>, double, Rows<1, 4>>(44, 12),     row<Kahan<D>, double, Columns<4, 1, 1>>(44, 12),
    row<Twofold<D>, double, Rows<1, 4>>(80),       row<Twofold<D>, double, Columns<4, 1, 1>>(80),
    row<Plain<F>, float, Diagonal<1, 7>>(80, 9),   row<Kahan<F>, float, Diagonal<1, 4>>(44, 12),
    row<Wide<D>, float, Diagonal<2, 4>>(9, 20),    row<Plain<D>, double, Diagonal<1, 7>>(80, 9),
    row<Kahan<D>, double, Diagonal<1, 4>>(44, 12), row<Twofold<D>, double, Diagonal<1, 4>>(80),
};
#endif

// Every other element, `count` of them or a vector's; none beyond the last is read.
template <class V, class Element>
DETCONV_INLINE V load_every_other(const Element* source, Index count) {
    constexpr int L = V::size;
    if (count > L) return even(V::load(source), V::load(source + L));
    const int reach = static_cast<int>(2 * count - 1);
    return even(V::load_first(source, reach < L ? reach : L), V::load_first(source + L, reach > L ? reach - L : 0));
}

// A panel has the rows of a term side by side. Memory may have them so, too; mostly it has the terms of a row, and
// squares are transposed in registers.
template <class Term, class Element>
bool pack(const PanelSource& from, Element* panel) {
    using V = Lanes<Term, register_bytes / sizeof(Element)>;
    constexpr int L = V::size;
    // NaN once there was an infinity or a NaN; four of them, as one is a chain of additions longer than the rest takes.
    V trace[4] = {V::zero(), V::zero(), V::zero(), V::zero()};
    const auto* data = static_cast<const Term*>(from.data);
    auto load_terms = [&](const Term* source, int count) __attribute__((always_inline)) {
        if (from.term_stride == 1) return count == L ? V::load(source) : V::load_first(source, count);
        V terms = V::zero();
        for (int t = 0; t < count; ++t) terms.v[t] = source[t * from.term_stride];
        return terms;
    };
    // One row is no panel to be transposed (depthwise: half of a weight gradient's time).
    const bool single = from.width == 1 && from.position == nullptr;
    for (Index segment = 0; single && segment < from.segments; ++segment) {
        Element* const target = panel + segment * from.segment_terms;
        for (Index k = 0; k < from.segment_terms; k += L) {
            const Index count = from.segment_terms - k;
            const V values = load_terms(data + segment * from.segment_stride + k * from.term_stride,
                                        count < L ? static_cast<int>(count) : L);
            trace[k / L % 4] = trace[k / L % 4] + values * V::zero();
            store_as(values, count, target + k);
        }
    }
    const bool adjacent = from.row_stride == 1 && from.term_stride != 1;
    for (int m = 0; !single && m < from.width; m += L) {
        const int lanes = from.width - m < L ? from.width - m : L;
        const int rows = from.rows - m < L ? from.rows - m : L;
        auto store = [&](V values, Index term) __attribute__((always_inline)) {
            store_as(values, lanes, panel + (from.position ? from.position[term] : term) * from.width + m);
        };
        for (Index r = 0; rows <= 0 && r < from.segments * from.segment_terms; ++r) store(V::zero(), r);
        for (Index segment = 0; rows > 0 && segment < from.segments; ++segment) {
            const Index first = segment * from.segment_terms;
            for (Index k = 0; adjacent && k < from.segment_terms; ++k) {
                const Term* const source = data + m + segment * from.segment_stride + k * from.term_stride;
                const V values = rows == L ? V::load(source) : V::load_first(source, rows > 0 ? rows : 0);
                trace[k % 4] = trace[k % 4] + values * V::zero();
                store(values, first + k);
            }
            for (Index k = 0; !adjacent && k < from.segment_terms; k += L) {
                const int terms = from.segment_terms - k < L ? static_cast<int>(from.segment_terms - k) : L;
                V square[L];
                for (int i = 0; i < L; ++i) {
                    square[i] = V::zero();
                    if (i >= rows) continue;
                    const Term* const source =
                        data + (m + i) * from.row_stride + segment * from.segment_stride + k * from.term_stride;
                    __builtin_prefetch(source + 2 * from.segment_stride);
                    square[i] = load_terms(source, terms);
                }
                for (int i = 0; i < L; ++i) trace[i % 4] = trace[i % 4] + square[i] * V::zero();
                transpose(square);
                for (int t = 0; t < terms; ++t) store(square[t], first + k + t);
            }
        }
    }
    bool finite = true;
    for (int i = 0; i < 4 * L; ++i) finite &= trace[i % 4].v[i / 4] == 0;
    return finite;
}

template <class Element>
DETCONV_INLINE void fill_zero(Element* target, Index count) {
    using V = Lanes<Element, register_bytes / sizeof(Element)>;
    Index i = 0;
    for (; i + V::size <= count; i += V::size) V::zero().store(target + i);
    if (i < count) V::zero().store_first(target + i, static_cast<int>(count - i));
}

// What a plane has around its middle.
template <class Element>
DETCONV_INLINE void fill_padding(const PlaneSource& from, Element* target) {
    for (Index row = 0; row < from.rows; ++row, target += from.pitch) {
        const bool inside = row >= from.first_row && row < from.last_row;
        fill_zero(target, inside ? from.first : from.width);
        if (inside) fill_zero(target + from.last, from.width - from.last);
    }
}

// One of the three directions in an image lies along memory. Where a row's does not, squares are transposed: with the
// next row (a 1x1 weight gradient, whose columns are channels: 6% of its time) or the next plane (channels last: a
// third of a layer's time).
template <class Term, class Element>
void copy(const PlaneSource& from, Element* target) {
    using U = Lanes<Term, register_bytes / sizeof(Element)>;
    constexpr int L = U::size;
    const auto* const data = static_cast<const Term*>(from.data);
    const Index height = from.last_row - from.first_row, count = from.last - from.first;
    Element* const middle = target + from.first_row * from.pitch + from.first;
    // count x lines elements of one row or plane: a line's are `stride` apart, lines side by side or at every other
    // element; the copy has them the other way.
    auto transposed = [&](const Term* source, Index lines, Index line_stride, Element* to, Index line_pitch)
                          __attribute__((always_inline)) {
                              for (Index i = 0; i < count; i += L)
                                  for (Index line = 0; line < lines; line += L) {
                                      const Index here = lines - line < L ? lines - line : L;
                                      U square[L];
                                      for (int j = 0; j < L; ++j) {
                                          const Term* const at = source + (i + j) * from.stride + line * line_stride;
                                          square[j] = i + j >= count     ? U::zero()
                                                      : line_stride == 2 ? load_every_other<U>(at, lines - line)
                                                      : here == L        ? U::load(at)
                                                                         : U::load_first(at, static_cast<int>(here));
                                      }
                                      transpose(square);
                                      for (Index j = 0; j < here; ++j)
                                          store_as(square[j], count - i, to + (line + j) * line_pitch + i);
                                  }
                          };
    const bool by_planes = from.stride != 1 && from.plane_stride == 1 && from.planes > 1,
               by_rows = from.stride != 1 && (from.row_stride == 1 || from.row_stride == 2) && !by_planes;
    for (Index row = 0; by_planes && row < height; ++row)
        transposed(data + row * from.row_stride, from.planes, 1, middle + row * from.pitch, from.plane_pitch);
    for (Index plane = 0; plane < from.planes; ++plane) {
        const Term* const start = data + plane * from.plane_stride;
        Element* const middle_of = middle + plane * from.plane_pitch;
        fill_padding(from, target + plane * from.plane_pitch);
        if (by_rows) transposed(start, height, from.row_stride, middle_of, from.pitch);
        if (by_rows || by_planes) continue;
        for (Index row = 0; row < height; ++row) {
            const Term* const source = start + row * from.row_stride;
            Element* const to = middle_of + row * from.pitch;
            Index i = 0;
            if (from.stride == 1) {
                for (; i + L <= count; i += L) {
                    __builtin_prefetch(source + i + from.plane_stride);
                    store_as(U::load(source + i), L, to + i);
                }
                if (i < count) store_as(U::load_first(source + i, static_cast<int>(count - i)), count - i, to + i);
                continue;
            }
            for (; from.stride == 2 && i < count; i += L) {
                __builtin_prefetch(source + 2 * i + from.plane_stride);
                store_as(load_every_other<U>(source + 2 * i, count - i), count - i, to + i);
            }
            for (; i < count; ++i) to[i] = static_cast<Element>(source[i * from.stride]);
        }
    }
}

// Channels last has the planes of a position side by side already; else squares of positions are transposed.
template <class Term, class Element>
void copy_abreast(const AbreastSource& source, Element* target) {
    using U = Lanes<Term, register_bytes / sizeof(Element)>;
    constexpr int L = U::size;
    const PlaneSource& from = source.planes;
    const Index width = source.width, planes = from.planes, block_pitch = from.plane_pitch;
    const Index stride = from.stride, plane_stride = from.plane_stride, count = from.last - from.first;
    for (Index row = 0; row < from.rows; ++row, target += from.pitch * width) {
        const bool inside = row >= from.first_row && row < from.last_row;
        for (Index block = 0; block * width < planes; ++block) {
            Element* const to = target + block * block_pitch;
            fill_zero(to, (inside ? from.first : from.width) * width);
            if (inside) fill_zero(to + from.last * width, (from.width - from.last) * width);
        }
        if (!inside) continue;
        const Term* const data = static_cast<const Term*>(from.data) + (row - from.first_row) * from.row_stride;
        Element* const middle = target + from.first * width;
        // Channels last: all planes of a position in turn, as they lie; some positions ahead are asked for.
        for (Index i = 0; plane_stride == 1 && i < count; ++i) {
            constexpr Index ahead = 8;
            const Term* at = data + i * stride;
            Element* to = middle + i * width;
            for (Index left = planes; left > 0; left -= width, at += width, to += block_pitch)
                for (Index lane = 0; lane < width; lane += L) {
                    const Index here = left - lane;
                    __builtin_prefetch(at + lane + ahead * stride);
                    const U values = here >= L ? U::load(at + lane)
                                               : U::load_first(at + lane, here > 0 ? static_cast<int>(here) : 0);
                    store_as(values, width - lane, to + lane);
                }
        }
        for (Index m = 0; plane_stride != 1 && m < width; m += L)
            for (Index i = 0; i < count; i += L) {
                const int here = count - i < L ? static_cast<int>(count - i) : L;
                U square[L];
                for (int j = 0; j < L; ++j) {
                    square[j] = U::zero();
                    if (m + j >= planes) continue;
                    const Term* const at = data + (m + j) * plane_stride + i * stride;
                    if (stride == 1)
                        square[j] = here == L ? U::load(at) : U::load_first(at, here);
                    else if (stride == 2)
                        square[j] = load_every_other<U>(at, count - i);
                    else
                        for (int t = 0; t < here; ++t) square[j].v[t] = at[t * stride];
                }
                transpose(square);
                for (int t = 0; t < here; ++t) store_as(square[t], width - m, middle + (i + t) * width + m);
            }
    }
}

template <class T>
void gather(const GatherSource& from, T* target, Index target_pitch) {
    using V = Lanes<T, register_bytes / sizeof(T)>;
    for (Index r = 0; r < from.terms; ++r, target += target_pitch) {
        const T* source = static_cast<const T*>(from.data) + from.offsets[r];
        T* to = target;
        // Whole vectors: what is stored too much is overwritten by the next row or image.
        for (Index h = 0; h < from.rows; ++h, source += from.pitch, to += from.width)
            for (Index w = 0; w < from.width; w += V::size) V::load(source + w).store(to + w);
    }
}

// For every row of a panel: fold(... fold(fold(0, term 0), term 1) ...), in double.
template <class Fold>
DETCONV_INLINE void reduce(const double* panel, Index terms, int width, double* target, Fold fold) {
    int m = 0;
    for (; m + D::size <= width; m += D::size) {
        D folded = D::zero();
        for (Index r = 0; r < terms; ++r) folded = fold(folded, D::load(panel + r * width + m));
        folded.store(target + m);
    }
    for (; m < width; ++m) {
        D folded = D::zero();
        for (Index r = 0; r < terms; ++r) folded = fold(folded, D::broadcast(panel[r * width + m]));
        target[m] = folded.v[0];
    }
}

void square_sums(const double* panel, Index terms, int width, double* sums) {
    reduce(panel, terms, width, sums, [](D sum, D w) { return sum + w * w; });
}

void maxima(const double* panel, Index terms, int width, double* largest) {
    reduce(panel, terms, width, largest, [](D most, D w) {
        const D magnitude = abs(w);
        return D::select(magnitude.v > most.v, magnitude, most);
    });
}

double largest_magnitude(const double* source, Index count) {
    constexpr Index chains = 4;  // a maximum takes longer than the next four loads
    D most[chains] = {D::zero(), D::zero(), D::zero(), D::zero()};
    auto take = [&](D& largest, D x) __attribute__((always_inline)) {
        const D magnitude = abs(x);
        largest = D::select(magnitude.v > largest.v, magnitude, largest);
    };
    Index i = 0;
    for (; i + chains * D::size <= count; i += chains * D::size) {
        DETCONV_UNROLL
        for (int k = 0; k < chains; ++k) take(most[k], D::load(source + i + k * D::size));
    }
    for (; i < count; ++i) take(most[0], D::broadcast(source[i]));
    double largest = 0;
    for (int k = 0; k < chains * D::size; ++k) {
        const double x = most[k / D::size].v[k % D::size];
        largest = x > largest ? x : largest;
    }
    return largest;
}

// target[i] += magnitude(source[i]), in double.
template <class Magnitude>
DETCONV_INLINE void accumulate(const double* source, Index count, double* target, Magnitude magnitude) {
    Index i = 0;
    for (; i + D::size <= count; i += D::size) (D::load(target + i) + magnitude(D::load(source + i))).store(target + i);
    for (; i < count; ++i) target[i] = (D::broadcast(target[i]) + magnitude(D::broadcast(source[i]))).v[0];
}

void add_squares(const double* source, Index count, double* target) {
    accumulate(source, count, target, [](D x) { return x * x; });
}

void add_magnitudes(const double* source, Index count, double* target) {
    accumulate(source, count, target, [](D x) { return abs(x); });
}

void add_shifted(const double* source, const Index* offsets, Index number, Index count, double* target) {
    Index i = 0;
    for (; i + D::size <= count; i += D::size) {
        D sum = D::load(source + offsets[0] + i);
        for (Index k = 1; k < number; ++k) sum = sum + D::load(source + offsets[k] + i);
        sum.store(target + i);
    }
    for (; i < count; ++i) {
        double sum = source[offsets[0] + i];
        for (Index k = 1; k < number; ++k) sum = sum + source[offsets[k] + i];
        target[i] = sum;
    }
}

void scale(double* sums, Index count, double factor) {
    for (Index i = 0; i < count; ++i) sums[i] = factor * sums[i];
}

// Half of a number's bits, with half of the exponent's bias: halves the exponent, and interpolates linearly between the
// powers of 4, above the root (1 + f/2 > sqrt(1 + f), 1.5 + f/2 > sqrt(2 + 2f)). A tenth of the time of square roots,
// which made exact depthwise sums five times slower.
void bound_roots(double* sums, Index count, double factor) {
    auto bound = [&](D a) __attribute__((always_inline)) {
        constexpr std::int64_t half_bias = std::int64_t(1023) << 51;
        return D{(D::Vector)(((D::Mask)a.v >> 1) + (half_bias + 1))} * D::broadcast(factor);
    };
    Index i = 0;
    for (; i + D::size <= count; i += D::size) bound(D::load(sums + i)).store(sums + i);
    for (; i < count; ++i) sums[i] = bound(D::broadcast(sums[i])).v[0];
}

template <class T>
void join(const T* newer, Index count, T* older) {
    using V = Lanes<T, register_bytes / sizeof(T)>;
    Index i = 0;
    for (; i + V::size <= count; i += V::size) canonical(V::load(older + i) + V::load(newer + i)).store(older + i);
    for (; i < count; ++i) older[i] = canonical(V::broadcast(older[i]) + V::broadcast(newer[i])).v[0];
}

}  // namespace

const Kernels kernels = {
#define DETCONV_NAME(isa) DETCONV_TEXT(isa)
#define DETCONV_TEXT(isa) #isa
    .name = DETCONV_NAME(DETCONV_ISA),
    .tiles = tiles,
    .pack_float = pack<float, float>,
    .pack_float_wide = pack<float, double>,
    .pack_double = pack<double, double>,
    .copy_float = copy<float, float>,
    .copy_float_wide = copy<float, double>,
    .copy_double = copy<double, double>,
    .copy_abreast_float = copy_abreast<float, float>,
    .copy_abreast_float_wide = copy_abreast<float, double>,
    .copy_abreast_double = copy_abreast<double, double>,
    .gather_float = gather<float>,
    .gather_double = gather<double>,
    .join_float = join<float>,
    .join_double = join<double>,
    .square_sums_double = square_sums,
    .maxima_double = maxima,
    .largest_magnitude_double = largest_magnitude,
    .add_squares_double = add_squares,
    .add_magnitudes_double = add_magnitudes,
    .add_shifted_double = add_shifted,
    .scale = scale,
    .bound_roots = bound_roots,
};

}  // namespace detconv::DETCONV_ISA
