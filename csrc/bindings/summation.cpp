#include "detconv/summation.hpp"

#include <string>

#include "execution.hpp"
#include "register.hpp"

namespace py = pybind11;

namespace detconv::bindings {

void register_summation(py::module_& module) {
    py::class_<Summation>(module, "Summation")
        .def(py::init([](const std::string& method, const std::string& order, const std::string& products,
                         const std::string& bias, Index block, const std::string& samples) {
                 try {
                     return Summation(method, order, products, bias, block, samples, signal_pending);
                 } catch (const parallel::Interrupted&) {
                     throw py::error_already_set();
                 }
             }),
             py::arg("method"), py::arg("order"), py::arg("products"), py::arg("bias"), py::arg("block"),
             py::arg("samples"))
        .def_property_readonly("method", [](const Summation& s) { return row_of(s.method()).name; })
        .def_property_readonly("order", &Summation::order)
        .def_property_readonly("products", [](const Summation& s) { return name_of(s.products()); })
        .def_property_readonly("bias", [](const Summation& s) { return name_of(s.bias()); })
        .def_property_readonly("block", &Summation::block)
        .def_property_readonly("samples", [](const Summation& s) { return name_of(s.samples()); })
        .def_property_readonly("explicit_order", &Summation::has_explicit_order);

    module.def("methods", [] {
        py::tuple names(methods.size());
        for (std::size_t i = 0; i < methods.size(); ++i) names[i] = methods[i].name;
        return names;
    });
}

}  // namespace detconv::bindings
