// One thread's share of a call: it packs panels, copies chunks and runs tiles.
#pragma once

#include "parallel.hpp"
#include "plan.hpp"
#include "scratch.hpp"

namespace detconv {

// A packed panel, and behind it the bias and the error bounds of its rows.
struct Panel {
    char* data;
    void* bias;  // in the accumulator's type
    double *row_norm, *bias_bound;
    bool* finite;  // whether all its weights are

    Panel(void* block, const Plan& plan)
        : data(static_cast<char*>(block)),
          bias(data + round_up(plan.panel_elements * plan.element_size, 64)),
          row_norm(static_cast<double*>(bias) + round_up(plan.kernel->rows(), 8)),
          bias_bound(row_norm + round_up(plan.kernel->rows(), 8)),
          finite(reinterpret_cast<bool*>(bias_bound + round_up(plan.kernel->rows(), 8))) {}
};

// The outputs of a tile that are wanted: rows from 0, columns from (h, w).
struct Wanted {
    int rows, h, w, image_rows, columns;
};

// Where a tile's first column is, in the chunk; the column in elements.
struct Position {
    Index row, column;
};

// Copies the outputs of a panel and a chunk from where they were kept.
void write_outputs(const Plan& plan, const Kernels& kernels, const Chunk& chunk, Index panel,
                   const Contraction::Output& kept, const Contraction::Output& to);

// One thread's share of a call.
class Worker {
public:
    Worker(const Plan& plan, const Kernels& kernels, parallel::Control& control, int thread)
        : plan_(plan), c_(plan.c), kernel_(*plan.kernel), kernels_(kernels), control_(control), thread_(thread) {
        const Index outputs = 2 * kernel_.outputs();  // Twofold has two parts
        totals_ = totals_buffer_.at_least<double>(outputs);
        if (c_.rescued) rescued_ = rescue_buffer_.at_least<double>(outputs);
        stack_ = stack_buffer_.at_least<double>(std::max(c_.program.depth, c_.rescue.depth) * outputs);
        if (c_.certified) uncertain_ = uncertain_buffer_.at_least<std::uint8_t>(outputs);
    }

    Panel private_panel(Index number) {
        return {panel_buffer_.at_least<char>(plan_.kept_panels * plan_.panel_block) +
                    number % plan_.kept_panels * plan_.panel_block,
                plan_};
    }
    void pack(Index group, Index sample, Index number, const Panel& panel);
    // The image of a chunk, on the diagonal those of a panel's rows; if it is not the one at hand.
    void load(Index group, Index sample, Index chunk, Index panel);
    // The outputs of a panel and the loaded chunk, written relative to `output`, their own first row and column.
    void multiply(Index number, const Panel& panel, const Contraction::Output& output);
    // To be told of all work, in terms of a tile; looks at the clock only now and then.
    bool should_stop(Index work) {
        if ((work_ += work) >= parallel::work_between_looks) {
            work_ = 0;
            control_.should_stop(thread_ == 0);
        }
        return control_.stopped();
    }

    const Chunk& chunk() const { return chunk_; }

private:
    char* copy_images(Index group, Index sample, Index batch, Index first_row, Index count);
    void gather_images(Index group, Index sample);
    void measure_chunk();
    void measure_columns();
    void multiply_image(int rows, const Panel& panel, const Contraction::Output& output);
    void multiply_batches(Index number, int rows, const Panel& panel, const Contraction::Output& output);
    bool pack_terms(const PanelSource& source, char* to);
    void fold_panel(const Panel& panel);
    // Runs a program on a tile; the flags that it raised.
    parallel::Flags run(void (*kernel)(const Tile&), const Plan::Variant& program, Tile tile);
    void compute(const Panel& panel, const Plan::Variant& variant, Position first, const Wanted& wanted);
    void fetch(const char* first, const Wanted& wanted, const Contraction::Output& out) const;
    // Makes the totals of a tile the exact sums rounded once; only the wanted outputs count.
    void certify(const Tile& tile, const Panel& panel, Position first, const Wanted& wanted, parallel::Flags flags);
    double recompute(const Tile& tile, int row, int h, int w);
    void rescue(Tile tile);
    Index total_index(int row, int h, int w) const {
        return kernel_.rows_are_lanes() ? (Index(h) * kernel_.per_row + w) * kernel_.rows() + row
                                        : Index(row) * kernel_.vectors * kernel_.lanes + h * kernel_.columns() + w;
    }

    const Plan& plan_;
    const Contraction& c_;
    const TileKernel& kernel_;
    const Kernels& kernels_;
    parallel::Control& control_;
    const int thread_;
    Index work_ = 0;  // since the last look at the clock
    Buffer image_buffer_, gathered_buffer_, panel_buffer_, stack_buffer_, totals_buffer_, rescue_buffer_,
        uncertain_buffer_, squares_buffer_, norms_buffer_, coarse_norms_buffer_, turned_buffer_;
    double *totals_, *rescued_ = nullptr, *stack_;
    std::uint8_t* uncertain_ = nullptr;

    struct Load {
        Index group = -1, sample = -1, chunk = -1, panel = 0;
        bool operator==(const Load&) const = default;
    };
    Load loaded_, copied_;  // copied: the first of the neighbours in the copy
    Chunk chunk_{};
    char* copy_ = nullptr;
    const char* image_ = nullptr;  // where the chunk's first column reads a tap of 0
    Index padded_ = 0;             // images of the copy that have their padding
    bool has_special_bias_ = false, measured_ = false;
    double* norms_ = nullptr;         // of the chunk's columns, once they are measured
    double* coarse_norms_ = nullptr;  // of a tile's columns: the same bound for all of the chunk
    Index norms_pitch_ = 0;
};

}  // namespace detconv
