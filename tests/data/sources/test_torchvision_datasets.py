"""Data sets of torchvision: read from files, downloaded, with their published splits."""

from __future__ import annotations

import gzip
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from torchvision import datasets

from mlops_img.config.data import TorchvisionConfig
from mlops_img.data.dataset import load_dataset
from mlops_img.data.sources.base import Table
from mlops_img.errors import UserError
from mlops_img.preprocessing.decode import decode_rgb
from tests.helpers.source_tables import save, table_of


def idx(values: NDArray[np.uint8]) -> bytes:
    """Write an array in the format of the MNIST files."""
    head = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4) for size in values.shape)
    return head + values.tobytes()


def digits(count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (count, 28, 28), dtype=np.uint8), np.arange(count, dtype=np.uint8) % 10


def write_digits(folder: Path, prefix: str = "", suffix: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", 60), ("t10k", 20)):
        part_name = part if not prefix else part.replace("t10k", "test")
        pictures, labels = digits(count, seed=count)
        for name, values in (("images-idx3", pictures), ("labels-idx1", labels)):
            content = idx(values)
            path = folder / f"{prefix}{part_name}-{name}-ubyte{suffix}"
            path.write_bytes(gzip.compress(content) if suffix else content)


def torchvision_table(root: Path, dataset: str, **changes: Any) -> Table:
    return table_of(TorchvisionConfig(root=str(root), dataset=dataset, **({"download": False} | changes)))


def test_torchvision_data_set_is_read_from_its_files(tmp_path: Path) -> None:
    write_digits(tmp_path / "FashionMNIST" / "raw")
    table = torchvision_table(tmp_path, "FashionMNIST")
    assert {split: len(images) for split, images in table.splits.items()} == {"train": 60, "test": 20}
    assert table.classes[:2] == ["T-shirt/top", "Trouser"]
    assert table.origins["test"].text("test") == "given in torchvision's FashionMNIST"
    images = table.splits["test"]
    assert images.labels.tolist() == [*range(10), *range(10)]
    pictures, _ = digits(20, seed=20)
    np.testing.assert_array_equal(decode_rgb(images.read(images.paths[7]))[:, :, 0], pictures[7])


def test_missing_splits_are_split_off_train(tmp_path: Path) -> None:
    write_digits(tmp_path / "MNIST" / "raw")
    dataset = load_dataset(TorchvisionConfig(root=str(tmp_path), dataset="MNIST", download=False))
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (50, 10, 20)
    assert not set(dataset.train.paths) & set(dataset.val.paths)


def test_a_required_argument_in_kwargs_is_passed_for_both_splits(tmp_path: Path) -> None:
    write_digits(tmp_path / "EMNIST" / "raw", prefix="emnist-digits-")
    with pytest.raises(UserError, match=r"'split'. Set its arguments with data.kwargs"):
        torchvision_table(tmp_path, "EMNIST")
    table = torchvision_table(tmp_path, "EMNIST", kwargs={"split": "digits"})
    assert {split: len(images) for split, images in table.splits.items()} == {"train": 60, "test": 20}


def test_unknown_argument_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unexpected keyword argument 'color'.*data.kwargs"):
        torchvision_table(tmp_path, "CIFAR10", kwargs={"color": True})


@pytest.fixture
def countries(tmp_path: Path) -> Path:
    """Write Country211, whose splits train, valid and test are selected by `split`."""
    for number, split in enumerate(("train", "valid", "test")):
        for label, name in enumerate(("AD", "ZW")):
            for copy in range(3 + number):
                save(tmp_path / "country211" / split / name / f"{copy}.jpg", 100 * number + 10 * label + copy)
    return tmp_path


def test_all_splits_of_a_data_set_are_used(countries: Path) -> None:
    table = torchvision_table(countries, "Country211")
    assert {split: len(images) for split, images in table.splits.items()} == {"train": 6, "val": 8, "test": 10}
    assert table.classes == ["AD", "ZW"]


def test_a_split_in_kwargs_is_the_only_split(countries: Path) -> None:
    table = torchvision_table(countries, "Country211", kwargs={"split": "test"})
    assert {split: len(images) for split, images in table.splits.items()} == {"train": 10}


def test_a_val_split_that_is_part_of_trainval_does_not_leak_into_train(tmp_path: Path) -> None:
    # The default split of FGVCAircraft is trainval, which contains val.
    data = tmp_path / "fgvc-aircraft-2013b" / "data"
    data.mkdir(parents=True)
    (data / "variants.txt").write_text("707\nA320\n")
    lines: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for number in range(12):
        save(data / "images" / f"{number}.jpg", number)
        lines[("train", "val", "test")[number // 4]].append(f"{number} {('707', 'A320')[number % 2]}")
    for split, members in (*lines.items(), ("trainval", lines["train"] + lines["val"])):
        (data / f"images_variant_{split}.txt").write_text("\n".join(members) + "\n")
    table = torchvision_table(tmp_path, "FGVCAircraft")
    pixels = {
        split: {decode_rgb(images.read(path)).tobytes() for path in images.paths}
        for split, images in table.splits.items()
    }
    assert {split: len(found) for split, found in pixels.items()} == {"train": 4, "val": 4, "test": 4}
    assert len(set.union(*pixels.values())) == 12


def test_all_names_of_a_class_are_kept(tmp_path: Path) -> None:
    for number, split in enumerate(("train", "val")):
        for label, name in enumerate(("n01440764", "n03425413")):
            for copy in range(4):
                folder = tmp_path / "imagenette2" / split / name
                save(folder / f"{copy}.jpeg", 100 * number + 10 * label + copy)
    table = torchvision_table(tmp_path, "Imagenette")
    assert table.classes == ["tench/Tinca tinca", "gas pump/gasoline pump/petrol pump/island dispenser"]
    assert {split: images.labels.tolist() for split, images in table.splits.items()} == {
        "train": [0, 0, 0, 0, 1, 1, 1, 1],
        "val": [0, 0, 0, 0, 1, 1, 1, 1],
    }


def test_a_test_split_without_labels_is_left_out(tmp_path: Path) -> None:
    root = tmp_path / "clevr" / "CLEVR_v1.0"
    (root / "scenes").mkdir(parents=True)
    for number, split in enumerate(("train", "val", "test")):
        scenes = []
        for copy in range(6):
            name = f"CLEVR_{split}_{copy}.png"
            save(root / "images" / split / name, 10 * number + copy)
            scenes.append({"image_filename": name, "objects": [{}] * (copy % 2)})
        if split != "test":
            (root / "scenes" / f"CLEVR_{split}_scenes.json").write_text(json.dumps({"scenes": scenes}))
    table = torchvision_table(tmp_path, "CLEVRClassification")
    assert {split: images.labels.tolist() for split, images in table.splits.items()} == {
        "train": [0, 1] * 3,
        "val": [0, 1] * 3,
    }


def test_unknown_data_set_is_rejected_with_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no data set 'FashonMNIST'. Did you mean 'FashionMNIST'\?"):
        torchvision_table(tmp_path, "FashonMNIST")


@pytest.mark.parametrize("dataset", ["CIFAR10", "FashionMNIST", "USPS", "Flowers102"])
def test_missing_data_are_rejected_with_the_download_option(tmp_path: Path, dataset: str) -> None:
    with pytest.raises(UserError, match=f"{dataset} under {tmp_path}: .*data.download=true") as caught:
        torchvision_table(tmp_path, dataset)
    assert "\n" not in str(caught.value)


def test_a_data_set_that_is_not_for_classification_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="its items are not images with one class each"):
        torchvision_table(tmp_path, "FakeData", kwargs={"transform": np.asarray})


def test_a_generated_data_set_needs_no_root() -> None:
    table = torchvision_table(Path("unused"), "FakeData", kwargs={"size": 9, "image_size": [3, 8, 8], "num_classes": 2})
    assert len(table.splits["train"]) == 9
    assert table.classes == ["0", "1"]
    assert decode_rgb(table.splits["train"].read("FakeData/train/3")).shape == (8, 8, 3)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Callable[[], tuple[str, list[str]]]]:
    """Serve `tmp_path`/served over HTTP; return the address and the list of requested paths."""
    asked: list[str] = []

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            asked.append(self.path)

    folder = tmp_path / "served"
    folder.mkdir()
    http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield lambda: (f"http://127.0.0.1:{http.server_address[1]}/", asked)
    http.shutdown()
    http.server_close()
    thread.join()


def test_missing_data_are_downloaded_once(
    tmp_path: Path, server: Callable[[], tuple[str, list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, asked = server()
    served = tmp_path / "served"
    write_digits(served, suffix=".gz")
    sums = [(path.name, hashlib.md5(path.read_bytes()).hexdigest()) for path in sorted(served.iterdir())]
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [address])
    monkeypatch.setattr(datasets.FashionMNIST, "resources", sums)
    table = torchvision_table(tmp_path / "data", "FashionMNIST", download=True)
    assert {split: len(images) for split, images in table.splits.items()} == {"train": 60, "test": 20}
    assert {path.strip("/") for path in asked} == {name for name, _ in sums}
    count = len(asked)
    torchvision_table(tmp_path / "data", "FashionMNIST", download=True)
    assert len(asked) == count


def test_a_failed_download_is_reported_in_one_line(
    tmp_path: Path, server: Callable[[], tuple[str, list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, _ = server()
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [address])
    with pytest.raises(UserError, match="FashionMNIST under") as caught:
        torchvision_table(tmp_path / "data", "FashionMNIST", download=True)
    assert "\n" not in str(caught.value)
