// How every call into the engine runs: without the GIL, and seeing a Ctrl-C.
#pragma once

#include <pybind11/pybind11.h>

#include "detconv/dispatch.hpp"
#include "detconv/driver.hpp"

namespace detconv::bindings {

// Asks Python for a pending Ctrl-C; on the calling thread, which released the GIL.
inline bool signal_pending() {
    const pybind11::gil_scoped_acquire gil;
    return PyErr_CheckSignals() != 0;
}

template <class Work>
void without_gil(Work&& work) {
    const Execution execution{dispatch::current(), parallel::num_threads(), signal_pending};
    try {
        const pybind11::gil_scoped_release released;
        work(execution);
    } catch (const parallel::Interrupted&) {
        throw pybind11::error_already_set();  // what the signal handler raised
    }
}

}  // namespace detconv::bindings
