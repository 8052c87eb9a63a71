// Which of the objects that are compiled once for each instruction set a CPU twin calls.
#pragma once

#include <cstdlib>
#include <cstring>

namespace carafe {

enum class CpuIsa { kBaseline, kAvx2, kAvx512 };

/// The best that the processor has; CARAFE_CPU_ISA (baseline, avx2, avx512) asks for less.
inline CpuIsa cpu_isa() {
#if defined(__x86_64__)
    char const* const wish = std::getenv("CARAFE_CPU_ISA");
    auto const allowed = [wish](char const* name) {
        return wish == nullptr || std::strcmp(wish, name) == 0;
    };
    if (allowed("avx512") && __builtin_cpu_supports("avx512f") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq")) {
        return CpuIsa::kAvx512;
    }
    if (allowed("avx2") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
        __builtin_cpu_supports("f16c")) {
        return CpuIsa::kAvx2;
    }
#endif
    return CpuIsa::kBaseline;
}

}  // namespace carafe
