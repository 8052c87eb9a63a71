"""The mask head: reordering its last convolution before CARAFE changes nothing but the work."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from carafe_deploy.models.config import MaskHeadConfig, UpsampleConfig
from carafe_deploy.models.roi_heads import MaskHead


def mask_head(**upsample: int) -> MaskHead:
    torch.manual_seed(0)
    config = MaskHeadConfig(num_convs=2, conv_channels=12, upsample=UpsampleConfig(**upsample))
    head = MaskHead(8, 5, config).eval().requires_grad_(False)
    for name, parameter in head.named_parameters():
        if name.startswith(("upsample", "conv_logits")):
            parameter.normal_(0, 0.3)  # initial kernels are all but uniform, biases zero
    return head


def regions(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    classes = torch.tensor([0, 4, 2, 2, 1, 3, 0])
    return torch.randn(7, 8, 6, 6, generator=generator, dtype=dtype), classes


def in_the_papers_order(head: MaskHead, pooled: Tensor, classes: Tensor) -> Tensor:
    """Convolutions, CARAFE, then logits of all classes, of which one is taken."""
    x = pooled
    for conv in head.convs:
        x = conv(x).relu()
    logits = head.conv_logits(head.upsample(x))
    return logits[torch.arange(len(classes)), classes]


@pytest.mark.parametrize(
    "upsample",
    [
        {},
        {"up_kernel": 3, "scale_factor": 3},
        {"up_kernel": 7, "encoder_dilation": 2, "compressed_channels": 5},
    ],
)
def test_reordering_is_exact(upsample: dict[str, int]) -> None:
    head = mask_head(**upsample).double()
    pooled, classes = regions()
    assert head.reorder
    expected = in_the_papers_order(head, pooled, classes)
    torch.testing.assert_close(head(pooled, classes), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("reorder", [True, False])
def test_either_order_in_float32(reorder: bool) -> None:
    head = mask_head()
    head.reorder = reorder
    pooled, classes = regions(torch.float32)
    expected = in_the_papers_order(head, pooled, classes)
    torch.testing.assert_close(head(pooled, classes), expected, rtol=1e-5, atol=1e-5)


def test_several_groups_do_not_commute_and_keep_the_papers_order() -> None:
    head = mask_head(up_group=3).double()
    pooled, classes = regions()
    assert not head.reorder
    expected = in_the_papers_order(head, pooled, classes)
    torch.testing.assert_close(head(pooled, classes), expected, rtol=1e-13, atol=1e-13)


def test_no_region() -> None:
    out = mask_head()(torch.zeros(0, 8, 6, 6), torch.zeros(0, dtype=torch.int64))
    assert out.shape == (0, 12, 12)
