"""What benchmarks/results/ publishes: where a figure comes from, and how the tables read it."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
FILES = sorted(RESULTS.rglob("*.json"))


@pytest.fixture
def gpu_tables(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module beside the benchmarks."""
    monkeypatch.syspath_prepend(str(RESULTS.parent))
    return importlib.import_module("_gpu_tables")


def origin(environment: dict[str, Any]) -> tuple[str, str]:
    """Commit, and what was changed in it ("" for nothing)."""
    commit, changed, named = environment["commit"].partition(" with uncommitted changes")
    change = environment.get("uncommitted_changes") or named.lstrip(": ") or bool(changed)
    return commit, "something" if change is True else change or ""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(RESULTS)))
def test_a_result_names_its_machine_versions_and_commit(path: Path) -> None:
    environment = json.loads(path.read_text(encoding="utf-8"))["environment"]
    commit, change = origin(environment)
    assert re.fullmatch(r"[0-9a-f]{40}", commit)
    # A change may be published if it is named, and every one that was measured so is.
    assert change == "" or change.startswith("struct RoiAxis ")
    for names in (("cpu", "processor"), ("python", "Python"), ("system",)):
        assert any(environment.get(name) for name in names), names
    assert "torch" in environment or "torch" in environment["packages"]


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({"commit": "ab", "uncommitted_changes": False}, ("ab", "")),
        ({"commit": "ab", "uncommitted_changes": True}, ("ab", "something")),
        ({"commit": "ab"}, ("ab", "")),
        ({"commit": "ab with uncommitted changes"}, ("ab", "something")),
        ({"commit": "ab with uncommitted changes: one line"}, ("ab", "one line")),
        ({"commit": "ab", "uncommitted_changes": "one line"}, ("ab", "one line")),
    ],
)
def test_changes_are_noticed(environment: dict[str, Any], found: tuple[str, str]) -> None:
    assert origin(environment) == found


def test_kernels_are_counted_once(gpu_tables: ModuleType) -> None:
    kernels = [
        ["sm90_xmma_fprop_implicit_gemm", 4.0, 1.0],
        ["cutlass::Kernel2<gemm_relu>", 2.0, 1.0],
        ["void carafe::(anonymous namespace)::roi_align_nhwc<__half, 8>", 1.0, 1.0],
        ["gpu_kernel_impl_nocast<at::native::CUDAFunctor_add<c10", 3.0, 9.0],
        ["vectorized_elementwise_kernel<8, launch_clamp_scalar", 1.5, 2.0],
        ["at::native::sbtopk::gatherTopK<float>", 0.5, 2.0],
        ["Memset (Device)", 0.25, 2.0],
    ]
    # 0.75 us are of kernels that were not named.
    assert list(gpu_tables.kernel_times(kernels, 13.0).values()) == [6.0, 1.0, 3.0, 1.5, 0.5, 1.0]


def test_the_fastest_design_is_marked(gpu_tables: ModuleType) -> None:
    call = {"shape": "1x8x2x2", "layout": "NCHW", "dtype": "float32"}
    table = gpu_tables.designs(
        {
            "calls": [
                {**call, "design": "a", "cold_median_us": 2.0},
                {**call, "design": "b", "cold_median_us": 1.0},
                {**call, "dtype": "bfloat16", "design": "a", "cold_median_us": 1.0},
                {**call, "layout": "NHWC", "design": "a", "cold_median_us": 5.0},
            ]
        }
    )
    assert table.splitlines()[2:] == [
        "| 1x8x2x2, NCHW, float32 | 2.0 | **1.0** |",
        "| 1x8x2x2, NHWC, float32 | **5.0** | – |",
    ]
