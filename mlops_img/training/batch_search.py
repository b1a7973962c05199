"""Finding a batch size by the speed of training steps, for train.batch_size=auto."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from mlops_img.core.precision import Precision
from mlops_img.training.setup import Setup

SMALLEST, LARGEST = 8, 512
STEPS_PER_EPOCH = 20  # at least: with fewer, an epoch changes the weights too rarely
TIMED_STEPS = 3
WORTHWHILE = 1.1  # times the images per second, for which a batch is doubled
MEMORY_SHARE = 0.8  # of a GPU's memory that a step may take

log = logging.getLogger(__name__)


def find_batch_size(setup: Setup) -> int:
    """Return the batch size, a power of two, beyond which doubling it trains hardly faster.

    Steps of a copy of the model are timed on black images; on a GPU the batch must leave memory for the rest.
    """
    precision, config = setup.recipe.precision, setup.config
    model = copy.deepcopy(setup.state.model).train()
    side = config.train.resolution[-1] if config.train.resolution else config.data.image_size
    channels = 1 if setup.recipe.preprocessing.gray else 3

    def speed(size: int) -> float | None:
        images = torch.zeros(size, channels, side, side, device=precision.device)
        return images_per_second(model, images.contiguous(memory_format=torch.channels_last), precision)

    most = len(setup.dataset.train) // config.train.accumulate // STEPS_PER_EPOCH
    size = choose_size(speed, list(doubled(SMALLEST, min(LARGEST, most))))
    log.info("train.batch_size=auto: %d", size)
    return size


def doubled(first: int, last: int) -> Iterator[int]:
    """Yield `first`, and twice of each number as long as that is at most `last`."""
    while True:
        yield first
        first *= 2
        if first > last:
            return


def choose_size(speed: Callable[[int], float | None], sizes: list[int]) -> int:
    """Return the first size after which the next one is not worthwhile.

    Args:
        speed: returns images per second at a size, or None where it does not fit into memory.
        sizes: ascending.
    """
    chosen, before = sizes[0], speed(sizes[0])
    for size in sizes[1:]:
        now = speed(size)
        if before is None or now is None or now < WORTHWHILE * before:
            break
        chosen, before = size, now
    return chosen


def images_per_second(model: nn.Module, images: Tensor, precision: Precision) -> float | None:
    """Return the speed of forward and backward passes, or None where the images do not fit into the GPU's memory."""
    device = precision.device
    try:
        seconds = [_timed_step(model, images, precision) for _ in range(1 + TIMED_STEPS)][1:]
    except torch.OutOfMemoryError:
        return None
    finally:
        model.zero_grad(set_to_none=True)
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        if torch.cuda.max_memory_reserved(device) > MEMORY_SHARE * total:
            return None
    return len(images) / min(seconds)


def _timed_step(model: nn.Module, images: Tensor, precision: Precision) -> float:
    start = time.perf_counter()
    with torch.random.fork_rng(devices=[]), precision.autocast():
        loss = model(images).float().square().mean()
    loss.backward()
    if precision.device.type == "cuda":
        torch.cuda.synchronize(precision.device)
    return time.perf_counter() - start
