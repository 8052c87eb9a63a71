"""From sources of images to batches that are ready to run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from carafe_deploy.brief import OneLine
from carafe_deploy.gather import Gatherer
from carafe_deploy.images import Image
from carafe_deploy.preprocess import Batch, Preprocessor

_Source = TypeVar("_Source")


@dataclass(frozen=True, repr=False)
class Entry(OneLine, Generic[_Source]):
    """A source, its place in the stream, and the image that was loaded from it."""

    number: int
    source: _Source
    image: Image


@dataclass(frozen=True, repr=False)
class Prepared(OneLine, Generic[_Source]):
    """One batch before its run; or a source, by its number, that was left out."""

    entries: list[Entry[_Source]]
    batch: Batch | None = None
    left_out: int | None = None


class Preparation(Generic[_Source]):
    """Sources in, batches out: iterated over in one thread, each step called in another.

    A source that cannot be loaded ends it, after the images before.
    """

    def __init__(
        self,
        sources: Iterable[_Source],
        load: Callable[[_Source], Image | None],
        preprocess: Preprocessor,
        gatherer: Gatherer[Entry[_Source]],
        mixed_sizes: bool,
    ) -> None:
        self._sources = sources
        self._load = load
        self._preprocess = preprocess
        self._gatherer = gatherer
        self._mixed_sizes = mixed_sizes
        self._failures: list[Exception] = []

    def __iter__(self) -> Iterator[Callable[[], list[Prepared[_Source]]]]:
        failure, count = None, 0
        try:
            for count, source in enumerate(self._sources, 1):
                yield partial(self._take, count - 1, source)
                if self._failures:
                    break
        except Exception as error:
            failure = error
        # What still waits, batch by batch, so that no more than one is prepared at a time.
        for _ in range(self._gatherer.most_groups(count)):
            yield self._flush
        yield partial(self._end, failure)

    def _take(self, number: int, source: _Source) -> list[Prepared[_Source]]:
        if self._failures:
            return []
        try:
            image = self._load(source)
            size = None if image is None else self._preprocess.padded_size(image)
        except Exception as error:
            self._failures.append(error)
            return []
        if image is None:
            due = self._gatherer.skip()
            return [Prepared([], left_out=number), *map(self._prepared, due)]
        entry = Entry(number, source, image)
        due = self._gatherer.add(None if self._mixed_sizes else size, entry, image.nbytes)
        return list(map(self._prepared, due))

    def _flush(self) -> list[Prepared[_Source]]:
        entries = self._gatherer.flush()
        return [self._prepared(entries)] if entries else []

    def _end(self, failure: Exception | None) -> list[Prepared[_Source]]:
        if self._failures:
            raise self._failures.pop()
        if failure is not None:
            raise failure
        return []

    def _prepared(self, entries: list[Entry[_Source]]) -> Prepared[_Source]:
        return Prepared(entries, self._preprocess([entry.image for entry in entries]))
