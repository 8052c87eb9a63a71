"""Carafe and CarafeEncoded against mmcv's and mmdetection's recorded values, on every face."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from carafe_deploy.graph.onnx_export import EXPORTERS, export_operator_network
from carafe_deploy.ops import CARAFE, CARAFEPack, carafe
from carafe_deploy.ops.carafe import carafe_reference
from tests.ops import faces


def assert_close(actual: Any, expected: np.ndarray) -> None:
    """Both are sums in float32, in another order."""
    values = actual.detach().numpy() if isinstance(actual, Tensor) else actual
    assert values.shape == expected.shape
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def mmcv(data_dir: Path) -> dict[str, np.ndarray]:
    """mmcv's own test data: k 5, four groups, s 2; gradients for an upstream of ones."""
    with np.load(data_dir / "mmcv_carafe_testdata.npz") as file:
        return dict(file)


def mmcv_attributes(mmcv: dict[str, np.ndarray]) -> dict[str, int]:
    return {name: int(mmcv[name]) for name in ("kernel_size", "group_size", "scale_factor")}


@pytest.mark.parametrize("function", [carafe, CARAFE, torch.jit.trace], ids=lambda f: f.__name__)
def test_mmcv_vectors_with_gradients(
    mmcv: dict[str, np.ndarray], function: Callable[..., Any]
) -> None:
    attributes = mmcv_attributes(mmcv)
    features, masks = (torch.from_numpy(mmcv[name]).requires_grad_() for name in ("feat", "mask"))
    if function is carafe:
        out = carafe(features, masks, **attributes)
    elif function is CARAFE:
        out = CARAFE(**attributes)(features, masks)
    else:
        out = torch.jit.trace(CARAFE(**attributes), (features, masks))(features, masks)
    out.backward(torch.ones_like(out))
    assert_close(out, mmcv["output"])
    for tensor, name in ((features, "feat_grad"), (masks, "mask_grad")):
        assert tensor.grad is not None
        np.testing.assert_allclose(tensor.grad.numpy(), mmcv[name], rtol=1e-5, atol=1e-5)


def test_mmcv_vectors_reference_differentiates_to_the_same(mmcv: dict[str, np.ndarray]) -> None:
    features, masks = (
        torch.from_numpy(mmcv[name]).double().requires_grad_() for name in ("feat", "mask")
    )
    out = carafe_reference(features, masks, *mmcv_attributes(mmcv).values())
    out.sum().backward()
    assert_close(out, mmcv["output"])
    for tensor, name in ((features, "feat_grad"), (masks, "mask_grad")):
        assert tensor.grad is not None
        np.testing.assert_allclose(tensor.grad.numpy(), mmcv[name], rtol=1e-5, atol=1e-5)


def test_mmcv_vectors_function_body(mmcv: dict[str, np.ndarray]) -> None:
    (out,) = faces.run_body("carafe", mmcv_attributes(mmcv), [mmcv["feat"], mmcv["mask"]])
    assert_close(out, mmcv["output"])


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_mmcv_vectors_exported(mmcv: dict[str, np.ndarray], exporter: str, tmp_path: Path) -> None:
    inputs = tuple(torch.from_numpy(mmcv[name]) for name in ("feat", "mask"))
    path = tmp_path / "carafe.onnx"
    export_operator_network(CARAFE(**mmcv_attributes(mmcv)), inputs, path, exporter=exporter)
    (out,) = faces.run_file(path, [tensor.numpy() for tensor in inputs])
    assert_close(out, mmcv["output"])


PACKS = [f"carafepack{i}" for i in range(5)]


@pytest.fixture(params=PACKS)
def pack(request: pytest.FixtureRequest, data_dir: Path) -> dict[str, np.ndarray]:
    """mmdetection's CARAFEPack: parameters, input, encoder output, output."""
    prefix = f"{request.param}/"
    with np.load(data_dir / "units.npz") as file:
        return {
            name.removeprefix(prefix): file[name] for name in file.files if name.startswith(prefix)
        }


def build_pack(pack: dict[str, np.ndarray]) -> CARAFEPack:
    channels, s, k, groups, encoder, dilation, compressed = pack["cfg"].tolist()
    module = CARAFEPack(channels, s, k, groups, encoder, dilation, compressed)
    module.load_state_dict(
        {name: torch.from_numpy(pack[name]) for name in pack if name.endswith(("weight", "bias"))}
    )
    return module.requires_grad_(False)


def recorded_channels(out: Any, pack: dict[str, np.ndarray]) -> np.ndarray:
    """Of the widest map only the first channels are recorded."""
    return np.asarray(out)[:, : pack["out"].shape[1]]


def test_recorded_carafepack(pack: dict[str, np.ndarray]) -> None:
    module, x = build_pack(pack), torch.from_numpy(pack["x"])
    encoded = module.encode(x)
    np.testing.assert_allclose(encoded.numpy(), pack["encoder_out"], rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(
        recorded_channels(module(x), pack), pack["out"], rtol=1e-4, atol=2e-5
    )


def test_recorded_kernels_are_the_normalised_encoder_output(data_dir: Path) -> None:
    with np.load(data_dir / "units.npz") as file:
        encoded, kernel = file["carafepack0/encoder_out"], file["carafepack0/kernel"]
        x, out = file["carafepack0/x"], file["carafepack0/out"]
    masks = torch.nn.functional.pixel_shuffle(torch.from_numpy(encoded), 2).softmax(dim=1)
    np.testing.assert_allclose(masks.numpy(), kernel, rtol=1e-5, atol=1e-6)
    reassembled = carafe(
        torch.from_numpy(x), torch.from_numpy(kernel), kernel_size=5, group_size=1, scale_factor=2
    )
    assert_close(reassembled, out)


def test_recorded_carafepack_function_body(pack: dict[str, np.ndarray]) -> None:
    _, s, k, groups, *_ = pack["cfg"].tolist()
    attributes = {"kernel_size": k, "group_size": groups, "scale_factor": s}
    (out,) = faces.run_body("carafe_encoded", attributes, [pack["x"], pack["encoder_out"]])
    assert_close(recorded_channels(out, pack), pack["out"])


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_recorded_carafepacks_exported(data_dir: Path, exporter: str, tmp_path: Path) -> None:
    class Side(nn.Module):
        """All packs beside each other: one export."""

        def __init__(self, packs: list[CARAFEPack]) -> None:
            super().__init__()
            self.packs = nn.ModuleList(packs)

        def forward(self, *inputs: Tensor) -> list[Tensor]:
            return [module(x) for module, x in zip(self.packs, inputs, strict=True)]

    with np.load(data_dir / "units.npz") as file:
        recorded = [
            {
                name.removeprefix(f"{prefix}/"): file[name]
                for name in file.files
                if name.startswith(f"{prefix}/")
            }
            for prefix in PACKS
        ]
    inputs = tuple(torch.from_numpy(pack["x"]) for pack in recorded)
    path = tmp_path / "packs.onnx"
    export_operator_network(Side([*map(build_pack, recorded)]), inputs, path, exporter=exporter)
    outputs = faces.run_file(path, [tensor.numpy() for tensor in inputs])
    for pack, out in zip(recorded, outputs, strict=True):
        np.testing.assert_allclose(recorded_channels(out, pack), pack["out"], rtol=1e-4, atol=2e-5)
