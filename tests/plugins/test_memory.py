"""The CPU twins where memory or threads run out: an error code, and the process goes on.

Everything happens in processes of their own, whose address space is limited.
"""

from __future__ import annotations

import re

import pytest

from tests.plugins.built import built, run_python

# Argument 1: the library, 2: an operator, 3: MiB that the call may still take, 4: threads.
CALL = """
import ctypes, resource, sys
import numpy as np

from carafe_deploy.kernels import *

library = KernelLibrary(sys.argv[1])
room, threads = int(sys.argv[3]) << 20, int(sys.argv[4])
HARD = resource.getrlimit(resource.RLIMIT_AS)[1]

# Without an arena of its own a thread takes its memory from the same heap as all others.
ctypes.CDLL(None).mallopt(-8, 1)
malloc = ctypes.CDLL(None).malloc
malloc.argtypes, malloc.restype = [ctypes.c_size_t], ctypes.c_void_p


def limit():
    pages = int(open("/proc/self/statm").read().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + room, HARD))
    if room == 0:  # what the heap had free is taken as well
        for size in (1 << 20, 1 << 15):
            while malloc(size):
                pass


def address(array):
    return array.ctypes.data


def carafe():
    features = np.ones((1, 64, 16, 512), np.float32)
    masks = np.full((1, 25, 32, 1024), 0.04, np.float32)
    out = np.empty((1, 64, 32, 1024), np.float32)
    params = CarafeParams(
        dtype=DType.FLOAT32, layout=Layout.NCHW, source=MaskSource.NORMALIZED,
        batch=1, channels=64, height=16, width=512, kernel_size=5, groups=1, scale=2,
        feature_pitch=64, mask_pitch=25, out_pitch=64,
    )
    yield
    library.carafe(params, address(features), address(masks), address(out), threads=threads)
    yield lambda: np.allclose(out[0, :, 8:24, 8:1016], 1)


def roi_align():
    rois = np.tile(np.array([8, 8, 24, 24], np.float32), (1, 60000, 1))
    features = np.ones((1, 32, 32, 32), np.float32)
    out = np.empty((1, 60000, 32, 2, 2), np.float32)
    params = RoiAlignParams(
        dtype=DType.FLOAT32, layout=Layout.NCHW, batch=1, rois=60000, channels=32, levels=1,
        output_size=2, sampling_ratio=2, finest_scale=56, heights=(32,), widths=(32,),
        strides=(1,), feature_pitch=32, out_pitch=32,
    )
    yield
    library.multilevel_roi_align(
        params, address(rois), [address(features)], address(out), threads=threads
    )
    yield lambda: np.allclose(out, 1)


def nms():
    corners = np.arange(1 << 20, dtype=np.float32) * 2
    boxes = np.stack([corners, corners, corners + 1, corners + 1], -1).reshape(1, 8, -1, 4).copy()
    scores = np.ones((1, 8, 1 << 17), np.float32)
    counts, indices = np.empty((1, 1), np.int32), np.empty((1, 100), np.int64)
    params = NmsParams(
        batch=1, labels=8, candidates=1 << 17, max_output=100, iou_threshold=0.5,
        score_threshold=0.0,
    )
    yield
    library.batched_nms(
        params, address(boxes), address(scores), address(counts), address(indices),
        threads=threads,
    )
    yield lambda: counts[0, 0] == 100 and (indices[0] == np.arange(100)).all()


call = {"carafe": carafe, "roi_align": roi_align, "nms": nms}[sys.argv[2]]()
next(call)
limit()
try:
    correct = next(call)
except ValueError as error:
    print(error)
else:
    resource.setrlimit(resource.RLIMIT_AS, (HARD, HARD))
    print("right" if correct() else "wrong")
"""

OUT_OF_MEMORY = "out of memory: use fewer threads or smaller inputs"


def outcome(operator: str, room: int, threads: int) -> str:
    """What the call came to with ``room`` MiB; the process has ended by itself."""
    library = built("libcarafe_kernels.so")
    done = run_python(CALL, library, operator, room, threads)
    assert done.returncode == 0, done.stderr
    assert not re.search("terminate|abort", done.stderr)
    return done.stdout.strip()


@pytest.mark.parametrize("operator", ["carafe", "roi_align", "nms"])
def test_enough_of_both(operator: str) -> None:
    assert outcome(operator, 1024, 4) == "right"


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("operator", ["carafe", "roi_align", "nms"])
def test_no_memory_for_the_work(operator: str, threads: int) -> None:
    assert outcome(operator, 0, threads) == OUT_OF_MEMORY


@pytest.mark.parametrize("room", [7, 10, 20, 34, 48])
@pytest.mark.parametrize("operator", ["carafe", "roi_align", "nms"])
def test_room_for_some_threads(operator: str, room: int) -> None:
    """A stack takes 8 MiB; what threads are lacking, the caller does itself."""
    assert outcome(operator, room, 4) in ("right", OUT_OF_MEMORY)
