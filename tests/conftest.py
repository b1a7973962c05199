"""Fixtures that all tests share: small images on disk, and commands run as from a shell."""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.helpers.commands import TINY, Outcome
from tests.helpers.shapes import EMPTY_PNG, write_shapes
from tests.helpers.shared_bundle import once, train_and_export

# Before PyTorch is imported: the test processes side by side slow one another down when each starts a thread per core,
# and so do threads that spin while they wait.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# Nothing here may reach a network, and a key in the environment must not send test runs anywhere.
os.environ["WANDB_MODE"] = "offline"
os.environ["HF_HUB_OFFLINE"] = "1"

# Before anything of BentoML is imported: the metrics of its worker processes lie there.
os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix="metrics-")
os.environ["BENTOML_DO_NOT_TRACK"] = "True"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let tests of one `xdist_group` share a process.

    pytest-xdist 3.8 appends the group to an attribute that pytest reads no longer since 9.2 (pytest-xdist issue 1386):
    without this each process starts the services of its own for them.
    """
    for item in items:
        with_group = getattr(item, "_nodeid", item.nodeid)
        if with_group != item.nodeid:
            item._id = type(item.id).parse(with_group)  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def content_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read of the tests' images is not kept in the cache folder of the user who runs them."""
    monkeypatch.setattr("mlops_img.data.content_cache.cache_folder", lambda: None)


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports get empty pictures: half of the time of a tiny training is Matplotlib's."""
    monkeypatch.setattr("mlops_img.reporting.report.png_bytes", lambda figure: EMPTY_PNG)


@pytest.fixture(scope="session")
def shared_shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 images in 3 class folders, without splits; not to be changed."""
    return write_shapes(tmp_path_factory.mktemp("shapes"), per_class=20)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos/, run/ (a small net that tells shapes apart) and bundles/; not to be changed."""
    return once(tmp_path_factory, "trained", train_and_export(write_shapes))


@pytest.fixture
def run(trained: Path) -> Path:
    """The run folder of the small net."""
    return trained / "run"


@pytest.fixture
def portable(trained: Path) -> Path:
    """Its bundle, in int8 and not compiled; not to be changed."""
    return trained / "bundles" / "test_resnet-1"


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    """30 images in 3 class folders, the test's own to damage."""
    return write_shapes(tmp_path / "photos", per_class=10)


@cache
def _exclude_imported_from_collection() -> None:
    gc.collect()
    gc.freeze()


def exclude_imported_from_collection() -> None:
    """Take what PyTorch and timm made when they were imported out of garbage collection: 0.3 s after each training."""
    if "timm" in sys.modules:
        _exclude_imported_from_collection()


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Callable[..., Outcome]]:
    """Run `python -m <module> <arguments>` in this process, in an empty folder."""
    import importlib
    import logging

    from hydra.core.global_hydra import GlobalHydra

    monkeypatch.chdir(tmp_path)

    def call(module: str, *arguments: str) -> Outcome:
        monkeypatch.setattr("sys.argv", [module, *map(str, arguments)])
        if module == "mlops_img.export":  # how fast a candidate is decides nothing in these tests
            monkeypatch.setattr("mlops_img.compression.measure.TIMED_SECONDS", 0.02)
        capsys.readouterr()
        code = 0
        try:
            importlib.import_module(module).main()
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            GlobalHydra.instance().clear()
            exclude_imported_from_collection()
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    yield call
    # Hydra pointed the root logger at files of the run.
    for handler in list(logging.getLogger().handlers):
        if isinstance(handler, logging.FileHandler | logging.StreamHandler) and not hasattr(handler, "reset"):
            logging.getLogger().removeHandler(handler)


@pytest.fixture
def train(command: Callable[..., Outcome], shared_shapes: Path) -> Callable[..., Outcome]:
    """Train a tiny net on shapes: seconds; further arguments override."""

    def call(*arguments: str) -> Outcome:
        given = {argument.split("=")[0] for argument in arguments}
        defaults = [
            argument for argument in (*TINY, f"data.root={shared_shapes}") if argument.split("=")[0] not in given
        ]
        return command("mlops_img.train", *arguments, *defaults)

    return call
