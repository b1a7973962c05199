"""The web page in Chromium, with a real service: images, predictions and errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from PIL import Image
from playwright.sync_api import expect

from tests.helpers.browser import CHROMIUM, MAX_BYTES, Tab, answer_of, texts_over_time
from tests.helpers.service_process import Service, serving

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium"),
    pytest.mark.xdist_group("page"),
]

# Images and predictions ----------------------------------------------------------------------------------------


def test_chosen_image_is_shown_with_bars_and_time(tab: Tab, service: Service, photos: list[Path]) -> None:
    answer = httpx.post(f"{service.url}/predict", files={"image": photos[0].read_bytes()}, timeout=60).json()
    tab.choose(photos[0])
    expect(tab.page.get_by_role("heading", level=3)).to_have_text(answer["label"])
    expect(tab.results.locator(".bars li span:nth-of-type(1)")).to_have_text([top["label"] for top in answer["top_k"]])
    widths = tab.results.locator(".bars i").evaluate_all("bars => bars.map((bar) => parseFloat(bar.style.width))")
    assert widths == pytest.approx([100 * top["probability"] for top in answer["top_k"]], abs=0.01)
    expect(tab.results).to_contain_text(photos[0].name)
    expect(tab.results).to_contain_text("in the model")
    image = tab.results.get_by_role("img", name=photos[0].name)
    expect(image).to_be_visible()
    assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") == 40


def test_images_keep_their_order_and_newer_ones_come_first(tab: Tab, photos: list[Path]) -> None:
    tab.choose(*photos)
    expect(tab.results.locator("h3")).to_have_text(["circle", "square", "stripes"])
    tab.choose(photos[2])
    expect(tab.results.locator("h3")).to_have_text(["stripes", "circle", "square", "stripes"])


def test_many_images_are_all_classified(tab: Tab, trained: Path) -> None:
    tab.choose(*sorted((trained / "photos").glob("*/*.jpg"))[::6])
    expect(tab.status).to_have_text("30 images classified.")
    expect(tab.page.locator("#results > .shown")).to_have_count(30)


def test_dropped_images_are_classified_and_the_drop_area_is_highlighted(tab: Tab, photos: list[Path]) -> None:
    transfer = tab.transfer(*photos[:2])
    drop = tab.page.locator("#drop")
    tab.page.dispatch_event("h1", "dragover", {"dataTransfer": transfer})
    expect(drop).to_have_class("over")
    tab.page.dispatch_event("h1", "drop", {"dataTransfer": transfer})
    expect(drop).not_to_have_class("over")
    expect(tab.results.locator("h3")).to_have_text(["circle", "square"])


def test_pasted_image_is_classified(tab: Tab, photos: list[Path]) -> None:
    tab.page.evaluate(
        """clipboardData => document.body.dispatchEvent(
            new ClipboardEvent("paste", { clipboardData, bubbles: true }))""",
        tab.transfer(photos[1]),
    )
    expect(tab.results.locator("h3")).to_have_text(["square"])


def test_pasted_text_shows_a_message(tab: Tab) -> None:
    tab.page.evaluate("""() => document.body.dispatchEvent(
        new ClipboardEvent("paste", { clipboardData: new DataTransfer(), bubbles: true }))""")
    expect(tab.status).to_contain_text("No image file found.")
    expect(tab.results).to_have_count(0)


def test_sample_of_the_bundle_is_classified_on_click(tab: Tab, service: Service) -> None:
    samples = httpx.get(f"{service.url}/model", timeout=60).json()["samples"]
    expect(tab.page.locator("#sample-list button")).to_have_count(len(samples))
    tab.page.get_by_role("button", name="Try a sample of square").first.click()
    expect(tab.results.locator("h3")).to_have_text(["square"])
    expect(tab.results).to_contain_text("Sample of square")


def test_small_images_are_enlarged_with_sharp_pixels(tab: Tab, tmp_path: Path) -> None:
    Image.new("L", (28, 28), 90).save(tmp_path / "digit.png")
    Image.new("RGB", (300, 40), "teal").save(tmp_path / "wide.png")
    tab.choose(tmp_path / "digit.png", tmp_path / "wide.png")
    images = tab.results.locator("img")
    expect(images.first).to_have_css("image-rendering", "pixelated")
    expect(images.last).to_have_css("image-rendering", "auto")
    # Their frames have the same size.
    boxes = [frame.bounding_box() for frame in tab.results.locator(".frame").all()]
    assert len({(box["width"], box["height"]) for box in boxes if box}) == 1


def test_format_that_browsers_cannot_show_is_classified(tab: Tab, photos: list[Path], tmp_path: Path) -> None:
    Image.open(photos[1]).save(tmp_path / "scan.tiff")
    tab.choose(tmp_path / "scan.tiff")
    expect(tab.results.locator("h3")).to_have_text(["square"])
    expect(tab.results).to_contain_text("No preview")


def test_results_can_be_cleared(tab: Tab, photos: list[Path]) -> None:
    tab.choose(*photos)
    expect(tab.status).to_have_text("3 images classified.")
    tab.page.get_by_role("button", name="Clear results").click()
    expect(tab.results).to_have_count(0)
    expect(tab.page.get_by_role("button", name="Clear results")).to_be_hidden()
    expect(tab.page.get_by_role("button", name="Choose images")).to_be_focused()


def test_page_describes_the_model(tab: Tab, service: Service) -> None:
    model = httpx.get(f"{service.url}/model", timeout=60).json()
    summary = tab.page.locator("#model")
    expect(summary).to_contain_text("test_resnet, version 1, tells 3 classes apart: circle, square and stripes.")
    expect(summary).to_contain_text(f" on {model['metrics']['after']['n']} validation images")
    expect(tab.page.locator("#limits")).to_contain_text("up to 500\u00a0kB each")
    tab.page.get_by_text("About the model").click()
    facts = tab.page.locator("#facts")
    for fact in (model["precision"], "32 × 32 pixels", model["provenance"]["torch"]):
        expect(facts).to_contain_text(fact)
    tab.page.get_by_text("All 3 classes").click()
    expect(tab.page.locator("#class-list li")).to_have_text(model["classes"])


# Errors ---------------------------------------------------------------------------------------------------


def test_damaged_file_shows_its_error_and_the_others_are_classified(
    tab: Tab, photos: list[Path], tmp_path: Path
) -> None:
    tab.expected = ["status of 400", "status of 415"]
    (tmp_path / "broken.jpg").write_bytes(photos[0].read_bytes()[:200])
    tab.choose(photos[0], tmp_path / "broken.jpg", photos[1])
    expect(tab.status).to_have_text("2 of 3 images classified, 1 failed.")
    expect(tab.results.locator("h3")).to_have_text(["circle", "Failed", "square"])
    expect(tab.results.nth(1)).to_contain_text("The image is damaged or incomplete.")
    # A retry would not help.
    expect(tab.page.locator("#retry")).to_be_hidden()


def test_too_large_file_is_not_sent(tab: Tab, tmp_path: Path) -> None:
    sent: list[str] = []
    tab.page.on("request", lambda request: sent.append(request.url))
    expect(tab.page.locator("#limits")).not_to_be_empty()
    (tmp_path / "huge.bmp").write_bytes(bytes(MAX_BYTES + 1))
    tab.choose(tmp_path / "huge.bmp")
    expect(tab.results).to_contain_text("This file is too large: 500\u00a0kB. The limit is 500\u00a0kB.")
    assert not any(url.endswith("/predict") for url in sent)


def test_images_can_be_retried_after_an_outage(
    open_page: Callable[..., Tab], trained: Path, photos: list[Path], tmp_path: Path
) -> None:
    with serving(trained / "bundles" / "latest", tmp_path) as short_lived:
        tab = open_page(url=short_lived.url)
        tab.expected = ["ERR_CONNECTION_REFUSED"]
        tab.choose(photos[0])
        expect(tab.results.locator("h3")).to_have_text(["circle"])
    tab.choose(*photos[1:])
    expect(tab.status).to_have_text("0 of 2 images classified, 2 failed.")
    expect(tab.results.first).to_contain_text("The service cannot be reached. Is it running, and are you online?")
    expect(tab.results.last.locator("h3")).to_have_text("circle")
    again = tab.page.get_by_role("button", name="Retry 2 images")
    # The service is back.
    tab.page.route("**/predict", lambda route: route.fulfill(json=answer_of("square")))
    again.click()
    expect(tab.results.locator("h3")).to_have_text(["square", "square", "circle"])
    expect(again).to_be_hidden()


def test_page_opened_during_an_outage_can_be_reloaded(open_page: Callable[..., Tab]) -> None:
    tab = open_page(load=False)
    tab.expected = ["ERR_FAILED"]
    tab.page.route("**/model", lambda route: route.abort(), times=1)
    tab.page.goto("/")
    expect(tab.page.locator("#model")).to_contain_text("The service cannot be reached.")
    tab.page.get_by_role("button", name="Try again").click()
    expect(tab.page.locator("#model")).to_contain_text("test_resnet")
    expect(tab.page.locator("#reload")).to_be_hidden()
    expect(tab.page.locator("#choose")).to_be_focused()  # the focused button is gone


def test_overloaded_service_is_retried_after_retry_after(tab: Tab, photos: list[Path]) -> None:
    tab.expected = ["status of 429"]
    full = {"error": {"code": "overloaded", "message": "The service is overloaded. Retry later.", "request_id": "1"}}
    tab.page.route(
        "**/predict",
        lambda route: route.fulfill(status=429, json=full, headers={"Retry-After": "1"}),
        times=1,
    )
    texts = texts_over_time(tab.page, "#results")
    tab.choose(photos[0])
    expect(tab.results.locator("h3")).to_have_text(["circle"])
    assert any("The service is busy. Retrying in 1 s." in text for text in texts())


def test_error_page_of_a_proxy_is_not_shown(tab: Tab, photos: list[Path]) -> None:
    tab.expected = ["status of 502"]
    tab.page.route("**/predict", lambda route: route.fulfill(status=502, body="<html>Bad gateway</html>"))
    tab.choose(photos[0])
    expect(tab.results).to_contain_text("The service is temporarily unavailable.")
    expect(tab.page.get_by_role("button", name="Retry")).to_be_visible()


def test_token_is_requested_and_waiting_images_continue(
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
        expect(tab.page.get_by_role("alert")).to_have_text("This token is not valid.")
        field.fill("open-sesame")
        tab.page.get_by_role("button", name="Use token").click()
        expect(tab.results.locator("h3")).to_have_text(["circle"])
        expect(field).to_be_hidden()
        expect(tab.page.get_by_role("button", name="Try a sample of circle").first).to_be_visible()
        with tab.page.expect_download() as download:
            tab.page.get_by_role("link", name="docs.json").click()
        assert "/predict" in download.value.path().read_text()
        # Phones discard a page while their camera is open.
        tab.page.reload()
        expect(tab.page.locator("#model")).to_contain_text("test_resnet")


def test_content_security_policy_blocks_other_origins_and_inline_scripts(tab: Tab) -> None:
    # The check of the other tests would find these.
    tab.page.evaluate("""() => {
        document.body.append(Object.assign(new Image(), { src: "https://elsewhere.invalid/x.png" }));
        document.body.append(Object.assign(document.createElement("script"), { textContent: "window.ran = 1" }));
    }""")
    assert tab.page.evaluate("window.ran ?? 0") == 0
    assert any("policy: img-src https://elsewhere.invalid" in problem for problem in tab.problems)
    assert any("policy: script-src-elem inline" in problem for problem in tab.problems)
    tab.expected = ["policy: ", "Content Security Policy", "requested https://elsewhere.invalid/x.png"]
