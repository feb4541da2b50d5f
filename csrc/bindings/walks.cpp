// How calls go over their columns: for tests, as no bit of a result tells.
#include <pybind11/stl.h>

#include <algorithm>
#include <string>
#include <vector>

#include "arguments.hpp"
#include "detconv/scratch.hpp"
#include "execution.hpp"
#include "operands.hpp"
#include "register.hpp"

namespace py = pybind11;

namespace detconv::bindings {
namespace {

// Zeros of a shape.
template <class T>
struct Zeros {
    Buffer memory;
    View<T> view;

    Zeros(const Shape4& shape, bool channels_last) {
        const auto [n, c, h, w] = shape;
        const Index count = checked_multiply(n * c, h * w, "an array");
        const Shape4 strides = packed(shape, channels_last);
        view = view_of(memory.at_least<T>(count), 4, shape.data(), strides.data());
        std::fill_n(view.data, count, T(0));
    }
    View<const T> read() const { return {view.data, view.shape, view.strides}; }
};

// The walks of the contractions of a pass over zeros of these shapes, all arrays contiguous or all channels_last.
template <class T>
std::vector<const char*> walks_of(const std::string& pass, const Convolution& g, const Shape4& weight_shape,
                                  const Summation& summation, bool channels_last) {
    const Zeros<T> input({g.samples, g.in_channels, g.height, g.width}, channels_last),
        weight(weight_shape, channels_last),
        output({g.samples, g.out_channels, g.out_height, g.out_width}, channels_last);
    std::vector<const char*> walks;
    without_gil([&](const Execution& given) {
        const Execution e{given.kernels, given.threads, given.interrupted, &walks};
        if (pass == "forward")
            forward(g, input.read(), weight.read(), Bias<T>{}, output.view, summation, e);
        else if (pass == "input gradient")
            input_gradient(g, output.read(), weight.read(), Bias<T>{}, input.view, summation, e);
        else if (pass == "weight gradient")
            weight_gradient(g, input.read(), output.read(), weight.view, summation, e);
        else
            throw InvalidArgument("pass must be \"forward\", \"input gradient\" or \"weight gradient\"; got \"" +
                                  shortened(pass) + '"');
    });
    return walks;
}

py::list walks(const std::string& pass, const Shape4& input_shape, const Shape4& weight_shape, py::handle stride,
               py::handle padding, py::handle dilation, py::handle groups, const Summation& summation, bool is_float32,
               bool channels_last) {
    const Convolution g = convolution_of(input_shape, weight_shape, stride, padding, dilation, groups, true);
    py::list names;
    for (const char* name : is_float32 ? walks_of<float>(pass, g, weight_shape, summation, channels_last)
                                       : walks_of<double>(pass, g, weight_shape, summation, channels_last))
        names.append(name);
    return names;
}

}  // namespace

void register_walks(py::module_& module) {
    using py::arg;
    module.def("walks", &walks, arg("pass_"), arg("input_shape"), arg("weight_shape"), arg("stride"), arg("padding"),
               arg("dilation"), arg("groups"), arg("summation"), arg("is_float32") = true,
               arg("channels_last") = false);
}

}  // namespace detconv::bindings
