"""Mistakes of a user of the predict command: one line each, exit code 2, and nothing that is there is lost."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mlops_img.prediction import formats
from tests.helpers.commands import Outcome
from tests.helpers.shapes import draw_shape

Predict = Callable[..., Outcome]


def message_of(outcome: Outcome) -> str:
    assert outcome.code == 2, outcome.err + outcome.out
    lines = outcome.err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0].removeprefix("error: ")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["input=nothing"], "input=nothing: there is no such file or folder (seen from "),
        (["input=gs://bucket/photos"], "input=gs://bucket/photos: only local files are read"),
        (["output=gs://bucket/predictions"], "output=gs://bucket/predictions: parts are written to a local folder"),
        (["bundle=null"], "run and bundle: neither is set. Name one model: run=runs/latest or bundle=bundles/latest"),
        (["run=runs/latest"], "run and bundle: both are set. Name one model"),
        (["bundle=nothing"], "nothing is not a bundle: it has no manifest.json"),
        (["bundle=null", "run=nothing"], "run=nothing: there is no run in this folder"),
        (["precision=bf16"], "precision=bf16 has no effect on a bundle"),
        (["top_k=0"], "top_k=0: it must be more than 0"),
        (["rows_per_part=0"], "rows_per_part=0: it must be more than 0"),
        (["batch_size=100"], "batch_size=100: the program of bundle="),
        (["format=parkett"], "format=parkett: it can be auto, parquet, csv. Did you mean 'parquet'?"),
        (["shard=4", "num_shards=4"], "shard=4: with num_shards=4, shards are numbered from 0 to 3"),
        (["shard=1"], "shard=1 needs num_shards=...: set both, e.g. shard=0 num_shards=4"),
        (["num_shards=4"], "num_shards=4 needs shard=...: set both"),
        (["device=tpu"], "device=tpu: no such device. Use auto, cpu, cuda or cuda:<number>"),
        (["worker=2"], "worker: there is no such key. Did you mean"),
    ],
)
def test_value_that_cannot_be(predict: Predict, arguments: list[str], message: str, tmp_path: Path) -> None:
    assert message_of(predict(*arguments)).startswith(message.replace("nothing is not", f"{tmp_path}/nothing is not"))
    assert not list(tmp_path.glob("predictions/part-*"))


def test_input_and_output_are_to_be_named(command: Callable[..., Outcome]) -> None:
    outcome = command("mlops_img.predict", "bundle=bundles/latest", "output=predictions")
    assert message_of(outcome) == "input is not set. Set it with input=..."


def test_empty_folder(predict: Predict, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no images")
    assert message_of(predict("input=empty")).startswith("input=empty: there are no images in it")
    assert not (tmp_path / "predictions").exists()


def test_file_that_is_neither_a_table_nor_a_list(predict: Predict, shapes: Path) -> None:
    message = message_of(predict(f"input={shapes}/circle/000.jpg"))
    assert "this file is neither a table (.csv, .tsv) nor a list of files (.txt)" in message


def test_table_whose_files_do_not_exist(predict: Predict, tmp_path: Path) -> None:
    (tmp_path / "photos.csv").write_text("path\none.jpg\ntwo.jpg\n")
    message = message_of(predict("input=photos.csv"))
    assert message.startswith("input=photos.csv: none of its 2 files exists, for example one.jpg")


def test_table_without_a_column_of_files(predict: Predict, tmp_path: Path) -> None:
    (tmp_path / "photos.csv").write_text("picture,size\none.jpg,1\n")
    message = message_of(predict("input=photos.csv"))
    assert message == (
        "photos.csv has neither path nor file among picture, size. Name the column of files with data.file_column=..."
    )
    message = message_of(predict("input=photos.csv", "data.file_column=pictur"))
    assert message.startswith("photos.csv has no column 'pictur'; it has picture, size. Did you mean 'picture'?")


def test_output_that_is_a_file(predict: Predict, tmp_path: Path) -> None:
    (tmp_path / "predictions").write_text("mine")
    assert message_of(predict()) == "output=predictions is a file or lies below one. Name a folder"
    assert (
        message_of(predict("output=predictions/a")) == "output=predictions/a is a file or lies below one. Name a folder"
    )
    assert (tmp_path / "predictions").read_text() == "mine"


def test_output_with_files_of_something_else(predict: Predict, tmp_path: Path) -> None:
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions" / "thesis.tex").write_text("mine")
    message = message_of(predict())
    assert message.startswith("output=predictions has files of something else, e.g. thesis.tex, and no _manifest.json")
    assert contents(tmp_path / "predictions") == {"thesis.tex": b"mine"}


def test_damaged_manifest(predict: Predict, tmp_path: Path) -> None:
    assert predict().code == 0
    (tmp_path / "predictions" / "_manifest.json").write_text("{")
    assert message_of(predict()).startswith("predictions/_manifest.json is damaged or of another version")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("top_k=2", "top_k=3, now 2"),
        ("rows_per_part=7", "rows_per_part=4096, now 7"),
        ("batch_size=7", "batch_size=64, now 7"),
        ("format=parquet", "format=csv, now parquet"),
    ],
)
def test_output_that_was_begun_with_other_settings(
    predict: Predict, tmp_path: Path, argument: str, message: str
) -> None:
    assert predict().code == 0
    before = contents(tmp_path / "predictions")
    assert message_of(predict(argument)) == (
        f"output=predictions was begun with {message}. Repeat the command that began it, or choose another folder with "
        "output=..."
    )
    assert contents(tmp_path / "predictions") == before


def test_output_of_another_input(predict: Predict, shapes: Path) -> None:
    assert predict().code == 0
    draw_shape("circle", 99).save(shapes / "circle" / "new.jpg")
    message = message_of(predict())
    assert f"the 30 images of {shapes}, now the 31 images of {shapes}." in message
    (shapes / "circle" / "new.jpg").unlink()
    assert predict().code == 0
    shutil.copy(shapes / "square" / "000.jpg", shapes / "circle" / "000.jpg")
    message = message_of(predict())
    assert f"the 30 images of {shapes}, now the 30 images of {shapes} with other names or sizes" in message


def test_output_of_another_model(predict: Predict, run: Path, portable: Path) -> None:
    assert predict().code == 0
    message = message_of(predict("bundle=null", f"run={run}"))
    assert f"was begun with bundle={portable} (sha256 " in message
    assert f", now run={run} (sha256 " in message
    assert "a model of precision int8-static, now float32" in message


def test_parquet_without_pyarrow(predict: Predict, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None)
    assert message_of(predict("format=parquet")) == (
        'format=parquet: pyarrow is not installed. Install it with: pip install "mlops_img[predict]", or set format=csv'
    )
    outcome = predict("format=auto")
    assert outcome.code == 0
    assert "format=csv: pyarrow is not installed" in outcome.out
    assert (tmp_path / "predictions" / "part-00000.csv").is_file()


def test_parquet_parts_without_pyarrow(predict: Predict, monkeypatch: pytest.MonkeyPatch) -> None:
    assert predict("format=parquet").code == 0
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None)
    message = message_of(predict("format=auto"))
    assert message.startswith("format=parquet, the format of the output: pyarrow is not installed.")


def test_output_that_cannot_be_written(predict: Predict, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(path: Path, content: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr("mlops_img.prediction.manifest.write_json", refuse)
    assert message_of(predict()) == (
        "output=predictions cannot be written: Permission denied. Choose another folder with output=..."
    )
    assert not list((tmp_path / "predictions").iterdir())


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_full_disk_keeps_the_parts_before_it(
    predict: Predict, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    write = formats.FORMATS[kind].write
    written = 0

    def fill(file: object, columns: formats.Columns) -> None:
        nonlocal written
        written += 1
        if written == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(file, columns)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setitem(formats.FORMATS, kind, formats.FORMATS[kind]._replace(write=fill))
        message = message_of(predict(f"format={kind}", "rows_per_part=10"))
    assert message.startswith(f"predictions/part-00002.{kind} cannot be written: No space left on device. The parts")
    names = {"_manifest.json", f"part-00000.{kind}", f"part-00001.{kind}"}
    assert set(os.listdir(tmp_path / "predictions")) == names
    assert predict(f"format={kind}", "rows_per_part=10").code == 0
    assert set(os.listdir(tmp_path / "predictions")) == names | {f"part-00002.{kind}"}


def test_part_that_was_damaged_after_it_was_written(predict: Predict, tmp_path: Path) -> None:
    assert predict("format=parquet", "rows_per_part=10").code == 0
    part = tmp_path / "predictions" / "part-00001.parquet"
    part.write_bytes(part.read_bytes()[:-20])
    message = message_of(predict("format=parquet", "rows_per_part=10"))
    assert message.startswith("predictions/part-00001.parquet cannot be read: ")
    assert message.endswith("Delete it and start the same command again")


def test_csv_part_that_was_cut_off(predict: Predict, tmp_path: Path) -> None:
    assert predict("rows_per_part=10").code == 0
    part = tmp_path / "predictions" / "part-00001.csv"
    part.write_bytes(part.read_bytes()[:-80])
    message = message_of(predict("rows_per_part=10"))
    assert message.startswith("predictions/part-00001.csv cannot be read: a row is cut off")


@pytest.mark.parametrize(("rank", "size"), [("3", "2"), ("one", "2"), ("-1", "2")])
def test_numbers_of_torchrun_that_cannot_be(
    predict: Predict, monkeypatch: pytest.MonkeyPatch, rank: str, size: str
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", size)
    assert message_of(predict()) == (
        f"RANK={rank} and WORLD_SIZE={size}: no shard has these numbers. Set shard=... num_shards=..."
    )
