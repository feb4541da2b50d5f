// The interface between the driver, compiled once, and the kernels, compiled once per instruction set. Plain data only.
#pragma once

#include <cstdint>
#include <span>

#include "summation.hpp"

namespace detconv {

// Which side of a tile lies along the lanes: panel rows (output channels), columns (pixels of a row), or rows and the
// images that each of them reads (channels of a depthwise layer).
enum class Side : std::uint8_t { rows, columns, diagonal };

struct Tile {
    const void* panel;           // term r of the sequence at panel + panel_offsets[r]
    const Index* panel_offsets;  // in elements; null: at r * panel_stride, and the kernel asks for nothing ahead
    Index panel_stride;
    const void* image;  // where the tile's first column reads a tap of 0
    const Index* taps;  // element offset of each term of the sequence
    Index row_step;     // elements between the image rows of the tile's columns; within a row columns are adjacent,
                        // on the diagonal TileKernel::abreast() elements apart
    const Instruction* code;
    Index code_size;
    const void* bias;  // of the tile's rows, in the accumulator's type
    void* stack;       // Program::depth levels
    void* totals;      // the accumulators' values: [broadcast][vector][lane]; of some, a second part follows
    // A long program runs in stretches: one that continues finds the accumulators where the one before, which pauses,
    // has left them.
    bool continues = false, pauses = false;
    Index depth = 0;  // levels of the stack that are in use at the start

    // Where there are panel offsets, the kernel asks for the image of a term so many terms ahead; `taps` then has so
    // many more. Where every term is on a line of its own that no prefetcher foresees, the second-level cache's answer
    // came too late (3x3, 512 channels of 4x4, batch 32: 19.3 ms to 15.4; one ahead to 18 take the same from 6 on).
    static constexpr int ahead = 9;
};

// Where the totals of a tile go, rounded to the element type and canonical. Strides in elements.
struct TileOutput {
    const void* totals;
    void* output;
    Index row_stride, image_row_stride, column_stride;
    int rows, image_rows, columns;  // how many of the tile's outputs are wanted
    Rounding rounding;
};

// Certificate of exact totals: |total - sum| <= gamma * row_norm * column_norm + bias_bound (exact.hpp).
struct Certificate {
    void* totals;
    double gamma;
    const double* row_norm;
    const double* bias_bound;
    const double* column_norm;  // [image row][column], on the diagonal [row] too; image rows are apart by
                                // column_norm_stride
    Index column_norm_stride;
    Rounding rounding;
    std::uint8_t* uncertain;  // [broadcast][vector][lane], 1 where it may round either way; written if there is one
};

// One row a kernel: the driver, the tests and the benches read this table; nothing runs that is not in it.
struct TileKernel {
    Accumulator accumulator;
    bool is_float32;  // type of the terms
    Side side;
    int lanes, vectors, broadcasts, per_row;
    bool joins;                          // its accumulators can be put on the stack
    float fused_cycles, rounded_cycles;  // per term, roughly; the driver picks the cheapest shape for a problem

    void (*run)(const Tile&);
    void (*rescue)(const Tile&);  // the same shape with plain accumulators, for methods whose totals are rescued
    void (*store)(const TileOutput&);
    bool (*certify)(const Certificate&);  // true where every total is certain

    constexpr bool rows_are_lanes() const { return side != Side::columns; }
    constexpr int rows() const { return rows_are_lanes() ? vectors * lanes : broadcasts; }
    constexpr int image_rows() const { return (rows_are_lanes() ? broadcasts : vectors) / per_row; }
    constexpr int columns() const { return rows_are_lanes() ? per_row : per_row * lanes; }  // per image row
    // Whether a tile has one column in each of several image rows.
    constexpr bool upright() const { return side == Side::rows && columns() == 1 && broadcasts > 1; }
    constexpr int abreast() const { return side == Side::diagonal ? rows() : 1; }  // images, side by side
    constexpr int outputs() const { return lanes * vectors * broadcasts; }
};

// A panel to be packed: `rows` rows of terms, in `segments` pieces of `segment_terms` each.
struct PanelSource {
    const void* data;
    Index row_stride, segment_stride, term_stride;
    Index segments, segment_terms;
    const Index* position;  // where in the sequence a term goes; null: where it is
    int rows, width;        // rows given; rows of the panel (the rest is +0)
};

// Planes of an image to be copied, each to rows of `width` positions, `pitch` apart: those of rows first_row..last_row
// and positions first..last of a row come from memory, from `data` on, the others are +0.
struct PlaneSource {
    const void* data;
    Index row_stride, stride;
    Index first_row, last_row, rows;
    Index first, last, width;
    Index pitch;
    Index planes, plane_stride, plane_pitch;  // strides from one to the next, in memory and in the copy
};

// Planes to be copied side by side, `width` of them in a block (blocks are plane_pitch apart): position i of a block's
// plane m goes to i * width + m; planes that there are not are +0.
struct AbreastSource {
    PlaneSource planes;
    Index width;
};

// Columns to be gathered: of each term, `rows` rows of `width`, from `pitch` apart to side by side. Reads and writes up
// to a vector more than that.
struct GatherSource {
    const void* data;
    const Index* offsets;  // of each term's first column
    Index terms, rows, width, pitch;
};

struct Kernels {
    const char* name;
    std::span<const TileKernel> tiles;
    // By element type of the source, [wide] to double. Packing tells whether all elements are finite.
    bool (*pack_float)(const PanelSource&, float*);
    bool (*pack_float_wide)(const PanelSource&, double*);
    bool (*pack_double)(const PanelSource&, double*);
    void (*copy_float)(const PlaneSource&, float*);
    void (*copy_float_wide)(const PlaneSource&, double*);
    void (*copy_double)(const PlaneSource&, double*);
    void copy(const PlaneSource& source, bool is_float32, void* target) const {
        is_float32 ? copy_float(source, static_cast<float*>(target))
                   : copy_double(source, static_cast<double*>(target));
    }
    void (*copy_abreast_float)(const AbreastSource&, float*);
    void (*copy_abreast_float_wide)(const AbreastSource&, double*);
    void (*copy_abreast_double)(const AbreastSource&, double*);
    void (*gather_float)(const GatherSource&, float* target, Index target_pitch);  // from one term to the next
    void (*gather_double)(const GatherSource&, double* target, Index target_pitch);
    // Samples joined: older[i] = older[i] + newer[i], canonical.
    void (*join_float)(const float* newer, Index count, float* older);
    void (*join_double)(const double* newer, Index count, double* older);
    // Norms for the certificate of exact sums (exact.hpp): sums of squares for float32 terms; for float64 the largest
    // magnitude of each row of a panel, and sums of magnitudes of the image.
    void (*square_sums_double)(const double* panel, Index terms, int width, double* sums);
    void (*maxima_double)(const double* panel, Index terms, int width, double* maxima);
    // Of all elements that are no NaN; 0 if there are none.
    double (*largest_magnitude_double)(const double*, Index count);
    // target[i] += magnitude(source[i])
    void (*add_squares_double)(const double*, Index count, double* target);
    void (*add_magnitudes_double)(const double*, Index count, double* target);
    // target[i] = source[i + offsets[0]] + source[i + offsets[1]] + ...
    void (*add_shifted_double)(const double* source, const Index* offsets, Index number, Index count, double* target);
    // sums[i] = factor * sums[i], or factor * (at least the root of sums[i], at most 6.1% more).
    void (*scale)(double* sums, Index count, double factor);
    void (*bound_roots)(double* sums, Index count, double factor);
};

}  // namespace detconv
