// Huge pages under large results on the CPU.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace carafe {

/// Asks for huge pages under `bytes` that are about to be written. malloc takes memory of this size
/// from the system anew each time, whose small pages then fault one by one: that took longer than
/// computing the 72 MB of the neck's largest result. What lies around the memory stays as it is.
inline void use_huge_pages([[maybe_unused]] void* memory, [[maybe_unused]] std::size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr std::size_t kLarge = std::size_t{32} << 20;  // the most that glibc ever keeps back
    constexpr std::uintptr_t kPage = std::uintptr_t{2} << 20;
    if (bytes < kLarge) return;
    std::uintptr_t const begin = (reinterpret_cast<std::uintptr_t>(memory) + kPage - 1) / kPage;
    std::uintptr_t const end = (reinterpret_cast<std::uintptr_t>(memory) + bytes) / kPage;
    // Where the system has no huge pages it refuses, and all is as before.
    madvise(reinterpret_cast<void*>(begin * kPage), (end - begin) * kPage, MADV_HUGEPAGE);
#endif
}

}  // namespace carafe
