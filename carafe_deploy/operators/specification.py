"""What is to be said of an operator, once; NumPy only.

A tensor's axes are letters: ``"NCHW"`` is a feature map, ``"BK4"`` a batch of K boxes.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from carafe_deploy.brief import OneLine
from carafe_deploy.types import DOMAIN, OperatorCall

if TYPE_CHECKING:
    import onnx
    import torch

__all__ = [
    "PLUGIN_ATTRIBUTES",
    "Argument",
    "Array",
    "Attributes",
    "BenchCall",
    "Implementation",
    "Operator",
    "Peer",
    "Shape",
    "normal",
]

Array = npt.NDArray[Any]
Attributes = Mapping[str, Any]
#: Sizes of a tensor's axes; None where one is not known.
Shape = Sequence[int | None]

#: TensorRT's parser takes the plugin, and not the function body, for a node that names them.
PLUGIN_ATTRIBUTES: Mapping[str, str] = {"plugin_version": "1", "plugin_namespace": DOMAIN}

#: ONNX's type of an attribute -> torch's.
ATTRIBUTE_TYPES = {"INT": "SymInt", "INTS": "SymInt[]", "FLOAT": "float"}


@dataclass(frozen=True)
class Argument:
    """An input or output.

    Attributes:
        name: in torch and ONNX.
        axes: one letter or digit an axis; C stands for channels.
        type: ``"T"``, the one type of all feature maps and weights, or NumPy's name of the only
            type it has.
        many: a list of tensors, in ONNX one input each: ``features0``, ``features1``, ...
    """

    name: str
    axes: str
    type: str = "T"
    many: bool = False

    @property
    def is_feature_map(self) -> bool:
        """It takes the precision of the network."""
        return self.type == "T"

    @property
    def onnx_type(self) -> str:
        """In an ONNX schema."""
        return {"T": "T", "float32": "tensor(float)"}.get(self.type, f"tensor({self.type})")


@dataclass(frozen=True, repr=False)
class Operator(OneLine):
    """One operator of the domain ``carafe``.

    Attributes:
        name: torch name without namespace.
        inputs: tensors, in order.
        outputs: likewise.
        attributes: name -> ``"INT"``, ``"INTS"`` or ``"FLOAT"``, in order, behind the inputs.
        shapes: those of the outputs, from the inputs' and the attributes.
        module: that holds its :class:`Implementation` in a mapping IMPLEMENTATIONS, by name.
        tolerance: kind of its limits in :mod:`carafe_deploy.tolerances`.
        family: operators of one purpose are measured and reported together, under this name ...
        title: ... which people read as this.
        random_inputs: float32 arrays of the shapes of a call, as a detector would make them; None
            for normal numbers.
        label: what tells two calls apart for people; None for the first input's shape.
        compared: results are ``"elements"``, each close to the other's, or ``"kept"``: a number of
            boxes and their indices.
        workloads: name, calls, and whether they are measured in all types and layouts. A plain
            :class:`~carafe_deploy.types.OperatorCall` gets random inputs.
        data: how the inputs of the workloads are distributed, where that decides their time.
        peers: other implementations of it.
        unfused: the operator that does a part of its work, and that one's inputs from its own.
        structure: attributes whose values change the ONNX function body, which takes the others
            from its node.
    """

    name: str
    inputs: tuple[Argument, ...]
    outputs: tuple[Argument, ...]
    attributes: Mapping[str, str]
    shapes: Callable[[Sequence[Shape], Attributes], tuple[Shape, ...]]
    module: str
    tolerance: str
    family: str
    title: str
    random_inputs: Callable[[OperatorCall, np.random.Generator], Sequence[Array]] | None = None
    label: Callable[[OperatorCall], str] | None = None
    compared: str = "elements"
    workloads: tuple[tuple[str, tuple[BenchCall | OperatorCall, ...], bool], ...] = ()
    data: str = ""
    peers: tuple[Peer, ...] = ()
    unfused: tuple[str, Callable[..., tuple[Any, ...]]] | None = None
    structure: tuple[str, ...] = ()

    @property
    def onnx_name(self) -> str:
        """In ONNX and TensorRT: ``CarafeEncoded`` for ``carafe_encoded``."""
        return "".join(part.capitalize() for part in self.name.split("_"))

    @property
    def schema(self) -> str:
        """In torch, without the name."""
        inputs = (f"Tensor{'[]' * each.many} {each.name}" for each in self.inputs)
        attributes = (f"{ATTRIBUTE_TYPES[kind]} {name}" for name, kind in self.attributes.items())
        results = ", ".join(["Tensor"] * len(self.outputs))
        results = results if len(self.outputs) == 1 else f"({results})"
        return f"({', '.join((*inputs, *attributes))}) -> {results}"

    @property
    def has_feature_maps(self) -> bool:
        """It comes in several types and layouts."""
        return any(each.is_feature_map for each in self.inputs)

    @property
    def has_layouts(self) -> bool:
        """Its feature maps lie in memory in several orders."""
        return any(each.is_feature_map and each.axes.endswith("HW") for each in self.inputs)

    def input_at(self, index: int) -> Argument:
        """What the tensor number ``index`` is, lists counted tensor by tensor."""
        return self.inputs[min(index, len(self.inputs) - 1)]

    def flat_inputs(self, count: int) -> tuple[Argument, ...]:
        """As ONNX has them, for ``count`` tensors in all."""
        *single, last = self.inputs
        if not last.many:
            return self.inputs
        levels = range(count - len(single))
        return (*single, *(Argument(f"{last.name}{i}", last.axes, last.type) for i in levels))

    def grouped(self, tensors: Iterable[Any]) -> list[Any]:
        """Tensors one by one as the torch operator takes them."""
        flat = list(tensors)
        if not self.inputs[-1].many:
            return flat
        single = len(self.inputs) - 1
        return [*flat[:single], flat[single:]]

    def inputs_for(self, call: OperatorCall, generator: np.random.Generator) -> tuple[Array, ...]:
        """Random inputs of a call, float32."""
        if self.random_inputs is not None:
            return tuple(self.random_inputs(call, generator))
        return tuple(normal(generator, shape) for shape in call.shapes)

    def label_of(self, call: OperatorCall) -> str:
        """The operator and what tells its calls apart."""
        if self.label is not None:
            return f"{self.name} {self.label(call)}"
        return f"{self.name} {'x'.join(map(str, call.shapes[0]))}"

    @property
    def implementation(self) -> Implementation:
        """What computes it; imports torch."""
        return importlib.import_module(self.module).IMPLEMENTATIONS[self.name]


@dataclass(frozen=True, repr=False)
class Implementation(OneLine):
    """What computes an operator. Functions take inputs, then attributes, all by position.

    Attributes:
        forward: the torch operator on all devices; allocates its results and aliases nothing.
        fake: shapes, types and layout of the results alone.
        reference: plain PyTorch, in float64 for float64.
        body: the ONNX function, from the node's attributes, the inputs' shapes as far as they are
            known, and the opset.
        gradients: from the result's gradient and all arguments, those of the inputs; None for an
            operator that does not train.
        has_kernels: ``forward`` calls libcarafe_kernels.so where that serves.
    """

    forward: Callable[..., Any]
    fake: Callable[..., Any]
    reference: Callable[..., Any]
    body: Callable[[Attributes, Sequence[Shape | None], int], onnx.FunctionProto]
    gradients: Callable[..., tuple[torch.Tensor, ...]] | None = None
    has_kernels: bool = False


# --- for the benchmark ---------------------------------------------------------------------------


def _nothing(device: str, dtype: str) -> str:
    return ""


@dataclass(frozen=True, repr=False)
class Peer(OneLine):
    """Another implementation to measure an operator against.

    Attributes:
        name: for people.
        function: takes the operator's inputs, and its attributes by keyword.
        lacks: why it cannot run on a device (``"cpu"``, ``"cuda"``) in a type; empty if it can.
        in_all_variants: measured in every type and layout, not only in the first.
        in_full_only: it takes long.
    """

    name: str
    function: Callable[..., Any]
    lacks: Callable[[str, str], str] = _nothing
    in_all_variants: bool = False
    in_full_only: bool = False


class BenchCall(Protocol):
    """One call that is measured."""

    @property
    def entry(self) -> str:
        """Torch name of the operator."""
        ...

    @property
    def attributes(self) -> Attributes:
        """Keyword arguments of the operator."""
        ...

    @property
    def flops(self) -> int:
        """Multiplications and additions; 0 where they depend on the data."""
        ...

    def num_bytes(self, item_size: int) -> int:
        """Inputs and results once each, with feature maps of ``item_size`` bytes an element."""
        ...

    def inputs(self, generator: torch.Generator) -> tuple[Any, ...]:
        """Float32 tensors, as the torch operator takes them."""
        ...


def normal(generator: np.random.Generator, shape: Sequence[int]) -> npt.NDArray[np.float32]:
    """Normal numbers."""
    return generator.standard_normal(tuple(shape), np.float32)


# --- an R-50 detector, on which operators are measured -------------------------------------------

#: Height and width of the padded image, and of the maps P2 to P6 with their strides.
IMAGE = (832, 1344)
STRIDES = (4, 8, 16, 32, 64)
MAPS = tuple((IMAGE[0] // stride, IMAGE[1] // stride) for stride in STRIDES)
CHANNELS = 256
