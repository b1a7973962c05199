"""What the parts of one worker process share. Imports nothing heavy: the supervising process imports it too."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlops_img.serving.settings import Settings, read_tokens

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from mlops_img.serving.engine import Engine

# A worker is busy with more admitted images than this for each of its threads. It then closes the connection after
# every CLOSE_EVERY-th response.
BUSY_IMAGES_PER_THREAD = 2
CLOSE_EVERY = 4

log = logging.getLogger(__name__)


@dataclass
class Worker:
    """One worker process. It has an engine and an application once the model is loaded."""

    settings: Settings
    tokens: tuple[str, ...] = ()
    engine: Engine | None = None
    app: ASGIApp | None = None
    busy_responses: int = 0

    def load(self) -> None:
        """Load the bundle, which the supervising process has checked, and build the application."""
        import torch

        from mlops_img.registry.load import load
        from mlops_img.serving import libtiff, telemetry
        from mlops_img.serving.app import build_app
        from mlops_img.serving.engine import Engine
        from mlops_img.serving.plugins import import_plugins

        telemetry.log_as_json()
        libtiff.silence()
        self.tokens = read_tokens(self.settings)
        import_plugins(self.settings.plugins)
        torch.set_num_threads(self.settings.threads)
        predictor = load(self.settings.bundle, device=self.settings.device)
        if predictor.device.type == "cpu" and not predictor.concurrent and self.settings.threads > 1:
            log.warning(
                "%s holds Python's lock while it runs, so this worker computes one batch at a time. Export the run "
                "again, or set MLOPS_IMG_WORKERS to the number of cores",
                predictor.program.file,
            )
        self.engine = Engine(predictor, self.settings)
        self.app = build_app(self.engine)

    async def close(self) -> None:
        """Finish the images under way, then end the threads."""
        engine, self.engine = self.engine, None
        if engine is not None:
            await engine.close()

    def should_close_connection(self) -> bool:
        """Return whether the next response is to close its connection, so that another worker gets the client.

        Connections stay with the worker that accepted them, and an idle worker accepts all new ones.
        """
        if self.settings.workers == 1 or self.engine is None:
            return False
        if self.engine.admission.admitted <= BUSY_IMAGES_PER_THREAD * self.settings.threads:
            return False
        self.busy_responses += 1
        return self.busy_responses % CLOSE_EVERY == 0

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on to the application (ASGI)."""
        assert self.app is not None  # BentoML accepts no request before the model is loaded
        await self.app(scope, receive, send)
