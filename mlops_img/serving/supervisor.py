"""The supervising process, which starts and ends the workers: BentoML's, made by circus.

It holds the listening socket, which the workers inherit. What circus lacks is put in here: a port that cannot be taken
is one line, and the end closes the socket first, not last. And in a worker, the end of the supervisor is noticed.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

from mlops_img.errors import EXIT_USER_ERROR
from mlops_img.serving.listening import drop_new_connections

# The supervisor's process id, for its workers. Not one of the settings.
VARIABLE = "_MLOPS_IMG_SUPERVISOR"
# Seconds between two looks whether the supervisor is there.
INTERVAL = 1.0
REASONS = {
    errno.EADDRINUSE: "port {port} is in use. Stop the other process or choose another port: "
    "bentoml serve --port <number>, or PORT=<number>",
    errno.EACCES: "port {port} may not be used by this user. Choose a port above 1023: "
    "bentoml serve --port <number>, or PORT=<number>",
    errno.EADDRNOTAVAIL: "address {host} is not one of this machine. Use 0.0.0.0 for all of its addresses: "
    "bentoml serve --host 0.0.0.0",
}


def prepare() -> None:
    """Change circus in this process, and let workers that are started know whose they are."""
    from circus import sockets  # type: ignore[import-untyped]
    from circus.arbiter import Arbiter  # type: ignore[import-untyped]
    from circus.sockets import CircusSocket  # type: ignore[import-untyped]

    os.environ[VARIABLE] = str(os.getpid())
    sockets.addrinfo = partial(_address, sockets.addrinfo)
    CircusSocket.bind = _bind
    CircusSocket.listen = _listen
    if not hasattr(Arbiter, "_stop_watchers_only"):
        Arbiter._stop_watchers_only = Arbiter._stop_watchers
        Arbiter._stop_watchers = _close_sockets_and_stop_watchers


def is_gone() -> bool:
    """Return whether this is a worker whose supervisor has ended."""
    return os.environ.get(VARIABLE) not in (None, str(os.getpid()), str(os.getppid()))


def end_with_supervisor(within: float) -> None:
    """In a worker, end in order when the supervisor is gone: its workers would hold the port for ever.

    A signal at the death of the parent (PR_SET_PDEATHSIG) would be simpler, but comes with the end of the thread that
    started the process, and on Linux only.

    Args:
        within: seconds for the requests that are under way; then the process is killed.
    """
    if VARIABLE in os.environ:
        threading.Thread(target=_watch, args=(within,), name="supervisor", daemon=True).start()


def _watch(within: float) -> None:
    while not is_gone():
        time.sleep(INTERVAL)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(within)
    os.kill(os.getpid(), signal.SIGKILL)


def _address(look_up: Callable[..., Any], host: str, port: int, family: int) -> Any:
    if not 0 < port < 2**16:  # the system would take the remainder
        _fail(OverflowError(), (host, port))
    return look_up(host, port, family)


def _bind(self: socket.socket, address: Any) -> None:
    try:
        socket.socket.bind(self, address)
    except OSError as error:
        _fail(error, address)


def _listen(self: socket.socket, backlog: int) -> None:
    try:
        socket.socket.listen(self, backlog)
    except OSError as error:
        _fail(error, self.getsockname())


def _fail(error: OSError | OverflowError, address: Any) -> NoReturn:
    host, port = address[:2] if isinstance(address, tuple) else ("", address)
    reason = REASONS.get(error.errno or 0) if isinstance(error, OSError) else "port {port} is not a port: 1 to 65535"
    text = reason.format(host=host, port=port) if reason else f"cannot listen on {host}:{port}: {error}"
    print(f"error: {text}", file=sys.stderr)
    sys.exit(EXIT_USER_ERROR)


def _close_sockets_and_stop_watchers(self: Any, *arguments: Any, **options: Any) -> Any:
    """Before the workers are ended for good, see that no more connections come that nobody would accept."""
    if self._stopping and not self._restarting:
        for listening in self.sockets.values():
            if listening.fileno() >= 0:
                drop_new_connections(listening)
                listening.close()  # the workers close theirs, the last one with an empty queue
    return self._stop_watchers_only(*arguments, **options)
