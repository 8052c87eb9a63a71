"""CARAFE and CARAFEPack as modules: mmcv's names, shapes, defaults and initialisation."""

from __future__ import annotations

import pytest
import torch

from carafe_deploy.ops import CARAFE, CARAFEPack, carafe, carafe_encoded


@pytest.mark.parametrize(
    ("arguments", "compressor", "encoder"),
    [
        pytest.param((256, 2), (64, 256, 1, 1), (100, 64, 3, 3), id="defaults"),
        pytest.param((8, 3, 3, 4, 1, 1, 4), (4, 8, 1, 1), (324, 4, 1, 1), id="groups, ratio 3"),
        pytest.param((8, 2, 7, 1, 5, 2, 6), (6, 8, 1, 1), (196, 6, 5, 5), id="dilation 2"),
    ],
)
def test_parameter_names_and_shapes_are_mmcvs(
    arguments: tuple[int, ...], compressor: tuple[int, ...], encoder: tuple[int, ...]
) -> None:
    module = CARAFEPack(*arguments)
    assert {name: tuple(value.shape) for name, value in module.state_dict().items()} == {
        "channel_compressor.weight": compressor,
        "channel_compressor.bias": compressor[:1],
        "content_encoder.weight": encoder,
        "content_encoder.bias": encoder[:1],
    }


@pytest.mark.parametrize(("kernel", "dilation"), [(1, 1), (3, 1), (3, 2), (5, 1), (5, 3)])
def test_encoder_keeps_the_size_of_the_map(kernel: int, dilation: int) -> None:
    module = CARAFEPack(4, 2, encoder_kernel=kernel, encoder_dilation=dilation)
    assert module.encode(torch.zeros(1, 4, 7, 9)).shape == (1, 100, 7, 9)
    assert module(torch.zeros(1, 4, 7, 9)).shape == (1, 4, 14, 18)


def test_a_fresh_pack_averages_its_window() -> None:
    torch.manual_seed(0)
    module = CARAFEPack(4, 2)
    assert not module.channel_compressor.bias.any()
    assert not module.content_encoder.bias.any()
    assert module.content_encoder.weight.std().item() == pytest.approx(0.001, rel=0.05)
    bound = (6 / (4 + 64)) ** 0.5  # Xavier: fan-in 4, fan-out 64
    assert 0.9 * bound < module.channel_compressor.weight.abs().max() <= bound
    out = module(torch.ones(1, 4, 9, 9))
    torch.testing.assert_close(out[..., 4:-4, 4:-4], torch.ones(1, 4, 10, 10))
    assert out[0, 0, 0, 0].item() == pytest.approx(9 / 25, rel=0.05)  # 3x3 of 5x5 taps inside


def test_modules_call_the_operators() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 3, 5, generator=generator)
    masks = torch.randn(2, 18, 6, 10, generator=generator)
    attributes = {"kernel_size": 3, "group_size": 2, "scale_factor": 2}
    assert torch.equal(CARAFE(3, 2, 2)(x, masks), carafe(x, masks, **attributes))
    pack = CARAFEPack(4, 2, up_kernel=3, up_group=2)
    encoded = pack.content_encoder(pack.channel_compressor(x))
    assert torch.equal(pack(x), carafe_encoded(x, encoded, **attributes))


def test_reassembling_takes_another_number_of_channels_than_encoding() -> None:
    pack = CARAFEPack(4, 2)
    x = torch.randn(1, 4, 3, 5)
    out = pack.reassemble(x[:, 2:3], pack.encode(x))
    torch.testing.assert_close(out, pack(x)[:, 2:3])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_convolutions_feed_the_features_dtype(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    pack = CARAFEPack(4, 2)
    x = torch.randn(1, 4, 3, 5)
    with torch.autocast("cpu", dtype):
        out = pack(x)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, pack(x), rtol=1e-2, atol=1e-2)


def test_carafe_has_no_parameters_and_prints_its_settings() -> None:
    assert not CARAFE(5, 1, 2).state_dict()
    assert repr(CARAFE(5, 1, 2)) == "CARAFE(kernel_size=5, group_size=1, scale_factor=2)"
    assert "scale_factor=2, up_kernel=5, up_group=1" in repr(CARAFEPack(4, 2))
