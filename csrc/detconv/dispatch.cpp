#include "dispatch.hpp"

#include <atomic>
#include <cstdlib>

namespace detconv::dispatch {
namespace {

struct Candidate {
    const Kernels& kernels;
    bool (*runs_here)();
};

bool always() { return true; }
#if defined(DETCONV_HAS_AVX2)
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#endif
#if defined(DETCONV_HAS_AVX512)
bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

// One row an instruction set, slowest first.
constexpr Candidate candidates[] = {
    {baseline::kernels, always},
#if defined(DETCONV_HAS_NEON)
    {neon::kernels, always},  // every aarch64 has it
#endif
#if defined(DETCONV_HAS_AVX2)
    {avx2::kernels, has_avx2},
#endif
#if defined(DETCONV_HAS_AVX512)
    {avx512::kernels, has_avx512},
#endif
};

const Kernels& find(std::string_view name, const char* source) {
    std::string valid;
    for (const Candidate& candidate : candidates) {
        if (!candidate.runs_here()) continue;
        if (name == candidate.kernels.name) return candidate.kernels;
        valid += (valid.empty() ? "\"" : ", \"") + std::string(candidate.kernels.name) + '"';
    }
    throw InvalidArgument(std::string(source) + " must be one of " + valid + " on this machine; got \"" +
                          shortened(name) + '"');
}

const Kernels& best() {
    const Kernels* found = nullptr;
    for (const Candidate& candidate : candidates)
        if (candidate.runs_here()) found = &candidate.kernels;
    return *found;
}

std::atomic<const Kernels*> forced{nullptr};

}  // namespace

std::vector<std::string> built() {
    std::vector<std::string> names;
    for (const Candidate& candidate : candidates) names.emplace_back(candidate.kernels.name);
    return names;
}

std::vector<std::string> usable() {
    std::vector<std::string> names;
    for (const Candidate& candidate : candidates)
        if (candidate.runs_here()) names.emplace_back(candidate.kernels.name);
    return names;
}

const Kernels& current() {
    if (const Kernels* kernels = forced.load(std::memory_order_relaxed)) return *kernels;
    static const Kernels& chosen = [&]() -> const Kernels& {
        const char* name = std::getenv("DETCONV_ISA");
        return name && *name ? find(name, "DETCONV_ISA") : best();
    }();
    return chosen;
}

std::string force(std::string_view name) {
    const Kernels* const next = name.empty() ? nullptr : &find(name, "instruction set");
    const Kernels* const before = forced.exchange(next);
    return before ? before->name : "";
}

}  // namespace detconv::dispatch
