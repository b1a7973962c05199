"""Training on machines as they are: without a home, in an odd environment, in a folder that cannot be written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT
from tests.helpers.shared_bundle import unmeasured

SMOKE = ("debug=smoke", "data=folder", "data.image_size=32", "model=timm", "model.name=test_resnet")
# What notebooks, containers and job schedulers hand on to the programs that they start.
ODD = {
    "HOME": "/nonexistent",
    "TMPDIR": "/nonexistent",
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "CUDA_VISIBLE_DEVICES": "none",
    "OMP_NUM_THREADS": "0",
    "PYTHONOPTIMIZE": "1",
    "LC_ALL": "C",
    "PYTHONUTF8": "0",
}


def smoke(photos: Path, cwd: Path, environment: dict[str, str], *prefix: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*prefix, sys.executable, "-m", "mlops_img.train", *SMOKE, f"data.root={photos}"],
        cwd=cwd,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=600,
        check=False,
    )


@pytest.mark.parametrize("home", [True, False])
def test_training_runs_in_the_environment_of_notebooks_and_containers(
    home: bool, shared_shapes: Path, tmp_path: Path
) -> None:
    environment = unmeasured() | ODD
    if not home:
        # Once is enough for -O: where Python may not write bytecode, it compiles all of PyTorch for 10 s.
        del environment["HOME"], environment["PYTHONOPTIMIZE"]
    outcome = smoke(shared_shapes, tmp_path, environment)
    assert outcome.returncode == 0, outcome.stderr
    assert (tmp_path / "runs" / "latest" / "report" / "index.html").is_file()
    assert not (tmp_path / "~").exists()


def test_read_only_working_directory_is_one_line(shared_shapes: Path, tmp_path: Path) -> None:
    # A mount of its own: permissions do not hold for root.
    mount = ("unshare", "--mount", "--map-root-user")
    script = 'mount --types tmpfs --options ro tmpfs "$PWD" && cd "$PWD" && exec "$@"'
    prefix = (*mount, "sh", "-c", script, "sh")
    if subprocess.run([*prefix, "true"], cwd=tmp_path, capture_output=True, check=False).returncode:
        pytest.skip("needs mount namespaces")
    outcome = smoke(shared_shapes, tmp_path, unmeasured(), *prefix)
    assert outcome.returncode == 2, outcome.stderr
    assert outcome.stderr.strip().splitlines() == [
        "error: run folder runs cannot be made: Read-only file system. Choose another with hydra.run.dir=..."
    ]
