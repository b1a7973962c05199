"""How good fine-tuning is for its time: our recipes beside timm's train.py and PyTorch's tutorial loop.

    python benchmarks/finetune.py --data sports24 --weights tf_efficientnet_lite0.safetensors --timm-train train.py
    python benchmarks/finetune.py --data ... --weights ... --timm-train train.py --minutes 15 --epochs 4

All start from the same weights and train for as many epochs at the same size; the probe trains none. Each is a process
of its own, and they take turns, seed by seed. Caches are empty at its start, but for the recipe whose name says so. Its
time is taken twice: from its start to its end, and as the processor's, which other programs on the machine leave as it
is. Each chooses its epoch by validation top-1, and the test images see those weights alone. The data are class folders
in train, valid and test. timm's train.py is not part of its package: take it from a checkout of the repository, of the
installed version.

With --minutes each ends after that time: ours fits its epochs and schedule to it, and its time holds the report and the
evaluation of the test images; the others, which are told --epochs, are stopped, and the test images are evaluated
afterwards.

Figures are kept when all asked runs are done. To measure for hours bit by bit, ask for some --seeds or --contenders at
a time: --keep adds them to those of the same settings.
"""

from __future__ import annotations

import argparse
import atexit
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import timm
import torch
from harness import Benchmark, options_of, run_benchmark
from progress import say, stage, turns
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from trainings import ROOT, accuracies, processor_seconds, python, train

from mlops_img.errors import UserError

# The last line of each of its validations: Test: [  14/14] ... Acc@1:  96.667 ( 95.833) ...
TIMM_VALIDATION = r"Test: \[ *(\d+)/\1\].*Acc@1: *[\d.]+ *\( *([\d.]+)\)"
CURVE_POINTS = 6  # at which the validation accuracy is noted, with --minutes


@dataclass(frozen=True)
class Trained:
    """What a training reached: validation and test top-1, and the validation top-1 after seconds, epoch by epoch."""

    val: float
    test: float
    curve: list[tuple[float, float]]


Training = Callable[[int, Path], Trained]


def ours(
    options: argparse.Namespace, *overrides: str, experiment: str = "finetune", cache: Path | None = None
) -> Training:
    """Return a recipe of ours, changed by these overrides."""
    if experiment == "probe":
        length = []
    elif options.minutes is None:
        length = [f"train.epochs={options.epochs}"]
    else:
        length = ["train.epochs=100", f"train.max_minutes={options.minutes}"]

    def run(seed: int, folder: Path) -> Trained:
        printed = train(
            folder,
            *(f"experiment={experiment}", f"seed={seed}", *length, "data.allow_leakage=true"),
            *("model=timm", f"model.name={options.model}", f"model.weights={options.weights}"),
            *(f"data.root={options.data}", f"data.image_size={options.size}", *overrides),
            cache=cache,
        )
        return Trained(*accuracies(folder), printed.numbers(r"val top-1 ([\d.]+)"))

    return run


def timm_train(options: argparse.Namespace) -> Training:
    """Return timm's script, with the flags that timm's model cards document for fine-tuning."""

    def run(seed: int, folder: Path) -> Trained:
        printed = python(
            *(str(options.timm_train), "--data-dir", str(options.data), "--train-split", "train"),
            *("--val-split", "valid", "--model", options.model, "--pretrained", "--pretrained-path"),
            *(str(options.weights), "--num-classes", str(classes(options.data)), "--img-size", str(options.size)),
            *("--batch-size", "32", "--epochs", str(options.epochs), "--opt", "adamw", "--opt-eps", "1e-6"),
            *("--weight-decay", "0.01", "--lr", "5e-4", "--warmup-lr", "0", "--warmup-epochs", "0"),
            *("--sched-on-updates", "--clip-grad", "1.0", "--layer-decay", "0.8", "--workers", "2"),
            *("--device", "cpu", "--seed", str(seed), "--output", str(folder)),
            cwd=folder,
            kill_after=None if options.minutes is None else 60 * options.minutes,
        )
        curve = [(at, share / 100) for at, share in printed.numbers(TIMM_VALIDATION)]
        checkpoint = next(folder.glob("*/model_best.pth.tar"), None)
        if checkpoint is None or not curve:
            raise UserError(f"{options.timm_train} ended no epoch:\n{printed.text[-2000:]}")
        return Trained(max(share for _, share in curve), timm_test(options, checkpoint), curve)

    return run


def tutorial(options: argparse.Namespace) -> Training:
    """Return the loop of PyTorch's transfer-learning tutorial."""

    def run(seed: int, folder: Path) -> Trained:
        minutes = [] if options.minutes is None else ["--minutes", str(options.minutes)]
        printed = python(
            *(str(ROOT / "benchmarks" / "peers" / "transfer_tutorial.py"), "--data", str(options.data)),
            *("--model", options.model, "--weights", str(options.weights), "--size", str(options.size)),
            *("--epochs", str(options.epochs), "--seed", str(seed), *minutes),
            cwd=folder,
        )
        val, test = re.findall(r"best valid ([\d.]+) test ([\d.]+)", printed.text)[0]
        return Trained(float(val), float(test), printed.numbers(r"valid top-1 ([\d.]+)"))

    return run


def classes(data: Path) -> int:
    """Count the class folders."""
    return sum(path.is_dir() for path in (data / "train").iterdir())


def timm_test(options: argparse.Namespace, checkpoint: Path) -> float:
    """Return the test top-1 of timm's best checkpoint, seen as timm's validation sees images."""
    # It holds an argparse.Namespace beside the weights, and was written a moment ago by ourselves.
    state = torch.load(checkpoint, map_location="cpu", weights_only=False)["state_dict"]
    model = timm.create_model(options.model, num_classes=classes(options.data), checkpoint_path="").eval()
    model.load_state_dict(state)
    config = timm.data.resolve_data_config({"img_size": options.size}, model=model)
    images = ImageFolder(options.data / "test", timm.data.create_transform(**config))
    with torch.inference_mode():
        right = sum(int((model(batch).argmax(1) == labels).sum()) for batch, labels in DataLoader(images, 32))
    return right / len(images)


def curve_figures(trained: Trained, minutes: float) -> dict[str, float | None]:
    """Return the validation top-1 of the newest epoch at equal parts of the time; None before the first epoch's end."""
    figures: dict[str, float | None] = {}
    for part in range(1, CURVE_POINTS + 1):
        seconds = 60 * minutes * part / CURVE_POINTS
        known = [share for at, share in trained.curve if at <= seconds]
        figures[f"val_top1_at_{seconds:.0f}_s"] = known[-1] if known else None
    return figures


CONTENDERS: dict[str, tuple[str, Callable[[argparse.Namespace], Training]]] = {
    "ours": ("mlops_img experiment=finetune", ours),
    "ours_best": (
        "mlops_img experiment=finetune train.select=best",
        lambda options: ours(options, "train.select=best"),
    ),
    "probe": ("mlops_img experiment=probe", lambda options: ours(options, experiment="probe")),
    "probe_again": (
        "mlops_img experiment=probe, features in the cache",
        lambda options: ours(options, experiment="probe", cache=options.cache),
    ),
    "probe_then_finetune": (
        "mlops_img experiment=probe_then_finetune",
        lambda options: ours(options, experiment="probe_then_finetune"),
    ),
    "timm": ("timm train.py", timm_train),
    "tutorial": ("PyTorch's tutorial loop", tutorial),
}


def main() -> None:
    parser = options_of(__doc__, rounds=None)
    parser.add_argument("--data", type=Path, required=True, help="a folder with train, valid and test")
    parser.add_argument("--weights", type=Path, required=True, help="the model's weights as safetensors")
    parser.add_argument("--timm-train", type=Path, help="timm's train.py; without it timm is left out")
    parser.add_argument("--model", default="tf_efficientnet_lite0", help="its name in timm")
    parser.add_argument("--size", type=int, default=160, help="side of the images in pixels")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--minutes", type=float, help="stop each after so many minutes; ours fits its epochs to them")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    options = parser.parse_args()
    for name in ("data", "weights", "timm_train"):
        path = getattr(options, name)
        if path is not None:
            setattr(options, name, path.resolve())
        if path is not None and not path.exists():
            parser.error(f"--{name.replace('_', '-')} {path}: there is no such file or folder")
    options.cache = Path(tempfile.mkdtemp(prefix="finetune-cache-"))
    atexit.register(shutil.rmtree, options.cache, ignore_errors=True)
    asked = {name: make for key, (name, make) in CONTENDERS.items() if key in options.contenders}
    settings = {name: getattr(options, name) for name in ("model", "size", "epochs")}
    name = "finetune"
    if options.minutes is not None:
        name, settings = "finetune_minutes", settings | {"minutes": options.minutes}
    benchmark = Benchmark(name, rounds=len(options.seeds), settings=settings)
    timm_name = CONTENDERS["timm"][0]
    if timm_name in asked and options.timm_train is None:
        del asked[timm_name]
        benchmark.skip(timm_name, "no --timm-train: timm's script is in its repository, not in its package")
    contenders = {name: make(options) for name, make in asked.items()}
    cached = CONTENDERS["probe_again"][0]
    if cached in contenders:
        stage("filling the cache")
        with tempfile.TemporaryDirectory(prefix="finetune-") as folder:
            contenders[cached](options.seeds[0], Path(folder))
    runs: dict[int, dict[str, dict[str, float | None]]] = {seed: {} for seed in options.seeds}
    for number, name in turns("finetune", list(contenders), len(options.seeds)):
        seed = options.seeds[number - 1]
        with tempfile.TemporaryDirectory(prefix="finetune-") as folder:
            start, used = time.perf_counter(), processor_seconds()
            trained = contenders[name](seed, Path(folder))
            seconds, used = time.perf_counter() - start, processor_seconds() - used
        say(
            f"{name}, seed {seed}: val {trained.val:.4f}, test {trained.test:.4f}, {seconds:.0f} s, "
            f"{used:.0f} s of the processor"
        )
        runs[seed][name] = {
            "val_top1": round(trained.val, 4),
            "test_top1": round(trained.test, 4),
            "seconds": round(seconds, 1),
            "processor_seconds": round(used, 1),
            **(curve_figures(trained, options.minutes) if options.minutes is not None else {}),
        }
    for seed, figures in runs.items():
        benchmark.add({"seed": seed}, list(figures.items()))
    for name in contenders:
        own = [figures[name] for figures in runs.values()]
        means = [
            f"{key} {mean(float(run[key] or 0) for run in own):.4g}" for key in ("val_top1", "test_top1", "seconds")
        ]
        print(f"{name}: means of n={len(own)}  {'  '.join(means)}")
    if options.keep:
        benchmark.join_kept()
    benchmark.finish(kept=options.keep)


if __name__ == "__main__":
    run_benchmark("finetune", main)
