"""Tests of the metrics against scikit-learn, torchmetrics and values known by construction."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn import metrics as sklearn_metrics  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.functional.classification import multiclass_calibration_error

from mlops_img.core.precision import Precision
from mlops_img.data.batch import Batch
from mlops_img.errors import UserError
from mlops_img.evaluation.calibration import fit_temperature
from mlops_img.evaluation.confusion import (
    confused_pairs,
    count_confusion,
    most_confused,
    read_confusion,
    store_confusion,
)
from mlops_img.evaluation.metrics import Predictions, summarize
from mlops_img.evaluation.predictions import collect_predictions
from mlops_img.evaluation.result import MAX_MISTAKES, build_result
from mlops_img.preprocessing.transforms import Preprocessing

CPU_FP32 = Precision(torch.device("cpu"), torch.float32)


def names(count: int) -> list[str]:
    return [f"class {number}" for number in range(count)]


def paths(count: int) -> list[str]:
    return [f"images/{number}.jpg" for number in range(count)]


def random_predictions(seed: int, classes: int = 10, count: int = 400, present: int | None = None) -> Predictions:
    """Return predictions slightly better than chance; only the first `present` classes occur as labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(present or classes, (count,), generator=generator)
    logits = torch.randn(count, classes, generator=generator) * 2
    logits[torch.arange(count), labels] += 1.5
    return Predictions(logits, labels, torch.randperm(count, generator=generator))


def evaluate(predictions: Predictions, temperature: float = 1.0) -> dict[str, Any]:
    count, classes = predictions.logits.shape
    return build_result(predictions, names(classes), paths(count), temperature)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("classes", "present"), [(10, 10), (10, 6), (30, 4), (2, 2)])
def test_metrics_equal_those_of_scikit_learn(seed: int, classes: int, present: int) -> None:
    predictions = random_predictions(seed, classes, present=present)
    result = evaluate(predictions)
    labels, predicted = predictions.labels.numpy(), predictions.logits.argmax(1).numpy()
    assert result["top1"] == pytest.approx(sklearn_metrics.accuracy_score(labels, predicted))
    assert result["loss"] == pytest.approx(functional.cross_entropy(predictions.logits, predictions.labels).item())
    precision, recall, f1, support = sklearn_metrics.precision_recall_fscore_support(
        labels, predicted, labels=range(classes), zero_division=0
    )
    rows = result["per_class"]
    for key, wanted in (("precision", precision), ("recall", recall), ("f1", f1), ("support", support)):
        assert [row[key] for row in rows] == pytest.approx(list(wanted))
    # By default scikit-learn averages over the classes that occur as label or prediction.
    macro = sklearn_metrics.precision_recall_fscore_support(labels, predicted, average="macro", zero_division=0)
    assert [result[f"{key}_macro"] for key in ("precision", "recall", "f1")] == pytest.approx(list(macro[:3]))
    confusion = read_confusion(result["confusion"], classes).toarray()
    assert confusion.tolist() == sklearn_metrics.confusion_matrix(labels, predicted, labels=range(classes)).tolist()
    if classes >= 10:
        top5 = sklearn_metrics.top_k_accuracy_score(labels, predictions.logits.numpy(), k=5, labels=range(classes))
        assert result["top5"] == pytest.approx(top5)


def test_top5_is_1_with_fewer_than_five_classes() -> None:
    assert summarize(random_predictions(0, classes=3))["top5"] == 1.0


def test_metrics_are_consistent_for_equal_logits() -> None:
    # In bf16 many classes share the largest logit. All metrics must break the tie in the same way.
    generator = torch.Generator().manual_seed(0)
    logits = torch.randint(0, 2, (300, 40), generator=generator).float()
    predictions = Predictions(logits, torch.randint(40, (300,), generator=generator), torch.arange(300))
    result = evaluate(predictions)
    hits = int(predictions.confusion.diagonal().sum())
    assert round(result["top1"] * 300) == hits
    assert result["top5"] >= result["top1"]
    right = sum(row["accuracy"] * row["count"] for row in result["reliability"] if row["count"])
    assert round(right) == hits


def test_prediction_is_the_largest_logit_even_if_probabilities_are_equal() -> None:
    logits = torch.tensor([[1e-9, 2e-9]])
    assert logits.softmax(1)[0, 0] == logits.softmax(1)[0, 1]
    result = evaluate(Predictions(logits, torch.tensor([1]), torch.tensor([0])))
    assert result["top1"] == 1
    assert result["mistakes"] == []


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_calibration_error_equals_that_of_torchmetrics(seed: int, temperature: float) -> None:
    predictions = random_predictions(seed, count=2000)
    wanted = multiclass_calibration_error(
        predictions.probabilities(temperature), predictions.labels, num_classes=10, n_bins=15, norm="l1"
    )
    result = evaluate(predictions, temperature)
    key = "ece" if temperature == 1.0 else "ece_calibrated"
    assert result[key] == pytest.approx(wanted.item(), abs=1e-5)


def test_bins_without_images_hold_none_and_are_ignored_by_the_calibration_error() -> None:
    sure = Predictions(torch.tensor([[50.0, 0.0], [50.0, 0.0]]), torch.tensor([0, 1]), torch.tensor([0, 1]))
    result = evaluate(sure)
    filled = [row for row in result["reliability"] if row["count"]]
    assert filled == [{"confidence": 1.0, "accuracy": 0.5, "count": 2}]
    assert result["ece"] == pytest.approx(0.5)
    assert {(row["confidence"], row["accuracy"]) for row in result["reliability"] if not row["count"]} == {(None, None)}


@pytest.mark.parametrize("true", [0.3, 1.0, 4.0])
def test_fitted_temperature_recovers_the_factor_of_scaled_logits(true: float) -> None:
    generator = torch.Generator().manual_seed(0)
    calibrated = torch.randn(20000, 5, generator=generator) * 2
    labels = torch.multinomial(calibrated.softmax(1), 1, generator=generator).squeeze(1)
    predictions = Predictions(calibrated * true, labels, torch.arange(20000))
    temperature = fit_temperature(predictions)
    assert temperature == pytest.approx(true, rel=0.05)
    before = functional.cross_entropy(predictions.logits, labels)
    after = functional.cross_entropy(predictions.logits / temperature, labels)
    assert after <= before
    result = evaluate(predictions, temperature)
    assert result["ece_calibrated"] < 0.02
    assert true == 1.0 or result["ece"] > 3 * result["ece_calibrated"]


def test_temperature_of_predictions_without_mistakes_is_finite() -> None:
    predictions = Predictions(torch.eye(4) * 5, torch.arange(4), torch.arange(4))
    assert 0.04 < fit_temperature(predictions) < 1


def test_mistakes_are_sorted_by_confidence() -> None:
    predictions = random_predictions(1, count=500)
    result = evaluate(predictions, temperature=2.0)
    mistakes = result["mistakes"]
    assert len(mistakes) == MAX_MISTAKES
    confidences = [mistake["confidence"] for mistake in mistakes]
    assert confidences == sorted(confidences, reverse=True)
    wrong = predictions.logits.argmax(1) != predictions.labels
    probabilities = (predictions.logits / 2.0).softmax(1)
    assert confidences[0] == pytest.approx(probabilities[wrong].max().item())
    for mistake in mistakes:
        place = int((predictions.rows == mistake["index"]).nonzero())
        assert mistake["path"] == f"images/{mistake['index']}.jpg"
        assert mistake["label"] == f"class {predictions.labels[place]}" != mistake["predicted"]
        assert mistake["label_probability"] == pytest.approx(
            probabilities[place, predictions.labels[place]].item(), rel=1e-5
        )


def test_mistakes_are_empty_if_all_predictions_are_correct() -> None:
    assert evaluate(Predictions(torch.eye(4), torch.arange(4), torch.arange(4)))["mistakes"] == []


@pytest.mark.parametrize(("classes", "count"), [(10, 400), (2, 3), (3, 1)])
def test_result_can_be_stored_as_json(classes: int, count: int) -> None:
    predictions = random_predictions(0, classes, count)
    result = evaluate(predictions, fit_temperature(predictions))
    assert json.loads(json.dumps(result, allow_nan=False)) == result


# Many classes


def test_size_of_the_stored_confusion_matrix_depends_on_images_and_not_on_class_pairs() -> None:
    classes, count = 3000, 500
    result = evaluate(random_predictions(0, classes, count))
    cells = result["confusion"]["cells"]
    assert len(cells) <= count
    assert sum(number for _, _, number in cells) == count
    assert cells == sorted(cells)
    assert len(json.dumps(result)) < 1_000_000  # a dense matrix alone takes 27 MB


def test_dense_confusion_matrix_of_earlier_versions_can_be_read() -> None:
    dense = [[3, 1, 0], [0, 0, 0], [2, 0, 5]]
    matrix = read_confusion(dense, 3)
    assert matrix.toarray().tolist() == dense
    stored = store_confusion(matrix)
    assert stored == {"cells": [[0, 0, 3], [0, 1, 1], [2, 0, 2], [2, 2, 5]]}
    assert read_confusion(stored, 3).toarray().tolist() == dense
    assert most_confused(dense, ["a", "b", "c"]) == most_confused(stored, ["a", "b", "c"])


def test_confused_pairs_are_sorted_by_count_and_then_by_share() -> None:
    labels = np.repeat([0, 1, 2, 2], [3, 2, 2, 6])
    predicted = np.repeat([1, 1, 0, 2], [3, 2, 2, 6])
    labels, predicted = np.append(labels, [1, 1]), np.append(predicted, [2, 2])
    matrix = count_confusion(labels, predicted, 3)
    assert confused_pairs(matrix) == [(0, 1, 3, 1.0), (1, 2, 2, 0.5), (2, 0, 2, 0.25)]
    assert confused_pairs(matrix, limit=1) == [(0, 1, 3, 1.0)]
    assert confused_pairs(count_confusion([0, 1], [0, 1], 2)) == []


def test_metrics_do_not_depend_on_the_chunk_size(monkeypatch: pytest.MonkeyPatch) -> None:
    predictions = random_predictions(0, classes=30, count=401)
    whole = evaluate(predictions, fit_temperature(predictions))
    monkeypatch.setattr("mlops_img.evaluation.predictions.CHUNK_VALUES", 100)
    parts = evaluate(predictions, fit_temperature(predictions))
    for name in ("loss", "ece", "ece_calibrated", "temperature"):
        assert parts[name] == pytest.approx(whole[name], rel=1e-9)
    assert [row["path"] for row in parts["mistakes"]] == [row["path"] for row in whole["mistakes"]]


def test_fitted_temperature_minimizes_the_cross_entropy_in_float64() -> None:
    predictions = random_predictions(3, classes=40, count=20_000)
    logits, labels = predictions.logits.double(), predictions.labels

    def loss(log_temperature: float) -> float:
        return functional.cross_entropy(logits / np.exp(log_temperature), labels).item()

    wanted = np.exp(minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded").x)
    assert fit_temperature(predictions) == pytest.approx(wanted, rel=1e-6)


# Predictions


class Brightness(nn.Module):
    """A model whose logits depend on the mean of each image; records its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.seen: list[tuple[int, bool, torch.dtype]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append((len(images), self.training, images.dtype))
        mean = self.norm(images).mean((1, 2, 3))
        return torch.stack([mean, -mean], 1)


def batches(*sizes: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    ends = np.cumsum(sizes)
    return [
        Batch(
            torch.randint(0, 256, (size, 3, 4, 4), dtype=torch.uint8, generator=generator),
            torch.randint(0, 2, (size,), generator=generator),
            torch.arange(end - size, end),
            [],
        )
        for size, end in zip(sizes, ends.tolist(), strict=True)
    ]


SQUARE = Preprocessing(4, 1.0, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))


def test_predict_runs_each_image_once_in_evaluation_mode_and_does_not_change_the_model() -> None:
    model = Brightness()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    given = batches(5, 5, 1)
    predictions = collect_predictions(model, given, SQUARE, CPU_FP32)
    assert model.seen == [(5, False, torch.float32), (5, False, torch.float32), (1, False, torch.float32)]
    assert predictions.rows.tolist() == list(range(11))
    assert torch.equal(predictions.labels, torch.cat([batch.labels for batch in given]))
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    whole = SQUARE.normalize(torch.cat([batch.images for batch in given]))
    torch.testing.assert_close(predictions.logits, model.eval()(whole).detach())


def test_predict_keeps_a_model_in_evaluation_mode() -> None:
    model = Brightness().eval()
    collect_predictions(model, batches(2), SQUARE, CPU_FP32)
    assert not model.training


def test_logits_of_bf16_predictions_are_float32() -> None:
    precision = Precision(torch.device("cpu"), torch.bfloat16)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    predictions = collect_predictions(model, batches(4), SQUARE, precision)
    assert predictions.logits.dtype == torch.float32
    assert torch.equal(predictions.logits, predictions.logits.bfloat16().float())


def test_diverged_weights_are_a_user_error() -> None:
    layer = nn.Linear(48, 3)
    nn.init.constant_(layer.weight, float("nan"))
    with pytest.raises(UserError, match=r"logits for 4 of 4 images are not finite.*optim\.lr"):
        collect_predictions(nn.Sequential(nn.Flatten(), layer), batches(4), SQUARE, CPU_FP32)
