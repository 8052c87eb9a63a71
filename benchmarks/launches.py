"""Count what one forward pass asks a GPU to launch. No GPU is needed for it.

    python benchmarks/launches.py

The R-50 detectors run on one image of 832x1344 in fp16 and channels-last, on tensors that hold
nothing and say "cuda" (PyTorch's fake tensors), once by PyTorch's usual operators and once with
their convolutions fused (carafe_deploy/ops/convolutions.py). Every operator that computes counts as
one launch, and a convolution with a bias as two, for PyTorch adds it afterwards; views and
allocations count as none. So this is the number of operators, the least that a GPU is asked for.
Kernels are more where an operator needs several: sorting, NMS, some of cuDNN's convolutions, copies
that make a tensor contiguous. Writes benchmarks/results/launches.json.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from _common import RESULTS, argument_parser, write_result
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from carafe_deploy.graph.options import ExportOptions, deployable
from carafe_deploy.models.config import DetectorConfig, MaskHeadConfig
from carafe_deploy.models.detector import build_detector
from carafe_deploy.operators import OPERATORS

SIZE = (832, 1344)
#: Whether there is a mask head.
DETECTORS = {"mask_r50": True, "faster_r50": False}
#: Whether convolutions are fused.
WAYS = {"usual": False, "fused": True}

BIAS = "biases of convolutions"
_KINDS = {
    "convolutions": ("convolution",),
    "convolutions with bias, shortcut and ReLU": ("convolution_relu",),
    "matrix products": ("addmm", "_addmm_activation", "mm", "bmm", "baddbmm"),
    "ReLU": ("relu_", "relu"),
    "shortcuts and laterals": ("add_",),
    "operators of the domain carafe": tuple(OPERATORS),
    "top-k, gather and the like": ("topk", "sort", "gather", "index", "index_select", "scatter"),
    "copies and casts": ("_to_copy", "copy_", "clone", "cat", "stack", "constant_pad_nd"),
}
_KIND_OF = {name: kind for kind, names in _KINDS.items() for name in names}
OTHERS = "elementwise and the rest"
#: Nothing is computed.
_FREE = {"device", "empty", "empty_like", "empty_strided", "new_empty", "_unsafe_view"}


class Launches(TorchDispatchMode):
    """Counts by operator; "bias" stands for one that a convolution has besides."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2]
        if not func.is_view and name not in _FREE:
            self.counts[name] += 1
            if name == "convolution" and args[2] is not None:
                self.counts["bias"] += 1
        return func(*args, **(kwargs or {}))

    def by_kind(self) -> dict[str, int]:
        """Sums, in the order of the table above."""
        sums: Counter[str] = Counter()
        for name, count in self.counts.items():
            sums[BIAS if name == "bias" else _KIND_OF.get(name, OTHERS)] += count
        return {kind: sums[kind] for kind in (*_KINDS, BIAS, OTHERS) if sums[kind]}


def _place(module: nn.Module) -> None:
    """Let parameters and buffers say "cuda"."""
    for owner in module.modules():
        own = (owner.named_parameters(recurse=False), owner.named_buffers(recurse=False))
        for name, tensor in [pair for pairs in own for pair in pairs]:
            fake: Tensor = torch.empty_strided(
                tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda"
            )
            is_parameter = isinstance(tensor, nn.Parameter)
            setattr(owner, name, nn.Parameter(fake, requires_grad=False) if is_parameter else fake)


def count(has_masks: bool, fused: bool) -> Launches:
    """Of one detector's forward pass."""
    with torch.device("meta"):
        detector = build_detector(DetectorConfig(mask=MaskHeadConfig() if has_masks else None))
    options = ExportOptions(precision="fp16")
    ready = deployable(detector, options, channels_last=True, fused=fused)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        _place(ready)
        images = torch.zeros(1, 3, *SIZE, device="cuda").to(memory_format=torch.channels_last)
        sizes = torch.zeros(1, 2, device="cuda")
        with Launches() as launches:
            ready(images, sizes)
    return launches


def main() -> None:
    argument_parser(__doc__).parse_args()
    detectors: dict[str, Any] = {}
    for name, has_masks in DETECTORS.items():
        detectors[name] = {}
        for way, fused in WAYS.items():
            launches = count(has_masks, fused)
            detectors[name][way] = {
                "launches": sum(launches.counts.values()),
                "by_kind": launches.by_kind(),
                "by_operator": dict(launches.counts.most_common()),
            }
            print(f"{name}, {way}: {sum(launches.counts.values())}")
            for kind, number in launches.by_kind().items():
                print(f"  {number:4} {kind}")
    settings = {"height": SIZE[0], "width": SIZE[1], "batch": 1, "precision": "fp16"}
    write_result(RESULTS / "launches.json", {**settings, "detectors": detectors})


if __name__ == "__main__":
    main()
