"""The names of uvicorn and circus that the service replaces or extends, and the check that they still exist."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable
from importlib.metadata import version

from mlops_img.errors import UserError

# Each with the names by which it is replaced or extended, or is needed to do so.
UVICORN = (
    "uvicorn:Server",
    "uvicorn:Server.shutdown",
    "uvicorn:Server.startup",
    "uvicorn.server:ServerState",
    "uvicorn.loops.asyncio:asyncio_loop_factory",
    "uvicorn.loops.auto:auto_loop_factory",
    "uvicorn.protocols.http.auto:AutoHTTPProtocol",
    *(
        f"uvicorn.protocols.http.httptools_impl:HttpToolsProtocol.{method}"
        for method in (
            "on_message_begin",
            "on_url",
            "on_header",
            "on_headers_complete",
            "on_body",
            "on_message_complete",
            "on_response_complete",
            "shutdown",
            "send_400_response",
            "_should_upgrade_to_ws",
            "_unsupported_upgrade_warning",
        )
    ),
)
CIRCUS = (
    "circus.arbiter:Arbiter._stop_watchers",
    "circus.process:Process.spawn",
    "circus.sockets:addrinfo",
    "circus.sockets:CircusSocket.bind_and_listen",
)


def check_uvicorn() -> None:
    """Raise a UserError if uvicorn lacks one of the names."""
    _check("uvicorn", UVICORN)


def check_circus() -> None:
    """Raise a UserError if circus, which the package kantoku provides, lacks one of the names."""
    _check("kantoku", CIRCUS)


def _check(package: str, names: Iterable[str]) -> None:
    for name in names:
        try:
            pkgutil.resolve_name(name)
        except (ImportError, AttributeError):
            raise missing_name(package, name.replace(":", ".")) from None


def missing_name(package: str, name: str) -> UserError:
    """Return the error that a package lacks a name."""
    return UserError(
        f"{package} {version(package)} has no {name}, which mlops_img replaces. "
        f"Install the tested version: pip install -c constraints.txt {package}"
    )
