"""The usual hand-made service: FastAPI and its thread pool, a timm model in fp32, Pillow, torchvision's transforms."""

from __future__ import annotations

import io
import sys

import timm
import torch
import uvicorn
from fastapi import FastAPI, File, UploadFile
from PIL import Image
from torchvision.transforms import v2

app = FastAPI()
model = timm.create_model("resnet18", num_classes=10).eval()
transform = v2.Compose(
    [
        v2.Resize(256),
        v2.CenterCrop(224),
        v2.PILToTensor(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]
)


@app.post("/predict")
def predict(image: UploadFile = File()) -> dict[str, object]:  # noqa: B008  # FastAPI's own spelling
    picture = Image.open(io.BytesIO(image.file.read())).convert("RGB")
    with torch.inference_mode():
        shares = model(transform(picture).unsqueeze(0)).softmax(1)[0]
    best = shares.topk(5)
    return {"label": int(best.indices[0]), "probability": float(best.values[0]), "top_k": best.indices.tolist()}


@app.get("/health")
def health() -> dict[str, str]:
    return {"status": "ok"}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
