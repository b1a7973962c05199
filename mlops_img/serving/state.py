"""What the parts of one worker process share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlops_img.serving.settings import Settings

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from mlops_img.serving.engine import Engine


@dataclass
class State:
    """One worker; the engine and the application are there once the model is loaded."""

    settings: Settings
    tokens: tuple[str, ...] = ()
    engine: Engine | None = None
    app: ASGIApp | None = None

    async def serve(self, scope: Any, receive: Any, send: Any) -> None:
        """Hand a request on to the application (ASGI)."""
        assert self.app is not None  # BentoML lets nobody in before
        await self.app(scope, receive, send)
