"""Replacing parts of uvicorn, and the check that the replacements are used.

`bentoml serve` starts uvicorn itself and has no option for these: the protocol class, the event loop, the timeout of a
request head, and a keep-alive time with a fraction. (It has a hidden `--timeout-keep-alive` in whole seconds.) So the
defaults that uvicorn looks up are replaced. A version that renames one would leave the service without its limits;
therefore each is checked at the start (`replaced_names`), and so is what uvicorn makes of them.
"""

from __future__ import annotations

import asyncio
from typing import Any

from mlops_img.serving.replaced_names import check_uvicorn, missing_name


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
        raise missing_name("uvicorn", "Config.http_protocol_class from uvicorn.protocols.http.auto")
    if config.get_loop_factory() is not asyncio_loop_factory(use_subprocess=False):
        raise missing_name("uvicorn", "Config.get_loop_factory from uvicorn.loops.auto")
    loop = asyncio.new_event_loop()
    try:
        protocol = HttpToolsProtocol(config, ServerState(), {}, loop)
    finally:
        loop.close()
    if not hasattr(protocol, "timeout_keep_alive"):
        raise missing_name("uvicorn", "HttpToolsProtocol.timeout_keep_alive")


def check_server() -> None:
    """Raise a UserError if this worker was started by another server than the one that `replace_uvicorn` set."""
    from mlops_img.serving.server import DrainingServer

    if not DrainingServer.in_use:
        raise missing_name("bentoml", "worker that is started by uvicorn.Server")


async def _no_application(scope: Any, receive: Any, send: Any) -> None:
    """Stand in for the application, which is not there yet."""
