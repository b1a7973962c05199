"""The run folder: everything needed to understand a run, resume it or repeat it."""

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

# How the run was asked for. Not .hydra/overrides.yaml, which Hydra writes before anything is checked: an attempt to
# resume that was refused has left its own there.
OVERRIDES_FILE = "overrides.yaml"
ERROR_FILE = "error.txt"  # in the folder of a failed job of a multirun


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
    """The folder of one run, and the paths in it."""

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
        """Make the folder and check that it can be written to.

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

    @property
    def was_begun(self) -> bool:
        """Whether a run got as far as writing its configuration here."""
        return (self.path / OVERRIDES_FILE).exists()

    def begin(self, config: Config, origin: Origin, data: dict[str, Any], after_step: int) -> None:
        """Write what the run is, and remove what an earlier attempt left beyond `after_step`.

        Args:
            config: resolved.
            origin: how the run was asked for.
            data: what provenance.json says of the data.
            after_step: the step that a resumed run goes on from; 0 for a new run.
        """
        self.forget_after(after_step)
        self.forget_outcome()
        self.write_config(config, origin)
        self.write_provenance(data)

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
        """Remove from metrics.jsonl what a resumed run will measure again: all beyond `step`."""
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
        """Remove what says how an earlier attempt in this folder ended."""
        for path in (self.summary, self.non_finite, self.path / ERROR_FILE):
            path.unlink(missing_ok=True)

    def write_provenance(self, data: dict[str, Any]) -> None:
        """Write provenance.json: the code, the data (as given), the packages and the machine; and the diff."""
        record, diff = provenance(data)
        write_json(self.path / "provenance.json", record)
        if diff:
            write_text(self.path / "uncommitted.diff", diff)


def load_config(path: Path) -> Config:
    """Read the resolved configuration of a run back into its dataclass.

    Raises:
        UserError: it is not the configuration of a run.
    """
    try:
        raw = OmegaConf.load(path)
        schema = OmegaConf.structured(Config)
        schema.data = OmegaConf.structured(DATA_SOURCES[raw.data.source])
        config: Config = OmegaConf.to_object(OmegaConf.merge(schema, raw))  # type: ignore[assignment]
    except (OmegaConfBaseException, KeyError, AttributeError, yaml.YAMLError) as error:
        raise UserError(f"{path} is not the configuration of a run: {str(error).splitlines()[0]}") from None
    return config
