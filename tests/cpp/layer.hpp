// Calls of the forward pass, and what they must give.
#pragma once

#include <array>
#include <functional>
#include <string>
#include <vector>

#include "detconv/dispatch.hpp"
#include "detconv/passes.hpp"
#include "made.hpp"

namespace detconv::test {

struct Layer {
    std::array<Index, 4> input{}, weight{};
    Extent stride{1, 1};
    Padding padding{};
    Extent dilation{1, 1};
    Index groups = 1;
    bool bias = true;
    std::string kind = "uniform";
    std::uint64_t seed = 1;

    Convolution geometry() const { return make_convolution(input, weight, stride, padding, dilation, groups); }
    std::string text() const;
};

// Contiguous arrays of the layer: input of seed, weight of seed + 1, bias of seed + 2.
template <class T>
struct Arrays {
    std::vector<T> input, weight, bias;
    explicit Arrays(const Layer& layer);
};

// The engine's output, (N, O, OH, OW) contiguous.
template <class T>
std::vector<T> convolve(const Layer& layer, const Arrays<T>& arrays, const Summation& summation,
                        const Execution& execution);

// The same by the oracle: every output by itself.
template <class T>
std::vector<T> expected(const Layer& layer, const Arrays<T>& arrays, const Summation& summation);

// The engine's gradients by input, weight and bias, one after the other; grad_output is made of seed + 3.
template <class T>
std::vector<T> differentiate(const Layer& layer, const Arrays<T>& arrays, const Summation& summation,
                             const Execution& execution);

// Strides of a contiguous array.
std::array<Index, 4> strides_of(const std::array<Index, 4>& shape);

// The one-line text of a summation, as Python writes it.
Summation summation_from(const std::string& text);

// Runs an action with every instruction set that this machine can run.
void for_each_instruction_set(const std::function<void(const Kernels&)>& action);

extern template struct Arrays<float>;
extern template struct Arrays<double>;
extern template std::vector<float> convolve(const Layer&, const Arrays<float>&, const Summation&, const Execution&);
extern template std::vector<double> convolve(const Layer&, const Arrays<double>&, const Summation&, const Execution&);
extern template std::vector<float> differentiate(const Layer&, const Arrays<float>&, const Summation&,
                                                 const Execution&);
extern template std::vector<double> differentiate(const Layer&, const Arrays<double>&, const Summation&,
                                                  const Execution&);
extern template std::vector<float> expected(const Layer&, const Arrays<float>&, const Summation&);
extern template std::vector<double> expected(const Layer&, const Arrays<double>&, const Summation&);

}  // namespace detconv::test
