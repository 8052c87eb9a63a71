"""Networks of others: exported in evaluation mode whatever mode they are in, warnings shown."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from carafe_deploy.errors import ExportError
from carafe_deploy.graph.onnx_export import EXPORTERS, export_operator_network
from carafe_deploy.known_warnings import KNOWN, without_known_warnings
from carafe_deploy.ops import CARAFEPack

exporters = pytest.mark.parametrize("exporter", EXPORTERS)


class Network(nn.Module):
    """As in training: most of it learns, one part is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)
        self.upsample = CARAFEPack(4, 2)
        self.dropout = nn.Dropout(0.5)
        self.frozen = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(4))
        self.remark = ""
        self.train()
        self.frozen.eval()
        self.norm.running_mean.fill_(0.25)

    def forward(self, x: Tensor) -> Tensor:
        if self.remark:
            warnings.warn(self.remark, stacklevel=1)
        return self.dropout(self.frozen(self.upsample(self.norm(x))))

    def modes(self) -> dict[str, bool]:
        return {name: module.training for name, module in self.named_modules()}


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return Network()


@exporters
def test_a_network_in_training_mode_is_exported_as_it_predicts(
    network: Network, tmp_path: Path, exporter: str
) -> None:
    before = network.modes()
    assert set(before.values()) == {True, False}
    x = torch.randn(1, 4, 6, 5)
    path = tmp_path / "network.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        export_operator_network(network, (x,), path, exporter=exporter, input_names=["x"])
    assert network.modes() == before
    assert network.norm.num_batches_tracked == 0
    assert torch.equal(network.norm.running_mean, torch.full((4,), 0.25))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    first, second = (session.run(None, {"x": x.numpy()})[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    with torch.no_grad():
        expected = network.eval()(x)
    np.testing.assert_allclose(first, expected.numpy(), rtol=1e-4, atol=1e-6)


@exporters
def test_modes_come_back_after_a_failure_too(
    network: Network, tmp_path: Path, exporter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = network.modes()

    def fail(module: Network, *rest: object, **settings: object) -> None:
        raise RuntimeError(f"modes were {set(module.modes().values())}")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(RuntimeError, match=r"modes were \{False\}"):
        export_operator_network(network, (), tmp_path / "network.onnx", exporter=exporter)
    with pytest.raises(ExportError, match="choose from"):
        export_operator_network(network, (), tmp_path / "network.onnx", exporter="other")
    assert network.modes() == before
    assert list(tmp_path.iterdir()) == []


def test_what_the_network_warns_of_is_shown(network: Network, tmp_path: Path) -> None:
    network.remark = "borders are not what they were"
    x = torch.randn(1, 4, 6, 5)
    with pytest.warns(UserWarning, match=network.remark):
        export_operator_network(network, (x,), tmp_path / "network.onnx", exporter="torchscript")


class Noise(nn.Module):
    """Another result in every run."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.randn_like(x)


@exporters
def test_random_numbers_in_the_graph_are_named(tmp_path: Path, exporter: str) -> None:
    with pytest.warns(UserWarning, match=r"draws random numbers \(RandomNormalLike\)"):
        export_operator_network(
            Noise(), (torch.zeros(1, 4),), tmp_path / "network.onnx", exporter=exporter
        )


SAID = (
    "`torch.jit.trace_method` is deprecated. Please switch to `torch.compile` or `torch.export`.",
    "`torch.jit.save` is deprecated. Please switch to `torch.export`.",
    "You are using the legacy TorchScript-based ONNX export. Starting in PyTorch 2.9, the new",
    "The feature will be removed. Please remove usage of this function",
    "Constant folding - Only steps=1 can be constant folded for opset >= 10 onnx::Slice op.",
    "# The axis name: batch will not be used, since it shares the same shape constraints with",
    "Detected pickle protocol 4 in the checkpoint, which was not the default pickle protocol",
    "'torch.load' received a zip file that looks like a TorchScript archive dispatching to",
    r"invalid escape sequence '\d'",
    r'"\d" is an invalid escape sequence. Such sequences will not work in the future.',
    "TypedStorage is deprecated. It will be removed in the future and UntypedStorage will",
)


@pytest.mark.parametrize("message", [*SAID, "Exporting a model while it is in training mode."])
def test_what_is_known_is_dropped_and_nothing_else(message: str) -> None:
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        with without_known_warnings():
            warnings.warn(message, FutureWarning, stacklevel=1)
    assert [str(warning.message) for warning in shown] == [m for m in [message] if m not in SAID]


def test_everything_known_has_been_said_and_has_a_reason() -> None:
    for pattern, reason in KNOWN.items():
        assert any(re.match(pattern, message) for message in SAID), pattern
        assert len(reason) > 10
