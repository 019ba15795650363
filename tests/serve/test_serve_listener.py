import asyncio
import socket

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from askd_ray.errors import AskdError
from askd_ray.serve.listener import Address, listening


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_request_in_flight_is_answered_before_the_server_goes():
    async def scenario() -> None:
        address, came, go_on = Address(port=free_port()), asyncio.Event(), asyncio.Event()

        async def slow(_: Request) -> PlainTextResponse:
            came.set()
            await go_on.wait()
            return PlainTextResponse("done")

        app = Starlette(routes=[Route("/slow", slow)])
        async with httpx.AsyncClient(timeout=30, trust_env=False) as client:
            async with listening(app, address, patience_s=20):
                asking = asyncio.create_task(client.get(f"{address.url}/slow"))
                await came.wait()
                asyncio.get_running_loop().call_later(0.3, go_on.set)
            assert (await asking).text == "done"
        with pytest.raises(httpx.ConnectError):
            httpx.get(address.url, trust_env=False)
        address.open().close()  # the port is free again

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_a_port_that_is_taken_is_one_line():
    async def scenario(address: Address) -> None:
        async with listening(Starlette(), address, patience_s=1):
            raise AssertionError("it listens")

    address = Address(port=free_port())
    with (
        socket.create_server((address.host, address.port)),
        pytest.raises(AskdError, match=f"port {address.port}: .*choose another with --port"),
    ):
        asyncio.run(scenario(address))
    with pytest.raises(AskdError, match=r"cannot listen on 192\.0\.2\.1"):
        Address("192.0.2.1", free_port()).open()


def test_a_port_is_kept_for_who_will_listen():
    """Ray's own servers take ports as they come; one of them once took the service's, while that started."""
    address = Address(port=free_port())
    with address.reserved():
        with pytest.raises(OSError, match="in use"), socket.socket() as other:
            other.bind((address.host, address.port))
        with address.open() as opened:
            with socket.create_connection((address.host, address.port), timeout=5):
                opened.accept()[0].close()
            with pytest.raises(AskdError, match="choose another with --port"), address.reserved():
                raise AssertionError("two services on one port")
    address.open().close()


@pytest.mark.parametrize(
    ("host", "url", "loopback"),
    [
        ("127.0.0.1", "http://127.0.0.1:80", True),
        ("0.0.0.0", "http://127.0.0.1:80", False),
        ("::1", "http://[::1]:80", True),
        ("::", "http://127.0.0.1:80", False),
    ],
)
def test_an_address_says_where_it_is_reached(host: str, url: str, loopback: bool):
    address = Address(host, 80)
    assert (address.url, address.is_loopback) == (url, loopback)
