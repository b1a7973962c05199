"""A machine and a benchmark whose figures are given, and the exit code of a call."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from harness import Benchmark, rate_rows
from records import InstructionSets, Machine


def machine(cpu: str = "AMD EPYC", gpu: str | None = None, **sets: bool | None) -> Machine:
    names = InstructionSets.model_fields
    known = InstructionSets(**{name: sets.get(name) for name in names})
    return Machine(cpu=cpu, cores=2, instruction_sets=known, gpu=gpu, torch="2.14.1", python="3.11.7")


def measured(on: Machine | None = None, peer_rate: float = 20.0) -> Benchmark:
    """A benchmark of two contenders whose rates are given."""
    benchmark = Benchmark("train_loop", rounds=3, settings={"batch": 8, "precision": None})
    benchmark.machine = on or machine(avx2=True)
    rates = {"ours": [30.0, 40.0, 50.0], "peer": [peer_rate, peer_rate, 2 * peer_rate]}
    benchmark.add({}, rate_rows("images_per_second", rates, {"peer": 1.5}))
    return benchmark


def leaves(call: Callable[[], object]) -> int:
    with pytest.raises(SystemExit) as ended:
        call()
    return int(ended.value.code or 0)
