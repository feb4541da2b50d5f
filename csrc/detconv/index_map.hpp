// A pass of a convolution, lowered: what a row, a column and a term are. The passes differ in nothing else.
//
//   out[row][column] = sum over (plane, i, j) of  panel[row][plane, i, j] * image[plane][base(column) + tap(i, j)]
//
//   pass             row             column           plane           (i, j)             samples
//   forward          output channel  output pixel     input channel   kernel tap         1
//   input gradient   input channel   pixel of a phase output channel  tap of the phase   1
//   weight gradient  output channel  kernel tap       1               output pixel       N
//
// Everything is a stride: no pass has a loop of its own.
#pragma once

#include <bit>
#include <cstdint>
#include <vector>

#include "geometry.hpp"
#include "summation.hpp"

namespace detconv {

struct Contraction {
    bool is_float32 = true;
    Index batches = 1, groups = 1;  // independent contractions of the same shape
    Index samples = 1;  // totals of so many sums are joined, in the element type, by the aligned binary tree
    Index rows = 0, planes = 0;
    Extent columns;                            // the grid of outputs of one row
    std::vector<Index> row_taps, column_taps;  // tap (i, j) reads row_taps[i], column_taps[j] beyond the base
    Extent step;                               // from one column's base to the next
    Extent image_size, image_origin;  // readable image, and where its first element lies in tap coordinates (padding);
                                      // what lies outside reads as +0

    struct Operand {
        const void* data = nullptr;
        Index sample = 0, batch = 0, group = 0, row = 0, plane = 0, h = 0, w = 0;  // strides, in elements
    };
    Operand image, panel;  // h, w of the panel go with i, j; the rows share an image, or it has a stride for them
    struct Output {
        void* data = nullptr;
        Index batch = 0, group = 0, row = 0, h = 0, w = 0;
    } output;
    const void* bias = nullptr;  // [group][row]; null: none
    Index bias_group = 0, bias_row = 0;

    Program program, rescue;  // rescue: for totals that are not finite, where the method asks for it
    Accumulator accumulator = Accumulator::plain;
    bool certified = false, rescued = false;
    Rounding rounding = Rounding::nearest;  // of the outputs

    // Whether every row reads an image of its own: groups of one row each (depthwise), taken together.
    bool diagonal() const { return image.row != 0; }
    // So many totals wait at most while samples are joined: one for each bit of their number.
    Index levels() const { return std::bit_width(static_cast<std::uint64_t>(samples)); }
    Index terms() const {
        return planes * static_cast<Index>(row_taps.size()) * static_cast<Index>(column_taps.size());
    }
};

}  // namespace detconv
