// A test harness in a page: tests register themselves, checks count.
#pragma once

#include <concepts>
#include <iosfwd>
#include <sstream>
#include <string>
#include <string_view>

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

void passed();
void failed(const char* file, int line, const std::string& what);

// Equal bits of floating-point numbers, but one NaN is as good as another; plain equality of everything else.
template <class T>
bool same(const T& a, const T& b) {
    if constexpr (std::floating_point<T>)
        return a == b ? __builtin_signbit(a) == __builtin_signbit(b) : a != a && b != b;
    else
        return a == b;
}

template <std::floating_point T>
std::string text(T value) {
    std::ostringstream out;
    out << std::hexfloat << value;
    return out.str();
}
template <class T>
const T& text(const T& value) {
    return value;
}

}  // namespace detconv::test

#define DETCONV_JOIN_(a, b) a##b
#define DETCONV_JOIN(a, b) DETCONV_JOIN_(a, b)
#define TEST(name)                                                                                             \
    static void DETCONV_JOIN(test_, __LINE__)();                                                               \
    static const ::detconv::test::Test DETCONV_JOIN(entry_, __LINE__)(name, DETCONV_JOIN(test_, __LINE__));    \
    static void DETCONV_JOIN(test_, __LINE__)()

#define DETCONV_FAILED(what, ...)                                                                              \
    ::detconv::test::failed(__FILE__, __LINE__, (std::ostringstream() << what __VA_OPT__(<< "; " <<) __VA_ARGS__).str())

// CHECK(condition, context << more): the context is shown, and evaluated, on failure only.
#define CHECK(condition, ...)                                                                                  \
    ((condition) ? ::detconv::test::passed() : DETCONV_FAILED(#condition __VA_OPT__(, ) __VA_ARGS__))

#define CHECK_SAME(actual, expected, ...)                                                                      \
    do {                                                                                                       \
        const auto& actual_ = (actual);                                                                        \
        const std::remove_cvref_t<decltype(actual_)> expected_ = (expected);                                   \
        if (::detconv::test::same(actual_, expected_))                                                         \
            ::detconv::test::passed();                                                                         \
        else                                                                                                   \
            DETCONV_FAILED(#actual " is " << ::detconv::test::text(actual_) << ", expected "                   \
                                          << ::detconv::test::text(expected_) __VA_OPT__(, ) __VA_ARGS__);     \
    } while (0)

// The expression throws InvalidArgument with a message that contains the text.
#define CHECK_INVALID(expression, part, ...)                                                                   \
    do {                                                                                                       \
        std::string message_ = "no error at all";                                                              \
        try {                                                                                                  \
            static_cast<void>(expression);                                                                     \
        } catch (const ::detconv::InvalidArgument& error) {                                                    \
            message_ = error.what();                                                                           \
        }                                                                                                      \
        CHECK(message_.find(part) != std::string::npos, "the message: " << message_ __VA_OPT__(<< "; " <<) __VA_ARGS__); \
    } while (0)
