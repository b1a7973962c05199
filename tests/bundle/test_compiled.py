"""Compiled programs by their C interface: the values of PyTorch's runner, but threads compute at the same time."""

from __future__ import annotations

import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mlops_img.bundle.compiled import CompiledProgram, shared_object_of
from mlops_img.bundle.manifest import Program
from mlops_img.bundle.programs import load_program, this_machine
from mlops_img.compression.capture import ExportableModel, compile_for_this_machine, example_images
from mlops_img.compression.quantize import quantize
from mlops_img.preprocessing.transforms import Preprocessing

CPU = torch.device("cpu")
SIDE = 20
TRIES = 1000
MANY = 10  # a thread that holds the lock while it computes still lets go of it once or twice beside that


class Pooled(nn.Module):
    """Has max pooling between convolutions, for which PyTorch has no C interface in int8."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Conv2d(16, 16, 3), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    exportable = ExportableModel(Pooled(), Preprocessing(SIDE, 1.0, (0.5,) * 3, (0.25,) * 3))
    path = tmp_path_factory.mktemp("package") / "int8-static-compiled.pt2"
    program = quantize(exportable, [example_images(exportable.preprocessing, 8)], 8, dynamic=False)
    compile_for_this_machine(program, path, CPU)
    return path


@pytest.fixture
def compiled(package: Path) -> CompiledProgram:
    shared_object = shared_object_of(package)
    assert shared_object is not None
    return CompiledProgram(package, shared_object, runs=4)


def described(path: Path) -> Program:
    return Program(precision="int8-static", file=path.name, compiled_for=this_machine(CPU), max_batch=8)


def images_of(seed: int, count: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, SIDE, SIDE, 3), dtype=torch.uint8, generator=random).permute(0, 3, 1, 2)


def pytorchs_runner(package: Path) -> Callable[[Tensor], list[Tensor]]:
    loader = torch._C._aoti.AOTIModelPackageLoader(str(package), "model", False, 1, -1)
    return lambda images: loader.boxed_run([images])


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_values_are_those_of_pytorchs_runner_to_the_bit(package: Path, compiled: CompiledProgram, count: int) -> None:
    images = images_of(count, count)
    for ours, theirs in zip(compiled(images), pytorchs_runner(package)(images), strict=True):
        assert torch.equal(ours, theirs)


def test_threads_get_the_values_of_one_thread_to_the_bit(compiled: CompiledProgram) -> None:
    batches = [images_of(seed, 1 + seed % 8) for seed in range(64)]
    one = [compiled(batch) for batch in batches]
    with ThreadPoolExecutor(8) as threads:  # more than may compute at the same time
        several = list(threads.map(compiled, batches))
    for ours, theirs in zip(several, one, strict=True):
        assert all(torch.equal(left, right) for left, right in zip(ours, theirs, strict=True))


@pytest.fixture
def counter() -> Iterator[Callable[[], int]]:
    """Return how often another thread got Python's lock; it gets it only from a thread that lets go of it."""
    count, stop, started = 0, threading.Event(), threading.Event()

    def run() -> None:
        nonlocal count
        started.set()
        while not stop.is_set():
            count += 1
            time.sleep(0)

    interval = sys.getswitchinterval()
    thread = threading.Thread(target=run)
    thread.start()
    started.wait()
    sys.setswitchinterval(1e6)  # nobody is made to let go
    try:
        yield lambda: count
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        thread.join()


def turns_during(run: Callable[[], object], counter: Callable[[], int]) -> int:
    """Return how often another thread got the lock during a run."""
    before = counter()
    run()
    return counter() - before


def test_python_goes_on_while_a_program_computes(compiled: CompiledProgram, counter: Callable[[], int]) -> None:
    images = images_of(0, 8)
    assert any(turns_during(lambda: compiled(images), counter) >= MANY for _ in range(TRIES))


def test_pytorchs_runner_would_hold_the_lock(package: Path, counter: Callable[[], int]) -> None:
    run, images = pytorchs_runner(package), images_of(0, 8)
    turns = max(turns_during(lambda: run(images), counter) for _ in range(TRIES))
    assert turns < MANY, "it no longer does: programs need no runner of their own"


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(1, 3, SIDE, SIDE),
        torch.zeros(1, 3, SIDE, SIDE + 1, dtype=torch.uint8),
        torch.zeros(1, 1, SIDE, SIDE, dtype=torch.uint8),
        torch.zeros(3, SIDE, SIDE, dtype=torch.uint8),
        torch.zeros(0, 3, SIDE, SIDE, dtype=torch.uint8),
    ],
    ids=lambda images: f"{images.dtype} {tuple(images.shape)}",
)
def test_images_that_a_program_does_not_take_are_refused(package: Path, images: Tensor) -> None:
    run = load_program(package.parent, described(package), CPU, SIDE)
    with pytest.raises(ValueError, match=r"^a program takes uint8 \(n, 3, 20, 20\), this is "):
        run(images)


def test_layout_in_memory_does_not_matter(package: Path) -> None:
    run = load_program(package.parent, described(package), CPU, SIDE)
    images = images_of(0, 3)
    assert torch.equal(run(images)[0], run(images.contiguous())[0])


def test_error_inside_a_program_is_an_exception_with_its_message(
    compiled: CompiledProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AOTI_RUNTIME_CHECK_INPUTS", "1")  # by which the program itself checks
    with pytest.raises(RuntimeError, match="unmatched dtype"):
        compiled(images_of(0, 2).long())
    assert len(compiled(images_of(0, 2))[0]) == 2, "and the program goes on"


def test_package_that_needs_pytorchs_runner_gets_it(package: Path, tmp_path: Path) -> None:
    other = tmp_path / package.name
    other.write_bytes(package.read_bytes())
    with zipfile.ZipFile(other, "a") as archive:
        model = next(name for name in archive.namelist() if name.endswith(".so"))
        archive.writestr(str(Path(model).with_suffix(".json")), '{"nodes": []}')
    run, known = (load_program(path.parent, described(path), CPU, SIDE) for path in (other, package))
    assert (run.concurrent, known.concurrent) == (False, True)
    assert torch.equal(run(images_of(0, 4))[0], known(images_of(0, 4))[0])
