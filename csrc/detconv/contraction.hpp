// The tile kernel: panel x taps, a program, an arithmetic. Every pass, method and order of detconv runs through it.
//
//   out[row][column] = sum over the terms r, in the program's order, of  panel[r][row] * image[base(column) + taps[r]]
//
// A tile is a small block of outputs whose accumulators all fit in registers for the whole sum. One of its two sides
// lies along the lanes of vectors (loaded), the other is walked by broadcasting one scalar at a time:
//
//   Side::rows      lanes are panel rows (output channels);  columns are broadcast from the image
//   Side::columns   lanes are columns (pixels of one row);   panel rows are broadcast
//   Side::diagonal  lanes are panel rows, and images of their own (channels of a depthwise layer); columns are loaded
//
// Lanes only ever hold different outputs, so neither the side nor the shape of the tile can change a bit.
#pragma once

#include "arithmetic.hpp"
#include "tile.hpp"

namespace detconv::DETCONV_ISA {

// Vectors x Broadcasts accumulators. The image side (the broadcasts, or the vectors when columns are lanes) is
// split over image rows: PerRow of them in each. On the diagonal a broadcast is a column, loaded for every row.
template <Side Along, int Vectors, int Broadcasts, int PerRow>
struct Shape {
    static constexpr Side side = Along;
    static constexpr int vectors = Vectors, broadcasts = Broadcasts, per_row = PerRow;
    static constexpr bool rows_are_lanes = Along != Side::columns, diagonal = Along == Side::diagonal;
    static_assert((rows_are_lanes ? Broadcasts : Vectors) % PerRow == 0);
};

template <class Arithmetic, class S>
[[gnu::noinline]] void contract(const Tile& tile) {
    using V = typename Arithmetic::Lanes;
    using Element = typename V::Element;
    constexpr bool rows_are_lanes = S::rows_are_lanes;
    constexpr int L = V::size;
    constexpr int level = S::vectors * S::broadcasts * L * Arithmetic::parts;
    constexpr bool has_stack = requires(Arithmetic a) { a.join(a); };
    constexpr bool has_narrow = requires(Arithmetic a) { a.round(); };

    Arithmetic acc[S::vectors][S::broadcasts];
    const V one = opaque_one<V>();
    const std::int64_t row_step = tile.row_step, *const taps = tile.taps, *const panel_offsets = tile.panel_offsets;

    auto each = [&](auto&& action) __attribute__((always_inline)) {
        DETCONV_UNROLL
        for (int j = 0; j < S::broadcasts; ++j) DETCONV_UNROLL
        for (int n = 0; n < S::vectors; ++n) action(acc[n][j], n, j);
    };

    // Both operands are stored in the accumulator's type: converting on load would cost a wide term a fifth of its
    // speed.
    auto add_term = [&](const Element* panel, const Element* image, auto&& step) __attribute__((always_inline)) {
        V vector[S::vectors];
        if constexpr (rows_are_lanes) {
            DETCONV_UNROLL
            for (int n = 0; n < S::vectors; ++n) vector[n] = V::load(panel + n * L);
            DETCONV_UNROLL
            for (int j = 0; j < S::broadcasts; ++j) {
                const Element* const column =
                    image + j / S::per_row * row_step + j % S::per_row * (S::diagonal ? S::vectors * L : 1);
                DETCONV_UNROLL
                for (int n = 0; n < S::vectors; ++n)
                    step(acc[n][j], vector[n], S::diagonal ? V::load(column + n * L) : V::broadcast(*column));
            }
        } else {
            DETCONV_UNROLL
            for (int n = 0; n < S::vectors; ++n)
                vector[n] = V::load(image + n / S::per_row * row_step + n % S::per_row * L);
            DETCONV_UNROLL
            for (int j = 0; j < S::broadcasts; ++j) {
                const V w = V::broadcast(panel[j]);
                DETCONV_UNROLL
                for (int n = 0; n < S::vectors; ++n) step(acc[n][j], w, vector[n]);
            }
        }
    };
    // Two loops: an offset to be loaded for every term costs tiles that loads bound a tenth of their speed (AVX2).
    auto run = [&](const Instruction& span, auto&& step) __attribute__((always_inline)) {
        const auto *panel = static_cast<const Element*>(tile.panel), *image = static_cast<const Element*>(tile.image);
        if (panel_offsets != nullptr) {
            for (std::int64_t r = span.begin; r < span.end; ++r) {
                __builtin_prefetch(image + taps[r + Tile::ahead]);
                add_term(panel + panel_offsets[r], image + taps[r], step);
            }
            return;
        }
        panel += span.begin * tile.panel_stride;
        for (std::int64_t r = span.begin; r < span.end; ++r, panel += tile.panel_stride)
            add_term(panel, image + taps[r], step);
    };

    const Element* const bias = static_cast<const Element*>(tile.bias);
    auto bias_of = [&](int n, int j) __attribute__((always_inline)) {
        return rows_are_lanes ? V::load(bias + n * L) : V::broadcast(bias[j]);
    };

    Element* top = static_cast<Element*>(tile.stack) + tile.depth * level;
    auto slot = [&](Element* base, int n, int j)
                    __attribute__((always_inline)) { return base + (j * S::vectors + n) * L; };

    // totals[broadcast][vector]; a second part follows after all of the first.
    Element* const totals = static_cast<Element*>(tile.totals);
    Element* const second = totals + S::vectors * S::broadcasts * L;
    each([](Arithmetic& a, int, int) { a.start(V::zero()); });
    if (tile.continues) {
        each([&](Arithmetic& a, int n, int j) { a.s = V::load(slot(totals, n, j)); });
        if constexpr (Arithmetic::parts == 2)
            each([&](Arithmetic& a, int n, int j) { a.c = V::load(slot(second, n, j)); });
    }
    for (const Instruction *at = tile.code, *end = at + tile.code_size; at != end; ++at) {
        switch (at->op) {
            case Op::zero:
                each([&](Arithmetic& a, int, int) { a.start(V::zero()); });
                break;
            case Op::bias:
                each([&](Arithmetic& a, int n, int j) { a.start(bias_of(n, j)); });
                break;
            case Op::fused:
                if constexpr (has_narrow)
                    if (at->narrow) {
                        run(*at, [](Arithmetic& a, V w, V x) { a.fused_narrow(w, x); });
                        break;
                    }
                run(*at, [&](Arithmetic& a, V w, V x) { a.fused(w, x, one); });
                break;
            case Op::rounded:
                if constexpr (has_narrow)
                    if (at->narrow) {
                        run(*at, [](Arithmetic& a, V w, V x) { a.rounded_narrow(w, x); });
                        break;
                    }
                if constexpr (requires(Arithmetic a, V v) { a.rounded(v, v, v); })
                    run(*at, [&](Arithmetic& a, V w, V x) { a.rounded(w, x, one); });
                break;
            case Op::push:
                if constexpr (has_stack) {
                    each([&](Arithmetic& a, int n, int j) { a.s.store(slot(top, n, j)); });
                    top += level;
                }
                break;
            case Op::join:
                if constexpr (has_stack) {
                    top -= level;
                    if constexpr (has_narrow)
                        if (at->narrow) {
                            each([&](Arithmetic& a, int n, int j) { a.join_narrow({V::load(slot(top, n, j))}); });
                            break;
                        }
                    each([&](Arithmetic& a, int n, int j) { a.join({V::load(slot(top, n, j))}); });
                }
                break;
            case Op::add_bias:
                if constexpr (has_narrow)
                    if (at->narrow) {
                        each([&](Arithmetic& a, int n, int j) { a.add_narrow(bias_of(n, j)); });
                        break;
                    }
                each([&](Arithmetic& a, int n, int j) { a.add(bias_of(n, j)); });
                break;
            case Op::round:
                if constexpr (has_narrow) each([&](Arithmetic& a, int, int) { a.round(); });
                break;
        }
    }

    if constexpr (requires(Arithmetic a) { a.finish(); })
        if (!tile.pauses) each([](Arithmetic& a, int, int) { a.finish(); });
    each([&](Arithmetic& a, int n, int j) { a.s.store(slot(totals, n, j)); });
    if constexpr (Arithmetic::parts == 2)
        if (Arithmetic::kind == Accumulator::twofold || tile.pauses)
            each([&](Arithmetic& a, int n, int j) { a.c.store(slot(second, n, j)); });
}

}  // namespace detconv::DETCONV_ISA
