"""The device and the number format that a run computes in."""

from __future__ import annotations

import platform

import pytest
import torch

from mlops_img.core.precision import Precision, choose_device, choose_precision, cpu_computes_bf16, set_tf32
from mlops_img.errors import UserError

CPU = torch.device("cpu")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


def test_auto_takes_bf16_on_a_cpu_that_computes_in_it_and_fp32_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for capable, wanted in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr("mlops_img.core.precision.cpu_computes_bf16", lambda capable=capable: capable)
        assert choose_precision("auto", CPU).dtype == wanted


@pytest.mark.skipif(platform.system() != "Linux" or platform.machine() != "x86_64", reason="reads Linux's x86 flags")
def test_bf16_of_the_cpu_is_what_the_kernel_says() -> None:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        flags = next((line for line in file if line.startswith("flags")), "").split()
    assert cpu_computes_bf16() == ("avx512_bf16" in flags or "amx_tile" in flags)


def test_other_processors_are_not_taken_to_compute_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert not cpu_computes_bf16()


def test_named_formats_are_taken_at_their_word() -> None:
    assert choose_precision("fp32", CPU).dtype == torch.float32
    assert choose_precision("bf16", CPU).dtype == torch.bfloat16


def test_fp16_on_a_cpu_is_refused_with_what_to_use() -> None:
    with pytest.raises(UserError, match=r"train\.precision=fp16 needs CUDA.*bf16 or fp32"):
        choose_precision("fp16", CPU)


def test_autocast_computes_in_the_format_and_keeps_the_weights() -> None:
    layer = torch.nn.Linear(4, 4)
    for dtype in (torch.bfloat16, torch.float32):
        with Precision(CPU, dtype).autocast():
            assert layer(torch.ones(2, 4)).dtype == dtype
    assert layer.weight.dtype == torch.float32


def test_only_fp16_scales_the_loss() -> None:
    loss = torch.tensor(2.0)
    assert Precision(CPU, torch.bfloat16).scaler().scale(loss) is loss
    assert Precision(CPU, torch.float16).scaler().scale(loss) > loss


def test_auto_device_is_cuda_where_there_is_some() -> None:
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_device("cpu") == CPU


@pytest.mark.parametrize("name", ["gpu", "cuda:one", "", "mps", "meta", "cuda:-1"])
def test_unknown_device_says_which_there_are(name: str) -> None:
    with pytest.raises(UserError, match=rf"train\.device={name}: no such device\. Use auto, cpu, cuda"):
        choose_device(name)


def test_missing_cuda_device_is_counted() -> None:
    with pytest.raises(UserError, match=r"train\.device=cuda:99: this machine has \d+ CUDA devices"):
        choose_device("cuda:99")


def test_tf32_is_set_for_every_reader() -> None:
    matmul, convolution = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        for enabled, wanted in ((True, "high"), (False, "highest")):
            set_tf32(enabled)
            assert torch.backends.cuda.matmul.allow_tf32 is enabled
            assert torch.backends.cudnn.allow_tf32 is enabled
            # torch.compile's autotuning asks this way, and raises where old and new settings were mixed.
            assert torch.get_float32_matmul_precision() == wanted
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, convolution


@pytest.mark.cuda
@needs_cuda
def test_auto_takes_a_16_bit_format_on_cuda() -> None:
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    wanted = torch.bfloat16 if native else torch.float16
    assert choose_precision("auto", torch.device("cuda")).dtype == wanted
