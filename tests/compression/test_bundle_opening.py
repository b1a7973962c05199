"""Bundles of an earlier format, for another machine, or damaged: what still opens and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import mlops_img
from mlops_img.bundle.folder import read_bundle
from mlops_img.compression.contents import candidates_table
from mlops_img.errors import EXIT_USER_ERROR
from tests.helpers.commands import Outcome

Command = Callable[..., Outcome]


@pytest.fixture
def bundle(portable: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(portable, tmp_path / "bundle"))


def as_format_1(content: dict[str, Any]) -> None:
    """Take out of a manifest what bundles of format 1 did not have."""
    content["format"] = 1
    del content["test"]["top1_interval"]
    for quality in (content["before"], content["after"], *(one["quality"] for one in content["candidates"])):
        del quality["top1_interval"]
    del content["provenance"]["trained"]["data"]["splits"]


def test_bundles_of_format_1_still_open(bundle: Path) -> None:
    edit_manifest(bundle, as_format_1)
    manifest = read_bundle(bundle)
    assert manifest.after.top1_interval is None
    assert mlops_img.load(bundle).predict([next((bundle / "samples").iterdir())])
    assert "0.9" in candidates_table(manifest.candidates) or "1.0000" in candidates_table(manifest.candidates)


def test_program_compiled_for_another_machine_falls_back_with_one_warning(
    bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    edit_manifest(
        bundle,
        lambda manifest: manifest["programs"][0].update(
            compiled_for={"device": "cpu", "capability": ["x86_64", "avx4096"], "torch": torch.__version__}
        ),
    )
    model = mlops_img.load(bundle)
    assert model.program.precision == "fp32"
    assert [record.message for record in caplog.records] == [
        "programs/fp32.pt2 is used; programs/int8-static.pt2: the processor lacks x86_64, avx4096"
    ] or "avx4096" in caplog.text
    assert len(caplog.records) == 1


def edit_manifest(bundle: Path, change: Callable[[dict], object]) -> None:  # type: ignore[type-arg]
    content = json.loads((bundle / "manifest.json").read_text())
    change(content)
    (bundle / "manifest.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda bundle: (bundle / "weights.safetensors").unlink(), "weights.safetensors is missing"),
        (lambda bundle: (bundle / "extra.pkl").write_bytes(b"x"), "extra.pkl does not belong"),
        (lambda bundle: cut(bundle / "programs/fp32.pt2"), r"programs/fp32.pt2 has [\d,]+ bytes instead of"),
        (lambda bundle: flip(bundle / "programs/fp32.pt2"), "programs/fp32.pt2 was changed"),
        (lambda bundle: (bundle / "manifest.json").unlink(), "not a bundle"),
        (lambda bundle: cut(bundle / "manifest.json"), "manifest.json cannot be read"),
        (lambda bundle: edit_manifest(bundle, lambda content: content.update(format=99)), "is of format 99"),
        (lambda bundle: edit_manifest(bundle, lambda content: content.pop("classes")), "classes: Field required"),
        (lambda bundle: edit_manifest(bundle, lambda content: content.update(temperature=-1)), "temperature"),
        (lambda bundle: edit_manifest(bundle, lambda content: content.update(surprise=1)), "surprise"),
        (
            lambda bundle: edit_manifest(bundle, lambda content: content["programs"][0].update(file="other.pt2")),
            "names other.pt2 and does not list it",
        ),
    ],
)
def test_damaged_bundle_is_refused_by_name(
    command: Command, bundle: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(bundle)
    outcome = command("mlops_img.benchmark", f"bundle={bundle}")
    assert outcome.code == EXIT_USER_ERROR
    assert len(outcome.err.splitlines()) == 1
    import re

    assert re.search(message, outcome.err), outcome.err


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_program_with_a_pickle_is_refused(bundle: Path) -> None:
    from mlops_img.bundle.programs import refuse_pickles
    from mlops_img.errors import UserError

    class Net(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images + 1

    torch.export.save(torch.export.export(Net(), (torch.ones(2),)), bundle / "programs/fp32.pt2")
    with pytest.raises(UserError, match="pickle"):
        refuse_pickles(bundle / "programs/fp32.pt2")
