"""The files that figures are kept in, results/<benchmark>/<machine>.json, all of one schema.

Figures that are not known are null. The name of the machine is derived from its description: results of several
machines lie side by side, and a new result of the same machine takes the place of the old one.
"""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from mlops_img.core.files import write_json
from mlops_img.errors import UserError
from mlops_img.runs.provenance import hardware

FOLDER = Path(__file__).parent / "results"
# In this class and in file names, and as people write them.
INSTRUCTION_SETS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_vnni": "VNNI",
    "avx512_bf16": "bf16",
    "amx_int8": "AMX int8",
    "amx_bf16": "AMX bf16",
}

Scalar = str | bool | int | float | None


class Strict(BaseModel):
    """No field that is not known."""

    model_config = ConfigDict(extra="forbid")


class InstructionSets(Strict):
    """Whether the processor has each; None where it was not recorded."""

    avx2: bool | None
    avx512f: bool | None
    avx512_vnni: bool | None
    avx512_bf16: bool | None
    amx_int8: bool | None
    amx_bf16: bool | None

    def names(self, has: bool) -> list[str]:
        """Return those that the processor is known to have, or known not to have."""
        return [name for name in INSTRUCTION_SETS if getattr(self, name) is has]


class Machine(Strict):
    """What the figures depend on; `gpu` is the one that was used."""

    cpu: str
    cores: int
    instruction_sets: InstructionSets
    gpu: str | None
    torch: str | None
    python: str | None

    def name(self) -> str:
        """Return the name of its result files, without what is the same in most: versions and legal marks."""
        cpu = re.sub(r"\((R|TM)\)|\bProcessor\b|\bCPU\b|@", " ", self.cpu)
        sets = [name.removeprefix("avx512_") for name in self.instruction_sets.names(True)]
        if "avx512f" in sets:
            sets.remove("avx2")
        text = " ".join([cpu, f"{self.cores} cores", *sets, self.gpu or ""])
        return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")

    def describe(self) -> str:
        """Return it for a caption: processor, cores, instruction sets, GPU, PyTorch."""
        has, lacks = self.instruction_sets.names(True), self.instruction_sets.names(False)
        if "avx512f" in has:
            has.remove("avx2")
        if "avx512f" in lacks:
            lacks = ["avx512f"]  # the others are a part of it, or came later
        parts = [re.sub(r"\((R|TM)\)", "", self.cpu), f"{self.cores} cores"]
        parts += [INSTRUCTION_SETS[name] for name in has] + [f"no {INSTRUCTION_SETS[name]}" for name in lacks]
        return ", ".join([*parts, *filter(None, [self.gpu, self.torch and f"torch {self.torch}"])])


class Row(Strict):
    """The figures of one contender. Names carry the unit."""

    contender: str
    figures: dict[str, int | float | None]


class Case(Strict):
    """What was compared under these settings, ours first."""

    settings: dict[str, Scalar]
    rows: list[Row]


class Result(Strict):
    """One run of a benchmark.

    Attributes:
        benchmark: its name, and that of the folder.
        date: of the run.
        rounds: n, the turns of each contender that count.
        machine: on which.
        settings: what all cases have in common.
        skipped: contender to why it was left out.
        cases: the figures.
    """

    benchmark: str
    date: date
    rounds: int
    machine: Machine
    settings: dict[str, Scalar]
    skipped: dict[str, str]
    cases: list[Case]

    def path(self, folder: Path) -> Path:
        """Return where it belongs."""
        return folder / self.benchmark / f"{self.machine.name()}.json"


def this_machine(gpu: str | None = None) -> Machine:
    """Describe this machine; `gpu` names the one that the benchmark uses."""
    here, known = hardware(), torch.cpu.get_capabilities()
    # On another architecture the names are not there.
    has = {name: bool(known.get("avx512_f" if name == "avx512f" else name)) for name in INSTRUCTION_SETS}
    return Machine(
        cpu=here["cpu"],
        cores=here["cores"],
        instruction_sets=InstructionSets(**has),
        gpu=gpu,
        torch=torch.__version__,
        python=here["python"],
    )


def keep(result: Result, folder: Path = FOLDER) -> Path:
    """Write a result file, whole or not at all."""
    path = result.path(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, result.model_dump(mode="json"))
    return path


def read(path: Path) -> Result:
    """Read a result file.

    Raises:
        UserError: it does not have the schema.
    """
    try:
        return Result.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: {place}: {first['msg']}: measure anew with --keep, or correct the file") from None


def read_all(benchmark: str, folder: Path = FOLDER) -> list[Result]:
    """Read the results of all machines, the newest first."""
    results = [read(path) for path in sorted((folder / benchmark).glob("*.json"))]
    return sorted(results, key=lambda result: result.date, reverse=True)
