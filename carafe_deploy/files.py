"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import hashlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from carafe_deploy import termination
from carafe_deploy.errors import CarafeDeployError


@contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``target``; rename it onto ``target`` on success.

    On any exception, and when a signal ends the program, the temporary file is removed and
    ``target`` is left as it was. The temporary name keeps the suffix of ``target``, which some
    writers look at.

    Raises:
        CarafeDeployError: the folder of ``target`` cannot be made or written.
    """
    target = Path(target)
    try:
        if target.is_dir():
            raise IsADirectoryError("it is a folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        # Not tempfile's: its files are for their owner only, and the umask, which says who else may
        # read them, can be read only by setting it for all threads.
        temporary = target.with_name(f".{target.stem}.{secrets.token_hex(4)}.tmp{target.suffix}")
        with termination.LOCK:
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            termination.unfinished.add(str(temporary))
    except OSError as error:
        raise CarafeDeployError(
            f"cannot write {target}: {error.strerror or error}: choose another output path"
        ) from error
    try:
        yield temporary
        with termination.LOCK:
            os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
        termination.unfinished.discard(str(temporary))


@contextmanager
def temporary_folder(parent: str | os.PathLike[str] | None = None) -> Iterator[Path]:
    """A folder that is removed afterwards, and when a signal ends the program.

    Args:
        parent: where it is made; by default where the system has temporary files.
    """
    with termination.LOCK:
        folder = tempfile.TemporaryDirectory(prefix="carafe-deploy.", dir=parent)
        termination.unfinished.add(folder.name)
    try:
        with folder:
            yield Path(folder.name)
    finally:
        termination.unfinished.discard(folder.name)


def atomic_write_text(target: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` as UTF-8 through :func:`atomic_path`."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Hex SHA-256 of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
