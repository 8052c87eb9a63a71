"""The command line ``carafe-deploy``: one file a command, nothing heavy imported before it runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from carafe_deploy import termination

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: without the program's name; None takes those of the process, and its signals
            from then on: SIGTERM, SIGHUP and Ctrl-C end it.

    Returns:
        The exit status: 0 success, 1 a comparison or check failed, 2 bad input, 130 interrupted.
    """
    if arguments is None:
        termination.guard()
    try:
        from carafe_deploy.cli.app import run
    except ModuleNotFoundError as error:
        if error.name not in ("rich", "typer"):
            raise
        sys.stderr.write(
            f"error: the command line needs {error.name}, which is not installed: "
            'pip install "carafe-deploy[cli]"\n'
        )
        return 2
    return run(sys.argv[1:] if arguments is None else list(arguments))
