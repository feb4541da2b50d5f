// Rows are output channels, columns kernel taps, batches input channels, (i, j) output pixels. One sum for each sample,
// joined by the driver; or, for one sum over all samples, planes are the samples.
#include <algorithm>

#include "lowering.hpp"

namespace detconv {
namespace {

// Samples that one contraction joins: as many as keep a packed panel in half of a small second-level cache. Stores and
// joins in memory cost most of the time where a sample has few pixels: 3.7 of torch's time at 4x4 and
// 512 channels, 1.0 joined so.
constexpr Index joined_terms = 2048;

Index samples_at_once(Index samples, Index terms) {
    Index at_once = 1;
    while (samples % (2 * at_once) == 0 && 2 * at_once * terms <= joined_terms) at_once *= 2;
    return at_once;
}

// The terms are the pixels (oh, ow) of one sample, or of all of them in turn.
template <class T>
void run_over_pixels(Contraction& c, Index samples, const Summation& summation, const Execution& execution,
                     Rounding rounding) {
    constexpr bool is_float32 = sizeof(T) == 4;
    const Index terms = samples == 0 ? 0 : c.terms();  // no sample: a sum of no terms
    auto in_planes = [&](Index count) {
        c.planes = count, c.samples = count == 0 ? 1 : samples / count;
        c.image.plane = std::exchange(c.image.sample, c.image.sample * count);
        c.panel.plane = std::exchange(c.panel.sample, c.panel.sample * count);
    };
    Program program;
    if (summation.samples() == Samples::sequence) {
        in_planes(samples);
        check_terms(c.terms());
        program = lower(summation, c.terms(), false, is_float32, execution.interrupted);
        c.rounding = rounding;
    } else {
        check_terms(terms);
        c.samples = std::max<Index>(samples, 1);
        if (samples == 0) c.planes = 0;
        program = lower(summation, terms, false, is_float32, execution.interrupted);
        const Index at_once = samples_at_once(samples, std::max<Index>(terms, 1));
        if (at_once > 1 && c.planes == 1 && can_join_samples(summation)) {
            in_planes(at_once);
            program = lower_samples(summation, terms, at_once, is_float32);
        }
        c.rounding = Rounding::nearest;  // the nodes of the tree are of the element type, its root too
    }
    set_arithmetic<T>(c, summation, std::move(program), false);
    run(std::move(c), execution);
}

}  // namespace

template <class T>
void weight_gradient(const Convolution& g, const View<const T>& input, const View<const T>& grad_output,
                     const View<T>& gradient, const Summation& summation, const Execution& execution,
                     Rounding rounding) {
    const auto& [xn, xc, xh, xw] = input.strides;
    const auto& [yn, yo, yh, yw] = grad_output.strides;
    const auto& [wo, wc, wh, ww] = gradient.strides;
    const Index channels = g.group_channels();

    Contraction c;
    c.groups = g.groups;
    c.rows = g.group_outputs();
    c.batches = channels;
    c.planes = 1;
    c.columns = {g.kernel_height, g.kernel_width};
    for (Index h = 0; h < g.out_height; ++h) c.row_taps.push_back(h * g.stride.h);
    for (Index w = 0; w < g.out_width; ++w) c.column_taps.push_back(w * g.stride.w);
    c.step = g.dilation;
    c.image_size = {g.height, g.width};
    c.image_origin = {g.padding.top, g.padding.left};
    c.image = {.data = input.data, .sample = xn, .batch = xc, .group = channels * xc, .h = xh, .w = xw};
    c.panel = {.data = grad_output.data, .sample = yn, .group = c.rows * yo, .row = yo, .h = yh, .w = yw};
    c.output = {.data = gradient.data, .batch = wc, .group = c.rows * wo, .row = wo, .h = wh, .w = ww};
    const bool padded = g.padding.top > 0 || g.padding.bottom > 0 || g.padding.left > 0 || g.padding.right > 0;
    if (g.kernel_height == 1 && g.kernel_width == 1 && !padded && summation.samples() == Samples::tree) {
        // One tap: the input channels are the columns, or a tile would have only one. Rows of pixels are planes, or
        // follow each other in one plane: where pixels do in memory, or where a row's are too few to fill a square that
        // is transposed (the rows between them are copied too then; samples are joined in registers: 4x4 pixels, stride
        // 2, 256 to 512 channels 3.6 ms to 1.7).
        constexpr Index few = 16;
        const Index pitch = xw == 0 ? 0 : xh / xw;
        const bool follow = pitch == g.width && xh == pitch * xw && yh == g.out_width * yw &&
                            ((pitch == g.out_width && g.stride.h == 1) || g.out_width < few);
        c.batches = 1;
        c.columns = {1, channels};
        c.step = {1, 1};
        c.column_taps = {0};
        c.row_taps.clear();
        for (Index h = 0; h < (follow ? g.out_height : 1); ++h)
            for (Index w = 0; w < g.out_width; ++w) c.row_taps.push_back(h * g.stride.h * pitch + w * g.stride.w);
        c.planes = follow ? 1 : g.out_height;
        c.image_size = {c.row_taps.back() + 1, channels};
        c.image.batch = 0, c.image.plane = g.stride.h * xh, c.image.h = xw, c.image.w = xc;
        c.panel.plane = yh, c.panel.h = yw, c.panel.w = 0;
        c.output.batch = 0, c.output.h = 0, c.output.w = wc;
    }
    run_over_pixels<T>(c, g.samples, summation, execution, rounding);
}

template <class T>
void bias_gradient(const View<const T>& grad_output, T* gradient, const Summation& summation,
                   const Execution& execution, Rounding rounding) {
    const auto& [samples, channels, height, width] = grad_output.shape;
    const auto& [yn, yo, yh, yw] = grad_output.strides;
    const T one = 1;  // the term of a pixel is grad_output * 1

    Contraction c;
    c.rows = channels;
    c.planes = 1;
    c.columns = {1, 1};
    for (Index h = 0; h < height; ++h) c.row_taps.push_back(h);
    for (Index w = 0; w < width; ++w) c.column_taps.push_back(w);
    c.step = {1, 1};
    c.image_size = {height, width};
    c.image = {.data = &one};
    c.panel = {.data = grad_output.data, .sample = yn, .row = yo, .h = yh, .w = yw};
    c.output = {.data = gradient, .row = 1};
    run_over_pixels<T>(c, samples, summation, execution, rounding);
}

template void weight_gradient(const Convolution&, const View<const float>&, const View<const float>&,
                              const View<float>&, const Summation&, const Execution&, Rounding);
template void weight_gradient(const Convolution&, const View<const double>&, const View<const double>&,
                              const View<double>&, const Summation&, const Execution&, Rounding);
template void bias_gradient(const View<const float>&, float*, const Summation&, const Execution&, Rounding);
template void bias_gradient(const View<const double>&, double*, const Summation&, const Execution&, Rounding);

}  // namespace detconv
