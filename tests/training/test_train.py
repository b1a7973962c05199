"""A training from the command line to its report, and going on with it."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mlops_img.runs.checkpoint import Checkpoints, TrainState, newest_valid
from tests.helpers.commands import Outcome
from tests.helpers.shapes import write_shapes

Train = Callable[..., Outcome]
pytestmark = pytest.mark.usefixtures("no_pictures")


def read_metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_run_folder_is_complete(train: Train, tmp_path: Path) -> None:
    outcome = train("hydra.run.dir=runs/a")
    assert outcome.code == 0, outcome.err
    run = tmp_path / "runs" / "a"
    for name in (
        "config.yaml",
        "provenance.json",
        "metrics.jsonl",
        "summary.json",
        "report/index.html",
        "report/confusion.png",
        "checkpoints/best.pt",
        "evaluation/test.json",
        "evaluation/val.json",
        ".hydra/overrides.yaml",
    ):
        assert (run / name).is_file(), name
    assert (tmp_path / "runs" / "latest").resolve() == run
    summary = json.loads((run / "summary.json").read_text())
    for key in ("test.top1", "test.f1_macro", "test.loss", "wall_seconds", "images_per_second"):
        assert isinstance(summary[key], float), key
    provenance = json.loads((run / "provenance.json").read_text())
    assert provenance["packages"]["torch"] == torch.__version__.split("+")[0]
    assert len(provenance["data"]["fingerprint"]) == 32


@pytest.mark.parametrize(
    "settings",
    [
        ["model.in_chans=1"],
        ["train.accumulate=2", "train.ema_decay=0.9"],
        ["loss=bce", "augment=strong", "loss.label_smoothing=0.1"],
        ["loss.class_weights={circle: 2.0, stripes: 0.5}", "augment=digits"],
        ["loss.class_weights=balanced", "augment=light", "train.channels_last=false"],
        ["optim=muon", "schedule=one_cycle", "data.workers=1"],
        ["optim=sgd", "schedule=step", "model.freeze=backbone"],
        ["optim=lamb", "schedule=constant", "train.precision=fp32", "train.grad_clip=null"],
        ["optim.layer_decay=0.7", "model.name=test_vit", "schedule.warmup=3 steps"],
    ],
    ids=lambda settings: " ".join(settings),
)
def test_settings_work_together(train: Train, tmp_path: Path, settings: list[str]) -> None:
    outcome = train(*settings, "train.epochs=1", "hydra.run.dir=runs/a")
    assert outcome.code == 0, outcome.err
    lines = read_metrics(tmp_path / "runs/a")
    assert all(line["loss"] > 0 for line in lines)


def test_small_net_learns_shapes(train: Train, tmp_path: Path) -> None:
    assert train("train.epochs=15", "optim.lr=3e-3", "hydra.run.dir=runs/a").code == 0
    losses = [line["loss"] for line in read_metrics(tmp_path / "runs/a") if line["split"] == "train"]
    assert losses[-1] < 0.5 * losses[0]
    assert json.loads((tmp_path / "runs/a/summary.json").read_text())["val.top1"] >= 5 / 6


def test_run_can_be_repeated_from_its_folder(train: Train, command: Train, tmp_path: Path) -> None:
    assert train("optim.lr=0.002", "hydra.run.dir=runs/a").code == 0
    outcome = command("mlops_img.train", "--config-dir", "runs/a/repeat", "experiment=repeat", "hydra.run.dir=runs/b")
    assert outcome.code == 0, outcome.err
    one, other = (torch.load(tmp_path / f"runs/{name}/checkpoints/best.pt", weights_only=True) for name in "ab")
    assert all(torch.equal(one["model"][name], other["model"][name]) for name in one["model"])


def test_bad_image_stops_the_run_and_is_named(train: Train, shapes: Path) -> None:
    (shapes / "circle" / "000.jpg").write_bytes(b"\xff\xd8\xff damaged")
    outcome = train(f"data.root={shapes}")
    assert outcome.code == 2
    assert f"{shapes}/circle/000.jpg cannot be decoded" in outcome.err
    assert "data.on_bad_image=skip" in outcome.err


def test_skipped_images_are_counted_and_listed(train: Train, tmp_path: Path) -> None:
    root = tmp_path / "photos"
    for split, count in (("train", 8), ("val", 3), ("test", 3)):
        write_shapes(root / split, count, seed=len(split))
    damaged = [root / "train" / "circle" / "000.jpg", root / "test" / "square" / "001.jpg"]
    for length, path in zip((300, 400), damaged, strict=True):
        path.write_bytes(path.read_bytes()[:length])
    outcome = train("data.root=photos", "data.on_bad_image=skip", "train.epochs=3", "hydra.run.dir=runs/a")
    assert outcome.code == 0, outcome.err
    run = tmp_path / "runs" / "a"
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["skipped_train_images"], summary["skipped_test_images"], summary["test.n"]) == (1, 1, 8)
    assert list(json.loads((run / "skipped.json").read_text())) == ["photos/train/circle/000.jpg"]
    [skipped] = json.loads((run / "evaluation" / "test.json").read_text())["skipped"]
    assert skipped["path"] == "photos/test/square/001.jpg"
    assert outcome.out.count("left out photos/train/circle/000.jpg") == 1, "one warning for each, not for each epoch"


def test_image_in_two_splits_is_refused(train: Train, tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_shapes(tmp_path / "photos" / split, 9, seed=len(split))
    copy = (tmp_path / "photos/train/circle/003.jpg").read_bytes()
    (tmp_path / "photos/test/circle/copy.jpg").write_bytes(copy)
    outcome = train("data.root=photos")
    assert outcome.code == 2
    for text in ("the same image is in two splits", "circle/003.jpg", "circle/copy.jpg", "data.allow_leakage=true"):
        assert text in outcome.err
    assert train("data.root=photos", "data.allow_leakage=true", "train.max_steps=1").code == 0


def test_class_missing_from_a_split_is_refused(train: Train, tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        write_shapes(tmp_path / "photos" / split, 9, seed=len(split))
    (tmp_path / "photos/val/circle").rename(tmp_path / "elsewhere")
    outcome = train("data.root=photos")
    assert outcome.code == 2
    assert "class 'circle' has no folder in photos/val" in outcome.err


def test_non_finite_loss_stops_and_keeps_the_last_good_checkpoint(train: Train, tmp_path: Path) -> None:
    settings = ("hydra.run.dir=runs/a", "train.precision=fp32", "train.grad_clip=null")
    outcome = train(*settings, "train.checkpoint_every_steps=1", "optim=sgd", "optim.lr=1e30", "schedule=constant")
    assert outcome.code == 2
    assert "is not finite (images " in outcome.err
    run = tmp_path / "runs" / "a"
    listed = json.loads((run / "non_finite.json").read_text())
    assert f"the loss of step {listed['step']} is not finite" in outcome.err
    assert len(listed["images"]) == 8
    newest = sorted((run / "checkpoints").glob("step-*.pt"))[-1]
    content = torch.load(newest, weights_only=True)
    assert content["step"] == listed["step"] - 1
    assert all(torch.isfinite(tensor.float()).all() for tensor in content["model"].values())


def test_full_disk_while_checkpointing_keeps_the_checkpoint_before(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = Checkpoints.save
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def save_on_a_full_disk_at_step_3(self: Checkpoints, state: TrainState) -> None:
        if state.step == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
        save(self, state)

    monkeypatch.setattr(Checkpoints, "save", save_on_a_full_disk_at_step_3)
    try:
        outcome = train("train.checkpoint_every_steps=1", "hydra.run.dir=runs/a")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert outcome.code == 2, outcome.err
    [line] = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert "could not be written: File too large" in line
    assert "step-00000002.pt is intact" in line
    folder = tmp_path / "runs/a/checkpoints"
    assert newest_valid(folder)["step"] == 2  # type: ignore[index]
    assert not [path for path in folder.iterdir() if "part" in path.name]
