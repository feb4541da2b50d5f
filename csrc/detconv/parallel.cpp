#include "parallel.hpp"

#include <algorithm>
#include <exception>
#include <future>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__SSE2__)
#    include <immintrin.h>
#elif !defined(__aarch64__)
#    include <cfenv>
#endif
#if defined(_OPENMP)
#    include <omp.h>
#endif
#if defined(__linux__)
#    include <sys/syscall.h>
#    include <unistd.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#    include <pthread.h>
#    define DETCONV_HAS_FORK 1
#endif

namespace detconv::parallel {
namespace {

std::atomic<int> requested_threads{0};
std::atomic<int> allowed_threads{most_threads};  // fewer once the system has refused to start one
std::atomic<bool> in_forked_child{false};

#if defined(DETCONV_HAS_FORK)
[[maybe_unused]] const int fork_guard = pthread_atfork(nullptr, nullptr, [] { in_forked_child = true; });
#endif

#if defined(__SSE2__)
constexpr unsigned control_default = 0x1f80, flag_invalid = 1, flag_overflow = 8, flag_underflow = 16,
                   flag_inexact = 32;
std::uint64_t read_control() { return _mm_getcsr(); }
void write_control(std::uint64_t value) { _mm_setcsr(static_cast<unsigned>(value)); }
unsigned read_flags() { return _mm_getcsr(); }
void clear_flags() { _mm_setcsr(control_default); }
#elif defined(__aarch64__)
constexpr unsigned control_default = 0, flag_invalid = 1, flag_overflow = 4, flag_underflow = 8, flag_inexact = 16;
// FPCR in the low half, FPSR in the high half.
std::uint64_t read_control() {
    std::uint64_t control, status;
    asm volatile("mrs %0, fpcr\n\tmrs %1, fpsr" : "=r"(control), "=r"(status));
    return control | status << 32;
}
void write_control(std::uint64_t value) {
    asm volatile("msr fpcr, %0\n\tmsr fpsr, %1" : : "r"(value & 0xffffffff), "r"(value >> 32));
}
unsigned read_flags() { return static_cast<unsigned>(read_control() >> 32); }
void clear_flags() { asm volatile("msr fpsr, %0" : : "r"(std::uint64_t(0))); }
#else
constexpr unsigned control_default = 0, flag_invalid = FE_INVALID, flag_overflow = FE_OVERFLOW,
                   flag_underflow = FE_UNDERFLOW, flag_inexact = FE_INEXACT;
std::uint64_t read_control() { return static_cast<std::uint64_t>(std::fegetround()); }
void write_control(std::uint64_t value) {
    std::fesetround(value == control_default ? FE_TONEAREST : static_cast<int>(value));
}
unsigned read_flags() { return static_cast<unsigned>(std::fetestexcept(FE_ALL_EXCEPT)); }
void clear_flags() { std::feclearexcept(FE_ALL_EXCEPT); }
#endif

#if defined(_OPENMP)
// Waits until the system counts threads that were joined no more, which takes it a moment.
void wait_until_gone([[maybe_unused]] const std::vector<std::atomic<long>>& ids) {
#    if defined(__linux__)
    constexpr int patience = 10000;
    for (const auto& id : ids)
        for (int i = 0; i < patience && id != 0 && ::syscall(SYS_tgkill, ::getpid(), id.load(), 0) == 0; ++i)
            std::this_thread::yield();
#    endif
}

// How many of the threads that a call wants it can have. OpenMP's runtime ends the process where it is refused one, so
// as many as it still has to start for this thread are started and ended first.
int threads_that_start(int wanted) {
    thread_local int running = 1;  // the runtime keeps as many as the last call of this thread had
    wanted = std::min(wanted, allowed_threads.load(std::memory_order_relaxed));
    if (wanted > running) {
        const auto missing = static_cast<std::size_t>(wanted - running);
        std::promise<void> all_started;
        const std::shared_future<void> end = all_started.get_future().share();
        std::vector<std::atomic<long>> ids(missing);
        std::vector<std::thread> threads;
        threads.reserve(missing);
        try {
            while (threads.size() < missing)
                threads.emplace_back([end, &id = ids[threads.size()]] {
#    if defined(__linux__)
                    id = ::syscall(SYS_gettid);
#    endif
                    end.wait();
                });
        } catch (const std::exception&) {
            // Half of what is left: others start threads, too.
            wanted = running + static_cast<int>(threads.size() / 2);
            allowed_threads = wanted;
        }
        all_started.set_value();
        for (std::thread& thread : threads) thread.join();
        wait_until_gone(ids);
    }
    running = wanted;
    return wanted;
}
#endif

int openmp_threads() {
#if defined(_OPENMP)
    return omp_get_max_threads();
#else
    return 1;
#endif
}

}  // namespace

int num_threads() {
    if (in_forked_child.load(std::memory_order_relaxed)) return 1;
    const int requested = requested_threads.load(std::memory_order_relaxed);
    if (requested > 0) return requested;
    static const int found = std::clamp(openmp_threads(), 1, most_threads);
    return found;
}

void set_num_threads(int threads) {
    requested_threads = threads;
    allowed_threads = most_threads;  // the system is asked anew
}

bool has_openmp() {
#if defined(_OPENMP)
    return true;
#else
    return false;
#endif
}

FloatEnvironment::FloatEnvironment() : saved_(read_control()) { write_control(control_default); }
FloatEnvironment::~FloatEnvironment() { write_control(saved_); }

void Flags::clear() { clear_flags(); }

Flags Flags::read() {
    const unsigned flags = read_flags();
    return {(flags & flag_inexact) != 0, (flags & flag_underflow) != 0, (flags & flag_overflow) != 0,
            (flags & flag_invalid) != 0};
}

const InterruptCheck never;

bool InterruptCheck::requested() const {
    if (!ask_) return false;
    const auto now = Clock::now();
    if (now < next_) return false;
    next_ = now + pause;
    return ask_();
}

void Lookout::look() {
    work_ = 0;
    if (check_.requested()) throw Interrupted();
}

void run(int threads, Control& control, const std::function<void(int)>& body) {
    std::exception_ptr failure;
    std::mutex failure_lock;
    auto guarded = [&](int thread) {
        const FloatEnvironment environment;
        try {
            body(thread);
        } catch (...) {
            const std::lock_guard lock(failure_lock);
            if (!failure) failure = std::current_exception();
            control.stop();
        }
    };
#if defined(_OPENMP)
    if (threads > 1) threads = threads_that_start(threads);
    if (threads > 1) {
#    pragma omp parallel num_threads(threads)
        guarded(omp_get_thread_num());
    } else
#endif
        guarded(0);
    if (failure) std::rethrow_exception(failure);
    if (control.interrupted()) throw Interrupted();
}

}  // namespace detconv::parallel
