"""Small files to compare, and how often each is opened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from mlops_img.data import duplicates
from mlops_img.data.sources.base import ImageSet


def write(folder: Path, contents: Mapping[str, bytes]) -> ImageSet:
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return ImageSet([str(folder / name) for name in contents], np.zeros(len(contents), np.int64))


class Opened:
    """Counts how often the index opens each file."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.times: Counter[str] = Counter()
        for name in ("_head", "_whole"):
            monkeypatch.setattr(duplicates, name, self._counting(getattr(duplicates, name)))

    def _counting(self, read: Callable[[str], duplicates.Digests]) -> Callable[[str], duplicates.Digests]:
        def counted(path: str) -> duplicates.Digests:
            self.times[Path(path).name] += 1
            return read(path)

        return counted

    def clear(self) -> set[str]:
        """Return the names of the files opened since the last call."""
        names = set(self.times)
        self.times.clear()
        return names


def numbered_files(root: Path, count: int, splits: Sequence[str] = ("",)) -> Path:
    """Write small different files of one size into two class folders of each split."""
    for split in splits:
        for number in range(count):
            folder = root / split / f"class{number % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{split}{number:03}.png").write_bytes(f"{split:10}{number:06}".encode())
    return root
