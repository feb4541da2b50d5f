#include "detconv/geometry.hpp"
#include "register.hpp"

PYBIND11_MODULE(_core, module) {
    module.doc() = "The compiled engine of detconv. Use the functions of the package detconv instead.";
    pybind11::register_exception_translator([](std::exception_ptr pending) {
        try {
            if (pending) std::rethrow_exception(pending);
        } catch (const detconv::InvalidArgument& error) {
            PyErr_SetString(PyExc_ValueError, error.what());
        }
    });
    detconv::bindings::register_config(module);
    detconv::bindings::register_summation(module);
    detconv::bindings::register_convolution(module);
    detconv::bindings::register_tensors(module);
    detconv::bindings::register_assess(module);
}
