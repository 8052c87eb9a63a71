"""Check built libraries as they would be shipped. Usage: python release_check.py FOLDER [OUT.json]

Machine code and PTX for every architecture that was asked for, no dependency beyond the C library,
and no exported symbol beyond the documented ones. Needs binutils and cuobjdump (CUDA toolkit, or
PyPI: nvidia-cuda-cuobjdump).
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

EXPORTS = {
    "libcarafe_kernels.so": re.compile(r"carafe_\w+"),
    "libcarafe_tensorrt.so": re.compile(r"getCreators|setLoggerFinder"),
}
ALLOWED = re.compile(r"lib(c|m|dl|rt|pthread|gcc_s)\.so\.\d|ld-linux.*")


def run(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def find_cuobjdump() -> str:
    found = shutil.which("cuobjdump")
    if found is None:
        spec = importlib.util.find_spec("nvidia")
        for folder in [] if spec is None else spec.submodule_search_locations or []:
            found = next(map(str, Path(folder).glob("*/bin/cuobjdump")), found)
    if found is None:
        sys.exit(
            "cuobjdump is missing: install a CUDA toolkit or pip install nvidia-cuda-cuobjdump"
        )
    return found


def architectures(listing: str) -> list[int]:
    return sorted({int(number) for number in re.findall(r"\bsm_(\d+)", listing)})


def wanted(library: Path) -> tuple[list[int], list[int]]:
    """Architectures of machine code and of PTX as configured: 90 means both, 90-real code alone."""
    kernels = ctypes.CDLL(str(library))
    kernels.carafe_build_info.restype = ctypes.c_char_p
    configured = json.loads(kernels.carafe_build_info())["architectures"].split()
    numbers = [(int(re.match(r"\d+", item)[0]), item) for item in configured]
    return (
        sorted(number for number, item in numbers if not item.endswith("-virtual")),
        sorted(number for number, item in numbers if not item.endswith("-real")),
    )


def check(folder: Path) -> tuple[dict[str, object], list[str]]:
    cuobjdump, problems, report = find_cuobjdump(), [], {}
    code, ptx = wanted(folder / "libcarafe_kernels.so")
    for name, pattern in EXPORTS.items():
        library = folder / name
        symbols = [
            line.split()[-1] for line in run("nm", "-D", "--defined-only", library).splitlines()
        ]
        needed = re.findall(r"\(NEEDED\).*\[(.+)\]", run("readelf", "-d", library))
        found = {
            "bytes": library.stat().st_size,
            "machine_code": architectures(run(cuobjdump, "--list-elf", library)),
            "ptx": architectures(run(cuobjdump, "--list-ptx", library)),
            "needed": needed,
            "exports": symbols,
        }
        report[name] = found

        def expect(what: str, seen: object, expected: object, name: str = name) -> None:
            if seen != expected:
                problems.append(f"{name}: {what} is {seen}, expected {expected}")

        expect("machine code", found["machine_code"], code)
        expect("PTX", found["ptx"], ptx)
        expect("foreign dependency", [lib for lib in needed if not ALLOWED.fullmatch(lib)], [])
        expect("stray export", [s for s in symbols if not pattern.fullmatch(s)], [])
        if name == "libcarafe_tensorrt.so":
            expect("entry points", sorted(symbols), ["getCreators", "setLoggerFinder"])
    return report, problems


def main(arguments: Iterable[str]) -> int:
    folder, *output = arguments
    report, problems = check(Path(folder))
    for name, found in report.items():
        print(f"{name}: {found['bytes'] / 1e6:.1f} MB")
        for key in ("machine_code", "ptx", "needed"):
            print(f"  {key}: {' '.join(map(str, found[key]))}")
        print(f"  {len(found['exports'])} exported: {' '.join(found['exports'])}")
    for path in output:
        Path(path).write_text(json.dumps(report, indent=2) + "\n")
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return bool(problems)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1:]))
