"""Preprocessing by a torch device gives the host's bits, and runners take what it leaves there."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from carafe_deploy import preprocess_torch
from carafe_deploy.device_images import DeviceImages
from carafe_deploy.errors import InputShapeError
from carafe_deploy.kernels import KernelLibrary
from carafe_deploy.libraries import require_library
from carafe_deploy.preprocess import Preprocessor
from carafe_deploy.preprocess_torch import TorchPreprocessor, preprocessor_on
from carafe_deploy.runners._torch import TorchRunner
from carafe_deploy.runners.base import check_inputs
from carafe_deploy.types import InputFormat, ModelInfo, Preprocessing

CPU = torch.device("cpu")
DEVICES = [CPU, pytest.param(torch.device("cuda"), marks=pytest.mark.gpu)]


def info(layout: str = "nchw_float32", **preprocessing: object) -> ModelInfo:
    return ModelInfo(
        name="test",
        architecture="faster_rcnn",
        classes=("a",),
        preprocessing=Preprocessing(scale=(160, 128), **preprocessing),
        input=InputFormat(layout=layout),
    )


@pytest.fixture(scope="module")
def library() -> KernelLibrary:
    return KernelLibrary(require_library("carafe_kernels"))


@pytest.fixture
def images() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    sizes = [(90, 120), (200, 150), (1, 7), (128, 160), (333, 500), (60, 61)]
    return [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    "model",
    [
        info(),
        info(bgr_to_rgb=False, mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0)),
        info("nhwc_uint8"),
    ],
    ids=["rgb", "bgr", "uint8"],
)
def test_the_host_gives_the_same_bits(
    library: KernelLibrary,
    images: list[np.ndarray],
    device: torch.device,
    channels_last: bool,
    model: ModelInfo,
) -> None:
    preprocess = TorchPreprocessor(model, device, library, channels_last=channels_last)
    expected = Preprocessor(model)
    for given in (images, images[:1], [images[3][::-1, :100]], images[1:] * 2):
        found, wanted = preprocess(given), expected(given)
        tensor = found.images.wait()
        assert tensor.device.type == device.type
        if channels_last and tensor.dtype != torch.uint8:
            assert tensor.is_contiguous(memory_format=torch.channels_last)
        np.testing.assert_array_equal(tensor.cpu().numpy(), wanted.images)
        np.testing.assert_array_equal(found.image_sizes, wanted.image_sizes)
        np.testing.assert_array_equal(found.scale_factors, wanted.scale_factors)
        assert found.original_sizes == wanted.original_sizes
        assert preprocess.padded_size(given[0]) == expected.padded_size(given[0])


def test_what_no_detector_takes_is_refused(library: KernelLibrary) -> None:
    preprocess = TorchPreprocessor(info(), CPU, library)
    for given in ([], [np.zeros((4, 4), np.uint8)], [np.zeros((4, 4, 3), np.float32)]):
        with pytest.raises(InputShapeError):
            preprocess(given)


@pytest.fixture
def runner() -> Iterator[TorchRunner]:
    """Its only output is what it was given."""

    def forward(pictures: torch.Tensor, sizes: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return pictures, sizes, sizes, sizes

    with TorchRunner(info(), CPU, forward, forward) as opened:
        yield opened


def test_a_runner_takes_what_is_on_its_device(
    library: KernelLibrary, images: list[np.ndarray], runner: TorchRunner
) -> None:
    here, there = (
        Preprocessor(info())(images[:2]),
        TorchPreprocessor(info(), CPU, library)(images[:2]),
    )
    for run in (runner.run, lambda inputs: runner.run_timed(inputs)[0]):
        expected, found = run(here.inputs), run(there.inputs)
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array)


def test_images_on_a_device_are_checked_like_arrays(library: KernelLibrary) -> None:
    batch = TorchPreprocessor(info(), CPU, library)([np.zeros((9, 9, 3), np.uint8)])
    check_inputs(info(), batch.inputs)
    with pytest.raises(InputShapeError, match="images has dtype float32, expected uint8"):
        check_inputs(info("nhwc_uint8"), batch.inputs)
    wrong = DeviceImages(torch.zeros(1, 3, 60, 64))
    with pytest.raises(InputShapeError, match="images has height 60, expected a multiple of"):
        check_inputs(info(), {**batch.inputs, "images": wrong})


def test_without_kernels_for_a_gpu_the_host_preprocesses(monkeypatch: pytest.MonkeyPatch) -> None:
    for found in (None, type("Library", (), {"has_cuda": False})()):
        monkeypatch.setattr(preprocess_torch, "installed_kernels", lambda found=found: found)
        assert type(preprocessor_on("cuda:0", info())) is Preprocessor
