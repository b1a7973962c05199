"""The provenance of a run: code, packages, machine, and the checksum of the data in DVC."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from mlops_img import __version__

PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "pillow",
    "simplejpeg",
    "hydra-core",
    "omegaconf",
    "wandb",
)
REPOSITORY = Path(__file__).parents[2]


def provenance(data: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    """Return the current provenance as plain values, and the diff of uncommitted changes, or None without git.

    Args:
        data: The entry of the data.
    """
    commit, diff = _git("rev-parse", "HEAD"), _git("diff", "HEAD")
    record = {
        "mlops_img": __version__,
        "git": {"commit": commit.strip() if commit else None, "dirty": bool(diff)},
        "data": data,
        "packages": {name: _version(name) for name in PACKAGES},
        "hardware": hardware(),
    }
    return record, diff


def hardware() -> dict[str, Any]:
    """Return the hardware and platform: CPU, cores, GPUs, operating system, Python."""
    import torch

    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
        "platform": platform.platform(),
        "python": platform.python_version(),
    }


def dvc_md5(root: Path) -> str | None:
    """Return the md5 of the data at `root` from data.dvc in the working directory or in the repository, if any."""
    for place in (Path.cwd(), REPOSITORY):
        try:
            outs = yaml.safe_load((place / "data.dvc").read_text(encoding="utf-8"))["outs"]
        except (OSError, KeyError, TypeError, yaml.YAMLError):
            continue
        for out in outs:
            if (place / out["path"]).resolve() == root.resolve():
                return str(out["md5"])
    return None


def _git(*arguments: str) -> str | None:
    try:
        result = subprocess.run(
            ["git", "-C", str(REPOSITORY), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor()
