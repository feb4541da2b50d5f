// The one driver: packs, cuts a contraction into tiles, and runs them. Threads take whole panels and whole chunks of
// columns: no sum is ever split between them.
#pragma once

#include <vector>

#include "index_map.hpp"
#include "kernels.hpp"
#include "parallel.hpp"

namespace detconv {

struct Execution {
    const Kernels& kernels;
    int threads;
    parallel::InterruptCheck interrupted;
    std::vector<const char*>* walks = nullptr;  // for who asks: Plan::walk() of every contraction of the call
};

void run(Contraction contraction, const Execution& execution);

}  // namespace detconv
