#include "worker.hpp"

#include <cmath>
#include <cstring>
#include <numeric>

#include "exact.hpp"

namespace detconv {
namespace {

const char* offset(const void* base, Index elements, Index size) {
    return static_cast<const char*>(base) + elements * size;
}
char* offset(void* base, Index elements, Index size) { return static_cast<char*>(base) + elements * size; }

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

}  // namespace

void Worker::pack(Index group, Index sample, Index number, const Panel& panel) const {
    const int width = kernel_.rows();
    const Index first = number * width;
    const int rows = static_cast<int>(std::min<Index>(width, c_.rows - first));
    const Contraction::Operand& p = c_.panel;
    const PanelTerms& terms = plan_.panel_terms;
    const char* const data = offset(p.data, sample * p.sample + group * p.group + first * p.row, plan_.term_size);
    *panel.finite = true;
    for (Index i = 0; i < terms.pieces; ++i) {
        const PanelSource source{offset(data, i * terms.piece_stride, plan_.term_size),
                                 p.row,
                                 terms.segment_stride,
                                 terms.term_stride,
                                 terms.segments,
                                 terms.segment_terms,
                                 terms.position.empty() ? nullptr : terms.position.data() + i * terms.of_piece(),
                                 rows,
                                 width};
        // Without positions, a piece is where it is.
        char* const to =
            offset(panel.data, terms.position.empty() ? i * terms.of_piece() * width : 0, plan_.element_size);
        *panel.finite &= !c_.is_float32            ? kernels_.pack_double(source, reinterpret_cast<double*>(to))
                         : plan_.element_size == 8 ? kernels_.pack_float_wide(source, reinterpret_cast<double*>(to))
                                                   : kernels_.pack_float(source, reinterpret_cast<float*>(to));
    }

    for (int m = 0; m < width; ++m) {
        double bias = 0;
        if (c_.bias && m < rows) bias = read(c_.bias, group * c_.bias_group + (first + m) * c_.bias_row, c_.is_float32);
        write(panel.bias, m, plan_.element_size == 4, bias);
        if (c_.certified) panel.bias_bound[m] = std::abs(bias) * plan_.gamma;
    }
    if (!c_.certified) return;
    if (!c_.is_float32)
        kernels_.maxima_double(reinterpret_cast<const double*>(panel.data), plan_.terms, width, panel.row_norm);
    else
        kernels_.square_sums_double(reinterpret_cast<const double*>(panel.data), plan_.terms, width, panel.row_norm);
    if (c_.is_float32) kernels_.bound_roots(panel.row_norm, width, exact::rounded_up(plan_.terms));
}

void Worker::load(Index group, Index sample, Index chunk) {
    const Load wanted{group, sample, chunk};
    if (wanted == loaded_) return;
    chunk_ = plan_.chunk(chunk);
    if (plan_.in_place) {
        const Contraction::Operand& i = c_.image;
        image_ = offset(i.data,
                        sample * i.sample + chunk_.batch * i.batch + group * i.group +
                            (chunk_.h * c_.step.h - c_.image_origin.h) * i.h + chunk_.w - c_.image_origin.w,
                        plan_.term_size);
    } else if (plan_.gathers) {
        gather_images(group, sample);
    } else {
        // The first of the neighbours, and which of them is wanted.
        Load first = wanted;
        Index batch = chunk_.batch;
        const Index which = (plan_.neighbours_are_groups ? group : batch) % plan_.neighbours;
        if (plan_.neighbours_are_groups)
            first.group -= which;
        else
            first.chunk -= which, batch -= which;
        if (first != copied_) {
            const Index left = plan_.neighbours_are_groups ? c_.groups - first.group : c_.batches - batch;
            copy_ = copy_images(first.group, sample, batch, std::min(plan_.neighbours, left));
            copied_ = first;
        }
        image_ = copy_ + which * c_.planes * plan_.plane_size * plan_.element_size;
    }
    if (c_.certified) measure_columns();
    loaded_ = wanted;
}

// Copies what the chunk's taps read to [image][plane][row][column], with the padding, the rows and columns as Axis
// says.
char* Worker::copy_images(Index group, Index sample, Index batch, Index count) {
    const Contraction::Operand& source = c_.image;
    const Axis &rows = plan_.rows, &columns = plan_.columns;
    const Index size = plan_.element_size, height = rows.run_length(plan_.copy_h),
                width = columns.run_length(plan_.copy_w);
    // Tiles that wrap read beyond the last row, and gathering reads whole vectors.
    const Index beyond = plan_.gathers ? 64 / size : plan_.wraps ? kernel_.columns() : 0;
    const Index image_size = checked_multiply(c_.planes, plan_.plane_size, "the copy of a chunk");
    char* const target = image_buffer_.at_least<char>((plan_.neighbours * image_size + beyond) * size);
    std::memset(target + count * image_size * size, 0, static_cast<std::size_t>(beyond * size));
    const char* const data =
        offset(source.data, sample * source.sample + batch * source.batch + group * source.group, plan_.term_size);
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
    // Where a chunk is a whole image, the padding of the one before is that of this one.
    const bool has_padding = count <= padded_ && plan_.chunks_h == 1 && plan_.chunks_w == 1;
    padded_ = std::max(padded_, count);
    for (Index rh = 0; rh < rows.runs(); ++rh) {
        const Inside in_h = inside(rows, rh, chunk_.h, chunk_.height, c_.image_origin.h, c_.image_size.h);
        for (Index rw = 0; rw < columns.runs(); ++rw) {
            const Inside in_w = inside(columns, rw, chunk_.w, chunk_.width, c_.image_origin.w, c_.image_size.w);
            const Index h = in_h.first + in_h.begin * rows.step, w = in_w.first + in_w.begin * columns.step;
            PlaneSource plane{nullptr,
                              source.h * rows.step,
                              source.w * columns.step,
                              in_h.begin,
                              in_h.end,
                              height,
                              in_w.begin,
                              in_w.end,
                              width,
                              plan_.pitch,
                              c_.planes,
                              source.plane,
                              plan_.plane_size};
            Index first = rh * height * plan_.pitch + rw * width;
            if (has_padding) {
                first += plane.first_row * plan_.pitch + plane.first;
                plane.rows = plane.last_row -= plane.first_row, plane.first_row = 0;
                plane.width = plane.last -= plane.first, plane.first = 0;
            }
            // Of neighbours, one plane of each at a time.
            if (count > 1) plane.planes = count, plane.plane_stride = 1, plane.plane_pitch = image_size;
            for (Index p = 0; p < (count > 1 ? c_.planes : 1); ++p) {
                char* const to = target + (p * plan_.plane_size + first) * size;
                plane.data = offset(data, p * source.plane + h * source.h + w * source.w, plan_.term_size);
                if (!c_.is_float32)
                    kernels_.copy_double(plane, reinterpret_cast<double*>(to));
                else if (size == 8)
                    kernels_.copy_float_wide(plane, reinterpret_cast<double*>(to));
                else
                    kernels_.copy_float(plane, reinterpret_cast<float*>(to));
            }
        }
    }
    return target;
}

// Copies the images of a chunk, one after the other, and from each the columns of every term:
// [term][batch][row][column].
void Worker::gather_images(Index group, Index sample) {
    const Index pitch = plan_.gathered_pitch, size = plan_.element_size, area = chunk_.height * chunk_.width;
    char* const target = gathered_buffer_.at_least<char>(plan_.terms * pitch * size);
    for (Index first = 0; first < chunk_.batches; first += plan_.neighbours) {
        const Index count = std::min(plan_.neighbours, chunk_.batches - first);
        const char* const images = copy_images(group, sample, chunk_.batch + first, count);
        for (Index n = 0; n < count; ++n) {
            const GatherSource source{offset(images, n * c_.planes * plan_.plane_size, size),
                                      plan_.sources.data(),
                                      plan_.terms,
                                      chunk_.height,
                                      chunk_.width,
                                      plan_.pitch};
            char* const to = target + (first + n) * area * size;
            if (size == 8)
                kernels_.gather_double(source, reinterpret_cast<double*>(to), pitch);
            else
                kernels_.gather_float(source, reinterpret_cast<float*>(to), pitch);
        }
    }
    image_ = target;
    if (!c_.certified && !c_.rescued) return;
    // Where flags are read, a tile that sticks out must not raise any.
    const Index used = chunk_.batches * area;
    for (Index r = 0; r < plan_.terms; ++r)
        std::memset(target + (r * pitch + used) * size, 0, static_cast<std::size_t>((pitch - used) * size));
}

// Norms of the windows of the chunk's columns: sums over the planes, then over the rows and the columns of a window.
void Worker::measure_columns() {
    const Index tile_h = kernel_.image_rows(), tile_w = kernel_.columns();
    // The image as rows of `length` elements, `planes` of them to be added up; in place it is dense.
    const bool in_place = plan_.in_place;
    const Index row_advance = in_place ? c_.step.h : 1;
    const Index length = in_place ? chunk_.width + plan_.span_w - 1 : plan_.pitch;
    const Index rows = in_place ? (chunk_.height - 1) * c_.step.h + plan_.span_h : plan_.rows.length(plan_.copy_h);
    if (plan_.gathers) {  // the window of a column is a column of the copy
        const Index count = plan_.gathered_pitch;
        norms_ = norms_buffer_.at_least<double>(count);
        std::fill_n(norms_, count, 0.0);
        for (Index r = 0; r < plan_.terms; ++r)
            (c_.is_float32 ? kernels_.add_squares_double : kernels_.add_magnitudes_double)(
                reinterpret_cast<const double*>(image_) + r * count, count, norms_);
        (c_.is_float32 ? kernels_.bound_roots : kernels_.scale)(norms_, count, exact::rounded_up(plan_.terms));
        norms_pitch_ = 0;
        return;
    }
    // Rows of columns that lie side by side are measured as one; those between them are not wanted.
    const Index lines = row_advance == 1 ? 1 : chunk_.height, line_rows = chunk_.height / lines;
    const Index line = (line_rows - 1) * length + chunk_.width;
    double* const sums = squares_buffer_.at_least<double>((rows + line_rows) * length);
    double* const window_rows = sums + rows * length;
    std::fill_n(sums, rows * length, 0.0);
    auto add = c_.is_float32 ? kernels_.add_squares_double : kernels_.add_magnitudes_double;
    if (in_place) {
        const double* const first =
            reinterpret_cast<const double*>(image_) + plan_.first_tap_h * c_.image.h + plan_.first_tap_w;
        for (Index row = 0; row < rows; ++row)
            for (Index p = 0; p < c_.planes; ++p)
                add(first + row * c_.image.h + p * c_.image.plane, length, sums + row * length);
    } else {
        for (Index p = 0; p < c_.planes; ++p)
            add(reinterpret_cast<const double*>(image_) + p * plan_.plane_size, rows * length, sums);
    }
    // A tile that was shifted to stay inside the image starts before the chunk, and one that sticks out ends behind it:
    // room for both. What is not wanted may have any norm.
    norms_pitch_ = plan_.wraps ? plan_.row_step : length;
    const Index room = tile_h * norms_pitch_ + tile_w, columns = chunk_.height * norms_pitch_;
    double* const memory = norms_buffer_.at_least<double>(columns + 2 * room);
    norms_ = memory + room;
    std::fill(memory, norms_, 0.0);
    std::fill_n(norms_ + columns - norms_pitch_, norms_pitch_ + room, 0.0);
    auto bound = c_.is_float32 ? kernels_.bound_roots : kernels_.scale;
    // Many taps and few columns (a weight gradient): the windows nearly are the image, and its norm bounds them all.
    if (plan_.rows.taps() * plan_.columns.taps() > chunk_.height * chunk_.width) {
        double whole = std::accumulate(sums, sums + rows * length, 0.0);
        bound(&whole, 1, exact::rounded_up(rows * length + c_.planes));
        std::fill_n(norms_, columns, whole);
        return;
    }
    std::vector<Index> row_offsets, column_offsets;
    for (Index i = 0; i < plan_.rows.taps(); ++i)
        row_offsets.push_back(length * (in_place ? c_.row_taps[static_cast<std::size_t>(i)] - plan_.first_tap_h
                                                 : plan_.rows.at(i, plan_.copy_h)));
    for (Index j = 0; j < plan_.columns.taps(); ++j)
        column_offsets.push_back(in_place ? c_.column_taps[static_cast<std::size_t>(j)] - plan_.first_tap_w
                                          : plan_.columns.at(j, plan_.copy_w));
    for (Index i = 0; i < lines; ++i) {
        double* const norms = norms_ + i * norms_pitch_;
        kernels_.add_shifted_double(sums + i * row_advance * length, row_offsets.data(), plan_.rows.taps(),
                                    line_rows * length, window_rows);
        kernels_.add_shifted_double(window_rows, column_offsets.data(), plan_.columns.taps(), line, norms);
        bound(norms, line, exact::rounded_up(plan_.terms));
    }
}

// Asks for the lines that a tile will be stored to, from beyond the second-level cache mostly: they come while it is
// computed (3x3 layers take 1 to 4% less time, depthwise ones of a batch 14 to 25%).
void Worker::fetch(const char* first, const Wanted& wanted, const Contraction::Output& out) const {
    constexpr Index line = 64;
    const Index last = wanted.columns * plan_.term_size - 1;
    for (int m = 0; m < wanted.rows; ++m)
        for (int h = 0; h < wanted.image_rows; ++h) {
            const char* const row = offset(first, m * out.row + h * out.h, plan_.term_size);
            for (Index at = 0; at < last; at += line) __builtin_prefetch(row + at, 1);
            __builtin_prefetch(row + last, 1);
        }
}

void Worker::multiply(Index number, const Panel& panel, const Contraction::Output& out) {
    const Index tile_h = kernel_.image_rows(), tile_w = kernel_.columns(), row_step = plan_.row_step;
    const int rows = static_cast<int>(std::min<Index>(kernel_.rows(), c_.rows - number * kernel_.rows()));
    const bool reads_flags = c_.certified || c_.rescued;
    // Not where tiles wrap (short pieces of lines: 5% slower), nor for 1x1 layers, whose tiles are short and read much
    // from beyond the cache themselves (3% slower).
    const bool fetches = out.w == 1 && !plan_.wraps && (kernel_.side == Side::rows || c_.rows == 1);
    bool special_bias = false;
    if (c_.rescued)
        for (int m = 0; m < rows; ++m) special_bias |= !std::isfinite(read(panel.bias, m, c_.is_float32));
    Tile tile{panel.data, kernel_.rows(), nullptr, plan_.taps.data(), row_step, nullptr, 0,
              panel.bias, stack_,         totals_};
    // Where tiles wrap, the chunk is one long row. In place, a tile that would stick out of the image is shifted back;
    // the outputs it then shares with another tile have the same bits and are not stored twice. In a copy there is room
    // for it to stick out.
    const bool wraps = plan_.wraps, in_place = plan_.in_place;
    const Index chunk_rows = chunk_.batches * chunk_.height, height = wraps ? 1 : chunk_.height;
    const Index width = (chunk_rows - height) * row_step + chunk_.width;
    const Index last_top = c_.columns.h - tile_h - chunk_.h;
    const Index last_left = (wraps ? (c_.columns.h - 1 - chunk_.h) * row_step : -chunk_.w) + c_.columns.w - tile_w;
    for (Index h = 0; h < height; h += tile_h) {
        if (should_stop()) return;
        const Index top = in_place && !wraps ? std::min(h, last_top) : h;
        const int skip_h = static_cast<int>(h - top);
        const auto& code = plan_.program(chunk_.h + top, *panel.finite);
        tile.code = code.data(), tile.code_size = static_cast<Index>(code.size());
        for (Index w = 0; w < width; w += tile_w) {
            const Index left = in_place ? std::min(w, last_left) : w;
            const int skip_w = static_cast<int>(w - left);
            tile.image = offset(image_, top * row_step + left, plan_.element_size);
            const Wanted wanted{rows, skip_h, skip_w, static_cast<int>(std::min(tile_h - skip_h, height - h)),
                                static_cast<int>(std::min(tile_w - skip_w, width - w))};
            if (fetches) fetch(offset(out.data, h * out.h + w, plan_.term_size), wanted, out);
            if (reads_flags) parallel::Flags::clear();
            kernel_.run(tile);
            if (reads_flags) {
                const parallel::Flags flags = parallel::Flags::read();
                if (c_.certified) certify(tile, panel, norms_ + top * norms_pitch_ + left, wanted, flags);
                // Without a NaN among the terms, only an overflow or an infinity makes a total that is not finite; but
                // an infinite bias that is added last raises no flag.
                if (c_.rescued && (flags.overflow || flags.invalid || special_bias)) rescue(tile);
            }
            // A tile that wraps has a piece of each row that it meets, and between them columns that are not wanted.
            for (Index at = w, end = w + wanted.columns; at < end;) {
                const Index row = wraps ? at / row_step : h, column = wraps ? at % row_step : at;
                const Index piece = std::min(end - at, chunk_.width - column);
                if (piece > 0)
                    kernel_.store(
                        {offset(totals_, total_index(0, skip_h, static_cast<int>(at - left)), plan_.element_size),
                         offset(out.data,
                                row / chunk_.height * out.batch + row % chunk_.height * out.h + column * out.w,
                                plan_.term_size),
                         out.row, out.h, out.w, rows, wanted.image_rows, static_cast<int>(piece), c_.rounding});
                at += wraps ? row_step - column : piece;
            }
        }
    }
}

void Worker::certify(const Tile& tile, const Panel& panel, const double* norms, const Wanted& wanted,
                     parallel::Flags flags) {
    if (!flags.inexact) return;  // sums that were never rounded are exact as they stand (integers, quantised data)
    // Twofold's error terms are themselves exact only where nothing underflowed or overflowed.
    const bool sound = c_.is_float32 || !(flags.underflow || flags.overflow || flags.invalid);
    const bool certain = kernel_.certify(
        {totals_, plan_.gamma, panel.row_norm, panel.bias_bound, norms, norms_pitch_, c_.rounding, uncertain_});
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
        const char* const image = offset(tile.image, h * tile.row_step + w, plan_.element_size);
        for (Index r = 0; r < plan_.terms; ++r)
            accumulator.add_product(
                static_cast<T>(read(tile.panel, r * tile.panel_stride + row, plan_.element_size == 4)),
                static_cast<T>(read(image, tile.taps[r], plan_.element_size == 4)));
        accumulator.add(static_cast<T>(read(tile.bias, row, plan_.element_size == 4)));
        return accumulator.rounded(c_.rounding);
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

}  // namespace detconv
