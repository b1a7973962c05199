"""What an option of a training brings and costs: the recipe with it beside the recipe without, seed by seed.

    python benchmarks/time_to_accuracy.py experiment=cifar10 data=folder data.root=cifar10 --tta flip flip+shift
    python benchmarks/time_to_accuracy.py experiment=cifar10 data=folder data.root=cifar10 \\
        --change "train.resolution=null" --change "augment.alternate_hflip=false" --seeds 0 1 2

The overrides of `python -m mlops_img.train` that come first are the recipe; each --change has further ones. Every
training is a process of its own with caches of its own, and they take turns. Test-time augmentation is evaluated on the
recipe's run: its seconds are those of the further views of the test images, its processor seconds those of the whole
command. Processor seconds are of all cores; other programs on the machine leave them as they are.

--keep adds the figures to those of other recipes, seeds and changes that were kept on this machine.
"""

from __future__ import annotations

import json
import shlex
import tempfile
import time
from pathlib import Path

from harness import Benchmark, Figures, options_of, run_benchmark
from progress import say, turns
from trainings import accuracies, processor_seconds, python, train

from mlops_img.errors import UserError

RECIPE = "the recipe"


def main() -> None:
    parser = options_of(__doc__, rounds=None)
    parser.add_argument("recipe", nargs="*", metavar="KEY=VALUE", help="overrides of the training")
    parser.add_argument("--change", action="append", default=[], help="further overrides, as one argument")
    parser.add_argument("--tta", nargs="+", default=[], help="views to evaluate: flip, flip+shift, flip+shift:SHARE")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    if not options.recipe:
        parser.error("name a recipe, such as experiment=cifar10 data=folder data.root=cifar10")
    recipe = [absolute(override) for override in options.recipe]
    contenders = {RECIPE: recipe} | {
        change: [*recipe, *map(absolute, shlex.split(change))] for change in options.change
    }
    benchmark = Benchmark("time_to_accuracy", rounds=len(options.seeds), settings={})
    rows: dict[int, list[tuple[str, Figures]]] = {seed: [] for seed in options.seeds}
    for number, name in turns("time_to_accuracy", list(contenders), len(options.seeds)):
        seed = options.seeds[number - 1]
        with tempfile.TemporaryDirectory(prefix="time-to-accuracy-") as folder:
            figures = measured(Path(folder), [*contenders[name], f"seed={seed}"])
            rows[seed].append((name, figures))
            say(f"{name}, seed {seed}: {figures}")
            for views in options.tta if name == RECIPE else []:
                rows[seed].append((f"tta={views}", augmented(Path(folder), views)))
                say(f"tta={views}, seed {seed}: {rows[seed][-1][1]}")
    # Where the data lie means nothing elsewhere.
    named = " ".join(
        f"{key}={path.name if (path := path_in(key, value)) else value}" for key, value in pairs(options.recipe)
    )
    for seed, measurements in rows.items():
        benchmark.add({"recipe": named, "seed": seed}, measurements)
    if options.keep:
        benchmark.join_kept()
    benchmark.finish(kept=options.keep)


def measured(folder: Path, overrides: list[str]) -> Figures:
    """Train once and return what it reached and cost."""
    start, used = time.perf_counter(), processor_seconds()
    train(folder, *overrides)
    seconds, used = time.perf_counter() - start, processor_seconds() - used
    val, test = accuracies(folder)
    return figures_of(val, test, seconds, used)


def augmented(folder: Path, views: str) -> Figures:
    """Evaluate the run in `folder` with test-time augmentation."""
    name, _, share = views.partition(":")
    reached, used = {}, 0.0
    for split in ("val", "test"):
        before = processor_seconds()
        arguments = ("run=run", f"split={split}", f"tta={name}", f"tta_share={share or 1}")
        python("-m", "mlops_img.evaluate", *arguments, cwd=folder)
        result = json.loads((folder / "run" / "evaluation" / f"{split}.json").read_text(encoding="utf-8"))
        reached[split], used = result["tta"], processor_seconds() - before
    return figures_of(reached["val"]["top1"], reached["test"]["top1"], reached["test"]["seconds"], used)


def figures_of(val: float, test: float, seconds: float, used: float) -> Figures:
    """Return the figures of a row."""
    return {
        "val_top1": round(val, 4),
        "test_top1": round(test, 4),
        "seconds": round(seconds, 1),
        "processor_seconds": round(used, 1),
    }


def pairs(overrides: list[str]) -> list[tuple[str, str]]:
    """Split overrides at their first `=`.

    Raises:
        UserError: one has none.
    """
    for override in overrides:
        if "=" not in override:
            raise UserError(f"{override}: an override is key=value")
    return [(key, value) for key, _, value in (override.partition("=") for override in overrides)]


def path_in(key: str, value: str) -> Path | None:
    """Return the path that an override names, if there is one; groups such as data=folder name none."""
    path = Path(value).expanduser()
    return path.resolve() if "." in key and path.exists() else None


def absolute(override: str) -> str:
    """Return the override with its path made absolute: each training runs in a folder of its own."""
    [(key, value)] = pairs([override])
    return f"{key}={path_in(key, value) or value}"


if __name__ == "__main__":
    run_benchmark("time_to_accuracy", main)
