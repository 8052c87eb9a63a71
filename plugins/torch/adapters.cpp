// Tensors become parameters, addresses and torch's current stream; errors become exceptions.
#include "adapters.h"

#include <algorithm>
#include <cmath>

#include "c_api.h"
#include "kernels.h"

namespace carafe::torch_adapter {
namespace {

// --- CARAFE --------------------------------------------------------------------------------------

/// A product that stays at the largest number where it would exceed it.
std::int64_t times(std::int64_t a, std::int64_t b) {
    std::int64_t product = 0;
    return __builtin_mul_overflow(a, b, &product) ? INT64_MAX : product;
}

/// What CARAFE's second input is called, and whether it holds the content encoder's output.
struct Weights {
    char const* name;
    MaskSource source;

    bool encoded() const { return source == MaskSource::kEncoded; }
};

void check(
    Tensor const& features, Tensor const& weights, std::int64_t k, std::int64_t groups,
    std::int64_t s, Weights kind) {
    require(k >= 1 && k % 2 == 1, "kernel_size is ", k, ", expected an odd number of at least 1");
    require(
        groups >= 1 && s >= 1, "group_size is ", groups, ", scale_factor ", s,
        ", expected at least 1 each");
    require(
        features.axes() == 4 && weights.axes() == 4, "features has ", features.axes(), " and ",
        kind.name, " ", weights.axes(), " dimensions, expected 4 each");
    require(
        features.type() == weights.type() && features.type().is_floating_point(), "features is ",
        features.type(), " and ", kind.name, " ", weights.type(),
        ", expected one floating-point dtype for both");
    require(
        features.device() == weights.device(), "features is on ", features.device(), " and ",
        kind.name, " on ", weights.device(), ", expected one device");
    require(
        features.size(1) % groups == 0, "features has ", features.size(1),
        " channels, not divisible by group_size = ", groups);
    std::int64_t channels = times(times(k, k), groups);
    if (kind.encoded()) channels = times(channels, times(s, s));
    require(
        weights.size(1) == channels, kind.name, " has ", weights.size(1), " channels, expected ",
        kind.encoded() ? "scale_factor**2*" : "", "group_size*kernel_size**2 = ", channels);
    std::int64_t const scale = kind.encoded() ? 1 : s;
    std::int64_t const found[] = {weights.size(0), weights.size(2), weights.size(3)};
    std::int64_t const expected[] = {
        features.size(0), times(features.size(2), scale), times(features.size(3), scale)};
    bool const fits = found[0] == expected[0] && found[1] == expected[1] && found[2] == expected[2];
    require(
        fits, kind.name, " has batch, height and width ", Sizes{found, 3}, ", expected ",
        Sizes{expected, 3}, " for features ", features.sizes(), " and scale_factor ", s);
}

std::optional<Tensor> reassemble(
    Tensor const& features, Tensor const& weights, std::int64_t kernel_size,
    std::int64_t group_size, std::int64_t scale_factor, Weights kind) {
    check(features, weights, kernel_size, group_size, scale_factor, kind);
    if (!serves(features.type(), features.device(), true)) return std::nullopt;
    std::int64_t const channels = features.size(1);
    Map const map(
        features.order(), features.size(0), channels, times(features.size(2), scale_factor),
        times(features.size(3), scale_factor));
    Tensor out =
        Tensor::empty({map.sizes, 4}, {map.strides, 4}, features.type(), features.device());
    // One channel lies in memory the same way in both orders, so the weights have the say.
    Layout const order = channels == 1 ? weights.order() : features.order();
    Tensor const dense_features = features.in_order(order);
    Tensor const dense_weights = weights.in_order(order);
    CarafeParams params{};
    params.dtype = dtype_of(features.type());
    params.layout = order;
    params.source = kind.source;
    params.batch = narrow("batch", features.size(0));
    params.channels = narrow("channels", channels);
    params.height = narrow("height", features.size(2));
    params.width = narrow("width", features.size(3));
    params.kernel_size = narrow("kernel_size", kernel_size);
    params.groups = narrow("groups", group_size);
    params.scale = narrow("scale", scale_factor);
    params.feature_pitch = params.out_pitch = params.channels;
    params.mask_pitch = narrow("mask_pitch", weights.size(1));
    Place const place(features);
    computed(carafe_forward(
        &params, place.device(), dense_features.data(), dense_weights.data(), out.mutable_data(),
        place.stream(), place.threads()));
    return out;
}

// --- RoIAlign ------------------------------------------------------------------------------------

bool is_float32_or_64(Type type) {
    return type.number == aoti_torch_dtype_float32() || type.number == aoti_torch_dtype_float64();
}

void check_maps(Tensor const& rois, std::vector<Tensor> const& features) {
    Tensor const& first = features.front();
    for (std::size_t level = 0; level < features.size(); ++level) {
        Tensor const& map = features[level];
        require(
            map.axes() == 4 && map.type().is_floating_point(), "feature map ", level, " is ",
            map.type(), " of shape ", map.sizes(), ", expected floating point [B, C, H, W]");
        require(
            map.type() == first.type() && map.device() == rois.device(), "feature map ", level,
            " is ", map.type(), " on ", map.device(), ", expected ", first.type(), " on ",
            rois.device());
        std::int64_t const expected[] = {rois.size(0), first.size(1)};
        require(
            map.size(0) == expected[0] && map.size(1) == expected[1], "feature map ", level,
            " has batch and channels ", map.sizes().first(2), ", expected ", Sizes{expected, 2});
    }
}

void check(
    Tensor const& rois, std::vector<Tensor> const& features, std::int64_t size, std::int64_t ratio,
    std::vector<std::int64_t> const& strides, std::int64_t finest) {
    require(
        rois.axes() == 3 && rois.size(2) == 4, "rois has shape ", rois.sizes(),
        ", expected [B, K, 4]");
    require(
        is_float32_or_64(rois.type()), "rois is ", rois.type(),
        ", expected float32 whatever the features' dtype");
    require(
        !features.empty() && features.size() == strides.size(), features.size(),
        " feature maps for ", strides.size(), " strides, expected one each");
    bool fits = size >= 1 && ratio >= 0 && finest >= 1;
    for (std::int64_t const stride : strides) fits = fits && stride >= 1;
    Sizes const all{strides.data(), static_cast<std::int64_t>(strides.size())};
    require(
        fits, "output_size ", size, ", sampling_ratio ", ratio, ", finest_scale ", finest,
        ", strides ", Listed{all}, ": only sampling_ratio may be zero");
    check_maps(rois, features);
}

/// Strides of a tensor that is seen with other sizes, as those of torch's view().
void view_strides(Sizes sizes, Sizes strides, Sizes wanted, std::int64_t* result) {
    std::int64_t axis = wanted.count - 1;
    std::int64_t base = strides[sizes.count - 1];
    std::int64_t elements = 1;  // of axes that lie in memory as one
    std::int64_t seen = 1;
    for (std::int64_t i = sizes.count - 1; i >= 0; --i) {
        elements *= sizes[i];
        if (i > 0 && (sizes[i - 1] == 1 || strides[i - 1] == elements * base)) continue;
        while (axis >= 0 && (seen < elements || wanted[axis] == 1)) {
            result[axis] = seen * base;
            seen *= wanted[axis];
            --axis;
        }
        if (i == 0) break;
        base = strides[i - 1];
        elements = seen = 1;
    }
}

/// [B, K, C, S, S], as a view of [B*K, C, S, S] in that order.
Tensor empty_pooled(
    Layout order, std::int64_t batch, std::int64_t count, std::int64_t channels, std::int64_t size,
    Tensor const& features) {
    std::int64_t const rows = times(batch, count);
    if (rows == 0 || channels == 0) {
        std::initializer_list<std::int64_t> const sizes{batch, count, channels, size, size};
        return empty_rows(sizes, features.type(), features.device());
    }
    Map const map(order, rows, channels, size, size);
    std::int64_t const sizes[] = {batch, count, channels, size, size};
    std::int64_t strides[5];
    view_strides({map.sizes, 4}, {map.strides, 4}, {sizes, 5}, strides);
    return Tensor::empty({sizes, 5}, {strides, 5}, features.type(), features.device());
}

// --- candidates ----------------------------------------------------------------------------------

/// Boxes, sizes and constants: float32 (float64 in PyTorch) on the device of the maps.
void check_float(
    char const* name, Tensor const& tensor, Tensor const& beside,
    std::initializer_list<std::int64_t> expected) {
    Sizes const sizes{expected.begin(), static_cast<std::int64_t>(expected.size())};
    bool fits = tensor.axes() == sizes.count;
    for (std::int64_t axis = 0; fits && axis < sizes.count; ++axis) {
        fits = tensor.size(axis) == sizes[axis];
    }
    require(fits, name, " has shape ", tensor.sizes(), ", expected ", sizes);
    require(
        is_float32_or_64(tensor.type()), name, " is ", tensor.type(),
        ", expected float32 whatever the maps' dtype");
    require(
        tensor.device() == beside.device(), name, " is on ", tensor.device(), ", expected ",
        beside.device());
}

void check(
    Tensor const& image_sizes, Tensor const& anchors, Tensor const& normalization,
    std::vector<Tensor> const& maps, std::int64_t num_candidates, double min_size,
    std::vector<std::int64_t> const& strides) {
    require(
        !maps.empty() && maps.size() == 2 * strides.size(), maps.size(), " maps for ",
        strides.size(), " strides, expected logits and deltas of each");
    bool fits = true;
    for (std::int64_t const stride : strides) fits = fits && stride >= 1;
    Sizes const all{strides.data(), static_cast<std::int64_t>(strides.size())};
    require(fits, "strides is ", Listed{all}, ", expected none below 1");
    require(
        num_candidates >= 1 && num_candidates <= kMostCandidates, "num_candidates is ",
        num_candidates, ", expected 1 to ", kMostCandidates);
    require(min_size < HUGE_VAL, "min_size is ", min_size, ", expected a finite number");
    Tensor const& first = maps.front();
    require(
        anchors.axes() == 3 && anchors.size(1) >= 1, "anchors has shape ", anchors.sizes(),
        ", expected [levels, A, 4]");
    std::int64_t const levels = all.count;
    for (std::int64_t i = 0; i < 2 * levels; ++i) {
        Tensor const& map = maps[static_cast<std::size_t>(i)];
        char const* const kind = i < levels ? "logits" : "deltas";
        require(
            map.axes() == 4 && map.type().is_floating_point(), kind, " of level ", i % levels,
            " are ", map.type(), " of shape ", map.sizes(),
            ", expected floating point [B, C, H, W]");
        require(
            map.type() == first.type() && map.device() == first.device(), kind, " of level ",
            i % levels, " are ", map.type(), " on ", map.device(), ", expected ", first.type(),
            " on ", first.device());
        Tensor const& logits = maps[static_cast<std::size_t>(i % levels)];
        std::int64_t const expected[] = {
            first.size(0), anchors.size(1) * (i < levels ? 1 : 4), logits.size(2), logits.size(3)};
        bool same = true;
        for (int axis = 0; axis < 4; ++axis) same = same && map.size(axis) == expected[axis];
        require(
            same, kind, " of level ", i % levels, " have shape ", map.sizes(), ", expected ",
            Sizes{expected, 4});
        require(
            map.size(2) > 0 && map.size(3) > 0, kind, " of level ", i % levels, " have shape ",
            map.sizes(), ", expected at least one pixel");
    }
    check_float("image_sizes", image_sizes, first, {first.size(0), 2});
    check_float("anchors", anchors, first, {levels, anchors.size(1), 4});
    check_float("normalization", normalization, first, {2, 4});
}

void check(
    Tensor const& logits, Tensor const& deltas, Tensor const& proposals,
    Tensor const& num_proposals, Tensor const& image_sizes, Tensor const& normalization) {
    require(
        logits.axes() == 3 && logits.size(2) >= 1 && logits.type().is_floating_point(),
        "logits are ", logits.type(), " of shape ", logits.sizes(),
        ", expected floating point [B, P, C+1]");
    std::int64_t const batch = logits.size(0), rows = logits.size(1);
    std::int64_t const expected[] = {batch, rows, 4 * (logits.size(2) - 1)};
    bool fits = deltas.axes() == 3;
    for (int axis = 0; fits && axis < 3; ++axis) fits = deltas.size(axis) == expected[axis];
    require(fits, "deltas have shape ", deltas.sizes(), ", expected ", Sizes{expected, 3});
    require(
        deltas.type() == logits.type() && deltas.device() == logits.device(), "deltas are ",
        deltas.type(), " on ", deltas.device(), ", expected ", logits.type(), " on ",
        logits.device());
    std::int64_t const counts[] = {batch, 1};
    require(
        num_proposals.axes() == 2 && num_proposals.size(0) == batch && num_proposals.size(1) == 1,
        "num_proposals has shape ", num_proposals.sizes(), ", expected ", Sizes{counts, 2});
    require(
        num_proposals.type().number == aoti_torch_dtype_int32() &&
            num_proposals.device() == logits.device(),
        "num_proposals is ", num_proposals.type(), " on ", num_proposals.device(),
        ", expected int32 on ", logits.device());
    check_float("proposals", proposals, logits, {batch, rows, 4});
    check_float("image_sizes", image_sizes, logits, {batch, 2});
    check_float("normalization", normalization, logits, {2, 4});
}

// --- NMS -----------------------------------------------------------------------------------------

void check(
    Tensor const& boxes, Tensor const& scores, double iou_threshold, double score_threshold,
    std::int64_t max_output) {
    require(
        boxes.axes() == 4 && boxes.size(3) == 4, "boxes has shape ", boxes.sizes(),
        ", expected [B, L, M, 4]");
    bool fits = scores.axes() == 3;
    for (std::int64_t axis = 0; fits && axis < 3; ++axis) {
        fits = scores.size(axis) == boxes.size(axis);
    }
    require(fits, "scores has shape ", scores.sizes(), ", expected ", boxes.sizes().first(3));
    require(
        boxes.type() == scores.type() && is_float32_or_64(boxes.type()), "boxes is ", boxes.type(),
        " and scores ", scores.type(), ", expected float32 both");
    require(
        boxes.device() == scores.device(), "boxes is on ", boxes.device(), ", scores on ",
        scores.device(), ", expected one");
    require(
        iou_threshold >= 0 && iou_threshold <= 1, "iou_threshold is ", iou_threshold,
        ", expected a number from 0 to 1");
    require(
        score_threshold < HUGE_VAL, "score_threshold is ", score_threshold,
        ", expected a finite number");
    require(max_output >= 1, "max_output is ", max_output, ", expected at least 1");
}

/// The largest float32 that is not above `value`: a float32 exceeds both or neither.
float float_at_most(double value) {
    auto const rounded = static_cast<float>(value);
    return static_cast<double>(rounded) <= value ? rounded : std::nextafterf(rounded, -HUGE_VALF);
}

}  // namespace

std::optional<Tensor> carafe(
    Tensor const& features, Tensor const& masks, std::int64_t kernel_size, std::int64_t group_size,
    std::int64_t scale_factor) {
    Weights const kind{"masks", MaskSource::kNormalized};
    return reassemble(features, masks, kernel_size, group_size, scale_factor, kind);
}

std::optional<Tensor> carafe_encoded(
    Tensor const& features, Tensor const& encoded, std::int64_t kernel_size,
    std::int64_t group_size, std::int64_t scale_factor) {
    Weights const kind{"encoded", MaskSource::kEncoded};
    return reassemble(features, encoded, kernel_size, group_size, scale_factor, kind);
}

std::optional<Tensor> multilevel_roi_align(
    Tensor const& rois, std::vector<Tensor> const& features, std::int64_t output_size,
    std::int64_t sampling_ratio, std::vector<std::int64_t> const& strides,
    std::int64_t finest_scale) {
    check(rois, features, output_size, sampling_ratio, strides, finest_scale);
    Tensor const& first = features.front();
    if (!serves(first.type(), first.device()) || !serves(rois.type(), rois.device())) {
        return std::nullopt;
    }
    if (features.size() > kMaxLevels) {
        if (can_ask_pytorch()) return std::nullopt;
        require(false, features.size(), " feature maps, expected at most ", kMaxLevels);
    }
    Layout const order = first.order();
    std::int64_t const channels = first.size(1);
    Tensor const dense_rois = rois.in_order(Layout::kNCHW);
    std::int32_t const side = narrow("output_size", output_size);
    Tensor out = empty_pooled(order, rois.size(0), rois.size(1), channels, side, first);
    RoiAlignParams params{};
    params.dtype = dtype_of(first.type());
    params.layout = order;
    params.batch = narrow("batch", rois.size(0));
    params.rois = narrow("rois", rois.size(1));
    params.channels = narrow("channels", channels);
    params.levels = static_cast<std::int32_t>(features.size());
    params.output_size = side;
    params.sampling_ratio = narrow("sampling_ratio", sampling_ratio);
    params.finest_scale = narrow("finest_scale", finest_scale);
    params.feature_pitch = params.out_pitch = params.channels;
    std::vector<Tensor> maps;  // keeps copies alive until the call
    maps.reserve(features.size());
    void const* addresses[kMaxLevels];
    for (std::size_t level = 0; level < features.size(); ++level) {
        maps.push_back(features[level].in_order(order));
        addresses[level] = maps.back().data();
        params.heights[level] = narrow("heights", maps.back().size(2));
        params.widths[level] = narrow("widths", maps.back().size(3));
        params.strides[level] = narrow("strides", strides[level]);
    }
    Place const place(rois);
    computed(carafe_multilevel_roi_align(
        &params, place.device(), static_cast<float const*>(dense_rois.data()), addresses,
        out.mutable_data(), place.stream(), place.threads()));
    return out;
}

std::optional<std::tuple<Tensor, Tensor>> rpn_candidates(
    Tensor const& image_sizes, Tensor const& anchors, Tensor const& normalization,
    std::vector<Tensor> const& maps, std::int64_t num_candidates, double min_size,
    std::vector<std::int64_t> const& strides) {
    check(image_sizes, anchors, normalization, maps, num_candidates, min_size, strides);
    Tensor const& first = maps.front();
    for (Tensor const* each : {&first, &image_sizes, &anchors, &normalization}) {
        if (!serves(each->type(), each->device())) return std::nullopt;
    }
    if (strides.size() > kMaxLevels) {
        if (can_ask_pytorch()) return std::nullopt;
        require(false, strides.size(), " strides, expected at most ", kMaxLevels);
    }
    Layout const order = maps[strides.size()].order();  // logits may have one channel
    RpnCandidatesParams params{};
    params.dtype = dtype_of(first.type());
    params.layout = order;
    params.batch = narrow("batch", first.size(0));
    params.levels = static_cast<std::int32_t>(strides.size());
    params.anchors = params.logit_pitch = narrow("anchors", anchors.size(1));
    params.delta_pitch = narrow("anchors", 4 * anchors.size(1));
    params.candidates = static_cast<std::int32_t>(num_candidates);
    params.min_size = min_size < 0 ? -1.0f : static_cast<float>(min_size);
    std::vector<Tensor> dense;  // keeps copies alive until the call
    dense.reserve(maps.size());
    void const* addresses[2 * kMaxLevels];
    for (std::size_t i = 0; i < maps.size(); ++i) {
        dense.push_back(maps[i].in_order(order));
        addresses[i] = dense.back().data();
        if (i >= strides.size()) continue;
        params.heights[i] = narrow("heights", dense.back().size(2));
        params.widths[i] = narrow("widths", dense.back().size(3));
        params.strides[i] = narrow("strides", strides[i]);
    }
    Tensor const sizes = image_sizes.in_order(Layout::kNCHW);
    Tensor const base = anchors.in_order(Layout::kNCHW);
    Tensor const statistics = normalization.in_order(Layout::kNCHW);
    std::int64_t const batch = first.size(0), levels = params.levels;
    Tensor boxes = empty_rows({batch, levels, num_candidates, 4}, sizes.type(), first.device());
    Tensor scores = empty_rows({batch, levels, num_candidates}, sizes.type(), first.device());
    Place const place(first);
    computed(carafe_rpn_candidates(
        &params, place.device(), static_cast<float const*>(sizes.data()),
        static_cast<float const*>(base.data()), static_cast<float const*>(statistics.data()),
        addresses, static_cast<float*>(boxes.mutable_data()),
        static_cast<float*>(scores.mutable_data()), place.stream(), place.threads()));
    return std::tuple{std::move(boxes), std::move(scores)};
}

std::optional<std::tuple<Tensor, Tensor>> box_candidates(
    Tensor const& logits, Tensor const& deltas, Tensor const& proposals,
    Tensor const& num_proposals, Tensor const& image_sizes, Tensor const& normalization) {
    check(logits, deltas, proposals, num_proposals, image_sizes, normalization);
    for (Tensor const* each : {&logits, &proposals, &image_sizes, &normalization}) {
        if (!serves(each->type(), each->device())) return std::nullopt;
    }
    std::int64_t const batch = logits.size(0), rows = logits.size(1);
    std::int64_t const classes = logits.size(2) - 1;
    BoxCandidatesParams params{};
    params.dtype = dtype_of(logits.type());
    params.batch = narrow("batch", batch);
    params.proposals = narrow("proposals", rows);
    params.classes = narrow("classes", classes);
    Tensor const inputs[] = {
        logits.in_order(Layout::kNCHW),      deltas.in_order(Layout::kNCHW),
        proposals.in_order(Layout::kNCHW),   num_proposals.in_order(Layout::kNCHW),
        image_sizes.in_order(Layout::kNCHW), normalization.in_order(Layout::kNCHW)};
    Type const type = proposals.type();
    Tensor boxes = empty_rows({batch, classes, rows, 4}, type, logits.device());
    Tensor scores = empty_rows({batch, classes, rows}, type, logits.device());
    Place const place(logits);
    computed(carafe_box_candidates(
        &params, place.device(), inputs[0].data(), inputs[1].data(),
        static_cast<float const*>(inputs[2].data()),
        static_cast<std::int32_t const*>(inputs[3].data()),
        static_cast<float const*>(inputs[4].data()), static_cast<float const*>(inputs[5].data()),
        static_cast<float*>(boxes.mutable_data()), static_cast<float*>(scores.mutable_data()),
        place.stream(), place.threads()));
    return std::tuple{std::move(boxes), std::move(scores)};
}

std::optional<std::tuple<Tensor, Tensor>> batched_nms(
    Tensor const& boxes, Tensor const& scores, double iou_threshold, double score_threshold,
    std::int64_t max_output) {
    check(boxes, scores, iou_threshold, score_threshold, max_output);
    if (!serves(boxes.type(), boxes.device())) return std::nullopt;
    Tensor const dense_boxes = boxes.in_order(Layout::kNCHW);
    Tensor const dense_scores = scores.in_order(Layout::kNCHW);
    NmsParams params{};
    params.batch = narrow("batch", boxes.size(0));
    params.labels = narrow("labels", boxes.size(1));
    params.candidates = narrow("candidates", boxes.size(2));
    params.max_output = narrow("max_output", max_output);
    params.iou_threshold = float_at_most(iou_threshold);
    params.score_threshold = static_cast<float>(score_threshold);
    Device const device = boxes.device();
    Tensor num_dets = empty_rows({boxes.size(0), 1}, {aoti_torch_dtype_int32()}, device);
    Tensor indices = empty_rows({boxes.size(0), max_output}, {aoti_torch_dtype_int64()}, device);
    std::int64_t const size = boxes.is_cuda() ? carafe_batched_nms_workspace(&params) : 0;
    if (size < 0) computed(CARAFE_INVALID);
    Tensor const workspace = empty_rows({size}, {aoti_torch_dtype_uint8()}, device);
    Place const place(boxes);
    computed(carafe_batched_nms(
        &params, place.device(), static_cast<float const*>(dense_boxes.data()),
        static_cast<float const*>(dense_scores.data()),
        static_cast<std::int32_t*>(num_dets.mutable_data()),
        static_cast<std::int64_t*>(indices.mutable_data()), workspace.mutable_data(),
        place.stream(), place.threads()));
    return std::tuple{std::move(num_dets), std::move(indices)};
}

}  // namespace carafe::torch_adapter
