#include "driver.hpp"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <memory>
#include <optional>
#include <thread>
#include <utility>

#include "worker.hpp"

namespace detconv {
namespace {

// Sums of no terms, whichever extent is empty, are sums over no planes: planning needs a tap.
void settle_empty_sums(Contraction& c) {
    if (c.terms() > 0) return;
    c.planes = 0;
    c.row_taps = c.column_taps = {0};
}

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

// Groups of one row each (depthwise) are the rows of one contraction, on whose diagonal they read their own images.
void take_groups_together(Contraction& c, const Kernels& kernels) {
    if (c.rows != 1) return;
    // Few of them leave most lanes empty, and pixels further apart are copied one by one. (3x3, one thread, one by one
    // and together: 144 channels of 56x56 .32 and .28 ms, 512 of 4x4 in a batch of 32 2.2 and .46; weight gradients,
    // 144 of 56x56 in a batch of 16, 20 and 7.8.)
    constexpr Index enough = 8, near = 2;
    if (c.groups < enough || (c.image.group != 1 && c.step.w > near)) return;
    if (std::ranges::none_of(kernels.tiles,
                             [&](const TileKernel& k) { return k.side == Side::diagonal && computes(k, c); }))
        return;
    c.rows = std::exchange(c.groups, 1);
    c.image.row = c.image.group;
    c.panel.row = c.panel.group;
    c.output.row = c.output.group;
    c.bias_row = c.bias_group;
}

// A row of columns that are far apart in memory, while their taps are side by side (a 1x1 weight gradient: columns are
// channels, taps pixels), stands upright: one column in a row, where no copy has to turn squares (64 to 256 channels of
// 56x56, batch 8: 10.8 ms to 8.7). Tells whether it does.
bool stand_up(Contraction& c, const Kernels& kernels) {
    // Of fewer taps, or of every other pixel, too little of what comes from memory is used (256 to 512 channels of
    // 56x56, stride 2, AVX2: 24 ms lying, 32 upright).
    constexpr std::size_t enough = 32;
    const std::size_t taps = c.row_taps.size();
    if (c.columns.h != 1 || c.column_taps.size() != 1 || c.image.h != 1 || c.image.w == 1 || c.diagonal()) return false;
    if (taps < enough || c.row_taps.back() - c.row_taps.front() != static_cast<Index>(taps) - 1) return false;
    if (std::ranges::none_of(kernels.tiles, [&](const TileKernel& k) { return k.upright() && computes(k, c); }))
        return false;
    std::swap(c.row_taps, c.column_taps);
    for (Extent* e : {&c.columns, &c.step, &c.image_size, &c.image_origin}) std::swap(e->h, e->w);
    std::swap(c.image.h, c.image.w);
    std::swap(c.panel.h, c.panel.w);
    std::swap(c.output.h, c.output.w);
    return true;
}

// Upright, either operand can be the panel, which is packed: the one with fewer rows (64 to 256 channels of 56x56,
// batch 8: 8.7 ms to 6.4).
void pack_fewer_rows(Contraction& c) {
    const bool alike = c.panel.w == 1 && c.column_taps.front() == 0 && c.image_origin.h == 0 && c.image_origin.w == 0 &&
                       c.step.h == 1 && c.batches == 1 && c.bias == nullptr;
    if (!alike || c.rows <= c.columns.h) return;
    std::swap(c.panel, c.image);
    c.panel.row = std::exchange(c.panel.h, 0), c.image.h = std::exchange(c.image.row, 0);
    std::swap(c.rows, c.columns.h);
    std::swap(c.output.row, c.output.h);
    c.image_size.h = c.columns.h;
}

// Panels that all threads share; the first to need one packs it, another that needs it meanwhile waits.
class SharedPanels {
public:
    explicit SharedPanels(const Plan& plan) : plan_(plan) {
        const Index count = plan.shared_panels ? plan.panels * plan.c.groups : 0;
        blocks_ = memory_.at_least<char>(count * plan.panel_block);
        states_ = std::make_unique<std::atomic<State>[]>(static_cast<std::size_t>(count));
    }

    Panel get(Index group, Index number, Worker& worker) {
        const Index id = group * plan_.panels + number;
        const Panel panel(blocks_ + id * plan_.panel_block, plan_);
        std::atomic<State>& state = states_[static_cast<std::size_t>(id)];
        if (state.load(std::memory_order_acquire) == State::packed) return panel;
        State expected = State::unpacked;
        if (state.compare_exchange_strong(expected, State::packing, std::memory_order_acq_rel)) {
            worker.pack(group, 0, number, panel);
            state.store(State::packed, std::memory_order_release);
        } else {
            while (state.load(std::memory_order_acquire) != State::packed &&
                   !worker.should_stop(parallel::work_between_looks))
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

// A range of panels against a range of chunks, of each group of a range.
struct Unit {
    Index number, first_group, last_group, first_panel, last_panel, first_chunk, last_chunk;

    Unit(const Plan& plan, Index n) : number(n) {
        const Index chunk_part = n % plan.chunk_parts, panel_part = n / plan.chunk_parts % plan.panel_parts;
        first_group = n / plan.chunk_parts / plan.panel_parts * plan.unit_groups;
        last_group = std::min(first_group + plan.unit_groups, plan.c.groups);
        first_panel = plan.panels * panel_part / plan.panel_parts;
        last_panel = plan.panels * (panel_part + 1) / plan.panel_parts;
        first_chunk = plan.chunks() * chunk_part / plan.chunk_parts;
        last_chunk = plan.chunks() * (chunk_part + 1) / plan.chunk_parts;
    }
    Index panels() const { return last_panel - first_panel; }
};

// Runs one sample of a unit: where(group, panel, chunk) says where outputs go, done(chunk) that those of a chunk are
// there.
template <class Where, class Done>
void run_sample(const Plan& plan, const Unit& unit, Index sample, Worker& worker, SharedPanels& shared, Where&& where,
                Done&& done) {
    const bool packs_ahead = !plan.shared_panels && plan.packs_ahead;
    if (packs_ahead)
        for (Index i = unit.first_panel; i < unit.last_panel; ++i)
            worker.pack(unit.first_group, sample, i, worker.private_panel(i - unit.first_panel));
    for (Index chunk = unit.first_chunk; chunk < unit.last_chunk; ++chunk) {
        for (Index group = unit.first_group; group < unit.last_group; ++group) {
            for (Index i = 0; i < unit.panels(); ++i) {
                // Every unit starts at another panel, so that the threads pack different ones.
                const Index number = unit.first_panel + (plan.shared_panels ? (i + unit.number) % unit.panels() : i);
                const Panel panel = plan.shared_panels ? shared.get(group, number, worker)
                                                       : worker.private_panel(number - unit.first_panel);
                if (worker.should_stop(1)) return;
                if (!plan.shared_panels && !packs_ahead) worker.pack(group, sample, number, panel);
                worker.load(group, sample, chunk, number);
                worker.multiply(number, panel, where(group, number, chunk));
            }
        }
        done(chunk);
    }
}

// Outputs of groups or batches that lie between each other, kept until all are there: [group or batch][row][h][w].
class Interleave {
public:
    Interleave(const Plan& plan, const Kernels& kernels) : plan_(plan), kernels_(kernels) {
        row_ = plan.chunk_h * plan.chunk_w;
        image_ = plan.unit_panels * plan.kernel->rows() * row_;
        outputs_ = memory_.at_least<char>(plan.interleaved * image_ * plan.term_size);
    }

    // Where the outputs of a panel and a chunk are kept.
    Contraction::Output at(const Unit& unit, Index group, Index number, Index chunk) const {
        const Index which = plan_.gathers ? 0 : (plan_.neighbours_are_groups ? group : chunk) % plan_.interleaved;
        const Index first = which * image_ + (number - unit.first_panel) * plan_.kernel->rows() * row_;
        return {.data = outputs_ + first * plan_.term_size, .batch = image_, .row = row_, .h = plan_.chunk_w, .w = 1};
    }

    // Writes those of which a chunk, of all groups of the unit, has the last.
    void write(const Unit& unit, Index chunk) const {
        const Chunk extent = plan_.chunk(chunk);
        Index first_chunk = chunk, count = extent.batches;
        if (plan_.neighbours_are_groups) {
            count = unit.last_group - unit.first_group;
        } else if (!plan_.gathers) {
            if (chunk + 1 < unit.last_chunk && (chunk + 1) % plan_.interleaved != 0) return;
            first_chunk = std::max(unit.first_chunk, chunk - chunk % plan_.interleaved);
            count = chunk - first_chunk + 1;
        }
        for (Index number = unit.first_panel; number < unit.last_panel; ++number) {
            const Contraction::Output from = at(unit, unit.first_group, number, first_chunk),
                                      to = plan_.output(unit.first_group, number, first_chunk);
            // A position is a plane, what lies side by side in memory its columns.
            const bool even = from.h == extent.width && to.h == extent.width * to.w;
            const Index rows = even ? 1 : extent.height;
            PlaneSource source{.data = nullptr,
                               .row_stride = from.h,
                               .stride = image_,
                               .first_row = 0,
                               .last_row = rows,
                               .rows = rows,
                               .first = 0,
                               .last = count,
                               .width = count,
                               .pitch = to.h,
                               .planes = even ? extent.height * extent.width : extent.width,
                               .plane_stride = 1,
                               .plane_pitch = to.w};
            const Index first_row = number * plan_.kernel->rows();
            for (Index m = 0; m < std::min<Index>(plan_.kernel->rows(), plan_.c.rows - first_row); ++m) {
                source.data = static_cast<const char*>(from.data) + m * from.row * plan_.term_size;
                kernels_.copy(source, plan_.c.is_float32, static_cast<char*>(to.data) + m * to.row * plan_.term_size);
            }
        }
    }

private:
    const Plan& plan_;
    const Kernels& kernels_;
    Buffer memory_;
    Index row_, image_;
    char* outputs_;
};

// Joins the totals of a unit's samples in the order of a binary counter: once for every trailing zero bit of the
// sample's number (from 1), older + newer; what is left at the end is folded from newest to oldest. Every aligned block
// of 2^m samples is a node of that tree.
class SampleJoin {
public:
    SampleJoin(const Plan& plan, const Kernels& kernels) : plan_(plan), kernels_(kernels) {
        outputs_ = plan.unit_groups * plan.unit_chunks * plan.unit_panels * plan.kept_outputs();
        const Index bytes = plan.c.levels() * outputs_ * plan.term_size;
        totals_ = memory_.at_least<char>(bytes);
        // Tiles at the borders leave gaps, which are joined like the rest.
        std::memset(totals_, 0, static_cast<std::size_t>(bytes));
    }

    // Where the next sample's outputs of a panel and a chunk go.
    Contraction::Output next(const Unit& unit, Index group, Index number, Index chunk) const {
        const Index block = (group - unit.first_group) * plan_.unit_chunks + chunk - unit.first_chunk;
        const Index panel = block * plan_.unit_panels + number - unit.first_panel;
        Contraction::Output out = plan_.kept();
        out.data = totals_ + (depth_ * outputs_ + panel * plan_.kept_outputs()) * plan_.term_size;
        return out;
    }

    void add(Index number) {
        ++depth_;
        for (int joins = std::countr_zero(static_cast<std::uint64_t>(number)); joins > 0; --joins) join();
    }

    void finish(const Unit& unit) {
        while (depth_ > 1) join();
        depth_ = 0;
        for (Index group = unit.first_group; group < unit.last_group; ++group)
            for (Index chunk = unit.first_chunk; chunk < unit.last_chunk; ++chunk)
                for (Index number = unit.first_panel; number < unit.last_panel; ++number)
                    write_outputs(plan_, kernels_, plan_.chunk(chunk), number, next(unit, group, number, chunk),
                                  plan_.output(group, number, chunk));
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

    const Plan& plan_;
    const Kernels& kernels_;
    Buffer memory_;
    Index outputs_, depth_ = 0;
    char* totals_;
};

}  // namespace

void run(Contraction contraction, const Execution& execution) {
    const Contraction& c = contraction;
    // A call may be many of these.
    if (execution.interrupted.requested()) throw parallel::Interrupted();
    const parallel::FloatEnvironment environment;  // planning computes, too
    if (c.batches == 0 || c.groups == 0 || c.rows == 0 || c.columns.h == 0 || c.columns.w == 0) return;
    settle_empty_sums(contraction);
    flatten(contraction);
    take_groups_together(contraction, execution.kernels);
    if (stand_up(contraction, execution.kernels)) pack_fewer_rows(contraction);
    parallel::Lookout lookout(execution.interrupted);
    const Plan plan(contraction, execution, lookout);
    if (execution.walks != nullptr) execution.walks->push_back(plan.walk());
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
        std::optional<Interleave> interleave;
        if (c.samples > 1) join.emplace(plan, execution.kernels);
        if (plan.interleaved > 1) interleave.emplace(plan, execution.kernels);
        for (Index number; (number = next.fetch_add(1, std::memory_order_relaxed)) < plan.units; ++finished) {
            const Unit unit(plan, number);
            auto where = [&](Index group, Index panel, Index chunk) {
                return join         ? join->next(unit, group, panel, chunk)
                       : interleave ? interleave->at(unit, group, panel, chunk)
                                    : plan.output(group, panel, chunk);
            };
            for (Index sample = 0; sample < c.samples && !control.stopped(); ++sample) {
                run_sample(plan, unit, sample, worker, shared, where, [&](Index chunk) {
                    if (interleave) interleave->write(unit, chunk);
                });
                if (join) join->add(sample + 1);
            }
            if (join) join->finish(unit);
        }
        // The calling thread alone can see an interrupt: it looks out for one until the others are done.
        while (thread == 0 && finished.load(std::memory_order_relaxed) < plan.units && !control.should_stop(true))
            std::this_thread::yield();
    });
}

}  // namespace detconv
