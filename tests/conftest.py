"""What the tests share: small real images on disk, and commands run as from a shell."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.shared_bundle import once, train_and_export

# Nothing here may reach a network, and a key in the environment must not send test runs anywhere.
os.environ["WANDB_MODE"] = "offline"
os.environ["HF_HUB_OFFLINE"] = "1"

# Before anything of BentoML is imported: the metrics of its worker processes lie there.
os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix="metrics-")
os.environ["BENTOML_DO_NOT_TRACK"] = "True"

SHAPES = ("circle", "square", "stripes")


def draw_shape(kind: str, seed: int, side: int = 40) -> Image.Image:
    """Draw a shape of random place, size and colours: a picture that a small net can learn to name."""
    random = np.random.default_rng([seed, SHAPES.index(kind)])
    paper, ink = (tuple(int(value) for value in random.integers(low, low + 100, 3)) for low in (0, 150))
    image = Image.new("RGB", (side, side + side // 5), paper)
    draw = ImageDraw.Draw(image)
    left, top, size = (int(value) for value in random.integers(side // 8, side // 3, 3))
    box = (left, top, left + size + side // 3, top + size + side // 3)
    if kind == "circle":
        draw.ellipse(box, fill=ink)
    elif kind == "square":
        draw.rectangle(box, fill=ink)
    else:
        for offset in range(0, side, 6):
            draw.line((offset, 0, offset, side * 2), fill=ink, width=2)
    return image


def write_shapes(root: Path, per_class: int, seed: int = 0, suffix: str = ".jpg") -> Path:
    """Write `per_class` images of each shape as class folders."""
    for kind in SHAPES:
        folder = root / kind
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(per_class):
            draw_shape(kind, seed * 10_000 + number).save(folder / f"{number:03}{suffix}", quality=90)
    return root


@pytest.fixture(autouse=True)
def content_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read of the tests' images is not kept in the cache folder of the user who runs them."""
    monkeypatch.setattr("mlops_img.data.content_cache.cache_folder", lambda: None)


@pytest.fixture(scope="session")
def shared_shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 images in 3 class folders, without splits; not to be changed."""
    return write_shapes(tmp_path_factory.mktemp("shapes"), per_class=20)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos/, run/ (a small net that tells shapes apart) and bundles/; not to be changed."""
    return once(tmp_path_factory, "trained", train_and_export(write_shapes))


@pytest.fixture
def run(trained: Path) -> Path:
    """The run folder of the small net."""
    return trained / "run"


@pytest.fixture
def portable(trained: Path) -> Path:
    """Its bundle, in int8 and not compiled; not to be changed."""
    return trained / "bundles" / "test_resnet-1"


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    """30 images in 3 class folders, the test's own to damage."""
    return write_shapes(tmp_path / "photos", per_class=10)


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Callable[..., Outcome]]:
    """Run `python -m <module> <arguments>` in this process, in an empty folder."""
    import importlib
    import logging

    from hydra.core.global_hydra import GlobalHydra

    monkeypatch.chdir(tmp_path)

    def call(module: str, *arguments: str) -> Outcome:
        monkeypatch.setattr("sys.argv", [module, *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            importlib.import_module(module).main()
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            GlobalHydra.instance().clear()
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    yield call
    # Hydra pointed the root logger at files of the run.
    for handler in list(logging.getLogger().handlers):
        if isinstance(handler, logging.FileHandler | logging.StreamHandler) and not hasattr(handler, "reset"):
            logging.getLogger().removeHandler(handler)


TINY = (
    "data=folder",
    "data.image_size=32",
    "data.crop_pct=1.0",
    "model=timm",
    "model.name=test_resnet",
    "train.batch_size=8",
    "train.epochs=2",
    "augment=none",
    "tracking=none",
)


@pytest.fixture
def train(command: Callable[..., Outcome], shared_shapes: Path) -> Callable[..., Outcome]:
    """Train a tiny net on shapes: seconds; further arguments override."""

    def call(*arguments: str) -> Outcome:
        given = {argument.split("=")[0] for argument in arguments}
        defaults = [
            argument for argument in (*TINY, f"data.root={shared_shapes}") if argument.split("=")[0] not in given
        ]
        return command("mlops_img.train", *arguments, *defaults)

    return call
