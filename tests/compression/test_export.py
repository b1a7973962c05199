"""A run becomes a bundle that predicts what the run predicts, or there is not a bundle."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import mlops_img
from mlops_img.bundle.folder import read_bundle
from mlops_img.compression import candidates, workflow
from mlops_img.errors import EXIT_USER_ERROR
from mlops_img.preprocessing.decode import BadImageError
from tests.helpers.commands import Outcome
from tests.helpers.shapes import SHAPES
from tests.helpers.shared_bundle import PORTABLE

Command = Callable[..., Outcome]
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor needs g++")


def test_bundle_has_the_files_of_its_manifest(run: Path, portable: Path) -> None:
    assert (portable.parent / "latest").resolve() == portable
    manifest = read_bundle(portable)
    assert (manifest.name, manifest.version, manifest.precision) == ("test_resnet", "1", "int8-static")
    assert manifest.classes == sorted(SHAPES)
    assert [program.precision for program in manifest.programs] == ["int8-static", "fp32"]
    assert {candidate.precision for candidate in manifest.candidates} == {"fp32", "int8-static"}
    assert manifest.provenance["run"] == run.name
    summary = json.loads((run / "summary.json").read_text())
    assert manifest.test["top1"] == summary["test.top1"]
    low, high = summary["test.top1_interval"]
    assert manifest.test["top1_interval"] == (low, high)
    card = (portable / "README.md").read_text()
    [row] = [line for line in card.splitlines() if line.startswith("| Top-1 ")]
    assert row.endswith(f"| {summary['test.top1']:.4f} (95 % interval {low:.4f} to {high:.4f}) |")
    assert "There was no test split" not in card
    assert {sample.label for sample in manifest.samples} == set(SHAPES)
    assert manifest.after.top1 > 0.6
    assert "test_resnet" in (portable / "README.md").read_text()


def test_bundle_holds_no_pickle(portable: Path) -> None:
    for path in portable.rglob("*"):
        if path.is_file():
            found = subprocess.run(
                [sys.executable, "-m", "zipfile", "-t", path], capture_output=True, text=True, check=False
            )
            content = path.read_bytes()
            if found.returncode == 0:
                assert b"data.pkl" not in content, path
            assert not content.startswith((b"\x80\x02", b"\x80\x04")), path


def test_weights_equal_those_of_the_run(run: Path, portable: Path) -> None:
    trained = torch.load(run / "checkpoints" / "best.pt", weights_only=True)["model"]
    with safe_open(portable / "weights.safetensors", "pt") as file:
        assert set(file.keys()) == set(trained)
        for name in file.keys():  # noqa: SIM118
            torch.testing.assert_close(file.get_tensor(name), trained[name])


def test_drift_reference_describes_the_validation_images(portable: Path) -> None:
    manifest = read_bundle(portable)
    with safe_open(portable / manifest.drift.file, "pt") as file:
        features, statistics = file.get_tensor("features"), file.get_tensor("statistics")
        quantiles = file.get_tensor("statistic_quantiles")
        assert int(file.get_tensor("predicted_counts").sum()) == manifest.after.n == len(features)
    assert features.shape[1] == manifest.drift.features > 3
    assert statistics.shape == (manifest.after.n, len(manifest.drift.statistics))
    assert (quantiles.diff(dim=0) >= 0).all()
    torch.testing.assert_close(quantiles[-1], statistics.amax(0))


def test_paths_bytes_images_and_tensors_give_the_same_prediction(run: Path, portable: Path) -> None:
    from PIL import Image
    from torchvision.transforms.functional import pil_to_tensor

    model = mlops_img.load(portable)
    path = next((run.parent / "photos" / "circle").iterdir())
    image = Image.open(path)
    predictions = model.predict([path, str(path), path.read_bytes(), image, pil_to_tensor(image)], top_k=2)
    assert len({prediction.probability for prediction in predictions}) == 1
    first = predictions[0]
    assert first.label == "circle"
    assert first.top_k[0].probability == first.probability
    assert len(first.top_k) == 2
    assert sum(each.probability for each in model.predict([path])[0].top_k) == pytest.approx(1, abs=1e-5)
    assert model.predict([]) == []
    with pytest.raises(BadImageError):
        model.predict([b"no image"])
    with pytest.raises(BadImageError, match="uint8"):
        model.predict([torch.zeros(3, 8, 8)])
    with pytest.raises(OSError, match="none"):
        model.predict(["none.jpg"])


def test_threads_share_a_predictor(run: Path, portable: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    model = mlops_img.load(portable)
    paths = sorted((run.parent / "photos").rglob("*.jpg"))[::4]
    alone = [model.predict([path]) for path in paths]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda path: model.predict([path]), paths))
    assert together == alone


def test_fp32_bundle_equals_evaluation_of_the_run(command: Command, run: Path, tmp_path: Path) -> None:
    outcome = command("mlops_img.export", f"run={run}", "bundles=bundles", "quantize=none", "export.compile=false")
    assert outcome.code == 0, outcome.err
    assert command("mlops_img.evaluate", f"run={run}", "split=test", "train.precision=fp32").code == 0
    evaluation = json.loads((run / "evaluation" / "test.json").read_text())
    model = mlops_img.load("bundles/latest")
    from mlops_img.data.dataset import load_dataset
    from mlops_img.runs.folder import load_config

    test = load_dataset(load_config(run / "config.yaml").data).test
    predicted = [prediction.index for prediction in model.predict(test.paths)]
    right = sum(index == label for index, label in zip(predicted, test.labels.tolist(), strict=True))
    assert right / len(predicted) == evaluation["top1"]
    assert not list(tmp_path.glob("*.log"))


def test_programs_average_over_the_views_of_an_image(command: Command, run: Path) -> None:
    outcome = command(
        "mlops_img.export", f"run={run}", "bundles=bundles", "quantize=none", "export.compile=false", "export.tta=flip"
    )
    assert outcome.code == 0, outcome.err
    manifest = read_bundle(Path("bundles/latest"))
    assert manifest.tta is not None
    assert (manifest.tta.views, manifest.tta.without.n) == ("flip", manifest.before.n)
    card = Path("bundles/latest/README.md").read_text()
    assert "validation, without test-time augmentation" in card
    assert "test, before compression, without test-time augmentation" in card

    evaluated = command("mlops_img.evaluate", f"run={run}", "split=val", "tta=flip", "train.precision=fp32")
    assert evaluated.code == 0, evaluated.err
    evaluation = json.loads((run / "evaluation" / "val.json").read_text())
    assert manifest.before.loss == pytest.approx(evaluation["tta"]["loss"], rel=1e-5)
    assert manifest.tta.without.loss == pytest.approx(evaluation["loss"], rel=1e-5)
    assert evaluation["loss"] != pytest.approx(evaluation["tta"]["loss"], rel=1e-5)

    model = mlops_img.load("bundles/latest")
    pixels = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    logits, features = model.run(pixels)
    mirrored_logits, mirrored_features = model.run(pixels.flip(-1))
    torch.testing.assert_close(logits, mirrored_logits)
    assert not torch.allclose(features, mirrored_features)


@needs_compiler
def test_compiled_int8_is_chosen_and_agrees_with_the_run(command: Command, run: Path) -> None:
    outcome = command("mlops_img.export", f"run={run}", "bundles=bundles", "quantize=static", "name=fast")
    assert outcome.code == 0, outcome.err
    manifest = read_bundle(Path("bundles/fast-1"))
    best = manifest.programs[0]
    assert best.compiled_for is not None
    assert best.compiled_for.torch == torch.__version__
    assert [program.compiled_for is None for program in manifest.programs] == [False, True, True]
    assert manifest.before.top1 - manifest.after.top1 <= 0.005
    assert all(candidate.cosine is None or candidate.cosine > 0.95 for candidate in manifest.candidates)
    model = mlops_img.load("bundles/fast-1")
    assert model.program == best
    outcome = command("mlops_img.benchmark", "bundle=bundles/fast-1", "seconds=0.05", "rounds=1", "batches=[1,2]")
    assert outcome.code == 0, outcome.err
    assert "programs/int8-static-compiled.pt2" in outcome.out
    assert Path("bundles/fast-1.benchmark.png").is_file()
    timings = json.loads(Path("bundles/fast-1.benchmark.json").read_text())["timings"]
    assert {(one["program"], one["batch"]) for one in timings} == {
        (program.file, batch) for program in manifest.programs for batch in (1, 2)
    }


def test_accuracy_loss_above_the_limit_leaves_no_bundle(
    command: Command, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "top1_drop", lambda before, after, seed: (7.5, (5.0, 10.0)))
    monkeypatch.setattr(candidates, "by_sensitivity", lambda *_, **__: ["model.conv1", "model.fc"])  # few to try
    outcome = command("mlops_img.export", f"run={run}", "bundles=bundles", *PORTABLE)
    assert outcome.code == EXIT_USER_ERROR
    assert "falls by 7.50 points" in outcome.err
    assert list(Path("bundles").iterdir()) == []


def test_sensitive_layers_go_back_to_fp32(command: Command, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drops = iter([0.0, 9.0, 4.0, 2.0])  # fp32, then int8 with none, one and two layers in fp32
    monkeypatch.setattr(candidates, "top1_drop", lambda before, after, seed: (drop := next(drops), (drop, drop)))
    outcome = command("mlops_img.export", f"run={run}", "bundles=bundles", *PORTABLE, "export.max_accuracy_drop=3")
    assert outcome.code == 0, outcome.err
    static = read_bundle(Path("bundles/latest")).candidates[-1]
    assert len(static.kept_fp32) == 2
    assert static.top1_drop == 2.0


def test_dynamic_reports_its_share_of_the_multiply_accumulates(command: Command, run: Path) -> None:
    settings = ("export.compile=false", "quantize=dynamic", "export.max_accuracy_drop=100")
    outcome = command("mlops_img.export", f"run={run}", "bundles=bundles", *settings)
    assert outcome.code == 0, outcome.err
    assert "% of the multiply-accumulates" in outcome.out.replace("\xa0", " ")
    assert "quantize=static" in outcome.out


def test_killed_export_leaves_no_bundle(command: Command, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(workflow, "write_model_card", killed)
    outcome = command("mlops_img.export", f"run={run}", "bundles=bundles", "quantize=none", "export.compile=false")
    assert outcome.code == 130
    assert list(Path("bundles").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run=nowhere",), "run=nowhere: there is no run"),
        (("quantize=tiny",), "quantize=tiny: there is no such option"),
        (("export.max_batch=1",), "export.max_batch=1: it must be at least 2"),
        (("name=../x",), "name=../x"),
        (("export.max_accuracy_dorp=1",), "Did you mean 'max_accuracy_drop'"),
        (("bundles=/proc/nothing",), "bundles=/proc/nothing cannot be written"),
        (("data.root=nowhere",), "nowhere"),
        (("quantize.keep_fp32=[conv7]",), "the model has no layer 'conv7'. Did you mean"),
    ],
)
def test_user_errors_are_one_line(command: Command, run: Path, arguments: tuple[str, ...], message: str) -> None:
    given = {argument.split("=")[0] for argument in arguments}
    defaults = [argument for argument in (f"run={run}", "bundles=bundles") if argument.split("=")[0] not in given]
    outcome = command("mlops_img.export", *arguments, *defaults)
    assert outcome.code == EXIT_USER_ERROR, outcome.err
    assert message in outcome.err
    assert len(outcome.err.splitlines()) == 1


def test_run_without_a_checkpoint_is_refused(command: Command, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "copy", ignore=shutil.ignore_patterns("*.pt"))
    outcome = command("mlops_img.export", "run=copy")
    assert outcome.code == EXIT_USER_ERROR
    assert "best.pt" in outcome.err


@pytest.mark.parametrize("distill_weight", [0, 0.5])
def test_pruned_net_is_smaller_and_still_works(command: Command, run: Path, distill_weight: float) -> None:
    settings = ("export.compile=false", "quantize=none", "prune=channels", "prune.macs=0.3", "prune.epochs=2")
    distill = f"prune.distill_weight={distill_weight}"
    outcome = command("mlops_img.export", f"run={run}", "bundles=bundles", *settings, distill)
    assert outcome.code == 0, outcome.err
    pruning = read_bundle(Path("bundles/latest")).pruning
    assert pruning is not None
    assert pruning.macs_after < 0.85 * pruning.macs_before
    assert pruning.parameters_after < pruning.parameters_before
    assert pruning.after.top1 > 0.5
    assert mlops_img.load("bundles/latest").predict([next((run.parent / "photos" / "square").iterdir())])
