"""A small net that was trained, and its bundle, made once for all the processes that run tests."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

PORTABLE = ("export.compile=false", "quantize=static", "quantize.calibration_images=16")


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder that the first of the test processes fills."""
    root = factory.getbasetemp()
    shared = (root.parent if "popen-gw" in root.name else root) / name
    with FileLock(f"{shared}.lock"):
        if not (shared / "made").exists():
            shared.mkdir()
            make(shared)
            (shared / "made").touch()
    return shared


def python(*arguments: str | Path) -> str:
    """Run Python; returns its output."""
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def train_and_export(write_shapes: Callable[..., Path]) -> Callable[[Path], None]:
    """Return what fills a folder with photos/, run/ and bundles/test_resnet-1, in int8 and not compiled."""

    def make(root: Path) -> None:
        write_shapes(root / "photos", per_class=60)
        data = ("data=folder", f"data.root={root}/photos", "data.image_size=32", "data.crop_pct=1.0", "augment=none")
        net = ("model=timm", "model.name=test_resnet", "train.epochs=12", "train.batch_size=16", "optim.lr=5e-3")
        folders = (f"hydra.run.dir={root}/run", f"runs_dir={root}")
        python("-m", "mlops_img.train", *data, *net, "tracking=none", *folders)
        where = (f"run={root}/run", f"bundles={root}/bundles")
        said = python("-m", "mlops_img.export", *where, *PORTABLE, "export.max_accuracy_drop=100", "export.onnx=true")
        assert "int8-static" in said

    return make
