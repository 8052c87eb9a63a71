// Drives the plugins of libcarafe_tensorrt.so on a GPU without TensorRT: creates them from fields,
// hands device memory to enqueue(), compares with the CPU twins and measures.
//
//   carafe_harness [--library FILE] [--output FILE.json] [--small]
//
// Exit status: 0 when all results agree, 1 otherwise, 2 for wrong usage, 77 without a GPU.
#include <dlfcn.h>

#include <functional>
#include <initializer_list>
#include <set>

#include "../tests/candidates_testing.h"
#include "../tests/plugin_maps.h"
#include "carafe.h"
#include "gpu_program.h"
#include "nms.h"
#include "operators.h"
#include "roi_align.h"

namespace {

using carafe::program::check;
using carafe::program::DeviceMemory;
using carafe::program::kRepetitions;
using carafe::program::kWarmUps;
using carafe::testing::Fields;
using carafe::testing::Format;
using carafe::testing::kFormats;
using carafe::testing::Map;
using carafe::testing::pitch;
using carafe::testing::PluginHandle;
using carafe::testing::tensor;
using nvinfer1::DataType;
using nvinfer1::PluginTensorDesc;

using GetCreators = nvinfer1::IPluginCreatorInterface* const* (*)(std::int32_t&);

GetCreators& library_entry() {
    static GetCreators entry = nullptr;
    return entry;
}

/// A tensor on the host, with its bytes on the device while a case runs.
struct Tensor {
    PluginTensorDesc description;
    void* host;
    std::size_t bytes;
};

/// One call of a plugin. Results are copied to the outputs' host memory.
struct Case {
    std::string name, plugin;
    Fields const& fields;
    std::vector<Tensor> inputs, outputs;
    std::size_t workspace;
    std::function<void()> run_twin;
    std::function<float()> difference;  ///< from the twin's result
    float tolerance;
};

using Memories = std::vector<std::unique_ptr<DeviceMemory>>;

/// Reports one case at a time, as the elements of a JSON list.
class Report {
  public:
    explicit Report(std::FILE* file) : file_(file) { std::fprintf(file_, "["); }
    Report(Report const&) = delete;
    Report& operator=(Report const&) = delete;
    ~Report() { std::fprintf(file_, "\n]\n"); }

    void add(Case const& tested, bool agrees, float difference, std::vector<float> times) {
        std::sort(times.begin(), times.end());
        std::fprintf(
            file_, "%s\n  {\"case\": \"%s\", \"plugin\": \"%s\", \"agrees\": %s, ",
            first_ ? "" : ",", tested.name.c_str(), tested.plugin.c_str(),
            agrees ? "true" : "false");
        // JSON has no infinity.
        std::fprintf(
            file_, "\"difference\": %g, \"tolerance\": %g",
            static_cast<double>(std::min(difference, 1e30f)),
            static_cast<double>(tested.tolerance));
        if (!times.empty()) {
            std::fprintf(
                file_, ", \"median_us\": %.2f, \"fastest_us\": %.2f, \"l2\": \"hot\"",
                static_cast<double>(times[times.size() / 2]), static_cast<double>(times[0]));
        }
        std::fprintf(file_, "}");
        first_ = false;
        tested_.insert(tested.plugin);
    }

    bool has(char const* plugin) const { return tested_.count(plugin) != 0; }

  private:
    std::FILE* file_;
    bool first_ = true;
    std::set<std::string> tested_;
};

/// Microseconds of each repetition of `enqueue`, by device events.
std::vector<float> measure(std::function<void()> const& enqueue, cudaStream_t stream) {
    cudaEvent_t begin = nullptr, end = nullptr;
    check(cudaEventCreate(&begin), "cudaEventCreate");
    check(cudaEventCreate(&end), "cudaEventCreate");
    for (int i = 0; i < kWarmUps; ++i) enqueue();
    std::vector<float> times;
    for (int i = 0; i < kRepetitions; ++i) {
        check(cudaEventRecord(begin, stream), "cudaEventRecord");
        enqueue();
        check(cudaEventRecord(end, stream), "cudaEventRecord");
        check(cudaEventSynchronize(end), "cudaEventSynchronize");
        float milliseconds = 0;
        check(cudaEventElapsedTime(&milliseconds, begin, end), "cudaEventElapsedTime");
        times.push_back(1000 * milliseconds);
    }
    check(cudaEventDestroy(begin), "cudaEventDestroy");
    check(cudaEventDestroy(end), "cudaEventDestroy");
    return times;
}

/// Runs one case; false when the plugin fails or its result is another than the twin's.
bool run(Case const& tested, bool timed, Report& report) {
    PluginHandle const plugin(tested.plugin, tested.fields);
    if (!plugin) return false;
    cudaStream_t stream = nullptr;
    check(cudaStreamCreate(&stream), "cudaStreamCreate");
    Memories memories;
    auto const allocate = [&](Tensor const& item) {
        memories.push_back(std::make_unique<DeviceMemory>(item.bytes));
        return memories.back()->get();
    };
    std::vector<PluginTensorDesc> in, out;
    std::vector<void const*> inputs;
    std::vector<void*> outputs;
    for (Tensor const& item : tested.inputs) {
        void* const device = allocate(item);
        check(cudaMemcpy(device, item.host, item.bytes, cudaMemcpyHostToDevice), "cudaMemcpy");
        inputs.push_back(device);
        in.push_back(item.description);
    }
    for (Tensor const& item : tested.outputs) {
        outputs.push_back(allocate(item));
        out.push_back(item.description);
    }
    DeviceMemory const workspace(tested.workspace);
    bool succeeded = true;
    auto const enqueue = [&] {
        succeeded &=
            plugin.runtime->enqueue(
                in.data(), out.data(), inputs.data(), outputs.data(), workspace.get(), stream) == 0;
    };
    enqueue();
    check(cudaStreamSynchronize(stream), tested.name.c_str());
    for (std::size_t i = 0; i < outputs.size(); ++i) {
        Tensor const& item = tested.outputs[i];
        check(cudaMemcpy(item.host, outputs[i], item.bytes, cudaMemcpyDeviceToHost), "cudaMemcpy");
    }
    tested.run_twin();
    float const difference = tested.difference();
    std::vector<float> const times = timed ? measure(enqueue, stream) : std::vector<float>();
    bool const agrees = succeeded && difference <= tested.tolerance;
    report.add(tested, agrees, difference, times);
    check(cudaStreamDestroy(stream), "cudaStreamDestroy");
    return agrees;
}

/// CARAFE of an R-50 neck: 256 channels, k = 5, s = 2.
bool run_carafe(
    Format const& format, carafe::MaskSource source, int height, int width, bool timed,
    Report& report) {
    bool const encoded = source == carafe::MaskSource::kEncoded;
    carafe::CarafeParams p{};
    p.dtype = format.dtype, p.layout = format.layout, p.source = source;
    p.batch = 1, p.channels = timed ? 256 : 20, p.height = height, p.width = width;
    p.kernel_size = 5, p.groups = 1, p.scale = 2;
    auto const weights = static_cast<std::int32_t>(mask_channels(p));
    p.feature_pitch = p.out_pitch = pitch(format, p.channels);
    p.mask_pitch = pitch(format, weights);
    int const mask_height = encoded ? height : 2 * height, mask_width = encoded ? width : 2 * width;
    Map features(format, 1, p.channels, height * width, 1);
    Map masks(format, 1, weights, mask_height * mask_width, 2);
    Map out(format, 1, p.channels, 4 * height * width, 3);
    Map expected(format, 1, p.channels, 4 * height * width, 4);
    auto const map = [&](int channels, int rows, int columns, Map& memory) {
        return Tensor{
            tensor({1, channels, rows, columns}, format.type, format.format), memory.data(),
            memory.bytes()};
    };
    auto const fields = carafe::testing::carafe_fields(5, 1, 2);
    return run(
        {std::string(format.name) + " " + std::to_string(height) + "x" + std::to_string(width),
         encoded ? "CarafeEncoded" : "Carafe",
         *fields,
         {map(p.channels, height, width, features), map(weights, mask_height, mask_width, masks)},
         {map(p.channels, 2 * height, 2 * width, out)},
         0,
         [&] { carafe_cpu(p, features.data(), masks.data(), expected.data(), 0); },
         [&] { return out.difference(expected); },
         format.tolerance},
        timed, report);
}

/// RoIAlign of an R-50 box head: four levels of an 832x1344 image, 7x7 bins.
bool run_roi_align(Format const& format, bool timed, Report& report) {
    carafe::RoiAlignParams p{};
    p.dtype = format.dtype, p.layout = format.layout;
    p.batch = 1, p.rois = timed ? 1000 : 20, p.channels = timed ? 256 : 20, p.levels = 4;
    p.output_size = 7, p.sampling_ratio = 0, p.finest_scale = 56;
    p.feature_pitch = p.out_pitch = pitch(format, p.channels);
    float const height = timed ? 832.0f : 128.0f, width = timed ? 1344.0f : 192.0f;
    std::vector<float> rois;
    std::mt19937 random(7);
    std::uniform_real_distribution<float> uniform(0.0f, 1.0f);
    for (int i = 0; i < p.rois; ++i) {
        float const x = width * uniform(random), y = height * uniform(random);
        float const side = width * uniform(random) * uniform(random);
        rois.insert(rois.end(), {x, y, x + side, y + side});
    }
    std::vector<Tensor> inputs = {{tensor({1, p.rois, 4}), rois.data(), rois.size() * 4}};
    std::vector<Map> maps;
    maps.reserve(4);
    std::vector<void const*> features;
    for (int level = 0; level < 4; ++level) {
        p.strides[level] = 4 << level;
        p.heights[level] = static_cast<int>(height) / p.strides[level];
        p.widths[level] = static_cast<int>(width) / p.strides[level];
        int const rows = p.heights[level], columns = p.widths[level];
        maps.emplace_back(
            format, 1, p.channels, rows * columns, 10u + static_cast<unsigned>(level));
        inputs.push_back(
            {tensor({1, p.channels, rows, columns}, format.type, format.format), maps.back().data(),
             maps.back().bytes()});
        features.push_back(maps.back().data());
    }
    Map out(format, p.rois, p.channels, 49, 3), expected(format, p.rois, p.channels, 49, 4);
    Fields fields;
    fields.add("output_size", std::vector<std::int32_t>{7})
        .add("sampling_ratio", std::vector<std::int32_t>{0})
        .add("strides", std::vector<std::int32_t>{4, 8, 16, 32})
        .add("finest_scale", std::vector<std::int32_t>{56});
    return run(
        {std::string(format.name) + " " + std::to_string(p.rois) + " RoIs",
         "MultilevelRoiAlign",
         fields,
         inputs,
         {{tensor({1, p.rois, p.channels, 7, 7}, format.type, format.format), out.data(),
           out.bytes()}},
         0,
         [&] { roi_align_cpu(p, rois.data(), features.data(), expected.data(), 0); },
         [&] { return out.difference(expected); },
         format.tolerance},
        timed, report);
}

/// Candidates of an 832x1344 image, 1,000 of each of five levels.
bool run_rpn_candidates(Format const& format, bool timed, Report& report) {
    int const height = timed ? 208 : 9, width = timed ? 336 : 11, count = timed ? 1000 : 50;
    int const levels = 5;
    carafe::testing::RpnCall call(format, 1, levels, height, width, count);
    std::vector<Tensor> inputs = {
        {tensor({1, 2}), call.image_sizes.data(), 8},
        {tensor({levels, 3, 4}), call.anchors.data(), call.anchors.size() * 4},
        {tensor({2, 4}), call.normalization.data(), 32}};
    for (std::size_t i = 0; i < call.maps.size(); ++i) {
        int const channels = i < levels ? 3 : 12;
        inputs.push_back(
            {tensor(
                 {1, channels, call.params.heights[i % levels], call.params.widths[i % levels]},
                 format.type, format.format),
             call.maps[i].data(), call.maps[i].bytes()});
    }
    auto const fields = carafe::testing::rpn_candidates_fields(count, {4, 8, 16, 32, 64});
    auto& found = call.found;
    return run(
        {std::string(format.name) + " " + std::to_string(height) + "x" + std::to_string(width),
         "RpnCandidates",
         *fields,
         inputs,
         {{tensor({1, levels, count, 4}), found.boxes.data(), found.boxes.size() * 4},
          {tensor({1, levels, count}), found.scores.data(), found.scores.size() * 4}},
         0,
         [&] { call.run_twin(); },
         [&] { return found.difference(); },
         1e-5f},
        timed, report);
}

bool run_box_candidates(Format const& format, bool timed, Report& report) {
    int const count = timed ? 1000 : 40, classes = timed ? 80 : 5;
    carafe::testing::BoxCall call(format, 1, count, classes);
    Fields const fields;
    auto& found = call.found;
    return run(
        {std::string(format.name) + " " + std::to_string(count) + "x" + std::to_string(classes),
         "BoxCandidates",
         fields,
         {{tensor({1, count, classes + 1}, format.type), call.logits.data(), call.logits.bytes()},
          {tensor({1, count, 4 * classes}, format.type), call.deltas.data(), call.deltas.bytes()},
          {tensor({1, count, 4}), call.proposals.data(), call.proposals.size() * 4},
          {tensor({1, 1}, DataType::kINT32), call.counts.data(), 4},
          {tensor({1, 2}), call.image_sizes.data(), 8},
          {tensor({2, 4}), call.normalization.data(), 32}},
         {{tensor({1, classes, count, 4}), found.boxes.data(), found.boxes.size() * 4},
          {tensor({1, classes, count}), found.scores.data(), found.scores.size() * 4}},
         0,
         [&] { call.run_twin(); },
         [&] { return found.difference(); },
         1e-5f},
        timed, report);
}

/// NMS with as many labels and candidates as one of a detector's two uses.
bool run_nms(carafe::NmsParams const& p, bool timed, Report& report) {
    std::mt19937 random(5);
    std::uniform_real_distribution<float> uniform(0.0f, 1.0f);
    std::vector<float> boxes, scores;
    for (int i = 0; i < p.batch * p.labels * p.candidates; ++i) {
        float const x = 1000 * uniform(random), y = 800 * uniform(random);
        float const right = x + 10 + 200 * uniform(random), low = y + 10 + 200 * uniform(random);
        boxes.insert(boxes.end(), {x, y, right, low});
        scores.push_back(uniform(random));
    }
    std::vector<std::int32_t> counts(static_cast<std::size_t>(p.batch)), expected_counts(counts);
    std::vector<std::int64_t> indices(static_cast<std::size_t>(p.batch) * p.max_output);
    std::vector<std::int64_t> expected_indices(indices);
    auto const fields = carafe::testing::nms_fields(p.max_output);
    return run(
        {std::to_string(p.labels) + "x" + std::to_string(p.candidates),
         "BatchedNms",
         *fields,
         {{tensor({p.batch, p.labels, p.candidates, 4}), boxes.data(), boxes.size() * 4},
          {tensor({p.batch, p.labels, p.candidates}), scores.data(), scores.size() * 4}},
         {{tensor({p.batch, 1}, DataType::kINT32), counts.data(), counts.size() * 4},
          {tensor({p.batch, p.max_output}, DataType::kINT64), indices.data(), indices.size() * 8}},
         nms_workspace_size(p),
         [&] {
             nms_cpu(
                 p, boxes.data(), scores.data(), expected_counts.data(), expected_indices.data(),
                 0);
         },
         [&] {
             bool const same = counts == expected_counts && indices == expected_indices;
             return same ? 0.0f : std::numeric_limits<float>::infinity();
         },
         0},
        timed, report);
}

bool run_all(std::FILE* file, bool small) {
    using carafe::MaskSource;
    struct Size {
        int height, width;
    };
    std::vector<Size> const sizes =
        small ? std::vector<Size>{{5, 7}}
              : std::vector<Size>{{13, 21}, {26, 42}, {52, 84}, {104, 168}};
    Report report(file);
    bool agree = true;
    for (Format const& format : kFormats) {
        for (auto const& [height, width] : sizes) {
            agree &= run_carafe(format, MaskSource::kEncoded, height, width, !small, report);
        }
        agree &= run_carafe(
            format, MaskSource::kNormalized, sizes.back().height, sizes.back().width, !small,
            report);
        agree &= run_roi_align(format, !small, report);
        agree &= run_rpn_candidates(format, !small, report);
        if (format.layout == carafe::Layout::kNCHW) {
            agree &= run_box_candidates(format, !small, report);
        }
    }
    float const iou = 0.5f, score = 0.1f;  // as nms_fields() has them
    agree &= run_nms({1, 5, small ? 60 : 1000, small ? 20 : 1000, iou, score}, !small, report);
    agree &= run_nms({1, small ? 4 : 80, small ? 60 : 1000, 100, iou, score}, !small, report);
#define CARAFE_PLUGIN_NAME(name, plugin, stem) #plugin,
    for (char const* plugin : {CARAFE_OPERATORS(CARAFE_PLUGIN_NAME)}) {
        if (report.has(plugin)) continue;
        std::fprintf(stderr, "carafe_harness: no case runs %s\n", plugin);
        agree = false;
    }
#undef CARAFE_PLUGIN_NAME
    return agree;
}

bool load(char const* path) {
    void* const library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
        std::fprintf(stderr, "carafe_harness: %s\n", dlerror());
        return false;
    }
    library_entry() = reinterpret_cast<GetCreators>(dlsym(library, "getCreators"));
    if (library_entry() == nullptr) std::fprintf(stderr, "carafe_harness: %s\n", dlerror());
    return library_entry() != nullptr;
}

}  // namespace

nvinfer1::IPluginCreatorInterface* const* getCreators(std::int32_t& count) {
    return library_entry()(count);
}

int main(int count, char** arguments) {
    carafe::program::name = "carafe_harness";
    carafe::program::Options options;
    options.library = "libcarafe_tensorrt.so";  // found beside by the run path
    if (!carafe::program::parse(count, arguments, options)) {
        std::fprintf(
            stderr, "usage: carafe_harness [--library FILE] [--output FILE.json] [--small]\n");
        return 2;
    }
    if (!load(options.library)) return 1;
    return carafe::program::run_on_gpu(options, run_all);
}
