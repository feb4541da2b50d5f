// One concept a file, one function each; module.cpp is the list of them.
#pragma once

#include <pybind11/pybind11.h>

namespace detconv::bindings {

void register_config(pybind11::module_& module);
void register_summation(pybind11::module_& module);
void register_convolution(pybind11::module_& module);
void register_walks(pybind11::module_& module);
void register_tensors(pybind11::module_& module);
void register_assess(pybind11::module_& module);

}  // namespace detconv::bindings
