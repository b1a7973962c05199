"""How fast exported programs are: int8 beside eager fp32, ONNX Runtime and OpenVINO, on the same net and images.

    python benchmarks/compression.py --rounds 7            # resnet18 and vit_tiny at 224 px
    python benchmarks/compression.py --table               # every model of conf/model, one line each

The nets have random weights: speed does not depend on them. All contenders take turns. Needs the extra `bench`.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from statistics import median

import numpy as np
import torch
import yaml
from results import FOLDER, arguments, report
from torch import Tensor

from mlops_img.bundle.manifest import Program
from mlops_img.bundle.programs import Runner, load_program, this_machine
from mlops_img.compression.capture import (
    Servable,
    capture,
    compile_for_this_machine,
    example_images,
    save_portable,
)
from mlops_img.compression.measure import timed
from mlops_img.compression.onnx import write_onnx
from mlops_img.compression.quantize import quantize
from mlops_img.config.train import ModelConfig
from mlops_img.core.files import write_json
from mlops_img.core.memory import freed_memory_kept
from mlops_img.models.build import build_model, normalization
from mlops_img.preprocessing.transforms import Preprocessing
from mlops_img.runs.provenance import hardware

CONF = Path(__file__).parents[1] / "conf" / "model"
CPU = torch.device("cpu")
SIDE, CLASSES, MAX_BATCH = 224, 1000, 64
CALLS = {1: 8, 16: 2}  # in each turn
GOALS = {"resnet18": {1: 3.5, 16: 3.5}, "vit_tiny": {16: 2.3}}


def servable_of(name: str) -> Servable:
    """Build a shipped model as programs run it."""
    settings = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    torch.manual_seed(0)
    model = build_model(ModelConfig(**settings), CLASSES, SIDE).eval()
    model.to(memory_format=torch.channels_last)
    servable = Servable(model, Preprocessing(SIDE, 0.875, *normalization(model)))
    settle(servable)
    return servable


@torch.no_grad()
def settle(servable: Servable) -> None:
    """Show images to the batch norms: by random weights alone, efficientnet's signals die on the way to the logits."""
    norms = [module for module in servable.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = None  # the mean over all batches
        norm.train()
    for _ in range(2):
        servable(example_images(servable.preprocessing, 8))
    servable.eval()


def compiled(servable: Servable, folder: Path, precision: str) -> Runner:
    """Compile a program in this precision and load it."""
    images = example_images(servable.preprocessing)
    if precision == "fp32":
        program = capture(servable, images, MAX_BATCH)
    else:
        calibration = [example_images(servable.preprocessing, 16)]
        program = quantize(servable, calibration, MAX_BATCH, dynamic=precision == "int8-dynamic")
    save_portable(program, folder / f"{precision}.pt2")
    path = folder / f"{precision}-compiled.pt2"
    compile_for_this_machine(program, path, CPU)
    described = Program(
        precision=precision,  # type: ignore[arg-type]
        file=path.name,
        compiled_for=this_machine(CPU),
        max_batch=MAX_BATCH,
    )
    return load_program(folder, described, CPU)


def onnx_int8(servable: Servable, folder: Path) -> Path:
    """Quantize the ONNX file as ONNX Runtime's guide has it: static, QDQ, by channel."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    write_onnx(servable, folder / "fp32.onnx", MAX_BATCH)
    quant_pre_process(str(folder / "fp32.onnx"), str(folder / "prepared.onnx"), skip_symbolic_shape=True)

    class Images(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = [example_images(servable.preprocessing, 16).numpy()]

        def get_next(self) -> dict[str, np.ndarray] | None:
            return {"images": self.left.pop()} if self.left else None

    quantize_static(
        str(folder / "prepared.onnx"),
        str(folder / "int8.onnx"),
        Images(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
    )
    return folder / "int8.onnx"


def onnx_runtime(path: Path) -> Runner:
    """Run a file by ONNX Runtime with as many threads as PyTorch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        logits, features = session.run(None, {"images": images.contiguous().numpy()})
        return torch.from_numpy(logits), torch.from_numpy(features)

    return run


def open_vino(path: Path) -> Runner:
    """Run the same int8 file by OpenVINO."""
    import openvino

    model = openvino.Core().compile_model(
        str(path), "CPU", {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}
    )

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        said = model(images.contiguous().numpy())
        return torch.from_numpy(said[0]), torch.from_numpy(said[1])

    return run


def compare(name: str, options: object) -> None:
    """Let int8 take turns with eager fp32, ONNX Runtime and OpenVINO."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        servable = servable_of(name)
        int8 = compiled(servable, folder, "int8-static")
        quantized = onnx_int8(servable, folder)
        runners: dict[str, Runner] = {
            "int8 static, compiled": int8,
            "eager fp32": servable,
            "compiled fp32": compiled(servable, folder, "fp32"),
            "int8 dynamic, compiled": compiled(servable, folder, "int8-dynamic"),
            "ONNX Runtime int8": onnx_runtime(quantized),
            "OpenVINO int8": open_vino(quantized),
        }
        images = example_images(servable.preprocessing, 16)
        with torch.inference_mode():
            exact = servable(images)[0]
            for label, run in runners.items():
                cosine = torch.nn.functional.cosine_similarity(run(images)[0], exact, dim=1).mean().item()
                print(f"{name}, {label}: cosine to fp32 {cosine:.4f}")
        sizes = [(folder / f"{precision}.pt2").stat().st_size for precision in ("int8-static", "fp32")]
        print(f"{name}: int8 file {sizes[0] / 1e6:.1f} MB, {sizes[0] / sizes[1]:.3f} of fp32")
        for batch, calls in CALLS.items():
            images = example_images(servable.preprocessing, batch)
            goals = {"eager fp32": GOALS[name].get(batch)} if GOALS[name].get(batch) else {}
            if batch == 16:
                goals |= {"ONNX Runtime int8": 1.0, "OpenVINO int8": 1.0}
            turns = {label: _turn(run, images, calls) for label, run in runners.items()}
            report(f"compression_{name}_batch_{batch}", turns, batch * calls, options, warmup=1, goals=goals)  # type: ignore[arg-type]


def _turn(run: Runner, images: Tensor, calls: int) -> Callable[[], None]:
    def turn() -> None:
        with torch.inference_mode(), freed_memory_kept():
            for _ in range(calls):
                run(images)

    return turn


def table(keep: bool) -> None:
    """Export every shipped model in every precision; print speed at batch 16, cosine and seconds."""
    rows = []
    for path in sorted(CONF.glob("*.yaml")):
        if path.stem in ("timm", "custom"):
            continue
        servable = servable_of(path.stem)
        images = example_images(servable.preprocessing, 16)
        with torch.inference_mode():
            exact = servable(images)[0]
        row: dict[str, object] = {"model": path.stem, "eager": _rate(servable, images)}
        with tempfile.TemporaryDirectory() as place:
            for precision in ("fp32", "int8-dynamic", "int8-static"):
                start = time.perf_counter()
                try:
                    run = compiled(servable, Path(place), precision)
                except Exception as error:  # what does not export says why
                    row[precision] = f"{type(error).__name__}: {str(error)[:80]}"
                    continue
                row[f"{precision} seconds"] = round(time.perf_counter() - start, 1)
                cosine = torch.nn.functional.cosine_similarity(run(images)[0], exact, dim=1).mean().item()
                row[precision] = _rate(run, images)
                row[f"{precision} cosine"] = round(cosine, 4)
        print(row, flush=True)
        rows.append(row)
    if keep:
        content = {"date": str(date.today()), "hardware": hardware(), "batch": 16, "rows": rows}
        instructions = torch.backends.cpu.get_cpu_capability().lower()
        write_json(FOLDER / f"compression_models_{instructions}.json", content)


def _rate(run: Runner, images: Tensor) -> float:
    return round(len(images) / median(timed(lambda: run(images), seconds=3)), 1)


def main() -> None:
    options = arguments(__doc__, rounds=7)
    if options.table:
        table(options.keep)
        return
    for name in GOALS:
        compare(name, options)


if __name__ == "__main__":
    main()
