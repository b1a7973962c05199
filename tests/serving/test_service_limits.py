"""Tokens, metrics, request ids and the headers of every response."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from mlops_img.serving.responses import SECURITY_HEADERS
from mlops_img.serving.routes import BENTOML, HEALTH, OTHER, PAGE
from tests.helpers.hostile_uploads import sound
from tests.helpers.raw_http import form, part, request, send
from tests.helpers.service_process import Service, serving, until

# One process starts the service for all of them.
pytestmark = pytest.mark.xdist_group("service_limits")

TOKENS = ("the-first-token", "the-second-token", "one-from-the-file", "another-from-the-file")
PROTECTED = ("/model", "/metrics", "/docs.json", "/schema.json", "/samples/0")
PUBLIC = (*HEALTH, *PAGE)
ROUTES = {*BENTOML, *PAGE, OTHER, "/model", "/metrics", "/docs.json", "/samples/{number}", "/predict", "/predict_batch"}
WITH_TOKEN = {"Authorization": f"Bearer {TOKENS[0]}"}


@pytest.fixture(scope="module")
def service(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    (folder / "tokens").write_text(f"# of two programs\n{TOKENS[2]}\n\n  {TOKENS[3]}  \n")
    settings = {"tokens": f"{TOKENS[0]}, {TOKENS[1]}", "tokens_file": folder / "tokens", "workers": 2}
    with serving(trained / "bundles" / "latest", folder, **settings) as running:
        yield running


def ask(service: Service, path: str, method: str = "GET", **headers: str) -> httpx.Response:
    """Send a request, with an image to the two prediction routes."""
    field = {"/predict": "image", "/predict_batch": "images"}.get(path)
    files = {field: sound()["png"]} if field else None
    # A new connection each time, so that either worker may answer. Loading certificates would take long.
    return httpx.request(
        "POST" if field else method, service.url + path, headers=headers, files=files, verify=False, timeout=60
    )


def samples(service: Service, name: str) -> dict[tuple[str, ...], float]:
    """Return the values of a metric by the values of its labels."""
    text = ask(service, "/metrics", **WITH_TOKEN).text
    return {
        tuple(sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    }


@pytest.mark.parametrize("path", [*PROTECTED, "/predict", "/predict_batch", "/nothing/here"])
def test_protected_routes_require_a_valid_token(service: Service, path: str) -> None:
    given = ["", "Bearer", "Bearer wrong", f"Basic {TOKENS[0]}", TOKENS[0], f"Bearer {TOKENS[0]}x"]
    given += [f"Bearer {TOKENS[0]},{TOKENS[1]}", f"Bearer {TOKENS[0][:-1]}", f"Bearer {TOKENS[0].upper()}"]
    for authorization in (None, *given):
        headers = {} if authorization is None else {"Authorization": authorization}
        answer = ask(service, path, **headers)
        assert answer.status_code == 401, authorization
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["error"]["code"] == "unauthorized"


@pytest.mark.parametrize("token", TOKENS)
def test_each_token_gives_access_to_every_route(service: Service, token: str) -> None:
    for path in (*PROTECTED, "/predict", "/predict_batch"):
        for scheme in ("Bearer", "bearer"):
            assert ask(service, path, Authorization=f"{scheme} {token}").status_code == 200, path
    assert ask(service, "/nothing/here", Authorization=f"Bearer {token}").status_code == 404


@pytest.mark.parametrize("path", PUBLIC)
def test_health_and_the_page_need_no_token(service: Service, path: str) -> None:
    assert ask(service, path).status_code == 200
    assert ask(service, path, Authorization="Bearer wrong").status_code == 200


def test_clients_cannot_create_metric_labels(service: Service) -> None:
    for number in range(30):
        for path in (f"/unknown-{number}", f"/samples/unknown-{number}", f"/predict/unknown-{number}"):
            ask(service, path, **WITH_TOKEN)
            ask(service, path)
    ask(service, "/model", "DELETE", **WITH_TOKEN)
    ask(service, "/model", "TRACE", X_Unknown="x")
    text = ask(service, "/metrics", **WITH_TOKEN).text
    assert "unknown" not in text
    for name in ("mlops_img_requests_total", "mlops_img_request_seconds_count"):
        routes = {labels[0] for labels in samples(service, name)}
        assert {OTHER, "/samples/{number}"} < routes <= ROUTES
    assert {family.name for family in text_string_to_metric_families(text)} == {
        *(f"mlops_img_{name}" for name in ("requests", "request_seconds", "stage_seconds", "batch_images")),
        *(f"mlops_img_{name}" for name in ("images_inside", "predictions", "confidence", "rejected", "model_info")),
    }


def test_metrics_are_summed_over_all_workers(service: Service) -> None:
    @contextmanager
    def stopped(worker: int) -> Iterator[None]:
        os.kill(worker, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(worker, signal.SIGCONT)

    def counts() -> tuple[float, float, float]:
        return (
            sum(samples(service, "mlops_img_predictions_total").values()),
            samples(service, "mlops_img_confidence_count")[()],
            samples(service, "mlops_img_requests_total").get(("/predict", "200"), 0),
        )

    workers = service.workers()
    assert len(workers) == 2
    before = counts()
    for number, worker in enumerate(workers, start=1):
        with stopped(worker):  # so that the other one answers
            for _ in range(5 * number):
                assert ask(service, "/predict", **WITH_TOKEN).status_code == 200
    expected = tuple(count + 5 + 10 for count in before)
    until(lambda: counts() == expected)  # a request is counted after its response was sent
    for worker in workers:
        with stopped(worker):
            assert counts() == expected
    assert samples(service, "mlops_img_images_inside") == {(): 0}
    assert list(samples(service, "mlops_img_model_info").values()) == [1]


def test_every_response_has_the_security_headers(service: Service) -> None:
    requests = [(path, "GET") for path in (*PUBLIC, *PROTECTED, "/predict", "/nothing")]
    requests += [
        (path, method) for path in ("/livez", "/", "/model", "/predict") for method in ("HEAD", "PUT", "OPTIONS")
    ]
    statuses = set()
    for path, method in requests:
        for headers in ({}, WITH_TOKEN):
            answer = ask(service, path, method, **headers)
            statuses.add(answer.status_code)
            assert {name: answer.headers.get(name) for name in SECURITY_HEADERS} == SECURITY_HEADERS, (path, method)
            assert "server" not in answer.headers
    assert statuses == {200, 401, 404, 405}
    refused = send(service.url, b"not HTTP\r\n\r\n")
    assert refused is not None
    assert {name: refused.headers.get(name.lower()) for name in SECURITY_HEADERS} == SECURITY_HEADERS


def test_valid_request_id_of_the_client_is_kept(service: Service) -> None:
    for path in ("/livez", "/model", "/nothing"):
        assert ask(service, path, **{"X-Request-ID": "a-1.b_2"}).headers["x-request-id"] == "a-1.b_2"
        for invalid in ("<script>", "a" * 65, "a b", ""):
            given = ask(service, path, **{"X-Request-ID": invalid}).headers["x-request-id"]
            assert given != invalid
            assert given.isalnum()
    body = form(part(sound()["png"][:50]))
    answer = send(service.url, request(body, Authorization=WITH_TOKEN["Authorization"], X_Request_ID="mine"))
    assert answer is not None
    assert answer.json()["error"]["request_id"] == "mine"
    until(lambda: '"request_id": "mine"' in service.log.read_text())  # written after the response
