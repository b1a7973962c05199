"""Evaluations and run folders for the tests of reports, and a parser of their pages."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Reader = Callable[[int], NDArray[np.uint8]]
RUN_NAME = "2026-11-23_10-00-00_resnet18"
VOID = {"meta", "img", "br", "link"}


class Page(HTMLParser):
    """A parsed page: its elements with their attributes, and its visible text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in {"dd", "small", "td", "th", "li", "p"}:
            self.text += " "  # separates blocks
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def reliability(confidence: NDArray[np.float64], correct: NDArray[np.bool_]) -> list[dict[str, Any]]:
    bins = np.minimum((confidence * 15).astype(int), 14)
    return [
        {
            "confidence": float(confidence[bins == place].mean()) if (bins == place).any() else None,
            "accuracy": float(correct[bins == place].mean()) if (bins == place).any() else None,
            "count": int((bins == place).sum()),
        }
        for place in range(15)
    ]


def evaluate(probabilities: NDArray[np.float64], labels: NDArray[np.int64], classes: list[str]) -> dict[str, Any]:
    """Return the content of evaluation/test.json for class probabilities (N, C) and labels (N,)."""
    predicted = probabilities.argmax(axis=1)
    confidence, correct = probabilities.max(axis=1), predicted == labels
    confusion = np.zeros((len(classes), len(classes)), dtype=int)
    np.add.at(confusion, (labels, predicted), 1)
    hits = np.diag(confusion)
    precision = hits / np.maximum(confusion.sum(axis=0), 1)
    recall = hits / np.maximum(confusion.sum(axis=1), 1)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-9)
    wrong = np.flatnonzero(~correct)
    return {
        "split": "test",
        "n": len(labels),
        "skipped": [],
        "loss": float(-np.log(probabilities[np.arange(len(labels)), labels] + 1e-12).mean()),
        "top1": float(correct.mean()),
        "top5": None,
        "precision_macro": float(precision.mean()),
        "recall_macro": float(recall.mean()),
        "f1_macro": float(f1.mean()),
        "ece": 0.0312,
        "temperature": 1.4,
        "ece_calibrated": 0.0107,
        "classes": classes,
        "per_class": [
            {"name": name, "support": int(support), "precision": float(p), "recall": float(r), "f1": float(f)}
            for name, support, p, r, f in zip(classes, confusion.sum(axis=1), precision, recall, f1, strict=True)
        ],
        "confusion": confusion.tolist(),
        "reliability": reliability(confidence, correct),
        "reliability_calibrated": reliability(confidence**0.8, correct),
        "mistakes": [
            {
                "index": int(index),
                "path": f"test/{classes[labels[index]]}/{index:05}.pgm",
                "label": classes[labels[index]],
                "predicted": classes[predicted[index]],
                "confidence": float(confidence[index]),
                "label_probability": float(probabilities[index, labels[index]]),
            }
            for index in wrong[np.argsort(-confidence[wrong])][:24]
        ],
    }


def training_line(step: int, **values: Any) -> dict[str, Any]:
    loss = 2.3 * np.exp(-step / 150) + 0.15
    return {
        "step": step,
        "epoch": 1 + step // 110,
        "split": "train",
        "loss": loss,
        "lr": 1e-3 * (1 - step / 600),
        "images_per_second": 900.0,
        "data_wait_seconds": 0.02,
        "memory_gb": 1.25,
    } | values


def validation_line(step: int, **values: Any) -> dict[str, Any]:
    top1 = 0.98 - 0.6 * float(np.exp(-step / 120))
    return {
        "step": step,
        "epoch": step // 110,
        "split": "val",
        "loss": 2 * (1 - top1),
        "top1": top1,
        "top5": 1.0,
        "f1_macro": top1 - 0.004,
        "train_loss": 2.3 * float(np.exp(-step / 150)) + 0.15,
    } | values


def write_run_folder(folder: Path) -> Path:
    """Write a run folder like that of a finished training."""
    folder.mkdir()
    noise = np.random.default_rng(0)
    lines = [
        training_line(step, loss=2.3 * np.exp(-step / 150) + noise.uniform(0.1, 0.3)) for step in range(10, 551, 10)
    ]
    lines += [validation_line(step) for step in range(110, 551, 110)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.yaml").write_text(
        "seed: 0\nmodel:\n  name: resnet18\n  pretrained: false\ntrain:\n  epochs: 5\n  batch_size: 32\n"
    )
    (folder / "summary.json").write_text(
        json.dumps({"test.top1": 0.81, "wall_seconds": 75.2, "images_per_second": 912.4, "val.top1": 0.97})
    )
    provenance = {
        "mlops_img": "0.1.0",
        "git": {"commit": "7b1f0c9a", "dirty": False},
        "packages": {f"package-{number}": f"{number}.0" for number in range(12)},
        "data": {"md5": "0123abcd.dir", "files": 5000},
        "hardware": {"cpu": "2 cores", "gpu": None},
    }
    (folder / "provenance.json").write_text(json.dumps(provenance))
    return folder


def decode(uri: str) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1]))))


def sources(page: Page) -> list[str]:
    return [str(image["src"]) for image in page.all("img")]
