"""The check that losses are finite, which does not leave a GPU idle."""

from __future__ import annotations

import torch
from torch import Tensor


class FiniteCheck:
    """Checks that the loss is finite before the optimizer uses it, without leaving the device idle.

    The flag is copied to the host behind the forward pass. By the time that the host waits for it, the whole
    backward pass is queued behind it, so the device goes on working.
    """

    def __init__(self, device: torch.device) -> None:
        cuda = device.type == "cuda"
        self.flags: list[tuple[Tensor, list[int]]] = []
        self.rows: list[int] = []
        self.event = torch.cuda.Event() if cuda else None
        self.pinned = cuda

    def ask(self, loss: Tensor, rows: Tensor) -> None:
        """Queue the check of this loss, float32 (), of the images in these rows."""
        flag = torch.empty((), dtype=torch.bool, pin_memory=self.pinned)
        flag.copy_(torch.isfinite(loss.detach()), non_blocking=True)
        if self.event is not None:
            self.event.record()
        self.flags.append((flag, rows.tolist()))

    def answer(self) -> bool:
        """Return whether all losses since the last answer are finite; if not, `rows` are the images."""
        if self.event is not None:
            self.event.synchronize()
        self.rows = [row for flag, rows in self.flags if not flag.item() for row in rows]
        self.flags.clear()
        return not self.rows
