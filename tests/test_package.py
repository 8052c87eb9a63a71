"""What the package promises as a whole: light imports, one-way dependencies, its version."""

from __future__ import annotations

import ast
import graphlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import carafe_deploy
from carafe_deploy.data import data_path
from carafe_deploy.errors import CarafeDeployError, DataFileError

PACKAGE = Path(carafe_deploy.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))

#: Modules that a deployment target needs not have.
HEAVY = {
    "cuda",
    "cv2",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "pycocotools",
    "pycuda",
    "rich",
    "tensorrt",
    "tensorrt_rtx",
    "torch",
    "torchvision",
    "typer",
}

#: (importing module or package, what it must not import), below `carafe_deploy`.
FORBIDDEN = [
    ("runners", "models"),
    ("runners", "graph"),
    ("operators", "models"),
    ("operators", "graph"),
    ("operators", "runners"),
    ("ops", "models"),
    ("ops", "graph"),
    ("ops", "runners"),
    ("models", "graph"),
    ("models", "runners"),
    ("graph", "runners"),
    ("engine", "graph"),
    ("engine", "models"),
    ("engine", "ops"),
    ("engine", "runners"),
    *((name, "quantize") for name in ("models", "graph", "engine", "runners", "parity", "bench")),
]

PRINTING = {"cli.py", "report.py"}


def module_name(path: Path) -> str:
    """Dotted name of a source file of the package."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_names(source: str, package: str) -> Iterator[str]:
    """Every dotted name that `source`, a module inside `package`, imports, at any depth."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                base = ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [base])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def imports_of(path: Path) -> set[str]:
    """Every dotted name that a source file of the package imports."""
    name = module_name(path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    return set(imported_names(path.read_text(encoding="utf-8"), package))


def is_within(name: str, package: str) -> bool:
    """`name` is `package` or something below it."""
    return name == package or name.startswith(package + ".")


def print_lines(source: str) -> list[int]:
    """Line numbers of calls of the built-in `print`."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
    ]


@pytest.mark.parametrize(
    "module",
    [
        "carafe_deploy",
        "carafe_deploy.data",
        "carafe_deploy.engine.load",
        "carafe_deploy.errors",
        "carafe_deploy.files",
        "carafe_deploy.operators",
        "carafe_deploy.runners.base",
        "carafe_deploy.runners.tensorrt",
        "carafe_deploy.types",
    ],
)
def test_importing_needs_numpy_only(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({HEAVY!r} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout.split()) == (0, []), result.stderr


def test_programs_that_tests_start_are_of_this_tree(tmp_path: Path) -> None:
    code = "import carafe_deploy; print(carafe_deploy.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert Path(done.stdout.strip()) == PACKAGE / "__init__.py"
    tree = os.environ["PYTHONPATH"].split(os.pathsep)[0]
    assert Path(tree) == PACKAGE.parent == Path(__file__).resolve().parents[1]


def test_tests_of_one_tree_do_not_run_against_another(tmp_path: Path) -> None:
    tests = tmp_path / "tests"
    tests.mkdir()
    shutil.copy(Path(__file__).with_name("conftest.py"), tests)
    (tests / "test_nothing.py").write_text("def test_nothing(): pass\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", tmp_path, tests],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 4, done.stdout
    assert (
        f"these tests are of {tmp_path}, but `import carafe_deploy` finds {PACKAGE.parent}: "
        f"run `make setup` in {tmp_path}"
    ) in done.stderr


def test_version_is_that_of_the_installed_metadata() -> None:
    assert carafe_deploy.__version__ == importlib.metadata.version("carafe-deploy")


def test_package_is_marked_as_typed() -> None:
    assert (PACKAGE / "py.typed").is_file()


@pytest.mark.parametrize(("importer", "imported"), FORBIDDEN)
def test_dependencies_point_one_way(importer: str, imported: str) -> None:
    files = [path for path in SOURCES if is_within(module_name(path), f"carafe_deploy.{importer}")]
    assert files
    offending = {
        module_name(path): sorted(found)
        for path in files
        if (found := [n for n in imports_of(path) if is_within(n, f"carafe_deploy.{imported}")])
    }
    assert offending == {}


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Imports in functions and for type checkers count: they are read like any other."""
    modules = {module_name(path): path for path in SOURCES}
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found = graph[name] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= inner & modules.keys() or {node.module} & modules.keys()
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which shows the cycle


def test_types_import_only_errors_their_repr_and_their_schema_from_the_package() -> None:
    internal = [n for n in imports_of(PACKAGE / "types.py") if is_within(n, "carafe_deploy")]
    assert internal
    allowed = ("carafe_deploy.errors", "carafe_deploy.brief", "carafe_deploy.schema")
    assert [n for n in internal if not any(is_within(n, name) for name in allowed)] == []
    brief = imports_of(PACKAGE / "brief.py")
    assert [n for n in brief if is_within(n, "carafe_deploy")] == []
    schema = imports_of(PACKAGE / "schema.py")
    assert {n for n in schema if is_within(n, "carafe_deploy")} <= {
        "carafe_deploy.brief",
        "carafe_deploy.brief.OneLine",
        "carafe_deploy.brief.brief",
    }


def test_only_the_command_line_and_the_report_print() -> None:
    printing = {
        path.relative_to(PACKAGE).as_posix(): lines
        for path in SOURCES
        if (lines := print_lines(path.read_text(encoding="utf-8")))
    }
    assert set(printing) <= PRINTING


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import carafe_deploy.models.zoo", "carafe_deploy.models.zoo"),
        ("from carafe_deploy import models", "carafe_deploy.models"),
        ("from carafe_deploy.models import zoo as z", "carafe_deploy.models.zoo"),
        ("from .. import models", "carafe_deploy.models"),
        ("from ..models.zoo import find", "carafe_deploy.models.zoo.find"),
        ("from . import base", "carafe_deploy.runners.base"),
        ("def f():\n    from carafe_deploy.models import zoo", "carafe_deploy.models.zoo"),
    ],
)
def test_imports_are_found_in_every_spelling(source: str, expected: str) -> None:
    assert expected in set(imported_names(source, "carafe_deploy.runners"))


def test_print_calls_are_found() -> None:
    assert print_lines("x.print(1)\nif True:\n    print(2)\n") == [3]


def test_data_path_finds_a_file() -> None:
    assert data_path("shapes", "val.json").is_file()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (("shapes", "none.pth"), r"no 'shapes/none\.pth' .* reinstall carafe-deploy"),
        (("..", "types.py"), r"'\.\./types\.py' is not inside the package's data folder"),
    ],
)
def test_data_path_names_what_is_missing(parts: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataFileError, match=message) as caught:
        data_path(*parts)
    assert isinstance(caught.value, CarafeDeployError)
