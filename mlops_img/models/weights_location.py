"""Find the weights that `model.weights` names: a file, a folder, or a repository of the Hugging Face hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import yaml
from huggingface_hub import constants, get_session, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from timm.models import parse_model_name

from mlops_img.errors import UserError
from mlops_img.models.errors import first_line
from mlops_img.models.weights_file import Weights, read_weights

HUB_TIMEOUT = 5.0  # seconds

# Weights files of a bundle, a run, timm's training and Hugging Face's layout; the first that exists is used.
IN_FOLDER = (
    "weights.safetensors",
    "checkpoints/best.pt",
    "best.pt",
    "model_best.pth.tar",
    "last.pth.tar",
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
ON_HUB = ("model.safetensors", "pytorch_model.bin")


def find_weights(location: str) -> Weights:
    """Read the weights that `model.weights` names.

    Args:
        location: a file; a run folder, a bundle, an output folder of timm or a folder in the layout of Hugging Face;
            or hf-hub:<owner>/<name>, with @<revision> or without.

    Raises:
        UserError: the location does not exist or has no weights.
    """
    if is_on_hub(location):
        path = _download(location)
    else:
        path = Path(location).expanduser()
        if not path.exists():
            raise UserError(
                f"model.weights: file {path} does not exist. Use none, hub, hf-hub:<owner>/<name>, or the path of a "
                "weights file, a run folder or a bundle"
            )
    folder = path if path.is_dir() else path.parent
    file = _in_folder(path) if path.is_dir() else path
    weights = _read_shards(file) if file.name.endswith(".index.json") else read_weights(file)
    architecture = weights.architecture or _architecture_by_config(folder, file) or _architecture_by_file_name(file)
    return replace(weights, architecture=architecture)


def is_on_hub(name: str) -> bool:
    """Return whether a name is timm's for a repository of the Hugging Face hub: hf-hub:<owner>/<name>."""
    return name.startswith(("hf-hub:", "hf_hub:"))


@contextmanager
def hub_or_cache() -> Iterator[None]:
    """Return a context in which the Hugging Face client uses only its cache if the hub does not answer.

    Without it, the client retries for most of a minute before it fails.
    """
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _hub_answers()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _hub_answers() -> bool:
    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT)
    except Exception:  # DNS, routing, certificate, offline mode
        return False
    return True


def _download(location: str) -> Path:
    """Download the weights and the config.json of a repository; return the path of the weights in the cache."""
    repository, _, revision = parse_model_name(location)[1].partition("@")
    try:
        with hub_or_cache():
            _download_file(repository, "config.json", revision)
            for name in ON_HUB:
                path = _download_file(repository, name, revision)
                if path is not None:
                    return path
    except Exception as error:  # the client raises errors of many types
        raise UserError(
            f"model.weights={location}: it could not be downloaded ({first_line(error)}). "
            "Check the name and the network, or name a file"
        ) from None
    raise UserError(f"model.weights={location}: the repository has neither {' nor '.join(ON_HUB)}")


def _download_file(repository: str, name: str, revision: str) -> Path | None:
    try:
        return Path(hf_hub_download(repository, name, revision=revision or None))
    except EntryNotFoundError as error:
        # Offline, this means that the file is not in the cache; another name may be.
        if isinstance(error, FileNotFoundError) and name == ON_HUB[-1]:
            raise
        return None


def _in_folder(folder: Path) -> Path:
    for name in IN_FOLDER:
        if (folder / name).is_file():
            return folder / name
    raise UserError(
        f"model.weights: folder {folder} has none of {', '.join(IN_FOLDER)}. Use the path of the weights file"
    )


def _read_shards(index: Path) -> Weights:
    """Read weights that Hugging Face's libraries have split into several files."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        parts = [index.parent / Path(name).name for name in names]  # only files in the same folder
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"model.weights: {index} is not an index of weights. Download the folder again") from None
    state = {name: tensor for part in parts for name, tensor in read_weights(part).state.items()}
    return Weights(state, None)


def _architecture_by_config(folder: Path, file: Path) -> str | None:
    """Return the architecture in the configuration of the weights' folder; None if there is none."""
    if file.name not in {Path(name).name for name in IN_FOLDER}:
        return None  # other files in the folder may not belong to it
    if file.parent.name == "checkpoints":
        folder = file.parent.parent
    for name, keys in (
        ("config.json", ("architecture",)),
        ("manifest.json", ("model", "name")),
        ("config.yaml", ("model", "name")),
        ("args.yaml", ("model",)),  # of timm's train.py
    ):
        try:
            # JSON is valid YAML, and the YAML files of timm and mlops_img are plain data.
            value: Any = yaml.safe_load((folder / name).read_text(encoding="utf-8"))
            for key in keys:
                value = value[key]
        except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
            continue
        if isinstance(value, str) and timm.is_model(value):
            return value
    return None


def _architecture_by_file_name(file: Path) -> str | None:
    """Return the architecture in the name of the file, e.g. tf_efficientnet_lite0.in1k.safetensors, or None."""
    name = file.name.partition(".")[0]
    return name if timm.is_model(name) else None
