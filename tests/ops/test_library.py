"""The torch operators on all three ways, and the library of the kernels through ctypes."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from carafe_deploy import kernels, libraries
from carafe_deploy.errors import BackendUnavailableError
from carafe_deploy.kernels import (
    CarafeParams,
    Device,
    DType,
    KernelLibrary,
    Layout,
    MaskSource,
    NmsParams,
    RoiAlignParams,
)
from carafe_deploy.operators import OPERATORS
from carafe_deploy.ops import (
    _kernels,
    batched_nms,
    carafe,
    multilevel_roi_align,
    plain_operators,
)
from tests.ops import faces, test_carafe
from tests.ops.cases import CASES, Attributes, Case, named
from tests.ops.layouts import LAYOUTS, has_layout_of
from tests.ops.test_operators import each_case

PATHS = faces.PATHS
each_path = pytest.mark.parametrize("path", PATHS)


@pytest.fixture(scope="module")
def library() -> KernelLibrary:
    """Kernels that cannot be run are a failure, not something to skip."""
    return KernelLibrary(libraries.require_library("carafe_kernels"))


@pytest.fixture(autouse=True)
def called(library: KernelLibrary, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of the library's functions that the operators called from Python."""
    calls: list[str] = []

    class Spied(KernelLibrary):
        def call(self, function: str, *arguments: Any, **where: Any) -> None:
            calls.append(function)
            super().call(function, *arguments, **where)

    def forget() -> None:
        kernels.installed_kernels.cache_clear()
        _kernels.kernel_library.cache_clear()

    monkeypatch.setattr(kernels, "KernelLibrary", Spied)
    forget()
    yield calls
    forget()


@pytest.fixture
def in_python(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """The type of each call that reached Python, where it asks for the library."""
    calls: list[torch.dtype] = []

    def ask(tensor: Tensor, **options: bool) -> KernelLibrary | None:
        calls.append(tensor.dtype)
        return library_for(tensor, **options)

    library_for = _kernels.library_for
    monkeypatch.setattr(_kernels, "library_for", ask)
    return calls


# --- all paths, every case, every layout ---------------------------------------------------------


def fake(operator: Any, tensors: Sequence[Tensor], attributes: Attributes) -> Tensor:
    """The result that a graph is traced with."""
    with FakeTensorMode() as mode:
        out: Tensor = operator(*map(mode.from_tensor, tensors), **attributes)
        return out


def strides(tensor: Tensor) -> list[int]:
    """Of the axes that have more than one element; others have no place in memory."""
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    return [stride for size, stride in pairs if size > 1]


#: Types that the kernels compute in; others are PyTorch's.
IN_KERNELS = {
    **dict.fromkeys(("rpn_candidates", "multilevel_roi_align", "box_candidates"), 3),
    "batched_nms": 1,
}


@each_path
@pytest.mark.parametrize("layout", LAYOUTS)
@each_case
def test_every_path(
    called: list[str],
    in_python: list[torch.dtype],
    path: str,
    layout: str,
    name: str,
    case: Case,
) -> None:
    spec, dtypes = OPERATORS[name], faces.dtypes(name)
    for dtype in dtypes:
        inputs = LAYOUTS[layout](case, faces.typed(name, case, dtype))
        with PATHS[path]():
            out = faces.operator(name)(*inputs, **case.attributes)
        faces.assert_right(name, out, faces.truth(name, case, dtype), dtype)
        if spec.outputs[0].is_feature_map:
            features = next(x for i, x in enumerate(inputs) if spec.input_at(i).is_feature_map)
            assert has_layout_of(out.reshape(-1, *out.shape[-3:]), features)
            assert strides(out) == strides(fake(faces.operator(name), inputs, case.attributes))
    if not spec.implementation.has_kernels:
        assert called == []
        return
    by_kernels = IN_KERNELS.get(name, len(dtypes))
    assert len(called) == (by_kernels if path == "ctypes" else 0)
    assert len(in_python) == len(dtypes) - (by_kernels if path == "C++" else 0)


@each_path
@pytest.mark.parametrize("case", CASES["batched_nms"], ids=str)
def test_strided_scores(path: str, case: Case) -> None:
    strided = [torch.stack((tensor, tensor), dim=-1)[..., 0] for tensor in case.inputs]
    with PATHS[path]():
        out = faces.operator("batched_nms")(*strided, **case.attributes)
    faces.assert_right("batched_nms", out, faces.truth("batched_nms", case))


@each_path
@pytest.mark.parametrize(("width", "kept"), [(3.0, 1), (2.9, 2)])
def test_an_iou_threshold_between_two_float32(path: str, width: float, kept: int) -> None:
    # float32(3/10) exceeds 0.3 by 1e-8, so it suppresses as in torchvision
    boxes = torch.tensor([[[[0.0, 0.0, width, 1.0], [0.0, 0.0, 10.0, 1.0]]]])
    scores = torch.tensor([[[0.9, 0.8]]])
    with PATHS[path]():
        num_dets, _ = batched_nms(
            boxes, scores, iou_threshold=0.3, score_threshold=0.0, max_output=2
        )
    assert num_dets.item() == kept


@each_path
@pytest.mark.parametrize("name", CASES)
def test_opcheck(path: str, name: str) -> None:
    cases = [case for case in CASES[name] if case.reason == "channels last"] or CASES[name]
    inputs = OPERATORS[name].grouped(cases[0].arranged(torch.float32))
    with PATHS[path]():
        operator = getattr(torch.ops.carafe, name)
        torch.library.opcheck(operator, (*inputs, *cases[0].attributes.values()))


@each_path
def test_channels_last_compiles_as_one_graph(path: str) -> None:
    case = named("carafe_encoded", "channels last")
    inputs = case.arranged(torch.float32)

    def doubled(features: Tensor, encoded: Tensor) -> Tensor:
        out = torch.ops.carafe.carafe_encoded(features, encoded, *case.attributes.values())
        return out.contiguous(memory_format=torch.channels_last) * 2

    compiled = torch.compile(doubled, fullgraph=True, backend="aot_eager")
    with PATHS[path]():
        out = compiled(*inputs)
    (expected,) = faces.truth("carafe_encoded", case)
    faces.assert_right("carafe_encoded", out, (2 * expected,))


# --- values that are not finite, on both paths ---------------------------------------------------


def spoilt(shape: tuple[int, ...], share: float, seed: int) -> Tensor:
    """Normal numbers with NaN and both infinities among them."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator)
    chosen = torch.rand(shape, generator=generator) < share
    bad = torch.tensor([math.nan, math.inf, -math.inf])
    kinds = torch.randint(3, shape, generator=generator)
    return torch.where(chosen, bad[kinds], values)


def test_both_paths_propagate_alike() -> None:
    arguments = {"kernel_size": 3, "group_size": 2, "scale_factor": 2}
    features, masks = spoilt((2, 4, 9, 7), 0.02, 0), spoilt((2, 18, 18, 14), 0.002, 1)
    rois = torch.cat((spoilt((2, 9, 2), 0.1, 2) * 20, 40 + spoilt((2, 9, 2), 0.1, 3) * 20), dim=2)
    found = carafe(features, masks, **arguments), pooled(rois, features)
    with plain_operators():
        expected = carafe(features, masks, **arguments), pooled(rois, features)
    for out, want in zip(found, expected, strict=True):
        spread = want.isfinite()
        assert 0 < int(spread.sum()) < want.numel()
        # Infinity times a weight of zero is NaN, unless another sample adds to that weight first.
        assert torch.equal(out.isfinite(), spread)
        torch.testing.assert_close(out[spread], want[spread], rtol=1e-5, atol=1e-5)


def pooled(rois: Tensor, features: Tensor) -> Tensor:
    return multilevel_roi_align(
        rois, [features], output_size=3, sampling_ratio=0, strides=[8], finest_scale=56
    )


@pytest.mark.parametrize("seed", range(5))
def test_both_paths_suppress_alike(seed: int) -> None:
    boxes = spoilt((2, 3, 40, 4), 0.02, seed) * 20 + torch.tensor([0.0, 0, 60, 60])
    scores = spoilt((2, 3, 40), 0.1, seed + 100)
    attributes = {"iou_threshold": 0.3, "score_threshold": -0.5, "max_output": 200}
    found = batched_nms(boxes, scores, **attributes)
    with plain_operators():
        expected = batched_nms(boxes, scores, **attributes)
    candidates = (scores > -0.5).flatten(1).sum(dim=1, keepdim=True)
    assert (expected[0] > 0).all()
    assert (expected[0] < 0.75 * candidates).all()
    torch.testing.assert_close(found, expected)


# --- finding and refusing libraries --------------------------------------------------------------


def call() -> Tensor:
    """As registered where libcarafe_torch.so does not load, which is decided at import."""
    ones = torch.ones(1, 1, 2, 2)
    out: Tensor = OPERATORS["carafe"].implementation.forward(ones, ones, 1, 1, 1)
    return out


def test_without_the_library_pytorch_computes_and_says_so_once(
    called: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libraries, "PACKAGE_FOLDER", tmp_path)
    monkeypatch.delenv("CARAFE_DEPLOY_PLUGIN", raising=False)
    with pytest.warns(UserWarning, match=rf"no libcarafe_kernels\.so in {tmp_path}.*make plugins"):
        assert call().tolist() == [[[[1.0, 1.0], [1.0, 1.0]]]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call()
    assert called == []


def test_switched_off_without_a_word(called: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARAFE_DEPLOY_KERNELS", "off")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call()
    assert called == []


def test_wrong_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARAFE_DEPLOY_KERNELS", "no")
    with pytest.raises(BackendUnavailableError, match="CARAFE_DEPLOY_KERNELS is 'no', expected"):
        call()


def test_folder_or_file_may_be_given(
    library: KernelLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "libcarafe_kernels.so").symlink_to(library.path)
    monkeypatch.setattr(libraries, "PACKAGE_FOLDER", tmp_path / "nowhere")
    for given in (tmp_path, tmp_path / "libcarafe_kernels.so"):
        monkeypatch.setenv("CARAFE_DEPLOY_PLUGIN", str(given))
        assert libraries.find_library("carafe_kernels") == Path(library.path).resolve()
    assert libraries.find_library("carafe_other") is None
    with pytest.raises(
        BackendUnavailableError, match=rf"libcarafe_other\.so in {tmp_path} or .*make plugins"
    ):
        libraries.require_library("carafe_other")


def test_what_the_environment_names_must_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARAFE_DEPLOY_PLUGIN", "/no/such/folder")
    message = "CARAFE_DEPLOY_PLUGIN is '/no/such/folder', which does not exist"
    with pytest.raises(BackendUnavailableError, match=message):
        call()


@pytest.mark.parametrize(
    ("name", "message"),
    [("", "which holds no"), ("libcarafe_kernels.so.txt", "whose name is not")],
)
def test_what_the_environment_names_must_be_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    (tmp_path / "libcarafe_kernels.so.txt").write_text("not a library")
    given = tmp_path / name
    monkeypatch.setenv("CARAFE_DEPLOY_PLUGIN", str(given))
    message = rf"CARAFE_DEPLOY_PLUGIN is '{given}', {message} libcarafe_\*\.so: set it to a folder"
    with pytest.raises(BackendUnavailableError, match=message):
        call()


def test_importing_the_operators_loads_nothing() -> None:
    environment = {**os.environ, "CARAFE_DEPLOY_PLUGIN": "/no/such/folder"}
    program = "import carafe_deploy.ops; print('imported')"
    found = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout == "imported\n"


def test_a_text_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "libcarafe_kernels.so"
    path.write_text("not a library")
    monkeypatch.setenv("CARAFE_DEPLOY_PLUGIN", str(tmp_path))
    with pytest.raises(BackendUnavailableError, match=rf"{path} cannot be loaded .*make plugins"):
        call()


@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
def test_a_truncated_library_is_refused_before_it_is_loaded(
    library: KernelLibrary, tmp_path: Path, share: float
) -> None:
    """The loader maps what its headers promise, and the process ends at the first missing page."""
    content = Path(library.path).read_bytes()
    path = tmp_path / "libcarafe_kernels.so"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(BackendUnavailableError, match=rf"is truncated, .* of {len(content)} bytes"):
        KernelLibrary(path)


def test_another_library_is_refused() -> None:
    path = Path(torch.__file__).parent / "lib/libc10.so"
    with pytest.raises(BackendUnavailableError, match=r"libc10\.so is not libcarafe_kernels\.so"):
        KernelLibrary(path)


def test_another_interface_version_is_refused(
    library: KernelLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "ABI_VERSION", 99)
    message = r"has interface version \d, but this carafe_deploy needs version 99: build it again"
    with pytest.raises(BackendUnavailableError, match=message):
        KernelLibrary(library.path)


# --- the library's own errors --------------------------------------------------------------------


def carafe_params(**changed: int) -> CarafeParams:
    fields = {
        "dtype": DType.FLOAT32, "layout": Layout.NCHW, "source": MaskSource.NORMALIZED,
        "batch": 1, "channels": 4, "height": 3, "width": 3,
        "kernel_size": 3, "groups": 1, "scale": 2,
        "feature_pitch": 4, "mask_pitch": 9, "out_pitch": 4,
    }  # fmt: skip
    return CarafeParams(**(fields | changed))


def test_numpy_arrays_serve_as_well(library: KernelLibrary) -> None:
    features = np.array(test_carafe.HAND_FEATURES, np.float32)
    masks = test_carafe.hand_masks().numpy()
    out = np.empty((6, 6), np.float32)
    library.carafe(
        carafe_params(channels=1, feature_pitch=1, out_pitch=1),
        *(array.ctypes.data for array in (features, masks, out)),
    )
    assert (out * 8).tolist() == test_carafe.HAND_EIGHTHS


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"kernel_size": 4}, "kernel_size is 4, expected an odd number"),
        ({"groups": 3}, "features has 4 channels, not divisible by group_size = 3"),
        ({"scale": 0}, "scale_factor is 0, expected at least 1"),
        ({"dtype": 7}, "dtype is 7"),
        ({"layout": Layout.NHWC, "mask_pitch": 8}, "mask_pitch is 8, expected at least the 9"),
    ],
)
def test_parameters_are_refused(
    library: KernelLibrary, changed: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        library.carafe(carafe_params(**changed), 0, 0, 0)


def test_numbers_beyond_32_bits_are_refused_not_cut_off() -> None:
    with pytest.raises(ValueError, match=f"width is {2**31}, expected a number below"):
        carafe_params(width=2**31)
    with pytest.raises(ValueError, match=f"strides is {2**32 + 4}, expected"):
        RoiAlignParams(strides=(4, 2**32 + 4))


def test_as_many_maps_as_levels(library: KernelLibrary) -> None:
    with pytest.raises(ValueError, match="1 feature maps for 2 levels"):
        library.multilevel_roi_align(RoiAlignParams(levels=2), 0, [0], 0)


def test_workspace_of_invalid_sizes(library: KernelLibrary) -> None:
    params = NmsParams(batch=1, labels=1, candidates=5, max_output=0)
    with pytest.raises(ValueError, match="max_output is 0, expected at least 1"):
        library.batched_nms_workspace(params)
    params.max_output = 3
    assert library.batched_nms_workspace(params) > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_cuda_without_a_device_is_an_error(library: KernelLibrary) -> None:
    kind = RuntimeError if library.has_cuda else BackendUnavailableError
    memory = np.zeros(1000, np.float32).ctypes.data
    with pytest.raises(kind, match=r"carafe: .*|built without CUDA"):
        library.carafe(carafe_params(), memory, memory, memory, device=Device.CUDA)


def test_as_many_threads_as_torch_has(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def record(self: KernelLibrary, *addresses: Any, threads: int, **others: Any) -> None:
        asked.append(threads)

    monkeypatch.setattr(KernelLibrary, "carafe", record)
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        call()
    torch.set_num_threads(before)
    assert asked == [1, 2]
