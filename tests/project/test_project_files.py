"""The project's own files: the wheel, make targets, git and pre-commit settings, the default data."""

from __future__ import annotations

import hashlib
import io
import os
import re
import resource
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from mlops_img import __version__
from mlops_img.data.sources.mnist5k import png
from tests.helpers.paths import ROOT

# A make, a git or a coverage run that these tests run under must not reach into the programs that they start.
FOREIGN = re.compile("MAKE|MFLAGS|GIT_|COVERAGE_|PYTHON$")
ENVIRONMENT = {name: value for name, value in os.environ.items() if not FOREIGN.match(name)}
COVERAGE = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=cwd,
        env=ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A fresh git repository with the project's own files, without its source."""
    for name in (
        "Makefile",
        "pyproject.toml",
        "constraints.txt",
        "constraints-lowest.txt",
        "data.dvc",
        "README.md",
        "LICENSE",
    ):
        shutil.copy(ROOT / name, tmp_path)
    for name in (".gitignore", ".dvcignore", ".pre-commit-config.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".dvc").mkdir()
    for name in ("config", ".gitignore"):
        shutil.copy(ROOT / ".dvc" / name, tmp_path / ".dvc")
    run("git", "init", "--quiet", cwd=tmp_path)
    return tmp_path


# Packaging


def test_wheel_carries_every_module_template_and_configuration_file(tmp_path: Path) -> None:
    built = run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path, cwd=ROOT)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith(f"mlops_img-{__version__}-py3-none-any")
    carried = set(zipfile.ZipFile(wheel).namelist())
    package = {path.relative_to(ROOT) for path in (ROOT / "mlops_img").rglob("*") if path.is_file()}
    configuration = {Path("mlops_img", path.relative_to(ROOT)) for path in (ROOT / "conf").rglob("*.yaml")}
    expected = {path.as_posix() for path in package | configuration if "__pycache__" not in path.parts}
    assert {"mlops_img/conf/train.yaml", "mlops_img/reporting/templates/report.html.j2"} <= expected
    assert expected <= carried


def test_git_ignores_data_and_runs_but_not_packages_of_the_same_name(checkout: Path) -> None:
    ignored = (
        "data/mnist5k/train/0/0000.png",
        "runs/a/summary.json",
        ".venv/bin/python",
        ".venv-lowest/pip",
        ".coverage.host.1",
    )
    kept = (
        "mlops_img/data/loader.py",
        "conf/data/folder.yaml",
        "data/mine.dvc",
        "data.dvc",
        "tests/data/x.csv",
    )
    answer = run("git", "check-ignore", *ignored, *kept, cwd=checkout)
    assert answer.stdout.split() == list(ignored)


# make


def mark_as_installed(checkout: Path) -> None:
    """Leave what `make setup` leaves, dated after pyproject.toml and constraints.txt."""
    (checkout / ".venv").mkdir()
    newest = max(path.stat().st_mtime for path in checkout.iterdir())
    for age, name in enumerate(("pyvenv.cfg", ".installed", ".installed-dev"), start=1):
        (checkout / ".venv" / name).touch()
        os.utime(checkout / ".venv" / name, (newest + age, newest + age))


def test_make_alone_lists_every_target(checkout: Path) -> None:
    listing = run("make", cwd=checkout)
    (phony,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert listing.returncode == 0
    assert re.findall(r"^  make (\S+) +\S", listing.stdout, re.MULTILINE) == phony.split()


def test_make_train_writes_missing_data_and_passes_arguments_on(checkout: Path) -> None:
    mark_as_installed(checkout)
    train = '.venv/bin/python -m mlops_img.train model=vit_tiny "data.root=my photos"'
    plan = ("make", "--dry-run", "train", 'ARGS=model=vit_tiny "data.root=my photos"')
    missing = run(*plan, cwd=checkout).stdout.splitlines()
    assert missing == [".venv/bin/python -m mlops_img.data.sources.mnist5k data/mnist5k", train]
    (checkout / "data" / "mnist5k").mkdir(parents=True)
    assert run(*plan, cwd=checkout).stdout.splitlines() == [train]


@pytest.mark.parametrize("changed", ["pyproject.toml", "constraints.txt"])
def test_make_setup_installs_again_only_when_the_dependencies_changed(checkout: Path, changed: str) -> None:
    mark_as_installed(checkout)
    assert run("make", "--question", "setup", cwd=checkout).returncode == 0
    os.utime(checkout / changed, (2**31, 2**31))
    plan = run("make", "--dry-run", "setup", cwd=checkout).stdout
    assert re.findall(r"pip install .*--constraint constraints.txt --editable (.*)", plan) == [
        ".",
        '".[dev]"',
    ]


def test_make_test_lowest_installs_the_lowest_versions_into_an_environment_of_its_own(checkout: Path) -> None:
    plan = run("make", "--dry-run", "test-lowest", cwd=checkout).stdout
    assert re.findall(r"(\S+) -m pip install .*--constraint (\S+) --editable (.*)", plan) == [
        (".venv-lowest/bin/python", "constraints-lowest.txt", "."),
        (".venv-lowest/bin/python", "constraints-lowest.txt", '".[dev]"'),
    ]
    assert re.findall(r"(\S+) -m pytest", plan) == [".venv-lowest/bin/python"]


def test_failed_installation_is_repeated(checkout: Path) -> None:
    run(sys.executable, "-m", "venv", "--without-pip", ".venv", cwd=checkout)
    failed = run("make", "setup", cwd=checkout)
    assert failed.returncode != 0
    assert "No module named pip" in failed.stderr
    assert not list((checkout / ".venv").glob(".installed*"))
    assert run("make", "--question", "setup", cwd=checkout).returncode == 1


def test_unsupported_or_missing_python_is_one_line(checkout: Path) -> None:
    answer = run("make", "setup", "PYTHON=/no/such/python", cwd=checkout)
    reason, stopped = answer.stderr.splitlines()
    assert reason.startswith("error: Python 3.11, 3.12 or 3.13 is needed, and /no/such/python is not one")
    assert stopped.startswith("make: ***")
    assert not (checkout / ".venv").exists()


def test_missing_docker_is_one_line(checkout: Path) -> None:
    answer = run("make", "docker-train", "DOCKER=no-such-docker", cwd=checkout)
    assert answer.returncode != 0
    assert answer.stderr.startswith("error: no-such-docker was not found: install Docker")


# pre-commit


def test_pre_commit_refuses_broken_yaml_large_files_and_unformatted_code(checkout: Path) -> None:
    (checkout / ".venv").symlink_to(sys.prefix)
    (checkout / "broken.yaml").write_text("seed: [1\n")
    (checkout / "large.bin").write_bytes(bytes(600_000))
    (checkout / "careless.py").write_text("import os\nx = {'a':1}\n")
    run("git", "add", "broken.yaml", "large.bin", "careless.py", ".pre-commit-config.yaml", cwd=checkout)
    pre_commit = (sys.executable, "-m", "pre_commit")
    home = str(checkout / "pre-commit-home")
    assert run(*pre_commit, "validate-config", cwd=checkout, PRE_COMMIT_HOME=home).returncode == 0
    checks = run(*pre_commit, "run", "--all-files", cwd=checkout, PRE_COMMIT_HOME=home, SKIP="mypy")
    outcome = dict(re.findall(r"^(.+?)\.{2,}.*?(Passed|Failed|Skipped)$", checks.stdout, re.MULTILINE))
    assert outcome == {
        "ruff check": "Failed",
        "ruff format": "Failed",
        "mypy": "Skipped",
        "yaml files parse": "Failed",
        "no file above 500 kB": "Failed",
        "files end with one newline": "Passed",
        "hadolint": "Skipped",
    }, checks.stdout + checks.stderr


# The default data


WRITE_DATA = (sys.executable, "-m", "mlops_img.data.sources.mnist5k")


def test_dvc_status_is_clean_after_make_data_and_names_a_changed_file(checkout: Path) -> None:
    pytest.importorskip("dvc", reason="dvc is part of the dev extra")
    written = run(*WRITE_DATA, cwd=checkout, PYTHONPATH=str(ROOT), **COVERAGE)
    assert written.stdout == "data/mnist5k: written (3500 train, 500 val and 1000 test digits)\n", written.stderr
    environment = {"DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(checkout / "site-cache")}
    status = (sys.executable, "-m", "dvc", "status")
    clean = run(*status, cwd=checkout, **environment)
    assert clean.stdout.strip() == "Data and pipelines are up to date.", clean.stderr
    with (checkout / "data/mnist5k/train/0/0000.png").open("ab") as image:
        image.write(b"x")
    assert re.search(r"modified: +data/mnist5k", run(*status, cwd=checkout, **environment).stdout)


def test_default_data_are_real_gray_images_that_no_split_shares(tmp_path: Path) -> None:
    root = tmp_path / "mnist5k"
    run(*WRITE_DATA, root, cwd=ROOT)
    files = sorted(root.rglob("*.png"))
    per_class = Counter(path.parent.relative_to(root).as_posix() for path in files)
    counts = {"train": 350, "val": 50, "test": 100}
    assert per_class == {f"{split}/{digit}": counts[split] for split in counts for digit in range(10)}
    assert len({path.read_bytes() for path in files}) == 5000
    digest = hashlib.sha256()
    for path in files:
        with Image.open(path) as image:
            assert (image.format, image.size, image.mode) == ("PNG", (28, 28), "L")
            digest.update(image.tobytes())
    # Of the pixels in the order of the names: which digit lies where must not change between versions.
    assert digest.hexdigest() == "d3f04a728d718352db4fa9b0a6f5198226eea0c16d4995e7132acd327a475c25"


def test_existing_default_data_are_not_rewritten(tmp_path: Path) -> None:
    (tmp_path / "mnist5k").mkdir()
    (tmp_path / "mnist5k" / "mine.txt").write_text("kept")
    assert "already there" in run(*WRITE_DATA, tmp_path / "mnist5k", cwd=ROOT, **COVERAGE).stdout
    assert [path.name for path in (tmp_path / "mnist5k").iterdir()] == ["mine.txt"]


def test_default_data_of_an_earlier_version_are_kept_with_a_warning(tmp_path: Path) -> None:
    old = tmp_path / "mnist5k" / "train" / "0" / "0000.pgm"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"P5\n28 28\n255\n" + bytes(784))
    again = run(*WRITE_DATA, tmp_path / "mnist5k", cwd=ROOT, **COVERAGE)
    assert "already there" in again.stdout
    assert again.stderr.splitlines() == [
        f"{tmp_path / 'mnist5k'} holds the PGM files of an earlier version. Delete it to get the same digits as PNG"
    ]
    assert [path for path in (tmp_path / "mnist5k").rglob("*") if path.is_file()] == [old]


def test_default_data_are_valid_png_whose_pixels_are_stored() -> None:
    pixels = bytes(number % 251 for number in range(784))
    file = png(pixels)
    with Image.open(io.BytesIO(file)) as image:
        image.verify()
    with Image.open(io.BytesIO(file)) as image:
        assert image.tobytes() == pixels
    for row in range(28):
        assert pixels[28 * row : 28 * row + 28] in file


def test_failed_write_of_the_default_data_leaves_nothing(tmp_path: Path) -> None:
    def stop_writing_early() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))  # bytes a file: what a full disk does to each image

    failed = subprocess.run(
        (*WRITE_DATA, tmp_path / "mnist5k"),
        cwd=ROOT,
        env=ENVIRONMENT | {"PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=stop_writing_early,
        capture_output=True,
        text=True,
        check=False,
    )
    assert failed.returncode == 2
    assert failed.stderr == f"error: cannot write the default data to {tmp_path / 'mnist5k'}: File too large\n"
    assert not list(tmp_path.iterdir())
