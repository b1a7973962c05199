"""Where a model's work lies, and which of its layers suffer most from int8."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mlops_img.compression.capture import Servable, example_images

LINEAR_OPERATORS = (torch.ops.aten.mm, torch.ops.aten.addmm)


def count_macs(servable: Servable) -> tuple[int, float]:
    """Return the multiply-accumulates for one image, and the share of them in linear layers."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        servable(example_images(servable.preprocessing, 1))
    by_operator = counter.get_flop_counts()["Global"]
    total = sum(by_operator.values())
    linear = sum(count for operator, count in by_operator.items() if operator in LINEAR_OPERATORS)
    return total // 2, linear / max(total, 1)


@torch.no_grad()
def by_sensitivity(servable: nn.Module, images: Tensor, *, linear_only: bool = False) -> list[str]:
    """Return the names of the layers that int8 reaches, the one whose rounding moves the logits most first.

    Each layer in turn computes as if in int8, all others in fp32.

    Args:
        servable: in evaluation mode.
        images: uint8 (n, 3, side, side), of the training set.
        linear_only: leave convolutions out, as dynamic quantization does.
    """
    exact, _ = servable(images)
    kinds = (nn.Linear,) if linear_only else (nn.Linear, nn.Conv2d)
    errors = {}
    for name, layer in servable.named_modules():
        if isinstance(layer, kinds):
            with _rounded(layer):
                said, _ = servable(images)
            errors[name] = (said - exact).square().mean().item()
    return sorted(errors, key=errors.__getitem__, reverse=True)


@contextmanager
def _rounded(layer: nn.Conv2d | nn.Linear) -> Iterator[None]:
    """Let a layer round its weights, by channel, and its inputs to 8 bits."""
    weight = layer.weight.data
    scale = (weight.flatten(1).abs().amax(1) / 127).clamp_min(1e-12)
    zero = torch.zeros_like(scale, dtype=torch.int32)
    handle = layer.register_forward_pre_hook(lambda _, inputs: (_round_input(inputs[0]),))
    layer.weight.data = torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -127, 127)
    try:
        yield
    finally:
        handle.remove()
        layer.weight.data = weight


def _round_input(values: Tensor) -> Tensor:
    low, high = min(values.min().item(), 0.0), max(values.max().item(), 0.0)
    scale = max((high - low) / 255, 1e-12)
    return torch.fake_quantize_per_tensor_affine(values, scale, round(-low / scale), 0, 255)
