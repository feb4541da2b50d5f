#include "geometry.hpp"

#include <algorithm>
#include <initializer_list>

namespace detconv {
namespace {

std::string pair_text(Extent e) { return "(" + std::to_string(e.h) + ", " + std::to_string(e.w) + ")"; }

std::string shape_text(const std::array<Index, 4>& shape) {
    std::string text = "(";
    for (int i = 0; i < 4; ++i) text += (i ? ", " : "") + std::to_string(shape[static_cast<std::size_t>(i)]);
    return text + ")";
}

void at_least(Index least, Extent e, const char* name) {
    if (e.h < least || e.w < least)
        throw InvalidArgument(std::string(name) + " must be at least " + std::to_string(least) + "; got " +
                              pair_text(e));
}

// The reach of a dilated kernel along one axis.
Index reach(Index kernel, Index dilation) {
    return checked_add(checked_multiply(kernel - 1, dilation, "dilation * (kernel size - 1)"), 1, "the dilated kernel");
}

}  // namespace

Index checked_multiply(Index a, Index b, const char* what) {
    Index result;
    if (__builtin_mul_overflow(a, b, &result)) throw InvalidArgument(std::string(what) + " does not fit in 64 bits");
    return result;
}

Index checked_add(Index a, Index b, const char* what) {
    Index result;
    if (__builtin_add_overflow(a, b, &result)) throw InvalidArgument(std::string(what) + " does not fit in 64 bits");
    return result;
}

Padding same_padding(const std::array<Index, 4>& weight, Extent stride, Extent dilation) {
    at_least(1, dilation, "dilation");
    if (stride.h != 1 || stride.w != 1)
        throw InvalidArgument("padding=\"same\" needs stride 1; got stride " + pair_text(stride));
    if (weight[2] < 1 || weight[3] < 1) return {};
    const Index h = reach(weight[2], dilation.h) - 1, w = reach(weight[3], dilation.w) - 1;
    return {h / 2, h - h / 2, w / 2, w - w / 2};
}

Convolution make_convolution(const std::array<Index, 4>& input, const std::array<Index, 4>& weight, Extent stride,
                             Padding padding, Extent dilation, Index groups) {
    at_least(1, stride, "stride");
    at_least(1, dilation, "dilation");
    if (padding.top < 0 || padding.bottom < 0 || padding.left < 0 || padding.right < 0)
        throw InvalidArgument("padding must not be negative; got " + pair_text({padding.top, padding.left}));
    if (groups < 1) throw InvalidArgument("groups must be at least 1; got " + std::to_string(groups));

    const auto [samples, in_channels, height, width] = input;
    const auto [out_channels, group_channels, kernel_height, kernel_width] = weight;
    if (kernel_height < 1 || kernel_width < 1)
        throw InvalidArgument("weight must have a kernel of at least 1x1; got shape " + shape_text(weight));
    if (out_channels < 1)
        throw InvalidArgument("weight must have at least one output channel; got shape " + shape_text(weight));
    if (out_channels % groups != 0)
        throw InvalidArgument("groups must divide the output channels of weight; got groups " + std::to_string(groups) +
                              " and weight of shape " + shape_text(weight));
    if (checked_multiply(group_channels, groups, "weight.shape[1] * groups") != in_channels)
        throw InvalidArgument("input must have weight.shape[1] * groups = " + std::to_string(group_channels * groups) +
                              " channels; got input of shape " + shape_text(input) + " for weight of shape " +
                              shape_text(weight) + " and groups " + std::to_string(groups));

    const Index padded_height =
        checked_add(height, checked_add(padding.top, padding.bottom, "padding"), "the padded height");
    const Index padded_width =
        checked_add(width, checked_add(padding.left, padding.right, "padding"), "the padded width");
    const Index reach_h = reach(kernel_height, dilation.h), reach_w = reach(kernel_width, dilation.w);
    if (reach_h > padded_height || reach_w > padded_width)
        throw InvalidArgument("weight must not reach beyond the padded input: the dilated kernel is " +
                              pair_text({reach_h, reach_w}) + ", the padded input " +
                              pair_text({padded_height, padded_width}));
    // A padding of any size is legal only where some window of the input exists to be padded.
    if (height < 1 || width < 1)
        throw InvalidArgument("input must have height and width of at least 1; got shape " + shape_text(input));

    Convolution c{samples,
                  in_channels,
                  height,
                  width,
                  in_channels == 0 ? 0 : out_channels,  // no channels in, none out: as torch does
                  kernel_height,
                  kernel_width,
                  stride,
                  dilation,
                  padding,
                  groups,
                  (padded_height - reach_h) / stride.h + 1,
                  (padded_width - reach_w) / stride.w + 1};

    auto total = [](std::initializer_list<Index> factors, const char* what) {
        Index product = 8;  // bytes of the widest element
        for (const Index f : factors) product = checked_multiply(product, f, what);
    };
    total({samples > 0 ? samples : 1, in_channels > 0 ? in_channels : 1, padded_height, padded_width},
          "the padded input's size");
    total({samples > 0 ? samples : 1, out_channels, c.out_height, c.out_width}, "the output's size");
    return c;
}

Convolution make_transposed(const std::array<Index, 4>& input, const std::array<Index, 4>& weight, Extent stride,
                            Padding padding, Extent output_padding, Extent dilation, Index groups) {
    at_least(1, stride, "stride");
    at_least(1, dilation, "dilation");
    at_least(0, {padding.top, padding.left}, "padding");
    at_least(0, output_padding, "output_padding");
    if (groups < 1) throw InvalidArgument("groups must be at least 1; got " + std::to_string(groups));
    if (input[1] != weight[0])
        throw InvalidArgument("input must have weight.shape[0] = " + std::to_string(weight[0]) +
                              " channels; got input of shape " + shape_text(input) + " for weight of shape " +
                              shape_text(weight));
    if (input[2] < 1 || input[3] < 1)
        throw InvalidArgument("input must have height and width of at least 1; got shape " + shape_text(input));
    if (output_padding.h >= std::max(stride.h, dilation.h) || output_padding.w >= std::max(stride.w, dilation.w))
        throw InvalidArgument("output_padding must be smaller than either stride or dilation; got output_padding " +
                              pair_text(output_padding) + ", stride " + pair_text(stride) + ", dilation " +
                              pair_text(dilation));
    if (weight[2] < 1 || weight[3] < 1)
        throw InvalidArgument("weight must have a kernel of at least 1x1; got shape " + shape_text(weight));
    auto size = [](Index in, Index s, Index before, Index after, Index kernel, Index d, Index extra) {
        constexpr const char* what = "the output's size";
        const Index spread = checked_add(checked_multiply(in - 1, s, what), reach(kernel, d), what);
        return checked_add(checked_add(spread, extra, what), -checked_add(before, after, what), what);
    };
    const Index height = size(input[2], stride.h, padding.top, padding.bottom, weight[2], dilation.h, output_padding.h);
    const Index width = size(input[3], stride.w, padding.left, padding.right, weight[3], dilation.w, output_padding.w);
    if (height < 1 || width < 1)
        throw InvalidArgument("padding leaves no output: its size would be " + pair_text({height, width}));
    const Index channels = checked_multiply(weight[1], groups, "weight.shape[1] * groups");
    return make_convolution({input[0], channels, height, width}, weight, stride, padding, dilation, groups);
}

}  // namespace detconv
