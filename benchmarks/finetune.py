"""How good fine-tuning is for its time: our recipes beside timm's train.py and PyTorch's tutorial loop.

    python benchmarks/finetune.py --data sports24 --weights tf_efficientnet_lite0.safetensors --timm-train train.py

All start from the same weights and train for as many epochs at the same size; the probe trains none. Each is a process
of its own, and they take turns, seed by seed. Caches are empty at its start, but for the recipe whose name says so. Its
time is taken twice: from its start to its end, and as the processor's, which other programs on the machine leave as it
is. Each chooses its epoch by validation top-1, and the test images see those weights alone. The data are class folders
in train, valid and test. timm's train.py is not part of its package: take it from a checkout of the repository, of the
installed version.

Figures are kept when all asked runs are done. To measure for hours bit by bit, ask for some --seeds or --contenders at
a time: --keep adds them to those of the same settings.
"""

from __future__ import annotations

import argparse
import atexit
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean

import timm
import torch
from harness import Benchmark, options_of, run_benchmark
from progress import say, stage, turns
from records import FOLDER, Case, read
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from mlops_img.errors import UserError

ROOT = Path(__file__).parents[1]
# (validation top-1, test top-1) of one run.
Accuracy = tuple[float, float]
Training = Callable[[int, Path], Accuracy]


def python(*arguments: str, cwd: Path, cache: Path | None = None) -> str:
    """Run Python as a process of its own and return what it printed.

    Args:
        arguments: of Python.
        cwd: the folder to run in.
        cache: takes the place of ~/.cache; None: one in `cwd`.
    """
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "XDG_CACHE_HOME": str(cache or cwd / "cache")}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if done.returncode:
        raise UserError(f"{' '.join(arguments)} failed:\n{done.stdout[-2000:]}")
    return done.stdout


def ours(
    options: argparse.Namespace, *overrides: str, experiment: str = "finetune", cache: Path | None = None
) -> Training:
    """Return a recipe of ours, changed by these overrides."""
    epochs = [] if experiment == "probe" else [f"train.epochs={options.epochs}"]

    def train(seed: int, folder: Path) -> Accuracy:
        python(
            *("-m", "mlops_img.train", f"experiment={experiment}", "tracking=none", f"seed={seed}"),
            *("model=timm", f"model.name={options.model}", f"model.weights={options.weights}"),
            *(f"data.root={options.data}", "data.allow_leakage=true", f"data.image_size={options.size}"),
            *epochs,
            *(f"hydra.run.dir={folder / 'run'}", *overrides),
            cwd=folder,
            cache=cache,
        )
        summary = json.loads((folder / "run" / "summary.json").read_text(encoding="utf-8"))
        return summary["val.top1"], summary["test.top1"]

    return train


def timm_train(options: argparse.Namespace) -> Training:
    """Return timm's script, with the flags that timm's model cards document for fine-tuning."""

    def train(seed: int, folder: Path) -> Accuracy:
        printed = python(
            *(str(options.timm_train), "--data-dir", str(options.data), "--train-split", "train"),
            *("--val-split", "valid", "--model", options.model, "--pretrained", "--pretrained-path"),
            *(str(options.weights), "--num-classes", str(classes(options.data)), "--img-size", str(options.size)),
            *("--batch-size", "32", "--epochs", str(options.epochs), "--opt", "adamw", "--opt-eps", "1e-6"),
            *("--weight-decay", "0.01", "--lr", "5e-4", "--warmup-lr", "0", "--warmup-epochs", "0"),
            *("--sched-on-updates", "--clip-grad", "1.0", "--layer-decay", "0.8", "--workers", "2"),
            *("--device", "cpu", "--seed", str(seed), "--output", str(folder)),
            cwd=folder,
        )
        found = re.search(r"Best metric: ([\d.]+)", printed)
        if found is None:
            raise UserError(f"{options.timm_train} printed no best metric:\n{printed[-2000:]}")
        checkpoint = next(folder.glob("*/model_best.pth.tar"))
        return float(found[1]) / 100, timm_test(options, checkpoint)

    return train


def tutorial(options: argparse.Namespace) -> Training:
    """Return the loop of PyTorch's transfer-learning tutorial."""

    def train(seed: int, folder: Path) -> Accuracy:
        printed = python(
            *(str(ROOT / "benchmarks" / "peers" / "transfer_tutorial.py"), "--data", str(options.data)),
            *("--model", options.model, "--weights", str(options.weights), "--size", str(options.size)),
            *("--epochs", str(options.epochs), "--seed", str(seed)),
            cwd=folder,
        )
        val, test = re.findall(r"best valid ([\d.]+) test ([\d.]+)", printed)[0]
        return float(val), float(test)

    return train


def processor_seconds() -> float:
    """Return what all ended child processes have used, over all cores."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


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
    benchmark = Benchmark("finetune", rounds=len(options.seeds), settings=settings)
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
    runs: dict[int, dict[str, dict[str, float]]] = {seed: {} for seed in options.seeds}
    for number, name in turns("finetune", list(contenders), len(options.seeds)):
        seed = options.seeds[number - 1]
        with tempfile.TemporaryDirectory(prefix="finetune-") as folder:
            start, used = time.perf_counter(), processor_seconds()
            val, test = contenders[name](seed, Path(folder))
            seconds, used = time.perf_counter() - start, processor_seconds() - used
        say(f"{name}, seed {seed}: val {val:.4f}, test {test:.4f}, {seconds:.0f} s, {used:.0f} s of the processor")
        runs[seed][name] = {
            "val_top1": round(val, 4),
            "test_top1": round(test, 4),
            "seconds": round(seconds, 1),
            "processor_seconds": round(used, 1),
        }
    for seed, figures in runs.items():
        benchmark.add({"seed": seed}, list(figures.items()))
    for name in contenders:
        own = [figures[name] for figures in runs.values()]
        means = "  ".join(f"{key} {mean(run[key] for run in own):.4g}" for key in own[0])
        print(f"{name}: means of n={len(own)}  {means}")
    if options.keep:
        add_kept(benchmark)
    benchmark.finish(kept=options.keep)


def add_kept(benchmark: Benchmark, folder: Path = FOLDER) -> None:
    """Add the runs that were kept earlier, with the same settings and torch on this machine."""
    path = benchmark.result().path(folder)
    if not path.exists():
        return
    kept = read(path)
    if (kept.settings, kept.machine.torch) != (benchmark.settings, benchmark.machine.torch):
        return
    cases = {case.settings["seed"]: case for case in benchmark.cases}
    for old in kept.cases:
        new = cases.setdefault(old.settings["seed"], Case(settings=old.settings, rows=[]))
        measured = {row.contender for row in new.rows}
        new.rows += [row for row in old.rows if row.contender not in measured]
    benchmark.cases = [cases[seed] for seed in sorted(cases, key=str)]
    benchmark.rounds = len(cases)
    done = {row.contender for case in benchmark.cases for row in case.rows}
    benchmark.skipped = {what: why for what, why in benchmark.skipped.items() if what not in done}


if __name__ == "__main__":
    run_benchmark("finetune", main)
