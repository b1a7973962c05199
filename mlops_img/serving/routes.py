"""What the middleware must know about a route; all of it follows from the route as the application declares it.

A route is added in one place, with FastAPI's decorators: in `app.py`, or in a module of one's own that is named in
MLOPS_IMG_PLUGINS and registers a function with `extension`:

    from fastapi import FastAPI, UploadFile
    from mlops_img.serving.engine import Engine
    from mlops_img.serving.routes import extension

    @extension
    def add_routes(app: FastAPI, engine: Engine) -> None:
        @app.post("/label")
        async def label(image: UploadFile) -> str:
            return (await engine.predict(await image.read(), top_k=1)).prediction.label
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp

if TYPE_CHECKING:
    from fastapi import FastAPI

    from mlops_img.serving.engine import Engine

HEALTH = ("/livez", "/readyz", "/healthz")
# Answered by BentoML, in front of the application.
BENTOML = (*HEALTH, "/schema.json")
# Files of the web page by their paths.
PAGE = {
    "/" if file.name == "index.html" else f"/{file.name}": file for file in (Path(__file__).parent / "page").iterdir()
}
# Metric label of all paths that belong to no route: each label is a time series, so clients must not create them.
OTHER = "other"
# Methods that only read (RFC 9110, section 9.2.1).
SAFE_METHODS = frozenset(("GET", "HEAD", "OPTIONS", "TRACE"))

Extension = TypeVar("Extension", bound="Callable[[FastAPI, Engine], None]")
_extensions: list[Callable[[FastAPI, Engine], None]] = []


def extension(add_routes: Extension) -> Extension:
    """Register a function that adds routes to the application; it is called when a worker builds it.

    What the routes declare decides how they are treated: a method that does more than read is answered only when the
    model is loaded and the worker has capacity, and a route with form or file parameters accepts only
    multipart/form-data. A request is admitted as one image. If it has more, the route takes a `RequestReservation`
    (of `mlops_img.serving.app`) and calls `resize`.
    """
    _extensions.append(add_routes)
    return add_routes


def add_extensions(app: FastAPI, engine: Engine) -> None:
    """Add the routes of all registered functions."""
    for add_routes in _extensions:
        add_routes(app, engine)


class PublicRoute(Route):
    """A route that is answered without a token."""


@dataclass(frozen=True)
class RouteMatch:
    """The routes of the application that match the path of a request.

    Attributes:
        method: HTTP method of the request.
        path: path of the request.
        routes: those that match the path, whatever their methods are.
        route: the one that answers; if none supports the method, the first that matches the path.
        found: whether `route` supports the method.
    """

    method: str
    path: str
    routes: tuple[BaseRoute, ...] = ()
    route: BaseRoute | None = None
    found: bool = False

    @cached_property
    def label(self) -> str:
        """Path as the route declares it, e.g. /samples/{number}: the label in the metrics and in the log."""
        return self.path if self.path in BENTOML else str(getattr(self.route, "path", OTHER))

    @property
    def is_public(self) -> bool:
        """Whether no token is needed."""
        return self.path in HEALTH or isinstance(self.route, PublicRoute)

    @property
    def needs_admission(self) -> bool:
        """Whether the request is answered only by a worker that is ready and has capacity."""
        return self.method not in SAFE_METHODS

    @property
    def takes_form(self) -> bool:
        """Whether the body must be multipart/form-data."""
        return bool(getattr(self.route, "takes_form", False))

    @property
    def allow(self) -> str:
        """Methods that the path supports, for the Allow header."""
        return ", ".join(sorted({method for route in self.routes for method in getattr(route, "methods", None) or ()}))


def match_route(app: ASGIApp | None, method: str, path: str) -> RouteMatch:
    """Return what the routes of the application say about a request; nothing while there is no application."""
    scope = {"type": "http", "path": path, "root_path": "", "method": method, "headers": []}
    routes: Sequence[Any] = getattr(app, "routes", ())
    matching = [(route, match) for route in routes if (match := route.matches(scope)[0]) is not Match.NONE]
    matching.sort(key=lambda each: each[1] is not Match.FULL)  # stable: the first in the application answers
    if not matching:
        return RouteMatch(method, path)
    return RouteMatch(method, path, tuple(route for route, _ in matching), matching[0][0], matching[0][1] is Match.FULL)
