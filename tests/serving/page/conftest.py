"""A service, a browser, and functions that open the page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from tests.helpers.browser import MAX_BYTES, Tab, chromium, open_tab
from tests.helpers.service_process import Service, serving


@pytest.fixture(scope="module")
def service(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(trained / "bundles" / "latest", tmp_path_factory.mktemp("page"), max_bytes=MAX_BYTES) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture
def open_page(browser: Browser, service: Service) -> Iterator[Callable[..., Tab]]:
    """Return a function that opens the page. At the end, no page may have reported an unexpected problem."""
    tabs: list[Tab] = []

    def call(**options: Any) -> Tab:
        tabs.append(open_tab(browser, options.pop("url", service.url), **options))
        return tabs[-1]

    yield call
    for tab in tabs:
        tab.page.context.close()
        assert tab.unexpected() == []


@pytest.fixture
def tab(open_page: Callable[..., Tab]) -> Tab:
    return open_page()


@pytest.fixture
def photos(trained: Path) -> list[Path]:
    return [sorted((trained / "photos" / kind).iterdir())[0] for kind in ("circle", "square", "stripes")]
