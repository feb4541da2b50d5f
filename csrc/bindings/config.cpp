#include <pybind11/stl.h>

#include <string>

#include "arguments.hpp"
#include "detconv/build_config.hpp"
#include "detconv/dispatch.hpp"
#include "detconv/parallel.hpp"
#include "register.hpp"

namespace py = pybind11;

namespace detconv::bindings {
namespace {

py::dict build_info() {
    py::dict info;
    info["version"] = DETCONV_VERSION;
    info["compiler"] = DETCONV_COMPILER;
    info["flags"] = DETCONV_FLAGS;
    info["instruction_sets_built"] = dispatch::built();
    info["instruction_sets_usable"] = dispatch::usable();
    info["instruction_set"] = dispatch::current().name;
    info["openmp"] = parallel::has_openmp();
    info["num_threads"] = parallel::num_threads();
    return info;
}

void set_num_threads(py::handle n) {
    constexpr Index most = parallel::most_threads;
    const Index threads = integer(n, "n", "an int");
    if (threads < 1 || threads > most)
        throw InvalidArgument("n must be between 1 and " + std::to_string(most) + " threads; got " + text(n));
    parallel::set_num_threads(static_cast<int>(threads));
}

py::object force_instruction_set(const std::optional<std::string>& name) {
    if (name && name->empty()) throw InvalidArgument("instruction set must not be empty; None ends the forcing");
    const std::string before = dispatch::force(name.value_or(""));
    return before.empty() ? py::object(py::none()) : py::object(py::str(before));
}

}  // namespace

void register_config(py::module_& module) {
    module.attr("__version__") = DETCONV_VERSION;
    module.def("build_info", &build_info);
    module.def("set_num_threads", &set_num_threads, py::arg("n"));
    module.def("get_num_threads", &parallel::num_threads);
    module.def("force_instruction_set", &force_instruction_set, py::arg("name"));
}

}  // namespace detconv::bindings
