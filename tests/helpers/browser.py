"""A real browser with the page of the service, which records its problems and its requests."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, JSHandle, Locator, Page, expect, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
# The largest upload that the service of these tests accepts.
MAX_BYTES = 500_000
# Milliseconds: other processes may keep the machine busy.
TIMEOUT = 60_000
TRANSFER = """files => {
    const transfer = new DataTransfer();
    for (const [name, type, data] of files) {
        const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
        transfer.items.add(new File([bytes], name, { type }));
    }
    return transfer;
}"""
REPORT_VIOLATIONS = """document.addEventListener("securitypolicyviolation",
    (event) => console.error(`policy: ${event.violatedDirective} ${event.blockedURI}`))"""


@dataclass
class Tab:
    """The page in a tab.

    Attributes:
        page: Playwright's page.
        problems: console errors, policy violations, exceptions, and requests to other origins.
        expected: parts of the problems that the test causes on purpose.
    """

    page: Page
    problems: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)

    @property
    def results(self) -> Locator:
        """All results."""
        return self.page.locator("#results > li")

    @property
    def status(self) -> Locator:
        """The status line, which screen readers announce."""
        return self.page.get_by_role("status")

    def choose(self, *files: Path | dict[str, Any]) -> None:
        """Give files to the file input, as its dialog does."""
        self.page.set_input_files("#files", list(files))  # type: ignore[arg-type]

    def transfer(self, *paths: Path) -> JSHandle:
        """Return a DataTransfer with files, for drop and paste events."""
        files = [[path.name, "image/jpeg", base64.b64encode(path.read_bytes()).decode()] for path in paths]
        return self.page.evaluate_handle(TRANSFER, files)

    def unexpected(self) -> list[str]:
        """Return the problems that the test did not expect."""
        return [problem for problem in self.problems if not any(part in problem for part in self.expected)]


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start the browser; it is closed at the end of the block."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        expect.set_options(timeout=TIMEOUT)
        yield browser
        browser.close()


def open_tab(browser: Browser, url: str, *, load: bool = True, **options: Any) -> Tab:
    """Open the page in a new browser context.

    Args:
        browser: from `chromium`.
        url: URL of the service.
        load: False if the test loads the page itself, for example after it has set routes.
        options: for Playwright's `new_context`.
    """
    context = browser.new_context(base_url=url, **{"reduced_motion": "reduce", **options})
    context.set_default_timeout(TIMEOUT)
    context.add_init_script(REPORT_VIOLATIONS)
    tab = Tab(context.new_page())
    # Playwright intercepts file dialogs only while there is a listener, and does not wait until it has begun to.
    tab.page.on("filechooser", lambda _: None)
    tab.page.on("console", lambda message: tab.problems.append(message.text) if message.type == "error" else None)
    tab.page.on("pageerror", lambda error: tab.problems.append(str(error)))
    tab.page.on(
        "request",
        lambda request: (
            None
            if request.url.startswith((f"{url}/", "blob:", "data:"))
            else tab.problems.append(f"requested {request.url}")
        ),
    )
    if load:
        tab.page.goto("/")
    return tab


def contrast(page: Page, element: str, background: str, color: str = "color") -> float:
    """Return WCAG's contrast between a color of one element and the background of another (two selectors)."""
    read = "([selector, name]) => getComputedStyle(document.querySelector(selector))[name]"
    colors = (page.evaluate(read, [element, color]), page.evaluate(read, [background, "backgroundColor"]))
    lighter, darker = sorted((_luminance(color) for color in colors), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(color: str) -> float:
    assert color.startswith("rgb("), color  # opaque
    channels = [int(part) / 255 for part in color[4:-1].split(",")]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def announcements(page: Page) -> Callable[[], list[str]]:
    """Record the texts of the live region; returns a function that returns them."""
    return texts_over_time(page, "[role=status]")


def texts_over_time(page: Page, selector: str) -> Callable[[], list[str]]:
    """Record every text of an element from now on; returns a function that returns them.

    What is shown only for a moment may be gone before a busy machine looks.
    """
    page.evaluate(
        """selector => {
            window.recorded = [];
            const element = document.querySelector(selector);
            const observer = new MutationObserver(() => window.recorded.push(element.textContent));
            observer.observe(element, { childList: true, characterData: true, subtree: true });
        }""",
        selector,
    )
    return lambda: page.evaluate("window.recorded")


def answer_of(label: str) -> dict[str, Any]:
    top = {"label": label, "index": 0, "probability": 0.9}
    timing = {"decode_ms": 1, "queue_ms": 1, "model_ms": 1, "total_ms": 3}
    return {**top, "top_k": [top], "timing": timing, "model": {"name": "test_resnet", "version": "1"}}
