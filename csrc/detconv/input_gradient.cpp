// Rows are input channels, columns the pixels of one phase, planes output channels, (i, j) the kernel taps that meet
// the phase. Pixels whose position agrees modulo the stride meet the same taps: each of these phases is one
// contraction. Phases that no tap meets are not taken one by one: they can be millions.
#include <algorithm>
#include <numeric>

#include "lowering.hpp"

namespace detconv {
namespace {

// Along one axis, the taps that pixels first_pixel, first_pixel + stride, ... meet: an arithmetic progression. Tap i
// reads grad_output at (pixel + padding - i * dilation) / stride.
struct Phase {
    Index first_pixel, first_tap;
    std::vector<Index> reads;  // for the first pixel; may be outside grad_output
};

// The phases of one axis that a tap meets, of `all` that there are.
struct Phases {
    Index all, tap_step;
    std::vector<Phase> met;

    Phases(Index size, Index kernel, Index stride, Index dilation, Index padding, parallel::Lookout& lookout)
        : all(std::min(stride, size)), tap_step(stride / std::gcd(stride, dilation)) {
        for (Index tap = 0; tap < std::min(kernel, tap_step); ++tap) {
            const Index pixel = ((tap * dilation - padding) % stride + stride) % stride;
            if (pixel >= size) continue;
            Phase phase{pixel, tap, {}};
            for (Index i = tap; i < kernel; i += tap_step, lookout.after(1))
                phase.reads.push_back((pixel + padding - i * dilation) / stride);
            met.push_back(std::move(phase));
        }
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

    Contraction every;  // what all phases share
    every.batches = g.samples;
    every.groups = g.groups;
    every.rows = g.group_channels();
    every.planes = g.group_outputs();
    every.step = {1, 1};
    every.image_size = {grad_output.shape[2], grad_output.shape[3]};
    every.image = {.data = grad_output.data, .batch = yn, .group = every.planes * yo, .plane = yo, .h = yh, .w = yw};
    every.output = {.data = gradient.data, .batch = xn, .group = every.rows * xc, .row = xc, .h = xh, .w = xw};
    every.bias = bias.data;
    every.bias_group = every.rows * bias.stride;
    every.bias_row = bias.stride;
    every.rounding = rounding;
    auto run_phase = [&](Contraction c) {
        const Loops loops{c.planes, static_cast<Index>(c.row_taps.size()), static_cast<Index>(c.column_taps.size())};
        const bool has_bias = c.bias != nullptr;
        set_arithmetic<T>(c, summation, lower(summation, loops, has_bias, sizeof(T) == 4, execution.interrupted),
                          has_bias);
        run(std::move(c), execution);
    };

    parallel::Lookout lookout(execution.interrupted);
    const Phases rows(g.height, g.kernel_height, g.stride.h, g.dilation.h, g.padding.top, lookout);
    const Phases columns(g.width, g.kernel_width, g.stride.w, g.dilation.w, g.padding.left, lookout);
    // Every pixel gets the sum of no terms first, those that meet some their own afterwards.
    if (static_cast<Index>(rows.met.size()) < rows.all || static_cast<Index>(columns.met.size()) < columns.all) {
        Contraction c = every;
        c.columns = c.image_size = {g.height, g.width};
        run_phase(std::move(c));
    }
    for (const Phase& h : rows.met)
        for (const Phase& w : columns.met) {
            Contraction c = every;
            c.columns = {(g.height - h.first_pixel - 1) / g.stride.h + 1,
                         (g.width - w.first_pixel - 1) / g.stride.w + 1};
            c.row_taps = h.reads;
            c.column_taps = w.reads;
            c.panel = {.data = weight.data + h.first_tap * wh + w.first_tap * ww,
                       .group = c.planes * wo,
                       .row = wc,
                       .plane = wo,
                       .h = rows.tap_step * wh,
                       .w = columns.tap_step * ww};
            c.output.data = gradient.data + h.first_pixel * xh + w.first_pixel * xw;
            c.output.h = g.stride.h * xh;
            c.output.w = g.stride.w * xw;
            run_phase(std::move(c));
        }
}

template void input_gradient(const Convolution&, const View<const float>&, const View<const float>&, const Bias<float>&,
                             const View<float>&, const Summation&, const Execution&, Rounding);
template void input_gradient(const Convolution&, const View<const double>&, const View<const double>&,
                             const Bias<double>&, const View<double>&, const Summation&, const Execution&, Rounding);

}  // namespace detconv
