"""What the parts of one worker process share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlops_img.serving.settings import Settings

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from mlops_img.serving.engine import Engine


# Images inside for each thread from which on a worker would rather have others take its clients, and of how many
# answers one then ends its connection.
CROWD, TURNED_AWAY = 2, 4


@dataclass
class State:
    """One worker; the engine and the application are there once the model is loaded."""

    settings: Settings
    tokens: tuple[str, ...] = ()
    engine: Engine | None = None
    app: ASGIApp | None = None
    answered: int = 0

    def turns_away(self) -> bool:
        """Count an answer, and say whether it is to end its connection, so that another worker gets the next one.

        Connections stay with the worker that accepted them, and one that happens to be idle accepts all that come.
        """
        if self.settings.workers == 1 or self.engine is None:
            return False
        self.answered += 1
        crowded = self.engine.admission.inside > CROWD * self.settings.threads
        return crowded and self.answered % TURNED_AWAY == 0

    async def serve(self, scope: Any, receive: Any, send: Any) -> None:
        """Hand a request on to the application (ASGI)."""
        assert self.app is not None  # BentoML lets nobody in before
        await self.app(scope, receive, send)
