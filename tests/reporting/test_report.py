"""Tests of the report's page, including incomplete run folders and unusual class names."""

from __future__ import annotations

import base64
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import pyplot
from PIL import Image

from mlops_img.evaluation.confidence import top1_interval
from mlops_img.evaluation.confusion import count_confusion, store_confusion
from mlops_img.reporting import report
from mlops_img.reporting.style import percent
from tests.helpers.reports import RUN_NAME, Page, Reader, evaluate, reliability, sources, training_line, validation_line

# One process makes the page that most of them read.
pytestmark = pytest.mark.xdist_group("report")


def test_page_is_self_contained(written: Path) -> None:
    page = Page(written)
    assert written.parts[-3:] == (RUN_NAME, "report", "index.html")
    assert not page.open, "every element is closed"
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in page.elements}
    assert all(source.startswith("data:image/") for source in sources(page))
    assert all(str(anchor["href"]).startswith("#") for anchor in page.all("a"))
    targets = {attributes.get("id") for _, attributes in page.elements}
    assert {str(anchor["href"])[1:] for anchor in page.all("a")} <= targets
    text = written.read_text(encoding="utf-8")
    assert "http:" not in text
    assert "https:" not in text
    assert "url(" not in text
    assert "@import" not in text


def test_figures_are_written_as_files_and_embedded_in_the_page(written: Path) -> None:
    embedded = {base64.b64decode(source.split(",", 1)[1]) for source in sources(Page(written))}
    files = {path.stem: path for path in written.parent.glob("*.png")}
    assert set(files) == {"learning_curves", "confusion", "per_class", "reliability", "mistakes"}
    for name, path in files.items():
        with Image.open(path) as image:
            image.load()
            assert min(image.size) > 300
        assert (path.read_bytes() in embedded) == (name != "mistakes"), "the page shows mistakes as single images"
    assert len(list(written.parent.iterdir())) == len(files) + 1, "no other files are written"


def test_key_numbers_show_the_interval_and_the_number_of_images(
    written: Path, digits: tuple[dict[str, Any], Reader]
) -> None:
    text, top1 = Page(written).text, digits[0]["top1"]
    low, high = top1_interval(top1, 1000) or (0, 0)
    assert f"Top-1, test {100 * top1:.1f} % 95 % interval {100 * low:.1f} to {100 * high:.1f} %, n = 1,000" in text
    assert "0.031 → 0.011 with temperature 1.40" in text
    assert "Run time 1 min 15 s" in text
    assert "Images per second 912 in training, 1.2 GB memory" in text
    assert "resnet18, evaluated on the test split: 1,000 images, 10 classes" in text


def test_page_shows_the_origin_of_the_splits(run_dir: Path, digits: tuple[dict[str, Any], Reader]) -> None:
    evaluation = digits[0] | {"origin": {"kind": "split off train", "fraction": 0.1, "seed": 3}}
    provenance = json.loads((run_dir / "provenance.json").read_text())
    provenance["data"]["splits"] = {
        "train": {"images": 3500, "kind": "given", "place": "photos/<train>"},
        "val": {"images": 500, "kind": "given", "place": "photos/val"},
        "test": {"images": 1000, "kind": "split off train", "fraction": 0.1, "seed": 3},
    }
    (run_dir / "provenance.json").write_text(json.dumps(provenance))
    text = Page(report.write_report(run_dir, evaluation, digits[1])).text
    where = "split off train (data.test_fraction=0.1, data.split_seed=3)"
    assert f"evaluated on the test split: 1,000 images {where}, 10 classes" in text
    for row in ("train 3,500 given in photos/<train>", "val 500 given in photos/val", f"test 1,000 {where}"):
        assert row in text
    assert "optimistic" not in text
    assert "split has only" not in text, "no warning for 1,000 images"


def test_page_warns_that_validation_results_are_optimistic(
    run_dir: Path, digits: tuple[dict[str, Any], Reader]
) -> None:
    evaluation = digits[0] | {"split": "val", "origin": {"kind": "given", "place": "photos/val"}}
    provenance = {"data": {"splits": {"val": {"images": 1000, "kind": "given"}, "test": {"images": 0, "kind": "none"}}}}
    (run_dir / "provenance.json").write_text(json.dumps(provenance))
    path = report.write_report(run_dir, evaluation, digits[1])
    text = Page(path).text
    assert "Top-1, validation" in text
    assert "Top-1, test" not in text
    assert "evaluated on the validation split: 1,000 images given in photos/val, 10 classes" in text
    assert "selected on the validation images, so these figures are optimistic" in text
    assert "The run has no test split (data.test_fraction=0)." in text
    assert "% on validation</title>" in path.read_text(encoding="utf-8")


def test_page_warns_about_few_images(run_dir: Path, digits: tuple[dict[str, Any], Reader]) -> None:
    evaluation = evaluate(np.eye(3)[np.arange(24) % 3], np.arange(24) % 3, ["a", "b", "c"])
    text = Page(report.write_report(run_dir, evaluation, digits[1])).text
    assert "The test split has only 24 images" in text
    assert "is 14 points wide" in text


def test_names_with_markup_are_escaped(run_dir: Path) -> None:
    classes = [
        "<script>alert(1)</script>",
        '"><img src=x onerror=alert(2)>',
        r"$\frac{$",
        "a\x00b\nc",
        "{{ 7 * 7 }}",
        "\udcff not UTF-8",
        "猫" * 80,
    ]
    probabilities = np.random.default_rng(1).dirichlet(np.ones(len(classes)), size=60)
    evaluation = evaluate(probabilities, np.arange(60) % len(classes), classes)
    evaluation["skipped"] = [{"path": "<b>bold</b>.jpg", "reason": "truncated & <i>incomplete</i>"}]
    (run_dir / "config.yaml").write_text("model:\n  name: </pre><script>alert(3)</script>\n")
    path = report.write_report(run_dir, evaluation, lambda index: np.zeros((8, 8, 3), dtype=np.uint8))
    page = Page(path)
    assert not {"script", "b", "i"} & {tag for tag, _ in page.elements}
    assert all("onerror" not in attributes for _, attributes in page.elements)
    assert all(source.startswith("data:image/") for source in sources(page))
    for name in (
        "<script>alert(1)</script>",
        '"><img src=x onerror=alert(2)>',
        r"$\frac{$",
        "{{ 7 * 7 }}",
        "猫" * 80,
    ):
        assert name in page.text
    assert "truncated & <i>incomplete</i>" in page.text
    assert "</pre><script>alert(3)</script>" in page.text


def test_report_of_an_empty_run_folder(tmp_path: Path, digits: tuple[dict[str, Any], Reader]) -> None:
    evaluation, read_image = digits
    uncalibrated: dict[str, Any] = {
        "temperature": None,
        "ece_calibrated": None,
        "reliability_calibrated": None,
        "mistakes": [],
    }
    page = Page(report.write_report(tmp_path, evaluation | uncalibrated, read_image))
    assert "No metrics were recorded." in page.text
    assert "no config.yaml" in page.text
    assert "no provenance.json" in page.text
    assert "temperature" not in page.text
    assert len(page.all("img")) == 3
    (tmp_path / "metrics.jsonl").touch()
    assert report.read_metrics(tmp_path) == ([], [], 0)


def test_outdated_figures_are_removed(run_dir: Path, digits: tuple[dict[str, Any], Reader]) -> None:
    evaluation, read_image = digits
    (run_dir / "report").mkdir()
    (run_dir / "report" / "mistakes.png").write_bytes(b"of an earlier evaluation")
    page = Page(report.write_report(run_dir, evaluation | {"mistakes": []}, read_image))
    assert "Every image was classified correctly." in page.text
    assert not (run_dir / "report" / "mistakes.png").exists()


def test_metrics_are_sorted_by_step_and_unreadable_lines_are_counted(tmp_path: Path) -> None:
    lines = [json.dumps(line) for line in (training_line(20), validation_line(20), training_line(10))]
    incomplete = json.dumps(training_line(30))[:25]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, incomplete, "", "7", "{}"]))
    metrics = report.read_metrics(tmp_path)
    assert [line["step"] for line in metrics.training] == [10, 20]
    assert [line["step"] for line in metrics.validation] == [20]
    assert metrics.unreadable == 3


def test_page_reports_unreadable_images_and_lines(run_dir: Path, digits: tuple[dict[str, Any], Reader]) -> None:
    evaluation, read_image = digits
    skipped = [{"path": f"test/3/{number}.jpg", "reason": "truncated"} for number in range(60)]
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(validation_line(560, loss=float("inf"), top1=None)) + "\n")
        file.write('{"step": 570, "lo')
    page = Page(report.write_report(run_dir, evaluation | {"skipped": skipped}, read_image))
    assert "60 unreadable images were skipped" in page.text
    assert "test/3/49.jpg" in page.text
    assert "10 more are listed in evaluation/test.json" in page.text
    assert "1 unreadable line of metrics.jsonl" in page.text
    assert "5 560 0.2050 unknown unknown" in page.text


def test_page_is_accessible(written: Path) -> None:
    page = Page(written)
    assert page.all("html")[0]["lang"] == "en"
    assert any(meta.get("name") == "viewport" for meta in page.all("meta"))
    assert all(image["alt"] for image in page.all("img"))
    assert {header.get("scope") for header in page.all("th")} == {"col", "row"}
    levels = [int(tag[1]) for tag, _ in page.elements if tag in {"h1", "h2", "h3", "h4"}]
    assert levels[0] == 1
    assert all(later - earlier <= 1 for earlier, later in pairwise(levels))
    assert all(region["tabindex"] == "0" and region["aria-label"] for region in page.all("div") if "role" in region)


def test_confused_pairs_are_ranked_by_count_without_the_diagonal() -> None:
    pairs = report.most_confused([[90, 10, 0], [0, 5, 0], [3, 10, 7]], ["cat", "dog", "fox"])
    assert [(pair["label"], pair["predicted"], pair["count"]) for pair in pairs] == [
        ("fox", "dog", 10),
        ("cat", "dog", 10),
        ("fox", "cat", 3),
    ]
    assert [pair["share"] for pair in pairs] == [0.5, 0.1, 0.15]


def test_page_lists_the_most_confused_pairs(written: Path, digits: tuple[dict[str, Any], Reader]) -> None:
    evaluation, page = digits[0], Page(written)
    top = report.most_confused(evaluation["confusion"], evaluation["classes"])[0]
    assert evaluation["confusion"][int(top["label"])][int(top["predicted"])] == top["count"] > 1
    assert f"label predicted images share {top['label']} {top['predicted']} {top['count']} " in page.text
    summary = f"Most often confused: {top['label']}, predicted as {top['predicted']} {top['count']} times."
    assert any(summary in str(image["alt"]) for image in page.all("img"))


def test_page_of_thousands_of_classes_is_small_and_names_the_shown_classes(tmp_path: Path) -> None:
    classes = [f"species number {number}" for number in range(3000)]
    labels = np.arange(6000) % 3000
    predicted = np.where(np.arange(6000) % 3 == 0, (labels + 1) % 3000, labels)
    confusion = count_confusion(labels, predicted, 3000)
    support = confusion.sum(axis=1).tolist()
    rates = {"precision": 0.7, "recall": 0.7, "f1": 0.7}
    bins = reliability(np.full(6000, 0.9), labels == predicted)
    evaluation = {
        **{"split": "test", "n": 6000, "loss": 1.0, "top1": 0.67, "f1_macro": 0.7, "ece": 0.2, "classes": classes},
        "per_class": [{"name": name, "support": n, **rates} for name, n in zip(classes, support, strict=True)],
        **{"confusion": store_confusion(confusion), "reliability": bins},
    }
    path = report.write_report(tmp_path, evaluation, lambda _: np.zeros((8, 8, 3), np.uint8))
    page = Page(path)
    assert path.stat().st_size < 3_000_000
    assert "Only 40 of 3000 classes, those of the most confused pairs, are shown" in page.text
    assert all(name in page.text for name in (classes[0], classes[1500], classes[2999]))


def test_only_exactly_1_is_formatted_as_100_percent() -> None:
    assert [percent(share) for share in (0.97, 0.9949, 0.9999, 1.0)] == [
        "97 %",
        "99 %",
        "> 99 %",
        "100 %",
    ]


@pytest.mark.usefixtures("written")
def test_figures_are_not_registered_in_pyplot() -> None:
    assert pyplot.get_fignums() == []
