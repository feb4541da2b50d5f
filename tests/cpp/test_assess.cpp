#include <cmath>
#include <limits>

#include "check.hpp"
#include "detconv/assess.hpp"

namespace detconv::test {
namespace {

constexpr Format float32{24, -126, 128}, float16{11, -14, 16};
constexpr double infinity = std::numeric_limits<double>::infinity(), nan = std::numeric_limits<double>::quiet_NaN();
const parallel::InterruptCheck never;

// One element with S = magnitude whose sums may be off by hard * S, and probably are by no more than half of that.
Status status_of(double candidate, double exact, double magnitude, double hard = 0x1p-10, Format stored = float32) {
    const float c = static_cast<float>(candidate), e = static_cast<float>(exact), s = static_cast<float>(magnitude);
    const double likely = hard / 2, tiny = 0x1p-149, root = 1;
    std::uint8_t status = 9;
    const Claim claim{1, &hard, &likely, &tiny, &root, 0, 1, float32, stored};
    const Assessment found = assess(Elements<float>{1, &c, &e, &s, nullptr}, claim, &status, 1, never);
    CHECK_SAME(found.counts[status], Index(1));
    return static_cast<Status>(status);
}

TEST("assess: an element by its distance from the exact sum") {
    const double bound = 3 * 0x1p-10 + 0x1p-24;  // and half an ulp of 1
    CHECK(status_of(1, 1, 3) == Status::identical);
    CHECK(status_of(1 + 0x1p-23, 1, 3) == Status::rounding);
    CHECK(status_of(1 + bound * 0.4, 1, 3) == Status::rounding);
    CHECK(status_of(1 - bound * 0.6, 1, 3) == Status::unlikely);
    CHECK(status_of(1 + 3 * 0x1p-10, 1, 3) == Status::unlikely);
    CHECK(status_of(1 + 3 * 0x1p-10 + 0x1p-23, 1, 3) == Status::mistake);
    CHECK(status_of(-1, 1, 3) == Status::mistake);
    CHECK(status_of(0x1p-149, 0, 0) == Status::rounding);
    CHECK(status_of(0x1p-140, 0, 0) == Status::mistake);
    CHECK(status_of(-0.0, 0, 0) == Status::identical);
}

TEST("assess: infinities and NaN") {
    CHECK(status_of(nan, nan, 1) == Status::identical);
    CHECK(status_of(infinity, infinity, 1) == Status::identical);
    for (const double value : {1.0, infinity, -infinity})
        CHECK(status_of(value, nan, 1) == Status::mistake && status_of(value, nan, infinity) == Status::mistake, value);
    for (const double value : {nan, infinity, -infinity}) {
        CHECK(status_of(value, 1, 3) == Status::mistake, value);
        CHECK(status_of(value, 1, 3e38) == Status::rounding, value);  // a partial sum may have overflowed
    }
    CHECK(status_of(1, infinity, 3) == Status::mistake);  // an infinite term
    CHECK(status_of(-infinity, infinity, 3) == Status::mistake);
}

TEST("assess: a candidate stored in half precision") {
    CHECK(status_of(1 + 0x1p-10, 1, 1, 0x1p-12, float16) == Status::rounding);  // the next float16
    CHECK(status_of(1 + 0x1p-9, 1, 1, 0x1p-12, float16) == Status::mistake);
    CHECK(status_of(infinity, 65504, 65504, 0x1p-12, float16) == Status::rounding);
    CHECK(status_of(infinity, 60000, 60000, 0x1p-12, float16) == Status::mistake);
    CHECK(status_of(0x1p-24, 0, 0x1p-25, 0x1p-12, float16) == Status::rounding);
}

TEST("assess: the same on any number of threads, positions in turn") {
    constexpr Index count = 300 * 1024, positions = 3;
    std::vector<float> candidate(count, 1), exact(count, 1), magnitude(count, 1);
    const double hard[positions] = {0, 1, 0}, likely[positions] = {0, 0.5, 0}, tiny[positions] = {0, 0, 0};
    const double roots[positions] = {1, 1, 1};
    for (const Index at : {Index(3), Index(4), Index(100000), count - 1})
        candidate[static_cast<std::size_t>(at)] = 1.75f;
    for (const int threads : {1, 2, 5}) {
        std::vector<std::uint8_t> status(count, 9);
        const Claim claim{positions, hard, likely, tiny, roots, 0, 1, float32, float32};
        const Assessment found =
            assess(Elements<float>{count, candidate.data(), exact.data(), magnitude.data(), nullptr}, claim,
                   status.data(), threads, never);
        CHECK_SAME(found.counts[0], count - 4);
        CHECK_SAME(found.counts[2], Index(2), "4 and 100000 are at position 1");
        CHECK_SAME(found.counts[3], Index(2));
        CHECK_SAME(found.worst_at, Index(3), "the first of two equally wrong ones");
        CHECK(status[4] == 2 && status[100000] == 2 && status[count - 1] == 3 && status[0] == 0);
    }
}

}  // namespace
}  // namespace detconv::test
