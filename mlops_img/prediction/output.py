"""The folder of the parts: part-00000.parquet and so on, and a manifest of what they were computed from.

A part is written beside its place and renamed, so that a part that is there is whole. Which parts are there is all
that a resumed command needs to know. The manifest's name begins with an underscore, because pandas, pyarrow and Spark
read a folder of Parquet files as one table and leave such names out.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from mlops_img.core.files import write_atomically
from mlops_img.errors import UserError
from mlops_img.prediction.formats import FORMATS, Columns
from mlops_img.prediction.plan import Shard

PART = re.compile(r"part-(\d{5,})\.(\w+)")
UNFINISHED = re.compile(r"\.part-(\d{5,})\.\w+\.\d+\.part")  # as `write_atomically` names it


@dataclass(frozen=True)
class PartFiles:
    """The parts in a folder."""

    folder: Path
    format: str

    def path(self, part: int) -> Path:
        """Return the file of a part."""
        return self.folder / f"part-{part:05d}.{self.format}"

    def present(self) -> list[int]:
        """Return the numbers of the parts that are there, ascending."""
        matches = [match for name in os.listdir(self.folder) if (match := PART.fullmatch(name))]
        return sorted(int(match[1]) for match in matches if match[2] == self.format)

    def write(self, part: int, columns: Columns) -> None:
        """Write a part, whole or not at all.

        Raises:
            UserError: the disk is full, or the folder is read-only or gone.
        """

        def write(file: IO[bytes]) -> None:
            _lock(file)
            FORMATS[self.format].write(file, columns)

        try:
            write_atomically(self.path(part), write)
        except OSError as error:
            raise UserError(
                f"{self.path(part)} cannot be written: {error.strerror}. The parts before it are kept: free some space "
                "or repair the folder, and start the same command again"
            ) from None

    def read(self, part: int, names: Sequence[str]) -> dict[str, list[Any]]:
        """Return columns of a part.

        Raises:
            UserError: it cannot be read.
        """
        try:
            return FORMATS[self.format].read(self.path(part), names)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{self.path(part)} cannot be read: {reason}. Delete it and start the same command again"
            ) from None

    def remove_unfinished(self, shard: Shard) -> None:
        """Remove what a process that was killed left of the shard's parts.

        The file of a process that still runs is locked; on a file system without locks nothing is removed.
        """
        for name in os.listdir(self.folder):
            match = UNFINISHED.fullmatch(name)
            if match and shard.owns(int(match[1])):
                with contextlib.suppress(OSError), (self.folder / name).open("r+b") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    (self.folder / name).unlink()


def _lock(file: IO[bytes]) -> None:
    """Lock a file as long as it is open; the kernel ends the lock with the process."""
    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def make_folder(location: str) -> Path:
    """Make the folder of the parts, unless it is there, and return its path.

    Raises:
        UserError: it cannot be made.
    """
    path = Path(location)
    if "://" in location:
        raise UserError(
            f"output={location}: parts are written to a local folder. Mount the bucket, or copy them afterwards"
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"output={path} is a file or lies below one. Name a folder") from None
    except OSError as error:
        raise not_writable(path, error) from None
    return path


def not_writable(path: Path, error: OSError) -> UserError:
    """Return the error of an output folder that cannot be written."""
    return UserError(f"output={path} cannot be written: {error.strerror}. Choose another folder with output=...")
