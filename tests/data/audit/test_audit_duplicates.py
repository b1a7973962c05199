"""The audit's search for copies: leakage between splits, exact duplicates and near duplicates."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from mlops_img.audit import audit
from mlops_img.config.commands import AuditConfig
from mlops_img.config.data import CsvConfig, FolderConfig
from mlops_img.data.audit.findings import collect_findings
from mlops_img.data.audit.near_duplicates import close_pairs, difference_hashes, near_groups, thumbnail
from mlops_img.data.audit.scan import inspect_images
from mlops_img.data.audit.table import findings_table
from mlops_img.data.sources.base import ImageSet, Table
from mlops_img.data.sources.mnist5k import write_mnist5k
from mlops_img.data.sources.registry import open_source
from tests.helpers.photos import CLASSES, SPLITS, audit_folder, names, photo


def test_equal_files_in_two_splits_are_leakage_and_different_labels_are_reported(root: Path) -> None:
    data = (root / "train/cat/0.png").read_bytes()
    (root / "test/dog/copy.png").write_bytes(data)
    findings = audit_folder(root)
    (leak,) = findings.leaks()
    assert leak.kind == "bytes"
    assert names(leak, root) == {"train/cat/0.png", "test/dog/copy.png"}
    assert leak.crosses_splits
    assert leak.labels_differ
    assert not findings.ok
    table = findings_table(findings)
    assert "the same image in several splits (leakage): 1" in table
    assert "the same image with different labels: 1" in table


def test_equal_pixels_in_two_file_formats_are_exact_duplicates(root: Path) -> None:
    Image.open(root / "val/cat/1.png").save(root / "train/cat/other.bmp")
    (leak,) = audit_folder(root).leaks()
    assert leak.kind == "pixels"
    assert names(leak, root) == {"val/cat/1.png", "train/cat/other.bmp"}
    assert not leak.labels_differ


def test_a_group_of_copies_is_one_finding_with_all_images(root: Path) -> None:
    original = root / "train/cat/0.png"
    (root / "train/cat/copy.png").write_bytes(original.read_bytes())
    Image.open(original).save(root / "train/cat/copy.bmp")
    (group,) = audit_folder(root).duplicates
    assert names(group, root) == {"train/cat/0.png", "train/cat/copy.png", "train/cat/copy.bmp"}


def test_shortened_group_in_the_table_shows_an_image_of_each_split(root: Path) -> None:
    data = (root / "train/cat/0.png").read_bytes()
    for place in [f"train/cat/copy{number}.png" for number in range(6)] + ["val/dog/copy.png"]:
        (root / place).write_bytes(data)
    table = findings_table(audit_folder(root))
    assert f"{root / 'train/cat/0.png'} (train, cat) = {root / 'val/dog/copy.png'} (val, dog) = " in table
    assert "and 4 more" in table


def test_duplicates_within_a_split_are_a_remark_and_not_a_problem(root: Path) -> None:
    (root / "train/cat/copy.png").write_bytes((root / "train/cat/0.png").read_bytes())
    findings = audit_folder(root)
    assert findings.ok
    assert not findings.duplicates[0].crosses_splits
    assert "the same image more than once in a split: 1" in findings_table(findings)


def test_equal_unreadable_files_are_duplicates(root: Path) -> None:
    for place in ("train/cat/bad.png", "val/cat/bad.png"):
        (root / place).write_bytes(b"damaged in the same way")
    (leak,) = audit_folder(root).leaks()
    assert leak.kind == "bytes"


@pytest.mark.parametrize("change", ["jpeg", "smaller", "brighter", "gray"])
def test_a_modified_copy_is_a_near_duplicate(root: Path, change: str) -> None:
    image = Image.open(root / "train/cat/0.png")
    changed = {
        "jpeg": image,
        "smaller": image.resize((48, 40), Image.Resampling.BICUBIC),
        "brighter": ImageEnhance.Brightness(image).enhance(1.15),
        "gray": image.convert("L"),
    }[change]
    changed.save(root / "test/dog/changed.jpg", quality=85)
    findings = audit_folder(root, bits=6)
    (group,) = findings.duplicates
    assert group.kind == "near"
    assert names(group, root) == {"train/cat/0.png", "test/dog/changed.jpg"}
    assert findings.ok  # training does not refuse near duplicates
    table = findings_table(findings)
    assert "near duplicates in several splits: 1" in table
    assert "near duplicates with different labels: 1" in table


def test_digits_give_almost_no_near_duplicates(tmp_path: Path) -> None:
    write_mnist5k(tmp_path / "digits")
    config = FolderConfig(root=str(tmp_path / "digits"))
    images = open_source(config).table().splits["test"]
    thumbnails = np.stack([picture.small for picture in inspect_images(images) if picture.small is not None])
    hashes, _ = difference_hashes(thumbnails)
    groups, too_plain = near_groups(thumbnails, 6)
    assert len(close_pairs(hashes, 6)) > 1000  # candidate pairs of the hashes alone, for 1,000 digits
    assert len(groups) <= 2
    assert 0 < len(too_plain) < 500


def test_images_with_little_detail_are_listed_and_only_checked_for_exact_duplicates(root: Path) -> None:
    edge = Image.new("RGB", (40, 40), "gray")
    edge.paste("white", (0, 0, 15, 40))
    edge.save(root / "train/cat/edge.png")
    for number, shade in enumerate((200, 201, 201)):
        Image.new("RGB", (40, 40), (shade, shade, shade)).save(root / f"test/dog/plain{number}.png")
    findings = audit_folder(root)
    plain = json.loads(json.dumps(findings.as_dict()))["too_plain"]
    expected = [(f"test/dog/plain{number}.png", "test", "dog") for number in range(3)]
    expected.append(("train/cat/edge.png", "train", "cat"))  # least detail first
    assert [(str(Path(one["path"]).relative_to(root)), one["split"], one["label"]) for one in plain] == expected
    (group,) = findings.duplicates
    assert names(group, root) == {"test/dog/plain1.png", "test/dog/plain2.png"}
    lines = findings_table(findings).splitlines()
    title = lines.index(
        "  images with too little detail for the search for near duplicates (exact duplicates are found): 4"
    )
    assert lines[title + 1] == f"    {root / 'test/dog/plain0.png'} (test, dog)"


@pytest.mark.parametrize("distance", [0, 1, 3, 6, 8])
def test_close_pairs_equal_those_of_a_comparison_of_all_pairs(distance: int) -> None:
    generator = np.random.default_rng(distance)
    hashes = np.repeat(generator.integers(0, 2**64, 60, dtype=np.uint64), 5)
    for row in range(len(hashes)):
        for bit in generator.integers(0, 64, generator.integers(0, 7)):
            hashes[row] ^= np.uint64(1) << np.uint64(bit)
    expected = [
        (one, other)
        for one, other in combinations(range(len(hashes)), 2)
        if int(hashes[one] ^ hashes[other]).bit_count() <= distance
    ]
    assert len(expected) >= 5
    assert [tuple(pair) for pair in close_pairs(hashes, distance).tolist()] == expected


def test_more_than_a_thousand_similar_images_form_one_group() -> None:
    still = thumbnail(np.asarray(photo(7)))
    noise = np.random.default_rng(0).integers(0, 2, (1500, *still.shape), dtype=np.uint8)
    groups, _ = near_groups(still.clip(0, 253) + noise, 3)
    assert [len(group) for group in groups] == [1500]


def test_images_without_files_are_compared_by_pixels() -> None:
    pictures = {
        "set/train/0": photo(1),
        "set/train/1": photo(2),
        "set/test/0": photo(1),
        "set/test/1": photo(3),
    }
    labels = np.array([0, 1], np.int64)
    table = Table(
        ["cat", "dog"],
        {
            split: ImageSet([f"set/{split}/0", f"set/{split}/1"], labels, pictures.__getitem__)
            for split in ("train", "test")
        },
    )
    scanned = [picture for images in table.splits.values() for picture in inspect_images(images)]
    findings = collect_findings(table, scanned, source="torchvision", root="set", near_duplicate_bits=3)
    (leak,) = findings.leaks()
    assert [image.path for image in leak.images] == ["set/train/0", "set/test/0"]
    assert leak.kind == "pixels"
    assert findings.splits["test"].formats == {"in memory": 2}


def test_a_file_in_two_splits_of_a_csv_table_is_leakage(tmp_path: Path) -> None:
    lines = ["file,label,split"]
    for number in range(6):
        photo(number).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,{CLASSES[number % 2]},{SPLITS[number // 2]}")
    lines.append("0.png,cat,test")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    config = CsvConfig(root=str(tmp_path), split_column="split")
    (leak,) = audit(AuditConfig(data=config)).leaks()
    assert [(Path(image.path).name, image.split) for image in leak.images] == [
        ("0.png", "train"),
        ("0.png", "test"),
    ]
