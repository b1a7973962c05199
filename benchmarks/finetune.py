"""How good fine-tuning is for its time: `experiment=finetune` beside timm's train.py and PyTorch's tutorial loop.

    python benchmarks/finetune.py --data sports24 --weights tf_efficientnet_lite0.safetensors --timm-train train.py

All start from the same weights and train for as many epochs at the same size; each is a process of its own, and they
take turns, seed by seed. Its time is taken twice: from its start to its end, and as the processor's, which other
programs on the machine leave as it is. Each chooses its epoch by validation top-1, and the test
images see those weights alone. The data are class folders in train, valid and test. timm's train.py is not part of
its package: take it from a checkout of the repository, of the installed version.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from statistics import mean
from typing import Any

import timm
import torch
from results import FOLDER
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from mlops_img.core.files import write_json
from mlops_img.runs.provenance import hardware

ROOT = Path(__file__).parents[1]
# (validation top-1, test top-1) of one run.
Accuracy = tuple[float, float]
Contender = Callable[[int, Path], Accuracy]
Run = dict[str, Any]


def python(*arguments: str, cwd: Path) -> str:
    """Run Python as a process of its own and return what it printed."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if done.returncode:
        sys.exit(f"{' '.join(arguments)} failed:\n{done.stdout[-2000:]}")
    return done.stdout


def ours(options: argparse.Namespace, *overrides: str) -> Contender:
    """Return our recipe, changed by these overrides."""

    def train(seed: int, folder: Path) -> Accuracy:
        python(
            *("-m", "mlops_img.train", "experiment=finetune", "tracking=none", f"seed={seed}"),
            *("model=timm", f"model.name={options.model}", f"model.weights={options.weights}"),
            *(f"data.root={options.data}", "data.allow_leakage=true", f"data.image_size={options.size}"),
            *(f"train.epochs={options.epochs}", f"hydra.run.dir={folder / 'run'}", *overrides),
            cwd=folder,
        )
        summary = json.loads((folder / "run" / "summary.json").read_text(encoding="utf-8"))
        return summary["val.top1"], summary["test.top1"]

    return train


def timm_train(options: argparse.Namespace) -> Contender:
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
            sys.exit(f"{options.timm_train} printed no best metric:\n{printed[-2000:]}")
        checkpoint = next(folder.glob("*/model_best.pth.tar"))
        return float(found[1]) / 100, timm_test(options, checkpoint)

    return train


def tutorial(options: argparse.Namespace) -> Contender:
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


CONTENDERS: dict[str, tuple[str, Callable[[argparse.Namespace], Contender]]] = {
    "ours": ("mlops_img experiment=finetune", ours),
    "ours_best": (
        "mlops_img experiment=finetune train.select=best",
        lambda options: ours(options, "train.select=best"),
    ),
    "timm": ("timm train.py", timm_train),
    "tutorial": ("PyTorch's tutorial loop", tutorial),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder with train, valid and test")
    parser.add_argument("--weights", type=Path, required=True, help="the model's weights as safetensors")
    parser.add_argument("--timm-train", type=Path, help="timm's train.py; without it timm is left out")
    parser.add_argument("--model", default="tf_efficientnet_lite0", help="its name in timm")
    parser.add_argument("--size", type=int, default=160, help="side of the images in pixels")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--keep", action="store_true", help="write the figures to benchmarks/results/")
    options = parser.parse_args()
    for name in ("data", "weights", "timm_train"):
        path = getattr(options, name)
        if path is not None:
            setattr(options, name, path.resolve())
    contenders = {
        name: make(options)
        for key, (name, make) in CONTENDERS.items()
        if key in options.contenders and (key != "timm" or options.timm_train is not None)
    }
    settings = {name: getattr(options, name) for name in ("model", "size", "epochs")}
    runs: list[Run] = []
    for seed in options.seeds:
        for name, train in contenders.items():
            with tempfile.TemporaryDirectory(prefix="finetune-") as folder:
                start, used = time.perf_counter(), processor_seconds()
                val, test = train(seed, Path(folder))
                seconds, used = time.perf_counter() - start, processor_seconds() - used
            run = {"contender": name, "seed": seed, "val": val, "test": test, "seconds": seconds, "processor": used}
            print(f"{name}, seed {seed}: val {val:.4f}, test {test:.4f}, {seconds:.0f} s, {used:.0f} s", flush=True)
            runs.append(run)
            if options.keep:
                keep(run, settings)
    print(f"finetune: {hardware()['cpu']}, {hardware()['cores']} cores, {date.today()}")
    for name in contenders:
        own = [run for run in runs if run["contender"] == name]
        val, test, seconds, used = (mean(run[key] for run in own) for key in ("val", "test", "seconds", "processor"))
        print(f"{name:32}n={len(own)} val {val:.4f} test {test:.4f} {seconds:6.0f} s {used:6.0f} s of the processor")


def keep(run: Run, settings: dict[str, object]) -> None:
    """Put one run into the results; those of the same settings that are there already stay."""
    path = FOLDER / "finetune.json"
    runs: list[Run] = []
    if path.exists():
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["settings"] == settings:
            runs = [
                old for old in content["runs"] if (old["contender"], old["seed"]) != (run["contender"], run["seed"])
            ]
    runs = sorted([*runs, run], key=lambda one: (one["contender"], one["seed"]))
    machine = {"date": str(date.today()), "hardware": hardware(), "torch": torch.__version__}
    write_json(path, machine | {"settings": settings, "runs": runs})


if __name__ == "__main__":
    main()
