"""``carafe-deploy report``: files, stdout, exit status."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from carafe_deploy.bench.result_file import write_result
from carafe_deploy.cli import main
from carafe_deploy.report.sections import to_markdown
from tests.report import synthetic


@dataclass(frozen=True)
class Outcome:
    """Exit status and what was printed."""

    status: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run the command in a folder with results."""
    monkeypatch.chdir(tmp_path)
    write_result("bench.json", synthetic.tiny_bench())
    write_result("partial.json", synthetic.partial_bench())
    Path("parity.json").write_text(synthetic.parity().to_json())

    def call(*arguments: str) -> Outcome:
        status = main(["report", *arguments])
        return Outcome(status, *capsys.readouterr())

    return call


def test_page_and_markdown(run: Run) -> None:
    outcome = run("bench.json")
    assert (outcome.status, outcome.out) == (0, to_markdown([synthetic.tiny_bench()]))
    assert Path("report.html").read_text().endswith("</html>")


def test_markdown_goes_to_a_file(run: Run) -> None:
    outcome = run("bench.json", "parity.json", "-o", "out/a.html", "--markdown", "out/a.md")
    assert (outcome.status, outcome.out.split()) == (0, ["out/a.html", "out/a.md"])
    assert "## Parity" in Path("out/a.md").read_text()
    assert not Path("report.html").exists()


def test_json(run: Run) -> None:
    outcome = run("bench.json", "partial.json", "parity.json", "--json")
    data = json.loads(outcome.out)
    assert (data["html"], data["markdown"]) == ("report.html", None)
    assert [section["partial"] for section in data["sections"]] == [False, True, False]
    assert data["sections"][0]["verdict"][0].startswith("ONNX Runtime fp32 is fastest")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.json"], "none.json cannot be read"),
        (["parity.json", "pyproject.json"], "pyproject.json cannot be read"),
        (["bench.json", "-o", "bench.json"], "bench.json would be overwritten"),
        (["bench.json", "-o", "x", "--markdown", "./x"], "x would be overwritten"),
    ],
)
def test_bad_input(run: Run, arguments: list[str], message: str) -> None:
    outcome = run(*arguments)
    assert (outcome.status, outcome.out) == (2, "")
    [error] = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert message in error
    assert not Path("report.html").exists()


def test_without_results_help_is_shown(run: Run) -> None:
    outcome = run()
    assert outcome.status == 2
    assert "Usage: carafe-deploy report" in outcome.out + outcome.err
