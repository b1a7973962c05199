"""The service conforms to its OpenAPI description."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection

from tests.helpers.odd_images import modes, several_frames
from tests.helpers.service_process import Service, serving

# One process starts the service for all of them.
pytestmark = pytest.mark.xdist_group("service_openapi")

TOKEN = "a-token-of-the-test"
AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}
EXAMPLES = 30
OPERATIONS = {
    "POST /predict",
    "POST /predict_batch",
    "GET /model",
    "GET /samples/{number}",
    "GET /metrics",
    "GET /livez",
    "GET /healthz",
    "GET /readyz",
}


@pytest.fixture(scope="module")
def service(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(trained / "bundles" / "latest", tmp_path_factory.mktemp("service"), tokens=TOKEN) as running:
        yield running


@pytest.fixture(scope="module")
def description(service: Service) -> dict[str, Any]:
    """The OpenAPI description."""
    described: dict[str, Any] = httpx.get(f"{service.url}/docs.json", headers=AUTHORIZED, timeout=60).json()
    return described


def test_every_route_is_described(description: dict[str, Any]) -> None:
    described = {f"{method.upper()} {path}" for path, methods in description["paths"].items() for method in methods}
    assert described == OPERATIONS


def test_generated_requests_get_only_described_responses(service: Service, tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{service.url}/docs.json"),
        *("--header", f"Authorization: {AUTHORIZED['Authorization']}", "--request-timeout", "60", "--no-color"),
        *("--max-examples", str(EXAMPLES), "--generation-deterministic"),
        # The description cannot express which bytes are an image: hardly any generated ones are.
        *("--exclude-checks", "positive_data_acceptance"),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Tested: {len(OPERATIONS)}" in done.stdout
    assert "Traceback" not in service.log.read_text()


@pytest.mark.parametrize(("path", "field"), [("/predict", "image"), ("/predict_batch", "images")])
def test_described_form_with_a_valid_image_succeeds(
    service: Service, description: dict[str, Any], path: str, field: str
) -> None:
    schema = schemathesis.openapi.from_dict(description)
    schema.config.update(base_url=service.url, request_timeout=60)
    images = st.sampled_from([*modes().values(), *several_frames().values()])

    @given(
        case=schema[path]["POST"].as_strategy(generation_mode=GenerationMode.POSITIVE),
        files=st.lists(images, min_size=1, max_size=1 if field == "image" else 4),
    )
    @settings(
        max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    def ask(case: schemathesis.Case, files: list[bytes]) -> None:
        case.body = {**case.body, field: files[0] if field == "image" else files}
        # That check takes the form, with its images replaced, for an invalid one.
        answer = case.call_and_validate(headers=AUTHORIZED, excluded_checks=[negative_data_rejection])
        assert answer.status_code == 200

    ask()
