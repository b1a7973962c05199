"""Write the exact versions that the serving image installs: `python deploy/pin_serving.py > deploy/serving.txt`.

Serving needs a fraction of what training does, and no CUDA on a CPU. The versions are those of constraints.txt.
"""

from __future__ import annotations

import tomllib
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
# Of the package's own dependencies, those that predicting imports.
PREDICTING = {"torch", "numpy", "pillow", "simplejpeg", "pydantic"}
# PyTorch's CPU build depends on none of these.
CUDA = ("nvidia-", "cuda-", "triton")
HEAD = """\
# What the serving image installs, and nothing else. Written by deploy/pin_serving.py.
--extra-index-url https://download.pytorch.org/whl/cpu
"""


def pins() -> dict[str, str]:
    """Return the version of every package that serving needs, by its name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    versions = dict(line.split("==") for line in lines if not line.startswith("#"))
    wanted = [Requirement(text) for text in project["dependencies"]]
    wanted = [one for one in wanted if canonicalize_name(one.name) in PREDICTING]
    wanted += [Requirement(text) for text in project["optional-dependencies"]["serve"]]
    found: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    while wanted:
        one = wanted.pop()
        name = canonicalize_name(one.name)
        if name.startswith(CUDA):
            continue
        found[name] = versions[name] + ("+cpu" if name == "torch" else "")
        for extra in ("", *one.extras):
            if (name, extra) not in seen:
                seen.add((name, extra))
                further = [Requirement(text) for text in requires(name) or []]
                wanted += [each for each in further if each.marker is None or each.marker.evaluate({"extra": extra})]
    return found


if __name__ == "__main__":
    print(HEAD + "".join(f"{name}=={version}\n" for name, version in sorted(pins().items())), end="")
