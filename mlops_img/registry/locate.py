"""From the location of a bundle (a folder, a bucket, BentoML's model store) to a local folder."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlops_img.bundle.folder import MANIFEST, read_bundle, read_manifest
from mlops_img.core.files import sync_tree
from mlops_img.errors import UserError

STORE = "bentoml:"
BUCKET = "gs://"
# In a model of BentoML's store, beside BentoML's own model.yaml, which is not a file of the bundle.
FOLDER_IN_MODEL = "bundle"
# Seconds: total time of all tries to reach a bucket, and of one try.
DEADLINE = 30.0
TRY = 10.0

log = logging.getLogger(__name__)


def local_bundle(location: str, setting: str = "bundle") -> Path:
    """Return the folder of a complete bundle, downloaded if it is not a local folder.

    Args:
        location: a folder; gs://bucket/folder; or bentoml:name:version, of BentoML's model store.
        setting: what the user set to the location, for errors.

    Raises:
        UserError: there is no bundle, it cannot be downloaded, or it is damaged.
    """
    given = f"{setting}={location}"
    if location.startswith(STORE):
        folder = _from_store(location.removeprefix(STORE), given)
    elif location.startswith(BUCKET):
        return _from_bucket(location, given)
    elif "://" in location:
        raise _unknown_location(given)
    else:
        folder = Path(location).resolve()
    read_bundle(folder)
    return folder


def cache_folder() -> Path:
    """Return the folder of downloaded bundles."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlops_img" / "bundles"


def _unknown_location(given: str) -> UserError:
    return UserError(f"{given}: name a folder, gs://bucket/folder or bentoml:name:version")


def _from_store(tag: str, given: str) -> Path:
    with _installed(given):
        import bentoml
        from bentoml.exceptions import BentoMLException

    try:
        return Path(bentoml.models.get(tag).path) / FOLDER_IN_MODEL
    except (BentoMLException, ValueError):
        raise UserError(
            f"{given}: BentoML's model store has no such model. "
            "Put a bundle there with python -m mlops_img.store bundle=bundles/latest"
        ) from None


def _from_bucket(location: str, given: str) -> Path:
    """Return the folder of a bundle that was downloaded, now or before; it is named by the sha256 of its manifest."""
    with _installed(given):
        from google.api_core.exceptions import GoogleAPIError, NotFound
        from google.auth.exceptions import GoogleAuthError
        from google.cloud import storage
        from google.cloud.storage.exceptions import DataCorruption
        from google.cloud.storage.retry import DEFAULT_RETRY

    limits: dict[str, Any] = {"retry": DEFAULT_RETRY.with_timeout(DEADLINE), "timeout": TRY}
    name, _, path = location.removeprefix(BUCKET).partition("/")
    prefix = f"{path.strip('/')}/".removeprefix("/")
    if not name:
        raise _unknown_location(given)
    wanted = MANIFEST
    try:
        bucket = storage.Client().bucket(name)
        manifest = bucket.blob(prefix + wanted).download_as_bytes(**limits)
        kept = cache_folder() / hashlib.sha256(manifest).hexdigest()
        if _is_whole(kept):
            return kept
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent, prefix=".") as temporary:
            part = Path(temporary) / "bundle"
            part.mkdir()
            (part / MANIFEST).write_bytes(manifest)
            with _named_as(location, part):
                for wanted in read_manifest(part).files:
                    (part / wanted).parent.mkdir(parents=True, exist_ok=True)
                    bucket.blob(prefix + wanted).download_to_filename(part / wanted, **limits)
                read_bundle(part)
            sync_tree(part)
            try:
                os.replace(part, kept)
            except OSError:
                if not _is_whole(kept):  # else another process was faster
                    raise
        return kept
    except NotFound:
        raise UserError(f"{given}: there is no {BUCKET}{name}/{prefix}{wanted}. Copy a whole bundle there") from None
    except (GoogleAPIError, GoogleAuthError, DataCorruption, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{given} cannot be downloaded: {reason}") from None


def _is_whole(kept: Path) -> bool:
    """Return whether a bundle was downloaded before; one that is damaged is removed."""
    if not kept.is_dir():
        return False
    try:
        read_bundle(kept)
    except UserError as error:
        log.warning("%s; it is downloaded again", error)
        shutil.rmtree(kept, ignore_errors=True)
        return False
    return True


@contextlib.contextmanager
def _installed(given: str) -> Iterator[None]:
    """Turn a missing package into a UserError."""
    try:
        yield
    except ImportError as error:
        raise UserError(f'{given}: {error}. Install it with: pip install "mlops_img[serve]"') from None


@contextlib.contextmanager
def _named_as(location: str, folder: Path) -> Iterator[None]:
    """Name the location in errors instead of the temporary folder."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace(str(folder), location)) from None
