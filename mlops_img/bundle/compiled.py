"""AOTInductor packages for the CPU, run by their C interface.

PyTorch's own runner, `AOTIModelPackageLoader`, holds Python's lock (the GIL) while a program computes, so that the
threads of a process cannot run it at the same time. ctypes releases the lock. The interface is declared in
torch/csrc/inductor/aoti_runtime/interface.h; a package and PyTorch are of the same version, which is checked before.
"""

from __future__ import annotations

import _ctypes
import ctypes
import re
import weakref
import zipfile
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

# A package with other files needs PyTorch's runner, e.g. for operators that have no C interface.
MODEL_FILE = re.compile(r"[^/]+/data/aotinductor/model/[^/]+(\.so|\.cpp|_metadata\.json)")
ARCHIVE_FILE = re.compile(r"[^/]+/(archive_format|archive_version|byteorder|\.data/(version|serialization_id))")
OUTPUTS = 2  # logits and features

_aoti = torch._C._aoti
_pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_of.restype, _pointer_of.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
_name_of = ctypes.pythonapi.PyCapsule_GetName
_name_of.restype, _name_of.argtypes = ctypes.c_char_p, (ctypes.py_object,)
_capsule = ctypes.pythonapi.PyCapsule_New
_capsule.restype, _capsule.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)


def shared_object_of(path: Path) -> str | None:
    """Return the name of the shared object in a package, or None if the package needs PyTorch's runner."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    objects = [name for name in names if name.endswith(".so")]
    known = all(MODEL_FILE.fullmatch(name) or ARCHIVE_FILE.fullmatch(name) for name in names)
    return objects[0] if known and len(objects) == 1 else None


class CompiledProgram:
    """A package, loaded once; threads run it at the same time, on one copy of its weights."""

    def __init__(self, path: Path, shared_object: str, runs: int) -> None:
        """Load a package.

        Args:
            path: the package.
            shared_object: the name of its shared object.
            runs: how many threads may compute at the same time; further ones wait.

        Raises:
            RuntimeError, OSError, AttributeError: it cannot be loaded.
        """
        with TemporaryDirectory(prefix="mlops_img_") as folder:  # which only this user can read
            with zipfile.ZipFile(path) as archive:
                contents = archive.read(shared_object)
            file = Path(folder) / "model.so"
            file.write_bytes(contents)
            self._library = ctypes.CDLL(str(file))  # stays loaded without its file
        self._container = ctypes.c_void_p()
        create = self._library.AOTInductorModelContainerCreateWithDevice
        create.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_char_p)
        self._check(create(ctypes.byref(self._container), runs, b"cpu", None))
        self._run = self._library.AOTInductorModelContainerRun
        array, size = ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t
        self._run.argtypes = (ctypes.c_void_p, array, size, array, size, ctypes.c_void_p, ctypes.c_void_p)
        weakref.finalize(self, _unload, self._library, self._container).atexit = False

    def __call__(self, images: Tensor) -> Sequence[Tensor]:
        """Run the program on uint8 (n, 3, side, side), channels-last in memory; the caller has checked them.

        Raises:
            RuntimeError: an operator failed.
        """
        # The program takes the handle of its input, and we take those of its outputs.
        capsule = _aoti.unsafe_alloc_void_ptr_from_tensor(images)
        inputs = (ctypes.c_void_p * 1)(_pointer_of(capsule, _name_of(capsule)))
        outputs = (ctypes.c_void_p * OUTPUTS)()
        self._check(self._run(self._container, inputs, 1, outputs, OUTPUTS, None, None))
        return [_aoti.alloc_tensor_by_stealing_from_void_ptr(_capsule(each, None, None)) for each in outputs]

    def _check(self, failed: int) -> None:
        if failed:
            message = ctypes.c_char_p()
            self._library.AOTInductorGetLastError(ctypes.byref(message))
            raise RuntimeError((message.value or b"a compiled program failed").decode(errors="replace"))


def _unload(library: ctypes.CDLL, container: ctypes.c_void_p) -> None:
    delete = library.AOTInductorModelContainerDelete
    delete.argtypes = (ctypes.c_void_p,)
    delete(container)
    _ctypes.dlclose(library._handle)
