"""Reading one dict of a config so that nothing in it is overlooked."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from carafe_deploy.errors import ConfigError
from carafe_deploy.models.config_text import short


class Section:
    """A dict of an mmdetection config and its key path.

    Each value is asked for once. :meth:`close` then raises for keys that were neither asked for nor
    named as without influence: a setting that is ignored in silence would change detections. A key
    set to None counts as absent. All methods raise ConfigError with key path, value and what is
    supported.
    """

    def __init__(self, values: Any, path: str) -> None:
        if values is None:
            values = {}
        if not isinstance(values, Mapping):
            raise ConfigError(f"{path}={short(values)} is not a dict")
        self.values: Mapping[str, Any] = values
        self.path = path
        self._seen = {"type", "_scope_", "_delete_"}

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def key(self, name: str) -> str:
        """Dotted path of a key, for messages."""
        return f"{self.path}.{name}" if self.path else name

    def error(self, name: str, supported: str) -> ConfigError:
        """The error for a value that is not supported."""
        return ConfigError(
            f"{self.key(name)}={short(self.values.get(name))} is not supported; "
            f"supported: {supported}"
        )

    def kind(self, *supported: str, default: str | None = None) -> str:
        """The ``type``, without module or scope (``mmdet.ResNet`` is ``ResNet``)."""
        value = self.values.get("type", default)
        name = value.rpartition(".")[2] if isinstance(value, str) else None
        if name not in supported:
            raise self.error("type", " or ".join(supported))
        return name

    def raw(self, *names: str, default: Any = None) -> Any:
        """The value as it stands; later names are older spellings of the first."""
        self._seen.update(names)
        found = [name for name in names if name in self]
        for name in found[1:]:
            if self.values[name] != self.values[found[0]]:
                raise self.error(name, f"the value of {found[0]} ({short(self.values[found[0]])})")
        return self.values[found[0]] if found else default

    def child(self, name: str) -> Section:
        """A dict inside; empty where absent."""
        return Section(self.raw(name), self.key(name))

    def integer(
        self, *names: str, default: int, minimum: int = 1, maximum: int | None = None
    ) -> int:
        """A whole number, at least `minimum` and at most `maximum`."""
        value = self.raw(*names, default=default)
        is_number = isinstance(value, int) and not isinstance(value, bool)
        if not is_number or value < minimum or (maximum is not None and value > maximum):
            most = "" if maximum is None else f" and at most {maximum}"
            raise self._bad(names, f"a whole number of at least {minimum}{most}")
        number: int = value
        return number

    def flag(self, name: str, default: bool) -> bool:
        """True or False."""
        value = self.raw(name, default=default)
        if not isinstance(value, bool):
            raise self.error(name, "True or False")
        return value

    def number(self, *names: str, default: float) -> float:
        """A finite number."""
        value = self.raw(*names, default=default)
        if not _is_number(value):
            raise self._bad(names, "a number")
        return float(value)

    def numbers(
        self, name: str, default: tuple[float, ...], length: int | None = None
    ) -> tuple[float, ...]:
        """A list or tuple of finite numbers, of the given length where there is one."""
        value = self.raw(name, default=default)
        if (
            not isinstance(value, (list, tuple))
            or not value
            or (length is not None and len(value) != length)
            or not all(map(_is_number, value))
        ):
            raise self.error(name, "numbers" if length is None else f"{length} numbers")
        return tuple(float(v) for v in value)

    def square(self, *names: str, default: int) -> int:
        """A size given as n or (n, n)."""
        value = self.raw(*names, default=default)
        if isinstance(value, (list, tuple)) and len(value) == 2 and value[0] == value[1]:
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self._bad(names, "one size for height and width")
        return value

    def only(self, **implied: Any) -> None:
        """Settings that the detectors do not have: absent, or the value that they imply."""
        for name, value in implied.items():
            self.one_of(name, value)

    def one_of(self, name: str, *supported: Any) -> None:
        """Like :meth:`only`, for values that mean the same."""
        self._seen.add(name)
        if name in self and _plain(self.values[name]) not in map(_plain, supported):
            raise self.error(name, " or ".join(map(repr, supported)))

    def close(self, *irrelevant: str) -> None:
        """All keys must have been asked for, or be named here as without influence."""
        for name, value in self.values.items():
            if name not in self._seen and name not in irrelevant and value is not None:
                raise self.error(name, "leaving it out")

    def _bad(self, names: tuple[str, ...], supported: str) -> ConfigError:
        return self.error(next((name for name in names if name in self), names[0]), supported)


def _is_number(value: Any) -> bool:
    """Finite, as a float too."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and abs(value) <= sys.float_info.max


def _plain(value: Any) -> Any:
    """Lists as tuples: configs use both for the same settings."""
    return tuple(map(_plain, value)) if isinstance(value, (list, tuple)) else value
