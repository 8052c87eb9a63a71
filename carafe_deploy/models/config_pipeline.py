"""Preprocessing from mmdetection's configs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from carafe_deploy.errors import ConfigError
from carafe_deploy.models.class_names import DATASETS, config_value
from carafe_deploy.models.config_section import Section
from carafe_deploy.models.config_text import short
from carafe_deploy.types import Preprocessing

_Vec3 = tuple[float, float, float]
#: Steps that hand data on without changing the image.
_NEUTRAL_STEPS = (
    "Collect",
    "DefaultFormatBundle",
    "ImageToTensor",
    "LoadAnnotations",
    "LoadImageFromWebcam",
    "PackDetInputs",
)


def preprocessing(cfg: Mapping[str, Any], notes: list[str]) -> Preprocessing:
    """mmdetection's test pipeline, from ``MultiScaleFlipAug`` (2.x) or plain steps (3.x).

    What a config leaves out entirely is mmdetection's COCO default, and goes into `notes`.

    Raises:
        ConfigError: a step, or a setting of a step, that :class:`Preprocessing` cannot express.
    """
    steps = _Steps()
    pipeline, path = _find_pipeline(cfg)
    if pipeline is None:
        notes.append(
            "the config has no test pipeline: images are resized to "
            f"{Preprocessing.scale[0]}x{Preprocessing.scale[1]} as mmdetection does for COCO"
        )
    else:
        steps.read(pipeline, path)
        if steps.scale is None:
            raise ConfigError(f"{path} has no Resize: supported is Resize with keep_ratio=True")
    scale = steps.scale or Preprocessing.scale

    model = cfg.get("model")
    inside = model.get("data_preprocessor") if isinstance(model, Mapping) else None
    if inside is not None or cfg.get("data_preprocessor") is not None:
        if steps.normalisation is not None or steps.divisor is not None:
            raise ConfigError(
                f"{path} normalises or pads, and so does data_preprocessor: only one of them may"
            )
        where = "data_preprocessor" if inside is None else "model.data_preprocessor"
        settings = inside if inside is not None else cfg["data_preprocessor"]
        return _data_preprocessor(Section(settings, where), scale)
    if pipeline is None:
        notes.append("the config has no normalisation: it is mmdetection's for COCO")
        return Preprocessing(scale=scale)
    if steps.normalisation is None:
        raise ConfigError(
            f"{path} has no Normalize, and the model no data_preprocessor: give the config that "
            "the checkpoint was trained with"
        )
    mean, std, bgr_to_rgb = steps.normalisation
    return Preprocessing(scale, mean, std, bgr_to_rgb, steps.divisor or 1)


def _find_pipeline(cfg: Mapping[str, Any]) -> tuple[Any, str]:
    for path in DATASETS:
        dataset, name = config_value(cfg, path), ".".join(path)
        for wrapper in ("dataset", "datasets"):  # RepeatDataset, ConcatDataset
            if isinstance(dataset, Mapping) and "pipeline" not in dataset:
                dataset, name = dataset.get(wrapper, dataset), f"{name}.{wrapper}"
        if isinstance(dataset, (list, tuple)) and dataset:
            first = dataset[0]
            if any(
                config_value(other, ("pipeline",)) != config_value(first, ("pipeline",))
                for other in dataset
            ):
                raise ConfigError(f"{name} has datasets with different pipelines: keep one")
            dataset, name = first, f"{name}[0]"
        if isinstance(dataset, Mapping) and dataset.get("pipeline") is not None:
            return dataset["pipeline"], f"{name}.pipeline"
    return cfg.get("test_pipeline"), "test_pipeline"


class _Steps:
    """What the steps of a pipeline do to an image, collected in order."""

    def __init__(self) -> None:
        self.scale: tuple[int, int] | None = None
        self.normalisation: tuple[_Vec3, _Vec3, bool] | None = None
        self.divisor: int | None = None

    def read(self, pipeline: Any, path: str, in_augmentation: bool = False) -> None:
        if not isinstance(pipeline, (list, tuple)):
            raise ConfigError(f"{path}={short(pipeline)} is not a list of steps")
        for number, values in enumerate(pipeline):
            step = Section(values, f"{path}[{number}]")
            kind = step.kind(
                "LoadImageFromFile", "LoadImageFromNDArray", "MultiScaleFlipAug", "Resize",
                "RandomFlip", "Normalize", "Pad", *_NEUTRAL_STEPS,
            )  # fmt: skip
            if kind in _NEUTRAL_STEPS:
                continue
            if kind == "MultiScaleFlipAug":
                self._set_scale(step, "img_scale")
                step.only(flip=False)
                self.read(step.raw("transforms"), step.key("transforms"), in_augmentation=True)
                step.close("flip_direction")
            elif kind == "RandomFlip":
                if not in_augmentation:
                    step.only(flip_ratio=0, prob=0)
            elif kind == "Resize":
                self._resize(step)
            elif kind == "Normalize":
                self._normalise(step)
            elif kind == "Pad":
                self._pad(step)
            else:
                step.only(to_float32=False, color_type="color", channel_order="bgr")
                step.only(imdecode_backend="cv2")
                step.close("file_client_args", "backend_args", "ignore_empty")

    def _resize(self, step: Section) -> None:
        if not step.flag("keep_ratio", default="scale" not in step):  # True in 2.x, False in 3.x
            raise step.error("keep_ratio", "True")
        step.only(interpolation="bilinear", backend="cv2", ratio_range=None)
        self._set_scale(step, "scale", "img_scale")
        step.close("multiscale_mode", "override", "bbox_clip_border", "clip_object_border")

    def _set_scale(self, step: Section, *names: str) -> None:
        value = step.raw(*names)
        if value is None:
            return
        name = next(name for name in names if name in step)
        if isinstance(value, (list, tuple)) and len(value) == 1:
            value = value[0]
        if (
            not isinstance(value, (list, tuple))
            or len(value) != 2
            or not all(type(edge) is int and edge > 0 for edge in value)
        ):
            raise step.error(name, "one pair of positive edge lengths, e.g. (1333, 800)")
        scale = (max(value), min(value))
        if self.scale not in (None, scale):
            raise step.error(name, f"one scale for all steps ({self.scale} before)")
        self.scale = scale

    def _normalise(self, step: Section) -> None:
        if self.divisor is not None:
            raise ConfigError(f"{step.path} normalises after Pad; supported: before it")
        if self.normalisation is not None:
            raise ConfigError(f"{step.path} normalises once more; supported: once")
        self.normalisation = (*_mean_std(step), step.flag("to_rgb", default=True))
        step.close()

    def _pad(self, step: Section) -> None:
        if self.normalisation is None:
            raise ConfigError(
                f"{step.path} pads before Normalize; supported: after it (2.x), or as "
                "pad_size_divisor of the data_preprocessor (3.x)"
            )
        self.divisor = step.integer("size_divisor", default=1)
        step.only(size=None, pad_to_square=False)
        if isinstance(step.raw("pad_val"), Mapping):
            step.child("pad_val").only(img=0)
        else:
            step.only(pad_val=0)
        step.close()


def _data_preprocessor(section: Section, scale: tuple[int, int]) -> Preprocessing:
    section.kind("DetDataPreprocessor", default="DetDataPreprocessor")
    section.only(rgb_to_bgr=False, pad_value=0)
    if ("mean" in section) != ("std" in section):
        raise section.error("mean", "mean and std together")
    mean, std = _mean_std(section, default=((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)))
    bgr_to_rgb = section.flag("bgr_to_rgb", default=False)
    divisor = section.integer("pad_size_divisor", default=1)
    section.close(
        "pad_mask", "mask_pad_value", "pad_seg", "seg_pad_value", "boxtype2tensor", "non_blocking",
        "batch_augments",
    )  # fmt: skip
    return Preprocessing(scale, mean, std, bgr_to_rgb, divisor)


def _mean_std(
    section: Section, default: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())
) -> tuple[_Vec3, _Vec3]:
    mean_0, mean_1, mean_2 = section.numbers("mean", default[0], 3)
    std_0, std_1, std_2 = section.numbers("std", default[1], 3)
    if min(std_0, std_1, std_2) <= 0:
        raise section.error("std", "positive numbers")
    return (mean_0, mean_1, mean_2), (std_0, std_1, std_2)
