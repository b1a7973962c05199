"""Batch prediction from its configuration: list the input, open the model, compute the missing parts of a shard."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from mlops_img.config.predict import PredictConfig
from mlops_img.core.interrupts import StopRequest
from mlops_img.core.memory import freed_memory_kept
from mlops_img.core.text import valid_utf8
from mlops_img.data.batch import Batch
from mlops_img.data.loader import MAX_WORKERS, make_loader, report_killed_worker
from mlops_img.errors import StoppedOnRequest
from mlops_img.prediction.formats import choose_format, is_installed
from mlops_img.prediction.inputs import Input, open_input
from mlops_img.prediction.manifest import (
    VERSION,
    InputInfo,
    ModelInfo,
    OutputManifest,
    begin_or_resume,
    read_manifest,
)
from mlops_img.prediction.model import Model, open_model
from mlops_img.prediction.output import PartFiles, make_folder
from mlops_img.prediction.plan import Plan, find_shard
from mlops_img.prediction.rows import PartRows, column_names
from mlops_img.prediction.summary import summarize

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What computing parts takes."""

    input: Input
    model: Model
    plan: Plan
    files: PartFiles
    top_k: int
    workers: int

    def compute(self, parts: Sequence[int], stop: StopRequest) -> int:
        """Compute and write parts until they are done or a stop is requested; return the number of rows computed.

        Raises:
            UserError: a part cannot be written, or a data loader worker was killed.
        """
        computed = 0
        batches = self._batches(parts)
        total = sum(len(self.plan.rows_of(part)) for part in parts)
        # disable=None hides the bar if stderr is not a terminal.
        with tqdm(total=total, desc="predicting", unit="image", disable=None, leave=False) as bar, freed_memory_kept():
            for part in parts:
                rows = PartRows(self.plan.rows_of(part), self.top_k)
                for indices in self.plan.batches_of(part):
                    if stop.requested:
                        return computed
                    rows.add(next(batches), self.model)
                    computed += len(indices.rows)
                    bar.update(len(indices.rows))
                self.files.write(part, rows.columns(self.input.names, self.model.classes))
        return computed

    def _batches(self, parts: Sequence[int]) -> Iterator[Batch]:
        """Read and decode the batches of all parts, in order, without a pause between two parts."""
        loader = make_loader(
            self.input.images,
            self.model.preprocessing.crop,
            [indices for part in parts for indices in self.plan.batches_of(part)],
            decode=self.model.preprocessing.decode,
            workers=self.workers,
            device=self.model.device,
        )
        return report_killed_worker(loader, "smaller batch_size. The same command goes on with the missing parts")


def predict_images(config: PredictConfig) -> None:
    """Compute the parts of this shard that are missing, and print a summary.

    Raises:
        UserError: the input, the model or the output is not usable, or the output was begun with something else.
        StoppedOnRequest: SIGTERM or Ctrl-C; the parts before the present one are there.
    """
    shard, job = find_shard(config), open_job(config)
    output = job.files.folder
    job.files.remove_unfinished(shard)
    present = job.files.present()
    missing = sorted(set(shard.of(range(job.plan.parts))) - set(present))
    if present:
        log.info(
            "%s: %d of %d parts are there, %d are left to this process",
            output,
            len(present),
            job.plan.parts,
            len(missing),
        )
    with StopRequest("stopping after this batch; the parts that are written are kept") as stop:
        start = time.perf_counter()
        computed = job.compute(missing, stop) if missing else 0
        seconds = time.perf_counter() - start
    there = len(job.files.present())
    if stop.requested and not set(missing) <= set(job.files.present()):
        print(f"stopped: {there} of {job.plan.parts} parts are in {output}. The same command goes on with the next one")
        raise StoppedOnRequest
    _print_summary(job, there, computed, seconds)


def open_job(config: PredictConfig) -> Job:
    """List the input, open the model, and begin the output or see that it was begun with the same.

    Raises:
        UserError: the input or the model is not usable, or the output was begun with something else.
    """
    images = open_input(config.input, config.data)
    output = make_folder(config.output)
    model = open_model(config)
    begun = read_manifest(output)
    file_format = choose_format(config.format, begun.format if begun is not None else None)
    if begun is None and config.format == "auto" and not is_installed("parquet"):
        log.info('format=csv: pyarrow is not installed, which format=parquet needs (pip install "mlops_img[predict]")')
    top_k = min(config.top_k, len(model.classes))
    if top_k < config.top_k != PredictConfig.top_k:
        log.info("top_k=%d: the model has %d classes, and a row lists them all", config.top_k, top_k)
    plan = Plan(len(images.names), config.rows_per_part, model.batch_size)
    manifest = OutputManifest(
        version=VERSION,
        input=InputInfo(location=valid_utf8(images.location), rows=plan.rows, fingerprint=images.fingerprint),
        model=ModelInfo(
            location=valid_utf8(model.location),
            sha256=model.sha256,
            temperature=model.temperature,
            precision=model.precision,
        ),
        top_k=top_k,
        batch_size=plan.batch_size,
        rows_per_part=plan.rows_per_part,
        format=file_format,
        parts=plan.parts,
        columns=column_names(top_k),
    )
    begin_or_resume(output, manifest)
    return Job(images, model, plan, PartFiles(output, file_format), top_k, _workers(config.data.workers))


def _workers(wanted: int | None) -> int:
    """Return the number of processes that decode: by default one per core, also beside a model on the CPU."""
    if wanted is not None:
        return wanted
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MAX_WORKERS, cores)


def _print_summary(job: Job, there: int, computed: int, seconds: float) -> None:
    """Print what the output holds now, and how fast this process was."""
    for line in summarize(job.files).lines():
        print(line)
    if computed:
        print(f"speed: {computed:,} images in {seconds:.1f} s, {computed / seconds:.1f} images/s")
    left = job.plan.parts - there
    others = f"; the other {left:,} belong to other shards" if left else ""
    print(f"output: {job.files.folder} ({there:,} of {job.plan.parts:,} {job.files.format} parts{others})")
