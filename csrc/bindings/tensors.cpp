// conv2d of torch's tensors, which are read and made in C: a NumPy view of each costs 0.5 us, an array and a tensor of
// the result 0.8 us.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <tuple>
#include <utility>

#include "arguments.hpp"
#include "dlpack.hpp"
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
        const auto call = [&]<class T>(T) {
            // Copied: the shapes are torch's own, and other threads run meanwhile. The elements are not kept alive, as
            // little as by torch's operators: a thread must not resize or replace what another computes with.
            const View<const T> xv = view<T>(*x), wv = view<T>(*w);
            const Bias<T> bv = b ? Bias<T>{data_of<const T>(*b), b->strides[0]} : Bias<T>{};
            const bool batched = x->axes == 4, channels_last = suggests_channels_last(*x) || suggests_channels_last(*w);
            const Convolution g = convolution_of(xv.shape, wv.shape, stride, padding, dilation, groups, batched);
            return made(convolve(g, xv, wv, bv, summation, channels_last), batched);
        };
        return x->type.bits == 32 ? call(float()) : call(double());
    }

private:
    // A tensor of float32 or float64 in the CPU's memory, without a gradient.
    std::optional<dlpack::Tensor> read(py::handle object, bool differentiates) const {
        bool plain = false;
        for (const py::handle type : plain_) plain |= py::type::handle_of(object).is(type);
        if (!plain || (differentiates && object.attr(requires_grad_).ptr() == Py_True)) return {};
        // DLPack knows no lazy negation, and torch does not refuse it here.
        const auto negated = py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(object.ptr(), is_neg_.ptr()));
        if (!negated) throw py::error_already_set();
        if (negated.ptr() == Py_True) return {};
        dlpack::Tensor tensor;
        if (exchange_->read(object.ptr(), &tensor) != 0) {  // sparse, quantized, nested, wrapped by a transform
            PyErr_Clear();
            return {};
        }
        const dlpack::ElementType type = tensor.type;
        const bool known = type.code == dlpack::floating && type.lanes == 1 && (type.bits == 32 || type.bits == 64);
        // Null: no elements, or none in memory, as of a functional tensor.
        if (!known || tensor.device.type != dlpack::cpu || tensor.data == nullptr) return {};
        if (reinterpret_cast<std::uintptr_t>(data_of<char>(tensor)) % (type.bits / 8) != 0) return {};
        return tensor;
    }

    template <class T>
    py::object made(Result<T> result, bool batched) const {
        struct Owner {
            Result<T> result;
            dlpack::ManagedTensor managed;
        };
        auto owner = std::make_unique<Owner>(Owner{std::move(result), {}});
        const std::int32_t first = batched ? 0 : 1;
        owner->managed = {.version = {dlpack::major_version, dlpack::minor_version},
                          .context = owner.get(),
                          .release = [](dlpack::ManagedTensor* self) { delete static_cast<Owner*>(self->context); },
                          .flags = 0,
                          .tensor = {.data = owner->result.memory.get(),
                                     .device = {dlpack::cpu, 0},
                                     .axes = 4 - first,
                                     .type = {dlpack::floating, 8 * sizeof(T), 1},
                                     .shape = owner->result.shape.data() + first,
                                     .strides = owner->result.strides.data() + first,
                                     .byte_offset = 0}};
        void* tensor = nullptr;
        if (exchange_->adopt(&owner.release()->managed, &tensor) != 0) throw py::error_already_set();
        return py::reinterpret_steal<py::object>(static_cast<PyObject*>(tensor));
    }

    const dlpack::Exchange* exchange_;
    py::tuple plain_;
    // Made once: a name costs 50 ns at each call.
    py::object requires_grad_ = interned("requires_grad"), is_neg_ = interned("is_neg");
};

// Tensors::conv2d for tensors of exactly these types; None where their library offers no interface that is known here.
py::object tensor_conv2d(const py::tuple& plain) {
    const py::object offered = py::getattr(plain[0], "__dlpack_c_exchange_api__", py::none());
    if (!PyCapsule_IsValid(offered.ptr(), dlpack::capsule_name)) return py::none();
    const auto* exchange =
        static_cast<const dlpack::Exchange*>(PyCapsule_GetPointer(offered.ptr(), dlpack::capsule_name));
    while (exchange != nullptr && exchange->version.major != dlpack::major_version) exchange = exchange->older;
    if (exchange == nullptr || exchange->read == nullptr) return py::none();
    const Tensors tensors(exchange, plain);
    return py::cpp_function([tensors](py::handle input, py::handle weight, py::handle bias, py::handle stride,
                                      py::handle padding, py::handle dilation, py::handle groups,
                                      const Summation& summation, bool differentiates) {
        return tensors.conv2d(input, weight, bias, stride, padding, dilation, groups, summation, differentiates);
    });
}

}  // namespace

void register_tensors(py::module_& module) { module.def("tensor_conv2d", &tensor_conv2d, py::arg("plain")); }

}  // namespace detconv::bindings
