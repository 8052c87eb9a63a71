"""SIGTERM, Ctrl-C and a closed terminal end the program at once, and nothing unfinished stays.

All that a handler of Python's can do to end what runs is to raise, between two bytecodes of the
main thread. In a callback from C++, a destructor or the import of an extension that is lost or
turns into another error, and in a long call it has to wait. So nothing is raised: the signal's
number goes through a pipe to a thread, which removes what is unfinished and ends the process.

Only the program asks for this (:func:`guard`). Programs that call the package have handlers of
their own. This module imports next to nothing, so that it is there before anything else.
"""

from __future__ import annotations

import _thread
import os
import select
import signal

__all__ = ["LOCK", "end_with_parent", "guard", "handle", "interrupts_raise", "unfinished"]

#: They end the program; its exit status is 128 and the number.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

#: Held while files come and go: so they do it completely or not at all.
LOCK = _thread.RLock()

#: Files and folders that go with the process.
unfinished: set[str] = set()

#: Seconds to wait for :data:`LOCK`; renaming takes no time, but a disk may have failed.
_PATIENCE = 1.0

#: Whether the next Ctrl-C is KeyboardInterrupt, as the main thread sees it.
_raises = False
#: Ctrl-Cs that are not the watching thread's; it may see one when the main thread is past it.
_spared = 0


def guard() -> None:
    """From now on the signals end this process, except those that it was started to ignore."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    _thread.start_new_thread(_watch, (reading,))
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handle)
    os.register_at_fork(before=_hold, after_in_parent=_let, after_in_child=_release)


class interrupts_raise:
    """Inside, the first Ctrl-C is KeyboardInterrupt, for those who keep what they have by then.

    The second one ends the program, since the first may have been lost.
    """

    def __enter__(self) -> None:
        global _raises, _spared
        _raises, _spared = True, 1

    def __exit__(self, *error: object) -> None:
        global _raises, _spared
        if _raises:
            _raises, _spared = False, 0


def end_with_parent(parent: int) -> None:
    """Kill this process when the one that started it, of this number, is gone (Linux)."""
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it is gone already
        os._exit(1)


def handle(number: int, frame: object) -> None:
    """The handler of a guarded program: without one there would be no byte in the pipe."""
    global _raises
    if number == signal.SIGINT and _raises:
        _raises = False
        raise KeyboardInterrupt


def _watch(reading: int) -> None:
    global _spared
    while True:
        (number,) = os.read(reading, 1)
        if number == signal.SIGINT and _spared:
            _spared -= 1
        elif number in SIGNALS:
            _end(number)


def _end(number: int) -> None:
    LOCK.acquire(timeout=_PATIENCE)  # and never released: nothing new begins
    for path in tuple(unfinished):
        _remove(path)
    words = "interrupted\n" if number == signal.SIGINT else "terminated\n"
    if os.isatty(2):
        words = f"\r\x1b[?25h{words}"  # progress bars hide the cursor
    if select.select((), (2,), (), 0)[1]:  # nobody may read it
        os.write(2, words.encode())
    os._exit(128 + number)


def _remove(path: str) -> None:
    """A file, or a folder with all that is in it, as far as it can be."""
    try:
        if not os.path.isdir(path):
            os.unlink(path)
            return
        for entry in os.listdir(path):
            _remove(os.path.join(path, entry))
        os.rmdir(path)
    except OSError:
        pass


# A fork has no such thread, and the pipe is its parent's: its signals wait until it has let go.


def _hold() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _let() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _release() -> None:
    signal.set_wakeup_fd(-1)
    for number in SIGNALS:
        if signal.getsignal(number) == handle:
            signal.signal(number, signal.SIG_DFL)
    _let()
