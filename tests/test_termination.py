"""Signals end the program at once: whatever runs, nothing unfinished stays, nothing is raised."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

#: Before each program below: it says that it is there, then waits in one way or another.
GUARDED = """
import ctypes, os, signal, sys, time
from carafe_deploy import termination
from carafe_deploy.files import atomic_path, temporary_folder
termination.guard()
def there():
    print("there", flush=True)
"""


def ended(program: str, *numbers: signal.Signals, folder: Path) -> tuple[int, str, str]:
    """Signal a program whenever it says a line; its status and what it says besides."""
    process = subprocess.Popen(
        [sys.executable, "-c", GUARDED + program],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        for number in numbers:
            process.stdout.readline()
            process.send_signal(number)
        out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize(
    "wait",
    [
        "while True: pass",
        "time.sleep(60)",
        "ctypes.CDLL(None).sleep(60)",  # in C, where no handler of Python's is called
        "ctypes.CFUNCTYPE(None)(lambda: time.sleep(60))()",  # what this raises is lost
    ],
    ids=["python", "sleep", "C", "callback"],
)
def test_whatever_runs_is_ended(tmp_path: Path, number: signal.Signals, wait: str) -> None:
    program = (
        "with atomic_path('new/x.json') as file, temporary_folder('.') as folder:\n"
        "    (folder / 'deep').mkdir()\n"
        "    (folder / 'deep' / 'file').write_text('half')\n"
        "    file.write_text('half')\n"
        "    there()\n"
        f"    {wait}"
    )
    status, _, err = ended(program, number, folder=tmp_path)
    assert status == 128 + number
    assert err == ("interrupted\n" if number == signal.SIGINT else "terminated\n")
    assert list(tmp_path.rglob("*")) == [tmp_path / "new"]


def test_what_is_being_put_in_place_is_put_in_place(tmp_path: Path) -> None:
    program = (
        "with termination.LOCK:\n"
        "    there()\n"
        "    time.sleep(0.3)\n"
        "    open('a', 'w').close()\n"
        "time.sleep(60)"
    )
    status, _, _ = ended(program, signal.SIGTERM, folder=tmp_path)
    assert (status, [path.name for path in tmp_path.iterdir()]) == (143, ["a"])


def test_the_first_ctrl_c_is_an_exception_for_who_asks_and_the_second_ends(tmp_path: Path) -> None:
    program = (
        "try:\n"
        "    with termination.interrupts_raise():\n"
        "        there()\n"
        "        time.sleep(60)\n"
        "except KeyboardInterrupt:\n"
        "    time.sleep(0.2)\n"  # time for the other thread to see the first one
        "    there()\n"
        "    time.sleep(60)"
    )
    status, _, err = ended(program, signal.SIGINT, signal.SIGINT, folder=tmp_path)
    assert (status, err) == (130, "interrupted\n")


def test_what_was_ignored_is_ignored(tmp_path: Path) -> None:
    """``nohup``, and what a shell starts in the background."""
    program = GUARDED.replace("termination.guard()", "signal.signal(1, signal.SIG_IGN)")
    program += "termination.guard()\nthere()\nsys.stdin.readline()\nthere()\ntime.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGHUP)
        print(file=process.stdin, flush=True)
        assert process.stdout.readline() == "there\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143


def test_a_fork_has_signals_as_usual(tmp_path: Path) -> None:
    program = (
        "child = os.fork()\n"
        "if not child:\n"
        "    time.sleep(60)\n"
        "os.kill(child, signal.SIGTERM)\n"
        "_, status = os.waitpid(child, 0)\n"
        "print(os.waitstatus_to_exitcode(status))"
    )
    assert ended(program, folder=tmp_path) == (0, "-15\n", "")


def test_children_end_with_their_parent(tmp_path: Path) -> None:
    child = (
        "from carafe_deploy.termination import end_with_parent; import os, time; "
        "end_with_parent(os.getppid()); print('there', flush=True); time.sleep(60)"
    )
    program = (
        "import subprocess\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        "print(child.pid, flush=True)\n"
        "there()\n"
        "time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", GUARDED + program], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        child_process = Path("/proc", process.stdout.readline().strip())
        process.stdout.readline()
        assert child_process.exists()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
    end = time.monotonic() + 30
    while child_process.exists() and time.monotonic() < end:
        time.sleep(0.01)
    assert not child_process.exists()


def test_a_child_whose_parent_is_gone_ends_at_once(tmp_path: Path) -> None:
    program = "termination.end_with_parent(os.getppid() + 1)\nthere()"
    assert ended(program, folder=tmp_path) == (1, "", "")


def test_whoever_calls_the_package_keeps_the_handlers() -> None:
    from carafe_deploy.cli import main

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    assert main(["--version"]) == 0
    assert [signal.getsignal(number) for number in numbers] == before


def test_the_program_is_there_before_anything_slow_is_imported(tmp_path: Path) -> None:
    """Until then signals are Python's, which tells of an interrupt with a traceback."""
    program = (
        "import sys\n"
        "before = set(sys.modules)\n"
        "import carafe_deploy.cli\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    slow = {"pathlib", "typing", "threading", "contextlib", "logging", "numpy", "typer"}
    assert "carafe_deploy.termination" in done.stdout.split()
    assert not slow & set(done.stdout.split())
