"""Freed memory stays in the process while training, and only then."""

import resource
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import torch
from mlops_img.core.memory import freed_memory_kept

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(9, 2**20)  # 36 MB, more than glibc keeps by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1])

usual = faults()
with freed_memory_kept():
    faults(), faults()  # the first blocks come from the kernel here too
    with freed_memory_kept():  # as an evaluation in the middle of a training
        pass
    kept = faults()
    torch.ones(50, 2**20)
    held = resident()
given_back = held - resident()
before = resident()
torch.ones(100, 2**20)  # fits into no hole that the blocks above left in the heap
print(usual, kept, given_back, resident() - before)
"""
PAGES_OF_200_MB = 200 * 2**20 // resource.getpagesize()


def count_pages(**environment: str) -> list[int]:
    """Return what a program of its own counts, in pages.

    The faults of ten blocks before the context and in it, how much smaller the process is after it than at its end,
    and what stays of a block that is freed after it.
    """
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, env={"PATH": "", **environment}
    )
    return [int(count) for count in done.stdout.split()]


glibc = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc's malloc is told")


@glibc
def test_freed_memory_is_used_again_within_and_given_back_after() -> None:
    usual, kept, given_back, left = count_pages()
    assert kept < usual / 4
    assert given_back > PAGES_OF_200_MB / 2
    assert left < PAGES_OF_200_MB / 10


@glibc
def test_what_the_environment_says_of_malloc_stands() -> None:
    usual, kept, *_ = count_pages(MALLOC_ARENA_MAX="2")
    assert kept > usual / 2
