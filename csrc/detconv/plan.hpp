// What one call decides before it runs: the kernel, the chunks, the layout of copies, the shares of the threads.
// Nothing in it can change a bit of the result.
#pragma once

#include <algorithm>
#include <numeric>
#include <unordered_map>
#include <vector>

#include "driver.hpp"

namespace detconv {

inline Index divide_up(Index a, Index b) { return (a + b - 1) / b; }
inline Index round_up(Index a, Index b) { return divide_up(a, b) * b; }

// Whether a kernel's arithmetic is that of a contraction.
inline bool computes(const TileKernel& k, const Contraction& c) {
    return k.accumulator == c.accumulator && k.is_float32 == c.is_float32;
}

// A rectangle of columns whose taps fall into one copy of the image (or the image itself); or all columns of several
// batches.
struct Chunk {
    Index batch, h, w, height, width, batches = 1;
};

// One dimension of a chunk's copy. Its positions are laid out in runs: position q of run r holds image coordinate
// base * step + origin[r] + q * step, so that the columns of a tap lie side by side whatever the step. A dense layout
// has one run for each residue of the taps modulo the step; where the taps are far apart (dilation), one run a tap is
// shorter.
struct Axis {
    Index step = 1, extra = 0;         // a run has `extra` positions more than the chunk has columns
    std::vector<Index> origin;         // of each run, in tap coordinates
    std::vector<Index> run, position;  // of each tap, for the chunk's first column

    Axis(const std::vector<Index>& taps, Index given_step, Index columns, parallel::Lookout& lookout)
        : step(given_step) {
        if (columns == 1) {  // any step will do: the longest, so that nothing between the taps is copied
            step = 0;
            for (const Index tap : taps) step = std::gcd(step, tap - taps.front());
            step = std::max<Index>(step, 1);
        }
        // Few runs are searched, as there mostly are few; many (a step of thousands) are looked up.
        constexpr std::size_t few = 16;
        std::unordered_map<Index, std::size_t> run_of;  // by the residue
        auto residue = [&](Index tap) { return (tap % step + step) % step; };
        for (const Index tap : taps) {
            lookout.after(1);
            std::size_t r = 0;
            while (r < std::min(few, origin.size()) && (tap - origin[r]) % step != 0) ++r;
            if (r == few) r = run_of.try_emplace(residue(tap), origin.size()).first->second;
            if (r == origin.size()) origin.push_back(tap);
            origin[r] = std::min(origin[r], tap);
            run.push_back(static_cast<Index>(r));
        }
        for (std::size_t i = 0; i < taps.size(); ++i) {
            position.push_back((taps[i] - origin[static_cast<std::size_t>(run[i])]) / step);
            extra = std::max(extra, position[i]);
        }
    }

    // The same taps, one run each.
    Axis apart(const std::vector<Index>& taps) const {
        Axis axis(*this);
        axis.extra = 0;
        axis.origin = taps;
        std::iota(axis.run.begin(), axis.run.end(), Index(0));
        std::ranges::fill(axis.position, 0);
        return axis;
    }

    Index runs() const { return static_cast<Index>(origin.size()); }
    Index taps() const { return static_cast<Index>(run.size()); }
    Index run_length(Index columns) const { return columns + extra; }
    Index length(Index columns) const { return runs() * run_length(columns); }
    // Whether the taps, one run each, are less than half of it.
    bool is_sparse(Index columns) const { return 2 * taps() * columns < length(columns); }
    Index copied(Index columns) const { return is_sparse(columns) ? taps() * columns : length(columns); }
    // Where tap i of the first column is, in a copy for so many columns.
    Index at(Index i, Index columns) const {
        const auto tap = static_cast<std::size_t>(i);
        return run[tap] * run_length(columns) + position[tap];
    }
};

// The terms of a panel's rows, in pieces within which they lie evenly in memory.
struct PanelTerms {
    Index pieces = 1, piece_stride = 0, segments = 1, segment_stride = 0, segment_terms = 0, term_stride = 1;
    std::vector<Index> position;  // in the sequence, of the terms as they lie; empty: as they lie

    PanelTerms() = default;
    PanelTerms(const Contraction& contraction, const std::vector<Index>& position, parallel::Lookout& lookout);
    Index of_piece() const { return segments * segment_terms; }
};

class Plan {
public:
    // Keeps a reference to the contraction. Throws Interrupted where the lookout does.
    Plan(const Contraction& contraction, const Execution& execution, parallel::Lookout& lookout);

    const Contraction& c;
    const TileKernel* kernel = nullptr;
    bool in_place = false;
    bool skips_padding = false;  // rows of taps that a whole tile reads from the padding are left out
    bool wraps = false;  // a tile's columns run on from one image row into the next; those between rows are not wanted
    bool gathers = false;              // and into the next image: a copy has the columns of each term side by side
    bool columns_are_batches = false;  // a tile's columns are one pixel of several images, which the copy has abreast
    Index terms;
    Index term_size, element_size;  // bytes: of T; of the accumulator, which is how a tile reads its operands

    Index first_tap_h, first_tap_w, span_h, span_w;  // of the window
    Index chunk_h, chunk_w, chunks_h, chunks_w, chunk_batches = 1;
    Axis rows, columns;       // of a chunk's copy
    Index copy_h, copy_w;     // columns it has room for
    Index pitch, plane_size;  // elements of a row and of a plane of the copy
    // Images side by side in the copy: those of a diagonal panel's rows, or of a chunk's batches. The lengths and
    // offsets here are of one image.
    Index abreast = 1;
    // Images that are copied at once: so many groups', batches' or diagonal panels' that lie between each other
    // (channels last).
    Index neighbours = 1;
    bool neighbours_are_groups = false;
    Index interleaved = 1;  // outputs that are written at once, as they lie so, too
    Index row_step;         // elements from a column to the one below it, in the copy or in place
    PanelTerms panel_terms;
    std::vector<Index> sources;  // where the columns of a term are gathered from, in the copy of one batch
    Index gathered_pitch = 0;    // elements from a term's gathered columns to the next one's
    // The program with its terms, and what is left of it for tiles near the border: all their columns have padding at
    // some taps, whose terms change no bit where the weights are finite (contract, point 7; never for Kahan).
    struct Variant {
        std::vector<Instruction> code;
        std::vector<Stretch> stretches;          // of a long program; empty: it runs in one
        std::vector<Index> taps, panel_offsets;  // of its terms; no offsets: all terms of a panel, as they lie
    };
    std::vector<Variant> variants;
    Variant rescue;                         // the contraction's, which has the same terms
    std::vector<std::uint16_t> variant_of;  // a row of columns, a pixel if batches are abreast; empty: always the first

    Index panels, panel_elements, panel_block;  // per group; block: bytes of a panel with its bias and bounds
    bool shared_panels;
    Index group_parts, panel_parts, chunk_parts, units;
    Index unit_groups, unit_panels, unit_chunks;  // at most, of a unit
    bool packs_ahead;   // where panels are not shared: all of a unit's, or each when its turn comes
    Index kept_panels;  // of a thread, then
    double gamma = 0;
    // Certify by the largest magnitude of a chunk first, and by the norms of its windows only where that does not do.
    bool bounds_coarsely = false;

    // How the plan goes over the columns.
    const char* walk() const {
        if (gathers) return "gathered";
        if (columns_are_batches) return "abreast";
        if (in_place) return wraps ? "in place, wrapped" : "in place";
        return wraps ? "copied, wrapped" : "copied";
    }

    Index chunks() const { return divide_up(c.batches, chunk_batches) * chunks_h * chunks_w; }
    Chunk chunk(Index number) const {
        if (gathers || columns_are_batches) {
            const Index batch = number * chunk_batches;
            return {batch, 0, 0, c.columns.h, c.columns.w, std::min(chunk_batches, c.batches - batch)};
        }
        const Index w = number % chunks_w * chunk_w, h = number / chunks_w % chunks_h * chunk_h;
        return {number / chunks_w / chunks_h, h, w, std::min(chunk_h, c.columns.h - h),
                std::min(chunk_w, c.columns.w - w)};
    }

    // For a tile whose first row of columns, or pixel, is `place`.
    const Variant& variant(Index place, bool finite_weights) const {
        return variants[variant_of.empty() || !finite_weights ? 0 : variant_of[static_cast<std::size_t>(place)]];
    }

    // How the outputs of a panel and a chunk lie that are kept before they are written: as the lanes of a tile do,
    // [h][w][batch][row] or [row][h][w], so that nothing is transposed for every sample.
    Contraction::Output kept() const;
    Index kept_outputs() const { return kernel->rows() * chunk_h * chunk_w * chunk_batches; }

    // Where the outputs of a panel and a chunk go.
    Contraction::Output output(Index group, Index panel, Index chunk_number) const {
        const Chunk at = chunk(chunk_number);
        Contraction::Output out = c.output;
        const Index first =
            at.batch * out.batch + group * out.group + panel * kernel->rows() * out.row + at.h * out.h + at.w * out.w;
        out.data = static_cast<char*>(out.data) + first * term_size;
        return out;
    }

private:
    parallel::Lookout& lookout_;  // while it is made

    bool could_stay_in_place(const TileKernel& k, bool wrapping) const;
    Index copy_bytes(const TileKernel& k, Index h, Index w) const;
    Index batches_at_once(const TileKernel& k, Index columns_of_each, Index bytes_of_each, int threads) const;
    Index tiles_of_batches(const TileKernel& k, Index columns_of_each, Index at_once) const;
    Index batches_to_gather(const TileKernel& k, int threads) const;
    Index batches_abreast(const TileKernel& k, int threads) const;
    // How a kernel may walk over the columns; gathered, abreast: so many batches at once, or 0.
    struct Walk {
        bool stays = false, wraps = false;
        Index gathered = 0, abreast = 0;
    };
    double cost(const TileKernel& k, const Walk& walk, Index fused, Index rounded) const;
    double kept_share(const TileKernel& k, const Walk& walk) const;
    bool is_padding(Index tap, Index row, const TileKernel& k) const;
    bool is_padding_beside(Index tap, Index column) const;
    void choose_kernel(const Kernels& kernels, int threads);
    void choose_chunks(int threads);
    void lay_out();
    Index panels_abreast() const;
    void find_neighbours();
    void skip_padding();
    Variant without(const std::vector<bool>& skip) const;
    void cut_into_stretches(Variant& variant) const;
    void share_work(int threads);
    void choose_bounds();
};

}  // namespace detconv
