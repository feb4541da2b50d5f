#include <pybind11/numpy.h>

#include <cstdint>
#include <cstdlib>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "arguments.hpp"
#include "detconv/narrow.hpp"
#include "execution.hpp"
#include "operands.hpp"
#include "register.hpp"

namespace py = pybind11;

namespace detconv::bindings {
namespace {

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
    // By the address: torch's views say that they are aligned, whatever they are.
    bool whole = reinterpret_cast<std::uintptr_t>(array.data()) % sizeof(T) == 0;
    for (py::ssize_t i = 0; i < array.ndim(); ++i) whole &= array.strides(i) % py::ssize_t(sizeof(T)) == 0;
    return whole ? array : py::array(array.attr("copy")());
}

template <class T>
View<const T> view(const py::array& array) {
    return view_of(static_cast<const T*>(array.data()), array.ndim(), array.shape(), array.strides(),
                   py::ssize_t(sizeof(T)));
}

// An array in memory of its own, aligned as torch's tensors are: what comes next may choose its code, and so its bits,
// by the alignment.
template <class T>
py::array allocated(std::vector<py::ssize_t> shape, std::vector<py::ssize_t> strides) {
    constexpr std::size_t alignment = 64;
    std::size_t bytes = sizeof(T);
    for (const py::ssize_t size : shape) bytes *= static_cast<std::size_t>(size);
    void* const memory = std::aligned_alloc(alignment, (bytes / alignment + 1) * alignment);
    if (memory == nullptr) throw std::bad_alloc();
    const py::capsule owner(memory, [](void* pointer) { std::free(pointer); });
    for (py::ssize_t& stride : strides) stride *= py::ssize_t(sizeof(T));
    return py::array_t<T>(std::move(shape), std::move(strides), static_cast<const T*>(memory), owner);
}

// The array for a result of the last `axes` of these sizes: one that empty(shape, strides in elements, dtype) makes,
// where the caller's library has memory of its own kind, or else ours.
template <class T>
py::array array_for(const Shape4& shape, const Shape4& strides, std::size_t axes, const py::object& empty) {
    const auto first = static_cast<std::ptrdiff_t>(4 - axes);
    if (empty.is_none())
        return allocated<T>({shape.begin() + first, shape.end()}, {strides.begin() + first, strides.end()});
    const py::tuple sizes = tuple_of(shape, axes);
    const py::object made = empty(sizes, tuple_of(strides, axes), name_of_type<T>);
    if (!py::isinstance<py::array_t<T>>(made) || !py::object(made.attr("shape")).equal(sizes))
        throw py::type_error("empty must return an array of the shape and dtype that it is called with; got " +
                             text(py::type::of(made)));
    return py::reinterpret_borrow<py::array>(made);
}

// Where a pass writes its result: (N, C, H, W), without N where the input had none.
template <class T>
struct Result {
    py::array array;

    Result(const Shape4& shape, bool channels_last, bool batched, const py::object& empty)
        : array(array_for<T>(shape, packed(shape, channels_last), batched ? 4 : 3, empty)) {}

    View<T> view() {
        return view_of(static_cast<T*>(array.mutable_data()), array.ndim(), array.shape(), array.strides(),
                       py::ssize_t(sizeof(T)));
    }
};

// (N, C, H, W) or (C, H, W).
template <class T>
py::array images(const py::array& array, const char* name) {
    py::array found = usable<T>(array, name);
    if (found.ndim() != 3 && found.ndim() != 4)
        throw InvalidArgument(std::string(name) + " must have 4 dimensions (N, C, H, W), or 3 (C, H, W); got shape " +
                              shape_text(found));
    return found;
}

template <class T>
py::array kernels_of(const py::array& array, const char* axes = "(O, C / groups, KH, KW)") {
    py::array found = usable<T>(array, "weight");
    if (found.ndim() != 4)
        throw InvalidArgument(std::string("weight must have 4 dimensions ") + axes + "; got shape " +
                              shape_text(found));
    return found;
}

template <class T>
Bias<T> bias_of(py::handle given, Index channels, py::array& keep) {
    if (given.is_none()) return {};
    if (!py::isinstance<py::array>(given)) throw py::type_error("bias must be an array or None; got " + text(given));
    keep = usable<T>(py::reinterpret_borrow<py::array>(given), "bias");
    if (keep.ndim() != 1 || keep.shape(0) != channels)
        throw InvalidArgument("bias must have shape (" + std::to_string(channels) +
                              ",), one element for each output channel; got shape " + shape_text(keep));
    return {static_cast<const T*>(keep.data()), keep.strides(0) / py::ssize_t(sizeof(T))};
}

// input_size, weight_size: a sequence of 4 ints, or 3 for an unbatched input.
Shape4 size_of(py::handle value, const char* name, bool unbatched, bool& batched) {
    const std::string valid = unbatched ? "a sequence of 4 ints (N, C, H, W), or 3 (C, H, W)" : "a sequence of 4 ints";
    if (!PySequence_Check(value.ptr()) || PyUnicode_Check(value.ptr()))
        throw py::type_error(std::string(name) + " must be " + valid + "; got " + text(value));
    const auto sequence = py::reinterpret_borrow<py::sequence>(value);
    batched = sequence.size() == 4;
    if (!batched && !(unbatched && sequence.size() == 3))
        throw InvalidArgument(std::string(name) + " must be " + valid + "; got " + text(value));
    Shape4 shape{1, 0, 0, 0};
    for (std::size_t i = 0; i < sequence.size(); ++i) {
        const Index size = integer(sequence[i], name, valid.c_str());
        if (size < 0) throw InvalidArgument(std::string(name) + " must not have negative sizes; got " + text(value));
        shape[i + (batched ? 0 : 1)] = size;
    }
    return shape;
}

template <class T>
void check_grad_output(const py::array& array, const Convolution& g, bool batched) {
    const View<const T> y = view<T>(array);
    if ((array.ndim() == 4) != batched || y.shape != Shape4{g.samples, g.out_channels, g.out_height, g.out_width})
        throw InvalidArgument("grad_output must have the shape of the output, (" +
                              (batched ? std::to_string(g.samples) + ", " : std::string()) +
                              std::to_string(g.out_channels) + ", " + std::to_string(g.out_height) + ", " +
                              std::to_string(g.out_width) + "); got shape " + shape_text(array));
}

// ---- The calls ----

// Calls work with a float or a double, as the dtype of the array asks.
template <class Work>
py::array by_dtype(const py::array& array, const char* name, Work&& work) {
    if (py::isinstance<py::array_t<float>>(array)) return work(float());
    if (py::isinstance<py::array_t<double>>(array)) return work(double());
    throw py::type_error(
        std::string(name) +
        " must have dtype float32, float64, float16 or ml_dtypes' bfloat16, in native byte order; got " +
        text(array.dtype()));
}

// float32 outputs that narrow() will round to a half type.
Rounding rounding_of(bool to_odd) { return to_odd ? Rounding::odd : Rounding::nearest; }

// The uint16 bits of float32 numbers rounded to "float16" or "bfloat16"; same shape, and the strides of NumPy's order
// "K".
py::array narrow_array(const py::array& array, const std::string& dtype) {
    if (!py::isinstance<py::array_t<float>>(array)) throw py::type_error("array must have dtype float32");
    if (dtype != "float16" && dtype != "bfloat16")
        throw InvalidArgument("dtype must be \"float16\" or \"bfloat16\"; got \"" + dtype + '"');
    const py::object like = py::module_::import("numpy").attr("empty_like")(array, py::arg("dtype") = "uint16");
    auto bits = py::reinterpret_borrow<py::array_t<std::uint16_t>>(like);
    // empty_like keeps a dense layout, whatever the order of its axes; any other becomes dense.
    const py::array dense =
        py::bool_(array.attr("flags").attr("c_contiguous")) ? array : py::array(array.attr("ravel")("K"));
    narrow(static_cast<const float*>(dense.data()), array.size(), dtype == "float16" ? Half::float16 : Half::bfloat16,
           bits.mutable_data());
    return bits;
}

py::array conv2d(const py::array& input, const py::array& weight, py::handle bias, py::handle stride,
                 py::handle padding, py::handle dilation, py::handle groups, const Summation& summation,
                 bool channels_last, const py::object& empty, bool to_odd) {
    return by_dtype(input, "input", [&]<class T>(T) -> py::array {
        const py::array x = images<T>(input, "input"), w = kernels_of<T>(weight);
        const View<const T> xv = view<T>(x), wv = view<T>(w);
        const Convolution g = convolution_of(xv.shape, wv.shape, stride, padding, dilation, groups, x.ndim() == 4);
        py::array keep;
        const Bias<T> b = bias_of<T>(bias, wv.shape[0], keep);
        Result<T> output({g.samples, g.out_channels, g.out_height, g.out_width}, channels_last, x.ndim() == 4, empty);
        const View<T> yv = output.view();
        without_gil([&](const Execution& e) { forward(g, xv, wv, b, yv, summation, e, rounding_of(to_odd)); });
        return output.array;
    });
}

py::array conv2d_input(py::handle input_size, const py::array& weight, const py::array& grad_output, py::handle stride,
                       py::handle padding, py::handle dilation, py::handle groups, const Summation& summation,
                       bool channels_last, const py::object& empty, bool to_odd) {
    return by_dtype(grad_output, "grad_output", [&]<class T>(T) -> py::array {
        const py::array y = images<T>(grad_output, "grad_output"), w = kernels_of<T>(weight);
        const View<const T> yv = view<T>(y), wv = view<T>(w);
        bool batched = true;
        const Shape4 size = size_of(input_size, "input_size", true, batched);
        const Convolution g = convolution_of(size, wv.shape, stride, padding, dilation, groups, batched);
        check_grad_output<T>(y, g, batched);
        Result<T> gradient(size, channels_last, batched, empty);
        const View<T> xv = gradient.view();
        without_gil(
            [&](const Execution& e) { input_gradient(g, yv, wv, Bias<T>{}, xv, summation, e, rounding_of(to_odd)); });
        return gradient.array;
    });
}

py::array conv2d_weight(const py::array& input, py::handle weight_size, const py::array& grad_output, py::handle stride,
                        py::handle padding, py::handle dilation, py::handle groups, const Summation& summation,
                        bool channels_last, const py::object& empty, bool to_odd) {
    return by_dtype(input, "input", [&]<class T>(T) -> py::array {
        const py::array x = images<T>(input, "input"), y = images<T>(grad_output, "grad_output");
        const View<const T> xv = view<T>(x), yv = view<T>(y);
        bool four = true;
        const Shape4 size = size_of(weight_size, "weight_size", false, four);
        const Convolution g = convolution_of(xv.shape, size, stride, padding, dilation, groups, x.ndim() == 4);
        check_grad_output<T>(y, g, x.ndim() == 4);
        Result<T> gradient(size, channels_last, true, empty);
        const View<T> wv = gradient.view();
        without_gil([&](const Execution& e) { weight_gradient(g, xv, yv, wv, summation, e, rounding_of(to_odd)); });
        return gradient.array;
    });
}

py::array conv2d_bias(const py::array& grad_output, const Summation& summation, const py::object& empty, bool to_odd) {
    return by_dtype(grad_output, "grad_output", [&]<class T>(T) -> py::array {
        const py::array y = images<T>(grad_output, "grad_output");
        const View<const T> yv = view<T>(y);
        py::array gradient = array_for<T>({1, 1, 1, yv.shape[1]}, {1, 1, 1, 1}, 1, empty);
        T* const data = static_cast<T*>(gradient.mutable_data());
        without_gil([&](const Execution& e) { bias_gradient(yv, data, summation, e, rounding_of(to_odd)); });
        return gradient;
    });
}

py::array conv_transpose2d(const py::array& input, const py::array& weight, py::handle bias, py::handle stride,
                           py::handle padding, py::handle output_padding, py::handle groups, py::handle dilation,
                           const Summation& summation, bool channels_last, const py::object& empty, bool to_odd) {
    return by_dtype(input, "input", [&]<class T>(T) -> py::array {
        const py::array x = images<T>(input, "input"), w = kernels_of<T>(weight, "(C, O / groups, KH, KW)");
        const View<const T> xv = view<T>(x), wv = view<T>(w);
        const Extent border = pair(padding, "padding");
        const Convolution g = make_transposed(
            xv.shape, wv.shape, pair(stride, "stride"), {border.h, border.h, border.w, border.w},
            pair(output_padding, "output_padding"), pair(dilation, "dilation"), integer(groups, "groups", "an int"));
        py::array keep;
        const Bias<T> b = bias_of<T>(bias, g.in_channels, keep);
        Result<T> output({g.samples, g.in_channels, g.height, g.width}, channels_last, x.ndim() == 4, empty);
        const View<T> yv = output.view();
        without_gil([&](const Execution& e) { input_gradient(g, xv, wv, b, yv, summation, e, rounding_of(to_odd)); });
        return output.array;
    });
}

}  // namespace

void register_convolution(py::module_& module) {
    using py::arg;
    module.def("conv2d", &conv2d, arg("input"), arg("weight"), arg("bias"), arg("stride"), arg("padding"),
               arg("dilation"), arg("groups"), arg("summation"), arg("channels_last") = false,
               arg("empty") = py::none(), arg("to_odd") = false);
    module.def("conv2d_input", &conv2d_input, arg("input_size"), arg("weight"), arg("grad_output"), arg("stride"),
               arg("padding"), arg("dilation"), arg("groups"), arg("summation"), arg("channels_last") = false,
               arg("empty") = py::none(), arg("to_odd") = false);
    module.def("conv2d_weight", &conv2d_weight, arg("input"), arg("weight_size"), arg("grad_output"), arg("stride"),
               arg("padding"), arg("dilation"), arg("groups"), arg("summation"), arg("channels_last") = false,
               arg("empty") = py::none(), arg("to_odd") = false);
    module.def("conv2d_bias", &conv2d_bias, arg("grad_output"), arg("summation"), arg("empty") = py::none(),
               arg("to_odd") = false);
    module.def("narrow", &narrow_array, arg("array"), arg("dtype"));
    module.def("conv_transpose2d", &conv_transpose2d, arg("input"), arg("weight"), arg("bias"), arg("stride"),
               arg("padding"), arg("output_padding"), arg("groups"), arg("dilation"), arg("summation"),
               arg("channels_last") = false, arg("empty") = py::none(), arg("to_odd") = false);
}

}  // namespace detconv::bindings
