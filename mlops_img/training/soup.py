"""Average the weights of several runs that started from the same weights (arXiv:2203.05482)."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from mlops_img.config.plugins import import_plugins
from mlops_img.config.train import Config
from mlops_img.core.files import read_json, write_json, write_text
from mlops_img.core.seeding import seed_step
from mlops_img.errors import UserError
from mlops_img.evaluation.metrics import METRICS, summarize
from mlops_img.runs.checkpoint import Checkpoints, read_checkpoint
from mlops_img.runs.folder import RunFolder, load_config
from mlops_img.runs.resume import as_plain
from mlops_img.runs.tracking import start_tracker
from mlops_img.training.context import RunClock, RunContext
from mlops_img.training.run import conclude
from mlops_img.training.setup import Setup, checked_training_batches, set_up

Weights = Mapping[str, Tensor]

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Ingredient:
    """A run whose weights may be averaged.

    Attributes:
        folder: of the run.
        checkpoint: its best.pt.
        value: of the metric that the runs are ranked by, on validation.
    """

    folder: Path
    checkpoint: dict[str, Any]
    value: float


@dataclass(frozen=True)
class Soup:
    """Averaged weights.

    Attributes:
        weights: of the model, with batch-norm statistics of its own.
        metrics: of these weights on validation.
        used: the runs that were averaged.
    """

    weights: Weights
    metrics: dict[str, float]
    used: list[Ingredient]


def cook(folders: list[Path], output: Path, images: int, overrides: dict[str, Any]) -> dict[str, Any]:
    """Average runs greedily, evaluate the result, and write it as a run folder.

    The runs are taken in the order of their validation metric. Each is kept in the average if that is then no worse on
    validation, so the result is never worse there than the best single run.

    Args:
        folders: of finished runs, two or more.
        output: the new run folder.
        images: of the training images, from which batch-norm statistics are estimated.
        overrides: values of the node `train` that differ from those of the best run, by name.

    Returns:
        The summary, as of any run.

    Raises:
        UserError: a run is not finished, or has another model, preprocessing or data than the best one.
    """
    clock = RunClock()
    if (output / "config.yaml").exists():
        raise UserError(f"output={output} holds a run already. Choose another folder")
    ranked = rank([load_ingredient(folder) for folder in folders])
    config = soup_config(load_config(ranked[0].folder / "config.yaml"), overrides)
    for other in ranked[1:]:
        check_same_model(ranked[0], other)
    folder = RunFolder(output)
    folder.create()
    setup = set_up(config, first_weights=False, classes=ranked[0].checkpoint["classes"])
    if setup.dataset.fingerprint != ranked[0].checkpoint["fingerprint"]:
        raise UserError(f"data.root={config.data.root} has changed since {ranked[0].folder} was trained on it")
    soup = average_greedily(setup, ranked, images)

    write_text(folder.config, OmegaConf.to_yaml(OmegaConf.structured(config)))
    folder.write_provenance({"fingerprint": setup.dataset.fingerprint, "splits": setup.dataset.provenance()})
    described = [
        {"run": str(one.folder), config.optimized_metric: one.value, "used": one in soup.used} for one in ranked
    ]
    write_json(folder.path / "provenance.json", {**read_json(folder.path / "provenance.json"), "soup": described})
    setup.state.model.load_state_dict(soup.weights)
    setup.state.step = ranked[0].checkpoint["step"]
    about = {key: ranked[0].checkpoint[key] for key in ("classes", "preprocessing", "fingerprint")}
    Checkpoints(folder.checkpoints, 1, {**about, "config": as_plain(config)}).save_best(setup.state, soup.metrics)
    tracker = start_tracker(config.tracking, folder.path, as_plain(config), None)
    return conclude(RunContext(setup, folder, tracker, clock))


def load_ingredient(folder: Path) -> Ingredient:
    """Read the best weights of a run.

    Raises:
        UserError: there are none.
    """
    if not (folder / "config.yaml").is_file():
        raise UserError(f"runs: there is no run in {folder}")
    config = load_config(folder / "config.yaml")
    import_plugins(config.plugins)
    checkpoint = read_checkpoint(folder / "checkpoints" / "best.pt")
    name = config.optimized_metric
    value = checkpoint["metrics"].get(name.removeprefix("val."))
    if value is None:
        raise UserError(f"runs: {folder} was not evaluated by {name}")
    return Ingredient(folder, checkpoint, value)


def rank(ingredients: list[Ingredient]) -> list[Ingredient]:
    """Return the runs by their metric, the best first.

    Raises:
        UserError: they were optimized for different metrics.
    """
    names = {one.checkpoint["config"]["optimized_metric"] for one in ingredients}
    if len(names) > 1:
        raise UserError(f"runs: they were optimized for different metrics, {' and '.join(sorted(names))}")
    higher = METRICS[names.pop().removeprefix("val.")].higher_is_better
    return sorted(ingredients, key=lambda one: -one.value if higher else one.value)


def check_same_model(best: Ingredient, other: Ingredient) -> None:
    """Raise a UserError where the weights of two runs cannot be averaged."""
    shapes, others = ({name: tensor.shape for name, tensor in one.checkpoint["model"].items()} for one in (best, other))
    pair = f"runs: {best.folder} and {other.folder}"
    if shapes != others:
        models = " and ".join(one.checkpoint["config"]["model"]["name"] for one in (best, other))
        raise UserError(f"{pair} have different architectures ({models}). Average runs of one architecture")
    for name in ("preprocessing", "classes", "fingerprint"):
        if best.checkpoint[name] != other.checkpoint[name]:
            raise UserError(f"{pair} differ in their {'data' if name == 'fingerprint' else name}")


def soup_config(config: Config, overrides: dict[str, Any]) -> Config:
    """Return the configuration of a run as that of a soup: nothing is trained, tracked or frozen."""
    config = copy.deepcopy(config)
    config.train = replace(config.train, ema_decay=None, compile=False, max_minutes=None, resolution=None)
    config.train.epochs = max(1, config.train.epochs)
    for name, value in overrides.items():
        if value is not None:
            setattr(config.train, name, value)
    config.distill.teacher, config.probe.name, config.tracking.name = None, "none", "none"
    config.model.freeze = "none"
    config.resume = None
    return config


def average_greedily(setup: Setup, ranked: list[Ingredient], images: int) -> Soup:
    """Average as many of the runs as help; see `cook`."""
    name = setup.config.optimized_metric.removeprefix("val.")
    sign = 1 if METRICS[name].higher_is_better else -1
    best = ranked[0]
    soup = Soup(best.checkpoint["model"], _evaluate(setup, best.checkpoint["model"]), [best])
    log.info("%s alone: validation %s %.4f", best.folder, name, soup.metrics[name])
    for other in ranked[1:]:
        used = [*soup.used, other]
        weights = _with_own_statistics(setup, mean_of(one.checkpoint["model"] for one in used), images)
        metrics = _evaluate(setup, weights)
        better = sign * metrics[name] >= sign * soup.metrics[name]
        log.info("with %s: %.4f%s", other.folder, metrics[name], "" if better else ", left out")
        if better:
            soup = Soup(weights, metrics, used)
    return soup


def mean_of(parts: Iterable[Weights]) -> Weights:
    """Return the mean of floating-point tensors, and the first run's of all others."""
    given = list(parts)
    return {
        name: torch.stack([one[name].double() for one in given]).mean(0).to(first.dtype)
        if first.is_floating_point()
        else first
        for name, first in given[0].items()
    }


def _with_own_statistics(setup: Setup, weights: Weights, images: int) -> Weights:
    """Return the weights with batch-norm statistics estimated from training images, augmented as in training."""
    model, precision = setup.state.model, setup.recipe.precision
    model.load_state_dict(weights)
    batches = checked_training_batches(setup)
    count = max(1, images // setup.config.train.batch_size)
    seed_step(setup.config.seed, 0)  # dropout
    inputs = (
        setup.recipe.preprocessing.normalize(batch.to(precision.device).images) for batch in islice(batches, count)
    )
    with precision.autocast():
        update_bn(inputs, model)
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _evaluate(setup: Setup, weights: Weights) -> dict[str, float]:
    model: nn.Module = setup.state.model
    model.load_state_dict(weights)
    return summarize(setup.evaluator.predict(model.eval(), setup.dataset.val)[0])
