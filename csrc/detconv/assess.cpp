#include "assess.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <mutex>
#include <vector>

namespace detconv {
namespace {

double power_of_two(int exponent) { return std::ldexp(1.0, exponent); }

// The exponent of a positive number; less than any asked for below where it is 0 or subnormal.
int exponent_of(double magnitude) { return static_cast<int>(std::bit_cast<std::uint64_t>(magnitude) >> 52) - 1023; }

class HalfUlp {
public:
    explicit HalfUlp(const Format& f)
        : digits_(f.digits), smallest_(std::ldexp(1.0, std::max(f.smallest - f.digits, smallest_exponent))) {}
    // How far a number of this magnitude may be from what was rounded to it.
    double of(double magnitude) const {
        const int exponent = exponent_of(magnitude) - digits_;
        // A power of two by its bits: ldexp costs more than all the rest of an element.
        if (exponent >= -1022)
            return std::max(std::bit_cast<double>(static_cast<std::uint64_t>(exponent + 1023) << 52), smallest_);
        return std::max(std::ldexp(1.0, std::max(exponent, smallest_exponent)), smallest_);
    }

private:
    static constexpr int smallest_exponent = -1074;  // of a double
    int digits_;
    double smallest_;
};

}  // namespace

template <class T>
Assessment assess(const Elements<T>& elements, const Claim& claim, std::uint8_t* status, int threads,
                  const parallel::InterruptCheck& interrupted) {
    const HalfUlp half_ulp(claim.stored);
    const bool stored_narrower = claim.stored.digits < claim.accumulator.digits;
    // The numbers that an overflow and an infinity stand for.
    const double beyond = power_of_two(std::min(claim.stored.overflow, 1023)),
                 too_large = power_of_two(std::min(claim.accumulator.overflow, 1023));

    auto assess_one = [&](Index i, Index position, double& ratio) {
        double c = elements.candidate[i], e = elements.exact[i];
        const double magnitude = elements.magnitude[i];
        ratio = 0;
        if (c == e || (std::isnan(c) && std::isnan(e))) return Status::identical;
        if (magnitude < claim.exact_below) {
            ratio = HUGE_VAL;
            return Status::mistake;
        }
        // A partial sum may have overflowed, in some order: then everything may have come out, but for a NaN term.
        const bool overflows = !(magnitude < too_large / 2);
        if (!std::isfinite(c) || !std::isfinite(e)) {
            ratio = HUGE_VAL;
            if (overflows && !std::isnan(e)) return Status::rounding;
            // A sum that is infinite without an overflow has an infinite term.
            if (std::isnan(c) || std::isnan(e) || (std::isinf(e) && magnitude < beyond / 2)) return Status::mistake;
            c = std::clamp(c, -beyond, beyond), e = std::clamp(e, -beyond, beyond);
        }
        // The slack covers the rounding of these few operations.
        const double representation = half_ulp.of(std::abs(e)) + (stored_narrower ? half_ulp.of(std::abs(c)) : 0);
        const double fixed = claim.tiny[position] + representation, difference = std::abs(c - e);
        const double shift = elements.shift == nullptr ? 0 : elements.shift[i];
        auto carried = [&](double factor) { return factor * (magnitude + shift) + shift + fixed; };
        const double bound = carried(claim.hard[position]) * (1 + 0x1p-48);
        ratio = std::isfinite(bound) ? difference / bound : 0;
        if (overflows) return Status::rounding;
        if (difference > bound) return Status::mistake;
        return difference > carried(claim.likely[position]) ? Status::unlikely : Status::rounding;
    };

    const double unit = power_of_two(-claim.accumulator.digits);
    auto add_squares = [&](Index i, Index position, Squares& sums) {
        const double c = elements.candidate[i], e = elements.exact[i], magnitude = elements.magnitude[i];
        if (!(std::isfinite(c) && std::isfinite(e) && magnitude < too_large / 2)) return;
        const double shift = elements.shift == nullptr ? 0 : elements.shift[i], root = claim.roots[position];
        auto square = [&](double x) { return x * claim.scale * (x * claim.scale); };
        ++sums.count;
        sums.error += square(c - e);
        sums.exact += square(e);
        sums.magnitude += square(magnitude);
        sums.spread += square(unit * root * magnitude + (shift > 0 ? shift / root : 0));
    };

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
                          Index position = begin % claim.positions;
                          Squares& own = squares[static_cast<std::size_t>(begin / piece)];
                          for (Index i = begin; i < end; ++i) {
                              double ratio;
                              const Status s = assess_one(i, position, ratio);
                              add_squares(i, position, own);
                              status[i] = static_cast<std::uint8_t>(s);
                              ++mine.counts[static_cast<std::size_t>(s)];
                              if (s != Status::identical && (mine.worst_at < 0 || ratio > mine.worst))
                                  mine.worst = ratio, mine.worst_at = i;
                              if (++position == claim.positions) position = 0;
                          }
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
