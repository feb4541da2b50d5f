#include "order.hpp"

#include <algorithm>
#include <utility>

namespace detconv::order {
namespace {

constexpr int deepest_nesting = 64;  // of brackets and repeats: bounds the parser's own recursion
constexpr Index largest_number = Index(1) << 48;

class Parser {
public:
    Parser(std::string_view text, const parallel::InterruptCheck& interrupted) : text_(text), lookout_(interrupted) {}

    Expression all() {
        Expression e = items(0);
        if (at_ != text_.size()) fail("expected an item: f<k>, m<k>, bias, [...], d[...] or <n>x(+<stride>){...}");
        return e;
    }

private:
    [[noreturn]] void fail(const std::string& what) const {
        // Columns and the excerpt go by characters: text may be UTF-8, whose later bytes are 10xxxxxx.
        auto starts = [&](std::size_t i) { return i >= text_.size() || (text_[i] & 0xc0) != 0x80; };
        constexpr std::size_t shown = 30;  // a revealed order can be a page long
        std::size_t from = at_ > shown ? at_ - shown : 0, to = std::min(at_ + shown, text_.size());
        while (from > 0 && !starts(from)) --from;
        while (!starts(to)) ++to;
        std::size_t column = 1;
        for (std::size_t i = 0; i < at_; ++i) column += starts(i) ? 1 : 0;
        std::string excerpt(text_.substr(from, to - from));
        if (from > 0) excerpt.insert(0, "...");
        if (to < text_.size()) excerpt += "...";
        throw InvalidArgument("order: " + what + " at column " + std::to_string(column) + " of \"" + excerpt + '"');
    }

    void skip_space() {
        while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\t' || text_[at_] == '\n')) ++at_;
    }

    bool accept(std::string_view word) {
        if (text_.substr(at_, word.size()) != word) return false;
        at_ += word.size();
        return true;
    }

    void expect(std::string_view word) {
        skip_space();
        if (!accept(word)) fail("expected \"" + std::string(word) + "\"");
    }

    bool at_digit() const { return at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; }

    Index number() {
        if (!at_digit()) fail("expected a number");
        Index value = 0;
        while (at_digit()) {
            value = value * 10 + (text_[at_] - '0');
            if (value > largest_number) fail("number too large");
            ++at_;
        }
        return value;
    }

    Expression items(int depth) {
        if (depth > deepest_nesting) fail("nested deeper than " + std::to_string(deepest_nesting) + " levels");
        Expression e;
        for (skip_space(); at_ < text_.size() && text_[at_] != ']' && text_[at_] != '}'; skip_space())
            e.items.push_back(item(depth));
        if (e.items.empty()) fail("expected at least one item");
        return e;
    }

    Item item(int depth) {
        lookout_.after(1);
        if (accept("bias")) return {Bias{}};
        if (accept("f")) return {Term{number(), true}};
        if (accept("m")) return {Term{number(), false}};
        if (accept("d[")) return bracket(depth, true);
        if (accept("[")) return bracket(depth, false);
        if (!at_digit()) fail("expected an item: f<k>, m<k>, bias, [...], d[...] or <n>x(+<stride>){...}");
        Repeat repeat;
        repeat.count = number();
        if (repeat.count < 1) fail("a repeat needs a count of at least 1");
        expect("x");
        expect("(");
        skip_space();
        const bool negative = accept("-");
        if (!negative && !accept("+")) fail("expected \"+\" or \"-\"");
        repeat.stride = negative ? -number() : number();
        expect(")");
        expect("{");
        repeat.inner = items(depth + 1);
        expect("}");
        return {std::move(repeat)};
    }

    Item bracket(int depth, bool wide) {
        Expression inner = items(depth + 1);
        expect("]");
        return {Bracket{std::move(inner), wide}};
    }

    std::string_view text_;
    std::size_t at_ = 0;
    parallel::Lookout lookout_;
};

class Lowering {
public:
    Lowering(Index terms, bool has_bias, bool is_float32, const parallel::InterruptCheck& interrupted)
        : terms_(terms),
          has_bias_(has_bias),
          is_float32_(is_float32),
          seen_(static_cast<std::size_t>(terms), false),
          lookout_(interrupted) {}

    Program program(const Expression& e) {
        started_ = false;
        chain(e, 0, false);
        if (const auto missing = std::ranges::find(seen_, false); missing != seen_.end())
            throw InvalidArgument("order: term " + std::to_string(missing - seen_.begin()) + " of 0.." +
                                  std::to_string(terms_ - 1) + " is missing");
        if (has_bias_ && !bias_seen_)
            throw InvalidArgument("order: a bias was given, but the order has no item \"bias\"");
        return std::move(program_);
    }

private:
    // Items of a chain run on the current accumulator; `wide` tells whether it is a double.
    void chain(const Expression& e, Index shift, bool wide) {
        for (const Item& item : e.items) {
            lookout_.after(1);
            std::visit([&](const auto& value) { lower(value, shift, wide); }, item.value);
        }
    }

    void lower(const Term& term, Index shift, bool wide) {
        const Index k = checked_add(term.number, shift, "a term's number");
        if (k < 0 || k >= terms_)
            throw InvalidArgument("order: term " + std::to_string(k) + " does not exist; a sum has terms 0.." +
                                  std::to_string(terms_ - 1));
        if (seen_[static_cast<std::size_t>(k)])
            throw InvalidArgument("order: term " + std::to_string(k) + " appears more than once");
        seen_[static_cast<std::size_t>(k)] = true;
        started_ = true;
        const Op op = term.fused ? Op::fused : Op::rounded;
        const Index position = static_cast<Index>(program_.sequence.size());
        program_.sequence.push_back(k);
        auto& code = program_.code;
        if (!code.empty() && code.back().op == op && code.back().narrow == !wide && code.back().end == position)
            code.back().end = position + 1;  // terms in a row are one run
        else
            emit({op, !wide, position, position + 1});
    }

    void lower(const Bias&, Index, bool wide) {
        if (bias_seen_) throw InvalidArgument("order: the bias appears more than once");
        bias_seen_ = true;
        if (has_bias_) emit({started_ ? Op::add_bias : Op::bias, !wide});
        started_ = started_ || has_bias_;
    }

    void lower(const Bracket& bracket, Index shift, bool wide) {
        const bool inner_wide = wide || (bracket.wide && is_float32_);
        program_.wide |= inner_wide;
        const bool joins = std::exchange(started_, false);
        if (joins) {
            emit({Op::push});
            emit({Op::zero});
            program_.depth = std::max(program_.depth, ++depth_);
        }
        chain(bracket.inner, shift, inner_wide);
        if (inner_wide && !wide) emit({Op::round});
        if (joins) {
            emit({Op::join, !wide});
            --depth_;
        }
        started_ = true;
    }

    void lower(const Repeat& repeat, Index shift, bool wide) {
        // Every copy holds a term or the bias, so a count beyond both can only repeat one of them.
        if (repeat.count > terms_ + 1)
            throw InvalidArgument("order: " + std::to_string(repeat.count) + " copies are more than the " +
                                  std::to_string(terms_) + " terms of a sum");
        for (Index i = 0; i < repeat.count; ++i)
            chain(repeat.inner, checked_add(shift, checked_multiply(i, repeat.stride, "a stride"), "a term's number"),
                  wide);
    }

    void emit(Instruction instruction) { program_.code.push_back(instruction); }

    Index terms_;
    bool has_bias_, is_float32_;
    std::vector<bool> seen_;
    bool bias_seen_ = false, started_ = false;
    int depth_ = 0;
    Program program_;
    parallel::Lookout lookout_;
};

void print_to(std::string& out, const Expression& e, parallel::Lookout& lookout) {
    bool first = true;
    for (const Item& item : e.items) {
        lookout.after(1);
        if (!std::exchange(first, false)) out += ' ';
        if (const auto* term = std::get_if<Term>(&item.value)) {
            out += (term->fused ? 'f' : 'm') + std::to_string(term->number);
        } else if (std::holds_alternative<Bias>(item.value)) {
            out += "bias";
        } else if (const auto* bracket = std::get_if<Bracket>(&item.value)) {
            out += bracket->wide ? "d[" : "[";
            print_to(out, bracket->inner, lookout);
            out += ']';
        } else {
            const auto& repeat = std::get<Repeat>(item.value);
            out += std::to_string(repeat.count) + "x(" + (repeat.stride < 0 ? "" : "+") +
                   std::to_string(repeat.stride) + "){";
            print_to(out, repeat.inner, lookout);
            out += '}';
        }
    }
}

}  // namespace

Expression parse(std::string_view text, const parallel::InterruptCheck& interrupted) {
    return Parser(text, interrupted).all();
}

std::string print(const Expression& expression, const parallel::InterruptCheck& interrupted) {
    std::string out;
    parallel::Lookout lookout(interrupted);
    print_to(out, expression, lookout);
    return out;
}

Program lower(const Expression& expression, Index terms, bool has_bias, bool is_float32,
              const parallel::InterruptCheck& interrupted) {
    return Lowering(terms, has_bias, is_float32, interrupted).program(expression);
}

}  // namespace detconv::order
