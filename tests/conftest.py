"""Fixtures for all tests, what they test, and what may be skipped: GPU tests without a GPU."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import signal
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

import carafe_deploy
from carafe_deploy.data import CHECKPOINTS, data_path
from tests.process import Outcome, run_process

TESTS = Path(__file__).parent

#: Whether this process is one of several that share the tests' files.
WORKER = "PYTEST_XDIST_WORKER" in os.environ
#: Files that take minutes, for workers to begin with: so none is left alone with one at the end.
LONGEST = (
    "test_r50.py",
    "test_walkthroughs.py",
    "test_demo.py",
    "graph/test_onnx_export.py",
    "graph/test_devices.py",
    "plugins/test_libtorch.py",
    "graph/test_torchscript_export.py",
    "cli/test_bad_input.py",
    "ops/test_operators.py",
    "runners/test_lifetime.py",
    "runners/test_conformance.py",
    "parity/test_walk.py",
    "bench/test_run.py",
)


def pytest_configure() -> None:
    """Tests are of the tree that they are in, and so are the programs that they start.

    Another tree's editable install comes before pytest's ``pythonpath``.
    """
    tree, found = TESTS.resolve().parent, Path(carafe_deploy.__file__).resolve().parents[1]
    if found != tree:
        raise pytest.UsageError(
            f"these tests are of {tree}, but `import carafe_deploy` finds {found}: "
            f"run `make setup` in {tree}, or take {found} out of this Python with "
            "`pip uninstall carafe-deploy`"
        )
    # A shell starts background jobs with SIGINT ignored, nohup ignores SIGHUP; tests interrupt
    # their children.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(tree), *([path] if path else [])])
    # What torch.compile writes takes the C++ compiler minutes at -O3; here it is compiled at -O0.
    os.environ.setdefault("AOT_INDUCTOR_DEBUG_COMPILE", "1")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Small detectors are slower on several threads; tests at full size ask for more."""
    try:
        import torch
    except ImportError:
        return
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shapes_dir() -> Path:
    """Checkpoints, validation images, annotations and mmdetection's detections."""
    return data_path("shapes")


@pytest.fixture(scope="session")
def checkpoints(shapes_dir: Path) -> dict[str, Path]:
    """The small trained detectors."""
    faster, mask = CHECKPOINTS
    return {"faster": shapes_dir / faster, "mask": shapes_dir / mask}


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Recorded tensors, key lists and configuration files."""
    return TESTS / "data"


@pytest.fixture(scope="session")
def shapes_configs(shapes_dir: Path) -> dict[str, str]:
    """mmdetection's config in the small detectors' checkpoints, by name without the hash."""
    import torch

    return {
        path.name.partition("-")[0]: torch.load(path, weights_only=True)["meta"]["cfg"]
        for path in shapes_dir.glob("shapes_*.pth")
    }


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Make a file or folder once for all processes of a run: ``shared(name, make)``.

    ``make(path)`` writes it. Nobody changes it afterwards.
    """
    from filelock import FileLock

    folder = tmp_path_factory.getbasetemp()
    if WORKER:  # each has a folder inside that of the run
        folder = folder.parent
    (folder := folder / "shared" / "unfinished").mkdir(parents=True, exist_ok=True)

    def get(name: str, make: Callable[[Path], object]) -> Path:
        path = folder.parent / name
        with FileLock(f"{path}.lock"):
            if not path.exists():
                make(folder / name)
                (folder / name).rename(path)
        return path

    return get


@pytest.fixture(scope="session")
def onnx_export(checkpoints: dict[str, Path], shared: Callable[..., Path]) -> tuple[Path, Outcome]:
    """The small Mask R-CNN as ``carafe-deploy export`` makes it by default, and what it said.

    It takes a minute: whoever needs an ONNX file of dynamic shapes uses this one.
    """

    def make(folder: Path) -> None:
        folder.mkdir()
        outcome = run_process("export", checkpoints["mask"], "--json", cwd=folder)
        (folder / "outcome.json").write_text(json.dumps(dataclasses.astuple(outcome)))

    folder = shared("onnx_export", make)
    outcome = Outcome(*json.loads((folder / "outcome.json").read_text()))
    return folder / "shapes_mask_rcnn_carafe.onnx", outcome


@pytest.fixture(scope="session")
def onnx_file(onnx_export: tuple[Path, Outcome]) -> Path:
    """The small Mask R-CNN as a dynamic ONNX file."""
    return onnx_export[0]


@pytest.fixture(scope="session")
def export(
    shapes_dir: Path, shared: Callable[..., Path], request: pytest.FixtureRequest
) -> Callable[..., Path]:
    """Export a small detector, once for each set of options and for all processes of a run.

    ``export("mask", ".onnx", options, **settings)``: settings are those of
    :func:`~carafe_deploy.graph.onnx_export.export_onnx` or
    :func:`~carafe_deploy.graph.torchscript_export.export_torchscript`. Nobody changes these files.
    """
    from carafe_deploy.graph.onnx_export import export_onnx
    from carafe_deploy.graph.options import ExportOptions
    from carafe_deploy.graph.torchscript_export import export_torchscript
    from carafe_deploy.models.checkpoint import load_detector

    writers: dict[str, Callable[..., object]] = {".onnx": export_onnx, ".ts": export_torchscript}

    def make(
        model: str, suffix: str, options: ExportOptions | None = None, **settings: object
    ) -> Path:
        options = options or ExportOptions()
        if (model, suffix, options, settings) == ("mask", ".onnx", ExportOptions(), {}):
            return request.getfixturevalue("onnx_file")
        [checkpoint] = shapes_dir.glob(f"shapes_{model}_rcnn_carafe-*.pth")
        chosen = hashlib.sha256(repr((options, settings)).encode()).hexdigest()[:12]

        def write(path: Path) -> None:
            detector, loaded = load_detector(checkpoint)
            name, source = loaded.name, loaded.source
            writers[suffix](detector, path, options, name=name, source=source, **settings)

        return shared(f"{model}_{chosen}{suffix}", write)

    return make


@functools.cache
def _no_gpu_reason() -> str | None:
    """Why tests marked ``gpu`` cannot run here, or None where they can; asked before any test."""
    try:
        import torch
    except ImportError:
        return "PyTorch is not installed"
    return None if torch.cuda.is_available() else "PyTorch finds no CUDA device"


def pytest_addoption(parser: pytest.Parser) -> None:
    """`make test` sets up all that tests can need, so there a skipped test is an error."""
    parser.addoption(
        "--complete", action="store_true", help="fail tests skipped for want of anything but a GPU"
    )


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With --complete, turn a skip into a failure; some tests want a machine without a GPU."""
    report = yield
    complete = item.config.getoption("--complete") and _no_gpu_reason() is not None
    if (
        report.skipped
        and complete
        and "gpu" not in item.keywords
        and not hasattr(report, "wasxfail")
    ):
        report.outcome = "failed"
        report.longrepr = f"skipped, though --complete was given: {report.longrepr}"
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked ``gpu``, saying why, on a machine that cannot run them."""
    if WORKER:
        ranks = {TESTS / name: rank for rank, name in enumerate(LONGEST)}
        items.sort(key=lambda item: ranks.get(item.path, len(ranks)))
    gpu_items = [item for item in items if "gpu" in item.keywords]
    reason = _no_gpu_reason()
    if reason is not None:
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason=f"{reason}; `make gpu-check` runs this on one"))
