// Sizes, strides and checks of a convolution. Everything here is 64-bit and refuses to overflow.
#pragma once

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>

namespace detconv {

using Index = std::int64_t;

// Names a bad argument, what came and what is valid; becomes ValueError in Python.
struct InvalidArgument : std::invalid_argument {
    using std::invalid_argument::invalid_argument;
};

// What came from a caller, as messages show it: the first 200 characters of UTF-8 text, and "..." where there are more.
std::string shortened(std::string_view text);

// a * b, a + b; throw InvalidArgument (naming `what`) where the result does not fit 64 bits.
Index checked_multiply(Index a, Index b, const char* what);
Index checked_add(Index a, Index b, const char* what);

// A strided four-dimensional array; strides in elements, any sign.
template <class T>
struct View {
    T* data = nullptr;
    std::array<Index, 4> shape{}, strides{};
};

struct Extent {
    Index h = 0, w = 0;
};

struct Padding {
    Index top = 0, bottom = 0, left = 0, right = 0;
};

// conv2d as its caller states it, checked.
struct Convolution {
    Index samples, in_channels, height, width;
    Index out_channels, kernel_height, kernel_width;
    Extent stride, dilation;
    Padding padding;
    Index groups;
    Index out_height, out_width;

    Index group_channels() const { return in_channels / groups; }
    Index group_outputs() const { return out_channels / groups; }
    Index terms() const { return group_channels() * kernel_height * kernel_width; }
};

// The longest sum: its tables take some 50 bytes a term.
inline constexpr Index most_terms = (Index(1) << 31) - 1;
void check_terms(Index terms);

// Checks every rule of conv2d and computes the output's size. Throws InvalidArgument; batched is for its messages.
Convolution make_convolution(const std::array<Index, 4>& input, const std::array<Index, 4>& weight, Extent stride,
                             Padding padding, Extent dilation, Index groups, bool batched = true);

// The convolution whose input gradient a transposed convolution of `input` is. Its out_height and out_width may be
// larger than input's (output_padding beyond the stride). Throws InvalidArgument.
Convolution make_transposed(const std::array<Index, 4>& input, const std::array<Index, 4>& weight, Extent stride,
                            Padding padding, Extent output_padding, Extent dilation, Index groups, bool batched = true);

// The padding that torch calls "same": dilation * (kernel - 1) in all, the odd one to the right. Needs stride 1.
Padding same_padding(const std::array<Index, 4>& weight, Extent stride, Extent dilation);

}  // namespace detconv
