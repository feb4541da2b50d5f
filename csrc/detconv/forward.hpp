// The forward pass as a contraction.
#pragma once

#include "driver.hpp"

namespace detconv {

// output = conv2d(input, weight) + bias. T is float or double; output may have any strides. bias: O elements, or null.
template <class T>
void forward(const Convolution& geometry, const View<const T>& input, const View<const T>& weight, const T* bias,
             Index bias_stride, const View<T>& output, const Summation& summation, const Execution& execution);

extern template void forward(const Convolution&, const View<const float>&, const View<const float>&, const float*,
                             Index, const View<float>&, const Summation&, const Execution&);
extern template void forward(const Convolution&, const View<const double>&, const View<const double>&, const double*,
                             Index, const View<double>&, const Summation&, const Execution&);

}  // namespace detconv
