"""Ways to spoil what was right: JSON by its structure, files by their bytes."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

#: What stands where something else belongs.
NASTY: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 28, 64, 128, 4096, 1 << 16, 1_000_000, 1 << 31, 1 << 63,
    -(1 << 40), 10**400, 0.0, 0.3, 1.0, 17.5, -0.5, 1e-300, 1e300, float("inf"), float("nan"), "",
    "x", "inf", "0", "\ud800", "\x00", "../../x", "é" * 300, "<b>&", [], {}, [0, 0], [0], [[]],
    [1, 2, 3, 4, 5], ["a", ["b"]], {"a": 1}, {"": {}},
)  # fmt: skip


def spoilt_json(random_: random.Random, data: Any) -> Any:
    """A copy with some values replaced, removed, doubled or added, at any depth."""
    data = copy.deepcopy(data)
    for _ in range(random_.choice((1, 1, 1, 2, 4))):
        places = list(_places(data))
        if not places:
            return random_.choice(NASTY)
        container, key = random_.choice(places)
        how = random_.random()
        if how < 0.75:
            kind = type(container[key])
            alike = [value for value in NASTY if type(value) is kind]
            values = alike if alike and random_.random() < 0.6 else NASTY
            container[key] = copy.deepcopy(random_.choice(values))
        elif how < 0.85:
            del container[key]
        elif isinstance(container, list):
            container.insert(random_.randrange(len(container) + 1), container[key])
        else:
            container[random_.choice(("x", "schema", "kind", ""))] = container[key]
    return data


def _places(data: Any) -> Any:
    """Each container with each key: those near the top as often as all below them together."""
    found: list[tuple[Any, Any]] = []
    level = [data]
    while level:
        here = [
            (item, key)
            for item in level
            if isinstance(item, (dict, list))
            for key in (item if isinstance(item, dict) else range(len(item)))
        ]
        found += here * max(1, len(found) // max(len(here), 1)) if len(found) else here * 3
        level = [item[key] for item, key in here]
    return found


def json_text(random_: random.Random, data: Any) -> bytes:
    """Written as Python does, NaN and lone surrogates included; now and then no JSON at all."""
    if random_.random() < 0.03:
        return random_.choice((b"[" * 200_000, b'{"a":' * 200_000, b"", b"\xff\xfe", b"1" * 5000))
    text = json.dumps(data).encode()
    return spoilt_bytes(random_, text) if random_.random() < 0.15 else text


def spoilt_bytes(random_: random.Random, content: bytes) -> bytes:
    """Cut off, flipped, overwritten, doubled or shortened somewhere."""
    spoilt = bytearray(content)
    for _ in range(random_.choice((1, 1, 2, 8))):
        at = random_.randrange(len(spoilt) + 1)
        _WAYS[random_.randrange(len(_WAYS))](random_, spoilt, at)
    return bytes(spoilt)


def _flip(random_: random.Random, content: bytearray, at: int) -> None:
    if at < len(content):
        content[at] ^= 1 << random_.randrange(8)


def _overwrite(random_: random.Random, content: bytearray, at: int) -> None:
    size = random_.choice((1, 2, 4, 16))
    content[at : at + size] = random_.choice((random_.randbytes(size), b"\xff" * size, bytes(size)))


def _insert(random_: random.Random, content: bytearray, at: int) -> None:
    content[at:at] = random_.randbytes(random_.choice((1, 3, 40)))


def _repeat(random_: random.Random, content: bytearray, at: int) -> None:
    content[at:at] = content[at : at + random_.choice((1, 7, 100))]


def _remove(random_: random.Random, content: bytearray, at: int) -> None:
    del content[at : at + random_.choice((1, 4, 64, 4096))]


def _cut(random_: random.Random, content: bytearray, at: int) -> None:
    del content[at:]


_WAYS: tuple[Callable[[random.Random, bytearray, int], None], ...] = (
    _flip,
    _flip,
    _overwrite,
    _insert,
    _repeat,
    _remove,
    _cut,
)
