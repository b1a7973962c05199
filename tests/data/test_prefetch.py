"""Batches that are moved to the device; on a GPU, see tests/training/test_loop_cuda.py."""

from __future__ import annotations

from itertools import islice

import torch

from mlops_img.data.prefetch import on_device
from tests.helpers.tiny_training import batches


def test_on_a_cpu_batches_are_passed_on_as_they_are_and_none_is_read_ahead() -> None:
    read = []
    given = (read.append(number) or one for number, one in enumerate(batches()))
    for number, moved in enumerate(islice(on_device(given, torch.device("cpu")), 3)):
        assert read == list(range(number + 1))
        one = next(batches(number))
        assert torch.equal(moved.images, one.images)
        assert torch.equal(moved.labels, one.labels)
