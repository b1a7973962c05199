"""Structured pruning: whole channels go, the net stays an ordinary dense one, and is fine-tuned."""

from __future__ import annotations

from copy import deepcopy

import torch
import torch_pruning
from torch import nn

from mlops_img.compression.capture import ExportableModel
from mlops_img.compression.measure import count_macs
from mlops_img.errors import UserError
from mlops_img.models.weights import classifier_names
from mlops_img.preprocessing.transforms import Preprocessing

TRIES = 12  # of the share of channels, halving the interval each time
CLOSE = 0.01  # to the target share of the multiply-accumulates


def prune_channels(model: nn.Module, preprocessing: Preprocessing, share: float) -> nn.Module:
    """Return a copy with the least important channels taken out, by the norm of their weights.

    Args:
        model: in evaluation mode, on the CPU.
        preprocessing: of the model.
        share: of the multiply-accumulates that is to go.

    Raises:
        UserError: the model cannot be pruned that far.
    """
    before = _macs(model, preprocessing)
    low, high = 0.0, 1.0
    best: tuple[float, nn.Module] | None = None
    for _ in range(TRIES):
        middle = (low + high) / 2
        pruned = _without_channels(model, preprocessing, middle)
        gone = 1 - _macs(pruned, preprocessing) / before
        if best is None or abs(gone - share) < abs(best[0] - share):
            best = (gone, pruned)
        if abs(gone - share) <= CLOSE:
            break
        low, high = (middle, high) if gone < share else (low, middle)
    assert best is not None
    if best[0] <= 0:
        raise UserError("prune=channels: no channel of this model can be taken out. Use prune=none")
    return best[1]


def _without_channels(model: nn.Module, preprocessing: Preprocessing, ratio: float) -> nn.Module:
    pruned = deepcopy(model)
    for parameter in pruned.parameters():
        parameter.requires_grad_(True)  # what is frozen would not be traced
    kept = [pruned.get_submodule(name) for name in classifier_names(pruned)] + _attention(pruned)
    images = torch.zeros(1, _channels(preprocessing), preprocessing.image_size, preprocessing.image_size)
    pruner = torch_pruning.pruner.MagnitudePruner(
        pruned,
        images,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio,
        global_pruning=False,
        round_to=8,  # vector instructions take eight channels at a time
        ignored_layers=kept,
    )
    pruner.step()
    return pruned


def _attention(model: nn.Module) -> list[nn.Module]:
    """Return the projections of attention: the width of their heads is written down elsewhere, too."""
    blocks = [module for module in model.modules() if hasattr(module, "qkv")]
    return [block.get_submodule(name) for block in blocks for name in ("qkv", "proj")]


def _channels(preprocessing: Preprocessing) -> int:
    return 1 if preprocessing.gray else 3


def _macs(model: nn.Module, preprocessing: Preprocessing) -> int:
    return count_macs(ExportableModel(model, preprocessing)).total
