"""Every key of `python -m mlops_img.predict`."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from mlops_img.config.rules import at_least, key, more_than, one_from
from mlops_img.config.train import PRECISION
from mlops_img.errors import UserError


@dataclass
class PredictDataConfig:
    """Node `data`: how the input is read; the keys are those of data=csv."""

    # Of a table: the column with the image's file (relative to the table's folder, or absolute); null: path or file, or
    # the only column.
    file_column: str | None = None
    # Prefix and suffix of the names in a table or a list, e.g. "images/" and ".jpg".
    file_prefix: str = ""
    file_suffix: str = ""
    # What separates the columns of a table: comma, semicolon, tab, pipe, space, or any one character; null: found by
    # the first line.
    separator: str | None = None
    # Text encoding of a table or a list; null: by the byte-order mark if there is one, else utf-8.
    encoding: str | None = None
    # Processes that read and decode; null: one per core, up to 8.
    workers: int | None = key(None, at_least(0))


@dataclass
class PredictConfig:
    """The configuration of `python -m mlops_img.predict`."""

    # The images: a folder (at any depth, no labels needed), a table (.csv, .tsv) or a list with a file per line (.txt);
    # tables and lists may be compressed (.gz, .bz2, .xz, .zip).
    input: str = key(MISSING, path=True)
    # The folder of the parts. A command that was stopped goes on where it ended.
    output: str = key(MISSING, path=True)
    # What predicts, one of both: the best checkpoint of a run folder, or a bundle.
    run: str | None = key(None, path=True)
    bundle: str | None = key(None, path=True)
    # How many classes a row lists, the most probable first; at most all that the model has.
    top_k: int = key(5, more_than(0))
    # parquet (needs pyarrow: pip install "mlops_img[predict]"), csv, or auto: parquet where pyarrow is installed. An
    # output that was begun keeps its format.
    format: str = key("auto", one_from("mlops_img.prediction.formats:FORMATS", "auto"))
    # Rows of a part. A part is written when all its rows are there, so this is what a killed process computes again.
    rows_per_part: int = key(4096, more_than(0))
    # Images that the model sees at once; null: 64, or what the bundle takes at most.
    batch_size: int | None = key(None, more_than(0))
    # This process computes the parts whose number leaves the remainder `shard` when divided by `num_shards`. null: as
    # torchrun says (RANK, WORLD_SIZE), else all parts.
    shard: int | None = key(None, at_least(0))
    num_shards: int | None = key(None, more_than(0))
    # auto, cpu, cuda or cuda:<number>; auto is CUDA if it is available, under torchrun each process its own GPU.
    device: str = "auto"
    # Of a run: what it computes in; null: as in the training. A bundle's programs have their own.
    precision: str | None = key(None, PRECISION)
    data: PredictDataConfig = field(default_factory=PredictDataConfig)

    def check(self, prefix: str) -> None:
        """Raise a UserError where the model is named twice or not at all, or the shard is not one of them."""
        if (self.run is None) == (self.bundle is None):
            found = "neither is" if self.run is None else "both are"
            raise UserError(f"run and bundle: {found} set. Name one model: run=runs/latest or bundle=bundles/latest")
        if self.bundle is not None and self.precision is not None:
            raise UserError(
                f"precision={self.precision} has no effect on a bundle, whose programs have their own. Remove the key"
            )
        if (self.shard is None) != (self.num_shards is None):
            given, missing = ("shard", "num_shards") if self.num_shards is None else ("num_shards", "shard")
            raise UserError(f"{given}={getattr(self, given)} needs {missing}=...: set both, e.g. shard=0 num_shards=4")
        if self.shard is not None and self.num_shards is not None and self.shard >= self.num_shards:
            raise UserError(
                f"shard={self.shard}: with num_shards={self.num_shards}, shards are numbered from 0 to "
                f"{self.num_shards - 1}"
            )
