"""Swapping mmcv's and YOLO forks' CARAFE modules: what agrees, what is refused, what is kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from carafe_deploy.graph.onnx_export import EXPORTERS, export_operator_network
from carafe_deploy.ops import CARAFE, CARAFEPack, carafe_encoded, replace_carafe
from carafe_deploy.ops.replace import YoloCARAFE
from tests.ops import foreign


def randomise(model: nn.Module) -> nn.Module:
    """Weights and batch statistics under which every tap and channel matters."""
    generator = torch.Generator().manual_seed(7)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            low, high = (0.5, 1.5) if name.endswith("running_var") else (-0.5, 0.5)
            tensor.uniform_(low, high, generator=generator)
    return model.eval()


def features(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=dtype)


@pytest.fixture
def yolo_net() -> nn.Sequential:
    """A neck in miniature: two upsamplings with a block between."""
    return randomise(
        nn.Sequential(
            foreign.ConvBlock(3, 8, 3),
            foreign.YoloCARAFE(8),
            foreign.ConvBlock(8, 6, 3),
            foreign.YoloCARAFE(6, k_enc=1, k_up=3),
        )
    )


# --- what agrees ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("k", "s", "height", "width"),
    [
        pytest.param(5, 2, 6, 7, id="the forks' defaults"),
        pytest.param(3, 2, 5, 4, id="smaller kernel"),
        pytest.param(1, 2, 3, 3, id="one tap"),
        pytest.param(3, 3, 4, 5, id="odd ratio"),
        pytest.param(5, 4, 3, 4, id="ratio 4"),
        pytest.param(5, 1, 4, 4, id="no upsampling"),
        pytest.param(7, 2, 2, 3, id="kernel larger than the map: borders only"),
        pytest.param(5, 2, 1, 1, id="one pixel"),
    ],
)
def test_yolo_borders_and_tap_order_agree_for_odd_kernels(
    k: int, s: int, height: int, width: int
) -> None:
    model = randomise(nn.Sequential(foreign.YoloCARAFE(4, k_up=k, scale=s))).double()
    x = features(2, 4, height, width)
    expected = model(x)
    assert replace_carafe(model) == ["0"]
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)


def test_nearest_exact_is_nearest_for_integer_ratios() -> None:
    model = randomise(nn.Sequential(foreign.YoloCARAFE(4, mode="nearest-exact", scale=3))).double()
    x = features(1, 4, 5, 6)
    expected = model(x)
    replace_carafe(model)
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("channels", "s", "k", "groups", "encoder", "dilation"),
    [(8, 2, 5, 1, 3, 1), (8, 2, 3, 4, 1, 1), (6, 3, 3, 2, 3, 2), (4, 2, 7, 1, 5, 1)],
)
def test_mmcv_pack_agrees(
    channels: int, s: int, k: int, groups: int, encoder: int, dilation: int
) -> None:
    model = randomise(
        nn.Sequential(foreign.MmcvCARAFEPack(channels, s, k, groups, encoder, dilation, 5))
    ).double()
    x = features(2, channels, 4, 5)
    expected = model(x)
    assert replace_carafe(model) == ["0"]
    assert type(model[0]) is CARAFEPack
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [foreign.MmcvCARAFE, foreign.MmcvCARAFENaive])
def test_mmcv_carafe_with_given_masks_agrees(kind: type[nn.Module]) -> None:
    model = nn.ModuleDict({"up": kind(3, 2, 2)})
    x, masks = features(2, 4, 3, 4), features(2, 18, 6, 8)
    expected = model["up"](x, masks)
    assert replace_carafe(model) == ["up"]
    assert type(model["up"]) is CARAFE
    torch.testing.assert_close(model["up"](x, masks), expected, rtol=1e-12, atol=1e-12)


# --- what does not agree -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"mode": "bilinear"}, id="bilinear taps are mixtures"),
        pytest.param({"dilation": 1, "padding": 2}, id="taps a pixel of the upsampled map apart"),
    ],
)
def test_refused_variants_really_differ(settings: dict[str, object]) -> None:
    other = randomise(foreign.YoloCARAFE(4, **settings)).double()
    x = features(1, 4, 5, 5)
    ours = carafe_encoded(x, other.enc(other.comp(x)), kernel_size=5, group_size=1, scale_factor=2)
    assert (other(x) - ours).abs().max() > 0.01


def yolo(**parts: object) -> nn.Module:
    """One with other parts or more of them."""
    module = foreign.YoloCARAFE(4)
    for name, part in parts.items():
        setattr(module, name, part)
    return module


def narrow_encoder() -> nn.Module:
    module = foreign.MmcvCARAFEPack(4, 2)
    module.content_encoder = nn.Conv2d(64, 36, 3, padding=1)
    return module


REFUSED: list[tuple[Callable[[], nn.Module], str]] = [
    (lambda: foreign.YoloCARAFE(4, mode="bilinear"), "upsmp.mode is 'bilinear', expected 'nearest"),
    (lambda: foreign.YoloCARAFE(4, dilation=1), "unfold.dilation is 1, expected 2"),
    (lambda: foreign.YoloCARAFE(4, padding=2), "unfold.padding is 2, expected 4"),
    (lambda: foreign.YoloCARAFE(4, k_up=4), "unfold.kernel_size is 4, expected a positive odd"),
    (
        lambda: yolo(unfold=nn.Unfold(5, dilation=2, padding=4, stride=2)),
        "unfold.stride is 2, expected 1",
    ),
    (lambda: yolo(upsmp=nn.Upsample(size=(8, 8))), "upsmp.scale_factor is None, expected 2"),
    (
        lambda: yolo(upsmp=nn.Upsample(scale_factor=(2.0, 3.0))),
        r"upsmp.scale_factor is \(2.0, 3.0\), expected 2",
    ),
    (lambda: yolo(pix_shf=nn.Conv2d(100, 25, 1)), "pix_shf is a Conv2d, expected a PixelShuffle"),
    (
        lambda: yolo(out=nn.Conv2d(4, 4, 1)),
        "its submodules are comp, enc, pix_shf, upsmp, unfold, out, neither",
    ),
    (
        lambda: yolo(gamma=nn.Parameter(torch.ones(1))),
        r"it has parameters or buffers of its own \(gamma\)",
    ),
    (lambda: yolo(forward=lambda x: x), "its forward was replaced on the instance"),
    (lambda: foreign.named(nn.Module, "CARAFE")(), "its submodules are none, neither mmcv's"),
    (lambda: foreign.MmcvCARAFE(4, 1, 2), "kernel_size is 4, expected a positive odd integer"),
    (lambda: foreign.MmcvCARAFE(5, 1, 0), "scale_factor is 0, expected a positive integer"),
    (narrow_encoder, "content_encoder.out_channels is 36, expected 100"),
]


@pytest.mark.parametrize(("build", "message"), REFUSED)
def test_refusal_names_path_and_setting_and_changes_nothing(
    build: Callable[[], nn.Module], message: str
) -> None:
    refused = build()
    good = foreign.YoloCARAFE(4)
    model = nn.ModuleDict({"neck": nn.Sequential(good, nn.ReLU(), refused)})
    with pytest.raises(ValueError, match=rf"neck\.2 \(foreign\.CARAFE.*: {message}"):
        replace_carafe(model, verify=False)
    assert model["neck"][0] is good
    assert model["neck"][2] is refused


class _SwappedTaps(foreign.Yolo):
    """All settings agree, but taps are read column first."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(2, 3)).transpose(2, 3)


class _Residual(foreign.Yolo):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.upsmp(x)


class _Cropped(foreign.Yolo):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, :, 1:]


class _OnlyHalf(foreign.Yolo):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("half precision only")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (_SwappedTaps, r"its output is off by .* in float64"),
        (_Residual, r"its output is off by .* in float64"),
        (_Cropped, r"it returns \(2, 3, 11, 14\), expected \(2, 3, 12, 14\)"),
        (_OnlyHalf, r"its forward fails on features \(2, 3, 6, 7\): half precision only"),
    ],
)
def test_verification_catches_a_forward_that_settings_do_not_show(
    kind: type[nn.Module], message: str
) -> None:
    module = foreign.named(kind, "CARAFE")(4)
    model = nn.Sequential(module)
    with pytest.raises(ValueError, match=message):
        replace_carafe(model)
    assert model[0] is module
    assert replace_carafe(model, verify=False) == ["0"]


def test_the_model_itself_cannot_be_swapped() -> None:
    with pytest.raises(ValueError, match=r"model itself is a CARAFE.*nn\.Sequential\(model\)"):
        replace_carafe(foreign.YoloCARAFE(4))


# --- what is kept --------------------------------------------------------------------------------


def test_state_dict_keys_order_and_values_stay(yolo_net: nn.Sequential) -> None:
    before = {key: value.clone() for key, value in yolo_net.state_dict().items()}
    replace_carafe(yolo_net)
    after = yolo_net.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    yolo_net.load_state_dict(before)


def test_parameters_stay_the_same_objects(yolo_net: nn.Sequential) -> None:
    yolo_net[1].comp.requires_grad_(False)
    yolo_net.to(torch.bfloat16)
    before = list(yolo_net.parameters())
    replace_carafe(yolo_net)
    after = list(yolo_net.parameters())
    assert all(a is b for a, b in zip(after, before, strict=True))
    assert not yolo_net[1].comp.conv.weight.requires_grad
    assert yolo_net[1](torch.zeros(1, 8, 2, 2, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("training", [True, False])
def test_mode_stays(yolo_net: nn.Sequential, training: bool) -> None:
    yolo_net.train(training)
    replace_carafe(yolo_net)
    assert {module.training for module in yolo_net.modules()} == {training}


def test_attributes_and_hooks_set_from_outside_stay(yolo_net: nn.Sequential) -> None:
    yolo_net[1].f, yolo_net[1].i, yolo_net[1].type = -1, 1, "CARAFE"
    seen: list[torch.Size] = []
    handle = yolo_net[1].register_forward_hook(lambda m, args, out: seen.append(out.shape))
    replace_carafe(yolo_net)
    assert not seen  # verification runs no hooks
    assert (yolo_net[1].f, yolo_net[1].i, yolo_net[1].type) == (-1, 1, "CARAFE")
    yolo_net[1](torch.zeros(1, 8, 2, 3))
    handle.remove()
    yolo_net[1](torch.zeros(1, 8, 2, 3))
    assert seen == [(1, 8, 4, 6)]


def test_a_shared_module_stays_shared_in_every_container() -> None:
    shared = foreign.YoloCARAFE(4)
    model = nn.Module()
    model.first = shared
    model.list = nn.ModuleList([nn.ReLU(), shared])
    model.dict = nn.ModuleDict({"a": nn.Sequential(shared)})
    model.pack = foreign.MmcvCARAFEPack(4, 2)
    assert replace_carafe(model) == ["first", "list.1", "dict.a.0", "pack"]
    assert type(model.first) is YoloCARAFE
    assert model.list[1] is model.first
    assert model.dict["a"][0] is model.first
    assert [name for name, _ in model.named_children()] == ["first", "list", "dict", "pack"]


def test_a_second_call_and_a_network_without_carafe_replace_nothing(
    yolo_net: nn.Sequential,
) -> None:
    assert replace_carafe(yolo_net) == ["1", "3"]
    assert replace_carafe(yolo_net) == []
    assert replace_carafe(nn.Conv2d(1, 1, 1)) == []


def test_random_numbers_drawn_afterwards_are_the_same(yolo_net: nn.Sequential) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    replace_carafe(yolo_net)
    assert torch.equal(torch.rand(3), expected)


def test_gradients_agree(yolo_net: nn.Sequential) -> None:
    yolo_net.double()
    x = features(1, 3, 4, 5)
    yolo_net(x).square().sum().backward()
    expected = [parameter.grad.clone() for parameter in yolo_net.parameters()]
    yolo_net.zero_grad()
    replace_carafe(yolo_net)
    yolo_net(x).square().sum().backward()
    for parameter, grad in zip(yolo_net.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-9, atol=1e-9)


# --- what it is for ------------------------------------------------------------------------------


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_a_yolo_like_network_runs_in_stock_onnxruntime(
    yolo_net: nn.Sequential, tmp_path: Path, exporter: str
) -> None:
    x = features(1, 3, 6, 7, dtype=torch.float32)
    with torch.no_grad():
        expected = yolo_net(x).numpy()
    replace_carafe(yolo_net)
    path = tmp_path / "yolo.onnx"
    model = export_operator_network(yolo_net, (x,), path, exporter=exporter)
    assert [node.op_type for node in model.graph.node].count("CarafeEncoded") == 2
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (actual,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
