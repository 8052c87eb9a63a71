"""A runtime of somebody else's: one entry, and everything that knows backends by name takes it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from carafe_deploy.artefacts import open_runner
from carafe_deploy.backends import BACKENDS, Backend
from carafe_deploy.bench.layers import profile_layers
from carafe_deploy.bench.record import Subject
from carafe_deploy.bench.subjects import Opening, Variants, expand, open_all
from carafe_deploy.doctor import diagnosis
from carafe_deploy.environment import describe_environment
from carafe_deploy.errors import OptionError
from carafe_deploy.parity import run_parity
from carafe_deploy.pipeline import Pipeline
from carafe_deploy.requirements import Package
from carafe_deploy.runners._lifetime import Lifetime
from carafe_deploy.runners.base import Array, check_inputs
from carafe_deploy.types import ModelInfo
from tests.cli.conftest import (
    Run,
    run,  # noqa: F401  (a fixture)
)


class ToyRunner(Lifetime):
    """Its files are metadata alone: it finds one object in each image, in the upper left."""

    backend = "toy"

    def __init__(self, path: Path, device: str, *, threads: int = 1) -> None:
        self.info = ModelInfo.from_json(path.read_text(), path)
        self.device, self.threads = device, threads
        self._begin(str(path))

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self._check_usable()
        check_inputs(self.info, inputs)
        batch = len(inputs["images"])
        shapes = {spec.name: (batch, *spec.shape[1:]) for spec in self.outputs}
        found = {s.name: np.zeros(shapes[s.name], s.dtype) for s in self.outputs}
        found["num_dets"][:] = 1
        found["det_boxes"][:, 0] = (1, 1, 9, 9)
        found["det_scores"][:, 0] = 0.9
        return found

    def _free(self) -> None:
        pass


ENTRY = Backend(
    title="Toy",
    kind="a toy",
    suffixes=(".toy",),
    open=f"{__name__}:ToyRunner",
    options={"mode": ("eager",), "threads": ()},
    packages=(Package("Toy runtime", "toy_runtime", "1.0", "", ("toy-runtime",)),),
    colour="#123456",
)


@pytest.fixture
def file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setitem(BACKENDS, "toy", ENTRY)
    path = tmp_path / "x.toy"
    path.write_text(ModelInfo("x", "faster_rcnn", ("cat", "dog"), max_detections=5).to_json())
    return path


def test_it_is_opened_with_the_options_of_its_entry(file: Path) -> None:
    with open_runner(file, mode="eager", threads=2) as runner:
        assert (runner.threads, runner.device) == (2, "cpu")
        [found] = Pipeline(runner).detect([np.zeros((50, 60, 3), np.uint8)])
        assert found.scores.tolist() == pytest.approx([0.9])
        layers = profile_layers(runner, {})
        assert layers.reason == "nothing profiles toy"
    with pytest.raises(OptionError, match=r"x\.toy is a toy, which takes mode or threads: leave"):
        open_runner(file, tf32=True)


def test_it_is_compared_and_measured(file: Path) -> None:
    images = [np.zeros((50, 60, 3), np.uint8)]
    with open_runner(file) as first, open_runner(file) as second:
        report = run_parity(first, second, images=images)
    assert report.passed
    assert {row.level for row in report.rows} == {"detections"}
    [opening] = expand([file], "cpu", Variants(modes=("eager", "compile")), threads=3)
    assert opening == Opening(str(file), "cpu", threads=3)
    [entry] = open_all([opening])
    assert (entry.subject.name, entry.subject.backend) == ("Toy fp32", "toy")
    assert entry.runner.threads == 3
    entry.close()


def test_it_has_a_colour(file: Path) -> None:
    from carafe_deploy.report.plots import _colour

    assert _colour(Subject("Toy fp32", "toy", "cpu", "fp32", "", "x.toy", 1.0)) == "#123456"


def test_commands_take_it(run: Run, file: Path, shapes_dir: Path) -> None:  # noqa: F811
    shown = run("inspect", file)
    assert shown.status == 0, shown.err
    assert "format   Toy\n" in "\n".join(line.rstrip() for line in shown.out.splitlines()) + "\n"
    assert run("inspect", file, "--json").json["kind"] == "toy"
    found = run("detect", file, shapes_dir / "val" / "000001.png", "--json")
    assert [entry["score"] for entry in found.json["annotations"]] == [pytest.approx(0.9)]
    assert run("parity", file, file, "--levels", "detections").status == 0


def test_its_package_is_listed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert describe_environment()["toy-runtime"] == "not installed"
    unasked = {"error": "not asked, which takes long"}
    monkeypatch.setattr(diagnosis, "ask", lambda names: dict.fromkeys(names, unasked))
    purpose = diagnosis.diagnose().purposes[-1]
    assert (purpose.name, purpose.lacks) == ("detect with Toy", ("Toy runtime",))
    assert purpose.findings[0].remedy == "pip install 'toy-runtime>=1.0'"
