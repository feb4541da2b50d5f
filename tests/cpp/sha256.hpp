// SHA-256 (FIPS 180-4).
#pragma once

#include <cstdint>
#include <span>
#include <string>

namespace detconv::test {

// In lower-case hexadecimal digits.
std::string sha256(std::span<const std::uint8_t> message);

}  // namespace detconv::test
