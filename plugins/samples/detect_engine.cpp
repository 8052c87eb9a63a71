// Runs an engine of carafe_deploy from C++ and prints its detections.
//
//   detect_engine ENGINE libcarafe_tensorrt.so IMAGE.npy [MINIMUM_SCORE]
//
// IMAGE.npy holds a preprocessed image: float32 [1, 3, H, W], normalised and padded as the model
// asks. Build it with the headers of the very TensorRT that it links: unlike the plugins, a program
// that calls TensorRT is bound to one major version.
#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

class Logger final : public nvinfer1::ILogger {
    void log(Severity severity, char const* message) noexcept override {
        if (severity <= Severity::kWARNING) std::fprintf(stderr, "%s\n", message);
    }
};

void check(cudaError_t error) {
    if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

std::vector<char> read_file(std::string const& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error("cannot read " + path);
    return {std::istreambuf_iterator<char>(file), {}};
}

struct Image {
    nvinfer1::Dims shape{};
    std::vector<char> pixels;
};

/// A .npy file of version 1: ten bytes, a header that names type and shape, then the values.
Image read_npy(std::string const& path) {
    std::vector<char> const bytes = read_file(path);
    if (bytes.size() < 10 || std::string(bytes.data(), 6) != "\x93NUMPY" || bytes[6] != 1) {
        throw std::runtime_error(path + " is no .npy file of version 1");
    }
    std::size_t const start = 10 + static_cast<unsigned char>(bytes[8]) +
                              256 * std::size_t{static_cast<unsigned char>(bytes[9])};
    if (bytes.size() < start) throw std::runtime_error(path + " is truncated");
    std::string const header(bytes.data() + 10, start - 10);
    std::size_t const shape = header.find("'shape': (");
    Image image;
    image.shape.nbDims = 4;
    if (header.find("'<f4'") == std::string::npos || shape == std::string::npos ||
        header.find("'fortran_order': False") == std::string::npos ||
        std::sscanf(
            header.c_str() + shape, "'shape': (%ld, %ld, %ld, %ld)", &image.shape.d[0],
            &image.shape.d[1], &image.shape.d[2], &image.shape.d[3]) != 4 ||
        image.shape.d[0] != 1 || image.shape.d[1] != 3) {
        throw std::runtime_error(path + " holds " + header + "expected float32 [1, 3, H, W]");
    }
    image.pixels.assign(bytes.begin() + static_cast<std::ptrdiff_t>(start), bytes.end());
    if (image.pixels.size() !=
        12u * static_cast<std::size_t>(image.shape.d[2] * image.shape.d[3])) {
        throw std::runtime_error(path + " is truncated");
    }
    return image;
}

std::size_t bytes_of(nvinfer1::Dims const& dims, nvinfer1::DataType type) {
    std::size_t bytes = type == nvinfer1::DataType::kHALF ? 2 : 4;
    for (std::int32_t i = 0; i < dims.nbDims; ++i) bytes *= static_cast<std::size_t>(dims.d[i]);
    return bytes;
}

using DeviceMemory = std::unique_ptr<void, decltype(&cudaFree)>;

DeviceMemory allocate(std::size_t bytes) {
    void* memory = nullptr;
    check(cudaMalloc(&memory, bytes));
    return {memory, &cudaFree};
}

/// Every output by name, after one run.
std::map<std::string, std::vector<char>> run(
    nvinfer1::ICudaEngine& engine, Image const& image, cudaStream_t stream) {
    std::unique_ptr<nvinfer1::IExecutionContext> const context(engine.createExecutionContext());
    if (!context) throw std::runtime_error("no execution context");
    float const image_size[2] = {
        static_cast<float>(image.shape.d[2]), static_cast<float>(image.shape.d[3])};
    nvinfer1::Dims const size_shape{2, {1, 2}};
    if (!context->setInputShape("images", image.shape) ||
        !context->setInputShape("image_sizes", size_shape)) {
        throw std::runtime_error("the engine takes no image of this size");
    }
    std::vector<DeviceMemory> memory;
    std::map<std::string, std::vector<char>> outputs;
    std::map<std::string, void*> addresses;
    for (std::int32_t i = 0; i < engine.getNbIOTensors(); ++i) {
        char const* name = engine.getIOTensorName(i);
        std::size_t const bytes =
            bytes_of(context->getTensorShape(name), engine.getTensorDataType(name));
        memory.push_back(allocate(bytes));
        void* const address = memory.back().get();
        context->setTensorAddress(name, address);
        if (engine.getTensorIOMode(name) == nvinfer1::TensorIOMode::kOUTPUT) {
            outputs[name].resize(bytes);
            addresses[name] = address;
        } else {
            bool const pixels = std::string(name) == "images";
            void const* const source =
                pixels ? static_cast<void const*>(image.pixels.data()) : image_size;
            check(cudaMemcpyAsync(address, source, bytes, cudaMemcpyHostToDevice, stream));
        }
    }
    if (!context->enqueueV3(stream)) throw std::runtime_error("the engine failed");
    for (auto& [name, values] : outputs) {
        check(cudaMemcpyAsync(
            values.data(), addresses[name], values.size(), cudaMemcpyDeviceToHost, stream));
    }
    check(cudaStreamSynchronize(stream));
    return outputs;
}

void print(std::map<std::string, std::vector<char>> const& outputs, float minimum_score) {
    auto const* count = reinterpret_cast<std::int32_t const*>(outputs.at("num_dets").data());
    auto const* boxes = reinterpret_cast<float const*>(outputs.at("det_boxes").data());
    auto const* scores = reinterpret_cast<float const*>(outputs.at("det_scores").data());
    auto const* classes = reinterpret_cast<std::int32_t const*>(outputs.at("det_classes").data());
    for (std::int32_t i = 0; i < *count; ++i) {
        if (scores[i] < minimum_score) continue;
        float const* box = boxes + 4 * i;
        std::printf(
            "class %d score %.4f box %.1f %.1f %.1f %.1f\n", classes[i],
            static_cast<double>(scores[i]), static_cast<double>(box[0]),
            static_cast<double>(box[1]), static_cast<double>(box[2]), static_cast<double>(box[3]));
    }
}

void detect(char const* engine_path, char const* plugins, char const* image_path, float minimum) {
    if (getInferLibVersion() / 10000 != NV_TENSORRT_VERSION / 10000) {
        throw std::runtime_error(
            "this program was built with headers of version " +
            std::to_string(NV_TENSORRT_VERSION) + ", but the TensorRT library is of version " +
            std::to_string(getInferLibVersion()) + ": build it with that library's headers");
    }
    Image const image = read_npy(image_path);
    std::vector<char> const plan = read_file(engine_path);
    Logger logger;
    std::unique_ptr<nvinfer1::IRuntime> const runtime(nvinfer1::createInferRuntime(logger));
    if (!runtime) throw std::runtime_error("no TensorRT runtime");
    if (runtime->getPluginRegistry().loadLibrary(plugins) == nullptr) {
        throw std::runtime_error(std::string("cannot load plugins from ") + plugins);
    }
    std::unique_ptr<nvinfer1::ICudaEngine> const engine(
        runtime->deserializeCudaEngine(plan.data(), plan.size()));
    if (!engine) throw std::runtime_error(std::string("cannot use engine ") + engine_path);
    cudaStream_t stream = nullptr;
    check(cudaStreamCreate(&stream));
    print(run(*engine, image, stream), minimum);
    check(cudaStreamDestroy(stream));
}

}  // namespace

int main(int count, char** arguments) {
    if (count < 4 || count > 5) {
        std::fprintf(stderr, "usage: detect_engine ENGINE PLUGINS IMAGE.npy [MINIMUM_SCORE]\n");
        return 2;
    }
    try {
        float const minimum = count > 4 ? std::strtof(arguments[4], nullptr) : 0.3f;
        detect(arguments[1], arguments[2], arguments[3], minimum);
    } catch (std::exception const& error) {
        std::fprintf(stderr, "detect_engine: %s\n", error.what());
        return 1;
    }
    return 0;
}
