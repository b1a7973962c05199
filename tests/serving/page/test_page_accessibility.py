"""The web page's accessibility, and the page on phones and desktops."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from tests.helpers.browser import CHROMIUM, PHONE, Tab, announcements, answer_of, contrast
from tests.helpers.service_process import Service

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium"),
    pytest.mark.xdist_group("page"),
]
LONG = "Llanfairpwllgwyngyllgogerychwyrndrobwllllantysiliogogogoch, a village with a station and a very long name"


def show_everything(tab: Tab, photos: list[Path], folder: Path) -> None:
    """Make the page show a prediction and an error, with all details open."""
    tab.expected = ["status of 400", "status of 415"]
    (folder / "broken.jpg").write_bytes(photos[0].read_bytes()[:200])
    tab.choose(photos[0], folder / "broken.jpg")
    expect(tab.status).to_have_text("1 of 2 images classified, 1 failed.")
    for summary in tab.page.locator("summary").all():
        summary.click()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("device", [{}, PHONE], ids=["desktop", "phone"])
def test_accessibility_checker_finds_no_violation(
    open_page: Callable[..., Tab], photos: list[Path], tmp_path: Path, scheme: str, device: dict[str, Any]
) -> None:
    tab = open_page(color_scheme=scheme, **device)
    show_everything(tab, photos, tmp_path)
    found = Axe().run(tab.page).response
    assert [(each["id"], [node["html"] for node in each["nodes"]]) for each in found["violations"]] == []
    assert "color-contrast" in {each["id"] for each in found["passes"]}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_borders_have_enough_contrast(
    open_page: Callable[..., Tab], photos: list[Path], tmp_path: Path, scheme: str
) -> None:
    tab = open_page(color_scheme=scheme)
    show_everything(tab, photos, tmp_path)
    page = tab.page
    # The checker cannot tell the background of text that is partly in front of a bar.
    for background in (".bars i", ".bars li"):
        assert contrast(page, ".bars span", background) >= 4.5
    assert contrast(page, ".problem", "body") >= 4.5
    assert contrast(page, "#limits", "#drop") >= 4.5
    assert contrast(page, ".frame span", ".frame") >= 4.5
    assert contrast(page, "#choose", "#choose") >= 4.5
    assert contrast(page, "#clear", "#clear", "borderTopColor") >= 3
    assert contrast(page, ".bars i", ".bars li", "backgroundColor") >= 1.5
    light = page.evaluate("getComputedStyle(document.body).backgroundColor === 'rgb(255, 255, 255)'")
    assert light == (scheme == "light")


def test_every_control_is_reached_by_keyboard_with_a_visible_focus(
    tab: Tab, photos: list[Path], tmp_path: Path
) -> None:
    show_everything(tab, photos, tmp_path)
    page = tab.page
    controls = page.locator("button, input, summary, a[href], [tabindex='0']")
    wanted = sum(control.evaluate("each => each.checkVisibility()") for control in controls.all())
    page.locator("h1").click()  # the focus moves on from here
    seen = []
    for _ in range(wanted):
        page.keyboard.press("Tab")
        focused = page.locator(":focus")
        place = focused.evaluate("focused => [...document.all].indexOf(focused)")
        style = focused.evaluate("focused => getComputedStyle(focused).outline")
        seen.append((place, style))
    assert sorted({place for place, _ in seen}) == [place for place, _ in seen]
    assert len({place for place, _ in seen}) == wanted
    assert all("solid 3px" in style for _, style in seen)


def test_page_works_by_keyboard_alone(tab: Tab, photos: list[Path]) -> None:
    page = tab.page
    sample = page.get_by_role("button", name="Try a sample of stripes").first
    sample.focus()
    page.keyboard.press("Enter")
    expect(tab.results.locator("h3")).to_have_text(["stripes"])
    page.keyboard.press("Space")
    expect(tab.results.locator("h3")).to_have_text(["stripes", "stripes"])
    expect(sample).to_be_focused()
    page.get_by_role("button", name="Choose images").focus()
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    assert chooser.value.is_multiple()
    chooser.value.set_files(photos[:2])
    expect(tab.results).to_have_count(4)
    page.get_by_text("About the model").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#facts")).to_be_visible()


def test_status_is_announced_once_per_batch(tab: Tab, photos: list[Path]) -> None:
    expect(tab.page.locator("#sample-list button")).not_to_have_count(0)
    announced = announcements(tab.page)
    tab.choose(photos[0])
    expect(tab.status).to_contain_text(f"{photos[0].name}: circle, ")
    first = announced()
    assert first[0] == "Classifying the image…"
    assert len(first) == 2
    tab.choose(*photos)
    expect(tab.status).to_have_text("3 images classified.")
    assert announced()[2:] == ["Classifying 3 images…", "3 images classified."]


def test_phone_has_a_camera_button_and_no_horizontal_scrolling(
    open_page: Callable[..., Tab], service: Service, photos: list[Path]
) -> None:
    tab = open_page(load=False, **PHONE)
    model = httpx.get(f"{service.url}/model", timeout=60).json()
    model |= {"name": "a_name_without_any_blanks_" * 4, "classes": [LONG] * 1000}
    tab.page.route("**/model", lambda route: route.fulfill(json=model))
    tab.page.route("**/predict", lambda route: route.fulfill(json=answer_of(LONG)))
    tab.page.goto("/")
    expect(tab.page.locator("#camera")).to_have_attribute("capture", "environment")
    with tab.page.expect_file_chooser() as chooser:
        tab.page.get_by_role("button", name="Take a photo").tap()
    chooser.value.set_files(photos[0])
    expect(tab.results).to_contain_text(LONG)
    for summary in tab.page.locator("summary").all():
        summary.click()
    for width in (390, 320):
        tab.page.set_viewport_size({"width": width, "height": 844})
        assert tab.page.evaluate("document.documentElement.scrollWidth") == width
    for control in tab.page.locator("button:visible").all():
        box = control.bounding_box()
        assert box is not None
        assert min(box["width"], box["height"]) >= 44


def test_result_is_scrolled_into_view_on_a_phone(open_page: Callable[..., Tab], photos: list[Path]) -> None:
    tab = open_page(**PHONE | {"viewport": {"width": 390, "height": 500}})
    tab.choose(photos[0])
    expect(tab.results.locator("h3")).to_have_text(["circle"])
    expect(tab.results.locator("h3")).to_be_in_viewport()


def test_desktop_has_no_camera_button_and_phone_no_drop_area(open_page: Callable[..., Tab]) -> None:
    desktop, phone = open_page().page, open_page(**PHONE).page
    for page, there, missing in ((desktop, "Drop images here", "Take a photo"), (phone, "Take a photo", "Drop images")):
        expect(page.get_by_text(there)).to_be_visible()
        expect(page.get_by_text(missing)).to_be_hidden()
