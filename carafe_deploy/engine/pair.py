"""An engine and its sidecar are two files and one artefact: a reader never sees two that differ.

One file for both would be simpler, but TensorRT refuses an engine with anything behind it ("Size
specified in header does not match archive size"), and other programs open engines, too. So the
sidecar names its engine by SHA-256. While one engine takes the place of another, the sidecar holds
the records of both, and a reader takes that of the engine it has read: it is right whichever file
came first, also after a crash between the two.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from carafe_deploy import termination
from carafe_deploy.engine.sidecar import Sidecar, join_records, read_records, sidecar_path
from carafe_deploy.errors import ArtefactError
from carafe_deploy.files import atomic_path, atomic_write_text

#: What a file system without locks answers.
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)

#: Seconds until a lock that another has is asked for again.
_WAIT = 0.01


@contextmanager
def written_pair(path: str | os.PathLike[str]) -> Iterator[Callable[[bytes, Sidecar], None]]:
    """Yield a function that takes an engine and its sidecar; both are in place afterwards.

    Whatever is raised in the block leaves the files that were there as they were.

    Raises:
        CarafeDeployError: one of them cannot be written.
    """
    path = Path(path)
    records: list[Sidecar] = []
    with ExitStack() as held:
        with atomic_path(path) as file:

            def put(plan: bytes, sidecar: Sidecar) -> None:
                file.write_bytes(plan)
                held.enter_context(_turn(path))
                held.enter_context(termination.LOCK)
                records.append(sidecar)
                if path.exists():
                    records.extend(_earlier(path))
                atomic_write_text(sidecar_path(path), join_records(records))

            yield put
        if len(records) > 1:
            atomic_write_text(sidecar_path(path), join_records(records[:1]))


def _earlier(path: Path) -> tuple[Sidecar, ...]:
    try:
        return read_records(path)
    except ArtefactError:
        return ()  # no reader of the engine that is there would understand it


@contextmanager
def _turn(path: Path) -> Iterator[None]:
    """Builds of one name, in whatever process, write their pairs one after the other.

    A file system without locks has no such order.
    """
    lock = path.with_name(f".{path.name}.lock")
    while (file := _locked(lock)) is None:
        time.sleep(_WAIT)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        termination.unfinished.discard(str(lock))
        os.close(file)


def _locked(lock: Path) -> int | None:
    """The file, open and locked; None while another has it, who removes it in the end."""
    with termination.LOCK:
        file = os.open(lock, os.O_CREAT | os.O_RDWR, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(file)
                if isinstance(error, BlockingIOError):
                    return None
                raise
        if _identity(lock) != _identity(file):
            os.close(file)
            return None
        termination.unfinished.add(str(lock))
        return file


def read_pair(path: Path) -> tuple[Sidecar, bytes]:
    """An engine and the record of it.

    Raises:
        ArtefactError: the engine or its sidecar is missing or damaged, or they do not belong
            together.
    """
    while True:
        before = _identity(path), _identity(sidecar_path(path))
        try:
            plan = path.read_bytes()
        except FileNotFoundError as error:
            raise ArtefactError(
                f"{path} does not exist: build it with `carafe-deploy build`"
            ) from error
        records = read_records(path)
        digest = hashlib.sha256(plan).hexdigest()
        for record in records:
            if (record.bytes, record.sha256) == (len(plan), digest):
                return record, plan
        if before == (_identity(path), _identity(sidecar_path(path))):
            raise _mismatch(path, plan, records[0])
        # Somebody has built it again meanwhile.


def _mismatch(path: Path, plan: bytes, sidecar: Sidecar) -> ArtefactError:
    if len(plan) != sidecar.bytes:
        return ArtefactError(
            f"{path} has {len(plan)} bytes, its sidecar says {sidecar.bytes}: it is truncated or "
            "of another build. Copy both files again, or build it again"
        )
    return ArtefactError(
        f"{path} has another SHA-256 than its sidecar says: it is damaged or of another build. "
        "Copy both files again, or build it again"
    )


def _identity(file: Path | int) -> tuple[int, ...] | None:
    """Of what has that name now; it changes when the file is replaced or written to."""
    try:
        found = os.stat(file)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
