"""mmdetection's ``.pth`` files: reading them, and building the detector they belong to."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from carafe_deploy.backends import mistaken
from carafe_deploy.brief import OneLine
from carafe_deploy.errors import CheckpointError, ConfigError
from carafe_deploy.files import sha256_of
from carafe_deploy.models import zoo
from carafe_deploy.models.config import DetectorConfig
from carafe_deploy.models.config_text import parse_config, read_config
from carafe_deploy.models.detector import Detector, build_detector
from carafe_deploy.models.mmdet_config import detector_config
from carafe_deploy.models.unpickle import load_weights_only

__all__ = ["Checkpoint", "check_state_dict", "load_checkpoint", "load_detector"]

_PUBLISHED = re.compile(r"(?P<name>.+)-(?P<hash>[0-9a-f]{8})\.pth(?:\.tar)?")
#: Lines of each kind in a state_dict diff.
_DIFF_LINES = 8


@dataclass(frozen=True, repr=False)
class Checkpoint(OneLine):
    """A checkpoint's weights and what they mean.

    Attributes:
        config: the detector it was trained as.
        state_dict: weights by mmdetection's key, on the CPU; floating point ones are float32.
        name: the file's stem, without the hash of a published file.
        sha256: of the file, in hex.
        source: file name and SHA-256, as :class:`~carafe_deploy.types.ModelInfo` records them.
        notes: what was assumed or left out, one sentence each.
    """

    config: DetectorConfig
    state_dict: dict[str, Tensor]
    name: str
    sha256: str
    source: dict[str, str]
    notes: tuple[str, ...]


def load_checkpoint(
    path: str | os.PathLike[str], config_path: str | os.PathLike[str] | None = None
) -> Checkpoint:
    """Read a checkpoint of mmdetection 2.x or 3.x, published or as saved during training.

    Settings come from `config_path` if given, else from the config text that mmdetection stores in
    the file, else from tensor shapes and mmdetection's defaults. Nothing in the file is executed
    (see :mod:`carafe_deploy.models.unpickle`), nor is a config.

    Accepted are the dict with ``state_dict`` that mmdetection writes, one with ``model`` in its
    place, and a bare state_dict; keys with ``module.`` in front (DataParallel), and heads without
    ``roi_head.`` (some files of 2020). The ``ema_`` copies of mmcv's EMAHook are left out.

    Args:
        path: the ``.pth`` file. If its name ends in ``-`` and 8 hex digits, they must be the
            beginning of its SHA-256, as in all published files.
        config_path: mmdetection's ``.py`` config, for files without one, or to override it.

    Raises:
        CheckpointError: unreadable, unsafe, damaged, another architecture, or mmdetection 1.x.
        ConfigError: the config cannot be read, or asks for what the detectors do not have.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder: give the .pth file in it")
    other = mistaken(path, "pytorch")
    if other is not None:
        raise CheckpointError(
            f"{other}, which was made from a checkpoint: give that, mmdetection's .pth file"
        )
    content = load_weights_only(path)
    sha256 = sha256_of(path)
    name = _check_published_hash(path, sha256)
    notes: list[str] = []
    try:
        found, meta = _split(content)
        tensors = _todays_keys(found, notes)
        shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
        config, more = _settings(path, sha256, config_path, meta, shapes)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return Checkpoint(
        config=config,
        state_dict=tensors,
        name=name,
        sha256=sha256,
        source={"file": path.name, "sha256": sha256},
        notes=(*notes, *more),
    )


def load_detector(
    path: str | os.PathLike[str],
    config_path: str | os.PathLike[str] | None = None,
    num_classes: int | None = None,
) -> tuple[Detector, Checkpoint]:
    """Build the detector of a checkpoint and load its weights, every key accounted for.

    Args:
        path: as for :func:`load_checkpoint`.
        config_path: as for :func:`load_checkpoint`.
        num_classes: number of foreground classes the caller counts on, if any.

    Returns:
        The detector in evaluation mode, float32, on the CPU, without gradients; its checkpoint.

    Raises:
        CheckpointError: as :func:`load_checkpoint`; or keys or shapes differ from the detector's;
            or the number of classes is not `num_classes`.
        ConfigError: as :func:`load_checkpoint`.
    """
    checkpoint = load_checkpoint(path, config_path)
    found = checkpoint.config.num_classes
    if num_classes is not None and num_classes != found:
        raise CheckpointError(
            f"{path} has {found} classes ({_names(checkpoint.config.classes)}), not {num_classes}: "
            "give the checkpoint that was trained for them"
        )
    detector = build_detector(checkpoint.config)
    try:
        check_state_dict(
            {key: tuple(tensor.shape) for key, tensor in detector.state_dict().items()},
            {key: tuple(tensor.shape) for key, tensor in checkpoint.state_dict.items()},
        )
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    detector.load_state_dict(checkpoint.state_dict)
    return detector.eval().requires_grad_(False), checkpoint


def check_state_dict(
    expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> None:
    """Compare keys and shapes; equal is the only way to pass.

    Args:
        expected: shapes by key of the detector.
        found: shapes by key of the checkpoint.

    Raises:
        CheckpointError: they differ; the message lists the first keys of each kind.
    """
    missing = [f"{key} {expected[key]}" for key in expected if key not in found]
    unexpected = [f"{key} {found[key]}" for key in found if key not in expected]
    shapes = [
        f"{key} {found[key]}, the detector needs {expected[key]}"
        for key in expected
        if key in found and tuple(found[key]) != tuple(expected[key])
    ]
    if not (missing or unexpected or shapes):
        return
    lines = ["the weights do not fit the detector that the config describes:"]
    for title, entries in (
        ("missing", missing), ("unexpected", unexpected), ("other shape", shapes),
    ):  # fmt: skip
        if entries:
            lines.append(f"  {title} ({len(entries)}):")
            lines.extend(f"    {entry}" for entry in entries[:_DIFF_LINES])
            if len(entries) > _DIFF_LINES:
                lines.append(f"    ... and {len(entries) - _DIFF_LINES} more")
    lines.append("give the config that the checkpoint was trained with")
    raise CheckpointError("\n".join(lines))


def _check_published_hash(path: Path, sha256: str) -> str:
    """The file's stem without hash; raises if it has one that is not its own."""
    found = _PUBLISHED.fullmatch(path.name)
    if found is None:
        return path.stem
    if not sha256.startswith(found["hash"]):
        raise CheckpointError(
            f"{path} is damaged: by its name, its SHA-256 begins with {found['hash']}, but it "
            f"begins with {sha256[:8]}. Download it again; if it was saved anew on purpose, rename "
            "it so that its name does not end in 8 hex digits"
        )
    return found["name"]


def _split(content: Any) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """(tensors by key, metadata) of what a file holds."""
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"holds a {type(content).__name__}, not a dict of weights: give mmdetection's .pth file"
        )
    weights = content
    for name in ("state_dict", "model"):
        if isinstance(content.get(name), Mapping):
            weights = content[name]
            break
    strange = [key for key, value in weights.items() if not isinstance(value, Tensor)]
    if strange or not all(isinstance(key, str) for key in weights):
        keys = ", ".join(map(repr, list(content)[:_DIFF_LINES]))
        raise CheckpointError(
            f"holds no state_dict (its entries are {keys}): give mmdetection's .pth file"
        )
    for key, tensor in weights.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise CheckpointError(f"{key} is sparse, quantised or without data: save it dense")
    meta = content.get("meta")
    return dict(weights), meta if isinstance(meta, Mapping) else {}


def _todays_keys(found: dict[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    """Keys as mmdetection 3.x spells them, floating point values as float32."""
    if found and all(key.startswith("module.") for key in found):
        found = {key.removeprefix("module."): tensor for key, tensor in found.items()}
    averaged = [key for key in found if key.startswith("ema_")]
    if averaged:
        notes.append(f"{len(averaged)} copies of weights by EMAHook (ema_*) are left out")
    two_stage = any(key.endswith("bbox_head.shared_fcs.0.weight") for key in found)
    tensors: dict[str, Tensor] = {}
    for key, tensor in found.items():
        if key.startswith("ema_"):
            continue
        if two_stage and key.startswith(("bbox_head.", "mask_head.")):
            key = f"roi_head.{key}"
        tensors[key] = tensor.float() if tensor.is_floating_point() else tensor
    counters = 0
    for key in list(tensors):
        counter = key.removesuffix("running_var") + "num_batches_tracked"
        if key.endswith(".running_var") and counter not in tensors:
            tensors[counter] = torch.tensor(0)
            counters += 1
    if counters:
        notes.append(f"{counters} counters num_batches_tracked are absent; inference has no use")
    return tensors


def _settings(
    path: Path,
    sha256: str,
    config_path: str | os.PathLike[str] | None,
    meta: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
) -> tuple[DetectorConfig, tuple[str, ...]]:
    classes = _stored_classes(meta)
    if config_path is not None:
        folders = _folders(Path(config_path))
        return detector_config(read_config(config_path), shapes, classes, folders)
    try:
        return detector_config(_stored_config(path, meta), shapes, classes, _folders(path))
    except ConfigError as error:
        # The model card says what these two are, whatever their metadata of 2020 looks like.
        entry = zoo.entry_of(path.name, sha256)
        if entry is None:
            raise ConfigError(
                f"{error}\n(this config is inside the checkpoint; another can be given beside it)"
            ) from error
        config, notes = detector_config(None, shapes, classes)
        return config, (
            *notes,
            f"the config inside published model {entry.name} is not used: {error}",
        )


def _folders(path: Path) -> tuple[Path, ...]:
    """Where a relative path in a config may lead.

    mmdetection starts from the folder it is run in, its root as a rule, and keeps configs and
    checkpoints below that.
    """
    return tuple(dict.fromkeys((Path.cwd(), *path.resolve().parents)))


def _stored_config(path: Path, meta: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Values of the config in a checkpoint: ``meta['cfg']`` in 3.x, ``meta['config']`` in 2.x."""
    for key in ("cfg", "config"):
        stored = meta.get(key)
        if isinstance(stored, Mapping):
            return stored
        if isinstance(stored, str) and stored.strip():
            return parse_config(stored, f"{path.name}: meta[{key!r}]")
    return None


def _stored_classes(meta: Mapping[str, Any]) -> Sequence[str] | None:
    dataset = meta.get("dataset_meta")
    for values in (dataset if isinstance(dataset, Mapping) else {}, meta):
        for key in ("classes", "CLASSES"):
            if values.get(key) is not None:
                return values[key]
    return None


def _names(classes: Sequence[str]) -> str:
    return ", ".join(classes[:4]) + (", ..." if len(classes) > 4 else "")
