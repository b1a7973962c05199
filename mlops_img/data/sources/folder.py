"""Class folders as a source: one folder per class, with or without a folder per split above them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlops_img.config.data import FolderConfig, Mnist5kConfig
from mlops_img.data.sources.base import WITHOUT_TEST, ImageSet, Table
from mlops_img.data.sources.class_folders import ClassFolder, class_folders, existing_folder, split_folders
from mlops_img.data.sources.left_out import LeftOutFiles, Reason
from mlops_img.data.sources.levels import doubts, hint_below
from mlops_img.data.sources.listing import split_of
from mlops_img.data.sources.split_origin import SplitOrigin


@dataclass(frozen=True)
class Folder:
    """Class folders in `root`, or in `root`/train, `root`/val and `root`/test."""

    config: FolderConfig | Mnist5kConfig

    def table(self) -> Table:
        root, left_out = existing_folder(self.config.root), LeftOutFiles()
        folders = split_folders(root, left_out)
        with_splits = list(folders.values()) != [root]
        if with_splits and not self.config.use_given_test and "train" in folders and "test" in folders:
            _leave_out_test(folders.pop("test"), left_out)
        by_split = {
            split: class_folders(folder, left_out, _test_hint(split, folders)) for split, folder in folders.items()
        }
        warnings: list[str] = []
        if not with_splits:
            by_split["train"] = self._without_test(by_split["train"], left_out)
            warnings = doubts(by_split["train"])
        classes = sorted({one.path.name for found in by_split.values() for one in found})
        index = {name: number for number, name in enumerate(classes)}
        sets = {
            split: ImageSet(
                [path for one in found for path in one.files],
                np.array([index[one.path.name] for one in found for _ in one.files], np.int64),
            )
            for split, found in by_split.items()
        }
        mismatches = [
            f"class {name!r} has no folder in {folders[split]}"
            for split, found in by_split.items()
            for name in sorted(set(classes) - {one.path.name for one in found})
        ]
        hint = hint_below(root) if len(classes) == 1 else ""
        return Table(
            classes,
            sets,
            mismatches,
            left_out=left_out.as_list(),
            hint=hint,
            doubts=warnings,
            origins={split: SplitOrigin(place=str(folder)) for split, folder in folders.items()},
        )

    def _without_test(self, found: list[ClassFolder], left_out: LeftOutFiles) -> list[ClassFolder]:
        """Return the classes, without a folder named like a test split if data.use_given_test=false."""
        if self.config.use_given_test:
            return found
        kept = []
        for one in found:
            if split_of(one.path.name) == "test":
                _leave_out_test(one.path, left_out)
            else:
                kept.append(one)
        return kept


def _leave_out_test(folder: Path, left_out: LeftOutFiles) -> None:
    left_out.add(Reason.NOT_USED, f"{folder.name}/", str(folder))


def _test_hint(split: str, folders: Mapping[str, Path]) -> str:
    unlabeled = split == "test" and "train" in folders
    return f". If its images have no labels, leave it out with {WITHOUT_TEST}" if unlabeled else ""
