"""The program as a whole: help, version, exit statuses, missing packages."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import carafe_deploy
from carafe_deploy.cli import app as application

COMMANDS = (
    "models",
    "export",
    "build",
    "inspect",
    "detect",
    "parity",
    "eval",
    "bench",
    "demo",
    "selfcheck",
    "doctor",
    "report",
)
Run = Callable[..., Any]


def test_help_lists_the_commands(run: Run) -> None:
    outcome = run("--help")
    assert outcome.status == 0
    assert all(re.search(rf"│ {name} ", outcome.out) for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_has_examples(run: Run, command: str) -> None:
    outcome = run(command, "--help")
    assert outcome.status == 0
    assert f"carafe-deploy {command}" in outcome.out.partition("Examples")[2]


def test_help_loads_nothing_heavy(process: Run) -> None:
    heavy = "cv2 numpy onnx onnxruntime onnxscript pycocotools torch torchvision"
    code = (
        "import atexit\n"
        f"atexit.register(lambda: print('loaded', *set('{heavy}'.split()) & set(sys.modules)))"
    )
    outcome = process("export", "--help", code=code)
    assert outcome.out.splitlines()[-1] == "loaded"


def test_version(run: Run) -> None:
    assert run("--version").out == f"carafe-deploy {carafe_deploy.__version__}\n"


def test_module_can_be_run(process: Run) -> None:
    outcome = process("--version")
    assert (outcome.status, outcome.out.split()[0]) == (0, "carafe-deploy")


@pytest.mark.parametrize("arguments", [[], ["detect"]])
def test_without_arguments_help_is_shown(run: Run, arguments: list[str]) -> None:
    outcome = run(*arguments)
    assert outcome.status == 2
    assert "Usage: carafe-deploy" in outcome.out + outcome.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["models", "--nonsense"],
        ["eval", "x.onnx"],
        ["export", "x", "--precision", "8"],
    ],
)
def test_wrong_usage_is_bad_input(run: Run, arguments: list[str]) -> None:
    run(*arguments).assert_refused("Usage: carafe-deploy")


def test_an_error_is_one_line_without_traceback(process: Run) -> None:
    outcome = process("detect", "missing.onnx", "x.png")
    assert (outcome.status, outcome.out) == (2, "")
    assert outcome.err == "error: x.png does not exist: name an image file, a folder or a glob\n"


@pytest.mark.parametrize(
    ("arguments", "env"),
    [(["--debug"], {}), ([], {"CARAFE_DEPLOY_DEBUG": "1"})],
    ids=["option", "environment"],
)
def test_debugging_shows_the_traceback(
    process: Run, arguments: list[str], env: dict[str, str]
) -> None:
    outcome = process(*arguments, "detect", "missing.onnx", "x.png", env=env)
    assert (outcome.status, outcome.out) == (2, "")
    assert "Traceback" in outcome.err
    assert outcome.err.splitlines()[-1].startswith("error: x.png does not exist")


def test_interrupt_has_its_own_status(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(inputs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("carafe_deploy.images.find_images", interrupt)
    outcome = run("detect", "detector.onnx", "x.png")
    assert (outcome.status, outcome.err) == (130, "interrupted\n")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ZeroDivisionError(), "ZeroDivisionError"),
        (
            RuntimeError("CUDA error: misaligned address\nset X"),
            "RuntimeError: CUDA error: misalig",
        ),
        (OSError("libcudart.so.13: cannot open"), "OSError: libcudart.so.13: cannot open"),
        (ImportError("undefined symbol: x"), "ImportError: undefined symbol: x"),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("debug", [False, True])
def test_what_was_not_foreseen_is_one_line_and_its_traceback_for_whoever_asks(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str, debug: bool
) -> None:
    def fail(inputs: object) -> None:
        raise error

    monkeypatch.setattr("carafe_deploy.images.find_images", fail)
    outcome = run(*["--debug"] * debug, "detect", "detector.onnx", "x.png")
    assert (outcome.status, outcome.out) == (1, "")
    assert [text for text in outcome.err.splitlines() if text.startswith(f"error: {said}")]
    assert ("Traceback" in outcome.err) is debug
    assert ("carafe-deploy --debug detect ... shows" in outcome.err) is not debug


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("typer", 'the command line needs typer, .*: pip install "carafe-deploy\\[cli\\]"'),
        ("cv2", 'this needs cv2, .*: pip install "carafe-deploy\\[image\\]"'),
    ],
)
def test_a_missing_package_is_named_with_its_extra(process: Run, module: str, message: str) -> None:
    outcome = process("detect", "x.onnx", "x.png", code=f"sys.modules[{module!r}] = None")
    assert outcome.status == 2
    assert re.fullmatch(f"error: {message}\n", outcome.err)


def test_a_missing_backend_is_named(process: Run, tmp_path: Path, images: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"")
    outcome = process("detect", "x.onnx", images, code="sys.modules['onnxruntime'] = None")
    assert outcome.status == 2
    assert outcome.err.startswith("error: x.onnx needs onnxruntime, but onnxruntime is not")


def test_a_full_disk_is_reported(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(inputs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("carafe_deploy.images.find_images", fail)
    outcome = run("detect", "x.onnx", "x.png")
    assert (outcome.status, outcome.err) == (2, "error: No space left on device\n")


def test_short_memory_is_no_fault_of_the_program(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError("Unable to allocate 7.00 TiB")

    monkeypatch.setattr("carafe_deploy.images.find_images", fail)
    outcome = run("detect", "x.onnx", "x.png")
    assert outcome.status == 2
    assert outcome.err.startswith("error: memory is short (Unable to allocate 7.00 TiB): give sma")


def test_extras_are_those_of_the_project() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    declared = re.findall(r"^([a-z-]+) = \[", text, re.MULTILINE)
    assert set(application.EXTRAS.values()) <= set(declared)
