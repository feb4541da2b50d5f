#include "summation.hpp"

#include <algorithm>
#include <bit>
#include <cfloat>
#include <limits>
#include <utility>

#include "order.hpp"
#include "parallel.hpp"

// The contract counts roundings: float and double arithmetic must be IEEE's, with no extra precision (no x87).
static_assert(FLT_EVAL_METHOD == 0 && std::numeric_limits<float>::is_iec559 && std::numeric_limits<double>::is_iec559);

namespace detconv {
namespace {

constexpr std::array<const char*, 2> products_names{"fused", "rounded"}, bias_names{"last", "first"},
    samples_names{"tree", "sequence"};
constexpr std::array<const char*, 3> axis_names{"c", "kh", "kw"};

template <std::size_t N>
std::size_t index_of(std::string_view value, const std::array<const char*, N>& names, const char* field) {
    if (const auto found = std::ranges::find(names, value); found != names.end())
        return static_cast<std::size_t>(found - names.begin());
    std::string valid;
    for (const char* name : names) valid += (valid.empty() ? "\"" : ", \"") + std::string(name) + '"';
    throw InvalidArgument(std::string(field) + " must be one of " + valid + "; got \"" + shortened(value) + '"');
}

constexpr auto method_names = [] {
    std::array<const char*, methods.size()> names{};
    std::ranges::transform(methods, names.begin(), &MethodRow::name);
    return names;
}();

// "kh,kw,c" to {1, 2, 0}; false when the text is no list of axis names at all.
bool parse_loops(std::string_view text, std::array<int, 3>& loops) {
    std::array<bool, 3> seen{};
    for (std::size_t position = 0; position < 3; ++position) {
        const std::size_t comma = text.find(',');
        if ((comma == text.npos) != (position == 2)) return false;
        std::string_view word = text.substr(0, comma);
        while (word.starts_with(' ')) word.remove_prefix(1);
        while (word.ends_with(' ')) word.remove_suffix(1);
        const auto axis = static_cast<std::size_t>(std::ranges::find(axis_names, word) - axis_names.begin());
        if (axis == 3 || std::exchange(seen[axis], true)) return false;
        loops[position] = static_cast<int>(axis);
        if (comma != text.npos) text.remove_prefix(comma + 1);
    }
    return true;
}

// The sequence of a loop order: position to term number. Empty for the identity.
std::vector<Index> sequence_of(const std::array<int, 3>& loops, const Loops& extents,
                               const parallel::InterruptCheck& interrupted) {
    if (loops == std::array<int, 3>{0, 1, 2}) return {};
    const Loops strides{extents[1] * extents[2], extents[2], 1};
    auto axis = [&](int level) { return static_cast<std::size_t>(loops[static_cast<std::size_t>(level)]); };
    std::vector<Index> sequence;
    sequence.reserve(static_cast<std::size_t>(extents[0] * extents[1] * extents[2]));
    parallel::Lookout lookout(interrupted);
    for (Index a = 0; a < extents[axis(0)]; ++a)
        for (Index b = 0; b < extents[axis(1)]; ++b, lookout.after(extents[axis(2)]))
            for (Index c = 0; c < extents[axis(2)]; ++c)
                sequence.push_back(a * strides[axis(0)] + b * strides[axis(1)] + c * strides[axis(2)]);
    return sequence;
}

// Joins sums as a binary counter joins: once for every trailing zero bit of a sum's number (from 1), older + newer;
// what is left at the end is folded from newest to oldest. Whoever begins a sum starts its accumulator.
class Counter {
public:
    explicit Counter(Program& program) : program_(program) {}
    void begin() {
        if (number_++ == 0) return;
        program_.code.push_back({Op::push});
        program_.depth = std::max(program_.depth, ++depth_);
    }
    void end(bool narrow = false) {
        for (int joins = std::countr_zero(static_cast<std::uint64_t>(number_)); joins > 0; --joins, --depth_)
            program_.code.push_back({Op::join, narrow});
    }
    void fold(bool narrow = false) {
        for (; depth_ > 0; --depth_) program_.code.push_back({Op::join, narrow});
    }

private:
    Program& program_;
    Index number_ = 0;
    int depth_ = 0;
};

void emit_terms(Program& program, Op op, Index terms, Index block, bool start_with_bias,
                const parallel::InterruptCheck& interrupted) {
    parallel::Lookout lookout(interrupted);
    Counter counter(program);
    Index begin = 0;
    do {
        const Index end = begin + std::min(block, terms - begin);
        counter.begin();
        program.code.push_back({begin == 0 && start_with_bias ? Op::bias : Op::zero});
        if (end > begin) program.code.push_back({op, false, begin, end});
        counter.end();
        begin = end;
        lookout.after(1);
    } while (begin < terms);
    counter.fold();
}

Program lower_loops(const Summation& s, Index terms, Index block, bool fused, bool has_bias,
                    const parallel::InterruptCheck& interrupted) {
    Program program;
    const bool first = has_bias && s.bias() == BiasPosition::first;
    emit_terms(program, fused ? Op::fused : Op::rounded, terms, block, first, interrupted);
    if (has_bias && !first) program.code.push_back({Op::add_bias});
    return program;
}

}  // namespace

const char* name_of(Products value) { return products_names[static_cast<std::size_t>(value)]; }
const char* name_of(BiasPosition value) { return bias_names[static_cast<std::size_t>(value)]; }
const char* name_of(Samples value) { return samples_names[static_cast<std::size_t>(value)]; }

Summation::Summation(std::string_view method, std::string_view order, std::string_view products, std::string_view bias,
                     Index block, std::string_view samples, const parallel::InterruptCheck& interrupted)
    : method_(methods[index_of(method, method_names, "method")].method),
      products_(static_cast<Products>(index_of(products, products_names, "products"))),
      bias_(static_cast<BiasPosition>(index_of(bias, bias_names, "bias"))),
      samples_(static_cast<Samples>(index_of(samples, samples_names, "samples"))),
      block_(block) {
    constexpr Index default_block = 64;
    if (block < 1 || block > 0x7fffffff)
        throw InvalidArgument("block must be between 1 and 2147483647; got " + std::to_string(block));
    if (block != default_block && method_ != Method::pairwise)
        throw InvalidArgument("block is for method \"pairwise\" only; got block " + std::to_string(block) +
                              " with method \"" + std::string(method) + '"');

    if (parse_loops(order, loops_)) {
        for (const int axis : loops_) {
            if (!order_.empty()) order_ += ',';
            order_ += axis_names[static_cast<std::size_t>(axis)];
        }
        return;
    }
    if (order.find(',') != order.npos || order.find_first_of("0123456789") == order.npos)
        throw InvalidArgument(
            "order must be a permutation of \"c,kh,kw\" or a text in the order language, such as "
            "\"25x(+1){16x(+25){f0}} bias\"; got \"" +
            shortened(order) + '"');
    expression_ = std::make_shared<const order::Expression>(order::parse(order, interrupted));
    order_ = order::print(*expression_, interrupted);
    auto fixed = [](bool holds, const char* field, const char* only, const std::string& got) {
        if (!holds)
            throw InvalidArgument(std::string(field) + " must be " + only +
                                  " with an explicit order, which fixes it; got " + got);
    };
    fixed(method_ == Method::naive || method_ == Method::pairwise, "method", "\"naive\" (or the default)",
          '"' + std::string(method) + '"');
    fixed(products_ == Products::fused, "products", "left at its default", '"' + std::string(products) + '"');
    fixed(bias_ == BiasPosition::last, "bias", "left at its default", '"' + std::string(bias) + '"');
    fixed(block == default_block, "block", "left at its default", std::to_string(block));
    method_ = Method::naive;
}

Program lower(const Summation& s, const Loops& loops, bool has_bias, bool is_float32,
              const parallel::InterruptCheck& interrupted) {
    Program program = lower(s, loops[0] * loops[1] * loops[2], has_bias, is_float32, interrupted);
    // The order of exact sums is free, and an explicit order has written its own sequence.
    if (!s.has_explicit_order() && !row_of(s.method()).certified)
        program.sequence = sequence_of(s.loops(), loops, interrupted);
    return program;
}

Program lower(const Summation& s, Index terms, bool has_bias, bool is_float32,
              const parallel::InterruptCheck& interrupted) {
    if (s.has_explicit_order()) return order::lower(s.expression(), terms, has_bias, is_float32, interrupted);
    const MethodRow& row = row_of(s.method());
    const bool fused = row.always_fused || s.products() == Products::fused;
    // A Twofold accumulator cannot be joined; its bound does not need it to be.
    const bool blocks = row.blocks && (is_float32 ? row.float32 : row.float64) != Accumulator::twofold;
    const Index block = !blocks ? std::max<Index>(terms, 1) : row.certified ? exact_block : s.block();
    Program program = lower_loops(s, terms, block, fused, has_bias, interrupted);
    program.wide = is_float32 && row.float32 == Accumulator::wide;
    return program;
}

bool can_join_samples(const Summation& s) {
    const MethodRow& row = row_of(s.method());
    return !s.has_explicit_order() && !row.certified && !row.rescued;
}

Program lower_samples(const Summation& s, Index terms, Index samples, bool is_float32) {
    const Program sample = lower(s, terms, false, is_float32);
    Program program;
    program.wide = sample.wide;
    Counter counter(program);
    for (Index n = 0; n < samples; ++n) {
        counter.begin();
        for (Instruction i : sample.code)
            program.code.push_back({i.op, i.narrow, i.begin + n * terms, i.end + n * terms});
        if (program.wide) program.code.push_back({Op::round});
        counter.end(program.wide);
    }
    counter.fold(program.wide);
    program.depth += sample.depth;
    return program;
}

Program lower_naive(const Summation& s, Index terms, bool has_bias) {
    return lower_loops(s, terms, std::max<Index>(terms, 1), s.products() == Products::fused, has_bias, parallel::never);
}

}  // namespace detconv
