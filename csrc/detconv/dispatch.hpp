// Chooses the instruction set at run time.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "kernels.hpp"

namespace detconv::dispatch {

std::vector<std::string> built();   // slowest first
std::vector<std::string> usable();  // those this machine can run

// The kernels in use: the forced ones, else those the environment variable DETCONV_ISA names, else the best usable.
const Kernels& current();

// Forces an instruction set for the whole process, an empty name ends that; returns what was forced before.
// Throws InvalidArgument where the name is not usable here.
std::string force(std::string_view name);

}  // namespace detconv::dispatch
