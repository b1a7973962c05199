"""Arguments before Hydra reads them: paths of any kind, home folders, and what cannot be read as one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from mlops_img.cli import conf_folder
from mlops_img.config.command_line import for_shell, given_values, parse, prepare_arguments, quoted, split_arguments
from mlops_img.config.schemas import COMMANDS, leaf_keys, register_schemas
from mlops_img.config.train import Config
from mlops_img.errors import UserError
from mlops_img.runs.folder import OVERRIDES_FILE
from mlops_img.runs.resume import resume_arguments
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.xdist_group("command_line")  # as in test_cli
PATHS = {"data.root", "model.weights", "runs_dir", "resume"}
NASTY = (
    "archive (1)",
    "josé",
    "фото",
    "it's",
    'a "b"',
    "a=b",
    "a,b",
    "[2024]",
    "{a}",
    "R&D #1",
    "100% !",
    "back\\slash",
    "back\\",
    "\\'",
    "$HOME `x`",
    "${data.root}",
    "two\nlines",
    "2024.10",
    "1e3",
    "true",
    "a;b|c<d>",
)


def value_of(override: str) -> object:
    """Return what the configuration gets from this override."""
    register_schemas()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return compose("audit", overrides=["data=folder", override]).data.root  # the smallest that has data


@pytest.mark.parametrize("name", [name for name in NASTY if name not in ("a,b", "[2024]", "{a}", "${data.root}")])
def test_plain_path_is_unchanged(name: str) -> None:
    [override] = prepare_arguments([f"data.root={name}"], PATHS)
    assert value_of(override) == name


@pytest.mark.parametrize("name", NASTY)
@pytest.mark.parametrize("quote", ["'", '"'])
def test_quoted_text_is_read_back_unchanged(name: str, quote: str) -> None:
    assert value_of(f"data.root={quoted(name, quote=quote)}") == name


@pytest.mark.parametrize("name", NASTY)
def test_form_for_the_shell_can_be_pasted(name: str) -> None:
    printed = for_shell("data.root", name)
    result = subprocess.run(["bash", "-c", f"printf %s {printed}"], capture_output=True, text=True, check=True)
    assert value_of(result.stdout) == name
    assert prepare_arguments([result.stdout], PATHS) == [result.stdout]


@pytest.mark.parametrize("name", ["a,b", "[2024]", "{a: 1}"])
def test_error_shows_the_quoted_form_of_a_path_that_hydra_reads_otherwise(name: str) -> None:
    with pytest.raises(UserError) as caught:
        prepare_arguments([f"data.root={name}"], PATHS)
    assert for_shell("data.root", name) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "override",
    [
        "data.root=photos",
        "data.root=a b",
        "data.root=${oc.env:HOME}",
        "data.root=null",
        "+model.kwargs={depth: 3}",
        "optim.lr=1e-3",
        "tracking.tags=[a,b]",
        "~data.root",
        "model@x=y",
    ],
)
def test_argument_that_hydra_can_read_is_unchanged(override: str) -> None:
    assert prepare_arguments([override], PATHS) == [override]


@pytest.mark.parametrize("override", ["data.root=a,b", "data.root='~/a','~/b'", "data.root=glob(*)", "optim.lr=1,2"])
def test_sweep_is_unchanged(override: str) -> None:
    assert prepare_arguments(["-m", override], PATHS) == ["-m", override]


@pytest.mark.parametrize("value", ["~/my photos", "'~/my photos'", '"~/my photos"'])
@pytest.mark.parametrize("key", ["data.root", "model.weights", "runs_dir", "resume", "hydra.run.dir"])
def test_tilde_is_expanded(monkeypatch: pytest.MonkeyPatch, key: str, value: str) -> None:
    monkeypatch.setenv("HOME", "/home/it's me")
    [override] = prepare_arguments([f"{key}={value}"], PATHS)
    assert parse(override).value() == "/home/it's me/my photos"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["optim.lr", "=0.1"], "optim.lr: this is not key=value"),
        (["=0.1"], "the key is missing"),
        (["optim.lr =0.1"], "without blanks around '='"),
        (["data.root="], "data.root=: the value is empty"),
        (["data.root=“my", "photos”"], "typographic quotes"),
        (["–config-dir", "mine"], "typographic quotes or dashes"),
        (["optim.lr=“1”"], "typographic"),
        (["-x"], "unrecognized arguments: -x"),
        (["--config-dir"], "expected one argument"),
        (["-m", "data.root=~/a,~/b"], "Quote each value of a sweep"),
        (["model.kwargs={a: it's}"], "Quote each text in it"),
        (["tracking.project=R&D"], "'tracking.project=\"R&D\"'"),
    ],
)
def test_unreadable_argument_is_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        prepare_arguments(arguments, PATHS)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_options_may_stand_anywhere() -> None:
    arguments = ["optim.lr=1", "--config-dir", "mine", "seed=2", "-m"]
    assert prepare_arguments(arguments, PATHS) == ["--config-dir", "mine", "-m", "optim.lr=1", "seed=2"]
    assert split_arguments(["-c", "job", "a=b"]) == (["-c", "job"], ["a=b"])


def test_values_are_those_that_hydra_reads() -> None:
    assert given_values(["runs_dir='my runs'", "+seed=1", "optim.lr=1,2"]) == {
        "runs_dir": "my runs",
        "seed": 1,
        "optim.lr": "1,2",
    }


def test_every_path_is_marked() -> None:
    marked = {
        key
        for name, schema in COMMANDS.items()
        for key, entry in leaf_keys(schema).items()
        if entry.metadata.get("path")
    }
    assert marked == {
        "data.root",
        "data.table",
        "model.weights",
        "resume",
        "runs_dir",
        "run",
        "bundle",
        "bundles",
        "input",
        "output",
        "distill.teacher",
    }
    assert "optim.lr" in leaf_keys(Config)
    assert "data.file_column" in leaf_keys(Config)


def test_run_in_a_folder_with_an_apostrophe_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "it's ${mine}" / "runs" / "latest"
    folder.mkdir(parents=True)
    (folder / OVERRIDES_FILE).write_text("options: []\noverrides: [seed=3]\n")
    monkeypatch.chdir(folder.parents[1])
    *rest, here = resume_arguments(["resume=auto"])
    assert rest == ["seed=3", "resume=auto"]
    register_schemas()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        composed = compose("train", overrides=[here], return_hydra_config=True)
    assert composed.hydra.run.dir == str(folder)


def test_notebook_backend_and_locale_do_not_matter(tmp_path: Path) -> None:
    code = (
        "from mlops_img.core.environment import prepare_process\n"
        "prepare_process()\n"
        "import os, sys, matplotlib\n"
        "assert matplotlib.get_backend().lower() == 'agg'\n"
        "print('3 × 4 – ó')\n"
        "open('josé', 'w').close()\n"
        "sys.exit(7)\n"
    )
    script = tmp_path / "command.py"
    script.write_text(code, encoding="utf-8")
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(ROOT),
        "MPLBACKEND": "module://not_installed.backend",
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
    }
    result = subprocess.run([sys.executable, script], capture_output=True, cwd=tmp_path, env=environment, check=False)
    assert result.returncode == 7, result.stderr
    assert result.stdout.decode() == "3 × 4 – ó\n"
    assert (tmp_path / "josé").exists()
