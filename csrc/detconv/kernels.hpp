// The tables of kernels, one for each instruction set that was built. Outside its namespace an instruction set's object
// file defines nothing but this one table.
#pragma once

#include "tile.hpp"

namespace detconv {

namespace baseline {
extern const Kernels kernels;
}
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
namespace neon {
extern const Kernels kernels;
}

}  // namespace detconv
