// What a .cu file here may use beyond plain C++, so that its very source also runs on a CPU
// (plugins/emulator): kernels are launched by launch(), and all shared memory is dynamic, taken
// with shared_memory<T>().
#pragma once

#include <cstdint>

#include <cuda_runtime.h>

namespace carafe {

#if defined(CARAFE_EMULATED)

using emulator::kEnoughBlocks;
using emulator::kMostBlocksX;
using emulator::kMostBlocksY;
using emulator::launch;
using emulator::shared_memory;

#else

/// Blocks that keep a large GPU busy; below, work may be cut into smaller pieces.
constexpr std::int64_t kEnoughBlocks = 512;
/// Of a grid; a kernel with more work goes through it in steps of the grid's size.
constexpr std::int64_t kMostBlocksX = 0x7fffffff;
constexpr std::int64_t kMostBlocksY = 65535;

/// Enqueues `kernel`; arguments are converted to the kernel's own parameter types.
template <typename... Parameters, typename... Arguments>
cudaError_t launch(
    void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes,
    cudaStream_t stream, Arguments const&... arguments) {
    kernel<<<grid, block, shared_bytes, stream>>>(static_cast<Parameters>(arguments)...);
    return cudaGetLastError();
}

/// The block's dynamic shared memory, aligned to 16 bytes.
template <typename T>
__device__ T* shared_memory() {
    extern __shared__ __align__(16) unsigned char carafe_shared_memory[];
    return reinterpret_cast<T*>(carafe_shared_memory);
}

#endif

/// Blocks of `size` that cover `count`.
constexpr std::int64_t blocks_for(std::int64_t count, std::int64_t size) {
    return (count + size - 1) / size;
}

}  // namespace carafe
