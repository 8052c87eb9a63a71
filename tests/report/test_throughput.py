"""The table of throughput, with and without what was measured with the stages overlapping."""

from __future__ import annotations

import dataclasses

from carafe_deploy.bench.record import Streamed, Throughput
from carafe_deploy.report import plots
from carafe_deploy.report.bench import bench_section
from carafe_deploy.report.bench_tables import files_table, throughput_table
from tests.report import synthetic


def result(*throughputs: tuple[Throughput, ...]) -> object:
    bench = synthetic.gpu_bench()
    subjects = [
        dataclasses.replace(subject, throughput=entries)
        for subject, entries in zip(bench.subjects, throughputs, strict=False)
    ]
    return dataclasses.replace(bench, subjects=tuple(subjects))


def test_overlapped_streams_have_columns_of_their_own() -> None:
    table = throughput_table(
        result(
            (Throughput(1, (10.0,), "", (20.0,)), Throughput(2, (16.0,), "", (25.0,))),
            (Throughput(1, (5.0,), "", (8.0,)), Throughput(2, reason="no memory is left")),
        )
    )
    names = ("batch 1", "batch 2", "batch 1, overlapped", "batch 2, overlapped")
    assert table.header == ("images/s", *names)
    assert [row[1:] for row in table.rows] == [
        ("100", "125", "50.0", "80.0"),
        ("200", "–", "125.0", "–"),
    ]
    assert "from decoded images to detections" in table.note
    assert table.align == "lrrrr"


def test_results_of_earlier_versions_have_none() -> None:
    table = throughput_table(result((Throughput(1, (10.0,)),)))
    assert table.header == ("images/s", "batch 1")
    assert "Overlapped" not in table.note


def test_nothing_measured() -> None:
    assert throughput_table(result((Throughput(1, reason="no memory is left"),))) is None


def test_streams_of_files_have_a_table_and_a_timeline() -> None:
    spans = {"load": ((0.0, 0.1), (0.05, 0.2)), "run": ((0.1, 0.2),), "postprocess": ()}
    streamed = Streamed(8, 512, 2.0, 0.125, 0.2, spans)
    bench = result((Throughput(1, (10.0,)),), (Throughput(1, (5.0,)),))
    first, *others = bench.subjects
    bench = dataclasses.replace(
        bench, subjects=(dataclasses.replace(first, streamed=streamed), *others)
    )
    table = files_table(bench)
    assert table.header == ("from files", "images/s", "batch", "run idles")
    assert [row[1:] for row in table.rows] == [("256", "8", "12.5%")]
    [axes] = plots.timeline(bench).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["postprocess", "run", "load"]
    assert axes.get_xlim() == (0, 200)
    captions = [getattr(block, "caption", "") for block in bench_section(bench).blocks]
    assert any("what its stages were doing when" in caption for caption in captions)
    assert files_table(result((Throughput(1, (10.0,)),))) is None
