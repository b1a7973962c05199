"""A content cache for each test, and what is opened."""

from __future__ import annotations

import pytest

from mlops_img.data import duplicates
from tests.helpers.content_files import Opened


@pytest.fixture(autouse=True)
def content_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here there is a cache, one for each test; elsewhere the tests have none."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    return Opened(monkeypatch)


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as settled at once, as if the clock had moved on by an hour since they were written."""
    monkeypatch.setattr(duplicates, "SETTLED_NS", -3600 * 10**9)
