"""Convolutions with their epilogues: the same numbers as in steps, in fewer operators."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from carafe_deploy.ops import convolutions
from carafe_deploy.ops.convolutions import (
    FusedConv2d,
    FusedLinear,
    conv_add_relu,
    conv_relu,
    fuse_epilogues,
    linear_relu,
    refusal,
)

LAST = torch.channels_last
LAYOUTS = pytest.mark.parametrize("layout", [torch.contiguous_format, LAST], ids=["nchw", "nhwc"])
#: Of one rounding; the steps round after each.
TOLERANCES = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}


class Block(nn.Module):
    """All kinds of convolutions and products of a detector."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 7, stride=2, padding=3)
        self.wide = nn.Conv2d(8, 16, 3, padding=2, dilation=2)
        self.narrow = nn.Conv2d(16, 16, 1)
        self.shortcut = nn.Conv2d(8, 16, 1, bias=False)
        self.lateral = nn.Conv2d(16, 8, 1)
        self.linear = nn.Linear(8, 5)
        self.last = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = conv_relu(x, self.stem)
        out = conv_relu(x, self.wide)
        out = conv_add_relu(out, self.narrow, nn.Identity(), self.shortcut, x)
        out = self.lateral(out)
        rows = linear_relu(out.permute(0, 2, 3, 1).flatten(1, 2), self.linear)
        return self.last(rows)


class Names(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.called: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.called.append(func._schema.name.split("::")[1])
        return func(*args, **(kwargs or {}))


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute here as there, by the CPU's twins of what cuDNN does."""
    monkeypatch.setattr(convolutions, "_fuses", lambda x: True)


def networks(
    layout: torch.memory_format, dtype: torch.dtype = torch.float32
) -> tuple[Block, Block, Tensor]:
    """One in steps, one fused, and what they take."""
    torch.manual_seed(0)
    plain = Block().eval().requires_grad_(False).to(dtype).to(memory_format=layout)
    fused = copy.deepcopy(plain)
    fuse_epilogues(fused)
    return plain, fused, torch.randn(2, 3, 14, 18, dtype=dtype).contiguous(memory_format=layout)


@LAYOUTS
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_the_same_as_in_steps(
    on_a_gpu: None, dtype: torch.dtype, layout: torch.memory_format
) -> None:
    plain, fused, x = networks(layout, dtype)
    limit = TOLERANCES[dtype]
    torch.testing.assert_close(fused(x), plain(x), rtol=limit, atol=limit)


@LAYOUTS
def test_on_other_devices_nothing_changes(layout: torch.memory_format) -> None:
    plain, fused, x = networks(layout)
    found = []
    for network in (plain, fused):
        with Names() as names:
            found.append((network(x), names.called))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


@pytest.mark.usefixtures("on_a_gpu")
def test_what_is_one_operator() -> None:
    _, fused, x = networks(LAST)
    with Names() as names:
        fused(x)
    known = {"convolution_relu", "convolution", "addmm", "_addmm_activation", "relu_", "add_"}
    found = [name for name in names.called if name in known]
    assert found == [
        *("convolution_relu", "convolution_relu"),
        *("convolution", "convolution_relu"),  # the shortcut, and what it is added to
        *("addmm", "_addmm_activation", "addmm"),
    ]


@pytest.mark.usefixtures("on_a_gpu")
def test_maps_stay_channels_last_and_nchw_is_not_multiplied() -> None:
    _, fused, x = networks(LAST)
    out = fused.lateral(conv_relu(conv_relu(x, fused.stem), fused.wide))
    assert out.is_contiguous(memory_format=LAST)
    assert not out.is_contiguous()
    with Names() as names:
        fused.lateral(torch.zeros(1, 16, 4, 4))
    assert names.called.count("convolution") == 1
    assert "addmm" not in names.called


@pytest.mark.usefixtures("on_a_gpu")
def test_hooks_see_what_a_layer_is_given_and_returns() -> None:
    _, fused, x = networks(LAST)
    seen: list[Any] = []
    fused.narrow.register_forward_pre_hook(lambda module, given: seen.append(given))
    fused.narrow.register_forward_hook(lambda module, given, out: seen.append(out))
    fused(x)
    assert len(seen[0]) == 1
    assert seen[1].amin() == 0


def test_names_and_parameters_stay() -> None:
    plain = Block()
    before = {name: id(value) for name, value in plain.named_parameters()}
    fuse_epilogues(plain)
    assert {name: id(value) for name, value in plain.named_parameters()} == before
    assert type(plain.stem) is FusedConv2d
    assert type(plain.last) is FusedLinear
    assert plain.stem.training
    assert "kernel_size=(3, 3), stride=(1, 1), padding=(2, 2), dilation=(2, 2)" in repr(plain.wide)


@pytest.mark.parametrize(
    "other",
    [
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.ConvTranspose2d(4, 4, 3),
        nn.Conv1d(4, 4, 3),
    ],
    ids=repr,
)
def test_what_is_computed_as_before(other: nn.Module) -> None:
    network = nn.Sequential(other)
    fuse_epilogues(network)
    assert network[0] is other


def test_gradients_take_the_usual_operators() -> None:
    _, fused, x = networks(LAST)
    assert not convolutions._fuses(x.to("meta"))
    fused(x.requires_grad_()).sum().backward()
    assert x.grad is not None
    assert torch.count_nonzero(x.grad) > 0


@LAYOUTS
@pytest.mark.parametrize("with_shortcut", [True, False])
def test_the_operator_is_of_one_piece(with_shortcut: bool, layout: torch.memory_format) -> None:
    plain, _, x = networks(layout)
    shortcut = torch.randn(2, 8, 7, 9).contiguous(memory_format=layout) if with_shortcut else None
    arguments = (x, plain.stem.weight, plain.stem.bias, shortcut, (2, 2), (3, 3), (1, 1))
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.carafe.convolution_relu.default, arguments, test_utils=checks)
    [expected, found] = (
        operator(*(a.to("meta") if isinstance(a, Tensor) and i else a for a in arguments))
        for i, operator in enumerate([convolutions._in_steps, convolutions._fake])
    )
    assert found.shape == expected.shape
    assert found.stride() == expected.stride()


def test_where_there_is_no_cudnn_it_says_so() -> None:
    assert refusal(torch.device("cpu"), torch.float32)


# --- on a GPU ------------------------------------------------------------------------------------


@pytest.mark.gpu
@LAYOUTS
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("tf32", [False, True])
def test_cudnn_computes_the_same(
    dtype: torch.dtype, layout: torch.memory_format, tf32: bool
) -> None:
    """Also where its result's memory held NaN before, which a factor of 0 would not undo."""
    plain, fused, x = (part.cuda() for part in networks(layout, dtype))
    limit = 2e-2 if tf32 else TOLERANCES[dtype]
    flags = torch.backends.cudnn.flags(enabled=True, allow_tf32=tf32)
    with torch.inference_mode(), flags:
        assert refusal(torch.device("cuda"), dtype) == ""
        expected = plain(x)
        for _ in range(3):
            junk = [torch.full((2**n,), torch.nan, dtype=dtype, device="cuda") for n in range(20)]
            del junk
            with Names() as names:
                found = fused(x)
            assert names.called.count("cudnn_convolution_relu") == 2
            assert names.called.count("cudnn_convolution_add_relu") == 1
            torch.testing.assert_close(found, expected, rtol=limit, atol=limit)
