"""No exported file normalises batches: the convolutions have taken that over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch

from carafe_deploy.graph.onnx_export import EXPORTERS
from carafe_deploy.graph.options import ExportOptions
from carafe_deploy.models.checkpoint import load_detector
from carafe_deploy.models.detector import Detector

STATIC = ExportOptions((1, 1), (128, 128), (128, 128))


@pytest.fixture(scope="module")
def detector(shapes_dir: Path) -> Detector:
    return load_detector(shapes_dir / "shapes_mask_rcnn_carafe-fbec7e06.pth")[0]


def convolutions(detector: Detector) -> int:
    """Calls of a convolution in one pass: those of the RPN run on five levels."""
    modules = [name for name, m in detector.named_modules() if isinstance(m, torch.nn.Conv2d)]
    on_every_level = [name for name in modules if name.startswith("rpn_head")]
    # The mask head's last convolution is a matrix product.
    return len(modules) + 4 * len(on_every_level) - 1


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_onnx(detector: Detector, export: Callable[..., Path], exporter: str) -> None:
    path = export("mask", ".onnx", STATIC, exporter=exporter)
    kinds = Counter(node.op_type for node in onnx.load(path).graph.node)
    assert kinds["BatchNormalization"] == 0
    assert kinds["Conv"] == convolutions(detector)


@pytest.mark.parametrize("channels_last", [True, False])
def test_torchscript(detector: Detector, export: Callable[..., Path], channels_last: bool) -> None:
    path = export("mask", ".ts", STATIC, channels_last=channels_last)
    module = torch.jit.load(str(path))
    for method in ("forward", "stages"):
        text = str(getattr(module, method).inlined_graph)
        assert "aten::batch_norm" not in text
        assert text.count("aten::_convolution") == convolutions(detector)
    weights = [p for p in module.parameters() if p.dim() == 4 and p.shape[2] > 1 and p.shape[1] > 1]
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert weights
    assert all(weight.is_contiguous(memory_format=layout) for weight in weights)


def test_the_trained_detector_does_normalise(detector: Detector) -> None:
    """Else the tests above would find nothing to count."""
    assert sum(isinstance(m, torch.nn.BatchNorm2d) for m in detector.modules()) == 20
