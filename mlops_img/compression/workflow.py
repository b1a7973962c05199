"""From a run to a bundle: compress, measure, choose, write."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from mlops_img.bundle.folder import new_bundle, write_manifest
from mlops_img.bundle.manifest import Pruning, Quality, TestTimeAugmentation
from mlops_img.compression.candidates import BuiltCandidate, build_and_measure, fastest
from mlops_img.compression.capture import ExportableModel
from mlops_img.compression.contents import candidates_table, describe, write_model_card
from mlops_img.compression.context import ExportContext, Validation, make_context
from mlops_img.compression.finetune import fine_tune
from mlops_img.compression.forms import FORMS, Form
from mlops_img.compression.measure import count_macs, quality, run_over
from mlops_img.compression.onnx import check_onnx, write_onnx
from mlops_img.compression.prune import prune_channels
from mlops_img.config.commands import EvaluateTrainConfig
from mlops_img.config.export import ExportConfig
from mlops_img.errors import UserError
from mlops_img.evaluation.confidence import with_interval
from mlops_img.evaluation.trained import FinishedRun, open_run


def export_run(config: ExportConfig) -> Path:
    """Compress a run's best weights as configured and write the bundle; returns its folder.

    Raises:
        UserError: no such run, nothing to calibrate or measure on, a folder that cannot be written, or accuracy
            that falls by more than `export.max_accuracy_drop`.
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
        context = make_context(run, model, config)
        tta = _test_time_augmentation(run, context, config)
        built = [build_and_measure(context, form, folder) for form in _wanted(config)]
        print(candidates_table([one.candidate for one in built]))
        chosen = _choose(built, context, config)
        _write_model(folder, context, config)
        manifest = describe(
            *(folder, run, context, built, chosen),
            name=name,
            version=version,
            pruning=pruning,
            tta=tta,
            options=config.export,
        )
        write_model_card(folder, manifest)
        write_manifest(folder, manifest)
    bundle = Path(config.bundles) / f"{name}-{version}"
    print(f"bundle: {bundle}, {chosen.candidate.precision}")
    return bundle


def _write_model(folder: Path, context: ExportContext, config: ExportConfig) -> None:
    """Write the fp32 weights, and the model as ONNX if `export.onnx`."""
    weights = {key: value.contiguous() for key, value in context.model.state_dict().items()}
    save_file(weights, folder / "weights.safetensors")
    if config.export.onnx:
        exportable = context.exportable()
        write_onnx(exportable, folder / "model.onnx", config.export.max_batch)
        check_onnx(folder / "model.onnx", exportable, (batch.images for batch in context.validation()))


def _pruned(run: FinishedRun, config: ExportConfig) -> tuple[nn.Module, Pruning | None]:
    """Return the run's model, pruned and fine-tuned if configured, and a record of the pruning."""
    whole, options = run.trained.model.cpu().float(), config.prune
    if options.name == "none":
        return whole, None
    preprocessing = run.trained.preprocessing
    pruned = fine_tune(run, prune_channels(whole, preprocessing, options.macs), options)
    weights = [sum(parameter.numel() for parameter in model.parameters()) for model in (whole, pruned)]
    macs = [count_macs(ExportableModel(model, preprocessing)).total for model in (whole, pruned)]
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


def _test_time_augmentation(
    run: FinishedRun, context: ExportContext, config: ExportConfig
) -> TestTimeAugmentation | None:
    """Measure the model without the views that its programs average over; None where they have only one."""
    views = config.export.tta
    if views == "none":
        return None
    without = _quality_of(run, context.model, config)
    averaged = quality(context.before.predictions, context.classes, "val")
    print(
        f"export.tta={views}: top-1 {without.top1:.4f} -> {with_interval(averaged.top1, averaged.top1_interval)} "
        f"on {averaged.n} validation images"
    )
    return TestTimeAugmentation(views=views, without=without)


def _quality_of(run: FinishedRun, model: nn.Module, config: ExportConfig) -> Quality:
    exportable = ExportableModel(model, run.trained.preprocessing)
    return quality(
        run_over(exportable, Validation(run)(), config.export.max_batch).predictions, run.trained.classes, "val"
    )


def _wanted(config: ExportConfig) -> list[Form]:
    """Return the forms to try; fp32 is always the first, to compare with and to fall back to."""
    if config.quantize.name == "auto":
        return list(FORMS.values())
    fp32, wanted = next(iter(FORMS.values())), FORMS[config.quantize.name]
    return [fp32] if wanted is fp32 else [fp32, wanted]


def _choose(built: list[BuiltCandidate], context: ExportContext, config: ExportConfig) -> BuiltCandidate:
    """Return the candidate that becomes the bundle.

    Raises:
        UserError: the chosen form cannot be built, or loses too much accuracy.
    """
    limit = config.export.max_accuracy_drop
    chosen = fastest(built if config.quantize.name == "auto" else built[-1:], limit)
    if chosen is not None:
        return chosen
    failed = built[-1].candidate
    wanted = f"quantize.name={config.quantize.name}"
    if failed.top1_drop is None:
        raise UserError(f"{wanted}: {failed.note}. Use quantize=auto")
    images = len(context.before.predictions.labels)
    raise UserError(
        f"{wanted}: top-1 on the {images} validation images falls by {failed.top1_drop:.2f} points, more "
        f"than export.max_accuracy_drop={limit}. Use quantize=auto, more quantize.calibration_images, or allow it"
    )
