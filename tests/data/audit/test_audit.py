"""The audit of a data set: statistics, unreadable files, left out files and missing classes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from mlops_img.audit import audit
from mlops_img.config.commands import AuditConfig
from mlops_img.config.data import FolderConfig
from mlops_img.data.audit.table import findings_table
from tests.helpers.photos import CLASSES, SPLITS, audit_folder, photo


def test_clean_data_set_has_statistics_but_no_findings(root: Path) -> None:
    findings = audit_folder(root)
    assert findings.ok
    assert (findings.unreadable, findings.duplicates, findings.missing_classes, findings.refusals) == (
        [],
        [],
        [],
        [],
    )
    assert {split: found.per_class for split, found in findings.splits.items()} == {
        split: {"cat": 3, "dog": 3} for split in SPLITS
    }
    assert "No problems found" in findings_table(findings)


def test_audit_reports_the_origin_of_each_split(root: Path) -> None:
    shutil.rmtree(root / "test")
    config = FolderConfig(root=str(root), test_fraction=0.34, split_seed=2)
    findings = audit(AuditConfig(data=config))
    assert findings.as_dict()["origins"] == {
        "train": {"kind": "given", "place": f"{root}/train"},
        "val": {"kind": "given", "place": f"{root}/val"},
        "test": {"kind": "split off train", "fraction": 0.34, "seed": 2},
    }

    origins = f"val: 6 images given in {root}/val; test: "
    assert origins + "2 images split off train (data.test_fraction=0.34, data.split_seed=2)" in findings_table(findings)
    findings = audit(AuditConfig(data=replace(config, test_fraction=0.0)))
    assert findings.ok
    assert list(findings.splits) == ["train", "val"]
    assert findings.as_dict()["origins"]["test"] == {"kind": "none"}
    assert origins + "none (data.test_fraction=0)" in findings_table(findings)


def test_all_unreadable_files_are_listed_with_the_reason(root: Path) -> None:
    folder = root / "train" / "cat"
    photo(100).save(folder / "whole.jpg")
    data = (folder / "whole.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(data[: len(data) // 2])
    png = (folder / "0.png").read_bytes()
    (folder / "cut.png").write_bytes(png[: len(png) // 2])
    (folder / "empty.jpg").touch()
    (folder / "text.jpg").write_text("this is no image")
    (folder / "lost.jpg").symlink_to(folder / "gone.jpg")
    findings = audit_folder(root)
    reasons = {Path(one.image.path).name: one.reason for one in findings.unreadable}
    assert set(reasons) == {"cut.jpg", "cut.png", "empty.jpg", "text.jpg", "lost.jpg"}
    assert reasons["empty.jpg"] == "empty file"
    assert reasons["text.jpg"] == "not an image"
    assert reasons["lost.jpg"] == "No such file or directory"
    assert "truncated" in reasons["cut.jpg"]
    assert {(one.image.split, one.image.label) for one in findings.unreadable} == {("train", "cat")}
    assert not findings.ok
    assert findings.splits["train"].images == 12  # unreadable images are counted
    assert "cut.jpg (train, cat): " in findings_table(findings)


def test_left_out_files_are_counted_by_reason_in_the_json_and_the_table(root: Path) -> None:
    folder = root / "train" / "cat"
    (folder / "a.heic").write_bytes(b"ftypheic")
    (folder / ".hidden.png").touch()
    (folder / "@eaDir" / "0.png").mkdir(parents=True)
    photo(1).save(folder / "@eaDir" / "0.png" / "small.jpg")
    photo(2).save(root / "train" / "loose.png")
    findings = audit_folder(root)
    assert findings.ok
    assert [
        (one["reason"], one["name"], one["count"], Path(one["example"]).name) for one in findings.as_dict()["left_out"]
    ] == [
        ("images outside the class folders", ".png", 1, "loose.png"),
        ("not an image extension", ".heic", 1, "a.heic"),
        ("hidden", ".hidden.png", 1, ".hidden.png"),
        ("thumbnails", "@eaDir/", 1, "@eaDir"),
    ]
    table = findings_table(findings)
    assert f"left out, images outside the class folders: 1: .png (1), e.g. {root / 'train' / 'loose.png'}" in table
    assert "left out, thumbnails: 1: @eaDir/ (1)" in table


def test_a_single_class_is_reported_with_the_root_that_has_several(tmp_path: Path) -> None:
    for name in CLASSES:
        (tmp_path / "download" / "photos" / name).mkdir(parents=True)
        photo(1).save(tmp_path / "download" / "photos" / name / "a.png")
    (_, refusal) = audit_folder(tmp_path / "download").refusals
    assert refusal.endswith(f"set data.root={tmp_path / 'download' / 'photos'}")


def convert_to_16_bit(root: Path, shift: int) -> None:
    """Convert every image to 16-bit gray: its 8-bit values shifted left by `shift` bits."""
    for path in root.rglob("*.png"):
        gray = np.asarray(Image.open(path).convert("L")).astype(np.uint16)
        Image.fromarray(gray << shift).save(path)


def test_low_contrast_16_bit_images_are_a_remark_that_names_the_option(root: Path) -> None:
    convert_to_16_bit(root, 4)
    findings = audit_folder(root)
    assert findings.ok
    deep_images = json.loads(json.dumps(findings.as_dict()))["deep"]
    assert (deep_images["images"], deep_images["sixteen_bit"]) == (18, "declared")
    assert 0.04 < deep_images["used"] < 1 / 16
    table = findings_table(findings)
    used = f"{100 * deep_images['used']:.1f} %"
    assert f"low contrast: 18 images of 16 bits per channel, which use {used} of their range" in table
    assert "data.sixteen_bit=range" in table
    stretched = audit(AuditConfig(data=FolderConfig(root=str(root), sixteen_bit="range")))
    assert stretched.deep is not None
    assert "low contrast" not in findings_table(stretched)


def test_8_bit_images_and_16_bit_images_with_full_contrast_give_no_remark(root: Path) -> None:
    assert audit_folder(root).deep is None
    convert_to_16_bit(root, 8)
    findings = audit_folder(root)
    assert findings.deep is not None
    assert findings.deep.used > 0.5
    assert "low contrast" not in findings_table(findings)


def test_class_missing_from_a_split_is_a_problem(root: Path) -> None:
    for file in (root / "val/dog").iterdir():
        file.unlink()
    (root / "val/dog").rmdir()
    findings = audit_folder(root)
    assert findings.missing_classes == [("dog", "val")]
    assert findings.splits["val"].imbalance is None
    assert not findings.ok
    assert "class 'dog' has no image in val" in findings_table(findings)


def test_data_that_cannot_be_split_are_still_audited(tmp_path: Path) -> None:
    for name, count in (("cat", 6), ("dog", 2)):
        (tmp_path / "few" / name).mkdir(parents=True)
        for number in range(count):
            photo(10 * count + number).save(tmp_path / "few" / name / f"{number}.png")
    (tmp_path / "few/dog/broken.png").write_bytes(b"\x89PNG")
    (tmp_path / "few/dog/1.png").write_bytes((tmp_path / "few/dog/0.png").read_bytes())
    findings = audit_folder(tmp_path / "few")
    assert "class 'dog' has 2 different images" in findings.refusals[0]
    assert list(findings.splits) == ["train"]
    assert len(findings.unreadable) == 1
    assert len(findings.duplicates) == 1
    assert not findings.ok


def test_a_broken_link_does_not_stop_the_audit_of_data_without_splits(tmp_path: Path) -> None:
    for name in CLASSES:
        (tmp_path / "flat" / name).mkdir(parents=True)
        for number in range(4):
            photo(50 + number + 10 * len(name)).save(tmp_path / "flat" / name / f"{number}{name}.png")
    (tmp_path / "flat/cat/lost.png").symlink_to("gone.png")
    findings = audit_folder(tmp_path / "flat")
    assert [Path(one.image.path).name for one in findings.unreadable] == ["lost.png"]
    assert not findings.ok


def test_a_single_class_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "one/cat").mkdir(parents=True)
    for number in range(5):
        photo(number).save(tmp_path / "one/cat" / f"{number}.png")
    findings = audit_folder(tmp_path / "one")
    assert "only the class 'cat'" in findings.refusals[0]
    assert not findings.ok


def test_sizes_are_reported_after_exif_rotation_with_formats_and_modes(root: Path) -> None:
    rotated = Image.Exif()
    rotated[0x0112] = 6  # EXIF orientation: turn by 90 degrees
    photo(60, width=300, height=20).save(root / "test/cat/turned.jpg", exif=rotated)
    photo(61, width=10, height=16).convert("L").save(root / "test/dog/tiny.png")
    split = audit_folder(root).splits["test"]
    assert split.width is not None
    assert split.height is not None
    assert (split.width.min, split.width.median, split.width.max) == (10, 96, 96)
    assert (split.height.min, split.height.median, split.height.max) == (16, 80, 300)
    assert split.smallest == str(root / "test/dog/tiny.png")
    assert split.formats == {"PNG": 7, "JPEG": 1}
    assert split.modes == {"RGB": 7, "L": 1}


def test_imbalance_is_the_ratio_of_the_largest_class_to_the_smallest(root: Path) -> None:
    for number in range(9):
        photo(200 + number).save(root / "train/dog" / f"more{number}.png")
    findings = audit_folder(root)
    assert findings.splits["train"].imbalance == 4.0
    assert findings.splits["val"].imbalance == 1.0
    assert findings.ok
    assert "imbalance in train: 12 of 'dog', 3 of 'cat'" in findings_table(findings)


def test_findings_do_not_depend_on_the_number_of_threads(root: Path) -> None:
    (root / "train/cat/copy.png").write_bytes((root / "train/cat/0.png").read_bytes())
    (root / "val/cat/bad.png").write_bytes(b"no image")
    assert audit_folder(root, workers=1).as_dict() == audit_folder(root, workers=4).as_dict()


def test_table_of_many_classes_and_findings_stays_short(tmp_path: Path) -> None:
    for number in range(60):
        folder = tmp_path / "many" / f"class{number:02d}"
        folder.mkdir(parents=True)
        for copy in range(3):
            photo(10 * number + copy, 24, 24).save(folder / f"{copy}.png")
        (folder / "bad.png").write_bytes(b"not an image %d" % number)
    table = findings_table(audit_folder(tmp_path / "many"))
    assert len(table.splitlines()) < 65
    assert "30 more" in table
    assert "unreadable images: 60" in table
    assert "... and 50 more" in table
