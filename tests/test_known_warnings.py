"""Threads that silence warnings leave the filters of the process as they were."""

from __future__ import annotations

import ast
import threading
import warnings

import pytest

from carafe_deploy.known_warnings import without_known_warnings


def test_threads_that_overlap_leave_the_filters_as_they_were() -> None:
    before = list(warnings.filters)
    first_is_in, second_is_in, first_is_out = (threading.Event() for _ in range(3))

    def first() -> None:
        with without_known_warnings():
            first_is_in.set()
            second_is_in.wait(0.2)  # in vain: the second waits for the first to leave
        first_is_out.set()

    def second() -> None:
        first_is_in.wait(5)
        with without_known_warnings():
            second_is_in.set()
            first_is_out.wait(5)

    threads = [threading.Thread(target=target) for target in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert second_is_in.is_set()
    assert list(warnings.filters) == before


def test_known_warnings_are_dropped_inside_only() -> None:
    known = "TypedStorage is deprecated"
    with without_known_warnings(), without_known_warnings():
        warnings.warn(known, UserWarning, stacklevel=1)
    with pytest.warns(UserWarning, match="another"), without_known_warnings():
        warnings.warn("another", UserWarning, stacklevel=1)
    with pytest.warns(UserWarning, match=known):
        warnings.warn(known, UserWarning, stacklevel=1)


def test_invalid_escapes_of_dumped_configs_are_known() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with without_known_warnings():
            ast.parse(r"path = 'C:\data\val'")
