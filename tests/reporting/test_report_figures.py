"""Tests of the report's figures: classes, confusion matrices, learning curves and ranked jobs."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlops_img.evaluation.confusion import count_confusion, store_confusion
from mlops_img.reporting import figures
from mlops_img.reporting.style import png_bytes
from tests.helpers.reports import evaluate, training_line, validation_line

# In the process of the other tests of the report.
pytestmark = pytest.mark.xdist_group("report")


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
