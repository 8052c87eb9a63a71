"""Three stages of a stream of items at the same time, in threads, in order."""

from __future__ import annotations

import _thread
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

_Item = TypeVar("_Item")
_Prepared = TypeVar("_Prepared")
_Ran = TypeVar("_Ran")
_Result = TypeVar("_Result")
_Given = TypeVar("_Given")
_Made = TypeVar("_Made")

#: Items that wait before the run, and as many after it. One would do if all items took the same
#: time; the second evens out.
DEPTH = 2

#: Seconds between two looks at whether a thread has ended, should the word of it be lost.
_LOOK = 0.05


def overlapped(
    items: Iterable[_Item],
    prepare: Callable[[_Item], _Prepared],
    run: Callable[[_Prepared], _Ran],
    finish: Callable[[_Ran], _Result],
    *,
    depth: int = DEPTH,
) -> Generator[_Result, None, None]:
    """``finish(run(prepare(item)))`` of every item, the stages at work on different items.

    ``prepare`` has a thread of its own, ``finish`` another; ``run`` and the iteration over
    ``items`` stay in the thread that takes the results, so that what is bound to a thread (a CUDA
    context, for one) can be used there. This pays where the stages release Python's lock.

    At most ``2 * depth + 1`` items are held, from the moment they are taken from ``items`` until
    their result is out: ``depth`` prepared or waiting for it, one that runs, ``depth`` finished or
    waiting for it. A stage that is ``depth`` ahead of the next one waits.

    Whoever leaves early (``close()``, an exception, Ctrl-C) waits for the one call of ``prepare``
    and of ``finish`` that may be at work; the other items are dropped, and no thread is left,
    wherever in the caller's thread a signal's handler raises.

    Yields:
        Results in the order of the items.

    Raises:
        ValueError: ``depth`` is below 1.
        Exception: whatever a stage or the iteration raises, once the results of all earlier items
            are out.
        BaseException: likewise, once those results are out that are finished by then.
    """
    if depth < 1:
        raise ValueError(f"depth is {depth}: at least 1 item has to be on its way")
    return _overlapped(iter(items), prepare, run, finish, depth)


def _overlapped(
    items: Iterator[_Item],
    prepare: Callable[[_Item], _Prepared],
    run: Callable[[_Prepared], _Ran],
    finish: Callable[[_Ran], _Result],
    depth: int,
) -> Generator[_Result, None, None]:
    before, after = _Stage(prepare, "carafe-before"), _Stage(finish, "carafe-after")
    failure: BaseException | None = None

    def fill() -> None:
        nonlocal failure
        while failure is None and before.held < depth:
            try:
                item = next(items)
            except StopIteration:
                return
            except BaseException as error:
                failure = error  # of an item that comes after all those before the run
                return
            before.give(item)

    def advance() -> None:
        """Run the oldest item; nothing here holds on to it afterwards."""
        prepared = before.take()
        fill()
        after.give(run(prepared))

    try:
        try:
            fill()
            while before.held and not _is_urgent(failure):
                try:
                    advance()
                except BaseException as error:
                    failure = error
                    break
                while after.held and (after.held > depth or after.has_result):
                    yield after.take()
            while after.held and (after.has_result or not _is_urgent(failure)):
                yield after.take()
            if failure is not None:
                raise failure
        finally:
            _leave(before, after)
    except (GeneratorExit, Exception):
        if failure is not None and _is_urgent(failure):
            raise failure from None  # or Ctrl-C would be lost among the results after it
        raise
    finally:
        failure = None  # its traceback holds this frame
        _leave(before, after)  # once more, should an interrupt have come in between


def _is_urgent(failure: BaseException | None) -> bool:
    """Whoever interrupts wants to leave: only what is finished goes out before."""
    return failure is not None and not isinstance(failure, Exception)


def _leave(*stages: _Stage[Any, Any]) -> None:
    for stage in stages:
        stage.stop()
    for stage in stages:
        stage.join()


class _Stage(Generic[_Given, _Made]):
    """A thread that calls a function for one item after the other.

    A signal's handler may raise anywhere in the caller's thread. So that waits in C alone: what is
    written in Python (pools, futures, conditions, joining a thread) may be left locked, or lose
    track of a thread.
    """

    def __init__(self, function: Callable[[_Given], _Made], name: str) -> None:
        self.held = 0  # items given whose results were not taken
        self._function = function
        self._given: SimpleQueue[tuple[_Given] | None] = SimpleQueue()
        self._made: SimpleQueue[tuple[_Made] | BaseException] = SimpleQueue()
        # A stream that is left without being closed does not keep the program from its end.
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._is_started = self._is_stopped = self._has_ended = False
        self._end: SimpleQueue[None] = SimpleQueue()

    def give(self, item: _Given) -> None:
        if not self._is_started:
            self._is_started = True
            # By a thread, which no signal interrupts: `start` keeps books.
            _thread.start_new_thread(self._thread.start, ())
        self.held += 1
        self._given.put((item,))

    @property
    def has_result(self) -> bool:
        return not self._made.empty()

    def take(self) -> _Made:
        """The oldest result; waits for it. Raises what the function has raised."""
        made = self._made.get()
        self.held -= 1
        if isinstance(made, BaseException):
            raise made
        return made[0]

    def stop(self) -> None:
        """Begin no other item."""
        self._is_stopped = True
        self._given.put(None)

    def join(self) -> None:
        """Wait for the thread, through interrupts; at the end of the program it is gone already."""
        late: BaseException | None = None
        while self._is_started and not self._has_ended and not sys.is_finalizing():
            try:
                self._end.get(timeout=_LOOK)
            except Empty:
                pass
            except BaseException as error:
                late = error
        if self._has_ended:
            self._thread.join()  # it has nothing to do any more
        if late is not None:
            raise late

    def _work(self) -> None:
        try:
            while (given := self._given.get()) is not None and not self._is_stopped:
                self._made.put(self._call(*given))
                del given
        finally:
            self._has_ended = True
            self._end.put(None)

    def _call(self, item: _Given) -> tuple[_Made] | BaseException:
        try:
            return (self._function(item),)
        except BaseException as error:
            return error
