"""Check built libraries as they would be shipped. Usage: python release_check.py BUILD [OUT.json]

Machine code and PTX for every architecture of a release, no dependency beyond the C library (for
torch's operators torch as well), no exported symbol beyond the documented ones, and no access of a
kernel that need not be aligned, on any architecture (ptx_alignment.py; the build keeps its PTX by
CARAFE_KEEP_PTX). Needs binutils and cuobjdump (CUDA toolkit, or PyPI: nvidia-cuda-cuobjdump).
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import ptx_alignment

EXPORTS = {
    "libcarafe_kernels.so": re.compile(r"carafe_\w+"),
    "libcarafe_tensorrt.so": re.compile(r"getCreators|setLoggerFinder"),
    "libcarafe_onnxruntime.so": re.compile(r"RegisterCustomOps"),
    "libcarafe_torch.so": re.compile(r"carafe_torch_\w+"),
}
#: They call the kernels of the first; cuobjdump fails on a library without device code.
WITHOUT_KERNELS = ("libcarafe_onnxruntime.so", "libcarafe_torch.so")
#: Torch is there where its operators are, and its exceptions go through the C++ runtime of both.
ALSO_ALLOWED = {"libcarafe_torch.so": ("libtorch_cpu.so", "libstdc++.so.6")}
#: Compute capabilities, without the point.
MACHINE_CODE = [75, 80, 86, 87, 89, 90, 100, 120]
PTX = [90, 120]
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


def check(folder: Path) -> tuple[dict[str, object], list[str]]:
    cuobjdump, problems, report = find_cuobjdump(), [], {}
    for name, pattern in EXPORTS.items():
        library = folder / name
        if not library.is_file():
            problems.append(f"{library} is missing")
            continue
        symbols = [
            line.split()[-1] for line in run("nm", "-D", "--defined-only", library).splitlines()
        ]
        has_kernels = name not in WITHOUT_KERNELS
        needed = re.findall(r"\(NEEDED\).*\[(.+)\]", run("readelf", "-d", library))
        found = {
            "bytes": library.stat().st_size,
            "machine_code": architectures(run(cuobjdump, "--list-elf", library))
            if has_kernels
            else [],
            "ptx": architectures(run(cuobjdump, "--list-ptx", library)) if has_kernels else [],
            "needed": needed,
            "exports": symbols,
        }
        report[name] = found

        def expect(what: str, seen: object, expected: object, name: str = name) -> None:
            if seen != expected:
                problems.append(f"{name}: {what} is {seen}, expected {expected}")

        if has_kernels:
            expect("machine code", found["machine_code"], MACHINE_CODE)
            expect("PTX", found["ptx"], PTX)
        known = {*EXPORTS, *ALSO_ALLOWED.get(name, ())}
        foreign = [lib for lib in needed if lib not in known and not ALLOWED.fullmatch(lib)]
        expect("foreign dependency", foreign, [])
        expect("stray export", [s for s in symbols if not pattern.fullmatch(s)], [])
        if name == "libcarafe_tensorrt.so":
            expect("entry points", sorted(symbols), ["getCreators", "setLoggerFinder"])
    return report, problems


def check_alignment(build: Path) -> tuple[list[str], list[str]]:
    """A line a kernel source and architecture, and what is wrong."""
    found = ptx_alignment.of_build(build)
    lines, problems = ptx_alignment.report(found.values())
    architectures = sorted({architecture for _, architecture in found})
    if architectures != MACHINE_CODE:
        problems.append(f"PTX was kept for {architectures}, expected {MACHINE_CODE}")
    return lines, problems


def main(arguments: Iterable[str]) -> int:
    build, *output = arguments
    report, problems = check(Path(build) / "lib")
    lines, misaligned = check_alignment(Path(build))
    problems += misaligned
    for name, found in report.items():
        print(f"{name}: {found['bytes'] / 1e6:.1f} MB")
        for key in ("machine_code", "ptx", "needed"):
            print(f"  {key}: {' '.join(map(str, found[key]))}")
        print(f"  {len(found['exports'])} exported: {' '.join(found['exports'])}")
    print("\n".join(lines))
    for path in output:
        Path(path).write_text(json.dumps(report, indent=2) + "\n")
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return bool(problems)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1:]))
