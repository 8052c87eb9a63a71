// The operators on torch tensors: checks them and calls libcarafe_kernels.so.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <tuple>

namespace carafe::torch_adapter {

/// All functions follow plugins/README.md, take float32, float16 and bfloat16 (the first two also
/// float64 on the CPU), and throw c10::Error naming what does not fit. Channels-last feature maps
/// give a channels-last result. On CUDA they enqueue on torch's current stream.

at::Tensor carafe(
    at::Tensor const& features, at::Tensor const& masks, std::int64_t kernel_size,
    std::int64_t group_size, std::int64_t scale_factor);

at::Tensor carafe_encoded(
    at::Tensor const& features, at::Tensor const& encoded, std::int64_t kernel_size,
    std::int64_t group_size, std::int64_t scale_factor);

at::Tensor multilevel_roi_align(
    at::Tensor const& rois, at::TensorList features, std::int64_t output_size,
    std::int64_t sampling_ratio, at::IntArrayRef strides, std::int64_t finest_scale);

std::tuple<at::Tensor, at::Tensor> batched_nms(
    at::Tensor const& boxes, at::Tensor const& scores, double iou_threshold, double score_threshold,
    std::int64_t max_output);

/// What torch.library.custom_op is told in carafe_deploy/operators, by the functions' names.
namespace schemas {

constexpr char const* carafe =
    "(Tensor features, Tensor masks, SymInt kernel_size, SymInt group_size, "
    "SymInt scale_factor) -> Tensor";
constexpr char const* carafe_encoded =
    "(Tensor features, Tensor encoded, SymInt kernel_size, SymInt group_size, "
    "SymInt scale_factor) -> Tensor";
constexpr char const* multilevel_roi_align =
    "(Tensor rois, Tensor[] features, SymInt output_size, SymInt sampling_ratio, "
    "SymInt[] strides, SymInt finest_scale) -> Tensor";
constexpr char const* batched_nms =
    "(Tensor boxes, Tensor scores, float iou_threshold, float score_threshold, "
    "SymInt max_output) -> (Tensor, Tensor)";

}  // namespace schemas

}  // namespace carafe::torch_adapter
