"""The supervising process, which starts and stops the workers: BentoML's, based on circus.

It holds the listening socket, which the workers inherit. circus is extended: a port that cannot be used is a one-line
error, a worker that still starts cannot be killed by the signal that stops it, and the socket is closed first at
shutdown instead of last. A worker, in turn, notices when its supervisor is gone.
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
from mlops_img.serving.replaced_names import check_circus

# The supervisor's process id, for its workers. Not one of the settings.
PID_VARIABLE = "_MLOPS_IMG_SUPERVISOR"
# Seconds between two checks whether the supervisor is alive.
CHECK_INTERVAL = 1.0
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
BIND_ERRORS = {
    errno.EADDRINUSE: "port {port} is in use. Stop the other process or choose another port: "
    "bentoml serve --port <number>, or PORT=<number>",
    errno.EACCES: "port {port} requires privileges that this user lacks. Choose a port above 1023: "
    "bentoml serve --port <number>, or PORT=<number>",
    errno.EADDRNOTAVAIL: "address {host} does not belong to this machine. Use 0.0.0.0 for all of its addresses: "
    "bentoml serve --host 0.0.0.0",
}


def extend_circus() -> None:
    """Extend circus in this process, and tell workers that are started later whose they are.

    Raises:
        UserError: this version of circus lacks what is extended.
    """
    check_circus()
    from circus import sockets  # type: ignore[import-untyped]
    from circus.arbiter import Arbiter  # type: ignore[import-untyped]
    from circus.process import Process  # type: ignore[import-untyped]
    from circus.sockets import CircusSocket  # type: ignore[import-untyped]

    os.environ[PID_VARIABLE] = str(os.getpid())
    sockets.addrinfo = partial(_look_up, sockets.addrinfo)
    CircusSocket.bind = _bind
    CircusSocket.listen = _listen
    if not hasattr(Arbiter, "_stop_watchers_only"):
        Arbiter._stop_watchers_only = Arbiter._stop_watchers
        Arbiter._stop_watchers = _close_sockets_and_stop_watchers
        Process._spawn_only = Process.spawn
        Process.spawn = _spawn_with_signals_blocked


def unblock_signals() -> None:
    """In a worker, allow the signals that stop it. One that arrived earlier takes effect now."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def is_gone() -> bool:
    """Return whether this is a worker whose supervisor has ended."""
    return os.environ.get(PID_VARIABLE) not in (None, str(os.getpid()), str(os.getppid()))


def end_with_supervisor(grace: float) -> None:
    """In a worker, shut down when the supervisor is gone: otherwise its workers would keep the port for ever.

    A signal at the death of the parent (PR_SET_PDEATHSIG) would be simpler, but it is sent at the end of the thread
    that started the process, and exists on Linux only.

    Args:
        grace: seconds for the requests under way; then the process is killed.
    """
    if PID_VARIABLE in os.environ:
        threading.Thread(target=_watch, args=(grace,), name="supervisor", daemon=True).start()


def _watch(grace: float) -> None:
    while not is_gone():
        time.sleep(CHECK_INTERVAL)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace)
    os.kill(os.getpid(), signal.SIGKILL)


def _look_up(addrinfo: Callable[..., Any], host: str, port: int, family: int) -> Any:
    if not 0 < port < 2**16:  # the system would use the remainder
        _fail(OverflowError(), (host, port))
    return addrinfo(host, port, family)


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
    reason = BIND_ERRORS.get(error.errno or 0) if isinstance(error, OSError) else "port {port} is outside 1 to 65535"
    text = reason.format(host=host, port=port) if reason else f"cannot listen on {host}:{port}: {error}"
    print(f"error: {text}", file=sys.stderr)
    sys.exit(EXIT_USER_ERROR)


def _spawn_with_signals_blocked(self: Any) -> Any:
    """Start a worker with its stop signals blocked, which it inherits, until its server handles them.

    A worker that a signal ended earlier would leave the connections in the socket's queue to be reset.
    """
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        return self._spawn_only()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _close_sockets_and_stop_watchers(self: Any, *arguments: Any, **options: Any) -> Any:
    """Before the workers are stopped for good, make sure that no further connection is queued."""
    if self._stopping and not self._restarting:
        for listening in self.sockets.values():
            if listening.fileno() >= 0:
                drop_new_connections(listening)
                listening.close()  # the workers close theirs, the last one with an empty queue
    return self._stop_watchers_only(*arguments, **options)
