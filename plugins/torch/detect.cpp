// Runs a TorchScript detector on one image with libtorch alone:
//
//     carafe_detect detector.ts image [cpu|cuda]
//
// The detector is exported with uint8 input, so that normalisation is inside:
//     carafe-deploy export checkpoint.pth --format torchscript --uint8-input
// The image is whatever OpenCV reads where CMake found it, else a binary PPM (P6, 8 bits). A
// detection a line goes to stdout: class, score, x1, y1, x2, y2 in pixels of the image.
#include <torch/script.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>
#include <fstream>
#include <regex>
#include <string>

#if defined(CARAFE_OPENCV)
#include <opencv2/imgcodecs.hpp>
#endif

namespace {

/// The settings that the export wrote into the file.
struct Preprocessing {
    std::int64_t long_edge, short_edge, divisor;
};

/// The whole number that `pattern` captures in the detector's metadata.
std::int64_t number_in(std::string const& metadata, char const* pattern) {
    std::smatch match;
    TORCH_CHECK(
        std::regex_search(metadata, match, std::regex(pattern)), "the detector's metadata has no ",
        pattern, ": export it with carafe-deploy export");
    return std::stoll(match[1]);
}

Preprocessing preprocessing_of(std::string const& metadata) {
    TORCH_CHECK(
        metadata.find("\"layout\": \"nhwc_uint8\"") != std::string::npos,
        "the detector takes no uint8 images: export it with --uint8-input");
    std::int64_t const first = number_in(metadata, "\"scale\": \\[(\\d+), \\d+\\]");
    std::int64_t const second = number_in(metadata, "\"scale\": \\[\\d+, (\\d+)\\]");
    return {
        std::max(first, second), std::min(first, second),
        number_in(metadata, "\"pad_size_divisor\": (\\d+)")};
}

/// [H, W, 3] uint8, BGR.
at::Tensor read_image(std::string const& path) {
#if defined(CARAFE_OPENCV)
    cv::Mat const image = cv::imread(path, cv::IMREAD_COLOR);
    TORCH_CHECK(!image.empty(), path, " is no image that OpenCV reads");
    return at::from_blob(image.data, {image.rows, image.cols, 3}, at::kByte).clone();
#else
    std::ifstream file(path, std::ios::binary);
    std::string kind;
    std::int64_t width = 0;
    std::int64_t height = 0;
    int largest = 0;
    file >> kind >> width >> height >> largest;
    TORCH_CHECK(
        file && kind == "P6" && largest == 255 && width > 0 && height > 0 && width <= 65536 &&
            height <= 65536,
        path,
        " is no binary PPM image (P6, 8 bits, no comments): convert it, or build with OpenCV");
    file.get();  // the one blank before the pixels
    at::Tensor const image = at::empty({height, width, 3}, at::kByte);
    file.read(static_cast<char*>(image.mutable_data_ptr()), image.numel());
    TORCH_CHECK(file, path, " ends before its last pixel");
    return image.flip(2);
#endif
}

/// Keeps the ratio; edges are rounded as mmdetection does.
at::Tensor resize(at::Tensor const& image, Preprocessing const& settings) {
    auto const height = static_cast<double>(image.size(0));
    auto const width = static_cast<double>(image.size(1));
    double const scale = std::min(
        static_cast<double>(settings.long_edge) / std::max(height, width),
        static_cast<double>(settings.short_edge) / std::min(height, width));
    auto const scaled = [scale](double edge) {
        return std::max<std::int64_t>(1, static_cast<std::int64_t>(edge * scale + 0.5));
    };
    at::Tensor const planes = image.permute({2, 0, 1}).unsqueeze(0).to(at::kFloat);
    at::Tensor const resized =
        at::upsample_bilinear2d(planes, {scaled(height), scaled(width)}, false);
    return resized.round().to(at::kByte).squeeze(0).permute({1, 2, 0});
}

/// [1, H, W, 3], filled up with zeros at the right and bottom.
at::Tensor pad(at::Tensor const& image, std::int64_t divisor) {
    auto const padded = [divisor](std::int64_t edge) {
        return (edge + divisor - 1) / divisor * divisor;
    };
    std::int64_t const height = image.size(0);
    std::int64_t const width = image.size(1);
    at::Tensor out = at::zeros({1, padded(height), padded(width), 3}, at::kByte);
    out[0].slice(0, 0, height).slice(1, 0, width).copy_(image);
    return out;
}

torch::jit::Module load(
    std::string const& path, at::Device device, torch::jit::ExtraFilesMap& files) try {
    return torch::jit::load(path, device, files);
} catch (c10::Error const& error) {
    TORCH_CHECK(false, path, " cannot be loaded: ", error.msg());
}

void detect(std::string const& model_path, std::string const& image_path, at::Device device) {
    torch::jit::ExtraFilesMap files{{"carafe_deploy", ""}};
    torch::jit::Module detector = load(model_path, device, files);
    Preprocessing const settings = preprocessing_of(files["carafe_deploy"]);

    at::Tensor const image = read_image(image_path);
    at::Tensor const resized = resize(image, settings);
    auto const height = static_cast<float>(resized.size(0));
    auto const width = static_cast<float>(resized.size(1));
    at::Tensor const sizes = at::tensor({height, width}).unsqueeze(0);

    c10::InferenceMode const inference;
    auto const outputs =
        detector.forward({pad(resized, settings.divisor).to(device), sizes.to(device)}).toTuple();
    auto const output = [&](std::size_t i) { return outputs->elements()[i].toTensor().cpu(); };
    std::int64_t const count = output(0).item<std::int32_t>();
    at::Tensor const to_image = at::tensor(
        {width / static_cast<float>(image.size(1)), height / static_cast<float>(image.size(0))});
    at::Tensor const boxes = output(1)[0] / to_image.repeat(2);
    at::Tensor const scores = output(2)[0];
    at::Tensor const classes = output(3)[0];
    for (std::int64_t i = 0; i < count; ++i) {
        std::printf("%d %.4f", classes[i].item<std::int32_t>(), scores[i].item<double>());
        for (std::int64_t k = 0; k < 4; ++k) std::printf(" %.2f", boxes[i][k].item<double>());
        std::printf("\n");
    }
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 3 && argc != 4) {
        std::fprintf(stderr, "usage: %s detector.ts image [cpu|cuda]\n", argv[0]);
        return 2;
    }
    try {
        detect(argv[1], argv[2], at::Device(argc == 4 ? argv[3] : "cpu"));
    } catch (c10::Error const& error) {
        std::fprintf(stderr, "%s: %s\n", argv[0], error.what_without_backtrace());
        return 1;
    } catch (std::exception const& error) {
        std::fprintf(stderr, "%s: %s\n", argv[0], error.what());
        return 1;
    }
    return 0;
}
