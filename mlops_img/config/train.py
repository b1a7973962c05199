"""Every key of `python -m mlops_img.train`: its type, its default, its rule and what it means.

Hydra merges the YAML files of `conf/` and the command line into these dataclasses, so a misspelled key
or a value of the wrong type fails in a file exactly as it does on the command line. This module
imports nothing heavy: `--help` must stay quick.

Lengths of time are written as text with a unit: "5 epochs", "500 steps" or "10%" of the whole run.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from mlops_img.config.augment import AugmentConfig
from mlops_img.config.data import DataConfig
from mlops_img.config.rules import (
    ascending_pair,
    at_least,
    between,
    each_more_than,
    key,
    more_than,
    not_empty,
    one_from,
    one_of,
    word_or,
)
from mlops_img.errors import UserError

PRECISION = one_of("auto", "fp32", "bf16", "fp16")


@dataclass
class ModelConfig:
    """Group `model`: any timm model, or a class of your own by `_target_`."""

    # A timm model, e.g. resnet18, vit_tiny_patch16_224, resnet50.a1_in1k (with the tag of its weights), or
    # hf-hub:<owner>/<name> (a repository with a config.json of timm).
    name: str = "resnet18"
    # Where the first weights come from: none (random), hub (timm's pretrained weights), hf-hub:<owner>/<name>
    # (any repository there), or a path: a safetensors file, a checkpoint of timm, torchvision, Lightning or
    # plain PyTorch, a folder in the layout of Hugging Face, a run folder, a bundle.
    weights: str = key("none", path=True)
    # What is not trained: none, backbone (all but the classifier), or the name of a module: all modules up to and
    # including it in the order of the forward pass (e.g. layer3, stages.2).
    freeze: str = "none"
    # Dropout before the classifier, and stochastic depth (arXiv:1603.09382), each a probability.
    drop_rate: float = key(0.0, between(0, 1))
    drop_path_rate: float = key(0.0, between(0, 1))
    # Input channels: 3 (RGB) or 1 (the gray value of the RGB image).
    in_chans: int = 3
    # Stride of a conv net's stem: null keeps the model's own (4 for a ResNet); 2 removes the stride of the first
    # convolution, 1 also the max-pooling. For small images.
    stem_stride: int | None = None
    # Whether residual branches of a net with random weights start at zero (arXiv:1706.02677), if the architecture
    # does so. Helps in long runs; a short run is over before they contribute.
    zero_init_residual: bool = True
    # Share of each new batch in the running statistics of batch norm, e.g. 0.4 for a run of a few hundred steps; null
    # keeps the model's own (0.1 for most).
    bn_momentum: float | None = key(None, more_than(0), between(0, 1))
    # Further keyword arguments of the timm model or of your class.
    kwargs: dict[str, Any] = field(default_factory=dict)
    # Import path of your own class or function, or of torchvision's (torchvision.models.resnet18); called with
    # num_classes, kwargs and, if it takes it, in_chans.
    _target_: str | None = None


@dataclass
class OptimConfig:
    """Group `optim`: any optimizer of timm, or a class of your own; norms and biases get no weight decay."""

    # adamw, sgd (with Nesterov momentum), lamb, muon, or another name of timm.optim.list_optimizers().
    name: str = "adamw"
    # The highest rate of the schedule, or auto: found by a range test of 100 steps before the run.
    lr: Any = key(1e-3, word_or("auto", more_than(0)))
    weight_decay: float = key(0.05, at_least(0))
    # Momentum of sgd and muon; Adam-like optimizers take betas from kwargs.
    momentum: float = 0.9
    # Each layer's learning rate is this times that of the layer above it (arXiv:2106.08254); null: off.
    layer_decay: float | None = key(None, more_than(0))
    # Multiples of `lr` for parts of the model: head (the classifier), norm, bias, or a pattern of parameter names,
    # e.g. {head: 10, "layer1.*": 0.1}. The last one that matches a parameter counts; layer_decay multiplies.
    lr_scales: dict[str, float] = field(default_factory=dict)
    # Further keyword arguments of the optimizer, e.g. {betas: [0.9, 0.95]}.
    kwargs: dict[str, Any] = field(default_factory=dict)
    # Import path of an optimizer class of your own instead, a torch.optim.Optimizer; called with parameter groups, lr,
    # weight_decay and kwargs. lr_scales applies to it too; layer_decay and momentum do not.
    _target_: str | None = None


@dataclass
class ScheduleConfig:
    """Group `schedule`: the learning rate as a function of the step."""

    # cosine, one_cycle (arXiv:1708.07120), step, constant, or one that a plugin registered.
    name: str = key("cosine", one_from("mlops_img.training.schedule:SCHEDULES"))
    # Length of the linear warmup from 0; for one_cycle, of its rising half.
    warmup: str = "5%"
    # The last learning rate as a share of the highest (cosine, one_cycle).
    final_fraction: float = key(0.0, between(0, 1))
    # step: multiply by step_factor every step_length.
    step_length: str = "30%"
    step_factor: float = 0.1
    # Arguments of a schedule of your own.
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class LossConfig:
    """Group `loss`."""

    # cross_entropy, or bce: one binary decision per class (arXiv:2110.00476).
    name: str = key("cross_entropy", one_from("mlops_img.training.losses:LOSSES"))
    label_smoothing: float = key(0.0, between(0, 1))
    # none, balanced (inversely to each class's number of images), or {class name: weight}; others get 1.
    class_weights: Any = "none"
    # Import path of a loss of your own instead, an nn.Module class; called with label_smoothing, weight (float32
    # (classes,), or None) and kwargs. Its forward takes logits (n, classes) and labels: int64 (n,), or float
    # (n, classes) where images are mixed; it returns the mean loss.
    _target_: str | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class ProbeConfig:
    """Group `probe`: fit the classifier on features of the backbone as it is, before the first training step.

    With train.epochs=0 that is all; the backbone needs weights.
    """

    # none, or linear: logistic regression by L-BFGS on what enters the classifier.
    name: str = key("none", one_of("none", "linear"))
    # Augmented views of each training image, besides the evaluation crop.
    augmented_views: int = key(0, at_least(0))
    # Penalties on the squared weights to try; the one of lowest validation loss is kept.
    l2: list[float] = key([1e-5, 1e-4, 1e-3, 1e-2, 1e-1], not_empty("penalty"), each_more_than(0))
    # Keep the features of each image below ~/.cache, for the next run with this backbone.
    cache: bool = True


@dataclass
class DistillConfig:
    """Node `distill`: learn from a teacher's outputs besides the labels (arXiv:1503.02531)."""

    # A run folder, a bundle that was not pruned, or a timm model whose published weights know these classes; null: no
    # teacher.
    teacher: str | None = key(None, path=True)
    # The logits of teacher and student are divided by it.
    temperature: float = key(2.0, more_than(0))
    # Share of the teacher's targets in the loss; the rest is the labels'.
    weight: float = key(0.5, between(0, 1))


# Modes of torch.compile that record CUDA graphs.
CUDA_GRAPH_MODES = ("reduce-overhead", "max-autotune")


@dataclass
class TrainConfig:
    """Node `train`: the loop."""

    # Passes over the training images; 0 only after a probe, whose classifier is then what is kept.
    epochs: int = key(10, at_least(0))
    # Limit of optimizer steps, whatever `epochs` is (the schedule ends there too).
    max_steps: int | None = key(None, more_than(0))
    # Minutes that the whole run may take, from its start to its report; null: as long as it takes. The speed is
    # measured, and epochs (then the most) and schedule are fitted to it.
    max_minutes: float | None = key(None, more_than(0))
    # Side of the training images in pixels, first..last, e.g. [128, 192]: it grows from one to the other by
    # resolution_step, each side for an equal part of the run. Evaluation stays at data.image_size. null: all images
    # have that side.
    resolution: list[int] | None = key(None, ascending_pair())
    resolution_step: int = key(32, more_than(0))
    # Images per forward pass, or auto: doubled from 8 on as long as training gets faster by a tenth (at least 20 steps
    # an epoch; on a GPU, what fits into its memory).
    batch_size: Any = key(64, word_or("auto", more_than(0), whole=True))
    # Forward passes per optimizer step: the effective batch size is batch_size * accumulate.
    accumulate: int = key(1, more_than(0))
    # Under torchrun: seconds that a rank waits for another one before the run ends; longer than rank 0 needs to save a
    # checkpoint or to start the tracker.
    timeout_seconds: float = key(300.0, more_than(0))
    # Under torchrun: batch norm over the images of all ranks; on CUDA only.
    sync_batchnorm: bool = False
    # Images per forward pass of an evaluation; null: twice batch_size.
    eval_batch_size: int | None = key(None, more_than(0))
    # auto: bf16 where the hardware computes in it, else fp16 on CUDA and fp32 on a CPU. Or fp32, bf16, fp16.
    precision: str = key("auto", PRECISION)
    # auto, cpu, cuda, cuda:1, ...
    device: str = "auto"
    # Images and weights in NHWC memory order, which is faster for convolutions.
    channels_last: bool = True
    # torch.compile: takes about a minute; pays off for long runs on a GPU.
    compile: bool = False
    # How torch.compile compiles. On a GPU, reduce-overhead and max-autotune replay each step's kernels as CUDA graphs,
    # which needs train.accumulate=1.
    compile_mode: str = key("default", one_of("default", *CUDA_GRAPH_MODES, "max-autotune-no-cudagraphs"))
    # On CUDA, float32 products in TF32: slightly less precise, several times faster.
    tf32: bool = True
    # Largest norm of the gradient; null: no clipping.
    grad_clip: float | None = key(1.0, more_than(0))
    # Decay of the moving average of the weights, which is then evaluated and kept; null: off.
    ema_decay: float | None = key(None, between(0, 1))
    # Steps between checkpoints, besides those at the end of each epoch; 0: none between.
    checkpoint_every_steps: int = key(0, at_least(0))
    # How many of the newest checkpoints are kept (the best one always is).
    keep_checkpoints: int = key(2, more_than(0))
    log_every_steps: int = key(20, at_least(0))
    # Which epoch's weights the run keeps, reports and exports: best (by `optimized_metric`), or last. With few
    # validation images and a schedule that ends at a low rate, which epoch is best is largely chance.
    select: str = key("best", one_of("best", "last"))
    # Epochs without improvement of `optimized_metric` after which training stops; null: never.
    early_stopping_patience: int | None = key(None, more_than(0))
    # Steps to record with torch.profiler (debug=profile).
    profile_steps: int = key(0, at_least(0))

    def check(self, prefix: str) -> None:
        """Raise a UserError where CUDA graphs would overwrite gradients that are still summed up."""
        if self.compile and self.compile_mode in CUDA_GRAPH_MODES and self.accumulate > 1:
            raise UserError(
                f"{prefix}compile_mode={self.compile_mode} replays CUDA graphs, whose gradients each pass overwrites, "
                f"so it cannot sum {prefix}accumulate={self.accumulate} passes. Use compile_mode=default"
            )


@dataclass
class TrackingConfig:
    """Group `tracking`: where metrics go besides metrics.jsonl."""

    # none, wandb, or one that a plugin registered.
    name: str = key("wandb", one_from("mlops_img.runs.tracking:TRACKERS"))
    # For wandb. auto: online with a key and a network, else offline. online: the run does not start without both.
    mode: str = key("auto", one_of("auto", "online", "offline"))
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
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    # All randomness follows from it; the same seed gives the same run.
    seed: int = key(0, at_least(0))
    # The metric that a run returns, early stopping monitors and `best` refers to.
    optimized_metric: str = key("val.top1", one_from("mlops_img.evaluation.metrics:METRICS", prefix="val."))
    # null: start a new run. auto: resume the run of hydra.run.dir (or runs/latest), or start one if there is none.
    # Or a run folder.
    resume: str | None = key(None, path=True)
    # Where run folders are made.
    runs_dir: str = key("runs", path=True)
    # Modules to import first, which register metrics, schedules and trackers of your own (docs/extending.md).
    plugins: list[str] = field(default_factory=list)

    def check(self, prefix: str) -> None:
        """Raise a UserError for a probe of random weights, and for no training at all."""
        if self.probe.name == "none":
            if self.train.epochs == 0:
                raise UserError(f"{prefix}train.epochs=0: there is nothing to do. Use 1 or more, or probe=linear")
        elif self.model.weights == "none" and self.model._target_ is None:
            raise UserError(
                f"{prefix}probe=linear: features of random weights are useless. Name weights with model.weights=hub "
                "or model.weights=<file>"
            )
