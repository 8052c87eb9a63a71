"""Which subjects come from which artefacts, and what is opened how."""

from __future__ import annotations

from pathlib import Path

import pytest

from carafe_deploy.bench import subjects
from carafe_deploy.bench.subjects import Opening, Variants, expand, open_all
from carafe_deploy.errors import (
    ArtefactError,
    BackendUnavailableError,
    CarafeDeployError,
    OptionError,
)
from carafe_deploy.types import InputFormat
from tests.bench.fakes import INFO, FakeRunner, info, install


def _files(tmp_path: Path, *names: str) -> list[Path]:
    for name in names:
        (tmp_path / name).touch()
    return [tmp_path / name for name in names]


def _variants(openings: list[Opening]) -> list[tuple[str, str, str]]:
    return [(Path(o.path).name, o.precision, o.variant) for o in openings]


def test_the_usual_ways_on_a_cpu(tmp_path: Path) -> None:
    paths = _files(tmp_path, "a.pth", "a.ts", "a.onnx", "a.engine")
    assert _variants(expand(paths, "cpu", Variants())) == [
        ("a.pth", "", "channels-last"),
        ("a.ts", "", ""),
        ("a.onnx", "", ""),
        ("a.engine", "", ""),
    ]


def test_the_usual_ways_on_a_gpu(tmp_path: Path) -> None:
    paths = _files(tmp_path, "a.pth", "a.onnx", "a.engine")
    assert _variants(expand(paths, "cuda", Variants())) == [
        ("a.pth", "", "channels-last"),
        ("a.pth", "", "cuda-graph, channels-last"),
        ("a.onnx", "", ""),
        ("a.onnx", "", "tensorrt provider"),
        ("a.onnx", "", "tensorrt-rtx provider"),
        ("a.onnx", "", "cuda-graph"),
        ("a.engine", "", ""),
        ("a.engine", "", "cuda-graph"),
    ]


def test_onnx_files_by_their_bodies_as_well(tmp_path: Path) -> None:
    [path] = _files(tmp_path, "a.onnx")
    variants = Variants(bodies=True, provider_options={"prefer_nhwc": "0"})
    found = expand([path], "cpu", variants)
    assert [opening.operators for opening in found] == [None, False]
    assert _variants(found) == [("a.onnx", "", "prefer_nhwc 0")] * 2
    assert found[1] == Opening.from_json(found[1].to_json())
    on_gpu = expand([path], "cuda", Variants(bodies=True, providers=("cuda",)))
    modes = [(opening.mode, opening.operators) for opening in on_gpu]
    assert modes == [("eager", None), ("eager", False), ("cuda-graph", None)]


def test_checkpoints_take_every_combination_and_engines_are_not_compiled(tmp_path: Path) -> None:
    paths = _files(tmp_path, "a.pth", "a.engine")
    variants = Variants(("fp32", "bf16"), ("compile",), ("nchw", "channels-last"))
    assert _variants(expand(paths, "cpu", variants)) == [
        ("a.pth", "fp32", "compile"),
        ("a.pth", "fp32", "compile, channels-last"),
        ("a.pth", "bf16", "compile"),
        ("a.pth", "bf16", "compile, channels-last"),
        ("a.engine", "", ""),
    ]


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """One artefact of each kind on a GPU, all fp32 but the TorchScript file."""
    return install(
        monkeypatch,
        tmp_path,
        a_onnx=FakeRunner(),
        b_ts=FakeRunner("torchscript", info(precision="fp16")),
        c_engine=FakeRunner("tensorrt", info(precision="tf32")),
        d_pth=FakeRunner("pytorch"),
    )


def test_what_computes_in_fp32_is_measured_with_tf32_as_well(
    monkeypatch: pytest.MonkeyPatch, made_up: list[Path]
) -> None:
    monkeypatch.setattr(subjects, "sidecar_facts", lambda path: {})
    variants = Variants(modes=("eager",), providers=("cuda",), tf32=True)
    entries = open_all(expand(made_up, "cuda", variants))
    opened = [(name, settings.get("tf32")) for name, settings in install.opened]
    assert opened == [
        ("a.onnx", None),
        ("a.onnx", True),
        ("b.ts", None),
        ("c.engine", None),
        *[("d.pth", None), ("d.pth", True), ("d.pth", None)],  # in fp32, and in fp16 as b.ts is
    ]
    assert [entry.subject.precision for entry in entries if entry.opening.tf32] == ["tf32"] * 2
    assert "ONNX Runtime tf32" in [entry.subject.name for entry in entries]


def test_tf32_for_nothing_is_refused(monkeypatch: pytest.MonkeyPatch, made_up: list[Path]) -> None:
    monkeypatch.setattr(subjects, "sidecar_facts", lambda path: {})
    variants = Variants(providers=("cuda",), tf32=True)
    with pytest.raises(BackendUnavailableError, match="tf32 needs a GPU, device is cpu"):
        expand(made_up[:1], "cpu", Variants(tf32=True))
    with pytest.raises(OptionError, match="engines have it inside: leave it out"):
        expand(made_up[2:3], "cuda", variants)
    with pytest.raises(OptionError, match="nothing here computes in fp32: leave it out"):
        open_all(expand(made_up[1:2], "cuda", variants))


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        (Variants(precisions=("int8",)), "precisions holds 'int8': choose from fp32, fp16, bf16"),
        (Variants(modes=("fast",)), "modes holds 'fast': choose from eager, compile, cuda-graph"),
        (Variants(layouts=("nhwc",)), "layouts holds 'nhwc': choose from nchw, channels-last"),
        (Variants(providers=("dml",)), "providers holds 'dml': choose from cpu, cuda, tensorrt"),
    ],
)
def test_unknown_variants_are_refused(variants: Variants, message: str) -> None:
    with pytest.raises(CarafeDeployError, match=message):
        expand([], "cpu", variants)


def test_files_that_nothing_opens_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"suffix '.tflite': give one of .pth"):
        expand(_files(tmp_path, "a.tflite"), "cpu", Variants())
    with pytest.raises(ArtefactError, match=r"b.onnx does not exist"):
        expand([tmp_path / "b.onnx"], "cpu", Variants())


def test_an_opening_survives_the_way_to_another_process() -> None:
    opening = Opening("a.pth", "cuda", "c.py", "fp16", "compile", True, None, "{}", 3)
    assert Opening.from_json(opening.to_json()) == opening


def test_a_checkpoint_runs_as_the_exported_artefacts_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    paths = install(
        monkeypatch,
        tmp_path,
        a_pth=FakeRunner("pytorch", info(score_threshold=0.3)),
        a_onnx=FakeRunner(info=info(precision="fp16", score_threshold=0.3)),
    )
    entries = open_all(expand(paths, "cpu", Variants(), threads=3))
    assert [entry.subject.name for entry in entries] == [
        "PyTorch fp16, channels-last",
        "ONNX Runtime fp16",
    ]
    (_, onnx), (_, checkpoint) = install.opened
    assert "options" not in onnx
    assert onnx["provider"] == "cpu"
    assert onnx["threads"] == 3
    assert checkpoint["options"].precision == "fp16"
    assert checkpoint["options"].score_threshold == 0.3
    assert checkpoint["options"].height == INFO.input.height


def test_files_of_the_same_kind_are_told_apart_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    paths = install(monkeypatch, tmp_path, a_onnx=FakeRunner(), b_onnx=FakeRunner())
    entries = open_all(expand(paths, "cpu", Variants()))
    names = ["ONNX Runtime fp32 (a.onnx)", "ONNX Runtime fp32 (b.onnx)"]
    assert [entry.subject.name for entry in entries] == names
    assert [entry.subject.file_mb for entry in entries] == [1.5, 1.5]


def test_all_are_held_to_the_sizes_that_all_accept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    small = InputFormat(batch=(1, 2), height=(64, 64), width=(64, 4096))
    paths = install(
        monkeypatch,
        tmp_path,
        a_onnx=FakeRunner(),
        b_ts=FakeRunner("torchscript", info(input=small)),
    )
    entries = open_all(expand(paths, "cpu", Variants()))
    for entry in entries:
        assert entry.bounded.info.input.batch == (1, 2)
        assert entry.bounded.info.input.height == (64, 64)
        assert entry.bounded.info.input.width == (64, 128)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (info(classes=("cat",)), "different models or settings: 2 and 1 classes"),
        (info(score_threshold=0.5), "score_threshold is 0.05 and 0.5"),
        (
            info(input=InputFormat(batch=(1, 4), height=(256, 256), width=(64, 128))),
            "b.ts accepts height 256 to 256, the artefacts before it 64 to 128",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused_and_closed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, other: object, message: str
) -> None:
    runners = FakeRunner(), FakeRunner("torchscript", other)
    paths = install(monkeypatch, tmp_path, a_onnx=runners[0], b_ts=runners[1])
    with pytest.raises(ArtefactError, match=message):
        open_all(expand(paths, "cpu", Variants()))
    assert [runner.closed for runner in runners] == [1, 1]


def test_what_this_machine_lacks_is_skipped_and_what_is_broken_failed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    paths = install(
        monkeypatch,
        tmp_path,
        a_onnx=FakeRunner(),
        b_ts=BackendUnavailableError("no TorchScript here"),
        c_onnx=ArtefactError("truncated"),
    )
    subjects = [entry.subject for entry in open_all(expand(paths, "cpu", Variants()))]
    assert [(s.name, s.status, s.reason) for s in subjects] == [
        ("ONNX Runtime fp32", "measured", ""),
        ("TorchScript", "skipped", "no TorchScript here"),
        ("ONNX Runtime", "failed", "truncated"),
    ]
