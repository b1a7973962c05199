"""The ways of making a model smaller and faster: each is built, measured, and accepted or not."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from mlops_img.bundle.manifest import Candidate, Precision, Program
from mlops_img.bundle.programs import CannotRunError, Runner, filled_up, load_program, this_machine
from mlops_img.compression.capture import Servable, capture, compile_for_this_machine, example_images, save_portable
from mlops_img.compression.layers import by_sensitivity, count_macs
from mlops_img.compression.measure import Outputs, cosine, quality, run_over, seconds_per_call, top1_drop
from mlops_img.compression.quantize import quantize
from mlops_img.core.precision import cpu_computes_bf16
from mlops_img.data.loader import Batch
from mlops_img.preprocessing.transforms import Preprocessing

THROUGHPUT_BATCH = 16
SENSITIVITY_IMAGES = 32

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Subject:
    """A trained model, and what its compressed forms are measured on.

    Attributes:
        model: in fp32 on the CPU, in evaluation mode.
        preprocessing: of the model.
        classes: names.
        validation: gives the batches of the validation split, anew each time.
        calibration: training images, uint8 (n, 3, side, side) each.
        before: what the model says of the validation split, in fp32.
        device: where the programs are to run.
        max_batch: the most images that a program takes.
        max_drop: of top-1, in points, that is accepted.
        compile: make AOTInductor packages.
        seed: of the bootstrap.
        keep_fp32: names of layers that are not to be quantized.
    """

    model: nn.Module
    preprocessing: Preprocessing
    classes: list[str]
    validation: Callable[[], Iterable[Batch]]
    calibration: list[Tensor]
    before: Outputs
    device: torch.device
    max_batch: int
    max_drop: float
    compile: bool
    seed: int
    keep_fp32: Sequence[str] = ()


@dataclass(frozen=True)
class Built:
    """A candidate, its programs (the best first), and what it says of the validation split."""

    candidate: Candidate
    programs: list[Program] = field(default_factory=list)
    outputs: Outputs | None = None

    def fits(self, max_drop: float) -> bool:
        """Say whether it was built and its top-1 fell by no more than that many points."""
        return self.candidate.top1_drop is not None and self.candidate.top1_drop <= max_drop


def why_not(precision: Precision, device: torch.device) -> str | None:
    """Say why this way of computing makes no sense on this device, or None."""
    if precision.startswith("int8") and device.type == "cuda":
        return "int8 programs are made for CPUs; on a GPU use bf16"
    if precision == "bf16" and device.type == "cpu" and not cpu_computes_bf16():
        return "this processor has no bfloat16 arithmetic, so it would be slower than fp32"
    return None


def try_out(subject: Subject, precision: Precision, folder: Path) -> Built:
    """Build the model in this precision under `folder`/programs, and measure it.

    A candidate that cannot be built, or that predicts nothing like the model, says so in its note.
    """
    reason = why_not(precision, subject.device)
    if reason is not None:
        return Built(Candidate(precision=precision, note=reason))
    start = time.perf_counter()
    for kept in _layers_to_keep(subject, precision):
        log.info("building %s%s", precision, f" with {_named(kept)} in fp32" if kept else "")
        try:
            program = _build(subject, precision, kept)
        except Exception as error:  # PyTorch's tracing and quantizing fail in many ways, and the others may work
            log.debug("%s", precision, exc_info=True)
            return Built(Candidate(precision=precision, note=f"cannot be built: {' '.join(str(error).split())[:200]}"))
        programs, run, note = _make(subject, precision, program, folder)
        outputs = run_over(run, subject.validation(), subject.max_batch)
        drop, interval = top1_drop(subject.before.predictions, outputs.predictions, subject.seed)
        if drop <= subject.max_drop:
            break
        log.info("top-1 fell by %.2f points", drop)
    candidate = Candidate(
        precision=precision,
        quality=quality(outputs.predictions, subject.classes, "val"),
        top1_drop=drop,
        top1_drop_interval=interval,
        cosine=cosine(subject.before.predictions, outputs.predictions),
        bytes=(folder / programs[-1].file).stat().st_size,
        milliseconds=1e3 * median(seconds_per_call(run, subject.preprocessing, 1)),
        images_per_second=THROUGHPUT_BATCH / median(seconds_per_call(run, subject.preprocessing, THROUGHPUT_BATCH)),
        seconds=time.perf_counter() - start,
        kept_fp32=[name.removeprefix("model.") for name in kept],
        note="; ".join(filter(None, [note, _reach_of_dynamic(subject) if precision == "int8-dynamic" else None])),
    )
    return Built(candidate, programs, outputs)


def fastest(built: Iterable[Built], max_drop: float) -> Built | None:
    """Return the candidate with the most images a second among those whose top-1 fell by no more than `max_drop`."""
    fitting = [one for one in built if one.fits(max_drop)]
    return max(fitting, key=lambda one: one.candidate.images_per_second or 0.0, default=None)


def _layers_to_keep(subject: Subject, precision: Precision) -> Iterator[list[str]]:
    """Yield the layers that stay in fp32: those asked for, then more and more of those that int8 hurts most."""
    kept = [f"model.{name}" for name in subject.keep_fp32]
    yield kept
    if not precision.startswith("int8"):
        return
    servable = Servable(subject.model, subject.preprocessing)
    images = subject.calibration[0][:SENSITIVITY_IMAGES]
    ranked = by_sensitivity(servable, images, linear_only=precision == "int8-dynamic")
    others = [name for name in ranked if name not in kept]
    count = 1
    while count <= len(ranked) // 2:  # with half of the layers in fp32 there is little left to gain
        yield kept + others[:count]
        count *= 2


def _build(subject: Subject, precision: Precision, kept: Sequence[str]) -> ExportedProgram:
    if precision.startswith("int8"):
        servable = Servable(subject.model, subject.preprocessing)
        dynamic = precision == "int8-dynamic"
        return quantize(servable, subject.calibration, subject.max_batch, dynamic=dynamic, keep=kept)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    servable = Servable(deepcopy(subject.model), subject.preprocessing, dtype)
    return capture(servable, example_images(subject.preprocessing), subject.max_batch)


def _make(
    subject: Subject, precision: Precision, program: ExportedProgram, folder: Path
) -> tuple[list[Program], Runner, str | None]:
    """Write the programs, the best first; returns them, how to run the best, and what went wrong."""
    (folder / "programs").mkdir(exist_ok=True)
    portable = Program(
        precision=precision, file=f"programs/{precision}.pt2", compiled_for=None, max_batch=subject.max_batch
    )
    save_portable(program, folder / portable.file)
    if not subject.compile:
        return [portable], _eager(program), "not compiled (export.compile=false)"
    compiled = portable.model_copy(
        update={"file": f"programs/{precision}-compiled.pt2", "compiled_for": this_machine(subject.device)}
    )
    try:
        compile_for_this_machine(program, folder / compiled.file, subject.device)
        run = load_program(folder, compiled, subject.device)
        single, pair = (median(seconds_per_call(run, subject.preprocessing, batch)) for batch in (1, 2))
        if pair < single:
            compiled = compiled.model_copy(update={"min_batch": 2})
        return [compiled, portable], filled_up(run, compiled.min_batch), None
    except (RuntimeError, OSError, CannotRunError) as error:
        (folder / compiled.file).unlink(missing_ok=True)
        reason = " ".join(str(error).split())[:200]
        log.warning("%s cannot be compiled here, and is slower without: %s", precision, reason)
        return [portable], _eager(program), f"not compiled: {reason}"


def _eager(program: ExportedProgram) -> Runner:
    module = program.module(check_guards=False)

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        logits, features = module(images)
        return logits, features

    return run


def _reach_of_dynamic(subject: Subject) -> str:
    share = count_macs(Servable(subject.model, subject.preprocessing))[1]
    advice = "; quantize=static reaches convolutions too" if share < 0.5 else ""
    return f"reaches the linear layers, {share:.0%} of the multiply-accumulates{advice}".replace("%", " %")


def _named(layers: list[str]) -> str:
    names = [name.removeprefix("model.") for name in layers]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
