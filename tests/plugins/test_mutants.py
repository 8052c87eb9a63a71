"""The committed results of `make mutants` are of today's kernels, and so is what explains them."""

from __future__ import annotations

import json
from types import ModuleType
from typing import Any

import pytest

from tests.plugins.built import ROOT, script

RESULTS: dict[str, Any] = json.loads((ROOT / "plugins/tests/results/mutants.json").read_text())
KERNELS = ROOT / "plugins/kernels"


@pytest.fixture(scope="module")
def mutate() -> ModuleType:
    return script("mutate")


def test_every_design_of_carafe_is_mutated(mutate: ModuleType) -> None:
    kernels = {path.name for path in KERNELS.iterdir() if path.suffix in (".cu", ".cuh")}
    assert kernels <= set(mutate.mutated_files())
    assert kernels <= set(RESULTS["by_file"])


def test_results_are_of_todays_code(mutate: ModuleType) -> None:
    changed = {
        file
        for file in mutate.mutated_files()
        if RESULTS["code"].get(file) != mutate.code_hash(file)
    }
    assert changed == set(), "run `make mutants` and commit plugins/tests/results/mutants.json"
    assert set(RESULTS["code"]) == set(mutate.mutated_files())


def test_results_are_of_a_clean_tree_and_good_enough(mutate: ModuleType) -> None:
    assert not RESULTS["commit"].endswith("-modified")
    assert RESULTS["share"] >= mutate.REQUIRED
    assert all(survivor["reason"] for survivor in RESULTS["survivors"])


def test_survivors_are_changes_of_todays_lines(mutate: ModuleType) -> None:
    possible = {mutant.key for file in mutate.mutated_files() for mutant in mutate.mutants_of(file)}
    assert [key for key in mutate.known_mutants() if key not in possible] == []
    for survivor in RESULTS["survivors"]:
        assert (survivor["file"], survivor["before"], survivor["after"]) in possible


def test_comments_are_no_code(mutate: ModuleType, tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(mutate, "KERNELS", tmp_path)
    hashes = []
    for text in ("int a;  // one\n", "// two\n\nint a;\n", "int b;\n"):
        (tmp_path / "a.h").write_text(text)
        hashes.append(mutate.code_hash("a.h"))
    assert hashes[0] == hashes[1] != hashes[2]
