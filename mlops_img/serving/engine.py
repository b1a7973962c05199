"""From uploaded bytes to a prediction: decoding threads, the batcher, the model."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from mlops_img.bundle.prediction import Prediction
from mlops_img.bundle.predictor import Predictor
from mlops_img.serving import telemetry
from mlops_img.serving.admission import Admission
from mlops_img.serving.batcher import Batcher
from mlops_img.serving.settings import Settings
from mlops_img.serving.uploads import prepare_upload

WARM_UP_RUNS = 3
# A compiled program holds Python's lock while it runs; health checks and refusals are not to wait longer for it.
BATCH_SECONDS = 0.05
# Images that are decoded or wait decoded, in batches: one more than the model has. Decoding all that come at once
# would take the processor from answering those who come next.
BATCHES_AHEAD = 2


@dataclass(frozen=True)
class Answered:
    """A prediction, and the seconds that decoding, waiting for the model, and the model took."""

    prediction: Prediction
    decoded: float
    queued: float
    computed: float


class Engine:
    """Predicts uploads, several at a time; lives in one event loop."""

    def __init__(self, predictor: Predictor, settings: Settings) -> None:
        self.predictor = predictor
        self.settings = settings
        self.admission = Admission(settings.queue, settings.timeout)
        most = self._warm_up(min(settings.max_batch, predictor.program.max_batch))
        self._decoders = ThreadPoolExecutor(settings.threads, thread_name_prefix="decode")
        self._batcher = Batcher(predictor.run, most)
        self._ahead = asyncio.Semaphore(BATCHES_AHEAD * most)
        manifest = predictor.manifest
        telemetry.MODEL.labels(manifest.name, manifest.version, manifest.precision, predictor.program.file).set(1)

    async def predict(self, data: bytes, top_k: int) -> Answered:
        """Predict one upload.

        Raises:
            RequestError: it is no image that can be predicted.
        """
        loop = asyncio.get_running_loop()
        arrived = time.perf_counter()
        async with self._ahead:
            start = time.perf_counter()
            pixels, decoding = await loop.run_in_executor(self._decoders, self._decode, data)
            decoded = time.perf_counter() - start
            output = await self._batcher.submit(pixels)
        queued = start - arrived + output.queued
        prediction = self.predictor.interpret(output.logits.unsqueeze(0), top_k)[0]
        self.admission.learn(decoding / self.settings.threads + output.computed / output.batch)
        for stage, seconds in (("decode", decoded), ("queue", queued), ("model", output.computed)):
            telemetry.STAGE_SECONDS.labels(stage).observe(seconds)
        telemetry.BATCH_IMAGES.observe(output.batch)
        telemetry.PREDICTED.labels(prediction.label).inc()
        telemetry.CONFIDENCE.observe(prediction.probability)
        return Answered(prediction, decoded, queued, output.computed)

    async def close(self) -> None:
        """End the threads."""
        await self._batcher.close()
        self._decoders.shutdown(wait=True)

    def _decode(self, data: bytes) -> tuple[torch.Tensor, float]:
        start = time.perf_counter()
        return prepare_upload(self.predictor, data, self.settings.max_pixels), time.perf_counter() - start

    def _warm_up(self, most: int) -> int:
        """Return how many images, at most `most`, the model takes within `BATCH_SECONDS`; at least one.

        The first request is then as fast as the others, and what an image costs is known from the start.
        """
        for sample in self.predictor.manifest.samples[:1]:
            self._decode((self.predictor.folder / sample.file).read_bytes())
        side = self.predictor.preprocessing.image_size
        batch = 1
        self.admission.learn(self._seconds_of_run(1, side))
        while 2 * batch <= most and self._seconds_of_run(2 * batch, side) <= BATCH_SECONDS:
            batch *= 2
        return batch

    def _seconds_of_run(self, batch: int, side: int) -> float:
        images = torch.zeros(batch, side, side, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
        taken = []
        for _ in range(WARM_UP_RUNS):
            start = time.perf_counter()
            self.predictor.run(images)
            taken.append(time.perf_counter() - start)
        return min(taken)
