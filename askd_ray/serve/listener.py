"""HTTP without a proxy before it: the process that answers also listens."""

import asyncio
import contextlib
import math
import socket
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from dataclasses import dataclass
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from askd_ray.errors import AskdError

_KEEP_ALIVE_S = 75  # longer than clients keep an idle connection: who closes first must not be the server
_BACKLOG = 2048
HEADERS_S = 30.0  # from a connection, or from a further request's first byte, to the end of the headers
READ_S = 60.0  # that a client may leave an answer lying


@dataclass(frozen=True)
class Address:
    """Where to listen."""

    host: str = "127.0.0.1"
    port: int = 8000

    @property
    def url(self) -> str:
        """Where it is reached from this machine."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches it."""
        return self.host in ("127.0.0.1", "::1", "localhost")

    def open(self) -> socket.socket:
        """Return a socket that listens, also where the port is :meth:`reserved`.

        Raises :class:`AskdError` when the port is taken or the host is not this machine's.
        """
        return self._server(reuse_port=True)

    @contextlib.contextmanager
    def reserved(self) -> Generator[None]:
        """Keep the port for :meth:`open`, in this process or another one of this user's.

        What starts in between takes ports as they come, and might take this one.

        Raises :class:`AskdError` when the port is taken or the host is not this machine's.
        """
        self._server(reuse_port=False).close()  # a service that listens there would share the port with another
        with socket.socket(self._family) as kept:
            kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            kept.bind((self.host, self.port))  # nobody is sent to a socket that does not listen
            yield

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
    """uvicorn's HTTP, which also closes on who does not finish a request's headers, or does not read an answer."""

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
        """Whether no request is being answered, and the connection has not become a WebSocket."""
        return self.transport.get_protocol() is self and (not self.cycle or self.cycle.response_complete)


@contextlib.asynccontextmanager
async def listening(
    app: ASGIApp, address: Address, patience_s: float
) -> AsyncGenerator[Callable[[], Coroutine[Any, Any, None]]]:
    """Answer requests at an address with an app, for as long as the block runs; those in flight get ``patience_s``.

    Yields what ends it before the block does: no request is taken any more, and it returns when those in flight are
    answered.

    Raises :class:`AskdError` when that address cannot be had.
    """
    config = uvicorn.Config(
        app,
        http=_Protocol,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=math.ceil(patience_s),
    )
    server = uvicorn.Server(config)
    with address.open() as opened:
        serving = asyncio.create_task(server.serve(sockets=[opened]))

        async def drain() -> None:
            server.should_exit = True
            await asyncio.shield(serving)

        try:
            yield drain
        finally:
            await drain()
