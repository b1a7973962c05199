"""The plain loop of PyTorch's transfer-learning tutorial, with its settings, on class folders train, valid and test.

SGD with momentum 0.9 at 1e-3, a tenth of it after 7 epochs, 4 images a step, random resized crops and mirror images.
Prints the best validation top-1, and the test top-1 of that epoch's weights.
"""

from __future__ import annotations

import argparse
import time
from copy import deepcopy
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

BATCH, WORKERS = 4, 4


def top1(model: nn.Module, loader: DataLoader[tuple[torch.Tensor, torch.Tensor]]) -> float:
    model.eval()
    with torch.inference_mode():
        right = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in loader)
    return right / len(loader.dataset)  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="end the training after them")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    deadline = time.monotonic() + 60 * options.minutes

    torch.manual_seed(options.seed)
    model = timm.create_model(options.model)
    model.load_state_dict(load_file(options.weights))
    normalize = v2.Normalize(model.pretrained_cfg["mean"], model.pretrained_cfg["std"])
    to_float = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), normalize]
    train_view = v2.Compose([v2.RandomResizedCrop(options.size), v2.RandomHorizontalFlip(), *to_float])
    center = [v2.Resize(options.size * 256 // 224), v2.CenterCrop(options.size)]
    views = {"train": train_view, "valid": v2.Compose([*center, *to_float]), "test": v2.Compose([*center, *to_float])}
    loaders = {
        split: DataLoader(
            ImageFolder(options.data / split, view), batch_size=BATCH, shuffle=split == "train", num_workers=WORKERS
        )
        for split, view in views.items()
    }
    model.classifier = nn.Linear(model.classifier.in_features, len(loaders["train"].dataset.classes))  # type: ignore[attr-defined]

    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.1)
    best, weights = -1.0, model.state_dict()
    for epoch in range(options.epochs):
        model.train()
        for images, labels in loaders["train"]:
            if time.monotonic() > deadline:
                break
            optimizer.zero_grad()
            criterion(model(images), labels).backward()
            optimizer.step()
        if time.monotonic() > deadline:
            break
        scheduler.step()
        reached = top1(model, loaders["valid"])
        print(f"epoch {epoch + 1}/{options.epochs}: valid top-1 {reached:.4f}", flush=True)
        if reached > best:
            best, weights = reached, deepcopy(model.state_dict())
    model.load_state_dict(weights)
    print(f"best valid {best:.4f} test {top1(model, loaders['test']):.4f}")


if __name__ == "__main__":
    main()
