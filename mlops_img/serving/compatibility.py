"""What the service replaces in uvicorn and in BentoML's supervisor, circus, and the check that it is still there.

`bentoml serve` starts uvicorn itself and has no option for these: the protocol class, the event loop, the timeout of a
request head, and a keep-alive time with a fraction. (It has a hidden `--timeout-keep-alive` in whole seconds.) So the
defaults that uvicorn looks up are replaced. A version that renames one would leave the service without its limits;
therefore each is checked at the start.
"""

from __future__ import annotations

import asyncio
import pkgutil
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

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


def replace_uvicorn(header_timeout: float, keep_alive: float) -> None:
    """Make uvicorn use the service's protocol and server, on asyncio's event loop.

    Args:
        header_timeout: seconds in which the head of a request must arrive.
        keep_alive: seconds that an idle connection is kept.

    Raises:
        UserError: this version of uvicorn does not look them up where they are replaced.
    """
    check_uvicorn()
    import uvicorn
    import uvicorn.loops.auto
    import uvicorn.protocols.http.auto
    from uvicorn.loops.asyncio import asyncio_loop_factory
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    from uvicorn.server import ServerState

    from mlops_img.serving.protocol import GuardedHttpProtocol
    from mlops_img.serving.server import DrainingServer

    GuardedHttpProtocol.header_timeout, GuardedHttpProtocol.keep_alive = header_timeout, keep_alive
    uvicorn.protocols.http.auto.AutoHTTPProtocol = GuardedHttpProtocol
    uvicorn.Server = DrainingServer  # type: ignore[misc]
    # uvloop accepts one connection per round of the loop: under load, new clients waited seconds for their refusal.
    uvicorn.loops.auto.auto_loop_factory = asyncio_loop_factory
    config = uvicorn.Config(_no_application, lifespan="off", log_config=None)
    config.load()
    if config.http_protocol_class is not GuardedHttpProtocol:
        raise _missing("uvicorn", "Config.http_protocol_class from uvicorn.protocols.http.auto")
    if config.get_loop_factory() is not asyncio_loop_factory(use_subprocess=False):
        raise _missing("uvicorn", "Config.get_loop_factory from uvicorn.loops.auto")
    loop = asyncio.new_event_loop()
    try:
        protocol = HttpToolsProtocol(config, ServerState(), {}, loop)
    finally:
        loop.close()
    if not hasattr(protocol, "timeout_keep_alive"):
        raise _missing("uvicorn", "HttpToolsProtocol.timeout_keep_alive")


def check_server() -> None:
    """Raise a UserError if this worker was started by another server than the one that `replace_uvicorn` set."""
    from mlops_img.serving.server import DrainingServer

    if not DrainingServer.in_use:
        raise _missing("bentoml", "worker that is started by uvicorn.Server")


async def _no_application(scope: Any, receive: Any, send: Any) -> None:
    """Stand in for the application, which is not there yet."""


def _check(package: str, names: Iterable[str]) -> None:
    for name in names:
        try:
            pkgutil.resolve_name(name)
        except (ImportError, AttributeError):
            raise _missing(package, name.replace(":", ".")) from None


def _missing(package: str, name: str) -> UserError:
    return UserError(
        f"{package} {version(package)} has no {name}, which mlops_img replaces. "
        f"Install the tested version: pip install -c constraints.txt {package}"
    )
