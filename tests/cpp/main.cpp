// The engine's own tests, which need neither Python nor NumPy: so they also run emulated, and under the sanitizers.
//
//   detconv_selftest                     every check, with every instruction set that this machine can run
//   detconv_selftest --golden FILE       the golden hashes of FILE, with the instruction set in use
//   detconv_selftest --instruction-set   its name
#include <cstdio>
#include <exception>
#include <string>

#include "check.hpp"
#include "detconv/dispatch.hpp"
#include "golden.hpp"

int main(int count, char** arguments) try {
    const std::string first = count > 1 ? arguments[1] : "";
    if (count == 1) return detconv::test::run_all() ? 0 : 1;
    if (count == 3 && first == "--golden") return detconv::test::check_golden(arguments[2]) ? 0 : 1;
    if (count == 2 && first == "--instruction-set") return std::puts(detconv::dispatch::current().name) < 0;
    std::fputs("usage: detconv_selftest [--golden FILE | --instruction-set]\n", stderr);
    return 2;
} catch (const std::exception& error) {
    std::fprintf(stderr, "detconv_selftest: %s\n", error.what());
    return 2;
}
