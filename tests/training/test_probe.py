"""The linear probe: its classifier, its cache of features, and a run that consists of it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from mlops_img.errors import EXIT_STOPPED, UserError
from mlops_img.models.small_cnn import small_cnn
from mlops_img.training import probe as probe_module
from mlops_img.training.features import FeatureCache, backbone_digest, check_logits, linear_classifier
from mlops_img.training.hooks import RunHooks
from mlops_img.training.probe import Examples, fit_probe
from tests.helpers.commands import TINY, Outcome

Command = Callable[..., Outcome]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the features, below a cache folder of the test's own."""
    monkeypatch.setattr("mlops_img.training.features.cache_folder", lambda: tmp_path / "cache" / "contents")
    return tmp_path / "cache" / "features"


@pytest.fixture
def probe(command: Command, trained: Path, cache: Path) -> Command:
    """Run a probe on top of the shared run's weights."""

    def call(*arguments: str) -> Outcome:
        given = {argument.split("=")[0] for argument in arguments}
        defaults = [
            setting
            for setting in (*TINY, f"data.root={trained / 'photos'}", f"model.weights={trained / 'run'}")
            if setting.split("=")[0] not in given | {"train.epochs"}
        ]
        epochs = [] if "train.epochs" in given else ["train.epochs=0"]
        return command("mlops_img.train", "probe=linear", *defaults, *epochs, *arguments)

    return call


def examples(n: int, classes: int = 3, d: int = 6, seed: int = 0) -> Examples:
    random = np.random.default_rng(seed)
    labels = random.integers(classes, size=n)
    centers = np.random.default_rng(1).normal(size=(classes, d))
    features = (centers[labels] + random.normal(size=(n, d))) * np.arange(1, d + 1) + 5
    return Examples(torch.from_numpy(features).float(), torch.from_numpy(labels))


def summary(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "summary.json").read_text()))


@pytest.mark.parametrize("l2", [1e-3, 1e-1])
def test_classifier_is_that_of_scikit_learn(l2: float) -> None:
    train = examples(200)
    fitted = fit_probe(train, examples(100, seed=2), 3, [l2])
    features = train.features.double().numpy()
    mean, std = features.mean(0), features.std(0)
    reference = LogisticRegression(C=1 / (len(features) * l2), tol=1e-10, max_iter=5000)
    reference.fit((features - mean) / std, train.labels.numpy())
    expected = torch.from_numpy(reference.predict_proba((features - mean) / std)).float()
    logits = train.features @ fitted.weight.T + fitted.bias
    torch.testing.assert_close(logits.softmax(1), expected, atol=2e-3, rtol=0)


def test_penalty_of_lowest_validation_loss_is_kept() -> None:
    train, val = examples(30, d=20), examples(300, d=20, seed=2)
    penalties = [1e-5, 1e-3, 1e-1, 10.0]
    alone = {l2: fit_probe(train, val, 3, [l2]).val_loss for l2 in penalties}
    best = fit_probe(train, val, 3, penalties)
    assert best.l2 == min(alone, key=lambda l2: alone[l2])
    assert best.val_loss == pytest.approx(min(alone.values()), abs=1e-3)


def test_feature_that_is_always_the_same_gets_no_weight() -> None:
    train = examples(50)
    train.features[:, 2] = 7.0
    fitted = fit_probe(train, train, 3, [1e-2])
    assert fitted.weight[:, 2].eq(0).all()
    assert math.isfinite(fitted.val_loss)


def test_run_of_a_probe_is_complete_and_can_be_evaluated_and_exported(
    probe: Command, command: Command, tmp_path: Path
) -> None:
    outcome = probe("hydra.run.dir=runs/a")
    assert outcome.code == 0, outcome.err
    figures = summary(tmp_path / "runs/a")
    assert figures["steps"] == 0
    assert figures["test.top1"] > 0.9
    [line] = [json.loads(line) for line in (tmp_path / "runs/a/metrics.jsonl").read_text().splitlines()]
    assert line["split"] == "val"
    assert line["top1"] == figures["val.top1"]
    assert (tmp_path / "runs/a/report/index.html").is_file()
    evaluated = command("mlops_img.evaluate", "run=runs/a")
    assert evaluated.code == 0, evaluated.err
    assert f"{figures['test.top1']:.4f}" in evaluated.out
    exported = command("mlops_img.export", "run=runs/a", "quantize=none", "export.compile=false")
    assert exported.code == 0, exported.err


def test_second_run_takes_the_features_from_the_cache(
    probe: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert probe("hydra.run.dir=runs/a").code == 0
    with monkeypatch.context() as patch:
        patch.setattr(probe_module, "compute_features", lambda *given, **named: pytest.fail("features were computed"))
        outcome = probe("hydra.run.dir=runs/b")
    assert outcome.code == 0, outcome.err
    one, other = (
        torch.load(tmp_path / "runs" / name / "checkpoints" / "best.pt", weights_only=True)["model"] for name in "ab"
    )
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_only_new_images_are_computed(
    probe: Command, trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert probe("hydra.run.dir=runs/a").code == 0
    outcome = probe("hydra.run.dir=runs/b", "data.val_fraction=0.2")
    assert outcome.code == 0, outcome.err
    # Images of both splits of the first run are in the second one's training split.
    assert "are in the cache" not in outcome.err


def test_augmented_views_are_kept_apart_from_the_evaluation_crop(probe: Command, cache: Path) -> None:
    outcome = probe("probe.augmented_views=2", "augment=light", "hydra.run.dir=runs/a")
    assert outcome.code == 0, outcome.err
    assert len(list(cache.glob("*.safetensors"))) == 3


@pytest.mark.parametrize("damage", ["empty", "cut", "text"])
def test_damaged_cache_is_computed_again(probe: Command, cache: Path, damage: str) -> None:
    assert probe("hydra.run.dir=runs/a").code == 0
    [file] = cache.glob("*.safetensors")
    content = file.read_bytes()
    file.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "text": b"no tensors"}[damage])
    outcome = probe("hydra.run.dir=runs/b")
    assert outcome.code == 0, outcome.err
    assert file.read_bytes() == content


def test_cache_that_cannot_be_written_is_a_warning(probe: Command, cache: Path, tmp_path: Path) -> None:
    cache.parent.mkdir()
    cache.write_text("a file in the way")
    outcome = probe("hydra.run.dir=runs/a")
    assert outcome.code == 0, outcome.err
    assert "the features are not kept" in (tmp_path / "runs/a/train.log").read_text()


def test_cache_depends_on_the_backbone_and_not_on_the_classifier(cache: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    before = backbone_digest(model)
    nn.init.ones_(model[1].weight)
    assert backbone_digest(model) == before
    nn.init.ones_(model[0].weight)
    assert backbone_digest(model) != before
    assert FeatureCache(backbone=before).path != FeatureCache(backbone="other").path


def test_two_processes_that_add_at_once_lose_nothing_that_was_there(cache: Path) -> None:
    digests = np.frombuffer(bytes(range(48)), "V16")
    features = np.arange(6, dtype=np.float16).reshape(3, 2)
    one, other = FeatureCache(key=1), FeatureCache(key=1)
    one.load(), other.load()
    one.add(digests[:2], features[:2])
    other.add(digests[1:], features[1:])
    known, kept = FeatureCache(key=1).load()
    assert {digest.tobytes(): row.tolist() for digest, row in zip(known, kept, strict=True)} == {
        digest.tobytes(): row.tolist() for digest, row in zip(digests, features, strict=True)
    }


def test_training_goes_on_from_the_probe_and_resumes_exactly(
    probe: Command, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("train.epochs=2", "train.ema_decay=0.9", "augment=light")
    assert probe(*settings, "hydra.run.dir=runs/whole").code == 0
    with monkeypatch.context() as patch:
        patch.setattr(RunHooks, "stop_requested", lambda hooks: hooks.setup.state.step >= 3)
        assert probe(*settings, "hydra.run.dir=runs/cut").code == EXIT_STOPPED
    assert probe(*settings, "hydra.run.dir=runs/cut", "resume=auto").code == 0
    lines = [
        [json.loads(line) for line in (tmp_path / "runs" / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "cut")
    ]
    values = [[(line["step"], line["loss"]) for line in run if line["split"] == "val"] for run in lines]
    assert values[0] == values[1]
    assert values[0][0][0] == 0  # the probe's own validation


def test_run_that_only_probes_can_be_resumed(probe: Command, tmp_path: Path) -> None:
    assert probe("hydra.run.dir=runs/a").code == 0
    before = summary(tmp_path / "runs/a")
    assert probe("hydra.run.dir=runs/a", "resume=auto").code == 0
    again = summary(tmp_path / "runs/a")
    assert again["test.loss"] == before["test.loss"]


def test_image_that_cannot_be_decoded_is_named_or_skipped(probe: Command, trained: Path, tmp_path: Path) -> None:
    import shutil

    photos = shutil.copytree(trained / "photos", tmp_path / "photos")
    (photos / "circle" / "000.jpg").write_text("no image")
    outcome = probe(f"data.root={photos}", "hydra.run.dir=runs/a")
    assert outcome.code == 2
    assert "circle/000.jpg cannot be decoded" in outcome.err
    outcome = probe(f"data.root={photos}", "data.on_bad_image=skip", "hydra.run.dir=runs/b")
    assert outcome.code == 0, outcome.err


def test_classifier_that_is_not_linear_is_a_user_error() -> None:
    with pytest.raises(UserError, match="the classifier of this model is not one linear layer"):
        linear_classifier(nn.Sequential(nn.Conv2d(3, 2, 1)))


def test_model_that_changes_what_its_classifier_returns_is_a_user_error() -> None:
    images = torch.randn(2, 3, 16, 16)
    plain, scaled = (small_cnn(num_classes=2, widths=[8], whiten=False, logit_scale=scale) for scale in (1.0, 0.5))
    check_logits(plain, images)
    assert plain.training
    with pytest.raises(UserError, match="this model changes what its classifier returns"):
        check_logits(scaled, images)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.weights=none"], "probe=linear: features of random weights are useless"),
        (["probe=none"], "train.epochs=0: there is nothing to do"),
        (["probe.l2=[]"], "probe.l2=[]: name at least one penalty"),
        (["probe.l2=[0]"], "probe.l2=[0.0]: each must be more than 0"),
        (["probe=liner"], "probe=liner: there is no such option; there are linear, none"),
        (
            [
                "model.weights=none",
                "model._target_=mlops_img.models.small_cnn.SmallCNN",
                "model.kwargs={widths: [8], logit_scale: 0.5}",
            ],
            "probe=linear: this model changes what its classifier returns",
        ),
    ],
)
def test_wrong_setting_is_one_line_and_exit_code_2(probe: Command, arguments: list[str], message: str) -> None:
    outcome = probe(*arguments)
    assert outcome.code == 2
    assert message in outcome.err
    assert len(re.findall("error:", outcome.err)) == 1
