"""A user error at the start of the service is one line, with exit code 2."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT
from tests.helpers.service_process import free_port, python_path


def serve(folder: Path, port: int | None = None, **settings: object) -> subprocess.CompletedProcess[str]:
    """Run `bentoml serve` until it ends, which is soon if something is wrong; by default on a free port."""
    command = [sys.executable, "-m", "bentoml", "serve", "mlops_img.service:ImageClassifier"]
    environment = {f"MLOPS_IMG_{name.upper()}": str(value) for name, value in settings.items()}
    return subprocess.run(
        [*command, "--port", str(free_port() if port is None else port), "--host", "127.0.0.1"],
        cwd=ROOT, env=os.environ | environment | {"BENTOML_HOME": str(folder), "PYTHONPATH": python_path(folder)},
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip


@pytest.fixture
def damaged(trained: Path, tmp_path: Path) -> Path:
    """A bundle with a truncated sample image."""
    bundle = shutil.copytree(trained / "bundles" / "latest", tmp_path / "damaged")
    sample = next((bundle / "samples").iterdir())
    sample.write_bytes(sample.read_bytes()[:10])
    return bundle


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bundle": "{folder}/nothing"}, "nothing is not a bundle: it has no manifest.json"),
        ({"bundle": "{folder}/damaged"}, "has 10 bytes instead of"),
        ({"bundle": "http://127.0.0.1/bundle"}, "name a folder, gs://bucket/folder or bentoml:name:version"),
        ({"toknes": "a"}, "MLOPS_IMG_TOKNES: there is no such setting. Did you mean 'MLOPS_IMG_TOKENS'?"),
        ({"workers": "zero"}, "MLOPS_IMG_WORKERS=zero: it must be a whole number, 1 to 1024"),
        ({"tokens_file": "{folder}/empty"}, "has no token"),
        ({"tokens_file": "{folder}/none"}, "cannot be read: No such file"),
        ({"device": "cuda:7"}, "MLOPS_IMG_DEVICE=cuda:7: this machine has"),
        ({"device": "gpu"}, "MLOPS_IMG_DEVICE=gpu: no such device. Use auto, cpu, cuda or cuda:<number>"),
        ({"tokens": ","}, "MLOPS_IMG_TOKENS is empty"),
        ({"queue": "4"}, "MLOPS_IMG_MAX_IMAGES=32 is more than MLOPS_IMG_QUEUE=4"),
        ({"plugins": "no_such_module"}, "MLOPS_IMG_PLUGINS=no_such_module: this module cannot be imported: ModuleNotF"),
        ({"plugins": "json,broken_plugin"}, "broken_plugin: this module cannot be imported: ZeroDivision"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_user_error_at_the_start_is_one_line(
    trained: Path, damaged: Path, tmp_path: Path, settings: dict[str, str], message: str
) -> None:
    (tmp_path / "empty").write_text("# no token\n\n")
    (tmp_path / "broken_plugin.py").write_text("1 / 0\n")
    given = {name: value.format(folder=tmp_path) for name, value in settings.items()}
    ended = serve(tmp_path, **{"bundle": trained / "bundles" / "latest", **given})
    assert ended.returncode == 2
    assert message in ended.stderr
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1
    assert ended.stdout == ""
