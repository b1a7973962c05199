"""A run from its configuration to its report."""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from mlops_img.config.train import Config
from mlops_img.core.distributed import World
from mlops_img.core.files import point_link, write_json
from mlops_img.core.interrupts import StopRequest
from mlops_img.core.text import shortened_list
from mlops_img.data.batch import Batch
from mlops_img.data.skipped import SkippedImages
from mlops_img.errors import UserError
from mlops_img.evaluation.confidence import with_interval
from mlops_img.evaluation.evaluator import load_trained
from mlops_img.evaluation.metrics import METRICS
from mlops_img.evaluation.splits import evaluate_splits, read_pixels, warn_of_few_images
from mlops_img.reporting.report import write_report
from mlops_img.runs.checkpoint import Checkpoints, step_checkpoints
from mlops_img.runs.folder import Origin, RunFolder
from mlops_img.runs.provenance import dvc_md5
from mlops_img.runs.resume import as_plain
from mlops_img.runs.tracking import check_online, start_tracker
from mlops_img.training.context import RunClock, RunContext
from mlops_img.training.follow import named_step
from mlops_img.training.hooks import RunHooks, out_of_patience
from mlops_img.training.loop import NonFiniteLossError, fit
from mlops_img.training.paced_hooks import PacedHooks
from mlops_img.training.prepare import prepare
from mlops_img.training.probe import probe
from mlops_img.training.profiling import profiled
from mlops_img.training.samples import show_training_samples
from mlops_img.training.setup import Setup, checked_training_batches

NAMED_IMAGES = 3  # in the error of a loss that is not finite
# Of an evaluation in summary.json, besides every metric.
SUMMARIZED = ("top1_interval", "ece", "ece_calibrated", "n")

log = logging.getLogger(__name__)


def run(config: Config, folder: RunFolder, origin: Origin, world: World | None = None) -> dict[str, Any]:
    """Train, evaluate and report as configured.

    Args:
        config: validated.
        folder: of this run; made where it is missing.
        origin: how the run was asked for.
        world: the ranks that train it, of which this is rank 0; None: this process alone.

    Returns:
        The summary, which is also in `folder`/summary.json.

    Raises:
        UserError: something that the user can fix; what was trained so far stays in the folder.
        StoppedOnRequest: SIGTERM or Ctrl-C; a checkpoint was saved.
    """
    clock = RunClock()
    check_online(config.tracking)
    folder.create()
    setup, resumed = prepare(config, folder, world or World())
    clock.add(setup.state.seconds)
    data = {
        "fingerprint": setup.dataset.fingerprint,
        "dvc_md5": dvc_md5(Path(config.data.root)),
        "splits": setup.dataset.provenance(),
    }
    folder.begin(config, origin, data, after_step=setup.state.step)
    point_link(Path(config.runs_dir) / "latest", folder.path)
    _announce(setup, folder)

    tracker = start_tracker(
        config.tracking, folder.path, {**as_plain(config), "data_md5": data}, setup.state.tracking_id
    )
    setup.state.tracking_id = tracker.run_id
    skipped = SkippedImages.read(folder.skipped) if resumed else SkippedImages()
    context = RunContext(setup, folder, tracker, clock, skipped)
    summary = None
    try:
        show_training_samples(setup, folder, tracker)
        _train(context)
        summary = conclude(context)
    finally:
        tracker.finish(summary)
    return summary


def release_memory() -> None:
    """Release what a finished run still holds: reference cycles, and CUDA's cached blocks."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()  # else its limit of recompilations counts over all jobs
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _train(run: RunContext) -> None:
    """Run the loop from the step that the run has reached."""
    setup = run.setup
    state, config = setup.state, setup.config
    if state.step > 0 and out_of_patience(state, setup):
        return
    about = {
        "config": as_plain(config),
        "classes": setup.dataset.classes,
        "preprocessing": setup.recipe.preprocessing.to_dict(),
        "fingerprint": setup.dataset.fingerprint,
    }
    checkpoints = Checkpoints(run.folder.checkpoints, config.train.keep_checkpoints, about)
    batches: Iterable[Batch] = checked_training_batches(setup, run.skipped)
    if config.train.profile_steps:
        batches = profiled(batches, run.folder.path / "profile", config.train.profile_steps)
    with StopRequest("saving a checkpoint at the next step, then stopping") as stop:
        hooks = PacedHooks(run, checkpoints, stop, setup.pace) if setup.pace else RunHooks(run, checkpoints, stop)
        try:
            if config.probe.name != "none" and state.step == 0:
                hooks.end_epoch(state, probe(run))
                hooks.save(state)
            with named_step(state):
                fit(state, batches, setup.recipe, setup.intervals, hooks)
        except NonFiniteLossError as error:
            raise UserError(_explain_non_finite(error, setup, run.folder)) from None
        finally:
            hooks.progress.close()
    if setup.pace is not None and state.step < setup.intervals.epoch:
        log.warning("train.max_minutes=%g ended the training within its first epoch", config.train.max_minutes)


def conclude(run: RunContext) -> dict[str, Any]:
    """Evaluate the kept weights on validation and test (if there is one); write and return the summary."""
    setup, folder, dataset = run.setup, run.folder, run.setup.dataset
    best = folder.checkpoints / "best.pt"
    trained = load_trained(best, setup.recipe.precision)
    splits = [split for split in ("val", "test") if split in dataset.splits]
    results = evaluate_splits(folder, trained, setup.evaluator.on_this_rank(), dataset, splits)
    if run.skipped:
        log.warning("%d training images were skipped, see %s", len(run.skipped), folder.skipped)
    summary = _summarize(run, results)
    write_json(folder.summary, summary)

    judged, images = results[dataset.headline], dataset.split(dataset.headline)
    report = write_report(folder.path, judged, lambda row: read_pixels(images, row, trained.preprocessing))
    drawn = [path for path in sorted(report.parent.glob("*.png")) if path != folder.training_samples]
    run.tracker.log_images({f"report/{path.stem}": path for path in drawn}, setup.state.step)
    if setup.config.tracking.log_artifact:
        run.tracker.log_model([best, folder.config], summary)
    warn_of_few_images(judged)
    log.info(
        "%s top-1 %s%s  macro F1 %.4f  loss %.4f  in %.0f s: %s",
        judged["split"],
        with_interval(judged["top1"], judged["top1_interval"]),
        "" if "test" in results else " (no test split)",
        judged["f1_macro"],
        judged["loss"],
        summary["wall_seconds"],
        report,
    )
    return summary


def _summarize(run: RunContext, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return what summary.json holds; keys of test are there only where there is a test split."""
    speeds = [line["images_per_second"] for line in run.folder.read_metrics()[0] if line["split"] == "train"]
    skipped = {"skipped_test_images": len(results["test"]["skipped"])} if "test" in results else {}
    return {
        **{f"{split}.{name}": result[name] for split, result in results.items() for name in (*METRICS, *SUMMARIZED)},
        "temperature": results["val"]["temperature"],
        "best_epoch": run.setup.state.best_epoch,
        "steps": run.setup.state.step,
        "images_per_second": sorted(speeds)[len(speeds) // 2] if speeds else None,
        "skipped_train_images": len(run.skipped),
        **skipped,
        "wall_seconds": run.clock.seconds,
    }


def _announce(setup: Setup, folder: RunFolder) -> None:
    dataset, precision = setup.dataset, setup.recipe.precision
    trained = sum(weights.numel() for weights in setup.state.model.parameters() if weights.requires_grad)
    log.info(
        "%s on %s in %s, %.1f M weights to train; %d classes, %s images (%s)",
        setup.config.model.name,
        precision.device,
        str(precision.dtype).removeprefix("torch."),
        trained / 1e6,
        len(dataset.classes),
        " + ".join(str(len(images)) for images in dataset.splits.values()),
        ", ".join(dataset.splits),
    )
    if not setup.world.alone:
        share = "a slice of every forward pass" if setup.recipe.division.sliced else "whole forward passes"
        log.info("%d ranks, each does %s", setup.world.size, share)
    log.info("%s", dataset.describe_splits())
    log.info("run folder: %s", folder.path)


def _explain_non_finite(error: NonFiniteLossError, setup: Setup, folder: RunFolder) -> str:
    paths = [setup.dataset.train.paths[row] for row in error.rows]
    write_json(folder.non_finite, {"step": error.step, "images": paths})
    newest = next(iter(step_checkpoints(folder.checkpoints)), None)
    kept = f"{newest} holds the weights from before" if newest else "no checkpoint was saved yet"
    return (
        f"{error} (images {shortened_list(paths, NAMED_IMAGES)}; all are listed in "
        f"{folder.non_finite}); {kept}. Lower optim.lr or train.grad_clip, or check those images"
    )
