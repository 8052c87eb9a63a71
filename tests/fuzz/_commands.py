"""Commands on spoilt artefacts, each in a fork of this program; see :mod:`tests.fuzz._program`."""

from __future__ import annotations

import importlib
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from carafe_deploy.bench.result_file import to_json
from carafe_deploy.cli import main
from carafe_deploy.data import data_path
from tests.fuzz import _corpus
from tests.fuzz._mutate import json_text, spoilt_bytes, spoilt_json
from tests.fuzz._program import serve
from tests.fuzz.outcome import Broken
from tests.report import synthetic

# Once, here, and not in each fork.
for _name in (
    "cli.app",
    "engine.contents",
    "evaluate",
    "models.checkpoint",
    "parity",
    "report",
    "runners.onnxruntime",
    "runners.torchscript",
):
    importlib.import_module(f"carafe_deploy.{_name}")

#: Of one command, and what it may take beyond what this program has.
SECONDS, MEMORY = 60, 4 << 30

_ENGINE = bytes(range(256)) * 4
_CHECKPOINT = _corpus.checkpoint()
_ANNOTATIONS = _corpus.annotations()
_IMAGES = data_path("shapes", "val")
_RESULTS = [
    json.loads(text)
    for text in (
        to_json(synthetic.tiny_bench()),
        to_json(synthetic.operators()),
        synthetic.parity(passed=True).to_json(),
        synthetic.parity(passed=False).to_json(),
    )
]


def _image() -> str:
    return str(_IMAGES / "000001.png")


# --- one spoilt artefact and the command that reads it -------------------------------------------

Arguments = list[str]


def onnx_file(random_: random.Random, folder: Path) -> Arguments:
    path = folder / "toy.onnx"
    masks = random_.random() < 0.5
    model = _corpus.onnx_model(masks)
    how = random_.random()
    if how < 0.15:
        _spoil_graph(random_, model)
    content = model.SerializeToString()
    if 0.15 <= how < 0.75:
        data = spoilt_json(random_, json.loads(_corpus.info(masks).to_json()))
        content = _with_metadata(content, json_text(random_, data))
    elif how >= 0.75:
        content = spoilt_bytes(random_, content)
    path.write_bytes(content)
    return random_.choice(
        [
            ["inspect", str(path)],
            ["inspect", str(path), "--json"],
            ["detect", str(path), _image(), "--json"],
            ["detect", str(path), _image(), _image(), "--batch-size", "2"],
            ["detect", str(path), _image(), "--bodies", "--score-threshold", "0.95"],
            ["parity", str(path), str(path), "--images", _image(), "--levels", "detections"],
        ]
    )


def _spoil_graph(random_: random.Random, model: onnx.ModelProto) -> None:
    graph = model.graph
    way = random_.randrange(6)
    if way == 0:
        del graph.output[random_.randrange(len(graph.output))]
    elif way == 1:
        node = graph.node[random_.randrange(len(graph.node))]
        node.op_type = random_.choice(["Identity", "NoSuch", "Shape", "Sqrt"])
        if random_.random() < 0.3:
            node.domain = "carafe"
    elif way == 2:
        tensor = graph.initializer[random_.randrange(len(graph.initializer))]
        tensor.dims[:] = [random_.choice((0, 1, 5, -1, 1 << 40)) for _ in tensor.dims]
    elif way == 3:
        tensor = graph.initializer[random_.randrange(len(graph.initializer))]
        tensor.raw_data = random_.randbytes(len(tensor.raw_data))
    elif way == 4:
        graph.input[random_.randrange(len(graph.input))].name = random_.choice(["", "x", "images"])
    else:
        model.opset_import[0].version = random_.choice((0, 1, 99, -1))


def _with_metadata(content: bytes, text: bytes) -> bytes:
    """The last of two properties of one key is the one that counts."""
    model = onnx.ModelProto.FromString(content)
    del model.metadata_props[:]
    key = b"\x0a" + _sized(b"carafe_deploy")
    return model.SerializeToString() + b"\x72" + _sized(key + b"\x12" + _sized(text))


def _sized(content: bytes) -> bytes:
    size, prefix = len(content), bytearray()
    while size > 127:
        prefix.append(size & 127 | 128)
        size >>= 7
    return bytes([*prefix, size]) + content


def torchscript_file(random_: random.Random, folder: Path) -> Arguments:
    path = folder / "toy.ts"
    metadata = json_text(
        random_, spoilt_json(random_, json.loads(_corpus.info(masks=False).to_json()))
    )
    _corpus.write_torchscript(path, metadata)
    if random_.random() < 0.3:
        path.write_bytes(spoilt_bytes(random_, path.read_bytes()))
    return random_.choice(
        [["inspect", str(path)], ["detect", str(path), _image()], ["detect", str(path), "."]]
    )


def engine_file(random_: random.Random, folder: Path) -> Arguments:
    path = folder / "toy.engine"
    plan = spoilt_bytes(random_, _ENGINE) if random_.random() < 0.2 else _ENGINE
    sidecar = json_text(random_, spoilt_json(random_, _corpus.sidecar_of(_ENGINE)))
    _corpus.write_engine(path, plan, sidecar)
    return random_.choice(
        [["inspect", str(path)], ["inspect", str(path), "--json"], ["detect", str(path), _image()]]
    )


def result_file(random_: random.Random, folder: Path) -> Arguments:
    path = folder / "result.json"
    data = spoilt_json(random_, random_.choice(_RESULTS))
    path.write_bytes(json_text(random_, data))
    target = str(folder / random_.choice(["report.md", "report.md", "report.html"]))
    return ["report", str(path), "-o", target]


def checkpoint_file(random_: random.Random, folder: Path) -> Arguments:
    path = folder / "toy.pth"
    path.write_bytes(spoilt_bytes(random_, _CHECKPOINT))
    return random_.choice([["inspect", str(path)], ["inspect", str(path), "--json"]])


def annotation_file(random_: random.Random, folder: Path) -> Arguments:
    path, artefact = folder / "annotations.json", folder / "toy.onnx"
    path.write_bytes(json_text(random_, spoilt_json(random_, _ANNOTATIONS)))
    artefact.write_bytes(_corpus.onnx_model(masks=False).SerializeToString())
    return ["eval", str(artefact), "--annotations", str(path), "--images", str(_IMAGES)]


KINDS: tuple[Callable[[random.Random, Path], Arguments], ...] = (
    onnx_file,
    onnx_file,
    torchscript_file,
    engine_file,
    result_file,
    checkpoint_file,
    annotation_file,
)


# --- running it ----------------------------------------------------------------------------------


def case(seed: int) -> str:
    """One spoilt artefact; raises Broken unless the command copes with it."""
    random_ = random.Random(seed)
    make = random_.choice(KINDS)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(name)
        arguments = make(random_, folder)
        status, out, errors = _forked(arguments, folder)
    shown = " ".join(arguments).replace(name, "")
    if status not in (0, 1, 2):
        raise Broken(f"{shown}: ended with {status}: {errors[-600:]}")
    if "Traceback" in out + errors or "this is no fault of the input" in errors:
        raise Broken(f"{shown}: {status} and {errors[-900:]}")
    if status == 2 and "error: " not in errors.lower():
        raise Broken(f"{shown}: 2 without a word: {errors[-300:]}")
    return f"{make.__name__.removesuffix('_file')} {status}"


def _forked(arguments: Arguments, folder: Path) -> tuple[Any, str, str]:
    """Status, output and errors of a command in a fork, whose memory and time are limited."""
    child = os.fork()
    if child == 0:
        _become_command(arguments, folder)
    status: Any = None
    end = time.monotonic() + SECONDS
    while status is None:
        done, code = os.waitpid(child, os.WNOHANG)
        if done:
            status = os.waitstatus_to_exitcode(code)
        elif time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            status = f"no end after {SECONDS} s"
        else:
            time.sleep(0.005)
    if isinstance(status, int) and status < 0:
        status = signal.Signals(-status).name
    out, errors = (
        (folder / name).read_text(encoding="utf-8", errors="replace")
        for name in ("stdout.txt", "stderr.txt")
    )
    return status, out, errors


def _become_command(arguments: Arguments, folder: Path) -> None:
    status = 99
    try:
        os.chdir(folder)
        for stream, name in ((1, "stdout.txt"), (2, "stderr.txt")):
            os.dup2(os.open(name, os.O_CREAT | os.O_WRONLY, 0o600), stream)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        status = main(arguments)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        os.write(2, traceback.format_exc().encode("utf-8", "backslashreplace"))
    finally:
        os._exit(status)


if __name__ == "__main__":
    serve(case)
