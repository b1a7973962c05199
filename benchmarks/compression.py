"""How fast exported programs are: int8 beside eager fp32, ONNX Runtime and OpenVINO, on the same net and images.

    python benchmarks/compression.py --rounds 7            # resnet18 and vit_tiny at 224 px
    python benchmarks/compression.py --table               # every model of conf/model, one line each

The nets have random weights: speed does not depend on them. All contenders take turns. ONNX Runtime and OpenVINO are
of the extra `bench`.
"""

from __future__ import annotations

import logging
import tempfile
import time
from functools import cache
from pathlib import Path
from statistics import median

import numpy as np
import torch
import yaml
from harness import Benchmark, Contender, Figures, Settings, Turn, options_of, run_benchmark
from progress import turns
from torch import Tensor

from mlops_img.bundle.manifest import Program
from mlops_img.bundle.programs import Runner, load_program, this_machine
from mlops_img.compression.capture import (
    ExportableModel,
    capture,
    compile_for_this_machine,
    example_images,
    save_portable,
)
from mlops_img.compression.measure import timed
from mlops_img.compression.onnx import write_onnx
from mlops_img.compression.quantize import quantize
from mlops_img.config.train import ModelConfig
from mlops_img.core.memory import freed_memory_kept
from mlops_img.models.build import build_model, normalization
from mlops_img.preprocessing.transforms import Preprocessing

CONF = Path(__file__).parents[1] / "conf" / "model"
CPU = torch.device("cpu")
SIDE, CLASSES, MAX_BATCH = 224, 1000, 64
CALLS = {1: 8, 16: 2}  # in each turn
TABLE_BATCH, TABLE_SECONDS = 16, 3
ONNX = ("onnx", "onnxscript", "onnxruntime")
OURS, EAGER = "int8 static, compiled", "eager fp32"
PRECISIONS = {"compiled fp32": "fp32", "int8 dynamic, compiled": "int8-dynamic", OURS: "int8-static"}
GOALS: dict[str, dict[int, float]] = {"resnet18": {1: 3.5, 16: 3.5}, "vit_tiny": {16: 2.3}}


def servable_of(name: str) -> ExportableModel:
    """Build a shipped model as programs run it."""
    settings = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    torch.manual_seed(0)
    model = build_model(ModelConfig(**settings), CLASSES, SIDE).eval()
    model.to(memory_format=torch.channels_last)
    exportable = ExportableModel(model, Preprocessing(SIDE, 0.875, *normalization(model)))
    settle(exportable)
    return exportable


@torch.no_grad()
def settle(exportable: ExportableModel) -> None:
    """Show images to the batch norms: by random weights alone, efficientnet's signals die on the way to the logits."""
    norms = [module for module in exportable.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = None  # the mean over all batches
        norm.train()
    for _ in range(2):
        exportable(example_images(exportable.preprocessing, 8))
    exportable.eval()


def compiled(exportable: ExportableModel, folder: Path, precision: str) -> Runner:
    """Compile a program in this precision and load it."""
    images = example_images(exportable.preprocessing)
    if precision == "fp32":
        program = capture(exportable, images, MAX_BATCH)
    else:
        calibration = [example_images(exportable.preprocessing, 16)]
        program = quantize(exportable, calibration, MAX_BATCH, dynamic=precision == "int8-dynamic")
    save_portable(program, folder / f"{precision}.pt2")
    path = folder / f"{precision}-compiled.pt2"
    compile_for_this_machine(program, path, CPU)
    described = Program(
        precision=precision,  # type: ignore[arg-type]
        file=path.name,
        compiled_for=this_machine(CPU),
        max_batch=MAX_BATCH,
    )
    return load_program(folder, described, CPU, exportable.preprocessing.image_size)


def onnx_int8(exportable: ExportableModel, folder: Path) -> Path:
    """Quantize the ONNX file as ONNX Runtime's guide has it: static, QDQ, by channel."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    # It warns of every norm, whose weights have no channels to quantize by.
    logging.getLogger().addFilter(lambda record: "is out-of-range for weight" not in str(record.msg))
    write_onnx(exportable, folder / "fp32.onnx", MAX_BATCH)
    quant_pre_process(str(folder / "fp32.onnx"), str(folder / "prepared.onnx"), skip_symbolic_shape=True)

    class Images(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = [example_images(exportable.preprocessing, 16).numpy()]

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
        outputs = model(images.contiguous().numpy())
        return torch.from_numpy(outputs[0]), torch.from_numpy(outputs[1])

    return run


def compare(name: str, benchmark: Benchmark) -> None:
    """Let int8 take turns with eager fp32, ONNX Runtime and OpenVINO."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        exportable = servable_of(name)
        onnx_file = cache(lambda: onnx_int8(exportable, folder))
        runners: dict[str, Runner] = benchmark.prepare(
            [
                Contender(OURS, lambda: compiled(exportable, folder, "int8-static")),
                Contender(EAGER, lambda: exportable),
                Contender("compiled fp32", lambda: compiled(exportable, folder, "fp32")),
                Contender("int8 dynamic, compiled", lambda: compiled(exportable, folder, "int8-dynamic")),
                Contender("ONNX Runtime int8", lambda: onnx_runtime(onnx_file()), ONNX),
                # It reads the file that ONNX Runtime's tools quantize.
                Contender("OpenVINO int8", lambda: open_vino(onnx_file()), (*ONNX, "openvino")),
            ]
        )
        images = example_images(exportable.preprocessing, 16)
        with torch.inference_mode():
            exact = exportable(images)[0]
            cosines = {label: {"cosine": _cosine(run(images)[0], exact)} for label, run in runners.items()}
        sizes = [(folder / f"{precision}.pt2").stat().st_size for precision in ("int8-static", "fp32")]
        print(f"{name}: int8 file {sizes[0] / 1e6:.1f} MB, {sizes[0] / sizes[1]:.3f} of fp32")
        for batch, calls in CALLS.items():
            images = example_images(exportable.preprocessing, batch)
            goals = {EAGER: GOALS[name][batch]} if batch in GOALS[name] else {}
            if batch == 16:
                goals |= {"ONNX Runtime int8": 1.0, "OpenVINO int8": 1.0}
            ready = {label: _turn(run, images, calls) for label, run in runners.items()}
            case: Settings = {"model": name, "batch": batch, "calls_per_turn": calls}
            benchmark.compare(ready, batch * calls, warmup=1, goals=goals, case=case, more=cosines)


def _turn(run: Runner, images: Tensor, calls: int) -> Turn:
    def turn() -> None:
        with torch.inference_mode(), freed_memory_kept():
            for _ in range(calls):
                run(images)

    return turn


def _cosine(logits: Tensor, exact: Tensor) -> float:
    return round(torch.nn.functional.cosine_similarity(logits, exact, dim=1).mean().item(), 4)


def table(benchmark: Benchmark) -> None:
    """Export every shipped model in every precision; add speed, cosine of the logits to fp32 and seconds to export."""
    names = [path.stem for path in sorted(CONF.glob("*.yaml")) if path.stem not in ("timm", "custom")]
    for _, name in turns("compression_models", names, rounds=1):
        exportable = servable_of(name)
        images = example_images(exportable.preprocessing, TABLE_BATCH)
        with torch.inference_mode():
            exact = exportable(images)[0]
        rows: list[tuple[str, Figures]] = [(EAGER, {"images_per_second": _rate(exportable, images)})]
        with tempfile.TemporaryDirectory() as place:
            for label, precision in PRECISIONS.items():
                start = time.perf_counter()
                try:
                    run = compiled(exportable, Path(place), precision)
                except Exception as error:  # what does not export says why
                    benchmark.skip(f"{name}, {label}", f"{type(error).__name__}: {' '.join(str(error).split())[:80]}")
                    continue
                seconds = round(time.perf_counter() - start, 1)
                with torch.inference_mode():
                    cosine = _cosine(run(images)[0], exact)
                figures = {"images_per_second": _rate(run, images), "cosine": cosine, "export_seconds": seconds}
                rows.append((label, figures))
        benchmark.add({"model": name}, rows)


def _rate(run: Runner, images: Tensor) -> float:
    return round(len(images) / median(timed(lambda: run(images), seconds=TABLE_SECONDS)), 1)


def main() -> None:
    parser = options_of(__doc__, rounds=7)
    parser.add_argument("--table", action="store_true", help="every model of conf/model instead, each measured once")
    options = parser.parse_args()
    if options.table:
        settings = {"image_size": SIDE, "batch": TABLE_BATCH, "seconds_per_program": TABLE_SECONDS}
        benchmark = Benchmark("compression_models", rounds=1, settings=settings)
        table(benchmark)
    else:
        benchmark = Benchmark("compression", rounds=options.rounds, settings={"image_size": SIDE})
        for name in GOALS:
            compare(name, benchmark)
    benchmark.finish(kept=options.keep)


if __name__ == "__main__":
    run_benchmark("compression", main)
