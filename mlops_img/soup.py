"""Average the weights of several runs: `python -m mlops_img.soup runs=runs/multirun-X`.

Runs are averaged greedily: one is kept in the average if that is then no worse on validation. The result is a run
folder like any other, with a report; evaluate, export and serve it as such.
"""

from __future__ import annotations

import dataclasses
from datetime import datetime
from pathlib import Path
from typing import Any

from mlops_img.cli import command
from mlops_img.config.commands import SoupConfig
from mlops_img.errors import UserError


def soup(config: SoupConfig) -> float:
    """Average runs as configured and return the top-1 on validation.

    Raises:
        UserError: fewer than two finished runs, or runs that do not go together.
    """
    folders = run_folders(config.runs)
    if len(folders) < 2:
        raise UserError(f"runs={config.runs}: an average takes two finished runs or more, here are {len(folders)}")

    from mlops_img.training.soup import cook

    output = Path(config.output or f"{config.runs_dir}/soup-{datetime.now():%Y-%m-%d_%H-%M-%S}")
    summary = cook(folders, output, config.images, dataclasses.asdict(config.train))
    print(f"run: {output}")
    return float(summary["val.top1"])


def run_folders(given: Any) -> list[Path]:
    """Return the folders of the finished runs: those that are listed, or all jobs of a multirun.

    Raises:
        UserError: a folder that is listed does not exist.
    """
    if isinstance(given, list):
        folders = [Path(str(one)).expanduser() for one in given]
        if len(set(folders)) < len(folders):
            raise UserError(f"runs={given}: name each run once")
        return folders
    root = Path(str(given)).expanduser()
    if not root.is_dir():
        raise UserError(f"runs={given}: there is no such folder. Name a multirun's folder, or [one run,another run]")
    return sorted(path.parents[1] for path in root.glob("*/checkpoints/best.pt") if not path.parents[1].is_symlink())


def main() -> None:
    """Run the command line."""
    command(soup, "soup")


if __name__ == "__main__":
    main()
