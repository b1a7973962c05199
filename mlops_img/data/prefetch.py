"""Batches on the device where they are used, copied ahead of the work that waits for them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from mlops_img.data.batch import Batch


def on_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Yield the batches on a device; on a GPU each is copied while the one before it is in use.

    The copies run on a stream of their own. Work that is queued behind them on the current stream waits for no more
    than its own batch; from pinned memory, neither does the host.
    """
    if device.type != "cuda":
        yield from (batch.to(device) for batch in batches)
        return
    copies = torch.cuda.Stream(device)
    ready: Batch | None = None
    for batch in batches:
        with torch.cuda.stream(copies):
            copied = batch.to(device)
        if ready is not None:
            yield ready
        # The copy was queued before the work on the batch that was just yielded, so this costs that work nothing.
        in_use = torch.cuda.current_stream(device)
        in_use.wait_stream(copies)
        for tensor in (copied.images, copied.labels):
            tensor.record_stream(in_use)  # its memory is reused only after that work
        ready = copied
    if ready is not None:
        yield ready
