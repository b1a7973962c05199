"""Freed memory stays in the process while training, and only then."""

import subprocess
import sys

import pytest

FAULTS = """
import resource
import torch
from mlops_img.memory import freed_memory_kept

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(9, 2**20)  # 36 MB, more than glibc keeps by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

usual = faults()
with freed_memory_kept():
    faults(), faults()  # the first blocks come from the kernel here too
    with freed_memory_kept():  # as an evaluation in the middle of a training
        pass
    kept = faults()
print(usual, kept, faults())
"""


def count_faults(**environment: str) -> list[int]:
    """Return the page faults before, in and after the context, of a program of its own."""
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True, env={"PATH": "", **environment}
    )
    return [int(count) for count in done.stdout.split()]


glibc = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc's malloc is told")


@glibc
def test_freed_memory_is_used_again_within_and_given_back_after() -> None:
    usual, kept, after = count_faults()
    assert kept < usual / 4
    assert after > usual / 2


@glibc
def test_what_the_environment_says_of_malloc_stands() -> None:
    usual, kept, _ = count_faults(MALLOC_ARENA_MAX="2")
    assert kept > usual / 2
