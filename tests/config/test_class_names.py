"""Class names as YAML keys: what YAML 1.1 makes of them leads back to the class, or to one line."""

from __future__ import annotations

from typing import Any

import pytest
from omegaconf import OmegaConf

from mlops_img.config.class_names import find_class
from mlops_img.errors import UserError


@pytest.mark.parametrize(
    "name", ["yes", "no", "on", "Off", "true", "False", "1", "01", "1.10", "1e3", "cat", "a: b", "é"]
)
def test_class_is_found_by_its_name_as_yaml_parses_it(name: str) -> None:
    typed = name if ":" not in name else f'"{name}"'
    [key] = OmegaConf.create(f"{{{typed}: 2.0}}")
    assert find_class("loss.class_weights", key, ["dog", name, "${x}", "[", ""]) == name


@pytest.mark.parametrize(
    ("key", "classes", "message"),
    [
        (True, ["yes", "on"], "True can mean the classes 'yes' and 'on'"),
        (1, ["1", "01"], "1 can mean the classes '1' and '01'"),
        (True, ["cat", "dog"], "there is no class True. Put the name in quotes"),
        ("cta", ["cat", "dog"], "there is no class 'cta'. Did you mean 'cat'?"),
    ],
)
def test_ambiguous_class_is_one_line(key: Any, classes: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        find_class("loss.class_weights", key, classes)
    assert message in str(caught.value)
