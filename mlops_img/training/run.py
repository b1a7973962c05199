"""A run from its configuration to its report."""

from __future__ import annotations

import gc
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import torch

from mlops_img.config.train import Config
from mlops_img.core.files import OVERRIDES_FILE, point_link, write_json
from mlops_img.data.loader import skip_or_raise
from mlops_img.errors import UserError
from mlops_img.evaluation.confidence import with_interval
from mlops_img.evaluation.evaluator import evaluate_splits, load_trained, read_pixels, warn_of_few_images
from mlops_img.reporting.report import write_report
from mlops_img.runs.checkpoint import Checkpoints, newest_valid, step_checkpoints
from mlops_img.runs.folder import Origin, RunFolder, dvc_md5
from mlops_img.runs.resume import as_plain, check_unchanged
from mlops_img.runs.tracking import Tracker, start_tracker
from mlops_img.training.hooks import Session, out_of_patience
from mlops_img.training.interrupts import StopRequest
from mlops_img.training.loop import NonFiniteLossError, fit
from mlops_img.training.profiling import profiled
from mlops_img.training.samples import show_training_samples
from mlops_img.training.setup import Setup, set_up, training_batches

NAMED_IMAGES = 3
SUMMARIZED = ("top1", "top1_interval", "top5", "f1_macro", "loss", "ece", "ece_calibrated", "n")

log = logging.getLogger(__name__)


def run(config: Config, folder: RunFolder, origin: Origin) -> dict[str, Any]:
    """Train, evaluate and report as configured; returns the summary, also in `folder`/summary.json.

    Args:
        config: validated.
        folder: of this run; it exists.
        origin: how the run was asked for.

    Raises:
        UserError: something that the user can mend; what was trained so far stays in the folder.
        StoppedOnRequest: SIGTERM or Ctrl-C; a checkpoint was saved.
    """
    started = time.perf_counter()
    if not config.resume and step_checkpoints(folder.checkpoints):
        raise UserError(
            f"{folder.path} holds a run already. Go on with resume=auto, or choose another hydra.run.dir=..."
        )
    checkpoint = newest_valid(folder.checkpoints) if config.resume else None
    if config.resume and checkpoint is None:
        log.warning(
            "resume=%s: there is no checkpoint to resume in %s, so the training starts from its first step",
            config.resume,
            folder.path if (folder.path / OVERRIDES_FILE).exists() else Path(config.runs_dir) / "latest",
        )
    classes = None if checkpoint is None else checkpoint["classes"]
    setup = set_up(config, first_weights=checkpoint is None, classes=classes)
    state, dataset = setup.state, setup.dataset
    data = {
        "fingerprint": dataset.fingerprint,
        "dvc_md5": dvc_md5(Path(config.data.root)),
        "splits": dataset.provenance(),
    }
    plain = as_plain(config)
    if checkpoint is not None:
        _go_on(setup, plain, checkpoint)
    folder.forget_after(state.step)
    folder.forget_outcome()
    folder.write_config(config, origin)
    folder.write_provenance(data)
    point_link(Path(config.runs_dir) / "latest", folder.path)
    _announce(setup, folder)

    tracker = start_tracker(config.tracking, folder.path, {**plain, "data_md5": data}, state.tracking_id)
    state.tracking_id = tracker.run_id
    about = {
        "config": plain,
        "classes": dataset.classes,
        "preprocessing": setup.recipe.preprocessing.to_dict(),
        "fingerprint": dataset.fingerprint,
    }
    started -= state.seconds  # what the run took before it was resumed counts too
    summary = None
    try:
        show_training_samples(setup, folder, tracker)
        bad = _train(setup, folder, tracker, about, started)
        summary = _conclude(setup, folder, tracker, bad, started)
    finally:
        tracker.finish(summary)
    return summary


def release_memory() -> None:
    """Give back what a finished run still holds: reference cycles, and CUDA's cached blocks."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()  # else its limit of recompilations counts over all jobs
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _train(setup: Setup, folder: RunFolder, tracker: Tracker, about: dict[str, Any], start: float) -> dict[str, str]:
    """Run the loop; returns the training images that were left out, path to reason."""
    state, config, images = setup.state, setup.config, setup.dataset.train
    checkpoints = Checkpoints(folder.checkpoints, config.train.keep_checkpoints, about)
    bad: dict[str, str] = {}
    if state.step > 0 and folder.skipped.exists():
        bad = json.loads(folder.skipped.read_text(encoding="utf-8"))
    if state.step > 0 and out_of_patience(state, setup):
        return bad
    batches = skip_or_raise(training_batches(setup), images, bad if config.data.on_bad_image == "skip" else None)
    if config.train.profile_steps:
        batches = profiled(batches, folder.path / "profile", config.train.profile_steps)
    with StopRequest() as stop:
        session = Session(setup, folder, tracker, checkpoints, stop, bad, start)
        try:
            fit(state, batches, setup.recipe, setup.every, session)
        except NonFiniteLossError as error:
            raise UserError(_explain_non_finite(error, setup, folder)) from None
        finally:
            session.progress.close()
    return bad


def _conclude(setup: Setup, folder: RunFolder, tracker: Tracker, bad: dict[str, str], start: float) -> dict[str, Any]:
    """Evaluate the best weights on validation and test (if there is one), write summary and report."""
    state, dataset = setup.state, setup.dataset
    best = folder.checkpoints / "best.pt"
    trained = load_trained(best, setup.recipe.precision)
    splits = [split for split in ("val", "test") if split in dataset.splits]
    results = evaluate_splits(folder, trained, setup.evaluator, dataset, splits)
    summary = _summarize(setup, folder, results, bad, start)
    if bad:
        log.warning("%d training images were left out, see %s", len(bad), folder.skipped)
    write_json(folder.summary, summary)
    judged = results[dataset.headline]
    images = dataset.split(dataset.headline)
    report = write_report(folder.path, judged, lambda row: read_pixels(images, row, trained.preprocessing))
    drawn = [path for path in sorted(report.parent.glob("*.png")) if path != folder.training_samples]
    tracker.log_images({f"report/{path.stem}": path for path in drawn}, state.step)
    if setup.config.tracking.log_artifact:
        tracker.log_model([best, folder.config], summary)
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


def _summarize(
    setup: Setup, folder: RunFolder, results: dict[str, dict[str, Any]], bad: dict[str, str], start: float
) -> dict[str, Any]:
    """Return what summary.json holds; keys of test are there only where there is a test split."""
    speeds = [line["images_per_second"] for line in folder.read_metrics()[0] if line["split"] == "train"]
    skipped = {"skipped_test_images": len(results["test"]["skipped"])} if "test" in results else {}
    return {
        **{f"{split}.{name}": result[name] for split, result in results.items() for name in SUMMARIZED},
        "temperature": results["val"]["temperature"],
        "best_epoch": setup.state.best_epoch,
        "steps": setup.state.step,
        "images_per_second": sorted(speeds)[len(speeds) // 2] if speeds else None,
        "skipped_train_images": len(bad),
        **skipped,
        "wall_seconds": time.perf_counter() - start,
    }


def _go_on(setup: Setup, config: dict[str, Any], checkpoint: dict[str, Any]) -> None:
    """Go back to where the run was when it saved this checkpoint."""
    changes = check_unchanged(config, setup.dataset.fingerprint, checkpoint)
    setup.state.load_dict(checkpoint)
    log.info("going on after step %d of %d", setup.state.step, setup.every.total)
    for change in changes:
        log.warning("changed since: %s", change)


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
    log.info("%s", dataset.describe_splits())
    log.info("run folder: %s", folder.path)


def _explain_non_finite(error: NonFiniteLossError, setup: Setup, folder: RunFolder) -> str:
    paths = [setup.dataset.train.paths[row] for row in error.rows]
    write_json(folder.non_finite, {"step": error.step, "images": paths})
    newest = next(iter(step_checkpoints(folder.checkpoints)), None)
    kept = f"{newest} holds the weights from before" if newest else "no checkpoint was saved yet"
    return (
        f"{error} (images {', '.join(paths[:NAMED_IMAGES])} and {max(0, len(paths) - NAMED_IMAGES)} more, all in "
        f"{folder.non_finite}); {kept}. Lower optim.lr or train.grad_clip, or look at those images"
    )
