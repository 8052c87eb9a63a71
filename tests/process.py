"""Running commands in processes of their own, and what comes of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """Exit status and what was printed."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The whole of stdout; fails if anything but JSON is there."""
        return json.loads(self.out)

    def assert_refused(self, message: str) -> None:
        """Bad input: status 2, an error with this message, and nothing on stdout."""
        assert (self.status, self.out) == (2, ""), self.err
        assert message in " ".join(self.err.split()) or message in self.err
        assert "Traceback" not in self.err


def run_process(
    *arguments: object, cwd: Path, code: str = "", env: dict[str, str] | None = None
) -> Outcome:
    """Run a command in a process of its own.

    Args:
        arguments: of the command.
        cwd: where it runs.
        code: Python to run before.
        env: further environment variables.
    """
    program = f"import sys\n{code}\nfrom carafe_deploy.cli import main\nsys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)
