// The scheduler of an emulated launch.
#include "emulator.h"

#include <algorithm>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <vector>

#include "cuda_runtime.h"
#include "fiber.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace carafe::emulator {

namespace {

constexpr unsigned kWarp = 32;
constexpr std::size_t kRedzoneBytes = 4096;
/// NaN in every type: float32, float16 and bfloat16 alike; a written -1 differs from it.
constexpr std::uint16_t kRedzone = 0x7fd3;

enum class State { kReady, kAtBlockBarrier, kAtWarpFunction, kReturned };

struct Thread {
    State state;
    Fiber* fiber;
    uint3 index;
    detail::Barrier barrier;
    detail::WarpFunction function;
    std::uint32_t mask;
    unsigned source;
    std::uint64_t value;   // handed in at a barrier
    std::uint64_t result;  // handed out there
};

thread_local char failure[256];

}  // namespace

#if !defined(__SANITIZE_ADDRESS__)  // whose runtime reports with more detail

/// Makes touching an unmapped page in a kernel an error of the launch. Lives during a launch.
class FaultHandler {
  public:
    explicit FaultHandler(void (*handler)(int, siginfo_t*, void*)) : stack_(64 * 1024) {
        stack_t stack{};
        stack.ss_sp = stack_.data();
        stack.ss_size = stack_.size();
        sigaltstack(&stack, &old_stack_);
        struct sigaction action{};
        action.sa_sigaction = handler;
        // The handler does not return but goes back to the scheduler.
        action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
        sigemptyset(&action.sa_mask);
        sigaction(SIGSEGV, &action, &old_segv_);
        sigaction(SIGBUS, &action, &old_bus_);
    }
    ~FaultHandler() {
        sigaction(SIGSEGV, &old_segv_, nullptr);
        sigaction(SIGBUS, &old_bus_, nullptr);
        sigaltstack(&old_stack_, nullptr);
    }
    FaultHandler(FaultHandler const&) = delete;
    FaultHandler& operator=(FaultHandler const&) = delete;

  private:
    std::vector<std::byte> stack_;
    stack_t old_stack_{};
    struct sigaction old_segv_{};
    struct sigaction old_bus_{};
};

#endif

/// One launch at a time; stacks are kept for the next.
class Device {
  public:
    Order order = Order::kForward;
    std::uint64_t seed = 0;
    Observer* observer = nullptr;
    std::mutex mutex;

    cudaError_t run(
        dim3 grid, dim3 block, std::size_t shared_bytes, detail::Body body, void const* closure) {
        body_ = body;
        closure_ = closure;
        shared_bytes_ = shared_bytes;
        error_ = cudaSuccess;
        gridDim = grid;
        blockDim = block;
        random_.seed(seed);
        threads_.resize(std::size_t{block.x} * block.y * block.z);
        std::size_t const units = (kRedzoneBytes + shared_bytes + kRedzoneBytes + 15) / 16;
        shared_memory_.resize(units);
        std::vector<std::uint64_t> blocks(std::uint64_t{grid.x} * grid.y * grid.z);
        std::iota(blocks.begin(), blocks.end(), std::uint64_t{0});
        arrange(blocks);
        if (observer != nullptr) observer->begin_launch(grid, block, shared_bytes);
        for (std::uint64_t const number : blocks) {
            blockIdx = {
                static_cast<unsigned>(number % grid.x),
                static_cast<unsigned>(number / grid.x % grid.y),
                static_cast<unsigned>(number / grid.x / grid.y)};
            poison_shared_memory();
            if (observer != nullptr) observer->begin_block();
            run_block();
            if (observer != nullptr) observer->end_block();
            if (error_ == cudaSuccess) check_redzones();
            if (error_ != cudaSuccess) break;
        }
        if (error_ != cudaSuccess) {  // threads that stopped midway leave their stacks in disorder
            idle_.clear();
            fibers_.clear();
        }
        return error_;
    }

    std::byte* shared() {
        return reinterpret_cast<std::byte*>(shared_memory_.data()) + kRedzoneBytes;
    }

    bool inside_kernel() const { return running_ != nullptr; }

    Thread& running() { return *running_; }

    /// Stops the running thread until the scheduler wakes it.
    void pause(State state) {
        running_->state = state;
        running_->fiber->suspend();
    }

    void report(cudaError_t error) { error_ = error; }

  private:
    struct alignas(16) Unit {
        std::byte bytes[16];
    };

    template <typename Item>
    void arrange(std::vector<Item>& items) {
        if (order == Order::kBackward) std::reverse(items.begin(), items.end());
        if (order == Order::kRandom) std::shuffle(items.begin(), items.end(), random_);
    }

    void poison_shared_memory() {
        std::byte* const begin = shared() - kRedzoneBytes;
        std::byte* const end = begin + shared_memory_.size() * sizeof(Unit);
        for (std::byte* at = begin; at < end; at += sizeof kRedzone) {
            std::memcpy(at, &kRedzone, sizeof kRedzone);
        }
        std::memset(shared(), 0xff, shared_bytes_);
    }

    void check_redzones() {
        std::byte const* const begin = shared() - kRedzoneBytes;
        auto const total = static_cast<std::ptrdiff_t>(shared_memory_.size() * sizeof(Unit));
        auto const first = static_cast<std::ptrdiff_t>(kRedzoneBytes);
        std::ptrdiff_t const last = first + static_cast<std::ptrdiff_t>(shared_bytes_);
        auto const* const pattern = reinterpret_cast<std::byte const*>(&kRedzone);
        for (std::ptrdiff_t at = 0; at < total; ++at) {
            if ((at < first || at >= last) && begin[at] != pattern[at % 2]) {
                describe(
                    "block (%u, %u, %u) wrote byte %td of its %zu bytes of shared memory",
                    blockIdx.x, blockIdx.y, blockIdx.z, at - first, shared_bytes_);
                error_ = cudaErrorIllegalAddress;
                return;
            }
        }
    }

    __attribute__((format(printf, 1, 2))) static void describe(char const* format, ...) {
        std::va_list arguments;
        va_start(arguments, format);
        std::vsnprintf(failure, sizeof failure, format, arguments);
        va_end(arguments);
    }

    void run_block() {
        uint3 index{0, 0, 0};
        for (Thread& thread : threads_) {
            thread = {};
            thread.state = State::kReady;
            thread.index = index;
            if (++index.x < blockDim.x) continue;
            index.x = 0;
            if (++index.y < blockDim.y) continue;
            index.y = 0;
            ++index.z;
        }
        do {
            run_warps();
        } while (error_ == cudaSuccess && release_block());
    }

    /// Until no thread of the block can go on.
    void run_warps() {
        std::vector<unsigned> warps((threads_.size() + kWarp - 1) / kWarp);
        for (bool again = true; again;) {
            again = false;
            std::iota(warps.begin(), warps.end(), 0u);
            arrange(warps);
            for (unsigned const warp : warps) {
                while (run_lanes(warp)) {
                    if (error_ != cudaSuccess) return;
                    again = true;
                    // At random let another warp overtake.
                    if (order == Order::kRandom && random_() % 2 == 0) break;
                }
            }
        }
    }

    /// Each lane that can go on does so until its next barrier; false when none can.
    bool run_lanes(unsigned warp) {
        release_warp(warp);
        if (error_ != cudaSuccess) return true;
        std::vector<Thread*> lanes;
        for (unsigned lane = 0; lane < lanes_of(warp); ++lane) {
            Thread& thread = threads_[warp * kWarp + lane];
            if (thread.state == State::kReady) lanes.push_back(&thread);
        }
        arrange(lanes);
        for (Thread* const thread : lanes) {
            run_thread(*thread);
            if (error_ != cudaSuccess) break;
        }
        return !lanes.empty();
    }

    void run_thread(Thread& thread) {
        if (thread.fiber == nullptr) thread.fiber = take_fiber();
        running_ = &thread;
        threadIdx = thread.index;
        thread.fiber->resume();
        running_ = nullptr;
        if (thread.state == State::kReturned) idle_.push_back(thread.fiber);
    }

    Fiber* take_fiber() {
        if (idle_.empty()) {
            fibers_.push_back(
                std::make_unique<Fiber>(
                    [](void* self) { static_cast<Device*>(self)->serve(); }, this));
            return fibers_.back().get();
        }
        Fiber* const fiber = idle_.back();
        idle_.pop_back();
        return fiber;
    }

    /// Runs on a fiber: one thread of the kernel after another.
    void serve() {
        for (;;) {
            body_(closure_);
            pause(State::kReturned);
        }
    }

    unsigned lanes_of(unsigned warp) const {
        return static_cast<unsigned>(std::min<std::size_t>(kWarp, threads_.size() - warp * kWarp));
    }

    /// Wakes the lanes whose warp-wide function all lanes of the mask have reached.
    void release_warp(unsigned warp) {
        Thread* const lanes = &threads_[warp * kWarp];
        for (unsigned lane = 0; lane < lanes_of(warp); ++lane) {
            Thread const first = lanes[lane];
            if (first.state != State::kAtWarpFunction) continue;
            bool complete = true;
            for (unsigned other = 0; other < kWarp; ++other) {
                if ((first.mask >> other & 1u) == 0) continue;
                if (other >= lanes_of(warp) || lanes[other].state == State::kReturned) {
                    report_absent(first, other);
                    return;
                }
                complete = complete && lanes[other].state == State::kAtWarpFunction &&
                           lanes[other].mask == first.mask &&
                           lanes[other].function == first.function;
            }
            if (complete) exchange(lanes, first.function, first.mask);
        }
    }

    void report_absent(Thread const& thread, unsigned lane) {
        describe(
            "block (%u, %u, %u), thread (%u, %u, %u): its mask 0x%08x names lane %u, which has "
            "returned or does not exist",
            blockIdx.x, blockIdx.y, blockIdx.z, thread.index.x, thread.index.y, thread.index.z,
            thread.mask, lane);
        error_ = cudaErrorLaunchFailure;
    }

    static void exchange(Thread* lanes, detail::WarpFunction function, std::uint32_t mask) {
        std::uint64_t ballot = 0;
        for (unsigned lane = 0; lane < kWarp; ++lane) {
            if ((mask >> lane & 1u) != 0 && lanes[lane].value != 0) ballot |= 1ull << lane;
        }
        for (unsigned lane = 0; lane < kWarp; ++lane) {
            if ((mask >> lane & 1u) == 0) continue;
            Thread& thread = lanes[lane];
            thread.state = State::kReady;
            thread.result = ballot;
            if (function == detail::WarpFunction::kShuffle) {
                bool const known = (mask >> thread.source & 1u) != 0;
                thread.result = known ? lanes[thread.source].value : ~std::uint64_t{0};
            }
        }
    }

    /// Wakes all threads when those that have not returned stand at one barrier. False at the end
    /// of the block; a deadlock is an error.
    bool release_block() {
        Thread const* first = nullptr;
        bool together = true;
        std::uint64_t arrived = 0, count = 0;
        for (Thread const& thread : threads_) {
            if (thread.state == State::kReturned) continue;
            if (first == nullptr) first = &thread;
            if (thread.state != State::kAtBlockBarrier || first->state != thread.state ||
                thread.barrier != first->barrier) {
                together = false;
                break;
            }
            ++arrived;
            count += thread.value != 0 ? 1 : 0;
        }
        if (first == nullptr) return false;
        if (!together) {
            report_deadlock(*first);
            return false;
        }
        std::uint64_t const result = first->barrier == detail::Barrier::kCount ? count
                                     : first->barrier == detail::Barrier::kAnd ? count == arrived
                                                                               : count != 0;
        for (Thread& thread : threads_) {
            if (thread.state == State::kReturned) continue;
            thread.state = State::kReady;
            thread.result = result;
        }
        return true;
    }

    void report_deadlock(Thread const& first) {
        Thread const* other = &first;
        for (Thread const& thread : threads_) {
            bool const waits = thread.state != State::kReturned;
            if (waits && std::strcmp(place_of(thread), place_of(first)) != 0) other = &thread;
        }
        describe(
            "deadlock in block (%u, %u, %u): thread (%u, %u, %u) waits at %s, "
            "thread (%u, %u, %u) at %s",
            blockIdx.x, blockIdx.y, blockIdx.z, first.index.x, first.index.y, first.index.z,
            place_of(first), other->index.x, other->index.y, other->index.z, place_of(*other));
        error_ = cudaErrorLaunchFailure;
    }

    static char const* place_of(Thread const& thread) {
        constexpr char const* kBarriers[] = {
            "__syncthreads", "__syncthreads_count", "__syncthreads_and", "__syncthreads_or"};
        constexpr char const* kFunctions[] = {"__syncwarp", "a shuffle", "a ballot"};
        return thread.state == State::kAtBlockBarrier
                   ? kBarriers[static_cast<int>(thread.barrier)]
                   : kFunctions[static_cast<int>(thread.function)];
    }

    detail::Body body_ = nullptr;
    void const* closure_ = nullptr;
    std::size_t shared_bytes_ = 0;
    cudaError_t error_ = cudaSuccess;
    std::mt19937_64 random_;
    std::vector<Thread> threads_;
    Thread* running_ = nullptr;
    std::vector<Unit> shared_memory_;
    std::vector<std::unique_ptr<Fiber>> fibers_;
    std::vector<Fiber*> idle_;
};

namespace {

/// Kernels are plain functions, so what they run on is found without a handle.
Device& device() {
    static Device instance;
    return instance;
}

/// The limits of compute capability 7.5 and later.
bool launchable(dim3 grid, dim3 block) {
    bool const empty =
        grid.x == 0 || grid.y == 0 || grid.z == 0 || block.x == 0 || block.y == 0 || block.z == 0;
    if (empty || block.x > 1024 || block.y > 1024 || block.z > 64) return false;
    return block.x * block.y * block.z <= 1024 && grid.x <= 0x7fffffffu && grid.y <= 65535 &&
           grid.z <= 65535;
}

}  // namespace

void set_order(Order order, std::uint64_t seed) {
    std::lock_guard<std::mutex> const guard(device().mutex);
    device().order = order;
    device().seed = seed;
}

void set_observer(Observer* observer) {
    std::lock_guard<std::mutex> const guard(device().mutex);
    device().observer = observer;
}

namespace detail {

cudaError_t run(dim3 grid, dim3 block, std::size_t shared_bytes, Body body, void const* closure) {
    failure[0] = '\0';
    if (!launchable(grid, block)) {
        std::snprintf(
            failure, sizeof failure,
            "a grid of (%u, %u, %u) blocks of (%u, %u, %u) threads is beyond CUDA's limits", grid.x,
            grid.y, grid.z, block.x, block.y, block.z);
        return cudaErrorInvalidConfiguration;
    }
    if (shared_bytes > kSharedBytes) {
        std::snprintf(
            failure, sizeof failure, "%zu bytes of shared memory a block, expected at most %zu",
            shared_bytes, kSharedBytes);
        return cudaErrorInvalidValue;
    }
    std::lock_guard<std::mutex> const guard(device().mutex);
#if !defined(__SANITIZE_ADDRESS__)
    FaultHandler const handler([](int, siginfo_t* info, void*) {
        fail(
            cudaErrorIllegalAddress, "block (%u, %u, %u), thread (%u, %u, %u) touched address %p",
            blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z,
            info->si_addr);
    });
#endif
    return device().run(grid, block, shared_bytes, body, closure);
}

std::byte* shared() {
    return device().shared();
}

void fail(cudaError_t error, char const* format, ...) {
    std::va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(failure, sizeof failure, format, arguments);
    va_end(arguments);
    if (!device().inside_kernel()) {  // the host's part of a .cu file
        std::fprintf(stderr, "%s\n", failure);
        std::abort();
    }
    device().report(error);
    device().pause(State::kReturned);
    std::abort();
}

int wait_for_block(Barrier barrier, int predicate) {
    Thread& thread = device().running();
    thread.barrier = barrier;
    thread.value = static_cast<std::uint64_t>(predicate != 0);
    device().pause(State::kAtBlockBarrier);
    return static_cast<int>(thread.result);
}

std::uint64_t wait_for_warp(
    WarpFunction function, std::uint32_t mask, std::uint64_t value, unsigned source) {
    Thread& thread = device().running();
    if ((mask >> lane() & 1u) == 0) {
        fail(
            cudaErrorLaunchFailure, "thread (%u, %u, %u) is not in its own mask 0x%08x",
            threadIdx.x, threadIdx.y, threadIdx.z, mask);
    }
    thread.function = function;
    thread.mask = mask;
    thread.value = value;
    thread.source = source;
    device().pause(State::kAtWarpFunction);
    return thread.result;
}

}  // namespace detail

}  // namespace carafe::emulator

char const* cudaGetErrorString(cudaError_t error) {
    if (error != cudaSuccess && carafe::emulator::failure[0] != '\0') {
        return carafe::emulator::failure;
    }
    switch (error) {
        case cudaSuccess:
            return "no error";
        case cudaErrorInvalidValue:
            return "invalid argument";
        case cudaErrorInvalidConfiguration:
            return "invalid configuration argument";
        case cudaErrorIllegalAddress:
            return "an illegal memory access was encountered";
        case cudaErrorMisalignedAddress:
            return "misaligned address";
        case cudaErrorLaunchFailure:
            return "unspecified launch failure";
    }
    return "unrecognized error code";
}

extern "C" __attribute__((visibility("default"))) void carafe_emulator_set_order(
    std::int32_t order, std::uint64_t seed) {
    carafe::emulator::set_order(static_cast<carafe::emulator::Order>(order), seed);
}
