"""The process that listens: its socket, its signals, and its end."""

from __future__ import annotations

import contextlib
import errno
import logging
import signal
import socket
from collections.abc import Callable, Generator
from types import FrameType
from typing import Any

import uvicorn

from sslt.errors import UserError

try:
    from uvloop import run as _run
except ImportError:  # Windows has none
    from asyncio import run as _run  # type: ignore[assignment]

log = logging.getLogger("sslt")
KEPT = 75  # seconds that an idle connection stays open: longer than proxies keep theirs, which would else send into a closed one
_ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


def bound(host: str, port: int) -> socket.socket:
    """A socket of its own at an address, which does not listen yet. port 0: any that is free. Raises `UserError` where it cannot be had."""
    if not 0 <= port <= 65535:
        raise UserError(f"port={port}: give a number up to 65535, or 0 for one that is free")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.set_inheritable(False)
        return found
    except socket.gaierror as e:
        raise UserError(f"host={host}: {e.strerror}; 127.0.0.1 is this machine alone, 0.0.0.0 every network that it is in") from e
    except OSError as e:
        if e.errno == errno.EADDRINUSE:
            raise UserError(f"port={port} is in use on {host}: choose another one, or 0 for one that is free") from e
        raise UserError(f"host={host} port={port}: {e.strerror}") from e


def address_of(sock: socket.socket) -> str:
    """http://HOST:PORT of a socket."""
    host, port = sock.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


class _Server(uvicorn.Server):
    """Says when it listens, and ends by a signal as by its own will; uvicorn's would raise the signal again, and heed no second SIGTERM."""

    def __init__(self, config: uvicorn.Config, listens: Callable[[], None]):
        super().__init__(config)
        self.listens = listens

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.listens()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        before = {number: signal.signal(number, self.handle_exit) for number in _ENDING}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            raise KeyboardInterrupt  # out of the event loop, which cancels what is left
        self.should_exit = True
        log.info("%s came: no new requests, those that came are answered (once more: ends at once)", signal.Signals(sig).name)


def run(app: Any, sock: socket.socket, patience: float, listens: Callable[[], None]) -> None:
    """Serve until a signal comes, then answer what came before it. patience: seconds for that; listens: called when requests can come.

    Raises `KeyboardInterrupt` after a second signal.
    """
    quiet: dict[str, Any] = {"log_level": "warning", "access_log": False, "server_header": False, "ws": "none", "timeout_keep_alive": KEPT}
    config = uvicorn.Config(app, lifespan="on", timeout_graceful_shutdown=int(patience) + 1, **quiet)
    _run(_Server(config, listens).serve(sockets=[sock]))
