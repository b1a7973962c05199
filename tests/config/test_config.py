"""What a command line composes to."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import MISSING, DictConfig, OmegaConf

from mlops_img.cli import conf_folder
from mlops_img.config.data import FolderConfig
from mlops_img.config.rules import (
    Rule,
    ascending_pair,
    at_least,
    between,
    each_more_than,
    folder_name,
    more_than,
    not_empty,
    one_from,
    one_of,
    per_channel,
    validate,
)
from mlops_img.config.schemas import COMMANDS, leaf_keys, register_schemas
from mlops_img.config.train import Config, TrainConfig
from mlops_img.errors import UserError
from mlops_img.runs.folder import Origin, RunFolder, load_config
from tests.helpers.paths import CONF


@pytest.fixture(autouse=True)
def hydra() -> Iterator[None]:
    register_schemas()
    OmegaConf.register_new_resolver("run_name", lambda: "now", replace=True)
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        yield


def composed(*overrides: str) -> DictConfig:
    return compose("train", overrides=list(overrides))


@pytest.mark.parametrize(
    ("overrides", "crop"),
    [
        (["data=mnist5k"], "none"),
        (["data=cifar10"], "pad"),
        (["data=folder", "data.root=x"], "random_resized"),
        (["data=cifar10", "augment=none"], "none"),
        (["experiment=cifar10", "data=folder", "data.root=x"], "pad"),
        (["experiment=cifar10", "debug=overfit"], "none"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_augmentation_suits_the_data_unless_another_is_asked_for(overrides: list[str], crop: str) -> None:
    assert composed(*overrides).augment.crop == crop


@pytest.mark.parametrize("group", ["model", "data", "optim", "schedule", "augment", "loss", "tracking", "debug"])
def test_every_option_of_every_group_composes_and_is_valid(group: str) -> None:
    options = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    assert options
    given = {
        "model": ["model.name=resnet18"],
        "optim": ["optim.name=adam"],
        "data": ["data.root=x"],
    }
    for option in options:
        overrides = [f"{group}={option}", *given.get(group, [])]
        if (group, option) == ("model", "custom"):
            overrides.append("model._target_=a.b")
        if (group, option) == ("data", "torchvision"):
            overrides.append("data.dataset=CIFAR10")
        if (group, option) == ("data", "custom"):
            overrides.append("data._target_=a.b")
        config: Any = OmegaConf.to_object(composed(*overrides))
        validate(config)


@pytest.mark.parametrize("command", COMMANDS)
def test_defaults_of_every_command_keep_their_rules(command: str) -> None:
    for key, entry in leaf_keys(COMMANDS[command]).items():
        default = entry.default if entry.default_factory is dataclasses.MISSING else entry.default_factory()
        if default not in (None, MISSING):
            for rule in entry.metadata.get("rules", ()):
                rule(key, default)


@pytest.mark.parametrize(
    ("rule", "allowed", "refused", "message"),
    [
        (one_of("a", "bc"), "bc", "bd", "x=bd: it can be a, bc. Did you mean 'bc'?"),
        (one_from("mlops_img.config.schemas:COMMANDS", "all"), "all", "trian", "it can be all, train, evaluate"),
        (one_from("mlops_img.config.schemas:COMMANDS", prefix="a."), "a.store", "store", "Did you mean 'a.store'?"),
        (at_least(2), 2, 1, "x=1: it must be at least 2"),
        (more_than(2), 3, 2, "x=2: it must be more than 2"),
        (between(0, 0.5), 0.5, 0.6, "x=0.6: it must lie between 0 and 0.5"),
        (ascending_pair(), [1, 1], [2, 1], "it takes two numbers above 0, the smaller first"),
        (ascending_pair(), [1, 2], [1], "it takes two numbers above 0"),
        (per_channel(), [0, 0, 0], [0], "one number for each of red, green and blue"),
        (each_more_than(0), [1, 2], [1, 0], "x=[1, 0]: each must be more than 0"),
        (not_empty("color"), [1], [], "x=[]: name at least one color"),
        (folder_name(), "a-1.b", "../a", "it names a folder"),
    ],
)
def test_rule(rule: Rule, allowed: Any, refused: Any, message: str) -> None:
    rule("x", allowed)
    with pytest.raises(UserError) as refusal:
        rule("x", refused)
    assert message in str(refusal.value)


def test_value_of_none_breaks_no_rule() -> None:
    validate(Config(data=FolderConfig(root="x"), train=TrainConfig(max_steps=None)))


def test_config_of_a_run_reads_back_as_it_was(tmp_path: Path) -> None:
    config: Any = OmegaConf.to_object(composed("data=csv", "data.root=x", "model.kwargs={depth: 3}", "optim.lr=1e-2"))
    folder = RunFolder(tmp_path)
    folder.write_config(config, Origin([], ["optim.lr=1e-2"]))
    again = load_config(folder.config)
    assert again == config
    assert isinstance(again, Config)
    assert dataclasses.asdict(again)["data"]["table"] == "labels.csv"


def test_file_that_is_not_a_configuration_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("a: 1\n")
    with pytest.raises(UserError, match="is not the configuration of a run"):
        load_config(tmp_path / "config.yaml")


def test_cuda_graphs_take_one_pass_a_step() -> None:
    validate(TrainConfig(compile=True, compile_mode="reduce-overhead"))
    validate(TrainConfig(compile=True, accumulate=2))
    with pytest.raises(UserError, match=r"train.compile_mode=reduce-overhead .* cannot sum train.accumulate=2 passes"):
        validate(TrainConfig(compile=True, compile_mode="reduce-overhead", accumulate=2), "train.")
