#include "detconv/assess.hpp"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <optional>

#include "detconv/dispatch.hpp"
#include "execution.hpp"
#include "register.hpp"

namespace py = pybind11;

namespace detconv::bindings {
namespace {

template <class T>
using Dense = py::array_t<T, py::array::c_style>;
using FormatTuple = std::array<int, 3>;

Format format_of(const FormatTuple& f) { return {f[0], f[1], f[2]}; }

template <class T>
py::tuple assess_elements(const Dense<T>& candidate, const Dense<T>& exact, const Dense<T>& magnitude,
                          const std::optional<Dense<T>>& shift, const Dense<double>& hard, const Dense<double>& likely,
                          const Dense<double>& tiny, const Dense<double>& roots, double exact_below, double scale,
                          const FormatTuple& accumulator, const FormatTuple& stored) {
    const Index count = exact.size(), positions = hard.size();
    if (candidate.size() != count || magnitude.size() != count || (shift && shift->size() != count) ||
        likely.size() != positions || tiny.size() != positions || roots.size() != positions ||
        (count > 0 && (positions < 1 || count % positions != 0)))
        throw InvalidArgument(
            "candidate, exact, magnitude and shift must have one size, a multiple of that of the bounds");
    py::array_t<std::uint8_t> status(std::vector<py::ssize_t>(exact.shape(), exact.shape() + exact.ndim()));
    const Elements<T> elements{count, candidate.data(), exact.data(), magnitude.data(),
                               shift ? shift->data() : nullptr};
    const Claim claim{positions,   hard.data(), likely.data(),          tiny.data(),      roots.data(),
                      exact_below, scale,       format_of(accumulator), format_of(stored)};
    std::uint8_t* const target = status.mutable_data();
    Assessment found;
    without_gil([&](const Execution& e) { found = assess(elements, claim, target, e.threads, e.interrupted); });
    return py::make_tuple(status, found.counts, found.worst, found.worst_at,
                          py::make_tuple(found.squares.count, found.squares.error, found.squares.exact,
                                         found.squares.magnitude, found.squares.spread));
}

}  // namespace

void register_assess(py::module_& module) {
    auto def = [&]<class T>(T) {
        module.def("assess", &assess_elements<T>, py::arg("candidate").noconvert(), py::arg("exact").noconvert(),
                   py::arg("magnitude").noconvert(), py::arg("shift").noconvert(), py::arg("hard"), py::arg("likely"),
                   py::arg("tiny"), py::arg("roots"), py::arg("exact_below"), py::arg("scale"), py::arg("accumulator"),
                   py::arg("stored"));
    };
    def(float());
    def(double());
}

}  // namespace detconv::bindings
