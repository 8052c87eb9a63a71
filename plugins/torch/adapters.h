// The operators on torch tensors: checks them and calls libcarafe_kernels.so.
#pragma once

#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "tensor.h"

namespace carafe::torch_adapter {

/// All functions follow plugins/README.md, take float32, float16 and bfloat16 (the first two also
/// float64 on the CPU), and throw std::invalid_argument naming what does not fit, in the words of
/// carafe_deploy/ops. Channels-last feature maps give a channels-last result. On CUDA they enqueue
/// on torch's current stream. Nothing comes back where PyTorch has to compute instead, which can
/// be only where Python has registered that.

std::optional<Tensor> carafe(
    Tensor const& features, Tensor const& masks, std::int64_t kernel_size, std::int64_t group_size,
    std::int64_t scale_factor);

std::optional<Tensor> carafe_encoded(
    Tensor const& features, Tensor const& encoded, std::int64_t kernel_size,
    std::int64_t group_size, std::int64_t scale_factor);

std::optional<std::tuple<Tensor, Tensor>> rpn_candidates(
    Tensor const& image_sizes, Tensor const& anchors, Tensor const& normalization,
    std::vector<Tensor> const& maps, std::int64_t num_candidates, double min_size,
    std::vector<std::int64_t> const& strides);

std::optional<std::tuple<Tensor, Tensor>> box_candidates(
    Tensor const& logits, Tensor const& deltas, Tensor const& proposals,
    Tensor const& num_proposals, Tensor const& image_sizes, Tensor const& normalization);

std::optional<Tensor> multilevel_roi_align(
    Tensor const& rois, std::vector<Tensor> const& features, std::int64_t output_size,
    std::int64_t sampling_ratio, std::vector<std::int64_t> const& strides,
    std::int64_t finest_scale);

std::optional<std::tuple<Tensor, Tensor>> batched_nms(
    Tensor const& boxes, Tensor const& scores, double iou_threshold, double score_threshold,
    std::int64_t max_output);

/// As carafe_deploy/operators has them, by the functions' names.
namespace schemas {

constexpr char const* carafe =
    "(Tensor features, Tensor masks, SymInt kernel_size, SymInt group_size, "
    "SymInt scale_factor) -> Tensor";
constexpr char const* carafe_encoded =
    "(Tensor features, Tensor encoded, SymInt kernel_size, SymInt group_size, "
    "SymInt scale_factor) -> Tensor";
constexpr char const* rpn_candidates =
    "(Tensor image_sizes, Tensor anchors, Tensor normalization, Tensor[] maps, "
    "SymInt num_candidates, float min_size, SymInt[] strides) -> (Tensor, Tensor)";
constexpr char const* box_candidates =
    "(Tensor logits, Tensor deltas, Tensor proposals, Tensor num_proposals, Tensor image_sizes, "
    "Tensor normalization) -> (Tensor, Tensor)";
constexpr char const* multilevel_roi_align =
    "(Tensor rois, Tensor[] features, SymInt output_size, SymInt sampling_ratio, "
    "SymInt[] strides, SymInt finest_scale) -> Tensor";
constexpr char const* batched_nms =
    "(Tensor boxes, Tensor scores, float iou_threshold, float score_threshold, "
    "SymInt max_output) -> (Tensor, Tensor)";

}  // namespace schemas

}  // namespace carafe::torch_adapter
