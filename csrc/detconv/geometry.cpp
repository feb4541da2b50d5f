#include "geometry.hpp"

#include <algorithm>
#include <initializer_list>
#include <optional>

namespace detconv {
namespace {

std::string pair_text(Extent e) {
    std::string text = "(";
    text.append(std::to_string(e.h)).append(", ").append(std::to_string(e.w)).append(")");
    return text;
}

std::string shape_text(const std::array<Index, 4>& shape, bool batched = true) {
    std::string text = "(";
    for (std::size_t i = batched ? 0 : 1; i < 4; ++i) text += std::to_string(shape[i]) + (i < 3 ? ", " : ")");
    return text;
}

void at_least(Index least, Extent e, const char* name) {
    if (e.h < least || e.w < least)
        throw InvalidArgument(std::string(name) + " must be at least " + std::to_string(least) + "; got " +
                              pair_text(e));
}

struct TooLarge {};

Index times(Index a, Index b) {
    Index result;
    if (__builtin_mul_overflow(a, b, &result)) throw TooLarge();
    return result;
}

Index plus(Index a, Index b) {
    Index result;
    if (__builtin_add_overflow(a, b, &result)) throw TooLarge();
    return result;
}

// The reach of a dilated kernel along one axis.
Index reach(Index kernel, Index dilation) { return plus(times(kernel - 1, dilation), 1); }

// Computes the geometry; where a size does not fit, says so with all that went into it (no padding: "same").
template <class Compute>
auto within_64_bits(Compute&& compute, const std::array<Index, 4>& input, const std::array<Index, 4>& weight,
                    Extent stride, std::optional<Padding> padding, Extent dilation, bool batched) {
    try {
        return compute();
    } catch (const TooLarge&) {
        throw InvalidArgument(
            "stride, padding, dilation and the shapes must keep all sizes within 64 bits; got stride " +
            pair_text(stride) + ", padding " + (padding ? pair_text({padding->top, padding->left}) : "\"same\"") +
            ", dilation " + pair_text(dilation) + " for input of shape " + shape_text(input, batched) +
            " and weight of shape " + shape_text(weight));
    }
}

}  // namespace

std::string shortened(std::string_view text) {
    constexpr std::size_t most = 200;
    std::size_t characters = 0, end = 0;  // bytes 10xxxxxx continue a character
    for (std::size_t i = 0; i < text.size() && characters <= most; ++i) {
        if ((static_cast<unsigned char>(text[i]) & 0xc0) != 0x80) ++characters;
        if (characters <= most - 3) end = i + 1;
    }
    return characters <= most ? std::string(text) : std::string(text.substr(0, end)) + "...";
}

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
    auto compute = [&] {
        const Index h = reach(weight[2], dilation.h) - 1, w = reach(weight[3], dilation.w) - 1;
        return Padding{h / 2, h - h / 2, w / 2, w - w / 2};
    };
    return within_64_bits(compute, {}, weight, stride, std::nullopt, dilation, true);
}

namespace {

Convolution convolution(const std::array<Index, 4>& input, const std::array<Index, 4>& weight, Extent stride,
                        Padding padding, Extent dilation, Index groups, bool batched) {
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
    if (times(group_channels, groups) != in_channels)
        throw InvalidArgument("input must have weight.shape[1] * groups = " + std::to_string(group_channels * groups) +
                              " channels; got input of shape " + shape_text(input, batched) + " for weight of shape " +
                              shape_text(weight) + " and groups " + std::to_string(groups));

    const Index padded_height = plus(height, plus(padding.top, padding.bottom));
    const Index padded_width = plus(width, plus(padding.left, padding.right));
    const Index reach_h = reach(kernel_height, dilation.h), reach_w = reach(kernel_width, dilation.w);
    if (reach_h > padded_height || reach_w > padded_width)
        throw InvalidArgument("weight must not reach beyond the padded input: the dilated kernel is " +
                              pair_text({reach_h, reach_w}) + ", the padded input " +
                              pair_text({padded_height, padded_width}));
    // A padding of any size is legal only where some window of the input exists to be padded.
    if (height < 1 || width < 1)
        throw InvalidArgument("input must have height and width of at least 1; got shape " +
                              shape_text(input, batched));

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

    auto check = [](std::initializer_list<Index> factors) {
        Index product = 8;  // bytes of the widest element
        for (const Index f : factors) product = times(product, std::max<Index>(f, 1));
    };
    check({samples, in_channels, padded_height, padded_width});
    check({samples, out_channels, c.out_height, c.out_width});
    check({out_channels, group_channels, kernel_height, kernel_width});
    check_terms(c.terms());
    return c;
}

Convolution transposed(const std::array<Index, 4>& input, const std::array<Index, 4>& weight, Extent stride,
                       Padding padding, Extent output_padding, Extent dilation, Index groups, bool batched) {
    at_least(1, stride, "stride");
    at_least(1, dilation, "dilation");
    at_least(0, {padding.top, padding.left}, "padding");
    at_least(0, output_padding, "output_padding");
    if (groups < 1) throw InvalidArgument("groups must be at least 1; got " + std::to_string(groups));
    if (input[1] != weight[0])
        throw InvalidArgument("input must have weight.shape[0] = " + std::to_string(weight[0]) +
                              " channels; got input of shape " + shape_text(input, batched) + " for weight of shape " +
                              shape_text(weight));
    if (input[2] < 1 || input[3] < 1)
        throw InvalidArgument("input must have height and width of at least 1; got shape " +
                              shape_text(input, batched));
    if (output_padding.h >= std::max(stride.h, dilation.h) || output_padding.w >= std::max(stride.w, dilation.w))
        throw InvalidArgument("output_padding must be smaller than either stride or dilation; got output_padding " +
                              pair_text(output_padding) + ", stride " + pair_text(stride) + ", dilation " +
                              pair_text(dilation));
    if (weight[2] < 1 || weight[3] < 1)
        throw InvalidArgument("weight must have a kernel of at least 1x1; got shape " + shape_text(weight));
    auto size = [](Index in, Index s, Index before, Index after, Index kernel, Index d, Index extra) {
        return plus(plus(plus(times(in - 1, s), reach(kernel, d)), extra), -plus(before, after));
    };
    const Index height = size(input[2], stride.h, padding.top, padding.bottom, weight[2], dilation.h, output_padding.h);
    const Index width = size(input[3], stride.w, padding.left, padding.right, weight[3], dilation.w, output_padding.w);
    if (height < 1 || width < 1)
        throw InvalidArgument("padding leaves no output: its size would be " + pair_text({height, width}) +
                              "; got padding " + pair_text({padding.top, padding.left}));
    return convolution({input[0], times(weight[1], groups), height, width}, weight, stride, padding, dilation, groups,
                       batched);
}

}  // namespace

Convolution make_convolution(const std::array<Index, 4>& input, const std::array<Index, 4>& weight, Extent stride,
                             Padding padding, Extent dilation, Index groups, bool batched) {
    return within_64_bits([&] { return convolution(input, weight, stride, padding, dilation, groups, batched); }, input,
                          weight, stride, padding, dilation, batched);
}

Convolution make_transposed(const std::array<Index, 4>& input, const std::array<Index, 4>& weight, Extent stride,
                            Padding padding, Extent output_padding, Extent dilation, Index groups, bool batched) {
    return within_64_bits(
        [&] { return transposed(input, weight, stride, padding, output_padding, dilation, groups, batched); }, input,
        weight, stride, padding, dilation, batched);
}

void check_terms(Index terms) {
    if (terms > most_terms)
        throw InvalidArgument("weight and groups must make sums of at most " + std::to_string(most_terms) +
                              " terms; got " + std::to_string(terms));
}

}  // namespace detconv
