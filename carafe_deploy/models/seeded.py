"""Detectors with seeded weights that detect something, for tests and benchmarks at full size.

Freshly initialised detectors see nothing. Here all weights are drawn from a seed. Then one
photograph passes through, and every layer is scaled to unit variance (LSUV, Mishkin & Matas,
arXiv:1511.06422, with each channel's mean removed so that RoIs differ). Last, the background's bias
is set so that a few dozen detections of many classes remain, no score near the threshold.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from carafe_deploy.models.config import DetectorConfig
from carafe_deploy.models.detector import Detector, build_detector
from carafe_deploy.models.resnet import BasicBlock, Bottleneck
from carafe_deploy.models.rpn import Proposals

#: Weight of the last normalisation of a residual branch. Trained networks add small residuals;
#: random ones of unit variance would multiply rounding errors with depth.
_RESIDUAL = 0.2

#: Standard deviation of a layer's outputs on the photograph; 1 for all others.
_OUTPUT_STD = {
    "content_encoder": 0.5,  # reassembly kernels not uniform, and yet smooth
    # Coarse levels have few anchors; louder ones still place RoIs among the best.
    "neck.fpn_convs.1.conv": 1.2,
    "neck.fpn_convs.2.conv": 1.5,
    "neck.fpn_convs.3.conv": 2.5,
    "neck.fpn_convs.4.conv": 3.0,
    "rpn_reg": 0.25,
    "fc_cls": 3.0,
    "fc_reg": 0.5,
    "conv_logits": 2.0,
}


def seeded_detector(
    config: DetectorConfig,
    images: Tensor,
    image_sizes: Tensor,
    *,
    seed: int = 0,
    detections: int = 40,
) -> Detector:
    """A detector in evaluation mode, float32, that finds about `detections` objects in an image.

    Args:
        config: of the detector.
        images: [1, 3, H, W] float32, a preprocessed photograph.
        image_sizes: [1, 2] float32.
        seed: of the weights.
        detections: wanted number; the scores' gap at the threshold decides between neighbours.
    """
    detector = build_detector(config)
    generator = torch.Generator().manual_seed(seed)
    for module in detector.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for name, module in detector.named_modules():
        if isinstance(module, nn.Conv2d) and not name.startswith("backbone"):
            module.weight.data.copy_(_smooth(module.weight.data))
    for module in detector.modules():
        if isinstance(module, (BasicBlock, Bottleneck)):
            last = module.bn3 if isinstance(module, Bottleneck) else module.bn2
            nn.init.constant_(last.weight, _RESIDUAL)
    seen: dict[str, Any] = {}
    with torch.no_grad(), _calibration(detector, seen):
        detector(images, image_sizes)
        _set_background(detector, seen, image_sizes, detections)
    return detector


def _smooth(weight: Tensor) -> Tensor:
    """The same random mixture of channels at all taps, fading outwards.

    As in a trained network, pooled features then do not hinge on a hundredth of a pixel.
    """
    rows, columns = (torch.hann_window(size + 2, periodic=False) for size in weight.shape[2:])
    window = torch.outer(rows[1:-1], columns[1:-1])
    return weight[:, :, :1, :1] * window / window.sum()


@contextmanager
def _calibration(detector: Detector, seen: dict[str, Any]) -> Iterator[None]:
    """Hooks that give every layer the statistics it should have, one after the other."""
    handles = []
    for name, module in detector.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            handles.append(module.register_forward_pre_hook(_take_statistics))
        elif isinstance(module, (nn.Conv2d, nn.Linear)) and not name.startswith("backbone"):
            std = _OUTPUT_STD.get(name) or _OUTPUT_STD.get(name.split(".")[-1], 1.0)
            handles.append(module.register_forward_hook(_normalise(std)))

    def keep(module: nn.Module, arguments: Any, result: Any) -> None:
        seen["inputs"] = arguments

    handles.append(detector.roi_head.detection_selector.register_forward_hook(keep))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _take_statistics(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
    assert isinstance(module, nn.BatchNorm2d)
    assert module.running_mean is not None
    assert module.running_var is not None
    x = arguments[0]
    module.running_mean.copy_(x.mean(dim=(0, 2, 3)))
    module.running_var.copy_(x.var(dim=(0, 2, 3)))


def _normalise(std: float) -> Any:
    """A hook that rescales a layer whose bias is still zero, and the output it just made."""

    def hook(module: nn.Module, arguments: tuple[Tensor, ...], out: Tensor) -> Tensor:
        assert isinstance(module, (nn.Conv2d, nn.Linear))
        channel = 1 if isinstance(module, nn.Conv2d) else out.dim() - 1
        others = [axis for axis in range(out.dim()) if axis != channel]
        mean = out.mean(dim=others)
        shape = [-1 if axis == channel else 1 for axis in range(out.dim())]
        scale = std / (out - mean.view(shape)).std()
        # Layers shared by pyramid levels keep what the first, finest level gave them.
        if module.bias is not None and not module.bias.any():
            module.weight.mul_(scale)
            module.bias.copy_(-mean * scale)
            return (out - mean.view(shape)) * scale
        return out

    return hook


def _set_background(
    detector: Detector, seen: dict[str, Any], image_sizes: Tensor, wanted: int
) -> None:
    """Choose the background's bias by bisection, then by the widest gap around the threshold."""
    logits, deltas, proposals, _ = seen["inputs"]
    selector = detector.roi_head.detection_selector
    threshold = detector.config.box.score_threshold

    def detect(bias: float) -> tuple[int, float]:
        shifted = logits.clone()
        shifted[..., -1] += bias
        scores = shifted.softmax(dim=-1)[..., :-1]
        gap = float((scores - threshold).abs().min())
        found = selector(shifted, deltas, Proposals(*proposals), image_sizes)
        return int(found.num_dets[0, 0]), gap

    low, high = -20.0, 60.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if detect(middle)[0] > wanted else (low, middle)
    candidates = [high + step * 0.02 for step in range(-20, 21)]
    best = max(candidates, key=lambda bias: detect(bias)[1])
    detector.roi_head.bbox_head.fc_cls.bias[-1] += best
