"""Memory that PyTorch frees stays with the process."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from carafe_deploy.errors import CarafeDeployError
from carafe_deploy.runners._memory import ENVIRONMENT_VARIABLE, keep_freed_memory

#: Prints what keep_freed_memory() says, and the page faults of a tensor in another's place.
SCRIPT = """
import resource
import torch
from carafe_deploy.runners._memory import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

print(keep_freed_memory())
torch.set_num_threads(1)
torch.ones(16 << 20)
before = faults()
torch.ones(15 << 20)
print(faults() - before)
"""

needs_glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="the setting is one of glibc's malloc"
)


def _run(choice: str) -> tuple[bool, int]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, ENVIRONMENT_VARIABLE: choice, "THP_MEM_ALLOC_ENABLE": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    kept, faults = done.stdout.split()
    return kept == "True", int(faults)


@needs_glibc
def test_a_freed_tensor_is_not_faulted_in_again() -> None:
    pages = (64 << 20) // os.sysconf("SC_PAGE_SIZE")
    kept, faults = _run("auto")
    assert kept
    assert faults < pages // 10


@needs_glibc
def test_off_leaves_malloc_alone() -> None:
    assert not _run("off")[0]


def test_other_values_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "maybe")
    with pytest.raises(CarafeDeployError, match="is 'maybe', expected 'auto' or 'off'"):
        keep_freed_memory()
