"""Nothing in a detector chooses a device: all of it runs where its weights and inputs are.

Shown without a GPU, by tensors that are nowhere and say "cuda" (PyTorch's fake tensors). Whatever
is then on the CPU was made there, and PyTorch on a GPU would refuse it beside the others.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from carafe_deploy.graph.options import ExportOptions, deployable
from carafe_deploy.models import rpn
from carafe_deploy.models.boxes import gather_rows
from carafe_deploy.models.checkpoint import load_detector
from carafe_deploy.models.detector import Detector, ImageNormalization, StagedDetector
from carafe_deploy.operators import OPERATORS
from carafe_deploy.runners.pytorch import PyTorchRunner
from carafe_deploy.types import ModelInfo

CHECKPOINTS = (
    "shapes_faster_rcnn_carafe-2a9d7f44.pth",
    "shapes_mask_rcnn_carafe-fbec7e06.pth",
)
FLOAT, UINT8 = ExportOptions(), ExportOptions(precision="fp16", uint8_input=True)
CHOICES = pytest.mark.parametrize("options", [FLOAT, UINT8], ids=["fp32-float", "fp16-uint8"])


class Devices(TorchDispatchMode):
    """Keeps which operators were called, and those that took or gave what is not on CUDA."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.elsewhere: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.equal.default:  # TorchScript looks for equal constants
            with unset_fake_temporarily():
                return func(*args)
        result = func(*args, **(kwargs or {}))
        self.calls.append(func._schema.name)
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
        found = {tensor.device.type for tensor in tensors}
        if found - {"cuda"}:
            self.elsewhere.append(f"{func} on {sorted(found)}")
        return result


def fake_cuda() -> FakeTensorMode:
    return FakeTensorMode(allow_non_fake_inputs=True)


def place(module: Any) -> Any:
    """Fake parameters and buffers on CUDA in place of a module's own; constants stay."""
    for owner in module.modules():
        for kind in (owner.named_parameters(recurse=False), owner.named_buffers(recurse=False)):
            for name, tensor in list(kind):
                fake: Tensor = torch.empty_strided(
                    tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda"
                )
                if isinstance(tensor, nn.Parameter):
                    fake = nn.Parameter(fake, requires_grad=False)
                setattr(owner, name, fake)
    return module


def run(module: Callable[..., Any], arguments: Any) -> Devices:
    """Call what seems to be on CUDA."""
    with torch.no_grad(), Devices() as devices:
        outputs = module(*arguments)
    assert {output.device.type for output in outputs} == {"cuda"}
    assert sum("convolution" in name for name in devices.calls) > 30
    assert {f"carafe::{name}" for name in OPERATORS if name != "carafe"} <= set(devices.calls)
    return devices


def inputs(options: ExportOptions, device: str = "cuda") -> tuple[Tensor, Tensor]:
    sizes = torch.full((2, 2), 128.0, device=device)
    if options.uint8_input:
        return torch.zeros(2, 128, 192, 3, dtype=torch.uint8, device=device), sizes
    return torch.zeros(2, 3, 128, 192, device=device), sizes


@pytest.fixture(scope="module", params=CHECKPOINTS, ids=["faster", "mask"])
def detector(request: pytest.FixtureRequest, shapes_dir: Path) -> Detector:
    return load_detector(shapes_dir / request.param)[0]


def ready(
    detector: Detector,
    options: ExportOptions,
    *,
    staged: bool = True,
    channels_last: bool = False,
    fused: bool = False,
) -> nn.Module:
    """As exporters and runners have it."""
    deployed = deployable(detector, options, channels_last=channels_last, fused=fused)
    module: nn.Module = StagedDetector(deployed) if staged else deployed
    if options.uint8_input:
        module = ImageNormalization(module, detector.config.preprocessing, channels_last)
    return module


# --- eager, torch.compile, torch.export ----------------------------------------------------------


def eager(detector: Detector, options: ExportOptions) -> Devices:
    module = ready(detector, options, channels_last=True)
    with fake_cuda():
        return run(place(module), inputs(options))


def fused(detector: Detector, options: ExportOptions) -> Devices:
    """As runners on a GPU have it; the stages hook into it as into the other."""
    module = ready(detector, options, channels_last=True, fused=True)
    with fake_cuda():
        found = run(place(module), inputs(options))
    assert found.calls.count("carafe::convolution_relu") > 20
    assert "aten::relu_" not in found.calls
    return found


def compiled(detector: Detector, options: ExportOptions) -> Devices:
    """The operators that the runner's compiled detector consists of, as Inductor is given them.

    One of the detectors is fused first.
    """
    graphs: list[tuple[Any, Any]] = []

    def keep(graph: Any, arguments: Any) -> Any:
        graphs.append((graph, arguments))
        return graph

    module = ready(detector, options, staged=False, fused=options is UINT8)
    info = ModelInfo("x", "faster_rcnn", ("a",))
    torch._dynamo.reset()
    with pytest.MonkeyPatch.context() as patch, fake_cuda():
        patch.setattr(
            torch, "compile", partial(torch.compile, backend=aot_autograd(fw_compiler=keep))
        )
        runner = PyTorchRunner(info, torch.device("cuda"), place(module), module, mode="compile")
        with torch.no_grad():
            runner.module(*inputs(options))
        [(graph, arguments)] = graphs
        found = run(graph, arguments)
    assert ("carafe::convolution_relu" in found.calls) == (options is UINT8)
    return found


def exported(detector: Detector, options: ExportOptions) -> Devices:
    """A program exported on the CPU, with sizes left open, whose weights are moved to CUDA."""
    module = ready(detector, options)
    height, width = (64 * torch.export.Dim(name, min=1, max=8) for name in ("height", "width"))
    axes = (1, 2) if options.uint8_input else (2, 3)
    shapes = (dict(zip(axes, (height, width), strict=True)), {})
    with torch.no_grad():
        program = torch.export.export(module, inputs(options, "cpu"), dynamic_shapes=shapes)
    weights = {*program.state_dict, *dict(module.named_buffers())}
    assert set(program.constants) <= weights, "a constant that no buffer holds"
    moved = program.module(check_guards=False)
    for node in list(moved.graph.nodes):  # it checks that inputs are on the CPU, as they were
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            moved.graph.erase_node(node)
    moved.recompile()
    with fake_cuda():
        return run(place(moved), inputs(options))


@CHOICES
@pytest.mark.parametrize("path", [eager, fused])
def test_nothing_is_made_on_another_device(
    detector: Detector, path: Callable[..., Devices], options: ExportOptions
) -> None:
    assert path(detector, options).elsewhere == []


@pytest.mark.parametrize("path", [compiled, exported])
def test_nothing_is_compiled_for_another_device(
    detector: Detector, path: Callable[..., Devices]
) -> None:
    """These take long: each input is one detector's."""
    options = FLOAT if detector.config.mask is None else UINT8
    assert path(detector, options).elsewhere == []


@pytest.mark.parametrize("path", [eager, compiled, exported])
def test_what_is_made_elsewhere_is_found(
    shapes_dir: Path, path: Callable[..., Devices], monkeypatch: pytest.MonkeyPatch
) -> None:
    def planted(values: Tensor, index: Tensor) -> Tensor:
        return gather_rows(values, index) + torch.zeros(())

    monkeypatch.setattr(rpn, "gather_rows", planted)
    small = load_detector(shapes_dir / CHECKPOINTS[0])[0]
    found = path(small, FLOAT).elsewhere
    assert any("aten.add" in call and "'cpu', 'cuda'" in call for call in found)


# --- TorchScript ---------------------------------------------------------------------------------


@CHOICES
@pytest.mark.parametrize("model", ["faster", "mask"])
def test_a_torchscript_file_computes_where_its_inputs_are(
    export: Callable[..., Path], model: str, options: ExportOptions
) -> None:
    path = str(export(model, ".ts", options))
    loaded = torch.jit.load(path)
    for method in (loaded.forward, loaded.stages):
        nodes = list(method.inlined_graph.nodes())
        assert "prim::NumToTensor" not in {node.kind() for node in nodes}
        constants = {n.output().type().kind() for n in nodes if n.kind() == "prim::Constant"}
        assert {"IntType", "FloatType"} <= constants
        assert not {"TensorType", "DeviceObjType"} & constants
    torch.jit.load(path, map_location="meta")  # compares constant tensors, which fails there
    with fake_cuda():
        place(loaded)
        for method in (loaded.forward, loaded.stages):
            assert run(method, inputs(options)).elsewhere == []
