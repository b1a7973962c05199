"""The engine: how far decoding goes ahead of the model."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from torch import Tensor

from mlops_img.bundle.predictor import load
from mlops_img.serving.engine import BATCHES_AHEAD, Engine
from mlops_img.serving.settings import Settings

WITHIN = 60.0
BATCH = 2


def test_no_more_is_decoded_than_the_model_takes_soon(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = load(trained / "bundles" / "latest", device="cpu")
    sample = (predictor.folder / predictor.manifest.samples[0].file).read_bytes()
    gate = threading.Semaphore(0)
    runs: list[int] = []
    run = predictor.run

    def gated(images: Tensor) -> tuple[Tensor, Tensor]:
        runs.append(len(images))
        assert gate.acquire(timeout=WITHIN)
        return run(images)

    async def scenario() -> None:
        monkeypatch.setattr(Engine, "_warm_up", lambda self, most: most)
        engine = Engine(predictor, Settings(max_batch=BATCH))
        decoded: list[bytes] = []
        decode = engine._decode

        def counted(data: bytes) -> tuple[Tensor, float]:
            decoded.append(data)
            return decode(data)

        monkeypatch.setattr(engine, "_decode", counted)
        monkeypatch.setattr(engine._batcher, "run", gated)
        asked = [asyncio.create_task(engine.predict(sample, 1)) for _ in range(20)]
        while len(decoded) < BATCHES_AHEAD * BATCH:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)  # more would be decoded by now
        assert len(decoded) == BATCHES_AHEAD * BATCH
        asked.pop().cancel()  # who leaves while waiting has cost nothing
        gate.release(100)
        answers = await asyncio.gather(*asked)
        assert len({answer.prediction.label for answer in answers}) == 1
        assert len(decoded) == 19
        assert max(answer.queued for answer in answers) >= 0.3, "waiting to be decoded is waiting"
        assert all(answer.decoded < answer.queued for answer in answers[-4:])
        await engine.close()

    asyncio.run(asyncio.wait_for(scenario(), WITHIN))
    assert sum(runs) == 19
    assert max(runs) == BATCH
