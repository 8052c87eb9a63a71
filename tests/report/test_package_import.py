"""What the package needs."""

from __future__ import annotations

import subprocess
import sys


def test_the_self_check_needs_neither_charts_nor_runtimes() -> None:
    heavy = "matplotlib jinja2 onnxruntime torch"
    code = (
        "import sys; from carafe_deploy.report.selfcheck import selfcheck_report; "
        f"print(*set('{heavy}'.split()) & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
