"""Where the bundle is: a folder, a bucket, or BentoML's model store; always a local folder in the end."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from mlops_img.bundle import MANIFEST, read_bundle
from mlops_img.errors import UserError

STORE = "bentoml:"
BUCKET = "gs://"


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
        folder = _from_bucket(location)
    elif "://" in location:
        raise UserError(f"MLOPS_IMG_BUNDLE={location}: name a folder, gs://bucket/folder or bentoml:name:version")
    else:
        folder = Path(location).resolve()
    read_bundle(folder)
    return folder


def _from_store(tag: str) -> Path:
    import bentoml

    try:
        return Path(bentoml.models.get(tag).path)
    except (bentoml.exceptions.NotFound, ValueError, bentoml.exceptions.BentoMLException):
        raise UserError(
            f"MLOPS_IMG_BUNDLE={STORE}{tag}: BentoML's model store has no such model. "
            "Put a bundle there with python -m mlops_img.store bundle=bundles/latest"
        ) from None


def cache_folder() -> Path:
    """Return where fetched bundles are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlops_img" / "bundles"


def _from_bucket(location: str) -> Path:
    """Fetch a bundle once; a half fetched one never takes its name."""
    bucket, prefix = urlsplit(location).netloc, urlsplit(location).path.strip("/")
    from google.api_core.exceptions import GoogleAPIError
    from google.auth.exceptions import GoogleAuthError
    from google.cloud import storage
    from google.cloud.storage import transfer_manager
    from google.cloud.storage.retry import DEFAULT_RETRY

    retry = DEFAULT_RETRY.with_timeout(30)
    try:
        client = storage.Client()
        source = client.bucket(bucket)
        manifest = source.blob(f"{prefix}/{MANIFEST}").download_as_bytes(retry=retry, timeout=30)
        folder = cache_folder() / hashlib.sha256(manifest).hexdigest()
        if (folder / MANIFEST).is_file():
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as part:
            names = [blob.name.removeprefix(f"{prefix}/") for blob in client.list_blobs(source, prefix=f"{prefix}/")]
            results = transfer_manager.download_many_to_path(
                source,
                [name for name in names if not name.endswith("/")],
                destination_directory=part,
                blob_name_prefix=f"{prefix}/",
                worker_type=transfer_manager.THREAD,
                raise_exception=True,
            )
            assert all(result is None for result in results)
            read_bundle(Path(part))
            shutil.copytree(part, f"{part}.whole")
            try:
                os.replace(f"{part}.whole", folder)
            except OSError:  # another process was faster
                shutil.rmtree(f"{part}.whole")
    except (GoogleAPIError, GoogleAuthError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"MLOPS_IMG_BUNDLE={location} cannot be fetched: {reason}") from None
    return folder
