// torch's tensors, read in C: as NumPy arrays, and by conv2d at once, where a NumPy array of each costs 0.5 us.
//
// torch's own tensor.numpy() leaves a mark: the storage can never be resized again, which torch.cat(..., out=) and
// FullyShardedDataParallel do. Reading through DLPack leaves none. For the same reason results are tensors that torch
// allocates: memory that another library owns cannot be resized either.
#include <pybind11/numpy.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "arguments.hpp"
#include "dlpack.hpp"
#include "execution.hpp"
#include "operands.hpp"
#include "register.hpp"

namespace py = pybind11;

namespace detconv::bindings {
namespace {

py::object interned(const char* name) { return py::reinterpret_steal<py::object>(PyUnicode_InternFromString(name)); }

template <class T>
T* data_of(const dlpack::Tensor& tensor) {
    return reinterpret_cast<T*>(static_cast<char*>(tensor.data) + tensor.byte_offset);
}

template <class T>
View<const T> view(const dlpack::Tensor& tensor) {
    return view_of(data_of<const T>(tensor), tensor.axes, tensor.shape, tensor.strides);
}

// As suggests_channels_last in torch/tensors.py, for tensors that have elements.
bool suggests_channels_last(const dlpack::Tensor& tensor) {
    const std::int64_t *const size = tensor.shape + (tensor.axes - 3), *const by = tensor.strides + (tensor.axes - 3);
    const auto [c, h, w] = std::tuple(size[0], size[1], size[2]);
    const auto [by_c, by_h, by_w] = std::tuple(by[0], by[1], by[2]);
    const std::int64_t by_n = tensor.axes == 4 ? tensor.strides[0] : c * by_c;
    return by_w >= c * by_c && by_h >= w * by_w && by_n >= h * by_h && by_c != 0 && by_c != h * by_h;
}

// What the library of a class of arrays offers to read them in C; null where it is nothing that is known here.
const dlpack::Exchange* exchange_of(py::handle type) {
    const py::object offered = py::getattr(type, "__dlpack_c_exchange_api__", py::none());
    if (!PyCapsule_IsValid(offered.ptr(), dlpack::capsule_name)) return nullptr;
    const auto* exchange =
        static_cast<const dlpack::Exchange*>(PyCapsule_GetPointer(offered.ptr(), dlpack::capsule_name));
    while (exchange != nullptr && exchange->version.major != dlpack::major_version) exchange = exchange->older;
    return exchange == nullptr || exchange->read == nullptr ? nullptr : exchange;
}

bool is_empty(const dlpack::Tensor& tensor) {
    return std::any_of(tensor.shape, tensor.shape + tensor.axes, [](std::int64_t size) { return size == 0; });
}

// A tensor in the CPU's memory, or one without elements, whose data is null. None for those that are elsewhere or
// nowhere (sparse, quantized, nested, wrapped by a transform, functional, freed), and those of which DLPack does not
// say all: a lazy negation.
std::optional<dlpack::Tensor> read(const dlpack::Exchange& exchange, py::handle object, py::handle is_neg) {
    const auto negated = py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(object.ptr(), is_neg.ptr()));
    if (!negated) throw py::error_already_set();
    if (negated.ptr() == Py_True) return {};
    dlpack::Tensor tensor;
    if (exchange.read(object.ptr(), &tensor) != 0) {
        PyErr_Clear();
        return {};
    }
    if (tensor.device.type != dlpack::cpu || tensor.type.lanes != 1) return {};
    if (tensor.data == nullptr && !is_empty(tensor)) return {};
    return tensor;
}

class Tensors {
public:
    Tensors(const dlpack::Exchange* exchange, py::tuple plain) : exchange_(exchange), plain_(std::move(plain)) {}

    // None where the arguments need more than to be read.
    py::object conv2d(py::handle input, py::handle weight, py::handle bias, py::handle stride, py::handle padding,
                      py::handle dilation, py::handle groups, const Summation& summation, bool differentiates) const {
        const auto x = read(input, differentiates);
        if (!x || (x->axes != 3 && x->axes != 4)) return py::none();
        const auto w = read(weight, differentiates);
        if (!w || w->type.bits != x->type.bits || w->axes != 4) return py::none();
        std::optional<dlpack::Tensor> b;
        if (!bias.is_none()) {
            b = read(bias, differentiates);
            if (!b || b->type.bits != x->type.bits || b->axes != 1 || b->shape[0] != w->shape[0]) return py::none();
        }
        const auto call = [&]<class T>(T) -> py::object {
            // Copied: the shapes are torch's own, and other threads run meanwhile. The elements are not kept alive, as
            // little as by torch's operators: a thread must not resize or replace what another computes with.
            const View<const T> xv = view<T>(*x), wv = view<T>(*w);
            const Bias<T> bv = b ? Bias<T>{data_of<const T>(*b), b->strides[0]} : Bias<T>{};
            const bool batched = x->axes == 4, channels_last = suggests_channels_last(*x) || suggests_channels_last(*w);
            const Convolution g = convolution_of(xv.shape, wv.shape, stride, padding, dilation, groups, batched);
            const Made<T> output = made<T>(input, g, channels_last, batched);
            if (!output.tensor) return py::none();
            without_gil([&](const Execution& e) { forward(g, xv, wv, bv, output.view, summation, e); });
            return output.tensor;
        };
        return x->type.bits == 32 ? call(float()) : call(double());
    }

private:
    // A tensor of float32 or float64 in the CPU's memory, without a gradient and aligned.
    std::optional<dlpack::Tensor> read(py::handle object, bool differentiates) const {
        bool plain = false;
        for (const py::handle type : plain_) plain |= py::type::handle_of(object).is(type);
        if (!plain || (differentiates && object.attr(requires_grad_).ptr() == Py_True)) return {};
        const auto found = detconv::bindings::read(*exchange_, object, is_neg_);
        if (!found || found->data == nullptr) return {};
        const dlpack::ElementType type = found->type;
        if (type.code != dlpack::floating || (type.bits != 32 && type.bits != 64)) return {};
        if (reinterpret_cast<std::uintptr_t>(data_of<char>(*found)) % (type.bits / 8) != 0) return {};
        return found;
    }

    template <class T>
    struct Made {
        py::object tensor;
        View<T> view;
    };

    // A new tensor for the output, and its memory; null where a mode of torch makes something else of it.
    template <class T>
    Made<T> made(py::handle like, const Convolution& g, bool channels_last, bool batched) const {
        const Shape4 shape{g.samples, g.out_channels, g.out_height, g.out_width};
        const Shape4 strides = packed(shape, channels_last);
        const std::size_t axes = batched ? 4 : 3;
        const py::tuple sizes = tuple_of(shape, axes), steps = tuple_of(strides, axes);
        PyObject* const arguments[] = {like.ptr(), sizes.ptr(), steps.ptr()};
        auto tensor = py::reinterpret_steal<py::object>(
            PyObject_VectorcallMethod(new_empty_strided_.ptr(), arguments, 3, nullptr));
        if (!tensor) throw py::error_already_set();
        const auto found = read(tensor, true);
        if (!found || found->type.bits != 8 * sizeof(T) || static_cast<std::size_t>(found->axes) != axes) return {};
        const View<T> memory = view_of(data_of<T>(*found), found->axes, found->shape, found->strides);
        if (memory.shape != shape) return {};
        return {std::move(tensor), memory};
    }

    const dlpack::Exchange* exchange_;
    py::tuple plain_;
    // Made once: a name costs 50 ns at each call.
    py::object requires_grad_ = interned("requires_grad"), is_neg_ = interned("is_neg");
    py::object new_empty_strided_ = interned("new_empty_strided");
};

// Tensors::conv2d for tensors of exactly these types; None where their library offers no interface that is known here.
py::object tensor_conv2d(const py::tuple& plain) {
    const dlpack::Exchange* const exchange = exchange_of(plain[0]);
    if (exchange == nullptr) return py::none();
    const Tensors tensors(exchange, plain);
    return py::cpp_function([tensors](py::handle input, py::handle weight, py::handle bias, py::handle stride,
                                      py::handle padding, py::handle dilation, py::handle groups,
                                      const Summation& summation, bool differentiates) {
        return tensors.conv2d(input, weight, bias, stride, padding, dilation, groups, summation, differentiates);
    });
}

// The dtype of NumPy's; none where it has none of this kind.
std::optional<py::dtype> dtype_of(dlpack::ElementType type) {
    if (type.code == dlpack::floating && type.bits == 32) return py::dtype::of<float>();  // most, and fast
    if (type.code == dlpack::floating && type.bits == 64) return py::dtype::of<double>();
    constexpr std::array<const char*, 3> kinds{"i", "u", "f"};
    if (type.code >= kinds.size()) return {};
    return py::dtype(kinds[type.code] + std::to_string(type.bits / 8));
}

// A function of a tensor of this type: a NumPy array on its memory, which lives as long as the array; None where there
// is none to be had. None in place of the function where the library offers no interface that is known here.
py::object tensor_reader(py::handle type) {
    const dlpack::Exchange* const exchange = exchange_of(type);
    if (exchange == nullptr) return py::none();
    return py::cpp_function([exchange, is_neg = interned("is_neg")](py::handle object) -> py::object {
        const auto found = read(*exchange, object, is_neg);
        const auto dtype = found ? dtype_of(found->type) : std::nullopt;
        if (!dtype) return py::none();
        const std::vector<py::ssize_t> shape(found->shape, found->shape + found->axes);
        std::vector<py::ssize_t> strides(found->strides, found->strides + found->axes);
        for (py::ssize_t& stride : strides) stride *= dtype->itemsize();
        static char nothing = 0;  // a null pointer would make NumPy take memory of its own, and forget the tensor
        return py::array(*dtype, shape, strides, found->data ? data_of<char>(*found) : &nothing, object);
    });
}

}  // namespace

void register_tensors(py::module_& module) {
    module.def("tensor_conv2d", &tensor_conv2d, py::arg("plain"));
    module.def("tensor_reader", &tensor_reader, py::arg("type"));
}

}  // namespace detconv::bindings
