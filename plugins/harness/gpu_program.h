// What the programs that need a GPU share: memory on the device, and a main().
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

namespace carafe::program {

constexpr int kWarmUps = 3;
constexpr int kRepetitions = 20;
constexpr int kNoGpu = 77;

/// In messages; main() sets it.
inline char const* name = "";

inline void check(cudaError_t error, char const* what) {
    if (error == cudaSuccess) return;
    std::fprintf(stderr, "%s: %s: %s\n", name, what, cudaGetErrorString(error));
    std::exit(1);
}

class DeviceMemory {
  public:
    explicit DeviceMemory(std::size_t bytes) : bytes_(bytes) {
        check(cudaMalloc(&data_, std::max<std::size_t>(bytes, 1)), "cudaMalloc");
    }
    explicit DeviceMemory(std::vector<std::byte> const& host) : DeviceMemory(host.size()) {
        check(cudaMemcpy(data_, host.data(), bytes_, cudaMemcpyHostToDevice), "cudaMemcpy");
    }
    DeviceMemory(DeviceMemory const&) = delete;
    DeviceMemory& operator=(DeviceMemory const&) = delete;
    ~DeviceMemory() { cudaFree(data_); }

    void* get() const { return data_; }
    std::size_t bytes() const { return bytes_; }

  private:
    void* data_ = nullptr;
    std::size_t bytes_;
};

/// Arguments of a program.
struct Options {
    char const* library = nullptr;  ///< null: there is no --library
    char const* output = nullptr;   ///< null: standard output
    bool small = false;
};

/// False for wrong usage.
inline bool parse(int count, char** arguments, Options& options) {
    for (int i = 1; i < count; ++i) {
        std::string const argument = arguments[i];
        if (argument == "--small") {
            options.small = true;
        } else if (argument == "--output" && i + 1 < count) {
            options.output = arguments[++i];
        } else if (argument == "--library" && options.library != nullptr && i + 1 < count) {
            options.library = arguments[++i];
        } else {
            return false;
        }
    }
    return true;
}

/// Exit status of `run(file, small)` on the output: 0 when all results agree, 1 otherwise, 77
/// without a GPU.
template <typename Run>
int run_on_gpu(Options const& options, Run run) {
    int devices = 0;
    cudaError_t const error = cudaGetDeviceCount(&devices);
    if (error != cudaSuccess || devices == 0) {
        std::fprintf(
            stderr, "%s: no GPU to run on: %s\n", name,
            error == cudaSuccess ? "there is no device" : cudaGetErrorString(error));
        return kNoGpu;
    }
    std::FILE* const file = options.output == nullptr ? stdout : std::fopen(options.output, "w");
    if (file == nullptr) {
        std::fprintf(stderr, "%s: cannot write %s\n", name, options.output);
        return 1;
    }
    bool const agree = run(file, options.small);
    if (options.output != nullptr) std::fclose(file);
    std::fprintf(
        stderr, "%s: %s\n", name,
        agree ? "all results agree with the CPU" : "some results differ from the CPU");
    return agree ? 0 : 1;
}

}  // namespace carafe::program
