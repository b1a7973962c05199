"""Modules of users that add routes: MLOPS_IMG_PLUGINS."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Sequence

from mlops_img.errors import UserError

IMPORT = "import importlib, json, sys; name, sys.path[:] = json.loads(sys.argv[1]); importlib.import_module(name)"


def import_plugins(modules: Sequence[str]) -> None:
    """Import the modules, which register functions with `mlops_img.serving.routes.extension`."""
    for name in modules:
        importlib.import_module(name)


def check_plugins(modules: Sequence[str]) -> None:
    """Check that the modules can be imported, in another process: the supervising process stays small.

    Raises:
        UserError: one of them cannot be imported.
    """
    for name in modules:
        command = [sys.executable, "-c", IMPORT, json.dumps([name, sys.path])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise UserError(
                f"MLOPS_IMG_PLUGINS={name}: this module cannot be imported: {lines[-1]}. "
                "Fix the module, or add the folder that it is in to PYTHONPATH"
            )
