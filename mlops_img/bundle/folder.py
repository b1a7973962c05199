"""A bundle: the folder that holds everything it takes to predict, and nothing that could harm.

manifest.json describes it (`mlops_img.bundle.manifest`). No file is a pickle, and the folder has no file that the
manifest does not list. Checking a bundle needs no PyTorch.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from mlops_img.bundle.manifest import FORMAT, File, Manifest
from mlops_img.core.files import point_link, sync_tree, write_text
from mlops_img.errors import UserError

MANIFEST = "manifest.json"


def read_bundle(path: Path) -> Manifest:
    """Read the manifest of a bundle and see that every file is as it was written.

    Raises:
        UserError: there is no bundle; it is of a newer format; or a file is missing, extra, changed or truncated.
    """
    manifest = read_manifest(path)
    present = {str(file.relative_to(path)) for file in path.rglob("*") if not file.is_dir()} - {MANIFEST}
    for name in sorted(manifest.named_files() - manifest.files.keys()):
        raise UserError(f"bundle {path}: {MANIFEST} names {name} and does not list it. {_AGAIN}")
    for name in sorted(manifest.files.keys() - present):
        raise UserError(f"bundle {path}: {name} is missing. {_AGAIN}")
    for name in sorted(present - manifest.files.keys()):
        raise UserError(f"bundle {path}: {name} does not belong to it. Take it away, or export the run again")
    for name, file in manifest.files.items():
        size = (path / name).stat().st_size
        if size != file.bytes:
            raise UserError(f"bundle {path}: {name} has {size:,} bytes instead of {file.bytes:,}. {_AGAIN}")
        if sha256(path / name) != file.sha256:
            raise UserError(f"bundle {path}: {name} was changed: its sha256 is another. {_AGAIN}")
    return manifest


def read_manifest(path: Path) -> Manifest:
    """Read and validate manifest.json; the other files are not checked.

    Raises:
        UserError: it is missing, not a manifest of this project, or of a newer format.
    """
    try:
        content = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        number = content["format"]
    except OSError:
        raise UserError(
            f"{path} is not a bundle: it has no {MANIFEST}. Make one with python -m mlops_img.export run=runs/latest"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"bundle {path}: {MANIFEST} cannot be read. {_AGAIN}") from None
    if isinstance(number, int) and number > FORMAT:
        raise UserError(
            f"bundle {path} is of format {number}, and this mlops_img knows up to {FORMAT}. Install a newer one"
        )
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(f"bundle {path}: {MANIFEST}, {place}: {first['msg']}. {_AGAIN}") from None


@contextmanager
def new_bundle(root: Path, name: str) -> Iterator[tuple[Path, str]]:
    """Give a folder to fill, and the version; after it `root`/<name>-<version> is there and `root`/latest leads to it.

    Whatever happens on the way, no half bundle takes the name. The manifest is to be written last, by
    `write_manifest`.

    Raises:
        UserError: the place cannot be written.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        version = _next_version(root, name)
        part = root / f".{name}-{version}.{os.getpid()}.part"
        part.mkdir()
    except OSError as error:
        raise UserError(
            f"bundles={root} cannot be written: {error.strerror}. Choose another folder with bundles=..."
        ) from None
    try:
        yield part, version
        sync_tree(part)
        os.replace(part, root / f"{name}-{version}")
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    point_link(root / "latest", root / f"{name}-{version}")


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write manifest.json, with the size and the checksum of every file in the folder."""
    names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    files = {name: File(bytes=(folder / name).stat().st_size, sha256=sha256(folder / name)) for name in names}
    full = manifest.model_copy(update={"files": files})
    write_text(folder / MANIFEST, full.model_dump_json(indent=2) + "\n")


def sha256(path: Path) -> str:
    """Return the sha256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_AGAIN = "Get the bundle again from where it came, or export the run again"


def _next_version(root: Path, name: str) -> str:
    taken = [path.name.removeprefix(f"{name}-") for path in root.glob(f"{name}-*")]
    return str(1 + max((int(version) for version in taken if version.isdigit()), default=0))
