"""The JSON file beside an engine: what it is, what it needs, and what a pipeline must know."""

from __future__ import annotations

import builtins
import dataclasses
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from carafe_deploy.brief import OneLine, brief
from carafe_deploy.engine.profiles import Profile
from carafe_deploy.errors import ArtefactError
from carafe_deploy.files import sha256_of
from carafe_deploy.schema import SchemaError, Within, parse, structure
from carafe_deploy.types import ModelInfo

#: Raised whenever the meaning of a field below changes.
SIDECAR_SCHEMA = 1

#: Begins each record where a file holds several (RFC 7464); JSON itself has no such character.
_SEPARATOR = "\x1e"

#: A capability that stands for itself and all later ones.
ANY_LATER = "+"


@dataclass(frozen=True, repr=False)
class PluginLayer(OneLine):
    """The ONNX node of a plugin layer."""

    name: str
    operator: str
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, repr=False)
class PluginRecord(OneLine):
    """The plugin library an engine was built with; ``version`` is that of carafe_deploy."""

    file: str
    sha256: str
    version: str
    layers: tuple[PluginLayer, ...]


@dataclass(frozen=True, repr=False)
class Sidecar(OneLine):
    """Everything that opening an engine is checked against.

    Attributes:
        bytes: size of the engine file.
        sha256: of the engine file.
        flavour: ``"tensorrt"`` or ``"tensorrt_rtx"``.
        version: of that package; an engine runs under no other.
        compute_capabilities: of the GPUs it runs on, ``"8.9"`` each; ``"8.0+"`` also on later ones.
        plugin: None without plugin layers.
        source: ``file`` and ``sha256`` of the ONNX file.
        profiles: of input sizes.
        stages: the intermediate tensors are outputs, too.
        layers: number of layers by type, before TensorRT fused them.
        build: ``seconds``, ``peak_memory_bytes`` of the whole process, ``workspace_bytes``,
            ``tf32``.
        model: the model; its bounds are the profile's.
    """

    bytes: Annotated[int, Within(0, 1 << 62)]
    sha256: str
    flavour: str
    version: str
    compute_capabilities: tuple[str, ...]
    plugin: PluginRecord | None
    source: Mapping[str, str]
    profiles: tuple[Profile, ...]
    stages: bool
    layers: Mapping[str, int]
    build: Mapping[str, Any]
    model: ModelInfo

    @property
    def computed(self) -> ModelInfo:
        """The model, with the precision that the engine computes in: that may be TF32."""
        if self.model.precision != "fp32" or not self.build.get("tf32"):
            return self.model
        return dataclasses.replace(self.model, precision="tf32")

    def runs_on(self, capability: tuple[int, int]) -> bool:
        """The engine was built for GPUs of this compute capability."""
        return any(
            capability >= _pair(text) if text.endswith(ANY_LATER) else capability == _pair(text)
            for text in self.compute_capabilities
        )

    def to_json(self) -> str:
        """Serialise."""
        content = {"schema": SIDECAR_SCHEMA, **dataclasses.asdict(self)}
        # Last, in this order.
        for name in ("plugin", "profiles", "model"):
            content[name] = content.pop(name)
        content["model"] = json.loads(self.model.to_json())
        return json.dumps(content, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | builtins.bytes, source: object) -> Sidecar:
        """Inverse of :meth:`to_json`; ``source`` names the file in messages.

        Raises:
            ArtefactError: the text is no JSON, of another schema version, or a field is missing,
                unknown or out of range.
        """
        try:
            data = parse(text)
            schema = data.pop("schema", None) if isinstance(data, dict) else SIDECAR_SCHEMA
            if schema != SIDECAR_SCHEMA:
                raise ArtefactError(
                    f"{source} has schema {brief(schema)}, this version reads {SIDECAR_SCHEMA}: "
                    "build the engine again"
                )
            model = data.get("model") if isinstance(data, dict) else None
            if isinstance(model, dict):
                model.pop("schema", None)  # changes with this one's
            return structure(cls, data)
        except SchemaError as error:
            raise ArtefactError(f"{source} is damaged ({error}): build the engine again") from error

    def check_fields(self) -> None:
        """Raise ValueError where fields do not fit each other."""
        for name in ("file", "sha256"):
            if name not in self.source:
                raise ValueError(f"source.{name} is missing")
        for name, value in self.build.items():
            if not isinstance(value, (int, float, type(None))):
                raise ValueError(f"build.{name} is {brief(value)}, expected a number or null")
        for text in self.compute_capabilities:
            if not re.fullmatch(r"\d{1,3}\.\d{1,3}\+?", text):
                raise ValueError(
                    f"compute_capabilities holds {brief(text)}, expected numbers like 8.9"
                )


def sidecar_path(engine: str | os.PathLike[str]) -> Path:
    """``detector.engine`` -> ``detector.engine.json``."""
    engine = Path(engine)
    return engine.with_name(engine.name + ".json")


def read_sidecar(engine: str | os.PathLike[str]) -> Sidecar:
    """Read the sidecar of an engine.

    Raises:
        ArtefactError: it is missing or unreadable.
    """
    first, *others = read_records(engine)
    if others:
        digest = sha256_of(engine)
        return next((one for one in (first, *others) if one.sha256 == digest), first)
    return first


def join_records(records: Sequence[Sidecar]) -> str:
    """What a sidecar of several engines holds; see :mod:`carafe_deploy.engine.pair`."""
    texts = [record.to_json() for record in records]
    return texts[0] if len(texts) == 1 else "".join(_SEPARATOR + text for text in texts)


def read_records(engine: str | os.PathLike[str]) -> tuple[Sidecar, ...]:
    """The sidecar of an engine, and those of the engines that it is about to replace.

    Raises:
        ArtefactError: it is missing or unreadable.
    """
    path = sidecar_path(engine)
    try:
        first, *several = path.read_bytes().split(_SEPARATOR.encode())
        return tuple(Sidecar.from_json(text, path) for text in several or [first])
    except FileNotFoundError as error:
        raise ArtefactError(
            f"{path} is missing: copy it along with the engine, or build the engine again with "
            "`carafe-deploy build`"
        ) from error
    except OSError as error:
        raise ArtefactError(f"{path} cannot be read: {error.strerror or error}") from error


def _pair(text: str) -> tuple[int, int]:
    major, minor = text.removesuffix(ANY_LATER).split(".")
    return int(major), int(minor)
