"""Streams that are left in every way: errors of a stage, of the consumer, of a signal's handler.

Results come in order and without a gap, an error comes after all results before it, and no thread
is left.
"""

from __future__ import annotations

import faulthandler
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator

from carafe_deploy.overlap import overlapped
from tests.fuzz.outcome import Broken, Outcome, repeated

#: Seconds after which a case hangs: its threads are shown, and the process ends.
HANGS = 60.0

#: Where an error comes from.
STAGES = ("items", "load", "prepare", "run", "finish")


class Alarm(BaseException):
    """A signal's handler has raised."""


def attack(seconds: float, seed: int) -> Outcome:
    before = signal.signal(signal.SIGALRM, _alarm)
    try:
        return repeated(seconds, seed, _case)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        faulthandler.cancel_dump_traceback_later()


def _alarm(number: int, frame: object) -> None:
    raise Alarm


def _case(number: int) -> str:
    chance = random.Random(number)
    kind = chance.choice(("all", "error", "interrupt", "close", "consumer", "alarm", "alarm"))
    count, depth = chance.randrange(40), chance.randrange(1, 4)
    at, where = chance.randrange(count + 2), chance.choice(STAGES)
    error = {"error": ValueError, "interrupt": KeyboardInterrupt}.get(kind)
    stages = {name: _stage(chance, error if name == where else None, at) for name in STAGES}
    found: list[int] = []
    faulthandler.dump_traceback_later(HANGS, exit=True)
    left = "all results"
    items = _items(count, stages.pop("items"))
    counts = {name: chance.choice((1, 1, 2, 4)) for name in ("loaders", "finishers")}
    stream = overlapped(items, *stages.values(), depth=depth, **counts)
    try:
        if kind == "alarm":
            signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-5, 0.05))
        for result in stream:
            found.append(result)
            if len(found) == at and kind == "close":
                left = "close"
                break
            if len(found) == at and kind == "consumer":
                raise ZeroDivisionError
    except (ValueError, KeyboardInterrupt, ZeroDivisionError) as caught:
        left = type(caught).__name__
    except Alarm:
        left = "Alarm"
    while kind == "alarm":  # it may come as late as here
        try:
            signal.setitimer(signal.ITIMER_REAL, 0)
            stream.close()
            break
        except Alarm:
            left = "Alarm"
    stream.close()
    _check(found, kind, left, count, at)
    return left


def _check(found: list[int], kind: str, left: str, count: int, at: int) -> None:
    if found != list(range(len(found))):
        raise Broken(f"{kind}: results are {found}")
    if kind == "error" and at < count and (left, len(found)) != ("ValueError", at):
        raise Broken(f"an error at item {at} came as {left} after {len(found)} results")
    if kind == "interrupt" and at < count and (left != "KeyboardInterrupt" or len(found) > at):
        raise Broken(f"an interrupt at item {at} came as {left} after {len(found)} results")
    if left == "all results" and len(found) != count:
        raise Broken(f"{kind}: {len(found)} results of {count}")
    threads = [thread.name for thread in threading.enumerate() if "carafe-" in thread.name]
    if threads:
        raise Broken(f"{kind}: {threads} outlive the stream, left by {left}")


def _items(count: int, stage: Callable[[int], int]) -> Iterator[int]:
    for item in range(count):
        yield stage(item)


def _stage(
    chance: random.Random, error: type[BaseException] | None, at: int
) -> Callable[[int], int]:
    seconds = chance.choice((0.0, 0.0, 0.0005, 0.002))

    def call(item: int) -> int:
        if error is not None and item == at:
            raise error(f"item {item}")
        if seconds:
            time.sleep(seconds)
        return item

    return call
