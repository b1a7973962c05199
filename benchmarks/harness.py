"""What the benchmarks share: options, contenders that take turns, ratios of medians, and what is done at the end."""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any, Generic, NoReturn, TypeVar

from progress import say, stage, turns
from records import FOLDER, Case, Result, Row, Scalar, keep, read, this_machine
from tqdm import tqdm

from mlops_img.errors import EXIT_OK, EXIT_USER_ERROR, UserError, did_you_mean

INTERRUPTED = 130  # as shells say it of Ctrl-C
Prepared = TypeVar("Prepared")
# Does one turn; returns the seconds that count, or None where all of it counts.
Turn = Callable[[], float | None]
Settings = Mapping[str, Scalar]
Figures = Mapping[str, int | float | None]


class MissingPackageError(Exception):
    """The whole benchmark cannot run here; says why."""


class Parser(argparse.ArgumentParser):
    """Says what is wrong with an option in one line."""

    def __init__(self, description: str | None) -> None:
        super().__init__(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse the options; the error of an unknown one suggests the nearest."""
        known, unknown = self.parse_known_intermixed_args(args, namespace)
        if unknown:
            name = unknown[0].split("=")[0]
            self.error(f"unknown option {name}.{did_you_mean(name, self._option_string_actions)}")
        return known

    def error(self, message: str) -> NoReturn:
        """Leave with one line."""
        self.exit(EXIT_USER_ERROR, f"{self.prog}: {message} (--help lists the options)\n".replace(". (", " ("))


def positive(text: str) -> int:
    """Read a whole number of at least 1."""
    number = int(text) if text.isascii() and text.isdigit() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return number


def options_of(description: str | None, rounds: int | None) -> Parser:
    """Return a parser with --keep and, where turns are repeated, --rounds."""
    parser = Parser(description)
    if rounds is not None:
        parser.add_argument("--rounds", type=positive, default=rounds, help=f"turns of each that count ({rounds})")
    parser.add_argument("--keep", action="store_true", help="write the figures to benchmarks/results/")
    return parser


@dataclass(frozen=True)
class Contender(Generic[Prepared]):
    """One of those that are compared.

    Attributes:
        name: in tables.
        prepare: makes it ready, once.
        packages: that it needs beside those of mlops_img, by the names that pip and Python know them by.
    """

    name: str
    prepare: Callable[[], Prepared]
    packages: tuple[str, ...] = ()


class Benchmark:
    """One run of a benchmark: what was skipped, and the cases that were measured.

    Args:
        name: of the benchmark, and of its folder in results/.
        rounds: turns of each contender that count.
        settings: what all cases have in common.
        gpu: the one that is used.
    """

    def __init__(self, name: str, *, rounds: int, settings: Settings, gpu: str | None = None) -> None:
        self.name, self.rounds, self.settings = name, rounds, dict(settings)
        self.machine = this_machine(gpu)
        self.skipped: dict[str, str] = {}
        self.cases: list[Case] = []
        print(f"{name}: n={rounds}, {self.machine.describe()}, {date.today()}", flush=True)

    def skip(self, what: str, why: str) -> None:
        """Leave something out; the end of the run says so."""
        self.skipped[what] = why

    def prepare(self, contenders: Sequence[Contender[Prepared]]) -> dict[str, Prepared]:
        """Make those ready whose packages are installed, and skip the others."""
        ready: dict[str, Prepared] = {}
        for contender in contenders:
            lacking = missing(contender.packages)
            if lacking:
                self.skip(contender.name, lacking)
                continue
            stage(f"{self.name}: preparing {contender.name}")
            ready[contender.name] = contender.prepare()
        return ready

    def compare(
        self,
        contenders: Mapping[str, Turn],
        images: int,
        *,
        warmup: int,
        goals: Mapping[str, float],
        case: Settings | None = None,
        more: Mapping[str, Figures] | None = None,
    ) -> None:
        """Let contenders take turns and add the case.

        Args:
            contenders: ours first.
            images: in one turn.
            warmup: turns of each before those that count.
            goals: contender to the ratio ours / theirs that we want at least.
            case: what is set apart from other cases.
            more: further figures of each contender.
        """
        settings = case or {}
        seconds = take_turns(title(self.name, settings), contenders, self.rounds, warmup)
        speeds = {label: [images / value for value in values] for label, values in seconds.items()}
        rows = rate_rows("images_per_second", speeds, goals)
        self.add(settings, [(label, {**figures, **(more or {}).get(label, {})}) for label, figures in rows])

    def add(self, case: Settings, rows: Sequence[tuple[str, Figures]]) -> None:
        """Add a case and print it."""
        self.cases.append(
            Case(settings=dict(case), rows=[Row(contender=label, figures=dict(figures)) for label, figures in rows])
        )
        columns = list(dict.fromkeys(name for _, figures in rows for name in figures))
        width = max(len(label) for label, _ in rows)
        lines = [title(self.name, case), "  ".join([" " * width, *columns])]
        for label, figures in rows:
            cells = ["" if figures.get(name) is None else str(figures[name]) for name in columns]
            aligned = [cell.rjust(len(name)) for cell, name in zip(cells, columns, strict=True)]
            lines.append("  ".join([label.ljust(width), *aligned]))
        say("\n".join(lines))

    def result(self) -> Result:
        """Return what was measured so far."""
        return Result(
            benchmark=self.name,
            date=date.today(),
            rounds=self.rounds,
            machine=self.machine,
            settings=self.settings,
            skipped=self.skipped,
            cases=self.cases,
        )

    def join_kept(self, folder: Path = FOLDER) -> None:
        """Add the cases and rows that were kept earlier, with the same settings and torch on this machine."""
        path = self.result().path(folder)
        if not path.exists():
            return
        kept = read(path)
        if (kept.settings, kept.machine.torch) != (self.settings, self.machine.torch):
            return
        cases = {tuple(case.settings.items()): case for case in self.cases}
        for old in kept.cases:
            new = cases.setdefault(tuple(old.settings.items()), Case(settings=old.settings, rows=[]))
            measured = {row.contender for row in new.rows}
            new.rows += [row for row in old.rows if row.contender not in measured]
        self.cases = [cases[settings] for settings in sorted(cases, key=str)]
        self.rounds = max(self.rounds, len({case.settings.get("seed") for case in self.cases}))
        done = {row.contender for case in self.cases for row in case.rows}
        self.skipped = {what: why for what, why in self.skipped.items() if what not in done}

    def finish(self, *, kept: bool) -> None:
        """Say what was skipped, and keep the figures if asked to."""
        for what, why in self.skipped.items():
            print(f"skipped: {self.name}, {what}: {why}")
        if kept:
            print(f"kept: {keep(self.result(), FOLDER)}; python benchmarks/tables.py brings it into docs/")


def title(name: str, settings: Settings) -> str:
    """Return the benchmark's name and what sets the case apart."""
    return ", ".join([name, *(f"{key.replace('_', ' ')} {value}" for key, value in settings.items())])


def missing(packages: Sequence[str]) -> str | None:
    """Say which packages are not installed and how to install them, or return None."""
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    if not absent:
        return None
    verb = "is" if len(absent) == 1 else "are"
    return f"{' and '.join(absent)} {verb} not installed: pip install -c constraints.txt {' '.join(absent)}"


def require(benchmark: str, *packages: str) -> None:
    """Skip the whole benchmark unless these packages are installed.

    Raises:
        MissingPackageError: one is not.
    """
    lacking = missing(packages)
    if lacking:
        raise MissingPackageError(f"{benchmark}: {lacking}")


def take_turns(name: str, contenders: Mapping[str, Turn], rounds: int, warmup: int) -> dict[str, list[float]]:
    """Let the contenders take turns.

    Returns:
        The seconds of the turns that count, of each contender.
    """
    seconds: dict[str, list[float]] = {label: [] for label in contenders}
    for number, label in turns(name, list(contenders), rounds, warmup):
        start = time.perf_counter()
        measured = contenders[label]()
        elapsed = time.perf_counter() - start
        if number > 0:
            seconds[label].append(elapsed if measured is None else measured)
    return seconds


def rate_rows(unit: str, rates: Mapping[str, Sequence[float]], goals: Mapping[str, float]) -> list[tuple[str, Figures]]:
    """Return a row for each contender: its median rate, and the ratio of ours (the first row) to it.

    Args:
        unit: the name of the figure.
        rates: contender to its rate in each turn.
        goals: contender to the ratio ours / theirs that we want at least.
    """
    ours = next(iter(rates.values()))
    rows: list[tuple[str, Figures]] = []
    for label, values in rates.items():
        # Turn by turn, so that what slows the machine slows both sides of each ratio.
        ratios = [mine / other for mine, other in zip(ours, values, strict=True)]
        figures: Figures = {
            unit: round(median(values), 1),
            "slowest": round(min(values), 1),
            "fastest": round(max(values), 1),
            "ratio": round(median(ours) / median(values), 3),
            "worst_ratio": round(min(ratios), 3),
            "goal": goals.get(label),
        }
        rows.append((label, figures))
    return rows


def run_benchmark(name: str, main: Callable[[], None]) -> NoReturn:
    """Run a benchmark, say in one line why it ended early, and leave with its exit code."""
    code, message = EXIT_OK, None
    try:
        main()
    except MissingPackageError as reason:
        print(f"skipped: {reason}", flush=True)
    except UserError as error:
        code, message = EXIT_USER_ERROR, f"{name}: {error}"
    except KeyboardInterrupt:
        code, message = INTERRUPTED, f"{name}: interrupted: no figures were kept"
    if message is not None:
        tqdm.write(message, file=sys.stderr)
    sys.exit(code)
