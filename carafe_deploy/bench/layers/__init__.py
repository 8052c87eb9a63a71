"""Where the time of one artefact goes, row by row, by the profiler of its own runtime."""

from __future__ import annotations

from collections.abc import Mapping

from carafe_deploy.backends import BACKENDS, load
from carafe_deploy.bench.record import Layer, Layers
from carafe_deploy.errors import BackendUnavailableError, CarafeDeployError
from carafe_deploy.runners.base import Array, Runner

__all__ = ["profile_layers"]


def profile_layers(runner: Runner, inputs: Mapping[str, Array], *, runs: int = 5) -> Layers:
    """Profile an opened artefact.

    Every call of a ``carafe`` operator is one row. What the rows are otherwise, and what their
    total is, depends on the runtime:

    - ONNX Runtime, on a CPU only: a node of the optimised graph; the total is the time spent in
      nodes, without the executor's own between them.
    - PyTorch: a module, without the modules inside it; what the outermost one does itself is the
      row ``(between modules)``. The total is the whole forward pass on a CPU, and the time of all
      its kernels on a GPU. Eager mode only.
    - TorchScript, which has no modules: all calls of a torch operator. The total as above.
    - TensorRT and TensorRT-RTX: a layer after fusion; the total is the time of all layers.

    Profiling takes time itself, most of it where there are many small rows.

    Args:
        runner: not wrapped.
        inputs: as for its ``run``.
        runs: that the times are the mean of, after others to warm up.

    Returns:
        All rows; or the reason, where the artefact cannot be profiled.

    Raises:
        CarafeDeployError: ``runs`` is not positive, or the artefact fails to run.
        InputShapeError: the artefact does not accept the inputs.
    """
    if runs < 1:
        raise CarafeDeployError(f"runs is {runs}: give at least 1")
    backend = BACKENDS.get(runner.backend)
    if backend is None or not backend.profile:
        return Layers("", 0, reason=f"nothing profiles {runner.backend}")
    try:
        rows: list[Layer] = load(backend.profile)(runner, inputs, runs)
    except BackendUnavailableError as error:
        return Layers(backend.profiler, 0, reason=str(error))
    return Layers(backend.profiler, runs, tuple(sorted(rows, key=lambda row: -row.milliseconds)))
