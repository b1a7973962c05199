"""Every key of the export's configuration: its type, its default and what it means. Light to import."""

from __future__ import annotations

from dataclasses import dataclass, field

from mlops_img.config.data import EvaluateDataConfig
from mlops_img.config.rules import at_least, between, folder_name, key, one_from, one_of


@dataclass
class QuantizeConfig:
    """Group `quantize`: in what precision the exported model computes."""

    # none (fp32), bf16, dynamic (int8, linear layers alone), static (int8, calibrated), or auto: tries what fits
    # the machine and keeps the fastest that stays within export.max_accuracy_drop.
    name: str = key("auto", one_from("mlops_img.compression.forms:FORMS", "auto"))
    # Training images for the calibration of static quantization, equally many of each class.
    calibration_images: int = key(256, at_least(1))
    # Layers that stay in fp32, by name; export adds others if accuracy requires it.
    keep_fp32: list[str] = field(default_factory=list)


@dataclass
class PruneConfig:
    """Group `prune`: the least important channels are removed before anything else."""

    # none or channels.
    name: str = key("none", one_of("none", "channels"))
    # Share of the multiply-accumulates that is removed.
    macs: float = 0.3
    # The fine-tuning that follows: its length and its highest learning rate as a share of the training's.
    epochs: int = 3
    lr_fraction: float = 0.1
    # Share of the unpruned model's outputs in the loss of the fine-tuning (distill.weight); 0: the labels alone.
    distill_weight: float = key(0.0, between(0, 1))


@dataclass
class ExportOptions:
    """Node `export`."""

    # Points of top-1 on the validation split that compression may cost.
    max_accuracy_drop: float = key(0.5, at_least(0))
    # Views of an image over whose logits every program averages, see `tta` of the evaluation: none, flip or flip+shift.
    # They take 2 and 6 times the time.
    tta: str = key("none", one_from("mlops_img.preprocessing.views:VIEWS"))
    # Compile for this machine with AOTInductor (needs g++); else portable programs alone.
    compile: bool = True
    # Write model.onnx too, checked against the program (pip install "mlops_img[onnx]").
    onnx: bool = False
    # Largest batch that a program accepts.
    max_batch: int = key(64, at_least(2))
    # auto, cpu, cuda: the device that the model is exported for.
    device: str = "auto"
    # Validation images of which the drift reference keeps a row.
    drift_sample: int = key(1000, at_least(1))
    # Validation images included in the bundle as samples to try.
    samples: int = key(6, at_least(0))


@dataclass
class ExportConfig:
    """The configuration of `python -m mlops_img.export`."""

    # The run folder whose best checkpoint is exported.
    run: str = key("runs/latest", path=True)
    # Where bundles are made: <bundles>/<name>-<version>, and <bundles>/latest leads to the newest.
    bundles: str = key("bundles", path=True)
    # null: the model's name. Versions count up from 1.
    name: str | None = key(None, folder_name())
    quantize: QuantizeConfig = field(default_factory=QuantizeConfig)
    prune: PruneConfig = field(default_factory=PruneConfig)
    export: ExportOptions = field(default_factory=ExportOptions)
    data: EvaluateDataConfig = field(default_factory=EvaluateDataConfig)
    # Modules to import besides those of the run, which register forms of programs of your own (docs/extending.md).
    plugins: list[str] = field(default_factory=list)
