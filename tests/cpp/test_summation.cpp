#include <functional>

#include "check.hpp"
#include "layer.hpp"
#include "oracle.hpp"

namespace detconv::test {
namespace {

// pairwise in its own words: blocks, and a tree in which every aligned power of two of blocks is a node.
float by_blocks(const std::vector<float>& w, const std::vector<float>& x, std::size_t block, bool fused) {
    std::vector<float> sums;
    for (std::size_t begin = 0; begin < w.size(); begin += block) {
        float s = 0;
        for (std::size_t k = begin; k < std::min(begin + block, w.size()); ++k)
            s = fused ? std::fma(w[k], x[k], s) : s + w[k] * x[k];
        sums.push_back(s);
    }
    // The largest power of two of blocks is the left subtree of what is left.
    const std::function<float(std::size_t, std::size_t)> tree = [&](std::size_t begin, std::size_t count) {
        if (count == 1) return sums[begin];
        const std::size_t left = std::bit_floor(count) == count ? count / 2 : std::bit_floor(count);
        return tree(begin, left) + tree(begin + left, count - left);
    };
    return tree(0, sums.size());
}

TEST("summation: pairwise joins blocks as a binary counter does") {
    Random random(7);
    for (int i = 0; i < 2000; ++i) {
        const Index terms = random.between(1, 300), block = random.chance(30) ? 64 : random.between(1, 12);
        const bool fused = random.chance(50);
        const auto w = made<float>(terms, random.next(), "uniform"), x = made<float>(terms, random.next(), "uniform");
        const Summation s("pairwise", "c,kh,kw", fused ? "fused" : "rounded", "last", block, "tree");
        const Program program = lower(s, {terms, 1, 1}, false, true);
        CHECK_SAME(static_cast<float>(evaluate(program, Accumulator::plain, w, x, 0.0f).s),
                   by_blocks(w, x, static_cast<std::size_t>(block), fused), terms << " terms, block " << block);
    }
}

TEST("summation: a sequence is a permutation of the loops") {
    auto sequence = [](const char* text) { return lower(summation_from(text), {2, 2, 3}, false, true).sequence; };
    CHECK_SAME(sequence("naive"), std::vector<Index>{});
    CHECK_SAME(sequence("naive order=kh,kw,c"), (std::vector<Index>{0, 6, 1, 7, 2, 8, 3, 9, 4, 10, 5, 11}));
    CHECK_SAME(sequence("kahan order=kw,c,kh"), (std::vector<Index>{0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11}));
    CHECK_SAME(sequence("exact order=kw,c,kh"), std::vector<Index>{});
}

TEST("summation: no terms at all") {
    for (const MethodRow& row : methods) {
        const Program program = lower(summation_from(row.name), {0, 3, 3}, true, true);
        CHECK_SAME(evaluate(program, row.float32, std::vector<float>{}, {}, 2.5f).s, 2.5, row.name);
    }
}

TEST("summation: fields") {
    const Summation s = summation_from("naive order=\"3x(+1){f0}  bias\"");
    CHECK(s.method() == Method::naive && s.has_explicit_order());
    CHECK_SAME(s.order(), "3x(+1){f0} bias");
    CHECK(summation_from("pairwise order=\"f0 m1\"").method() == Method::naive);
    CHECK_SAME(summation_from("naive order=\"kh , kw,c\"").order(), "kh,kw,c");

    CHECK_INVALID(summation_from("naif"),
                  "method must be one of \"naive\", \"pairwise\", \"kahan\", \"fp64\", \"exact\"; got \"naif\"");
    CHECK_INVALID(summation_from("naive products=double"), "products must be one of \"fused\", \"rounded\"");
    CHECK_INVALID(summation_from("naive bias=middle"), "bias must be one of \"last\", \"first\"");
    CHECK_INVALID(summation_from("naive samples=none"), "samples must be one of \"tree\", \"sequence\"");
    CHECK_INVALID(summation_from("naive order=c,kh"), "order must be a permutation");
    CHECK_INVALID(summation_from("naive order=c,kh,kh"), "order must be a permutation");
    CHECK_INVALID(summation_from("naive order=c,kh,kw,c"), "order must be a permutation");
    CHECK_INVALID(summation_from("pairwise block=0"), "block must be between 1 and 2147483647");
    CHECK_INVALID(summation_from("pairwise block=2147483648"), "block must be between 1 and 2147483647");
    CHECK_INVALID(summation_from("kahan block=32"), "block is for method \"pairwise\" only");
    CHECK_INVALID(summation_from("kahan order=f0"), "method must be \"naive\"");
    CHECK_INVALID(summation_from("naive order=f0 products=rounded"), "products must be left at its default");
    CHECK_INVALID(summation_from("naive order=f0 bias=first"), "bias must be left at its default");
    CHECK_INVALID(summation_from("pairwise order=f0 block=2"), "block must be left at its default");
}

}  // namespace
}  // namespace detconv::test
