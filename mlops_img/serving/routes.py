"""What the guard knows about the application's routes: how to label a request, and whether it must be admitted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Scope

from mlops_img.serving.errors import Code, RequestError

HEALTH = ("/livez", "/readyz", "/healthz")
# The files of the page by their addresses.
PAGE = {
    "/" if file.name == "index.html" else f"/{file.name}": file for file in (Path(__file__).parent / "page").iterdir()
}
# BentoML answers these itself.
BENTOML = (*HEALTH, "/schema.json")
# The label of all addresses that are not routes: each label makes a metric.
OTHER = "other"
# Methods that only read (RFC 9110, 9.2.1).
SAFE_METHODS = frozenset(("GET", "HEAD", "OPTIONS", "TRACE"))


def label(app: ASGIApp | None, path: str) -> str:
    """Return the route that a path belongs to, as it was declared, e.g. /samples/{number}; `OTHER` if none does."""
    if path in BENTOML:
        return path
    for route in _routes(app):
        if _matches(route, path, "GET") is not Match.NONE:
            return str(getattr(route, "path", OTHER))
    return OTHER


def needs_admission(app: ASGIApp | None, scope: Scope) -> bool:
    """Return whether the readiness, the type and the load must be checked before a request is passed on.

    That is so for every route with a method that does more than read. Nothing has to be listed here for that.

    Raises:
        RequestError: no route takes the path, or none the method; nobody else may answer it either.
    """
    method, path = scope["method"], scope["path"]
    if method in SAFE_METHODS or app is None:
        return method not in SAFE_METHODS
    found = {_matches(route, path, method) for route in _routes(app)}
    if Match.FULL in found:
        return True
    if Match.PARTIAL in found:
        raise RequestError(Code.METHOD_NOT_ALLOWED, "This address does not take that method.")
    raise RequestError(Code.NOT_FOUND, "There is nothing at this address.")


def allowed_methods(app: ASGIApp | None, path: str) -> str:
    """Return the methods of a path, for the Allow header."""
    routes = [route for route in _routes(app) if _matches(route, path, "GET") is not Match.NONE]
    return ", ".join(sorted({method for route in routes for method in getattr(route, "methods", None) or ()}))


def _routes(app: ASGIApp | None) -> Sequence[BaseRoute]:
    routes: Any = getattr(app, "routes", ())
    return routes  # type: ignore[no-any-return]


def _matches(route: BaseRoute, path: str, method: str) -> Match:
    return route.matches({"type": "http", "path": path, "root_path": "", "method": method, "headers": []})[0]
