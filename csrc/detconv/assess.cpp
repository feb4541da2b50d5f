#include "assess.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <mutex>
#include <vector>

namespace detconv {
namespace {

double power_of_two(int exponent) { return std::ldexp(1.0, exponent); }

// Two elements side by side: IEEE operations on each, in the registers that every machine has.
typedef double Two __attribute__((vector_size(2 * sizeof(double))));
typedef std::int64_t Mask __attribute__((vector_size(2 * sizeof(double))));  // all ones where something is true

constexpr Index lanes = 2, block = 64;

template <class T>
Two load(const T* source) {
    typedef T Narrow __attribute__((vector_size(lanes * sizeof(T))));
    Narrow raw;
    std::memcpy(&raw, source, sizeof raw);
    return __builtin_convertvector(raw, Two);
}

Two all(double x) { return Two{x, x}; }
Two abs(Two x) { return (Two)((Mask)x & std::numeric_limits<std::int64_t>::max()); }
Two larger(Two x, Two y) { return x > y ? x : y; }
bool any(Mask m) { return (m[0] | m[1]) != 0; }
double sum(Two x) { return x[0] + x[1]; }
Index count(Mask m) { return static_cast<Index>(-(m[0] + m[1])); }

// How far a number of some magnitude may be from what was rounded to it.
class HalfUlp {
public:
    explicit HalfUlp(const Format& f)
        : half_unit_(power_of_two(-f.digits)), smallest_(power_of_two(std::max(f.smallest - f.digits, -1074))) {}
    double of(double magnitude) const {
        // The number with no bits but its exponent's is a power of two: ldexp costs more than all the rest of an
        // element.
        const auto power = std::bit_cast<double>(std::bit_cast<std::uint64_t>(magnitude) & exponent_bits);
        return std::max(power * half_unit_, smallest_);
    }
    Two of(Two magnitude) const {
        return larger((Two)((Mask)magnitude & static_cast<std::int64_t>(exponent_bits)) * half_unit_, all(smallest_));
    }

private:
    static constexpr std::uint64_t exponent_bits = 0x7ff0000000000000;
    double half_unit_, smallest_;
};

// A claim whose bounds are repeated until a block finds its own side by side, wherever it begins.
class Repeated {
public:
    explicit Repeated(const Claim& given) : claim(given) {
        auto repeat = [&](const double* values, std::vector<double>& copy) {
            copy.resize(static_cast<std::size_t>(given.positions + block));
            std::copy_n(values, given.positions, copy.begin());
            for (std::size_t i = static_cast<std::size_t>(given.positions); i < copy.size(); ++i)
                copy[i] = copy[i - static_cast<std::size_t>(given.positions)];
            return copy.data();
        };
        if (given.positions < 1) return;  // of no elements
        claim.hard = repeat(given.hard, hard_);
        claim.likely = repeat(given.likely, likely_);
        claim.tiny = repeat(given.tiny, tiny_);
        claim.roots = repeat(given.roots, roots_);
    }
    Repeated(const Repeated&) = delete;
    Repeated& operator=(const Repeated&) = delete;

    Claim claim;

private:
    std::vector<double> hard_, likely_, tiny_, roots_;
};

template <class T>
class Assessor {
public:
    Assessor(const Elements<T>& elements, const Claim& claim, std::uint8_t* status)
        : elements_(elements), claim_(claim), status_(status), half_ulp_(claim.stored) {}

    // Elements that lie one after the other, at most a block of them, from a position of the last two axes on.
    void judge(Index first, Index position, Index number, Assessment& found, Squares& squares) const {
        const bool done =
            number == block && (elements_.shift == nullptr ? side_by_side<false>(first, position, found, squares)
                                                           : side_by_side<true>(first, position, found, squares));
        if (!done) one_by_one(first, position, number, found, squares);
    }

private:
    void one_by_one(Index first, Index position, Index number, Assessment& found, Squares& squares) const {
        for (Index i = 0; i < number; ++i) {
            double ratio;
            const Status s = judge_one(first + i, (position + i) % claim_.positions, ratio);
            add_squares(first + i, (position + i) % claim_.positions, squares);
            status_[first + i] = static_cast<std::uint8_t>(s);
            ++found.counts[static_cast<std::size_t>(s)];
            if (s != Status::identical && (found.worst_at < 0 || ratio > found.worst))
                found.worst = ratio, found.worst_at = first + i;
        }
    }

    Status judge_one(Index i, Index position, double& ratio) const {
        double c = elements_.candidate[i], e = elements_.exact[i];
        const double magnitude = elements_.magnitude[i];
        ratio = 0;
        if (c == e || (std::isnan(c) && std::isnan(e))) return Status::identical;
        if (magnitude < claim_.exact_below) {
            ratio = HUGE_VAL;
            return Status::mistake;
        }
        // A partial sum may have overflowed, in some order: then everything may have come out, but for a NaN term.
        const bool overflows = !(magnitude < too_large_ / 2);
        if (!std::isfinite(c) || !std::isfinite(e)) {
            ratio = HUGE_VAL;
            if (overflows && !std::isnan(e)) return Status::rounding;
            // A sum that is infinite without an overflow has an infinite term.
            if (std::isnan(c) || std::isnan(e) || (std::isinf(e) && magnitude < beyond_ / 2)) return Status::mistake;
            c = std::clamp(c, -beyond_, beyond_), e = std::clamp(e, -beyond_, beyond_);
        }
        // The slack covers the rounding of these few operations.
        const double representation = half_ulp_.of(std::abs(e)) + (stored_narrower_ ? half_ulp_.of(std::abs(c)) : 0);
        const double fixed = claim_.tiny[position] + representation, difference = std::abs(c - e);
        const double shift = elements_.shift == nullptr ? 0 : elements_.shift[i];
        auto carried = [&](double factor) { return factor * (magnitude + shift) + shift + fixed; };
        const double bound = carried(claim_.hard[position]) * slack;
        ratio = std::isfinite(bound) ? difference / bound : 0;
        if (overflows) return Status::rounding;
        if (difference > bound) return Status::mistake;
        return difference > carried(claim_.likely[position]) ? Status::unlikely : Status::rounding;
    }

    void add_squares(Index i, Index position, Squares& sums) const {
        const double c = elements_.candidate[i], e = elements_.exact[i], magnitude = elements_.magnitude[i];
        if (!(std::isfinite(c) && std::isfinite(e) && magnitude < too_large_ / 2)) return;
        const double shift = elements_.shift == nullptr ? 0 : elements_.shift[i], root = claim_.roots[position];
        auto square = [&](double x) { return x * claim_.scale * (x * claim_.scale); };
        ++sums.count;
        sums.error += square(c - e);
        sums.exact += square(e);
        sums.magnitude += square(magnitude);
        sums.spread += square(unit_ * root * magnitude + (shift > 0 ? shift / root : 0));
    }

    // A block as judge_one and add_squares would do it, without a branch, in a quarter of the time. False, and nothing
    // done, where it must be looked at more closely: something is not finite or may have overflowed, a sum that no
    // order rounds is another, or an element is the worst so far.
    template <bool shifted>
    bool side_by_side(Index first, Index position, Assessment& found, Squares& squares) const {
        Mask odd{}, differ{}, unlikely{}, mistaken{};
        Two error{}, exact{}, magnitudes{}, spread{}, worst{};
        std::uint8_t status[block];
        for (Index k = 0; k < block; k += lanes) {
            const Index i = first + k, p = position + k;
            const Two c = load(elements_.candidate + i), e = load(elements_.exact + i),
                      magnitude = load(elements_.magnitude + i), difference = abs(c - e);
            Two fixed = half_ulp_.of(abs(e));
            if (stored_narrower_) fixed += half_ulp_.of(abs(c));
            fixed = load(claim_.tiny + p) + fixed;
            Two sum = magnitude, shift{};
            if constexpr (shifted) shift = load(elements_.shift + i), sum = magnitude + shift;
            auto carried = [&](const double* factor) {
                const Two grown = load(factor + p) * sum;
                return (shifted ? grown + shift : grown) + fixed;
            };
            const Two bound = carried(claim_.hard) * slack;
            const Mask different = c != e, beyond = difference > bound,
                       doubtful = beyond | (difference > carried(claim_.likely));
            // No difference or bound is finite where c, e or a shift is not.
            odd |= ~((difference < HUGE_VAL) & (magnitude < too_large_ / 2) & (bound < HUGE_VAL)) |
                   (different & (magnitude < claim_.exact_below));
            differ += different, unlikely += doubtful, mistaken += beyond;
            const Mask codes = different + doubtful + beyond;
            for (Index l = 0; l < lanes; ++l) status[k + l] = static_cast<std::uint8_t>(-codes[l]);
            worst = larger(difference / bound, worst);
            Two each = unit_ * load(claim_.roots + p) * magnitude;
            if constexpr (shifted) {
                const Two moved = shift / load(claim_.roots + p);
                each += shift > all(0) ? moved : all(0);
            }
            auto add_square = [&](Two& to, Two x) { x *= claim_.scale, to += x * x; };
            add_square(error, difference), add_square(exact, e), add_square(magnitudes, magnitude);
            add_square(spread, each);
        }
        if (any(odd) || any(worst > found.worst) || (any(differ) && found.worst_at < 0)) return false;
        std::copy_n(status, block, status_ + first);
        const Index numbers[] = {block, count(differ), count(unlikely), count(mistaken), 0};
        for (std::size_t s = 0; s < found.counts.size(); ++s) found.counts[s] += numbers[s] - numbers[s + 1];
        squares.count += block;
        squares.error += sum(error);
        squares.exact += sum(exact);
        squares.magnitude += sum(magnitudes);
        squares.spread += sum(spread);
        return true;
    }

    static constexpr double slack = 1 + 0x1p-48;

    const Elements<T>& elements_;
    const Claim& claim_;
    std::uint8_t* status_;
    HalfUlp half_ulp_;
    bool stored_narrower_ = claim_.stored.digits < claim_.accumulator.digits;
    double unit_ = power_of_two(-claim_.accumulator.digits);
    // The numbers that an overflow and an infinity stand for.
    double beyond_ = power_of_two(std::min(claim_.stored.overflow, 1023)),
           too_large_ = power_of_two(std::min(claim_.accumulator.overflow, 1023));
};

}  // namespace

template <class T>
Assessment assess(const Elements<T>& elements, const Claim& claim, std::uint8_t* status, int threads,
                  const parallel::InterruptCheck& interrupted) {
    const Repeated repeated(claim);
    const Assessor<T> assessor(elements, repeated.claim, status);
    Assessment all;
    std::mutex lock;
    std::atomic<Index> next{0};
    constexpr Index piece = 1 << 14;
    std::vector<Squares> squares(static_cast<std::size_t>((elements.count + piece - 1) / piece));
    parallel::Control control(interrupted);
    parallel::run(static_cast<int>(std::clamp<Index>(elements.count / (4 * piece), 1, threads)), control,
                  [&](int thread) {
                      Assessment mine;
                      for (Index begin; (begin = next.fetch_add(piece)) < elements.count;) {
                          if (control.should_stop(thread == 0)) return;
                          const Index end = std::min(begin + piece, elements.count);
                          Squares& own = squares[static_cast<std::size_t>(begin / piece)];
                          for (Index i = begin; i < end; i += block)
                              assessor.judge(i, i % claim.positions, std::min(block, end - i), mine, own);
                      }
                      const std::lock_guard guard(lock);
                      for (std::size_t s = 0; s < all.counts.size(); ++s) all.counts[s] += mine.counts[s];
                      // The first of the worst, whichever thread met it.
                      if (mine.worst_at >= 0 && (all.worst_at < 0 || mine.worst > all.worst ||
                                                 (mine.worst == all.worst && mine.worst_at < all.worst_at)))
                          all.worst = mine.worst, all.worst_at = mine.worst_at;
                  });
    for (const Squares& own : squares) {
        all.squares.count += own.count;
        all.squares.error += own.error;
        all.squares.exact += own.exact;
        all.squares.magnitude += own.magnitude;
        all.squares.spread += own.spread;
    }
    return all;
}

template Assessment assess(const Elements<float>&, const Claim&, std::uint8_t*, int, const parallel::InterruptCheck&);
template Assessment assess(const Elements<double>&, const Claim&, std::uint8_t*, int, const parallel::InterruptCheck&);

}  // namespace detconv
