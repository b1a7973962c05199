"""Prometheus metrics over all workers, and the access log: one JSON line a request.

The worker processes share their metrics through files in PROMETHEUS_MULTIPROC_DIR, which BentoML sets.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from pathlib import Path

from opentelemetry import trace
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
)
from pythonjsonlogger.json import JsonFormatter

CONTENT_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
BATCHES = (1, 2, 4, 8, 16, 32, 64)
PROBABILITIES = (*(tenth / 10 for tenth in range(1, 10)), 0.95, 0.99, 1.0)

REQUESTS = Counter("mlops_img_requests", "Answered requests", ("route", "status"))
REQUEST_SECONDS = Histogram(
    "mlops_img_request_seconds", "Seconds from a request to its response", ("route",), buckets=SECONDS
)
STAGE_SECONDS = Histogram(
    "mlops_img_stage_seconds", "Seconds of one image in each stage: decode, queue, model", ("stage",), buckets=SECONDS
)
BATCH_IMAGES = Histogram("mlops_img_batch_images", "Images in one run of the model", buckets=BATCHES)
ADMITTED_IMAGES = Gauge(
    "mlops_img_images_inside", "Admitted images: waiting or being processed", multiprocess_mode="livesum"
)
PREDICTED = Counter("mlops_img_predictions", "Images by predicted class", ("label",))
CONFIDENCE = Histogram("mlops_img_confidence", "Calibrated probability of the predicted class", buckets=PROBABILITIES)
REJECTED = Counter("mlops_img_rejected", "Images and requests answered by an error", ("reason",))
MODEL = Gauge(
    "mlops_img_model_info",
    "The loaded model",
    ("name", "version", "precision", "program"),
    multiprocess_mode="livemax",
)

access_log = logging.getLogger("mlops_img.access")


def scrape() -> bytes:
    """Return all metrics in Prometheus' text format, summed over the workers."""
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if folder is None:
        return generate_latest(REGISTRY)
    _remove_dead_workers(Path(folder))
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)


def _remove_dead_workers(folder: Path) -> None:
    """Remove the live gauges of workers that were killed; their counters stay."""
    for path in folder.glob("gauge_live*_*.db"):
        found = re.search(r"_(\d+)\.db$", path.name)
        if found and not Path(f"/proc/{found[1]}").exists() and Path("/proc/self").exists():
            multiprocess.mark_process_dead(int(found[1]), str(folder))  # type: ignore[no-untyped-call]


def log_as_json() -> None:
    """Write the log of this package as JSON lines to standard output."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logger = logging.getLogger("mlops_img")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def log_request(route: str, method: str, status: int, seconds: float, request_id: str, reason: str | None) -> None:
    """Write the log line of one request, with its trace id if it is traced."""
    fields: dict[str, object] = {
        "route": route,
        "method": method,
        "status": status,
        "milliseconds": round(seconds * 1e3, 2),
        "request_id": request_id,
    }
    if reason is not None:
        fields["reason"] = reason
    span = trace.get_current_span().get_span_context()
    if span.is_valid:
        fields["trace_id"] = format(span.trace_id, "032x")
    access_log.info("%s %s", method, route, extra=fields)
