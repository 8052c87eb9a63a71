// Tensors become parameters, addresses and torch's current stream; errors become exceptions.
#include "adapters.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>

#include <limits>
#include <vector>

#include "c_api.h"

#if defined(CARAFE_TORCH_CUDA)
#include <c10/cuda/CUDAStream.h>
#endif

namespace carafe::torch_adapter {
namespace {

void require(std::int32_t status) {
    TORCH_CHECK(status == CARAFE_OK, carafe_last_error());
}

std::int32_t narrow(char const* name, std::int64_t value) {
    TORCH_CHECK_VALUE(
        value >= 0 && value <= std::numeric_limits<std::int32_t>::max(), name, " is ", value,
        ", expected a number from 0 to 2^31 - 1");
    return static_cast<std::int32_t>(value);
}

DType dtype_of(at::Tensor const& tensor) {
    switch (tensor.scalar_type()) {
        case at::kFloat:
            return DType::kFloat32;
        case at::kHalf:
            return DType::kFloat16;
        case at::kBFloat16:
            return DType::kBFloat16;
        case at::kDouble:
            return DType::kFloat64;
        default:
            TORCH_CHECK_TYPE(
                false, "features are ", tensor.scalar_type(),
                ", expected float32, float16 or bfloat16");
    }
}

at::MemoryFormat memory_format_of(at::Tensor const& tensor) {
    bool const last =
        !tensor.is_contiguous() && tensor.is_contiguous(at::MemoryFormat::ChannelsLast);
    return last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
}

Layout layout_of(at::MemoryFormat format) {
    return format == at::MemoryFormat::ChannelsLast ? Layout::kNHWC : Layout::kNCHW;
}

std::int32_t device_kind(at::Tensor const& tensor) {
    return tensor.is_cuda() ? CARAFE_CUDA : CARAFE_CPU;
}

void* stream_of([[maybe_unused]] at::Tensor const& tensor) {
#if defined(CARAFE_TORCH_CUDA)
    if (tensor.is_cuda()) return c10::cuda::getCurrentCUDAStream(tensor.device().index()).stream();
#endif
    return nullptr;
}

/// `name` is like `features` in everything but its shape.
void check_pair(at::Tensor const& features, char const* name, at::Tensor const& other) {
    TORCH_CHECK_VALUE(
        features.dim() == 4 && other.dim() == 4, "features has ", features.dim(), " and ", name,
        " ", other.dim(), " dimensions, expected 4 each");
    TORCH_CHECK_VALUE(
        features.scalar_type() == other.scalar_type(), "features is ", features.scalar_type(),
        " and ", name, " ", other.scalar_type(), ", expected one dtype for both");
    TORCH_CHECK_VALUE(
        features.device() == other.device(), "features is on ", features.device(), " and ", name,
        " on ", other.device(), ", expected one device");
}

void check_weights(CarafeParams const& p, char const* name, at::Tensor const& weights) {
    TORCH_CHECK_VALUE(
        p.kernel_size >= 1 && p.groups >= 1 && p.scale >= 1, "kernel_size is ", p.kernel_size,
        ", group_size ", p.groups, " and scale_factor ", p.scale, ", expected at least 1 each");
    TORCH_CHECK_VALUE(
        weights.size(1) == mask_channels(p), name, " has ", weights.size(1), " channels, expected ",
        mask_channels(p));
    std::int64_t const scale = p.source == MaskSource::kEncoded ? 1 : p.scale;
    std::int64_t const height = scale * p.height;
    std::int64_t const width = scale * p.width;
    TORCH_CHECK_VALUE(
        weights.size(0) == p.batch && weights.size(2) == height && weights.size(3) == width, name,
        " has batch, height and width (", weights.size(0), ", ", weights.size(2), ", ",
        weights.size(3), "), expected (", p.batch, ", ", height, ", ", width, ")");
}

at::Tensor reassemble(
    MaskSource source, at::Tensor features, char const* name, at::Tensor weights,
    std::int64_t kernel_size, std::int64_t group_size, std::int64_t scale_factor) {
    check_pair(features, name, weights);
    c10::DeviceGuard const guard(features.device());
    at::MemoryFormat const format = memory_format_of(features);
    // One channel lies in memory the same way in both layouts, so the weights decide.
    at::MemoryFormat const order = features.size(1) == 1 ? memory_format_of(weights) : format;
    CarafeParams params{};
    params.dtype = dtype_of(features);
    params.layout = layout_of(order);
    params.source = source;
    params.batch = narrow("batch", features.size(0));
    params.channels = narrow("channels", features.size(1));
    params.height = narrow("height", features.size(2));
    params.width = narrow("width", features.size(3));
    params.kernel_size = narrow("kernel_size", kernel_size);
    params.groups = narrow("group_size", group_size);
    params.scale = narrow("scale_factor", scale_factor);
    check_weights(params, name, weights);
    params.feature_pitch = params.out_pitch = params.channels;
    params.mask_pitch = narrow("channels", weights.size(1));
    features = features.contiguous(format);
    weights = weights.contiguous(order);
    at::Tensor out = at::empty(
        {features.size(0), features.size(1), features.size(2) * scale_factor,
         features.size(3) * scale_factor},
        features.options().memory_format(format));
    require(carafe_forward(
        &params, device_kind(features), features.const_data_ptr(), weights.const_data_ptr(),
        out.mutable_data_ptr(), stream_of(features), at::get_num_threads()));
    return out;
}

void check_pyramid(at::Tensor const& rois, at::TensorList features, at::IntArrayRef strides) {
    TORCH_CHECK_VALUE(
        rois.dim() == 3 && rois.size(2) == 4, "rois has shape ", rois.sizes(),
        ", expected [B, K, 4]");
    TORCH_CHECK_VALUE(
        rois.scalar_type() == at::kFloat, "rois is ", rois.scalar_type(),
        ", expected float32 whatever the features' dtype");
    TORCH_CHECK_VALUE(
        !features.empty() && features.size() == strides.size() && features.size() <= kMaxLevels,
        features.size(), " feature maps for ", strides.size(), " strides, expected one each, 1 to ",
        kMaxLevels);
    for (at::Tensor const& map : features) {
        TORCH_CHECK_VALUE(
            map.dim() == 4 && map.size(0) == rois.size(0) && map.size(1) == features[0].size(1),
            "a feature map has shape ", map.sizes(), ", expected four axes with batch ",
            rois.size(0), " and the channels of the first");
        TORCH_CHECK_VALUE(
            map.scalar_type() == features[0].scalar_type() && map.device() == rois.device(),
            "a feature map is ", map.scalar_type(), " on ", map.device(), ", expected ",
            features[0].scalar_type(), " on ", rois.device());
    }
}

}  // namespace

at::Tensor carafe(
    at::Tensor const& features, at::Tensor const& masks, std::int64_t kernel_size,
    std::int64_t group_size, std::int64_t scale_factor) {
    return reassemble(
        MaskSource::kNormalized, features, "masks", masks, kernel_size, group_size, scale_factor);
}

at::Tensor carafe_encoded(
    at::Tensor const& features, at::Tensor const& encoded, std::int64_t kernel_size,
    std::int64_t group_size, std::int64_t scale_factor) {
    return reassemble(
        MaskSource::kEncoded, features, "encoded", encoded, kernel_size, group_size, scale_factor);
}

at::Tensor multilevel_roi_align(
    at::Tensor const& rois, at::TensorList features, std::int64_t output_size,
    std::int64_t sampling_ratio, at::IntArrayRef strides, std::int64_t finest_scale) {
    check_pyramid(rois, features, strides);
    c10::DeviceGuard const guard(rois.device());
    at::MemoryFormat const format = memory_format_of(features[0]);
    RoiAlignParams params{};
    params.dtype = dtype_of(features[0]);
    params.layout = layout_of(format);
    params.batch = narrow("batch", rois.size(0));
    params.rois = narrow("the number of RoIs", rois.size(1));
    params.channels = narrow("channels", features[0].size(1));
    params.levels = narrow("the number of levels", static_cast<std::int64_t>(features.size()));
    params.output_size = narrow("output_size", output_size);
    params.sampling_ratio = narrow("sampling_ratio", sampling_ratio);
    params.finest_scale = narrow("finest_scale", finest_scale);
    params.feature_pitch = params.out_pitch = params.channels;
    std::vector<at::Tensor> maps;  // keeps what contiguous() makes alive until the call
    std::vector<void const*> addresses;
    for (std::size_t level = 0; level < features.size(); ++level) {
        maps.push_back(features[level].contiguous(format));
        addresses.push_back(maps.back().const_data_ptr());
        params.heights[level] = narrow("height", maps.back().size(2));
        params.widths[level] = narrow("width", maps.back().size(3));
        params.strides[level] = narrow("a stride", strides[level]);
    }
    at::Tensor const boxes = rois.contiguous();
    at::Tensor out = at::empty(
        {rois.size(0) * rois.size(1), maps[0].size(1), output_size, output_size},
        maps[0].options().memory_format(format));
    require(carafe_multilevel_roi_align(
        &params, device_kind(rois), boxes.const_data_ptr<float>(), addresses.data(),
        out.mutable_data_ptr(), stream_of(rois), at::get_num_threads()));
    return out.view({rois.size(0), rois.size(1), maps[0].size(1), output_size, output_size});
}

std::tuple<at::Tensor, at::Tensor> batched_nms(
    at::Tensor const& boxes, at::Tensor const& scores, double iou_threshold, double score_threshold,
    std::int64_t max_output) {
    TORCH_CHECK_VALUE(
        boxes.dim() == 4 && boxes.size(3) == 4, "boxes has shape ", boxes.sizes(),
        ", expected [B, L, M, 4]");
    TORCH_CHECK_VALUE(
        scores.sizes() == boxes.sizes().slice(0, 3), "scores has shape ", scores.sizes(),
        ", expected ", boxes.sizes().slice(0, 3));
    TORCH_CHECK_VALUE(
        boxes.scalar_type() == at::kFloat && scores.scalar_type() == at::kFloat, "boxes is ",
        boxes.scalar_type(), " and scores ", scores.scalar_type(), ", expected float32 both");
    TORCH_CHECK_VALUE(
        boxes.device() == scores.device(), "boxes is on ", boxes.device(), ", scores on ",
        scores.device(), ", expected one");
    c10::DeviceGuard const guard(boxes.device());
    NmsParams params{};
    params.batch = narrow("batch", boxes.size(0));
    params.labels = narrow("the number of labels", boxes.size(1));
    params.candidates = narrow("the number of candidates", boxes.size(2));
    params.max_output = narrow("max_output", max_output);
    params.iou_threshold = static_cast<float>(iou_threshold);
    params.score_threshold = static_cast<float>(score_threshold);
    std::int64_t const workspace_size = carafe_batched_nms_workspace(&params);
    TORCH_CHECK_VALUE(workspace_size >= 0, carafe_last_error());
    at::Tensor const dense_boxes = boxes.contiguous();
    at::Tensor const dense_scores = scores.contiguous();
    at::Tensor num_dets = at::empty({boxes.size(0), 1}, boxes.options().dtype(at::kInt));
    at::Tensor indices = at::empty({boxes.size(0), max_output}, boxes.options().dtype(at::kLong));
    at::Tensor workspace =
        at::empty({boxes.is_cuda() ? workspace_size : 0}, boxes.options().dtype(at::kByte));
    require(carafe_batched_nms(
        &params, device_kind(boxes), dense_boxes.const_data_ptr<float>(),
        dense_scores.const_data_ptr<float>(), num_dets.mutable_data_ptr<std::int32_t>(),
        indices.mutable_data_ptr<std::int64_t>(), workspace.mutable_data_ptr(), stream_of(boxes),
        at::get_num_threads()));
    return {num_dets, indices};
}

}  // namespace carafe::torch_adapter
