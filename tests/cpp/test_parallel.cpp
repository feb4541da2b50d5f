#include "detconv/parallel.hpp"

#include <atomic>
#include <cfenv>
#include <cmath>
#include <limits>
#include <mutex>
#include <set>
#include <thread>

#if defined(__unix__) || defined(__APPLE__)
#    include <sys/wait.h>
#    include <unistd.h>
#endif
#if defined(__SSE2__)
#    include <immintrin.h>
#endif

#include "check.hpp"
#include "layer.hpp"

namespace detconv::test {
namespace {

// The whole floating-point state of this thread, and one that the engine must not compute in: upward, subnormals
// flushed, flags raised.
#if defined(__SSE2__)
using State = unsigned;
State state() { return _mm_getcsr(); }
void set_state(State value) { _mm_setcsr(value); }
constexpr State hostile = 0xdf80 | 0x15, ordinary = 0x1f80;
#elif defined(__aarch64__)
using State = std::uint64_t;
State state() {
    std::uint64_t control, status;
    asm volatile("mrs %0, fpcr\n\tmrs %1, fpsr" : "=r"(control), "=r"(status));
    return control | status << 32;
}
void set_state(State value) {
    asm volatile("msr fpcr, %0\n\tmsr fpsr, %1" : : "r"(value & 0xffffffff), "r"(value >> 32));
}
constexpr State hostile = 0x01400000 | State(0x15) << 32, ordinary = 0;
#else
using State = int;
State state() { return std::fegetround(); }
void set_state(State value) { std::fesetround(value); }
constexpr State hostile = FE_UPWARD, ordinary = FE_TONEAREST;
#endif

// Nearest-even, and subnormals are numbers: observed, by arithmetic that the compiler cannot do beforehand.
bool computes_as_the_contract_says() {
    volatile double one = 1, half_ulp = 0x1p-53, smallest = std::numeric_limits<double>::denorm_min();
    return one + half_ulp == 1 && one - half_ulp / 2 == 1 && -one - half_ulp == -1 && smallest / one == smallest &&
           smallest * 3 > smallest * 2;
}

TEST("environment: the contract's within, the caller's again without") {
    CHECK(computes_as_the_contract_says());
    set_state(hostile);
    const State before = state();
    const bool outside = computes_as_the_contract_says();
    State inside, restored;
    bool sound;
    set_state(hostile);
    {
        const parallel::FloatEnvironment environment;
        inside = state();
        sound = computes_as_the_contract_says();
    }
    restored = state();
    set_state(ordinary);
    CHECK(!outside);
    CHECK(sound);
    CHECK_SAME(inside, ordinary);
    CHECK_SAME(restored, before);
}

TEST("environment: flags tell what happened") {
    volatile double one = 1, three = 3, huge = 1e308, tiny = 1e-308, zero = 0, sink;
    auto after = [&](auto&& work) {
        parallel::Flags::clear();
        work();
        return parallel::Flags::read();
    };
    const auto nothing = after([&] { sink = one + three; });
    CHECK(!nothing.inexact && !nothing.underflow && !nothing.overflow && !nothing.invalid);
    CHECK(after([&] { sink = one / three; }).inexact);
    const auto under = after([&] { sink = tiny * tiny; });
    CHECK(under.underflow && under.inexact && !under.overflow && !under.invalid);
    const auto over = after([&] { sink = huge * huge; });
    CHECK(over.overflow && over.inexact && !over.underflow && !over.invalid);
    CHECK(after([&] { sink = zero / zero; }).invalid);
    static_cast<void>(sink);
}

TEST("threads: every one runs once, in the contract's environment") {
    for (const int threads : {1, 2, 5}) {
        std::mutex lock;
        std::set<int> seen;
        int calls = 0;
        bool sound = true;
        const parallel::InterruptCheck never;
        parallel::Control control(never);
        set_state(hostile);
        const State before = state();
        parallel::run(threads, control, [&](int thread) {
            const bool here = computes_as_the_contract_says();
            const std::lock_guard guard(lock);
            seen.insert(thread), ++calls, sound &= here;
        });
        const State after = state();
        set_state(ordinary);
        CHECK_SAME(after, before);
        CHECK(sound);
        const int expected = parallel::has_openmp() ? threads : 1;
        CHECK(calls == expected && static_cast<int>(seen.size()) == expected && seen.contains(0), calls);
    }
}

TEST("threads: the first exception stops all and is thrown again") {
    for (const int threads : {1, 3})
        for (int thrower = 0; thrower < (parallel::has_openmp() ? threads : 1); ++thrower) {
            const parallel::InterruptCheck never;
            parallel::Control control(never);
            std::string caught;
            try {
                parallel::run(threads, control, [&](int thread) {
                    if (thread == thrower) throw std::runtime_error("from a thread");
                    while (!control.should_stop(thread == 0)) {
                    }
                });
            } catch (const std::runtime_error& error) {
                caught = error.what();
            }
            CHECK_SAME(caught, "from a thread");
            CHECK(control.stopped() && !control.interrupted());
        }
}

TEST("threads: an interruption is asked for on the calling thread, and stops all") {
    for (const int threads : {1, 3}) {
        const auto caller = std::this_thread::get_id();
        std::atomic<int> asked = 0, elsewhere = 0;
        const parallel::InterruptCheck check = [&] {
            elsewhere += std::this_thread::get_id() != caller;
            return ++asked == 2;
        };
        parallel::Control control(check);
        bool interrupted = false;
        try {
            parallel::run(threads, control, [&](int thread) {
                while (!control.should_stop(thread == 0)) {
                }
            });
        } catch (const parallel::Interrupted&) {
            interrupted = true;
        }
        CHECK(interrupted && control.interrupted());
        CHECK(asked == 2 && elsewhere == 0, asked);
    }
}

// Large enough to be worth three threads.
const Layer large{.input = {2, 32, 24, 20}, .weight = {40, 32, 3, 3}, .padding = {1, 1, 1, 1}, .seed = 12};

TEST("forward: an interrupted call ends, an uninterrupted one asks and goes on") {
    const Layer layer{.input = {4, 64, 48, 48}, .weight = {256, 64, 3, 3}, .padding = {1, 1, 1, 1}};
    const Arrays<float> arrays(layer);
    const Summation summation = summation_from("kahan");
    for (const int threads : {1, 3}) {
        int asked = 0;
        bool interrupted = false;
        try {
            convolve(layer, arrays, summation, {dispatch::current(), threads, [&] { return ++asked == 1; }});
        } catch (const parallel::Interrupted&) {
            interrupted = true;
        }
        CHECK(interrupted == (asked == 1), asked);  // a machine may be so fast that it is never asked
    }
}

TEST("forward: no thread count and no environment of the caller changes a bit") {
    const Arrays<float> arrays(large);
    const Arrays<double> doubles(large);
    for (const MethodRow& row : methods) {
        const Summation summation = summation_from(row.name);
        const auto alone = convolve(large, arrays, summation, {dispatch::current(), 1, {}});
        const auto double_alone = convolve(large, doubles, summation, {dispatch::current(), 1, {}});
        for (const int threads : {1, 2, 3, 7}) {
            set_state(hostile);
            const auto together = convolve(large, arrays, summation, {dispatch::current(), threads, {}});
            const auto double_together = convolve(large, doubles, summation, {dispatch::current(), threads, {}});
            set_state(ordinary);
            CHECK(together == alone, row.name << ' ' << threads);
            CHECK(double_together == double_alone, row.name << ' ' << threads);
        }
    }
}

#if defined(__unix__) || defined(__APPLE__)
TEST("forward: a forked child computes, on one thread") {
    const Arrays<float> arrays(large);
    const Summation summation = summation_from("pairwise");
    const auto expected_bits = convolve(large, arrays, summation, {dispatch::current(), 3, {}});
    const pid_t child = ::fork();
    if (child == 0) {
        const int threads = parallel::num_threads();
        ::_exit(threads == 1 && convolve(large, arrays, summation, {dispatch::current(), threads, {}}) == expected_bits
                    ? 0
                    : 1);
    }
    int status = -1;
    CHECK(child > 0 && ::waitpid(child, &status, 0) == child && status == 0, status);
}
#endif

}  // namespace
}  // namespace detconv::test
