"""Choose the device and the compute precision of a model."""

from __future__ import annotations

import platform
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import nn

from mlops_img.core.device import find_device
from mlops_img.errors import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Precision:
    """The compute precision: weights stay float32, autocast runs suitable operations in `dtype`."""

    device: torch.device
    dtype: torch.dtype

    def autocast(self) -> AbstractContextManager[None]:
        """Return the autocast context of a forward pass; it has no effect in fp32."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def scaler(self) -> torch.amp.GradScaler:
        """Return the loss scaler; it is enabled in fp16 only."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)


def choose_device(name: str, setting: str = "train.device") -> torch.device:
    """Return the device of this name like `find_device`, and make it the current CUDA device.

    Raises:
        UserError: this machine has no such device.
    """
    device = find_device(name, setting)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # events, pinned memory and seeds use the current device
    return device


def choose_precision(name: str, device: torch.device) -> Precision:
    """Return the precision of this name: fp32, bf16, fp16, or auto for the fastest that the device supports.

    Raises:
        UserError: fp16 on a CPU, where gradients can underflow and nothing is gained.
    """
    if name == "auto":
        if device.type == "cuda":
            return Precision(device, torch.bfloat16 if torch.cuda.is_bf16_supported(False) else torch.float16)
        return Precision(device, torch.bfloat16 if cpu_computes_bf16() else torch.float32)
    if name == "fp16" and device.type == "cpu":
        raise UserError("train.precision=fp16 needs CUDA. Use train.precision=auto, bf16 or fp32 on a CPU")
    return Precision(device, DTYPES[name])


def to_device(model: nn.Module, device: torch.device, *, channels_last: bool) -> nn.Module:
    """Move a model to the device, in channels-last or contiguous memory format."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return model.to(device=device, memory_format=memory_format)  # type: ignore[call-overload,no-any-return]


def cpu_computes_bf16() -> bool:
    """Return whether the CPU has native bfloat16 arithmetic; emulated bfloat16 is slower than fp32."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def set_tf32(enabled: bool) -> None:
    """Enable or disable TF32 for matrix multiplications and convolutions on CUDA."""
    # The newer `fp32_precision` makes torch.get_float32_matmul_precision() raise, which torch.compile's autotuning
    # calls (torch 2.14).
    torch.backends.cuda.matmul.allow_tf32 = enabled
    torch.backends.cudnn.allow_tf32 = enabled
