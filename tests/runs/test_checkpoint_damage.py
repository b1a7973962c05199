"""Tests of damaged checkpoints, checkpoints that contain code, and other files."""

from __future__ import annotations

import logging
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from mlops_img.errors import UserError
from mlops_img.runs.checkpoint import (
    FORMAT_VERSION,
    newest_valid,
    read_checkpoint,
    step_checkpoints,
)
from tests.runs.test_checkpoint import equal, three_checkpoints


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return three_checkpoints(tmp_path)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_a_bit_of_a_weight(path: Path) -> None:
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        weights = max(archive.infolist(), key=lambda entry: entry.file_size if "/data/" in entry.filename else 0)
    place = content.index(archive_bytes(path, weights))
    content[place + 5] ^= 0b100
    path.write_bytes(content)


def archive_bytes(path: Path, entry: zipfile.ZipInfo) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read(entry)


@pytest.mark.parametrize("damage", [cut, empty, flip_a_bit_of_a_weight])
def test_damaged_newest_checkpoint_is_skipped_with_a_warning(
    damage: Any, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damage(folder / "step-00000003.pt")
    with caplog.at_level(logging.WARNING):
        content = newest_valid(folder)
    assert content is not None
    assert content["step"] == 2
    assert "step-00000003.pt is damaged" in caplog.text
    assert "trying the previous one" in caplog.text


def test_every_flipped_byte_is_detected_or_harmless(folder: Path) -> None:
    path = folder / "step-00000003.pt"
    whole, wanted = path.read_bytes(), read_checkpoint(path)
    detected = 0
    for place in range(0, len(whole), 61):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        try:
            content = read_checkpoint(path)
        except UserError:
            detected += 1
        else:  # a padding byte between the entries
            assert equal(content, wanted)
    assert detected > 20


def test_newest_valid_is_none_without_an_intact_checkpoint(folder: Path, tmp_path: Path) -> None:
    for path in step_checkpoints(folder):
        empty(path)
    assert newest_valid(folder) is None
    assert newest_valid(tmp_path / "nowhere") is None


class Touch:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("way", ["torch.save", "pickle"])
def test_code_in_a_checkpoint_is_not_executed(way: str, folder: Path, tmp_path: Path) -> None:
    path, sign = folder / "step-00000004.pt", tmp_path / "code-has-run"
    content = {"format_version": FORMAT_VERSION, "model": Touch(sign)}
    torch.save(content, path) if way == "torch.save" else path.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError):
        read_checkpoint(path)
    kept = newest_valid(folder)
    assert kept is not None
    assert kept["step"] == 3
    assert not sign.exists()
    if way == "torch.save":  # the object does execute when loaded without weights_only
        torch.load(path, weights_only=False)
        assert sign.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"format_version": FORMAT_VERSION + 1}, "written by a newer version of mlops_img"),
        ({"fc.weight": torch.zeros(2)}, r"not a checkpoint of mlops_img.*model\.weights="),
        ([1, 2], "not a checkpoint of mlops_img"),
    ],
)
def test_other_files_are_a_user_error(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "best.pt")
    with pytest.raises(UserError, match=message):
        read_checkpoint(tmp_path / "best.pt")


def test_missing_checkpoint_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"best\.pt does not exist"):
        read_checkpoint(tmp_path / "best.pt")
