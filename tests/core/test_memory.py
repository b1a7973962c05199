"""Freed memory stays in the process during training and is returned afterwards."""

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
        torch.ones(9, 2**20)  # 36 MB, more than glibc keeps by default
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1])

usual = faults()
with freed_memory_kept():
    faults(), faults()  # the first blocks are mapped here too
    with freed_memory_kept():  # like an evaluation during training
        pass
    kept = faults()
    torch.ones(50, 2**20)
    held = resident()
given_back = held - resident()
before = resident()
torch.ones(100, 2**20)  # larger than any free block in the heap
print(usual, kept, given_back, resident() - before)
"""
PAGES_OF_200_MB = 200 * 2**20 // resource.getpagesize()


def count_pages(**environment: str) -> list[int]:
    """Run the program in another process and return its counts, in pages.

    These are the page faults of ten blocks before and in the context, the memory returned at the end of the context,
    and the memory that stays in the process after a block is freed outside the context.
    """
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, env={"PATH": "", **environment}
    )
    return [int(count) for count in done.stdout.split()]


glibc = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc's malloc is configured")


@glibc
def test_freed_memory_is_reused_in_the_context_and_returned_after_it() -> None:
    usual, kept, given_back, left = count_pages()
    assert kept < usual / 4
    assert given_back > PAGES_OF_200_MB / 2
    assert left < PAGES_OF_200_MB / 10


@glibc
def test_malloc_settings_in_the_environment_are_kept() -> None:
    usual, kept, *_ = count_pages(MALLOC_ARENA_MAX="2")
    assert kept > usual / 2
