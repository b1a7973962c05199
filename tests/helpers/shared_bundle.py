"""A small net that was trained, and its bundle, made once for all the processes that run tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

PORTABLE = ("export.compile=false", "quantize=static", "quantize.calibration_images=16")

# One process for both commands: each imports PyTorch, which takes seconds.
COMMANDS = """
import importlib, json, sys
from hydra.core.global_hydra import GlobalHydra
from mlops_img.compression import measure

measure.TIMED_SECONDS = 0.1
for module, arguments in json.loads(sys.argv[1]).items():
    sys.argv = [module, *arguments]
    importlib.import_module(module).main()
    GlobalHydra.instance().clear()
"""


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


def unmeasured() -> dict[str, str]:
    """Return the environment without coverage's settings, for a process that runs what other tests measure.

    On Python 3.11 coverage makes a training or an export half as slow again.
    """
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}


def python(*arguments: str | Path) -> str:
    """Run Python; returns its output."""
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, env=unmeasured(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def train_and_export(write_shapes: Callable[..., Path]) -> Callable[[Path], None]:
    """Return what fills a folder with photos/, run/ and bundles/test_resnet-1, in int8 and not compiled."""

    def make(root: Path) -> None:
        write_shapes(root / "photos", per_class=60)
        data = ("data=folder", f"data.root={root}/photos", "data.image_size=32", "data.crop_pct=1.0", "augment=none")
        net = ("model=timm", "model.name=test_resnet", "train.epochs=12", "train.batch_size=16", "optim.lr=5e-3")
        train = [*data, *net, "tracking=none", f"hydra.run.dir={root}/run", f"runs_dir={root}"]
        where = (f"run={root}/run", f"bundles={root}/bundles")
        export = [*where, *PORTABLE, "export.max_accuracy_drop=100", "export.onnx=true"]
        output = python("-c", COMMANDS, json.dumps({"mlops_img.train": train, "mlops_img.export": export}))
        assert "int8-static" in output

    return make
