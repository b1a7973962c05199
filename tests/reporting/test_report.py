"""Tests of the report and its figures, including incomplete run folders and unusual class names."""

from __future__ import annotations

import base64
import gzip
import io
import json
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import pyplot
from numpy.typing import NDArray
from PIL import Image

from mlops_img.data.sources.mnist5k import TABLE
from mlops_img.evaluation.confidence import top1_interval
from mlops_img.evaluation.confusion import count_confusion, store_confusion
from mlops_img.reporting import figures, report
from mlops_img.reporting.style import percent, png_bytes

# One process makes the page that most of them read.
pytestmark = pytest.mark.xdist_group("report")

Reader = Callable[[int], NDArray[np.uint8]]
RUN_NAME = "2026-11-23_10-00-00_resnet18"
VOID = {"meta", "img", "br", "link"}


class Page(HTMLParser):
    """A parsed page: its elements with their attributes, and its visible text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in {"dd", "small", "td", "th", "li", "p"}:
            self.text += " "  # separates blocks
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def reliability(confidence: NDArray[np.float64], correct: NDArray[np.bool_]) -> list[dict[str, Any]]:
    bins = np.minimum((confidence * 15).astype(int), 14)
    return [
        {
            "confidence": float(confidence[bins == place].mean()) if (bins == place).any() else None,
            "accuracy": float(correct[bins == place].mean()) if (bins == place).any() else None,
            "count": int((bins == place).sum()),
        }
        for place in range(15)
    ]


def evaluate(probabilities: NDArray[np.float64], labels: NDArray[np.int64], classes: list[str]) -> dict[str, Any]:
    """Return the content of evaluation/test.json for class probabilities (N, C) and labels (N,)."""
    predicted = probabilities.argmax(axis=1)
    confidence, correct = probabilities.max(axis=1), predicted == labels
    confusion = np.zeros((len(classes), len(classes)), dtype=int)
    np.add.at(confusion, (labels, predicted), 1)
    hits = np.diag(confusion)
    precision = hits / np.maximum(confusion.sum(axis=0), 1)
    recall = hits / np.maximum(confusion.sum(axis=1), 1)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-9)
    wrong = np.flatnonzero(~correct)
    return {
        "split": "test",
        "n": len(labels),
        "skipped": [],
        "loss": float(-np.log(probabilities[np.arange(len(labels)), labels] + 1e-12).mean()),
        "top1": float(correct.mean()),
        "top5": None,
        "precision_macro": float(precision.mean()),
        "recall_macro": float(recall.mean()),
        "f1_macro": float(f1.mean()),
        "ece": 0.0312,
        "temperature": 1.4,
        "ece_calibrated": 0.0107,
        "classes": classes,
        "per_class": [
            {"name": name, "support": int(support), "precision": float(p), "recall": float(r), "f1": float(f)}
            for name, support, p, r, f in zip(classes, confusion.sum(axis=1), precision, recall, f1, strict=True)
        ],
        "confusion": confusion.tolist(),
        "reliability": reliability(confidence, correct),
        "reliability_calibrated": reliability(confidence**0.8, correct),
        "mistakes": [
            {
                "index": int(index),
                "path": f"test/{classes[labels[index]]}/{index:05}.pgm",
                "label": classes[labels[index]],
                "predicted": classes[predicted[index]],
                "confidence": float(confidence[index]),
                "label_probability": float(probabilities[index, labels[index]]),
            }
            for index in wrong[np.argsort(-confidence[wrong])][:24]
        ],
    }


@pytest.fixture(scope="module")
def digits() -> tuple[dict[str, Any], Reader]:
    """Return an evaluation of real digits by a nearest-mean classifier with hundreds of mistakes, and their reader."""
    with gzip.open(TABLE) as file:
        table = np.loadtxt(file, np.uint8, delimiter=",")
    pixels, labels = table[:, :-1].astype(float), table[:, -1].astype(np.int64)
    test = np.arange(len(labels)) % 5 == 0
    means = np.stack([pixels[~test & (labels == digit)].mean(axis=0) for digit in range(10)])
    distances = np.square((pixels[test][:, None] - means) / 255).sum(axis=2)
    scores = np.exp(-0.3 * (distances - distances.min(axis=1, keepdims=True)))
    images = pixels[test].reshape(-1, 28, 28, 1).repeat(3, axis=3).astype(np.uint8)
    probabilities = scores / scores.sum(axis=1, keepdims=True)
    return evaluate(probabilities, labels[test], [str(digit) for digit in range(10)]), lambda index: images[index]


def training_line(step: int, **values: Any) -> dict[str, Any]:
    loss = 2.3 * np.exp(-step / 150) + 0.15
    return {
        "step": step,
        "epoch": 1 + step // 110,
        "split": "train",
        "loss": loss,
        "lr": 1e-3 * (1 - step / 600),
        "images_per_second": 900.0,
        "data_wait_seconds": 0.02,
        "memory_gb": 1.25,
    } | values


def validation_line(step: int, **values: Any) -> dict[str, Any]:
    top1 = 0.98 - 0.6 * float(np.exp(-step / 120))
    return {
        "step": step,
        "epoch": step // 110,
        "split": "val",
        "loss": 2 * (1 - top1),
        "top1": top1,
        "top5": 1.0,
        "f1_macro": top1 - 0.004,
        "train_loss": 2.3 * float(np.exp(-step / 150)) + 0.15,
    } | values


def write_run_folder(folder: Path) -> Path:
    """Write a run folder like that of a finished training."""
    folder.mkdir()
    noise = np.random.default_rng(0)
    lines = [
        training_line(step, loss=2.3 * np.exp(-step / 150) + noise.uniform(0.1, 0.3)) for step in range(10, 551, 10)
    ]
    lines += [validation_line(step) for step in range(110, 551, 110)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.yaml").write_text(
        "seed: 0\nmodel:\n  name: resnet18\n  pretrained: false\ntrain:\n  epochs: 5\n  batch_size: 32\n"
    )
    (folder / "summary.json").write_text(
        json.dumps({"test.top1": 0.81, "wall_seconds": 75.2, "images_per_second": 912.4, "val.top1": 0.97})
    )
    provenance = {
        "mlops_img": "0.1.0",
        "git": {"commit": "7b1f0c9a", "dirty": False},
        "packages": {f"package-{number}": f"{number}.0" for number in range(12)},
        "data": {"md5": "0123abcd.dir", "files": 5000},
        "hardware": {"cpu": "2 cores", "gpu": None},
    }
    (folder / "provenance.json").write_text(json.dumps(provenance))
    return folder


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return write_run_folder(tmp_path / RUN_NAME)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, digits: tuple[dict[str, Any], Reader]) -> Path:
    """Return the page of an ordinary run. Read-only."""
    return report.write_report(write_run_folder(tmp_path_factory.mktemp("runs") / RUN_NAME), *digits)


def decode(uri: str) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1]))))


def sources(page: Page) -> list[str]:
    return [str(image["src"]) for image in page.all("img")]


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


def test_training_images_are_shown_if_the_run_saved_them(run_dir: Path, digits: tuple[dict[str, Any], Reader]) -> None:
    evaluation, read_image = digits
    assert 'id="samples"' not in report.write_report(run_dir, evaluation, read_image).read_text(encoding="utf-8")
    samples = run_dir / "report" / "training_samples.png"
    Image.new("RGB", (40, 30), (1, 2, 3)).save(samples)
    page = Page(report.write_report(run_dir, evaluation, read_image))
    (shown,) = [image for image in page.all("img") if str(image["alt"]).startswith("Training images")]
    assert base64.b64decode(str(shown["src"]).split(",", 1)[1]) == samples.read_bytes()
    assert "#samples" in {anchor["href"] for anchor in page.all("a")}


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


def test_mistakes_show_the_image_the_prediction_and_the_label(
    written: Path, digits: tuple[dict[str, Any], Reader]
) -> None:
    page, (evaluation, read_image) = Page(written), digits
    first = evaluation["mistakes"][0]
    assert len(evaluation["mistakes"]) == 24
    shown = [image for image in page.all("img") if str(image["alt"]).startswith("Image ")]
    assert len(shown) == 24
    assert shown[0]["alt"] == f"Image {first['index']}: label {first['label']}, predicted {first['predicted']}"
    np.testing.assert_array_equal(decode(str(shown[0]["src"])), read_image(first["index"]))
    confidence = percent(first["confidence"])
    assert f"predicted {first['predicted']} ({confidence}) label {first['label']} (" in page.text


def test_absolute_paths_of_mistakes_are_shown_relative_to_their_common_folder(
    run_dir: Path, digits: tuple[dict[str, Any], Reader]
) -> None:
    evaluation, read_image = digits
    mistakes = [m | {"path": f"/photos/test/{m['label']}/{m['index']}.png"} for m in evaluation["mistakes"]]
    text = Page(report.write_report(run_dir, evaluation | {"mistakes": mistakes}, read_image)).text
    assert "Files are relative to /photos/test." in text
    assert text.count("/photos/test") == 1
    assert f"{mistakes[0]['label']}/{mistakes[0]['index']}.png" in text


def test_large_photos_are_embedded_as_thumbnails(run_dir: Path, digits: tuple[dict[str, Any], Reader]) -> None:
    evaluation, _ = digits
    row = np.linspace(0, 255, 1600, dtype=np.uint8)
    photo = np.broadcast_to(row[None, :, None], (900, 1600, 3)).copy()
    path = report.write_report(run_dir, evaluation, lambda index: photo)
    shown = [image for image in Page(path).all("img") if str(image["alt"]).startswith("Image ")]
    assert decode(str(shown[0]["src"])).shape == (144, 256, 3)
    assert path.stat().st_size < 1_500_000


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


def test_figures_of_many_classes_show_the_worst_and_the_best() -> None:
    classes = [f"species number {number}" for number in range(250)]
    noise = np.random.default_rng(2)
    labels = np.arange(1000) % 249  # the last class has no image
    scores = noise.normal(size=(1000, 250))
    scores[np.arange(1000), labels] += noise.uniform(0, 6, size=249)[labels]
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    evaluation = evaluate(probabilities, labels, classes)

    bars = figures.per_class_figure(evaluation["per_class"])
    names = [[label.get_text() for label in axes.get_yticklabels()] for axes in bars.axes]
    ranked = sorted(evaluation["per_class"][:-1], key=lambda row: row["f1"])
    assert [len(half) for half in names] == [20, 20]
    assert names[0][0] == ranked[0]["name"]
    assert names[1][0] == ranked[-1]["name"]

    heat_map = figures.confusion_figure(evaluation["confusion"], classes)
    assert not heat_map.axes[0].texts
    with Image.open(io.BytesIO(png_bytes(heat_map))) as image:
        assert image.width > 3 * 250, "every class is at least 3 pixels wide"


def test_page_lists_the_most_confused_pairs(written: Path, digits: tuple[dict[str, Any], Reader]) -> None:
    evaluation, page = digits[0], Page(written)
    top = report.most_confused(evaluation["confusion"], evaluation["classes"])[0]
    assert evaluation["confusion"][int(top["label"])][int(top["predicted"])] == top["count"] > 1
    assert f"label predicted images share {top['label']} {top['predicted']} {top['count']} " in page.text
    summary = f"Most often confused: {top['label']}, predicted as {top['predicted']} {top['count']} times."
    assert any(summary in str(image["alt"]) for image in page.all("img"))


def test_confusion_matrix_of_few_classes_shows_counts() -> None:
    axes = figures.confusion_figure([[48, 2], [0, 50]], ["cat", "dog"]).axes[0]
    assert {(text.get_position(), text.get_text()) for text in axes.texts} == {
        ((0, 0), "48"),
        ((1, 0), "2"),
        ((1, 1), "50"),
    }


def test_confusion_matrix_of_thousands_of_classes_shows_the_most_confused_ones() -> None:
    names = [f"class {label}" for label in range(3000)]
    labels = np.concatenate([np.arange(3000), np.repeat(np.arange(2000, 2030), 5)])
    predicted = np.concatenate([np.arange(3000), np.repeat(np.arange(100, 130), 5)])
    stored = store_confusion(count_confusion(labels, predicted, 3000))
    axes = figures.confusion_figure(stored, names).axes[0]
    shown = [label.get_text() for label in axes.get_yticklabels()]
    assert shown[:4] == ["class 2000", "class 100", "class 2001", "class 101"]
    assert len(shown) == figures.MAX_CONFUSED_CLASSES == figures.drawn_classes(3000)
    shares = np.asarray(axes.images[0].get_array())
    assert shares[0, 1] == pytest.approx(5 / 6)  # of all images of the label, including columns that are not drawn


def test_confusion_matrix_of_thousands_of_classes_without_mistakes() -> None:
    stored = store_confusion(count_confusion(np.arange(3000), np.arange(3000), 3000))
    axes = figures.confusion_figure(stored, [str(label) for label in range(3000)]).axes[0]
    assert len(axes.get_yticklabels()) == figures.MAX_CONFUSED_CLASSES


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


def test_learning_curves_have_gaps_at_non_finite_values() -> None:
    training = [training_line(10), training_line(20, loss=float("nan"))]
    validation = [validation_line(10), validation_line(20, loss=float("inf"), top1=None)]
    loss, top1, _ = figures.learning_curves_figure(training, validation).axes
    drawn = [np.isfinite(np.asarray(line.get_ydata())).tolist() for line in loss.lines]
    assert drawn == [[True, False], [True, True], [True, False]]
    assert len(np.asarray(top1.lines[0].get_ydata())) == 1


JOBS: list[dict[str, Any]] = [
    {
        "job": 0,
        "overrides": "model=resnet18 optim.lr=0.001",
        "value": 0.95,
        "status": "ok",
        "wall_seconds": 60.0,
    },
    {
        "job": 1,
        "overrides": "model=resnet18 optim.lr=9",
        "value": None,
        "status": "failed",
        "wall_seconds": 2.0,
    },
    {
        "job": 2,
        "overrides": "model=vit_tiny optim.lr=0.001",
        "value": 0.97,
        "status": "ok",
        "wall_seconds": 90.0,
    },
]


@pytest.mark.parametrize(("maximize", "order"), [(True, ["#2", "#0", "#1"]), (False, ["#0", "#2", "#1"])])
def test_multirun_figure_ranks_jobs_and_marks_failed_ones(maximize: bool, order: list[str]) -> None:
    axes = figures.multirun_figure(JOBS, "val.top1", maximize).axes[0]
    assert [label.get_text().split()[0] for label in axes.get_yticklabels()] == order
    failed = [text for text in axes.texts if "failed" in text.get_text()]
    assert [text.get_position()[1] for text in failed] == [2]
    assert axes.yaxis_inverted(), "the best job is on top"


def test_multirun_figure_of_failed_jobs_only() -> None:
    figure = figures.multirun_figure([row | {"value": None, "status": "failed"} for row in JOBS])
    with Image.open(io.BytesIO(png_bytes(figure))) as image:
        assert image.width > 600


@pytest.mark.usefixtures("written")
def test_figures_are_not_registered_in_pyplot() -> None:
    assert pyplot.get_fignums() == []
