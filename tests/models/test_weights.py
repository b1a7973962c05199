"""Initial weights: from files of several formats, and from the hub, its cache or without a network."""

from __future__ import annotations

import http.server
import pickle
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mlops_img.config.train import ModelConfig
from mlops_img.errors import UserError
from mlops_img.models.build import build_model
from mlops_img.runs.checkpoint import Checkpoints, TrainState

SIDE = 32
HUB_ID = "models--timm--test_resnet.r160_in1k"


def build(name: str, classes: int = 3, side: int = SIDE, **options: Any) -> nn.Module:
    return build_model(ModelConfig(name=name, **options), classes, side)


def differing(state: dict[str, Tensor], wanted: dict[str, Tensor]) -> set[str]:
    return {name for name in state if not torch.equal(state[name], wanted[name])}


class OwnNet(nn.Module):
    """A user's model."""

    def __init__(self, num_classes: int, in_chans: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_chans, 4, 3)
        self.head = nn.Linear(4, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.stem(images).mean((2, 3)))
        return logits


# --- weights from files ------------------------------------------------------------------------------


@pytest.fixture
def donor() -> nn.Module:
    """Build a model of five classes whose tensors all differ from those of a new model."""
    model = build("test_resnet", classes=5)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(1)
    return model


def write_best(model: nn.Module, folder: Path) -> Path:
    state = TrainState(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        ema=None,
    )
    Checkpoints(folder, keep=1, about={"classes": list("abcde")}).save_best(state, {"top1": 1.0})
    return folder / "best.pt"


@pytest.mark.parametrize("kind", ["safetensors", "state dict", "wrapped", "parallel", "best.pt"])
def test_weights_of_other_classes_are_loaded_except_the_head(kind: str, donor: nn.Module, tmp_path: Path) -> None:
    state = donor.state_dict()
    path = tmp_path / ("weights.safetensors" if kind == "safetensors" else "weights.pt")
    if kind == "safetensors":
        save_file(state, path)
    elif kind == "best.pt":
        path = write_best(donor, tmp_path)
    else:
        content: dict[str, Any] = {
            "state dict": state,
            "wrapped": {"epoch": 3, "state_dict": state},
            "parallel": {f"module.{name}": tensor for name, tensor in state.items()},
        }[kind]
        torch.save(content, path)

    loaded = build("test_resnet", classes=3, weights=str(path)).state_dict()
    assert differing(loaded, state) == {"fc.weight", "fc.bias"}


def test_weights_of_equal_classes_are_loaded_with_the_head(donor: nn.Module, tmp_path: Path) -> None:
    torch.save(donor.state_dict(), tmp_path / "weights.pt")
    loaded = build("test_resnet", classes=5, weights=str(tmp_path / "weights.pt")).state_dict()
    assert not differing(loaded, donor.state_dict())


def test_weights_of_a_user_class_are_loaded(tmp_path: Path) -> None:
    donor = OwnNet(num_classes=5, in_chans=3)
    torch.save(donor.state_dict(), tmp_path / "weights.pt")
    loaded = build("custom", _target_=f"{__name__}.OwnNet", weights=str(tmp_path / "weights.pt")).state_dict()
    assert torch.equal(loaded["stem.weight"], donor.stem.weight)
    assert loaded["head.weight"].shape == (3, 4)


def test_weights_of_another_architecture_are_rejected_with_the_first_tensor(donor: nn.Module, tmp_path: Path) -> None:
    torch.save(donor.state_dict(), tmp_path / "weights.pt")
    with pytest.raises(UserError, match=r"another architecture: \d+ of \d+ tensors do not fit, e\.g\. cls_token is"):
        build("test_vit", weights=str(tmp_path / "weights.pt"))


def test_weights_of_a_deeper_model_are_rejected(tmp_path: Path) -> None:
    deeper = build("test_resnet", kwargs={"layers": [2, 1, 1, 1]})
    torch.save(deeper.state_dict(), tmp_path / "weights.pt")
    with pytest.raises(UserError, match=r"layer1\.1\.conv1\.weight is missing in the model"):
        build("test_resnet", weights=str(tmp_path / "weights.pt"))


def test_position_embeddings_are_resampled_to_the_image_size(tmp_path: Path) -> None:
    donor = build("test_vit", side=96)
    torch.save(donor.state_dict(), tmp_path / "weights.pt")
    loaded = build("test_vit", side=48, weights=str(tmp_path / "weights.pt"))
    before, after = donor.state_dict(), loaded.state_dict()
    assert after["pos_embed"].shape == (1, 1 + 9, 64)
    # Resampling keeps the mean and does not change the embedding of the class token.
    assert torch.equal(before["pos_embed"][:, 0], after["pos_embed"][:, 0])
    torch.testing.assert_close(before["pos_embed"][:, 1:].mean(1), after["pos_embed"][:, 1:].mean(1), atol=5e-3, rtol=0)
    del before["pos_embed"], after["pos_embed"]
    assert not differing(after, before)


def test_color_channels_of_the_weights_are_summed_for_gray(donor: nn.Module, tmp_path: Path) -> None:
    torch.save(donor.state_dict(), tmp_path / "weights.pt")
    gray = build("test_resnet", in_chans=1, weights=str(tmp_path / "weights.pt")).state_dict()
    wanted = donor.state_dict()["conv1.0.weight"].sum(1, keepdim=True)
    torch.testing.assert_close(gray["conv1.0.weight"], wanted)


def test_missing_weights_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.pt does not exist"):
        build("test_resnet", weights=str(tmp_path / "nowhere.pt"))


class Touch:
    """An object that creates a file when it is unpickled without restrictions."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("way", ["pickle", "torch.save"])
def test_weights_file_with_code_is_rejected_and_not_executed(way: str, donor: nn.Module, tmp_path: Path) -> None:
    path, sign = tmp_path / "weights.pt", tmp_path / "code-has-run"
    content = {**donor.state_dict(), "extra": Touch(sign)}
    if way == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with pytest.raises(UserError, match="could be code and is not loaded"):
        build("test_resnet", weights=str(path))
    assert not sign.exists()
    if way == "torch.save":  # unrestricted loading executes the code
        torch.load(path, weights_only=False)
        assert sign.exists()


@pytest.mark.parametrize("name", ["empty.pt", "text.pt", "list.pt", "cut.pt", "empty.safetensors", "cut.safetensors"])
def test_file_without_weights_is_rejected_in_one_line(name: str, donor: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / name
    kind = path.stem
    if kind == "cut":
        save_file(donor.state_dict(), path) if path.suffix == ".safetensors" else torch.save(donor.state_dict(), path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "list":
        torch.save([1, 2, 3], path)
    else:
        path.write_text("these are not the weights\n" if kind == "text" else "")
    with pytest.raises(UserError, match=name) as caught:
        build("test_resnet", weights=str(path))
    assert "\n" not in str(caught.value)


# --- weights from the hub ----------------------------------------------------------------------------


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


def test_model_without_published_weights_is_reported(hub_cache: Path) -> None:
    with pytest.raises(UserError, match="No pretrained weights exist for test_maxvit"):
        build("test_maxvit", weights="hub", side=64)


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
