"""The page in a browser: no error, no broken picture, nothing wider than the window."""

from __future__ import annotations

import html
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from carafe_deploy.report.html import page
from tests.report import synthetic

#: Leaves in the title what only a browser knows.
PROBE = """<script>
addEventListener("load", () => {
  document.querySelectorAll("details").forEach(e => { e.open = true; });
  const wide = [...document.querySelectorAll("body *")].filter(
    e => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest("svg"));
  document.title = JSON.stringify({
    pictures: document.images.length,
    broken: [...document.images].filter(i => !i.complete || !i.naturalWidth).length,
    charts: document.querySelectorAll("svg").length,
    wide: wide.map(e => e.tagName + " " + e.textContent.slice(0, 40)),
    scrolled: [...document.querySelectorAll(".scroll")].filter(
      e => e.scrollWidth > e.clientWidth + 1).length,
    background: getComputedStyle(document.body).backgroundColor,
  });
});
</script></body>"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with everything on it, and the probe."""
    text = page(
        [
            synthetic.gpu_bench(),
            synthetic.partial_bench(),
            synthetic.operators("cuda"),
            synthetic.parity(passed=False),
        ]
    )
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(text.replace("</body>", PROBE), encoding="utf-8")
    return path


def browse(chromium: str, path: Path, profile: Path, *flags: str) -> tuple[dict[str, Any], str]:
    """What the probe found, and the browser's log."""
    command = [
        chromium,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--enable-logging=stderr",
        f"--user-data-dir={profile}",
        *flags,
        "--dump-dom",
        path.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert title is not None
    return json.loads(html.unescape(title[1])), done.stderr


@pytest.mark.parametrize(
    ("width", "flags", "background"),
    [
        (1280, (), "rgb(255, 255, 255)"),
        (800, ("--force-dark-mode",), "rgb(20, 23, 28)"),
    ],
    ids=["wide, light", "narrow, dark"],
)
def test_it_looks_right(
    chromium: str,
    report: Path,
    tmp_path: Path,
    width: int,
    flags: tuple[str, ...],
    background: str,
) -> None:
    found, log = browse(chromium, report, tmp_path, f"--window-size={width},2000", *flags)
    assert "CONSOLE" not in log
    assert found == {
        "pictures": 18,
        "broken": 0,
        "charts": 6,
        "wide": [],
        "scrolled": 0,
        "background": background,
    }
