"""Initial weights from files of several formats."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mlops_img.errors import UserError
from mlops_img.runs.checkpoint import Checkpoints, TrainState
from tests.helpers.models import build, differing


class OwnNet(nn.Module):
    """A user's model."""

    def __init__(self, num_classes: int, in_chans: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_chans, 4, 3)
        self.head = nn.Linear(4, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.stem(images).mean((2, 3)))
        return logits


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
