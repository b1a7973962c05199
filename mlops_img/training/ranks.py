"""This process's part of each training step, and what it shares with the other ranks.

`SingleProcess` and `DataParallel` are the same to the loop. With several ranks, gradients are added up during the last
backward pass of a step, and one small sum over the ranks tells each the loss, and whether the run shall stop.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mlops_img.core.precision import Precision
from mlops_img.data.division import Division
from mlops_img.errors import UserError
from mlops_img.preprocessing.transforms import Preprocessing
from mlops_img.training.finite import FiniteCheck
from mlops_img.training.losses import denominator, is_weighted

FEWEST_IMAGES = 2  # of a forward pass, because of batch norm


class Share(NamedTuple):
    """How much of a forward pass a slice of it is.

    Attributes:
        labels: of the denominator of the loss: the number of images, or the sum of their weights.
        images: of the number of images.
    """

    labels: Tensor | float
    images: Tensor | float


class SingleProcess:
    """A process that trains alone.

    Attributes:
        model: for the forward passes.
        division: how the ranks divide a step.
        accumulate: forward passes of a step.
        parts: those in which this process takes part.
        rows: after `is_finite`: the images of the forward passes whose loss is not.
    """

    def __init__(
        self,
        model: nn.Module,
        division: Division,
        accumulate: int,
        device: torch.device,
        stop_requested: Callable[[], bool],
    ) -> None:
        self.model = model
        self.parts = division.parts(accumulate)
        self.accumulate = accumulate
        self.division = division
        self.device = device
        self.stop_requested = stop_requested  # called once after each step
        self.rows: list[int] = []
        self._check = FiniteCheck(device)
        self._loss = torch.zeros((), device=device)

    def share(self, loss: nn.Module, targets: Tensor) -> Share | None:
        """Return the share of this process in a forward pass, whose targets are given; None for the whole."""
        return None

    def idle_loss(self, loss: nn.Module, preprocessing: Preprocessing, precision: Precision) -> Tensor:
        """Return the loss of a slice that has no images, which is 0."""
        raise NotImplementedError("only a slice of a forward pass can be left without images")

    def summing(self, part: int) -> AbstractContextManager[None]:
        """Return the context of one forward and backward pass; the last one of a step adds up the gradients."""
        return nullcontext()

    def note(self, part: int, loss: Tensor, rows: Tensor) -> Tensor:
        """Note this process's summand of the step's loss, float32 (), and return what to differentiate.

        Args:
            part: the forward pass.
            loss: its loss, or that of a slice of it.
            rows: of its images, int64 (n,).
        """
        self._check.ask(loss, rows)
        self._loss = self._loss + loss.detach()
        return loss

    def is_finite(self) -> bool:
        """Return whether the step's losses are finite; called behind its last backward pass."""
        finite = self._check.answer()
        self.rows = self._check.rows
        return finite

    def step_loss(self) -> Tensor:
        """Return the loss of the step, float32 (), without waiting for the device."""
        loss, self._loss = self._loss, torch.zeros((), device=self.device)
        return loss


class DataParallel(SingleProcess):
    """One of several ranks.

    Gradients are those of the step's loss, whatever the number of ranks, because each rank's loss is its summand of
    that. The buffers of the model are each rank's own: those of rank 0 are evaluated and saved.
    """

    def __init__(
        self,
        model: nn.Module,
        division: Division,
        accumulate: int,
        device: torch.device,
        stop_requested: Callable[[], bool],
        *,
        may_skip_weights: bool,
    ) -> None:
        super().__init__(model, division, accumulate, device, stop_requested)
        self.model = DistributedDataParallel(
            model,
            device_ids=[device.index] if device.type == "cuda" else None,
            forward_sync_buffers=False,
            gradient_as_bucket_view=True,
            find_unused_parameters=may_skip_weights,
        )
        self.last = self.parts[-1]
        self._asked = stop_requested
        self.stop_requested = lambda: self._stopping
        self._stopping = False
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._event = torch.cuda.Event() if device.type == "cuda" else None
        self._begin()

    def _begin(self) -> None:
        # The loss of each forward pass, how many had too few images, how many ranks were asked to stop.
        self._sums = torch.zeros(self.accumulate + 2, device=self.device)
        self._noted: list[tuple[Tensor, Tensor]] = []

    def share(self, loss: nn.Module, targets: Tensor) -> Share | None:
        """Return the share of this rank in a forward pass; None where it does the whole of it."""
        if not self.division.sliced:
            return None
        if not (self.division.unequal or is_weighted(loss)):
            return Share(1 / self.division.world.size, 1 / self.division.world.size)
        count = torch.tensor(float(len(targets)), device=self.device)
        own = torch.stack([denominator(loss, targets).to(count), count])
        total = self.division.world.sum(own.clone())
        self._sums[-2] += total[1] < FEWEST_IMAGES
        return Share(*(own / total).unbind())

    def idle_loss(self, loss: nn.Module, preprocessing: Preprocessing, precision: Precision) -> Tensor:
        """Return a loss of 0 whose backward pass joins in the sum of the gradients."""
        self.share(loss, torch.zeros(0, dtype=torch.int64, device=self.device))
        side = preprocessing.image_size
        blank = torch.zeros((1, 3, side, side), dtype=torch.uint8, device=self.device)
        self.model.eval()  # batch norm must neither see the blank image nor refuse a single one
        try:
            with precision.autocast():
                logits: Tensor = self.model(preprocessing.normalize(blank))
        finally:
            self.model.train()
        return logits.float().sum() * 0

    def summing(self, part: int) -> AbstractContextManager[None]:
        """Return the context of one forward and backward pass; the last one of a step adds up the gradients."""
        return nullcontext() if part == self.last else cast(DistributedDataParallel, self.model).no_sync()

    def note(self, part: int, loss: Tensor, rows: Tensor) -> Tensor:
        """Note this rank's summand of the step's loss, and return what to differentiate."""
        self._sums[part] += loss.detach()
        self._noted.append((loss.detach(), rows))
        if part == self.last:
            self._exchange()
        return loss * self.division.world.size  # DistributedDataParallel averages

    def _exchange(self) -> None:
        """Add up over the ranks; on a GPU beside the backward pass, which follows."""
        self._sums[-1] += self._asked()
        if self._side is None or self._event is None:
            self._host = self.division.world.sum(self._sums)
            return
        work = dist.all_reduce(self._sums, async_op=True)
        self._sums.record_stream(self._side)
        self._host = torch.empty(self._sums.shape, pin_memory=True)
        with torch.cuda.stream(self._side):
            work.wait()  # lets this stream wait, not the process
            self._host.copy_(self._sums, non_blocking=True)
            self._event.record()

    def is_finite(self) -> bool:
        """Return whether the losses of all ranks are finite.

        Raises:
            UserError: a forward pass was left with too few images.
        """
        if self._event is not None:
            self._event.synchronize()
        *losses, too_few, stopping = self._host.tolist()
        self._stopping = stopping > 0
        if too_few:
            raise UserError(
                f"fewer than {FEWEST_IMAGES} images of a batch can be decoded, on all ranks together. "
                "Check the data with python -m mlops_img.audit"
            )
        if all(map(math.isfinite, losses)):
            return True
        own = [row for loss, rows in self._noted if not loss.isfinite() for row in rows.tolist()]
        self.rows = list(chain.from_iterable(self.division.world.gather_everywhere(own)))
        return False

    def step_loss(self) -> Tensor:
        """Return the loss of the step over all ranks, float32 (), added up as a single process does."""
        if self._event is not None:
            torch.cuda.current_stream(self.device).wait_event(self._event)
        loss = torch.zeros((), device=self.device)
        for part in range(self.accumulate):
            loss = loss + self._sums[part]
        self._begin()
        return loss
