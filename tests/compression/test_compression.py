"""Parts of an export: calibration images, accuracy drop, choice of the candidate, drift statistics."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from mlops_img.bundle.folder import new_bundle
from mlops_img.bundle.manifest import Candidate, Quality
from mlops_img.bundle.programs import filled_up
from mlops_img.compression.candidates import BuiltCandidate, fastest
from mlops_img.compression.capture import example_images
from mlops_img.compression.contents import candidates_table
from mlops_img.compression.measure import cosine, run_over, top1_drop
from mlops_img.compression.onnx import check_onnx, write_onnx
from mlops_img.compression.quantize import calibration_rows, quantize
from mlops_img.data.batch import Batch
from mlops_img.errors import UserError
from mlops_img.evaluation.metrics import Predictions
from mlops_img.monitoring.reference import FILE, STATISTICS, image_statistics, write_reference
from tests.bundle.test_programs import plain


def predictions_of(predicted: list[int], labels: list[int]) -> Predictions:
    return Predictions(torch.eye(3)[predicted], torch.tensor(labels), torch.arange(len(labels)))


def test_calibration_images_are_balanced_and_deterministic() -> None:
    labels = np.array([0] * 50 + [1] * 5 + [2] * 20)
    rows = calibration_rows(labels, 30, seed=0)
    assert len(set(rows.tolist())) == 30
    assert np.bincount(labels[rows]).tolist() in ([12, 5, 13], [13, 5, 12])
    assert (rows == calibration_rows(labels, 30, seed=0)).all()
    assert (rows != calibration_rows(labels, 30, seed=1)).any()
    assert sorted(calibration_rows(labels, 999, seed=0)) == list(range(75))
    assert set(labels[calibration_rows(labels, 3, seed=0)]) == {0, 1, 2}


@pytest.mark.parametrize(("has", "bits"), [({"avx2"}, 7), ({"avx512_f"}, 7), ({"avx512_vnni"}, 8), ({"avx_vnni"}, 8)])
def test_weights_have_7_bits_without_vnni(monkeypatch: pytest.MonkeyPatch, has: set[str], bits: int) -> None:
    known = {"architecture": "x86_64", **dict.fromkeys(has, True)}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known)
    exportable = plain()
    program = quantize(exportable, [example_images(exportable.preprocessing, 4)], 4, dynamic=False)
    weights = [tensor for tensor in program.state_dict.values() if tensor.dtype == torch.int8]
    assert len(weights) == 2
    for weight in weights:
        assert 2 ** (bits - 2) < weight.short().abs().max() <= 2 ** (bits - 1)  # twice 255 * 64 fits 16 bits
    activations = {node.args[4] for node in program.graph.nodes if "quantize_per_tensor" in str(node.target)}
    assert activations == {255}


def test_drop_is_in_points_with_a_paired_interval() -> None:
    labels = [0, 1, 2, 0] * 250
    before = predictions_of(labels, labels)
    wrong = labels.copy()
    wrong[:20] = [(label + 1) % 3 for label in wrong[:20]]
    drop, (low, high) = top1_drop(before, predictions_of(wrong, labels), seed=0)
    assert drop == pytest.approx(2.0)
    # of a share of 2 % of 1,000 images: 1.96 standard errors are 0.87 points
    assert low == pytest.approx(1.13, abs=0.15)
    assert high == pytest.approx(2.87, abs=0.15)
    assert top1_drop(before, before, seed=0) == (0.0, (0.0, 0.0))
    assert top1_drop(predictions_of(wrong, labels), before, seed=0)[0] == pytest.approx(-2.0), "a gain is negative"


def test_cosine_is_the_mean_over_images() -> None:
    labels = [0, 1]
    assert cosine(predictions_of([0, 1], labels), predictions_of([0, 2], labels)) == pytest.approx(0.5)


def built(rate: float, drop: float | None) -> BuiltCandidate:
    return BuiltCandidate(Candidate(precision="int8-static", images_per_second=rate, top1_drop=drop))


def test_fastest_candidate_within_the_accuracy_limit_is_chosen() -> None:
    slow, good, bad, missing = built(10, 0.0), built(50, 0.5), built(90, 0.6), built(99, None)
    assert fastest([slow, good, bad, missing], max_drop=0.5) is good
    assert fastest([bad, missing], max_drop=0.5) is None


def test_table_shows_what_failed_and_why() -> None:
    quality = Quality(split="val", n=10, top1=0.9, top5=1.0, f1_macro=0.9, loss=0.3, ece=0.1)
    fine = Candidate(
        precision="fp32",
        quality=quality,
        top1_drop=0.0,
        top1_drop_interval=(0.0, 0.0),
        cosine=1.0,
        bytes=2_000_000,
        milliseconds=1.5,
        images_per_second=100.0,
        kept_fp32=["head"],
    )
    lines = candidates_table([fine, Candidate(precision="bf16", note="no bfloat16 here")]).splitlines()
    assert len({len(line) for line in lines}) == 1, "the columns stand below one another"
    assert "0.9000" in lines[2]
    assert "1 layer" in lines[2]
    assert "no bfloat16 here" in lines[3]


def test_single_image_is_padded_to_the_minimal_batch() -> None:
    seen: list[int] = []

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(len(images))
        return images.float().mean((2, 3)), images.float().amax((2, 3))

    images = torch.randint(256, (3, 3, 4, 4), dtype=torch.uint8)
    for count in (1, 3):
        logits, features = filled_up(run, 2)(images[:count])
        assert torch.equal(logits, run(images[:count])[0])
        assert torch.equal(features, run(images[:count])[1])
    assert seen[0] == 2
    assert 3 in seen


def test_batches_above_the_maximal_size_are_split() -> None:
    exportable = plain()
    images = torch.randint(256, (7, 3, 10, 10), dtype=torch.uint8)
    batches = [
        Batch(images[:5], torch.arange(5), torch.arange(5), []),
        Batch(images[5:], torch.arange(5, 7), torch.arange(5, 7), []),
    ]
    outputs = run_over(exportable, batches, max_batch=2)
    assert outputs.predictions.rows.tolist() == list(range(7))
    torch.testing.assert_close(outputs.predictions.logits, exportable(images)[0])
    assert outputs.features.shape == (7, 5)


def test_image_statistics_of_known_images() -> None:
    def of(*colors: tuple[int, int, int]) -> dict[str, float]:
        stripes = torch.tensor([colors[place % len(colors)] for place in range(8)], dtype=torch.uint8)
        image = stripes.T.view(1, 3, 1, 8).expand(1, 3, 6, 8)
        return dict(zip(STATISTICS, image_statistics(image)[0].tolist(), strict=True))

    white, black = (255, 255, 255), (0, 0, 0)
    assert of(white) == pytest.approx(
        {"brightness": 1, "contrast": 0, "saturation": 0, "sharpness": 0, "color_balance": 0}, abs=1e-6
    )
    stripes = of(white, black)
    assert stripes["brightness"] == pytest.approx(0.5)
    assert stripes["contrast"] == pytest.approx(0.5)
    assert stripes["sharpness"] == pytest.approx(0.5), "each column differs from the next, no row does"
    assert of((255, 0, 0))["saturation"] == 1
    assert of((255, 0, 0))["color_balance"] == 1
    assert of((0, 0, 255))["color_balance"] == -1
    assert image_statistics(torch.zeros(2, 3, 1, 1, dtype=torch.uint8)).isfinite().all()


def test_reference_keeps_a_sample_and_quantiles_of_all(tmp_path: Path) -> None:
    features, statistics = torch.arange(50.0).view(50, 1), torch.rand(50, len(STATISTICS))
    probabilities = torch.rand(50, 4).softmax(1)
    described = write_reference(tmp_path, features, statistics, probabilities, sample=10)
    assert (described.images, described.sample) == (50, 10)
    with safe_open(tmp_path / FILE, "pt") as file:
        assert file.get_tensor("features").shape == (10, 1)
        assert file.get_tensor("feature_quantiles")[:, 0].tolist()[::5] == [0.0, 24.5, 49.0]
        assert int(file.get_tensor("predicted_counts").sum()) == 50
        assert file.get_tensor("statistic_quantiles").shape == (len(described.quantiles), len(STATISTICS))


def test_onnx_file_computes_what_the_model_computes(tmp_path: Path) -> None:
    exportable = plain()
    write_onnx(exportable, tmp_path / "model.onnx", max_batch=8)
    images = torch.randint(256, (5, 3, 10, 10), dtype=torch.uint8)
    assert check_onnx(tmp_path / "model.onnx", exportable, [images, images[:1]]) > 0.9999
    with torch.no_grad():
        exportable.model.layers[3].weight.neg_()
    with pytest.raises(UserError, match="does not compute"):
        check_onnx(tmp_path / "model.onnx", exportable, [images])


def test_versions_increase_and_latest_points_to_the_newest(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in ("1", "2", "3"):
        with new_bundle(tmp_path, "net") as (folder, version):
            assert version == number
            (folder / "x").touch()
        assert (tmp_path / "latest").resolve() == tmp_path / f"net-{number}"
    with pytest.raises(FileNotFoundError), new_bundle(tmp_path, "net") as (folder, _):
        (folder / "missing").read_bytes()
    assert (tmp_path / "latest").resolve() == tmp_path / "net-3"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "net-1", "net-2", "net-3"]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
