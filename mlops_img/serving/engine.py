"""From the bytes of an upload to a prediction: decoding threads, batching, the model."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch

from mlops_img.bundle.prediction import Prediction
from mlops_img.bundle.predictor import Predictor
from mlops_img.serving import telemetry
from mlops_img.serving.admission import Admission
from mlops_img.serving.batcher import Batcher
from mlops_img.serving.model_threads import ModelThreads
from mlops_img.serving.settings import Settings
from mlops_img.serving.uploads import prepare_upload

WARM_UP_RUNS = 3
# The longest run of the model, in seconds. An image that arrives when all threads are busy waits for the end of a run.
BATCH_SECONDS = 0.2
# Of a program that holds Python's lock (the GIL) while it runs: health checks and refusals wait for it too.
LOCKED_BATCH_SECONDS = 0.05
# Images that are being decoded or wait for the model, in batches: one more than the threads of the model work on.
# Decoding all images of a burst at once would delay the answers to later requests.
BATCHES_AHEAD = 1


@dataclass(frozen=True)
class TimedPrediction:
    """A prediction, and the seconds that decoding, waiting for the model, and the model's batch took."""

    prediction: Prediction
    decode: float
    queue: float
    model: float


class Engine:
    """Predicts uploads concurrently; belongs to one event loop."""

    def __init__(self, predictor: Predictor, settings: Settings) -> None:
        self.predictor = predictor
        self.settings = settings
        self.admission = Admission(settings.queue, settings.timeout)
        threads = ModelThreads(settings.threads, concurrent=predictor.concurrent)
        max_batch = self._warm_up(min(settings.max_batch, predictor.program.max_batch), threads)
        self._decoders = ThreadPoolExecutor(settings.threads, thread_name_prefix="decode")
        self._batcher = Batcher(predictor.run, max_batch, threads)
        self._decoding_slots = asyncio.Semaphore((threads.runs + BATCHES_AHEAD) * max_batch)
        manifest = predictor.manifest
        telemetry.MODEL.labels(manifest.name, manifest.version, manifest.precision, predictor.program.file).set(1)

    async def predict(self, data: bytes, top_k: int) -> TimedPrediction:
        """Predict one upload.

        Raises:
            RequestError: the upload is not an image that can be decoded.
        """
        loop = asyncio.get_running_loop()
        arrived = time.perf_counter()
        async with self._decoding_slots:
            start = time.perf_counter()
            pixels, decoding = await loop.run_in_executor(self._decoders, self._decode, data)
            decoded = time.perf_counter() - start
            output = await self._batcher.submit(pixels)
        queued = start - arrived + output.queued
        prediction = self.predictor.interpret(output.logits.unsqueeze(0), top_k)[0]
        model = output.computed * output.cores / output.batch
        self.admission.observe((decoding + model) / self.settings.threads)
        for stage, seconds in (("decode", decoded), ("queue", queued), ("model", output.computed)):
            telemetry.STAGE_SECONDS.labels(stage).observe(seconds)
        telemetry.BATCH_IMAGES.observe(output.batch)
        telemetry.PREDICTED.labels(prediction.label).inc()
        telemetry.CONFIDENCE.observe(prediction.probability)
        return TimedPrediction(prediction, decoded, queued, output.computed)

    async def close(self) -> None:
        """End the threads."""
        await self._batcher.close()
        self._decoders.shutdown(wait=True)

    def _decode(self, data: bytes) -> tuple[torch.Tensor, float]:
        start = time.perf_counter()
        return prepare_upload(self.predictor, data, self.settings.max_pixels), time.perf_counter() - start

    def _warm_up(self, limit: int, threads: ModelThreads) -> int:
        """Return the largest batch, at most `limit` and at least 1, that a run may have.

        The first request is then as fast as later ones, and admission knows the time per image from the start.
        """
        for sample in self.predictor.manifest.samples[:1]:
            self._decode((self.predictor.folder / sample.file).read_bytes())
        longest = BATCH_SECONDS if self.predictor.concurrent else LOCKED_BATCH_SECONDS
        batch = 1
        self.admission.observe(threads.in_each(partial(self._time_run, 1))[0])
        while 2 * batch <= limit and threads.in_each(partial(self._time_run, 2 * batch))[-1] <= longest:
            batch *= 2
        return batch

    def _time_run(self, batch: int) -> float:
        side = self.predictor.preprocessing.image_size
        images = torch.zeros(batch, side, side, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
        seconds = []
        for _ in range(WARM_UP_RUNS):
            start = time.perf_counter()
            self.predictor.run(images)
            seconds.append(time.perf_counter() - start)
        return min(seconds)
