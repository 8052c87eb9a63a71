"""From sources of images to batches that are ready to run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from carafe_deploy.brief import OneLine
from carafe_deploy.errors import ImageError
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
class Unreadable(OneLine, Generic[_Source]):
    """A source, its place in the stream, and why there is no image of it."""

    number: int
    source: _Source
    error: ImageError


@dataclass(frozen=True, repr=False)
class Prepared(OneLine, Generic[_Source]):
    """One batch before its run; or a source of which there is no image."""

    entries: list[Entry[_Source]]
    batch: Batch | None = None
    unreadable: Unreadable[_Source] | None = None


@dataclass(frozen=True, repr=False)
class Step(OneLine, Generic[_Source]):
    """A source and its place in the stream; the last ones, without, let go what still waits."""

    number: int = -1
    source: tuple[_Source] | None = None
    failure: Exception | None = None


@dataclass(frozen=True, repr=False)
class Loaded(OneLine, Generic[_Source]):
    """What became of a step: an image and the size that it is padded to, or neither."""

    step: Step[_Source]
    image: Image | None = None
    size: tuple[int, int] | None = None
    failure: Exception | None = None


class Preparation(Generic[_Source]):
    """Sources in, batches out: iterated over in one thread, each step loaded in any, and then
    prepared in another, in order.

    A source that cannot be loaded ends it, after the images before; or, where ``goes_on``, comes
    out as unreadable.
    """

    def __init__(
        self,
        sources: Iterable[_Source],
        load: Callable[[_Source], Image],
        preprocess: Preprocessor,
        gatherer: Gatherer[Entry[_Source]],
        *,
        mixed_sizes: bool,
        goes_on: bool,
    ) -> None:
        self._sources = sources
        self._load = load
        self._preprocess = preprocess
        self._gatherer = gatherer
        self._mixed_sizes = mixed_sizes
        self._goes_on = goes_on
        self._failures: list[Exception] = []

    def __iter__(self) -> Iterator[Step[_Source]]:
        failure, count = None, 0
        try:
            for count, source in enumerate(self._sources, 1):
                yield Step(count - 1, (source,))
                if self._failures:
                    break
        except Exception as error:
            failure = error
        # What still waits, batch by batch, so that no more than one is prepared at a time.
        for _ in range(self._gatherer.most_groups(count)):
            yield Step()
        yield Step(failure=failure)

    def load(self, step: Step[_Source]) -> Loaded[_Source]:
        """Read the image of a step; raises nothing that is to come in its order."""
        if step.source is None:
            return Loaded(step)
        try:
            image = self._load(*step.source)
            return Loaded(step, image, self._preprocess.padded_size(image))
        except Exception as error:
            return Loaded(step, failure=error)

    def prepare(self, loaded: Loaded[_Source]) -> list[Prepared[_Source]]:
        """What is ready to run now that one more image is there."""
        step = loaded.step
        if step.source is None:
            entries = self._gatherer.flush()
            if not entries and (failure := self._failure(step)) is not None:
                raise failure
            return [self._prepared(entries)] if entries else []
        if self._failures:
            return []
        if loaded.image is None:
            return self._without(step.number, *step.source, loaded.failure)
        entry = Entry(step.number, *step.source, loaded.image)
        key = None if self._mixed_sizes else loaded.size
        return list(map(self._prepared, self._gatherer.add(key, entry, entry.image.nbytes)))

    def _failure(self, step: Step[_Source]) -> Exception | None:
        return self._failures.pop() if self._failures else step.failure

    def _without(
        self, number: int, source: _Source, failure: Exception | None
    ) -> list[Prepared[_Source]]:
        assert failure is not None
        if not (self._goes_on and isinstance(failure, ImageError)):
            self._failures.append(failure)
            return []
        unreadable = Prepared([], unreadable=Unreadable(number, source, failure))
        return [unreadable, *map(self._prepared, self._gatherer.skip())]

    def _prepared(self, entries: list[Entry[_Source]]) -> Prepared[_Source]:
        return Prepared(entries, self._preprocess([entry.image for entry in entries]))
