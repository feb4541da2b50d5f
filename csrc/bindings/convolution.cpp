#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <string>
#include <vector>

#include "detconv/dispatch.hpp"
#include "detconv/forward.hpp"
#include "register.hpp"

namespace py = pybind11;

namespace detconv::bindings {
namespace {

using Shape4 = std::array<Index, 4>;

std::string text(py::handle value) { return py::cast<std::string>(py::repr(value)); }

// ---- Arguments ----

Index integer(py::handle value, const char* name, const char* valid) {
    // bool is an int to Python; as a stride it is a mistake.
    if (!PyIndex_Check(value.ptr()) || PyBool_Check(value.ptr()))
        throw py::type_error(std::string(name) + " must be " + valid + "; got " + text(value));
    const auto number = py::reinterpret_steal<py::object>(PyNumber_Index(value.ptr()));
    if (!number) throw py::error_already_set();
    int overflow = 0;
    const Index result = PyLong_AsLongLongAndOverflow(number.ptr(), &overflow);
    if (overflow != 0) throw InvalidArgument(std::string(name) + " does not fit in 64 bits; got " + text(value));
    return result;
}

Extent pair(py::handle value, const char* name) {
    constexpr const char* valid = "an int or a pair of ints (height, width)";
    if (PyTuple_Check(value.ptr()) || PyList_Check(value.ptr())) {
        const auto sequence = py::reinterpret_borrow<py::sequence>(value);
        // torch takes a list of one for both axes, too.
        if (sequence.size() == 1) return pair(sequence[0], name);
        if (sequence.size() == 2) return {integer(sequence[0], name, valid), integer(sequence[1], name, valid)};
        throw InvalidArgument(std::string(name) + " must be " + valid + "; got " + text(value));
    }
    const Index both = integer(value, name, valid);
    return {both, both};
}

Padding padding_of(py::handle value, const Shape4& weight, Extent stride, Extent dilation) {
    if (PyUnicode_Check(value.ptr())) {
        const auto word = py::cast<std::string>(value);
        if (word == "same") return same_padding(weight, stride, dilation);
        if (word == "valid") return {};
        throw InvalidArgument("padding must be an int, a pair of ints, \"same\" or \"valid\"; got " + text(value));
    }
    const Extent both = pair(value, "padding");
    return {both.h, both.h, both.w, both.w};
}

// ---- Arrays ----

template <class T>
constexpr const char* name_of_type = sizeof(T) == 4 ? "float32" : "float64";

std::string shape_text(const py::array& array) { return text(array.attr("shape")); }

// Native, aligned elements are used where they lie; anything else is copied once (structured fields, odd offsets).
template <class T>
py::array usable(const py::array& array, const char* name) {
    const bool native = py::isinstance<py::array_t<T>>(array);
    if (!native)
        throw py::type_error(std::string(name) + " must have the dtype of input, " + name_of_type<T> + "; got " +
                             text(array.dtype()));
    bool whole = (array.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_) != 0;
    for (py::ssize_t i = 0; i < array.ndim(); ++i) whole &= array.strides(i) % py::ssize_t(sizeof(T)) == 0;
    return whole ? array : py::array(py::array_t<T, py::array::c_style | py::array::forcecast>(array));
}

template <class T>
View<const T> view(const py::array& array) {
    View<const T> v;
    v.data = static_cast<const T*>(array.data());
    const auto missing = static_cast<std::size_t>(4 - array.ndim());  // an unbatched CHW input
    v.shape.fill(1);
    for (std::size_t i = missing; i < 4; ++i) {
        const auto axis = static_cast<py::ssize_t>(i - missing);
        v.shape[i] = array.shape(axis);
        // The stride of an axis of one element is never used, and NumPy lets it be anything.
        v.strides[i] = v.shape[i] == 1 ? 0 : array.strides(axis) / py::ssize_t(sizeof(T));
    }
    return v;
}

// A new (N, O, H, W) array, without N where the input had none; in memory (N, H, W, O) when channels_last.
template <class T>
py::array_t<T> new_output(const Shape4& shape, bool batched, bool channels_last) {
    std::vector<py::ssize_t> sizes, strides;
    const auto item = static_cast<py::ssize_t>(sizeof(T));
    const auto [n, o, h, w] = shape;
    if (channels_last)
        strides = {o * h * w * item, item, w * o * item, o * item};
    else
        strides = {o * h * w * item, h * w * item, w * item, item};
    sizes = {n, o, h, w};
    if (!batched) sizes.erase(sizes.begin()), strides.erase(strides.begin());
    return py::array_t<T>(sizes, strides);
}

// ---- The call ----

// Asks Python for a pending Ctrl-C; on the calling thread, which released the GIL.
bool signal_pending() {
    const py::gil_scoped_acquire gil;
    return PyErr_CheckSignals() != 0;
}

template <class Work>
void without_gil(Work&& work) {
    try {
        const py::gil_scoped_release released;
        work();
    } catch (const parallel::Interrupted&) {
        throw py::error_already_set();  // what the signal handler raised
    }
}

template <class T>
py::array conv2d_of(const py::array& input_array, const py::array& weight_array,
                    const std::optional<py::array>& bias_array, py::handle stride, py::handle padding,
                    py::handle dilation, py::handle groups, const Summation& summation, bool channels_last) {
    const py::array input = usable<T>(input_array, "input"), weight = usable<T>(weight_array, "weight");
    if (input.ndim() != 3 && input.ndim() != 4)
        throw InvalidArgument("input must have 4 dimensions (N, C, H, W), or 3 (C, H, W); got shape " +
                              shape_text(input));
    if (weight.ndim() != 4)
        throw InvalidArgument("weight must have 4 dimensions (O, C / groups, KH, KW); got shape " + shape_text(weight));
    const View<const T> x = view<T>(input), w = view<T>(weight);
    const Extent stride_pair = pair(stride, "stride"), dilation_pair = pair(dilation, "dilation");
    const Convolution geometry =
        make_convolution(x.shape, w.shape, stride_pair, padding_of(padding, w.shape, stride_pair, dilation_pair),
                         dilation_pair, integer(groups, "groups", "an int"));
    py::array bias;
    const T* bias_data = nullptr;
    Index bias_stride = 0;
    if (bias_array) {
        bias = usable<T>(*bias_array, "bias");
        if (bias.ndim() != 1 || bias.shape(0) != w.shape[0])
            throw InvalidArgument("bias must have shape (" + std::to_string(w.shape[0]) +
                                  ",), one element for each output channel; got shape " + shape_text(bias));
        bias_data = static_cast<const T*>(bias.data());
        bias_stride = bias.strides(0) / py::ssize_t(sizeof(T));
    }

    const Shape4 shape{geometry.samples, geometry.out_channels, geometry.out_height, geometry.out_width};
    py::array_t<T> output = new_output<T>(shape, input.ndim() == 4, channels_last);
    const View<const T> strides = view<T>(output);
    const View<T> y{output.mutable_data(), shape, strides.strides};
    const Execution execution{dispatch::current(), parallel::num_threads(), signal_pending};
    without_gil([&] { forward(geometry, x, w, bias_data, bias_stride, y, summation, execution); });
    return output;
}

py::array conv2d(const py::array& input, const py::array& weight, const std::optional<py::array>& bias,
                 py::handle stride, py::handle padding, py::handle dilation, py::handle groups,
                 const Summation& summation, bool channels_last) {
    if (py::isinstance<py::array_t<float>>(input))
        return conv2d_of<float>(input, weight, bias, stride, padding, dilation, groups, summation, channels_last);
    if (py::isinstance<py::array_t<double>>(input))
        return conv2d_of<double>(input, weight, bias, stride, padding, dilation, groups, summation, channels_last);
    throw py::type_error("input must have dtype float32 or float64 (native byte order); got " + text(input.dtype()));
}

}  // namespace

void register_convolution(py::module_& module) {
    module.def("conv2d", &conv2d, py::arg("input"), py::arg("weight"), py::arg("bias"), py::arg("stride"),
               py::arg("padding"), py::arg("dilation"), py::arg("groups"), py::arg("summation"),
               py::arg("channels_last") = false);
}

}  // namespace detconv::bindings
