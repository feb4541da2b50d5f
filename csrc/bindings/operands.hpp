// The engine's operands in the memory of callers, and its results in memory of their own.
#pragma once

#include <array>
#include <cstdlib>
#include <memory>
#include <new>

#include "detconv/passes.hpp"
#include "execution.hpp"

namespace detconv::bindings {

using Shape4 = std::array<Index, 4>;

// (N, C, H, W), or an unbatched (C, H, W). An element is `unit` of the strides.
template <class T, class Integer>
View<T> view_of(T* data, Index axes, const Integer* shape, const Integer* strides, Integer unit = 1) {
    View<T> v{data, {1, 1, 1, 1}, {}};
    const auto missing = static_cast<std::size_t>(4 - axes);
    for (std::size_t i = missing; i < 4; ++i) {
        v.shape[i] = shape[i - missing];
        // The stride of an axis of one element is never used, and libraries let it be anything.
        v.strides[i] = v.shape[i] == 1 ? 0 : strides[i - missing] / unit;
    }
    return v;
}

struct Free {
    void operator()(void* memory) const { std::free(memory); }
};

// (N, C, H, W), in memory (N, H, W, C) when channels_last; for a library to take over.
template <class T>
struct Result {
    Shape4 shape, strides;
    std::unique_ptr<T[], Free> memory;

    Result(const Shape4& sizes, bool channels_last) : shape(sizes) {
        const auto [n, c, h, w] = shape;
        strides = channels_last ? Shape4{c * h * w, 1, w * c, c} : Shape4{c * h * w, h * w, w, 1};
        // Aligned as torch's tensors are: what comes next may choose its code, and so its bits, by the alignment.
        constexpr std::size_t alignment = 64;
        std::size_t bytes = sizeof(T);
        for (const Index size : shape) bytes *= static_cast<std::size_t>(size);
        memory.reset(static_cast<T*>(std::aligned_alloc(alignment, (bytes / alignment + 1) * alignment)));
        if (memory == nullptr) throw std::bad_alloc();
    }

    View<T> view() const { return view_of(memory.get(), 4, shape.data(), strides.data()); }
};

template <class T>
Result<T> convolve(const Convolution& g, const View<const T>& input, const View<const T>& weight, const Bias<T>& bias,
                   const Summation& summation, bool channels_last, Rounding rounding = Rounding::nearest) {
    Result<T> output({g.samples, g.out_channels, g.out_height, g.out_width}, channels_last);
    without_gil([&](const Execution& e) { forward(g, input, weight, bias, output.view(), summation, e, rounding); });
    return output;
}

}  // namespace detconv::bindings
