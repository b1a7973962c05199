"""The audit of a data set, on image files with each kind of fault."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from mlops_img import audit as audit_module
from mlops_img.audit import audit, output_path, run, write_findings
from mlops_img.config.commands import AuditConfig
from mlops_img.config.data import CsvConfig, FolderConfig
from mlops_img.config.rules import validate
from mlops_img.data.audit.findings import Duplicates, Findings, collect_findings
from mlops_img.data.audit.near_duplicates import close_pairs, difference_hashes, near_groups, thumbnail
from mlops_img.data.audit.scan import inspect_images
from mlops_img.data.audit.table import findings_table
from mlops_img.data.sources.base import ImageSet, Table
from mlops_img.data.sources.mnist5k import write_mnist5k
from mlops_img.data.sources.registry import open_source
from mlops_img.errors import EXIT_FAILED, EXIT_USER_ERROR, UserError
from tests.helpers.paths import ROOT

CLASSES = ("cat", "dog")
SPLITS = ("train", "val", "test")


def photo(seed: int, width: int = 96, height: int = 80) -> Image.Image:
    """Return an image with detail at every scale, like a photo."""
    generator = np.random.default_rng(seed)
    layers = [
        Image.fromarray(generator.integers(0, 256, (side, side, 3), dtype=np.uint8)).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        for side in (4, 12, 40)
    ]
    blended = Image.blend(Image.blend(layers[0], layers[1], 0.4), layers[2], 0.2)
    assert isinstance(blended, Image.Image)
    return blended


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Write a clean data set: 3 splits of 2 classes of 3 different photos."""
    folder = tmp_path / "photos"
    seed = 0
    for split in SPLITS:
        for name in CLASSES:
            (folder / split / name).mkdir(parents=True)
            for number in range(3):
                photo(seed).save(folder / split / name / f"{number}.png")
                seed += 1
    return folder


def audit_folder(root: Path, bits: int = 3, workers: int | None = 2) -> Findings:
    return audit(AuditConfig(data=FolderConfig(root=str(root), workers=workers), near_duplicate_bits=bits))


def names(group: Duplicates, root: Path) -> set[str]:
    return {str(Path(image.path).relative_to(root)) for image in group.images}


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


def test_command_prints_writes_json_and_exits_with_1_on_a_problem(root: Path) -> None:
    (root / "val/cat/bad.png").write_bytes(b"no image")
    command = [sys.executable, "-m", "mlops_img.audit", "data=folder", f"data.root={root}"]
    before = set(root.parent.rglob("*"))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (EXIT_FAILED, "")
    assert f"{root / 'val/cat/bad.png'} (val, cat): not an image" in done.stdout
    report = root.parent / "photos.audit.json"
    assert set(root.parent.rglob("*")) - before == {report}  # no log, no output folder, nothing in the data
    findings = json.loads(report.read_text(encoding="utf-8"))
    assert findings["ok"] is False
    assert findings["unreadable"][0]["reason"] == "not an image"
    assert findings["splits"]["val"]["per_class"] == {"cat": 4, "dog": 3}


def test_command_exits_with_2_and_one_line_when_the_folder_is_missing(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "mlops_img.audit",
        "data=folder",
        f"data.root={tmp_path / 'nowhere'}",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == EXIT_USER_ERROR
    assert done.stdout == ""
    assert done.stderr.startswith("error: data.root: folder ")
    assert len(done.stderr.splitlines()) == 1


def test_run_returns_normally_for_a_clean_data_set(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = root.parent / "found.json"
    run(AuditConfig(data=FolderConfig(root=str(root)), output=str(output)))
    assert json.loads(output.read_text(encoding="utf-8"))["ok"] is True
    assert str(output) in capsys.readouterr().out


def test_run_exits_with_1_on_a_problem(root: Path) -> None:
    (root / "val/cat/bad.png").write_bytes(b"no image")
    with pytest.raises(SystemExit) as exit_info:
        run(AuditConfig(data=FolderConfig(root=str(root))))
    assert exit_info.value.code == EXIT_FAILED


def test_a_failed_write_keeps_the_old_findings(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "audit.json"
    path.write_text("old findings")

    def disk_full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(audit_module.os, "replace", disk_full)
    with pytest.raises(UserError, match=r"cannot write .*audit\.json: No space left on device"):
        write_findings(audit_folder(root), path)
    assert path.read_text() == "old findings"
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["audit.json"]


def test_invalid_output_and_distance_are_rejected(root: Path) -> None:
    data = FolderConfig(root=str(root))
    with pytest.raises(UserError, match="is a folder"):
        output_path(AuditConfig(data=data, output=str(root)))
    with pytest.raises(UserError, match="does not exist"):
        output_path(AuditConfig(data=data, output=str(root / "nowhere/audit.json")))
    with pytest.raises(UserError, match="near_duplicate_bits=9: it must lie between 0 and 8"):
        validate(AuditConfig(data=data, near_duplicate_bits=9))
