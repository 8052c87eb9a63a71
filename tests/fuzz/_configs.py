"""Spoilt mmdetection configs: read, or refused as a ConfigError; see :mod:`tests.fuzz._program`."""

from __future__ import annotations

import ast
import random
import resource
import time
from collections.abc import Callable
from typing import Any

from carafe_deploy.errors import CheckpointError, ConfigError
from carafe_deploy.models.config_text import parse_config, read_config
from carafe_deploy.models.mmdet_config import detector_config
from tests.fuzz._mutate import NASTY, spoilt_bytes, spoilt_json
from tests.fuzz._program import serve
from tests.fuzz.outcome import ROOT, Broken

#: Of reading one config.
SECONDS, MEMORY = 10.0, 8 << 30

_DATA = ROOT / "tests/data"
_SEEDS = [
    path.read_text()
    for path in (*sorted(_DATA.glob("*.resolved.py")), *sorted(_DATA.glob("configs/**/*.py")))
]
_MODEL = "mask-rcnn_r50_fpn-carafe_1x_coco"
_SHAPES = {
    key: ast.literal_eval(shape)
    for key, shape, _ in (
        line.split("\t") for line in (_DATA / f"{_MODEL}.keys.txt").read_text().splitlines()
    )
}
_CONFIG = read_config(_DATA / f"{_MODEL}.resolved.py")


def spoilt_text(random_: random.Random) -> str:
    """A config that was written once, its bytes changed."""
    content = spoilt_bytes(random_, random_.choice(_SEEDS).encode())
    return content.decode("utf-8", "surrogateescape")


def swapped_lines(random_: random.Random) -> str:
    """Lines of two configs, in any order."""
    lines = [line for _ in range(2) for line in random_.choice(_SEEDS).splitlines()]
    start = random_.randrange(len(lines))
    chosen = lines[start : start + random_.randrange(60)]
    random_.shuffle(chosen)
    return "\n".join(chosen)


def written(random_: random.Random) -> str:
    """Statements of the language that configs are written in, and of those that they are not."""
    return "\n".join(f"{_name(random_)} = {_expression(random_, 6)}" for _ in range(6))


def deep(random_: random.Random) -> str:
    """Nested as no person writes."""
    begin, end = random_.choice(
        [("[", "]"), ("(", ",)"), ("dict(a=", ")"), ("-", ""), ("{1:", "}")]
    )
    times = random_.choice((10, 90, 100, 199, 500, 3000, 100_000))
    return f"a = {begin * times}1{end * times}"


def _name(random_: random.Random) -> str:
    return random_.choice(
        ["a", "b", "model", "_base_", "test_cfg", "data", "class", "é", "a.b", ""]
    )


def _expression(random_: random.Random, depth: int) -> str:
    def inner() -> str:
        return _expression(random_, depth - 1)

    leaves = [
        "1", "-1", "0", "2**70", "1e308", "1e400", "10**10**10", "'x'", "'x' * 10**9", "None",
        "True", "a", "b", "model", "float('inf')", "1j", "...", "b'x'", "'\\ud800'",
    ]  # fmt: skip
    forms: list[Callable[[], str]] = [
        lambda: random_.choice(leaves),
        lambda: repr(random_.choice(NASTY)),
        lambda: f"[{inner()}, {inner()}]",
        lambda: f"({inner()},)",
        lambda: f"dict({random_.choice('abc')}={inner()}, **{inner()})",
        lambda: f"dict({inner()})",
        lambda: f"{{{inner()}: {inner()}, **{inner()}}}",
        lambda: f"{{{inner()}, *{inner()}}}",
        lambda: (
            f"{inner()} {random_.choice(['+', '-', '*', '/', '//', '%', '**', '<<'])} {inner()}"
        ),
        lambda: f"{random_.choice('-+~')}{inner()}",
        lambda: f"{inner()}[{inner()}]",
        lambda: f"{random_.choice(['range', 'list', 'tuple', 'open', 'eval'])}({inner()})",
        lambda: f"list(range({inner()})) * {inner()}",
        lambda: f"[x for x in {inner()}]",
        lambda: f"f'{{{random_.choice('ab')}}}'",
    ]
    return random_.choice(forms[: 2 if depth == 0 else None])()


TEXTS = (spoilt_text, spoilt_text, swapped_lines, written, written, deep)


def case(seed: int) -> str:
    """A text through the parser, or a parsed config through what makes a detector of it."""
    random_ = random.Random(seed)
    begun = time.monotonic()
    try:
        if random_.random() < 0.5:
            parse_config(random_.choice(TEXTS)(random_))
        else:
            config: Any = spoilt_json(random_, _CONFIG)
            detector_config(config, _SHAPES)
        outcome = "read"
    except (ConfigError, CheckpointError) as error:
        outcome = "refused"
        str(error).encode("utf-8")  # a message that can be printed
    except Exception as error:
        raise Broken(f"{type(error).__name__}: {str(error)[:300]!r}") from error
    if time.monotonic() - begun > SECONDS:
        raise Broken(f"{outcome} after {time.monotonic() - begun:.0f} s")
    return outcome


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    serve(case)
