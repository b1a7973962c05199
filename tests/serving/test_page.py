"""The web page, used as people use it: in Chromium, against a real service."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from tests.helpers.browser import CHROMIUM, PHONE, Tab, chromium, contrast, open_tab
from tests.helpers.service_process import Service, serving

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium"),
    pytest.mark.xdist_group("page"),
]
MAX_BYTES = 500_000


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
    """Open the page; at the end nothing may have complained that was not meant to."""
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


def heard(page: Page) -> Callable[[], list[str]]:
    """Listen to the live region; returns what gives all it has said."""
    page.evaluate("""() => {
        window.heard = [];
        const region = document.querySelector("[role=status]");
        new MutationObserver(() => window.heard.push(region.textContent)).observe(region, { childList: true });
    }""")
    return lambda: page.evaluate("window.heard")


# Images in, predictions out ----------------------------------------------------------------------------------------


def test_chosen_image_is_shown_with_bars_and_time(tab: Tab, service: Service, photos: list[Path]) -> None:
    answer = httpx.post(f"{service.url}/predict", files={"image": photos[0].read_bytes()}, timeout=60).json()
    tab.choose(photos[0])
    expect(tab.page.get_by_role("heading", level=3)).to_have_text(answer["label"])
    expect(tab.results.locator(".bars li span:nth-of-type(1)")).to_have_text([top["label"] for top in answer["top_k"]])
    widths = tab.results.locator(".bars i").evaluate_all("bars => bars.map((bar) => parseFloat(bar.style.width))")
    assert widths == pytest.approx([100 * top["probability"] for top in answer["top_k"]], abs=0.01)
    expect(tab.results).to_contain_text(photos[0].name)
    expect(tab.results).to_contain_text("of which the model took")
    image = tab.results.get_by_role("img", name=photos[0].name)
    expect(image).to_be_visible()
    assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") == 40


def test_several_images_keep_their_order_and_later_ones_come_first(tab: Tab, photos: list[Path]) -> None:
    tab.choose(*photos)
    expect(tab.results.locator("h3")).to_have_text(["circle", "square", "stripes"])
    tab.choose(photos[2])
    expect(tab.results.locator("h3")).to_have_text(["stripes", "circle", "square", "stripes"])


def test_many_images_are_all_answered(tab: Tab, trained: Path) -> None:
    tab.choose(*sorted((trained / "photos").glob("*/*.jpg"))[::6])
    expect(tab.status).to_have_text("30 images are done.")
    expect(tab.page.locator("#results > .shown")).to_have_count(30)


def test_dropped_images_are_taken_and_the_place_lights_up(tab: Tab, photos: list[Path]) -> None:
    transfer = tab.transfer(*photos[:2])
    drop = tab.page.locator("#drop")
    tab.page.dispatch_event("h1", "dragover", {"dataTransfer": transfer})
    expect(drop).to_have_class("over")
    tab.page.dispatch_event("h1", "drop", {"dataTransfer": transfer})
    expect(drop).not_to_have_class("over")
    expect(tab.results.locator("h3")).to_have_text(["circle", "square"])


def test_pasted_image_is_taken(tab: Tab, photos: list[Path]) -> None:
    tab.page.evaluate(
        """clipboardData => document.body.dispatchEvent(
            new ClipboardEvent("paste", { clipboardData, bubbles: true }))""",
        tab.transfer(photos[1]),
    )
    expect(tab.results.locator("h3")).to_have_text(["square"])


def test_pasted_text_is_answered_kindly(tab: Tab) -> None:
    tab.page.evaluate("""() => document.body.dispatchEvent(
        new ClipboardEvent("paste", { clipboardData: new DataTransfer(), bubbles: true }))""")
    expect(tab.status).to_contain_text("There was no image in that.")
    expect(tab.results).to_have_count(0)


def test_sample_of_the_bundle_is_tried_with_a_click(tab: Tab, service: Service) -> None:
    samples = httpx.get(f"{service.url}/model", timeout=60).json()["samples"]
    expect(tab.page.locator("#sample-list button")).to_have_count(len(samples))
    tab.page.get_by_role("button", name="Try a sample of square").first.click()
    expect(tab.results.locator("h3")).to_have_text(["square"])
    expect(tab.results).to_contain_text("Sample of square")


def test_small_images_are_enlarged_with_clear_pixels_and_others_smoothly(tab: Tab, tmp_path: Path) -> None:
    Image.new("L", (28, 28), 90).save(tmp_path / "digit.png")
    Image.new("RGB", (300, 40), "teal").save(tmp_path / "wide.png")
    tab.choose(tmp_path / "digit.png", tmp_path / "wide.png")
    images = tab.results.locator("img")
    expect(images.first).to_have_css("image-rendering", "pixelated")
    expect(images.last).to_have_css("image-rendering", "auto")
    # Whatever their shape, their frames are alike.
    boxes = [frame.bounding_box() for frame in tab.results.locator(".frame").all()]
    assert len({(box["width"], box["height"]) for box in boxes if box}) == 1


def test_format_that_browsers_do_not_show_is_predicted_all_the_same(
    tab: Tab, photos: list[Path], tmp_path: Path
) -> None:
    Image.open(photos[1]).save(tmp_path / "scan.tiff")
    tab.choose(tmp_path / "scan.tiff")
    expect(tab.results.locator("h3")).to_have_text(["square"])
    expect(tab.results).to_contain_text("No preview")


def test_results_can_be_removed(tab: Tab, photos: list[Path]) -> None:
    tab.choose(*photos)
    expect(tab.status).to_have_text("3 images are done.")
    tab.page.get_by_role("button", name="Remove all").click()
    expect(tab.results).to_have_count(0)
    expect(tab.page.get_by_role("button", name="Remove all")).to_be_hidden()
    expect(tab.page.get_by_role("button", name="Choose images")).to_be_focused()


def test_page_says_which_model_it_is(tab: Tab, service: Service) -> None:
    model = httpx.get(f"{service.url}/model", timeout=60).json()
    told = tab.page.locator("#model")
    expect(told).to_contain_text("test_resnet, version 1.")
    expect(told).to_contain_text("one of 3 classes: circle, square and stripes.")
    expect(told).to_contain_text(f"Of {model['metrics']['after']['n']} validation images")
    expect(tab.page.locator("#limits")).to_contain_text("up to 500\u00a0kB each")
    tab.page.get_by_text("About the model").click()
    facts = tab.page.locator("#facts")
    for fact in (model["precision"], "32 × 32 pixels", model["provenance"]["torch"]):
        expect(facts).to_contain_text(fact)
    tab.page.get_by_text("Its 3 classes").click()
    expect(tab.page.locator("#class-list li")).to_have_text(model["classes"])


# What goes wrong ---------------------------------------------------------------------------------------------------


def test_bad_file_is_said_kindly_and_the_others_go_on(tab: Tab, photos: list[Path], tmp_path: Path) -> None:
    tab.expected = ["status of 400", "status of 415"]
    (tmp_path / "broken.jpg").write_bytes(photos[0].read_bytes()[:200])
    tab.choose(photos[0], tmp_path / "broken.jpg", photos[1])
    expect(tab.status).to_have_text("3 images are done; 1 of them did not work.")
    expect(tab.results.locator("h3")).to_have_text(["circle", "That did not work", "square"])
    expect(tab.results.nth(1)).to_contain_text("The image is damaged or incomplete.")
    # Another time would not help.
    expect(tab.page.locator("#retry")).to_be_hidden()


def test_too_large_file_is_not_sent(tab: Tab, tmp_path: Path) -> None:
    sent: list[str] = []
    tab.page.on("request", lambda request: sent.append(request.url))
    expect(tab.page.locator("#limits")).not_to_be_empty()
    (tmp_path / "huge.bmp").write_bytes(bytes(MAX_BYTES + 1))
    tab.choose(tmp_path / "huge.bmp")
    expect(tab.results).to_contain_text("This file is too large: 500\u00a0kB, and up to 500\u00a0kB can be sent.")
    assert not any(url.endswith("/predict") for url in sent)


def test_page_stays_usable_while_the_service_is_away(
    open_page: Callable[..., Tab], trained: Path, photos: list[Path], tmp_path: Path
) -> None:
    with serving(trained / "bundles" / "latest", tmp_path) as short_lived:
        tab = open_page(url=short_lived.url)
        tab.expected = ["ERR_CONNECTION_REFUSED"]
        tab.choose(photos[0])
        expect(tab.results.locator("h3")).to_have_text(["circle"])
    tab.choose(*photos[1:])
    expect(tab.status).to_have_text("2 images are done; 2 of them did not work.")
    expect(tab.results.first).to_contain_text("The service does not answer. Is it running, and are you online?")
    expect(tab.results.last.locator("h3")).to_have_text("circle")
    again = tab.page.get_by_role("button", name="Try 2 again")
    # It comes back.
    tab.page.route("**/predict", lambda route: route.fulfill(json=answer_of("square")))
    again.click()
    expect(tab.results.locator("h3")).to_have_text(["square", "square", "circle"])
    expect(again).to_be_hidden()


def test_page_opened_while_the_model_is_away_asks_again(open_page: Callable[..., Tab]) -> None:
    tab = open_page(load=False)
    tab.expected = ["ERR_FAILED"]
    tab.page.route("**/model", lambda route: route.abort(), times=1)
    tab.page.goto("/")
    expect(tab.page.locator("#model")).to_contain_text("The service does not answer.")
    tab.page.get_by_role("button", name="Try again").click()
    expect(tab.page.locator("#model")).to_contain_text("test_resnet")
    expect(tab.page.locator("#reach")).to_be_hidden()
    expect(tab.page.locator("#choose")).to_be_focused()  # what had the focus is gone


def test_overloaded_service_is_asked_again_when_it_said(tab: Tab, photos: list[Path]) -> None:
    tab.expected = ["status of 429"]
    full = {"error": {"code": "overloaded", "message": "There is too much to do.", "request_id": "1"}}
    tab.page.route(
        "**/predict",
        lambda route: route.fulfill(status=429, json=full, headers={"Retry-After": "1"}),
        times=1,
    )
    tab.choose(photos[0])
    expect(tab.results).to_contain_text("There is much to do: asking again in 1 s.")
    expect(tab.results.locator("h3")).to_have_text(["circle"])


def test_page_of_a_proxy_is_not_shown_as_an_answer(tab: Tab, photos: list[Path]) -> None:
    tab.expected = ["status of 502"]
    tab.page.route("**/predict", lambda route: route.fulfill(status=502, body="<html>Bad gateway</html>"))
    tab.choose(photos[0])
    expect(tab.results).to_contain_text("The service cannot answer just now.")
    expect(tab.page.get_by_role("button", name="Try it again")).to_be_visible()


def test_token_is_asked_for_and_what_waited_goes_on(
    open_page: Callable[..., Tab], trained: Path, photos: list[Path], tmp_path: Path
) -> None:
    with serving(trained / "bundles" / "latest", tmp_path, tokens="open-sesame") as guarded:
        tab = open_page(url=guarded.url)
        tab.expected = ["status of 401"]
        field = tab.page.get_by_label("Token")
        expect(field).to_be_focused()
        tab.choose(photos[0])
        expect(tab.results.locator("h3")).to_have_text(["Waiting for the token"])
        field.fill("wrong")
        field.press("Enter")
        expect(tab.page.get_by_role("alert")).to_have_text("This token is not accepted.")
        field.fill("open-sesame")
        tab.page.get_by_role("button", name="Use it").click()
        expect(tab.results.locator("h3")).to_have_text(["circle"])
        expect(field).to_be_hidden()
        expect(tab.page.get_by_role("button", name="Try a sample of circle").first).to_be_visible()
        with tab.page.expect_download() as download:
            tab.page.get_by_role("link", name="docs.json").click()
        assert "/predict" in download.value.path().read_text()
        # Phones drop a page from memory while their camera is open.
        tab.page.reload()
        expect(tab.page.locator("#model")).to_contain_text("test_resnet")


# For everybody, everywhere -----------------------------------------------------------------------------------------

LONG = "Llanfairpwllgwyngyllgogerychwyrndrobwllllantysiliogogogoch, a village with a station and a very long name"


def show_everything(tab: Tab, photos: list[Path], folder: Path) -> None:
    """Bring about a prediction and an error, and open all that can be opened."""
    tab.expected = ["status of 400", "status of 415"]
    (folder / "broken.jpg").write_bytes(photos[0].read_bytes()[:200])
    tab.choose(photos[0], folder / "broken.jpg")
    expect(tab.status).to_have_text("2 images are done; 1 of them did not work.")
    for summary in tab.page.locator("summary").all():
        summary.click()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("device", [{}, PHONE], ids=["desktop", "phone"])
def test_accessibility_checker_finds_nothing(
    open_page: Callable[..., Tab], photos: list[Path], tmp_path: Path, scheme: str, device: dict[str, Any]
) -> None:
    tab = open_page(color_scheme=scheme, **device)
    show_everything(tab, photos, tmp_path)
    found = Axe().run(tab.page).response
    assert [(each["id"], [node["html"] for node in each["nodes"]]) for each in found["violations"]] == []
    assert "color-contrast" in {each["id"] for each in found["passes"]}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_edges_stand_out(
    open_page: Callable[..., Tab], photos: list[Path], tmp_path: Path, scheme: str
) -> None:
    tab = open_page(color_scheme=scheme)
    show_everything(tab, photos, tmp_path)
    page = tab.page
    # The checker cannot say what lies behind text that a bar lies half behind.
    for ground in (".bars i", ".bars li"):
        assert contrast(page, ".bars span", ground) >= 4.5
    assert contrast(page, ".problem", "body") >= 4.5
    assert contrast(page, "#limits", "#drop") >= 4.5
    assert contrast(page, ".frame span", ".frame") >= 4.5
    assert contrast(page, "#choose", "#choose") >= 4.5
    assert contrast(page, "#clear", "#clear", "borderTopColor") >= 3
    assert contrast(page, ".bars i", ".bars li", "backgroundColor") >= 1.5
    light = page.evaluate("getComputedStyle(document.body).backgroundColor === 'rgb(255, 255, 255)'")
    assert light == (scheme == "light")


def test_everything_is_reached_by_keyboard_and_shows_where_the_focus_is(
    tab: Tab, photos: list[Path], tmp_path: Path
) -> None:
    show_everything(tab, photos, tmp_path)
    page = tab.page
    controls = page.locator("button, input, summary, a[href], [tabindex='0']")
    wanted = sum(control.evaluate("each => each.checkVisibility()") for control in controls.all())
    page.locator("h1").click()  # from there on
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


def test_keyboard_alone_is_enough(tab: Tab, photos: list[Path]) -> None:
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


def test_screen_reader_hears_the_beginning_and_the_end_not_each_image(tab: Tab, photos: list[Path]) -> None:
    expect(tab.page.locator("#sample-list button")).not_to_have_count(0)
    said = heard(tab.page)
    tab.choose(photos[0])
    expect(tab.status).to_contain_text(f"{photos[0].name}: circle, ")
    first = said()
    assert first[0] == "Looking at one image…"
    assert len(first) == 2
    tab.choose(*photos)
    expect(tab.status).to_have_text("3 images are done.")
    assert said()[2:] == ["Looking at 3 images…", "3 images are done."]


def test_phone_has_a_camera_button_and_nothing_is_wider_than_the_screen(
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


def test_result_is_brought_into_view_on_a_phone(open_page: Callable[..., Tab], photos: list[Path]) -> None:
    tab = open_page(**PHONE | {"viewport": {"width": 390, "height": 500}})
    tab.choose(photos[0])
    expect(tab.results.locator("h3")).to_have_text(["circle"])
    expect(tab.results.locator("h3")).to_be_in_viewport()


def test_desktop_offers_no_camera_and_a_phone_nothing_to_drop(open_page: Callable[..., Tab]) -> None:
    desktop, phone = open_page().page, open_page(**PHONE).page
    for page, there, missing in ((desktop, "Drop images here", "Take a photo"), (phone, "Take a photo", "Drop images")):
        expect(page.get_by_text(there)).to_be_visible()
        expect(page.get_by_text(missing)).to_be_hidden()


def test_policy_lets_nothing_in_from_elsewhere(tab: Tab) -> None:
    # What the other tests find nothing of would be found.
    tab.page.evaluate("""() => {
        document.body.append(Object.assign(new Image(), { src: "https://elsewhere.invalid/x.png" }));
        document.body.append(Object.assign(document.createElement("script"), { textContent: "window.ran = 1" }));
    }""")
    assert tab.page.evaluate("window.ran ?? 0") == 0
    assert any("policy: img-src https://elsewhere.invalid" in said for said in tab.complaints)
    assert any("policy: script-src-elem inline" in said for said in tab.complaints)
    tab.expected = ["policy: ", "Content Security Policy", "asked https://elsewhere.invalid/x.png"]


def answer_of(label: str) -> dict[str, Any]:
    top = {"label": label, "index": 0, "probability": 0.9}
    timing = {"decode_ms": 1, "queue_ms": 1, "model_ms": 1, "total_ms": 3}
    return {**top, "top_k": [top], "timing": timing, "model": {"name": "test_resnet", "version": "1"}}
