// Random explicit orders, as tests/bits.py draws them.
#pragma once

#include <string>

#include "made.hpp"

namespace detconv::test {

// A text in the order language in which every one of the terms (at least one), and the bias if there is one, appears
// once; with brackets and, if `wide`, brackets kept in double.
inline std::string random_order(Random& random, Index terms, bool has_bias, bool wide) {
    auto term = [&](Index k) { return std::string(random.chance(50) ? "f" : "m") + std::to_string(k) + ' '; };
    // Items for the terms start, start + step, ...: `count` of them.
    auto items = [&](auto&& self, Index start, Index step, Index count, int depth) -> std::string {
        if (count == 1) return term(start);
        auto repeat = [&](Index copies, Index stride, const std::string& body) {
            return std::to_string(copies) + "x(" + (stride < 0 ? "" : "+") + std::to_string(stride) + "){" + body + '}';
        };
        Index factor = 2;
        while (count % factor != 0) ++factor;
        const Index other = count / factor;
        switch (random.between(0, 6)) {
            case 0:
                if (depth < 5)
                    return (wide && random.chance(40) ? "d[" : "[") + self(self, start, step, count, depth + 1) + ']';
                [[fallthrough]];
            case 1:
                return repeat(count, -step, term(start + (count - 1) * step));
            case 2:
                return repeat(factor, step * other, self(self, start, step, other, depth));
            case 3:
                return repeat(factor, step, self(self, start, step * factor, other, depth));
            default: {
                const Index first = random.between(1, count - 1);
                return self(self, start, step, first, depth) +
                       self(self, start + first * step, step, count - first, depth);
            }
        }
    };
    const std::string all = items(items, 0, 1, terms, 0);
    if (!has_bias) return all;
    return random.chance(50) ? "bias " + all : all + " bias";
}

}  // namespace detconv::test
