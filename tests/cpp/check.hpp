// A test harness in a page: tests register themselves, checks count.
#pragma once

#include <concepts>
#include <functional>
#include <sstream>
#include <string>
#include <type_traits>

#include "detconv/geometry.hpp"

namespace detconv::test {

struct Test {
    const char* name;
    void (*run)();
    const Test* next;

    Test(const char* name, void (*run)());
};

// Runs every test; prints what failed and a line "N passed, N failed". Returns whether nothing failed.
bool run_all();

struct Place {
    const char* file;
    int line;
};

void passed();
void failed(Place place, const std::string& what, const std::string& context);

// Equal bits of floating-point numbers, but one NaN is as good as another; plain equality of everything else.
template <class T>
bool same(const T& a, const T& b) {
    if constexpr (std::floating_point<T>)
        return a == b ? __builtin_signbit(a) == __builtin_signbit(b) : a != a && b != b;
    else
        return a == b;
}

// For messages: floating-point numbers exactly, lists element by element.
template <class T>
std::string text(const T& value) {
    std::ostringstream out;
    if constexpr (requires { out << value; })
        out << std::hexfloat << value;
    else
        for (const auto& element : value) out << text(element) << ' ';
    return out.str();
}

template <class T>
void check_same(Place place, const char* expression, const T& actual, const std::type_identity_t<T>& expected,
                const std::string& context) {
    if (same(actual, expected))
        passed();
    else
        failed(place, std::string(expression) + " is " + text(actual) + ", expected " + text(expected), context);
}

void check_invalid(Place place, const std::function<void()>& action, const std::string& part);

}  // namespace detconv::test

#define DETCONV_JOIN_(a, b) a##b
#define DETCONV_JOIN(a, b) DETCONV_JOIN_(a, b)
#define TEST(name)                                                                                          \
    static void DETCONV_JOIN(test_, __LINE__)();                                                            \
    static const ::detconv::test::Test DETCONV_JOIN(entry_, __LINE__)(name, DETCONV_JOIN(test_, __LINE__)); \
    static void DETCONV_JOIN(test_, __LINE__)()

#define DETCONV_PLACE (::detconv::test::Place{__FILE__, __LINE__})
#define DETCONV_CONTEXT(...) (std::string() __VA_OPT__(+(std::ostringstream() << __VA_ARGS__).str()))

// CHECK(condition, context << more): the context is shown, and evaluated, on failure only.
#define CHECK(condition, ...)                \
    ((condition) ? ::detconv::test::passed() \
                 : ::detconv::test::failed(DETCONV_PLACE, #condition, DETCONV_CONTEXT(__VA_ARGS__)))

// Equal bits, or equal; here the context is always evaluated.
#define CHECK_SAME(actual, expected, ...) \
    ::detconv::test::check_same(DETCONV_PLACE, #actual, actual, expected, DETCONV_CONTEXT(__VA_ARGS__))

// The expression throws InvalidArgument with a message that contains the text.
#define CHECK_INVALID(expression, part) \
    ::detconv::test::check_invalid(DETCONV_PLACE, [&] { static_cast<void>(expression); }, part)
