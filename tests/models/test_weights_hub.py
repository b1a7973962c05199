"""Initial weights from the hub, its cache or without a network."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch import Tensor

from mlops_img.config.train import ModelConfig
from mlops_img.errors import UserError
from mlops_img.models.build import build_model
from tests.helpers.models import SIDE, build, differing

HUB_ID = "models--timm--test_resnet.r160_in1k"


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the Hugging Face client use an empty cache folder."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def point_to(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """Set the endpoint like HF_ENDPOINT, which the client reads on import."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    path = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + path)


def hub_weights() -> dict[str, Tensor]:
    """Return weights of 1000 classes, as published by timm."""
    return {name: tensor + 1 for name, tensor in build("test_resnet", classes=1000).state_dict().items()}


def fill(cache: Path) -> dict[str, Tensor]:
    revision = "0123456789abcdef0123456789abcdef01234567"
    (cache / HUB_ID / "refs").mkdir(parents=True)
    (cache / HUB_ID / "refs" / "main").write_text(revision)
    folder = cache / HUB_ID / "snapshots" / revision
    folder.mkdir(parents=True)
    state = hub_weights()
    save_file(state, folder / "model.safetensors")
    return state


def test_cached_hub_weights_are_loaded_without_a_network(hub_cache: Path) -> None:
    wanted = fill(hub_cache)
    loaded = build("test_resnet", weights="hub").state_dict()
    assert differing(loaded, wanted) == {"fc.weight", "fc.bias"}
    gray = build("test_resnet", weights="hub", in_chans=1).state_dict()
    assert gray["conv1.0.weight"].shape[1] == 1


def test_hub_is_not_used_without_loading_weights(hub_cache: Path) -> None:
    config = ModelConfig(name="test_resnet", weights="hub")
    assert build_model(config, 3, SIDE, load_weights=False)(torch.zeros(2, 3, SIDE, SIDE)).shape == (2, 3)
    assert not hub_cache.exists()


def test_missing_hub_weights_are_reported_in_one_line(hub_cache: Path) -> None:
    with pytest.raises(
        UserError, match=r"weights of test_resnet could not be downloaded.*model\.weights=none"
    ) as caught:
        build("test_resnet", weights="hub")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["maxvit_pico_rw_256", "small_cnn"])
def test_model_without_published_weights_is_reported(name: str, hub_cache: Path) -> None:
    with pytest.raises(UserError, match=rf"model\.weights=hub: {name} has no published weights"):
        build(name, weights="hub", side=64)


def test_unreachable_hub_fails_within_seconds_and_does_not_stop_cached_weights(
    hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point_to(monkeypatch, "http://127.0.0.1:9")  # nothing listens there
    started = time.monotonic()
    with pytest.raises(UserError, match="could not be downloaded"):
        build("test_resnet", weights="hub")
    assert time.monotonic() - started < 30  # the client by itself goes on trying for three quarters of a minute
    assert constants.HF_HUB_OFFLINE is False
    fill(hub_cache)
    build("test_resnet", weights="hub")


@pytest.fixture
def hub(hub_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """Start a server that imitates the hub for one file; return the list of requested paths."""
    file = tmp_path / "model.safetensors"
    save_file(hub_weights(), file)
    content, requested = file.read_bytes(), []

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            requested.append(self.path)
            found = self.path.endswith("/model.safetensors")
            self.send_response(200 if found or self.path == "/" else 404)
            if found:
                self.send_header("ETag", '"abc"')
                self.send_header("X-Repo-Commit", "f" * 40)
                self.send_header("Content-Length", str(len(content)))
            else:
                self.send_header("Content-Length", "0")
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    point_to(monkeypatch, f"http://127.0.0.1:{server.server_port}")
    yield requested
    server.shutdown()
    server.server_close()


def test_hub_weights_are_downloaded_to_the_cache(hub: list[str], hub_cache: Path) -> None:
    loaded = build("test_resnet", weights="hub").state_dict()
    kept = load_file(hub_cache / HUB_ID / "snapshots" / ("f" * 40) / "model.safetensors")
    assert torch.equal(loaded["conv1.0.weight"], kept["conv1.0.weight"])
    assert any("/timm/test_resnet.r160_in1k/" in path for path in hub)
