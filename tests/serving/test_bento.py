"""The service as a Bento: it builds, contains its model, and serves it."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import yaml
from packaging.utils import canonicalize_name

from tests.helpers.paths import ROOT
from tests.helpers.service_process import started

# One process starts the service for all of them.
pytestmark = pytest.mark.xdist_group("bento")

DEPLOY = ROOT / "deploy"


@pytest.fixture(scope="module")
def bento(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build it from a copy of the sources, in a separate BentoML home."""
    home, source = tmp_path_factory.mktemp("bentoml"), tmp_path_factory.mktemp("source")
    for name in ("mlops_img", "conf", "deploy", "bentofile.yaml", "README.md"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    # `bentoml build` runs uv, which is installed next to this Python.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "BENTOML_HOME": str(home), "PATH": path}
    bundle = trained / "bundles" / "latest"
    for command in (["mlops_img.store", f"bundle={bundle}"], ["bentoml", "build"]):
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=source, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    (version,) = (path for path in (home / "bentos" / "mlops_img").iterdir() if path.is_dir())
    return version


def test_bento_contains_the_model_and_the_service_but_no_training(bento: Path) -> None:
    described = yaml.safe_load((bento / "bento.yaml").read_text())
    assert described["service"] == "mlops_img.service:ImageClassifier"
    packed = {str(path.relative_to(bento / "src")) for path in (bento / "src").rglob("*") if path.is_file()}
    assert {"mlops_img/service.py", "mlops_img/serving/page/index.html", "mlops_img/preprocessing/decode.py"} <= packed
    assert not [name for name in packed if name.startswith(("mlops_img/training", "mlops_img/compression", "tests"))]
    (model,) = described["models"]
    name, _, version = model["tag"].partition(":")
    assert (bento.parents[2] / "models" / name / version / "bundle" / "manifest.json").is_file()


def test_image_runs_without_root_on_pinned_cpu_wheels(bento: Path) -> None:
    dockerfile = (bento / "env" / "docker" / "Dockerfile").read_text()
    users = [line.split()[1] for line in dockerfile.splitlines() if line.startswith("USER ")]
    assert users[-1] == "bentoml"
    assert "MLOPS_IMG_BUNDLE=bentoml:mlops_img:latest" in dockerfile
    assert "UV_INDEX_STRATEGY=unsafe-best-match" in dockerfile
    required = (bento / "env" / "python" / "requirements.txt").read_text().splitlines()
    assert "torch==2.14.1+cpu" in required
    unpinned = [line for line in required if line and not line.startswith(("-", "#")) and "==" not in line]
    assert not unpinned
    assert not [line for line in required if line.startswith(("nvidia", "wandb", "timm"))]


def test_bento_serves_its_own_model(bento: Path, trained: Path, tmp_path: Path) -> None:
    environment = {"MLOPS_IMG_BUNDLE": "bentoml:mlops_img:latest", "MLOPS_IMG_WORKERS": "1"}
    home = {"BENTOML_HOME": str(bento.parents[2])}
    with started(bento, tmp_path, cwd=tmp_path, **environment, **home) as service:
        model = httpx.get(f"{service.url}/model", timeout=60).json()
        assert (model["name"], model["version"]) == ("test_resnet", "1")
        photo = next((trained / "photos" / "circle").iterdir())
        answer = httpx.post(f"{service.url}/predict", files={"image": photo.read_bytes()}, timeout=60)
        assert answer.json()["label"] == "circle"


def test_every_package_that_serving_imports_is_pinned(portable: Path) -> None:
    code = f"""
import sys
import mlops_img, mlops_img.service, mlops_img.serving.app, mlops_img.serving.worker
mlops_img.load({str(portable)!r})
print(*[module.__file__ for name, module in sys.modules.items() if name.startswith("mlops_img")], sep="\\n")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    imported: set[str] = set()
    for file in done.stdout.splitlines():
        for node in ast.walk(ast.parse(Path(file).read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            imported |= {name.partition(".")[0] for name in names}
    assert {"torch", "fastapi"} <= imported
    packages = importlib.metadata.packages_distributions()
    pinned = {line.split("==")[0] for line in (DEPLOY / "serving.txt").read_text().splitlines()}
    foreign = imported - {"mlops_img", *sys.stdlib_module_names}
    missing = {top for top in foreign if not {canonicalize_name(name) for name in packages.get(top, [top])} & pinned}
    assert not missing
