"""TorchScript files on a GPU: convolutions that add shortcuts and apply ReLUs themselves.

A file holds PyTorch's usual operators, so that it runs everywhere. Where it is loaded for a GPU its
graphs are rewritten to what :mod:`carafe_deploy.ops.convolutions` tells of. PyTorch's own pass for
that (``torch.jit.optimize_for_inference``) leaves out convolutions with channels-last weights.
"""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["fuse_convolutions"]

_VALUES = (
    "%x, %weight, %bias, %stride, %padding, %dilation, %transposed, %output_padding, %groups, "
    "%benchmark, %deterministic, %cudnn_enabled, %allow_tf32"
)
#: As PyTorch traces a convolution, and a sum and a ReLU behind it.
_ADD_RELU = f"""
graph({_VALUES}, %shortcut, %alpha):
  %convolved = aten::_convolution({_VALUES})
  %sum = aten::add_(%convolved, %shortcut, %alpha)
  %result = aten::relu_(%sum)
  return (%result)"""
_RELU = f"""
graph({_VALUES}):
  %convolved = aten::_convolution({_VALUES})
  %result = aten::relu_(%convolved)
  return (%result)"""
#: What takes their place.
_FUSED_ADD_RELU = """
  %result = aten::cudnn_convolution_add_relu(
    %x, %weight, %shortcut, %alpha, %bias, %stride, %padding, %dilation, %groups)"""
_FUSED_RELU = """
  %result = aten::cudnn_convolution_relu(
    %x, %weight, %bias, %stride, %padding, %dilation, %groups)"""


def fuse_convolutions(module: torch.jit.ScriptModule) -> None:
    """Rewrite all methods of a loaded file that has not run yet, in place."""
    methods: Any = module._c
    for name in methods._method_names():
        graph = methods._get_method(name).graph
        torch._C._jit_pass_inline(graph)
        for usual, values, fused in (
            (_ADD_RELU, f"{_VALUES}, %shortcut, %alpha", _FUSED_ADD_RELU),
            (_RELU, _VALUES, _FUSED_RELU),
        ):
            replacement = f"graph({values}):{fused}\n  return (%result)"
            torch._C._jit_pass_custom_pattern_based_rewrite_graph(usual, replacement, graph)
        graph.lint()
