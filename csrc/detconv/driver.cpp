#include "driver.hpp"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <thread>

#include "worker.hpp"

namespace detconv {
namespace {

// A 1x1 window that moves by one pixel makes one long row of the whole image, if memory lies that way.
void flatten(Contraction& c) {
    if (c.row_taps != std::vector<Index>{0} || c.column_taps != std::vector<Index>{0} || c.step.h != 1 || c.step.w != 1)
        return;
    if (c.image_origin.h != 0 || c.image_origin.w != 0 || c.columns.h != c.image_size.h ||
        c.columns.w != c.image_size.w)
        return;
    if (c.image.h != c.image.w * c.image_size.w || c.output.h != c.output.w * c.columns.w) return;
    c.columns = {1, c.columns.h * c.columns.w};
    c.image_size = c.columns;
}

// Panels that all threads share; the first to need one packs it, another that needs it meanwhile waits.
class SharedPanels {
public:
    explicit SharedPanels(const Plan& plan) : plan_(plan) {
        const Index count = plan.shared_panels ? plan.panels * plan.c.groups : 0;
        blocks_ = memory_.at_least<char>(count * plan.panel_block);
        states_ = std::make_unique<std::atomic<State>[]>(static_cast<std::size_t>(count));
    }

    Panel get(Index group, Index number, const Worker& worker, const parallel::Control& control) {
        const Index id = group * plan_.panels + number;
        const Panel panel(blocks_ + id * plan_.panel_block, plan_);
        std::atomic<State>& state = states_[static_cast<std::size_t>(id)];
        if (state.load(std::memory_order_acquire) == State::packed) return panel;
        State expected = State::unpacked;
        if (state.compare_exchange_strong(expected, State::packing, std::memory_order_acq_rel)) {
            worker.pack(group, 0, number, panel);
            state.store(State::packed, std::memory_order_release);
        } else {
            while (state.load(std::memory_order_acquire) != State::packed && !control.stopped())
                std::this_thread::yield();
        }
        return panel;
    }

private:
    enum class State : int { unpacked, packing, packed };
    const Plan& plan_;
    Buffer memory_;
    char* blocks_;
    std::unique_ptr<std::atomic<State>[]> states_;
};

// A range of panels against a range of chunks, of one group.
struct Unit {
    Index number, group, first_panel, last_panel, first_chunk, last_chunk;

    Unit(const Plan& plan, Index n) : number(n) {
        const Index chunk_part = n % plan.chunk_parts, panel_part = n / plan.chunk_parts % plan.panel_parts;
        group = n / plan.chunk_parts / plan.panel_parts;
        first_panel = plan.panels * panel_part / plan.panel_parts;
        last_panel = plan.panels * (panel_part + 1) / plan.panel_parts;
        first_chunk = plan.chunks() * chunk_part / plan.chunk_parts;
        last_chunk = plan.chunks() * (chunk_part + 1) / plan.chunk_parts;
    }
    Index panels() const { return last_panel - first_panel; }
};

// Runs one sample of a unit; where(number, chunk) says where the outputs of a panel and a chunk go.
template <class Where>
void run_sample(const Plan& plan, const Unit& unit, Index sample, Worker& worker, SharedPanels& shared,
                const parallel::Control& control, Where&& where) {
    const bool packs_ahead = !plan.shared_panels && plan.packs_ahead;
    if (packs_ahead)
        for (Index i = unit.first_panel; i < unit.last_panel; ++i)
            worker.pack(unit.group, sample, i, worker.private_panel(i - unit.first_panel));
    for (Index chunk = unit.first_chunk; chunk < unit.last_chunk; ++chunk) {
        worker.load(unit.group, sample, chunk);
        for (Index i = 0; i < unit.panels(); ++i) {
            // Every unit starts at another panel, so that the threads pack different ones.
            const Index number = unit.first_panel + (plan.shared_panels ? (i + unit.number) % unit.panels() : i);
            const Panel panel = plan.shared_panels ? shared.get(unit.group, number, worker, control)
                                                   : worker.private_panel(number - unit.first_panel);
            if (worker.should_stop()) return;
            if (!plan.shared_panels && !packs_ahead) worker.pack(unit.group, sample, number, panel);
            worker.multiply(number, panel, where(number, chunk));
        }
    }
}

// Joins the totals of a unit's samples in the order of a binary counter: once for every trailing zero bit of the
// sample's number (from 1), older + newer; what is left at the end is folded from newest to oldest. Every aligned block
// of 2^m samples is a node of that tree.
class SampleJoin {
public:
    SampleJoin(const Plan& plan, const Kernels& kernels) : plan_(plan), kernels_(kernels) {
        const int levels = std::bit_width(static_cast<std::uint64_t>(plan.c.samples)) + 1;
        rows_ = plan.unit_panels * plan.kernel->rows();
        outputs_ = rows_ * plan.unit_chunks * plan.chunk_h * plan.chunk_w;
        totals_ = memory_.at_least<char>(levels * outputs_ * plan.term_size);
        // Tiles at the borders leave gaps, which are joined like the rest.
        std::memset(totals_, 0, static_cast<std::size_t>(levels * outputs_ * plan.term_size));
    }

    // Where the next sample's outputs of a panel and a chunk go.
    Contraction::Output next(const Unit& unit, Index number, Index chunk) const {
        const Index area = plan_.chunk_h * plan_.chunk_w;
        const Index at = depth_ * outputs_ + (chunk - unit.first_chunk) * rows_ * area +
                         (number - unit.first_panel) * plan_.kernel->rows() * area;
        return {.data = totals_ + at * plan_.term_size, .row = area, .h = plan_.chunk_w, .w = 1};
    }

    void add(Index number) {
        ++depth_;
        for (int joins = std::countr_zero(static_cast<std::uint64_t>(number)); joins > 0; --joins) join();
    }

    void finish(const Unit& unit) {
        while (depth_ > 1) join();
        depth_ = 0;
        for (Index chunk = unit.first_chunk; chunk < unit.last_chunk; ++chunk)
            for (Index number = unit.first_panel; number < unit.last_panel; ++number) {
                const Contraction::Output from = next(unit, number, chunk),
                                          to = plan_.output(unit.group, number, chunk);
                const Chunk extent = plan_.chunk(chunk);
                const Index first = number * plan_.kernel->rows();
                const Index rows = std::min<Index>(plan_.kernel->rows(), plan_.c.rows - first);
                for (Index m = 0; m < rows; ++m)
                    for (Index h = 0; h < extent.height; ++h)
                        for (Index w = 0; w < extent.width; ++w)
                            if (plan_.c.is_float32)
                                copy<float>(from, to, m, h, w);
                            else
                                copy<double>(from, to, m, h, w);
            }
    }

private:
    void join() {
        --depth_;
        char* const older = totals_ + (depth_ - 1) * outputs_ * plan_.term_size;
        char* const newer = older + outputs_ * plan_.term_size;
        if (plan_.c.is_float32)
            kernels_.join_float(reinterpret_cast<const float*>(newer), outputs_, reinterpret_cast<float*>(older));
        else
            kernels_.join_double(reinterpret_cast<const double*>(newer), outputs_, reinterpret_cast<double*>(older));
    }

    template <class T>
    static void copy(const Contraction::Output& from, const Contraction::Output& to, Index m, Index h, Index w) {
        const T total = static_cast<const T*>(from.data)[m * from.row + h * from.h + w * from.w];
        static_cast<T*>(to.data)[m * to.row + h * to.h + w * to.w] =
            total == total ? total + T(0) : std::numeric_limits<T>::quiet_NaN();
    }

    const Plan& plan_;
    const Kernels& kernels_;
    Buffer memory_;
    Index rows_, outputs_, depth_ = 0;
    char* totals_;
};

}  // namespace

void run(Contraction contraction, const Execution& execution) {
    const Contraction& c = contraction;
    const parallel::FloatEnvironment environment;  // planning computes, too
    if (c.batches == 0 || c.groups == 0 || c.rows == 0 || c.columns.h == 0 || c.columns.w == 0) return;
    flatten(contraction);
    const Plan plan(contraction, execution);
    SharedPanels shared(plan);

    // Starting a thread costs about as much as 2^16 terms.
    const double work = static_cast<double>(plan.terms) * static_cast<double>(c.rows * c.batches * c.groups) *
                        static_cast<double>(c.columns.h * c.columns.w) * static_cast<double>(c.samples);
    const int threads = static_cast<int>(std::clamp<Index>(static_cast<Index>(std::min(work * 0x1p-16, 1e6)), 1,
                                                           std::min<Index>(execution.threads, plan.units)));
    parallel::Control control(execution.interrupted);
    std::atomic<Index> next{0}, finished{0};
    parallel::run(threads, control, [&](int thread) {
        Worker worker(plan, execution.kernels, control, thread);
        std::optional<SampleJoin> join;
        if (c.samples > 1) join.emplace(plan, execution.kernels);
        for (Index number; (number = next.fetch_add(1, std::memory_order_relaxed)) < plan.units; ++finished) {
            const Unit unit(plan, number);
            if (!join) {
                run_sample(plan, unit, 0, worker, shared, control,
                           [&](Index panel, Index chunk) { return plan.output(unit.group, panel, chunk); });
                continue;
            }
            for (Index sample = 0; sample < c.samples && !control.stopped(); ++sample) {
                run_sample(plan, unit, sample, worker, shared, control,
                           [&](Index panel, Index chunk) { return join->next(unit, panel, chunk); });
                join->add(sample + 1);
            }
            join->finish(unit);
        }
        // The calling thread alone can see an interrupt: it looks out for one until the others are done.
        while (thread == 0 && finished.load(std::memory_order_relaxed) < plan.units && !worker.should_stop())
            std::this_thread::yield();
    });
}

}  // namespace detconv
