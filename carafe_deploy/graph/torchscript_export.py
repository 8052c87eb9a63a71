"""A detector as a TorchScript file for Python and libtorch, on CPU and CUDA."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from carafe_deploy.files import atomic_path
from carafe_deploy.graph.metadata import model_info, reference_shape
from carafe_deploy.graph.options import ExportOptions, deployable
from carafe_deploy.graph.torchscript_lists import own_lists
from carafe_deploy.graph.torchscript_numbers import check_portable, numbers_for_tensors
from carafe_deploy.known_warnings import without_known_warnings
from carafe_deploy.models.detector import (
    Detector,
    ImageNormalization,
    StagedDetector,
)
from carafe_deploy.types import METADATA_KEY, ModelInfo

__all__ = ["export_torchscript"]


class _Exported(nn.Module):
    """The traced module: ``forward`` for deployment, ``stages`` for parity; weights are shared."""

    def __init__(self, detector: Detector, uint8_input: bool, channels_last: bool) -> None:
        super().__init__()
        staged = StagedDetector(detector)
        preprocessing = detector.config.preprocessing
        self.plain: nn.Module = detector
        self.staged: nn.Module = staged
        if uint8_input:
            self.plain = ImageNormalization(detector, preprocessing, channels_last)
            self.staged = ImageNormalization(staged, preprocessing, channels_last)
        self._reorder = channels_last and not uint8_input

    def forward(self, images: Tensor, image_sizes: Tensor) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = self.plain(self._laid_out(images), image_sizes)
        return outputs

    def stages(self, images: Tensor, image_sizes: Tensor) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = self.staged(self._laid_out(images), image_sizes)
        return outputs

    def _laid_out(self, images: Tensor) -> Tensor:
        """Programs hand over NCHW; where the weights are channels-last, so are the images."""
        return images.contiguous(memory_format=torch.channels_last) if self._reorder else images


def export_torchscript(
    detector: Detector,
    path: str | os.PathLike[str],
    options: ExportOptions,
    *,
    name: str,
    source: Mapping[str, str],
    channels_last: bool = True,
    progress: Callable[[str], None] = lambda step: None,
) -> ModelInfo:
    """Write a detector as TorchScript.

    The file's ``forward`` returns the detector's outputs in order; its method ``stages`` returns
    them followed by the intermediate tensors. The extra file ``carafe_deploy`` holds the metadata
    as JSON, the names of both included. A program that loads the file must have the ``carafe``
    operators registered (``import carafe_deploy.ops`` in Python).

    Args:
        detector: as trained; it is copied, not changed.
        path: of the file to write; it appears complete or not at all.
        options: precision and thresholds; sizes become bounds that runners check.
        name: of the model, stored in the metadata.
        source: file name and SHA-256 of the checkpoint, stored in the metadata.
        channels_last: keep weights and feature maps in that memory format; inputs and outputs are
            the same either way.
        progress: is told each step's name.

    Raises:
        ExportError: the options are out of range, or the trace holds a device or a tensor, so that
            it would run nowhere else.
    """
    info = model_info(detector.config, options, name=name, source=source)
    progress("prepare")
    deployed = deployable(detector, options, channels_last=channels_last)
    module = _Exported(deployed, options.uint8_input, channels_last).eval()
    batch, height, width = _trace_shape(deployed, info)
    if options.uint8_input:
        images = torch.zeros(batch, height, width, 3, dtype=torch.uint8)
    else:
        images = torch.zeros(batch, 3, height, width)
    sizes = torch.tensor([[height, width]] * batch, dtype=torch.float32)
    progress("trace")
    with without_known_warnings(), torch.no_grad():
        traced = torch.jit.trace_module(
            module,
            {"forward": (images, sizes), "stages": (images, sizes)},
            check_trace=False,
        )
    numbers_for_tensors(traced)
    own_lists(traced)
    check_portable(traced, ("forward", "stages"))
    progress("write")
    # Saved under a name, the file would keep that name, a temporary one, in all of its entries.
    content = io.BytesIO()
    with without_known_warnings():
        torch.jit.save(traced, content, _extra_files={METADATA_KEY: info.to_json()})
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.getbuffer())
    return info


def _trace_shape(detector: Detector, info: ModelInfo) -> tuple[int, int, int]:
    """The smallest size will do: a trace of this detector holds no size."""
    if info.input.is_static:
        return reference_shape(detector.config, info.input)
    return info.input.batch[0], info.input.height[0], info.input.width[0]
