#include "plan.hpp"

#include <stdexcept>

#include "exact.hpp"

namespace detconv {
namespace {

// Input copied at a time, per thread: half of a small second-level cache, where it is read once per panel.
constexpr Index chunk_bytes = 256 << 10;
// Columns of small images gathered at a time, per thread: a chunk and a panel stay in a second-level cache. 4x4 pixels
// of 512 channels, 3x3, batch 32: from 1.81 of torch's time to 1.42.
constexpr Index gathered_bytes = 1024 << 10;
// Images copied at once because they lie between each other: half of a second-level cache.
constexpr Index neighbour_bytes = 1 << 20;
// Packed panels kept, per thread: all of them, shared, where they fit; else each thread packs as many at a time for
// itself.
constexpr Index panel_bytes = 2 << 20;
// Outputs of a unit whose samples are joined: as many are kept for each level of the tree.
constexpr Index joined_outputs = 1 << 16;

}  // namespace

Plan::Plan(const Contraction& contraction, const Execution& execution)
    : c(contraction),
      rows(contraction.row_taps, contraction.step.h, contraction.columns.h),
      columns(contraction.column_taps, contraction.step.w, contraction.columns.w) {
    terms = c.terms();
    term_size = c.is_float32 ? 4 : 8;
    element_size = c.accumulator == Accumulator::wide ? 8 : term_size;
    const auto [low_h, high_h] = std::ranges::minmax(c.row_taps);
    const auto [low_w, high_w] = std::ranges::minmax(c.column_taps);
    first_tap_h = low_h, first_tap_w = low_w;
    span_h = high_h - low_h + 1, span_w = high_w - low_w + 1;
    skips_padding = (c.accumulator == Accumulator::plain || c.accumulator == Accumulator::wide) &&
                    (first_tap_h < c.image_origin.h ||
                     first_tap_h + (c.columns.h - 1) * c.step.h + span_h > c.image_origin.h + c.image_size.h);
    choose_kernel(execution.kernels, execution.threads);
    choose_chunks(execution.threads);
    lay_out();
    find_neighbours();
    skip_padding();
    share_work(execution.threads);
    if (c.certified)
        gamma =
            c.is_float32 ? exact::gamma_wide(terms, c.bias != nullptr) : exact::gamma_twofold(terms, c.bias != nullptr);
}

// Every tap of every column inside the image, columns adjacent, and room to shift a tile that would stick out.
bool Plan::could_stay_in_place(const TileKernel& k, bool wrapping) const {
    // With one tap, vectors cross no cache line if the first does not: a copy is aligned (a 1x1 layer of 256 channels
    // takes 15% longer where it is not).
    const auto first = reinterpret_cast<std::uintptr_t>(c.image.data);
    if (k.side == Side::columns && terms == c.planes &&
        (first | static_cast<std::uintptr_t>(c.image.plane * term_size)) % 64 != 0)
        return false;
    if (element_size != term_size || c.step.w != 1 || c.image.w != 1 || first_tap_h < c.image_origin.h ||
        first_tap_w < c.image_origin.w ||
        first_tap_h + (c.columns.h - 1) * c.step.h + span_h > c.image_origin.h + c.image_size.h ||
        first_tap_w + c.columns.w - 1 + span_w > c.image_origin.w + c.image_size.w)
        return false;
    if (wrapping)
        return c.step.h == 1 && c.image.h == c.image_size.w &&
               (c.columns.h - 1) * c.image.h + c.columns.w >= k.columns();
    return c.columns.h >= k.image_rows() && c.columns.w >= k.columns();
}

// Bytes of a chunk's copy.
Index Plan::copy_bytes(Index h, Index w) const {
    return std::min(rows.length(h), rows.taps() * h) * c.planes * std::min(columns.length(w), columns.taps() * w) *
           element_size;
}

// How many images to gather the columns of: those that leave the fewest columns of tiles empty; 0: it does not pay.
Index Plan::batches_to_gather(const TileKernel& k, int threads) const {
    if (c.batches == 1 || c.samples > 1 || k.image_rows() > 1 || terms == 0) return 0;
    if (c.image.w != 1 && c.image.plane != 1 && c.image.batch != 1) return 0;  // copied one by one
    const Index image = c.columns.h * c.columns.w;
    if (image > 4 * k.columns()) return 0;
    constexpr Index enough = 64;
    const Index most = std::min({gathered_bytes / (terms * image * element_size), c.batches / threads, enough});
    Index best = 0;
    double fullest = 0;
    for (Index n = 1; n <= most; ++n) {
        const double full = static_cast<double>(n * image) / static_cast<double>(round_up(n * image, k.columns()));
        if (full >= fullest) best = n, fullest = full;
    }
    return best;
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
    if (walk.gathered > 0)
        tiles = static_cast<double>(pieces(c.rows, k.rows()) *
                                    pieces(walk.gathered * c.columns.h * c.columns.w, k.columns())) /
                static_cast<double>(walk.gathered);
    double term_cost = static_cast<double>(fused) * k.fused_cycles + static_cast<double>(rounded) * k.rounded_cycles;
    if (!walk.wraps && walk.gathered == 0 && skips_padding &&
        c.columns.h <= 64) {  // in a higher image, the border is a small part
        Index skipped = 0;    // rows of taps, of those of all rows of tiles
        for (Index row = 0; row < c.columns.h; row += k.image_rows())
            for (const Index tap : c.row_taps) skipped += is_padding(tap, row, k) ? 1 : 0;
        term_cost *= 1 - static_cast<double>(skipped) / static_cast<double>(rows.taps() * down);
    }
    // In the table's unit, 100 a tile go into starting it, and for each of its vectors 6 into storing where memory has
    // the outputs of a vector side by side, 30 with a transposition, more one by one.
    const bool by_rows = k.side == Side::rows;
    const double vector = (by_rows ? c.output.row : c.output.w) == 1 ? 6 : by_rows && c.output.w == 1 ? 30 : 60;
    double cycles = tiles * (term_cost + 100 + vector * k.vectors * k.broadcasts);
    if (!walk.stays)
        cycles += static_cast<double>(c.planes * rows.length(c.columns.h)) *
                  (20 + 0.3 * static_cast<double>(columns.length(c.columns.w)));
    if (walk.gathered > 0) cycles += static_cast<double>(terms * c.columns.h * divide_up(c.columns.w, 16)) * 4;
    return cycles;
}

void Plan::choose_kernel(const Kernels& kernels, int threads) {
    double best = 0;
    Index fused = 0, rounded = 0;
    for (const Instruction& i : c.program.code) {
        if (i.op == Op::fused) fused += i.end - i.begin;
        if (i.op == Op::rounded) rounded += i.end - i.begin;
    }
    for (const TileKernel& k : kernels.tiles) {
        if (k.accumulator != c.accumulator || k.is_float32 != c.is_float32) continue;
        auto consider = [&](const Walk& walk) {
            double estimate = cost(k, walk, fused, rounded);
            // A tile's window is copied at once: one that needs much memory is the last choice.
            if (!walk.stays && copy_bytes(k.image_rows(), k.columns()) > 2 * chunk_bytes) estimate *= 16;
            if (kernel != nullptr && estimate >= best) return;
            kernel = &k, best = estimate;
            in_place = walk.stays, gathers = walk.gathered > 0, wraps = walk.wraps || gathers;
            chunk_batches = std::max<Index>(walk.gathered, 1);
        };
        consider({could_stay_in_place(k, false), false, 0});
        if (k.image_rows() == 1 && c.columns.h > 1) {
            const bool stays = could_stay_in_place(k, true);
            if (stays || copy_bytes(1, c.columns.w + k.columns()) <= chunk_bytes) consider({stays, true, 0});
        }
        if (const Index gathered = batches_to_gather(k, threads)) consider({false, false, gathered});
    }
    if (kernel == nullptr) throw std::logic_error("no kernel for this accumulator");
    if (c.program.depth > 0 && !kernel->joins) throw std::logic_error("these accumulators cannot be joined");
}

void Plan::choose_chunks(int threads) {
    const Index tile_h = kernel->image_rows(), tile_w = wraps ? c.columns.w : kernel->columns();
    if (gathers) {
        chunk_h = c.columns.h, chunk_w = c.columns.w, chunks_h = chunks_w = 1;
        return;
    }
    // Whole rows where a tile's rows fit; narrower where even those are too many bytes.
    chunk_w = c.columns.w;
    while (chunk_w > tile_w && copy_bytes(tile_h, chunk_w) > 2 * chunk_bytes)
        chunk_w = round_up(divide_up(chunk_w, 2), tile_w);
    chunk_h = std::min(c.columns.h, tile_h);
    // All of a small image: it is copied once for all panels, and each of these is packed when its turn comes.
    if (chunk_w == c.columns.w && copy_bytes(c.columns.h, c.columns.w) <= 2 * chunk_bytes) chunk_h = c.columns.h;
    while (chunk_h < c.columns.h && copy_bytes(chunk_h + tile_h, chunk_w) <= chunk_bytes) chunk_h += tile_h;
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
    copy_h = round_up(chunk_h, kernel->image_rows()), copy_w = wraps ? chunk_w : round_up(chunk_w, kernel->columns());
    if (rows.length(copy_h) > rows.taps() * copy_h) rows = rows.apart(c.row_taps);
    if (columns.length(copy_w) > columns.taps() * copy_w) columns = columns.apart(c.column_taps);
    pitch = columns.length(copy_w);
    plane_size = rows.length(copy_h) * pitch;
    // Planes that are a multiple of 1 KiB apart share a quarter of the first-level cache or less.
    if (plane_size * element_size % 1024 == 0) plane_size += 64 / element_size;
    row_step = in_place ? c.step.h * c.image.h : pitch;
    std::vector<Index> by_term;
    by_term.reserve(static_cast<std::size_t>(terms));
    for (Index p = 0; p < c.planes; ++p)
        for (Index i = 0; i < rows.taps(); ++i)
            for (Index j = 0; j < columns.taps(); ++j)
                by_term.push_back(in_place ? p * c.image.plane + c.row_taps[static_cast<std::size_t>(i)] * c.image.h +
                                                 c.column_taps[static_cast<std::size_t>(j)]
                                           : p * plane_size + rows.at(i, copy_h) * pitch + columns.at(j, copy_w));
    const auto& sequence = c.program.sequence;
    std::vector<Index> position;
    if (sequence.empty()) {
        taps = std::move(by_term);
    } else {
        taps.resize(sequence.size());
        position.resize(sequence.size());
        for (std::size_t r = 0; r < sequence.size(); ++r) {
            taps[r] = by_term[static_cast<std::size_t>(sequence[r])];
            position[static_cast<std::size_t>(sequence[r])] = static_cast<Index>(r);
        }
    }
    panel_terms = PanelTerms(c, position);
    if (!gathers) return;
    sources = taps;
    // Room for a tile that sticks out, and for a vector that is stored whole.
    gathered_pitch = round_up(chunk_batches * chunk_h * chunk_w, kernel->columns()) + 64 / element_size;
    for (std::size_t r = 0; r < taps.size(); ++r) taps[r] = static_cast<Index>(r) * gathered_pitch;
    row_step = chunk_w;
}

PanelTerms::PanelTerms(const Contraction& c, const std::vector<Index>& given) : position(given) {
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

void Plan::find_neighbours() {
    if (in_place || c.image.w == 1 || (c.image.plane == 1 && c.planes > 1)) return;
    neighbours_are_groups = c.image.group == 1 && !gathers;
    if (!neighbours_are_groups && (c.image.batch != 1 || chunks_h * chunks_w != 1)) return;
    const Index most = std::min(64 / term_size, neighbours_are_groups ? c.groups : c.batches);
    neighbours = std::clamp(neighbour_bytes / std::max<Index>(c.planes * plane_size * element_size, 1), Index(1), most);
    if (c.samples == 1 && c.output.w != 1 && (neighbours_are_groups ? c.output.group : c.output.batch) == 1)
        interleaved = gathers ? chunk_batches : neighbours;
}

void Plan::skip_padding() {
    programs = {c.program.code};
    if (!skips_padding || wraps) return;
    const auto nh = static_cast<Index>(c.row_taps.size()), nw = static_cast<Index>(c.column_taps.size());
    std::vector<std::vector<bool>> skipped{std::vector<bool>(c.row_taps.size(), false)};
    Index budget = 1024 + terms / 4;  // instructions
    program_of_row.resize(static_cast<std::size_t>(c.columns.h), 0);
    for (Index row = 0; row < c.columns.h; ++row) {
        std::vector<bool> skip;
        for (const Index tap : c.row_taps) skip.push_back(is_padding(tap, row, *kernel));
        auto found = std::ranges::find(skipped, skip);
        if (found == skipped.end() && budget > 0 && skipped.size() < 0xffff) {
            std::vector<Instruction> code;
            for (const Instruction& i : c.program.code) {
                if (i.op != Op::fused && i.op != Op::rounded) {
                    code.push_back(i);
                    continue;
                }
                for (Index r = i.begin, begin = r; r <= i.end; ++r) {
                    const Index k =
                        r == i.end || c.program.sequence.empty() ? r : c.program.sequence[static_cast<std::size_t>(r)];
                    if (r < i.end && !skip[static_cast<std::size_t>(k / nw % nh)]) continue;
                    if (begin < r) code.push_back({i.op, i.narrow, begin, r});
                    begin = r + 1;
                }
            }
            budget -= static_cast<Index>(code.size());
            programs.push_back(std::move(code));
            skipped.push_back(skip);
            found = skipped.end() - 1;
        }
        if (found != skipped.end())
            program_of_row[static_cast<std::size_t>(row)] = static_cast<std::uint16_t>(found - skipped.begin());
    }
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
    const Index kept_bytes = gathers ? panel_bytes + gathered_bytes : panel_bytes;
    panel_parts = shared_panels ? 1 : divide_up(panels, std::max<Index>(kept_bytes / panel_block, 1));
    chunk_parts = shared_panels ? chunks() : 1;
    if (joins) {
        const Index outputs = unit_groups * divide_up(panels, panel_parts) * width * chunk_h * chunk_w;
        chunk_parts = divide_up(chunks(), std::max<Index>(joined_outputs / outputs, 1));
    }
    // Where the whole dimension is too few units to feed the threads evenly, the other one is cut as well.
    auto feed = [&](Index& parts, Index most) {
        const Index have = panel_parts * chunk_parts * group_parts;
        if (have >= 2 * threads || have % threads == 0) return;
        parts = std::min(most, round_up(parts * divide_up(2 * threads, have), threads));
    };
    feed(panel_parts, panels);
    feed(chunk_parts, chunks());
    units = group_parts * panel_parts * chunk_parts;
    unit_panels = divide_up(panels, panel_parts);
    unit_chunks = divide_up(chunks(), chunk_parts);
    // A panel that meets one chunk only is packed when its turn comes, and is still in the cache then.
    packs_ahead = unit_chunks > 1 && unit_groups == 1;
    kept_panels = packs_ahead ? unit_panels : 1;
}

}  // namespace detconv
