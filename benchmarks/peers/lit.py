"""LitServe with batching, on the same bundle, decoder and program as ours: lit.py PORT BUNDLE WORKERS THREADS."""

from __future__ import annotations

import sys
from typing import Any

import litserve
import torch

import mlops_img
from mlops_img.preprocessing.transforms import stack

PORT, BUNDLE, WORKERS, THREADS = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])


class Classifier(litserve.LitAPI):  # type: ignore[misc]
    def setup(self, device: str) -> None:
        torch.set_num_threads(THREADS)
        self.model = mlops_img.load(BUNDLE, device="cpu")

    def decode_request(self, request):  # type: ignore[no-untyped-def]  # LitServe reads the annotation
        return self.model.prepare(request["image"].file.read())

    def batch(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        return stack(inputs)

    def predict(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model.run(pixels)[0]

    def unbatch(self, output: torch.Tensor) -> list[torch.Tensor]:
        return list(output.split(1))

    def encode_response(self, output: torch.Tensor) -> dict[str, Any]:
        (prediction,) = self.model.interpret(output)
        return {
            "label": prediction.label,
            "probability": prediction.probability,
            "top_k": [each.label for each in prediction.top_k],
        }


if __name__ == "__main__":
    # What is there within 2 ms shares a run; longer waits made it slower here.
    api = Classifier(max_batch_size=16, batch_timeout=0.002, api_path="/predict")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=WORKERS)
    server.run(host="127.0.0.1", port=PORT, generate_client_file=False, log_level="warning")
