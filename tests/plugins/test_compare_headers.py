"""compare_headers.py: equal headers pass, each kind of change is found."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.plugins.built import ROOT

SCRIPT = ROOT / "plugins/tests/compare_headers.py"


@pytest.fixture(scope="module")
def headers() -> Path:
    """The TensorRT headers that the build under test uses."""
    build = Path(os.environ.get("CARAFE_DEPLOY_BUILD", ROOT / "build/dev"))
    cache = build / "CMakeCache.txt"
    if not cache.is_file():
        pytest.fail(f"{cache} does not exist: build with `make plugins`", pytrace=False)
    found = re.search(r"^CARAFE_TENSORRT_HEADERS:PATH=(.+)$", cache.read_text(), re.MULTILINE)
    assert found is not None
    return Path(found[1])


@pytest.fixture
def changed(headers: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(headers, tmp_path / "changed"))


def replace(folder: Path, pattern: str, replacement: str) -> None:
    """Replace the first occurrence in whichever header has it."""
    for path in sorted(folder.glob("NvInfer*.h")):
        text, count = re.subn(pattern, replacement, path.read_text(), count=1, flags=re.DOTALL)
        if count:
            path.write_text(text)
            return
    pytest.fail(f"no header has {pattern}")


def compare(first: Path, second: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SCRIPT, first, second], capture_output=True, text=True, check=False
    )


def test_comments_and_macros_make_no_difference(headers: Path, changed: Path) -> None:
    replace(
        changed, r"virtual int32_t getNbTactics", "// new\nvirtual /* old */ int32_t getNbTactics"
    )
    result = compare(headers, changed)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("same: ")


@pytest.mark.parametrize(
    ("pattern", "replacement", "named"),
    [
        (r"virtual int32_t getNbTactics", "virtual void added() noexcept;\n    \\g<0>", "added"),
        (r"virtual int32_t setTactic\(int32_t", "virtual int32_t setTactic(int64_t", "setTactic"),
        (r"TensorFormat format;(\s+)(//[^\n]*\s+)float scale;", r"float scale;", "format"),
        (r"kHWC8 = 2,", "kHWC8 = 20,", "TensorFormat::kHWC8 is 2 and 20"),
        (r"virtual bool isSizeTensor\(\) const = 0;", "", "isSizeTensor"),
    ],
)
def test_each_kind_of_change_is_found(
    headers: Path, changed: Path, pattern: str, replacement: str, named: str
) -> None:
    replace(changed, pattern, replacement)
    result = compare(headers, changed)
    assert result.returncode == 1
    assert named in result.stderr


def test_a_folder_without_headers_is_named(headers: Path, tmp_path: Path) -> None:
    result = compare(headers, tmp_path)
    assert result.returncode == 1
    assert f"there is no NvInfer*.h in {tmp_path}" in result.stderr
