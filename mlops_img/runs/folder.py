"""The run folder: all files needed to understand, resume or repeat a run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mlops_img.config.data import DATA_SOURCES
from mlops_img.config.train import Config
from mlops_img.core.files import write_json, write_text
from mlops_img.errors import UserError
from mlops_img.runs.provenance import provenance

# The command line of the run. Hydra writes .hydra/overrides.yaml before any check, so after a failed attempt to resume
# that file holds the arguments of the attempt.
OVERRIDES_FILE = "overrides.yaml"
ERROR_FILE = "error.txt"  # in the folder of a failed job of a multirun


@dataclass(frozen=True)
class Origin:
    """The command line of a run.

    Attributes:
        options: Options of Hydra with their values, e.g. --config-dir.
        overrides: The overrides as typed.
    """

    options: list[str]
    overrides: list[str]


class RunFolder:
    """The folder of a run and its files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = path / "metrics.jsonl"
        self.config = path / "config.yaml"
        self.summary = path / "summary.json"
        self.skipped = path / "skipped.json"
        self.non_finite = path / "non_finite.json"
        self.lr_range = path / "lr_range.json"
        self.checkpoints = path / "checkpoints"
        self.training_samples = path / "report" / "training_samples.png"

    def create(self) -> None:
        """Create the folder and check that it is writable.

        Raises:
            UserError: It cannot be created or is not writable.
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

    @property
    def was_begun(self) -> bool:
        """Whether a run has written its configuration to the folder."""
        return (self.path / OVERRIDES_FILE).exists()

    def begin(self, config: Config, origin: Origin, data: dict[str, Any], after_step: int) -> None:
        """Write the configuration and the provenance, and remove the results of an earlier attempt.

        Args:
            config: The resolved configuration.
            origin: The command line of the run.
            data: The entry of the data in provenance.json.
            after_step: The step from which the run resumes; 0 for a new run.
        """
        self.forget_after(after_step)
        self.forget_outcome()
        self.write_config(config, origin)
        self.write_provenance(data)

    def write_config(self, config: Config, origin: Origin) -> None:
        """Write config.yaml, overrides.yaml, and repeat/experiment/repeat.yaml, which repeats the run."""
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
            f"# To repeat the run: python -m mlops_img.train --config-dir {repeat.parent} experiment=repeat\n"
            # The built-in option of the source: that of the run may be a file in another config folder.
            f"defaults:\n  - override /data: {config.data.source}\n{text}",
        )

    def record(self, metrics: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl."""
        with open(self.metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(metrics) + "\n")

    def forget_after(self, step: int) -> None:
        """Remove the lines of metrics.jsonl after `step`, which a resumed run writes again."""
        lines, _ = self.read_metrics()
        kept = [json.dumps(line) + "\n" for line in lines if line["step"] <= step]
        if self.metrics.exists():
            write_text(self.metrics, "".join(kept))

    def read_metrics(self) -> tuple[list[dict[str, Any]], int]:
        """Return the lines of metrics.jsonl and the number of unreadable lines; the file may be missing.

        A killed run can leave an incomplete line.
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
        """Remove the files that describe the outcome of an earlier attempt."""
        for path in (self.summary, self.non_finite, self.path / ERROR_FILE):
            path.unlink(missing_ok=True)

    def write_provenance(self, data: dict[str, Any]) -> None:
        """Write provenance.json (code, data, packages, machine) and the diff of uncommitted changes."""
        record, diff = provenance(data)
        write_json(self.path / "provenance.json", record)
        if diff:
            write_text(self.path / "uncommitted.diff", diff)


def load_config(path: Path) -> Config:
    """Load the configuration of a run.

    Raises:
        UserError: The file is not the configuration of a run.
    """
    try:
        raw = OmegaConf.load(path)
        schema = OmegaConf.structured(Config)
        schema.data = OmegaConf.structured(DATA_SOURCES[raw.data.source])
        config: Config = OmegaConf.to_object(OmegaConf.merge(schema, raw))  # type: ignore[assignment]
    except (OmegaConfBaseException, KeyError, AttributeError, yaml.YAMLError) as error:
        raise UserError(f"{path} is not the configuration of a run: {str(error).splitlines()[0]}") from None
    return config
