// Counts what emulated kernels read and write, for kernels compiled with -fsanitize=thread: the
// compiler then calls a function before every access, and traffic.cpp holds those functions.
//
// The k-th execution of an instruction by the lanes of a warp counts as one request. Where lanes
// have skipped it a different number of times, requests mix two executions: an estimate at borders.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "emulator.h"

namespace carafe::emulator {

/// Of one array, or of shared memory, in one direction.
struct Flow {
    std::uint64_t accesses[5] = {};  ///< of threads, by width: 1, 2, 4, 8 and 16 bytes
    std::uint64_t bytes = 0;         ///< that threads asked for
    std::uint64_t requests = 0;      ///< of warps
    /// Cycles of the L1 or shared memory: lines of 128 bytes in a request, or, in shared memory,
    /// most words that it wants of one bank. Several lanes with one word count once.
    std::uint64_t wavefronts = 0;
    std::uint64_t block_sectors = 0;  ///< of 32 bytes, once a block: what L2 serves to a perfect L1
    std::uint64_t sectors = 0;        ///< once in all: what memory serves to a perfect L2
};

struct Traffic {
    std::string name;
    Flow loads, stores;
};

struct LaunchShape {
    dim3 grid, block;
    std::size_t shared_bytes;
};

/// Counts while it lives; one at a time.
class TrafficRecorder final : public Observer {
  public:
    TrafficRecorder();
    ~TrafficRecorder() override;
    TrafficRecorder(TrafficRecorder const&) = delete;
    TrafficRecorder& operator=(TrafficRecorder const&) = delete;

    /// Accesses elsewhere, such as to a thread's own variables, do not count.
    void add_array(std::string const& name, void const* begin, std::size_t bytes);

    /// The arrays in order, then "shared".
    std::vector<Traffic> traffic() const;
    std::vector<LaunchShape> const& launches() const { return launches_; }

    void begin_launch(dim3 grid, dim3 block, std::size_t shared_bytes) override;
    void begin_block() override;
    void end_block() override;

    /// One access of the running thread; `place` identifies the instruction.
    void record(std::uintptr_t place, std::uintptr_t address, std::size_t bytes, bool is_store);

    /// The running thread calls a function, and returns from it.
    void enter(std::uintptr_t caller);
    void leave();

  private:
    struct Array {
        Traffic traffic;
        std::uintptr_t begin, end;
        std::vector<std::uint32_t> seen[2];  ///< by sector: the last block that touched it; 0: none
    };

    struct Request {
        std::uint32_t lanes = 0;
        std::uint8_t bytes = 0;
        bool is_store = false;
        std::int32_t array = 0;  ///< -1: shared memory
        std::array<std::uintptr_t, 32> addresses;
    };

    void count(Request const& request);
    static std::uint64_t lines(Request const& request);
    static std::uint64_t bank_words(Request const& request);
    std::int32_t array_of(std::uintptr_t address) const;

    std::vector<Array> arrays_;
    Traffic shared_{"shared", {}, {}};
    std::vector<LaunchShape> launches_;
    std::uintptr_t shared_begin_ = 0, shared_end_ = 0;
    bool inside_ = false;
    std::uint32_t block_ = 0;  ///< over all launches
    std::unordered_map<std::uintptr_t, std::size_t> places_;
    std::vector<std::vector<std::uintptr_t>>
        calls_;  ///< [thread]: hashes of callers, innermost last
    std::vector<std::vector<std::uint32_t>> executions_;       ///< [thread][place]
    std::vector<std::vector<std::vector<Request>>> requests_;  ///< [warp][place][execution]
};

}  // namespace carafe::emulator
