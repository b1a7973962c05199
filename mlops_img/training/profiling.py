"""Where the time of a step goes, by torch.profiler."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from mlops_img.core.files import write_text
from mlops_img.data.batch import Batch

SKIP_STEPS = 2  # the first ones allocate memory and choose kernels
WARMUP_STEPS = 1
COSTLIEST = 30

log = logging.getLogger(__name__)


def profiled(batches: Iterable[Batch], folder: Path, steps: int) -> Iterator[Batch]:
    """Pass the batches on and record what happens between them, for `steps` of them after the first few.

    Writes `folder`/trace.json for a trace viewer and `folder`/operators.txt, the costliest operators.
    """
    folder.mkdir(parents=True, exist_ok=True)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()

    def write(profiler: profile) -> None:
        profiler.export_chrome_trace(str(folder / "trace.json"))
        averages = profiler.key_averages()
        on_device = any(operator.self_device_time_total > 0 for operator in averages)
        order = "self_device_time_total" if on_device else "self_cpu_time_total"
        table = averages.table(sort_by=order, row_limit=COSTLIEST)
        write_text(folder / "operators.txt", table)
        log.info("profile of %d steps: %s", steps, folder)

    plan = schedule(wait=SKIP_STEPS, warmup=WARMUP_STEPS, active=steps, repeat=1)
    with profile(activities=activities, schedule=plan, on_trace_ready=write, profile_memory=True) as profiler:
        for batch in batches:
            yield batch
            profiler.step()
