"""Executable forms of a model: portable `torch.export` programs and AOTInductor packages bound to a machine.

Each takes uint8 images (n, 3, side, side) and returns logits, float32 (n, classes), and features, float32 (n, d):
normalization is part of the program.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mlops_img.bundle.compiled import CompiledProgram, shared_object_of
from mlops_img.bundle.manifest import CompiledFor, Program
from mlops_img.errors import UserError

Runner = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class LoadedProgram:
    """A program that is ready to run; threads may share it.

    Attributes:
        run: uint8 (n, 3, side, side) to logits and features.
        concurrent: whether threads compute at the same time; otherwise a run holds Python's lock until its end.
    """

    run: Runner
    concurrent: bool

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Run the program.

        Raises:
            ValueError: the images have another shape or dtype than the program takes.
        """
        return self.run(images)


class CannotRunError(Exception):
    """A program that this machine cannot run; the message says why."""


def this_machine(device: torch.device) -> CompiledFor:
    """Say what a program that is compiled here, for this device, will be bound to."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return CompiledFor(device="cuda", capability=[f"sm_{major}{minor}"], torch=torch.__version__)
    known = torch.cpu.get_capabilities()
    # A compiler may use any feature of the processor, so all of them are compared.
    capability = [str(known.get("architecture")), *sorted(name for name, value in known.items() if value is True)]
    return CompiledFor(device="cpu", capability=capability, torch=torch.__version__)


def unsupported_reason(needed: CompiledFor, device: torch.device) -> str | None:
    """Say why a compiled program cannot run on this device, or None if it can."""
    here = this_machine(device) if device.type == needed.device else None
    if here is None:
        return f"it was compiled for {needed.device}"
    # A program for CPUs does not depend on PyTorch's CUDA build, which the version has after the plus.
    versions = [
        version.partition("+")[0] if here.device == "cpu" else version for version in (needed.torch, here.torch)
    ]
    if versions[0] != versions[1]:
        return f"it was compiled with torch {needed.torch}, this is {here.torch}"
    missing = [name for name in needed.capability if name not in here.capability]
    return f"the processor lacks {', '.join(missing)}" if missing else None


def load_program(folder: Path, program: Program, device: torch.device, side: int) -> LoadedProgram:
    """Make a program of a bundle, for images of `side` x `side`, ready to run.

    Raises:
        CannotRunError: it does not fit this machine, or PyTorch cannot load it.
        UserError: it holds a pickle, which could run any code.
    """
    path = folder / program.file
    if program.compiled_for is None:
        refuse_pickles(path)
    else:
        reason = unsupported_reason(program.compiled_for, device)
        if reason is not None:
            raise CannotRunError(reason)
    try:
        loaded = _load_portable(path, device) if program.compiled_for is None else _load_compiled(path, device)
    except Exception as error:  # PyTorch has many ways of not loading a program; there is another to fall back to
        raise CannotRunError(f"PyTorch cannot load it: {' '.join(str(error).split())[:200]}") from error
    run = filled_up(loaded.run, program.min_batch) if program.min_batch > 1 else loaded.run
    return LoadedProgram(_checked(run, side), loaded.concurrent)


def _checked(run: Runner, side: int) -> Runner:
    """Return a runner that refuses other images than a program takes: a compiled one would read beyond them."""

    def run_checked(images: Tensor) -> tuple[Tensor, Tensor]:
        if images.dtype != torch.uint8 or images.ndim != 4 or not len(images) or images.shape[1:] != (3, side, side):
            raise ValueError(
                f"a program takes uint8 (n, 3, {side}, {side}), this is {images.dtype} {tuple(images.shape)}"
            )
        # Compiled code takes the layout of the example it was compiled with for granted.
        return run(images.contiguous(memory_format=torch.channels_last))

    return run_checked


def filled_up(run: Runner, least: int) -> Runner:
    """Return a runner that fills smaller batches up to `least` images with copies, and drops their outputs.

    For some layers the kernels of a single image are several times slower than those of two.
    """

    def run_filled(images: Tensor) -> tuple[Tensor, Tensor]:
        count = len(images)
        if count >= least:
            return run(images)
        logits, features = run(torch.cat([images, images[:1].expand(least - count, -1, -1, -1)]))
        return logits[:count], features[:count]

    return run_filled


def refuse_pickles(path: Path) -> None:
    """See that a portable program is plain data; `torch.export.load` would unpickle whatever else is in there.

    Raises:
        UserError: something in it is a pickle.
    """
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            name = entry.filename.partition("/")[2]
            if name.startswith("data/sample_inputs/"):
                pickled = entry.file_size > 0
            elif name.startswith("data/") and name.endswith("_config.json"):
                config = json.loads(archive.read(entry))["config"]
                # Tensors that are plain bytes have their shape and type beside them.
                pickled = any(item["use_pickle"] or item["tensor_meta"] is None for item in config.values())
            else:
                pickled = False
            if pickled:
                raise UserError(
                    f"program {path} holds a pickle ({name}), which could run any code. No program that mlops_img "
                    "exports has one"
                )


def _load_compiled(path: Path, device: torch.device) -> LoadedProgram:
    shared_object = shared_object_of(path) if device.type == "cpu" else None
    if shared_object is not None:
        compiled = CompiledProgram(path, shared_object, os.cpu_count() or 1)
        return LoadedProgram(lambda images: _pair(compiled(images.to(device))), concurrent=True)
    # As torch._inductor.aoti_load_package does, without the seconds that importing the compiler takes.
    loader = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, 1, device.index or -1)
    return LoadedProgram(lambda images: _pair(loader.boxed_run([images.to(device)])), concurrent=False)


def _load_portable(path: Path, device: torch.device) -> LoadedProgram:
    import torch.ao.quantization.fx._decomposed  # has the operators of int8 programs
    from torch.export.passes import move_to_device_pass

    program = torch.export.load(path)
    module = (program if device.type == "cpu" else move_to_device_pass(program, device)).module(check_guards=False)

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            return _pair(module(images.to(device)))

    return LoadedProgram(run, concurrent=device.type == "cpu")


def _pair(outputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    logits, features = outputs
    return logits, features
