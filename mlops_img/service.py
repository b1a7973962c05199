"""The BentoML service: `bentoml serve` in a checkout, or in a container that `bentoml containerize` made.

The supervising process imports this module too, so nothing heavy is imported before a worker needs it. The routes
are an application of our own, mounted in BentoML's: its own API methods also take an address instead of a file,
which the server would then fetch for whoever asks.
"""

from __future__ import annotations

import os
import sys

import bentoml

from mlops_img.errors import EXIT_USER_ERROR, UserError
from mlops_img.serving import protocol as wire
from mlops_img.serving import supervisor
from mlops_img.serving.middleware import Guard
from mlops_img.serving.settings import port_or_exit, read_tokens, settings_or_exit
from mlops_img.serving.state import State

state = State(settings_or_exit())
wire.install(state.settings.timeout, state.settings.keep_alive)


@bentoml.service(
    name="mlops_img",
    workers=state.settings.workers,
    http={"port": port_or_exit()},
    # The guard does all of these, with one shape of errors and without a metric for each address ever asked for.
    # BentoML keeps what a request held until its own timeout is over, answered or not.
    traffic={"timeout": 2 * state.settings.timeout},
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
)
@bentoml.asgi_app(state.serve, path="/")
class ImageClassifier:
    """Says what is on an image."""

    def __init__(self) -> None:
        from mlops_img.serving.app import build_app
        from mlops_img.serving.worker import load_engine

        supervisor.end_with_supervisor(2 * state.settings.timeout)
        state.engine = load_engine(state)
        state.app = build_app(state.engine)

    @bentoml.on_deployment  # type: ignore[untyped-decorator]
    @staticmethod
    def find_bundle() -> None:
        """Look for bundle, tokens and device before any worker starts: a mistake is one line."""
        from mlops_img.registry.locate import local_bundle

        try:
            read_tokens(state.settings)
            if state.settings.device not in ("auto", "cpu"):  # which need not wait for PyTorch
                from mlops_img.core.device import find_device

                find_device(state.settings.device, "MLOPS_IMG_DEVICE")
            supervisor.prepare()
            os.environ["MLOPS_IMG_BUNDLE"] = str(local_bundle(state.settings.bundle))
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(EXIT_USER_ERROR)

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    async def end(self) -> None:
        """Let what is under way be finished, then end the threads."""
        engine, state.engine = state.engine, None
        if engine is not None:
            await engine.close()

    def __is_ready__(self) -> bool:
        return state.engine is not None


ImageClassifier.add_asgi_middleware(Guard, state=state)  # type: ignore[attr-defined]  # the decorator's
