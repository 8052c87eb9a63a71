"""README's figures are those of the committed results, and its commands and links exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_figures_are_current() -> None:
    script = ROOT / "benchmarks" / "readme_figures.py"
    done = subprocess.run([sys.executable, str(script), "--check"], check=False)
    assert done.returncode == 0, "run: python benchmarks/readme_figures.py"


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#]+)\)", README))))
def test_relative_links_lead_somewhere(link: str) -> None:
    if "://" not in link:
        assert (ROOT / link).exists()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"`?make ([a-z-]+)", README))))
def test_make_targets_exist(target: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{target}:", makefile, re.MULTILINE)


@pytest.mark.parametrize(
    "command", sorted(set(re.findall(r"(?:^|`)carafe-deploy ([a-z]+)", README, re.MULTILINE)))
)
def test_commands_exist(command: str) -> None:
    from typer.testing import CliRunner

    from carafe_deploy.cli.app import app

    assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0
