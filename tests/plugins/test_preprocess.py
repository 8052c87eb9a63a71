"""Preprocessing by the library against OpenCV, and its CUDA source on the emulator."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from carafe_deploy.kernels import Device, DType, Layout, PreprocessParams
from carafe_deploy.preprocess import Preprocessor
from carafe_deploy.runners._torch_images import TorchImages
from carafe_deploy.types import ModelInfo, Preprocessing
from tests.plugins.emulated import ORDERS, EmulatedLibrary, Order

Image = np.ndarray

TYPES = {
    DType.FLOAT32: torch.float32,
    DType.FLOAT16: torch.float16,
    DType.BFLOAT16: torch.bfloat16,
}


@dataclass(frozen=True)
class Case:
    """One image and what becomes of it."""

    image: Image
    size: tuple[int, int]
    padded: tuple[int, int]
    table: np.ndarray
    dtype: DType = DType.FLOAT32
    layout: Layout = Layout.NCHW
    raw: bool = False
    reversed: bool = False

    def run(self, library: EmulatedLibrary, device: Device = Device.CPU) -> torch.Tensor:
        """[3, H, W], or [H, W, 3] bytes."""
        dtype = torch.uint8 if self.raw else TYPES[self.dtype]
        channels_last = self.layout == Layout.NHWC
        shape = (*self.padded, 3) if channels_last else (3, *self.padded)
        # One element more, to see that it is left alone.
        out = torch.full((int(np.prod(shape)) + 1,), 77, dtype=dtype)
        params = PreprocessParams(
            dtype=self.dtype,
            layout=self.layout,
            raw=int(self.raw),
            reversed=int(self.reversed),
            source_height=self.image.shape[0],
            source_width=self.image.shape[1],
            height=self.size[0],
            width=self.size[1],
            padded_height=self.padded[0],
            padded_width=self.padded[1],
        )
        image = np.ascontiguousarray(self.image)
        table = 0 if self.raw else self.table.ctypes.data
        library.preprocess(params, image.ctypes.data, table, out.data_ptr(), device=device)
        assert out[-1] == 77
        found = out[:-1].view(shape)
        return found if self.raw or not channels_last else found.permute(2, 0, 1)

    def check(self, library: EmulatedLibrary) -> None:
        """The kernel's result is OpenCV's."""
        assert torch.equal(self.run(library, Device.CUDA), self.expected())

    def expected(self) -> torch.Tensor:
        """By OpenCV and a look-up."""
        height, width = self.size
        resized = cv2.resize(self.image, (width, height), interpolation=cv2.INTER_LINEAR)
        if self.raw:
            whole = np.zeros((*self.padded, 3), np.uint8)
            whole[:height, :width] = resized
            return torch.from_numpy(whole)
        planes = resized.transpose(2, 0, 1)[:: -1 if self.reversed else 1]
        filled = np.zeros((3, *self.padded), np.float32)
        for target, plane, values in zip(filled, planes, self.table, strict=True):
            target[:height, :width] = values[plane]
        return torch.from_numpy(filled).to(TYPES[self.dtype])


def random_case(seed: int, longest: int = 160) -> Case:
    rng = np.random.default_rng(seed)
    sides = np.exp(rng.uniform(0, np.log(longest), 4)).astype(int)
    source, size = (int(sides[0]), int(sides[1])), (int(sides[2]), int(sides[3]))
    if seed % 10 == 0:
        size = source
    elif seed % 10 == 1:
        size = max(1, source[0] // 2), max(1, source[1] // 2)
        source = size[0] * 2, size[1] * 2
    elif seed % 10 == 2:
        size = source[0] * 2, source[1] * 2
    image = rng.integers(0, 256, (*source, 3), np.uint8)
    if seed % 7 == 0:
        image = np.where(image > 127, np.uint8(255), np.uint8(0))
    raw = seed % 5 == 0
    return Case(
        image,
        size,
        (size[0] + int(rng.integers(0, 40)), size[1] + int(rng.integers(0, 40))),
        rng.normal(0, 2, (3, 256)).astype(np.float32),
        list(TYPES)[int(rng.integers(3))],
        Layout.NHWC if raw else Layout(int(rng.integers(2))),
        raw,
        not raw and bool(rng.integers(2)),
    )


def one_column() -> Case:
    """Stretched so far that the weights of one of its columns would not add up to 2048."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (40, 1, 3), np.uint8)
    table = rng.normal(0, 2, (3, 256)).astype(np.float32)
    return Case(image, (33, 5463), (33, 5463), table)


def assert_equal(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


def test_three_thousand_sizes_are_those_of_opencv(library: EmulatedLibrary) -> None:
    for seed in range(3000):
        case = random_case(seed)
        assert torch.equal(case.run(library), case.expected()), f"seed {seed}: {case.size}"


@pytest.mark.parametrize(
    ("source", "size"),
    [
        ((1, 1), (1, 1)),
        ((1, 1), (37, 21)),
        ((1, 300), (1, 77)),
        ((300, 1), (77, 1)),
        ((300, 2), (1, 1)),
        ((480, 640), (240, 320)),
        ((480, 640), (480, 640)),
        ((480, 640), (800, 1067)),
        ((427, 640), (800, 1199)),
        ((1000, 1500), (200, 300)),
        ((3, 5), (600, 1000)),
    ],
)
@pytest.mark.parametrize("raw", [False, True])
def test_corners(
    library: EmulatedLibrary, source: tuple[int, int], size: tuple[int, int], raw: bool
) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*source, 3), np.uint8)
    table = rng.normal(0, 2, (3, 256)).astype(np.float32)
    layout = Layout.NHWC if raw else Layout.NCHW
    case = Case(image, size, (size[0] + 3, size[1] + 5), table, layout=layout, raw=raw)
    assert_equal(case.run(library), case.expected())


def test_one_column(library: EmulatedLibrary) -> None:
    assert_equal(one_column().run(library), one_column().expected())


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: order.name)
def test_the_kernel_gives_the_same_bits(library: EmulatedLibrary, order: Order) -> None:
    library.set_order(order)
    for seed in range(60):
        random_case(seed, 90).check(library)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"layout": 2}, "layout is 2"),
        ({"raw": 2}, "raw is 2"),
        ({"reversed": -1}, "reversed -1, expected 0 or 1"),
        ({"raw": 1}, r"raw is 1, expected layout 1 \(NHWC\)"),
        ({"dtype": DType.FLOAT64}, "result is float64"),
        ({"source_height": 0}, "the image has 0 x 4 pixels"),
        ({"width": 0}, "4 x 0 pixels padded to 4 x 4"),
        ({"padded_height": 3}, "4 x 4 pixels padded to 3 x 4"),
        ({"source_width": 2**23 + 1}, r"expected sides of at most 2\^23"),
        ({"padded_width": 2**23, "padded_height": 2**24}, "8388608, expected sides of"),
        ({}, "source is null, expected the address of 48 elements"),
    ],
)
def test_parameters_are_refused(
    library: EmulatedLibrary, changed: dict[str, int], message: str
) -> None:
    fields = {"dtype": 0, "layout": 0, "raw": 0, "reversed": 0, "source_height": 4}
    fields |= {"source_width": 4, "height": 4, "width": 4, "padded_height": 4, "padded_width": 4}
    with pytest.raises(ValueError, match=message):
        library.preprocess(PreprocessParams(**(fields | changed)), 0, 0, 0)


def test_a_gpus_way_with_the_emulator_in_its_place(
    library: EmulatedLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a stream of their own, by pinned copies; the current stream waits for it once."""
    done: list[str] = []

    class Stream:
        cuda_stream = 0

        def __init__(self, device: torch.device) -> None:
            assert device.type == "cuda"

    class Current:
        def wait_stream(self, stream: Any) -> None:
            assert isinstance(stream, Stream)
            done.append("wait")

    def empty(*shape: Any, device: Any = None, **options: Any) -> Any:
        return plain_empty(*shape, **options)

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        done.append("pin")
        return tensor.clone()

    plain_empty, plain_to = torch.empty, torch.Tensor.to
    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device, **_: plain_to(self, "cpu"))
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: done.append("record"))
    for name in ("device", "stream"):
        monkeypatch.setattr(torch.cuda, name, contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Current())
    model = ModelInfo("", "", ("",), preprocessing=Preprocessing(scale=(90, 60)))
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (20 + seed, 30, 3), np.uint8) for seed in range(3)]
    make = TorchImages(torch.device("cuda:0"), library)
    raw, expected = Preprocessor(model, raw=True), Preprocessor(model)(images).images
    batch = raw(images).images
    for pins in (4, 3):  # the table, too, the first time
        np.testing.assert_array_equal(make(batch).numpy(), expected)
        assert done == ["pin"] * pins + ["wait", "record"]
        done.clear()
