"""TorchScript files as they are rewritten for a GPU, computed by the CPU's twins of its kernels."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

import carafe_deploy.ops.convolutions  # noqa: F401  (registers the twins)
from carafe_deploy.runners import _fused_torchscript
from carafe_deploy.runners._fused_torchscript import fuse_convolutions

ON_THE_CPU = {
    "_FUSED_ADD_RELU": """
  %result = carafe::convolution_relu(
    %x, %weight, %bias, %shortcut, %stride, %padding, %dilation)""",
    "_FUSED_RELU": """
  %none : NoneType = prim::Constant()
  %result = carafe::convolution_relu(%x, %weight, %bias, %none, %stride, %padding, %dilation)""",
}


def kinds(method: Any) -> Counter[str]:
    return Counter(node.kind().partition("::")[2] for node in method.inlined_graph.nodes())


@pytest.mark.filterwarnings("ignore::FutureWarning")
@torch.inference_mode()
def test_a_file_computes_the_same(
    shapes_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(shapes_files["torchscript"])
    usual, fused, for_cudnn = (torch.jit.load(path) for _ in range(3))
    before = kinds(usual.forward)
    fuse_convolutions(for_cudnn)
    for method in (for_cudnn.forward, for_cudnn.stages):
        after = kinds(method)
        added, alone = after["cudnn_convolution_add_relu"], after["cudnn_convolution_relu"]
        assert added == 8  # as many blocks has ResNet-18
        assert alone == 1 + 8 + 5  # stem, blocks and RPN; this detector has no masks
        assert after["_convolution"] == before["_convolution"] - added - alone
        assert after["relu_"] == 2  # of the box head
    for name, text in ON_THE_CPU.items():
        monkeypatch.setattr(_fused_torchscript, name, text)
    fuse_convolutions(fused)
    images = torch.randn(1, 3, 64, 128, generator=torch.Generator().manual_seed(0))
    sizes = torch.tensor([[60.0, 128.0]])
    for name in ("forward", "stages"):
        assert kinds(getattr(fused, name))["convolution_relu"] == 22
        for _ in range(2):  # TorchScript rewrites itself after the first
            results = (getattr(module, name)(images, sizes) for module in (fused, usual))
            for found, expected in zip(*results, strict=True):
                assert torch.equal(found, expected)
