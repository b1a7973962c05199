"""Result files of the benchmarks with their machine, and the tables made of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import run_all
import tables
import torch
from harness import Benchmark
from records import FOLDER, keep, read, read_all, this_machine

from mlops_img.errors import UserError
from tests.helpers.benchmarks import machine, measured
from tests.helpers.paths import ROOT

DOCUMENT = "before\n\n<!-- table: train_loop -->\n<!-- end -->\n\nafter\n"


def test_machine_record_says_what_torch_sees_here() -> None:
    here = this_machine(gpu="NVIDIA H100")
    known = torch.cpu.get_capabilities()
    assert here.cpu
    assert here.cores > 0
    assert here.instruction_sets.avx2 is bool(known.get("avx2"))
    assert here.instruction_sets.avx512f is bool(known.get("avx512_f"))
    assert here.instruction_sets.amx_int8 is bool(known.get("amx_int8"))
    assert (here.gpu, here.torch) == ("NVIDIA H100", torch.__version__)


def test_file_name_of_a_machine_is_derived_from_its_record() -> None:
    xeon = machine("Intel(R) Xeon(R) Platinum 8480C CPU @ 2.00GHz", avx2=True, avx512f=True, avx512_vnni=True)
    assert xeon.name() == "intel-xeon-platinum-8480c-2-00ghz-2-cores-avx512f-vnni"
    assert machine(avx2=True, avx512f=False).name() == "amd-epyc-2-cores-avx2"
    assert machine(gpu="NVIDIA H100 80GB HBM3").name() == "amd-epyc-2-cores-nvidia-h100-80gb-hbm3"


def test_caption_tells_lacking_instruction_sets_from_unknown_ones() -> None:
    assert machine(avx2=True, avx512f=False, avx512_vnni=False).describe() == (
        "AMD EPYC, 2 cores, AVX2, no AVX-512, torch 2.14.1"
    )
    assert machine(avx2=True, avx512f=True, avx512_bf16=False).describe() == (
        "AMD EPYC, 2 cores, AVX-512, no bf16, torch 2.14.1"
    )


def test_results_of_two_machines_lie_side_by_side_and_a_new_one_replaces_the_old(tmp_path: Path) -> None:
    first = keep(measured(machine(avx2=True)).result(), tmp_path)
    second = keep(measured(machine(avx2=True, avx512f=True)).result(), tmp_path)
    again = keep(measured(machine(avx2=True), peer_rate=25.0).result(), tmp_path)
    assert first == again != second
    assert len(read_all("train_loop", tmp_path)) == 2
    assert read(first).cases[0].rows[1].figures["images_per_second"] == 25.0


def test_result_that_is_read_is_the_one_that_was_kept(tmp_path: Path) -> None:
    result = measured().result()
    assert read(keep(result, tmp_path)) == result


def test_file_without_the_schema_is_refused_with_the_place(tmp_path: Path) -> None:
    path = keep(measured().result(), tmp_path)
    content = json.loads(path.read_text())
    del content["machine"]["instruction_sets"]["amx_int8"]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"machine\.instruction_sets\.amx_int8: Field required"):
        read(path)


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.json")), ids=lambda path: str(path.relative_to(FOLDER)))
def test_committed_results_have_the_schema_and_the_derived_name(path: Path) -> None:
    result = read(path)
    assert result.path(FOLDER) == path
    assert result.benchmark in run_all.ENTRIES
    assert result.cases


def test_finetune_runs_join_those_kept_with_the_same_settings(tmp_path: Path) -> None:
    def runs(seed: int, epochs: int, *names: str) -> Benchmark:
        benchmark = Benchmark("finetune", rounds=1, settings={"epochs": epochs})
        benchmark.add({"seed": seed}, [(name, {"val_top1": seed / 10}) for name in names])
        benchmark.join_kept(tmp_path)
        keep(benchmark.result(), tmp_path)
        return benchmark

    runs(0, 3, "ours", "peer")
    joined = runs(1, 3, "ours")
    assert [case.settings["seed"] for case in joined.cases] == [0, 1]
    assert joined.rounds == 2
    assert [row.contender for row in runs(1, 3, "peer").cases[1].rows] == ["peer", "ours"]
    assert len(runs(0, 5, "ours").cases) == 1


def test_gain_of_an_option_is_that_of_the_same_seeds(tmp_path: Path) -> None:
    benchmark = Benchmark("time_to_accuracy", rounds=3, settings={})
    for seed, (plain, changed) in enumerate([(0.80, 0.81), (0.90, 0.92), (0.70, 0.73)]):
        figures = {"val_top1": 0.5, "seconds": 2.0, "processor_seconds": 3.0}
        rows = [("the recipe", figures | {"test_top1": plain}), ("a=b", figures | {"test_top1": changed})]
        benchmark.add({"recipe": "experiment=x", "seed": seed}, rows)
    keep(benchmark.result(), tmp_path)
    text = tables.tables("time_to_accuracy", tmp_path)
    # Gains of 1, 2 and 3 points: the mean 2, standard error 1 / sqrt(3), Student's t with 2 degrees of freedom 4.303.
    assert "| `a=b` | 3 | 0.5000 (0.5000 to 0.5000) | 0.8200 (0.7300 to 0.9200) | +2.00 (-0.48 to +4.48) |" in text

    other = Benchmark("time_to_accuracy", rounds=1, settings={})
    other.add({"recipe": "experiment=y", "seed": 0}, [("the recipe", figures | {"test_top1": 0.1})])
    other.join_kept(tmp_path)
    assert len(other.cases) == 4


# Tables


def test_committed_tables_are_those_of_the_result_files() -> None:
    path = ROOT / "docs" / "benchmarks.md"
    text = path.read_text(encoding="utf-8")
    assert not tables.differing(text, tables.generate(text)), "run python benchmarks/tables.py"
    assert text == tables.generate(text)
    assert set(tables.MARKER.findall(text)) == set(tables.TABLES) == set(run_all.ENTRIES)


def test_table_states_machine_date_n_and_figures(tmp_path: Path) -> None:
    benchmark = measured()
    benchmark.skip("other", "not installed")
    keep(benchmark.result(), tmp_path)
    lines = tables.generate(DOCUMENT, tmp_path).splitlines()
    today = benchmark.result().date
    assert lines[4] == (
        f"AMD EPYC, 2 cores, AVX2, torch 2.14.1; {today}; n = 3; batch 8; left out: other (not installed):"
    )
    assert lines[6:10] == [
        "|  | images/s (slowest to fastest) | ours / theirs (worst turn) | goal |",
        "| --- | ---: | ---: | ---: |",
        "| ours | 40.0 (30.0 to 50.0) |  |  |",
        "| peer | 20.0 (20.0 to 40.0) | 2.00 (1.25) | 1.5 |",
    ]
    assert (lines[0], lines[-1]) == ("before", "after")


def test_benchmark_without_results_has_no_table(tmp_path: Path) -> None:
    assert "Not measured yet." in tables.generate(DOCUMENT, tmp_path)


def test_ratios_are_rounded_half_up() -> None:
    assert [tables.ratio(value) for value in (1.775, 1.774, 0.985, None)] == ["1.78", "1.77", "0.99", ""]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- table: train_lop -->\n<!-- end -->\n", "Did you mean 'train_loop'"),
        ("<!-- table: serving -->\n", "has no <!-- end -->"),
        ("<!-- table: serving -->\n<!-- table: train_loop -->\n<!-- end -->\n", "has no <!-- end -->"),
    ],
)
def test_marker_that_is_wrong_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        tables.generate(text)


def test_check_finds_a_changed_figure_and_writing_corrects_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(measured().result(), tmp_path / "results")
    document = tmp_path / "page.md"
    document.write_text(DOCUMENT)

    def call(*arguments: str) -> int:
        monkeypatch.setattr(
            "sys.argv", ["tables.py", str(document), "--results", str(tmp_path / "results"), *arguments]
        )
        capsys.readouterr()
        return tables.main()

    assert call("--check") == 1
    assert call() == 0
    written = document.read_text()
    assert call("--check") == 0
    document.write_text(written.replace("40.0 (30.0", "41.0 (30.0"))
    assert call("--check") == 1
    error = capsys.readouterr().err
    assert error.startswith(f"{document}: table train_loop: '| ours | 41.0 (30.0 to 50.0)")
    assert error.count("\n") == 1
    assert document.read_text() != written, "--check writes nothing"
    assert call() == 0
    assert document.read_text() == written
    document.unlink()
    assert call("--check") == 2
