"""Executable forms of a model: portable `torch.export` programs and AOTInductor packages bound to a machine.

Each takes uint8 images (n, 3, side, side) and returns logits, float32 (n, classes), and features, float32 (n, d):
normalization is part of the program.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from mlops_img.bundle.manifest import CompiledFor, Program
from mlops_img.errors import UserError

Runner = Callable[[Tensor], tuple[Tensor, Tensor]]


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


def load_program(folder: Path, program: Program, device: torch.device) -> Runner:
    """Make a program of a bundle ready to run.

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
        run = _load_portable(path, device) if program.compiled_for is None else _load_compiled(path, device)
    except Exception as error:  # PyTorch has many ways of not loading a program; there is another to fall back to
        raise CannotRunError(f"PyTorch cannot load it: {' '.join(str(error).split())[:200]}") from error
    return filled_up(run, program.min_batch) if program.min_batch > 1 else run


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


def _load_compiled(path: Path, device: torch.device) -> Runner:
    # As torch._inductor.aoti_load_package does, without the seconds that importing the compiler takes.
    loader = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, 1, device.index or -1)

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        logits, features = loader.boxed_run([images.to(device)])
        return logits, features

    return run


def _load_portable(path: Path, device: torch.device) -> Runner:
    import torch.ao.quantization.fx._decomposed  # has the operators of int8 programs
    from torch.export.passes import move_to_device_pass

    program = torch.export.load(path)
    module = (program if device.type == "cpu" else move_to_device_pass(program, device)).module(check_guards=False)

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            logits, features = module(images.to(device))
        return logits, features

    return run
