"""Reading a ``.pth`` file without running anything that is in it.

A pickle is a program that calls functions by name. ``torch.load(weights_only=True)`` knows a fixed
list of PyTorch's own, which rebuild tensors. Files saved by mmengine or mmcv during training name
more, all in metadata that inference does not need. For the time of one load, these names pass:

* ``HistoryBuffer`` of mmengine, NumPy's ``_reconstruct``, ``scalar``, ``_frombuffer``, ``ndarray``
  and ``dtype``, and ``getattr`` (mmengine stores a HistoryBuffer's statistics as
  ``getattr(HistoryBuffer, 'min')``) become :class:`Discarded`, an inert class that ignores
  arguments and state. No array is built, no attribute looked up, ``getattr`` never called.
* ``ConfigDict`` of mmcv and mmengine and addict's ``Dict`` become ``collections.OrderedDict``, on
  PyTorch's own list already. (The unpickler fills no other dict subclasses; and addict restores
  state into the instance, which a plain dict cannot take.)

Any other name makes the load fail, and the error says which one it was.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch.serialization import safe_globals

from carafe_deploy.errors import CheckpointError
from carafe_deploy.known_warnings import without_known_warnings


class Discarded:
    """Stands for a piece of metadata that was not rebuilt."""

    def __init__(self, *arguments: object) -> None:
        pass

    def __new__(cls, *arguments: object) -> Discarded:
        """Ignore what the file would construct."""
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        """Ignore what the file would restore."""


_DISCARDED = (
    "builtins.getattr",
    "mmengine.logging.history_buffer.HistoryBuffer",
    "numpy.dtype",
    "numpy.ndarray",
    *(
        f"numpy.{core}.{name}"
        for core in ("core", "_core")  # NumPy 1 and 2
        for name in ("multiarray._reconstruct", "multiarray.scalar", "numeric._frombuffer")
    ),
)
_DICTS = (
    "addict.addict.Dict",
    "mmcv.utils.config.ConfigDict",
    "mmengine.config.config.ConfigDict",
)
_STAND_INS: list[Any] = [(Discarded, name) for name in _DISCARDED]
_STAND_INS += [(OrderedDict, name) for name in _DICTS]

#: How files that are often mistaken for checkpoints begin.
_FOREIGN = (
    (re.compile(rb"\s*(<!doctype|<html|<\?xml|<head)", re.IGNORECASE), "a web page"),
    (re.compile(rb"version https://git-lfs"), "a Git LFS pointer (run: git lfs pull)"),
    (re.compile(rb"\s*[{\[]\s*[\"{\[]"), "a JSON file"),
    (re.compile(rb".{8}\{\"", re.DOTALL), "a safetensors file"),
    (re.compile(rb"\x08[\x01-\x20].{0,2}[\x12\x1a:]", re.DOTALL), "an ONNX file"),
    (re.compile(rb"\x1f\x8b"), "a gzip file (unpack it)"),
)
#: Instructions that files of pickle protocol 4 and 5 begin with (FRAME, SHORT_BINUNICODE, ...).
_PROTOCOL_4 = frozenset((0x8C, 0x8D, 0x8E, 0x8F, 0x90, 0x91, 0x93, 0x94, 0x95, 0x96))


def load_weights_only(path: Path) -> Any:
    """What the file holds: tensors on the CPU, plain containers, and :class:`Discarded` metadata.

    Read are PyTorch's zip format and that of before 1.6, in which the checkpoints of 2020 are.

    Raises:
        CheckpointError: the file is missing, empty, truncated, of another kind, or names a
            function or class that weights do not need.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(512)
    except OSError as error:
        raise CheckpointError(
            f"cannot read checkpoint {path} ({error.strerror}): check the path"
        ) from error
    if not head:
        raise CheckpointError(f"checkpoint {path} is empty: download or copy it again")
    kind = next((kind for pattern, kind in _FOREIGN if pattern.match(head)), None)
    if kind is not None:
        remedy = "download or copy it again"
        if kind == "an ONNX file":
            remedy = f"rename it to {path.stem}.onnx, and it is taken for what it is"
        raise CheckpointError(f"{path} is {kind}, not a checkpoint: {remedy}")
    try:
        # The list of safe globals is the process's, like its filters of warnings.
        with without_known_warnings(), safe_globals(_STAND_INS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle makes the unpickler raise anything
        raise _explain(path, error) from error


def _explain(path: Path, error: Exception) -> CheckpointError:
    """One line in place of PyTorch's advice, which includes loading the file without protection."""
    message = str(error)
    if "TorchScript" in message:
        return CheckpointError(
            f"{path} is a TorchScript file, not a checkpoint: rename it to {path.stem}.ts, and "
            "it is taken for what it is"
        )
    detail = re.search(r"WeightsUnpickler error:\s*([^\n]*)", message)
    reason = detail.group(1) if detail else message
    foreign = re.search(r"GLOBAL (\S+)", reason)
    if foreign or re.match(r"(Can only|Trying to call)", reason):
        what = f"names {foreign.group(1)}" if foreign else "builds objects of its own"
        return CheckpointError(
            f"{path} {what}, which weights do not need. It was refused, and nothing in it was run, "
            "because reading it in full could run any code. If you trust whoever made it, have the "
            "weights alone saved there: mmdetection's tools/model_converters/publish_model.py, or "
            "torch.save({'state_dict': model.state_dict()}, ...)"
        )
    operand = re.match(r"Unsupported operand (\d+)", reason)
    if operand and int(operand.group(1)) in _PROTOCOL_4:
        return CheckpointError(
            f"{path} is a pickle of protocol 4 or 5, which is not read because it could run any "
            "code: have it saved with torch.save and its default protocol"
        )
    known = isinstance(error, (RuntimeError, EOFError, UnpicklingError)) and not operand
    hint = f" ({reason.split('. ')[0][:120]})" if known and reason else ""
    return CheckpointError(
        f"{path} is truncated, damaged or no PyTorch checkpoint{hint}: download or copy it again"
    )
