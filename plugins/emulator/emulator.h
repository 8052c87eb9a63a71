// Runs CUDA kernels on the CPU, to test their source rather than to be fast.
//
// Blocks run one after another. The threads of a block are fibers on one thread of the system: each
// runs until it meets a barrier or a warp-wide function, in an order that can be chosen, one warp
// as far as it can get before the next. So a missing barrier shows in the result under one of the
// orders. Shared memory starts as NaN in every block and has guard zones on both sides. A deadlock,
// a write to a guard zone, a misaligned access or a wrong mask ends the launch with an error.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda_runtime_api.h"

namespace carafe::emulator {

/// Order of threads between two barriers, and of blocks.
enum class Order : std::int32_t { kForward = 0, kBackward = 1, kRandom = 2 };

/// For later launches; every launch with kRandom starts from `seed` again.
void set_order(Order order, std::uint64_t seed);

/// Is told of launches and blocks, from which a tool learns where a memory access belongs.
class Observer {
  public:
    virtual ~Observer() = default;
    virtual void begin_launch(dim3 grid, dim3 block, std::size_t shared_bytes) = 0;
    virtual void begin_block() = 0;
    virtual void end_block() = 0;
};

/// For later launches; null for none.
void set_observer(Observer* observer);

/// Most bytes of shared memory in a launch: what every GPU has without being asked for more.
constexpr std::size_t kSharedBytes = 48 * 1024;

// Stand for launch.cuh's constants of these names.
#if defined(CARAFE_EMULATED_WHOLE_GPU)  // its values: work is cut as on a GPU
constexpr std::int64_t kEnoughBlocks = 512;
constexpr std::int64_t kMostBlocksX = 0x7fffffff;
constexpr std::int64_t kMostBlocksY = 65535;
#else
/// A small GPU: few blocks fill it and a grid holds few, so that small problems take large tiles
/// and go through loops over the grid.
constexpr std::int64_t kEnoughBlocks = 5;
constexpr std::int64_t kMostBlocksX = 7;
constexpr std::int64_t kMostBlocksY = 2;
#endif

namespace detail {

using Body = void (*)(void const* closure);

/// Runs all blocks; `body` is one thread.
cudaError_t run(dim3 grid, dim3 block, std::size_t shared_bytes, Body body, void const* closure);

/// The running block's shared memory.
std::byte* shared();

/// Ends the launch with `error`; the printf-like text becomes its description. Only on a thread of
/// a kernel.
[[noreturn]] __attribute__((format(printf, 2, 3))) void fail(
    cudaError_t error, char const* format, ...);

enum class Barrier { kSync, kCount, kAnd, kOr };

/// Waits for all threads of the block that have not returned; the barrier's reduction.
int wait_for_block(Barrier barrier, int predicate);

enum class WarpFunction { kSync, kShuffle, kBallot };

/// Waits for all lanes of `mask`. Shuffle: the value of lane `source`, which is NaN bytes when it
/// is not in the mask. Ballot: lanes of the mask whose value is not zero.
std::uint64_t wait_for_warp(
    WarpFunction function, std::uint32_t mask, std::uint64_t value, unsigned source);

}  // namespace detail

/// Runs `kernel` before it returns; arguments are converted to the kernel's own parameter types.
template <typename... Parameters, typename... Arguments>
cudaError_t launch(
    void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes, cudaStream_t,
    Arguments const&... arguments) {
    auto const thread = [&] { kernel(static_cast<Parameters>(arguments)...); };
    using Thread = decltype(thread);
    return detail::run(
        grid, block, shared_bytes, [](void const* self) { (*static_cast<Thread*>(self))(); },
        &thread);
}

/// The block's dynamic shared memory, aligned to 16 bytes.
template <typename T>
T* shared_memory() {
    return reinterpret_cast<T*>(detail::shared());
}

}  // namespace carafe::emulator
