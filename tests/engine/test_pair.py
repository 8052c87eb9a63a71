"""An engine and its sidecar belong together, whenever they are read."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import hashlib
import os
import threading
from pathlib import Path

import pytest

from carafe_deploy.engine import pair
from carafe_deploy.engine.load import read_engine
from carafe_deploy.engine.pair import read_pair, written_pair
from carafe_deploy.engine.sidecar import (
    Sidecar,
    join_records,
    read_records,
    read_sidecar,
    sidecar_path,
)
from carafe_deploy.errors import ArtefactError
from tests.engine.test_sidecar import SIDECAR

PLANS = [f"plan {number}".encode() for number in range(3)]


def record(plan: bytes) -> Sidecar:
    return dataclasses.replace(SIDECAR, bytes=len(plan), sha256=hashlib.sha256(plan).hexdigest())


def write(path: Path, plan: bytes) -> None:
    with written_pair(path) as put:
        put(plan, record(plan))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.engine"


def names(path: Path) -> list[str]:
    return sorted(one.name for one in path.parent.iterdir())


def test_one_after_the_other(path: Path) -> None:
    for plan in PLANS:
        write(path, plan)
        assert read_engine(path) == (record(plan), plan)
        assert read_sidecar(path) == record(plan)
        assert names(path) == ["x.engine", "x.engine.json"]
        assert sidecar_path(path).read_text() == record(plan).to_json()  # as it always was


@pytest.mark.parametrize("there", [0, 1])
def test_either_order_is_right_and_so_is_a_crash_between(path: Path, there: int) -> None:
    """While one engine replaces another the sidecar holds both records."""
    path.write_bytes(PLANS[there])
    sidecar_path(path).write_text(join_records([record(PLANS[1]), record(PLANS[0])]))
    assert read_pair(path) == (record(PLANS[there]), PLANS[there])
    assert read_sidecar(path) == record(PLANS[there])
    write(path, PLANS[2])
    assert sidecar_path(path).read_text() == record(PLANS[2]).to_json()


def test_a_crash_before_the_engine_is_replaced(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, PLANS[0])

    def crash(source: object, target: Path) -> None:
        if target == path:
            raise OSError(errno.EIO, "the disk is gone", str(target))
        os.rename(source, target)

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="disk is gone"):
        write(path, PLANS[1])
    monkeypatch.undo()
    assert read_pair(path) == (record(PLANS[0]), PLANS[0])
    write(path, PLANS[1])
    assert read_pair(path) == (record(PLANS[1]), PLANS[1])
    assert names(path) == ["x.engine", "x.engine.json"]


def test_a_reader_that_is_overtaken_reads_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(path, PLANS[0])

    def overtaken(engine: Path) -> tuple[Sidecar, ...]:
        monkeypatch.undo()
        for plan in PLANS[1:]:
            write(path, plan)
        return read_records(engine)

    monkeypatch.setattr(pair, "read_records", overtaken)
    assert read_pair(path) == (record(PLANS[2]), PLANS[2])


def test_an_engine_of_another_build_is_refused(path: Path) -> None:
    write(path, PLANS[0])
    path.write_bytes(PLANS[1])
    with pytest.raises(ArtefactError, match=r"x\.engine has another SHA-256 than its sidecar says"):
        read_pair(path)
    path.write_bytes(b"")
    with pytest.raises(ArtefactError, match=r"x\.engine has 0 bytes, its sidecar says 6"):
        read_pair(path)


def test_a_damaged_sidecar_is_replaced(path: Path) -> None:
    path.write_bytes(PLANS[0])
    sidecar_path(path).write_text("{}")
    write(path, PLANS[1])
    assert read_pair(path) == (record(PLANS[1]), PLANS[1])


def test_builds_of_one_name_take_turns(path: Path) -> None:
    with pair._turn(path):
        waiting = threading.Thread(target=write, args=(path, PLANS[0]))
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()
        assert not path.exists()
    waiting.join(30)
    assert read_pair(path) == (record(PLANS[0]), PLANS[0])
    assert names(path) == ["x.engine", "x.engine.json"]


def test_a_file_system_without_locks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(file: int, operation: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(fcntl, "flock", flock)
    write(path, PLANS[0])
    assert names(path) == ["x.engine", "x.engine.json"]
