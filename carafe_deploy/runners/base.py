"""What every backend looks like: named NumPy arrays in, named NumPy arrays out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt

from carafe_deploy.errors import CarafeDeployError, InputShapeError
from carafe_deploy.types import ModelInfo, OperatorCall, TensorSpec

__all__ = [
    "BODIES",
    "KERNELS",
    "Array",
    "RunTimes",
    "Runner",
    "Wrapper",
    "check_inputs",
    "with_tf32",
]

#: What computes the custom operators in ONNX Runtime: libcarafe_onnxruntime.so, or the function
#: bodies of standard operators that the file carries.
KERNELS, BODIES = "kernels", "function bodies"

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class RunTimes:
    """Milliseconds that the parts of one run took: by device events on a GPU, else by the clock.

    Attributes:
        upload: copies of the inputs to the device, and preprocessing of raw images there.
        compute: from the first to the last operator.
        download: copies of the outputs to the host.
        enqueue: host time spent on launching the compute; None where the host computes itself.
    """

    upload: float
    compute: float
    download: float
    enqueue: float | None = None


@runtime_checkable
class Runner(Protocol):
    """One opened artefact. Use it as a context manager; leaving it frees everything.

    ``run`` takes ``images`` (see :class:`~carafe_deploy.types.InputFormat`) and ``image_sizes``
    ([B, 2] float32, height and width of each image before padding) and returns ``num_dets``
    [B, 1] int32, ``det_boxes`` [B, D, 4] float32 in network-input pixels, ``det_scores`` [B, D]
    float32, ``det_classes`` [B, D] int32 and, for Mask R-CNN, ``det_masks`` [B, D, 28, 28]
    float32 probabilities. Rows from ``num_dets`` on are padding.
    """

    #: A name in :data:`carafe_deploy.backends.BACKENDS`, e.g. ``"onnxruntime"``.
    backend: str
    #: Its precision is what this runner computes in, ``"tf32"`` included.
    info: ModelInfo
    #: Where it computes: ``"cpu"``, ``"cuda:0"``, ...
    device: str
    #: ``images`` may be :class:`~carafe_deploy.raw_images.RawImages`, which it preprocesses on its
    #: device.
    preprocesses: bool
    #: What can compute the custom operators, for people; the first does. One is empty where there
    #: is no choice.
    implementations: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run once. Raises InputShapeError on arrays the artefact does not accept, and RunError
        where its runtime gives up.
        """
        ...

    def start(self, inputs: Mapping[str, Array]) -> Callable[[], dict[str, Array]]:
        """Begin a run. What is returned waits for its end, in any one thread, and gives what
        :meth:`run` does. A runner on a device may return before that has computed; runs are
        computed in the order in which they were started.
        """
        ...

    def run_timed(self, inputs: Mapping[str, Array]) -> tuple[dict[str, Array], RunTimes]:
        """Like :meth:`run`, and tells how long its parts took."""
        ...

    def run_stages(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Like :meth:`run`, and returns the named intermediate tensors too.

        Raises UnsupportedLevelError where the artefact cannot be looked into.
        """
        ...

    def run_operator(
        self, call: OperatorCall, inputs: Sequence[Array], implementation: str = ""
    ) -> tuple[Array, ...]:
        """Run one custom operator as this artefact does, or by another of its implementations.

        Raises UnsupportedLevelError where the artefact runs as a whole only.
        """
        ...

    def close(self) -> None:
        """Free all memory; calling it twice is harmless."""
        ...

    def __enter__(self) -> Runner: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class Wrapper:
    """Another runner, for what changes one thing about it."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.backend, self.info = runner.backend, runner.info
        self.device, self.preprocesses = runner.device, runner.preprocesses
        self.implementations = runner.implementations
        self.inputs, self.outputs = runner.inputs, runner.outputs

    def _around(self) -> AbstractContextManager[None]:
        """What every run is inside."""
        return nullcontext()

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See :class:`Runner`."""
        with self._around():
            return self._runner.run(inputs)

    def start(self, inputs: Mapping[str, Array]) -> Callable[[], dict[str, Array]]:
        """See :class:`Runner`; by :meth:`run`, which others may change."""
        results = self.run(inputs)
        return lambda: results

    def run_timed(self, inputs: Mapping[str, Array]) -> tuple[dict[str, Array], RunTimes]:
        """See :class:`Runner`."""
        with self._around():
            return self._runner.run_timed(inputs)

    def run_stages(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See :class:`Runner`."""
        with self._around():
            return self._runner.run_stages(inputs)

    def run_operator(
        self, call: OperatorCall, inputs: Sequence[Array], implementation: str = ""
    ) -> tuple[Array, ...]:
        """See :class:`Runner`."""
        with self._around():
            return self._runner.run_operator(call, inputs, implementation)

    def close(self) -> None:
        """Close the other runner."""
        self._runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def with_tf32(info: ModelInfo) -> ModelInfo:
    """The same model, computed with TF32 where it would be float32.

    Raises:
        CarafeDeployError: it does not compute in float32.
    """
    if info.precision != "fp32":
        raise CarafeDeployError(
            f"tf32 rounds what fp32 computes, but {info.name} computes in {info.precision}: "
            "leave it out"
        )
    return dataclasses.replace(info, precision="tf32")


def check_inputs(info: ModelInfo, inputs: Mapping[str, Array], *, raw: bool = False) -> None:
    """Check ``images`` and ``image_sizes`` against what the artefact accepts.

    Args:
        info: of the artefact.
        inputs: as given.
        raw: ``images`` may be :class:`~carafe_deploy.raw_images.RawImages`.

    Raises:
        InputShapeError: an input is missing, has another dtype, layout, batch or size, or its
            height or width is not a multiple of ``pad_size_divisor``.
    """
    for name in ("images", "image_sizes"):
        if name not in inputs:
            raise InputShapeError(f"input {name!r} is missing, got {sorted(inputs)}")
    images = inputs["images"]
    like = getattr(images, "like", None)  # of raw images
    if like is not None:
        if not raw:
            raise InputShapeError(
                "images is raw, which this runner does not preprocess: give it what a "
                "Preprocessor makes without raw=True"
            )
        images = like
    sizes = inputs["image_sizes"]
    uint8 = info.input.layout == "nhwc_uint8"
    dtype = np.dtype("uint8" if uint8 else "float32")
    if images.dtype != dtype:
        raise InputShapeError(f"images has dtype {images.dtype}, expected {dtype}")
    if images.ndim != 4 or images.shape[3 if uint8 else 1] != 3:
        expected = "[B, H, W, 3]" if uint8 else "[B, 3, H, W]"
        raise InputShapeError(f"images has shape {list(images.shape)}, expected {expected}")
    batch = images.shape[0]
    height, width = images.shape[1:3] if uint8 else images.shape[2:4]
    divisor = info.preprocessing.pad_size_divisor
    for name, size in (("height", height), ("width", width)):
        if size % divisor:
            raise InputShapeError(
                f"images has {name} {size}, expected a multiple of {divisor}: "
                "pad right and bottom with zeros"
            )
    for name, size, (low, high) in (
        ("batch", batch, info.input.batch),
        ("height", height, info.input.height),
        ("width", width, info.input.width),
    ):
        if not low <= size <= high:
            accepted = f"exactly {low}" if low == high else f"{low} to {high}"
            raise InputShapeError(
                f"images has {name} {size}, this artefact accepts {accepted}: "
                "resize the input or export with other bounds"
            )
    if sizes.dtype != np.dtype("float32") or sizes.shape != (batch, 2):
        raise InputShapeError(
            f"image_sizes is {sizes.dtype} {list(sizes.shape)}, expected float32 [{batch}, 2]"
        )
    fits = (sizes >= 1) & (sizes <= (height, width))  # nor does NaN
    if not fits.all():
        wrong = int(np.flatnonzero(~fits.all(axis=1))[0])
        raise InputShapeError(
            f"image_sizes[{wrong}] is {sizes[wrong].tolist()}, expected height and width in pixels "
            f"before padding, 1 to {height} and 1 to {width}"
        )
