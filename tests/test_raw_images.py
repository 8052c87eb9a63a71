"""What a runner makes of raw images is the host's batch, bit for bit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from carafe_deploy import raw_images
from carafe_deploy.errors import InputShapeError
from carafe_deploy.kernels import KernelLibrary
from carafe_deploy.libraries import require_library
from carafe_deploy.preprocess import Preprocessor
from carafe_deploy.raw_images import preprocessing_kernels
from carafe_deploy.runners._torch import TorchRunner
from carafe_deploy.runners._torch_images import TorchImages
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
    make = TorchImages(device, library, channels_last=channels_last)
    raw, whole = Preprocessor(model, raw=True), Preprocessor(model)
    for given in (images, images[:1], [images[3][::-1, :100]], images[1:] * 2):
        found, wanted = raw(given), whole(given)
        tensor = make(found.images)
        assert tensor.device.type == device.type
        if channels_last and tensor.dtype != torch.uint8:
            assert tensor.is_contiguous(memory_format=torch.channels_last)
        np.testing.assert_array_equal(tensor.cpu().numpy(), wanted.images)
        like = found.images.like
        assert (like.shape, like.dtype) == (wanted.images.shape, wanted.images.dtype)
        np.testing.assert_array_equal(found.image_sizes, wanted.image_sizes)
        np.testing.assert_array_equal(found.scale_factors, wanted.scale_factors)
        assert found.original_sizes == wanted.original_sizes
        assert raw.padded_size(given[0]) == whole.padded_size(given[0])


def test_two_models_on_one_device(library: KernelLibrary, images: list[np.ndarray]) -> None:
    """A table is kept on the device until another model's images come."""
    make = TorchImages(CPU, library)
    models = info(), info(mean=(1.0, 2.0, 3.0))
    batches = [Preprocessor(model, raw=True)(images[:2]).images for model in models]
    expected = [Preprocessor(model)(images[:2]).images for model in models]
    for turn in (0, 0, 1, 0):
        np.testing.assert_array_equal(make(batches[turn]).numpy(), expected[turn])


def test_a_batch_is_filled_up_with_its_last_image(
    library: KernelLibrary, images: list[np.ndarray]
) -> None:
    raw = Preprocessor(info(), raw=True)(images[:2]).images.filled_up(3)
    assert (len(raw), raw.shape[0]) == (5, 5)
    whole = Preprocessor(info())(images[:2] + images[1:2] * 3).images
    np.testing.assert_array_equal(TorchImages(CPU, library)(raw).numpy(), whole)


def test_a_table_of_another_shape_is_refused() -> None:
    raw = Preprocessor(info(), raw=True)([np.zeros((9, 9, 3), np.uint8)]).images
    with pytest.raises(ValueError, match=r"table is float32 \[1, 256\], expected float32 \[3, 256"):
        dataclasses.replace(raw, table=raw.table[:1])


def test_what_no_detector_takes_is_refused() -> None:
    preprocess = Preprocessor(info(), raw=True)
    for given in ([], [np.zeros((4, 4), np.uint8)], [np.zeros((4, 4, 3), np.float32)]):
        with pytest.raises(InputShapeError):
            preprocess(given)


def forward(pictures: torch.Tensor, sizes: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return pictures, sizes, sizes, sizes


@pytest.fixture
def runner(library: KernelLibrary) -> Iterator[Any]:
    """Its only output is what it was given; what a GPU does, a CPU does."""
    with TorchRunner(info(), CPU, forward, forward) as opened:
        opened.preprocesses, opened._images = True, TorchImages(CPU, library)
        yield opened


def test_a_runner_takes_raw_images(images: list[np.ndarray], runner: Any) -> None:
    here, there = Preprocessor(info())(images[:2]), Preprocessor(info(), raw=True)(images[:2])
    for run in (runner.run, runner.run_stages, lambda inputs: runner.run_timed(inputs)[0]):
        expected, found = run(here.inputs), run(there.inputs)
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array)


def test_raw_images_are_checked_like_arrays() -> None:
    batch = Preprocessor(info(), raw=True)([np.zeros((9, 9, 3), np.uint8)])
    check_inputs(info(), batch.inputs, raw=True)
    with pytest.raises(InputShapeError, match="images has dtype float32, expected uint8"):
        check_inputs(info("nhwc_uint8"), batch.inputs, raw=True)
    odd = Preprocessor(info(pad_size_divisor=1), raw=True)([np.zeros((9, 10, 3), np.uint8)])
    with pytest.raises(InputShapeError, match="images has width 142, expected a mu"):
        check_inputs(info(pad_size_divisor=32), odd.inputs, raw=True)


def test_other_runners_refuse_them() -> None:
    batch = Preprocessor(info(), raw=True)([np.zeros((9, 9, 3), np.uint8)])
    with TorchRunner(info(), CPU, forward, forward) as runner:
        assert not runner.preprocesses
        with pytest.raises(InputShapeError, match=r"images is raw, .* give it what a Preproc"):
            runner.run(batch.inputs)


def test_without_kernels_for_a_gpu_the_host_preprocesses(monkeypatch: pytest.MonkeyPatch) -> None:
    for has_cuda in (False, True):
        found = type("Library", (), {"has_cuda": has_cuda})()
        monkeypatch.setattr(raw_images, "installed_kernels", lambda found=found: found)
        assert preprocessing_kernels() is (found if has_cuda else None)
    monkeypatch.setattr(raw_images, "installed_kernels", lambda: None)
    assert preprocessing_kernels() is None
