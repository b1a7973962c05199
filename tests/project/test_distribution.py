"""How the tests are spread over processes."""

from __future__ import annotations

import os

import pytest

from tests.helpers.shared_bundle import once


@pytest.mark.xdist_group("together")
@pytest.mark.parametrize("number", range(4))
def test_tests_of_a_group_run_in_one_process(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, number: int
) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ and not request.config.getoption("loadgroup"):
        pytest.skip("needs --dist loadgroup")
    folder = once(tmp_path_factory, "processes", lambda root: None)
    (folder / str(os.getpid())).mkdir(exist_ok=True)
    assert len([path for path in folder.iterdir() if path.is_dir()]) == 1
