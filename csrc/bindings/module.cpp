#include "detconv/geometry.hpp"
#include "register.hpp"

// The module as pybind11 makes it; Python finds it by PyInit__core below.
PYBIND11_MODULE(_core_of_main_interpreter, module) {
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
    detconv::bindings::register_walks(module);
}

// In a subinterpreter that shares the GIL, pybind11 waits for it for ever; so it is not begun there.
extern "C" PYBIND11_EXPORT PyObject* PyInit__core() {
    if (PyInterpreterState_Get() == PyInterpreterState_Main()) return PyInit__core_of_main_interpreter();
    PyErr_SetString(PyExc_ImportError,
                    "detconv works in the main interpreter of a process only, not in subinterpreters");
    return nullptr;
}
