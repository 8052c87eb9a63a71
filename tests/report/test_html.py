"""The page: well-formed, complete, self-contained, and safe with any name."""

from __future__ import annotations

import dataclasses
import functools
import re
from pathlib import Path

import pytest

from carafe_deploy.bench.record import Subject
from carafe_deploy.bench.result_file import write_result
from carafe_deploy.errors import ArtefactError, CarafeDeployError
from carafe_deploy.report.document import Block, Fold, Items, Table, Text
from carafe_deploy.report.html import page, write_report
from carafe_deploy.report.inputs import Reportable
from carafe_deploy.report.sections import sections
from tests.report import synthetic
from tests.report.pages import Page

GPU = synthetic.gpu_bench()
MASK, FASTER = synthetic.cpu_bench(), synthetic.cpu_bench("faster_rcnn")
PARTIAL, TINY = synthetic.partial_bench(), synthetic.tiny_bench()
OPERATORS, OPERATORS_GPU = synthetic.operators(), synthetic.operators("cuda")
PARITY, BROKEN_PARITY = synthetic.parity(), synthetic.parity(passed=False)
RESULTS: dict[str, list[Reportable]] = {
    "on a GPU": [GPU],
    "on a CPU": [MASK],
    "two detectors": [MASK, FASTER, OPERATORS],
    "partial": [PARTIAL],
    "operators": [OPERATORS, OPERATORS_GPU],
    "parity": [PARITY, BROKEN_PARITY],
    "all": [GPU, OPERATORS, PARITY],
}
BAD = '<script>alert("x")</script>&amp; $x_1$ {{ 7*7 }}'


@functools.cache
def html_of(name: str) -> str:
    """The page made of some of the results."""
    return page(RESULTS[name])


@functools.cache
def text_of(name: str) -> str:
    """What is to be read on it."""
    return Page(html_of(name)).text


@pytest.fixture(params=RESULTS)
def shown(request: pytest.FixtureRequest) -> tuple[list[Reportable], str]:
    """Results, and the page made of them."""
    return RESULTS[request.param], html_of(request.param)


def words(blocks: tuple[Block, ...]) -> list[str]:
    """Every text in blocks, cells included."""
    found: list[str] = []
    for block in blocks:
        if isinstance(block, Text):
            found.append(block.text)
        elif isinstance(block, Items):
            found += [text for row in block.rows for text in row]
        elif isinstance(block, Table):
            found += [cell for row in (block.header, *block.rows) for cell in row]
            found.append(block.note)
        elif isinstance(block, Fold):
            found += [block.summary, *words(block.blocks)]
    return found


def test_it_is_well_formed_and_needs_nothing_else(shown: tuple[list[Reportable], str]) -> None:
    _, html = shown
    parsed = Page(html)
    assert [link[:40] for link in parsed.links if not link.startswith(("#", "data:"))] == []
    assert {"script", "iframe", "object"} & set(parsed.tags) == set()
    assert re.findall(r"url\((?!#)|@import", html) == []
    assert sorted(set(parsed.ids)) == sorted(parsed.ids)
    assert {link[1:] for link in parsed.links if link.startswith("#")} <= set(parsed.ids)


def test_everything_is_on_it(shown: tuple[list[Reportable], str]) -> None:
    results, html = shown
    text = Page(html).text
    for section in sections(results):
        verdict = [sentence.text for sentence in section.verdict]
        for wanted in [section.title, section.subtitle, *verdict, *words(section.blocks)]:
            assert " ".join(wanted.split()) in text


def test_charts_have_the_colour_of_the_text_around_them(
    shown: tuple[list[Reportable], str],
) -> None:
    for chart in re.findall(r"<svg.*?</svg>", shown[1], re.DOTALL):
        assert "currentColor" in chart
        assert not re.search(r"#0{6}|#010203|: black", chart)


def test_charts_and_pictures() -> None:
    html = html_of("on a GPU")
    # Latency, stages, throughput; two images, nine subjects.
    assert html.count("<svg") == 3
    assert html.count("<img") == 18
    assert html_of("operators").count("<svg") == 2
    assert html_of("parity").count("<svg") == 0


def test_headline() -> None:
    text = text_of("on a CPU")
    assert re.search(
        r"ONNX Runtime fp32 is fastest: 27\.\d ms an image, 1\.6\d+ \[1\.\d+–1\.\d+\] times as "
        r"fast as PyTorch fp32 \(95% interval\)\. "
        r"Next is TorchScript fp32 with 4\d\.\d ms, 1\.5\d times as long\.",
        text,
    )


def test_a_difference_within_chance_is_no_victory() -> None:
    first, second = TINY.subjects[:2]
    assert first.samples is not None
    total = (49.0, 52.0, 48.0, 49.5, 50.5)
    close = dataclasses.replace(
        second, samples=dataclasses.replace(first.samples, total_ms=total), warnings=()
    )
    text = Page(page([dataclasses.replace(TINY, subjects=(first, close))])).text
    assert "this run does not tell whether it is faster than PyTorch fp32" in text
    assert re.search(r"0\.980 \[0\.9\d+–1\.0\d+\] ≈", text)


@pytest.mark.parametrize(
    ("name", "text", "count"),
    [
        ("on a CPU", "All backends detect what PyTorch fp32 detects.", 1),
        ("on a CPU", "CARAFE takes 7.5% of 41.2 ms; the 10 most expensive of 34 layers", 1),
        # What detects something else is not the fastest.
        ("on a GPU", "TensorRT fp16 is fastest: ", 1),
        ("on a GPU", "TensorRT fp16, cuda-graph takes less, but finds something else.", 1),
        ("on a GPU", "than PyTorch fp32: TensorRT fp16, cuda-graph (71 of 101).", 1),
        # Skipped, failed and warned subjects are told.
        ("on a GPU", "Skipped ONNX Runtime fp16, tensorrt provider no such provider is built", 1),
        ("on a GPU", "Failed TensorRT-RTX fp16 model.engine was built for compute capability", 1),
        ("on a GPU", "TensorRT fp16 bound by launching: the host takes 4.90 ms", 1),
        ("on a GPU", "TensorRT fp16 ⚠", 1),
        ("on a GPU", "other programs kept 9.3 of 16 cores busy when this began", 1),
        ("on a GPU", "TorchScript fp32, batch 8 CUDA out of memory", 1),
        ("on a GPU", "TensorRT fp16, cuda-graph layers inside a CUDA graph have no names", 1),
        # At the top and in its section.
        ("partial", "Interrupted: partial.", 2),
        ("partial", "ONNX Runtime fp32 interrupted before its turn", 1),
        ("on a CPU", "Interrupted", 0),
        # A machine is shown once; the operators of "all" were measured on another.
        ("two detectors", "Imaginary CPU 9000, 2 cores libcarafe_kernels.so", 0),
        ("two detectors", "processor Imaginary CPU 9000, 2 cores", 1),
        ("two detectors", "not installed tensorrt, tensorrt-rtx-cu13, pycuda", 1),
        ("all", "GPU Imaginary GPU 80GB (compute capability 9.0, driver 590.00.00)", 1),
        ("all", "processor Imaginary", 2),
    ],
)
def test_what_is_told_how_often(name: str, text: str, count: int) -> None:
    assert text_of(name).count(text) == count


def test_names_are_no_markup() -> None:
    first, *others = MASK.subjects
    layer = dataclasses.replace(first.layers.rows[0], name=BAD)  # type: ignore[union-attr]
    evil = dataclasses.replace(
        first,
        name=BAD,
        warnings=(BAD,),
        layers=dataclasses.replace(first.layers, rows=(layer,)),  # type: ignore[type-var]
    )
    samples = tuple(
        dataclasses.replace(
            sample,
            name=BAD,
            found={BAD if k == first.name else k: v for k, v in sample.found.items()},
        )
        for sample in MASK.samples
    )
    result = dataclasses.replace(
        MASK,
        model=BAD,
        environment={**MASK.environment, BAD: BAD},
        settings={BAD: BAD},
        classes=(BAD, BAD, BAD),
        subjects=(evil, *others),
        samples=samples,
        warnings=(BAD,),
    )
    html = page([result])
    parsed = Page(html)
    assert "script" not in parsed.tags
    assert "<script" not in html
    # Warning, title, layer, settings twice, environment twice and more, all as they are.
    assert parsed.text.count('alert("x")') > 10
    assert "$x_1$ {{ 7*7 }}" in parsed.text


@pytest.mark.parametrize(
    "change",
    [
        {"subjects": ()},
        {"subjects": TINY.subjects[:1]},
        {"subjects": TINY.subjects[2:]},
        {"classes": (), "samples": ()},
        {"settings": {}, "environment": {}},
        {"architecture": "cascade_rcnn"},
    ],
    ids=["none", "one", "none measured", "no classes", "no facts", "unknown architecture"],
)
def test_little_is_enough(change: dict[str, object]) -> None:
    result = dataclasses.replace(TINY, **change)  # type: ignore[arg-type]
    assert Page(page([result])).text


FIRST, SECOND, _ = TINY.subjects
EMPTY = dataclasses.replace(
    SECOND, samples=synthetic.Samples((), (), {"compute": ()}), throughput=()
)
LATE = dataclasses.replace(
    SECOND,
    samples=dataclasses.replace(SECOND.samples, rounds=(5, 6, 7, 8, 9)),  # type: ignore[type-var]
)


@pytest.mark.parametrize(
    ("subjects", "verdict"),
    [
        ((FIRST,), "PyTorch fp32 takes 50.0 ms an image."),
        ((FIRST, EMPTY), "PyTorch fp32 takes 50.0 ms an image."),
        ((FIRST, LATE), "ONNX Runtime fp32 is fastest: 25.0 ms an image."),
    ],
    ids=["one", "one without samples", "no common round"],
)
def test_without_two_to_compare_there_is_no_ratio(
    subjects: tuple[Subject, ...], verdict: str
) -> None:
    text = Page(page([dataclasses.replace(TINY, subjects=subjects)])).text
    assert verdict in text
    assert len(subjects) > 1 or "over the first" not in text


def test_results_are_read_from_files_too(tmp_path: Path) -> None:
    write_result(tmp_path / "tiny.json", TINY)
    (tmp_path / "parity.json").write_text(PARITY.to_json())
    target = tmp_path / "new folder" / "report.html"
    write_report([tmp_path / "tiny.json", str(tmp_path / "parity.json"), OPERATORS], target)
    text = Page(target.read_text(encoding="utf-8")).text
    for title in ("Faster R-CNN, model", "Operators on the CPU", "Parity"):
        assert title in text


def test_no_result_is_an_error() -> None:
    with pytest.raises(ValueError, match="no result"):
        page([])


def test_a_page_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(CarafeDeployError, match="it is a folder"):
        write_report([PARITY], tmp_path)


def test_a_damaged_picture_is_named() -> None:
    sample = dataclasses.replace(MASK.samples[0], jpeg="bm8gaW1hZ2U=")
    with pytest.raises(ArtefactError, match=r"sample 000001\.png holds no JPEG image"):
        page([dataclasses.replace(MASK, samples=(sample,))])
