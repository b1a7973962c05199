"""Every key of the configuration: its type, its default and what it means.

Hydra merges the YAML files of `conf/` and the command line into these dataclasses, so a misspelt key
or a value of the wrong type fails in a file exactly as it does on the command line. This module
imports nothing heavy: `--help` must stay quick.

Lengths of time are written as text with a unit: "5 epochs", "500 steps" or "10%" of the whole run.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, cast, get_type_hints

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from mlops_img.config.data import DATA_SOURCES, DataConfig, EvaluateDataConfig
from mlops_img.config.paths import PATH

FREE_FORM = ("kwargs", "custom", "lr_scales")  # keys of mappings that may hold any key


@dataclass
class ModelConfig:
    """Group `model`: any timm model, or a class of your own by `_target_`."""

    # A timm model, e.g. resnet18, vit_tiny_patch16_224, resnet50.a1_in1k (with the tag of its weights), or
    # hf-hub:<owner>/<name> (a repository with a config.json of timm).
    name: str = "resnet18"
    # Where the first weights come from: none (random), hub (timm's pretrained weights), hf-hub:<owner>/<name>
    # (any repository there), or a path: a safetensors file, a checkpoint of timm, torchvision, Lightning or
    # plain PyTorch, a folder in the layout of Hugging Face, a run folder, a bundle.
    weights: str = field(default="none", metadata=PATH)
    # What stays as it is: none, backbone (all but the classifier), or the name of a module up to and
    # including which, in the order of the forward pass, nothing is trained (e.g. layer3, stages.2).
    freeze: str = "none"
    # Dropout before the classifier, and stochastic depth (arXiv:1603.09382), each a probability.
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    # Input channels: 3 (RGB) or 1 (the grey value of the RGB image).
    in_chans: int = 3
    # How much the first layers of a conv net shrink the image: null keeps the model's own (4 for a
    # ResNet); 2 takes the stride out of the first convolution, 1 the max-pooling too. For small images.
    stem_stride: int | None = None
    # Whether the residual branches of a net with random weights start at zero (arXiv:1706.02677), where the
    # architecture has them so. A long run gains by it; a short one has no time to wake them.
    zero_init_residual: bool = True
    # Further keyword arguments of the timm model or of your class.
    kwargs: dict[str, Any] = field(default_factory=dict)
    # Import path of your own class or function, or of torchvision's (torchvision.models.resnet18); called with
    # num_classes, kwargs and, if it takes it, in_chans.
    _target_: str | None = None


@dataclass
class AugmentConfig:
    """Group `augment`: what the training images go through, and the evaluation images do not."""

    # How a square is cut: random_resized (any part, arXiv:1409.4842), pad (the evaluation crop shifted by
    # up to `padding` pixels, as usual on CIFAR), or none (the evaluation crop).
    crop: str = "random_resized"
    # random_resized: share of the image's area and aspect ratio, each from..to.
    scale: list[float] = field(default_factory=lambda: [0.08, 1.0])
    ratio: list[float] = field(default_factory=lambda: [0.75, 1.3333])
    padding: int = 4
    # Probabilities of a mirror image.
    hflip: float = 0.5
    vflip: float = 0.0
    # Random affine map: rotation in degrees either way, shift as a share of the side, scale from..to, shear
    # in degrees. All at rest: no map.
    degrees: float = 0.0
    translate: float = 0.0
    zoom: list[float] = field(default_factory=lambda: [1.0, 1.0])
    shear: float = 0.0
    # none, randaugment (arXiv:1909.13719) or trivialaugment (arXiv:2103.10158).
    policy: str = "none"
    randaugment_ops: int = 2
    randaugment_magnitude: int = 9
    # Strength of brightness, contrast and saturation changes, and of hue changes (at most 0.5).
    color_jitter: float = 0.0
    hue_jitter: float = 0.0
    # On the batch, on the device: probability of erasing a rectangle (arXiv:1708.04896), and the Beta
    # parameters of mixup (arXiv:1710.09412) and cutmix (arXiv:1905.04899); 0 is off. Where both are on,
    # each batch gets one of them; mix_prob is the share of batches that get any.
    random_erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_prob: float = 1.0
    # A transform of your own, last on each image: `_target_` of a callable uint8 (3, H, W) -> the same; {}: none.
    custom: dict[str, Any] | None = field(default_factory=dict)


@dataclass
class OptimConfig:
    """Group `optim`: any optimiser of timm; norms and biases get no weight decay."""

    # adamw, sgd (with Nesterov momentum), lamb, muon, or another name of timm.optim.list_optimizers().
    name: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.05
    # Momentum of sgd and muon; Adam-like optimisers take betas from kwargs.
    momentum: float = 0.9
    # Each layer's learning rate is this times that of the layer above it (arXiv:2106.08254); null: off.
    layer_decay: float | None = None
    # Parts of the model that learn at a multiple of `lr`: head (the classifier), norm, bias, or a pattern of parameter
    # names, e.g. {head: 10, "layer1.*": 0.1}. The last one that fits a parameter counts; layer_decay multiplies.
    lr_scales: dict[str, float] = field(default_factory=dict)
    # Further keyword arguments of the optimiser, e.g. {betas: [0.9, 0.95]}.
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class ScheduleConfig:
    """Group `schedule`: the learning rate as a function of the step."""

    # cosine, one_cycle (arXiv:1708.07120), step or constant.
    name: str = "cosine"
    # Linear rise from 0; for one_cycle the length of its rising half.
    warmup: str = "5%"
    # The last learning rate as a share of the highest (cosine, one_cycle).
    final_fraction: float = 0.0
    # step: multiply by step_factor every step_length.
    step_length: str = "30%"
    step_factor: float = 0.1


@dataclass
class LossConfig:
    """Group `loss`."""

    # cross_entropy, or bce: one binary decision per class (arXiv:2110.00476).
    name: str = "cross_entropy"
    label_smoothing: float = 0.0
    # none, balanced (inversely to each class's number of images), or {class name: weight}; others get 1.
    class_weights: Any = "none"


@dataclass
class TrainConfig:
    """Node `train`: the loop."""

    epochs: int = 10
    # Stop after this many optimiser steps, whatever `epochs` says (the schedule ends there too).
    max_steps: int | None = None
    # Images per forward pass.
    batch_size: int = 64
    # Forward passes per optimiser step: the batch that the optimiser sees is batch_size * accumulate.
    accumulate: int = 1
    # Images per forward pass of an evaluation; null: twice batch_size.
    eval_batch_size: int | None = None
    # auto: bf16 where the hardware computes in it, else fp16 on CUDA and fp32 on a CPU. Or fp32, bf16, fp16.
    precision: str = "auto"
    # auto, cpu, cuda, cuda:1, ...
    device: str = "auto"
    # Images and weights in NHWC order in memory, which convolutions prefer.
    channels_last: bool = True
    # torch.compile: worth its minute of compilation on a GPU and a long run.
    compile: bool = False
    # On CUDA, float32 products in TF32: a little less exact, several times faster.
    tf32: bool = True
    # Largest norm of the gradient; null: no clipping.
    grad_clip: float | None = 1.0
    # Decay of the moving average of the weights, which is then what is evaluated and kept; null: off.
    ema_decay: float | None = None
    # Save every so many steps besides at each epoch's end; 0: only at the end of epochs.
    checkpoint_every_steps: int = 0
    # How many of the newest checkpoints stay (the best one always does).
    keep_checkpoints: int = 2
    log_every_steps: int = 20
    # Which epoch's weights the run keeps, reports and exports: best (by `optimized_metric`), or last. With few
    # validation images and a schedule that ends at a low rate, the best epoch is one by chance.
    select: str = "best"
    # Stop when `optimized_metric` has not improved for so many epochs; null: never.
    early_stopping_patience: int | None = None
    # Record this many steps with torch.profiler (debug=profile).
    profile_steps: int = 0


@dataclass
class TrackingConfig:
    """Group `tracking`: metrics.jsonl is always written; this is what comes on top."""

    # none or wandb.
    name: str = "wandb"
    # wandb: auto is online with a key and a network, else offline; online: the run does not start without
    # both; offline.
    mode: str = "auto"
    project: str = "mlops_img"
    entity: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    # Upload the best checkpoint and the resolved configuration as an artifact.
    log_artifact: bool = True


@dataclass
class Config:
    """The whole configuration of `python -m mlops_img.train`."""

    data: DataConfig = MISSING
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    # All randomness follows from it; the same seed gives the same run.
    seed: int = 0
    # What a run returns, early stopping watches and `best` means; a loss is minimised, the rest maximised.
    optimized_metric: str = "val.top1"
    # null starts anew; auto resumes the run of hydra.run.dir (or runs/latest), or starts one where there is none
    # yet; or a run folder.
    resume: str | None = field(default=None, metadata=PATH)
    # Where run folders are made.
    runs_dir: str = field(default="runs", metadata=PATH)


@dataclass
class EvaluateTrainConfig:
    """What may differ from the training's `train`; null: as it was there."""

    device: str | None = None
    precision: str | None = None
    eval_batch_size: int | None = None


@dataclass
class EvaluateConfig:
    """The configuration of `python -m mlops_img.evaluate`."""

    # The run folder whose best checkpoint is evaluated.
    run: str = field(default="runs/latest", metadata=PATH)
    # train, val or test. A data set of its own without splits is evaluated whole.
    split: str = "test"
    # Other images than the run's own: data.root=... alone reads them as the run's data were read; data=folder,
    # csv, custom and so on, with the keys that they have in training, reads them in that way.
    data: EvaluateDataConfig = field(default_factory=EvaluateDataConfig)
    # Options of the group `data` may set it; evaluation looks at the images as they are.
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    train: EvaluateTrainConfig = field(default_factory=EvaluateTrainConfig)


@dataclass
class AuditConfig:
    """The configuration of `python -m mlops_img.audit`."""

    data: DataConfig = MISSING
    # Options of the group `data` may set it; the audit looks at the images as they are.
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    # Two images are near duplicates when at most this many of the 64 bits of their hashes differ.
    near_duplicate_bits: int = 6
    # Where the findings are written as JSON; null: <root>.audit.json beside the root, or here if that is read-only.
    output: str | None = field(default=None, metadata=PATH)


@dataclass
class StoreConfig:
    """The configuration of `python -m mlops_img.store`."""

    # The folder of the bundle.
    bundle: str = field(default="bundles/latest", metadata=PATH)


def command_schemas() -> dict[str, type[Any]]:
    """Return the dataclass of each command, by the name of its file in `conf/`."""
    from mlops_img.config.export import BenchmarkConfig, ExportConfig

    return {
        "train": Config,
        "evaluate": EvaluateConfig,
        "export": ExportConfig,
        "benchmark": BenchmarkConfig,
        "audit": AuditConfig,
        "store": StoreConfig,
    }


def leaf_keys(schema: type[Any], prefix: str = "") -> dict[str, dataclasses.Field[Any]]:
    """Return the keys of a dataclass that hold values, e.g. optim.lr; of `data`, those of every source."""
    types = get_type_hints(schema)
    leaves: dict[str, dataclasses.Field[Any]] = {}
    for entry in dataclasses.fields(schema):
        key, kind = f"{prefix}{entry.name}", types[entry.name]
        if not dataclasses.is_dataclass(kind):
            leaves[key] = entry
            continue
        # An evaluation may read other data, by the options of the group.
        any_source = kind is DataConfig or (schema is EvaluateConfig and kind is EvaluateDataConfig)
        for part in (kind, *(DATA_SOURCES.values() if any_source else ())):
            leaves |= leaf_keys(cast(type[Any], part), f"{key}.")
    return leaves


def register_schemas() -> None:
    """Tell Hydra the types; `conf/` names them as `schema`, `schema/data: folder`, and so on."""
    store = ConfigStore.instance()
    for name, node in command_schemas().items():
        store.store(name=f"{name}_schema", node=_open_dicts(OmegaConf.structured(node)))
    for name, source in DATA_SOURCES.items():
        store.store(group="schema/data", name=name, node=_open_dicts(OmegaConf.structured(source)))


def _open_dicts(node: DictConfig) -> DictConfig:
    """Let the keys of free-form mappings be anything: they belong to timm, torchvision, the model or the user."""
    for name in node:
        if not OmegaConf.is_missing(node, name) and isinstance(node[name], DictConfig):
            if name in FREE_FORM:
                OmegaConf.set_struct(node[name], False)
            else:
                _open_dicts(node[name])
    return node
