// The driver, over every kernel and every layout of memory, against one output at a time.
#include <algorithm>
#include <cstring>

#include "check.hpp"
#include "layer.hpp"
#include "oracle.hpp"
#include "orders.hpp"

namespace detconv::test {
namespace {

template <class T>
bool equal_bits(const std::vector<T>& a, const std::vector<T>& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

constexpr Padding all_around(Index n) { return {n, n, n, n}; }

// Tiles that fit and tiles that stick out, images read in place and copied, more rows than a panel has.
const Layer layers[] = {
    {.input = {1, 3, 9, 40}, .weight = {5, 3, 3, 3}},
    {.input = {2, 4, 8, 8}, .weight = {37, 4, 3, 2}, .padding = all_around(1)},
    {.input = {1, 9, 16, 15}, .weight = {33, 9, 1, 1}},
    {.input = {1, 5, 17, 33}, .weight = {6, 5, 3, 4}, .stride = {2, 3}, .padding = {0, 2, 1, 0}},
    {.input = {2, 6, 12, 31},
     .weight = {8, 3, 2, 3},
     .padding = {2, 1, 3, 0},
     .dilation = {3, 2},
     .groups = 2,
     .bias = false},
    {.input = {1, 4, 19, 67}, .weight = {4, 1, 3, 3}, .padding = all_around(1), .groups = 4},
    {.input = {1, 2, 30, 30}, .weight = {3, 2, 2, 2}, .stride = {1, 2}, .bias = false},
    {.input = {3, 1, 1, 130}, .weight = {2, 1, 1, 5}, .padding = {0, 0, 4, 4}, .dilation = {1, 9}},
    {.input = {1, 2, 2, 3}, .weight = {70, 2, 4, 4}, .padding = all_around(3)},
    // Batches of small images, whose columns are gathered.
    {.input = {9, 3, 4, 4}, .weight = {17, 3, 3, 3}, .padding = all_around(1)},
    {.input = {7, 4, 7, 6}, .weight = {6, 2, 3, 3}, .stride = {2, 1}, .padding = {1, 0, 2, 1}, .groups = 2},
    {.input = {70, 2, 1, 2}, .weight = {3, 2, 1, 2}, .padding = all_around(1), .bias = false},
    // Groups of one output channel, whose images are read side by side.
    {.input = {2, 40, 9, 23}, .weight = {40, 1, 3, 3}, .padding = all_around(1), .groups = 40},
    {.input = {1, 27, 13, 6}, .weight = {9, 3, 2, 3}, .padding = {1, 0, 0, 2}, .dilation = {2, 1}, .groups = 9},
};

// All that a diagonal kernel can run; the others can, too.
bool is_diagonal(const Layer& layer) { return layer.groups >= 8 && layer.groups == layer.weight[0]; }

// A summation that runs on an accumulator; several, by number.
std::string text_for(Accumulator accumulator, Index terms, Index number) {
    constexpr const char* kahan[] = {"kahan", "kahan products=rounded order=kw,c,kh bias=first"};
    constexpr const char* plain[] = {"pairwise block=5", "naive order=kh,kw,c products=rounded",
                                     "pairwise block=1 bias=first products=rounded"};
    constexpr const char* wide[] = {"fp64 order=kh,kw,c", "exact"};
    const auto i = static_cast<std::size_t>(number);
    switch (accumulator) {
        case Accumulator::kahan:
            return kahan[i % 2];
        case Accumulator::twofold:
            return "exact";
        case Accumulator::wide:
            if (i % 3 == 2)
                return "naive order=\"d[" + std::to_string(terms) + "x(-1){m" + std::to_string(terms - 1) + "}] bias\"";
            return wide[i % 3];
        default:
            return plain[i % 3];
    }
}

template <class T>
void check_rows() {
    for (std::size_t i = 0; i < std::size(layers); ++i) {
        Layer layer = layers[i];
        layer.seed = 100 + i;
        layer.kind = i % 4 == 3 ? "special" : i % 4 == 2 ? "bfloat16" : "uniform";
        const Arrays<T> arrays(layer);
        for (const Accumulator accumulator :
             {Accumulator::plain, Accumulator::kahan, Accumulator::wide, Accumulator::twofold}) {
            if (accumulator == (sizeof(T) == 4 ? Accumulator::twofold : Accumulator::wide)) continue;
            const std::string text = text_for(accumulator, layer.geometry().terms(), static_cast<Index>(i));
            const Summation summation = summation_from(text);
            const auto wanted = expected(layer, arrays, summation);
            for_each_instruction_set([&](const Kernels& kernels) {
                for (const TileKernel& k : kernels.tiles) {
                    if (k.accumulator != accumulator || k.is_float32 != (sizeof(T) == 4)) continue;
                    if (k.side == Side::diagonal && !is_diagonal(layer)) continue;
                    Kernels alone = kernels;
                    alone.tiles = {&k, 1};
                    CHECK(equal_bits(convolve(layer, arrays, summation, {alone, 1, {}}), wanted),
                          kernels.name << " row " << &k - kernels.tiles.data() << ": " << layer.text() << ' ' << text);
                }
            });
        }
    }
}

TEST("forward: every row of every table, alone") {
    check_rows<float>();
    check_rows<double>();
}

// ---- Memory ----

// An array in memory of its own: axes in any nesting, gaps between elements, any direction, exactly as large as needed.
template <class T>
struct Laid {
    std::vector<T> memory;
    std::array<Index, 4> shape, strides{};
    Index origin = 0;

    Laid(const std::array<Index, 4>& given_shape, T filling, Random& random) : shape(given_shape) {
        std::array<std::size_t, 4> axes{3, 2, 1, 0};
        if (random.chance(50))
            for (std::size_t i = 3; i > 0; --i)
                std::swap(axes[i], axes[static_cast<std::size_t>(random.between(0, static_cast<Index>(i)))]);
        const bool gaps = random.chance(30);
        Index step = gaps && random.chance(50) ? 2 : 1, size = 1;
        for (const std::size_t axis : axes) {
            const Index reach = step * (shape[axis] - 1);
            strides[axis] = random.chance(80) ? step : -step;
            if (strides[axis] < 0) origin += reach;
            size += reach;
            step *= shape[axis];
            if (gaps) step += random.between(0, 2);
        }
        memory.assign(static_cast<std::size_t>(size), filling);
    }

    T& at(Index n, Index c, Index h, Index w) {
        return memory[static_cast<std::size_t>(origin + n * strides[0] + c * strides[1] + h * strides[2] +
                                               w * strides[3])];
    }
    void fill(const std::vector<T>& values) {
        auto next = values.begin();
        for_each([&](T& element) { element = *next++; });
    }
    std::vector<T> values() {
        std::vector<T> all;
        for_each([&](T& element) { all.push_back(element); });
        return all;
    }
    template <class U>
    View<U> view() {
        return {memory.data() + origin, shape, strides};
    }

private:
    void for_each(const auto& action) {
        for (Index n = 0; n < shape[0]; ++n)
            for (Index c = 0; c < shape[1]; ++c)
                for (Index h = 0; h < shape[2]; ++h)
                    for (Index w = 0; w < shape[3]; ++w) action(at(n, c, h, w));
    }
};

Layer random_layer(Random& random) {
    auto small = [&](Index low) { return random.between(low, 3); };
    Layer layer;
    layer.groups = random.chance(60) ? 1 : small(1);
    const Index channels = random.between(1, 5);
    layer.weight = {layer.groups * random.between(1, random.chance(20) ? 40 : 6), channels, small(1), small(1)};
    if (random.chance(20)) layer.weight[2] = layer.weight[3] = 1;
    layer.stride = {random.chance(60) ? 1 : small(1), random.chance(60) ? 1 : small(1)};
    layer.dilation = {random.chance(60) ? 1 : small(1), random.chance(60) ? 1 : random.between(1, 7)};
    if (random.chance(60)) layer.padding = {small(0), small(0), small(0), small(0)};
    layer.input = {small(1), layer.groups * channels, (layer.weight[2] - 1) * layer.dilation.h + random.between(1, 20),
                   (layer.weight[3] - 1) * layer.dilation.w + random.between(1, random.chance(30) ? 80 : 20)};
    layer.bias = random.chance(70);
    layer.kind = random.of(kinds);
    layer.seed = random.next();
    return layer;
}

Summation random_summation(Random& random, const Layer& layer) {
    if (random.chance(25))
        return summation_from("naive order=\"" + random_order(random, layer.geometry().terms(), layer.bias, true) +
                              '"');
    constexpr const char* orders[] = {"c,kh,kw", "c,kw,kh", "kh,c,kw", "kh,kw,c", "kw,c,kh", "kw,kh,c"};
    const MethodRow& row = random.of(methods);
    const Index block = row.method == Method::pairwise ? random.between(1, 9) : 64;
    return Summation(row.name, random.of(orders), random.chance(50) ? "fused" : "rounded",
                     random.chance(50) ? "last" : "first", block, "tree");
}

template <class T>
void check_layouts(std::uint64_t seed) {
    Random random(seed);
    for (int i = 0; i < 250; ++i) {
        const Layer layer = random_layer(random);
        const Summation summation = random_summation(random, layer);
        const Arrays<T> arrays(layer);
        const Convolution g = layer.geometry();
        const auto wanted = expected(layer, arrays, summation);

        const T poison = std::numeric_limits<T>::quiet_NaN(), untouched = 12345;
        Laid<T> input(layer.input, poison, random), weight(layer.weight, poison, random),
            output({g.samples, g.out_channels, g.out_height, g.out_width}, untouched, random);
        Laid<T> bias({1, 1, 1, g.out_channels}, poison, random);
        input.fill(arrays.input), weight.fill(arrays.weight);
        if (layer.bias) bias.fill(arrays.bias);
        for_each_instruction_set([&](const Kernels& kernels) {
            std::ranges::fill(output.memory, untouched);
            const int threads = static_cast<int>(random.between(1, 3));
            forward<T>(g, input.template view<const T>(), weight.template view<const T>(),
                       {layer.bias ? bias.memory.data() + bias.origin : nullptr, bias.strides[3]},
                       output.template view<T>(), summation, {kernels, threads, {}});
            CHECK(equal_bits(output.values(), wanted),
                  kernels.name << ": " << layer.text() << ' ' << summation.order());
            const auto gaps = static_cast<Index>(output.memory.size() - wanted.size());
            CHECK(std::ranges::count(output.memory, untouched) >= gaps, "gaps of " << layer.text());
        });
    }
}

TEST("forward: any strides, any geometry, and nothing beyond the arrays") {
    check_layouts<float>(30);
    check_layouts<double>(31);
}

// ---- Threads ----

TEST("forward: large layers, shared between threads in every way") {
    const Layer large[] = {
        {.input = {1, 24, 20, 20}, .weight = {48, 24, 3, 3}, .padding = all_around(1), .seed = 40},
        {.input = {3, 64, 7, 7}, .weight = {96, 64, 1, 1}, .seed = 41},
        {.input = {1, 96, 40, 40}, .weight = {96, 1, 3, 3}, .padding = all_around(1), .groups = 96, .seed = 42},
        {.input = {1, 3, 64, 64}, .weight = {8, 3, 5, 5}, .stride = {2, 2}, .padding = all_around(2), .seed = 43},
    };
    for (const Layer& layer : large) {
        const Arrays<float> arrays(layer);
        for (const char* text : {"naive", "pairwise order=kh,kw,c", "kahan", "exact"}) {
            const Summation summation = summation_from(text);
            const auto wanted = expected(layer, arrays, summation);
            for_each_instruction_set([&](const Kernels& kernels) {
                for (const int threads : {1, 2, 3, 7})
                    CHECK(equal_bits(convolve(layer, arrays, summation, {kernels, threads, {}}), wanted),
                          kernels.name << ", " << threads << " threads: " << layer.text() << ' ' << text);
            });
        }
    }
}

// ---- Hard sums ----

// One output for each pair of a row of w and a row of x, both [outputs][terms]; by every kernel that could be chosen.
template <class T>
void check_sums(const std::vector<std::vector<T>>& w, const std::vector<std::vector<T>>& x, const std::vector<T>& bias,
                const char* text) {
    const auto rows = static_cast<Index>(w.size()), columns = static_cast<Index>(x.size()),
               terms = static_cast<Index>(w[0].size());
    const Summation summation = summation_from(text);
    const MethodRow& method = row_of(summation.method());
    // All rows read one image; or, for the diagonal kernels, each has a copy of it, and there are some rows more.
    for (const Index groups : {Index(1), rows + 8}) {
        const Index outputs = groups == 1 ? rows : groups;
        const Layer layer{.input = {1, groups * terms, 1, columns},
                          .weight = {outputs, terms, 1, 1},
                          .groups = groups,
                          .bias = !bias.empty()};
        Arrays<T> arrays(layer);
        for (std::size_t i = 0; i < arrays.weight.size(); ++i)
            arrays.weight[i] = w[i / w[0].size() % w.size()][i % w[0].size()];
        for (std::size_t i = 0; i < arrays.input.size(); ++i)
            arrays.input[i] = x[i % x.size()][i / x.size() % w[0].size()];
        for (std::size_t i = 0; i < arrays.bias.size(); ++i) arrays.bias[i] = bias[i % bias.size()];
        const auto wanted = expected(layer, arrays, summation);
        for_each_instruction_set([&](const Kernels& kernels) {
            for (const TileKernel& k : kernels.tiles) {
                const bool single = sizeof(T) == 4;
                if (k.is_float32 != single || k.accumulator != (single ? method.float32 : method.float64)) continue;
                if ((k.side == Side::diagonal) != (groups > 1)) continue;
                Kernels alone = kernels;
                alone.tiles = {&k, 1};
                const auto found = convolve(layer, arrays, summation, {alone, 1, {}});
                for (std::size_t i = 0; i < wanted.size(); ++i)
                    CHECK(same(found[i], wanted[i]),
                          kernels.name << " row " << &k - kernels.tiles.data() << ", " << text << ", output " << i
                                       << ": " << test::text(found[i]) << ", not " << test::text(wanted[i]));
            }
        });
    }
}

// Sums whose terms cancel down to a number that is nearly halfway between two of T. Factors of opposite exponents leave
// the products as they are, but bring the bounds of the certificate near the ends of the range; the columns differ in
// scale, and so does what bounds them.
template <class T>
void check_halfway(int exponent, std::uint64_t seed) {
    constexpr int digits = std::numeric_limits<T>::digits;
    Random random(seed);
    std::vector<std::vector<T>> w(8), x(75);
    for (std::vector<T>& column : x) {
        column = made<T>(10, random.next(), "uniform");
        for (std::size_t k = 0; k < 10; ++k) column.push_back(column[k]);
        column.insert(column.end(), {1, 1, 1});
        const int scale = exponent + static_cast<int>(random.between(-12, 12));
        for (T& value : column) value = std::ldexp(value, scale);
    }
    for (std::vector<T>& row : w) {
        row = made<T>(10, random.next(), "uniform");
        for (T& value : row) value *= 1024;
        for (std::size_t k = 0; k < 10; ++k) row.push_back(-row[k]);
        const T beside =
            std::ldexp(T(random.chance(50) ? 1 : -1), -2 * digits + static_cast<int>(random.between(0, 12)));
        row.insert(row.end(), {1, std::ldexp(T(1), -digits), beside});
        for (T& value : row) value = std::ldexp(value, -exponent);
    }
    check_sums<T>(w, x, {}, "exact");
}

TEST("forward: exact sums beside halfway, the factors anywhere in the range") {
    for (std::uint64_t seed = 50; seed < 56; ++seed) {
        for (const int exponent : {0, 40, 90, -60, -90}) check_halfway<float>(exponent, seed);
        for (const int exponent : {0, 300, 900, 960, -900}) check_halfway<double>(exponent, seed);
    }
}

TEST("forward: exact sums beside halfway, where a bound could underflow") {
    for (std::uint64_t seed = 60; seed < 80; ++seed)
        for (const int exponent : {1000, 1010, -1000}) check_halfway<double>(exponent, seed);
}

TEST("forward: a Kahan total that is not finite is the naive one") {
    auto check = [&]<class T>(T) {
        constexpr T largest = std::numeric_limits<T>::max(), inf = std::numeric_limits<T>::infinity();
        const T ulp = std::ldexp(T(1), std::numeric_limits<T>::max_exponent - std::numeric_limits<T>::digits);
        const std::vector<std::vector<T>> ones{{1, 1, 1, 1, 1}};
        // The naive sum rounds up four times and overflows; the compensated one does not. Then the bias.
        const std::vector<std::vector<T>> near_overflow{
            {largest - 3 * ulp, ulp * T(0.75), ulp * T(0.75), ulp * T(0.75), ulp * T(0.75)}};
        // The other way round: the compensated sum overflows at the last term, the naive one does not.
        const T quarter = ulp / 4;
        const std::vector<std::vector<T>> last_overflows{
            {largest - 3 * ulp, quarter, quarter, quarter, quarter + 3 * ulp}};
        for (const char* text : {"kahan", "kahan products=rounded", "kahan bias=first"})
            check_sums<T>(ones, last_overflows, {}, text);
        for (const char* text : {"kahan", "kahan products=rounded", "kahan bias=first"})
            for (const T bias : {T(0), T(1), ulp, -inf, inf, std::numeric_limits<T>::quiet_NaN()})
                check_sums<T>(ones, near_overflow, {bias}, text);
        check_sums<T>(ones,
                      {{largest, largest, -largest, 1, 2}, {inf, 1, 1, 1, 1}, {1, inf, -inf, 1, 1}, {1, 2, 3, 4, -inf}},
                      {}, "kahan");
    };
    check(float());
    check(double());
}

}  // namespace
}  // namespace detconv::test
