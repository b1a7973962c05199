"""What the benchmarks share: contenders that take turns, medians, ratios, and the file they are kept in."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from statistics import median

import torch

from mlops_img.core.files import write_json
from mlops_img.runs.provenance import hardware

FOLDER = Path(__file__).parent / "results"


def arguments(description: str | None, rounds: int, **paths: Path | None) -> argparse.Namespace:
    """Parse --rounds and --keep, and one option for each path."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help="turns of each contender that count")
    parser.add_argument("--table", action="store_true", help="where a benchmark has one: every model in a table")
    parser.add_argument("--keep", action="store_true", help="write the figures to benchmarks/results/")
    for name, path in paths.items():
        parser.add_argument(f"--{name}", type=Path, default=path)
    return parser.parse_args()


def report(
    name: str,
    contenders: dict[str, Callable[[], float | None]],
    images: int,
    options: argparse.Namespace,
    *,
    warmup: int,
    goals: dict[str, float],
) -> None:
    """Let the contenders take turns, print images/s and ratios, and keep them if asked to.

    Args:
        name: of the benchmark, and of the file in results/.
        contenders: ours first; each does one turn over `images` images and may return the seconds that count.
        images: in one turn.
        options: from `arguments`.
        warmup: turns of each before those that count.
        goals: contender to the ratio ours / theirs that we want at least.
    """
    seconds: dict[str, list[float]] = {label: [] for label in contenders}
    for number in range(warmup + options.rounds):
        for label, turn in contenders.items():
            start = time.perf_counter()
            measured = turn()
            elapsed = time.perf_counter() - start
            if number >= warmup:
                seconds[label].append(elapsed if measured is None else measured)
    speeds = {label: [images / value for value in values] for label, values in seconds.items()}
    ours = next(iter(contenders))
    rows = []
    for label, values in speeds.items():
        # Turn by turn, so that what slows the machine slows both sides of each ratio.
        ratios = [mine / other for mine, other in zip(speeds[ours], values, strict=True)]
        rows.append(
            {
                "contender": label,
                "images_per_second": round(median(values), 1),
                "slowest": round(min(values), 1),
                "fastest": round(max(values), 1),
                "ratio_of_ours": round(median(speeds[ours]) / median(values), 3),
                "lowest_ratio": round(min(ratios), 3),
                "goal": goals.get(label),
            }
        )
    print(f"{name}: n={options.rounds}, {hardware()['cpu']}, {hardware()['cores']} cores, {date.today()}")
    print(f"{'':45}{'images/s':>9}{'min':>9}{'max':>9}{'ours /':>9}{'worst':>9}{'goal':>7}")
    for row in rows:
        print(
            f"{row['contender']:45}{row['images_per_second']:9}{row['slowest']:9}{row['fastest']:9}"
            f"{row['ratio_of_ours']:9}{row['lowest_ratio']:9}{row['goal'] or '':>7}"
        )
    if options.keep:
        FOLDER.mkdir(exist_ok=True)
        content = {
            "date": str(date.today()),
            "rounds": options.rounds,
            "hardware": hardware(),
            "torch": torch.__version__,
            "rows": rows,
        }
        write_json(FOLDER / f"{name}.json", content)
