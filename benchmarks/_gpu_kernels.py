"""Run our CUDA kernels once each on an R-50 detector's shapes, for Nsight Compute to look at.

python benchmarks/_gpu_kernels.py [OPERATOR ...]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from carafe_deploy.bench.implementations import jobs_of
from carafe_deploy.bench.workloads import WORKLOADS


def run(operators: Sequence[str], device: torch.device) -> int:
    """Every workload in float32 and float16 and in all layouts it has; how many calls that were."""
    calls = 0
    for operator in operators:
        for workload in WORKLOADS[operator]:
            inputs = workload.inputs()
            for variant in workload.variants():
                if variant.dtype == "bfloat16":
                    continue  # moves as much as float16
                job = next(iter(jobs_of(workload, inputs, variant, device).values()))
                calls += len(job.by(job.operator)())
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
    return calls


if __name__ == "__main__":
    print(run(sys.argv[1:] or list(WORKLOADS), torch.device("cuda")), "calls")
