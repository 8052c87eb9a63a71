// The operators of plugins/README.md: shapes are checked, then c_api.h computes.
#include <memory>

#include "kernel.h"

namespace carafe::ort {
namespace {

DType dtype_of(int element) {
    return element == kHalf       ? DType::kFloat16
           : element == kBFloat16 ? DType::kBFloat16
                                  : DType::kFloat32;
}

std::string text(Shape const& shape) {
    std::string result = "[";
    for (std::int64_t const size : shape) {
        result += (result.size() > 1 ? ", " : "") + std::to_string(size);
    }
    return result + "]";
}

/// Refuses another number of axes than `axes` says, which is how the contract writes the shape.
void check_axes(char const* name, Shape const& shape, std::size_t count, char const* axes) {
    if (shape.size() != count) {
        throw Invalid(std::string(name) + " has shape " + text(shape) + ", expected " + axes);
    }
}

void check_shape(char const* name, Shape const& shape, Shape const& expected) {
    if (shape != expected) {
        throw Invalid(
            std::string(name) + " has shape " + text(shape) + ", expected " + text(expected));
    }
}

template <MaskSource source>
class CarafeKernel final : public Kernel {
  public:
    explicit CarafeKernel(Attributes const& attributes)
        : kernel_size_(attributes.number("kernel_size")),
          groups_(attributes.number("group_size")),
          scale_(attributes.number("scale_factor")) {
        // The shapes that follow from the attributes can be computed once these are checked.
        CarafeParams const empty = attributes_only();
        if (carafe_forward(&empty, CARAFE_CPU, nullptr, nullptr, nullptr, nullptr, 1) !=
            CARAFE_OK) {
            throw Invalid(carafe_last_error());
        }
    }

    void compute(Run const& run) const override {
        Tensor const features = run.input(0);
        Tensor const masks = run.input(1);
        check_axes("features", features.shape, 4, "[N, C, H, W]");
        CarafeParams params = attributes_only();
        params.dtype = dtype_of(features.element);
        params.batch = narrow("batch", features.shape[0]);
        params.channels = narrow("channels", features.shape[1]);
        params.height = narrow("height", features.shape[2]);
        params.width = narrow("width", features.shape[3]);
        bool const encoded = source == MaskSource::kEncoded;
        std::int64_t const scale = encoded ? 1 : scale_;
        check_shape(
            encoded ? "encoded" : "masks", masks.shape,
            {features.shape[0], mask_channels(params), scale * features.shape[2],
             scale * features.shape[3]});
        params.mask_pitch = narrow("channels", masks.shape[1]);
        params.feature_pitch = params.out_pitch = params.channels;
        void* const out = run.output(
            0, {features.shape[0], features.shape[1], scale_ * features.shape[2],
                scale_ * features.shape[3]});
        run.call([&] {
            return carafe_forward(
                &params, run.device(), features.data, masks.data, out, run.stream(), 0);
        });
    }

  private:
    CarafeParams attributes_only() const {
        CarafeParams params{};
        params.layout = Layout::kNCHW;
        params.source = source;
        params.kernel_size = kernel_size_;
        params.groups = groups_;
        params.scale = scale_;
        return params;
    }

    std::int32_t kernel_size_, groups_, scale_;
};

void infer_carafe(ShapeRun const& run) {
    std::vector<Size> features;
    int element = 0;
    if (!run.input(0, 4, features, element)) return;
    std::int64_t const scale = run.number("scale_factor");
    run.output(
        0, {features[0], features[1], features[2].times(scale), features[3].times(scale)}, element);
}

class RoiAlignKernel final : public Kernel {
  public:
    explicit RoiAlignKernel(Attributes const& attributes)
        : output_size_(attributes.number("output_size")),
          sampling_ratio_(attributes.number("sampling_ratio")),
          finest_scale_(attributes.number("finest_scale")),
          strides_(attributes.numbers("strides")) {}

    void compute(Run const& run) const override {
        std::size_t const levels = run.input_count() - 1;
        if (levels != strides_.size() || levels > kMaxLevels) {
            throw Invalid(
                std::to_string(levels) + " feature maps for " + std::to_string(strides_.size()) +
                " strides, expected one each, 1 to " + std::to_string(kMaxLevels));
        }
        Tensor const rois = run.input(0);
        check_axes("rois", rois.shape, 3, "[B, K, 4]");
        check_shape("rois", rois.shape, {rois.shape[0], rois.shape[1], 4});
        RoiAlignParams params{};
        params.layout = Layout::kNCHW;
        params.batch = narrow("batch", rois.shape[0]);
        params.rois = narrow("the number of RoIs", rois.shape[1]);
        params.levels = narrow("the number of levels", static_cast<std::int64_t>(levels));
        params.output_size = output_size_;
        params.sampling_ratio = sampling_ratio_;
        params.finest_scale = finest_scale_;
        std::vector<void const*> maps;
        std::int64_t channels = 0;
        for (std::size_t level = 0; level < levels; ++level) {
            Tensor const map = run.input(level + 1);
            check_axes("a feature map", map.shape, 4, "[B, C, H, W]");
            if (level == 0) channels = map.shape[1];
            check_shape(
                "a feature map", map.shape, {rois.shape[0], channels, map.shape[2], map.shape[3]});
            params.dtype = dtype_of(map.element);
            params.heights[level] = narrow("height", map.shape[2]);
            params.widths[level] = narrow("width", map.shape[3]);
            params.strides[level] = strides_[level];
            maps.push_back(map.data);
        }
        params.channels = params.feature_pitch = params.out_pitch = narrow("channels", channels);
        void* const out =
            run.output(0, {rois.shape[0], rois.shape[1], channels, output_size_, output_size_});
        run.call([&] {
            return carafe_multilevel_roi_align(
                &params, run.device(), static_cast<float const*>(rois.data), maps.data(), out,
                run.stream(), 0);
        });
    }

  private:
    std::int32_t output_size_, sampling_ratio_, finest_scale_;
    std::vector<std::int32_t> strides_;
};

void infer_roi_align(ShapeRun const& run) {
    std::vector<Size> rois, map;
    int element = 0;
    if (!run.input(0, 3, rois, element) || !run.input(1, 4, map, element)) return;
    std::int64_t const side = run.number("output_size");
    run.output(0, {rois[0], rois[1], map[1], side, side}, element);
}

class RpnCandidatesKernel final : public Kernel {
  public:
    explicit RpnCandidatesKernel(Attributes const& attributes)
        : candidates_(attributes.number("num_candidates")),
          min_size_(attributes.real("min_size")),
          strides_(attributes.numbers("strides")) {}

    void compute(Run const& run) const override {
        constexpr std::size_t kFirst = 3;
        std::size_t const levels = strides_.size();
        if (run.input_count() != kFirst + 2 * levels || levels > kMaxLevels) {
            throw Invalid(
                std::to_string(run.input_count() - kFirst) + " maps for " + std::to_string(levels) +
                " strides, expected two each, 1 to " + std::to_string(kMaxLevels) + " levels");
        }
        Tensor const sizes = run.input(0), anchors = run.input(1), normalization = run.input(2);
        check_axes("image_sizes", sizes.shape, 2, "[B, 2]");
        check_axes("anchors", anchors.shape, 3, "[L, A, 4]");
        std::int64_t const batch = sizes.shape[0], per_pixel = anchors.shape[1];
        check_shape("image_sizes", sizes.shape, {batch, 2});
        check_shape("anchors", anchors.shape, {static_cast<std::int64_t>(levels), per_pixel, 4});
        check_shape("normalization", normalization.shape, {2, 4});
        RpnCandidatesParams params{};
        params.layout = Layout::kNCHW;
        params.batch = narrow("batch", batch);
        params.levels = static_cast<std::int32_t>(levels);
        params.anchors = narrow("the number of anchors", per_pixel);
        params.candidates = candidates_;
        params.min_size = min_size_;
        std::vector<void const*> maps;
        for (std::size_t i = 0; i < 2 * levels; ++i) {
            Tensor const map = run.input(kFirst + i);
            check_axes("a map", map.shape, 4, "[B, A or 4*A, H, W]");
            std::size_t const level = i % levels;
            if (i < levels) {
                params.heights[level] = narrow("height", map.shape[2]);
                params.widths[level] = narrow("width", map.shape[3]);
                params.strides[level] = strides_[level];
            }
            check_shape(
                "a map", map.shape,
                {batch, i < levels ? per_pixel : 4 * per_pixel, params.heights[level],
                 params.widths[level]});
            params.dtype = dtype_of(map.element);
            maps.push_back(map.data);
        }
        Shape shape{batch, params.levels, candidates_};
        void* const scores = run.output(1, shape);
        shape.push_back(4);
        void* const boxes = run.output(0, shape);
        run.call([&] {
            return carafe_rpn_candidates(
                &params, run.device(), static_cast<float const*>(sizes.data),
                static_cast<float const*>(anchors.data),
                static_cast<float const*>(normalization.data), maps.data(),
                static_cast<float*>(boxes), static_cast<float*>(scores), run.stream(), 0);
        });
    }

  private:
    std::int32_t candidates_;
    float min_size_;
    std::vector<std::int32_t> strides_;
};

void infer_rpn_candidates(ShapeRun const& run) {
    std::vector<Size> sizes, anchors;
    int element = 0;
    if (!run.input(0, 2, sizes, element) || !run.input(1, 3, anchors, element)) return;
    std::int64_t const candidates = run.number("num_candidates");
    run.output(0, {sizes[0], anchors[0], candidates, 4}, kFloat);
    run.output(1, {sizes[0], anchors[0], candidates}, kFloat);
}

class BoxCandidatesKernel final : public Kernel {
  public:
    explicit BoxCandidatesKernel(Attributes const&) {}

    void compute(Run const& run) const override {
        Tensor const logits = run.input(0), deltas = run.input(1), proposals = run.input(2);
        Tensor const count = run.input(3), sizes = run.input(4), normalization = run.input(5);
        check_axes("logits", logits.shape, 3, "[B, P, C+1]");
        std::int64_t const batch = logits.shape[0], rows = logits.shape[1];
        std::int64_t const classes = logits.shape[2] - 1;
        check_shape("deltas", deltas.shape, {batch, rows, 4 * classes});
        check_shape("proposals", proposals.shape, {batch, rows, 4});
        check_shape("num_proposals", count.shape, {batch, 1});
        check_shape("image_sizes", sizes.shape, {batch, 2});
        check_shape("normalization", normalization.shape, {2, 4});
        BoxCandidatesParams params{};
        params.dtype = dtype_of(logits.element);
        params.batch = narrow("batch", batch);
        params.proposals = narrow("the number of proposals", rows);
        params.classes = narrow("the number of classes", classes);
        void* const boxes = run.output(0, {batch, classes, rows, 4});
        void* const scores = run.output(1, {batch, classes, rows});
        run.call([&] {
            return carafe_box_candidates(
                &params, run.device(), logits.data, deltas.data,
                static_cast<float const*>(proposals.data),
                static_cast<std::int32_t const*>(count.data), static_cast<float const*>(sizes.data),
                static_cast<float const*>(normalization.data), static_cast<float*>(boxes),
                static_cast<float*>(scores), run.stream(), 0);
        });
    }
};

void infer_box_candidates(ShapeRun const& run) {
    std::vector<Size> logits;
    int element = 0;
    if (!run.input(0, 3, logits, element)) return;
    Size const classes = logits[2].number < 0 ? -1 : logits[2].number - 1;
    run.output(0, {logits[0], classes, logits[1], 4}, kFloat);
    run.output(1, {logits[0], classes, logits[1]}, kFloat);
}

class NmsKernel final : public Kernel {
  public:
    explicit NmsKernel(Attributes const& attributes)
        : max_output_(attributes.number("max_output")),
          iou_threshold_(attributes.real("iou_threshold")),
          score_threshold_(attributes.real("score_threshold")) {}

    void compute(Run const& run) const override {
        Tensor const boxes = run.input(0);
        Tensor const scores = run.input(1);
        check_axes("boxes", boxes.shape, 4, "[B, L, M, 4]");
        Shape const sizes(boxes.shape.begin(), boxes.shape.end() - 1);
        check_shape("boxes", boxes.shape, {sizes[0], sizes[1], sizes[2], 4});
        check_shape("scores", scores.shape, sizes);
        NmsParams params{};
        params.batch = narrow("batch", sizes[0]);
        params.labels = narrow("the number of labels", sizes[1]);
        params.candidates = narrow("the number of candidates", sizes[2]);
        params.max_output = max_output_;
        params.iou_threshold = iou_threshold_;
        params.score_threshold = score_threshold_;
        std::int64_t const bytes = carafe_batched_nms_workspace(&params);
        if (bytes < 0) throw Invalid(carafe_last_error());
        void* const count = run.output(0, {sizes[0], 1});
        void* const indices = run.output(1, {sizes[0], max_output_});
        void* const workspace = run.scratch(static_cast<std::size_t>(bytes));
        run.call([&] {
            return carafe_batched_nms(
                &params, run.device(), static_cast<float const*>(boxes.data),
                static_cast<float const*>(scores.data), static_cast<std::int32_t*>(count),
                static_cast<std::int64_t*>(indices), workspace, run.stream(), 0);
        });
    }

  private:
    std::int32_t max_output_;
    float iou_threshold_, score_threshold_;
};

void infer_nms(ShapeRun const& run) {
    std::vector<Size> boxes;
    int element = 0;
    if (!run.input(0, 4, boxes, element)) return;
    run.output(0, {boxes[0], 1}, kInt32);
    run.output(1, {boxes[0], run.number("max_output")}, kInt64);
}

template <typename Made>
Kernel* create(Attributes const& attributes) {
    return new Made(attributes);
}

constexpr int kT = 0;

}  // namespace

std::vector<Operator> const& operators() {
    static std::vector<Operator> const all{
        {"Carafe",
         {kT, kT},
         {kT},
         false,
         create<CarafeKernel<MaskSource::kNormalized>>,
         infer_carafe},
        {"CarafeEncoded",
         {kT, kT},
         {kT},
         false,
         create<CarafeKernel<MaskSource::kEncoded>>,
         infer_carafe},
        {"MultilevelRoiAlign", {kFloat, kT}, {kT}, true, create<RoiAlignKernel>, infer_roi_align},
        {"RpnCandidates",
         {kFloat, kFloat, kFloat, kT},
         {kFloat, kFloat},
         true,
         create<RpnCandidatesKernel>,
         infer_rpn_candidates},
        {"BoxCandidates",
         {kT, kT, kFloat, kInt32, kFloat, kFloat},
         {kFloat, kFloat},
         false,
         create<BoxCandidatesKernel>,
         infer_box_candidates},
        {"BatchedNms", {kFloat, kFloat}, {kInt32, kInt64}, false, create<NmsKernel>, infer_nms},
    };
    return all;
}

}  // namespace carafe::ort
