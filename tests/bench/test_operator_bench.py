"""Measuring operators, on workloads that take no time."""

from __future__ import annotations

import dataclasses
import sys
import types
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from carafe_deploy import requirements
from carafe_deploy.bench import clock, implementations, operator_bench
from carafe_deploy.bench.implementations import Candidate, candidates, jobs_of
from carafe_deploy.bench.operator_bench import OperatorOptions, is_failure, measure_operators
from carafe_deploy.bench.record import OperatorRow, OperatorsResult
from carafe_deploy.bench.result_file import read_result, write_result
from carafe_deploy.bench.workloads import WORKLOADS, ShapedCall, Workload
from carafe_deploy.errors import BackendUnavailableError, CarafeDeployError
from carafe_deploy.operators import FAMILIES, OPERATORS
from carafe_deploy.operators import carafe as carafe_operators
from carafe_deploy.operators.carafe import CarafeCall
from carafe_deploy.operators.nms import NmsCall
from carafe_deploy.operators.roi_align import RoiAlignCall
from carafe_deploy.ops import _kernels
from carafe_deploy.tolerances import TOLERANCES
from carafe_deploy.types import OperatorCall

CPU = torch.device("cpu")
CARAFE = Workload("carafe", "two", (CarafeCall(1, 8, 4, 5), CarafeCall(1, 8, 2, 3)), True)
MORE_CARAFE = Workload("carafe", "one", (CarafeCall(2, 4, 3, 4, 3, 2),))
ROI_ALIGN = Workload("roi_align", "roi", (RoiAlignCall(20, 3, 4, ((52, 84), (26, 42))),), True)
RPN = OperatorCall(
    "rpn_candidates",
    ((1, 2), (1, 3, 4), (2, 4), (1, 3, 6, 7), (1, 12, 6, 7)),
    {"num_candidates": 20, "min_size": 0.0, "strides": [4]},
)
BOX = OperatorCall("box_candidates", ((1, 9, 4), (1, 9, 12), (1, 9, 4), (1, 1), (1, 2), (2, 4)), {})
CANDIDATES = {
    call.name: (Workload(call.name, "small", (ShapedCall(call),), True),) for call in (RPN, BOX)
}
NMS = Workload("nms", "nms", (NmsCall(3, 40, 20, 0.5, 0.05, objects=6),))
QUICK = OperatorOptions(rounds=3, iterations=2)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    others = {"roi_align": (ROI_ALIGN,), "nms": (NMS,)}
    workloads = {"carafe": (CARAFE, MORE_CARAFE), **CANDIDATES, **others}
    monkeypatch.setattr(operator_bench, "WORKLOADS", workloads)
    monkeypatch.setattr(clock.Clock, "pause", 0.0)
    monkeypatch.setattr(operator_bench, "TURN", 60.0)
    monkeypatch.setattr(clock, "COPIED", 2**16)
    monkeypatch.setattr(clock, "SIDE", {"cpu": 16, "cuda": 16})
    monkeypatch.setattr(carafe_operators, "_mmcv_missing", lambda: "mmcv is not installed")


def measure(operator: str, **changes: Any) -> OperatorsResult:
    return measure_operators(
        OperatorOptions(**{"operators": (operator,), "rounds": 3, "iterations": 2, **changes})
    )


def keys(result: OperatorsResult, workload: str) -> set[tuple[str, ...]]:
    """Of timed rows."""
    return {
        (row.implementation, row.entry, row.dtype, row.layout)
        for row in result.rows
        if row.workload == workload and row.samples_us
    }


KERNELS = {
    ("CPU kernel", "carafe_encoded"),
    ("CPU kernel", "carafe"),
    ("CPU kernel, unfused", "carafe_encoded"),
}
OTHERS = {
    ("PyTorch", "carafe_encoded"),
    ("PyTorch", "carafe"),
    ("ONNX Runtime", "carafe_encoded"),
}


# --- what is measured ----------------------------------------------------------------------------


def test_carafe() -> None:
    result = measure("carafe")
    in_float32 = {(*names, "float32", "nchw") for names in KERNELS | OTHERS}
    assert keys(result, "one") == in_float32 - {("PyTorch", "carafe", "float32", "nchw")}
    variants = [(variant.dtype, variant.layout) for variant in CARAFE.variants()]
    assert keys(result, "two") == in_float32 | {
        (*names, *variant) for names in KERNELS for variant in variants
    }
    assert (result.device, result.cache, result.partial) == ("cpu", "warm", False)
    assert result.copy_bytes_per_second > 0
    assert result.flops_per_second > 0
    for row in result.rows:
        if row.samples_us:
            assert len(row.samples_us) == 3 * 2
            assert min(row.samples_us) > 0
            assert row.copy_us > 0
            assert row.max_error is not None
            assert result.floor_us(row) > 0


def test_bytes_and_operations_of_a_row() -> None:
    rows = {(row.workload, row.dtype): row for row in measure("carafe").rows if row.samples_us}
    whole, half = rows["two", "float32"], rows["two", "float16"]
    assert whole.num_bytes == sum(call.num_bytes(4) for call in CARAFE.calls)
    assert half.num_bytes == whole.num_bytes / 2
    assert whole.flops == half.flops == sum(call.flops for call in CARAFE.calls)


@pytest.mark.parametrize("operator", ["roi_align", "nms"])
def test_others(operator: str) -> None:
    result = measure(operator)
    entry = {"roi_align": "multilevel_roi_align", "nms": "batched_nms"}[operator]
    names = Counter(row.implementation for row in result.rows if row.entry == entry)
    kernels = 6 if operator == "roi_align" else 1
    assert names == {"CPU kernel": kernels, "PyTorch": 1, "torchvision": 1, "ONNX Runtime": 1}
    assert not any(row.reason for row in result.rows)
    assert all((row.max_error is None) == (operator == "nms") for row in result.rows)
    assert all(row.layout == "" for row in result.rows) == (operator == "nms")
    full = measure(operator, full=True)
    assert "reference" in {row.implementation for row in full.rows}


@pytest.mark.parametrize("operator", list(CANDIDATES))
def test_candidates(operator: str) -> None:
    """In half types kernels and reference rank and decode the same rounded numbers."""
    result = measure(operator)
    variants = 6 if operator == "rpn_candidates" else 3
    names = Counter(row.implementation for row in result.rows)
    assert names == {"CPU kernel": variants, "PyTorch": 1, "ONNX Runtime": 1}
    assert not any(row.reason for row in result.rows)
    assert max(row.max_error or 0 for row in result.rows) < 1e-6


def test_full_is_everything_in_all_types_and_layouts() -> None:
    found = keys(measure("carafe", full=True), "one")
    variants = [(variant.dtype, variant.layout) for variant in CARAFE.variants()]
    everything = KERNELS | {("PyTorch", "carafe_encoded"), ("PyTorch", "carafe")}
    assert found == {(*names, *variant) for names in everything for variant in variants} | {
        ("ONNX Runtime", "carafe_encoded", "float32", "nchw")
    }


def test_all_operators_and_what_is_told_on_the_way() -> None:
    steps: list[str] = []
    told: list[tuple[int, int]] = []
    result = measure_operators(
        QUICK, step=steps.append, progress=lambda done, total: told.append((done, total))
    )
    assert steps == ["machine", *FAMILIES]
    assert told == [(0, 2), (1, 2), *[(0, 1)] * 4]
    assert {row.operator for row in result.rows} == set(FAMILIES)
    assert result.environment["Python"]
    assert {"turns", "warm-up", "time", "data of nms", "data of roi_align"} <= set(result.settings)
    assert "3 rounds" in result.settings["turns"]


def test_the_result_is_written_and_read_again(tmp_path: Path) -> None:
    result = measure("nms")
    write_result(tmp_path / "r.json", result)
    again = read_result(tmp_path / "r.json")
    assert isinstance(again, OperatorsResult)
    assert [row.implementation for row in again.rows] == [row.implementation for row in result.rows]


def test_threads_are_restored() -> None:
    before = torch.get_num_threads()
    assert measure("nms", threads=before + 1).settings["threads"] == str(before + 1)
    assert torch.get_num_threads() == before


def test_a_busy_machine_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator_bench, "load_facts", lambda: {"busy": 1.7, "cores": 2.0})
    assert "other programs kept 1.7 of 2 cores busy" in measure("nms").settings["doubt"]
    monkeypatch.setattr(operator_bench, "load_facts", lambda: {"busy": 0.0, "cores": 2.0})
    assert "doubt" not in measure("nms").settings


# --- implementations -----------------------------------------------------------------------------


def as_candidates(
    *functions: Callable[[Candidate], Candidate],
) -> Callable[..., Iterator[Candidate]]:
    """In place of :func:`candidates`: its first one, which is right, and what is made of it."""

    def changed(*arguments: Any, **settings: Any) -> Iterator[Candidate]:
        right = next(candidates(*arguments, **settings))
        yield right
        for function in functions:
            yield function(right)

    return changed


def made(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Candidate], Candidate]:
    """An implementation whose last result is another."""

    def function(right: Candidate) -> Candidate:
        def run():
            assert right.run is not None
            return [(*others, change(last)) for *others, last in right.run()]

        return Candidate("made up", right.job, run)

    return function


def rows_of(
    monkeypatch: pytest.MonkeyPatch, operator: str, *functions: Callable[[Candidate], Candidate]
) -> list[OperatorRow]:
    monkeypatch.setattr(operator_bench, "candidates", as_candidates(*functions))
    return list(measure(operator).rows)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda tensor: tensor * 1.5, pytest.approx(0.5, rel=0.02)),
        (lambda tensor: tensor * float("nan"), None),
        (lambda tensor: tensor[:, :1], None),
    ],
    ids=["half again", "NaN", "shape"],
)
def test_a_wrong_result_has_a_reason_and_no_time(
    monkeypatch: pytest.MonkeyPatch, change: Any, error: Any, tmp_path: Path
) -> None:
    monkeypatch.setattr(operator_bench, "candidates", as_candidates(made(change)))
    result = measure("carafe")
    wrong = [row for row in result.rows if row.implementation == "made up"]
    assert len(wrong) == 7
    for row in wrong:
        assert row.reason.startswith("wrong: off by")
        assert row.samples_us == ()
        assert row.max_error == error
        assert is_failure(row)
    assert not any(is_failure(row) for row in result.rows if row.implementation == "CPU kernel")
    write_result(tmp_path / "r.json", result)  # there is no NaN in JSON


def test_a_small_error_is_a_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = TOLERANCES["operators", "carafe_encoded"]["fp32"].value
    rows = rows_of(monkeypatch, "carafe", made(lambda tensor: tensor * (1 + 2 * limit)))
    off = [row for row in rows if row.implementation == "made up" and row.dtype == "float32"]
    assert all(row.samples_us for row in off)
    assert [row.max_error for row in off] == [pytest.approx(2 * limit, rel=0.2)] * len(off)


def test_nms_has_to_keep_the_same_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    def swapped(indices: torch.Tensor) -> torch.Tensor:
        return indices[:, [1, 0, *range(2, indices.shape[1])]]

    right, wrong, short = rows_of(
        monkeypatch, "nms", made(swapped), made(lambda indices: indices[:, 1:])
    )
    assert right.samples_us
    assert wrong.reason == "wrong: 18 of 20 boxes kept are the reference's; not timed"
    assert short.reason == "wrong: shape (1, 19), expected (1, 20); not timed"


def test_what_breaks_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def at_once(right: Candidate) -> Candidate:
        def run():
            raise RuntimeError("out of memory\nand more")

        return Candidate("at once", right.job, run)

    def later(right: Candidate) -> Candidate:
        calls = []

        def run():
            calls.append(1)
            if len(calls) > 4:
                raise ValueError
            return right.run()

        return Candidate("later", right.job, run)

    right, first, second = rows_of(monkeypatch, "nms", at_once, later)
    assert len(right.samples_us) == 6
    assert (first.samples_us, first.reason) == ((), "failed: RuntimeError: out of memory")
    assert (second.samples_us, second.reason) == ((), "failed: ValueError")
    assert is_failure(first)
    assert is_failure(second)


@pytest.mark.parametrize("where", ["jobs_of", "copy_of", "_peaks"])
def test_what_no_implementation_is_to_blame_for_is_a_row_of_its_workload(
    monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """As where an earlier kernel has taken the GPU down: inputs, copy, the machine's own limits."""
    real, calls = getattr(operator_bench, where), []

    def broken(*arguments: Any) -> Any:
        calls.append(arguments)
        is_first_workload = where != "_peaks" and arguments[0] in (CARAFE, *sizes)
        if is_first_workload or (where == "_peaks" and len(calls) > 1):
            raise RuntimeError("CUDA error: misaligned address\nset X")
        return real(*arguments)

    sizes = {CARAFE.num_bytes(variant) for variant in CARAFE.variants()}
    monkeypatch.setattr(operator_bench, where, broken)
    result = measure("carafe")
    assert keys(result, "one")
    assert result.copy_bytes_per_second > 0
    failures = filter(is_failure, result.rows)
    failed = [(row.workload, row.implementation, row.reason) for row in failures]
    reason = "failed: RuntimeError: CUDA error: misaligned address"
    assert failed == ([("two", "inputs and reference", reason)] if where != "_peaks" else [])


def test_everybody_has_a_turn_in_every_round(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def noting(name: str) -> Callable[[Candidate], Candidate]:
        def function(right: Candidate) -> Candidate:
            def run():
                order.append(name)
                return right.run()

            return Candidate(name, right.job, run)

        return function

    rows_of(monkeypatch, "nms", noting("a"), noting("b"))
    assert order[:2] == ["a", "b"]  # compared, in the order given
    turns = ["".join(order[i : i + 3]) for i in range(2, len(order), 3)]  # one call does not count
    assert sorted(turns[:2]) == sorted(turns[2:4]) == sorted(turns[4:]) == ["aaa", "bbb"]


def test_ctrl_c_keeps_what_was_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = []

    def interrupting(right: Candidate) -> Candidate:
        def run():
            calls.append(1)
            if len(calls) > 9:
                raise KeyboardInterrupt
            return right.run()

        return Candidate("interrupted", right.job, run)

    def one(*arguments: Any, **settings: Any) -> Iterator[Candidate]:
        yield interrupting(next(candidates(*arguments, **settings)))

    monkeypatch.setattr(operator_bench, "WORKLOADS", {"nms": (NMS, NMS), "carafe": (CARAFE,)})
    monkeypatch.setattr(operator_bench, "candidates", one)
    result = measure_operators(OperatorOptions(("nms", "carafe"), rounds=2, iterations=2))
    assert result.partial
    assert [len(row.samples_us) for row in result.rows] == [4]
    assert result.copy_bytes_per_second > 0
    write_result(tmp_path / "r.json", result)


def test_samples_of_the_interrupted_workload_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def later(right: Candidate) -> Candidate:
        calls = []

        def run():
            calls.append(1)
            if len(calls) > 5:
                raise KeyboardInterrupt
            return right.run()

        return Candidate("later", right.job, run)

    monkeypatch.setattr(operator_bench, "candidates", as_candidates(later))
    result = measure("nms")
    assert result.partial
    assert {len(row.samples_us) for row in result.rows} <= {2, 4, 6}
    assert next(row for row in result.rows if row.implementation == "later").samples_us


# --- what is missing -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("off", "CARAFE_DEPLOY_KERNELS is 'off': unset it"),
        ("auto", "there is no libcarafe_kernels"),
    ],
)
def test_without_kernels(monkeypatch: pytest.MonkeyPatch, value: str, reason: str) -> None:
    """One row an implementation and operator; nothing takes their name."""
    monkeypatch.setenv(_kernels.ENVIRONMENT_VARIABLE, value)
    monkeypatch.setattr(_kernels, "kernel_library", lambda: None)
    result = measure("carafe")
    lacking = [row for row in result.rows if row.reason.startswith(reason)]
    assert [row.implementation for row in lacking] == ["CPU kernel", "CPU kernel, unfused"]
    assert not any(is_failure(row) for row in lacking)
    timed = {row.implementation for row in result.rows if row.samples_us}
    assert timed == {"PyTorch", "ONNX Runtime"}


def test_with_a_broken_kernel_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise BackendUnavailableError("it is truncated")

    monkeypatch.setattr(implementations._kernels, "kernel_library", broken)
    jobs = jobs_of(NMS, NMS.inputs(), NMS.variants()[0], CPU)
    first = next(candidates(NMS, jobs))
    assert (first.name, first.run, first.reason) == ("CPU kernel", None, "it is truncated")


def test_kernels_built_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    library = types.SimpleNamespace(has_cuda=False, path="lib.so")
    monkeypatch.setattr(implementations._kernels, "kernel_library", lambda: library)
    assert implementations._kernels_missing(on_cuda=False) == ""
    assert "lib.so was built without CUDA" in implementations._kernels_missing(on_cuda=True)


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_without_onnxruntime(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setattr(implementations, "is_installed", lambda name: name != package)
    [row] = [row for row in measure("nms").rows if row.reason]
    assert (row.implementation, row.reason) == ("ONNX Runtime", f"{package} is not installed")


def test_without_mmcv() -> None:
    lacking = [row for row in measure("carafe").rows if row.implementation == "mmcv"]
    assert [(row.workload, row.reason) for row in lacking] == [("two", "mmcv is not installed")]


def test_mmcv_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its module is a stand-in that reads memory as NCHW; the device, one in name only."""

    def mmcv_carafe(features, masks, kernel_size, group_size, scale_factor):
        assert features.is_contiguous()
        assert masks.is_contiguous()
        return torch.ops.carafe.carafe(features, masks, kernel_size, group_size, scale_factor)

    module = types.SimpleNamespace(carafe=mmcv_carafe)
    monkeypatch.setitem(sys.modules, "mmcv.ops", module)
    monkeypatch.setattr(carafe_operators, "_mmcv_missing", lambda: "")
    [peer] = OPERATORS["carafe"].peers
    assert peer.lacks("cpu", "float32") == "mmcv has no CARAFE for the CPU"
    assert peer.lacks("cuda", "bfloat16") == "mmcv's CARAFE has no bfloat16"
    assert peer.lacks("cuda", "float16") == ""
    anywhere = dataclasses.replace(peer, lacks=lambda device, dtype: "")
    carafe = dataclasses.replace(OPERATORS["carafe"], peers=(anywhere,))
    monkeypatch.setitem(OPERATORS, "carafe", carafe)
    result = measure("carafe")
    found = keys(result, "two")
    for variant in CARAFE.variants():
        for names in (("mmcv", "carafe"), ("mmcv, unfused", "carafe_encoded")):
            assert (*names, variant.dtype, variant.layout) in found


def test_mmcv_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    def import_module(name: str) -> None:
        raise ImportError("undefined symbol")

    monkeypatch.undo()  # the fixture's
    monkeypatch.setattr(requirements, "is_installed", lambda name: True)
    monkeypatch.setattr(carafe_operators.importlib, "import_module", import_module)
    reason = carafe_operators._mmcv_missing.__wrapped__()
    assert reason == "mmcv.ops cannot be imported (ImportError: undefined symbol)"


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"operators": ("softmax",)}, "operator 'softmax' is none of carafe, rpn_candidates"),
        ({"operators": ()}, "no operator to measure: give any of carafe"),
        ({"rounds": 0}, "rounds is 0: give at least 1"),
        ({"iterations": -3}, "iterations is -3: give at least 1"),
        ({"threads": 0}, "threads is 0: give at least 1"),
    ],
)
def test_options_out_of_range(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CarafeDeployError, match=message):
        measure_operators(OperatorOptions(**changes))


def test_no_such_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendUnavailableError, match="sees 0 CUDA devices"):
        measure("nms", device="cuda")
    with pytest.raises(BackendUnavailableError, match="give cpu, cuda or cuda:N"):
        measure("nms", device="tpu")


# --- at full size --------------------------------------------------------------------------------


def test_torchvision_and_the_kernel_keep_the_same_boxes() -> None:
    """The stated distributions are such that no rounding decides: see NmsCall.inputs."""
    for workload in WORKLOADS["nms"]:
        jobs = jobs_of(workload, workload.inputs(), workload.variants()[0], CPU)
        expected = jobs["batched_nms"].expected()
        for candidate in candidates(workload, jobs):
            error, reason = operator_bench._compare(candidate, expected)
            assert (error, reason) == (None, ""), (workload.name, candidate.name)


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    result = measure_operators(OperatorOptions(device="cuda", rounds=2, iterations=3))
    assert result.cache == "cold"
    assert result.device == torch.cuda.get_device_name()
    assert not [row for row in result.rows if is_failure(row)]
    timed = {row.implementation for row in result.rows if row.samples_us}
    assert {"CUDA kernel", "CUDA kernel, unfused", "PyTorch", "torchvision"} <= timed
