"""A real browser on the service's page, and a watch on what it complains of and where it asks."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
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
# The machine that runs the tests may have much else to do.
PATIENCE = 60_000  # milliseconds: other tests may keep the machine busy
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
    """The page, opened.

    Attributes:
        page: Playwright's.
        complaints: errors in the console, the policy's included, exceptions, and requests to anywhere else.
        expected: parts of complaints that the test means to bring about.
    """

    page: Page
    complaints: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)

    @property
    def results(self) -> Locator:
        """All results."""
        return self.page.locator("#results > li")

    @property
    def status(self) -> Locator:
        """The line that is read out."""
        return self.page.get_by_role("status")

    def choose(self, *files: Path | dict[str, Any]) -> None:
        """Give files to the input, as its dialog does."""
        self.page.set_input_files("#files", list(files))  # type: ignore[arg-type]

    def transfer(self, *paths: Path) -> JSHandle:
        """Return a DataTransfer that holds files, for events that drop or paste."""
        files = [[path.name, "image/jpeg", base64.b64encode(path.read_bytes()).decode()] for path in paths]
        return self.page.evaluate_handle(TRANSFER, files)

    def unexpected(self) -> list[str]:
        """Return the complaints that the test did not mean to bring about."""
        return [said for said in self.complaints if not any(part in said for part in self.expected)]


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start the browser, and end it with the block."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        expect.set_options(timeout=PATIENCE)
        yield browser
        browser.close()


def open_tab(browser: Browser, url: str, *, load: bool = True, **options: Any) -> Tab:
    """Open the page in a context of its own.

    Args:
        browser: of `chromium`.
        url: of the service.
        load: False: the test goes to the page itself, after it has set its own routes.
        options: of Playwright's `new_context`.
    """
    context = browser.new_context(base_url=url, **{"reduced_motion": "reduce", **options})
    context.set_default_timeout(PATIENCE)
    context.add_init_script(REPORT_VIOLATIONS)
    tab = Tab(context.new_page())
    # Playwright intercepts dialogs only while somebody listens, and begins to without waiting until it does.
    tab.page.on("filechooser", lambda _: None)
    tab.page.on("console", lambda said: tab.complaints.append(said.text) if said.type == "error" else None)
    tab.page.on("pageerror", lambda error: tab.complaints.append(str(error)))
    tab.page.on(
        "request",
        lambda request: (
            None
            if request.url.startswith((f"{url}/", "blob:", "data:"))
            else tab.complaints.append(f"asked {request.url}")
        ),
    )
    if load:
        tab.page.goto("/")
    return tab


def contrast(page: Page, element: str, ground: str, color: str = "color") -> float:
    """Return WCAG's contrast between a color of one element and the background of another (two selectors)."""
    read = "([selector, name]) => getComputedStyle(document.querySelector(selector))[name]"
    colors = (page.evaluate(read, [element, color]), page.evaluate(read, [ground, "backgroundColor"]))
    lighter, darker = sorted((_luminance(color) for color in colors), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(color: str) -> float:
    assert color.startswith("rgb("), color  # opaque
    shares = [int(part) / 255 for part in color[4:-1].split(",")]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
