"""From the configuration to the parts of a run."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from timm.layers.norm_act import convert_sync_batchnorm
from timm.utils.model_ema import ModelEmaV3
from torch import nn
from torch.utils.data import DataLoader

from mlops_img.config.data import DataConfig
from mlops_img.config.train import Config
from mlops_img.core.distributed import World, device_of
from mlops_img.core.precision import choose_device, choose_precision, set_tf32, to_device
from mlops_img.core.seeding import Purpose, seed_cpu
from mlops_img.data.augment import BatchAugment, ImageAugment
from mlops_img.data.batch import Batch
from mlops_img.data.dataset import Dataset, load_dataset
from mlops_img.data.division import DividedBatches, Division, divide
from mlops_img.data.loader import Decode, handle_bad_images, make_loader
from mlops_img.data.pixel_cache import cached_decode
from mlops_img.data.sampler import ShuffledBatchSampler
from mlops_img.data.skipped import SkippedImages
from mlops_img.errors import UserError
from mlops_img.evaluation.evaluator import Evaluator
from mlops_img.models.build import build_model, check_forward, normalization
from mlops_img.preprocessing.transforms import Preprocessing
from mlops_img.runs.checkpoint import TrainState
from mlops_img.training.data_init import InitializedFromImages, init_from_images
from mlops_img.training.distill import make_distillation
from mlops_img.training.loop import Intervals, Recipe
from mlops_img.training.losses import make_loss
from mlops_img.training.optim import make_optimizer
from mlops_img.training.pace import Pace
from mlops_img.training.resolution import Resolution, make_resolution
from mlops_img.training.schedule import make_schedule

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Setup:
    """What a run is made of; `state` is what training changes."""

    config: Config
    dataset: Dataset
    recipe: Recipe
    intervals: Intervals
    augment: ImageAugment
    decode: Decode
    evaluator: Evaluator
    state: TrainState
    pace: Pace | None = None
    resolution: Resolution | None = None

    @property
    def world(self) -> World:
        """The ranks that train the run."""
        return self.recipe.division.world

    def progress(self, step: int) -> float:
        """Return the share of the run that is done before this step, 0 to 1."""
        return step / self.intervals.total if self.pace is None else self.pace.progress(step)


def set_up(
    config: Config,
    *,
    first_weights: bool = True,
    world: World | None = None,
    model: nn.Module | None = None,
    classes: Sequence[str] | None = None,
    teacher: nn.Module | None = None,
) -> Setup:
    """Build data set, model, optimizer and the rest.

    Args:
        config: validated.
        first_weights: load what `model.weights` names; False where a checkpoint will fill the model.
        world: the ranks that train it; None: this process alone.
        model: takes the place of the one that the configuration describes.
        classes: of weights that were trained before, whose order the labels follow.
        teacher: to distill from instead of `distill.teacher`; takes the same images and has the same classes.

    Raises:
        UserError: one of them cannot be built as configured.
    """
    world = world or World()
    division = make_division(config, world)
    device = choose_device(device_of(world, config.train.device))
    precision = choose_precision(config.train.precision, device)
    set_tf32(config.train.tf32)
    torch.backends.cudnn.benchmark = True

    dataset = world.first_on_each_machine(lambda: load_dataset(config.data, classes=classes))
    _check_same_data(world, dataset)
    intervals = make_intervals(config, len(dataset.train))

    if model is None:
        # The first weights follow from the seed, on the CPU, whatever device they move to.
        seed_cpu(config.seed, Purpose.WEIGHTS)
        model = build_model(config.model, len(dataset.classes), config.data.image_size, load_weights=first_weights)
    check_trainable(model, config, division)
    resolution = make_resolution(config.train)
    if resolution is not None:
        _check_sides(resolution, model, config, len(dataset.classes))
    preprocessing = make_preprocessing(config.data, model, gray=config.model.in_chans == 1)
    if first_weights and config.model.weights == "none" and isinstance(model, InitializedFromImages):
        skip_bad = config.data.on_bad_image == "skip"
        init_from_images(model, dataset.train, preprocessing, config.seed, skip_bad=skip_bad)
    if config.train.sync_batchnorm:
        model = _synchronized(model, device)
    model = to_device(model, device, channels_last=config.train.channels_last)

    decay = config.train.ema_decay
    state = TrainState(
        model=model,
        optimizer=make_optimizer(config.optim, model),
        scaler=precision.scaler(),
        ema=ModelEmaV3(model, decay=decay, use_warmup=True) if decay is not None else None,
        epoch_loss=torch.zeros((), device=device),
    )
    if config.train.compile:
        model.compile(mode=config.train.compile_mode)  # after the moving average has copied it
    schedule = make_schedule(config.schedule, intervals.total, intervals.epoch)
    pace = Pace(intervals.total) if config.train.max_minutes is not None else None
    evaluator = Evaluator.of(config, preprocessing, precision, world)
    augment = ImageAugment(config.augment, preprocessing, config.seed)
    batch_augment = BatchAugment(config.augment, len(dataset.classes))
    recipe = Recipe(
        loss=make_loss(config.loss, dataset.classes, dataset.train.labels).to(device),
        preprocessing=preprocessing,
        augment=batch_augment,
        precision=precision,
        schedule=schedule if pace is None else pace.schedule(schedule),
        lr=config.optim.lr,
        seed=config.seed,
        accumulate=config.train.accumulate,
        grad_clip=config.train.grad_clip,
        channels_last=config.train.channels_last,
        distillation=make_distillation(config, dataset, evaluator, (augment, batch_augment), teacher),
        division=division,
        may_skip_weights=config.model._target_ is not None,
    )
    largest = config.data.image_size if resolution is None else resolution.sides[-1]
    decode = cached_decode(config.data, config.augment, preprocessing, largest)
    return Setup(config, dataset, recipe, intervals, augment, decode, evaluator, state, pace, resolution)


def _check_same_data(world: World, dataset: Dataset) -> None:
    """Raise a UserError on rank 0 where another rank has other images, labels or classes."""
    fingerprints = world.gather(dataset.fingerprint)
    differing = [str(rank) for rank, fingerprint in enumerate(fingerprints) if fingerprint != dataset.fingerprint]
    if differing:
        raise UserError(
            f"rank {', '.join(differing)}: other images, labels or classes than rank 0 has. Put the same data under "
            "data.root on every machine"
        )


def check_trainable(model: nn.Module, config: Config, division: Division) -> None:
    """Raise a UserError where all weights are frozen, or batch norm cannot work on a batch of one."""
    if config.train.batch_size == (division.world.size if division.sliced else 1):
        _check_batch_of_one(model, config)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(f"model.freeze={config.model.freeze} leaves nothing to train. Freeze less")


def _check_batch_of_one(model: nn.Module, config: Config) -> None:
    """Send one image through a copy of the model in training mode: neither weights nor random streams change.

    Raises:
        UserError: batch norm gets a single value per channel, whose variance is not defined.
    """
    side = config.data.image_size
    trial = copy.deepcopy(model).train()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            trial(torch.zeros(1, config.model.in_chans, side, side))
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        size, name = config.train.batch_size, config.model._target_ or config.model.name
        raise UserError(
            f"train.batch_size={size}: batch norm in {name} needs more than one value per channel, and at "
            f"data.image_size={side} one image gives one. Use train.batch_size={2 * size} or more"
        ) from None


def _check_sides(resolution: Resolution, model: nn.Module, config: Config, classes: int) -> None:
    """Raise a UserError where the model or the augmentation cannot take the smallest or largest training images."""
    smallest, largest = resolution.sides[0], resolution.sides[-1]
    if config.augment.crop == "pad" and config.augment.padding >= smallest:
        raise UserError(
            f"augment.padding={config.augment.padding}: it must be less than the side of the training images, "
            f"train.resolution={config.train.resolution}"
        )
    for side in (smallest, largest):
        check_forward(model, config.model, classes, side, key="train.resolution")


def training_batches(setup: Setup) -> DataLoader[Batch]:
    """Return the batches from the step on that `setup.state` has reached, to the run's end."""
    config, images = setup.config, setup.dataset.train
    parts, resolution = config.train.accumulate, setup.resolution
    sampler = ShuffledBatchSampler(
        size=len(images),
        batch_size=config.train.batch_size,
        per_epoch=setup.intervals.epoch * parts,  # whole steps, so that an epoch's end is always a step's
        seed=config.seed,
        start=setup.state.step * parts,
        stop=(setup.pace.nominal if setup.pace else setup.intervals.total) * parts,
        side=None if resolution is None else lambda batch: resolution.side(setup.progress(batch // parts)),
    )
    device = setup.recipe.precision.device
    return make_loader(
        images,
        setup.augment,
        sampler if setup.evaluator.world.alone else DividedBatches(sampler, setup.recipe.division, parts),
        decode=setup.decode,
        seed=config.seed,
        workers=setup.evaluator.workers,
        device=device,
    )


def checked_training_batches(setup: Setup, skipped: SkippedImages | None = None) -> Iterator[Batch]:
    """Yield `training_batches`; where bad images are skipped, note them in `skipped`, else the first one raises."""
    noted = SkippedImages() if skipped is None else skipped
    return handle_bad_images(
        training_batches(setup),
        setup.dataset.train,
        noted if setup.evaluator.skip_bad else None,
        keep_empty=setup.recipe.division.sliced,
    )


def make_division(config: Config, world: World) -> Division:
    """Return how the ranks share each step, and say what depends on it.

    Raises:
        UserError: their number divides neither the forward passes of a step nor the images of one.
    """
    train = config.train
    if world.alone:
        return Division()
    division = divide(world, train.batch_size, train.accumulate, unequal=config.data.on_bad_image == "skip")
    if division.sliced:
        log.warning(
            "%d ranks do not divide train.accumulate=%d, so each does a slice of every forward pass, %d of %d images. "
            "Batch norm, mixup, cutmix and dropout then depend on the number of ranks",
            world.size,
            train.accumulate,
            train.batch_size // world.size,
            train.batch_size,
        )
    return division


def _synchronized(model: nn.Module, device: torch.device) -> nn.Module:
    """Return the model with batch norm over the images of all ranks.

    Raises:
        UserError: PyTorch has this for CUDA only.
    """
    if device.type != "cuda":
        raise UserError("train.sync_batchnorm=true needs CUDA. Use train.sync_batchnorm=false on a CPU")
    synchronized: nn.Module = convert_sync_batchnorm(model)
    return synchronized


def make_intervals(config: Config, images: int) -> Intervals:
    """Count a run's steps, given its number of training images.

    Raises:
        UserError: there are fewer images than one step takes.
    """
    train = config.train
    per_step = train.batch_size * train.accumulate
    if per_step > images:
        raise UserError(
            f"train.batch_size={train.batch_size} (times train.accumulate={train.accumulate}) is more than "
            f"the {images} training images. Use at most {images}"
        )
    per_epoch = images // train.batch_size // train.accumulate
    total = per_epoch * train.epochs
    if train.max_steps is not None:
        total = min(total, train.max_steps)
    return Intervals(total, per_epoch, train.log_every_steps, train.checkpoint_every_steps)


def make_preprocessing(config: DataConfig, model: nn.Module, *, gray: bool) -> Preprocessing:
    """Return the data's preprocessing, normalizing as the model's weights expect unless configured otherwise."""
    mean, std = normalization(model)
    return Preprocessing(
        config.image_size,
        config.crop_pct,
        tuple(config.mean) if config.mean is not None else mean,
        tuple(config.std) if config.std is not None else std,
        gray,
        config.sixteen_bit,
    )
