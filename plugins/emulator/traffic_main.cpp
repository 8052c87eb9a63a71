// carafe_traffic: runs the kernels as a GPU would cut their work and prints what they read and
// write, as JSON.
//
//   carafe_traffic [--small]
//
// Sizes are a detector's, reduced where the count does not need all of it; see each case's shape.
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "carafe_designs.h"
#include "traffic.h"

namespace {

using carafe::CarafeDesign;
using carafe::CarafeParams;
using carafe::DType;
using carafe::Layout;
using carafe::MaskSource;
using carafe::emulator::Flow;
using carafe::emulator::TrafficRecorder;

/// Memory that starts at a sector, as device memory does.
class Memory {
  public:
    explicit Memory(std::size_t bytes) : bytes_(bytes), storage_(bytes / 4 + 64) {}
    Memory(Memory const&) = delete;
    Memory& operator=(Memory const&) = delete;

    void* data() {
        auto const address = reinterpret_cast<std::uintptr_t>(storage_.data());
        return reinterpret_cast<void*>((address + 255) / 256 * 256);
    }
    std::size_t bytes() const { return bytes_; }

  private:
    std::size_t bytes_;
    std::vector<std::uint32_t> storage_;
};

void print(char const* name, Flow const& flow, bool global) {
    std::printf(
        "\"%s\": {\"bytes\": %llu, \"requests\": %llu, \"wavefronts\": %llu, ", name,
        static_cast<unsigned long long>(flow.bytes), static_cast<unsigned long long>(flow.requests),
        static_cast<unsigned long long>(flow.wavefronts));
    if (global) {
        std::printf(
            "\"l2_bytes\": %llu, \"memory_bytes\": %llu, ",
            static_cast<unsigned long long>(32 * flow.block_sectors),
            static_cast<unsigned long long>(32 * flow.sectors));
    }
    std::printf("\"accesses\": {");
    char const* separator = "";
    for (int log = 0; log < 5; ++log) {
        if (flow.accesses[log] == 0) continue;
        std::printf(
            "%s\"%d\": %llu", separator, 1 << log,
            static_cast<unsigned long long>(flow.accesses[log]));
        separator = ", ";
    }
    std::printf("}}");
}

/// Prints one case as an element of a JSON list.
class Report {
  public:
    Report() { std::printf("["); }
    Report(Report const&) = delete;
    Report& operator=(Report const&) = delete;
    ~Report() { std::printf("\n]\n"); }

    /// `facts` is the inside of a JSON object.
    void add(std::string const& facts, TrafficRecorder const& recorder) {
        std::printf("%s\n  {%s, \"launches\": [", first_ ? "" : ",", facts.c_str());
        first_ = false;
        char const* separator = "";
        for (auto const& [grid, block, shared_bytes] : recorder.launches()) {
            std::printf(
                "%s{\"blocks\": %u, \"threads\": %u, \"shared_bytes\": %zu}", separator,
                grid.x * grid.y * grid.z, block.x * block.y * block.z, shared_bytes);
            separator = ", ";
        }
        std::printf("], \"arrays\": {");
        separator = "";
        for (auto const& [name, loads, stores] : recorder.traffic()) {
            std::printf("%s\n    \"%s\": {", separator, name.c_str());
            print("loads", loads, name != "shared");
            std::printf(", ");
            print("stores", stores, name != "shared");
            std::printf("}");
            separator = ",";
        }
        std::printf("}}");
        std::fflush(stdout);
    }

  private:
    bool first_ = true;
};

std::string text(char const* name, std::string const& value) {
    return std::string("\"") + name + "\": \"" + value + "\", ";
}

std::string number(char const* name, long long value) {
    return std::string("\"") + name + "\": " + std::to_string(value);
}

std::string shape_of(std::initializer_list<int> sides) {
    std::string shape;
    for (int const side : sides) shape += (shape.empty() ? "" : "x") + std::to_string(side);
    return shape;
}

bool failed(cudaError_t error) {
    if (error == cudaSuccess) return false;
    std::fprintf(stderr, "carafe_traffic: %s\n", cudaGetErrorString(error));
    return true;
}

/// One CARAFE call, k = 5, s = 2, by every design that fits; packed channels.
bool carafe_case(
    Report& report, DType dtype, Layout layout, MaskSource source, int batch, int channels,
    int height, int width) {
    CarafeParams p{};
    p.dtype = dtype, p.layout = layout, p.source = source;
    p.batch = batch, p.channels = channels, p.height = height, p.width = width;
    p.kernel_size = 5, p.groups = 1, p.scale = 2;
    // TensorRT pads channels of half types to packs of 16 bytes.
    int const pack = layout == Layout::kNHWC && dtype != DType::kFloat32 ? 8 : 1;
    auto const weights = static_cast<std::int32_t>(mask_channels(p));
    p.feature_pitch = p.out_pitch = (channels + pack - 1) / pack * pack;
    p.mask_pitch = (weights + pack - 1) / pack * pack;
    std::size_t const pixels = static_cast<std::size_t>(batch) * height * width;
    std::size_t const element = size_of(dtype);
    std::size_t const mask_pixels = source == MaskSource::kEncoded ? pixels : 4 * pixels;
    Memory features(pixels * p.feature_pitch * element),
        masks(mask_pixels * p.mask_pitch * element);
    Memory out(4 * pixels * p.out_pitch * element);
    auto const chosen = carafe_design(p, features.data(), masks.data(), out.data());
    for (std::int32_t i = 0; i < carafe::kCarafeDesigns; ++i) {
        auto const design = static_cast<CarafeDesign>(i);
        if (!carafe_design_fits(design, p, features.data(), masks.data(), out.data())) continue;
        if (design == CarafeDesign::kAny && height > 26) continue;  // long, and known from others
        TrafficRecorder recorder;
        recorder.add_array("features", features.data(), features.bytes());
        recorder.add_array("masks", masks.data(), masks.bytes());
        recorder.add_array("out", out.data(), out.bytes());
        cudaError_t const error =
            launch_carafe_as(design, p, features.data(), masks.data(), out.data(), nullptr);
        if (failed(error)) return false;
        report.add(
            text("operator", source == MaskSource::kEncoded ? "CarafeEncoded" : "Carafe") +
                text("design", name_of(design)) + text("dtype", name_of(dtype)) +
                text("layout", layout == Layout::kNHWC ? "NHWC" : "NCHW") +
                text("shape", shape_of({batch, channels, height, width})) +
                "\"chosen\": " + (design == chosen ? "true, " : "false, ") +
                number("multiply_adds", static_cast<long long>(100 * pixels) * channels),
            recorder);
    }
    return true;
}

/// RoIs of a box head over four levels; sides are spread as in a picture.
bool roi_align_case(
    Report& report, DType dtype, Layout layout, int rois, int channels, int size, int height,
    int width) {
    carafe::RoiAlignParams p{};
    p.dtype = dtype, p.layout = layout;
    p.batch = 1, p.rois = rois, p.channels = channels, p.levels = 4;
    p.output_size = size, p.sampling_ratio = 0, p.finest_scale = 56;
    p.feature_pitch = p.out_pitch = channels;
    std::mt19937 random(7);
    std::uniform_real_distribution<float> uniform(0.0f, 1.0f);
    std::vector<float> boxes;
    for (int i = 0; i < rois; ++i) {
        float const x = uniform(random) * static_cast<float>(width);
        float const y = uniform(random) * static_cast<float>(height);
        float const side = uniform(random) * uniform(random) * static_cast<float>(width);
        boxes.insert(boxes.end(), {x, y, x + side, y + side});
    }
    TrafficRecorder recorder;
    std::vector<std::unique_ptr<Memory>> maps;
    std::vector<void const*> features;
    for (int level = 0; level < 4; ++level) {
        p.strides[level] = 4 << level;
        p.heights[level] = height / p.strides[level];
        p.widths[level] = width / p.strides[level];
        std::size_t const pixels =
            static_cast<std::size_t>(p.heights[level]) * static_cast<std::size_t>(p.widths[level]);
        maps.push_back(std::make_unique<Memory>(pixels * channels * size_of(dtype)));
        features.push_back(maps.back()->data());
        recorder.add_array(
            "features" + std::to_string(level), maps.back()->data(), maps.back()->bytes());
    }
    Memory out(static_cast<std::size_t>(rois) * channels * size * size * size_of(dtype));
    recorder.add_array("rois", boxes.data(), boxes.size() * sizeof(float));
    recorder.add_array("out", out.data(), out.bytes());
    if (failed(launch_roi_align(p, boxes.data(), features.data(), out.data(), nullptr))) {
        return false;
    }
    report.add(
        text("operator", "MultilevelRoiAlign") + text("dtype", name_of(dtype)) +
            text("layout", layout == Layout::kNHWC ? "NHWC" : "NCHW") +
            text("shape", shape_of({rois, channels, size, size})) + number("image_height", height) +
            ", " + number("image_width", width),
        recorder);
    return true;
}

bool nms_case(Report& report, carafe::NmsParams const& p) {
    std::mt19937 random(5);
    std::uniform_real_distribution<float> uniform(0.0f, 1.0f);
    std::vector<float> boxes, scores;
    for (int i = 0; i < p.labels * p.candidates; ++i) {
        float const x = 1000 * uniform(random), y = 800 * uniform(random);
        float const right = x + 10 + 200 * uniform(random), low = y + 10 + 200 * uniform(random);
        boxes.insert(boxes.end(), {x, y, right, low});
        scores.push_back(uniform(random));
    }
    Memory boxes_at(boxes.size() * sizeof(float)), scores_at(scores.size() * sizeof(float));
    std::memcpy(boxes_at.data(), boxes.data(), boxes_at.bytes());
    std::memcpy(scores_at.data(), scores.data(), scores_at.bytes());
    Memory counts(sizeof(std::int32_t)), indices(sizeof(std::int64_t) * p.max_output);
    Memory workspace(nms_workspace_size(p));
    TrafficRecorder recorder;
    recorder.add_array("boxes", boxes_at.data(), boxes_at.bytes());
    recorder.add_array("scores", scores_at.data(), scores_at.bytes());
    recorder.add_array("num_dets", counts.data(), counts.bytes());
    recorder.add_array("indices", indices.data(), indices.bytes());
    recorder.add_array("workspace", workspace.data(), workspace.bytes());
    cudaError_t const error = launch_nms(
        p, static_cast<float const*>(boxes_at.data()), static_cast<float const*>(scores_at.data()),
        static_cast<std::int32_t*>(counts.data()), static_cast<std::int64_t*>(indices.data()),
        workspace.data(), nullptr);
    if (failed(error)) return false;
    report.add(
        text("operator", "BatchedNms") + text("shape", shape_of({p.labels, p.candidates})) +
            number("max_output", p.max_output),
        recorder);
    return true;
}

bool run(bool small) {
    Report report;
    bool done = true;
    int const channels = small ? 20 : 256;
    for (DType const dtype : {DType::kFloat32, DType::kFloat16}) {
        for (Layout const layout : {Layout::kNHWC, Layout::kNCHW}) {
            auto const carafe = [&](MaskSource source, int batch, int c, int height, int width) {
                done = done && carafe_case(report, dtype, layout, source, batch, c, height, width);
            };
            carafe(MaskSource::kEncoded, 1, channels, small ? 5 : 13, small ? 7 : 21);
            carafe(MaskSource::kEncoded, small ? 2 : 100, 1, 14, 14);  // masks of 100 RoIs
            if (small) continue;
            carafe(MaskSource::kEncoded, 1, channels, 26, 42);
            carafe(MaskSource::kEncoded, 1, channels, 52, 84);
            carafe(MaskSource::kEncoded, 1, channels, 104, 168);
            carafe(MaskSource::kNormalized, 1, channels, 26, 42);
            done = done && roi_align_case(report, dtype, layout, 16, channels, 7, 832, 1344);
        }
    }
    done = done && roi_align_case(report, DType::kFloat32, Layout::kNHWC, 3, 8, 7, 128, 192);
    done = done && nms_case(report, {1, 5, small ? 60 : 1000, small ? 20 : 1000, 0.7f, 0.0f});
    done = done && nms_case(report, {1, 8, small ? 60 : 1000, small ? 20 : 100, 0.5f, 0.05f});
    return done;
}

}  // namespace

int main(int count, char** arguments) {
    bool const small = count == 2 && std::strcmp(arguments[1], "--small") == 0;
    if (count != 1 && !small) {
        std::fprintf(stderr, "usage: carafe_traffic [--small]\n");
        return 2;
    }
    return run(small) ? 0 : 1;
}
