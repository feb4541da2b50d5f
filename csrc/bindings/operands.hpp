// The engine's operands in the memory of callers, and how its results lie in memory.
#pragma once

#include <pybind11/pybind11.h>

#include <array>
#include <cstddef>

#include "detconv/passes.hpp"

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

// The last `axes` of these as a tuple.
inline pybind11::tuple tuple_of(const Shape4& sizes, std::size_t axes) {
    pybind11::tuple tuple(axes);
    for (std::size_t i = 0; i < axes; ++i) tuple[i] = pybind11::int_(sizes[4 - axes + i]);
    return tuple;
}

// The strides, in elements, of a result (N, C, H, W), which lies in memory as (N, H, W, C) when channels_last.
inline Shape4 packed(const Shape4& shape, bool channels_last) {
    const auto [n, c, h, w] = shape;
    return channels_last ? Shape4{c * h * w, 1, w * c, c} : Shape4{c * h * w, h * w, w, 1};
}

}  // namespace detconv::bindings
