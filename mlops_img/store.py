"""Put a bundle into BentoML's model store: `python -m mlops_img.store bundle=bundles/latest`.

Prints the tag; MLOPS_IMG_BUNDLE=bentoml:<tag> serves it, and bentoml:mlops_img:latest the newest.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from mlops_img.cli import command
from mlops_img.config.commands import StoreConfig
from mlops_img.errors import UserError

if TYPE_CHECKING:
    import bentoml

MODEL = "mlops_img"


def store(config: StoreConfig) -> None:
    """Store the bundle, unless the store has it already, and print the tag.

    Raises:
        UserError: no bundle, or a damaged one; or a store that cannot be read or written.
    """
    # BentoML sends usage data for each saved model, and waits if there is no network.
    os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")
    from bentoml.exceptions import BentoMLException

    try:
        print(store_bundle(Path(config.bundle)))
    except (BentoMLException, OSError) as error:
        reason = " ".join(str(error).split())[:200].removesuffix(".")
        raise UserError(
            f"BentoML's model store: {reason}. Repair it, or choose another folder with BENTOML_HOME=..."
        ) from None


def store_bundle(folder: Path) -> str:
    """Return the tag under which BentoML's model store has a bundle, put there now or before.

    Raises:
        UserError: no bundle, or a damaged one.
        BentoMLException, OSError: a store that cannot be read or written.
    """
    import bentoml

    from mlops_img.bundle.folder import read_bundle
    from mlops_img.registry.locate import FOLDER_IN_MODEL

    manifest = read_bundle(folder)
    for model in _stored():
        if _is_copy(Path(model.path) / FOLDER_IN_MODEL, folder):
            return str(model.tag)
    labels = {"name": manifest.name, "version": manifest.version, "precision": manifest.precision}
    with bentoml.models.create(MODEL, labels=labels) as model:
        shutil.copytree(folder, model.path_of(FOLDER_IN_MODEL))
    return str(model.tag)


def _stored() -> list[bentoml.Model]:
    import bentoml

    try:
        return bentoml.models.list(MODEL)
    except bentoml.exceptions.NotFound:
        return []


def _is_copy(stored: Path, folder: Path) -> bool:
    """Return whether a model is this bundle, and whole: the manifest holds the sha256 of all other files."""
    from mlops_img.bundle.folder import MANIFEST, read_bundle

    # Most differ in their manifest.
    same = (stored / MANIFEST).is_file() and (stored / MANIFEST).read_bytes() == (folder / MANIFEST).read_bytes()
    try:
        return same and bool(read_bundle(stored))
    except UserError:
        return False


def main() -> None:
    """Run the command line."""
    command(store, "store")


if __name__ == "__main__":
    main()
