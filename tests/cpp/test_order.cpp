#include <algorithm>
#include <numeric>

#include "check.hpp"
#include "detconv/order.hpp"
#include "oracle.hpp"
#include "orders.hpp"

namespace detconv::test {
namespace {

std::string canonical_text(const std::string& text) { return order::print(order::parse(text)); }

Program lowered(const std::string& text, Index terms, bool has_bias = false, bool is_float32 = true) {
    return order::lower(order::parse(text), terms, has_bias, is_float32);
}

// What the kernels rely on: every term in one run, runs in sequence, a stack that is never empty or too deep.
void check_program(const Program& program, Index terms, const std::string& text) {
    std::vector<Index> sequence = program.sequence;
    std::ranges::sort(sequence);
    std::vector<Index> all(static_cast<std::size_t>(terms));
    std::iota(all.begin(), all.end(), Index(0));
    CHECK(sequence == all, text);
    Index position = 0;
    int depth = 0, deepest = 0;
    bool sound = true;
    for (const Instruction& i : program.code) {
        if (i.op == Op::fused || i.op == Op::rounded) {
            sound &= i.begin == position && i.end > i.begin;
            position = i.end;
        }
        if (i.op == Op::push) deepest = std::max(deepest, ++depth);
        if (i.op == Op::join) sound &= --depth >= 0;
        if (i.op == Op::round) sound &= program.wide;
    }
    CHECK(sound && position == terms && depth == 0 && deepest == program.depth, text);
}

TEST("order: canonical text") {
    CHECK_SAME(canonical_text("25x(+1){16x(+25){f0}} bias"), "25x(+1){16x(+25){f0}} bias");
    CHECK_SAME(canonical_text(" \t\n f0m1 bias[f2]d[ m3 [f4 ] ]"), "f0 m1 bias [f2] d[m3 [f4]]");
    CHECK_SAME(canonical_text("3 x ( +1 ) { f0 }"), "3x(+1){f0}");
    CHECK_SAME(canonical_text("3x(-0){f007}"), "3x(+0){f7}");
    CHECK_SAME(canonical_text("1x(-281474976710656){f281474976710656}"), "1x(-281474976710656){f281474976710656}");
}

TEST("order: a syntax error is named with its column") {
    CHECK_INVALID(order::parse(""), "expected at least one item at column 1");
    CHECK_INVALID(order::parse("  "), "expected at least one item at column 3");
    CHECK_INVALID(order::parse("f0 g1"),
                  "expected an item: f<k>, m<k>, bias, [...], d[...] or <n>x(+<stride>){...} at column 4");
    CHECK_INVALID(order::parse("f0 f"), "expected a number at column 5");
    CHECK_INVALID(order::parse("f-1"), "expected a number at column 2");
    CHECK_INVALID(order::parse("[f0"), "expected \"]\" at column 4");
    CHECK_INVALID(order::parse("f0 ]"), "at column 4");
    CHECK_INVALID(order::parse("f0}"), "at column 3");
    CHECK_INVALID(order::parse("[]"), "expected at least one item at column 2");
    CHECK_INVALID(order::parse("d[f0 }"), "expected \"]\" at column 6");
    CHECK_INVALID(order::parse("3(+1){f0}"), "expected \"x\" at column 2");
    CHECK_INVALID(order::parse("3x{f0}"), "expected \"(\" at column 3");
    CHECK_INVALID(order::parse("3x(1){f0}"), "expected \"+\" or \"-\" at column 4");
    CHECK_INVALID(order::parse("3x(+){f0}"), "expected a number at column 5");
    CHECK_INVALID(order::parse("3x(+1{f0}"), "expected \")\" at column 6");
    CHECK_INVALID(order::parse("3x(+1)f0"), "expected \"{\" at column 7");
    CHECK_INVALID(order::parse("3x(+1){f0"), "expected \"}\" at column 10");
    CHECK_INVALID(order::parse("3x(+1){}"), "expected at least one item at column 8");
    CHECK_INVALID(order::parse("0x(+1){f0}"), "count of at least 1");
    CHECK_INVALID(order::parse("f281474976710657"), "number too large");
    CHECK_INVALID(order::parse("f99999999999999999999999999"), "number too large");
    CHECK_INVALID(order::parse(std::string("f0 \0 f1", 7)), "at column 4");
    CHECK_INVALID(order::parse(std::string(4000, ' ') + "?"), "at column 4001");
}

TEST("order: what the terms of a sum do not fit") {
    CHECK_INVALID(lowered("f0 f2", 2), "term 2 does not exist; a sum has terms 0..1");
    CHECK_INVALID(lowered("f0 m0", 2), "term 0 appears more than once");
    CHECK_INVALID(lowered("f0", 2), "term 1 of 0..1 is missing");
    CHECK_INVALID(lowered("3x(-1){f1}", 3), "term -1 does not exist");
    CHECK_INVALID(lowered("f0 f1", 2, true), "no item \"bias\"");
    CHECK_INVALID(lowered("bias f0 bias", 1, true), "bias appears more than once");
    CHECK_INVALID(lowered("bias f0 bias", 1, false), "bias appears more than once");
    CHECK_INVALID(lowered("4x(+0){bias} f0", 1), "copies");
    CHECK_INVALID(lowered("2x(+281474976710656){2x(+281474976710656){f281474976710656}}", 4), "does not exist");
}

TEST("order: programs of the language") {
    auto code_of = [](const std::string& text, Index terms, bool has_bias, bool is_float32 = true) {
        std::string code;
        const Program program = lowered(text, terms, has_bias, is_float32);
        for (const Instruction& i : program.code) {
            constexpr const char* names[] = {"zero", "bias", "fused", "rounded", "push", "join", "add_bias", "round"};
            code += std::string(code.empty() ? "" : " ") + names[static_cast<int>(i.op)];
            if (i.op == Op::fused || i.op == Op::rounded)
                code += std::to_string(i.begin) + ".." + std::to_string(i.end);
            if (program.wide && i.narrow) code += "'";
        }
        return code;
    };
    CHECK_SAME(code_of("25x(+1){16x(+25){f0}} bias", 400, true), "fused0..400 add_bias");
    CHECK_SAME(code_of("25x(+1){16x(+25){f0}} bias", 400, false), "fused0..400");
    CHECK_SAME(code_of("bias f1 m0 m2", 3, true), "bias fused0..1 rounded1..3");
    CHECK_SAME(code_of("[f0] [f1 [f2]]", 3, false), "fused0..1 push zero fused1..2 push zero fused2..3 join join");
    CHECK_SAME(code_of("f0 d[m1 bias] f2", 3, true),
               "fused0..1' push zero rounded1..2 add_bias round join' fused2..3'");
    CHECK_SAME(code_of("d[f0 [m1]]", 2, false), "fused0..1 push zero rounded1..2 join round");
    CHECK_SAME(code_of("d[f0 [m1]]", 2, false, false), "fused0..1 push zero rounded1..2 join");
    CHECK_SAME(lowered("2x(+1){2x(+2){f0}}", 4).sequence, (std::vector<Index>{0, 2, 1, 3}));
    CHECK_SAME(lowered("4x(-1){f3}", 4).sequence, (std::vector<Index>{3, 2, 1, 0}));
}

TEST("order: random orders round-trip and lower to sound programs") {
    Random random(3);
    for (int i = 0; i < 3000; ++i) {
        const Index terms = random.between(1, 60);
        const bool has_bias = random.chance(50);
        const std::string text = random_order(random, terms, has_bias, true);
        const std::string once = canonical_text(text);
        CHECK_SAME(canonical_text(once), once);
        check_program(lowered(text, terms, has_bias, random.chance(50)), terms, text);
    }
}

// The value of an order by its grammar, run on the parsed expression: no program, no stack.
template <class T>
double run(const order::Expression& e, Index shift, bool wide, double s, const std::vector<T>& w,
           const std::vector<T>& x, T bias) {
    auto add = [&](double term) {
        s = wide ? s + term : static_cast<double>(static_cast<T>(static_cast<T>(s) + static_cast<T>(term)));
    };
    for (const order::Item& item : e.items) {
        if (const auto* term = std::get_if<order::Term>(&item.value)) {
            const auto k = static_cast<std::size_t>(term->number + shift);
            if (!term->fused)
                add(w[k] * x[k]);
            else if (wide)
                s = exact_fma<double>(w[k], x[k], s);
            else
                s = exact_fma<T>(w[k], x[k], static_cast<T>(s));
        } else if (std::holds_alternative<order::Bias>(item.value)) {
            add(bias);
        } else if (const auto* bracket = std::get_if<order::Bracket>(&item.value)) {
            const bool inner_wide = wide || bracket->wide;
            const double inner = run(bracket->inner, shift, inner_wide, 0.0, w, x, bias);
            add(wide ? inner : static_cast<double>(static_cast<T>(inner)));
        } else {
            const auto& repeat = std::get<order::Repeat>(item.value);
            for (Index i = 0; i < repeat.count; ++i)
                s = run(repeat.inner, shift + i * repeat.stride, wide, s, w, x, bias);
        }
    }
    return s;
}

template <class T>
void check_meaning(std::uint64_t seed) {
    Random random(seed);
    for (int i = 0; i < 1500; ++i) {
        const Index terms = random.between(1, 40);
        const bool has_bias = random.chance(50);
        const std::string text = random_order(random, terms, has_bias, true);
        const auto w = made<T>(terms, random.next(), "uniform"), x = made<T>(terms, random.next(), "uniform");
        const T bias = has_bias ? uniform<T>(random.next()) : T(0);
        const Program program = lowered(text, terms, has_bias, sizeof(T) == 4);
        std::vector<T> w_in_order, x_in_order;
        for (const Index k : program.sequence) {
            w_in_order.push_back(w[static_cast<std::size_t>(k)]);
            x_in_order.push_back(x[static_cast<std::size_t>(k)]);
        }
        const Accumulator accumulator = program.wide ? Accumulator::wide : Accumulator::plain;
        const auto total = static_cast<T>(evaluate(program, accumulator, w_in_order, x_in_order, bias).s);
        CHECK_SAME(canonical(total), canonical(static_cast<T>(run<T>(order::parse(text), 0, false, 0.0, w, x, bias))),
                   text);
    }
}

TEST("order: programs mean what the grammar says") {
    check_meaning<float>(4);
    check_meaning<double>(5);
}

TEST("order: hostile texts are refused, in no time") {
    for (const char* piece : {"[", "d[", "9x(+0){", "1x(+1){[", "[f0 "}) {
        std::string deep;
        for (int i = 0; i < 100000; ++i) deep += piece;
        CHECK_INVALID(order::parse(deep), "nested deeper than 64 levels");
    }
    std::string nested = "f0";
    for (int i = 0; i < 64; ++i) nested = "1000000x(+1){" + nested + '}';
    CHECK_INVALID(lowered(nested, 1000), "copies");
    CHECK_INVALID(lowered("281474976710656x(+0){f0}", 7), "copies");
    std::string repeats = "bias";
    for (int i = 0; i < 60; ++i) repeats = "2x(+0){" + repeats + '}';
    CHECK_INVALID(lowered(repeats, 3), "more than once");
    CHECK_INVALID(order::parse(std::string(1 << 20, '7')), "number too large");
}

TEST("order: mutated texts parse to themselves or give a column") {
    constexpr const char* pieces[] = {"f0",      "m1",      "bias",     "[", "]", "d[", "{",    "}",
                                      "2x(+1){", "3x(-2){", "x",        "(", "+", ")",  " ",    "\n",
                                      "0",       "9",       "99999999", "-", "d", "b",  "\xff", "\xc3\xa9"};
    Random random(6);
    int accepted = 0, refused = 0;
    for (int i = 0; i < 40000; ++i) {
        const Index terms = random.between(1, 12);
        std::string text = random_order(random, terms, random.chance(30), true);
        for (Index mutations = random.between(0, 3); mutations > 0; --mutations) {
            const auto at = static_cast<std::size_t>(random.between(0, static_cast<Index>(text.size())));
            switch (random.between(0, 3)) {
                case 0:
                    text.insert(at, random.of(pieces));
                    break;
                case 1:
                    text.erase(at, static_cast<std::size_t>(random.between(1, 4)));
                    break;
                case 2:
                    text.replace(at, 1, random.of(pieces));
                    break;
                default:
                    text.insert(
                        at,
                        text.substr(static_cast<std::size_t>(random.between(0, static_cast<Index>(text.size()))), 9));
            }
        }
        try {
            const order::Expression expression = order::parse(text);
            const std::string once = order::print(expression);
            CHECK_SAME(canonical_text(once), once);
            try {
                check_program(order::lower(expression, terms, random.chance(50), random.chance(50)), terms, text);
                ++accepted;
            } catch (const InvalidArgument& error) {
                CHECK(std::string(error.what()).starts_with("order: "), text);
            }
        } catch (const InvalidArgument& error) {
            const std::string message = error.what();
            const std::size_t column = message.find(" at column ");
            const bool named = column != message.npos && column + 11 < message.size();
            const int number = named ? std::atoi(message.c_str() + column + 11) : 0;
            CHECK(number >= 1 && number <= static_cast<int>(text.size()) + 1, message);
            ++refused;
        }
    }
    CHECK(accepted > 5000 && refused > 5000, accepted << " accepted, " << refused << " refused");
}

}  // namespace
}  // namespace detconv::test
