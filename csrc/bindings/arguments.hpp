// Python's numbers and words, checked and named.
#pragma once

#include <pybind11/pybind11.h>

#include <array>
#include <string>

#include "detconv/geometry.hpp"

namespace detconv::bindings {

// The value's repr as messages show it; lone surrogates, which UTF-8 has not, are spelt out.
inline std::string text(pybind11::handle value) {
    namespace py = pybind11;
    const py::object repr = py::repr(value);
    const auto utf8 =
        py::reinterpret_steal<py::bytes>(PyUnicode_AsEncodedString(repr.ptr(), "utf-8", "backslashreplace"));
    if (!utf8) throw py::error_already_set();
    return shortened(std::string_view(utf8));
}

inline Index integer(pybind11::handle value, const char* name, const char* valid) {
    namespace py = pybind11;
    // bool is an int to Python; as a stride it is a mistake.
    py::object number;
    if (PyIndex_Check(value.ptr()) && !PyBool_Check(value.ptr()))
        number = py::reinterpret_steal<py::object>(PyNumber_Index(value.ptr()));
    if (!number) {
        PyErr_Clear();
        throw py::type_error(std::string(name) + " must be " + valid + "; got " + text(value));
    }
    int overflow = 0;
    const Index result = PyLong_AsLongLongAndOverflow(number.ptr(), &overflow);
    if (overflow != 0) throw InvalidArgument(std::string(name) + " does not fit in 64 bits; got " + text(value));
    return result;
}

inline Extent pair(pybind11::handle value, const char* name) {
    constexpr const char* valid = "an int or a pair of ints (height, width)";
    if (PyTuple_Check(value.ptr()) || PyList_Check(value.ptr())) {
        const auto sequence = pybind11::reinterpret_borrow<pybind11::sequence>(value);
        // torch takes a list of one for both axes, too.
        if (sequence.size() == 1) return pair(sequence[0], name);
        if (sequence.size() == 2) return {integer(sequence[0], name, valid), integer(sequence[1], name, valid)};
        throw InvalidArgument(std::string(name) + " must be " + valid + "; got " + text(value));
    }
    const Index both = integer(value, name, valid);
    return {both, both};
}

inline Padding padding_of(pybind11::handle value, const std::array<Index, 4>& weight, Extent stride, Extent dilation) {
    if (PyUnicode_Check(value.ptr())) {
        if (PyUnicode_CompareWithASCIIString(value.ptr(), "same") == 0) return same_padding(weight, stride, dilation);
        if (PyUnicode_CompareWithASCIIString(value.ptr(), "valid") == 0) return {};
        throw InvalidArgument("padding must be an int, a pair of ints, \"same\" or \"valid\"; got " + text(value));
    }
    const Extent both = pair(value, "padding");
    return {both.h, both.h, both.w, both.w};
}

inline Convolution convolution_of(const std::array<Index, 4>& input, const std::array<Index, 4>& weight,
                                  pybind11::handle stride, pybind11::handle padding, pybind11::handle dilation,
                                  pybind11::handle groups, bool batched) {
    const Extent step = pair(stride, "stride"), spread = pair(dilation, "dilation");
    const Padding border = padding_of(padding, weight, step, spread);
    return make_convolution(input, weight, step, border, spread, integer(groups, "groups", "an int"), batched);
}

}  // namespace detconv::bindings
