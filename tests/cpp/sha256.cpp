#include "sha256.hpp"

#include <array>
#include <bit>
#include <vector>

#include "check.hpp"

namespace detconv::test {
namespace {

using State = std::array<std::uint32_t, 8>;

// The first 32 bits of the fractional parts of the n-th roots of the first primes are the constants of the standard;
// an integer root gives them: floor(root(prime * 2^(32 n))), of which the low 32 bits are kept.
template <int Root, std::size_t Count>
constexpr std::array<std::uint32_t, Count> fractions_of_roots() {
    __extension__ using Wide = unsigned __int128;
    std::array<std::uint32_t, Count> fractions{};
    std::uint64_t prime = 2;
    for (std::uint32_t& fraction : fractions) {
        std::uint64_t root = 0;
        for (std::uint64_t bit = std::uint64_t(1) << 36; bit; bit >>= 1) {
            const Wide next = root | bit;
            if ((Root == 2 ? next * next : next * next * next) <= Wide(prime) << (32 * Root)) root |= bit;
        }
        fraction = static_cast<std::uint32_t>(root);
        auto is_prime = [](std::uint64_t n) {
            for (std::uint64_t d = 2; d * d <= n; ++d)
                if (n % d == 0) return false;
            return true;
        };
        while (!is_prime(++prime)) {
        }
    }
    return fractions;
}

constexpr auto round_constants = fractions_of_roots<3, 64>();
constexpr State initial = fractions_of_roots<2, 8>();

void compress(State& state, const std::uint8_t* block) {
    using std::rotr;
    std::array<std::uint32_t, 64> w;
    for (std::size_t t = 0; t < 16; ++t, block += 4)
        w[t] = std::uint32_t(block[0]) << 24 | std::uint32_t(block[1]) << 16 | std::uint32_t(block[2]) << 8 | block[3];
    for (std::size_t t = 16; t < 64; ++t) {
        const std::uint32_t a = w[t - 15], b = w[t - 2];
        w[t] = w[t - 16] + w[t - 7] + (rotr(a, 7) ^ rotr(a, 18) ^ a >> 3) + (rotr(b, 17) ^ rotr(b, 19) ^ b >> 10);
    }
    auto [a, b, c, d, e, f, g, h] = state;
    for (std::size_t t = 0; t < 64; ++t) {
        const std::uint32_t t1 =
            h + (rotr(e, 6) ^ rotr(e, 11) ^ rotr(e, 25)) + ((e & f) ^ (~e & g)) + round_constants[t] + w[t];
        const std::uint32_t t2 = (rotr(a, 2) ^ rotr(a, 13) ^ rotr(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
        h = g, g = f, f = e, e = d + t1, d = c, c = b, b = a, a = t1 + t2;
    }
    const State added{a, b, c, d, e, f, g, h};
    for (std::size_t i = 0; i < state.size(); ++i) state[i] += added[i];
}

}  // namespace

std::string sha256(std::span<const std::uint8_t> message) {
    std::vector<std::uint8_t> padded(message.begin(), message.end());
    padded.push_back(0x80);
    while (padded.size() % 64 != 56) padded.push_back(0);
    const std::uint64_t bits = 8 * std::uint64_t(message.size());
    for (int shift = 56; shift >= 0; shift -= 8) padded.push_back(static_cast<std::uint8_t>(bits >> shift));

    State state = initial;
    for (std::size_t at = 0; at < padded.size(); at += 64) compress(state, padded.data() + at);
    std::string digest;
    for (const std::uint32_t part : state)
        for (int shift = 28; shift >= 0; shift -= 4) digest += "0123456789abcdef"[part >> shift & 15];
    return digest;
}

TEST("SHA-256: the standard's examples") {
    auto of = [](const std::string& message) {
        return sha256({reinterpret_cast<const std::uint8_t*>(message.data()), message.size()});
    };
    CHECK_SAME(of(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    CHECK_SAME(of("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    CHECK_SAME(of("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
               "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    CHECK_SAME(of(std::string(1000000, 'a')), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

}  // namespace detconv::test
