"""The engine limits how many images are decoded ahead of the model."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import pytest
from torch import Tensor

from mlops_img.registry.load import load
from mlops_img.serving.engine import BATCHES_AHEAD, Engine
from mlops_img.serving.settings import Settings

TIMEOUT = 60.0
BATCH = 2


def test_decoding_is_limited_to_a_few_batches_ahead_of_the_model(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = load(trained / "bundles" / "latest", device="cpu")
    sample = (predictor.folder / predictor.manifest.samples[0].file).read_bytes()
    gate = threading.Semaphore(0)
    runs: list[int] = []
    run = predictor.run

    def gated(images: Tensor) -> tuple[Tensor, Tensor]:
        runs.append(len(images))
        assert gate.acquire(timeout=TIMEOUT)
        return run(images)

    async def scenario() -> None:
        monkeypatch.setattr(Engine, "_warm_up", lambda self, most, threads: most)
        engine = Engine(predictor, Settings(max_batch=BATCH, threads=1))
        decoded: list[bytes] = []
        decode = engine._decode

        def counted(data: bytes) -> tuple[Tensor, float]:
            decoded.append(data)
            return decode(data)

        monkeypatch.setattr(engine, "_decode", counted)
        monkeypatch.setattr(engine._batcher, "run", gated)
        tasks = [asyncio.create_task(engine.predict(sample, 1)) for _ in range(20)]
        while len(decoded) < (1 + BATCHES_AHEAD) * BATCH:
            await asyncio.sleep(0.01)
        held = time.perf_counter()
        await asyncio.get_running_loop().run_in_executor(engine._decoders, int)  # behind all that was to be decoded
        assert len(decoded) == (1 + BATCHES_AHEAD) * BATCH
        tasks.pop().cancel()  # before it was decoded
        held = time.perf_counter() - held
        gate.release(100)
        answers = await asyncio.gather(*tasks)
        assert len({answer.prediction.label for answer in answers}) == 1
        assert len(decoded) == 19
        assert max(answer.queue for answer in answers) >= held, "the wait before decoding counts as queueing"
        await engine.close()

    asyncio.run(asyncio.wait_for(scenario(), TIMEOUT))
    assert sum(runs) == 19
    assert max(runs) == BATCH
