import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import pytest
import websockets
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from askd_ray.errors import AskdError
from askd_ray.serve import listener
from askd_ray.serve.listener import Address, listening


@contextlib.asynccontextmanager
async def listening_at_any_port(app: ASGIApp, shutdown_s: float) -> AsyncGenerator[tuple[Address, Any]]:
    """Run the server; yields its address, and the function that drains it."""
    with Address(port=0).reserved() as address:
        async with listening(app, address, shutdown_s) as drain:
            yield address, drain


def test_request_in_progress_is_answered_before_shutdown():
    async def scenario() -> None:
        came, go_on = asyncio.Event(), asyncio.Event()

        async def slow(_: Request) -> PlainTextResponse:
            came.set()
            await go_on.wait()
            return PlainTextResponse("done")

        app = Starlette(routes=[Route("/slow", slow)])
        async with httpx.AsyncClient(timeout=30, trust_env=False) as client:
            async with listening_at_any_port(app, shutdown_s=20) as (address, _):
                asking = asyncio.create_task(client.get(f"{address.url}/slow"))
                await came.wait()
                asyncio.get_running_loop().call_later(0.3, go_on.set)
            assert (await asking).text == "done"
        with pytest.raises(httpx.ConnectError):
            httpx.get(address.url, trust_env=False)

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_draining_server_refuses_connections_and_answers_requests_in_progress():
    async def scenario() -> None:
        came, go_on = asyncio.Event(), asyncio.Event()

        async def slow(_: Request) -> PlainTextResponse:
            came.set()
            await go_on.wait()
            return PlainTextResponse("done")

        app = Starlette(routes=[Route("/slow", slow)])
        async with (
            httpx.AsyncClient(timeout=30, trust_env=False) as client,
            listening_at_any_port(app, shutdown_s=20) as (address, drain),
        ):
            asking = asyncio.create_task(client.get(f"{address.url}/slow"))
            await came.wait()
            draining = asyncio.create_task(drain())
            while True:
                try:
                    (await asyncio.open_connection(address.host, address.port))[1].close()
                except OSError:
                    break
                await asyncio.sleep(0.05)
            assert not draining.done() and not asking.done()
            go_on.set()
            await draining
            assert (await asking).text == "done"

    asyncio.run(asyncio.wait_for(scenario(), 60))


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: a\r\n"])
@pytest.mark.parametrize("is_first", [True, False])
def test_connection_without_headers_is_closed(sent: bytes, is_first: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(listener, "HEADERS_S", 0.3)
    monkeypatch.setattr(listener, "_KEEP_ALIVE_S", 1)

    async def scenario() -> None:
        app = Starlette(routes=[Route("/", lambda _: PlainTextResponse("done"))])
        async with listening_at_any_port(app, shutdown_s=5) as (address, _):
            reader, writer = await asyncio.open_connection(address.host, address.port)
            if not is_first:
                writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                await reader.readuntil(b"done")
            writer.write(sent)
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
            writer.close()

    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_websockets_close_with_1012_on_restart():
    async def scenario() -> None:
        async def realtime(socket: WebSocket) -> None:
            await socket.accept()
            with contextlib.suppress(WebSocketDisconnect):
                await socket.receive_text()

        app = Starlette(routes=[WebSocketRoute("/live", realtime)])
        async with listening_at_any_port(app, shutdown_s=20) as (address, drain):
            async with websockets.connect(f"ws://{address.host}:{address.port}/live", proxy=None) as live:
                draining = asyncio.create_task(drain())
                with pytest.raises(websockets.ConnectionClosed) as closed:
                    await live.recv()
                assert closed.value.rcvd is not None and closed.value.rcvd.code == 1012
            await draining

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_connection_that_reads_no_response_is_closed(monkeypatch: pytest.MonkeyPatch):
    """Such a client occupied a request slot without a time limit."""
    monkeypatch.setattr(listener, "READ_S", 0.3)

    async def scenario() -> None:
        ended = asyncio.Event()

        async def large(scope: Scope, receive: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for _ in range(64):
                await send({"type": "http.response.body", "body": bytes(1 << 20), "more_body": True})
            ended.set()

        async with listening_at_any_port(large, shutdown_s=5) as (address, _):
            _, writer = await asyncio.open_connection(address.host, address.port)
            writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            await ended.wait()
            writer.close()

    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_headers_timeout_does_not_limit_the_response(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(listener, "HEADERS_S", 0.1)

    async def scenario() -> None:
        async def slow(_: Request) -> PlainTextResponse:
            await asyncio.sleep(0.5)
            return PlainTextResponse("done")

        async def realtime(socket: WebSocket) -> None:
            await socket.accept()
            await asyncio.sleep(0.5)
            await socket.send_text("hello")
            await socket.close()

        app = Starlette(routes=[Route("/", slow), WebSocketRoute("/live", realtime)])
        async with (
            listening_at_any_port(app, shutdown_s=5) as (address, _),
            httpx.AsyncClient(timeout=30, trust_env=False) as client,
        ):
            for _ in range(2):  # on one connection
                assert (await client.get(address.url)).text == "done"
            async with websockets.connect(f"ws://{address.host}:{address.port}/live", proxy=None) as live:
                assert await live.recv() == "hello"

    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_port_in_use_is_a_one_line_error():
    async def scenario(address: Address) -> None:
        async with listening(Starlette(), address, shutdown_s=1):
            raise AssertionError("it listens")

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(AskdError, match=f"port {port}: .*choose another with --port"):
            asyncio.run(scenario(Address(port=port)))
    with pytest.raises(AskdError, match=r"cannot listen on 192\.0\.2\.1"):
        Address("192.0.2.1", 0).open()


def test_reserved_port_is_only_open_to_the_service():
    """Ray's servers use any free port; one of them once took the service's port during its start."""
    with Address(port=0).reserved() as address:
        with pytest.raises(OSError, match="in use"), socket.socket() as other:
            other.bind((address.host, address.port))
        with address.open() as opened:
            with socket.create_connection((address.host, address.port), timeout=5):
                opened.accept()[0].close()
            with pytest.raises(AskdError, match="choose another with --port"), address.reserved():
                raise AssertionError("two services on one port")


@pytest.mark.parametrize(
    ("host", "url", "loopback"),
    [
        ("127.0.0.1", "http://127.0.0.1:80", True),
        ("0.0.0.0", "http://127.0.0.1:80", False),
        ("::1", "http://[::1]:80", True),
        ("::", "http://127.0.0.1:80", False),
    ],
)
def test_address_url_and_loopback(host: str, url: str, loopback: bool):
    address = Address(host, 80)
    assert (address.url, address.is_loopback) == (url, loopback)
