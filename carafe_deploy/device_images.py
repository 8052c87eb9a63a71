"""Images of a batch that wait on a torch device, for runners that compute there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from carafe_deploy.brief import OneLine


@dataclass(frozen=True, repr=False)
class DeviceImages(OneLine):
    """Stands for the array that a runner would copy to its device.

    Attributes:
        tensor: what the array would hold.
        ready: recorded after the work that fills it; None where that is done.
    """

    tensor: Tensor
    ready: torch.cuda.Event | None = None

    @property
    def like(self) -> npt.NDArray[Any]:
        """An array of the same shape and type, which takes no memory, for checks."""
        dtype = np.uint8 if self.tensor.dtype == torch.uint8 else np.float32
        return np.broadcast_to(np.zeros((), dtype), tuple(self.tensor.shape))

    def wait(self) -> Tensor:
        """The tensor, for work that is enqueued from now on in the device's current stream."""
        if self.ready is not None:
            stream = torch.cuda.current_stream(self.tensor.device)
            stream.wait_event(self.ready)
            self.tensor.record_stream(stream)  # its memory was another stream's
        return self.tensor
