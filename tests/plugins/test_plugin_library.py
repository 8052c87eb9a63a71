"""What the TensorRT libraries export and need, and what TensorRT-RTX's registry makes of them."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from carafe_deploy.operators import BY_ONNX_NAME
from tests.plugins.built import built, run_python

PLUGINS = sorted(BY_ONNX_NAME)

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt_rtx is not installed (pip install 'carafe-deploy[rtx]')",
)

# Prints the creators of our namespace as JSON.
LIST_CREATORS = """
creators = trt.get_plugin_registry().all_creators
ours = [c for c in creators if c.plugin_namespace == "carafe"]
print(json.dumps(sorted([c.name, c.plugin_version] for c in ours)))
"""

# Argument 1: the register library. argument 2: an ONNX file.
PARSE = """
import ctypes, sys
import tensorrt_rtx as trt
ctypes.CDLL(sys.argv[1])
logger = trt.Logger(trt.Logger.ERROR)
network = trt.Builder(logger).create_network(0)
parser = trt.OnnxParser(network, logger)
parsed = parser.parse_from_file(sys.argv[2])
shapes = [network.get_output(i).shape for i in range(network.num_outputs)]
layers = [network.get_layer(i).type.name for i in range(network.num_layers)]
print(parsed, layers, [list(shape) for shape in shapes])
"""


def exported(library: Path) -> list[str]:
    lines = subprocess.run(
        ["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return sorted(line.split()[-1] for line in lines)


def needed(library: Path) -> list[str]:
    text = subprocess.run(
        ["readelf", "-dW", library], capture_output=True, text=True, check=True
    ).stdout
    return [line.split("[")[1].rstrip("]") for line in text.splitlines() if "(NEEDED)" in line]


FEATURES = ("features", TensorProto.FLOAT, ("n", 4, "h", "w"))
MASKS = ("masks", TensorProto.FLOAT, ("n", 25, "H", "W"))


def one_node_model(path: Path, *inputs: tuple, **attributes: object) -> Path:
    """A Carafe node, on features [n, 4, h, w] and masks [n, 25, H, W] unless told otherwise."""
    inputs = inputs or (FEATURES, MASKS)
    node = helper.make_node(
        "Carafe",
        [name for name, _, _ in inputs],
        ["out"],
        domain="carafe",
        plugin_version="1",
        plugin_namespace="carafe",
        **attributes,
    )
    graph = helper.make_graph(
        [node],
        "one_node",
        [helper.make_tensor_value_info(*given) for given in inputs],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
    )
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("carafe", 1)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=10), path)
    return path


def test_plugin_library_exports_its_two_entry_points_only() -> None:
    assert exported(built("libcarafe_tensorrt.so")) == ["getCreators", "setLoggerFinder"]


def test_companions_export_nothing() -> None:
    assert exported(built("libcarafe_tensorrt_register.so")) == []
    assert exported(built("rtx/libtensorrt_rtx.so")) == []


def test_plugin_libraries_need_neither_tensorrt_nor_cuda_nor_a_cxx_runtime() -> None:
    for name in ("libcarafe_tensorrt.so", "libcarafe_tensorrt_register.so"):
        libraries = needed(built(name))
        assert "libc.so.6" in libraries
        for foreign in ("nvinfer", "tensorrt", "cuda", "cudart", "stdc++", "gcc"):
            assert not [library for library in libraries if foreign in library], libraries


def test_alias_needs_the_versioned_library_only() -> None:
    assert needed(built("rtx/libtensorrt_rtx.so")) == ["libtensorrt_rtx.so.1"]


def test_register_library_without_tensorrt_says_so_once() -> None:
    register = built("libcarafe_tensorrt_register.so")
    result = run_python("import ctypes, sys; ctypes.CDLL(sys.argv[1])", register)
    assert result.returncode == 0
    (line,) = result.stderr.splitlines()
    assert line.startswith("carafe: no TensorRT is loaded in this process")
    assert "libtensorrt_rtx.so" in line


@needs_rtx
def test_registry_loads_the_plugin_library() -> None:
    code = (
        "import json, sys\n"
        "import tensorrt_rtx as trt\n"
        "assert trt.get_plugin_registry().load_library(sys.argv[1]) is not None\n" + LIST_CREATORS
    )
    result = run_python(code, built("libcarafe_tensorrt.so"))
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == [[name, "1"] for name in PLUGINS]
    assert "carafe:" not in result.stderr


@needs_rtx
def test_register_library_registers_once_and_then_is_silent(tmp_path: Path) -> None:
    register = built("libcarafe_tensorrt_register.so")
    # Loaded from another path, the same library runs again.
    copy = tmp_path / register.name
    copy.write_bytes(register.read_bytes())
    code = (
        "import ctypes, json, sys\n"
        "import tensorrt_rtx as trt\n"
        "for library in sys.argv[1:]:\n"
        "    ctypes.CDLL(library)\n" + LIST_CREATORS
    )
    result = run_python(code, register, register, copy)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == [[name, "1"] for name in PLUGINS]
    assert "carafe:" not in result.stderr


@needs_rtx
def test_register_library_far_from_the_plugins_names_the_missing_file(tmp_path: Path) -> None:
    register = built("libcarafe_tensorrt_register.so")
    alone = tmp_path / register.name
    alone.write_bytes(register.read_bytes())
    result = run_python("import ctypes, sys, tensorrt_rtx; ctypes.CDLL(sys.argv[1])", alone)
    assert result.returncode == 0
    assert f"could not load {tmp_path / 'libcarafe_tensorrt.so'}" in result.stderr


@needs_rtx
def test_parser_takes_the_plugin_and_infers_dynamic_shapes(tmp_path: Path) -> None:
    """Without the alias of libtensorrt_rtx.so the process would abort here."""
    model = one_node_model(tmp_path / "one.onnx", kernel_size=5, group_size=1, scale_factor=2)
    result = run_python(PARSE, built("libcarafe_tensorrt_register.so"), model)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "True ['PLUGIN_V3'] [[-1, 4, -1, -1]]"


@needs_rtx
@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        (
            {"kernel_size": 4, "group_size": 1, "scale_factor": 2},
            "carafe: Carafe: kernel_size is 4, expected an odd number of at least 1",
        ),
        (
            {"kernel_size": 5, "group_size": 1},
            "carafe: Carafe: field scale_factor is missing",
        ),
        (
            {"kernel_size": 3, "group_size": 1, "scale_factor": 2},
            "carafe: Carafe: masks is [?, 25, ?, ?], expected "
            "[N, group_size*kernel_size**2, scale_factor*H, scale_factor*W] = [?, 9, ?, ?]",
        ),
    ],
)
def test_parser_fails_with_our_line_on_nodes_that_do_not_fit(
    tmp_path: Path, attributes: dict[str, int], message: str
) -> None:
    model = one_node_model(tmp_path / "one.onnx", **attributes)
    result = run_python(PARSE, built("libcarafe_tensorrt_register.so"), model)
    assert message in result.stderr.splitlines()
    assert "True ['PLUGIN_V3']" not in result.stdout


STATIC_FEATURES = ("features", TensorProto.FLOAT, (1, 4, 6, 6))
STATIC_MASKS = ("masks", TensorProto.FLOAT, (1, 25, 12, 12))


@needs_rtx
@pytest.mark.parametrize(
    ("inputs", "attributes", "message"),
    [
        (
            (STATIC_FEATURES, ("masks", TensorProto.FLOAT, (1, 25, 11, 12))),
            {},
            "masks is [1, 25, 11, 12], expected "
            "[N, group_size*kernel_size**2, scale_factor*H, scale_factor*W] = [1, 25, 12, 12]",
        ),
        (
            (("features", TensorProto.FLOAT16, (1, 4, 6, 6)), STATIC_MASKS),
            {},
            "masks is float32, expected float16 like the maps before it",
        ),
        (
            (("features", TensorProto.FLOAT, (4, 6, 6)), STATIC_MASKS),
            {},
            "features is [4, 6, 6], expected [N, C, H, W] = [4, 6, 6, ?]",
        ),
        ((STATIC_FEATURES,), {}, "1 inputs and 1 outputs, expected 2 and 1"),
        (
            (STATIC_FEATURES, STATIC_MASKS),
            {"kernel_size": "5"},
            "field kernel_size has type CHAR, expected INT32",
        ),
        (
            (STATIC_FEATURES, STATIC_MASKS),
            {"kernel_size": [5, 5]},
            "field kernel_size has 2 values, expected 1",
        ),
        (
            (STATIC_FEATURES, STATIC_MASKS),
            {"kernel_size": 2**31 - 1},
            "kernel_size 2147483647, group_size 1 and scale_factor 2 give a pixel too many "
            "weights, expected fewer than 2^31",
        ),
    ],
)
def test_parser_fails_with_our_line_on_tensors_and_values_that_do_not_fit(
    tmp_path: Path, inputs: tuple, attributes: dict[str, object], message: str
) -> None:
    fitting = {"kernel_size": 5, "group_size": 1, "scale_factor": 2}
    model = one_node_model(tmp_path / "one.onnx", *inputs, **{**fitting, **attributes})
    result = run_python(PARSE, built("libcarafe_tensorrt_register.so"), model)
    assert result.returncode == 0, result.stderr
    assert f"carafe: Carafe: {message}" in result.stderr.splitlines()
    assert result.stdout.splitlines()[-1].startswith("False")


@needs_rtx
def test_groups_that_do_not_divide_the_channels_end_the_build(tmp_path: Path) -> None:
    """The parser asks for shapes only, which the groups do not change."""
    masks = ("masks", TensorProto.FLOAT, (1, 75, 12, 12))
    model = one_node_model(
        tmp_path / "one.onnx", STATIC_FEATURES, masks, kernel_size=5, group_size=3, scale_factor=2
    )
    code = (
        PARSE.replace("create_network(0)", "create_network(1)").replace(
            "trt.Builder(logger).create", "(builder := trt.Builder(logger)).create"
        )
        + "plan = builder.build_serialized_network(network, builder.create_builder_config())\n"
        "print('no engine' if plan is None else 'an engine')\n"
    )
    result = run_python(code, built("libcarafe_tensorrt_register.so"), model)
    assert result.stdout.splitlines()[-1] == "no engine", result.stderr
    line = "features has 4 channels, not divisible by group_size = 3: choose a divisor"
    assert f"carafe: Carafe: {line}" in result.stderr.splitlines()
