"""The BentoML service: `bentoml serve` in a checkout, or in a container that `bentoml containerize` made.

The supervising process imports this module too, so nothing heavy is imported before a worker needs it. The routes
belong to an application of our own, mounted in BentoML's: BentoML's API methods accept a URL instead of a file, which
the server would then fetch on behalf of any client.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import bentoml

from mlops_img.errors import EXIT_USER_ERROR, UserError
from mlops_img.serving import supervisor
from mlops_img.serving.compatibility import check_server, replace_uvicorn
from mlops_img.serving.middleware import MIDDLEWARE
from mlops_img.serving.plugins import check_plugins
from mlops_img.serving.settings import read_settings, read_tokens
from mlops_img.serving.worker import Worker


def _exit(error: UserError) -> NoReturn:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(EXIT_USER_ERROR)


try:
    worker = Worker(read_settings())
    replace_uvicorn(worker.settings.timeout, worker.settings.keep_alive)
except UserError as error:
    _exit(error)


@bentoml.service(
    name="mlops_img",
    workers=worker.settings.workers,
    http={"port": worker.settings.port},
    # The middleware does all of these, with one shape of errors and without a metric for every requested path.
    # BentoML keeps the memory of a request until its own timeout has passed, whether it was answered or not.
    traffic={"timeout": 2 * worker.settings.timeout},
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
)
@bentoml.asgi_app(worker.serve, path="/")
class ImageClassifier:
    """Classifies images."""

    def __init__(self) -> None:
        check_server()
        supervisor.end_with_supervisor(2 * worker.settings.timeout)
        worker.load()

    @bentoml.on_deployment  # type: ignore[untyped-decorator]
    @staticmethod
    def check() -> None:
        """Check bundle, tokens, device and plugins before any worker starts: a user error is one line."""
        from mlops_img.registry.locate import local_bundle

        settings = worker.settings
        try:
            read_tokens(settings)
            if settings.device not in ("auto", "cpu"):  # these need no check, which would import PyTorch
                from mlops_img.core.device import find_device

                find_device(settings.device, "MLOPS_IMG_DEVICE")
            check_plugins(settings.plugins)
            supervisor.extend_circus()
            # A thread of PyTorch that waits for another one by spinning takes the core that the other one needs: where
            # other processes use the cores too, a run on 2 cores took ten times as long as with threads that sleep.
            os.environ.setdefault("OMP_WAIT_POLICY", "passive")
            os.environ["MLOPS_IMG_BUNDLE"] = str(local_bundle(settings.bundle, "MLOPS_IMG_BUNDLE"))
        except UserError as error:
            _exit(error)

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    async def close(self) -> None:
        """Finish the images under way, then end the threads."""
        await worker.close()

    def __is_ready__(self) -> bool:
        return worker.engine is not None


for middleware in MIDDLEWARE:
    ImageClassifier.add_asgi_middleware(middleware, worker=worker)  # type: ignore[attr-defined]  # by the decorator
