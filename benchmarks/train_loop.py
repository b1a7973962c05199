"""How fast the training loop is: ours beside a bare hand-written loop and Lightning, on the same tensors.

    python benchmarks/train_loop.py --rounds 7

resnet18 at 224 px, batch 32, random uint8 images held in memory, AdamW. The contenders take turns, a few
steps each, so that a machine whose speed drifts slows all alike; reported are medians over the rounds and
their ratios. Without Lightning (the extra `bench`) the bare loop alone is compared.
"""

from __future__ import annotations

import logging
import time
import warnings

import timm
import torch
from harness import Benchmark, Contender, Turn, options_of, run_benchmark
from torch import Tensor, nn

from mlops_img.config.augment import AugmentConfig
from mlops_img.config.train import OptimConfig, TrainConfig
from mlops_img.core.precision import choose_device, choose_precision
from mlops_img.data.augment import BatchAugment
from mlops_img.data.batch import Batch
from mlops_img.models.build import IMAGENET_MEAN, IMAGENET_STD
from mlops_img.preprocessing.transforms import Preprocessing
from mlops_img.runs.checkpoint import TrainState
from mlops_img.training.loop import Intervals, Recipe, fit
from mlops_img.training.losses import SoftCrossEntropy
from mlops_img.training.optim import make_optimizer
from mlops_img.training.progress import Speed

BATCH, SIDE, CLASSES, LR = 32, 224, 1000, 1e-3
STEPS = 16  # in each turn: what happens once in a fit, such as the first use of memory, is not what is compared
WARMUP_TURNS = 1


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Quiet:
    """Nothing around the steps: neither contender logs, validates or saves."""

    def log(self, state: TrainState, loss: Tensor, speed: Speed) -> None: ...

    def end_epoch(self, state: TrainState, train_loss: float) -> bool:
        return False

    def save(self, state: TrainState) -> None: ...

    def stop_requested(self) -> bool:
        return False


def new_model(device: torch.device, *, channels_last: bool) -> nn.Module:
    torch.manual_seed(0)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return timm.create_model("resnet18", num_classes=CLASSES).to(device, memory_format=memory_format)


def ours(batches: list[Batch], device: torch.device) -> Turn:
    """Return a turn of `fit` at the defaults of the configuration."""
    defaults = TrainConfig()
    precision = choose_precision(defaults.precision, device)
    model = new_model(device, channels_last=defaults.channels_last)
    state = TrainState(
        model,
        make_optimizer(OptimConfig(lr=LR), model),
        precision.scaler(),
        ema=None,
        epoch_loss=torch.zeros((), device=device),
    )
    recipe = Recipe(
        loss=SoftCrossEntropy(),
        preprocessing=Preprocessing(SIDE, 1.0, IMAGENET_MEAN, IMAGENET_STD),
        augment=BatchAugment(AugmentConfig(), CLASSES),
        precision=precision,
        schedule=lambda step: 1.0,
        lr=LR,
        seed=0,
        grad_clip=defaults.grad_clip,
    )

    def turn() -> None:
        total = state.step + STEPS
        fit(state, batches, recipe, Intervals(total, epoch=10**9, log=defaults.log_every_steps), Quiet())
        wait_for(device)

    return turn


def bare(batches: list[Batch], device: torch.device) -> Turn:
    """Return a turn of the loop that one would write by hand, with the same settings."""
    precision = choose_precision("auto", device)
    model = new_model(device, channels_last=True)
    optimizer = make_optimizer(OptimConfig(lr=LR), model)
    normalize = Preprocessing(SIDE, 1.0, IMAGENET_MEAN, IMAGENET_STD).normalize
    loss_function = nn.CrossEntropyLoss()

    def turn() -> None:
        for batch in batches:
            images, labels = (
                batch.images.to(device, non_blocking=True),
                batch.labels.to(device, non_blocking=True),
            )
            with torch.autocast(device.type, precision.dtype, enabled=precision.dtype != torch.float32):
                loss = loss_function(model(normalize(images)).float(), labels)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        wait_for(device)

    return turn


def lightning(batches: list[Batch], device: torch.device, *, precision: str, channels_last: bool) -> Turn:
    """Return a turn of Lightning's Trainer, with its logging, checkpoints and progress bar switched off."""
    import lightning as pl

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")

    class Module(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = new_model(torch.device("cpu"), channels_last=channels_last)
            self.normalize = Preprocessing(SIDE, 1.0, IMAGENET_MEAN, IMAGENET_STD).normalize

        def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
            images, labels = batch
            return nn.functional.cross_entropy(self.model(self.normalize(images)).float(), labels)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            # Where Lightning is tuned, all weights in one call; not `fused`, which it refuses with clipping.
            return torch.optim.AdamW(self.parameters(), lr=LR, weight_decay=0.05, foreach=channels_last or None)

    module = Module()
    plain = [(batch.images if channels_last else batch.images.contiguous(), batch.labels) for batch in batches]

    class Stamp(pl.Callback):  # type: ignore[misc]
        """Times the steps alone: Lightning's set-up of a fit is not what is compared."""

        seconds = 0.0

        def on_train_epoch_start(self, trainer: object, module: object) -> None:
            self.start = time.perf_counter()

        def on_train_epoch_end(self, trainer: object, module: object) -> None:
            self.seconds = time.perf_counter() - self.start

    stamp = Stamp()

    def turn() -> float:
        trainer = pl.Trainer(
            max_epochs=1,
            accelerator=device.type,
            devices=1,
            precision=precision,
            gradient_clip_val=1.0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[stamp],
        )
        trainer.fit(module, torch.utils.data.DataLoader(plain, batch_size=None))
        return stamp.seconds

    return turn


def main() -> None:
    options = options_of(__doc__, rounds=7).parse_args()
    device = choose_device("auto")
    generator = torch.Generator().manual_seed(0)
    batches = [
        Batch(
            torch.randint(256, (BATCH, SIDE, SIDE, 3), dtype=torch.uint8, generator=generator).permute(0, 3, 1, 2),
            torch.randint(CLASSES, (BATCH,), generator=generator),
            torch.arange(BATCH),
            [],
        )
        for _ in range(STEPS)
    ]
    # Without bfloat16 arithmetic ours computes in fp32, and so does the tuned peer.
    bf16 = choose_precision("auto", device).dtype == torch.bfloat16
    default, tuned = "Lightning, its defaults", f"Lightning, {'bf16-mixed' if bf16 else 'fp32'}, channels_last"
    fast = "bf16-mixed" if bf16 else "32-true"
    contenders = [
        Contender("mlops_img fit", lambda: ours(batches, device)),
        Contender("bare loop", lambda: bare(batches, device)),
        Contender(
            default, lambda: lightning(batches, device, precision="32-true", channels_last=False), ("lightning",)
        ),
        Contender(tuned, lambda: lightning(batches, device, precision=fast, channels_last=True), ("lightning",)),
    ]
    # Ours over the peer, images/s: what we want to reach.
    goals = {"bare loop": 0.97, tuned: 1.0} | ({default: 2.2} if bf16 else {})
    benchmark = Benchmark(
        "train_loop",
        rounds=options.rounds,
        settings={
            "model": "resnet18",
            "image_size": SIDE,
            "batch": BATCH,
            "steps_per_turn": STEPS,
            "precision": "bf16" if bf16 else "fp32",
        },
        gpu=torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    )
    benchmark.compare(benchmark.prepare(contenders), STEPS * BATCH, warmup=WARMUP_TURNS, goals=goals)
    benchmark.finish(kept=options.keep)


if __name__ == "__main__":
    run_benchmark("train_loop", main)
