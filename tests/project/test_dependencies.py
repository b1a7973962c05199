"""Dependencies: what is declared, what is pinned, and the lower bounds."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.helpers.paths import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def requirements(extra: str | None = None) -> list[Requirement]:
    project = PYPROJECT["project"]
    lines = project["optional-dependencies"][extra] if extra else project["dependencies"]
    return [one for one in map(Requirement, lines) if one.name != project["name"]]


def test_every_import_of_the_package_is_a_declared_dependency() -> None:
    distributions = importlib.metadata.packages_distributions()
    extras = PYPROJECT["project"]["optional-dependencies"]
    declared = {canonicalize_name(one.name) for one in requirements()}
    declared |= {canonicalize_name(one.name) for extra in extras if extra != "dev" for one in requirements(extra)}
    undeclared = set()
    for path in (ROOT / "mlops_img").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for top in {name.split(".")[0] for name in names} - {"mlops_img", *sys.stdlib_module_names}:
                if not {canonicalize_name(name) for name in distributions.get(top, [top])} & declared:
                    undeclared.add(f"{path.relative_to(ROOT)}: {top}")
    assert not undeclared


def read_pins(name: str) -> dict[str, str]:
    lines = [line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]
    loose = [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line)]
    assert not loose, "name==version only: no local version, no path, no range"
    pins = dict(line.split("==") for line in lines)
    assert len(pins) == len(lines)
    return pins


def test_lowest_constraints_are_the_lower_bounds() -> None:
    pins = read_pins("constraints-lowest.txt")
    for extra in (None, "serve", "onnx", "dev"):
        for one in requirements(extra):
            (bound,) = [each.version for each in one.specifier if each.operator == ">="]
            pin = pins[canonicalize_name(one.name)]
            assert Version(pin).release[: bound.count(".") + 1] == Version(bound).release, f"{one.name}=={pin}"


def test_constraints_pin_every_dependency_exactly_and_to_a_version_that_is_allowed() -> None:
    pins = read_pins("constraints.txt")
    for extra in (None, *PYPROJECT["project"]["optional-dependencies"]):
        for one in requirements(extra):
            pin = pins.get(canonicalize_name(one.name))
            assert pin is not None, f"{one.name} is not pinned"
            assert one.specifier.contains(pin, prereleases=True), f"{one.name}=={pin} is not within {one}"


def test_serving_image_installs_the_pinned_versions() -> None:
    deploy = ROOT / "deploy"
    written = subprocess.run(
        [sys.executable, deploy / "pin_serving.py"], capture_output=True, text=True, check=True
    ).stdout
    assert (deploy / "serving.txt").read_text() == written, "run: python deploy/pin_serving.py > deploy/serving.txt"
