"""Where the bundle is: a folder, a bucket, or BentoML's model store; always a local folder in the end."""

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
# In a model of BentoML's store: its own model.yaml lies beside, and would be none of the bundle's files.
FOLDER_IN_MODEL = "bundle"
# Seconds: how long a bucket that does not answer is asked again, and how long one try may wait.
DEADLINE = 30.0
TRY = 10.0

log = logging.getLogger(__name__)


def local_bundle(location: str) -> Path:
    """Return the folder of a bundle that is whole, fetched if it lies elsewhere.

    Args:
        location: a folder; gs://bucket/folder; or bentoml:name:version, of BentoML's model store.

    Raises:
        UserError: there is none, it cannot be fetched, or it is damaged.
    """
    if location.startswith(STORE):
        folder = _from_store(location.removeprefix(STORE))
    elif location.startswith(BUCKET):
        return _from_bucket(location)
    elif "://" in location:
        raise _no_location(location)
    else:
        folder = Path(location).resolve()
    read_bundle(folder)
    return folder


def cache_folder() -> Path:
    """Return where fetched bundles are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlops_img" / "bundles"


def _no_location(location: str) -> UserError:
    return UserError(f"MLOPS_IMG_BUNDLE={location}: name a folder, gs://bucket/folder or bentoml:name:version")


def _from_store(tag: str) -> Path:
    import bentoml
    from bentoml.exceptions import BentoMLException

    try:
        return Path(bentoml.models.get(tag).path) / FOLDER_IN_MODEL
    except (BentoMLException, ValueError):
        raise UserError(
            f"MLOPS_IMG_BUNDLE={STORE}{tag}: BentoML's model store has no such model. "
            "Put a bundle there with python -m mlops_img.store bundle=bundles/latest"
        ) from None


def _from_bucket(location: str) -> Path:
    """Return the folder of a bundle that was fetched, now or before: it is kept under the sha256 of its manifest."""
    from google.api_core.exceptions import GoogleAPIError, NotFound
    from google.auth.exceptions import GoogleAuthError
    from google.cloud import storage
    from google.cloud.storage.exceptions import DataCorruption
    from google.cloud.storage.retry import DEFAULT_RETRY

    patience: dict[str, Any] = {"retry": DEFAULT_RETRY.with_timeout(DEADLINE), "timeout": TRY}
    name, _, path = location.removeprefix(BUCKET).partition("/")
    prefix = f"{path.strip('/')}/".removeprefix("/")
    if not name:
        raise _no_location(location)
    wanted = MANIFEST
    try:
        bucket = storage.Client().bucket(name)
        manifest = bucket.blob(prefix + wanted).download_as_bytes(**patience)
        kept = cache_folder() / hashlib.sha256(manifest).hexdigest()
        if _is_whole(kept):
            return kept
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent, prefix=".") as temporary:
            part = Path(temporary) / "bundle"
            part.mkdir()
            (part / MANIFEST).write_bytes(manifest)
            with _told_of(part, location):
                for wanted in read_manifest(part).files:
                    (part / wanted).parent.mkdir(parents=True, exist_ok=True)
                    bucket.blob(prefix + wanted).download_to_filename(part / wanted, **patience)
                read_bundle(part)
            sync_tree(part)
            try:
                os.replace(part, kept)
            except OSError:
                if not _is_whole(kept):  # else another process was faster
                    raise
        return kept
    except NotFound:
        raise UserError(
            f"MLOPS_IMG_BUNDLE={location}: there is no {BUCKET}{name}/{prefix}{wanted}. Copy a whole bundle there"
        ) from None
    except (GoogleAPIError, GoogleAuthError, DataCorruption, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"MLOPS_IMG_BUNDLE={location} cannot be fetched: {reason}") from None


def _is_whole(kept: Path) -> bool:
    """Return whether a bundle was fetched before; one that was damaged since is taken away."""
    if not kept.is_dir():
        return False
    try:
        read_bundle(kept)
    except UserError as error:
        log.warning("%s; it is fetched again", error)
        shutil.rmtree(kept, ignore_errors=True)
        return False
    return True


@contextlib.contextmanager
def _told_of(folder: Path, location: str) -> Iterator[None]:
    """Let errors name the place that the user knows."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace(str(folder), location)) from None
