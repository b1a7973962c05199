"""The route of docs/extending.md, from a user's module, is admitted, labeled, described and limited like the others."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.helpers.hostile_requests import good
from tests.helpers.paths import ROOT
from tests.helpers.raw_http import FORM, form, part, request, send
from tests.helpers.service_process import Service, serving, until

# One process starts the service for all of them.
pytestmark = pytest.mark.xdist_group("service_plugins")

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def service(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with a plugin, which takes one image at a time."""
    folder = tmp_path_factory.mktemp("plugin")
    [code] = re.findall(r"```python\n# my_routes\.py\n(.*?)```", PAGE, re.DOTALL)
    (folder / "my_routes.py").write_text(code)
    with serving(trained / "bundles" / "latest", folder, plugins="my_routes", queue=1, max_images=1) as running:
        yield running


def test_route_of_a_plugin_predicts(service: Service, trained: Path) -> None:
    photo = next((trained / "photos" / "circle").iterdir()).read_bytes()
    answer = httpx.post(f"{service.url}/label/en", files={"image": photo}, timeout=60)
    assert (answer.status_code, answer.json()) == (200, "circle")


def test_route_of_a_plugin_is_labeled_and_described(service: Service) -> None:
    answer = httpx.post(f"{service.url}/label/de", json={}, timeout=60)
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "not_an_image")
    metric = 'mlops_img_requests_total{route="/label/{language}",status="415"}'
    until(lambda: metric in httpx.get(f"{service.url}/metrics", timeout=60).text)
    assert "/label/de" not in httpx.get(f"{service.url}/metrics", timeout=60).text
    described = httpx.get(f"{service.url}/docs.json", timeout=60).json()["paths"]["/label/{language}"]["post"]
    assert described["description"] == "Return only the label."
    assert {"200", "415", "429"} <= described["responses"].keys()


def test_route_of_a_plugin_is_refused_under_load(service: Service) -> None:
    where = ("127.0.0.1", int(service.url.rsplit(":", 1)[1]))
    sent = request(form(part(b"x")), line="POST /label/en HTTP/1.1")
    with socket.create_connection(where, timeout=60) as occupying:
        # Admitted as soon as its head is read; its body never comes.
        occupying.sendall(request(line="POST /predict HTTP/1.1", length="1000", Content_Type=FORM))
        until(lambda: "mlops_img_images_inside 1.0" in httpx.get(f"{service.url}/metrics", timeout=60).text)
        answer = send(service.url, sent)
        assert answer is not None
        assert (answer.status, answer.json()["error"]["code"]) == (429, "overloaded")
        assert int(answer.headers["retry-after"]) >= 1
    until(lambda: "mlops_img_images_inside 0.0" in httpx.get(f"{service.url}/metrics", timeout=60).text)
    answer = send(service.url, good())
    assert answer is not None
    assert answer.status == 200
