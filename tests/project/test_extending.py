"""docs/extending.md: its modules are written beside the user's data, and its commands run."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import mlops_img
from mlops_img.bundle.folder import read_manifest
from mlops_img.compression.forms import FORMS
from mlops_img.evaluation.metrics import METRICS
from mlops_img.runs.tracking import TRACKERS
from mlops_img.training.schedule import SCHEDULES
from tests.helpers.commands import TINY, Outcome
from tests.helpers.paths import ROOT

Command = Callable[..., Outcome]
TABLES: tuple[dict[str, Any], ...] = (FORMS, METRICS, SCHEDULES, TRACKERS)
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
SECTIONS = {section.split("\n", 1)[0]: section for section in PAGE.split("\n## ")[1:]}


@pytest.fixture(autouse=True)
def tables() -> Iterator[None]:
    """Plugins add to tables of this process, and their modules stay imported: both end with the test."""
    before = [table.copy() for table in TABLES]
    yield
    for table, entries in zip(TABLES, before, strict=True):
        table.clear()
        table.update(entries)
    for name in [name for name in sys.modules if name.startswith("my_")]:
        del sys.modules[name]


@pytest.fixture
def run_section(
    command: Command, tmp_path: Path, shared_shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Outcome]:
    """Write the modules of a section and run its command on small images."""
    monkeypatch.syspath_prepend(tmp_path)
    shutil.copytree(shared_shapes, tmp_path / "photos")

    def run(title: str, *settings: str) -> Outcome:
        section = SECTIONS[title]
        for name, code in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", section, re.DOTALL):
            (tmp_path / name).write_text(code)
        [line] = re.findall(r"^    python -m (.*)$", section, re.MULTILINE)
        module, *arguments = shlex.split(line)
        given = {argument.split("=")[0] for argument in arguments}
        if module != "mlops_img.train":
            return command(module, *arguments, *settings)
        tiny = [setting for setting in (*TINY, *settings) if setting.split("=")[0] not in given]
        if "model" in given:
            tiny = [setting for setting in tiny if not setting.startswith("model.name")]
        return command(module, *tiny, *arguments, "hydra.run.dir=runs/a")

    return run


def summary(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "runs" / "a" / "summary.json").read_text()))


def test_model_from_a_users_module(run_section: Callable[..., Outcome], tmp_path: Path) -> None:
    outcome = run_section("Model")
    assert outcome.code == 0, outcome.err
    assert "target_: my_model.tiny" in (tmp_path / "runs/a/config.yaml").read_text()


def test_loss_from_a_users_module(run_section: Callable[..., Outcome], tmp_path: Path) -> None:
    outcome = run_section("Loss")
    assert outcome.code == 0, outcome.err
    # The focal loss of a sample is below its cross-entropy.
    rows = [json.loads(line) for line in (tmp_path / "runs/a/metrics.jsonl").read_text().splitlines()]
    assert all(row["train_loss"] < 1.0 for row in rows if row["split"] == "val")


def test_optimizer_from_a_users_module(run_section: Callable[..., Outcome], tmp_path: Path) -> None:
    outcome = run_section("Optimizer")
    assert outcome.code == 0, outcome.err
    assert sys.modules["my_optim"].SignSGD.__name__ == "SignSGD"


def test_transform_from_a_users_module(run_section: Callable[..., Outcome]) -> None:
    outcome = run_section("Transform")
    assert outcome.code == 0, outcome.err


def test_data_source_from_a_users_module(
    run_section: Callable[..., Outcome], shared_shapes: Path, tmp_path: Path
) -> None:
    (tmp_path / "flat").mkdir()
    for path in shared_shapes.rglob("*.jpg"):
        shutil.copy(path, tmp_path / "flat" / f"{path.parent.name}-{path.name}")
    outcome = run_section("Data source", "data=custom")
    assert outcome.code == 0, outcome.err
    assert "3 classes" in outcome.err + outcome.out + (tmp_path / "runs/a/train.log").read_text()


def test_metric_of_a_plugin_is_optimized_reported_and_found_again(
    run_section: Callable[..., Outcome], command: Command, tmp_path: Path
) -> None:
    outcome = run_section("Metric")
    assert outcome.code == 0, outcome.err
    figures = summary(tmp_path)
    assert figures["val.error"] == pytest.approx(1 - figures["val.top1"])
    assert figures["test.error"] == pytest.approx(1 - figures["test.top1"])
    rows = [json.loads(line) for line in (tmp_path / "runs/a/metrics.jsonl").read_text().splitlines()]
    errors = [row["error"] for row in rows if row["split"] == "val"]
    assert figures["val.error"] == min(errors)  # a lower error is better
    assert "<dt>Error</dt>" in (tmp_path / "runs/a/report/index.html").read_text()

    del METRICS["error"], sys.modules["my_metrics"]
    evaluated = command("mlops_img.evaluate", "run=runs/a")
    assert evaluated.code == 0, evaluated.err
    assert re.search(r"^test\.error +[01]\.\d{4}$", evaluated.out, re.MULTILINE)


def test_metric_of_a_plugin_ranks_a_multirun(run_section: Callable[..., Outcome], command: Command) -> None:
    assert run_section("Metric").code == 0
    arguments = ("plugins=[my_metrics]", "optimized_metric=val.error", "optim.lr=1e-3,1e-8", "data.root=photos")
    outcome = command("mlops_img.train", "-m", *TINY, *arguments)
    assert outcome.code == 0, outcome.err
    values = [float(line.split()[2]) for line in outcome.out.splitlines() if re.match(r"\s*[12]\s+[01]\s", line)]
    assert len(values) == 2
    assert values == sorted(values)


def test_schedule_of_a_plugin(run_section: Callable[..., Outcome], tmp_path: Path) -> None:
    outcome = run_section("Schedule", "schedule.warmup=0%", "train.log_every_steps=1", "optim.lr=1e-3")
    assert outcome.code == 0, outcome.err
    rows = [json.loads(line) for line in (tmp_path / "runs/a/metrics.jsonl").read_text().splitlines()]
    rates = [row["lr"] for row in rows if row["split"] == "train"]
    assert rates == pytest.approx([1e-3 * (1 - step / len(rates)) ** 2 for step in range(len(rates))])


def test_tracker_of_a_plugin(run_section: Callable[..., Outcome], tmp_path: Path) -> None:
    outcome = run_section("Tracker")
    assert outcome.code == 0, outcome.err
    assert "val/top1" in json.loads((tmp_path / "runs/a/last.json").read_text())


def test_export_form_of_a_plugin(
    run_section: Callable[..., Outcome], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "latest").symlink_to(trained / "run")
    outcome = run_section("Export form", "export.compile=false", "quantize.calibration_images=16")
    assert outcome.code == 0, outcome.err
    assert re.search(r"^\| fp32-rounded +\| [01]\.\d{4}", outcome.out, re.MULTILINE)
    bundle = tmp_path / "bundles" / "latest"
    assert read_manifest(bundle).precision == "fp32-rounded"
    assert "fp32-rounded" in (bundle / "README.md").read_text()
    FORMS.pop("rounded")  # the bundle needs it no longer
    photos = sorted((trained / "photos").rglob("*.jpg"))[::60]
    assert [one.label for one in mlops_img.load(bundle).predict(photos)] == ["circle", "square", "stripes"]


def test_unknown_export_form_is_a_user_error(command: Command, trained: Path) -> None:
    outcome = command("mlops_img.export", f"run={trained / 'run'}", "quantize.name=statik")
    assert outcome.code == 2
    assert "quantize.name=statik: it can be auto, none, bf16, dynamic, static. Did you mean 'static'?" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plugins=[my_missing]"], "plugins: my_missing cannot be imported: No module named 'my_missing'"),
        (["loss._target_=my_missing.Loss"], "loss._target_: my_missing.Loss cannot be imported"),
        (["loss._target_=builtins.dict"], "loss._target_=builtins.dict: it returned dict, not a torch.nn.Module"),
        (["loss._target_=torch.nn.Linear"], "loss._target_=torch.nn.Linear: "),
        (["optim._target_=my_missing.Optim"], "optim._target_: my_missing.Optim cannot be imported"),
        (["optim._target_=builtins.dict"], "optim._target_=builtins.dict: "),
        (["optim._target_=torch.optim.SGD", "optim.kwargs={speed: 1}"], "unexpected keyword argument 'speed'"),
        (["optim._target_=torch.optim.SGD", "optim.layer_decay=0.5"], "optim.layer_decay is for timm's optimizers"),
        (["optim._target_=math.pi"], "optim._target_: math.pi is not a class or function"),
        (["schedule.name=cosin"], "schedule.name=cosin: it can be cosine, one_cycle, step, constant. Did you mean"),
        (["tracking.name=wandbb"], "tracking.name=wandbb: it can be none, wandb. Did you mean 'wandb'?"),
        (["optimized_metric=val.eror"], "optimized_metric=val.eror: it can be val.loss, val.top1"),
    ],
)
def test_wrong_extension_is_one_line_and_exit_code_2(
    train: Callable[..., Outcome], arguments: list[str], message: str
) -> None:
    outcome = train(*arguments)
    assert outcome.code == 2
    assert message in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1
