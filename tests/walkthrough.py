"""Follow a page of docs/ literally in a copy of the tree, and count the files it touches.

A page is followed from its text alone. It says what to do in these forms, each a paragraph that
ends right above a code block::

    Create `path`:
    In `path`, after `line`, add:
    In `path`, before `line`, add:
    In `path`, replace `line` by:

``line`` is a whole line of the file without its indentation, and stands there once. The block goes
in as it is. Text may come before these words in the paragraph, as may line breaks within.

A block of ``sh`` is run in the copy's root and has to succeed. The next block, if it is ``text``,
holds lines that the output contains. Blocks of other languages, or without such a paragraph, are
for reading only.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Page", "copy_tree"]

ROOT = Path(__file__).resolve().parents[1]

_BLOCK = re.compile(r"((?:^(?!```)[^\n]+\n)*)\n*^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_CREATE = re.compile(r"Create `([^`]+)`:$")
_EDIT = re.compile(r"In `([^`]+)`, (after|before|replace) `([^`]+)`(?:, add| by):$")
_PROMISE = re.compile(r"touches (\w+) Python files?\b")
_NUMBERS = {"one": 1, "two": 2, "three": 3}


def copy_tree(target: Path, *folders: str) -> Path:
    """The files of this tree that a walk-through needs, built libraries included.

    Args:
        target: new folder.
        folders: or files, besides the package and its tests.
    """
    skipped = shutil.ignore_patterns("__pycache__", ".*", "lib", "build")
    for name in ("carafe_deploy", "tests", "pyproject.toml", *folders):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=skipped)
        else:
            shutil.copy(source, target / name)
    # An editable install finds the package before PYTHONPATH does.
    (target / "sitecustomize.py").write_text(
        "import sys\n"
        "sys.meta_path[:] = [\n"
        "    found for found in sys.meta_path if 'editable' not in type(found).__module__\n"
        "]\n",
        encoding="utf-8",
    )
    if (ROOT / "carafe_deploy/lib").is_dir():
        (target / "carafe_deploy/lib").symlink_to(ROOT / "carafe_deploy/lib")
    return target


@dataclass(frozen=True)
class Step:
    """What one block says: ``verb`` is create, after, before, replace or run."""

    verb: str
    text: str
    path: str = ""
    line: str = ""
    expected: tuple[str, ...] = ()


class Page:
    """The steps of one Markdown page, in order."""

    def __init__(self, text: str) -> None:
        self.steps: list[Step] = []
        for paragraph, language, block in _BLOCK.findall(text):
            said = " ".join(paragraph.split())
            if created := _CREATE.search(said):
                self.steps.append(Step("create", block, created[1]))
            elif edited := _EDIT.search(said):
                self.steps.append(Step(edited[2], block, edited[1], edited[3]))
            elif language == "sh":
                self.steps.append(Step("run", block))
            elif language == "text" and self.steps and self.steps[-1].verb == "run":
                expected = tuple(filter(None, map(str.strip, block.splitlines())))
                self.steps[-1] = Step("run", self.steps[-1].text, expected=expected)
        promised = _PROMISE.findall(" ".join(text.split()))
        #: Python files that the page says it touches; None where it does not say.
        self.promised = _NUMBERS.get(promised[0]) if promised else None
        #: Files that it creates or edits.
        self.touched = sorted({step.path for step in self.steps if step.path})

    @property
    def python_files(self) -> list[str]:
        return [path for path in self.touched if path.endswith(".py")]

    def follow(self, tree: Path) -> None:
        """Do all of it in a tree of :func:`copy_tree`."""
        for step in self.steps:
            if step.verb == "run":
                _run(tree, step)
            else:
                _write(tree / step.path, step)


def _write(path: Path, step: Step) -> None:
    if step.verb == "create":
        assert not path.exists(), f"{step.path} is there already"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(step.text, encoding="utf-8")
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    found = [index for index, line in enumerate(lines) if line.strip() == step.line]
    assert len(found) == 1, f"{step.path} holds the line `{step.line}` {len(found)} times"
    first = found[0] + (step.verb == "after")
    last = found[0] + (step.verb != "before")
    path.write_text("".join([*lines[:first], step.text, *lines[last:]]), encoding="utf-8")


def _run(tree: Path, step: Step) -> None:
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = {**os.environ, "PYTHONPATH": str(tree), "PATH": search}
    # Nobody measures the copy's kernels: compiled for speed they take a minute, so not at all.
    compiler = tree / "unoptimised"
    compiler.write_text('#!/bin/sh\nexec "$@" -O0\n', encoding="utf-8")
    compiler.chmod(0o755)
    environment["CMAKE_CXX_COMPILER_LAUNCHER"] = str(compiler)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", step.text],
        cwd=tree,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    told = f"$ {step.text}{done.stdout}"
    assert done.returncode == 0, told
    missing = [line for line in step.expected if line not in done.stdout]
    assert not missing, f"{told}\nlacks {missing}"
