"""What processes of one torchrun tell one another through its store."""

from __future__ import annotations

from datetime import timedelta

import pytest
import torch.distributed as dist

from mlops_img.core import torchrun
from mlops_img.core.distributed import World, device_of
from mlops_img.core.torchrun import Launch, LostPeerError, end_together, is_lost_peer
from mlops_img.errors import EXIT_FAILED, EXIT_USER_ERROR, UserError


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    """Three ranks with one store."""
    store = dist.HashStore()
    store.set_timeout(timedelta(seconds=20))
    monkeypatch.setattr(torchrun, "GRACE_SECONDS", 0.0)
    launches = [Launch(World(rank, 3), dist.PrefixStore("attempt-0", store), store) for rank in range(3)]
    monkeypatch.setattr(torchrun, "_launch", launches[0])
    return launches


def test_rank_0_finds_the_ranks_that_differ(ranks: list[Launch]) -> None:
    assert ranks[1].differing("code", "b") == ranks[2].differing("code", "a") == []
    assert ranks[0].differing("code", "a") == [1]


def test_only_the_first_error_is_printed_with_its_rank(ranks: list[Launch]) -> None:
    error = UserError("wrong")
    assert end_together(ranks[2], error, EXIT_USER_ERROR, "wrong") == (EXIT_USER_ERROR, "rank 2: wrong")
    assert end_together(ranks[0], error, EXIT_USER_ERROR, "also wrong") == (EXIT_USER_ERROR, None)
    assert end_together(ranks[1], LostPeerError("gone"), EXIT_FAILED, "a trace") == (EXIT_USER_ERROR, None)


def test_a_rank_that_does_not_answer_is_named(ranks: list[Launch]) -> None:
    ranks[0].timeout_seconds = 7
    ranks[1].set("lost/1", True)
    error = RuntimeError("[gloo/transport/tcp/unbound_buffer.cc:119] Timed out waiting 7000ms for recv")
    error.add_note("step 5: ")
    code, line = end_together(ranks[0], error, EXIT_FAILED, "a trace")
    assert code == EXIT_FAILED
    assert line is not None
    assert line.startswith("rank 0: step 5: no answer from rank 2 within train.timeout_seconds=7. resume=auto")


def test_a_rank_that_has_ended_is_named(ranks: list[Launch]) -> None:
    ranks[2].set("lost/2", True)
    _, line = end_together(ranks[0], RuntimeError("gloo: Connection closed by peer"), EXIT_FAILED, "a trace")
    assert line is not None
    assert line.startswith("rank 0: rank 1 has ended. resume=auto")


def test_an_error_of_its_own_is_no_lost_rank(ranks: list[Launch]) -> None:
    assert not is_lost_peer(RuntimeError("shapes cannot be multiplied"))
    assert not is_lost_peer(ValueError("gloo"))


def test_what_is_remembered_outlives_an_attempt(ranks: list[Launch]) -> None:
    ranks[0].set("handed over", 1)
    ranks[0].remember("folder", "runs/a")
    again = Launch(World(0, 3), dist.PrefixStore("attempt-1", ranks[0].lasting), ranks[0].lasting, 1)
    assert again.remembered("folder") == "runs/a"
    assert not again.store.check(["handed over"])
    assert again.failure is None


def test_each_rank_of_a_machine_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert device_of(World(3, 4, 1, 2), "auto") == "cuda:1"
    assert device_of(World(3, 4, 1, 2), "cpu") == "cpu"
    with pytest.raises(UserError, match="--nproc-per-node 4: this machine has 2 GPUs"):
        device_of(World(0, 4, 0, 4), "cuda")
    with pytest.raises(UserError, match=r"train\.device=cuda:1: each process"):
        device_of(World(0, 2, 0, 2), "cuda:1")
    assert device_of(World(), "cuda:1") == "cuda:1"
