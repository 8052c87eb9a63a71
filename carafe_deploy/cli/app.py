"""All commands under one name, and what becomes of their errors."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from typing import Annotated

import typer

from carafe_deploy import __version__
from carafe_deploy.backends import packages
from carafe_deploy.cli import (
    bench,
    build,
    demo,
    detect,
    doctor,
    evaluate,
    export,
    inspect,
    parity,
    quantize,
    report,
    selfcheck,
    zoo,
)
from carafe_deploy.errors import BackendFailedError, CarafeDeployError
from carafe_deploy.failures import LOGGER, first_line

PROGRAM = "carafe-deploy"
DEBUG_VARIABLE = "CARAFE_DEPLOY_DEBUG"

#: Importable module -> extra that installs it.
EXTRAS = {name: package.extra for name, package in packages().items() if package.extra}

app = typer.Typer(
    name=PROGRAM,
    help="Deploy mmdetection detectors trained with CARAFE (arXiv:1905.02188).",
    epilog="Exit status: 0 success, 1 a comparison or check failed or something broke, "
    "2 bad input, 130 interrupted, 143 terminated.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    zoo.COMMAND,
    export.COMMAND,
    quantize.COMMAND,
    build.COMMAND,
    inspect.COMMAND,
    detect.COMMAND,
    parity.COMMAND,
    evaluate.COMMAND,
    bench.COMMAND,
    report.COMMAND,
    demo.COMMAND,
    selfcheck.COMMAND,
    doctor.COMMAND,
):
    app.command(command.name, epilog=command.epilog, no_args_is_help=command.needs_arguments)(
        command.function
    )


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"{PROGRAM} {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
    debug: Annotated[
        bool,
        typer.Option(
            "--debug", help=f"Show the traceback of an error; {DEBUG_VARIABLE}=1 does the same."
        ),
    ] = False,
) -> None:
    pass  # `run` looks for --debug itself, since it outlives the command


def run(arguments: list[str]) -> int:
    """See :func:`carafe_deploy.cli.main`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without ✓ gets ?
    command = next((i for i, text in enumerate(arguments) if not text.startswith("-")), None)
    debug = "--debug" in arguments[:command] or os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0")
    try:
        with _tracebacks_shown() if debug else _warnings_in_a_line():
            app(arguments, prog_name=PROGRAM)
    except SystemExit as done:
        return _status(done.code)
    except Exception as error:
        if debug:
            traceback.print_exc()
        message = _message(error)
        typer.echo(f"error: {first_line(error) if message is None else message}", err=True)
        if message is None and not debug:
            again = " ".join([PROGRAM, "--debug", *arguments[:1], "..."])
            typer.echo(f"this is no fault of the input: {again} shows where it is", err=True)
        return 1 if message is None or isinstance(error, BackendFailedError) else 2
    return 0


@contextlib.contextmanager
def _warnings_in_a_line() -> Iterator[None]:
    """Where one was issued is for who calls the package."""
    usual = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = usual


@contextlib.contextmanager
def _tracebacks_shown() -> Iterator[None]:
    """On stderr: those of errors that become a row."""
    logger, handler = logging.getLogger(LOGGER), logging.StreamHandler(sys.stderr)
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False  # to a handler that has been set up by somebody else
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


def _status(code: str | int | None) -> int:
    if code == 130:
        typer.echo("interrupted", err=True)
    return code if isinstance(code, int) else int(code is not None)


def _message(error: Exception) -> str | None:
    """What a user is told; None for an error of this program or of a backend."""
    if isinstance(error, CarafeDeployError):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            return None
        return (
            f"this needs {package}, which is not installed: "
            f'pip install "carafe-deploy[{EXTRAS[package]}]"'
        )
    if isinstance(error, MemoryError):
        return f"memory is short ({error}): give smaller or fewer images, or end other programs"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror or error}"
    # A full disk is the one that comes without a name.
    return error.strerror if isinstance(error, OSError) and error.strerror else None
