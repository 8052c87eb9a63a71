// The emulator's own behaviour: what it computes, and that it catches what it is there to catch.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "launch.cuh"
#include "numeric.cuh"

namespace carafe {
namespace {

using emulator::Order;

constexpr std::uint32_t kAllLanes = 0xffffffffu;
constexpr Order kOrders[] = {Order::kForward, Order::kBackward, Order::kRandom};

class Emulator : public ::testing::Test {
  protected:
    void TearDown() override { emulator::set_order(Order::kForward, 0); }
};

/// The error's text holds `part`.
void expect_failure(cudaError_t error, cudaError_t expected, std::string const& part) {
    EXPECT_EQ(error, expected);
    std::string const text = cudaGetErrorString(error);
    EXPECT_NE(text.find(part), std::string::npos) << text;
}

// --- places and orders ---------------------------------------------------------------------------

__global__ void write_place(unsigned* out) {
    unsigned const block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    unsigned const thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    unsigned const at = block * blockDim.x * blockDim.y * blockDim.z + thread;
    out[at] += at + 1;
}

TEST_F(Emulator, RunsEveryThreadOfEveryBlockOnce) {
    for (Order const order : kOrders) {
        emulator::set_order(order, 7);
        std::vector<unsigned> out(3 * 2 * 2 * 5 * 3 * 2, 0);
        ASSERT_EQ(
            launch(write_place, dim3(3, 2, 2), dim3(5, 3, 2), 0, nullptr, out.data()), cudaSuccess);
        std::vector<unsigned> expected(out.size());
        std::iota(expected.begin(), expected.end(), 1u);
        EXPECT_EQ(out, expected);
    }
}

__global__ void write_turn(int* next, int* turns) {
    turns[blockIdx.x * blockDim.x + threadIdx.x] = (*next)++;
}

std::vector<int> turns(Order order, std::uint64_t seed) {
    emulator::set_order(order, seed);
    int next = 0;
    std::vector<int> out(4 * 64);
    EXPECT_EQ(launch(write_turn, dim3(4), dim3(64), 0, nullptr, &next, out.data()), cudaSuccess);
    return out;
}

TEST_F(Emulator, OrdersAreForwardBackwardAndSeeded) {
    std::vector<int> forward(4 * 64);
    std::iota(forward.begin(), forward.end(), 0);
    EXPECT_EQ(turns(Order::kForward, 0), forward);
    EXPECT_EQ(turns(Order::kBackward, 0), std::vector<int>(forward.rbegin(), forward.rend()));
    std::vector<int> const random = turns(Order::kRandom, 5);
    EXPECT_EQ(turns(Order::kRandom, 5), random);
    EXPECT_NE(turns(Order::kRandom, 6), random);
    EXPECT_NE(random, forward);
}

// --- barriers ------------------------------------------------------------------------------------

template <bool kBarrier>
__global__ void reverse(float const* in, float* out) {
    auto* const shared = shared_memory<float>();
    shared[threadIdx.x] = in[threadIdx.x];
    if (kBarrier) __syncthreads();
    out[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}

template <bool kBarrier>
std::vector<float> reversed(Order order) {
    emulator::set_order(order, 3);
    std::vector<float> in(96), out(96);
    std::iota(in.begin(), in.end(), 0.0f);
    EXPECT_EQ(
        launch(
            reverse<kBarrier>, dim3(1), dim3(96), 96 * sizeof(float), nullptr, in.data(),
            out.data()),
        cudaSuccess);
    return out;
}

TEST_F(Emulator, BarrierMakesWritesVisible) {
    std::vector<float> expected(96);
    std::iota(expected.rbegin(), expected.rend(), 0.0f);
    for (Order const order : kOrders) EXPECT_EQ(reversed<true>(order), expected);
}

TEST_F(Emulator, MissingBarrierShowsInEveryOrder) {
    for (Order const order : kOrders) {
        std::vector<float> const out = reversed<false>(order);
        float const sum = std::accumulate(out.begin(), out.end(), 0.0f);
        EXPECT_TRUE(std::isnan(sum));
    }
}

/// Rotates by one place `rounds` times; without the second barrier a round overtakes another.
template <bool kSecondBarrier>
__global__ void rotate(int* data, int rounds) {
    auto* const shared = shared_memory<int>();
    for (int round = 0; round < rounds; ++round) {
        shared[threadIdx.x] = data[threadIdx.x];
        __syncthreads();
        data[threadIdx.x] = shared[(threadIdx.x + 1) % blockDim.x];
        if (kSecondBarrier) __syncthreads();
    }
}

template <bool kSecondBarrier>
int first_after_rotations(Order order) {
    emulator::set_order(order, 1);
    std::vector<int> data(40);
    std::iota(data.begin(), data.end(), 0);
    EXPECT_EQ(
        launch(
            rotate<kSecondBarrier>, dim3(1), dim3(40), 40 * sizeof(int), nullptr, data.data(), 3),
        cudaSuccess);
    bool right = true;
    for (int i = 0; i < 40; ++i) right = right && data[i] == (i + 3) % 40;
    return right;
}

TEST_F(Emulator, OverwritingTooEarlyShowsInSomeOrder) {
    int right = 0;
    for (Order const order : kOrders) {
        EXPECT_TRUE(first_after_rotations<true>(order));
        right += first_after_rotations<false>(order);
    }
    EXPECT_LT(right, 3);
}

__global__ void reduce_at_barrier(int* out) {
    if (threadIdx.x >= 50) return;  // threads that return count as arrived
    int const count = __syncthreads_count(threadIdx.x % 5 == 0);
    int const some = __syncthreads_or(threadIdx.x == 49);
    int const none = __syncthreads_or(threadIdx.x == 50);
    int const all = __syncthreads_and(threadIdx.x < 50);
    int const most = __syncthreads_and(threadIdx.x < 49);
    if (threadIdx.x == 0) {
        int const found[] = {count, some != 0, none != 0, all != 0, most != 0};
        for (int i = 0; i < 5; ++i) out[i] = found[i];
    }
}

TEST_F(Emulator, BarriersReduce) {
    for (Order const order : kOrders) {
        emulator::set_order(order, 2);
        std::vector<int> out(5, -1);
        ASSERT_EQ(
            launch(reduce_at_barrier, dim3(1), dim3(64), 0, nullptr, out.data()), cudaSuccess);
        EXPECT_EQ(out, (std::vector<int>{10, 1, 0, 1, 0}));
    }
}

__global__ void wait_at_two_barriers() {
    if (threadIdx.x < 32) {
        __syncthreads();
    } else {
        __syncthreads_or(1);
    }
}

__global__ void wait_for_other_half() {
    if (threadIdx.x < 16) {
        __syncwarp(kAllLanes);
    } else {
        __syncthreads();
    }
}

TEST_F(Emulator, DeadlocksAreErrors) {
    for (Order const order : kOrders) {
        emulator::set_order(order, 2);
        expect_failure(
            launch(wait_at_two_barriers, dim3(1), dim3(64), 0, nullptr), cudaErrorLaunchFailure,
            "thread (0, 0, 0) waits at __syncthreads, thread (63, 0, 0) at __syncthreads_or");
        expect_failure(
            launch(wait_for_other_half, dim3(2), dim3(32), 0, nullptr), cudaErrorLaunchFailure,
            "deadlock in block");
    }
    EXPECT_EQ(reversed<true>(Order::kForward)[0], 95.0f) << "a launch after a failure runs";
}

// --- warps ---------------------------------------------------------------------------------------

struct Shuffled {
    int from_three, up, down, across, segment_up, segment_down, segment_from_one;
    unsigned even, any, all;
};

__global__ void shuffle(Shuffled* out) {
    int const lane = static_cast<int>(threadIdx.x % 32);
    int const value = 100 * static_cast<int>(threadIdx.x / 32) + lane;
    Shuffled& mine = out[threadIdx.x];
    mine.from_three = __shfl_sync(kAllLanes, value, 3);
    mine.up = __shfl_up_sync(kAllLanes, value, 2);
    mine.down = __shfl_down_sync(kAllLanes, value, 2);
    mine.across = __shfl_xor_sync(kAllLanes, value, 16);
    mine.segment_up = __shfl_up_sync(kAllLanes, value, 3, 8);
    mine.segment_down = __shfl_down_sync(kAllLanes, value, 3, 8);
    mine.segment_from_one = __shfl_sync(kAllLanes, value, 9, 8);
    mine.even = __ballot_sync(kAllLanes, lane % 2 == 0);
    mine.any = __any_sync(kAllLanes, value == 107) != 0;
    mine.all = __all_sync(kAllLanes, value < 100) != 0;
}

TEST_F(Emulator, WarpFunctions) {
    for (Order const order : kOrders) {
        emulator::set_order(order, 9);
        std::vector<Shuffled> out(64);
        ASSERT_EQ(launch(shuffle, dim3(1), dim3(64), 0, nullptr, out.data()), cudaSuccess);
        for (int thread = 0; thread < 64; ++thread) {
            int const lane = thread % 32, base = thread / 32 * 100;
            Shuffled const& found = out[static_cast<std::size_t>(thread)];
            EXPECT_EQ(found.from_three, base + 3);
            EXPECT_EQ(found.up, base + (lane >= 2 ? lane - 2 : lane));
            EXPECT_EQ(found.down, base + (lane < 30 ? lane + 2 : lane));
            EXPECT_EQ(found.across, base + (lane + 16) % 32);
            EXPECT_EQ(found.segment_up, base + (lane % 8 >= 3 ? lane - 3 : lane));
            EXPECT_EQ(found.segment_down, base + (lane % 8 < 5 ? lane + 3 : lane));
            EXPECT_EQ(found.segment_from_one, base + lane / 8 * 8 + 1);
            EXPECT_EQ(found.even, 0x55555555u);
            EXPECT_EQ(found.any, thread >= 32 ? 1u : 0u);
            EXPECT_EQ(found.all, thread < 32 ? 1u : 0u);
        }
    }
}

__global__ void sum_of_half_warps(float* out) {
    unsigned const mask = threadIdx.x < 16 ? 0x0000ffffu : 0xffff0000u;
    auto sum = static_cast<float>(threadIdx.x);
    // The halves take different numbers of steps and meet nowhere.
    for (int step = threadIdx.x < 16 ? 8 : 4; step > 0; step /= 2) {
        sum += __shfl_xor_sync(mask, sum, step);
    }
    out[threadIdx.x] = sum;
}

TEST_F(Emulator, PartsOfAWarpGoTheirOwnWays) {
    std::vector<float> out(32);
    ASSERT_EQ(launch(sum_of_half_warps, dim3(1), dim3(32), 0, nullptr, out.data()), cudaSuccess);
    EXPECT_EQ(out[0], 120.0f);   // 0 to 15
    EXPECT_EQ(out[16], 156.0f);  // 16 to 23
    EXPECT_EQ(out[31], 220.0f);  // 24 to 31
}

__global__ void shuffle_from_outside_the_mask(float* out) {
    if (threadIdx.x >= 16) return;
    out[threadIdx.x] = __shfl_sync(0xffffu, 1.0f, static_cast<int>(threadIdx.x) + 8);
}

TEST_F(Emulator, LanesOutsideTheMaskGiveNaN) {
    std::vector<float> out(16);
    ASSERT_EQ(
        launch(shuffle_from_outside_the_mask, dim3(1), dim3(32), 0, nullptr, out.data()),
        cudaSuccess);
    EXPECT_EQ(out[7], 1.0f);
    EXPECT_TRUE(std::isnan(out[8]));
}

__global__ void name_a_returned_lane() {
    if (threadIdx.x == 5) return;
    __syncwarp(kAllLanes);
}

__global__ void leave_itself_out() {
    __syncwarp(0xfffffffeu);
}

TEST_F(Emulator, WrongMasksAreErrors) {
    for (Order const order : kOrders) {
        emulator::set_order(order, 4);
        expect_failure(
            launch(name_a_returned_lane, dim3(1), dim3(32), 0, nullptr), cudaErrorLaunchFailure,
            "names lane 5, which has returned");
        expect_failure(
            launch(leave_itself_out, dim3(1), dim3(32), 0, nullptr), cudaErrorLaunchFailure,
            "thread (0, 0, 0) is not in its own mask 0xfffffffe");
    }
    expect_failure(
        launch(name_a_returned_lane, dim3(1), dim3(4), 0, nullptr), cudaErrorLaunchFailure,
        "names lane 4, which has returned or does not exist");
}

// --- memory --------------------------------------------------------------------------------------

__global__ void store_shared(int at, int bytes, bool* clean) {
    auto* const shared = shared_memory<unsigned char>();
    for (int i = 0; i < bytes; ++i) *clean = *clean && shared[i] == 0xff;
    shared[at] = 1;
}

TEST_F(Emulator, SharedMemoryIsPoisonedAndGuarded) {
    bool clean = true;
    auto const store = [&clean](int at) {
        return launch(store_shared, dim3(3), dim3(1), 100, nullptr, at, 100, &clean);
    };
    EXPECT_EQ(store(0), cudaSuccess);
    EXPECT_EQ(store(99), cudaSuccess);
    expect_failure(store(100), cudaErrorIllegalAddress, "wrote byte 100 of its 100 bytes");
    expect_failure(store(-1), cudaErrorIllegalAddress, "wrote byte -1 of its 100 bytes");
    EXPECT_TRUE(clean) << "every block starts with poison";
}

TEST_F(Emulator, LimitsOfALaunch) {
    int next = 0;
    std::vector<int> out(2048);
    auto const start = [&](dim3 grid, dim3 block, std::size_t shared_bytes) {
        return launch(write_turn, grid, block, shared_bytes, nullptr, &next, out.data());
    };
    EXPECT_EQ(start(dim3(1), dim3(1024), 48 * 1024), cudaSuccess);
    expect_failure(start(dim3(1), dim3(1025), 0), cudaErrorInvalidConfiguration, "beyond CUDA's");
    EXPECT_EQ(start(dim3(1), dim3(32, 33), 0), cudaErrorInvalidConfiguration);
    EXPECT_EQ(start(dim3(0), dim3(1), 0), cudaErrorInvalidConfiguration);
    EXPECT_EQ(start(dim3(1), dim3(1, 0), 0), cudaErrorInvalidConfiguration);
    EXPECT_EQ(start(dim3(1, 65536), dim3(1), 0), cudaErrorInvalidConfiguration);
    EXPECT_EQ(start(dim3(1, 1, 65536), dim3(1), 0), cudaErrorInvalidConfiguration);
    expect_failure(
        start(dim3(1), dim3(1), 48 * 1024 + 1), cudaErrorInvalidValue, "expected at most 49152");
    EXPECT_STREQ(cudaGetErrorString(cudaSuccess), "no error");
}

TEST_F(Emulator, ErrorsWithoutALaunchHaveCudasText) {
    ASSERT_EQ(
        launch(leave_itself_out, dim3(1), dim3(0), 0, nullptr), cudaErrorInvalidConfiguration);
    int next = 0, turn = 0;
    ASSERT_EQ(launch(write_turn, dim3(1), dim3(1), 0, nullptr, &next, &turn), cudaSuccess);
    EXPECT_STREQ(cudaGetErrorString(cudaErrorInvalidValue), "invalid argument");
}

#if !defined( \
    __SANITIZE_ADDRESS__)  // else the sanitizers' own runtime reports, and ends the program

__global__ void load_four(float const* in, float* out) {
    auto const pack = *reinterpret_cast<Pack<float, 4> const*>(in);
    out[threadIdx.x] = pack.values[0] + pack.values[3];
}

TEST_F(Emulator, MisalignedAccessIsAnError) {
    alignas(16) float in[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    float out = 0;
    EXPECT_EQ(launch(load_four, dim3(1), dim3(1), 0, nullptr, in + 4, &out), cudaSuccess);
    EXPECT_EQ(out, 13.0f);
    expect_failure(
        launch(load_four, dim3(1), dim3(1), 0, nullptr, in + 1, &out), cudaErrorMisalignedAddress,
        "test_emulator.cpp:");
}

__global__ void load_one(float const* in, float* out) {
    *out = *in;
}

TEST_F(Emulator, TouchingAnUnmappedPageIsAnError) {
    float const in = 3.0f;
    float out = 0.0f;
    auto const* const unmapped = reinterpret_cast<float const*>(std::uintptr_t{64});
    for (int attempt = 0; attempt < 2; ++attempt) {
        expect_failure(
            launch(load_one, dim3(1), dim3(2), 0, nullptr, unmapped, &out), cudaErrorIllegalAddress,
            "thread (0, 0, 0) touched address 0x40");
    }
    EXPECT_EQ(launch(load_one, dim3(1), dim3(1), 0, nullptr, &in, &out), cudaSuccess);
    EXPECT_EQ(out, 3.0f);
}

__global__ void index_array(int at, int* out) {
    int const values[3] = {1, 2, 3};
    *out = values[at] / (at - 1);
}

TEST_F(Emulator, UndefinedArithmeticIsAnError) {
    int out = 0;
    EXPECT_EQ(launch(index_array, dim3(1), dim3(1), 0, nullptr, 2, &out), cudaSuccess);
    expect_failure(
        launch(index_array, dim3(1), dim3(1), 0, nullptr, 3, &out), cudaErrorIllegalAddress,
        "index beyond an array");
    expect_failure(
        launch(index_array, dim3(1), dim3(1), 0, nullptr, 1, &out), cudaErrorLaunchFailure,
        "integer division by zero");
}

#endif

// --- functions of the language -------------------------------------------------------------------

__global__ void call_functions(double* out) {
    int i = 0;
    out[i++] = __popc(0xf0f0u);
    out[i++] = __popcll(0xf000000000000001ull);
    out[i++] = __clz(1);
    out[i++] = __clz(0);
    out[i++] = __clzll(1);
    out[i++] = __ffs(8);
    out[i++] = __ffsll(1ll << 40);
    out[i++] = __ffs(0);
    out[i++] = min(3, -2);
    out[i++] = max(3.0f, NAN);
    out[i++] = rsqrtf(4.0f);
    out[i++] = __uint_as_float(0x40490fdbu);
    out[i++] = __float_as_int(-0.0f);
    int counter = 5;
    out[i++] = atomicAdd(&counter, 2);
    out[i++] = atomicMax(&counter, 3);
    out[i++] = atomicCAS(&counter, 7, 1);
    out[i++] = atomicExch(&counter, 4);
    out[i++] = counter;
    out[i++] = to_float(from_float<__half>(1.0f + 0x1p-11f));
    out[i++] = to_float(from_float<__nv_bfloat16>(1.0f + 3 * 0x1p-8f));
}

TEST_F(Emulator, FunctionsOfTheLanguage) {
    std::vector<double> const expected{
        8, 5, 31, 32, 63, 4,   41,      0, -2, 3, 0.5, 3.14159274101257324, -2147483648.0,
        5, 7, 7,  1,  4,  1.0, 1.015625};
    std::vector<double> out(expected.size());
    ASSERT_EQ(launch(call_functions, dim3(1), dim3(1), 0, nullptr, out.data()), cudaSuccess);
    EXPECT_EQ(out, expected);
}

}  // namespace
}  // namespace carafe
