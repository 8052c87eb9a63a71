// Measures every design of CARAFE's kernels that fits a detector's calls, next to a plain copy.
//
//   carafe_designs [--output FILE.json] [--small]
//
// Cold: a buffer of twice the L2 is written before each call. Warm: the call follows itself; small
// maps then come from the L2. Bytes are those that must move: features, masks and result once.
// Exit status: 0 when all results agree with the CPU, 1 otherwise, 2 for wrong usage, 77 without a
// GPU.
#include <cmath>
#include <cstring>
#include <functional>
#include <random>
#include <vector>

#include "carafe_designs.h"
#include "gpu_program.h"
#include "half.h"

namespace {

using carafe::BFloat16;
using carafe::CarafeDesign;
using carafe::CarafeParams;
using carafe::DType;
using carafe::Half;
using carafe::Layout;
using carafe::program::check;
using carafe::program::DeviceMemory;
using carafe::program::kRepetitions;
using carafe::program::kWarmUps;

constexpr std::size_t kCopyBytes = std::size_t{256} << 20;

/// One stream, two events, and a buffer that fills the L2.
class Clock {
  public:
    explicit Clock(std::size_t l2_bytes) : flushed_(2 * l2_bytes) {
        check(cudaStreamCreate(&stream_), "cudaStreamCreate");
        check(cudaEventCreate(&begin_), "cudaEventCreate");
        check(cudaEventCreate(&end_), "cudaEventCreate");
    }
    Clock(Clock const&) = delete;
    Clock& operator=(Clock const&) = delete;
    ~Clock() {
        cudaEventDestroy(begin_);
        cudaEventDestroy(end_);
        cudaStreamDestroy(stream_);
    }

    cudaStream_t stream() const { return stream_; }

    /// Microseconds of each repetition, ascending.
    std::vector<float> measure(std::function<void()> const& enqueue, bool cold) const {
        for (int i = 0; i < kWarmUps; ++i) enqueue();
        std::vector<float> times;
        for (int i = 0; i < kRepetitions; ++i) {
            if (cold) {
                check(
                    cudaMemsetAsync(flushed_.get(), i, flushed_.bytes(), stream_),
                    "cudaMemsetAsync");
            }
            times.push_back(time(enqueue));
        }
        std::sort(times.begin(), times.end());
        return times;
    }

    /// Microseconds a call of many that follow one another, without the events' own cost.
    float measure_batch(std::function<void()> const& enqueue) const {
        return time([&] {
                   for (int i = 0; i < kRepetitions; ++i) enqueue();
               }) /
               kRepetitions;
    }

  private:
    float time(std::function<void()> const& enqueue) const {
        check(cudaEventRecord(begin_, stream_), "cudaEventRecord");
        enqueue();
        check(cudaEventRecord(end_, stream_), "cudaEventRecord");
        check(cudaEventSynchronize(end_), "cudaEventSynchronize");
        float milliseconds = 0;
        check(cudaEventElapsedTime(&milliseconds, begin_, end_), "cudaEventElapsedTime");
        return 1000 * milliseconds;
    }

    DeviceMemory flushed_;
    cudaStream_t stream_ = nullptr;
    cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

/// Values in [0, 1).
std::vector<std::byte> random_map(DType dtype, std::size_t count, unsigned seed) {
    std::mt19937 random(seed);
    std::uniform_real_distribution<float> uniform(0.0f, 1.0f);
    std::vector<std::byte> bytes(count * size_of(dtype));
    for (std::size_t i = 0; i < count; ++i) {
        auto const put = [&](auto value) {
            std::memcpy(&bytes[i * sizeof value], &value, sizeof value);
        };
        float const value = uniform(random);
        if (dtype == DType::kFloat16) {
            put(carafe::from_float<Half>(value));
        } else if (dtype == DType::kBFloat16) {
            put(carafe::from_float<BFloat16>(value));
        } else {
            put(value);
        }
    }
    return bytes;
}

float value_at(std::vector<std::byte> const& bytes, DType dtype, std::size_t index) {
    auto const get = [&](auto value) {
        std::memcpy(&value, &bytes[index * sizeof value], sizeof value);
        return carafe::to_float(value);
    };
    if (dtype == DType::kFloat16) return get(Half{});
    if (dtype == DType::kBFloat16) return get(BFloat16{});
    return get(0.0f);
}

/// Largest |difference| / (1 + |expected|); NaN counts as infinite.
float difference(
    std::vector<std::byte> const& found, std::vector<std::byte> const& expected, DType dtype) {
    float worst = 0;
    for (std::size_t i = 0; i < expected.size() / size_of(dtype); ++i) {
        float const right = value_at(expected, dtype, i);
        float const off = std::abs(value_at(found, dtype, i) - right) / (1 + std::abs(right));
        worst = std::isnan(off) ? 1e30f : std::max(worst, off);
    }
    return worst;
}

/// Relative, of one rounding of a sum.
float tolerance(DType dtype) {
    return dtype == DType::kFloat32 ? 1e-5f : dtype == DType::kFloat16 ? 2e-3f : 1.6e-2f;
}

struct Shape {
    int batch, channels, height, width;
};

/// All designs of one call; false when a result is wrong.
bool run_call(
    std::FILE* file, bool& first, Clock const& clock, double copy_rate, DType dtype, Layout layout,
    Shape const& shape) {
    CarafeParams p{};
    p.dtype = dtype, p.layout = layout, p.source = carafe::MaskSource::kEncoded;
    p.batch = shape.batch, p.channels = shape.channels;
    p.height = shape.height, p.width = shape.width;
    p.kernel_size = 5, p.groups = 1, p.scale = 2;
    // As TensorRT lays out HWC8.
    int const pack = layout == Layout::kNHWC && dtype != DType::kFloat32 ? 8 : 1;
    p.feature_pitch = p.out_pitch = (p.channels + pack - 1) / pack * pack;
    p.mask_pitch = (100 + pack - 1) / pack * pack;
    std::size_t const pixels = static_cast<std::size_t>(p.batch) * p.height * p.width;
    std::vector<std::byte> const features = random_map(dtype, pixels * p.feature_pitch, 1);
    std::vector<std::byte> const masks = random_map(dtype, pixels * p.mask_pitch, 2);
    std::vector<std::byte> expected(4 * pixels * p.out_pitch * size_of(dtype)), found(expected);
    carafe_cpu(p, features.data(), masks.data(), expected.data(), 0);
    DeviceMemory const device_features(features), device_masks(masks), out(expected.size());
    double const bytes =
        static_cast<double>(features.size() + masks.size()) + static_cast<double>(expected.size());
    CarafeDesign const chosen =
        carafe_design(p, device_features.get(), device_masks.get(), out.get());
    bool agree = true;
    for (std::int32_t i = 0; i < carafe::kCarafeDesigns; ++i) {
        auto const design = static_cast<CarafeDesign>(i);
        if (!carafe_design_fits(design, p, device_features.get(), device_masks.get(), out.get())) {
            continue;
        }
        auto const enqueue = [&] {
            check(
                launch_carafe_as(
                    design, p, device_features.get(), device_masks.get(), out.get(),
                    clock.stream()),
                name_of(design));
        };
        check(cudaMemset(out.get(), 0xff, out.bytes()), "cudaMemset");
        enqueue();
        check(cudaStreamSynchronize(clock.stream()), name_of(design));
        check(
            cudaMemcpy(found.data(), out.get(), out.bytes(), cudaMemcpyDeviceToHost), "cudaMemcpy");
        float const off = difference(found, expected, dtype);
        bool const agrees = off <= tolerance(dtype);
        agree &= agrees;
        std::vector<float> const cold = clock.measure(enqueue, true);
        std::vector<float> const warm = clock.measure(enqueue, false);
        float const batch = clock.measure_batch(enqueue);
        auto const cold_median = static_cast<double>(cold[cold.size() / 2]);
        double const rate = bytes / std::max(cold_median, 1e-3) / 1e3;
        std::fprintf(
            file,
            "%s\n  {\"design\": \"%s\", \"chosen\": %s, \"dtype\": \"%s\", \"layout\": \"%s\", "
            "\"shape\": \"%dx%dx%dx%d\", \"agrees\": %s, \"difference\": %g, \"bytes\": %.0f, "
            "\"cold_median_us\": %.2f, \"cold_fastest_us\": %.2f, \"warm_median_us\": %.2f, "
            "\"warm_fastest_us\": %.2f, \"batch_us\": %.2f, \"cold_gb_per_s\": %.1f, "
            "\"share_of_copy\": %.3f}",
            first ? "" : ",", name_of(design), design == chosen ? "true" : "false", name_of(dtype),
            layout == Layout::kNHWC ? "NHWC" : "NCHW", p.batch, p.channels, p.height, p.width,
            agrees ? "true" : "false", static_cast<double>(off), bytes, cold_median,
            static_cast<double>(cold[0]), static_cast<double>(warm[warm.size() / 2]),
            static_cast<double>(warm[0]), static_cast<double>(batch), rate, rate / copy_rate);
        first = false;
    }
    return agree;
}

/// GB/s of a copy on the device: bytes read and written over time.
double measure_copy(Clock const& clock, std::size_t bytes) {
    DeviceMemory const from(bytes), to(bytes);
    std::vector<float> const times = clock.measure(
        [&] {
            check(
                cudaMemcpyAsync(
                    to.get(), from.get(), bytes, cudaMemcpyDeviceToDevice, clock.stream()),
                "cudaMemcpyAsync");
        },
        true);
    double const median = std::max(static_cast<double>(times[times.size() / 2]), 1e-3);
    return 2 * static_cast<double>(bytes) / median / 1e3;
}

bool run_all(std::FILE* file, bool small) {
    int l2_bytes = 0;
    check(cudaDeviceGetAttribute(&l2_bytes, cudaDevAttrL2CacheSize, 0), "cudaDeviceGetAttribute");
    Clock const clock(static_cast<std::size_t>(std::max(l2_bytes, 1)));
    double const copy_rate = measure_copy(clock, small ? 1 << 16 : kCopyBytes);
    std::fprintf(
        file, "{\"l2_bytes\": %d, \"copy_gb_per_s\": %.1f, \"calls\": [", l2_bytes, copy_rate);
    // A neck's upsamplings of an 832x1344 image, and the masks of 100 RoIs.
    std::vector<Shape> const shapes = small ? std::vector<Shape>{{1, 20, 5, 7}, {2, 1, 14, 14}}
                                            : std::vector<Shape>{
                                                  {1, 256, 13, 21},
                                                  {1, 256, 26, 42},
                                                  {1, 256, 52, 84},
                                                  {1, 256, 104, 168},
                                                  {100, 1, 14, 14}};
    bool first = true, agree = true;
    for (DType const dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
        for (Layout const layout : {Layout::kNHWC, Layout::kNCHW}) {
            for (Shape const& shape : shapes) {
                agree &= run_call(file, first, clock, copy_rate, dtype, layout, shape);
            }
        }
    }
    std::fprintf(file, "\n]}\n");
    return agree;
}

}  // namespace

int main(int count, char** arguments) {
    carafe::program::name = "carafe_designs";
    carafe::program::Options options;
    if (!carafe::program::parse(count, arguments, options)) {
        std::fprintf(stderr, "usage: carafe_designs [--output FILE.json] [--small]\n");
        return 2;
    }
    return carafe::program::run_on_gpu(options, run_all);
}
