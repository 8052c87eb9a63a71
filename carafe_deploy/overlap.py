"""Three stages of a stream of items at the same time, in threads, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_Item = TypeVar("_Item")
_Prepared = TypeVar("_Prepared")
_Ran = TypeVar("_Ran")
_Result = TypeVar("_Result")

#: Items that wait before the run, and as many after it. One would do if all items took the same
#: time; the second evens out.
DEPTH = 2


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
    and of ``finish`` that may be at work; the other items are dropped, and no thread is left.

    Yields:
        Results in the order of the items.

    Raises:
        ValueError: ``depth`` is below 1.
        Exception: whatever a stage or the iteration raises, once the results of all earlier items
            are out.
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
    preparer, finisher = (ThreadPoolExecutor(1, f"carafe-{name}") for name in ("before", "after"))
    before: deque[Future[_Prepared]] = deque()
    after: deque[Future[_Result]] = deque()
    failure: Exception | None = None

    def fill() -> None:
        nonlocal failure
        while failure is None and len(before) < depth:
            try:
                item = next(items)
            except StopIteration:
                return
            except Exception as error:
                failure = error  # of an item that comes after all those before the run
                return
            before.append(preparer.submit(prepare, item))

    def advance() -> None:
        """Run the oldest item; nothing here holds on to it afterwards."""
        prepared = before.popleft().result()
        fill()
        after.append(finisher.submit(finish, run(prepared)))

    try:
        fill()
        while before:
            try:
                advance()
            except Exception as error:
                failure = error
                break
            while after and (len(after) > depth or after[0].done()):
                yield after.popleft().result()
        while after:
            yield after.popleft().result()
        if failure is not None:
            raise failure
    finally:
        failure = None  # its traceback holds this frame
        for pool in (preparer, finisher):
            pool.shutdown(wait=False, cancel_futures=True)
        for pool in (preparer, finisher):
            pool.shutdown(wait=True)
