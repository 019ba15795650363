"""A TCP proxy before a server, which stalls in the middle of a chosen request: time to kill the client there."""

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread

_CHUNK = 1 << 16


class StallingProxy:
    """Relays connections to ``server`` (host:port). A request that matches ``pattern`` stalls after its first bytes."""

    def __init__(self, server: str):
        host, _, port = server.rpartition(":")
        self._server = host, int(port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.pattern: re.Pattern[bytes] | None = None
        self.stalled = Event()
        self._released = Event()
        Thread(target=self._accept, daemon=True).start()

    def stall(self, pattern: bytes) -> None:
        """Stall the next requests that match."""
        self.stalled.clear()
        self._released.clear()
        self.pattern = re.compile(pattern)

    def release(self) -> None:
        """Stall no more; requests that are stalled go on."""
        self.pattern = None
        self._released.set()

    def close(self) -> None:
        """Accept no more connections."""
        self.release()
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._server)
                for source, target, is_request in ((client, server, True), (server, client, False)):
                    Thread(target=self._relay, args=(source, target, is_request), daemon=True).start()

    def _relay(self, source: socket.socket, target: socket.socket, is_request: bool) -> None:
        with suppress(OSError):
            while data := source.recv(_CHUNK):
                if is_request and self.pattern is not None and (found := self.pattern.search(data)):
                    target.sendall(data[: found.end()])
                    self.stalled.set()
                    self._released.wait()
                    data = data[found.end() :]
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextmanager
def stalling_proxy(server: str) -> Iterator[StallingProxy]:
    """A proxy before a server while the block runs."""
    proxy = StallingProxy(server)
    try:
        yield proxy
    finally:
        proxy.close()
