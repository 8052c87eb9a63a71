"""Items of one key in a batch, nothing held for long, and results in order again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carafe_deploy.gather import Gatherer, in_order


def gathered(text: str, size: int, window: int, budget: int | None = None) -> list[str]:
    """Batches of a stream of letters, numbered where they stand; "." is left out.

    Upper case weighs 10, lower case 1.
    """
    gatherer: Gatherer[str] = Gatherer(size, window, budget)
    batches: list[list[str]] = []
    for number, letter in enumerate(text):
        if letter == ".":
            batches += gatherer.skip()
        else:
            batches += gatherer.add(letter, f"{letter}{number}", 10 if letter.isupper() else 1)
    while batch := gatherer.flush():
        batches.append(batch)
    assert len(gatherer) == 0
    return [" ".join(batch) for batch in batches]


@pytest.mark.parametrize(
    ("text", "size", "window", "batches"),
    [
        ("", 2, 8, []),
        ("abc", 1, 1, ["a0", "b1", "c2"]),
        ("aaaaa", 2, 2, ["a0 a1", "a2 a3", "a4"]),
        ("ababab", 3, 9, ["a0 a2 a4", "b1 b3 b5"]),
        # A group that starts again counts from there.
        ("aabaab", 2, 9, ["a0 a1", "a3 a4", "b2 b5"]),
        # The odd one waits for as many as the window holds, itself included.
        ("xaaaaaa", 2, 4, ["a1 a2", "x0", "a3 a4", "a5 a6"]),
        ("xyaax", 2, 4, ["x0", "a2 a3", "y1", "x4"]),
        # What is overdue goes before what is full: it is older.
        ("xabbb", 3, 5, ["x0", "b2 b3 b4", "a1"]),
        # What is left out passes the time.
        ("x...a", 2, 4, ["x0", "a4"]),
        ("x..xa", 2, 4, ["x0 x3", "a4"]),
        # At the end those that wait longest come first.
        ("abcb", 3, 9, ["a0", "b1 b3", "c2"]),
    ],
)
def test_batches(text: str, size: int, window: int, batches: list[str]) -> None:
    assert gathered(text, size, window) == batches


@pytest.mark.parametrize(
    ("text", "budget", "batches"),
    [
        ("AAAB", 30, ["A0 A1 A2", "B3"]),  # 30 are not beyond 30
        ("AAAB", 39, ["A0 A1 A2", "B3"]),
        ("aBBBa", 21, ["a0", "B1 B2 B3", "a4"]),
        # One group alone is a batch in the making, whatever it weighs.
        ("AAAAAAAA", 5, ["A0 A1 A2 A3", "A4 A5 A6 A7"]),
        ("ABAB", 5, ["A0", "B1", "A2", "B3"]),
    ],
)
def test_a_budget(text: str, budget: int, batches: list[str]) -> None:
    assert gathered(text, 4, 99, budget) == batches


@given(
    st.text("ABc.", max_size=60),
    st.integers(1, 5),
    st.integers(0, 12),
    st.none() | st.integers(0, 40),
)
def test_every_item_once_in_a_batch_of_its_kind(
    text: str, size: int, more: int, budget: int | None
) -> None:
    window = size + more
    gatherer: Gatherer[int] = Gatherer(size, window, budget)
    out: list[int] = []

    def check(batch: list[int]) -> None:
        assert 1 <= len(batch) <= size
        assert len({text[number] for number in batch}) == 1
        assert batch == sorted(batch)
        out.extend(batch)

    for number, letter in enumerate(text):
        due = gatherer.skip() if letter == "." else gatherer.add(letter, number, 10)
        for batch in due:
            check(batch)
        waiting = [n for n in range(number + 1) if text[n] != "." and n not in out]
        assert len(gatherer) == len(waiting)
        assert all(number - n + 1 < window for n in waiting)
        kinds = {text[n] for n in waiting}
        assert len(kinds) <= gatherer.most_groups(number + 1)
        assert budget is None or len(kinds) <= 1 or 10 * len(waiting) <= budget
    while batch := gatherer.flush():
        check(batch)
    assert sorted(out) == [number for number, letter in enumerate(text) if letter != "."]


@pytest.mark.parametrize(
    ("size", "window", "message"),
    [
        (0, 4, "size is 0: a batch holds at least 1 item"),
        (4, 3, "window is 3: it must hold a batch of 4"),
    ],
)
def test_impossible_sizes(size: int, window: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Gatherer(size, window)


@given(st.permutations(range(8)))
def test_results_in_order_as_soon_as_can_be(numbers: list[int]) -> None:
    given_so_far: list[int] = []

    def note():
        for number in numbers:
            given_so_far.append(number)
            yield number, f"result {number}"

    for due, result in enumerate(in_order(note())):
        assert result == f"result {due}"
        # Not before all earlier ones are there, and no later.
        assert set(range(due + 1)) <= set(given_so_far)
        assert not set(range(due + 1)) <= set(given_so_far[:-1]) or given_so_far[-1] != due
    assert due == 7
