"""The package's names, and what they need."""

from __future__ import annotations

import subprocess
import sys

import pytest

from carafe_deploy import report


@pytest.mark.parametrize("name", report.__all__)
def test_every_name_is_there(name: str) -> None:
    assert getattr(report, name) is not None


def test_other_names_are_not() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = report.nonsense


def test_the_self_check_needs_neither_charts_nor_runtimes() -> None:
    heavy = "matplotlib jinja2 onnxruntime torch cattrs"
    code = (
        "import sys; from carafe_deploy.report import selfcheck_report; "
        f"print(*set('{heavy}'.split()) & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
