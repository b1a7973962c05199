"""The run folder: everything that it takes to understand a run, go on with it, or repeat it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mlops_img import __version__
from mlops_img.config.data import DATA_SOURCES
from mlops_img.config.train import Config
from mlops_img.core.files import OVERRIDES_FILE, write_json, write_text
from mlops_img.errors import ERROR_FILE, UserError

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


@dataclass(frozen=True)
class Origin:
    """How a run was asked for on the command line.

    Attributes:
        options: Hydra's own, with their values, e.g. --config-dir.
        overrides: as typed.
    """

    options: list[str]
    overrides: list[str]


class RunFolder:
    """One run's folder, with the names that every part of it has."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = path / "metrics.jsonl"
        self.config = path / "config.yaml"
        self.summary = path / "summary.json"
        self.skipped = path / "skipped.json"
        self.non_finite = path / "non_finite.json"
        self.checkpoints = path / "checkpoints"
        self.training_samples = path / "report" / "training_samples.png"

    def create(self) -> None:
        """Make the folder and see that it can be written to.

        Raises:
            UserError: it cannot.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UserError(
                f"run folder {self.path} cannot be written: {error.strerror}. Choose another with hydra.run.dir=..."
            ) from None

    def write_config(self, config: Config, origin: Origin) -> None:
        """Write config.yaml, overrides.yaml, and repeat/experiment/repeat.yaml for the same run again."""
        text = OmegaConf.to_yaml(OmegaConf.structured(config))
        write_text(self.config, text)
        write_text(
            self.path / OVERRIDES_FILE, yaml.safe_dump({"options": origin.options, "overrides": origin.overrides})
        )
        repeat = self.path / "repeat" / "experiment"
        repeat.mkdir(parents=True, exist_ok=True)
        write_text(
            repeat / "repeat.yaml",
            "# @package _global_\n"
            f"# The same run again: python -m mlops_img.train --config-dir {repeat.parent} experiment=repeat\n"
            # The source's own option: that of the run may be a file of the user's, and not be found from here.
            f"defaults:\n  - override /data: {config.data.source}\n{text}",
        )

    def record(self, metrics: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl."""
        with open(self.metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(metrics) + "\n")

    def forget_after(self, step: int) -> None:
        """Take out of metrics.jsonl what a resumed run will measure again: all beyond `step`."""
        lines, _ = self.read_metrics()
        kept = [json.dumps(line) + "\n" for line in lines if line["step"] <= step]
        if self.metrics.exists():
            write_text(self.metrics, "".join(kept))

    def read_metrics(self) -> tuple[list[dict[str, Any]], int]:
        """Return the lines of metrics.jsonl, which may be missing, and how many could not be read.

        A run that was killed can leave half a line.
        """
        lines: list[dict[str, Any]] = []
        unreadable = 0
        if self.metrics.exists():
            for text in self.metrics.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    line = json.loads(text)
                    line["split"], line["step"]
                    lines.append(line)
                except (ValueError, KeyError, TypeError):
                    unreadable += bool(text.strip())
        return lines, unreadable

    def forget_outcome(self) -> None:
        """Take away how an earlier attempt in this folder ended: this one is not there yet."""
        for path in (self.summary, self.non_finite, self.path / ERROR_FILE):
            path.unlink(missing_ok=True)

    def write_provenance(self, data: dict[str, Any]) -> None:
        """Write provenance.json: the code, the data (as given), the packages and the machine; and the diff."""
        commit, diff = _git("rev-parse", "HEAD"), _git("diff", "HEAD")
        write_json(
            self.path / "provenance.json",
            {
                "mlops_img": __version__,
                "git": {"commit": commit.strip() if commit else None, "dirty": bool(diff)},
                "data": data,
                "packages": {name: _version(name) for name in PACKAGES},
                "hardware": hardware(),
            },
        )
        if diff:
            write_text(self.path / "uncommitted.diff", diff)


def load_config(path: Path) -> Config:
    """Read the resolved configuration of a run back into its dataclass.

    Raises:
        UserError: it is none of ours.
    """
    try:
        raw = OmegaConf.load(path)
        schema = OmegaConf.structured(Config)
        schema.data = OmegaConf.structured(DATA_SOURCES[raw.data.source])
        config: Config = OmegaConf.to_object(OmegaConf.merge(schema, raw))  # type: ignore[assignment]
    except (OmegaConfBaseException, KeyError, AttributeError, yaml.YAMLError) as error:
        raise UserError(f"{path} is no configuration of a run: {str(error).splitlines()[0]}") from None
    return config


def hardware() -> dict[str, Any]:
    """Return what the figures of a run depend on: processor, cores, GPUs, Python."""
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
    """Return the md5 that data.dvc, in this folder or beside the package, records for the data at `root`."""
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
