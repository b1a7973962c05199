"""Workers share clients that keep their connections."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mlops_img.serving.settings import Settings
from mlops_img.serving.state import CROWD, TURNED_AWAY, State


def state_of(inside: int, **settings: Any) -> State:
    engine: Any = SimpleNamespace(admission=SimpleNamespace(inside=inside))
    return State(Settings(**settings), engine=engine)


def test_crowded_worker_ends_the_connection_of_some_answers() -> None:
    state = state_of(CROWD + 1, workers=2)
    ended = [state.turns_away() for _ in range(3 * TURNED_AWAY)]
    assert sum(ended) == 3


@pytest.mark.parametrize(
    ("inside", "settings"),
    [(CROWD, {"workers": 2}), (CROWD + 1, {"workers": 2, "threads": 2}), (50, {"workers": 1})],
)
def test_connections_are_kept_by_who_has_time_or_nobody_beside(inside: int, settings: dict[str, int]) -> None:
    state = state_of(inside, **settings)
    assert not any(state.turns_away() for _ in range(3 * TURNED_AWAY))
