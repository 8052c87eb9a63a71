"""TorchScript files behind the Runner protocol."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from carafe_deploy.errors import ArtefactError
from carafe_deploy.known_warnings import without_known_warnings
from carafe_deploy.ops._kernels import kernel_library
from carafe_deploy.runners._fused import fuses
from carafe_deploy.runners._fused_torchscript import fuse_convolutions
from carafe_deploy.runners._torch import TorchRunner, resolve_device
from carafe_deploy.types import METADATA_KEY, ModelInfo

__all__ = ["TorchScriptRunner"]


class TorchScriptRunner(TorchRunner):
    """Runs a file written by ``export_torchscript``; loading executes no Python of the file.

    Args:
        path: of the ``.ts`` file.
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        tf32: on a GPU, let float32 convolutions and matrix products round their factors to 10 bits
            of mantissa.
        fused: on a GPU, let convolutions add shortcuts and apply ReLUs themselves; None for where
            it can be.

    Raises:
        ArtefactError: the file is missing, truncated or was exported by something else.
        BackendUnavailableError: there is no such device here, or it is none that fuses.
        CarafeDeployError: ``tf32`` and another precision than fp32.
    """

    backend = "torchscript"

    def __init__(
        self,
        path: str | os.PathLike[str],
        device: str = "cpu",
        *,
        tf32: bool = False,
        fused: bool | None = None,
    ) -> None:
        path = Path(path)
        target = resolve_device(device)
        kernel_library()  # a library that cannot be used says so here, not in a call through C++
        extra_files: dict[str, Any] = {METADATA_KEY: ""}
        try:
            with without_known_warnings():
                module = torch.jit.load(str(path), map_location=target, _extra_files=extra_files)
        except Exception as error:  # whatever the file makes torch's reader do
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            reason = (lines or [type(error).__name__])[0]
            raise ArtefactError(
                f"{path} cannot be loaded as TorchScript ({reason}): export it again, with the "
                "version of carafe-deploy that runs it"
            ) from error
        text = extra_files[METADATA_KEY]
        if not text:
            raise ArtefactError(
                f"{path} holds no carafe_deploy metadata: export the checkpoint with "
                "`carafe-deploy export --format torchscript`"
            )
        info = ModelInfo.from_json(text, path)
        stages = getattr(module, "stages", None)
        if not callable(stages):
            raise ArtefactError(f"{path} has no method `stages`: export it again")
        if fuses(fused, target, info.precision, tf32):
            fuse_convolutions(module)
            stages = module.stages
        super().__init__(info, target, module, stages, tf32=tf32, label=str(path))
