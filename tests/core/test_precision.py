"""The device and the precision of a run."""

from __future__ import annotations

import platform

import pytest
import torch

from mlops_img.core.precision import Precision, choose_device, choose_precision, cpu_computes_bf16, set_tf32
from mlops_img.errors import UserError

CPU = torch.device("cpu")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_auto_precision_is_bf16_only_on_a_cpu_with_native_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    for capable, wanted in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr("mlops_img.core.precision.cpu_computes_bf16", lambda capable=capable: capable)
        assert choose_precision("auto", CPU).dtype == wanted


@pytest.mark.skipif(platform.system() != "Linux" or platform.machine() != "x86_64", reason="reads Linux's x86 flags")
def test_native_bf16_is_detected_from_the_cpu_flags() -> None:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        flags = next((line for line in file if line.startswith("flags")), "").split()
    assert cpu_computes_bf16() == ("avx512_bf16" in flags or "amx_tile" in flags)


def test_other_architectures_have_no_native_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert not cpu_computes_bf16()


def test_fp32_and_bf16_can_be_chosen() -> None:
    assert choose_precision("fp32", CPU).dtype == torch.float32
    assert choose_precision("bf16", CPU).dtype == torch.bfloat16


def test_fp16_on_a_cpu_is_rejected_with_alternatives() -> None:
    with pytest.raises(UserError, match=r"train\.precision=fp16 needs CUDA.*bf16 or fp32"):
        choose_precision("fp16", CPU)


def test_autocast_computes_in_the_dtype_and_keeps_float32_weights() -> None:
    layer = torch.nn.Linear(4, 4)
    for dtype in (torch.bfloat16, torch.float32):
        with Precision(CPU, dtype).autocast():
            assert layer(torch.ones(2, 4)).dtype == dtype
    assert layer.weight.dtype == torch.float32


def test_only_fp16_scales_the_loss() -> None:
    loss = torch.tensor(2.0)
    assert Precision(CPU, torch.bfloat16).scaler().scale(loss) is loss
    assert Precision(CPU, torch.float16).scaler().scale(loss) > loss


def test_auto_device_is_cuda_if_available() -> None:
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_device("cpu") == CPU


@pytest.mark.parametrize("name", ["gpu", "cuda:one", "", "mps", "meta", "cuda:-1"])
def test_unknown_device_is_rejected_with_the_choices(name: str) -> None:
    with pytest.raises(UserError, match=rf"train\.device={name}: no such device\. Use auto, cpu, cuda"):
        choose_device(name)


def test_missing_cuda_device_is_rejected_with_the_number_of_devices() -> None:
    with pytest.raises(UserError, match=r"train\.device=cuda:99: this machine has \d+ CUDA devices"):
        choose_device("cuda:99")


def test_tf32_setting_is_visible_in_all_interfaces() -> None:
    matmul, convolution = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        for enabled, wanted in ((True, "high"), (False, "highest")):
            set_tf32(enabled)
            assert torch.backends.cuda.matmul.allow_tf32 is enabled
            assert torch.backends.cudnn.allow_tf32 is enabled
            # torch.compile's autotuning calls this, which raises if old and new settings are mixed.
            assert torch.get_float32_matmul_precision() == wanted
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, convolution


@pytest.mark.cuda
@needs_cuda
def test_auto_precision_has_16_bits_on_cuda() -> None:
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    wanted = torch.bfloat16 if native else torch.float16
    assert choose_precision("auto", torch.device("cuda")).dtype == wanted
