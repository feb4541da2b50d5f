// Rows are output channels, columns output pixels, planes input channels, (i, j) kernel taps.
#include "lowering.hpp"

namespace detconv {

template <class T>
void forward(const Convolution& g, const View<const T>& input, const View<const T>& weight, const Bias<T>& bias,
             const View<T>& output, const Summation& summation, const Execution& execution, Rounding rounding) {
    const auto& [xn, xc, xh, xw] = input.strides;
    const auto& [wo, wc, wh, ww] = weight.strides;
    const auto& [yn, yo, yh, yw] = output.strides;

    Contraction c;
    c.batches = g.samples;
    c.groups = g.groups;
    c.rows = g.group_outputs();
    c.planes = g.group_channels();
    c.columns = {g.out_height, g.out_width};
    for (Index i = 0; i < g.kernel_height; ++i) c.row_taps.push_back(i * g.dilation.h);
    for (Index j = 0; j < g.kernel_width; ++j) c.column_taps.push_back(j * g.dilation.w);
    c.step = g.stride;
    c.image_size = {g.height, g.width};
    c.image_origin = {g.padding.top, g.padding.left};
    c.image = {.data = input.data, .batch = xn, .group = c.planes * xc, .plane = xc, .h = xh, .w = xw};
    c.panel = {.data = weight.data, .group = c.rows * wo, .row = wo, .plane = wc, .h = wh, .w = ww};
    c.output = {.data = output.data, .batch = yn, .group = c.rows * yo, .row = yo, .h = yh, .w = yw};
    c.bias = bias.data;
    c.bias_group = c.rows * bias.stride;
    c.bias_row = bias.stride;
    const bool has_bias = bias.data != nullptr;
    set_arithmetic<T>(
        c, summation,
        lower(summation, {c.planes, g.kernel_height, g.kernel_width}, has_bias, sizeof(T) == 4, execution.interrupted),
        has_bias);
    c.rounding = rounding;
    run(std::move(c), execution);
}

template void forward(const Convolution&, const View<const float>&, const View<const float>&, const Bias<float>&,
                      const View<float>&, const Summation&, const Execution&, Rounding);
template void forward(const Convolution&, const View<const double>&, const View<const double>&, const Bias<double>&,
                      const View<double>&, const Summation&, const Execution&, Rounding);

}  // namespace detconv
