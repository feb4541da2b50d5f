#include "layer.hpp"

#include <cstdlib>
#include <sstream>

#include "oracle.hpp"

namespace detconv::test {

std::string Layer::text() const {
    std::ostringstream out;
    for (const Index size : input) out << size << ' ';
    out << "* ";
    for (const Index size : weight) out << size << ' ';
    out << "stride " << stride.h << ' ' << stride.w << " padding " << padding.top << ' ' << padding.bottom << ' '
        << padding.left << ' ' << padding.right << " dilation " << dilation.h << ' ' << dilation.w << " groups "
        << groups << (bias ? " bias " : " ") << kind << ' ' << seed;
    return out.str();
}

template <class T>
Arrays<T>::Arrays(const Layer& layer) {
    auto size = [](const std::array<Index, 4>& shape) { return shape[0] * shape[1] * shape[2] * shape[3]; };
    input = made<T>(size(layer.input), layer.seed, layer.kind);
    weight = made<T>(size(layer.weight), layer.seed + 1, layer.kind);
    if (layer.bias) bias = made<T>(layer.weight[0], layer.seed + 2, layer.kind);
}

std::array<Index, 4> strides_of(const std::array<Index, 4>& shape) {
    return {shape[1] * shape[2] * shape[3], shape[2] * shape[3], shape[3], 1};
}

template <class T>
std::vector<T> convolve(const Layer& layer, const Arrays<T>& arrays, const Summation& summation,
                        const Execution& execution) {
    const Convolution g = layer.geometry();
    const std::array<Index, 4> shape{g.samples, g.out_channels, g.out_height, g.out_width};
    std::vector<T> output(static_cast<std::size_t>(g.samples * g.out_channels * g.out_height * g.out_width));
    forward<T>(g, {arrays.input.data(), layer.input, strides_of(layer.input)},
               {arrays.weight.data(), layer.weight, strides_of(layer.weight)},
               {layer.bias ? arrays.bias.data() : nullptr, 1}, {output.data(), shape, strides_of(shape)}, summation,
               execution);
    return output;
}

template <class T>
std::vector<T> differentiate(const Layer& layer, const Arrays<T>& arrays, const Summation& summation,
                             const Execution& execution) {
    const Convolution g = layer.geometry();
    const std::array<Index, 4> shape{g.samples, g.out_channels, g.out_height, g.out_width};
    const auto outputs = static_cast<Index>(g.samples * g.out_channels * g.out_height * g.out_width);
    const std::vector<T> given = made<T>(outputs, layer.seed + 3, layer.kind);
    const View<const T> grad_output{given.data(), shape, strides_of(shape)};
    std::vector<T> gradients(arrays.input.size() + arrays.weight.size() + static_cast<std::size_t>(g.out_channels));
    T* const by_input = gradients.data();
    T* const by_weight = by_input + arrays.input.size();
    input_gradient<T>(g, grad_output, {arrays.weight.data(), layer.weight, strides_of(layer.weight)}, {},
                      {by_input, layer.input, strides_of(layer.input)}, summation, execution);
    weight_gradient<T>(g, {arrays.input.data(), layer.input, strides_of(layer.input)}, grad_output,
                       {by_weight, layer.weight, strides_of(layer.weight)}, summation, execution);
    bias_gradient<T>(grad_output, by_weight + arrays.weight.size(), summation, execution);
    return gradients;
}

template <class T>
std::vector<T> expected(const Layer& layer, const Arrays<T>& arrays, const Summation& summation) {
    const Convolution g = layer.geometry();
    const MethodRow& method = row_of(summation.method());
    const Index terms = g.terms();
    const Program program =
        lower(summation, {g.group_channels(), g.kernel_height, g.kernel_width}, layer.bias, sizeof(T) == 4);
    const Program naive = lower_naive(summation, terms, layer.bias);
    const Accumulator accumulator = program.wide ? Accumulator::wide : sizeof(T) == 4 ? method.float32 : method.float64;

    std::vector<T> output, w(static_cast<std::size_t>(terms)), x(w.size()), w_in_order(w.size()), x_in_order(w.size());
    auto one_output = [&](Index n, Index o, Index oh, Index ow) {
        const Index first_channel = o / g.group_outputs() * g.group_channels();
        std::size_t k = 0;
        for (Index c = 0; c < g.group_channels(); ++c)
            for (Index i = 0; i < g.kernel_height; ++i)
                for (Index j = 0; j < g.kernel_width; ++j, ++k) {
                    const Index h = oh * g.stride.h + i * g.dilation.h - g.padding.top;
                    const Index v = ow * g.stride.w + j * g.dilation.w - g.padding.left;
                    const bool inside = h >= 0 && h < g.height && v >= 0 && v < g.width;
                    const Index at = ((n * g.in_channels + first_channel + c) * g.height + h) * g.width + v;
                    x[k] = inside ? arrays.input[static_cast<std::size_t>(at)] : T(0);
                    w[k] = arrays.weight[static_cast<std::size_t>(o * terms) + k];
                }
        const T bias = layer.bias ? arrays.bias[static_cast<std::size_t>(o)] : T(0);
        if (method.certified) return exact_sum(w, x, bias);
        for (std::size_t r = 0; r < w.size(); ++r) {
            const std::size_t term = program.sequence.empty() ? r : static_cast<std::size_t>(program.sequence[r]);
            w_in_order[r] = w[term], x_in_order[r] = x[term];
        }
        const auto total = static_cast<T>(evaluate(program, accumulator, w_in_order, x_in_order, bias).s);
        if (accumulator != Accumulator::kahan || std::isfinite(total)) return total;
        return static_cast<T>(evaluate(naive, Accumulator::plain, w_in_order, x_in_order, bias).s);
    };
    for (Index n = 0; n < g.samples; ++n)
        for (Index o = 0; o < g.out_channels; ++o)
            for (Index oh = 0; oh < g.out_height; ++oh)
                for (Index ow = 0; ow < g.out_width; ++ow) output.push_back(canonical(one_output(n, o, oh, ow)));
    return output;
}

Summation summation_from(const std::string& text) {
    std::string method, order = "c,kh,kw", products = "fused", bias = "last", block = "64", samples = "tree";
    std::istringstream in(text);
    in >> method;
    for (std::string name; std::getline(in >> std::ws, name, '=');) {
        std::string value;
        if (in.peek() == '"')
            in.get(), std::getline(in, value, '"');
        else
            in >> value;
        (name == "order"      ? order
         : name == "products" ? products
         : name == "bias"     ? bias
         : name == "block"    ? block
                              : samples) = value;
    }
    return Summation(method, order, products, bias, std::atoll(block.c_str()), samples);
}

void for_each_instruction_set(const std::function<void(const Kernels&)>& action) {
    for (const std::string& name : dispatch::usable()) {
        dispatch::force(name);
        action(dispatch::current());
    }
    dispatch::force("");
}

template struct Arrays<float>;
template struct Arrays<double>;
template std::vector<float> convolve(const Layer&, const Arrays<float>&, const Summation&, const Execution&);
template std::vector<double> convolve(const Layer&, const Arrays<double>&, const Summation&, const Execution&);
template std::vector<float> differentiate(const Layer&, const Arrays<float>&, const Summation&, const Execution&);
template std::vector<double> differentiate(const Layer&, const Arrays<double>&, const Summation&, const Execution&);
template std::vector<float> expected(const Layer&, const Arrays<float>&, const Summation&);
template std::vector<double> expected(const Layer&, const Arrays<double>&, const Summation&);

}  // namespace detconv::test
