"""Latency and throughput of each program in a bundle."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import torch

from mlops_img.bundle.folder import read_manifest
from mlops_img.bundle.programs import CannotRunError, load_program
from mlops_img.compression.capture import example_images
from mlops_img.compression.measure import timed
from mlops_img.config.commands import BenchmarkConfig
from mlops_img.core.files import write_atomically, write_json
from mlops_img.core.precision import choose_device
from mlops_img.core.text import text_table
from mlops_img.preprocessing.transforms import Preprocessing
from mlops_img.registry.locate import local_bundle
from mlops_img.reporting.figures import latency_figure
from mlops_img.reporting.style import png_bytes
from mlops_img.runs.provenance import hardware

HEAD = ("program", "batch", "p50 ms", "p99 ms", "images/s", "calls")


@dataclass(frozen=True)
class ProgramTiming:
    """Calls of one program with one batch size; times in milliseconds."""

    program: str
    batch: int
    p50: float
    p99: float
    images_per_second: float
    calls: int


def measure_bundle(config: BenchmarkConfig) -> list[ProgramTiming]:
    """Time the programs of a bundle in turns, so that a machine whose speed drifts slows all alike.

    Raises:
        UserError: there is no bundle, it is damaged or cannot be downloaded.
    """
    folder = local_bundle(config.bundle)
    manifest = read_manifest(folder)
    preprocessing = Preprocessing.from_dict(manifest.preprocessing.model_dump())
    device = choose_device(config.device, "device")
    runners = {}
    for program in manifest.programs:
        try:
            runners[program.file] = load_program(folder, program, device, preprocessing.image_size)
        except CannotRunError as error:
            print(f"{program.file} does not run here: {error}")
    taken: dict[tuple[str, int], list[float]] = {}
    for _ in range(config.rounds):
        for batch in config.batches:
            images = example_images(preprocessing, batch)
            for name, run in runners.items():
                seconds = timed(partial(run, images), config.seconds / config.rounds)
                taken.setdefault((name, batch), []).extend(seconds)
    return [_timing(name, batch, seconds) for (name, batch), seconds in sorted(taken.items())]


def show(timings: list[ProgramTiming], config: BenchmarkConfig) -> None:
    """Print the table, and write it as <bundle>.benchmark.json and .png: to `output`, else beside a local bundle.

    Without `output`, the files of a downloaded bundle are written to the working directory.
    """
    rows = [HEAD] + [
        (
            one.program,
            f"{one.batch}",
            f"{one.p50:.2f}",
            f"{one.p99:.2f}",
            f"{one.images_per_second:.0f}",
            f"{one.calls}",
        )
        for one in timings
    ]
    print(text_table(rows))
    folder = Path(config.bundle).resolve()
    name = f"{folder.name.replace(':', '-')}.benchmark"
    base = Path(config.output) if config.output else folder.with_name(name) if folder.is_dir() else Path(name)
    figure = png_bytes(latency_figure([asdict(one) for one in timings]))
    write_json(
        base.with_name(f"{base.name}.json"),
        {
            "bundle": folder.name,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "hardware": hardware(),
            "threads": torch.get_num_threads(),
            "timings": [asdict(one) for one in timings],
        },
    )
    write_atomically(base.with_name(f"{base.name}.png"), lambda file: file.write(figure))
    print(f"written: {base}.json, {base}.png")


def _timing(program: str, batch: int, seconds: list[float]) -> ProgramTiming:
    p50, p99 = np.percentile(seconds, [50, 99]) * 1e3
    return ProgramTiming(program, batch, float(p50), float(p99), 1e3 * batch / float(p50), len(seconds))
