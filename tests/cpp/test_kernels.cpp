// Every row of every table of kernels, called directly and compared with one output at a time in scalars.
#include <algorithm>
#include <cstring>

#include "check.hpp"
#include "detconv/order.hpp"
#include "layer.hpp"
#include "oracle.hpp"
#include "orders.hpp"

namespace detconv::test {
namespace {

void for_each_row(const std::function<void(const TileKernel&, const std::string&)>& action) {
    for_each_instruction_set([&](const Kernels& kernels) {
        for (const TileKernel& k : kernels.tiles)
            action(k, std::string(kernels.name) + " row " + std::to_string(&k - kernels.tiles.data()));
    });
}

std::size_t unsigned_of(Index i) { return static_cast<std::size_t>(i); }

// Where the total of an output lies: [broadcast][vector][lane].
std::size_t total_index(const TileKernel& k, int row, int h, int w) {
    return unsigned_of(k.rows_are_lanes() ? (h * k.per_row + w) * k.rows() + row
                                          : row * k.vectors * k.lanes + h * k.columns() + w);
}

template <class T>
std::vector<T> converted(const auto& values) {
    return std::vector<T>(values.begin(), values.end());
}

// A tile's operands with terms of T, each in memory of exactly the size that the kernel may touch.
template <class T>
struct Problem {
    Index terms, width, abreast;
    std::vector<T> panel, image, bias;       // [term][row], as read by the terms, [row]
    std::vector<Index> taps, panel_offsets;  // no offsets: the terms in turn
    Index origin, row_step;                  // of the image

    Problem(const TileKernel& k, Index number_of_terms, Random& random, std::string_view kind)
        : terms(number_of_terms),
          width(k.rows()),
          abreast(k.abreast()),
          row_step((k.columns() + random.between(0, 5)) * abreast) {
        const Index lowest = -random.between(0, 40), highest = random.between(0, 60);
        for (Index r = 0; r < terms; ++r) taps.push_back(random.between(lowest, highest));
        if (random.chance(50))
            for (Index r = 0; r < terms; ++r) panel_offsets.push_back(random.between(0, terms - 1) * k.rows());
        origin = -*std::ranges::min_element(taps);
        const Index last =
            *std::ranges::max_element(taps) + (k.image_rows() - 1) * row_step + k.columns() * abreast - 1;
        panel = made<T>(terms * k.rows(), random.next(), kind);
        image = made<T>(origin + last + 1, random.next(), kind);
        bias = made<T>(k.rows(), random.next(), kind);
        taps.resize(taps.size() + Tile::ahead);
    }

    T w(Index r, int row) const {
        return panel[unsigned_of((panel_offsets.empty() ? r * width : panel_offsets[unsigned_of(r)]) + row)];
    }
    T x(Index r, int row, int h, int w) const {
        const Index own = abreast == 1 ? 0 : row;
        return image[unsigned_of(origin + taps[unsigned_of(r)] + h * row_step + w * abreast + own)];
    }
};

// The totals of the kernel, as doubles: the first part of every output, then the second part of those that have one.
template <class T>
std::vector<double> totals_of(const TileKernel& k, void (*run)(const Tile&), const Problem<T>& p,
                              const Program& program) {
    auto with = [&]<class Element>(Element) {
        const auto bias = converted<Element>(p.bias), panel = converted<Element>(p.panel),
                   image = converted<Element>(p.image);
        const int parts = k.accumulator == Accumulator::plain || k.accumulator == Accumulator::wide ? 1 : 2;
        std::vector<Element> stack(unsigned_of(program.depth * k.outputs() * parts));
        std::vector<Element> totals(unsigned_of(k.outputs() * (k.accumulator == Accumulator::twofold ? 2 : 1)));
        run({panel.data(), p.panel_offsets.empty() ? nullptr : p.panel_offsets.data(), k.rows(),
             image.data() + p.origin, p.taps.data(), p.row_step, program.code.data(),
             static_cast<Index>(program.code.size()), bias.data(), stack.data(), totals.data()});
        return converted<double>(totals);
    };
    return k.accumulator == Accumulator::wide ? with(double()) : with(T());
}

template <class T>
void check_run(const TileKernel& k, Accumulator accumulator, void (*run)(const Tile&), const Program& program,
               Index terms, Random& random, const std::string& context) {
    const Problem<T> p(k, terms, random, random.of(kinds));
    const auto totals = totals_of(k, run, p, program);
    int wrong = 0;
    for (int row = 0; row < k.rows(); ++row)
        for (int h = 0; h < k.image_rows(); ++h)
            for (int column = 0; column < k.columns(); ++column) {
                std::vector<T> w, x;
                for (Index r = 0; r < terms; ++r) w.push_back(p.w(r, row)), x.push_back(p.x(r, row, h, column));
                const Total total = evaluate(program, accumulator, w, x, p.bias[unsigned_of(row)]);
                const std::size_t at = total_index(k, row, h, column);
                wrong += !same(totals[at], total.s);
                if (accumulator == Accumulator::twofold) wrong += !same(totals[at + unsigned_of(k.outputs())], total.c);
            }
    CHECK_SAME(wrong, 0, context);
}

// Programs of every kind that an accumulator can be given.
Program program_for(Accumulator accumulator, bool is_float32, Index terms, bool has_bias, Random& random) {
    const bool fused = accumulator == Accumulator::twofold || random.chance(50);
    const std::string options =
        std::string(fused ? "" : " products=rounded") + (random.chance(50) ? "" : " bias=first");
    const std::array<Index, 3> extents{terms, 1, 1};
    switch (accumulator) {
        case Accumulator::kahan:
            return lower(summation_from("kahan" + options), extents, has_bias, is_float32);
        case Accumulator::twofold:
            return lower(summation_from("exact" + options), extents, has_bias, is_float32);
        case Accumulator::wide:
            if (random.chance(25)) return lower(summation_from("fp64" + options), extents, has_bias, is_float32);
            if (random.chance(25)) return lower(summation_from("exact" + options), extents, has_bias, is_float32);
            return order::lower(order::parse("d[" + random_order(random, terms, false, true) + "] bias"), terms,
                                has_bias, is_float32);
        default:
            if (random.chance(20)) return lower(summation_from("naive" + options), extents, has_bias, is_float32);
            if (random.chance(30))
                return lower(summation_from("pairwise block=" + std::to_string(random.between(1, 9)) + options),
                             extents, has_bias, is_float32);
            return order::lower(order::parse(random_order(random, terms, has_bias, false)), terms, has_bias,
                                is_float32);
    }
}

TEST("kernels: every row runs its program as the scalars do") {
    Random random(20);
    for_each_row([&](const TileKernel& k, const std::string& name) {
        for (int i = 0; i < 12; ++i) {
            const Index terms = i == 0 ? 130 : random.between(1, 40);
            const bool has_bias = random.chance(60);
            auto check = [&](Accumulator accumulator, void (*run)(const Tile&)) {
                const Program program = program_for(accumulator, k.is_float32, terms, has_bias, random);
                if (k.is_float32)
                    check_run<float>(k, accumulator, run, program, terms, random, name);
                else
                    check_run<double>(k, accumulator, run, program, terms, random, name);
            };
            check(k.accumulator, k.run);
            CHECK((k.rescue != nullptr) == (k.accumulator != Accumulator::wide), name);
            if (k.rescue && i % 4 == 0) {
                const Program program = lower_naive(summation_from("kahan"), terms, has_bias);
                if (k.is_float32)
                    check_run<float>(k, Accumulator::plain, k.rescue, program, terms, random, name);
                else
                    check_run<double>(k, Accumulator::plain, k.rescue, program, terms, random, name);
            }
        }
    });
}

// ---- The fused multiply-add ----

// Factors with few or many bits, of any exponent, or near powers of two, where roundings are close calls.
template <class T>
T factor(Random& random) {
    constexpr int digits = std::numeric_limits<T>::digits;
    const T sign = random.chance(50) ? 1 : -1;
    auto power = [&](Index reach) { return std::ldexp(sign, static_cast<int>(random.between(-reach, reach))); };
    switch (random.between(0, 4)) {
        case 0:
            return value<T>(random.of(kinds), random.next());
        case 1:
            return power(digits) * (1 + static_cast<T>(random.between(-3, 3)) * std::numeric_limits<T>::epsilon());
        case 2:
            return power(5 * digits) * static_cast<T>(random.between(1, 40));
        case 3:
            return power(5) * std::numeric_limits<T>::denorm_min() * static_cast<T>(random.between(1, 1 << 20));
        default:
            return power(5 * digits) * uniform<T>(random.next());
    }
}

// An addend that makes rounding w * x + c a close call: near cancellation, near halfway, or a last bit far away.
template <class T>
T addend(T w, T x, Random& random) {
    constexpr int digits = std::numeric_limits<T>::digits;
    const T product = w * x;
    if (product == 0 || !std::isfinite(product)) return factor<T>(random);
    const T sign = random.chance(50) ? 1 : -1;
    const int exponent = std::ilogb(product);
    switch (random.between(0, 4)) {
        case 0: {
            T c = -product;
            for (Index steps = random.between(0, 2); steps > 0; --steps)
                c = std::nextafter(c, sign * std::numeric_limits<T>::infinity());
            return c;
        }
        case 1:  // the product is about half a unit of c's last place
            return sign *
                   std::ldexp(static_cast<T>(random.between(1 << 20, (1 << 21) - 1)), exponent + 1 + digits - 21);
        case 2:
            return sign * std::ldexp(1 + static_cast<T>(random.between(0, 3)) * std::numeric_limits<T>::epsilon(),
                                     exponent + static_cast<int>(random.between(digits - 3, 2 * digits + 3)));
        case 3:
            return sign * std::ldexp(T(1), exponent - static_cast<int>(random.between(0, 2 * digits)));
        default:
            return factor<T>(random);
    }
}

// A program of one fused term on the bias, `narrow` or not, is a fused multiply-add.
template <class T, class A>
void check_fma(const TileKernel& k, bool narrow, Random& random, const std::string& name) {
    Program program;
    program.code = {{Op::bias, narrow}, {Op::fused, narrow, 0, 1}};
    int wrong = 0;
    for (int i = 0; i < 25; ++i) {
        Problem<T> p(k, 1, random, "uniform");
        for (T& x : p.image) x = factor<T>(random);
        for (int row = 0; row < k.rows(); ++row) {
            p.panel[unsigned_of(row)] = factor<T>(random);
            const T x = p.x(0, row, static_cast<int>(random.between(0, k.image_rows() - 1)),
                            static_cast<int>(random.between(0, k.columns() - 1)));
            p.bias[unsigned_of(row)] = addend(p.panel[unsigned_of(row)], x, random);
        }
        const auto totals = totals_of(k, k.run, p, program);
        for (int row = 0; row < k.rows(); ++row)
            for (int h = 0; h < k.image_rows(); ++h)
                for (int column = 0; column < k.columns(); ++column) {
                    const A exact = exact_fma<A>(p.w(0, row), p.x(0, row, h, column), p.bias[unsigned_of(row)]);
                    wrong += !same(static_cast<A>(totals[total_index(k, row, h, column)]), exact);
                }
    }
    CHECK_SAME(wrong, 0, name);
}

TEST("kernels: one fused term is the exact fused multiply-add") {
    Random random(21);
    for_each_row([&](const TileKernel& k, const std::string& name) {
        if (k.accumulator == Accumulator::wide) {
            check_fma<float, float>(k, true, random, name);
            check_fma<float, double>(k, false, random, name);
        } else if (k.accumulator == Accumulator::plain) {
            k.is_float32 ? check_fma<float, float>(k, false, random, name)
                         : check_fma<double, double>(k, false, random, name);
        }
    });
}

// ---- Storing ----

template <class T, class Element>
void check_store(const TileKernel& k, Random& random, const std::string& name) {
    const auto totals = made<Element>(k.outputs(), random.next(), random.of(kinds));
    const int rows = static_cast<int>(random.between(1, k.rows())),
              image_rows = static_cast<int>(random.between(1, k.image_rows())),
              columns = static_cast<int>(random.between(1, k.columns()));
    // Strides of (row, image row, column), in any nesting, with gaps and of any sign.
    std::array<int, 3> axes{0, 1, 2}, counts{rows, image_rows, columns};
    std::array<Index, 3> strides{};
    for (std::size_t i = 2; i > 0; --i) std::swap(axes[i], axes[unsigned_of(random.between(0, static_cast<Index>(i)))]);
    Index step = random.chance(70) ? 1 : 2, origin = 0;
    for (const int axis : axes) {
        const auto a = unsigned_of(axis);
        const Index reach = step * (counts[a] - 1);
        strides[a] = random.chance(80) ? step : -step;
        if (strides[a] < 0) origin += reach;
        step += reach + random.between(0, 2);
    }
    Index size = 1 + origin;
    for (std::size_t a = 0; a < 3; ++a) size += strides[a] > 0 ? strides[a] * (counts[a] - 1) : 0;

    const T untouched = 12345;
    std::vector<T> output(unsigned_of(size), untouched), expected_output = output;
    k.store({totals.data(), output.data() + origin, strides[0], strides[1], strides[2], rows, image_rows, columns,
             Rounding::nearest});
    for (int row = 0; row < rows; ++row)
        for (int h = 0; h < image_rows; ++h)
            for (int w = 0; w < columns; ++w)
                expected_output[unsigned_of(origin + row * strides[0] + h * strides[1] + w * strides[2])] =
                    canonical(static_cast<T>(totals[total_index(k, row, h, w)]));
    bool equal = true;
    for (std::size_t i = 0; i < output.size(); ++i)
        equal &= std::memcmp(&output[i], &expected_output[i], sizeof(T)) == 0;
    CHECK(equal, name << " strides " << strides[0] << ' ' << strides[1] << ' ' << strides[2]);
}

TEST("kernels: what is stored is canonical, in place, and nothing else is") {
    Random random(22);
    for_each_row([&](const TileKernel& k, const std::string& name) {
        for (int i = 0; i < 60; ++i) {
            if (k.accumulator == Accumulator::wide)
                check_store<float, double>(k, random, name);
            else
                k.is_float32 ? check_store<float, float>(k, random, name)
                             : check_store<double, double>(k, random, name);
        }
    });
}

// ---- Certifying ----

// Every number within the bound of the total rounds to the same T; the bound may be given some room.
template <class T>
bool rounds_one_way(double s, double c, double bound, double room) {
    auto end = [&](double sign) {
        LongInteger sum;
        for (const double part : {s, c, sign * bound, sign * room}) sum.add(part, 1);
        return sum.rounded<T>();
    };
    return end(1) == end(-1);
}

template <class T>
void check_certify(const TileKernel& k, Random& random, const std::string& name) {
    constexpr bool twofold = sizeof(T) == 8;
    const auto outputs = unsigned_of(k.outputs());
    std::vector<double> totals, row_bound, bias_bound, norm;
    // Totals near a border of rounding as well as anywhere, the second part within half an ulp of the first.
    for (std::size_t i = 0; i < outputs; ++i) {
        const double s = std::ldexp(uniform<double>(random.next()), static_cast<int>(random.between(-20, 20)));
        // Halfway between two floats, or beside it.
        const auto near = static_cast<double>(static_cast<float>(s));
        const double halfway = near + std::ldexp(1.0, std::ilogb(near) - 24);
        totals.push_back(
            twofold || random.chance(50) ? s : halfway * (1 + static_cast<double>(random.between(-2, 2)) * 0x1p-52));
    }
    if (twofold)
        for (std::size_t i = 0; i < outputs; ++i) {
            const double half_ulp = std::ldexp(1.0, std::ilogb(totals[i]) - 53);
            totals.push_back(random.chance(50)
                                 ? half_ulp * uniform<double>(random.next())
                                 : half_ulp * (1 - std::ldexp(1.0, -static_cast<int>(random.between(1, 60)))));
        }
    // Bounds from far below an ulp of T to several of them.
    auto any_bound = [&] {
        return std::ldexp(1 + uniform<double>(random.next()),
                          -static_cast<int>(random.between(10, twofold ? 140 : 70)));
    };
    for (int row = 0; row < k.rows(); ++row)
        row_bound.push_back(any_bound()), bias_bound.push_back(random.chance(50) ? 0 : any_bound());
    // One bound for each column, or for each of its rows; or the same of every image row.
    const Index abreast = k.abreast(), pitch = random.chance(20) ? 0 : (k.columns() + random.between(0, 3)) * abreast;
    for (Index i = 0; i < (k.image_rows() - 1) * pitch + k.columns() * abreast; ++i)
        norm.push_back(1 + uniform<double>(random.next()) / 2);

    const auto given = totals;
    std::vector<std::uint8_t> uncertain(outputs, 7);
    const bool all = k.certify({totals.data(), 1, row_bound.data(), bias_bound.data(), norm.data(), pitch,
                                Rounding::nearest, uncertain.data()});
    if (all) std::ranges::fill(uncertain, std::uint8_t(0));  // not written then
    int certain = 0, unsound = 0, timid = 0, wrong = 0;
    for (int row = 0; row < k.rows(); ++row)
        for (int h = 0; h < k.image_rows(); ++h)
            for (int w = 0; w < k.columns(); ++w) {
                const std::size_t at = total_index(k, row, h, w);
                const double s = given[at], c = twofold ? given[at + outputs] : 0;
                const double exact_bound = row_bound[unsigned_of(row)] *
                                               norm[unsigned_of(h * pitch + w * abreast + (abreast == 1 ? 0 : row))] +
                                           bias_bound[unsigned_of(row)];
                const double bound = exact_bound * (1 - 0x1p-50),
                             room = bound * 0x1p-30 + std::abs(twofold ? c : s) * 0x1p-49;
                certain += uncertain[at] == 0;
                if (uncertain[at] == 0) {
                    unsound += !rounds_one_way<T>(s, c, bound, 0);
                    wrong += static_cast<T>(totals[at]) != static_cast<T>(s + c);
                } else {
                    timid += rounds_one_way<T>(s, c, bound, room);
                }
                wrong += uncertain[at] > 1;
            }
    CHECK(unsound == 0 && timid == 0 && wrong == 0, name << ": " << unsound << ' ' << timid << ' ' << wrong);
    CHECK_SAME(all, certain == k.outputs(), name);
}

TEST("kernels: a certified total rounds one way, whatever the error within its bound") {
    Random random(23);
    for_each_row([&](const TileKernel& k, const std::string& name) {
        const bool has = k.accumulator == Accumulator::wide || k.accumulator == Accumulator::twofold;
        CHECK((k.certify != nullptr) == has, name);
        for (int i = 0; has && i < 20; ++i)
            k.is_float32 ? check_certify<float>(k, random, name) : check_certify<double>(k, random, name);
    });
}

// ---- Packing, copying, adding ----

template <class T, class Element>
void check_pack(bool (*pack)(const PanelSource&, Element*), Random& random, const char* name) {
    const int width = random.chance(20) ? 1 : static_cast<int>(random.between(1, 40)),
              rows = static_cast<int>(random.between(1, width));
    const Index segments = random.between(1, 4), segment_terms = random.between(1, 40),
                terms = segments * segment_terms;
    const bool adjacent = random.chance(40);  // the rows of a term side by side
    const Index term_stride = adjacent ? rows + random.between(1, 3) : random.chance(70) ? 1 : random.between(2, 3);
    const Index segment_stride = segment_terms * term_stride + random.between(0, 3);
    const bool backwards = !adjacent && random.chance(30);  // rows in the other direction
    const Index row_length = (segments - 1) * segment_stride + (segment_terms - 1) * term_stride + 1,
                row_stride = adjacent ? 1 : row_length + random.between(0, 3);
    auto data = made<T>((rows - 1) * row_stride + row_length, random.next(), "wide");
    const bool finite = random.chance(50);
    auto term_at = [&](Index r) { return r / segment_terms * segment_stride + r % segment_terms * term_stride; };
    if (!finite)
        data[unsigned_of(random.between(0, rows - 1) * row_stride + term_at(random.between(0, terms - 1)))] =
            std::numeric_limits<T>::infinity();
    const T* const first = data.data() + (backwards ? (rows - 1) * row_stride : 0);
    std::vector<Index> position;
    if (random.chance(50))
        for (Index r = 0; r < terms; ++r) position.push_back(terms - 1 - r);
    std::vector<Element> panel(unsigned_of(terms * width), Element(7));
    const Index stride = backwards ? -row_stride : row_stride;
    bool equal = finite == pack({first, stride, segment_stride, term_stride, segments, segment_terms,
                                 position.empty() ? nullptr : position.data(), rows, width},
                                panel.data());
    for (Index r = 0; r < terms; ++r)
        for (int m = 0; m < width; ++m) {
            const Element wanted = m < rows ? static_cast<Element>(first[m * stride + term_at(r)]) : Element(0);
            equal &= same(panel[unsigned_of((position.empty() ? r : position[unsigned_of(r)]) * width + m)], wanted);
        }
    CHECK(equal, name << ' ' << rows << " of " << width << ", " << segments << " x " << segment_terms);
}

template <class T, class Element>
void check_copy(void (*copy)(const PlaneSource&, Element*), Random& random, const char* name) {
    PlaneSource from{};
    from.rows = random.between(0, 6), from.first_row = random.between(0, from.rows);
    from.last_row = random.between(from.first_row, from.rows);
    from.width = random.between(0, 70), from.first = random.between(0, std::min<Index>(from.width, 3));
    from.last = random.between(from.first, from.width);
    from.pitch = from.width + random.between(0, 3);
    from.stride = random.chance(50) ? 1 : random.between(-3, 3);
    const Index rows = from.last_row - from.first_row, count = from.last - from.first;
    from.planes = random.between(1, random.chance(50) ? 1 : 40);
    enum { row, next_row, next_plane } along = random.chance(40) ? row : random.chance(50) ? next_row : next_plane;
    if (along == next_row) from.stride = random.chance(50) ? rows + 2 : -rows - 2;
    if (along == next_plane) from.stride = random.chance(50) ? from.planes + 2 : -from.planes - 2;
    const Index reach = std::abs(from.stride) * std::max<Index>(count - 1, 0), length = reach + 1;
    const Index row_gap = along == next_plane ? length + from.planes : length;
    from.row_stride = along == next_row ? 1 : random.chance(50) ? row_gap : -row_gap - random.between(0, 3);
    const Index up = std::max<Index>(rows - 1, 0) * std::abs(from.row_stride);
    from.plane_stride = along == next_plane ? 1 : up + length + random.between(0, 3);
    from.plane_pitch = from.rows * from.pitch + random.between(0, 3);
    const auto source = made<T>(up + length + (from.planes - 1) * from.plane_stride, random.next(), "wide");
    const T* const first = source.data() + (from.stride < 0 ? reach : 0) + (from.row_stride < 0 ? up : 0);
    from.data = first;
    std::vector<Element> target(unsigned_of(from.planes * from.plane_pitch), Element(7));
    copy(from, target.data());
    bool equal = true;
    for (Index p = 0; p < from.planes; ++p)
        for (Index h = 0; h < from.rows; ++h)
            for (Index w = 0; w < from.pitch; ++w) {
                const bool inside = h >= from.first_row && h < from.last_row && w >= from.first && w < from.last;
                const Index at =
                    p * from.plane_stride + (h - from.first_row) * from.row_stride + (w - from.first) * from.stride;
                const Element wanted = w >= from.width ? Element(7)
                                       : inside        ? static_cast<Element>(first[at])
                                                       : Element(0);
                equal &= same(target[unsigned_of(p * from.plane_pitch + h * from.pitch + w)], wanted);
            }
    CHECK(equal, name << ' ' << from.rows << " rows of " << from.width << ", " << rows << " of " << count << " apart "
                      << from.stride);
}

template <class T, class Element>
void check_copy_abreast(void (*copy)(const AbreastSource&, Element*), Random& random, const char* name) {
    PlaneSource from{};
    from.rows = random.between(0, 6), from.first_row = random.between(0, from.rows);
    from.last_row = random.between(from.first_row, from.rows);
    from.width = random.between(0, 40), from.first = random.between(0, std::min<Index>(from.width, 3));
    from.last = random.between(from.first, from.width);
    from.pitch = from.width + random.between(0, 3);
    const Index rows = from.last_row - from.first_row, count = from.last - from.first;
    const Index width = random.chance(50) ? 16 * random.between(1, 2) : random.between(1, 40);
    const bool channels_last = random.chance(50);
    from.planes = random.between(1, channels_last ? 3 * width : width);
    const Index gap = random.between(0, 2), reach = std::max<Index>(count - 1, 0);
    const bool backwards = random.chance(20);
    from.stride = channels_last ? from.planes + gap : random.between(1, 3);
    from.row_stride = reach * from.stride + 1 + gap + (channels_last ? from.planes : 0);
    from.plane_stride = channels_last ? 1 : std::max<Index>(rows, 1) * from.row_stride + gap;
    const Index size = std::max<Index>(rows - 1, 0) * from.row_stride + reach * from.stride +
                       (from.planes - 1) * from.plane_stride + 1;
    const auto source = made<T>(size, random.next(), "wide");
    const T* first = source.data();
    if (backwards) first += reach * from.stride, from.stride = -from.stride;
    from.data = first;
    from.plane_pitch = from.rows * from.pitch * width + random.between(0, 3);
    const Index blocks = (from.planes + width - 1) / width;
    std::vector<Element> target(unsigned_of(blocks * from.plane_pitch), Element(7));
    copy({from, width}, target.data());
    bool equal = true;
    for (Index m = 0; m < blocks * width; ++m)
        for (Index h = 0; h < from.rows; ++h)
            for (Index w = 0; w < from.pitch; ++w) {
                const bool inside = h >= from.first_row && h < from.last_row && w >= from.first && w < from.last;
                const Index at =
                    m * from.plane_stride + (h - from.first_row) * from.row_stride + (w - from.first) * from.stride;
                const Element wanted = w >= from.width             ? Element(7)
                                       : inside && m < from.planes ? static_cast<Element>(first[at])
                                                                   : Element(0);
                const Index to = m / width * from.plane_pitch + (h * from.pitch + w) * width + m % width;
                equal &= same(target[unsigned_of(to)], wanted);
            }
    CHECK(equal, name << ' ' << from.planes << " planes of " << rows << " x " << count << ", " << width << " abreast");
}

void check_largest(double (*largest)(const double*, Index), Random& random, const char* name) {
    auto values = made<double>(random.between(0, 100), random.next(), "wide");
    double wanted = 0;
    for (const double v : values) wanted = std::max(wanted, std::abs(v));
    CHECK(largest(values.data(), static_cast<Index>(values.size())) == wanted, name << ' ' << values.size());
}

// target[i] += magnitude(source[i]), one addition each.
void check_add(void (*add)(const double*, Index, double*), double (*magnitude)(double), Random& random,
               const char* name) {
    const Index count = random.between(0, 70);
    const auto source = made<double>(count, random.next(), "uniform");
    auto target = made<double>(count, random.next(), "uniform"), wanted = target;
    for (std::size_t i = 0; i < wanted.size(); ++i) wanted[i] += magnitude(source[i]);
    add(source.data(), count, target.data());
    CHECK(target == wanted, name << ' ' << count);
}

template <class T>
void check_join(void (*join)(const T*, Index, T*), Random& random, const char* name) {
    const Index count = random.between(0, 70);
    const auto newer = made<T>(count, random.next(), "wide");
    auto older = made<T>(count, random.next(), "wide"), wanted = older;
    for (Index i = 0; i < count; ++i) wanted[unsigned_of(i)] = older[unsigned_of(i)] + newer[unsigned_of(i)];
    join(newer.data(), count, older.data());
    CHECK(older == wanted, name << ' ' << count);
}

// A fold over the terms of every row of a panel, from the first to the last.
void check_fold(void (*fold)(const double*, Index, int, double*), double (*step)(double, double), Random& random,
                const char* name) {
    const Index terms = random.between(0, 40);
    const int width = static_cast<int>(random.between(1, 40));
    const auto panel = made<double>(terms * width, random.next(), random.chance(50) ? "uniform" : "wide");
    std::vector<double> target(unsigned_of(width), 7), wanted(unsigned_of(width), 0);
    for (Index r = 0; r < terms; ++r)
        for (int m = 0; m < width; ++m)
            wanted[unsigned_of(m)] = step(wanted[unsigned_of(m)], panel[unsigned_of(r * width + m)]);
    fold(panel.data(), terms, width, target.data());
    CHECK(target == wanted, name << ' ' << terms << ' ' << width);
}

TEST("kernels: bounds of roots are upper bounds, and close ones") {
    Random random(25);
    for_each_instruction_set([&](const Kernels& k) {
        auto given = made<double>(3000, random.next(), "wide");
        for (double& v : given) v = std::abs(v);
        for (const double v : {0.0, 0x1p-1074, 0x1p-1022, 1.0, 2.0, 3.0, 4.0, 0x1p1023}) given.push_back(v);
        auto roots = given, scaled = given;
        k.bound_roots(roots.data(), static_cast<Index>(roots.size()), 1);
        k.scale(scaled.data(), static_cast<Index>(scaled.size()), 0.75);
        int below = 0, far = 0, wrong = 0;
        for (std::size_t i = 0; i < given.size(); ++i) {
            below += std::sqrt(given[i]) > roots[i];
            far += roots[i] > std::max(1.0607 * std::sqrt(given[i]), 0x1p-511);
            wrong += scaled[i] != 0.75 * given[i];
        }
        CHECK(below == 0 && far == 0 && wrong == 0, k.name << ' ' << below << ' ' << far << ' ' << wrong);
    });
}

TEST("kernels: shifted copies are added in turn") {
    Random random(26);
    for_each_instruction_set([&](const Kernels& k) {
        for (int i = 0; i < 100; ++i) {
            const Index count = random.between(0, 70);
            std::vector<Index> offsets;
            for (Index n = random.between(1, 5); n > 0; --n) offsets.push_back(random.between(0, 20));
            const auto source = made<double>(count + 20, random.next(), "uniform");
            std::vector<double> target(unsigned_of(count), 7), wanted(unsigned_of(count), 0);
            for (Index j = 0; j < count; ++j)
                for (const Index offset : offsets) wanted[unsigned_of(j)] += source[unsigned_of(j + offset)];
            k.add_shifted_double(source.data(), offsets.data(), static_cast<Index>(offsets.size()), count,
                                 target.data());
            CHECK(target == wanted, k.name << ' ' << count);
        }
    });
}

TEST("kernels: packing, copying and adding") {
    Random random(24);
    for_each_instruction_set([&](const Kernels& k) {
        for (int i = 0; i < 300; ++i) {
            check_pack<float>(k.pack_float, random, k.name);
            check_pack<float>(k.pack_float_wide, random, k.name);
            check_pack<double>(k.pack_double, random, k.name);
            check_copy<float>(k.copy_float, random, k.name);
            check_copy<float>(k.copy_float_wide, random, k.name);
            check_copy<double>(k.copy_double, random, k.name);
            check_copy_abreast<float>(k.copy_abreast_float, random, k.name);
            check_copy_abreast<float>(k.copy_abreast_float_wide, random, k.name);
            check_copy_abreast<double>(k.copy_abreast_double, random, k.name);
            check_largest(k.largest_magnitude_double, random, k.name);
            constexpr auto square = [](double x) { return x * x; };
            constexpr auto magnitude = [](double x) { return std::abs(x); };
            check_add(k.add_squares_double, square, random, k.name);
            check_add(k.add_magnitudes_double, magnitude, random, k.name);
            check_join<float>(k.join_float, random, k.name);
            check_join<double>(k.join_double, random, k.name);
            constexpr auto add_square = [](double s, double w) { return s + w * w; };
            check_fold(k.square_sums_double, add_square, random, k.name);
            check_fold(k.maxima_double, [](double s, double w) { return std::max(s, std::abs(w)); }, random, k.name);
        }
    });
}

}  // namespace
}  // namespace detconv::test
