"""Run the benchmarks one after the other and say at the end what was measured, what was skipped and why.

    python benchmarks/run_all.py                                   # the five of `make benchmark`, with generated photos
    python benchmarks/run_all.py --photos <folder> --rounds 3 --keep
    python benchmarks/run_all.py serving serving_endurance         # these alone

Each is a process of its own, as started by hand. One that fails does not keep the rest from running.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from harness import INTERRUPTED, Parser, positive
from photos import add_photos
from progress import stage

HERE = Path(__file__).parent
SKIPPED = "skipped: "


@dataclass(frozen=True)
class Entry:
    """A benchmark: its script with the options that choose it, and those of the common options that it takes.

    `why_not` says why it does not run by itself.
    """

    script: str
    flags: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    why_not: str | None = None


BY_HAND = "takes a recipe as arguments: python benchmarks/time_to_accuracy.py --help"
ENTRIES = {
    "train_loop": Entry("train_loop.py", takes=("rounds",)),
    "input_pipeline": Entry("input_pipeline.py", takes=("rounds", "photos")),
    "compression": Entry("compression.py", takes=("rounds",)),
    "batch_prediction": Entry("batch_prediction.py", takes=("rounds", "photos")),
    "serving": Entry("serving.py", takes=("rounds", "photos")),
    "compression_models": Entry(
        "compression.py", flags=("--table",), why_not="exports every model, for 10 minutes and more: name it to run it"
    ),
    "serving_endurance": Entry(
        "serving.py", flags=("--endurance",), takes=("photos",), why_not="sends 20,000 requests: name it to run it"
    ),
    "finetune": Entry("finetune.py", takes=("data", "weights", "timm_train")),
    "finetune_minutes": Entry(
        "finetune.py",
        flags=("--minutes", "15", "--epochs", "4"),
        takes=("data", "weights", "timm_train"),
        why_not="takes 15 minutes for each contender and seed: name it to run it",
    ),
    "time_to_accuracy": Entry("time_to_accuracy.py", why_not=BY_HAND),
}
NO_DATA = "no --data FOLDER (with train, valid and test) and --weights FILE (safetensors)"


@dataclass
class Summary:
    """How each benchmark ended."""

    measured: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def print(self) -> None:
        """Print one line each."""
        print(f"\nmeasured: {', '.join(self.measured) or 'nothing'}")
        for title, lines in ((SKIPPED, self.skipped), ("failed: ", self.failed)):
            for line in lines:
                print(f"{title}{line}")


def parse() -> argparse.Namespace:
    """Read the options."""
    parser = Parser(__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ENTRIES)}")
    parser.add_argument("--rounds", type=positive, help="turns of each that count (5 to 7, serving 3)")
    parser.add_argument("--keep", action="store_true", help="write the figures to benchmarks/results/")
    add_photos(parser)
    parser.add_argument("--data", type=Path, help="for finetune: a folder with train, valid and test")
    parser.add_argument("--weights", type=Path, help="for finetune: safetensors")
    parser.add_argument("--timm-train", type=Path, help="for finetune: timm's train.py")
    options: argparse.Namespace = parser.parse_args()
    for name in options.names:
        if name not in ENTRIES:
            parser.error(f"there is no benchmark {name!r}: {', '.join(ENTRIES)}")
    for name in ("photos", "data", "weights", "timm_train"):
        path = getattr(options, name)
        if path is not None and not path.exists():
            parser.error(f"--{name.replace('_', '-')} {path}: there is no such file or folder")
    return options


def why_not(name: str, options: argparse.Namespace) -> str | None:
    """Say why a benchmark is not run, or return None."""
    if "weights" in ENTRIES[name].takes and None in (options.data, options.weights):
        return NO_DATA
    return None if name in options.names else ENTRIES[name].why_not


def command(entry: Entry, options: argparse.Namespace) -> list[str]:
    """Return how it is started."""
    arguments = [sys.executable, str(HERE / entry.script), *entry.flags]
    for name in entry.takes:
        value = getattr(options, name)
        if value is not None:
            arguments += [f"--{name.replace('_', '-')}", str(value)]
    return [*arguments, "--keep"] if options.keep else arguments


def run(name: str, call: list[str], summary: Summary) -> None:
    """Run a benchmark to its end, pass on what it prints and note what it skipped."""
    skipped: list[str] = []
    # In a process group of its own, so that Ctrl-C reaches it once, from here, while it ends its servers.
    process = subprocess.Popen([call[0], "-u", *call[1:]], stdout=subprocess.PIPE, text=True, process_group=0)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            print(line, end="", flush=True)
            if line.startswith(SKIPPED):
                skipped.append(line.removeprefix(SKIPPED).strip())
        process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        process.wait()
        raise
    summary.skipped += skipped
    if process.returncode:
        summary.failed.append(f"{name}: exit code {process.returncode}: {' '.join(call)}")
    elif not any(line.startswith(f"{name}: ") for line in skipped):
        summary.measured.append(name)


def main() -> int:
    options = parse()
    summary = Summary()
    wanted = []
    for name in options.names or ENTRIES:
        reason = why_not(name, options)
        if reason is None:
            wanted.append(name)
        else:
            summary.skipped.append(f"{name}: {reason}")
    try:
        for place, name in enumerate(wanted, start=1):
            stage(f"benchmark {place} of {len(wanted)}: {name}")
            run(name, command(ENTRIES[name], options), summary)
    except KeyboardInterrupt:
        summary.skipped += [f"{name}: interrupted" for name in wanted if name not in summary.measured]
        summary.print()
        return INTERRUPTED
    summary.print()
    return 1 if summary.failed else 0


if __name__ == "__main__":
    sys.exit(main())
