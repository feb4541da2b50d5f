#include "worker.hpp"

#include <cmath>
#include <cstring>
#include <numeric>
#include <utility>

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

// What starting a tile costs, in its terms.
constexpr Index tile_work = 16;
// Elements that are packed or copied at once take about a millisecond.
constexpr Index elements_at_once = 1 << 20;

}  // namespace

void write_outputs(const Plan& plan, const Kernels& kernels, const Chunk& chunk, Index panel,
                   const Contraction::Output& kept, const Contraction::Output& to) {
    const Index first_row = panel * plan.kernel->rows();
    struct Dimension {
        Index count, from, to;
    };
    Dimension m{std::min<Index>(plan.kernel->rows(), plan.c.rows - first_row), kept.row, to.row},
        h{chunk.height, kept.h, to.h}, w{chunk.width, kept.w, to.w};
    // Innermost is what lies side by side in the output; what follows it there without a gap, and where it was kept, is
    // more of the same.
    if (w.count == 1) std::swap(h, w);
    if (w.to != 1 && m.to == 1) std::swap(m, w);
    if (h.from == w.count * w.from && h.to == w.count * w.to) w.count *= std::exchange(h.count, 1);
    PlaneSource planes{.data = nullptr,
                       .row_stride = h.from,
                       .stride = w.from,
                       .first_row = 0,
                       .last_row = h.count,
                       .rows = h.count,
                       .first = 0,
                       .last = w.count,
                       .width = w.count,
                       .pitch = h.to,
                       .planes = m.count,
                       .plane_stride = m.from,
                       .plane_pitch = m.to};
    const bool is_float32 = plan.c.is_float32;
    for (Index batch = 0; batch < chunk.batches; ++batch) {
        planes.data = offset(kept.data, batch * kept.batch, plan.term_size);
        void* const target = offset(to.data, batch * to.batch, plan.term_size);
        if (w.to == 1) {
            kernels.copy(planes, is_float32, target);
            continue;
        }
        for (Index i = 0; i < h.count; ++i)
            for (Index j = 0; j < w.count; ++j)
                for (Index k = 0; k < m.count; ++k)
                    write(target, i * h.to + j * w.to + k * m.to, is_float32,
                          read(planes.data, i * h.from + j * w.from + k * m.from, is_float32));
    }
}

// Packs a piece, if it is a large one a part at a time; tells whether all elements are finite.
bool Worker::pack_terms(const PanelSource& source, char* to) {
    auto pack_part = [&](const PanelSource& part, char* target) {
        return !c_.is_float32            ? kernels_.pack_double(part, reinterpret_cast<double*>(target))
               : plan_.element_size == 8 ? kernels_.pack_float_wide(part, reinterpret_cast<double*>(target))
                                         : kernels_.pack_float(part, reinterpret_cast<float*>(target));
    };
    const Index most = elements_at_once / source.width;
    if (source.segments * source.segment_terms <= most) return pack_part(source, to);
    const Index segments = std::max<Index>(most / source.segment_terms, 1),
                terms = std::min(source.segment_terms, most);
    bool finite = true;
    for (Index segment = 0; segment < source.segments; segment += segments)
        for (Index term = 0; term < source.segment_terms; term += terms) {
            if (should_stop(parallel::work_between_looks)) return finite;
            const Index first = segment * source.segment_terms + term;
            PanelSource part = source;
            part.data =
                offset(source.data, segment * source.segment_stride + term * source.term_stride, plan_.term_size);
            part.segments = std::min(segments, source.segments - segment);
            part.segment_terms = std::min(terms, source.segment_terms - term);
            if (source.position != nullptr) part.position += first;
            const Index target = source.position != nullptr ? 0 : first * source.width;
            finite &= pack_part(part, offset(to, target, plan_.element_size));
        }
    return finite;
}

// The largest magnitude of each row of a panel, or the sum of its squares, if there are many a part at a time.
void Worker::fold_panel(const Panel& panel) {
    const int width = kernel_.rows();
    const Index most = elements_at_once / width;
    const auto* const elements = reinterpret_cast<const double*>(panel.data);
    auto fold = c_.is_float32 ? kernels_.square_sums_double : kernels_.maxima_double;
    fold(elements, std::min(most, plan_.terms), width, panel.row_norm);
    std::vector<double> part;
    for (Index first = most; first < plan_.terms; first += most) {
        if (should_stop(parallel::work_between_looks)) return;
        part.resize(static_cast<std::size_t>(width));
        fold(elements + first * width, std::min(most, plan_.terms - first), width, part.data());
        for (int m = 0; m < width; ++m) {
            const double more = part[static_cast<std::size_t>(m)];
            panel.row_norm[m] = c_.is_float32 ? panel.row_norm[m] + more : std::max(panel.row_norm[m], more);
        }
    }
}

void Worker::pack(Index group, Index sample, Index number, const Panel& panel) {
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
        *panel.finite &= pack_terms(source, to);
        if (should_stop(source.segments * source.segment_terms)) return;
    }

    for (int m = 0; m < width; ++m) {
        double bias = 0;
        if (c_.bias && m < rows) bias = read(c_.bias, group * c_.bias_group + (first + m) * c_.bias_row, c_.is_float32);
        write(panel.bias, m, plan_.element_size == 4, bias);
        if (c_.certified) panel.bias_bound[m] = std::abs(bias) * plan_.gamma;
    }
    if (!c_.certified) return;
    fold_panel(panel);
    if (c_.is_float32) kernels_.bound_roots(panel.row_norm, width, exact::rounded_up(plan_.terms));
    // Zero beside the rows that there are: next to a zero, its bound would be subnormal, which costs a hundred cycles.
    std::fill(panel.row_norm + rows, panel.row_norm + width, 0.0);
}

void Worker::load(Index group, Index sample, Index chunk, Index panel) {
    const Load wanted{group, sample, chunk, c_.diagonal() ? panel : 0};
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
        Index batch = chunk_.batch, row = 0, which, left;
        if (c_.diagonal()) {
            which = panel % plan_.neighbours;
            first.panel -= which;
            row = first.panel * kernel_.rows();
            left = c_.rows - row;
        } else if (plan_.neighbours_are_groups) {
            which = group % plan_.neighbours;
            first.group -= which;
            left = c_.groups - first.group;
        } else if (plan_.columns_are_batches) {
            which = 0, left = chunk_.batches;
        } else {
            which = batch % plan_.neighbours;
            first.chunk -= which, batch -= which;
            left = c_.batches - batch;
        }
        if (first != copied_)
            copy_ = copy_images(first.group, sample, batch, row, std::min(plan_.neighbours * plan_.abreast, left));
        copied_ = first;
        image_ = copy_ + which * c_.planes * plan_.plane_size * plan_.abreast * plan_.element_size;
    }
    measured_ = false;
    if (plan_.bounds_coarsely) measure_chunk();
    loaded_ = wanted;
}

// Copies what the chunk's taps read to [image][plane][row][column], on the diagonal [plane][row][column][image], with
// the padding, the rows and columns as Axis says.
char* Worker::copy_images(Index group, Index sample, Index batch, Index first_row, Index count) {
    const Contraction::Operand& source = c_.image;
    const Axis &rows = plan_.rows, &columns = plan_.columns;
    const Index size = plan_.element_size, height = rows.run_length(plan_.copy_h),
                width = columns.run_length(plan_.copy_w);
    // Tiles that wrap read beyond the last row, and gathering reads whole vectors.
    const Index beyond = plan_.gathers ? 64 / size : plan_.wraps ? kernel_.columns() * plan_.abreast : 0;
    const Index image_size = checked_multiply(c_.planes, plan_.plane_size * plan_.abreast, "the copy of a chunk");
    char* const target = image_buffer_.at_least<char>((plan_.neighbours * image_size + beyond) * size);
    std::memset(target + divide_up(count, plan_.abreast) * image_size * size, 0,
                static_cast<std::size_t>(beyond * size));
    const char* const data = offset(
        source.data, sample * source.sample + batch * source.batch + group * source.group + first_row * source.row,
        plan_.term_size);
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
    // What is left between two planes is read by tiles that wrap. It changes no output, but what an earlier call left
    // there may be subnormal, and each of its products cost a hundred cycles (a 1x1 layer took seven times as long).
    const Index left = plan_.plane_size - rows.length(plan_.copy_h) * plan_.pitch;
    const Index planes = divide_up(count, plan_.abreast) * c_.planes;
    for (Index p = 1; left > 0 && !has_padding && p <= planes; ++p)
        std::memset(target + (p * plan_.plane_size - left) * plan_.abreast * size, 0,
                    static_cast<std::size_t>(left * plan_.abreast * size));
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
            // Of several images, one plane of each at a time.
            const bool abreast = plan_.abreast > 1, several = abreast || count > 1;
            if (several) plane.planes = count, plane.plane_stride = 1, plane.plane_pitch = image_size;
            if (abreast) plane.plane_stride = c_.diagonal() ? source.row : source.batch;
            const Index at_once =
                several ? 1 : std::max<Index>(elements_at_once / std::max<Index>(plane.rows * plane.width, 1), 1);
            for (Index p = 0; p < c_.planes; p += at_once) {
                if (!several) plane.planes = std::min(at_once, c_.planes - p);
                if (should_stop(plane.planes * plane.rows * plane.width / 16 + 1)) return target;
                void* const to = target + (p * plan_.plane_size + first) * plan_.abreast * size;
                plane.data = offset(data, p * source.plane + h * source.h + w * source.w, plan_.term_size);
                auto copy = [&]<class T>(auto copy_planes, auto copy_abreast, T* copied) {
                    abreast ? copy_abreast({plane, plan_.abreast}, copied) : copy_planes(plane, copied);
                };
                if (!c_.is_float32)
                    copy(kernels_.copy_double, kernels_.copy_abreast_double, static_cast<double*>(to));
                else if (size == 8)
                    copy(kernels_.copy_float_wide, kernels_.copy_abreast_float_wide, static_cast<double*>(to));
                else
                    copy(kernels_.copy_float, kernels_.copy_abreast_float, static_cast<float*>(to));
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
        const char* const images = copy_images(group, sample, chunk_.batch + first, 0, count);
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
    // A tile that sticks out must not raise flags, nor meet what is subnormal.
    const Index used = chunk_.batches * area;
    for (Index r = 0; r < plan_.terms; ++r)
        std::memset(target + (r * pitch + used) * size, 0, static_cast<std::size_t>((pitch - used) * size));
}

// One bound for the norms of all windows of the chunk: as if every term were the largest.
void Worker::measure_chunk() {
    const Index plane = plan_.rows.length(plan_.copy_h) * plan_.pitch * plan_.abreast;
    double largest = 0;
    for (Index p = 0; p < c_.planes && !should_stop(plane / 16 + 1); ++p)
        largest = std::max(largest,
                           kernels_.largest_magnitude_double(
                               reinterpret_cast<const double*>(image_) + p * plan_.plane_size * plan_.abreast, plane));
    const auto terms = static_cast<double>(plan_.terms);
    const Index count = kernel_.columns() * plan_.abreast;
    coarse_norms_ = coarse_norms_buffer_.at_least<double>(count);
    std::fill_n(coarse_norms_, count, largest * (c_.is_float32 ? std::sqrt(terms) : terms) * exact::rounded_up(2));
}

// Norms of the windows of the chunk's columns: sums over the planes, then over the rows and the columns of a window.
void Worker::measure_columns() {
    const Index tile_h = kernel_.image_rows(), tile_w = kernel_.columns();
    // The image as rows of `length` elements, `planes` of them to be added up; in place it is dense.
    const bool in_place = plan_.in_place;
    const Index row_advance = in_place ? c_.step.h : 1, abreast = plan_.abreast;
    const Index length = in_place ? chunk_.width + plan_.span_w - 1 : plan_.pitch * abreast;
    const Index rows = in_place ? (chunk_.height - 1) * c_.step.h + plan_.span_h : plan_.rows.length(plan_.copy_h);
    if (plan_.gathers) {  // the window of a column is a column of the copy
        const Index count = plan_.gathered_pitch;
        norms_ = norms_buffer_.at_least<double>(count);
        std::fill_n(norms_, count, 0.0);
        for (Index r = 0; r < plan_.terms && !should_stop(count / 16 + 1); ++r)
            (c_.is_float32 ? kernels_.add_squares_double : kernels_.add_magnitudes_double)(
                reinterpret_cast<const double*>(image_) + r * count, count, norms_);
        (c_.is_float32 ? kernels_.bound_roots : kernels_.scale)(norms_, count, exact::rounded_up(plan_.terms));
        norms_pitch_ = 0;
        return;
    }
    // Rows of columns that lie side by side are measured as one; those between them are not wanted.
    const Index lines = row_advance == 1 ? 1 : chunk_.height, line_rows = chunk_.height / lines;
    const Index line = (line_rows - 1) * length + chunk_.width * abreast;
    double* const sums = squares_buffer_.at_least<double>((rows + line_rows) * length);
    double* const window_rows = sums + rows * length;
    std::fill_n(sums, rows * length, 0.0);
    auto add = c_.is_float32 ? kernels_.add_squares_double : kernels_.add_magnitudes_double;
    if (in_place) {
        const double* const first =
            reinterpret_cast<const double*>(image_) + plan_.first_tap_h * c_.image.h + plan_.first_tap_w;
        for (Index row = 0; row < rows; ++row)
            for (Index p = 0; p < c_.planes && !should_stop(length / 16 + 1); ++p)
                add(first + row * c_.image.h + p * c_.image.plane, length, sums + row * length);
    } else {
        for (Index p = 0; p < c_.planes && !should_stop(rows * length / 16 + 1); ++p)
            add(reinterpret_cast<const double*>(image_) + p * plan_.plane_size * abreast, rows * length, sums);
    }
    // A tile that was shifted to stay inside the image starts before the chunk, and one that sticks out ends behind it:
    // room for both. What is not wanted may have any norm.
    norms_pitch_ = plan_.wraps ? plan_.row_step * abreast : length;
    const Index room = tile_h * norms_pitch_ + tile_w * abreast, columns = chunk_.height * norms_pitch_;
    double* const memory = norms_buffer_.at_least<double>(columns + 2 * room);
    norms_ = memory + room;
    std::fill(memory, norms_, 0.0);
    std::fill_n(norms_ + columns - norms_pitch_, norms_pitch_ + room, 0.0);
    auto bound = c_.is_float32 ? kernels_.bound_roots : kernels_.scale;
    // Many taps and few columns (a weight gradient): the windows nearly are the image, and its norm bounds them all.
    if (plan_.rows.taps() * plan_.columns.taps() > chunk_.height * chunk_.width) {
        for (Index left = rows * length / abreast; left > 1; left -= left / 2)  // the later half onto the earlier one
            kernels_.join_double(sums + (left - left / 2) * abreast, left / 2 * abreast, sums);
        bound(sums, abreast, exact::rounded_up(rows * length + c_.planes));
        for (Index i = 0; i < columns; i += abreast) std::copy_n(sums, abreast, norms_ + i);
        return;
    }
    std::vector<Index> row_offsets, column_offsets;
    for (Index i = 0; i < plan_.rows.taps(); ++i)
        row_offsets.push_back(length * (in_place ? c_.row_taps[static_cast<std::size_t>(i)] - plan_.first_tap_h
                                                 : plan_.rows.at(i, plan_.copy_h)));
    for (Index j = 0; j < plan_.columns.taps(); ++j)
        column_offsets.push_back(in_place ? c_.column_taps[static_cast<std::size_t>(j)] - plan_.first_tap_w
                                          : plan_.columns.at(j, plan_.copy_w) * abreast);
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
    const bool along_rows = out.row == 1;
    const Index pieces = along_rows ? wanted.columns : wanted.rows, stride = along_rows ? out.w : out.row;
    const Index last = (along_rows ? wanted.rows : wanted.columns) * plan_.term_size - 1;
    for (Index piece = 0; piece < pieces; ++piece)
        for (int h = 0; h < wanted.image_rows; ++h) {
            const char* const start = offset(first, piece * stride + h * out.h, plan_.term_size);
            for (Index at = 0; at < last; at += line) __builtin_prefetch(start + at, 1);
            __builtin_prefetch(start + last, 1);
        }
}

void Worker::multiply(Index number, const Panel& panel, const Contraction::Output& out) {
    const int rows = static_cast<int>(std::min<Index>(kernel_.rows(), c_.rows - number * kernel_.rows()));
    has_special_bias_ = false;
    if (c_.rescued)
        for (int m = 0; m < rows; ++m) has_special_bias_ |= !std::isfinite(read(panel.bias, m, c_.is_float32));
    if (plan_.columns_are_batches)
        multiply_batches(number, rows, panel, out);
    else
        multiply_image(rows, panel, out);
}

void Worker::multiply_image(int rows, const Panel& panel, const Contraction::Output& out) {
    const Index tile_h = kernel_.image_rows(), tile_w = kernel_.columns(), row_step = plan_.row_step;
    // Not where tiles wrap (short pieces of lines: 5% slower), nor for 1x1 layers, whose tiles are short and read much
    // from beyond the cache themselves (3% slower).
    const bool fetches =
        (out.w == 1 || (out.row == 1 && c_.diagonal())) && !plan_.wraps && (kernel_.rows_are_lanes() || c_.rows == 1);
    // Where tiles wrap, the chunk is one long row. In place, a tile that would stick out of the image is shifted back;
    // the outputs it then shares with another tile have the same bits and are not stored twice. In a copy there is room
    // for it to stick out.
    const bool wraps = plan_.wraps, in_place = plan_.in_place;
    const Index chunk_rows = chunk_.batches * chunk_.height, height = wraps ? 1 : chunk_.height;
    const Index width = (chunk_rows - height) * row_step + chunk_.width;
    // Rows that follow each other, in the copy and in the output, are one (gathered, a weight gradient of 512 channels
    // of 7x7, batch 4: 10.2 ms to 6.9).
    const bool even = wraps && row_step == chunk_.width && out.h == row_step * out.w &&
                      (chunk_.batches == 1 || out.batch == chunk_.height * out.h);
    const Index line = even ? width : row_step, line_columns = even ? width : chunk_.width;
    const Index last_top = c_.columns.h - tile_h - chunk_.h;
    const Index last_left = (wraps ? (c_.columns.h - 1 - chunk_.h) * row_step : -chunk_.w) + c_.columns.w - tile_w;
    for (Index h = 0; h < height; h += tile_h) {
        const Index top = in_place && !wraps ? std::min(h, last_top) : h;
        const int skip_h = static_cast<int>(h - top);
        const Plan::Variant& variant = plan_.variant(chunk_.h + top, *panel.finite);
        for (Index w = 0; w < width; w += tile_w) {
            const Index left = in_place ? std::min(w, last_left) : w;
            const int skip_w = static_cast<int>(w - left);
            const Wanted wanted{rows, skip_h, skip_w, static_cast<int>(std::min(tile_h - skip_h, height - h)),
                                static_cast<int>(std::min(tile_w - skip_w, width - w))};
            if (should_stop(plan_.terms + tile_work)) return;
            if (fetches) fetch(offset(out.data, h * out.h + w * out.w, plan_.term_size), wanted, out);
            compute(panel, variant, {top, left * plan_.abreast}, wanted);
            // A tile that wraps has a piece of each row that it meets, and between them columns that are not wanted.
            for (Index at = w, end = w + wanted.columns; at < end;) {
                const Index row = wraps ? at / line : h, column = wraps ? at % line : at;
                const Index piece = std::min(end - at, line_columns - column);
                if (piece > 0)
                    kernel_.store(
                        {offset(totals_, total_index(0, skip_h, static_cast<int>(at - left)), plan_.element_size),
                         offset(out.data,
                                row / chunk_.height * out.batch + row % chunk_.height * out.h + column * out.w,
                                plan_.term_size),
                         out.row, out.h, out.w, rows, wanted.image_rows, static_cast<int>(piece), c_.rounding});
                at += wraps ? line - column : piece;
            }
        }
    }
}

// Tiles of one pixel of several images, kept until all pixels are there and then turned; unless the rows of an output
// lie side by side anyhow.
void Worker::multiply_batches(Index number, int rows, const Panel& panel, const Contraction::Output& out) {
    const Index tile_w = kernel_.columns();
    const bool turns = out.row != 1;
    Contraction::Output to = turns ? plan_.kept() : out;
    if (turns) to.data = turned_buffer_.at_least<char>(plan_.kept_outputs() * plan_.term_size);
    for (Index h = 0; h < chunk_.height; ++h) {
        for (Index w = 0; w < chunk_.width; ++w) {
            const Plan::Variant& variant = plan_.variant(h * chunk_.width + w, *panel.finite);
            for (Index batch = 0; batch < chunk_.batches; batch += tile_w) {
                if (should_stop(plan_.terms + tile_work)) return;
                const int columns = static_cast<int>(std::min(tile_w, chunk_.batches - batch));
                compute(panel, variant, {h, w * plan_.abreast + batch}, {rows, 0, 0, 1, columns});
                kernel_.store({totals_, offset(to.data, batch * to.batch + h * to.h + w * to.w, plan_.term_size),
                               to.row, 0, to.batch, rows, 1, columns, c_.rounding});
            }
        }
    }
    if (turns) write_outputs(plan_, kernels_, chunk_, number, to, out);
}

parallel::Flags Worker::run(void (*kernel)(const Tile&), const Plan::Variant& program, Tile tile) {
    const bool reads_flags = c_.certified || c_.rescued;
    parallel::Flags flags{};
    auto run_stretch = [&] {
        if (reads_flags) parallel::Flags::clear();
        kernel(tile);
        if (reads_flags) flags = flags | parallel::Flags::read();
    };
    tile.code = program.code.data();
    tile.code_size = static_cast<Index>(program.code.size());
    if (program.stretches.empty()) {
        run_stretch();
        return flags;
    }
    for (const Stretch& stretch : program.stretches) {
        tile.code = program.code.data() + stretch.begin;
        tile.code_size = static_cast<Index>(stretch.end - stretch.begin);
        tile.depth = stretch.depth;
        tile.pauses = &stretch != &program.stretches.back();
        run_stretch();
        tile.continues = true;
        if (should_stop(parallel::work_between_looks)) break;
    }
    return flags;
}

// The totals of a tile, those that are wanted certified or rescued.
void Worker::compute(const Panel& panel, const Plan::Variant& variant, Position first, const Wanted& wanted) {
    const Index row_step = plan_.row_step * plan_.abreast;
    const Tile tile{panel.data,
                    variant.panel_offsets.empty() ? nullptr : variant.panel_offsets.data(),
                    kernel_.rows(),
                    offset(image_, first.row * row_step + first.column, plan_.element_size),
                    variant.taps.data(),
                    row_step,
                    nullptr,
                    0,
                    panel.bias,
                    stack_,
                    totals_};
    const parallel::Flags flags = run(kernel_.run, variant, tile);
    if (control_.stopped()) return;
    if (c_.certified) certify(tile, panel, first, wanted, flags);
    // Without a NaN among the terms, only an overflow or an infinity makes a total that is not finite; but an infinite
    // bias that is added last raises no flag.
    if (c_.rescued && (flags.overflow || flags.invalid || has_special_bias_)) rescue(tile);
}

void Worker::certify(const Tile& tile, const Panel& panel, Position first, const Wanted& wanted,
                     parallel::Flags flags) {
    if (!flags.inexact) return;  // sums that were never rounded are exact as they stand (integers, quantised data)
    // Twofold's error terms are themselves exact only where nothing underflowed or overflowed.
    const bool sound = c_.is_float32 || !(flags.underflow || flags.overflow || flags.invalid);
    auto certified_by = [&](const double* norms, Index pitch) {
        return kernel_.certify(
            {totals_, plan_.gamma, panel.row_norm, panel.bias_bound, norms, pitch, c_.rounding, uncertain_});
    };
    auto each_uncertain = [&](auto&& action) {
        for (int row = 0; row < wanted.rows; ++row)
            for (int h = wanted.h; h < wanted.h + wanted.image_rows; ++h)
                for (int w = wanted.w; w < wanted.w + wanted.columns; ++w)
                    if (const Index at = total_index(row, h, w); !sound || uncertain_[at]) action(at, row, h, w);
    };
    auto recompute_each = [&] {
        each_uncertain([&](Index at, int row, int h, int w) { totals_[at] = recompute(tile, row, h, w); });
    };
    if (!sound) return recompute_each();
    if (plan_.bounds_coarsely) {
        if (certified_by(coarse_norms_, 0)) return;
        int uncertain = 0;
        each_uncertain([&](Index, int, int, int) { ++uncertain; });
        constexpr int few = 4;  // cheaper than norms
        if (uncertain <= few) return recompute_each();
    }
    if (!measured_) measure_columns();
    if (control_.stopped()) return;  // and then it is not
    measured_ = true;
    if (!certified_by(norms_ + first.row * norms_pitch_ + first.column, norms_pitch_)) recompute_each();
}

double Worker::recompute(const Tile& tile, int row, int h, int w) {
    const Index column = c_.diagonal() ? w * kernel_.abreast() + row : w;
    const char* const image = offset(tile.image, h * tile.row_step + column, plan_.element_size);
    auto sum = [&]<class T>(exact::Superaccumulator<T> accumulator) -> double {
        const std::vector<Index>& taps = plan_.variants[0].taps;
        for (Index r = 0; r < plan_.terms && !should_stop(1); ++r) {
            const Index at = r * tile.panel_stride + row;
            accumulator.add_product(
                static_cast<T>(read(tile.panel, at, plan_.element_size == 4)),
                static_cast<T>(read(image, taps[static_cast<std::size_t>(r)], plan_.element_size == 4)));
        }
        accumulator.add(static_cast<T>(read(tile.bias, row, plan_.element_size == 4)));
        return accumulator.rounded(c_.rounding);
    };
    return c_.is_float32 ? sum(exact::Superaccumulator<float>()) : sum(exact::Superaccumulator<double>());
}

void Worker::rescue(Tile tile) {
    tile.totals = rescued_;
    run(kernel_.rescue, plan_.rescue, tile);
    for (int i = 0; i < kernel_.outputs(); ++i)
        if (!std::isfinite(read(totals_, i, c_.is_float32)))
            write(totals_, i, c_.is_float32, read(rescued_, i, c_.is_float32));
}

}  // namespace detconv
