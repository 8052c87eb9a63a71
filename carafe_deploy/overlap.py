"""Stages of a stream of items at the same time, in threads, in order."""

from __future__ import annotations

import _thread
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

_Item = TypeVar("_Item")
_Loaded = TypeVar("_Loaded")
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
    load: Callable[[_Item], _Loaded],
    prepare: Callable[[_Loaded], _Prepared],
    run: Callable[[_Prepared], _Ran],
    finish: Callable[[_Ran], _Result],
    *,
    depth: int = DEPTH,
    loaders: int = 1,
    finishers: int = 1,
) -> Generator[_Result, None, None]:
    """``finish(run(prepare(load(item))))`` of every item, the stages at work on different items.

    ``load`` has as many threads of its own as ``loaders`` says, ``finish`` as ``finishers`` says,
    and ``prepare`` one, which sees the items in order. ``run`` and the iteration over ``items``
    stay in the thread that takes the results, so that what is bound to a thread (a CUDA context,
    for one) can be used there. This pays where the stages release Python's lock.

    At most ``2 * depth + loaders + 1`` items are held, from the moment they are taken from
    ``items`` until their result is out: ``depth + loaders`` before the run, one that runs,
    ``depth`` finished or waiting for it. A stage that is so far ahead of the next one waits.

    Whoever leaves early (``close()``, an exception, Ctrl-C) waits for the one call that each thread
    may be at; the other items are dropped, and no thread is left, wherever in the caller's thread a
    signal's handler raises.

    Yields:
        Results in the order of the items.

    Raises:
        ValueError: ``depth``, ``loaders`` or ``finishers`` is below 1.
        Exception: whatever a stage or the iteration raises, once the results of all earlier items
            are out.
        BaseException: likewise, once those results are out that are finished by then.
    """
    for name, count in (("depth", depth), ("loaders", loaders), ("finishers", finishers)):
        if count < 1:
            raise ValueError(f"{name} is {count}: give at least 1")
    loading = _Threads(load, "carafe-load", loaders)
    preparing: _Threads[_Ticket[_Loaded], _Prepared] = _Threads(
        lambda loaded: prepare(loaded.take()), "carafe-before"
    )
    finishing = _Threads(finish, "carafe-after", finishers)
    return _overlapped(iter(items), loading, preparing, run, finishing, depth)


def _overlapped(
    items: Iterator[_Item],
    loading: _Threads[_Item, _Loaded],
    preparing: _Threads[_Ticket[_Loaded], _Prepared],
    run: Callable[[_Prepared], _Ran],
    finishing: _Threads[_Ran, _Result],
    depth: int,
) -> Generator[_Result, None, None]:
    before: deque[_Ticket[_Prepared]] = deque()
    after: deque[_Ticket[_Result]] = deque()
    failure: BaseException | None = None

    def fill() -> None:
        nonlocal failure
        while failure is None and len(before) < depth + loading.count:
            try:
                item = next(items)
            except StopIteration:
                return
            except BaseException as error:
                failure = error  # of an item that comes after all those before the run
                return
            before.append(preparing.give(loading.give(item)))

    def advance() -> None:
        """Run the oldest item; nothing here holds on to it afterwards."""
        prepared = before.popleft().take()
        fill()
        after.append(finishing.give(run(prepared)))

    try:
        try:
            fill()
            while before and not _is_urgent(failure):
                try:
                    advance()
                except BaseException as error:
                    failure = error
                    break
                while after and (len(after) > depth or after[0].is_ready):
                    yield after.popleft().take()
            while after and (after[0].is_ready or not _is_urgent(failure)):
                yield after.popleft().take()
            if failure is not None:
                raise failure
        finally:
            _leave(loading, preparing, finishing)
    except (GeneratorExit, Exception):
        if failure is not None and _is_urgent(failure):
            raise failure from None  # or Ctrl-C would be lost among the results after it
        raise
    finally:
        failure = None  # its traceback holds this frame
        # Once more, should an interrupt have come in between.
        _leave(loading, preparing, finishing)


def _is_urgent(failure: BaseException | None) -> bool:
    """Whoever interrupts wants to leave: only what is finished goes out before."""
    return failure is not None and not isinstance(failure, Exception)


def _leave(*stages: _Threads[Any, Any]) -> None:
    for stage in stages:
        stage.stop()
    for stage in stages:
        stage.join()


class _Dropped(Exception):
    """The result of an item that nobody waits for any more."""


class _Ticket(Generic[_Made]):
    """For one result, which can be taken once."""

    __slots__ = ("_made",)

    def __init__(self) -> None:
        self._made: SimpleQueue[tuple[_Made] | BaseException] = SimpleQueue()

    @property
    def is_ready(self) -> bool:
        return not self._made.empty()

    def put(self, made: tuple[_Made] | BaseException) -> None:
        self._made.put(made)

    def take(self) -> _Made:
        """Waits for it. Raises what the function has raised."""
        made = self._made.get()
        if isinstance(made, BaseException):
            raise made
        return made[0]


class _Threads(Generic[_Given, _Made]):
    """Threads that call a function for one item after the other.

    A signal's handler may raise anywhere in the caller's thread. So that waits in C alone: what is
    written in Python (pools, futures, conditions, joining a thread) may be left locked, or lose
    track of a thread.
    """

    def __init__(self, function: Callable[[_Given], _Made], name: str, count: int = 1) -> None:
        self.count = count
        self._function = function
        self._given: SimpleQueue[tuple[_Given, _Ticket[_Made]] | None] = SimpleQueue()
        # A stream that is left without being closed does not keep the program from its end.
        self._threads = [
            threading.Thread(target=self._work, name=name, daemon=True) for _ in range(count)
        ]
        self._started = 0
        self._is_stopped = False
        self._ended: list[None] = []  # by each thread one entry
        self._end: SimpleQueue[None] = SimpleQueue()

    def give(self, item: _Given) -> _Ticket[_Made]:
        """Queue an item; one more thread is started for each of the first ones."""
        if self._started < self.count:
            thread = self._threads[self._started]
            self._started += 1
            # By a thread, which no signal interrupts: `start` keeps books.
            _thread.start_new_thread(thread.start, ())
        ticket: _Ticket[_Made] = _Ticket()
        self._given.put((item, ticket))
        return ticket

    def stop(self) -> None:
        """Begin no other item; whoever waits for one goes on."""
        self._is_stopped = True
        for _ in range(self.count):
            self._given.put(None)

    def join(self) -> None:
        """Wait for the threads, through interrupts; at the end of the program they are gone."""
        late: BaseException | None = None
        while len(self._ended) < self._started and not sys.is_finalizing():
            try:
                self._end.get(timeout=_LOOK)
            except Empty:
                pass
            except BaseException as error:
                late = error
        if len(self._ended) == self._started:
            for thread in self._threads[: self._started]:
                thread.join()  # it has nothing to do any more
        if late is not None:
            raise late

    def _work(self) -> None:
        try:
            while (given := self._given.get()) is not None:
                item, ticket = given
                ticket.put(_Dropped() if self._is_stopped else self._call(item))
                del given, item, ticket
        finally:
            self._ended.append(None)
            self._end.put(None)

    def _call(self, item: _Given) -> tuple[_Made] | BaseException:
        try:
            return (self._function(item),)
        except BaseException as error:
            return error
