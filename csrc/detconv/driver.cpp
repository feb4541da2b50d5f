#include "driver.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <numeric>
#include <thread>

#include "exact.hpp"

namespace detconv {
namespace {

// Input copied at a time, per thread: half of a small second-level cache, where it is read once per panel.
constexpr Index chunk_bytes = 256 << 10;
// Packed panels kept, per thread: all of them, shared, where they fit; else each thread packs as many at a time for
// itself.
constexpr Index panel_bytes = 2 << 20;

Index divide_up(Index a, Index b) { return (a + b - 1) / b; }
Index round_up(Index a, Index b) { return divide_up(a, b) * b; }

// 64-byte aligned memory that grows and is reused. New memory is +0.
class Buffer {
public:
    template <class T>
    T* at_least(Index count) {
        const auto bytes =
            static_cast<std::size_t>(round_up(checked_multiply(count, sizeof(T), "scratch memory"), 64) + 64);
        if (bytes > size_) {
            memory_.reset(std::aligned_alloc(64, bytes));
            if (!memory_) {
                size_ = 0;
                throw std::bad_alloc();
            }
            std::memset(memory_.get(), 0, bytes);
            size_ = bytes;
        }
        return static_cast<T*>(memory_.get());
    }

private:
    struct Free {
        void operator()(void* p) const { std::free(p); }
    };
    std::unique_ptr<void, Free> memory_;
    std::size_t size_ = 0;
};

const char* offset(const void* base, Index elements, Index size) {
    return static_cast<const char*>(base) + elements * size;
}
char* offset(void* base, Index elements, Index size) { return static_cast<char*>(base) + elements * size; }

// A 1x1 window that moves by one pixel makes one long row of the whole image, if memory lies that way.
void flatten(Contraction& c) {
    if (c.row_taps != std::vector<Index>{0} || c.column_taps != std::vector<Index>{0} || c.step.h != 1 || c.step.w != 1)
        return;
    if (c.image_origin.h != 0 || c.image_origin.w != 0 || c.columns.h != c.image_size.h ||
        c.columns.w != c.image_size.w)
        return;
    if (c.image.h != c.image.w * c.image_size.w || c.output.h != c.output.w * c.columns.w) return;
    c.columns = {1, c.columns.h * c.columns.w};
    c.image_size = c.columns;
}

// A rectangle of columns whose taps fall into one copy of the image (or the image itself).
struct Chunk {
    Index batch, h, w, height, width;
};

// One dimension of a chunk's copy. Its positions are laid out in runs: position q of run r holds image coordinate
// base * step + origin[r] + q * step, so that the columns of a tap lie side by side whatever the step. A dense layout
// has one run for each residue of the taps modulo the step; where the taps are far apart (dilation), one run a tap is
// shorter.
struct Axis {
    Index step = 1, extra = 0;         // a run has `extra` positions more than the chunk has columns
    std::vector<Index> origin;         // of each run, in tap coordinates
    std::vector<Index> run, position;  // of each tap, for the chunk's first column

    Axis(const std::vector<Index>& taps, Index given_step, Index columns) : step(columns > 1 ? given_step : 1) {
        for (const Index tap : taps) {
            std::size_t r = 0;
            while (r < origin.size() && (tap - origin[r]) % step != 0) ++r;
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
    // Where tap i of the first column is, in a copy for so many columns.
    Index at(Index i, Index columns) const {
        const auto tap = static_cast<std::size_t>(i);
        return run[tap] * run_length(columns) + position[tap];
    }
};

// What one call decides before it runs. Nothing in it can change a bit of the result.
class Plan {
public:
    Plan(const Contraction& contraction, const Execution& execution);

    const Contraction& c;
    const TileKernel* kernel = nullptr;
    bool in_place = false;
    Index terms;
    Index term_size, element_size, image_size, panel_size;  // bytes: of T, of the accumulator, of each operand
    bool image_wide, panel_wide;

    Index first_tap_h, first_tap_w, span_h, span_w;  // of the window
    Index chunk_h, chunk_w, chunks_h, chunks_w;
    Axis rows, columns;           // of a chunk's copy
    Index copy_h, copy_w, pitch;  // columns it has room for; elements of one of its rows
    std::vector<Index> taps, position;
    Index tile_row_step;

    Index panels, panel_elements, panel_block;  // per group; block: bytes of a panel with its bias and bounds
    bool shared_panels;
    Index panel_parts, chunk_parts, units;  // per group
    double gamma = 0;

    Index chunks() const { return c.batches * chunks_h * chunks_w; }
    Chunk chunk(Index number) const {
        const Index w = number % chunks_w * chunk_w, h = number / chunks_w % chunks_h * chunk_h;
        return {number / chunks_w / chunks_h, h, w, std::min(chunk_h, c.columns.h - h),
                std::min(chunk_w, c.columns.w - w)};
    }

private:
    bool could_stay_in_place(const TileKernel& k) const;
    double cost(const TileKernel& k, bool stays) const;
    void choose_kernel(const Kernels& kernels);
    void choose_chunks(int threads);
    void lay_out();
    void share_work(int threads);
};

Plan::Plan(const Contraction& contraction, const Execution& execution)
    : c(contraction),
      rows(contraction.row_taps, contraction.step.h, contraction.columns.h),
      columns(contraction.column_taps, contraction.step.w, contraction.columns.w) {
    terms = c.terms();
    term_size = c.is_float32 ? 4 : 8;
    const auto [low_h, high_h] = std::ranges::minmax(c.row_taps);
    const auto [low_w, high_w] = std::ranges::minmax(c.column_taps);
    first_tap_h = low_h, first_tap_w = low_w;
    span_h = high_h - low_h + 1, span_w = high_w - low_w + 1;
    choose_kernel(execution.kernels);
    element_size = kernel->accumulator == Accumulator::wide ? 8 : term_size;
    // contraction.hpp: what is broadcast is stored in the accumulator's type, what is loaded in the terms'.
    const bool wide = element_size != term_size;
    image_wide = wide && kernel->side == Side::rows;
    panel_wide = wide && kernel->side == Side::columns;
    image_size = image_wide ? 8 : term_size;
    panel_size = panel_wide ? 8 : term_size;
    choose_chunks(execution.threads);
    lay_out();
    share_work(execution.threads);
    if (c.certified)
        gamma =
            c.is_float32 ? exact::gamma_wide(terms, c.bias != nullptr) : exact::gamma_twofold(terms, c.bias != nullptr);
}

// Every tap of every column inside the image, columns adjacent, and room to shift a tile that would stick out.
bool Plan::could_stay_in_place(const TileKernel& k) const {
    const bool copies_to_double = c.is_float32 && k.accumulator == Accumulator::wide && k.side == Side::rows;
    return !copies_to_double && c.step.w == 1 && c.image.w == 1 && first_tap_h >= c.image_origin.h &&
           first_tap_w >= c.image_origin.w &&
           first_tap_h + (c.columns.h - 1) * c.step.h + span_h <= c.image_origin.h + c.image_size.h &&
           first_tap_w + c.columns.w - 1 + span_w <= c.image_origin.w + c.image_size.w &&
           c.columns.h >= k.image_rows() && c.columns.w >= k.columns();
}

double Plan::cost(const TileKernel& k, bool stays) const {
    double fused = 0, rounded = 0;
    for (const Instruction& i : c.program.code) {
        if (i.op == Op::fused) fused += static_cast<double>(i.end - i.begin);
        if (i.op == Op::rounded) rounded += static_cast<double>(i.end - i.begin);
    }
    const auto tiles = static_cast<double>(divide_up(c.rows, k.rows()) * divide_up(c.columns.h, k.image_rows()) *
                                           divide_up(c.columns.w, k.columns()));
    // About 100 cycles a tile and 4 for each of its vectors go into starting, storing and transposing.
    double cycles = tiles * (fused * k.fused_cycles + rounded * k.rounded_cycles + 100 + 4 * k.vectors * k.broadcasts);
    if (!stays)
        cycles += static_cast<double>(c.planes * rows.length(c.columns.h)) *
                  (20 + 0.3 * static_cast<double>(columns.length(c.columns.w)));
    return cycles;
}

void Plan::choose_kernel(const Kernels& kernels) {
    double best = 0;
    for (const TileKernel& k : kernels.tiles) {
        if (k.accumulator != c.accumulator || k.is_float32 != c.is_float32) continue;
        const bool stays = could_stay_in_place(k);
        const double estimate = cost(k, stays);
        if (kernel == nullptr || estimate < best) kernel = &k, in_place = stays, best = estimate;
    }
    if (kernel == nullptr) throw std::logic_error("no kernel for this accumulator");
}

void Plan::choose_chunks(int threads) {
    const Index tile_h = kernel->image_rows(), tile_w = kernel->columns();
    auto bytes = [&](Index h, Index w) {
        return std::min(rows.length(h), rows.taps() * h) * c.planes * std::min(columns.length(w), columns.taps() * w) *
               image_size;
    };
    // Whole rows where a tile's rows fit; narrower where even those are too many bytes.
    chunk_w = c.columns.w;
    while (chunk_w > tile_w && bytes(tile_h, chunk_w) > 2 * chunk_bytes)
        chunk_w = round_up(divide_up(chunk_w, 2), tile_w);
    chunk_h = std::min(c.columns.h, tile_h);
    while (chunk_h < c.columns.h && bytes(chunk_h + tile_h, chunk_w) <= chunk_bytes) chunk_h += tile_h;
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
    copy_h = round_up(chunk_h, kernel->image_rows()), copy_w = round_up(chunk_w, kernel->columns());
    if (rows.length(copy_h) > rows.taps() * copy_h) rows = rows.apart(c.row_taps);
    if (columns.length(copy_w) > columns.taps() * copy_w) columns = columns.apart(c.column_taps);
    pitch = columns.length(copy_w);
    tile_row_step = in_place ? c.step.h * c.image.h : c.planes * pitch;
    std::vector<Index> by_term;
    by_term.reserve(static_cast<std::size_t>(terms));
    for (Index p = 0; p < c.planes; ++p)
        for (Index i = 0; i < rows.taps(); ++i)
            for (Index j = 0; j < columns.taps(); ++j)
                by_term.push_back(in_place ? p * c.image.plane + c.row_taps[static_cast<std::size_t>(i)] * c.image.h +
                                                 c.column_taps[static_cast<std::size_t>(j)]
                                           : (rows.at(i, copy_h) * c.planes + p) * pitch + columns.at(j, copy_w));
    const auto& sequence = c.program.sequence;
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
}

void Plan::share_work(int threads) {
    const Index width = kernel->rows();
    panels = divide_up(c.rows, width);
    panel_elements = checked_multiply(terms, width, "a packed panel");
    panel_block = round_up(panel_elements * panel_size, 64) + 3 * round_up(width * 8, 64);
    shared_panels = checked_multiply(panels * c.groups, panel_block, "packed panels") <= panel_bytes * threads;
    // A unit is a range of panels against a range of chunks: for every chunk, all panels of the range.
    panel_parts = shared_panels ? 1 : divide_up(panels, std::max<Index>(panel_bytes / panel_block, 1));
    chunk_parts = shared_panels ? chunks() : 1;
    // Where the whole dimension is too few units to feed the threads evenly, the other one is cut as well.
    auto feed = [&](Index& parts, Index most) {
        const Index have = panel_parts * chunk_parts * c.groups;
        if (have >= 2 * threads || have % threads == 0) return;
        parts = std::min(most, round_up(parts * divide_up(2 * threads, have), threads));
    };
    feed(panel_parts, panels);
    feed(chunk_parts, chunks());
    units = c.groups * panel_parts * chunk_parts;
}

// A packed panel, and behind it the bias and the error bounds of its rows.
struct Panel {
    char* data;
    void* bias;  // in the accumulator's type
    double *row_bound, *bias_bound;

    Panel(void* block, const Plan& plan)
        : data(static_cast<char*>(block)),
          bias(data + round_up(plan.panel_elements * plan.panel_size, 64)),
          row_bound(static_cast<double*>(bias) + round_up(plan.kernel->rows(), 8)),
          bias_bound(row_bound + round_up(plan.kernel->rows(), 8)) {}
};

double read(const void* data, Index index, bool is_float32) {
    return is_float32 ? static_cast<double>(static_cast<const float*>(data)[index])
                      : static_cast<const double*>(data)[index];
}

void write(void* data, Index index, bool is_float32, double value) {
    if (is_float32)
        static_cast<float*>(data)[index] = static_cast<float>(value);
    else
        static_cast<double*>(data)[index] = value;
}

// The outputs of a tile that are wanted: rows from 0, columns from (h, w).
struct Wanted {
    int rows, h, w, image_rows, columns;
};

// One thread's share of a call.
class Worker {
public:
    Worker(const Plan& plan, const Kernels& kernels, parallel::Control& control, int thread)
        : plan_(plan), c_(plan.c), kernel_(*plan.kernel), kernels_(kernels), control_(control), thread_(thread) {
        const Index outputs = 2 * kernel_.outputs();  // Twofold has two parts
        totals_ = totals_buffer_.at_least<double>(outputs);
        if (kernel_.rescue) rescued_ = rescue_buffer_.at_least<double>(outputs);
        stack_ = stack_buffer_.at_least<double>(std::max(c_.program.depth, c_.rescue.depth) * outputs);
        if (c_.certified) uncertain_ = uncertain_buffer_.at_least<std::uint8_t>(outputs);
    }

    void pack(Index group, Index number, const Panel& panel) const;
    char* private_panels(Index count) { return panel_buffer_.at_least<char>(count * plan_.panel_block); }
    void load(Index group, Index chunk);  // the image of a chunk, if it is not the one at hand
    void multiply(Index group, Index number, const Panel& panel);
    bool should_stop() { return control_.should_stop(thread_ == 0); }

private:
    void copy_image(Index group);
    void measure_columns();
    // Makes the totals of a tile the exact sums rounded once; only the wanted outputs count.
    void certify(const Tile& tile, const Panel& panel, const double* norms, const Wanted& wanted,
                 parallel::Flags flags);
    double recompute(const Tile& tile, int row, int h, int w) const;
    void rescue(Tile tile);
    Index total_index(int row, int h, int w) const {
        return kernel_.side == Side::rows ? (Index(h) * kernel_.per_row + w) * kernel_.rows() + row
                                          : Index(row) * kernel_.vectors * kernel_.lanes + h * kernel_.columns() + w;
    }

    const Plan& plan_;
    const Contraction& c_;
    const TileKernel& kernel_;
    const Kernels& kernels_;
    parallel::Control& control_;
    const int thread_;
    Buffer image_buffer_, panel_buffer_, stack_buffer_, totals_buffer_, rescue_buffer_, uncertain_buffer_,
        squares_buffer_, norms_buffer_;
    double *totals_, *rescued_ = nullptr, *stack_;
    std::uint8_t* uncertain_ = nullptr;

    Index loaded_group_ = -1, loaded_chunk_ = -1;
    Chunk chunk_{};
    const char* image_ = nullptr;  // where the chunk's first column reads a tap of 0
    double* norms_ = nullptr;      // of the chunk's columns
    Index norms_pitch_ = 0;
};

void Worker::pack(Index group, Index number, const Panel& panel) const {
    const int width = kernel_.rows();
    const Index first = number * width;
    const int rows = static_cast<int>(std::min<Index>(width, c_.rows - first));
    const auto nh = static_cast<Index>(c_.row_taps.size()), nw = static_cast<Index>(c_.column_taps.size());
    const Contraction::Operand& p = c_.panel;
    const char* const data = offset(p.data, group * p.group + first * p.row, plan_.term_size);
    PanelSource source{data, p.row, 0, 1, plan_.terms, plan_.position.empty() ? nullptr : plan_.position.data(),
                       rows, width};
    // The longest pieces that are contiguous: all of a row, a plane of it, a row of the plane, single terms.
    auto pack_segments = [&](const PanelSource& s) {
        if (!c_.is_float32)
            kernels_.pack_double(s, reinterpret_cast<double*>(panel.data));
        else if (plan_.panel_wide)
            kernels_.pack_float_wide(s, reinterpret_cast<double*>(panel.data));
        else
            kernels_.pack_float(s, reinterpret_cast<float*>(panel.data));
    };
    const bool plane_contiguous = (nw == 1 || p.w == 1) && (nh == 1 || p.h == nw * p.w) && (nh * nw == 1 || p.w == 1);
    if (plane_contiguous && (c_.planes <= 1 || p.plane == nh * nw)) {
        pack_segments(source);
    } else if (plane_contiguous && nh * nw > 1) {
        source.segments = c_.planes, source.segment_terms = nh * nw, source.segment_stride = p.plane;
        pack_segments(source);
    } else {
        for (Index r = 0; r < plan_.terms; ++r) {
            const Index k = c_.program.sequence.empty() ? r : c_.program.sequence[static_cast<std::size_t>(r)];
            const Index at = k / (nh * nw) * p.plane + k / nw % nh * p.h + k % nw * p.w;
            for (int m = 0; m < width; ++m)
                write(panel.data, r * width + m, plan_.panel_size == 4,
                      m < rows ? read(data, m * p.row + at, c_.is_float32) : 0.0);
        }
    }

    for (int m = 0; m < width; ++m) {
        double bias = 0;
        if (c_.bias && m < rows) bias = read(c_.bias, group * c_.bias_group + (first + m) * c_.bias_row, c_.is_float32);
        write(panel.bias, m, plan_.element_size == 4, bias);
        if (c_.certified) panel.bias_bound[m] = std::abs(bias) * plan_.gamma;
    }
    if (!c_.certified) return;
    if (!c_.is_float32)
        kernels_.maxima_double(reinterpret_cast<const double*>(panel.data), plan_.terms, width, panel.row_bound);
    else if (plan_.panel_wide)
        kernels_.square_sums_double(reinterpret_cast<const double*>(panel.data), plan_.terms, width, panel.row_bound);
    else
        kernels_.square_sums_float(reinterpret_cast<const float*>(panel.data), plan_.terms, width, panel.row_bound);
    for (int m = 0; m < width; ++m)
        panel.row_bound[m] = plan_.gamma * (c_.is_float32 ? exact::norm_from_squares(panel.row_bound[m], plan_.terms)
                                                          : panel.row_bound[m]);
}

void Worker::load(Index group, Index chunk) {
    if (group == loaded_group_ && chunk == loaded_chunk_) return;
    chunk_ = plan_.chunk(chunk);
    if (plan_.in_place) {
        const Contraction::Operand& i = c_.image;
        image_ = offset(i.data,
                        chunk_.batch * i.batch + group * i.group + (chunk_.h * c_.step.h - c_.image_origin.h) * i.h +
                            chunk_.w - c_.image_origin.w,
                        plan_.term_size);
    } else {
        copy_image(group);
    }
    if (c_.certified) measure_columns();
    loaded_group_ = group, loaded_chunk_ = chunk;
}

// Copies what the chunk's taps read to [row][plane][column], with the padding, the rows and columns as Axis says.
void Worker::copy_image(Index group) {
    const Contraction::Operand& source = c_.image;
    const Axis &rows = plan_.rows, &columns = plan_.columns;
    const Index size = plan_.image_size, height = rows.run_length(plan_.copy_h),
                width = columns.run_length(plan_.copy_w);
    const Index row_bytes = c_.planes * plan_.pitch * size;
    char* const target =
        image_buffer_.at_least<char>(checked_multiply(rows.length(plan_.copy_h), row_bytes, "the copy of a chunk"));
    const char* const data = offset(source.data, chunk_.batch * source.batch + group * source.group, plan_.term_size);
    // Positions begin..end of a run lie inside the image; the others, and those beyond the chunk, are +0.
    struct Inside {
        Index first, begin, end;
    };
    auto inside = [](const Axis& axis, Index r, Index base, Index count, Index origin, Index size_of_image) {
        const Index first = base * axis.step + axis.origin[static_cast<std::size_t>(r)] - origin;
        const Index positions = axis.run_length(count);
        const Index begin = first < 0 ? std::min(divide_up(-first, axis.step), positions) : 0;
        const Index end = first < size_of_image ? std::min(divide_up(size_of_image - first, axis.step), positions) : 0;
        return Inside{first, begin, std::max(begin, end)};
    };
    for (Index rh = 0; rh < rows.runs(); ++rh) {
        const Inside in_h = inside(rows, rh, chunk_.h, chunk_.height, c_.image_origin.h, c_.image_size.h);
        for (Index q = 0; q < height; ++q) {
            char* const row = target + (rh * height + q) * row_bytes;
            if (q < in_h.begin || q >= in_h.end) {
                std::memset(row, 0, static_cast<std::size_t>(row_bytes));
                continue;
            }
            const Index h = in_h.first + q * rows.step;
            for (Index rw = 0; rw < columns.runs(); ++rw) {
                const Inside in_w = inside(columns, rw, chunk_.w, chunk_.width, c_.image_origin.w, c_.image_size.w);
                const Index count = in_w.end - in_w.begin, stride = source.w * columns.step;
                for (Index p = 0; p < c_.planes; ++p) {
                    char* const to = row + (p * plan_.pitch + rw * width) * size;
                    char* const middle = to + in_w.begin * size;
                    std::memset(to, 0, static_cast<std::size_t>(in_w.begin * size));
                    std::memset(to + in_w.end * size, 0, static_cast<std::size_t>((width - in_w.end) * size));
                    if (count == 0) continue;
                    const Index w = in_w.first + in_w.begin * columns.step;
                    const char* const from =
                        offset(data, p * source.plane + h * source.h + w * source.w, plan_.term_size);
                    if (!c_.is_float32)
                        kernels_.copy_double(reinterpret_cast<const double*>(from), stride, count,
                                             reinterpret_cast<double*>(middle));
                    else if (plan_.image_wide)
                        kernels_.copy_float_wide(reinterpret_cast<const float*>(from), stride, count,
                                                 reinterpret_cast<double*>(middle));
                    else
                        kernels_.copy_float(reinterpret_cast<const float*>(from), stride, count,
                                            reinterpret_cast<float*>(middle));
                }
            }
        }
    }
    image_ = target;
}

// Norms of the windows of the chunk's columns: sums over the planes first, then over the taps of the window.
void Worker::measure_columns() {
    const Index tile_h = kernel_.image_rows(), tile_w = kernel_.columns();
    const Index width = round_up(chunk_.width, tile_w), height = round_up(chunk_.height, tile_h);
    // The image as rows of `length` elements, `planes` of them to be added up; in place it is dense.
    const bool in_place = plan_.in_place;
    const Index row_advance = in_place ? c_.step.h : 1;
    const Index length = in_place ? chunk_.width + plan_.span_w - 1 : plan_.pitch;
    const Index rows = in_place ? (chunk_.height - 1) * c_.step.h + plan_.span_h : plan_.rows.length(plan_.copy_h);
    const Index row_stride = in_place ? c_.image.h : c_.planes * plan_.pitch;
    const Index plane_stride = in_place ? c_.image.plane : plan_.pitch;
    const char* const first =
        in_place ? offset(image_, plan_.first_tap_h * c_.image.h + plan_.first_tap_w, plan_.image_size) : image_;
    double* const sums = squares_buffer_.at_least<double>(rows * length);
    std::fill_n(sums, rows * length, 0.0);
    for (Index row = 0; row < rows; ++row) {
        for (Index p = 0; p < c_.planes; ++p) {
            const char* const from = offset(first, row * row_stride + p * plane_stride, plan_.image_size);
            if (!c_.is_float32)
                kernels_.add_magnitudes_double(reinterpret_cast<const double*>(from), length, sums + row * length);
            else if (plan_.image_wide)
                kernels_.add_squares_double(reinterpret_cast<const double*>(from), length, sums + row * length);
            else
                kernels_.add_squares_float(reinterpret_cast<const float*>(from), length, sums + row * length);
        }
    }
    // A tile that was shifted to stay inside the image starts before the chunk: room for it on the left and above.
    norms_pitch_ = width + tile_w;
    double* const memory = norms_buffer_.at_least<double>((height + tile_h) * norms_pitch_);
    std::fill_n(memory, (height + tile_h) * norms_pitch_, 0.0);
    norms_ = memory + tile_h * norms_pitch_ + tile_w;
    for (Index h = 0; h < chunk_.height; ++h) {
        double* const norms = norms_ + h * norms_pitch_;
        for (Index i = 0; i < plan_.rows.taps(); ++i)
            for (Index j = 0; j < plan_.columns.taps(); ++j) {
                const Index row = in_place ? c_.row_taps[static_cast<std::size_t>(i)] - plan_.first_tap_h
                                           : plan_.rows.at(i, plan_.copy_h);
                const Index column = in_place ? c_.column_taps[static_cast<std::size_t>(j)] - plan_.first_tap_w
                                              : plan_.columns.at(j, plan_.copy_w);
                kernels_.add(sums + (h * row_advance + row) * length + column, chunk_.width, norms);
            }
        for (Index w = 0; w < chunk_.width; ++w)
            norms[w] = c_.is_float32 ? exact::norm_from_squares(norms[w], plan_.terms)
                                     : exact::norm_from_magnitudes(norms[w], plan_.terms);
    }
}

void Worker::multiply(Index group, Index number, const Panel& panel) {
    const Index tile_h = kernel_.image_rows(), tile_w = kernel_.columns();
    const Contraction::Output& out = c_.output;
    const int rows = static_cast<int>(std::min<Index>(kernel_.rows(), c_.rows - number * kernel_.rows()));
    const bool reads_flags = c_.certified || kernel_.rescue;
    char* const output = offset(
        out.data, chunk_.batch * out.batch + group * out.group + number * kernel_.rows() * out.row, plan_.term_size);
    const auto& code = c_.program.code;
    Tile tile{panel.data,
              kernel_.rows(),
              nullptr,
              plan_.taps.data(),
              plan_.tile_row_step,
              code.data(),
              static_cast<Index>(code.size()),
              panel.bias,
              stack_,
              totals_};
    for (Index h = 0; h < chunk_.height; h += tile_h) {
        if (should_stop()) return;
        // In place, a tile that would stick out of the image is shifted back; the outputs it then shares with another
        // tile have the same bits and are not stored twice. In a copy there is room for it to stick out.
        const Index top = plan_.in_place ? std::min(h, c_.columns.h - tile_h - chunk_.h) : h;
        const int skip_h = static_cast<int>(h - top);
        for (Index w = 0; w < chunk_.width; w += tile_w) {
            const Index left = plan_.in_place ? std::min(w, c_.columns.w - tile_w - chunk_.w) : w;
            const int skip_w = static_cast<int>(w - left);
            tile.image = offset(image_, top * plan_.tile_row_step + left, plan_.image_size);
            const Wanted wanted{rows, skip_h, skip_w, static_cast<int>(std::min(tile_h - skip_h, chunk_.height - h)),
                                static_cast<int>(std::min(tile_w - skip_w, chunk_.width - w))};
            if (reads_flags) parallel::Flags::clear();
            kernel_.run(tile);
            if (reads_flags) {
                const parallel::Flags flags = parallel::Flags::read();
                if (c_.certified) certify(tile, panel, norms_ + top * norms_pitch_ + left, wanted, flags);
                // Without a NaN among the terms, only an overflow or an infinite term makes a total that is not finite.
                if (kernel_.rescue && (flags.overflow || flags.invalid)) rescue(tile);
            }
            kernel_.store({offset(totals_, total_index(0, skip_h, skip_w), plan_.element_size),
                           offset(output, (chunk_.h + h) * out.h + (chunk_.w + w) * out.w, plan_.term_size), out.row,
                           out.h, out.w, rows, wanted.image_rows, wanted.columns});
        }
    }
}

void Worker::certify(const Tile& tile, const Panel& panel, const double* norms, const Wanted& wanted,
                     parallel::Flags flags) {
    if (!flags.inexact) return;  // sums that were never rounded are exact as they stand (integers, quantised data)
    // Twofold's error terms are themselves exact only where nothing underflowed or overflowed.
    const bool sound = c_.is_float32 || !(flags.underflow || flags.overflow || flags.invalid);
    const bool certain = kernel_.certify({totals_, panel.row_bound, panel.bias_bound, norms, norms_pitch_, uncertain_});
    if (sound && certain) return;
    for (int row = 0; row < wanted.rows; ++row)
        for (int h = wanted.h; h < wanted.h + wanted.image_rows; ++h)
            for (int w = wanted.w; w < wanted.w + wanted.columns; ++w) {
                const Index at = total_index(row, h, w);
                if (!sound || uncertain_[at]) totals_[at] = recompute(tile, row, h, w);
            }
}

double Worker::recompute(const Tile& tile, int row, int h, int w) const {
    auto sum = [&]<class T>(exact::Superaccumulator<T> accumulator) -> double {
        const char* const image = offset(tile.image, h * tile.row_step + w, plan_.image_size);
        for (Index r = 0; r < plan_.terms; ++r)
            accumulator.add_product(
                static_cast<T>(read(tile.panel, r * tile.panel_stride + row, plan_.panel_size == 4)),
                static_cast<T>(read(image, tile.taps[r], plan_.image_size == 4)));
        accumulator.add(static_cast<T>(read(tile.bias, row, plan_.element_size == 4)));
        return accumulator.rounded();
    };
    return c_.is_float32 ? sum(exact::Superaccumulator<float>()) : sum(exact::Superaccumulator<double>());
}

void Worker::rescue(Tile tile) {
    tile.code = c_.rescue.code.data();
    tile.code_size = static_cast<Index>(c_.rescue.code.size());
    tile.totals = rescued_;
    kernel_.rescue(tile);
    for (int i = 0; i < kernel_.outputs(); ++i)
        if (!std::isfinite(read(totals_, i, c_.is_float32)))
            write(totals_, i, c_.is_float32, read(rescued_, i, c_.is_float32));
}

enum PanelState : int { unpacked, packing, packed };

}  // namespace

void run(Contraction contraction, const Execution& execution) {
    if (contraction.batches * contraction.groups * contraction.rows * contraction.columns.h * contraction.columns.w ==
        0)
        return;
    flatten(contraction);
    const Plan plan(contraction, execution);
    const Index group_panels = plan.panels * contraction.groups;

    Buffer shared;
    char* const blocks = plan.shared_panels ? shared.at_least<char>(group_panels * plan.panel_block) : nullptr;
    const auto states =
        std::make_unique<std::atomic<int>[]>(plan.shared_panels ? static_cast<std::size_t>(group_panels) : 0);

    // Starting a thread costs about as much as 2^16 terms.
    const Index work = plan.terms * contraction.rows * contraction.columns.h * contraction.columns.w;
    const Index worth =
        work >> 16 >= execution.threads ? execution.threads : work * contraction.batches * contraction.groups >> 16;
    const int threads = static_cast<int>(std::clamp<Index>(std::min(worth, plan.units), 1, execution.threads));
    parallel::Control control(execution.interrupted);
    std::atomic<Index> next{0};

    parallel::run(threads, control, [&](int thread) {
        Worker worker(plan, execution.kernels, control, thread);
        // The first thread to need a shared panel packs it; another that needs it meanwhile waits.
        auto shared_panel = [&](Index group, Index number) {
            const Index id = group * plan.panels + number;
            const Panel panel(blocks + id * plan.panel_block, plan);
            std::atomic<int>& state = states[static_cast<std::size_t>(id)];
            int expected = unpacked;
            if (state.load(std::memory_order_acquire) != packed) {
                if (state.compare_exchange_strong(expected, packing, std::memory_order_acq_rel)) {
                    worker.pack(group, number, panel);
                    state.store(packed, std::memory_order_release);
                } else {
                    while (state.load(std::memory_order_acquire) != packed && !control.stopped())
                        std::this_thread::yield();
                }
            }
            return panel;
        };

        const Index most_panels = plan.shared_panels ? 0 : divide_up(plan.panels, plan.panel_parts);
        char* const own_blocks = worker.private_panels(most_panels);
        auto private_panel = [&](Index i) { return Panel(own_blocks + i * plan.panel_block, plan); };

        for (Index unit; (unit = next.fetch_add(1, std::memory_order_relaxed)) < plan.units;) {
            const Index chunk_part = unit % plan.chunk_parts, rest = unit / plan.chunk_parts;
            const Index panel_part = rest % plan.panel_parts, group = rest / plan.panel_parts;
            const Index first_panel = plan.panels * panel_part / plan.panel_parts,
                        last_panel = plan.panels * (panel_part + 1) / plan.panel_parts;
            const Index first_chunk = plan.chunks() * chunk_part / plan.chunk_parts,
                        last_chunk = plan.chunks() * (chunk_part + 1) / plan.chunk_parts;
            if (!plan.shared_panels)
                for (Index i = first_panel; i < last_panel; ++i) worker.pack(group, i, private_panel(i - first_panel));
            for (Index chunk = first_chunk; chunk < last_chunk; ++chunk) {
                worker.load(group, chunk);
                for (Index i = 0; i < last_panel - first_panel; ++i) {
                    // Every unit starts at another panel, so that the threads pack different ones.
                    const Index turn = plan.shared_panels ? (i + unit) % (last_panel - first_panel) : i;
                    const Panel panel =
                        plan.shared_panels ? shared_panel(group, first_panel + turn) : private_panel(turn);
                    if (worker.should_stop()) return;
                    worker.multiply(group, first_panel + turn, panel);
                }
            }
        }
    });
}

}  // namespace detconv
