"""An HTTP server inside the ingress process, without Ray Serve's proxy in front of it."""

import asyncio
import contextlib
import math
import socket
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from dataclasses import dataclass, replace
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from askd_ray.errors import AskdError

_KEEP_ALIVE_S = 75  # longer than clients keep an idle connection: the client must close first
_BACKLOG = 2048
HEADERS_S = 30.0  # limit for the headers, from the connection or from the first byte of the next request
READ_S = 60.0  # how long a client may leave a response unread


@dataclass(frozen=True)
class Address:
    """The host and port to listen on; port 0 is any free port, which :meth:`reserved` chooses."""

    host: str = "127.0.0.1"
    port: int = 8000

    @property
    def url(self) -> str:
        """The URL for clients on this machine."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        return self.host in ("127.0.0.1", "::1", "localhost")

    def open(self) -> socket.socket:
        """Return a listening socket; it also works while the port is :meth:`reserved`.

        Raises :class:`AskdError` when the port is in use or the host is not an address of this machine.
        """
        return self._server(reuse_port=True)

    @contextlib.contextmanager
    def reserved(self) -> Generator["Address"]:
        """Reserve the port for :meth:`open`, in this process or in another process of the same user.

        Ray's servers take any free port when they start, and could take this one. Yields the address, for port 0 with
        the free port that was reserved.

        Raises :class:`AskdError` when the port is in use or the host is not an address of this machine.
        """
        self._server(reuse_port=False).close()  # with reuse_port, two services could share the port
        with socket.socket(self._family) as reserved:
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            reserved.bind((self.host, self.port))  # no listen(): the socket gets no connections
            yield replace(self, port=reserved.getsockname()[1])

    @property
    def _family(self) -> socket.AddressFamily:
        return socket.AF_INET6 if ":" in self.host else socket.AF_INET

    def _server(self, reuse_port: bool) -> socket.socket:
        try:
            return socket.create_server(
                (self.host, self.port), family=self._family, backlog=_BACKLOG, reuse_port=reuse_port
            )
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise AskdError(
                f"cannot listen on {self.host} port {self.port}: {reason}; choose another with --port"
            ) from None


class _Protocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol; it also closes connections with unfinished headers or unread responses."""

    _headers_due: asyncio.TimerHandle | None = None
    _reading_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        self._wait_for_headers()

    def data_received(self, data: bytes) -> None:
        if self._headers_due is None and self._is_idle():
            self._wait_for_headers()
        super().data_received(data)
        if self._headers_due is not None and not self._is_idle():
            self._headers_due.cancel()
            self._headers_due = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reading_due = self.loop.call_later(READ_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._reading_due is not None:
            self._reading_due.cancel()
            self._reading_due = None

    def connection_lost(self, exc: Exception | None) -> None:
        for due in (self._headers_due, self._reading_due):
            if due is not None:
                due.cancel()
        super().connection_lost(exc)

    def _wait_for_headers(self) -> None:
        self._headers_due = self.loop.call_later(HEADERS_S, self._give_up)

    def _give_up(self) -> None:
        self._headers_due = None
        if self._is_idle():
            self.transport.abort()

    def _is_idle(self) -> bool:
        """Whether no request is in progress and the connection is not a WebSocket."""
        return self.transport.get_protocol() is self and (not self.cycle or self.cycle.response_complete)


@contextlib.asynccontextmanager
async def listening(
    app: ASGIApp, address: Address, shutdown_s: float
) -> AsyncGenerator[Callable[[], Coroutine[Any, Any, None]]]:
    """Serve an app at an address while the block runs; at its end, requests in progress get ``shutdown_s`` seconds.

    Yields a function that stops the server early: it accepts no more requests, and returns when those in progress are
    answered.

    Raises :class:`AskdError` when the address cannot be used.
    """
    config = uvicorn.Config(
        app,
        http=_Protocol,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=math.ceil(shutdown_s),
    )
    server = uvicorn.Server(config)
    with address.open() as listening_socket:
        serving = asyncio.create_task(server.serve(sockets=[listening_socket]))

        async def drain() -> None:
            server.should_exit = True
            await asyncio.shield(serving)

        try:
            yield drain
        finally:
            await drain()
