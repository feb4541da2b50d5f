// The one driver. Every pass is lowered to a Contraction; the driver packs, cuts it into tiles, and runs them.
//
//   out[row][column] = sum over (plane, i, j) of  panel[row][plane, i, j] * image[plane][base(column) + tap(i, j)]
//
//   pass             row             column         plane           (i, j)
//   forward          output channel  output pixel   input channel   kernel tap
//
// Threads take whole panels and whole chunks of columns: no sum is ever split between them.
#pragma once

#include <vector>

#include "geometry.hpp"
#include "kernels.hpp"
#include "parallel.hpp"
#include "summation.hpp"

namespace detconv {

struct Contraction {
    bool is_float32 = true;
    Index batches = 1, groups = 1;  // independent contractions of the same shape
    Index rows = 0, planes = 0;
    Extent columns;                            // the grid of outputs of one row
    std::vector<Index> row_taps, column_taps;  // tap (i, j) reads row_taps[i], column_taps[j] beyond the base
    Extent step;                               // from one column's base to the next
    Extent image_size, image_origin;  // readable image, and where its first element lies in tap coordinates (padding);
                                      // what lies outside reads as +0

    struct Operand {
        const void* data = nullptr;
        Index batch = 0, group = 0, row = 0, plane = 0, h = 0, w = 0;  // strides, in elements
    };
    Operand image, panel;  // h, w of the panel go with i, j
    struct Output {
        void* data = nullptr;
        Index batch = 0, group = 0, row = 0, h = 0, w = 0;
    } output;
    const void* bias = nullptr;  // [group][row]; null: none
    Index bias_group = 0, bias_row = 0;

    Program program, rescue;  // rescue: for Kahan's non-finite totals
    Accumulator accumulator = Accumulator::plain;
    bool certified = false;

    Index terms() const {
        return planes * static_cast<Index>(row_taps.size()) * static_cast<Index>(column_taps.size());
    }
};

struct Execution {
    const Kernels& kernels;
    int threads;
    parallel::InterruptCheck interrupted;
};

void run(Contraction contraction, const Execution& execution);

}  // namespace detconv
