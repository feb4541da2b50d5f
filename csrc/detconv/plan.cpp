#include "plan.hpp"

#include <bit>
#include <cmath>
#include <stdexcept>

#include "exact.hpp"

namespace detconv {
namespace {

// Input copied at a time, per thread: half of a small second-level cache, where it is read once per panel.
constexpr Index chunk_bytes = 256 << 10;
// Small images of a batch taken together, per thread: a chunk and a panel stay in a second-level cache. 4x4 pixels of
// 512 channels, 3x3, batch 32: from 1.8 of torch's time to 1.4 with gathered columns, and to 1.2 with images abreast.
constexpr Index together_bytes = 1 << 20;
// Images copied at once because they lie between each other: half of a second-level cache.
constexpr Index neighbour_bytes = 1 << 20;
// More input than that comes from beyond a large second-level cache.
constexpr double far_bytes = 4 << 20;
// Packed panels kept, per thread: all of them, shared, where they fit; else each thread packs as many at a time for
// itself.
constexpr Index panel_bytes = 2 << 20;
// Of a unit whose samples are joined: its panels, and its outputs for each level of the tree. The fewer units, the less
// often a panel is packed (3x3, 128 channels of 28x28, batch 16: one unit instead of three took 5% less time).
constexpr Index joined_bytes = 5 << 19;

// Planes of a channels-last image, which are copied many at once.
bool has_adjacent_planes(const Contraction& c) { return c.image.plane == 1 && c.planes > 1; }

}  // namespace

Plan::Plan(const Contraction& contraction, const Execution& execution, parallel::Lookout& lookout)
    : c(contraction),
      rows(contraction.row_taps, contraction.step.h, contraction.columns.h, lookout),
      columns(contraction.column_taps, contraction.step.w, contraction.columns.w, lookout),
      lookout_(lookout) {
    terms = c.terms();
    term_size = c.is_float32 ? 4 : 8;
    element_size = c.accumulator == Accumulator::wide ? 8 : term_size;
    const auto [low_h, high_h] = std::ranges::minmax(c.row_taps);
    const auto [low_w, high_w] = std::ranges::minmax(c.column_taps);
    first_tap_h = low_h, first_tap_w = low_w;
    span_h = high_h - low_h + 1, span_w = high_w - low_w + 1;
    const bool has_padding = first_tap_h < c.image_origin.h ||
                             first_tap_h + (c.columns.h - 1) * c.step.h + span_h > c.image_origin.h + c.image_size.h;
    skips_padding = (c.accumulator == Accumulator::plain || c.accumulator == Accumulator::wide) && has_padding;
    choose_kernel(execution.kernels, execution.threads);
    choose_chunks(execution.threads);
    lay_out();
    find_neighbours();
    skip_padding();
    if (c.rescued) rescue.code = c.rescue.code, cut_into_stretches(rescue);
    for (Variant& variant : variants) cut_into_stretches(variant);
    share_work(execution.threads);
    if (c.certified) choose_bounds();
}

// Every tap of every column inside the image, columns adjacent, and room to shift a tile that would stick out.
bool Plan::could_stay_in_place(const TileKernel& k, bool wrapping) const {
    if (terms == c.planes) {  // one tap
        // Vectors cross no cache line if the first does not: a copy is aligned (a 1x1 layer of 256 channels takes 15%
        // longer where it is not).
        const auto first = reinterpret_cast<std::uintptr_t>(c.image.data);
        if (k.side == Side::columns && (first | static_cast<std::uintptr_t>(c.image.plane * term_size)) % 64 != 0)
            return false;
        // What lies beyond the second-level cache comes line by line, each from another page, while a copy reads ahead
        // (512 to 128 channels of 28x28, batch 4: 4.0 ms in place, 2.9 copied; 64 to 16 of 56x56, alone .05 and .07,
        // batch 16 2.7 and 1.4).
        const double bytes = static_cast<double>(c.image_size.h * c.image_size.w * term_size) *
                             static_cast<double>(c.planes * c.groups * c.batches);
        if (bytes > far_bytes) return false;
    }
    if (c.diagonal() || element_size != term_size || c.step.w != 1 || c.image.w != 1 ||
        first_tap_h < c.image_origin.h || first_tap_w < c.image_origin.w ||
        first_tap_h + (c.columns.h - 1) * c.step.h + span_h > c.image_origin.h + c.image_size.h ||
        first_tap_w + c.columns.w - 1 + span_w > c.image_origin.w + c.image_size.w)
        return false;
    if (wrapping)
        return c.step.h == 1 && c.image.h == c.image_size.w &&
               (c.columns.h - 1) * c.image.h + c.columns.w >= k.columns();
    return c.columns.h >= k.image_rows() && c.columns.w >= k.columns();
}

// Bytes of a chunk's copy.
Index Plan::copy_bytes(const TileKernel& k, Index h, Index w) const {
    return rows.copied(h) * c.planes * columns.copied(w) * k.abreast() * element_size;
}

// How many batches to take together: as many as leave the fewest columns of tiles empty.
Index Plan::batches_at_once(const TileKernel& k, Index columns_of_each, Index bytes_of_each, int threads) const {
    constexpr Index enough = 64;
    const Index most = std::min({together_bytes / std::max<Index>(bytes_of_each, 1), c.batches / threads, enough});
    Index best = 0, fewest = 0;
    for (Index n = 1; n <= most; ++n) {
        const Index tiles = tiles_of_batches(k, columns_of_each, n);
        if (best == 0 || tiles <= fewest) best = n, fewest = tiles;
    }
    return best;
}

// Tiles of all batches, so many of them taken together.
Index Plan::tiles_of_batches(const TileKernel& k, Index columns_of_each, Index at_once) const {
    const Index left = c.batches % at_once;
    return c.batches / at_once * divide_up(at_once * columns_of_each, k.columns()) +
           divide_up(left * columns_of_each, k.columns());
}

// How many images to gather the columns of; 0: it does not pay.
Index Plan::batches_to_gather(const TileKernel& k, int threads) const {
    if (c.batches == 1 || c.samples > 1 || k.image_rows() > 1 || terms == 0 || c.diagonal()) return 0;
    if (c.image.w != 1 && !has_adjacent_planes(c) && c.image.batch != 1) return 0;  // copied one by one
    const Index image = c.columns.h * c.columns.w;
    if (image > 4 * k.columns()) return 0;
    return batches_at_once(k, image, terms * image * element_size, threads);
}

// How many images to have side by side, so that columns are batches: then all columns of a tile have the same padding,
// at all sides. 0: it does not pay.
Index Plan::batches_abreast(const TileKernel& k, int threads) const {
    if (c.batches == 1 || k.side != Side::rows || k.image_rows() > 1 || terms == 0) return 0;
    const bool even = c.output.w == 1 && c.output.h == c.columns.w, joins = c.samples > 1;
    if (!skips_padding || c.image.w != 1 || !(joins || even || c.output.row == 1)) return 0;
    const Index kept_rows = joins ? c.rows * c.levels() : k.rows();
    const Index copied = c.planes * c.image_size.h * c.image_size.w * element_size,
                kept = kept_rows * c.columns.h * c.columns.w * term_size;
    return batches_at_once(k, 1, std::max(copied, kept), threads);
}

double Plan::cost(const TileKernel& k, const Walk& walk, Index fused, Index rounded) const {
    // 32-bit divisions: 64-bit ones would be a third of the time of a call with one term.
    auto pieces = [](Index count, int size) {
        return count < 0x7fffffff ? (static_cast<std::uint32_t>(count) + static_cast<std::uint32_t>(size) - 1) /
                                        static_cast<std::uint32_t>(size)
                                  : divide_up(count, size);
    };
    const Index row_to_row = walk.stays ? c.image.h : columns.length(c.columns.w);
    const Index down = pieces(c.columns.h, k.image_rows());
    const Index across = walk.wraps ? pieces((c.columns.h - 1) * row_to_row + c.columns.w, k.columns())
                                    : down * pieces(c.columns.w, k.columns());
    double tiles = static_cast<double>(pieces(c.rows, k.rows()) * across);
    const Index image = c.columns.h * c.columns.w;
    if (walk.gathered + walk.abreast > 0) {
        const Index of_all = walk.gathered > 0 ? tiles_of_batches(k, image, walk.gathered)
                                               : image * tiles_of_batches(k, 1, walk.abreast);
        tiles = static_cast<double>(pieces(c.rows, k.rows()) * of_all) / static_cast<double>(c.batches);
    }
    double term_cost = static_cast<double>(fused) * k.fused_cycles + static_cast<double>(rounded) * k.rounded_cycles;
    term_cost *= kept_share(k, walk);
    // In the table's unit, 100 a tile go into starting it, and for each of its vectors 6 into storing where memory has
    // the outputs of a vector side by side, 30 with a transposition, more one by one.
    const bool by_rows = k.rows_are_lanes();
    const Index column_stride = k.columns() == 1 ? c.output.h : c.output.w;
    const double vector = (by_rows ? c.output.row : c.output.w) == 1 ? 6 : by_rows && column_stride == 1 ? 30 : 60;
    double cycles = tiles * (term_cost + 100 + vector * k.vectors * k.broadcasts);
    if (!walk.stays)
        cycles += static_cast<double>(c.planes * rows.length(c.columns.h)) *
                  (20 + 0.3 * static_cast<double>(columns.length(c.columns.w)));
    if (walk.gathered > 0) cycles += static_cast<double>(terms * c.columns.h * divide_up(c.columns.w, 16)) * 4;
    // Lines of many images, from beyond the second-level cache, and the outputs turned afterwards.
    if (walk.abreast > 0) {
        // A larger panel and the images are more than that cache holds (512 channels of 4x4, two threads: 48 rows 9.6
        // ms, 32 rows 8.7).
        if (terms * k.rows() * element_size > together_bytes * 3 / 4) cycles *= 1.15;
        const Index lines = c.planes * c.image_size.h * pieces(c.image_size.w, 16),
                    turned = c.samples == 1 ? c.rows * pieces(image, 16) : 0;
        cycles += static_cast<double>(lines + turned) * 50;
    }
    return cycles;
}

// The share of the terms that is left where the padding is skipped.
double Plan::kept_share(const TileKernel& k, const Walk& walk) const {
    if (walk.wraps || walk.gathered > 0 || !skips_padding) return 1;
    // Of one dimension: tiles of so many columns each, and all of their taps but those that no column has in the image.
    auto kept = [&](const std::vector<Index>& taps, Index columns, Index of_tile, Index step, Index origin,
                    Index size) {
        const Index tiles = divide_up(columns, of_tile);
        Index skipped = 0;
        for (const Index tap : taps) {
            lookout_.after(1);
            const Index before = std::clamp<Index>(divide_up(origin - tap, step), 0, columns),
                        until = std::clamp<Index>(divide_up(origin + size - tap, step), 0, columns);
            skipped += (before == columns ? tiles : before / of_tile) + tiles - divide_up(until, of_tile);
        }
        return 1 - static_cast<double>(skipped) / static_cast<double>(tiles * static_cast<Index>(taps.size()));
    };
    const double share = kept(c.row_taps, c.columns.h, k.image_rows(), c.step.h, c.image_origin.h, c.image_size.h);
    return walk.abreast == 0 ? share
                             : share * kept(c.column_taps, c.columns.w, 1, c.step.w, c.image_origin.w, c.image_size.w);
}

void Plan::choose_kernel(const Kernels& kernels, int threads) {
    double best = 0;
    Index fused = 0, rounded = 0;
    for (const Instruction& i : c.program.code) {
        lookout_.after(1);
        if (i.op == Op::fused) fused += i.end - i.begin;
        if (i.op == Op::rounded) rounded += i.end - i.begin;
    }
    for (const TileKernel& k : kernels.tiles) {
        if (!computes(k, c) || (k.side == Side::diagonal) != c.diagonal()) continue;
        auto consider = [&](const Walk& walk) {
            double estimate = cost(k, walk, fused, rounded);
            // A tile's window is copied at once: one that needs much memory is the last choice.
            if (!walk.stays && copy_bytes(k, k.image_rows(), k.columns()) > 2 * chunk_bytes) estimate *= 16;
            if (kernel != nullptr && estimate >= best) return;
            kernel = &k, best = estimate;
            in_place = walk.stays, gathers = walk.gathered > 0, wraps = walk.wraps || gathers;
            columns_are_batches = walk.abreast > 0;
            chunk_batches = std::max<Index>(walk.gathered + walk.abreast, 1);
        };
        consider({.stays = could_stay_in_place(k, false)});
        if (k.image_rows() == 1 && c.columns.h > 1) {
            const bool stays = could_stay_in_place(k, true);
            if (stays || copy_bytes(k, 1, c.columns.w + k.columns()) <= chunk_bytes)
                consider({.stays = stays, .wraps = true});
        }
        if (const Index gathered = batches_to_gather(k, threads)) consider({.gathered = gathered});
        if (const Index abreast = batches_abreast(k, threads)) consider({.abreast = abreast});
    }
    if (kernel == nullptr) throw std::logic_error("no kernel for this accumulator");
    if (c.program.depth > 0 && !kernel->joins) throw std::logic_error("these accumulators cannot be joined");
}

void Plan::choose_chunks(int threads) {
    const Index tile_h = kernel->image_rows(), tile_w = wraps ? c.columns.w : kernel->columns();
    if (gathers || columns_are_batches) {
        chunk_h = c.columns.h, chunk_w = c.columns.w, chunks_h = chunks_w = 1;
        return;
    }
    // Whole rows where a tile's rows fit; narrower where even those are too many bytes.
    chunk_w = c.columns.w;
    while (chunk_w > tile_w && copy_bytes(*kernel, tile_h, chunk_w) > 2 * chunk_bytes)
        chunk_w = round_up(divide_up(chunk_w, 2), tile_w);
    chunk_h = std::min(c.columns.h, tile_h);
    const Index bytes = c.diagonal() ? 2 * chunk_bytes / panels_abreast() : chunk_bytes;
    // All of a small image: it is copied once for all panels, and each of these is packed when its turn comes.
    if (chunk_w == c.columns.w && copy_bytes(*kernel, c.columns.h, c.columns.w) <= 2 * bytes) chunk_h = c.columns.h;
    while (chunk_h < c.columns.h && copy_bytes(*kernel, chunk_h + tile_h, chunk_w) <= bytes) chunk_h += tile_h;
    // One row only (a flattened 1x1): columns are what there is to cut.
    chunks_w = divide_up(c.columns.w, chunk_w);
    chunks_h = divide_up(c.columns.h, chunk_h);
    // Equal shares for the threads, unless there are plenty (measured: 56x56 on two threads from 0.98 to 0.85 of
    // torch).
    const Index others = c.batches * c.groups;
    if (threads > 1 && others * chunks_h * chunks_w < 8 * threads && others % threads != 0) {
        if (c.columns.h >= tile_h * threads)
            chunks_h = round_up(chunks_h, threads);
        else if (c.columns.w >= tile_w * threads)
            chunks_w = round_up(chunks_w, threads);
    }
    chunk_h = std::min(c.columns.h, round_up(divide_up(c.columns.h, chunks_h), tile_h));
    chunk_w = std::min(c.columns.w, round_up(divide_up(c.columns.w, chunks_w), tile_w));
    chunks_h = divide_up(c.columns.h, chunk_h);
    chunks_w = divide_up(c.columns.w, chunk_w);
}

void Plan::lay_out() {
    copy_h = round_up(chunk_h, kernel->image_rows());
    copy_w = wraps || columns_are_batches ? chunk_w : round_up(chunk_w, kernel->columns());
    if (rows.is_sparse(copy_h)) rows = rows.apart(c.row_taps);
    if (columns.is_sparse(copy_w)) columns = columns.apart(c.column_taps);
    pitch = columns.length(copy_w);
    plane_size = rows.length(copy_h) * pitch;
    // Planes that are a multiple of 1 KiB apart share a quarter of the first-level cache or less.
    if (plane_size * element_size % 1024 == 0) plane_size += 64 / element_size;
    row_step = in_place ? c.step.h * c.image.h : pitch;
    abreast = columns_are_batches ? round_up(chunk_batches, kernel->columns()) : kernel->abreast();
    variants.resize(1);
    variants[0].code = c.program.code;
    std::vector<Index>& taps = variants[0].taps;
    taps.reserve(static_cast<std::size_t>(terms));
    for (Index p = 0; p < c.planes; ++p)
        for (Index i = 0; i < rows.taps(); ++i)
            for (Index j = 0; j < columns.taps(); ++j, lookout_.after(1))
                taps.push_back(in_place
                                   ? p * c.image.plane + c.row_taps[static_cast<std::size_t>(i)] * c.image.h +
                                         c.column_taps[static_cast<std::size_t>(j)]
                                   : (p * plane_size + rows.at(i, copy_h) * pitch + columns.at(j, copy_w)) * abreast);
    const auto& sequence = c.program.sequence;
    std::vector<Index> position(sequence.size());
    if (!sequence.empty()) {
        const std::vector<Index> by_term(taps);
        for (std::size_t r = 0; r < taps.size(); ++r) {
            lookout_.after(1);
            const auto term = static_cast<std::size_t>(sequence[r]);
            taps[r] = by_term[term], position[term] = static_cast<Index>(r);
        }
    }
    panel_terms = PanelTerms(c, position, lookout_);
    if (gathers) {
        // Room for a tile that sticks out, and for a vector that is stored whole.
        gathered_pitch = round_up(chunk_batches * chunk_h * chunk_w, kernel->columns()) + 64 / element_size;
        sources = taps;
        for (std::size_t r = 0; r < taps.size(); ++r) taps[r] = static_cast<Index>(r) * gathered_pitch;
        row_step = chunk_w;
    }
    // The image of terms to come is asked for (Tile::ahead) where it is scattered: in small windows of many planes. Two
    // loads more for each term: 64-byte vectors leave room for them (layers take 1 to 6% less time), 32-byte ones do
    // not (1 to 5% more) but where all is scattered.
    const Index window = rows.taps() * columns.taps();
    constexpr Index small = 32;
    const bool scattered =
        c.planes > 1 && window <= small && kernel->side != Side::diagonal && kernel->lanes * element_size == 64;
    if (columns_are_batches || scattered) variants[0] = without(std::vector<bool>(static_cast<std::size_t>(window)));
}

PanelTerms::PanelTerms(const Contraction& c, const std::vector<Index>& given, parallel::Lookout& lookout)
    : position(given) {
    const Contraction::Operand& p = c.panel;
    const auto nh = static_cast<Index>(c.row_taps.size()), nw = static_cast<Index>(c.column_taps.size());
    const bool even_plane = nh == 1 || nw == 1 || p.h == nw * p.w;
    const Index tap_stride = nw > 1 ? p.w : p.h;
    if (nh * nw == 1) {
        segment_terms = c.planes, term_stride = p.plane;
    } else if (even_plane && (c.planes <= 1 || p.plane == nh * nw * tap_stride)) {
        segment_terms = c.terms(), term_stride = tap_stride;
    } else if (even_plane && p.plane == 1 && p.row != 1) {  // channels last: the planes of a tap side by side
        segments = nh * nw, segment_stride = tap_stride, segment_terms = c.planes;
        position.clear();
        for (Index tap = 0; tap < segments; ++tap)
            for (Index plane = 0; plane < c.planes; ++plane) {
                lookout.after(1);
                const Index term = plane * segments + tap;
                position.push_back(given.empty() ? term : given[static_cast<std::size_t>(term)]);
            }
    } else if (even_plane) {
        segments = c.planes, segment_stride = p.plane, segment_terms = nh * nw, term_stride = tap_stride;
    } else {
        pieces = c.planes, piece_stride = p.plane;
        segments = nh, segment_stride = p.h, segment_terms = nw, term_stride = p.w;
    }
}

// Whether a row of taps lies in the padding for all rows of columns of the tile that starts with `row`.
bool Plan::is_padding(Index tap, Index row, const TileKernel& k) const {
    const Index last = std::min(row + k.image_rows(), c.columns.h) - 1;
    return row * c.step.h + tap >= c.image_origin.h + c.image_size.h || last * c.step.h + tap < c.image_origin.h;
}

bool Plan::is_padding_beside(Index tap, Index column) const {
    const Index at = column * c.step.w + tap - c.image_origin.w;
    return at < 0 || at >= c.image_size.w;
}

// Panels whose images are copied at once: where these lie between each other, a stretch of memory has a few pixels of
// all of them (14x14 pixels of 576 channels: 1.9 of torch's time to 1.5).
Index Plan::panels_abreast() const {
    constexpr Index enough = 8;
    return c.image.row == 1 ? std::min(divide_up(c.rows, kernel->rows()), enough) : 1;
}

void Plan::find_neighbours() {
    const Index image_bytes = std::max<Index>(c.planes * plane_size * abreast * element_size, 1);
    if (c.diagonal()) {
        neighbours = std::clamp(2 * chunk_bytes / image_bytes, Index(1), panels_abreast());
        return;
    }
    if (in_place || c.image.w == 1 || has_adjacent_planes(c)) return;
    neighbours_are_groups = c.image.group == 1 && !gathers;
    if (!neighbours_are_groups && (c.image.batch != 1 || chunks_h * chunks_w != 1)) return;
    const Index most = std::min(64 / term_size, neighbours_are_groups ? c.groups : c.batches);
    neighbours = std::clamp(neighbour_bytes / image_bytes, Index(1), most);
    if (c.samples == 1 && c.output.w != 1 && (neighbours_are_groups ? c.output.group : c.output.batch) == 1)
        interleaved = gathers ? chunk_batches : neighbours;
}

void Plan::skip_padding() {
    if (!skips_padding || wraps) return;
    const Index of_row = columns_are_batches ? c.columns.w : 1;
    std::vector<bool> above, beside(c.column_taps.size(), false), last_above, last_beside;
    std::vector<std::vector<bool>> skipped{std::vector<bool>(c.row_taps.size() * c.column_taps.size(), false)};
    Index budget = (Index(1) << 15) + 8 * terms;
    variant_of.reserve(static_cast<std::size_t>(c.columns.h * of_row));
    for (Index row = 0; row < c.columns.h; ++row) {
        lookout_.after(static_cast<Index>(c.row_taps.size()) + of_row);
        above.clear();
        for (const Index tap : c.row_taps) above.push_back(is_padding(tap, row, *kernel));
        for (Index column = 0; column < of_row; ++column) {
            lookout_.after(columns_are_batches ? static_cast<Index>(beside.size()) : 1);
            for (std::size_t j = 0; columns_are_batches && j < beside.size(); ++j)
                beside[j] = is_padding_beside(c.column_taps[j], column);
            if (!variant_of.empty() && above == last_above && beside == last_beside) {
                variant_of.push_back(variant_of.back());
                continue;
            }
            last_above = above, last_beside = beside;
            std::vector<bool> skip;
            for (const bool row_is_padding : above)
                for (const bool column_is_padding : beside) skip.push_back(row_is_padding || column_is_padding);
            auto found = std::ranges::find(skipped, skip);
            if (found == skipped.end() && budget > 0 && skipped.size() < 0xffff) {
                variants.push_back(without(skip));
                budget -= static_cast<Index>(variants.back().taps.size());
                skipped.push_back(skip);
                found = skipped.end() - 1;
            }
            variant_of.push_back(found == skipped.end() ? 0 : static_cast<std::uint16_t>(found - skipped.begin()));
        }
    }
}

// The program without the terms of some taps.
Plan::Variant Plan::without(const std::vector<bool>& skip) const {
    Variant rest;
    for (Instruction i : c.program.code) {
        lookout_.after(1);
        if (i.op == Op::fused || i.op == Op::rounded) {
            const auto begin = static_cast<Index>(rest.taps.size());
            for (auto r = static_cast<std::size_t>(i.begin); r < static_cast<std::size_t>(i.end); ++r) {
                const std::size_t term =
                    c.program.sequence.empty() ? r : static_cast<std::size_t>(c.program.sequence[r]);
                lookout_.after(1);
                if (skip[term % skip.size()]) continue;
                rest.taps.push_back(variants[0].taps[r]);
                rest.panel_offsets.push_back(static_cast<Index>(r) * kernel->rows());
            }
            i.begin = begin, i.end = static_cast<Index>(rest.taps.size());
            if (i.begin == i.end) continue;
        }
        rest.code.push_back(i);
    }
    rest.taps.resize(rest.taps.size() + Tile::ahead);
    return rest;
}

// Where a tile runs for long, it does so in stretches. Runs are cut where a stretch ends; the accumulators stay, and so
// do the bits.
void Plan::cut_into_stretches(Variant& variant) const {
    constexpr Index most = parallel::work_between_looks;
    std::vector<Instruction>& code = variant.code;
    if (terms + static_cast<Index>(code.size()) <= most) return;
    auto length = [](const Instruction& i) { return i.end - i.begin; };
    if (std::ranges::any_of(code, [&](const Instruction& i) { return length(i) > most; })) {
        std::vector<Instruction> cut;
        for (Instruction i : code) {
            for (const Index end = i.end; length(i) > most; i.begin = i.end, i.end = end) {
                i.end = i.begin + most;
                cut.push_back(i);
            }
            cut.push_back(i);
        }
        code = std::move(cut);
    }
    int depth = 0;
    Stretch stretch{0, 0, 0};
    Index work = 0;
    for (; stretch.end < code.size(); ++stretch.end) {
        lookout_.after(1);
        const Instruction& i = code[stretch.end];
        if (work > 0 && work + length(i) + 1 > most) {
            variant.stretches.push_back(stretch);
            stretch = {stretch.end, stretch.end, depth};
            work = 0;
        }
        work += length(i) + 1;
        depth += i.op == Op::push ? 1 : i.op == Op::join ? -1 : 0;
    }
    variant.stretches.push_back(stretch);
}

Contraction::Output Plan::kept() const {
    if (!kernel->rows_are_lanes()) return {.row = chunk_h * chunk_w, .h = chunk_w, .w = 1};
    const Index pixel = chunk_batches * kernel->rows();
    return {.batch = kernel->rows(), .row = 1, .h = chunk_w * pixel, .w = pixel};
}

void Plan::share_work(int threads) {
    const Index width = kernel->rows();
    panels = divide_up(c.rows, width);
    panel_elements = checked_multiply(terms, width, "a packed panel");
    panel_block = round_up(panel_elements * element_size, 64) + 3 * round_up(width * 8, 64) + 64;
    const bool joins = c.samples > 1;
    unit_groups = neighbours_are_groups ? neighbours : 1;
    group_parts = divide_up(c.groups, unit_groups);
    shared_panels =
        !joins && checked_multiply(panels * c.groups, panel_block, "packed panels") <= panel_bytes * threads;
    // A unit is a range of panels against a range of chunks: for every chunk, all panels of the range.
    // Gathering is done again for every range, so there it is a longer one.
    const Index kept_bytes = gathers ? panel_bytes + together_bytes : panel_bytes;
    Index fit = kept_bytes / panel_block;  // panels of a unit
    // Where samples are joined, panels that are kept leave room for the totals of some chunks.
    const Index totals_bytes = joins ? unit_groups * kept_outputs() * c.levels() * term_size : 0;  // panel and chunk
    if (joins) fit = std::min(chunks() > 1 ? fit : panels, joined_bytes / 2 / totals_bytes);
    panel_parts = shared_panels ? 1 : divide_up(panels, std::max<Index>(fit, 1));
    chunk_parts = shared_panels ? chunks() : 1;
    if (joins) {
        const Index of_unit = divide_up(panels, panel_parts);
        const Index left = std::max(joined_bytes - (chunks() > 1 ? of_unit * panel_block : 0), joined_bytes / 4);
        chunk_parts = divide_up(chunks(), std::max<Index>(left / (of_unit * totals_bytes), 1));
    }
    // Where the whole dimension is too few units to feed the threads evenly, the other one is cut as well.
    auto feed = [&](Index& parts, Index most) {
        const Index have = panel_parts * chunk_parts * group_parts;
        if (have >= 2 * threads || have % threads == 0) return;
        // Joined samples: each part copies all images, or packs all panels, for itself (1x1, stride 2, 64 to 128
        // channels, two threads: two parts 1.4 ms, four 1.8).
        const Index enough = joins ? threads : 2 * threads;
        parts = std::min(most, round_up(parts * divide_up(enough, have), threads));
    };
    feed(panel_parts, panels);
    feed(chunk_parts, chunks());
    units = group_parts * panel_parts * chunk_parts;
    unit_panels = divide_up(panels, panel_parts);
    unit_chunks = divide_up(chunks(), chunk_parts);
    // A panel that meets one chunk only is packed when its turn comes, and is still in the cache then.
    packs_ahead = unit_chunks > 1 && unit_groups == 1;
    kept_panels = packs_ahead ? unit_panels : 1;
    if (c.diagonal() && panel_parts > 1) neighbours = 1;  // a unit's panels may be any of them
}

void Plan::choose_bounds() {
    const bool has_bias = c.bias != nullptr;
    gamma = c.is_float32 ? exact::gamma_wide(terms, has_bias) : exact::gamma_twofold(terms, has_bias);
    // The norms of windows are as many operations as the sums of a single row: exact depthwise layers took twice as
    // long with them. A coarse bound, some 8 times the norm, is as good where hardly a total of a tile is uncertain by
    // it: so many ulps of the element type are the bound of a total of the size of its terms' norm.
    const auto n = static_cast<double>(terms);
    const double ulps = c.is_float32 ? n * std::sqrt(n) * 0x1p-26 : n * n * n * 0x1p-48;
    bounds_coarsely = !in_place && !gathers && !columns_are_batches && ulps * kernel->outputs() < 0x1p-8;
}

}  // namespace detconv
