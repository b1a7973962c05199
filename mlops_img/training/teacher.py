"""Teachers: trained models that another one learns from, as runs, bundles or published weights."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mlops_img.bundle.folder import MANIFEST, read_bundle
from mlops_img.config.train import ModelConfig
from mlops_img.core.precision import Precision
from mlops_img.core.text import shortened_list
from mlops_img.errors import UserError
from mlops_img.evaluation.evaluator import load_trained
from mlops_img.models.build import build_model, normalization
from mlops_img.models.errors import first_line
from mlops_img.models.weights_location import is_on_hub
from mlops_img.preprocessing.transforms import Preprocessing

NAMED_CLASSES = 5

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Teacher:
    """A trained model: what it is, its normalization, and its classes; None where it does not name them."""

    model: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]
    gray: bool
    classes: list[str] | None


class ForStudent(nn.Module):
    """A teacher that takes the student's images and gives logits in the student's order of classes."""

    scale: Tensor
    shift: Tensor
    order: Tensor

    def __init__(self, teacher: Teacher, order: list[int], preprocessing: Preprocessing) -> None:
        super().__init__()
        self.model = teacher.model
        mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
        scale, shift = std / torch.tensor(teacher.std), (mean - torch.tensor(teacher.mean)) / torch.tensor(teacher.std)
        self.is_same = bool((scale == 1).all() and (shift == 0).all())
        self.register_buffer("scale", scale.view(1, -1, 1, 1))
        self.register_buffer("shift", shift.view(1, -1, 1, 1))
        self.register_buffer("order", torch.tensor(order))

    def forward(self, images: Tensor) -> Tensor:
        """Map images that are normalized for the student to logits (n, classes)."""
        if not self.is_same:
            images = images * self.scale + self.shift
        logits: Tensor = self.model(images)[:, self.order]
        return logits


def open_teacher(location: str, image_size: int, num_classes: int) -> Teacher:
    """Load a teacher from a run folder, a bundle, or timm with published weights.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = Path(location).expanduser()
    if (path / "config.yaml").is_file():
        trained = load_trained(path / "checkpoints" / "best.pt", Precision(torch.device("cpu"), torch.float32))
        own = trained.preprocessing
        return Teacher(trained.model, own.mean, own.std, own.gray, trained.classes)
    if (path / MANIFEST).is_file():
        return _from_bundle(path, image_size)
    if path.exists():
        raise UserError(f"distill.teacher={location}: there is neither a run nor a bundle in it")
    try:
        model = build_model(ModelConfig(name=location, weights="hub"), num_classes, image_size)
    except UserError as error:
        raise UserError(
            f"distill.teacher={location}: it is no folder, and as a model of timm: {first_line(error)}"
        ) from None
    published = (getattr(model, "pretrained_cfg", None) or {}).get("num_classes")
    if published != num_classes:
        raise UserError(
            f"distill.teacher={location}: its weights know {published} classes, the data have {num_classes}. Train it "
            "on these data, and name that run"
        )
    log.warning(
        "distill.teacher=%s does not name its classes: they are taken to be those of the data, in order", location
    )
    mean, std = normalization(model)
    return Teacher(model, mean, std, gray=False, classes=None)


def _from_bundle(folder: Path, image_size: int) -> Teacher:
    manifest = read_bundle(folder)
    if manifest.pruning is not None:
        raise UserError(f"distill.teacher={folder}: this bundle was pruned. Name the run that it was made from")
    options = dict(manifest.model.options)
    own = {name: options.pop(name) for name in ("in_chans", "stem_stride", "drop_path_rate") if name in options}
    config = ModelConfig(name=manifest.model.name, kwargs=options, **own)
    if not is_on_hub(config.name) and not timm.is_model(config.name.partition(".")[0]):
        config._target_ = config.name
    model = build_model(config, len(manifest.classes), image_size)
    model.load_state_dict(load_file(folder / "weights.safetensors"))
    info = manifest.preprocessing
    return Teacher(model, info.mean, info.std, info.gray, list(manifest.classes))


def teacher_for(classes: list[str], preprocessing: Preprocessing, teacher: Teacher, given: str) -> ForStudent:
    """Return the teacher, in evaluation mode and frozen, as a module that takes the student's images.

    Args:
        classes: of the student, in their order.
        preprocessing: of the student.
        teacher: on the CPU.
        given: how the user named it, for errors.

    Raises:
        UserError: it has other classes or channels, or cannot take images of this size.
    """
    order = _order_of_classes(teacher, classes, given)
    _check_images(teacher, preprocessing, given)
    model = ForStudent(teacher, order, preprocessing)
    model.eval().requires_grad_(False)
    return model


def _order_of_classes(teacher: Teacher, classes: list[str], given: str) -> list[int]:
    """Return the place of each of the student's classes among the teacher's logits."""
    known = teacher.classes if teacher.classes is not None else classes
    missing = [name for name in classes if name not in known]
    if missing:
        raise UserError(
            f"{given}: it does not know the classes {shortened_list(missing, NAMED_CLASSES)} of the data. "
            "Name a run on these classes"
        )
    return [known.index(name) for name in classes]


def _check_images(teacher: Teacher, preprocessing: Preprocessing, given: str) -> None:
    """Raise a UserError where the teacher cannot take the student's images."""
    if teacher.gray != preprocessing.gray:
        raise UserError(
            f"{given}: it takes {'gray' if teacher.gray else 'color'} images, the model to "
            "train does not. Use the same model.in_chans for both"
        )
    if teacher.gray and (teacher.mean, teacher.std) != (preprocessing.mean, preprocessing.std):
        # Gray values are a sum over channels that are normalized already.
        raise UserError(
            f"{given}: it normalizes gray images with other figures. Set data.mean="
            f"{list(teacher.mean)} data.std={list(teacher.std)}"
        )
    side = preprocessing.image_size
    try:
        with torch.no_grad():
            teacher.model.eval()(torch.zeros(1, 1 if preprocessing.gray else 3, side, side))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UserError(f"{given}: it cannot take images of data.image_size={side}: {first_line(error)}") from None
