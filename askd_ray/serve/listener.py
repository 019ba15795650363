"""HTTP without a proxy before it: the process that answers also listens."""

import asyncio
import contextlib
import math
import socket
from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass

import uvicorn
from starlette.types import ASGIApp

from askd_ray.errors import AskdError

_KEEP_ALIVE_S = 75  # longer than clients keep an idle connection: who closes first must not be the server
_BACKLOG = 2048


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


@contextlib.asynccontextmanager
async def listening(app: ASGIApp, address: Address, patience_s: float) -> AsyncGenerator[None]:
    """Answer requests at an address with an app, for as long as the block runs; those in flight get ``patience_s``.

    Raises :class:`AskdError` when that address cannot be had.
    """
    config = uvicorn.Config(
        app,
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
        try:
            yield
        finally:
            server.should_exit = True
            await serving
