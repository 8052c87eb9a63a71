"""Batches of items that are alike, out of a stream in which they are not."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

_Item = TypeVar("_Item")


@dataclass
class _Group(Generic[_Item]):
    first: int
    weight: int = 0
    items: list[_Item] = field(default_factory=list)


class Gatherer(Generic[_Item]):
    """Holds items back until a batch of one key is full.

    Nothing waits for long: of any ``window`` consecutive items the first is in a batch, full or
    not, when the last has been added. So no more than ``window - 1`` items are held between calls,
    and a result that must follow those before it waits for no more either.

    Args:
        size: items of a full batch.
        window: consecutive items that are looked through, counted from the one that waits longest.
        budget: weight of the items held; beyond it the group that waits longest is let go, unless
            it is the only one.

    Raises:
        ValueError: ``size`` is below 1, or ``window`` below ``size``.
    """

    def __init__(self, size: int, window: int, budget: int | None = None) -> None:
        if size < 1:
            raise ValueError(f"size is {size}: a batch holds at least 1 item")
        if window < size:
            raise ValueError(f"window is {window}: it must hold a batch of {size}")
        self._size, self._window, self._budget = size, window, budget
        self._added = 0
        # Ordered by their first items: a group is made with its first and leaves as a whole.
        self._groups: dict[Hashable, _Group[_Item]] = {}

    def __len__(self) -> int:
        """Items held."""
        return sum(len(group.items) for group in self._groups.values())

    def most_groups(self, added: int) -> int:
        """How many groups may be held after so many items."""
        return min(added, self._window - 1) if self._size > 1 else 0

    def add(self, key: Hashable, item: _Item, weight: int = 0) -> list[list[_Item]]:
        """Take one item; returns the batches that are due, each of one key, in order of adding.

        Items of equal keys may share a batch; weight counts against the budget, e.g. in bytes.
        """
        group = self._groups.setdefault(key, _Group(self._added))
        group.items.append(item)
        group.weight += weight
        due = [self._groups.pop(key).items] if len(group.items) == self._size else []
        return self._overdue() + due

    def skip(self) -> list[list[_Item]]:
        """One item of the stream is left out; returns what is due, as :meth:`add`."""
        return self._overdue()

    def flush(self) -> list[_Item]:
        """The group that waits longest, full or not; empty when nothing is held."""
        return self._groups.pop(next(iter(self._groups))).items if self._groups else []

    def _overdue(self) -> list[list[_Item]]:
        self._added += 1
        due = []
        while self._groups and self._must_go(next(iter(self._groups.values()))):
            due.append(self.flush())
        return due

    def _must_go(self, oldest: _Group[_Item]) -> bool:
        if self._added - oldest.first >= self._window:
            return True
        if self._budget is None or len(self._groups) == 1:
            return False
        return sum(group.weight for group in self._groups.values()) > self._budget


def in_order(results: Iterable[tuple[int, _Item]]) -> Iterator[_Item]:
    """Of (number, result) in any order: results 0, 1, 2, ..., each once all before it are there."""
    waiting: dict[int, _Item] = {}
    due = 0
    for number, result in results:
        waiting[number] = result
        while due in waiting:
            yield waiting.pop(due)
            due += 1
