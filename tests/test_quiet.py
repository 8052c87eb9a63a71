"""Threads that silence warnings leave the filters of the process as they were."""

from __future__ import annotations

import threading
import warnings

import pytest

from carafe_deploy.quiet import without_warnings


def test_threads_that_overlap_leave_the_filters_as_they_were() -> None:
    before = list(warnings.filters)
    first_is_in, second_is_in, first_is_out = (threading.Event() for _ in range(3))

    def first() -> None:
        with without_warnings():
            first_is_in.set()
            second_is_in.wait(0.2)  # in vain: the second waits for the first to leave
        first_is_out.set()

    def second() -> None:
        first_is_in.wait(5)
        with without_warnings():
            second_is_in.set()
            first_is_out.wait(5)

    threads = [threading.Thread(target=target) for target in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert second_is_in.is_set()
    assert list(warnings.filters) == before


def test_warnings_are_ignored_inside_only() -> None:
    with without_warnings(), without_warnings():
        warnings.warn("inside", UserWarning, stacklevel=1)
    with pytest.warns(UserWarning, match="outside"):
        warnings.warn("outside", UserWarning, stacklevel=1)
