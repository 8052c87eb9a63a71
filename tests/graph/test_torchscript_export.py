"""TorchScript files: one trace for all sizes, portable across devices, metadata inside."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from carafe_deploy.errors import ExportError
from carafe_deploy.graph import torchscript_export
from carafe_deploy.graph.options import ExportOptions, deployable
from carafe_deploy.graph.torchscript_export import export_torchscript
from carafe_deploy.models.checkpoint import load_detector
from carafe_deploy.models.detector import Detector
from carafe_deploy.runners.torchscript import TorchScriptRunner


@pytest.fixture(scope="module", params=["faster_rcnn_carafe-2a9d7f44", "mask_rcnn_carafe-fbec7e06"])
def detector(request: pytest.FixtureRequest, shapes_dir: Path) -> Detector:
    loaded, _ = load_detector(shapes_dir / f"shapes_{request.param}.pth")
    return loaded


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_one_trace_serves_other_sizes_and_batches(
    detector: Detector, tmp_path: Path, precision: str, channels_last: bool
) -> None:
    options = ExportOptions((1, 4), precision=precision)
    path = tmp_path / "toy.ts"
    detector.train()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        export_torchscript(
            detector,
            path,
            options,
            name="toy",
            source={"file": "toy.pth"},
            channels_last=channels_last,
        )
    with zipfile.ZipFile(path) as archive:  # nothing of the path, so that equal exports are equal
        assert {name.partition("/")[0] for name in archive.namelist()} == {"archive"}
    assert all(module.training for module in detector.modules())
    detector.eval()
    deployed = deployable(detector, options, channels_last=channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    with TorchScriptRunner(path) as runner:
        assert runner.info.source == {"file": "toy.pth"}
        for batch, height, width in ((1, 64, 64), (2, 64, 128), (3, 128, 64)):
            images = torch.randn(batch, 3, height, width)
            sizes = torch.tensor([[height - 5.0, width - 9.0]] * batch)
            with torch.inference_mode():
                expected = deployed(images.contiguous(memory_format=layout), sizes)
            inputs = {"images": images.numpy(), "image_sizes": sizes.numpy()}
            found = runner.run(inputs)
            staged = runner.run_stages(inputs)
            for spec, want in zip(runner.outputs, expected, strict=True):
                np.testing.assert_array_equal(found[spec.name], want.numpy())
                np.testing.assert_array_equal(staged[spec.name], want.numpy())
            assert set(staged) == {*runner.info.output_names, *runner.info.stages}


def test_a_device_in_the_trace_is_refused(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    positions = torchscript_export.ImageNormalization.forward

    def on_cpu(self: object, images: torch.Tensor, sizes: torch.Tensor) -> object:
        sizes = sizes + torch.arange(2, device=images.device)
        return positions(self, images, sizes)

    monkeypatch.setattr(torchscript_export.ImageNormalization, "forward", on_cpu)
    with pytest.raises(ExportError, match=r"the trace names a device.* run there only"):
        export_torchscript(
            detector, tmp_path / "x.ts", ExportOptions(uint8_input=True), name="", source={}
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.gpu
def test_file_traced_on_the_cpu_runs_on_cuda(detector: Detector, tmp_path: Path) -> None:
    path = tmp_path / "toy.ts"
    export_torchscript(detector, path, ExportOptions(), name="toy", source={})
    images = np.random.default_rng(0).normal(size=(2, 3, 128, 192)).astype(np.float32)
    inputs = {"images": images, "image_sizes": np.array([[128, 192]] * 2, np.float32)}
    with TorchScriptRunner(path) as cpu, TorchScriptRunner(path, "cuda") as cuda:
        expected, found = cpu.run_stages(inputs), cuda.run_stages(inputs)
    for name in ("P2", "P6", "rpn_cls0"):
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=2e-2)
