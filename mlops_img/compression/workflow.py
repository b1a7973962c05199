"""From a run to a bundle: compress, measure, choose, write."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mlops_img.bundle.folder import new_bundle, write_manifest
from mlops_img.bundle.manifest import FORMAT, Manifest, Precision, PreprocessingInfo, Pruning, Quality
from mlops_img.compression.candidates import Built, Subject, fastest, try_out
from mlops_img.compression.capture import Servable
from mlops_img.compression.contents import keep_programs, model_info, of_test, provenance, write_samples
from mlops_img.compression.finetune import fine_tune
from mlops_img.compression.layers import count_macs
from mlops_img.compression.measure import Outputs, quality, run_over
from mlops_img.compression.model_card import candidates_table, write_model_card
from mlops_img.compression.onnx import check_onnx, write_onnx
from mlops_img.compression.prune import prune_channels
from mlops_img.compression.quantize import calibration_rows
from mlops_img.config.commands import EvaluateTrainConfig
from mlops_img.config.export import ExportConfig
from mlops_img.data.loader import Batch, Plan, load_batches, ordered_plans, skip_or_raise
from mlops_img.data.sources.base import ImageSet
from mlops_img.errors import UserError, did_you_mean
from mlops_img.evaluation.confidence import with_interval
from mlops_img.evaluation.metrics import Predictions, fit_temperature
from mlops_img.evaluation.trained import FinishedRun, open_run
from mlops_img.monitoring.reference import image_statistics, write_reference

BATCH = 32
PRECISIONS: dict[str, Precision] = {
    "none": "fp32",
    "bf16": "bf16",
    "dynamic": "int8-dynamic",
    "static": "int8-static",
}


def export_run(config: ExportConfig) -> Path:
    """Compress a run's best weights as configured and write the bundle; returns its folder.

    Raises:
        UserError: no such run, nothing to calibrate or measure on, an unwritable place, or accuracy that falls
            by more than `export.max_accuracy_drop`.
    """
    run = open_run(
        config.run, data=config.data, train=EvaluateTrainConfig(device=config.export.device, precision="fp32")
    )
    for split in ("train", "val"):
        if not len(run.dataset.split(split)):
            raise UserError(f"the {split} split is empty: an export calibrates on train and measures on val")
    name = config.name or run.config.model.name.replace("/", "_")
    with new_bundle(Path(config.bundles), name) as (folder, version):
        model, pruning = _pruned(run, config)
        statistics: list[Tensor] = []
        subject = make_subject(run, model, config, statistics)
        built = [try_out(subject, precision, folder) for precision in _wanted(config)]
        candidates = [one.candidate for one in built]
        print(candidates_table(candidates))
        chosen, said = _choose(built, subject.before.predictions, config)
        programs = keep_programs(folder, chosen, fallback=built[0])
        save_file(
            {key: value.contiguous() for key, value in subject.model.state_dict().items()},
            folder / "weights.safetensors",
        )
        if config.export.onnx:
            servable = Servable(model, subject.preprocessing)
            write_onnx(servable, folder / "model.onnx", config.export.max_batch)
            check_onnx(folder / "model.onnx", servable, (batch.images for batch in subject.validation()))
        temperature = fit_temperature(said.predictions)
        manifest = Manifest(
            format=FORMAT,
            name=name,
            version=version,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            model=model_info(run, subject),
            classes=run.trained.classes,
            preprocessing=PreprocessingInfo(**run.trained.preprocessing.to_dict()),
            temperature=temperature,
            precision=chosen.candidate.precision,
            programs=programs,
            candidates=candidates,
            pruning=pruning,
            before=quality(subject.before.predictions, subject.classes, "val"),
            after=quality(said.predictions, subject.classes, "val"),
            test=of_test(run),
            drift=write_reference(
                folder,
                said.features,
                torch.cat(statistics),
                said.predictions.probabilities(temperature),
                config.export.drift_sample,
            ),
            samples=write_samples(folder, run, config.export.samples),
            provenance=provenance(run),
            files={},
        )
        write_model_card(folder, manifest)
        write_manifest(folder, manifest)
    bundle = Path(config.bundles) / f"{name}-{version}"
    print(f"bundle: {bundle}, {chosen.candidate.precision}")
    return bundle


def _pruned(run: FinishedRun, config: ExportConfig) -> tuple[nn.Module, Pruning | None]:
    """Return the run's model, pruned and fine-tuned if the configuration asks for it, and what became of it."""
    whole, options = run.trained.model.cpu().float(), config.prune
    if options.name == "none":
        return whole, None
    preprocessing = run.trained.preprocessing
    pruned = fine_tune(run, prune_channels(whole, preprocessing, options.macs), options)
    weights = [sum(parameter.numel() for parameter in model.parameters()) for model in (whole, pruned)]
    macs = [count_macs(Servable(model, preprocessing))[0] for model in (whole, pruned)]
    top1 = [_quality_of(run, model, config) for model in (whole, pruned)]
    print(
        f"pruned: {1 - macs[1] / macs[0]:.0%} of the multiply-accumulates, {1 - weights[1] / weights[0]:.0%} of the "
        f"weights; top-1 {top1[0].top1:.4f} -> {with_interval(top1[1].top1, top1[1].top1_interval)} "
        f"on {top1[1].n} validation images"
    )
    return pruned, Pruning(
        target=options.macs,
        macs_before=macs[0],
        macs_after=macs[1],
        parameters_before=weights[0],
        parameters_after=weights[1],
        before=top1[0],
        after=top1[1],
        epochs=options.epochs,
    )


def _quality_of(run: FinishedRun, model: nn.Module, config: ExportConfig) -> Quality:
    servable = Servable(model, run.trained.preprocessing)
    return quality(
        run_over(servable, Validation(run)(), config.export.max_batch).predictions, run.trained.classes, "val"
    )


def make_subject(run: FinishedRun, model: nn.Module, config: ExportConfig, statistics: list[Tensor]) -> Subject:
    """Collect what the compressed forms are measured on; `statistics` gets those of the validation images."""
    layers = [name for name, _ in model.named_modules() if name]
    for name in config.quantize.keep_fp32:
        if name not in layers:
            raise UserError(f"quantize.keep_fp32: the model has no layer {name!r}.{did_you_mean(name, layers)}")
    servable = Servable(model, run.trained.preprocessing)
    validation = Validation(run)
    batches = _with_statistics(validation(), statistics)
    return Subject(
        model=model,
        preprocessing=run.trained.preprocessing,
        classes=run.trained.classes,
        validation=validation,
        calibration=_calibration(run, config),
        before=run_over(servable, batches, config.export.max_batch),
        device=run.precision.device,
        max_batch=config.export.max_batch,
        max_drop=config.export.max_accuracy_drop,
        compile=config.export.compile,
        seed=run.config.seed,
        keep_fp32=config.quantize.keep_fp32,
    )


class Validation:
    """The batches of the validation split, anew with each call."""

    def __init__(self, run: FinishedRun) -> None:
        self.run = run

    def __call__(self) -> Iterator[Batch]:
        """Read the images in order, each once; what cannot be decoded is left out or an error, as in the run."""
        images = self.run.dataset.val
        return _read(self.run, images, ordered_plans(len(images), BATCH))


def _read(run: FinishedRun, images: ImageSet, plans: list[Plan]) -> Iterator[Batch]:
    preprocessing = run.trained.preprocessing
    loaded = load_batches(images, preprocessing.crop, plans, decode=preprocessing.decode, workers=run.workers)
    skipped: dict[str, str] | None = {} if run.config.data.on_bad_image == "skip" else None
    return skip_or_raise(loaded, images, skipped, least=0)


def _with_statistics(batches: Iterable[Batch], statistics: list[Tensor]) -> Iterator[Batch]:
    for batch in batches:
        statistics.append(image_statistics(batch.images))
        yield batch


def _calibration(run: FinishedRun, config: ExportConfig) -> list[Tensor]:
    images = run.dataset.train
    rows = calibration_rows(images.labels, config.quantize.calibration_images, run.config.seed)
    plans = [Plan(0, rows[start : start + BATCH]) for start in range(0, len(rows), BATCH)]
    return [batch.images for batch in _read(run, images, plans)]


def _wanted(config: ExportConfig) -> list[Precision]:
    """List what is to be tried: fp32 always and first, as what others are compared with and fall back to."""
    if config.quantize.name == "auto":
        return list(PRECISIONS.values())
    return list(dict.fromkeys(["fp32", PRECISIONS[config.quantize.name]]))


def _choose(built: list[Built], before: Predictions, config: ExportConfig) -> tuple[Built, Outputs]:
    """Return the candidate that becomes the bundle, and what it said.

    Raises:
        UserError: what was asked for cannot be built, or loses too much.
    """
    limit = config.export.max_accuracy_drop
    wanted = built if config.quantize.name == "auto" else built[-1:]
    chosen = fastest(wanted, limit)
    if chosen is not None and chosen.outputs is not None:
        return chosen, chosen.outputs
    failed = built[-1].candidate
    asked = f"quantize={config.quantize.name}"
    if failed.top1_drop is None:
        raise UserError(f"{asked}: {failed.note}. Use quantize=auto")
    raise UserError(
        f"{asked}: top-1 on the {len(before.labels)} validation images falls by {failed.top1_drop:.2f} points, more "
        f"than export.max_accuracy_drop={limit}. Use quantize=auto, more quantize.calibration_images, or allow it"
    )
