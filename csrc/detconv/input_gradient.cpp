// Rows are input channels, columns the pixels of one phase, planes output channels, (i, j) the kernel taps that meet
// the phase. Pixels whose position agrees modulo the stride meet the same taps: each of these phases is one
// contraction.
#include <algorithm>
#include <numeric>

#include "lowering.hpp"

namespace detconv {
namespace {

// Along one axis, the taps that pixels phase, phase + stride, ... meet: an arithmetic progression. Tap i reads
// grad_output at (pixel + padding - i * dilation) / stride.
struct Phase {
    Index first_tap = 0, tap_step = 1;
    std::vector<Index> reads;  // for pixel `phase`; may be outside grad_output

    Phase(Index phase, Index kernel, Index stride, Index dilation, Index padding) {
        tap_step = stride / std::gcd(stride, dilation);
        for (first_tap = 0; first_tap < kernel; ++first_tap)
            if ((phase + padding - first_tap * dilation) % stride == 0) break;
        for (Index i = first_tap; i < kernel; i += tap_step) reads.push_back((phase + padding - i * dilation) / stride);
    }
};

}  // namespace

template <class T>
void input_gradient(const Convolution& g, const View<const T>& grad_output, const View<const T>& weight,
                    const Bias<T>& bias, const View<T>& gradient, const Summation& summation,
                    const Execution& execution, Rounding rounding) {
    const auto& [yn, yo, yh, yw] = grad_output.strides;
    const auto& [wo, wc, wh, ww] = weight.strides;
    const auto& [xn, xc, xh, xw] = gradient.strides;
    const bool has_bias = bias.data != nullptr;

    for (Index top = 0; top < std::min(g.stride.h, g.height); ++top)
        for (Index left = 0; left < std::min(g.stride.w, g.width); ++left) {
            const Phase h(top, g.kernel_height, g.stride.h, g.dilation.h, g.padding.top);
            const Phase w(left, g.kernel_width, g.stride.w, g.dilation.w, g.padding.left);
            const bool none = h.reads.empty() || w.reads.empty();

            Contraction c;
            c.batches = g.samples;
            c.groups = g.groups;
            c.rows = g.group_channels();
            c.planes = g.group_outputs();
            c.columns = {(g.height - top - 1) / g.stride.h + 1, (g.width - left - 1) / g.stride.w + 1};
            c.row_taps = h.reads;
            c.column_taps = w.reads;
            c.step = {1, 1};
            c.image_size = {grad_output.shape[2], grad_output.shape[3]};
            c.image = {.data = grad_output.data, .batch = yn, .group = c.planes * yo, .plane = yo, .h = yh, .w = yw};
            c.panel = {.data = weight.data + (none ? 0 : h.first_tap * wh + w.first_tap * ww),
                       .group = c.planes * wo,
                       .row = wc,
                       .plane = wo,
                       .h = h.tap_step * wh,
                       .w = w.tap_step * ww};
            c.output = {.data = gradient.data + top * xh + left * xw,
                        .batch = xn,
                        .group = c.rows * xc,
                        .row = xc,
                        .h = g.stride.h * xh,
                        .w = g.stride.w * xw};
            c.bias = bias.data;
            c.bias_group = c.rows * bias.stride;
            c.bias_row = bias.stride;
            const Loops loops{c.planes, static_cast<Index>(c.row_taps.size()),
                              static_cast<Index>(c.column_taps.size())};
            set_arithmetic<T>(c, summation, lower(summation, loops, has_bias, sizeof(T) == 4), has_bias);
            c.rounding = rounding;
            run(std::move(c), execution);
        }
}

template void input_gradient(const Convolution&, const View<const float>&, const View<const float>&, const Bias<float>&,
                             const View<float>&, const Summation&, const Execution&, Rounding);
template void input_gradient(const Convolution&, const View<const double>&, const View<const double>&,
                             const Bias<double>&, const View<double>&, const Summation&, const Execution&, Rounding);

}  // namespace detconv
