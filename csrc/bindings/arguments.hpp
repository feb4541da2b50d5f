// Python numbers, checked and named.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "detconv/geometry.hpp"

namespace detconv::bindings {

inline std::string text(pybind11::handle value) { return pybind11::cast<std::string>(pybind11::repr(value)); }

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

}  // namespace detconv::bindings
