"""Candidates: the model in each form, built, measured, and accepted or not."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from torch import Tensor
from torch.export import ExportedProgram

from mlops_img.bundle.manifest import Candidate, Program
from mlops_img.bundle.programs import CannotRunError, Runner, filled_up, load_program, this_machine
from mlops_img.compression.capture import compile_for_this_machine, save_portable
from mlops_img.compression.context import ExportContext
from mlops_img.compression.forms import Form
from mlops_img.compression.measure import (
    Outputs,
    by_sensitivity,
    cosine,
    quality,
    run_over,
    seconds_per_call,
    top1_drop,
)
from mlops_img.core.text import shortened_list

THROUGHPUT_BATCH = 16
SENSITIVITY_IMAGES = 32

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuiltCandidate:
    """A candidate, its programs (the best first), and its outputs on the validation split; None if it was not built."""

    candidate: Candidate
    programs: list[Program] = field(default_factory=list)
    outputs: Outputs | None = None

    def fits(self, max_drop: float) -> bool:
        """Return whether it was built and its top-1 fell by no more than that many points."""
        return self.candidate.top1_drop is not None and self.candidate.top1_drop <= max_drop


def build_and_measure(context: ExportContext, form: Form, folder: Path) -> BuiltCandidate:
    """Build the model in this form under `folder`/programs, and measure it.

    A candidate that cannot be built has a note that says why.
    """
    reason = form.unsupported_reason(context.device)
    if reason is not None:
        return BuiltCandidate(Candidate(precision=form.precision, note=reason))
    start = time.perf_counter()
    for kept in _layers_to_keep(context, form):
        log.info("building %s%s", form.precision, f" with {_named(kept)} in fp32" if kept else "")
        try:
            program: object = form.build(context, kept)
            if not isinstance(program, ExportedProgram):
                raise TypeError(f"it returned {type(program).__name__}, not torch.export.ExportedProgram")
        except Exception as error:  # PyTorch's tracing and quantizing fail in many ways, and the others may work
            log.debug("%s", form.precision, exc_info=True)
            note = f"cannot be built: {' '.join(str(error).split())[:200]}"
            return BuiltCandidate(Candidate(precision=form.precision, note=note))
        programs, runner, note = _write_programs(context, form.precision, program, folder)
        outputs = run_over(runner, context.validation(), context.max_batch)
        drop, interval = top1_drop(context.before.predictions, outputs.predictions, context.seed)
        if drop <= context.max_drop:
            break
        log.info("top-1 fell by %.2f points", drop)
    if not outputs.predictions.logits.isfinite().all():
        return BuiltCandidate(Candidate(precision=form.precision, note="its logits are not finite"))
    candidate = Candidate(
        precision=form.precision,
        quality=quality(outputs.predictions, context.classes, "val"),
        top1_drop=drop,
        top1_drop_interval=interval,
        cosine=cosine(context.before.predictions, outputs.predictions),
        bytes=(folder / programs[-1].file).stat().st_size,
        milliseconds=1e3 * median(seconds_per_call(runner, context.preprocessing, 1)),
        images_per_second=THROUGHPUT_BATCH / median(seconds_per_call(runner, context.preprocessing, THROUGHPUT_BATCH)),
        seconds=time.perf_counter() - start,
        kept_fp32=[name.removeprefix("model.") for name in kept],
        note="; ".join(filter(None, [note, form.note(context)])),
    )
    return BuiltCandidate(candidate, programs, outputs)


def fastest(built: Iterable[BuiltCandidate], max_drop: float) -> BuiltCandidate | None:
    """Return the fastest candidate whose top-1 fell by no more than `max_drop` points; None if there is none."""
    fitting = [one for one in built if one.fits(max_drop)]
    return max(fitting, key=lambda one: one.candidate.images_per_second or 0.0, default=None)


def _layers_to_keep(context: ExportContext, form: Form) -> Iterator[list[str]]:
    """Yield the layers that stay in fp32: the configured ones, then more and more of the most sensitive ones."""
    kept = [f"model.{name}" for name in context.keep_fp32]
    yield kept
    if not form.quantized:
        return
    ranked = by_sensitivity(context.exportable(), context.calibration[0][:SENSITIVITY_IMAGES], form.quantized)
    others = [name for name in ranked if name not in kept]
    count = 1
    while count <= len(ranked) // 2:  # with half of the layers in fp32 there is little left to gain
        yield kept + others[:count]
        count *= 2


def _write_programs(
    context: ExportContext, precision: str, program: ExportedProgram, folder: Path
) -> tuple[list[Program], Runner, str]:
    """Write the programs; return them, the best first, the best one's runner, and why there is no compiled one."""
    (folder / "programs").mkdir(exist_ok=True)
    portable = Program(
        precision=precision, file=f"programs/{precision}.pt2", compiled_for=None, max_batch=context.max_batch
    )
    save_portable(program, folder / portable.file)
    if not context.compile:
        return [portable], _eager(program), "not compiled (export.compile=false)"
    compiled = portable.model_copy(
        update={"file": f"programs/{precision}-compiled.pt2", "compiled_for": this_machine(context.device)}
    )
    try:
        compile_for_this_machine(program, folder / compiled.file, context.device)
        runner = load_program(folder, compiled, context.device, context.preprocessing.image_size)
        single, pair = (median(seconds_per_call(runner, context.preprocessing, batch)) for batch in (1, 2))
        if pair < single:
            compiled = compiled.model_copy(update={"min_batch": 2})
        return [compiled, portable], filled_up(runner, compiled.min_batch), ""
    except (RuntimeError, OSError, CannotRunError) as error:
        (folder / compiled.file).unlink(missing_ok=True)
        reason = " ".join(str(error).split())[:200]
        log.warning("%s cannot be compiled here, and is slower uncompiled: %s", precision, reason)
        return [portable], _eager(program), f"not compiled: {reason}"


def _eager(program: ExportedProgram) -> Runner:
    module = program.module(check_guards=False)

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        logits, features = module(images)
        return logits, features

    return run


def _named(layers: list[str]) -> str:
    return shortened_list([name.removeprefix("model.") for name in layers], 3)
