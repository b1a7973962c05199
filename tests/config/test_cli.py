"""Mistakes on the command line and in YAML files: one clear line, exit code 2, nothing lost."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.commands import Outcome
from tests.helpers.paths import ROOT
from tests.helpers.shapes import write_shapes

Train = Callable[..., Outcome]
# The largest group is run first: by one process, while another makes the bundle that most of the other groups need.
pytestmark = pytest.mark.xdist_group("command_line")


def assert_user_error(outcome: Outcome, *messages: str) -> None:
    assert outcome.code == 2, outcome.err
    [line] = outcome.err.strip().splitlines()
    assert line.startswith("error: ")
    for text in messages:
        assert text in line


def own_option(tmp_path: Path, option: str, text: str) -> Path:
    """Write a YAML file of the user's own, and return the folder for --config-dir."""
    path = tmp_path / "mine" / f"{option}.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return tmp_path / "mine"


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["optim.lrr=1"], ["optim.lrr: there is no such key", "Did you mean 'lr'?"]),
        (["modle=resnet18"], ["modle: there is no such key", "Did you mean 'model'?"]),
        (["model=resnet81"], ["model=resnet81: there is no such option", "Did you mean 'resnet18'?"]),
        (["optim.lr=abc"], ["optim.lr=abc: it can be a number or auto."]),
        (["optim.lr=[1"], ["[1"]),
        (["+optim.lrr=1"], ["optim.lrr: there is no such key", "Did you mean 'lr'?"]),
        (["optim.lr=0"], ["optim.lr=0: it must be more than 0"]),
        (["optim.lr=-1e-3"], ["optim.lr=-0.001"]),
        (["optim.lr=nan"], ["optim.lr=nan"]),
        (["train.epochs=0"], ["train.epochs=0: there is nothing to do. Use 1 or more, or probe=linear"]),
        (["train.epochs=-1"], ["train.epochs=-1: it must be at least 0"]),
        (["train.batch_size=0"], ["train.batch_size=0"]),
        (["train.precision=bf61"], ["train.precision=bf61: it can be auto, fp32, bf16, fp16.", "'bf16'"]),
        (["train.precision=fp16", "train.device=cpu"], ["train.precision=fp16 needs CUDA"]),
        (["train.device=tpu9"], ["train.device=tpu9"]),
        (["augment.hflip=2"], ["augment.hflip=2.0: it must lie between 0 and 1"]),
        (["augment.scale=[1.0,0.5]"], ["augment.scale"]),
        (["schedule.warmup=soon"], ["schedule.warmup=soon", '"5 epochs"']),
        (["loss.class_weights={ten: 2.0}"], ["there is no class 'ten'"]),
        (["optim.name=adamm"], ["optim.name: timm has no optimizer 'adamm'", "'adam"]),
        (["model=timm", "model.name=resnet8"], ["timm has no model 'resnet8'", "Did you mean"]),
        (["model.kwargs={depth: 3}"], ["model test_resnet", "depth"]),
        (
            ["model.weights=/nowhere/w.safetensors"],
            ["model.weights: file /nowhere/w.safetensors does not exist"],
        ),
        (["data.std=[0,0,0]"], ["data.std"]),
        (["optimized_metric=val.top2"], ["optimized_metric=val.top2", "Did you mean 'val.top5'?"]),
    ],
)
def test_wrong_setting_is_one_line_and_exit_code_2(train: Train, arguments: list[str], messages: list[str]) -> None:
    if not any(argument.startswith(("data", "model", "modle")) for argument in arguments):
        arguments = ["model=resnet18", *arguments]
    assert_user_error(train(*arguments), *messages)


def test_wrong_setting_leaves_no_weights_behind(train: Train, tmp_path: Path) -> None:
    assert_user_error(train("optim.lr=0"))
    assert not list(tmp_path.rglob("*.pt"))
    assert not (tmp_path / "runs" / "latest").exists()


def test_misspelled_key_in_a_yaml_file_fails_as_on_the_command_line(train: Train, tmp_path: Path) -> None:
    folder = own_option(tmp_path, "experiment/fast", "# @package _global_\ntrain:\n  epoch: 3\n")
    outcome = train("--config-dir", str(folder), "experiment=fast")
    assert_user_error(outcome, "train.epoch: there is no such key", "Did you mean 'epochs'?", "experiment/fast")


def test_misspelled_key_in_a_group_file(train: Train, tmp_path: Path) -> None:
    folder = own_option(tmp_path, "optim/own", "name: sgd\nmomentun: 0.8\n")
    outcome = train("--config-dir", str(folder), "optim=own")
    assert_user_error(outcome, "momentun: there is no such key", "Did you mean 'momentum'?", "optim/own")


def test_broken_yaml_file_is_named(train: Train, tmp_path: Path) -> None:
    folder = own_option(tmp_path, "optim/own", "name: [sgd\n")
    assert_user_error(train("--config-dir", str(folder), "optim=own"), "own.yaml")


def test_data_folder_not_given(command: Train) -> None:
    assert_user_error(command("mlops_img.train", "data=folder"), "data.root is not set")


def test_missing_data_folder(train: Train) -> None:
    assert_user_error(train("data.root=/nowhere"), "data.root: folder /nowhere does not exist", "data.root=...")


def test_empty_data_folder(train: Train, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert_user_error(train("data.root=empty"), "data.root: folder empty is empty")


def test_class_without_images(train: Train, shapes: Path) -> None:
    (shapes / "triangle").mkdir()
    assert_user_error(train(f"data.root={shapes}"), "class 'triangle' has no images")


def test_single_class(train: Train, tmp_path: Path) -> None:
    write_shapes(tmp_path / "photos", 4)
    for name in ("square", "stripes"):
        for path in (tmp_path / "photos" / name).iterdir():
            path.unlink()
        (tmp_path / "photos" / name).rmdir()
    assert_user_error(train("data.root=photos"), "only the class 'circle'")


def test_batch_larger_than_the_data(train: Train) -> None:
    assert_user_error(train("train.batch_size=1000"), "train.batch_size=1000", "Use at most 48")


def test_weights_of_another_architecture(train: Train, tmp_path: Path) -> None:
    assert train("hydra.run.dir=runs/a").code == 0
    outcome = train("model.name=test_vit", "model.weights=runs/a/checkpoints/best.pt")
    assert_user_error(outcome, "model.weights: runs/a/checkpoints/best.pt holds the weights of another architecture")


def test_run_folder_that_is_a_file(train: Train, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    assert_user_error(train("hydra.run.dir=taken"), "taken")


def test_run_folder_that_cannot_be_made(train: Train, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    assert_user_error(train("hydra.run.dir=taken/a"), "taken/a", "hydra.run.dir=")


def test_run_folder_that_cannot_be_written(train: Train) -> None:
    assert_user_error(train("hydra.run.dir=/proc/runs"), "/proc/runs", "hydra.run.dir=")


def test_internal_error_keeps_its_traceback_and_exit_code_1(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr("mlops_img.training.automatic.set_up", fail)
    outcome = train()
    assert outcome.code == 1
    assert "Traceback" in outcome.err
    assert "boom" in outcome.err


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['train', '--help']\n"
        "from mlops_img.train import main\n"
        "main()\n"
        "heavy = {'torch', 'timm', 'matplotlib', 'pandas', 'wandb', 'torchvision', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert result.returncode == 0, result.stderr
    for text in ("python -m mlops_img.train", "model: ", "vit_tiny", "checkpoint_every_steps"):
        assert text in result.stdout


@pytest.mark.parametrize(
    ("argument", "meant"),
    [
        ("lr=0.1", "optim.lr"),
        ("+lr=0.1", "optim.lr"),
        ("model.lr=0.1", "optim.lr"),
        ("batch_size=32", "train.batch_size"),
        ("epoch=3", "train.epochs"),
        ("root=photos", "data.root"),
    ],
)
def test_key_of_another_node_is_suggested(train: Train, argument: str, meant: str) -> None:
    assert_user_error(train(argument), "there is no such key", f"'{meant}'")


def test_home_folder_is_expanded_in_a_yaml_file(
    command: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    text = "# @package _global_\nruns_dir: ~/runs\ndata: {root: ~/nothing}\n"
    folder = own_option(tmp_path, "experiment/mine", text)
    outcome = command("mlops_img.train", "--config-dir", str(folder), "experiment=mine", "data=folder")
    assert_user_error(outcome, f"folder {tmp_path}/home/nothing does not exist")
    assert (tmp_path / "home" / "runs").is_dir()
    assert not (tmp_path / "~").exists()


def test_batch_of_one_where_batch_norm_has_one_value(train: Train) -> None:
    assert_user_error(train("train.batch_size=1"), "train.batch_size=1: batch norm", "Use train.batch_size=2")


def test_windows_line_ends_in_yaml(train: Train, tmp_path: Path) -> None:
    folder = own_option(tmp_path, "optim/own", "name: sgd\r\nlr: 0\r\n")
    assert_user_error(train("--config-dir", str(folder), "optim=own"), "optim.lr=0: it must be more than 0")


@pytest.mark.parametrize("text", ["name: sgd\n\tlr: 0.1\n", "name: sgd\nlr: 0.1\nlr: 0.2\n"])
def test_yaml_with_a_tab_or_a_repeated_key(train: Train, tmp_path: Path, text: str) -> None:
    folder = own_option(tmp_path, "optim/own", text)
    assert_user_error(train("--config-dir", str(folder), "optim=own"), "invalid YAML", "own.yaml")


def test_custom_augmentation_on_the_command_line(train: Train) -> None:
    for argument in (
        "augment.custom={_target_: nowhere.Same}",
        "augment.custom._target_=nowhere.Same",
        "+augment.custom={_target_: nowhere.Same}",
        "+augment.custom._target_=nowhere.Same",
    ):
        assert_user_error(train(argument), "augment.custom: ", "nowhere")


def test_tracking_online_without_a_key_ends_before_the_training(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("tracking=wandb", "tracking.mode=online", "hydra.run.dir=runs/a")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert_user_error(train(*arguments), "WANDB_MODE=offline")
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    assert_user_error(train(*arguments), "tracking.mode=online: no W&B key", "WANDB_API_KEY")
    assert not (tmp_path / "runs/latest").exists()
