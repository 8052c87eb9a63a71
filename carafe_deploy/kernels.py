"""libcarafe_kernels.so through its C interface (plugins/kernels/c_api.h), by ctypes.

Memory is handed over as addresses, so NumPy arrays, torch tensors and raw allocations all serve.
The structures mirror those of plugins/kernels/{carafe,candidates,roi_align,nms,masks,preprocess}.h
field by field.
"""

from __future__ import annotations

import ctypes
import enum
import functools
import json
import os
from collections.abc import Sequence
from ctypes import c_double, c_float, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, Unpack

from carafe_deploy.errors import BackendUnavailableError
from carafe_deploy.libraries import check_whole, find_library

__all__ = [
    "ABI_VERSION",
    "ENVIRONMENT_VARIABLE",
    "MAX_LEVELS",
    "BoxCandidatesParams",
    "BuildInfo",
    "CarafeParams",
    "DType",
    "Device",
    "KernelLibrary",
    "Layout",
    "MaskSource",
    "NmsParams",
    "Params",
    "PasteParams",
    "PreprocessParams",
    "RoiAlignParams",
    "RpnCandidatesParams",
    "Where",
    "installed_kernels",
    "is_switched_off",
]

#: Of the C interface that this file speaks.
ABI_VERSION = 2

#: ``off`` leaves the library alone, to compare with what computes without; unset or ``auto`` takes
#: it where it is.
ENVIRONMENT_VARIABLE = "CARAFE_DEPLOY_KERNELS"

#: Most levels a pyramid can have.
MAX_LEVELS = 16


class DType(enum.IntEnum):
    """Element types."""

    FLOAT32 = 0
    FLOAT16 = 1
    BFLOAT16 = 2
    FLOAT64 = 3


class Layout(enum.IntEnum):
    """Order of the axes in memory."""

    NCHW = 0
    NHWC = 1


class MaskSource(enum.IntEnum):
    """What CARAFE's second input holds."""

    NORMALIZED = 0
    ENCODED = 1


class Device(enum.IntEnum):
    """Where the addresses of a call point to."""

    CPU = 0
    CUDA = 1


class Where(TypedDict, total=False):
    """Where a call computes, see :class:`KernelLibrary`."""

    device: Device
    stream: int
    threads: int


class Params(ctypes.Structure):
    """Takes fields by name; ctypes alone would cut off what does not fit into 32 bits."""

    def __init__(self, **fields: Any) -> None:
        for name, value in fields.items():
            for number in value if isinstance(value, tuple) else (value,):
                if isinstance(number, int) and not -(2**31) <= number < 2**31:
                    raise ValueError(f"{name} is {number}, expected a number below 2**31")
        super().__init__(**fields)


class CarafeParams(Params):
    """``carafe::CarafeParams``."""

    _fields_ = (
        ("dtype", c_int32),
        ("layout", c_int32),
        ("source", c_int32),
        ("batch", c_int32),
        ("channels", c_int32),
        ("height", c_int32),
        ("width", c_int32),
        ("kernel_size", c_int32),
        ("groups", c_int32),
        ("scale", c_int32),
        ("feature_pitch", c_int32),
        ("mask_pitch", c_int32),
        ("out_pitch", c_int32),
    )


class RpnCandidatesParams(Params):
    """``carafe::RpnCandidatesParams``; heights, widths and strides as in RoiAlignParams."""

    _fields_ = (
        ("dtype", c_int32),
        ("layout", c_int32),
        ("batch", c_int32),
        ("levels", c_int32),
        ("anchors", c_int32),
        ("candidates", c_int32),
        ("heights", c_int32 * MAX_LEVELS),
        ("widths", c_int32 * MAX_LEVELS),
        ("strides", c_int32 * MAX_LEVELS),
        ("logit_pitch", c_int32),
        ("delta_pitch", c_int32),
        ("min_size", c_float),
    )


class BoxCandidatesParams(Params):
    """``carafe::BoxCandidatesParams``."""

    _fields_ = (
        ("dtype", c_int32),
        ("batch", c_int32),
        ("proposals", c_int32),
        ("classes", c_int32),
    )


class RoiAlignParams(Params):
    """``carafe::RoiAlignParams``; heights, widths and strides are tuples, one entry a level."""

    _fields_ = (
        ("dtype", c_int32),
        ("layout", c_int32),
        ("batch", c_int32),
        ("rois", c_int32),
        ("channels", c_int32),
        ("levels", c_int32),
        ("output_size", c_int32),
        ("sampling_ratio", c_int32),
        ("finest_scale", c_int32),
        ("heights", c_int32 * MAX_LEVELS),
        ("widths", c_int32 * MAX_LEVELS),
        ("strides", c_int32 * MAX_LEVELS),
        ("feature_pitch", c_int32),
        ("out_pitch", c_int32),
    )


class NmsParams(Params):
    """``carafe::NmsParams``."""

    _fields_ = (
        ("batch", c_int32),
        ("labels", c_int32),
        ("candidates", c_int32),
        ("max_output", c_int32),
        ("iou_threshold", c_float),
        ("score_threshold", c_float),
    )


class PreprocessParams(Params):
    """``carafe::PreprocessParams``."""

    _fields_ = (
        ("dtype", c_int32),
        ("layout", c_int32),
        ("raw", c_int32),
        ("reversed", c_int32),
        ("source_height", c_int32),
        ("source_width", c_int32),
        ("height", c_int32),
        ("width", c_int32),
        ("padded_height", c_int32),
        ("padded_width", c_int32),
    )


class PasteParams(Params):
    """``carafe::PasteParams``."""

    _fields_ = (
        ("masks", c_int32),
        ("cells", c_int32),
        ("height", c_int32),
        ("width", c_int32),
        ("threshold", c_double),
    )


@dataclass(frozen=True)
class BuildInfo:
    """What a library was built from.

    Attributes:
        version: of carafe_deploy.
        cuda: version of the CUDA compiler, empty for a CPU-only build.
        architectures: CUDA architectures as CMake names them, separated by spaces.
    """

    version: str
    cuda: str
    architectures: str


class KernelLibrary:
    """The operators on the CPU and, where built so, on CUDA.

    All methods take addresses as integers. On the CPU they compute on up to ``threads`` threads (0:
    one a processor). On CUDA they enqueue on ``stream`` (a ``cudaStream_t``) of the calling
    thread's current device and return at once; what the addresses point to must live until then.

    Args:
        path: of libcarafe_kernels.so.

    Raises:
        BackendUnavailableError: it is truncated, cannot be loaded, is another library, or of
            another version.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        check_whole(Path(self.path))
        try:
            self._library = ctypes.CDLL(self.path)
        except OSError as error:
            raise BackendUnavailableError(
                f"{self.path} cannot be loaded ({error}): build it again with `make plugins` or "
                "install a wheel of carafe-deploy for this platform"
            ) from error
        try:
            abi_version = self._library.carafe_abi_version()
        except AttributeError:
            raise BackendUnavailableError(
                f"{self.path} is not libcarafe_kernels.so: it has no function carafe_abi_version"
            ) from None
        if abi_version != ABI_VERSION:
            raise BackendUnavailableError(
                f"{self.path} has interface version {abi_version}, but this carafe_deploy needs "
                f"version {ABI_VERSION}: build it again with `make plugins`, or install package "
                "and library from the same wheel"
            )
        for name in ("carafe_build_info", "carafe_last_error"):
            getattr(self._library, name).restype = ctypes.c_char_p
        self.info = BuildInfo(**json.loads(self._library.carafe_build_info()))

    @property
    def has_cuda(self) -> bool:
        """Whether the library holds CUDA kernels."""
        return bool(self.info.cuda)

    def call(
        self,
        function: str,
        params: Params,
        *addresses: int,
        device: Device = Device.CPU,
        stream: int = 0,
        threads: int = 0,
    ) -> None:
        """Any function that takes its parameters, the device, addresses, stream and threads.

        Raises:
            ValueError: no call can have these parameters; the message names what is wrong.
            BackendUnavailableError: ``device`` is CUDA, which this library was built without.
            RuntimeError: CUDA refused the call.
        """
        pointers = map(c_void_p, addresses)
        self._run(
            getattr(self._library, function)(
                ctypes.byref(params), c_int32(device), *pointers, c_void_p(stream), c_int32(threads)
            )
        )

    def carafe(
        self,
        params: CarafeParams,
        features: int,
        masks: int,
        out: int,
        **where: Unpack[Where],
    ) -> None:
        """Carafe or CarafeEncoded, as ``params.source`` says. Raises as :meth:`call`."""
        self.call("carafe_forward", params, features, masks, out, **where)

    def multilevel_roi_align(
        self,
        params: RoiAlignParams,
        rois: int,
        features: Sequence[int],
        out: int,
        **where: Unpack[Where],
    ) -> None:
        """MultilevelRoiAlign; one address in ``features`` a level. Raises as :meth:`call`."""
        if len(features) != params.levels:
            raise ValueError(f"{len(features)} feature maps for {params.levels} levels")
        maps = (c_void_p * len(features))(*features)
        self.call("carafe_multilevel_roi_align", params, rois, ctypes.addressof(maps), out, **where)

    def rpn_candidates(
        self,
        params: RpnCandidatesParams,
        image_sizes: int,
        anchors: int,
        normalization: int,
        maps: Sequence[int],
        boxes: int,
        scores: int,
        **where: Unpack[Where],
    ) -> None:
        """RpnCandidates; logits and deltas of each level in ``maps``. Raises as :meth:`call`."""
        if len(maps) != 2 * params.levels:
            raise ValueError(f"{len(maps)} maps for {params.levels} levels")
        array = (c_void_p * len(maps))(*maps)
        constants = image_sizes, anchors, normalization
        addresses = *constants, ctypes.addressof(array), boxes, scores
        self.call("carafe_rpn_candidates", params, *addresses, **where)

    def box_candidates(
        self, params: BoxCandidatesParams, *addresses: int, **where: Unpack[Where]
    ) -> None:
        """BoxCandidates: addresses of its inputs, then of boxes and scores. Raises as
        :meth:`call`.
        """
        self.call("carafe_box_candidates", params, *addresses, **where)

    def batched_nms_workspace(self, params: NmsParams) -> int:
        """Bytes of device memory that :meth:`batched_nms` needs on CUDA. Raises ValueError."""
        function = self._library.carafe_batched_nms_workspace
        function.restype = c_int64
        size: int = function(ctypes.byref(params))
        if size < 0:
            raise ValueError(self._last_error())
        return size

    def batched_nms(
        self,
        params: NmsParams,
        boxes: int,
        scores: int,
        num_dets: int,
        indices: int,
        *,
        workspace: int = 0,
        **where: Unpack[Where],
    ) -> None:
        """BatchedNms; ``workspace`` is needed on CUDA only. Raises as :meth:`call`."""
        addresses = boxes, scores, num_dets, indices, workspace
        self.call("carafe_batched_nms", params, *addresses, **where)

    def preprocess(
        self,
        params: PreprocessParams,
        source: int,
        table: int,
        out: int,
        **where: Unpack[Where],
    ) -> None:
        """One image to its place in a batch, see plugins/kernels/preprocess.h. Raises as
        :meth:`call`.
        """
        self.call("carafe_preprocess", params, source, table, out, **where)

    def paste_masks(
        self,
        params: PasteParams,
        probabilities: int,
        boxes: int,
        text: int,
        capacity: int,
        offsets: int,
    ) -> None:
        """COCO's encodings of masks, see plugins/kernels/masks.h: ``offsets`` holds one number more
        than there are masks, the last the bytes it takes, more than ``capacity`` or not. Raises
        ValueError.
        """
        addresses = c_void_p(probabilities), c_void_p(boxes), c_void_p(text)
        paste = self._library.carafe_paste_masks
        self._run(paste(ctypes.byref(params), *addresses, c_int64(capacity), c_void_p(offsets)))

    def _run(self, status: int) -> None:
        """Turn a status of c_api.h into an exception."""
        if status == 0:
            return
        text = self._last_error()
        if "no kernel image" in text:
            text += (
                f": {self.path} is built for the architectures {self.info.architectures}, build it "
                "for this GPU with `make plugins CUDA_ARCHITECTURES=native`"
            )
        raise {1: ValueError, 3: BackendUnavailableError}.get(status, RuntimeError)(text)

    def _last_error(self) -> str:
        text: bytes = self._library.carafe_last_error()
        return text.decode()


@functools.cache
def installed_kernels() -> KernelLibrary | None:
    """The library, loaded once; None where there is none or it is switched off.

    Raises:
        BackendUnavailableError: a library is there but cannot be used, or a variable is wrong.
    """
    path = None if is_switched_off() else find_library("carafe_kernels")
    return None if path is None else KernelLibrary(path)


def is_switched_off() -> bool:
    """``CARAFE_DEPLOY_KERNELS`` is off; raises BackendUnavailableError where it is no choice."""
    choice = os.environ.get(ENVIRONMENT_VARIABLE) or "auto"
    if choice not in ("auto", "off"):
        raise BackendUnavailableError(
            f"{ENVIRONMENT_VARIABLE} is {choice!r}, expected 'auto' or 'off'"
        )
    return choice == "off"
