// A summation: everything that fixes the bits. The vocabulary is that of docs/contract.md.
#pragma once

#include <array>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "geometry.hpp"
#include "program.hpp"

namespace detconv {

namespace parallel {  // parallel.hpp, which the kernels have no use for
class InterruptCheck;
extern const InterruptCheck never;
}  // namespace parallel

// What one accumulator does with one term: the structs of arithmetic.hpp.
enum class Accumulator : std::uint8_t { plain, kahan, wide, twofold };

enum class Method : std::uint8_t { naive, pairwise, kahan, fp64, exact };
enum class Products : std::uint8_t { fused, rounded };
enum class BiasPosition : std::uint8_t { last, first };
enum class Samples : std::uint8_t { tree, sequence };

// How a double total becomes a float32 output. Odd: for outputs that will be rounded once more, to a half type.
enum class Rounding : std::uint8_t { nearest, odd };

// One row a method: this table is what the rest of the engine, the bindings, the tests and the benches read.
struct MethodRow {
    Method method;
    const char* name;
    Accumulator float32, float64;  // by element type
    bool blocks;                   // sums blocks and joins them in a binary tree (pairwise), or one chain
    bool always_fused;             // the products setting plays no part
    bool certified;                // the total is certified, or recomputed, to be correctly rounded
    bool rescued;                  // a total that is not finite is replaced by the naive one of the same terms
};

inline constexpr auto methods = std::to_array<MethodRow>({
    {Method::naive, "naive", Accumulator::plain, Accumulator::plain, false, false, false, false},
    {Method::pairwise, "pairwise", Accumulator::plain, Accumulator::plain, true, false, false, false},
    {Method::kahan, "kahan", Accumulator::kahan, Accumulator::kahan, false, false, false, true},
    {Method::fp64, "fp64", Accumulator::wide, Accumulator::plain, false, true, false, false},
    {Method::exact, "exact", Accumulator::wide, Accumulator::twofold, true, true, true, false},
});

inline const MethodRow& row_of(Method method) { return methods[static_cast<std::size_t>(method)]; }

// Blocks of `exact`, whose order is free: 64 keeps the certificate's bound small at no cost.
inline constexpr Index exact_block = 64;

namespace order {
struct Expression;  // an explicit order, parsed
}

class Summation {
public:
    // Texts as the user writes them; throws InvalidArgument naming the field and what is valid.
    Summation(std::string_view method, std::string_view order, std::string_view products, std::string_view bias,
              Index block, std::string_view samples, const parallel::InterruptCheck& interrupted = parallel::never);

    Method method() const { return method_; }
    Products products() const { return products_; }
    BiasPosition bias() const { return bias_; }
    Samples samples() const { return samples_; }
    Index block() const { return block_; }
    const std::string& order() const { return order_; }  // canonical text
    bool has_explicit_order() const { return expression_ != nullptr; }
    const order::Expression& expression() const { return *expression_; }

    // The outermost-first axes of a loop order: a permutation of 0 (c), 1 (kh), 2 (kw).
    const std::array<int, 3>& loops() const { return loops_; }

private:
    Method method_;
    Products products_;
    BiasPosition bias_;
    Samples samples_;
    Index block_;
    std::string order_;
    std::array<int, 3> loops_{0, 1, 2};
    std::shared_ptr<const order::Expression> expression_;
};

const char* name_of(Products);
const char* name_of(BiasPosition);
const char* name_of(Samples);

// How a pass numbers its terms: the extents of the loops c, kh, kw, outermost first.
using Loops = std::array<Index, 3>;

// The program of a summation over the terms of three loops, which its order permutes.
Program lower(const Summation& summation, const Loops& loops, bool has_bias, bool is_float32,
              const parallel::InterruptCheck& interrupted = parallel::never);

// The same over terms that have one sequence only (the pixels of a weight gradient).
Program lower(const Summation& summation, Index terms, bool has_bias, bool is_float32,
              const parallel::InterruptCheck& interrupted = parallel::never);

// The same for so many samples, one after the other, whose sums are rounded to the element type and joined in the
// aligned binary tree. Not for accumulators whose sums cannot be joined inside a program: see can_join_samples.
Program lower_samples(const Summation& summation, Index terms, Index samples, bool is_float32);
bool can_join_samples(const Summation& summation);

// The naive program of the same terms, by which Kahan's non-finite totals are replaced.
Program lower_naive(const Summation& summation, Index terms, bool has_bias);

}  // namespace detconv
