"""The cache of decoded images: the same pixels, whatever happens to it."""

from __future__ import annotations

import io
import logging
import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mlops_img.config.augment import AugmentConfig
from mlops_img.data import pixel_cache
from mlops_img.data.pixel_cache import CachedDecode, PixelCache, needed_side
from mlops_img.preprocessing.decode import decode_rgb
from mlops_img.preprocessing.transforms import Preprocessing
from tests.helpers.commands import Outcome
from tests.helpers.shapes import draw_shape
from tests.helpers.stopped_runs import metrics

Train = Callable[..., Outcome]
PREPROCESSING = Preprocessing(32, 0.5, (0.5,) * 3, (0.25,) * 3)


def file_of(number: int, size: tuple[int, int] = (60, 60)) -> bytes:
    buffer = io.BytesIO()
    draw_shape("circle", number, side=60).resize(size).save(buffer, "png")
    return buffer.getvalue()


def counted(decoded: list[bytes]) -> Callable[[bytes | Image.Image], NDArray[np.uint8]]:
    """Return a decoder that notes the files it is asked for."""

    def decode(source: bytes | Image.Image) -> NDArray[np.uint8]:
        if isinstance(source, bytes):
            decoded.append(source)
        return decode_rgb(source)

    return decode


def decoder(folder: Path, decoded: list[bytes], shorter: int | None = None, gigabytes: float = 0.01) -> CachedDecode:
    return CachedDecode(counted(decoded), PixelCache(folder, gigabytes), f"{shorter}", shorter)


@pytest.fixture(autouse=True)
def written_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixel_cache, "PENDING", 1)


# --- pixels ------------------------------------------------------------------------------------------


def test_image_is_decoded_once_and_found_again_by_another_run(tmp_path: Path) -> None:
    decoded: list[bytes] = []
    first = decoder(tmp_path, decoded)(file_of(0))
    again = pickle.loads(pickle.dumps(PixelCache(tmp_path, 0.01)))
    assert np.array_equal(CachedDecode(counted(decoded), again, "None")(file_of(0)), first)
    assert np.array_equal(first, decode_rgb(file_of(0)))
    assert decoded == [file_of(0)]


def test_images_that_are_not_written_yet_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixel_cache, "PENDING", 100)
    decoded: list[bytes] = []
    decode = decoder(tmp_path, decoded)
    for _ in range(2):
        assert np.array_equal(decode(file_of(1)), decode_rgb(file_of(1)))
    assert len(decoded) == 1


def test_changed_file_and_other_settings_are_decoded_anew(tmp_path: Path) -> None:
    decoded: list[bytes] = []
    decoder(tmp_path, decoded)(file_of(0))
    decoder(tmp_path, decoded)(file_of(1))
    decoder(tmp_path, decoded, shorter=30)(file_of(0))
    assert len(decoded) == 3


def test_cached_pixels_may_be_changed(tmp_path: Path) -> None:
    decode = decoder(tmp_path, [])
    decode(file_of(0))
    decode(file_of(0))[:] = 0
    assert np.array_equal(decode(file_of(0)), decode_rgb(file_of(0)))


@pytest.mark.parametrize(("size", "kept"), [((90, 60), (30, 45)), ((60, 120), (60, 30)), ((20, 400), (400, 20))])
def test_shorter_side_is_reduced_and_never_enlarged(
    tmp_path: Path, size: tuple[int, int], kept: tuple[int, int]
) -> None:
    for _ in range(2):
        assert decoder(tmp_path, [], shorter=30)(file_of(0, size)).shape == (*kept, 3)


def test_needed_side_enlarges_no_crop() -> None:
    assert needed_side(AugmentConfig(scale=[0.25, 1.0]), PREPROCESSING, 32) == 64
    assert needed_side(AugmentConfig(crop="pad"), PREPROCESSING, 32) == 64
    assert needed_side(AugmentConfig(crop="none"), Preprocessing(32, 1.0, (0,), (1,)), 48) == 48


# --- trouble -----------------------------------------------------------------------------------------


def test_full_cache_warns_once_and_training_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "mlops_img")
    decoded: list[bytes] = []
    decode = decoder(tmp_path, decoded, gigabytes=2**-14)  # 64 kB
    for _ in range(2):
        for number in range(20):
            assert np.array_equal(decode(file_of(number)), decode_rgb(file_of(number)))
    assert 20 < len(decoded) < 40  # some were kept, the others were not
    (warning,) = caplog.messages
    assert "it is full (6.10352e-05 GB). Raise data.cache_gb, or delete it" in warning


@pytest.mark.parametrize("damage", ["garbage", "cut", "file"])
def test_cache_that_cannot_be_opened_warns_once_and_training_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    caplog.set_level(logging.WARNING, "mlops_img")
    folder = tmp_path / "cache"
    if damage == "file":
        folder.write_text("not a folder")
    else:
        folder.mkdir()
        (folder / "data.mdb").write_bytes(b"x" * 9000 if damage == "garbage" else b"\0" * 100)
    decode = decoder(folder, [])
    for number in range(3):
        assert np.array_equal(decode(file_of(number)), decode_rgb(file_of(number)))
    assert len(caplog.messages) == 1
    assert "data.cache: nothing more is added to" in caplog.text


def fill(folder: Path, numbers: list[int]) -> int:
    """Decode images through a cache of one's own process; returns how many were decoded."""
    pixel_cache.PENDING = 1
    decoded: list[bytes] = []
    decode = decoder(folder, decoded)
    for number in numbers:
        assert np.array_equal(decode(file_of(number)), decode_rgb(file_of(number)))
    return len(decoded)


def test_processes_fill_the_cache_together(tmp_path: Path) -> None:
    numbers = list(range(24))
    with ProcessPoolExecutor(3, mp_context=get_context("fork")) as pool:
        assert sum(pool.map(fill, [tmp_path] * 3, [numbers] * 3)) >= len(numbers)
    decoded: list[bytes] = []
    decode = decoder(tmp_path, decoded)
    for number in numbers:
        assert np.array_equal(decode(file_of(number)), decode_rgb(file_of(number)))
    assert not decoded


# --- runs --------------------------------------------------------------------------------------------


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(pixel_cache, "cache_folder", lambda: tmp_path / "cache" / "contents")
    return tmp_path / "cache" / f"pixels-{pixel_cache.FORMAT}"


@pytest.mark.usefixtures("no_pictures")
def test_training_from_the_cache_is_the_same_to_the_bit(train: Train, own_cache: Path, tmp_path: Path) -> None:
    settings = ("augment=strong", "train.log_every_steps=1")
    assert train(*settings, "hydra.run.dir=runs/plain").code == 0
    for name, workers in (("filling", 0), ("cached", 0), ("workers", 2)):
        outcome = train(*settings, "data.cache=decoded", f"data.workers={workers}", f"hydra.run.dir=runs/{name}")
        assert outcome.code == 0, outcome.err
        assert "data.cache: " not in outcome.out
        assert metrics(tmp_path / "runs" / name) == metrics(tmp_path / "runs/plain")
    assert (own_cache / "data.mdb").is_file()


@pytest.mark.usefixtures("no_pictures")
def test_training_on_resized_images_is_the_same_in_every_run(train: Train, own_cache: Path, tmp_path: Path) -> None:
    settings = ("augment=light", "augment.scale=[0.6,1.0]", "data.cache=resized", "train.log_every_steps=1")
    for name in ("one", "two"):
        assert train(*settings, f"hydra.run.dir=runs/{name}").code == 0
    assert metrics(tmp_path / "runs/one") == metrics(tmp_path / "runs/two")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.cache=decodet", "data.cache=decodet: it can be none, decoded, resized. Did you mean 'decoded'?"),
        ("data.cache_gb=0", "data.cache_gb=0.0: it must be more than 0"),
    ],
)
def test_invalid_settings_are_refused(train: Train, setting: str, message: str) -> None:
    outcome = train(setting)
    assert outcome.code == 2
    assert message in outcome.err


def test_missing_package_is_named(train: Train, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lmdb", None)
    outcome = train("data.cache=decoded")
    assert outcome.code == 2
    assert 'data.cache=decoded needs LMDB: pip install "mlops_img[cache]"' in outcome.err
