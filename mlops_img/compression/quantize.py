"""Int8 by PT2E: quantize a captured model for the CPU, with calibration (static) or without (dynamic)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule
from torchao.quantization.pt2e import move_exported_model_to_eval
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
    QuantizationConfig,
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
)

from mlops_img.compression.capture import capture
from mlops_img.core.seeding import Purpose, derive

WIDE_SUMS = ("avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8")
SEVEN_BITS = (-64, 63)


def quantize(
    exportable: nn.Module, batches: Sequence[Tensor], max_batch: int, *, dynamic: bool, keep: Sequence[str] = ()
) -> ExportedProgram:
    """Return the model in int8: weights by channel; activations by what was seen, or if dynamic on the fly.

    Args:
        exportable: in evaluation mode.
        batches: uint8 (n, 3, side, side); static quantization learns from them how large activations get.
        max_batch: the most images that the program will take.
        dynamic: quantize linear layers alone, their inputs at run time.
        keep: names of layers (of `exportable`) that stay in fp32.
    """
    quantizer = X86InductorQuantizer()
    how = _with_room_for_sums(get_default_x86_inductor_quantization_config(is_dynamic=dynamic))
    if dynamic:
        quantizer.set_module_type_qconfig(nn.Linear, how)  # convolutions have no fast kernel for it
    else:
        quantizer.set_global(how)
    for name in keep:
        quantizer.set_module_name_qconfig(name, None)
    captured = capture(exportable, batches[0], max_batch).module(check_guards=False)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # each layer that stays in fp32 would get one
        prepared = prepare_pt2e(captured, quantizer)
        for batch in batches if not dynamic else batches[:1]:
            prepared(batch)
        converted = convert_pt2e(prepared)
    move_exported_model_to_eval(converted)
    _drop_unused_weights(converted)
    return capture(converted, batches[0], max_batch)


def _with_room_for_sums(how: QuantizationConfig) -> QuantizationConfig:
    """Take a bit from the weights where the processor adds int8 products in 16 bits, which 8 bits overflow.

    Those without VNNI do. Activations, of which a whole tensor shares one scale, would lose more by it: a
    mobilenetv4's top-1 fell by 3.5 points on CIFAR-10, instead of 0.3.
    """
    known = torch.cpu.get_capabilities()
    if known.get("architecture") != "x86_64" or any(known.get(name) for name in WIDE_SUMS):
        return how
    low, high = SEVEN_BITS
    return replace(how, weight=replace(how.weight, quant_min=low, quant_max=high))


def _drop_unused_weights(module: GraphModule) -> None:
    """Take out the fp32 weights that int8 ones have replaced; they would be saved all the same."""
    used = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    for name, _ in [*module.named_parameters(), *module.named_buffers()]:
        if name not in used:
            owner, _, leaf = name.rpartition(".")
            delattr(module.get_submodule(owner), leaf)


def calibration_rows(labels: NDArray[np.int64], count: int, seed: int) -> NDArray[np.intp]:
    """Choose rows of images, the same number of each class as far as there are: int64 (count,) or all."""
    random = np.random.default_rng(derive(seed, Purpose.CALIBRATION))
    order = random.permutation(len(labels))
    # The place of each image among those of its class: first all the first ones, then all the second ones.
    by_class = order[np.argsort(labels[order], kind="stable")]
    sizes = np.bincount(labels)
    place = np.concatenate([np.arange(size) for size in sizes])
    return by_class[np.argsort(place, kind="stable")][:count]
