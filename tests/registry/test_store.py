"""Bundles in BentoML's model store."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import bentoml
import pytest
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml._internal.models import ModelStore

from mlops_img.bundle.folder import read_bundle
from mlops_img.errors import UserError
from mlops_img.registry.locate import local_bundle
from tests.helpers.commands import Outcome
from tests.helpers.paths import ROOT


@pytest.fixture(autouse=True)
def models(tmp_path: Path) -> Iterator[Path]:
    """The folder of a store of the test's own; BentoML looks at BENTOML_HOME once in a process."""
    folder = tmp_path / "bentoml" / "models"
    folder.mkdir(parents=True)
    BentoMLContainer.model_store.set(ModelStore(folder))
    yield folder
    BentoMLContainer.model_store.reset()


@pytest.fixture
def store(command: Callable[..., Outcome], portable: Path) -> Callable[..., Outcome]:
    return lambda bundle=portable: command("mlops_img.store", f"bundle={bundle}")


Store = Callable[..., Outcome]


def test_stored_bundle_is_found_by_tag_and_as_latest(store: Store, portable: Path) -> None:
    outcome = store()
    assert outcome.code == 0, outcome.err
    tag = outcome.out.strip()
    assert tag.startswith("mlops_img:")
    for location in (f"bentoml:{tag}", "bentoml:mlops_img:latest", "bentoml:mlops_img"):
        assert read_bundle(local_bundle(location)) == read_bundle(portable)


def test_stored_model_has_labels(store: Store) -> None:
    labels = bentoml.models.get(store().out.strip()).info.labels
    assert labels == {"name": "test_resnet", "version": "1", "precision": "int8-static"}


def test_bundle_is_stored_once(store: Store, portable: Path, models: Path, tmp_path: Path) -> None:
    first = store().out
    shutil.copytree(portable, tmp_path / "copy")
    assert store().out == store(tmp_path / "copy").out == first
    assert len(bentoml.models.list("mlops_img")) == 1


def test_another_bundle_gets_a_new_tag_and_is_latest(store: Store, portable: Path, tmp_path: Path) -> None:
    first = store().out.strip()
    other = tmp_path / "other"
    shutil.copytree(portable, other)
    manifest = other / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"version": "1"', '"version": "2"'))
    second = store(other).out.strip()
    assert second != first
    assert read_bundle(local_bundle("bentoml:mlops_img:latest")).version == "2"
    assert read_bundle(local_bundle(f"bentoml:{first}")).version == "1"


def test_damaged_stored_bundle_is_a_user_error_and_can_be_stored_again(store: Store, portable: Path) -> None:
    damaged = store().out.strip()
    (local_bundle(f"bentoml:{damaged}") / "weights.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"weights\.safetensors has 0 bytes instead of"):
        local_bundle(f"bentoml:{damaged}")
    assert store().out.strip() != damaged
    assert read_bundle(local_bundle("bentoml:mlops_img:latest")) == read_bundle(portable)


def test_damaged_bundle_is_not_stored(store: Store, portable: Path, models: Path, tmp_path: Path) -> None:
    shutil.copytree(portable, tmp_path / "damaged")
    (tmp_path / "damaged" / "weights.safetensors").unlink()
    outcome = store(tmp_path / "damaged")
    assert outcome.code == 2
    assert "weights.safetensors is missing" in outcome.err
    assert store("nowhere").err.startswith("error: nowhere is not a bundle")
    assert not list(models.iterdir())


def test_unusable_store_is_one_line(store: Store, models: Path) -> None:
    (models / "mlops_img" / "half").mkdir(parents=True)
    outcome = store()
    assert outcome.code == 2
    [line] = outcome.err.strip().splitlines()
    assert line.startswith("error: BentoML's model store: ")
    assert "BENTOML_HOME=" in line


@pytest.mark.parametrize("tag", ["mlops_img:latest", "mlops_img:none", "mlops_img:", "no tag", "../..:x", ""])
def test_missing_model_is_one_line(tag: str) -> None:
    with pytest.raises(UserError, match=r"has no such model.*python -m mlops_img\.store") as raised:
        local_bundle(f"bentoml:{tag}")
    assert f"bundle=bentoml:{tag}:" in str(raised.value)


def test_foreign_model_is_a_user_error() -> None:
    with bentoml.models.create("foreign") as model:
        Path(model.path_of("weights.bin")).write_bytes(b"x")
    with pytest.raises(UserError, match="is not a bundle"):
        local_bundle("bentoml:foreign:latest")


def test_command_uses_bentoml_home_and_sends_no_usage_data(portable: Path, tmp_path: Path) -> None:
    # With this, BentoML prints its usage report instead of sending it.
    environment = {name: value for name, value in os.environ.items() if name != "BENTOML_DO_NOT_TRACK"}
    environment |= {"BENTOML_HOME": str(tmp_path / "home"), "__BENTOML_DEBUG_USAGE": "True"}
    done = subprocess.run(
        [sys.executable, "-m", "mlops_img.store", f"bundle={portable}"],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    name, version = done.stdout.strip().split(":")
    assert (tmp_path / "home" / "models" / name / version / "bundle" / "manifest.json").is_file()
    assert "Tracking" not in done.stdout + done.stderr
