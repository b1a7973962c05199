"""The configuration of each command, registered with Hydra."""

from __future__ import annotations

import dataclasses
from typing import Any, cast, get_type_hints

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from mlops_img.config.commands import AuditConfig, BenchmarkConfig, EvaluateConfig, SoupConfig, StoreConfig
from mlops_img.config.data import DATA_SOURCES, DataConfig, EvaluateDataConfig
from mlops_img.config.export import ExportConfig
from mlops_img.config.predict import PredictConfig
from mlops_img.config.train import Config

# The dataclass of each command, by the name of its file in `conf/`.
COMMANDS: dict[str, type[Any]] = {
    "train": Config,
    "evaluate": EvaluateConfig,
    "export": ExportConfig,
    "benchmark": BenchmarkConfig,
    "audit": AuditConfig,
    "store": StoreConfig,
    "soup": SoupConfig,
    "predict": PredictConfig,
}
FREE_FORM = ("kwargs", "custom", "lr_scales")  # keys of mappings that may hold any key


def leaf_keys(schema: type[Any], prefix: str = "") -> dict[str, dataclasses.Field[Any]]:
    """Return the keys of a dataclass that hold values, e.g. optim.lr; of `data`, those of every source."""
    types = get_type_hints(schema)
    leaves: dict[str, dataclasses.Field[Any]] = {}
    for entry in dataclasses.fields(schema):
        key, kind = f"{prefix}{entry.name}", types[entry.name]
        if not dataclasses.is_dataclass(kind):
            leaves[key] = entry
            continue
        # An evaluation may read other data, by the options of the group.
        any_source = kind is DataConfig or (schema is EvaluateConfig and kind is EvaluateDataConfig)
        for part in (kind, *(DATA_SOURCES.values() if any_source else ())):
            leaves |= leaf_keys(cast(type[Any], part), f"{key}.")
    return leaves


def register_schemas() -> None:
    """Register the types with Hydra; `conf/` names them as `train_schema`, `schema/data: folder`, and so on."""
    store = ConfigStore.instance()
    for name, node in COMMANDS.items():
        store.store(name=f"{name}_schema", node=_open_dicts(OmegaConf.structured(node)))
    for name, source in DATA_SOURCES.items():
        store.store(group="schema/data", name=name, node=_open_dicts(OmegaConf.structured(source)))


def _open_dicts(node: DictConfig) -> DictConfig:
    """Let the keys of free-form mappings be anything: they belong to timm, torchvision, the model or the user."""
    for name in node:
        if not OmegaConf.is_missing(node, name) and isinstance(node[name], DictConfig):
            if name in FREE_FORM:
                OmegaConf.set_struct(node[name], False)
            else:
                _open_dicts(node[name])
    return node
