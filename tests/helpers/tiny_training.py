"""A net of a few thousand weights and batches in memory, to run the real loop on in milliseconds."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from mlops_img.config.augment import AugmentConfig
from mlops_img.config.train import OptimConfig
from mlops_img.core.precision import Precision
from mlops_img.data.augment import BatchAugment
from mlops_img.data.batch import Batch
from mlops_img.preprocessing.transforms import Preprocessing
from mlops_img.runs.checkpoint import Checkpoints, TrainState
from mlops_img.training.loop import Recipe
from mlops_img.training.losses import SoftCrossEntropy
from mlops_img.training.optim import make_optimizer
from mlops_img.training.progress import Speed

CPU = torch.device("cpu")
SIDE = 8


def make_state(
    *, optim: str = "adamw", dropout: float = 0.0, ema: bool = False, scale: float | None = None, device: str = "cpu"
) -> TrainState:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 3)
    ).to(device)
    momentum = {"momentum": 0.0, "kwargs": {"nesterov": False}} if optim == "sgd" else {}
    return TrainState(
        model=model,
        optimizer=make_optimizer(OptimConfig(name=optim, lr=1.0, weight_decay=0.0, **momentum), model),  # type: ignore[arg-type]
        scaler=torch.amp.GradScaler(device, init_scale=scale or 1.0, enabled=scale is not None),
        ema=ModelEmaV3(model, decay=0.9) if ema else None,
        epoch_loss=torch.zeros((), device=device),
    )


def make_recipe(**options: Any) -> Recipe:
    defaults: dict[str, Any] = {
        "loss": SoftCrossEntropy(),
        "preprocessing": Preprocessing(SIDE, 1.0, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        "augment": BatchAugment(AugmentConfig(), 3),
        "precision": Precision(CPU, torch.float32),
        "schedule": lambda step: 1.0,
        "lr": 0.01,
        "seed": 0,
        "grad_clip": None,
    }
    return Recipe(**{**defaults, **options})


def batch(number: int, size: int = 8) -> Batch:
    generator = torch.Generator().manual_seed(number)
    images = torch.randint(0, 256, (size, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 3, (size,), generator=generator)
    return Batch(images, labels, torch.arange(number * size, (number + 1) * size), [])


def batches(start: int = 0, size: int = 8) -> Iterator[Batch]:
    return (batch(number, size) for number in itertools.count(start))


@dataclass
class Notes:
    """Writes down what the loop asks for, and when."""

    stop_at: int | None = None
    enough_at: int | None = None
    checkpoints: Checkpoints | None = None
    events: list[tuple[str, int]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    epoch_losses: list[float] = field(default_factory=list)
    step: int = 0

    def log(self, state: TrainState, loss: Tensor, speed: Speed) -> None:
        assert speed.images > 0
        assert speed.images_per_second > 0
        self.events.append(("log", state.step))
        self.losses.append(loss.item())

    def end_epoch(self, state: TrainState, train_loss: float) -> bool:
        self.events.append(("epoch", state.step))
        self.epoch_losses.append(train_loss)
        return state.step == self.enough_at

    def save(self, state: TrainState) -> None:
        self.events.append(("save", state.step))
        if self.checkpoints is not None:
            self.checkpoints.save(state)

    def stop_requested(self) -> bool:
        self.step += 1
        return self.step == self.stop_at

    def steps(self, event: str) -> list[int]:
        return [step for name, step in self.events if name == event]


def weights(state: TrainState) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in state.model.parameters()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(first, second) for first, second in zip(one, other, strict=True))


OVERFLOWS = Preprocessing(SIDE, 1.0, (0.0,) * 3, (1e-40,) * 3)


def overflowing(count: int) -> list[Batch]:
    """Black images, and in the last batch white ones, which `OVERFLOWS` makes infinite."""
    black = torch.zeros(8, 3, SIDE, SIDE, dtype=torch.uint8)
    given = [batch(number)._replace(images=black) for number in range(count)]
    given[-1] = given[-1]._replace(images=black + 255)
    return given
