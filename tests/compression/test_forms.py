"""Forms and metrics of a user's own module in an export; what a form may be called; the options of `conf/quantize`."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import mlops_img
from mlops_img.bundle.folder import read_bundle
from mlops_img.compression.forms import FORMS, form
from mlops_img.errors import EXIT_USER_ERROR
from mlops_img.evaluation.metrics import METRICS
from tests.helpers.commands import Outcome
from tests.helpers.paths import CONF

Command = Callable[..., Outcome]

PLUGIN = """
from copy import deepcopy
from dataclasses import replace

import torch

from mlops_img.compression.forms import cast_and_capture, form
from mlops_img.evaluation.metrics import metric


def with_weights(context, change):
    model = deepcopy(context.model)
    for weight in model.parameters():
        weight.data = change(weight.data)
    return cast_and_capture(replace(context, model=model), torch.float32)


@form("halves", "fp32-halves")
def halves(context, keep):
    return with_weights(context, lambda weight: weight.half().float())


@form("infinite", "fp32-infinite")
def infinite(context, keep):
    return with_weights(context, lambda weight: weight * float("inf"))


@form("nothing", "fp32-nothing")
def nothing(context, keep):
    return None


@form("elsewhere", "fp32-elsewhere", unsupported_reason=lambda device: f"it does not run on {device.type}")
def elsewhere(context, keep):
    raise AssertionError("it is not built")


@metric("error", "Error", higher_is_better=False)
def error(predictions):
    return 1 - (predictions.predicted == predictions.labels).double().mean().item()


@metric("undefined", "Undefined")
def undefined(predictions):
    return float("nan")
"""


@pytest.fixture(autouse=True)
def tables() -> Iterator[None]:
    """Remove what a test adds to the tables of this process."""
    tables: tuple[dict[str, Any], ...] = (FORMS, METRICS)
    before = [table.copy() for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)
    sys.modules.pop("own_forms", None)


@pytest.fixture
def export(command: Command, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Export the run with the forms and metrics of a module outside the package."""
    (tmp_path / "own_forms.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    defaults = (f"run={run}", "bundles=bundles", "plugins=[own_forms]", "export.compile=false")
    return lambda *arguments: command("mlops_img.export", *arguments, *defaults)


def test_form_and_metric_of_a_plugin_are_in_the_bundle(export: Command, trained: Path) -> None:
    outcome = export("quantize.name=halves")
    assert outcome.code == 0, outcome.err
    assert "| fp32-halves " in outcome.out

    for name in ("halves", "infinite", "nothing", "elsewhere"):
        del FORMS[name]
    del METRICS["error"], METRICS["undefined"]
    manifest = read_bundle(Path("bundles/latest"))
    assert manifest.precision == "fp32-halves"
    assert [program.precision for program in manifest.programs] == ["fp32-halves", "fp32"]
    for measured in (manifest.before, manifest.after, *(each.quality for each in manifest.candidates)):
        assert measured is not None
        assert measured.error == pytest.approx(1 - measured.top1)  # type: ignore[attr-defined]
        assert measured.undefined is None  # type: ignore[attr-defined]
    card = Path("bundles/latest/README.md").read_text()
    [row] = [line for line in card.splitlines() if line.startswith("| Error ")]
    assert row.split("|")[3].strip() == f"{1 - manifest.after.top1:.4f}"
    photos = sorted((trained / "photos").rglob("*.jpg"))[::60]
    assert [each.label for each in mlops_img.load("bundles/latest").predict(photos)] == ["circle", "square", "stripes"]


def test_auto_tries_the_forms_of_a_plugin_and_notes_why_they_fail(export: Command) -> None:
    outcome = export("quantize.name=auto", "quantize.calibration_images=16")
    assert outcome.code == 0, outcome.err
    notes = {each.precision: each.note for each in read_bundle(Path("bundles/latest")).candidates}
    assert list(notes) == [entry.precision for entry in FORMS.values()]
    assert notes["fp32-infinite"] == "its logits are not finite"
    assert notes["fp32-nothing"] == "cannot be built: it returned NoneType, not torch.export.ExportedProgram"
    assert notes["fp32-elsewhere"] == "it does not run on cpu"


def test_form_that_cannot_be_used_is_a_user_error(export: Command) -> None:
    outcome = export("quantize.name=elsewhere")
    assert outcome.code == EXIT_USER_ERROR
    assert outcome.err.strip() == "error: quantize.name=elsewhere: it does not run on cpu. Use quantize=auto"
    assert list(Path("bundles").iterdir()) == []


def test_manifest_of_a_bundle_is_json_without_nan(export: Command) -> None:
    assert export("quantize.name=none").code == 0
    text = Path("bundles/latest/manifest.json").read_text()
    content = json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))
    assert content["after"]["undefined"] is None
    assert math.isfinite(content["after"]["loss"])


@pytest.mark.parametrize("precision", ["FP16", "fp 16", "../fp16", "", "fp32-compiled"])
def test_precision_that_is_not_a_file_name_is_refused(precision: str) -> None:
    with pytest.raises(ValueError, match="is part of file names"):
        form("own", precision)


def test_precision_of_another_form_is_refused() -> None:
    with pytest.raises(ValueError, match="precision='int8-static' is that of the form 'static'"):
        form("own", "int8-static")


def test_every_form_has_an_option_of_the_group_quantize() -> None:
    options = {path.stem: yaml.safe_load(path.read_text())["name"] for path in (CONF / "quantize").glob("*.yaml")}
    assert options == {name: name for name in ("auto", *FORMS)}
