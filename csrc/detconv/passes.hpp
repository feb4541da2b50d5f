// The passes of a convolution, each lowered to a Contraction (index_map.hpp) in a file of its own. T is float or
// double. Arrays may have any strides; their shapes have been checked against the geometry.
#pragma once

#include "driver.hpp"

namespace detconv {

// One element for each channel; data null: none.
template <class T>
struct Bias {
    const T* data = nullptr;
    Index stride = 0;
};

// output = conv2d(input, weight) + bias.
template <class T>
void forward(const Convolution& geometry, const View<const T>& input, const View<const T>& weight, const Bias<T>& bias,
             const View<T>& output, const Summation& summation, const Execution& execution,
             Rounding rounding = Rounding::nearest);

// input_gradient = the gradient of conv2d by its input, plus bias (of the input's channels): with a bias, this is the
// transposed convolution. Pixels of grad_output beyond its shape read as +0.
template <class T>
void input_gradient(const Convolution& geometry, const View<const T>& grad_output, const View<const T>& weight,
                    const Bias<T>& bias, const View<T>& input_gradient, const Summation& summation,
                    const Execution& execution, Rounding rounding = Rounding::nearest);

// weight_gradient = the gradient of conv2d by its weight: one sum a sample, joined as summation.samples() says.
template <class T>
void weight_gradient(const Convolution& geometry, const View<const T>& input, const View<const T>& grad_output,
                     const View<T>& weight_gradient, const Summation& summation, const Execution& execution,
                     Rounding rounding = Rounding::nearest);

// bias_gradient[o] = the sum of grad_output over samples and pixels.
template <class T>
void bias_gradient(const View<const T>& grad_output, T* bias_gradient, const Summation& summation,
                   const Execution& execution, Rounding rounding = Rounding::nearest);

}  // namespace detconv
