#include "check.hpp"

#include <cstdio>
#include <exception>

namespace detconv::test {
namespace {

const Test* first = nullptr;
const char* running = "";
long passed_count = 0, failed_count = 0;

}  // namespace

Test::Test(const char* test_name, void (*test)()) : name(test_name), run(test), next(first) { first = this; }

void passed() { ++passed_count; }

void failed(Place place, const std::string& what, const std::string& context) {
    constexpr long shown = 30;
    if (++failed_count > shown) return;
    const std::string more = context.empty() ? "" : " (" + context + ')';
    std::printf("%s:%d: %s: %s%s\n", place.file, place.line, running, what.c_str(), more.c_str());
}

void check_invalid(Place place, const std::function<void()>& action, const std::string& part) {
    std::string message;
    try {
        action();
    } catch (const InvalidArgument& error) {
        message = error.what();
    }
    if (message.find(part) != message.npos)
        passed();
    else
        failed(place, "no error that says: " + part, "but: " + message);
}

bool run_all() {
    for (const Test* test = first; test; test = test->next) {
        running = test->name;
        try {
            test->run();
        } catch (const std::exception& error) {
            failed({__FILE__, __LINE__}, "threw", error.what());
        }
    }
    std::printf("%ld passed, %ld failed\n", passed_count, failed_count);
    return failed_count == 0;
}

}  // namespace detconv::test
