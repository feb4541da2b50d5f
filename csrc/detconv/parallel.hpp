// Threads, and the floating-point environment every one of them computes in.
#pragma once

#include <atomic>
#include <chrono>
#include <concepts>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <utility>

namespace detconv::parallel {

// More are never used, whatever is asked for.
inline constexpr int most_threads = 4096;

// Threads a call may use: what was set, else what OpenMP found (OMP_NUM_THREADS), else 1; it takes fewer where the
// system lets no more start. A forked child always uses 1: the OpenMP runtime's threads do not survive fork, and
// waiting for them would never end.
int num_threads();
void set_num_threads(int threads);
bool has_openmp();

// Thrown on the calling thread after an InterruptCheck said so.
struct Interrupted : std::runtime_error {
    Interrupted() : std::runtime_error("interrupted") {}
};

// Whether the caller wants a call to end. `ask` is called ten times a second, however many pieces the call falls into,
// and on the calling thread only.
class InterruptCheck {
public:
    InterruptCheck() = default;
    template <std::invocable Ask>
    InterruptCheck(Ask ask) : ask_(std::move(ask)) {}
    bool requested() const;

private:
    using Clock = std::chrono::steady_clock;
    static constexpr std::chrono::milliseconds pause{100};
    std::function<bool()> ask_;
    mutable Clock::time_point next_ = Clock::now() + pause;
};

extern const InterruptCheck never;  // for who cannot be interrupted

// So much work is done between two looks at the clock: a term of a tile is one, and so is what costs about as much. It
// takes 50 us, and 20 ms where each fma is emulated.
inline constexpr std::int64_t work_between_looks = 1 << 14;

// Looks out for an interrupt while the calling thread works alone: before the threads start, or without any.
class Lookout {
public:
    explicit Lookout(const InterruptCheck& check) : check_(check) {}
    // Throws Interrupted.
    void after(std::int64_t work) {
        if ((work_ += work) >= work_between_looks) look();
    }

private:
    void look();
    const InterruptCheck& check_;
    std::int64_t work_ = 0;
};

// While it lives: round to nearest, subnormals kept, no traps. The caller's state comes back, its sticky flags
// included.
class FloatEnvironment {
public:
    FloatEnvironment();
    ~FloatEnvironment();
    FloatEnvironment(const FloatEnvironment&) = delete;
    FloatEnvironment& operator=(const FloatEnvironment&) = delete;

private:
    std::uint64_t saved_;
};

// IEEE's sticky exception flags of this thread. The compiler does not see that arithmetic sets them: clear and read
// them only around calls that it cannot look into.
struct Flags {
    bool inexact, underflow, overflow, invalid;
    static void clear();
    static Flags read();
    Flags operator|(const Flags& o) const {
        return {inexact || o.inexact, underflow || o.underflow, overflow || o.overflow, invalid || o.invalid};
    }
};

// Shared by the threads of one call: whether to stop, and why.
class Control {
public:
    explicit Control(const InterruptCheck& check) : check_(check) {}
    bool stopped() const { return stop_.load(std::memory_order_relaxed); }
    void stop() { stop_.store(true, std::memory_order_relaxed); }
    // Reads the clock: to be called after so much work, or while there is none. `calling_thread` as given by run().
    bool should_stop(bool calling_thread) {
        if (calling_thread && check_.requested()) interrupted_ = true, stop();
        return stopped();
    }
    bool interrupted() const { return interrupted_; }

private:
    const InterruptCheck& check_;
    std::atomic<bool> stop_{false};
    bool interrupted_ = false;
};

// Runs body(thread) on `threads` threads, the calling thread being number 0, each inside a FloatEnvironment. The first
// exception stops the others and is rethrown.
void run(int threads, Control& control, const std::function<void(int thread)>& body);

}  // namespace detconv::parallel
