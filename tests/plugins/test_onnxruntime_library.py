"""The operators' library for ONNX Runtime: every case, beside sessions without it, in threads."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

import carafe_deploy
from carafe_deploy.graph.functions import attach_function_bodies
from carafe_deploy.graph.onnx_export import IR_VERSION, OPSET, export_operator_network
from carafe_deploy.operators import BY_ONNX_NAME, OPERATORS
from carafe_deploy.ops import CARAFEPack
from carafe_deploy.types import DOMAIN, DOMAIN_VERSION
from tests.ops import faces
from tests.ops.cases import CASES, Attributes, Case

#: ONNX's element type of a feature map.
ELEMENTS = {
    torch.float32: TensorProto.FLOAT,
    torch.float16: TensorProto.FLOAT16,
    torch.bfloat16: TensorProto.BFLOAT16,
}
ALL = [(name, case) for name, cases in CASES.items() for case in cases]
NAMES = tuple(OPERATORS)

Shape = Sequence[int | str | None]


def model(
    name: str,
    attributes: Attributes,
    shapes: Sequence[Shape],
    element: int = TensorProto.FLOAT,
    *,
    body: bool = False,
) -> onnx.ModelProto:
    """One node; feature maps come as float32 and are cast, since NumPy has no bfloat16."""
    spec = OPERATORS[name]
    given = [f"input{i}" for i in range(len(shapes))]
    wanted = [each.name for each in spec.outputs]
    nodes, fed = [], []
    for index, value in enumerate(given):
        is_map = spec.input_at(index).is_feature_map
        fed.append(f"{value}_cast" if is_map else value)
        if is_map:
            nodes.append(helper.make_node("Cast", [value], [fed[-1]], to=element))
    node = helper.make_node(spec.onnx_name, fed, wanted, "node", domain=DOMAIN, **attributes)
    nodes.append(node)
    results = []
    for index, each in enumerate(spec.outputs):
        kind = TensorProto.FLOAT
        if each.is_feature_map:
            node.output[index] = f"{each.name}_cast"
            nodes.append(helper.make_node("Cast", [node.output[index]], [each.name], to=kind))
        else:
            kind = helper.np_dtype_to_tensor_dtype(np.dtype(each.type))
        results.append(helper.make_tensor_value_info(each.name, kind, None))
    arguments = map(spec.input_at, range(len(shapes)))
    inputs = [
        helper.make_tensor_value_info(
            value, TensorProto.INT32 if each.type == "int32" else TensorProto.FLOAT, shape
        )
        for value, shape, each in zip(given, shapes, arguments, strict=True)
    ]
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, DOMAIN_VERSION)]
    made = helper.make_model(
        helper.make_graph(nodes, name, inputs, results), opset_imports=opsets, ir_version=IR_VERSION
    )
    if body:
        attach_function_bodies(made)
    return made


def opened(made: onnx.ModelProto, *, library: bool = True) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 2
    if library:
        options.register_custom_ops_library(carafe_deploy.onnxruntime_library())
    return onnxruntime.InferenceSession(
        made.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run(
    session: onnxruntime.InferenceSession, inputs: Sequence[torch.Tensor]
) -> tuple[np.ndarray, ...]:
    arrays = (
        (tensor.float() if tensor.is_floating_point() else tensor).contiguous().numpy()
        for tensor in inputs
    )
    feeds = {value.name: array for value, array in zip(session.get_inputs(), arrays, strict=True)}
    return tuple(session.run(None, feeds))


def of_case(name: str, case: Case, dtype: torch.dtype, *, body: bool = False) -> onnx.ModelProto:
    shapes = [tuple(tensor.shape) for tensor in case.inputs]
    return model(name, case.attributes, shapes, ELEMENTS[dtype], body=body)


@pytest.mark.parametrize(("name", "case"), ALL, ids=lambda value: str(value))
def test_every_case_in_every_type(name: str, case: Case) -> None:
    types = ELEMENTS if OPERATORS[name].has_feature_maps else [torch.float32]
    for dtype in types:
        inputs = [tensor.contiguous() for tensor in faces.typed(name, case, dtype)]
        results = faces.operator(name)(*inputs, **case.attributes)
        results = [results] if isinstance(results, torch.Tensor) else results
        expected = [
            (tensor.float() if tensor.is_floating_point() else tensor).numpy() for tensor in results
        ]
        found = run(opened(of_case(name, case, dtype)), inputs)
        for out, want in zip(found, expected, strict=True):
            assert out.dtype == want.dtype
            np.testing.assert_array_equal(out, want)  # the torch operator runs the same kernels


class Upsampler(nn.Sequential):
    """CARAFE in three settings."""

    def __init__(self) -> None:
        settings = ((2, 3, 1), (3, 5, 2), (2, 7, 4))
        super().__init__(
            *(CARAFEPack(8, scale, kernel, groups) for scale, kernel, groups in settings)
        )


def test_a_network_of_ones_own_in_three_settings(tmp_path: Path) -> None:
    """Which function bodies alone run from 1.27 on."""
    torch.manual_seed(0)
    network, x = Upsampler().eval(), torch.randn(2, 8, 4, 5)
    path = tmp_path / "network.onnx"
    made = export_operator_network(network, (x,), path, input_names=["x"])
    assert len({function.overload for function in made.functions}) == 3
    with torch.no_grad():
        expected = network(x).numpy()
    (found,) = run(opened(made), [x])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    if tuple(map(int, onnxruntime.__version__.split(".")[:2])) < (1, 27):
        with pytest.raises(Exception, match="Reshape"):
            run(opened(made, library=False), [x])
    else:
        (found,) = run(opened(made, library=False), [x])
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("carafe", {"group_size": 4, "kernel_size": 1}),
        ("carafe_encoded", {"scale_factor": 1, "kernel_size": 6}),
        ("multilevel_roi_align", {"strides": [5, 8, 16, 32]}),
        ("multilevel_roi_align", {"finest_scale": 28}),
        ("multilevel_roi_align", {"sampling_ratio": 2}),
    ],
)
def test_a_body_refuses_a_node_of_other_settings(name: str, change: Attributes) -> None:
    """An old ONNX Runtime gives it one."""
    case = CASES[name][0]
    made = of_case(name, case, torch.float32, body=True)
    run(opened(made, library=False), case.inputs)
    [node] = (node for node in made.graph.node if node.domain == DOMAIN)
    for attribute in node.attribute:
        if attribute.name in change:
            attribute.CopyFrom(helper.make_attribute(attribute.name, change[attribute.name]))
    with pytest.raises(Exception, match=r"(?i)reshape"):
        run(opened(made, library=False), case.inputs)


def test_all_operators_are_in_it() -> None:
    assert set(NAMES) == {spec.name for spec in BY_ONNX_NAME.values()}


@pytest.mark.parametrize("name", NAMES)
def test_library_goes_before_the_bodies_of_a_file(name: str) -> None:
    case = CASES[name][0]
    made = of_case(name, case, torch.float32, body=True)
    for library in (True, False, True):  # side by side in one process
        session = opened(made, library=library)
        faces.assert_right(name, run(session, case.inputs), faces.truth(name, case))
    # Which of the two ran, tells a body that cannot.
    body = made.functions[0]
    del body.node[:]
    shape = [helper.make_node("Constant", [], ["shape"], value_ints=[2, 3, 5, 7, 11])]
    body.node.extend(shape)
    for output, each in zip(body.output, OPERATORS[name].outputs, strict=True):
        body.node.append(helper.make_node("Reshape", [body.input[-1], "shape"], [f"{output}_"]))
        kind = each.type if not each.is_feature_map else "float32"
        to = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
        body.node.append(helper.make_node("Cast", [f"{output}_"], [output], to=to))
    faces.assert_right(name, run(opened(made), case.inputs), faces.truth(name, case))
    with pytest.raises(Exception, match="Reshape"):
        run(opened(made, library=False), case.inputs)


@pytest.mark.parametrize(
    ("name", "shapes", "attributes", "expected"),
    [
        (
            "carafe",
            [("n", 4, "h", 8), ("n", 9, "y", "x")],
            {"kernel_size": 3, "group_size": 1, "scale_factor": 2},
            [["n", 4, None, 16]],
        ),
        (
            "carafe_encoded",
            [(1, "c", 5, 8), (1, 9, "h", "w")],
            {"kernel_size": 3, "group_size": 1, "scale_factor": 1},
            [[1, "c", 5, 8]],
        ),
        (
            "rpn_candidates",
            [("n", 2), (1, 3, 4), (2, 4), ("n", 3, "h", "w"), ("n", 12, "h", "w")],
            {"num_candidates": 50, "min_size": 0.0, "strides": [4]},
            [["n", 1, 50, 4], ["n", 1, 50]],
        ),
        (
            "multilevel_roi_align",
            [("n", "k", 4), ("n", 6, "h", "w")],
            {"output_size": 7, "sampling_ratio": 0, "strides": [4], "finest_scale": 56},
            [["n", "k", 6, 7, 7]],
        ),
        (
            "box_candidates",
            [("n", "p", 6), ("n", "p", 20), ("n", "p", 4), ("n", 1), ("n", 2), (2, 4)],
            {},
            [["n", 5, "p", 4], ["n", 5, "p"]],
        ),
        (
            "batched_nms",
            [("n", 3, 10, 4), ("n", 3, 10)],
            {"iou_threshold": 0.5, "score_threshold": 0.1, "max_output": 5},
            [["n", 1], ["n", 5]],
        ),
    ],
    ids=NAMES,
)
def test_shapes_are_inferred_as_far_as_they_are_known(
    name: str, shapes: Sequence[Shape], attributes: Attributes, expected: list[list[object]]
) -> None:
    made = model(name, attributes, shapes)
    sizes = [value.shape for value in opened(made).get_outputs()]
    assert len(sizes) == len(expected)
    for found, wanted in zip(sizes, expected, strict=True):
        assert len(found) == len(wanted)
        for size, known in zip(found, wanted, strict=True):
            assert size == known if known is not None else str(size).startswith("carafe_")


@pytest.mark.parametrize(
    ("name", "shapes", "change", "message"),
    [
        ("carafe", [(1, 4, 3, 3), (1, 25, 6, 5)], {}, r"masks has shape \[1, 25, 6, 5\], expected"),
        ("carafe_encoded", [(1, 4, 3, 3), (1, 99, 3, 3)], {}, r"encoded has shape .*100, 3, 3\]"),
        ("carafe", [(1, 4, 3), (1, 25, 6)], {}, r"\[1, 4, 3\], expected \[N, C, H, W\]"),
        ("carafe", [(1, 4, 3, 3), (1, 16, 6, 6)], {"kernel_size": 4}, "kernel_size is 4"),
        (
            "multilevel_roi_align",
            [(1, 5, 4), (1, 6, 8, 8), (1, 7, 4, 4)],
            {},
            r"\[1, 7, 4, 4\], expected \[1, 6, 4, 4\]",
        ),
        ("multilevel_roi_align", [(1, 5, 4), (1, 6, 8, 8)], {}, "1 feature maps for 2 strides"),
        (
            "rpn_candidates",
            [(1, 2), (2, 3, 4), (2, 4), (1, 3, 6, 7), (1, 3, 3, 4), (1, 12, 6, 7), (1, 12, 3, 5)],
            {},
            r"a map has shape \[1, 12, 3, 5\], expected \[1, 12, 3, 4\]",
        ),
        (
            "rpn_candidates",
            [(1, 2), (2, 3, 4), (2, 4), (1, 3, 6, 7), (1, 12, 6, 7)],
            {},
            "2 maps for 2 strides, expected two each",
        ),
        (
            "box_candidates",
            [(1, 5, 4), (1, 5, 16), (1, 5, 4), (1, 1), (1, 2), (2, 4)],
            {},
            r"deltas has shape \[1, 5, 16\], expected \[1, 5, 12\]",
        ),
        ("batched_nms", [(1, 2, 9, 4), (1, 2, 8)], {}, r"scores has shape \[1, 2, 8\]"),
        ("batched_nms", [(1, 2, 9, 4), (1, 2, 9)], {"iou_threshold": 2.0}, "iou_threshold is 2"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_operators_message(
    name: str, shapes: Sequence[Shape], change: Attributes, message: str
) -> None:
    usual = {
        "carafe": {"kernel_size": 5, "group_size": 1, "scale_factor": 2},
        "carafe_encoded": {"kernel_size": 5, "group_size": 1, "scale_factor": 2},
        "multilevel_roi_align": {
            "output_size": 7,
            "sampling_ratio": 0,
            "strides": [4, 8],
            "finest_scale": 56,
        },
        "rpn_candidates": {"num_candidates": 9, "min_size": 0.0, "strides": [4, 8]},
        "box_candidates": {},
        "batched_nms": {"iou_threshold": 0.5, "score_threshold": 0.1, "max_output": 5},
    }[name]
    free = [[None] * len(shape) for shape in shapes]
    with pytest.raises(Exception, match=f"{OPERATORS[name].onnx_name}: .*{message}"):
        # CARAFE's attributes are refused as it is opened.
        run(
            opened(model(name, usual | change, free)),
            [
                torch.zeros(shape, dtype=getattr(torch, each.type, torch.float32))
                for shape, each in zip(
                    shapes, map(OPERATORS[name].input_at, range(len(shapes))), strict=True
                )
            ],
        )


def test_sessions_come_and_go() -> None:
    case = CASES["batched_nms"][0]
    made = of_case("batched_nms", case, torch.float32)
    expected = faces.truth("batched_nms", case)
    for _ in range(50):
        faces.assert_right("batched_nms", run(opened(made), case.inputs), expected)


def test_threads_share_a_session() -> None:
    """Each of them takes the session's pool for its own call."""
    generator = torch.Generator().manual_seed(0)
    attributes = {"kernel_size": 5, "group_size": 1, "scale_factor": 2}
    features = torch.rand(1, 64, 32, 32, generator=generator)
    masks = torch.rand(1, 25, 64, 64, generator=generator)
    session = opened(model("carafe", attributes, [features.shape, masks.shape]))
    (expected,) = run(session, [features, masks])
    wrong: list[int] = []

    def work(thread: int) -> None:
        for _ in range(20):
            (out,) = run(session, [features, masks])
            if not np.array_equal(out, expected):
                wrong.append(thread)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
