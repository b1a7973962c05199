"""The rooms of the package and their floors: a room imports only from rooms on floors below its own."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

PACKAGE = ROOT / "mlops_img"
COMMANDS = ("train", "evaluate", "audit", "export", "benchmark", "store", "soup", "predict", "service")

# From the lowest floor up. Rooms on one floor do not import one another.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors", "version"),
    ("core",),
    ("config",),
    ("preprocessing",),
    ("data.sources", "models", "runs", "bundle"),
    ("data", "registry", "monitoring"),
    ("data.audit", "evaluation"),
    ("reporting", "serving", "prediction"),
    ("training", "client"),
    ("compression", "cli", "face"),
    ("commands",),
)
FLOOR = {room: number for number, floor in enumerate(FLOORS) for room in floor}
# What a container that serves needs, and nothing else of the package.
SERVED = {"errors", "version", "core", "preprocessing", "bundle", "registry", "monitoring", "serving", "face"}


def room_of(module: str) -> str:
    """Return the room of a module, e.g. "mlops_img.data.audit.scan" -> "data.audit"."""
    parts = module.split(".")[1:]
    if not parts:
        return "face"
    if parts[-1] == "__main__":
        return "commands"
    for length in (2, 1):
        name = ".".join(parts[:length])
        if name in FLOOR:
            return name
    return "commands" if parts[0] in COMMANDS else ".".join(parts)


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> Iterator[str]:
    """Yield the modules of the package that a file imports anywhere in it, names of submodules resolved."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "mlops_img")
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "mlops_img":
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                inside = PACKAGE.joinpath(*node.module.split(".")[1:], alias.name)
                is_module = inside.is_dir() or inside.with_suffix(".py").is_file()
                version = (node.module, alias.name) == ("mlops_img", "__version__")
                yield "mlops_img.version" if version else f"{node.module}.{alias.name}" if is_module else node.module


MODULES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
IMPORTS = {(module, target) for module, path in MODULES.items() for target in imports_of(path)}


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_a_room(module: str) -> None:
    assert room_of(module) in FLOOR


def test_imports_only_lead_to_lower_floors() -> None:
    wrong = [
        f"{module} imports {target}"
        for module, target in sorted(IMPORTS)
        if room_of(module) != room_of(target) and FLOOR[room_of(target)] >= FLOOR[room_of(module)]
    ]
    assert not wrong


def test_modules_import_one_another_in_no_circle() -> None:
    below: dict[str, set[str]] = {module: set() for module in MODULES}
    for module, target in IMPORTS:
        if target in MODULES and target != module:
            below[module].add(target)
    left = dict(below)
    while ready := [module for module, targets in left.items() if not targets & left.keys()]:
        for module in ready:
            del left[module]
    assert not left, f"in a circle, or above one: {', '.join(sorted(left))}"


def test_serving_imports_only_what_its_container_holds() -> None:
    outside = [
        f"{module} imports {target}"
        for module, target in sorted(IMPORTS)
        if room_of(module) in SERVED and room_of(target) not in SERVED
    ]
    assert not outside


def test_modules_are_short() -> None:
    long = {module: lines for module, path in MODULES.items() if (lines := len(path.read_text().splitlines())) > 320}
    assert not long
    assert len(MODULES["mlops_img.training.loop"].read_text().splitlines()) < 200
