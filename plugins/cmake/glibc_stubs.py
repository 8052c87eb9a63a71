"""Make a folder of libraries to link against, so that the result runs on glibc 2.28 and newer.

A linker binds symbols to the versions of the C library it sees. The zig compiler (PyPI: ziglang)
carries the symbol lists of every glibc release and writes stubs of the wanted one; with that folder
first on the linker's path, any compiler links for it. Usage: python glibc_stubs.py FOLDER
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

GLIBC = "2.28"
MACHINES = ("x86_64", "aarch64")


def make_stubs(folder: Path) -> None:
    """Fill ``folder`` with libc, libm, libpthread, libdl and librt of glibc 2.28."""
    machine = platform.machine()
    if machine not in MACHINES:
        sys.exit(f"glibc stubs: this machine is {machine}, expected {' or '.join(MACHINES)}")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch, "empty.c")
        source.write_text("int carafe_empty;\n")
        subprocess.run(
            [
                *(sys.executable, "-m", "ziglang", "cc"),
                *("-target", f"{machine}-linux-gnu.{GLIBC}", "-shared", "-fno-sanitize=all"),
                *(str(source), "-o", str(Path(scratch, "empty.so"))),
            ],
            check=True,
            env={**os.environ, "ZIG_GLOBAL_CACHE_DIR": scratch},
        )
        [made] = {path.parent for path in Path(scratch).rglob("libc.so.6")}
        for name in ("c", "m", "pthread", "dl", "rt", "ld"):
            [stub] = made.glob(f"lib{name}.so.*")
            shutil.copy(stub, folder / f"lib{name}{'-stub' if name in ('c', 'ld') else ''}.so")
    nonshared = subprocess.run(
        ["gcc", "-print-file-name=libc_nonshared.a"], check=True, capture_output=True, text=True
    ).stdout.strip()
    parts = f"{folder}/libc-stub.so {nonshared} AS_NEEDED ( {folder}/libld-stub.so )"
    (folder / "libc.so").write_text(f"GROUP ( {parts} )\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    make_stubs(Path(sys.argv[1]).resolve())
