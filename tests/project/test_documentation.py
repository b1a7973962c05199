"""README, docs/ and the other pages: what they link to, run and name exists."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlops_img.serving.errors import Code
from mlops_img.serving.settings import Settings
from tests.helpers.commands import Outcome
from tests.helpers.paths import CONF, ROOT

Command = Callable[..., Outcome]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN_ELSEWHERE = ROOT / "docs" / "extending.md"  # by test_extending
WITH_COMMANDS = [page for page in PAGES if page != RUN_ELSEWHERE]
MOST_README_LINES = 130
CODE_BLOCK = re.compile(r"^    .*$", re.MULTILINE)
INLINE_CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[[^\]\[]*\]\(([^)\s]+)\)")
COMMAND = re.compile(r"^(?:\$ )?python -m (mlops_img\.\S.*)$")
OVERRIDE = re.compile(r"[a-z_]+(?:\.[a-z_]+)*=.*")


def slug(heading: str) -> str:
    """Return the anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)}


def outside_code(text: str) -> str:
    return INLINE_CODE.sub("", CODE_BLOCK.sub("", text))


def code(page: Path) -> list[str]:
    """Return the lines of the page's code blocks and its inline code."""
    text = page.read_text()
    blocks = [line[4:].strip() for line in CODE_BLOCK.findall(text)]
    return blocks + INLINE_CODE.findall(CODE_BLOCK.sub("", text))


def commands() -> list[str]:
    found = {match[1] for page in WITH_COMMANDS for line in code(page) if (match := COMMAND.match(line))}
    return sorted({re.sub(r"\s+#.*", "", command) for command in found})


def flat(values: dict[str, Any], prefix: str = "") -> set[str]:
    keys = set()
    for name, value in values.items():
        keys |= {prefix + name} | (flat(value, f"{prefix}{name}.") if isinstance(value, dict) else set())
    return keys


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_and_images_resolve(page: Path) -> None:
    broken = []
    for target in LINK.findall(outside_code(page.read_text())):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if target.startswith(("https://", "http://")):
            continue
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert not broken


def test_readme_is_short_and_links_to_every_page_of_docs() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= MOST_README_LINES
    linked = set(LINK.findall(text))
    assert {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")} <= linked


@pytest.mark.parametrize("page", ["README.md", "docs/design.md"])
def test_map_of_the_house_names_every_room(page: str) -> None:
    rooms = {path.parent.relative_to(ROOT / "mlops_img") for path in (ROOT / "mlops_img").rglob("__init__.py")}
    named = set(INLINE_CODE.findall((ROOT / page).read_text()))
    assert {f"{room.as_posix()}/" for room in rooms if room != Path(".")} <= named


@pytest.mark.parametrize("text", commands())
def test_command_in_a_page_exists_and_composes(command: Command, text: str) -> None:
    module, *arguments = shlex.split(text)
    assert importlib.util.find_spec(module) is not None
    if not (CONF / f"{module.removeprefix('mlops_img.')}.yaml").is_file() or "--config-dir" in arguments:
        return  # it takes no overrides, or a run's own file
    if arguments == ["lr=1e-3"]:
        outcome = command(module, *arguments)
        shown = [line.strip() for line in (ROOT / "docs" / "configuration.md").read_text().splitlines()]
        assert outcome.code == 2
        assert outcome.err.strip() in shown
        return
    # Hydra prints one job at a time: of a sweep, the first value.
    single = [
        argument if "[" in argument else re.sub(r"=range\(\d+\)", "=0", argument).split(",")[0]
        for argument in arguments
        if argument != "-m"
    ]
    outcome = command(module, *single, "--cfg", "job")
    assert outcome.code == 0, outcome.err


def test_keys_named_in_pages_exist(command: Command) -> None:
    sources = [("mlops_img.train", f"data={option.stem}") for option in (CONF / "data").glob("*.yaml")]
    others = [
        (f"mlops_img.{name}",) for name in ("evaluate", "soup", "export", "predict", "audit", "benchmark", "store")
    ]
    known = {path.name for path in CONF.iterdir() if path.is_dir()} | {"hydra.run.dir"}
    for call in (*sources, *others):
        known |= flat(yaml.safe_load(command(*call, "--cfg", "job").out))
    words = {
        (page.name, word)
        for page in WITH_COMMANDS
        for text in code(page)
        if not text.startswith(("curl", "$ "))  # form fields; a command that is shown because it fails
        for word in text.split()
        if OVERRIDE.fullmatch(word)
    }
    assert not {(name, word) for name, word in words if word.partition("=")[0] not in known}


def test_make_targets_named_in_pages_exist() -> None:
    (phony,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = {match[1] for page in PAGES for line in code(page) if (match := re.match(r"make ([a-z][a-z-]*)\b", line))}
    assert named <= set(phony.split())
    assert {"train", "test", "serve"} <= named


def test_serving_page_lists_every_setting_and_every_error() -> None:
    text = (ROOT / "docs" / "serving.md").read_text()
    settings = text.split("\n## Settings\n")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `([A-Z_]+)` \|", settings, re.MULTILINE)) == {
        name.upper()
        for name in Settings.__annotations__
        if name != "port"  # PORT has no prefix: below the table
    }
    assert set(re.findall(r"^\| (\d{3}) \| `(\w+)` \|", text, re.MULTILINE)) == {
        (str(int(code.status)), str(code)) for code in Code
    }
