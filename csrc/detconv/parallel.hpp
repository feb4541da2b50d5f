// Threads, and the floating-point environment every one of them computes in.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <stdexcept>

namespace detconv::parallel {

// Threads a call may use: what was set, else what OpenMP found (OMP_NUM_THREADS), else 1. A forked child always uses 1:
// the OpenMP runtime's threads do not survive fork, and waiting for them would never end.
int num_threads();
void set_num_threads(int threads);
bool has_openmp();

// Thrown on the calling thread after Interrupt::requested() said so.
struct Interrupted : std::runtime_error {
    Interrupted() : std::runtime_error("interrupted") {}
};

// Asked a few times a second, on the calling thread only, whether to give up.
using InterruptCheck = std::function<bool()>;

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
};

// Shared by the threads of one call: whether to stop, and why.
class Control {
public:
    explicit Control(const InterruptCheck& check) : check_(check) {}
    bool stopped() const { return stop_.load(std::memory_order_relaxed); }
    void stop() { stop_.store(true, std::memory_order_relaxed); }
    // Cheap enough for every tile, as the clock is read at each 16th only (a tenth of a depthwise layer's time if at
    // all); `calling_thread` as given by run().
    bool should_stop(bool calling_thread) {
        if (calling_thread && check_ && ++asked_ % 16 == 0) poll();
        return stopped();
    }
    bool interrupted() const { return interrupted_; }

private:
    void poll();
    const InterruptCheck& check_;
    std::atomic<bool> stop_{false};
    bool interrupted_ = false;
    unsigned asked_ = 0;  // by the calling thread
    std::chrono::steady_clock::time_point next_ = std::chrono::steady_clock::now() + std::chrono::milliseconds(100);
};

// Runs body(thread) on `threads` threads, the calling thread being number 0, each inside a FloatEnvironment. The first
// exception stops the others and is rethrown.
void run(int threads, Control& control, const std::function<void(int thread)>& body);

}  // namespace detconv::parallel
