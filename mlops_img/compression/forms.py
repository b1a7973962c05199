"""The forms in which a model can be exported, each an entry of `FORMS`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn
from torch.export import ExportedProgram

from mlops_img.bundle.manifest import PRECISION_PATTERN
from mlops_img.compression.capture import ExportableModel, capture, example_images
from mlops_img.compression.context import ExportContext
from mlops_img.compression.quantize import quantize
from mlops_img.core.precision import cpu_computes_bf16

# From the context and the names of the layers that stay in fp32 to a program, captured but not compiled.
Build = Callable[[ExportContext, Sequence[str]], ExportedProgram]


def _supported_everywhere(device: torch.device) -> str | None:
    return None


def _no_note(context: ExportContext) -> str:
    return ""


@dataclass(frozen=True)
class Form:
    """One way of computing a model.

    Attributes:
        precision: its name in the manifest and in tables, e.g. int8-static.
        build: makes the program.
        unsupported_reason: returns why the form makes no sense on a device, or None.
        quantized: kinds of layers that lose accuracy in this form; the most sensitive ones go back to fp32 until the
            loss is accepted. Empty: there is nothing to put back.
        note: returns what the table of candidates remarks on the form.
    """

    precision: str
    build: Build
    unsupported_reason: Callable[[torch.device], str | None] = _supported_everywhere
    quantized: tuple[type[nn.Module], ...] = ()
    note: Callable[[ExportContext], str] = _no_note


# By `quantize.name`; `form` adds to it. The first one is what the others are compared with and fall back to.
FORMS: dict[str, Form] = {}
B = TypeVar("B", bound=Build)


def form(
    name: str,
    precision: str,
    *,
    unsupported_reason: Callable[[torch.device], str | None] = _supported_everywhere,
    quantized: tuple[type[nn.Module], ...] = (),
    note: Callable[[ExportContext], str] = _no_note,
) -> Callable[[B], B]:
    """Register a form, so that `quantize.name` can name it and `quantize=auto` tries it; arguments as of `Form`.

    Raises:
        ValueError: the precision cannot be part of a file name, or another form has it.
    """
    if not re.fullmatch(PRECISION_PATTERN, precision) or precision.endswith("-compiled"):
        raise ValueError(
            f"form {name!r}: precision={precision!r} is part of file names: use lower-case letters, digits and '-', "
            "and no '-compiled' at the end"
        )
    for other, entry in FORMS.items():
        if entry.precision == precision and other != name:
            raise ValueError(f"form {name!r}: precision={precision!r} is that of the form {other!r}. Choose another")

    def register(build: B) -> B:
        FORMS[name] = Form(precision, build, unsupported_reason, quantized, note)
        return build

    return register


def _needs_bf16(device: torch.device) -> str | None:
    if device.type == "cpu" and not cpu_computes_bf16():
        return "this processor has no bfloat16 arithmetic, so it would be slower than fp32"
    return None


def _needs_cpu(device: torch.device) -> str | None:
    return "int8 programs are made for CPUs; on a GPU use bf16" if device.type == "cuda" else None


def _share_of_linear_layers(context: ExportContext) -> str:
    share = context.macs.linear_share
    advice = "; quantize=static reaches convolutions too" if share < 0.5 else ""
    return f"reaches the linear layers, {100 * share:.0f} % of the multiply-accumulates{advice}"


@form("none", "fp32")
def fp32(context: ExportContext, keep: Sequence[str]) -> ExportedProgram:
    """Compute in float32."""
    return cast_and_capture(context, torch.float32)


@form("bf16", "bf16", unsupported_reason=_needs_bf16)
def bf16(context: ExportContext, keep: Sequence[str]) -> ExportedProgram:
    """Compute in bfloat16."""
    return cast_and_capture(context, torch.bfloat16)


@form(
    "dynamic",
    "int8-dynamic",
    unsupported_reason=_needs_cpu,
    quantized=(nn.Linear,),
    note=_share_of_linear_layers,
)
def int8_dynamic(context: ExportContext, keep: Sequence[str]) -> ExportedProgram:
    """Compute linear layers in int8, with scales of the activations found at run time."""
    return quantize(context.exportable(), context.calibration, context.max_batch, dynamic=True, keep=keep)


@form("static", "int8-static", unsupported_reason=_needs_cpu, quantized=(nn.Linear, nn.Conv2d))
def int8_static(context: ExportContext, keep: Sequence[str]) -> ExportedProgram:
    """Compute linear layers and convolutions in int8, with scales of the activations from calibration images."""
    return quantize(context.exportable(), context.calibration, context.max_batch, dynamic=False, keep=keep)


def cast_and_capture(context: ExportContext, dtype: torch.dtype) -> ExportedProgram:
    """Return the model's program with weights and arithmetic in this dtype."""
    model = ExportableModel(deepcopy(context.model), context.preprocessing, dtype, context.views)
    return capture(model, example_images(context.preprocessing), context.max_batch)
