// The golden hashes that Python checks too (tests/golden/forward.txt).
#pragma once

#include <string>

namespace detconv::test {

// Computes every case of the file by the instruction set in use; prints the lines that differ and a line of summary.
// Returns whether none differs.
bool check_golden(const std::string& file);

}  // namespace detconv::test
