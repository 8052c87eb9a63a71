"""The whole run on runners that answer at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from carafe_deploy.bench import probe as probe_module
from carafe_deploy.bench import run as run_module
from carafe_deploy.bench.files import stream_files
from carafe_deploy.bench.options import BenchOptions
from carafe_deploy.bench.probe import probe
from carafe_deploy.bench.record import PARTS, BenchResult, Cold
from carafe_deploy.bench.run import run_bench
from carafe_deploy.bench.subjects import Opening, Variants
from carafe_deploy.bench.turns import FEWEST_BATCHES
from carafe_deploy.data import data_path
from carafe_deploy.errors import (
    BackendFailedError,
    BackendUnavailableError,
    CarafeDeployError,
    InputShapeError,
)
from carafe_deploy.images import load_image
from carafe_deploy.pipeline import STAGES
from tests.bench.fakes import FakeRunner, info, install
from tests.scripted import ERRORS, Scripted

IMAGES = {
    name: np.full((height, 100, 3), height, np.uint8) for name, height in (("a", 60), ("b", 90))
}
QUICK = BenchOptions(rounds=4, block=3, batch_sizes=(1, 2, 16), cold=False)
Measure = Callable[..., BenchResult]


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Measure:
    """Run a benchmark of runners by file, see :func:`tests.bench.fakes.install`."""

    def call(
        options: dict[str, Any] | None = None,
        *,
        images: Any = IMAGES,
        step: Callable[[str], None] = lambda name: None,
        **runners: Any,
    ) -> BenchResult:
        paths = install(monkeypatch, tmp_path, **runners)
        return run_bench(paths, images, dataclasses.replace(QUICK, **options or {}), step=step)

    return call


def test_every_subject_has_its_turn_in_every_round(measure: Measure) -> None:
    runners = FakeRunner(compute=2.0), FakeRunner("torchscript", compute=4.0, enqueue=0.125)
    steps: list[str] = []
    result = measure(step=steps.append, a_onnx=runners[0], b_ts=runners[1])
    assert steps == ["open", "warm up", "detections", "latency", "throughput"]
    assert not result.partial
    names = ["ONNX Runtime fp32", "TorchScript fp32"]
    assert [subject.name for subject in result.measured] == names
    said = (2.0, ()), (4.0, (0.125,) * 12)
    for subject, (compute, enqueue) in zip(result.subjects, said, strict=True):
        samples = subject.samples
        assert samples.rounds == tuple(np.arange(4).repeat(3))
        assert len(samples.total_ms) == 12
        assert set(samples.parts_ms) == set(PARTS)
        assert samples.parts_ms["compute"] == (compute,) * 12
        assert samples.parts_ms["upload"] == (0.25,) * 12
        assert samples.enqueue_ms == enqueue
        parts = samples.parts_ms["preprocess"], samples.parts_ms["postprocess"]
        for total, before, after in zip(samples.total_ms, *parts, strict=True):
            assert total >= before + after
    assert result.measured[1].samples.over(result.measured[0].samples, "compute").value == 2
    assert [runner.closed for runner in runners] == [1, 1]


def test_throughput_of_each_batch_size(measure: Measure) -> None:
    runner = FakeRunner()
    one, two, many = measure(a_onnx=runner).subjects[0].throughput
    assert (one.batch, two.batch, many.batch) == (1, 2, 16)
    assert len(one.samples_ms) == len(two.samples_ms) == 3
    assert two.images_per_second == pytest.approx(2e3 / np.median(two.samples_ms))
    assert many.reason == "the artefacts accept batches of 1 to 4"
    assert many.pipelined_ms == ()
    # As many streams as runs, of the batch size.
    assert len(one.pipelined_ms) == len(two.pipelined_ms) == 3
    assert two.pipelined_images_per_second == pytest.approx(2e3 / np.median(two.pipelined_ms))
    assert runner.batches.count(2) >= 3 * (1 + FEWEST_BATCHES)
    assert 16 not in runner.batches


def test_a_stream_of_files_has_a_timeline(measure: Measure) -> None:
    [subject] = measure(a_onnx=FakeRunner()).subjects
    streamed = subject.streamed
    rates = {one.batch: one.pipelined_images_per_second for one in subject.throughput[:2]}
    assert streamed.batch == max(rates, key=rates.get)
    assert streamed.images % streamed.batch == 0
    assert 4 * streamed.batch <= streamed.images <= 64 * streamed.batch
    assert 0 <= streamed.idle < 1
    assert 0 < streamed.window_s <= streamed.seconds
    assert tuple(streamed.spans) == STAGES
    assert any(streamed.spans.values())
    for spans in streamed.spans.values():
        assert all(0 <= begun < ended <= streamed.window_s for begun, ended in spans)


def test_idle_is_what_the_runs_alone_would_leave() -> None:
    images = [np.zeros((32, 48, 3), np.uint8)] * 4
    for alone_ms in (0.0, 1.0, 1e9):
        found = stream_files(FakeRunner(), images, 2, 8, alone_ms)
        assert found.images == 16
        assert found.idle == pytest.approx(max(0.0, 1 - 8 * alone_ms / 1e3 / found.seconds))


def test_samples_and_agreement(measure: Measure) -> None:
    result = measure(
        a_onnx=FakeRunner(score=0.5),
        b_ts=FakeRunner("torchscript", score=0.5 + 2**-12),
        c_ts=FakeRunner("torchscript", score=0.75),
    )
    first, near, far = result.subjects
    assert first.agreement is None
    assert (near.agreement.matched, near.agreement.total, near.agreement.passed) == (2, 2, True)
    assert near.agreement.max_score_error == 2**-12
    assert (far.agreement.matched, far.agreement.total, far.agreement.passed) == (0, 4, False)
    assert [(sample.name, sample.height, sample.width) for sample in result.samples] == [
        ("a", 60, 100),
        ("b", 90, 100),
    ]
    found = result.samples[0].found
    assert set(found) == {subject.name for subject in result.subjects}
    assert found[first.name].boxes == ((0.0, 0.0, 100.0, 60.0),)
    assert found[first.name].scores == (0.5,)


#: Runs of a subject until its latency is measured: 2 x 2 to warm up, 2 to detect, 4 x (1 + 3).
TIMED = 4 + 2 + 16


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    ("script", "part", "samples"),
    [
        ("open", "", 0),
        ({"run": 1}, "", 0),
        ({"run": 6}, "", 0),
        ({"run": 8}, "", 0),
        ({"run": TIMED + 1}, "throughput: ", 12),
        ({"close": True}, "closing it: ", 12),
    ],
    ids=["at open", "first run", "detections", "latency", "throughput", "at close"],
)
def test_one_that_breaks_is_a_failed_row_and_the_others_are_measured(
    measure: Measure, error: Exception, script: Any, part: str, samples: int
) -> None:
    good = FakeRunner()
    bad = error if script == "open" else Scripted(FakeRunner("torchscript"), error, **script)
    # The broken one is first, and so the reference of others' detections while it works.
    broken, measured = measure({"warmup": 2}, b_ts=bad, a_onnx=good).subjects
    assert (broken.status, broken.reason) == ("failed", part + ERRORS[error])
    assert len(broken.samples.total_ms if broken.samples else ()) == samples
    assert (measured.status, measured.reason) == ("measured", "")
    assert len(measured.samples.total_ms) == 12
    assert [len(entry.samples_ms) for entry in measured.throughput] == [3, 3, 0]
    assert good.closed == 1
    assert script == "open" or bad.closed == 1


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError("no\nluck"), BackendFailedError),
        (BackendUnavailableError("no TorchScript"), BackendUnavailableError),
    ],
)
def test_nothing_that_opens_is_an_error_that_says_why(
    measure: Measure, error: Exception, kind: type
) -> None:
    with pytest.raises(kind, match=r"nothing can be .*Runtime: no GPU; TorchScript: ") as caught:
        measure(a_onnx=BackendUnavailableError("no GPU"), b_ts=error)
    assert type(caught.value) is kind


def test_all_that_break_are_rows(measure: Measure) -> None:
    [subject] = measure({"block": None}, a_onnx=FakeRunner(fails_after=0)).subjects
    assert (subject.status, subject.samples) == ("failed", None)


def test_an_interrupt_keeps_what_was_measured(measure: Measure) -> None:
    runners = FakeRunner(), FakeRunner("torchscript", interrupts_after=13)
    result = measure(a_onnx=runners[0], b_ts=runners[1])
    assert result.partial
    assert 0 < len(result.subjects[0].samples.total_ms) <= 12
    assert 0 < len(result.subjects[1].samples.total_ms) < 12
    assert [runner.closed for runner in runners] == [1, 1]


def test_an_interrupt_before_the_first_turn(measure: Measure) -> None:
    result = measure(a_onnx=FakeRunner(interrupts_after=1))
    assert result.partial
    [subject] = result.subjects
    assert (subject.status, subject.reason) == ("skipped", "interrupted before its turn")


def test_images_are_needed_and_may_be_chosen_for_the_model(measure: Measure) -> None:
    runner = FakeRunner(info=info(name="asked"))
    with pytest.raises(InputShapeError, match="there are no images"):
        measure(images={}, a_onnx=runner)
    assert runner.closed == 1
    names: list[str] = []

    def choose(runner):
        names.append(runner.info.name)
        return IMAGES

    assert isinstance(measure(images=choose, a_onnx=runner), BenchResult)
    assert names == ["asked"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rounds": 0}, "rounds is 0: give at least 1"),
        ({"rounds": -3}, "rounds is -3: give at least 1"),
        ({"warmup": 0}, "warmup is 0"),
        ({"block": 0}, "block is 0"),
        ({"batch_sizes": (1, 0)}, "batch sizes is 0"),
        ({"threads": 0}, "threads is 0"),
        ({"samples": -1}, "samples is -1"),
        ({"layers": -1}, "layers is -1"),
    ],
)
def test_numbers_out_of_range_are_refused(change: dict, message: str) -> None:
    with pytest.raises(CarafeDeployError, match=message):
        run_bench([], IMAGES, dataclasses.replace(QUICK, **change))


def test_memory_and_loading_come_from_another_process(
    measure: Measure, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fake_probe(opening, height, width):
        asked.append((Path(opening.path).name, height, width))
        return Cold(1.0, 2.0, 3.0, 2.0)

    monkeypatch.setattr(run_module, "probe", fake_probe)
    [subject] = measure({"cold": True}, a_onnx=FakeRunner()).subjects
    assert subject.cold == Cold(1.0, 2.0, 3.0, 2.0)
    assert asked == [("a.onnx", 60, 100)]


def test_a_real_detector_in_two_layouts(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    checkpoint = data_path("shapes", "shapes_mask_rcnn_carafe-fbec7e06.pth")
    options = BenchOptions(
        variants=Variants(layouts=("nchw", "channels-last")),
        rounds=2,
        block=1,
        batch_sizes=(2,),
        threads=1,
        layers=1,
        annotations=data_path("shapes", "val.json"),
        image_dir=data_path("shapes", "val"),
        limit=3,
    )
    image = load_image(data_path("shapes", "val", "000001.png"))
    result = run_bench([checkpoint], {"000001.png": image}, options)
    assert torch.get_num_threads() == before
    plain, last = result.subjects
    assert last.name == "PyTorch fp32, channels-last"
    assert last.agreement.passed
    assert last.agreement.total > 0
    assert last.agreement.min_mask_iou > 0.98
    assert plain.ap.keys() == {"bbox", "segm"}
    assert abs(plain.ap["bbox"] - last.ap["bbox"]) < 1e-3
    for subject in result.subjects:
        assert subject.cold.reason == ""
        assert subject.cold.peak_memory_mb > subject.cold.import_memory_mb > 50
        assert subject.cold.load_s > 0
        assert subject.cold.first_s > 0
        assert 0 < subject.layers.share("Carafe", "CarafeEncoded") < 1
    assert result.samples[0].found[plain.name].masks
    assert "commit" in result.environment
    libraries = [value for name, value in result.environment.items() if name.startswith("lib")]
    assert libraries
    assert not any("/" in value for value in libraries)


def test_a_process_that_fails_is_a_reason_and_no_figure(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"nonsense")
    cold = probe(Opening(str(tmp_path / "a.onnx"), "cpu", provider="cpu"), 64, 64)
    assert "cannot be loaded by ONNX Runtime" in cold.reason
    assert cold.peak_memory_mb == 0


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("kill -SEGV $$", "the process died of SIGSEGV"),
        ("echo munmap >&2; kill -ABRT $$", "the process died of SIGABRT: munmap"),
        ("echo a >&2; echo b >&2; exit 3", "the process ended with status 3: b"),
        ("echo loaded", "the process ended with status 0"),
        ("exec sleep 60", "took longer than 0.3 s"),
        ("echo '{\"load_s\": 2.0}'; echo bye", ""),
        ("echo '{\"load_s\": 2.0}'; kill -SEGV $$", "the process died of SIGSEGV"),
    ],
)
def test_a_process_that_dies_or_hangs_says_how(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, reason: str
) -> None:
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(probe_module, "sys", SimpleNamespace(executable=str(program)))
    monkeypatch.setattr(probe_module, "LIMIT", 0.3 if "sleep" in script else 60)
    cold = probe(Opening("a.onnx", "cpu"), 64, 64)
    assert (cold.reason, cold.load_s) == (reason, 0.0 if reason else 2.0)


def test_such_a_process_fails_its_subject_which_keeps_its_times(
    measure: Measure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "probe", lambda *_: Cold(reason="the process died of SIGSEGV"))
    [subject] = measure({"cold": True}, a_onnx=FakeRunner()).subjects
    reason = "memory and loading: the process died of SIGSEGV"
    assert (subject.status, subject.reason) == ("failed", reason)
    assert len(subject.samples.total_ms) == 12
