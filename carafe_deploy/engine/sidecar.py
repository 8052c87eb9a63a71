"""The JSON file beside an engine: what it is, what it needs, and what a pipeline must know."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from carafe_deploy.brief import OneLine
from carafe_deploy.engine.profiles import Profile
from carafe_deploy.errors import ArtefactError
from carafe_deploy.files import sha256_of
from carafe_deploy.types import ModelInfo

#: Raised whenever the meaning of a field below changes.
SIDECAR_SCHEMA = 1

#: Begins each record where a file holds several (RFC 7464); JSON itself has no such character.
_SEPARATOR = "\x1e"

#: A capability that stands for itself and all later ones.
ANY_LATER = "+"


@dataclass(frozen=True, repr=False)
class PluginRecord(OneLine):
    """The plugin library an engine was built with; ``version`` is that of carafe_deploy.

    ``layers`` are name, operator and attributes of each plugin layer's ONNX node.
    """

    file: str
    sha256: str
    version: str
    layers: tuple[Mapping[str, Any], ...]


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

    bytes: int
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
    def from_json(cls, text: str) -> Sidecar:
        """Inverse of :meth:`to_json`.

        Raises:
            ArtefactError: the text is no JSON, of another schema version, or lacks a field.
        """
        try:
            data = json.loads(text)
            schema = data.pop("schema")
            if schema != SIDECAR_SCHEMA:
                raise ArtefactError(
                    f"it has schema {schema}, this version reads {SIDECAR_SCHEMA}: build the "
                    "engine again"
                )
            _check_types(data)
            if data["plugin"] is not None:
                layers = tuple(data["plugin"].pop("layers"))
                data["plugin"] = PluginRecord(**data["plugin"], layers=layers)
            data["compute_capabilities"] = tuple(data["compute_capabilities"])
            for text in data["compute_capabilities"]:
                _pair(text)
            data["profiles"] = tuple(map(Profile.from_dict, data["profiles"]))
            data["model"] = ModelInfo.from_json(json.dumps(data["model"]))
            return cls(**data)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtefactError(f"it is damaged ({error!r}): build the engine again") from error


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
        first, *several = path.read_text(encoding="utf-8").split(_SEPARATOR)
        return tuple(map(Sidecar.from_json, several or [first]))
    except FileNotFoundError as error:
        raise ArtefactError(
            f"{path} is missing: copy it along with the engine, or build the engine again with "
            "`carafe-deploy build`"
        ) from error
    except UnicodeDecodeError as error:
        raise ArtefactError(f"{path} is no text ({error}): build the engine again") from error
    except (ArtefactError, OSError) as error:
        raise ArtefactError(f"{path} cannot be read: {error}") from error


def _check_types(data: Mapping[str, Any]) -> None:
    """Raise TypeError unless the fields that messages and listings are made of fit them."""
    texts = {name: data[name] for name in ("flavour", "version")}
    texts.update((f"source {name}", data["source"][name]) for name in ("file", "sha256"))
    if data["plugin"] is not None:
        names = ("file", "sha256", "version")
        texts.update((f"plugin {name}", data["plugin"][name]) for name in names)
    for name, text in texts.items():
        if not isinstance(text, str):
            raise TypeError(f"{name} is {text!r}, expected a text")
    for name in ("layers", "build"):
        if not isinstance(data[name], dict):
            raise TypeError(f"{name} is {data[name]!r}, expected an object")


def _pair(text: str) -> tuple[int, int]:
    major, minor = text.removesuffix(ANY_LATER).split(".")
    return int(major), int(minor)
