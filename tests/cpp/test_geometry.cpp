#include <limits>

#include "check.hpp"
#include "detconv/geometry.hpp"
#include "made.hpp"

namespace detconv::test {
namespace {

constexpr Index largest = std::numeric_limits<Index>::max(), smallest = std::numeric_limits<Index>::min();

using Shape = std::array<Index, 4>;

Convolution of(const Shape& input, const Shape& weight, Extent stride = {1, 1}, Padding padding = {},
               Extent dilation = {1, 1}, Index groups = 1) {
    return make_convolution(input, weight, stride, padding, dilation, groups);
}

TEST("geometry: products and sums that do not fit are refused") {
    CHECK_SAME(checked_multiply(Index(1) << 31, Index(1) << 31, "x"), Index(1) << 62);
    CHECK_SAME(checked_multiply(largest, -1, "x"), -largest);
    CHECK_SAME(checked_add(largest - 5, 5, "x"), largest);
    CHECK_INVALID(checked_multiply(Index(1) << 32, Index(1) << 31, "the size"), "the size");
    CHECK_INVALID(checked_multiply(smallest, -1, "the size"), "the size");
    CHECK_INVALID(checked_add(largest, 1, "the size"), "the size");
    CHECK_INVALID(checked_add(smallest, -1, "the size"), "the size");
}

TEST("geometry: the output has one column for every place of the window") {
    Random random(1);
    for (int i = 0; i < 2000; ++i) {
        auto small = [&](Index low) { return random.between(low, 6); };
        const Extent stride{small(1), small(1)}, dilation{small(1), small(1)}, kernel{small(1), small(1)};
        const Padding padding{small(0), small(0), small(0), small(0)};
        const Extent image{random.between(1, 40), random.between(1, 40)};
        auto places = [](Index size, Index before, Index after, Index k, Index d, Index s) {
            Index count = 0;
            for (Index at = -before; at + (k - 1) * d < size + after; at += s) ++count;
            return count;
        };
        const Index h = places(image.h, padding.top, padding.bottom, kernel.h, dilation.h, stride.h);
        const Index w = places(image.w, padding.left, padding.right, kernel.w, dilation.w, stride.w);
        const Shape input{2, 6, image.h, image.w}, weight{9, 2, kernel.h, kernel.w};
        if (h == 0 || w == 0) {
            CHECK_INVALID(of(input, weight, stride, padding, dilation, 3), "padded input");
            continue;
        }
        const Convolution c = of(input, weight, stride, padding, dilation, 3);
        CHECK(c.out_height == h && c.out_width == w && c.out_channels == 9 && c.samples == 2, i);
        CHECK(c.group_channels() == 2 && c.group_outputs() == 3 && c.terms() == 2 * kernel.h * kernel.w, i);
    }
}

TEST("geometry: \"same\" keeps the size, the odd zero at the end") {
    for (Index kernel = 1; kernel <= 8; ++kernel)
        for (Index dilation = 1; dilation <= 4; ++dilation) {
            const Shape weight{1, 1, kernel, 1};
            const Padding p = same_padding(weight, {1, 1}, {dilation, 1});
            const Convolution c = of({1, 1, 5, 3}, weight, {1, 1}, p, {dilation, 1});
            CHECK(c.out_height == 5 && c.out_width == 3, kernel << ' ' << dilation);
            CHECK(p.bottom - p.top == (kernel - 1) * dilation % 2 && p.left == 0 && p.right == 0, kernel);
        }
    CHECK_INVALID(same_padding({1, 1, 3, 3}, {1, 2}, {1, 1}), "stride (1, 2)");
    CHECK_INVALID(same_padding({1, 1, 3, 3}, {1, 1}, {0, 1}), "dilation");
    CHECK_INVALID(same_padding({1, 1, largest, 3}, {1, 1}, {2, 1}), "64 bits");
}

TEST("geometry: a message names the argument") {
    const Shape input{1, 4, 5, 5}, weight{6, 4, 3, 3};
    CHECK_INVALID(of(input, weight, {0, 1}), "stride must be at least 1; got (0, 1)");
    CHECK_INVALID(of(input, weight, {1, -2}), "stride must be at least 1; got (1, -2)");
    CHECK_INVALID(of(input, weight, {1, 1}, {}, {1, 0}), "dilation must be at least 1; got (1, 0)");
    CHECK_INVALID(of(input, weight, {1, 1}, {-1, -1, 0, 0}), "padding must not be negative; got (-1, 0)");
    CHECK_INVALID(of(input, weight, {1, 1}, {}, {1, 1}, 0), "groups must be at least 1; got 0");
    CHECK_INVALID(of(input, weight, {1, 1}, {}, {1, 1}, 4), "groups must divide");
    CHECK_INVALID(of(input, {6, 4, 3, 3}, {1, 1}, {}, {1, 1}, 2), "8 channels");
    CHECK_INVALID(of(input, {6, 3, 3, 3}), "3 channels; got input of shape (1, 4, 5, 5)");
    CHECK_INVALID(of(input, {6, 4, 0, 3}), "kernel of at least 1x1");
    CHECK_INVALID(of(input, {0, 4, 3, 3}), "at least one output channel");
    CHECK_INVALID(of(input, {6, 4, 6, 3}), "the dilated kernel is (6, 3), the padded input (5, 5)");
    CHECK_INVALID(of(input, {6, 4, 3, 3}, {1, 1}, {}, {1, 3}), "the dilated kernel is (3, 7)");
    CHECK_INVALID(of({1, 4, 0, 5}, weight, {1, 1}, {2, 2, 2, 2}), "height and width of at least 1");
}

TEST("geometry: sizes of every magnitude are computed or refused") {
    const Shape weight{6, 4, 3, 3};
    const Index huge = Index(1) << 40;
    CHECK_INVALID(of({1, 4, huge, huge}, weight), "64 bits");
    CHECK_INVALID(of({1, 4, 5, 5}, weight, {1, 1}, {largest, 1, 0, 0}), "64 bits");
    CHECK_INVALID(of({1, 4, 5, 5}, weight, {1, 1}, {largest - 3, 0, 0, 0}), "64 bits");
    CHECK_INVALID(of({1, 4, 5, 5}, weight, {1, 1}, {}, {largest, 1}), "64 bits");
    CHECK_INVALID(of({largest, 4, 5, 5}, weight), "64 bits");
    CHECK_INVALID(of({1, 4, 5, 5}, {largest, 4, 3, 3}), "64 bits");
    CHECK_INVALID(of({1, 4, 5, 5}, {6, largest, 3, 3}, {1, 1}, {}, {1, 1}, 2), "64 bits");
    CHECK_SAME(of({1, 4, 5, 5}, weight, {largest, largest}).out_height, 1);
    CHECK_SAME(of({0, 4, 5, 5}, weight).samples, 0);
    CHECK_SAME(of({1, 0, 5, 5}, {6, 0, 3, 3}).out_channels, 0);  // as in torch

    // Arguments from a table of extremes: a size or InvalidArgument, and no undefined behaviour on the way.
    constexpr Index extremes[] = {smallest, -1, 0, 1, 2, 3, 5, Index(1) << 31, Index(1) << 62, largest - 1, largest};
    Random random(2);
    int computed = 0;
    for (int i = 0; i < 20000; ++i) {
        // Most of them modest, so that the later checks are reached.
        auto any = [&] { return random.chance(6) ? random.of(extremes) : random.between(1, 4); };
        try {
            const Convolution c = of({any(), any(), any(), any()}, {any(), any(), any(), any()}, {any(), any()},
                                     {any(), any(), any(), any()}, {any(), any()}, any());
            CHECK(c.out_height >= 1 && c.out_width >= 1, i);
            ++computed;
        } catch (const InvalidArgument&) {
        }
    }
    CHECK(computed > 500, computed);
}

}  // namespace
}  // namespace detconv::test
