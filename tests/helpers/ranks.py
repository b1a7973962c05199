"""Real trainings of a few steps on several ranks, without torchrun, and what a single process does in their place."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mlops_img.config.augment import AugmentConfig
from mlops_img.config.data import FolderConfig
from mlops_img.config.train import Config, LossConfig, ModelConfig, OptimConfig, TrainConfig
from mlops_img.core.distributed import World
from mlops_img.data.batch import Batch
from mlops_img.errors import StoppedOnRequest, UserError
from mlops_img.runs.checkpoint import TrainState
from mlops_img.training.hooks import validate
from mlops_img.training.loop import NonFiniteLossError, fit
from mlops_img.training.progress import Speed
from mlops_img.training.setup import Setup, checked_training_batches, set_up

Work = Callable[..., Any]
MIXED = AugmentConfig(crop="none", hflip=0.5, mixup=0.2, cutmix=1.0, random_erasing=0.5)
PLAIN = AugmentConfig(crop="none", hflip=0.0)


def on_ranks(size: int, work: Work, folder: Path, *arguments: Any) -> list[Any]:
    """Call `work(world, *arguments)` in processes of a new process group; returns what each rank returned."""
    folder.mkdir()
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_rank, args=(rank, size, work, folder, arguments)) for rank in range(size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * size
    return [pickle.loads((folder / str(rank)).read_bytes()) for rank in range(size)]


def _rank(rank: int, size: int, work: Work, folder: Path, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", store, rank=rank, world_size=size, timeout=timedelta(seconds=120))
    result = work(World(rank, size, rank, size), *arguments)
    (folder / str(rank)).write_bytes(pickle.dumps(result))
    dist.destroy_process_group()


@dataclass
class Recorded:
    """The hooks of a loop: they note each step's loss, and ask to stop after a step."""

    stop_at: int | None = None
    losses: list[float] = field(default_factory=list)
    asked: int = 0

    def log(self, state: TrainState, loss: Tensor, speed: Speed) -> None:
        """Note the loss."""
        self.losses.append(loss.item())

    def end_epoch(self, state: TrainState, train_loss: float) -> bool:
        """Go on."""
        return False

    def save(self, state: TrainState) -> None:
        """Do nothing."""

    def stop_requested(self) -> bool:
        """Return whether this is the step."""
        self.asked += 1
        return self.asked == self.stop_at


def config_of(root: str, model: str, batch_size: int, accumulate: int, **parts: Any) -> Config:
    return Config(
        data=FolderConfig(root=root, image_size=32, crop_pct=1.0, **parts.pop("data", {})),
        model=ModelConfig(name=model, drop_rate=parts.pop("drop_rate", 0.0)),
        optim=OptimConfig(lr=parts.pop("lr", 1e-3)),
        train=TrainConfig(
            epochs=100,
            batch_size=batch_size,
            accumulate=accumulate,
            precision="fp32",
            device="cpu",
            **parts.pop("train", {}),
        ),
        **parts,
    )


@dataclass
class Trained:
    """What a training of a few steps left."""

    losses: list[float]
    rates: list[float]
    gradients: list[Tensor]  # of the first step, before clipping
    weights: list[Tensor]


def train_steps(config: Config, world: World, steps: int, nudge: float = 0.0) -> Trained:
    """Train for some steps; the first weights are multiplied by 1 + nudge."""
    setup = set_up(config, world=world)
    with torch.no_grad():
        for parameter in setup.state.model.parameters():
            parameter.mul_(1 + nudge)
    trained = Trained([], [], [], [])

    def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        trained.rates.append(optimizer.param_groups[0]["lr"])
        if len(trained.rates) == 1:
            trained.gradients = [p.grad.clone() for p in setup.state.model.parameters() if p.grad is not None]

    setup.state.optimizer.register_step_pre_hook(note)
    hooks = Recorded()
    _fit(setup, steps, hooks)
    trained.losses = hooks.losses
    trained.weights = [parameter.detach().clone() for parameter in setup.state.model.parameters()]
    return trained


def _fit(setup: Setup, steps: int, hooks: Recorded, batches: Iterator[Batch] | None = None) -> None:
    intervals = replace(setup.intervals, total=steps, epoch=1000, log=1)
    fit(setup.state, batches or checked_training_batches(setup), setup.recipe, intervals, hooks)


def slices(root: str) -> Config:
    """Forward passes that ranks cut."""
    return config_of(root, "test_vit", 8, 1, augment=PLAIN)


def parts(root: str) -> Config:
    """Four forward passes, of which ranks take whole ones."""
    return config_of(root, "test_resnet", 4, 4, augment=MIXED, drop_rate=0.2)


def weighted(root: str) -> Config:
    """Forward passes that ranks cut, with weights of classes and images that cannot be decoded."""
    loss = LossConfig(class_weights={"circle": 10, "square": 3}, label_smoothing=0.1)
    return config_of(root, "test_vit", 8, 2, augment=PLAIN, loss=loss, data={"on_bad_image": "skip"})


def everything(world: World, root: str, damaged: str, empty: str) -> dict[str, Any]:
    """Return what the tests compare between numbers of ranks."""
    found: dict[str, Any] = {
        "slices": train_steps(slices(root), world, 6),
        "slices again": train_steps(slices(root), world, 6),
        "parts": train_steps(parts(root), world, 4),
        "weighted": train_steps(weighted(damaged), world, 2),
        "too few": _too_few(world, empty),
        "validation": _validation(world, root),
        "stopped": _stopped(world, root),
        "not finite": _not_finite(world, root),
        "other data": _other_data(world, root),
    }
    return found


def _too_few(world: World, root: str) -> str:
    config = config_of(root, "test_vit", 8, 1, augment=PLAIN, data={"on_bad_image": "skip"})
    try:
        train_steps(config, world, 1)
    except UserError as error:
        return str(error)
    return ""


def _other_data(world: World, root: str) -> str:
    """Return rank 0's error where the last rank has fewer images."""
    config = slices(root)
    if world.rank == world.size - 1 and not world.alone:
        config.data.limit = 18
    try:
        set_up(config, world=world)
    except UserError as error:
        return str(error)
    return ""


def _validation(world: World, root: str) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return logits and rows of validation on rank 0, and the buffers of this rank, after a step."""
    config = config_of(root, "test_resnet", 8, 1, augment=PLAIN, train={"eval_batch_size": 3, "ema_decay": 0.9})
    setup = set_up(config, world=world)
    _fit(setup, 1, Recorded())
    # The same weights for every number of ranks: those of the start.
    fresh = set_up(config, world=world)
    predictions = validate(fresh.state, fresh)
    validate(setup.state, setup)
    return predictions.logits, predictions.rows, [buffer.clone() for buffer in setup.state.evaluated_model.buffers()]


def _stopped(world: World, root: str) -> int:
    """Return the step at which all stop when only the last rank is asked to, at step 2."""
    setup = set_up(slices(root), world=world)
    try:
        _fit(setup, 6, Recorded(stop_at=2 if world.rank == world.size - 1 else None))
    except StoppedOnRequest:
        return setup.state.step
    return -1


def _not_finite(world: World, root: str) -> tuple[int, list[int]]:
    """Return step and images of a loss that is not finite, as one image of the second step makes it."""
    setup = set_up(slices(root), world=world)
    bad = 5  # of the second forward pass, in the order of a single process
    per_rank = 8 // world.size
    setup.recipe.loss.register_forward_hook(partial(_overflow, world, bad, per_rank, []))
    try:
        _fit(setup, 6, Recorded())
    except NonFiniteLossError as error:
        return error.step, error.rows
    return -1, []


def _overflow(world: World, bad: int, per_rank: int, calls: list[int], *given: Any) -> Tensor | None:
    calls.append(1)
    loss: Tensor = given[-1]
    return loss * float("inf") if len(calls) == 2 and bad // per_rank == world.rank else None
