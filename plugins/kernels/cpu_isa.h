// Which of the objects that are compiled once for each instruction set a CPU twin calls.
#pragma once

#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace carafe {

enum class CpuIsa { kBaseline, kAvx2, kAvx512 };

#if defined(__x86_64__)
/// Zen 4 executes 512-bit instructions in two halves, and their unaligned loads cost more than they
/// save (benchmarks/results/cpu_isa.json).
inline bool halves_long_vectors() {
    unsigned version = 0, rest = 0;
    if (!__builtin_cpu_is("amd") || __get_cpuid(1, &version, &rest, &rest, &rest) == 0) {
        return false;
    }
    return (version >> 8 & 0xf) + (version >> 20 & 0xff) == 0x19;  // the family
}
#endif

/// The fastest that the processor has; CARAFE_CPU_ISA (baseline, avx2, avx512) asks for another.
inline CpuIsa cpu_isa() {
#if defined(__x86_64__)
    char const* const wish = std::getenv("CARAFE_CPU_ISA");
    auto const allowed = [wish](char const* name) {
        return wish == nullptr || std::strcmp(wish, name) == 0;
    };
    __builtin_cpu_init();
    bool const shorter = wish == nullptr && halves_long_vectors();
    if (!shorter && allowed("avx512") && __builtin_cpu_supports("avx512f") &&
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
