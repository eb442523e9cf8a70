"""A client's connection to a real gateway: one request is one request, and nobody holds memory or sockets for free."""

import asyncio
import contextlib
import json
import logging
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from service.api.connection import Connection
from service.api.exchange import ClientGone, HangUp, Message, Receive, Scope, Send, send_part, send_whole
from tests.support.gateway import Gateway, Mock, everything, question, running_gateway, settings

CHAT = "/v1/chat/completions"
LAST = b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, provider: Mock) -> Iterator[Gateway]:
    directory = tmp_path_factory.mktemp("connections")
    config = settings(directory, provider.url, endpoints=[{"name": "default", "cache": {"mode": "off"}}])
    with running_gateway(directory, config) as gateway:
        yield gateway


# --- Upgrade


@pytest.mark.parametrize("pieces", ["all at once", "the body later", "byte by byte"])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_request_that_offers_an_upgrade_is_served_as_if_it_had_not(
    gateway: Gateway, mock: Mock, pieces: str, chunked: bool
) -> None:
    body = chat("hello")
    framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}"
    head = head_of(CHAT, framing, "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk")
    sent = head + (b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if chunked else body) + LAST
    cuts = {"all at once": [sent], "the body later": [head, sent[len(head) :]], "byte by byte": split(sent, 1)}

    answer = spoken(gateway, *cuts[pieces])

    assert statuses(answer) == [200, 200]
    assert answer.endswith(b'{"status":"live"}')
    assert mock.last_body() == question("hello", model="mock/m") | {"model": "m"}


def test_the_body_of_a_request_that_offers_an_upgrade_is_no_request(gateway: Gateway) -> None:
    smuggled = head_of("/v1/embeddings", "Content-Length: 0")
    head = head_of(CHAT, f"Content-Length: {len(smuggled)}", "Connection: Upgrade", "Upgrade: h2c")

    answer = spoken(gateway, head, smuggled + LAST)

    assert statuses(answer) == [400, 200]
    assert b"not valid JSON" in answer


def test_several_requests_that_offer_an_upgrade_are_answered_in_their_order(gateway: Gateway) -> None:
    offer = b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"

    assert statuses(spoken(gateway, offer * 3 + LAST)) == [200, 200, 200, 200]


def test_connect_is_refused_and_nothing_after_it_is_read(gateway: Gateway) -> None:
    answer = spoken(gateway, b"CONNECT elsewhere:443 HTTP/1.1\r\nHost: elsewhere\r\n\r\n" + LAST)

    assert statuses(answer) == [400]
    assert b"connection: close" in answer
    assert b"CONNECT is not served" in answer


# --- trailers


def test_trailers_within_reason_are_dropped(gateway: Gateway, mock: Mock) -> None:
    trailers = b"x-keepgate-cache: maybe\r\nContent-Encoding: gzip\r\nOpenAI-Organization: smuggled\r\n"

    answer = spoken(gateway, chunked_request(chat("hello"), trailers + b"\r\n") + LAST)

    assert statuses(answer) == [200, 200]
    assert "openai-organization" not in mock.last_headers()


@pytest.mark.parametrize("path", [CHAT, "/health/live"])
@pytest.mark.parametrize(
    "piece",
    [
        pytest.param(b"x-trailer: " + b"a" * 90 + b"\r\n", id="many trailers"),
        pytest.param(b"x" * 100, id="one trailer without end"),
    ],
)
def test_trailers_without_end_are_not_held(gateway: Gateway, path: str, piece: bytes) -> None:
    before = resident_bytes(gateway)

    sent = sent_until_closed(gateway, chunked_request(b"{}", b"", path=path), piece * 10_000, times=60)

    assert sent < 60
    assert resident_bytes(gateway) < before + 20 * 2**20


def test_an_extension_of_a_chunk_without_end_is_not_read(gateway: Gateway) -> None:
    head = head_of(CHAT, "Transfer-Encoding: chunked") + b"2;note="

    assert sent_until_closed(gateway, head, b"x" * 1_000_000, times=60) < 60


def test_trailers_that_are_too_long_are_told_so(gateway: Gateway) -> None:
    with connected(gateway) as connection:
        connection.sendall(chunked_request(b"{}", b"x-trailer: "))
        answer = b""
        connection.settimeout(0.01)
        for _ in range(200):
            connection.sendall(b"a" * 1_000)
            with contextlib.suppress(TimeoutError):
                answer = connection.recv(65536)
            if answer:
                break
        answer += everything(connection)

    assert statuses(answer) == [431]
    assert b"65536" in answer


def test_a_chunk_that_is_none_is_refused_once(gateway: Gateway) -> None:
    answer = spoken(gateway, head_of(CHAT, "Transfer-Encoding: chunked"), b"nonsense\r\n\r\n")

    assert statuses(answer) == [400]
    assert b'"invalid_request"' in answer


# --- bodies that were answered before they came


def test_the_rest_of_a_body_that_was_answered_early_has_a_limit(gateway: Gateway) -> None:
    head = b"GET /health/live HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n"

    assert sent_until_closed(gateway, head, b"x" * 1_000_000, times=60) < 60


def test_a_connection_is_kept_when_the_rest_of_an_answered_body_is_short(gateway: Gateway) -> None:
    with connected(gateway) as connection:
        connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        first = connection.recv(65536)
        connection.sendall(b"x" * 1000 + LAST)
        second = everything(connection)

    assert statuses(first) == [200]
    assert statuses(second) == [200]


async def test_the_rest_of_a_body_that_was_answered_early_has_a_deadline() -> None:
    async with serving(answer_at_once, timeout_keep_alive=0.2) as port, opened(port) as (reader, writer):
        async with asyncio.timeout(5):
            writer.write(head_of("/", "Content-Length: 1000"))
            await reader.readuntil(b"early")
            writer.write(b"a drip")

            assert await reader.read() == b""


async def test_empty_lines_after_an_answer_do_not_keep_a_connection() -> None:
    async with serving(answer_at_once, timeout_keep_alive=0.2) as port, opened(port) as (reader, writer):
        async with asyncio.timeout(5):
            writer.write(head_of("/", "Content-Length: 0"))
            await reader.readuntil(b"early")
            writer.write(b"\r\n")

            assert await reader.read() == b""


# --- clients that take nothing, or leave


async def test_every_request_in_the_pipeline_is_told_that_its_client_left(caplog: pytest.LogCaptureFixture) -> None:
    gone = asyncio.Event()

    async def stream_until_gone(_scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await receive()
        try:
            with HangUp(receive):
                while True:
                    await send_part(send, b"more")
                    await asyncio.sleep(0.001)
        except ClientGone:
            gone.set()

    async with serving(stream_until_gone) as port, opened(port) as (reader, writer):
        writer.write(head_of("/first", "Content-Length: 0") + head_of("/second", "Content-Length: 0"))
        async with asyncio.timeout(5):
            await reader.readuntil(b"more")

            writer.transport.abort()
            await gone.wait()

    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_a_socket_that_is_closed_under_an_answer_is_a_client_that_left() -> None:
    async def closed(_: Message) -> None:
        raise RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed")

    with pytest.raises(ClientGone):
        await send_whole(closed, 200, [], b"short")


async def test_another_mistake_is_no_client_that_left() -> None:
    async def mistaken(_: Message) -> None:
        raise RuntimeError("Response content shorter than Content-Length")

    with pytest.raises(RuntimeError, match="shorter"):
        await send_whole(mistaken, 200, [], b"short")


@pytest.mark.parametrize("stuck_at", [0, 1])
async def test_a_short_answer_that_nobody_takes_is_given_up(monkeypatch: pytest.MonkeyPatch, stuck_at: int) -> None:
    monkeypatch.setattr("service.api.exchange._SEND_DEADLINE", 0.01)
    sent: list[Message] = []

    async def takes_no_more(message: Message) -> None:
        if len(sent) == stuck_at:
            await asyncio.Event().wait()
        sent.append(message)

    with pytest.raises(ClientGone):
        await send_whole(takes_no_more, 200, [], b"short")


async def test_an_answer_that_nobody_takes_does_not_keep_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.api.connection._UNSENT_SECONDS", 0.1)
    body = b"x" * 10_000_000
    state = ServerState()

    async def answer_much(_scope: Scope, _receive: Receive, send: Send) -> None:
        start = [(b"content-length", b"%d" % len(body)), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 200, "headers": start})
        await send({"type": "http.response.body", "body": body})

    async with serving(answer_much, state=state) as port:
        with socket.socket() as connection:
            connection.setblocking(False)
            await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
            await asyncio.get_running_loop().sock_sendall(connection, head_of("/", "Content-Length: 0"))
            await until(lambda: state.total_requests == 1)

            await until(lambda: not state.connections)

            assert connection.fileno() != -1, "it was not this side that closed"


async def test_an_answer_that_is_taken_slowly_is_sent_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.api.connection._UNSENT_SECONDS", 0.1)
    body = b"x" * 10_000_000

    async def answer_much(_scope: Scope, _receive: Receive, send: Send) -> None:
        start = [(b"content-length", b"%d" % len(body)), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 200, "headers": start})
        await send({"type": "http.response.body", "body": body})

    async with serving(answer_much) as port, opened(port) as (reader, writer):
        writer.write(head_of("/", "Content-Length: 0"))
        received = bytearray()
        while piece := await reader.read(500_000):
            received += piece
            await asyncio.sleep(0.01)  # what makes it slow

    assert len(received) > len(body)


# --- what these tests speak with


def chat(text: str) -> bytes:
    return json.dumps(question(text, model="mock/m")).encode()


def head_of(path: str, *headers: str) -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode()


def chunked_request(body: bytes, after_last_chunk: bytes, *, path: str = CHAT) -> bytes:
    return head_of(path, "Transfer-Encoding: chunked") + b"%x\r\n%b\r\n0\r\n%b" % (len(body), body, after_last_chunk)


def split(sent: bytes, size: int) -> list[bytes]:
    return [sent[at : at + size] for at in range(0, len(sent), size)]


def statuses(answers: bytes) -> list[int]:
    """Of all answers; bodies must not hold what looks like a status line."""
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answers)]


@contextlib.contextmanager
def connected(gateway: Gateway) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", gateway.server.port), timeout=10) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield connection


def spoken(gateway: Gateway, *pieces: bytes) -> bytes:
    with connected(gateway) as connection:
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                connection.sendall(piece)
        return everything(connection)


def sent_until_closed(gateway: Gateway, head: bytes, piece: bytes, *, times: int) -> int:
    """How often `piece` could be sent."""
    with connected(gateway) as connection:
        connection.sendall(head)
        for number in range(times):
            try:
                connection.sendall(piece)
            except ConnectionError:
                return number
    return times


def resident_bytes(gateway: Gateway) -> int:
    status = Path(f"/proc/{gateway.server.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


async def answer_at_once(_scope: Scope, _receive: Receive, send: Send) -> None:
    await send_whole(send, 200, [], b"early")


@contextlib.asynccontextmanager
async def serving(
    app: Callable[[Scope, Receive, Send], Awaitable[None]], *, state: ServerState | None = None, **options: Any
) -> AsyncIterator[int]:
    """`app` behind connections of ours, in this process."""
    config = uvicorn.Config(app, http=Connection, ws="none", lifespan="off", log_config=None, **options)
    state = state or ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(config, state, {}), "127.0.0.1", 0)
    try:
        port: int = server.sockets[0].getsockname()[1]
        yield port
    finally:
        server.close()
        for connection in list(state.connections):
            connection.transport.abort()
        for task in list(state.tasks):
            task.cancel()
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def opened(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Reads ahead by a few thousand bytes only."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=4_096)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def until(holds: Callable[[], bool], *, within: float = 5.0) -> None:
    async with asyncio.timeout(within):
        while not holds():  # noqa: ASYNC110 - nothing tells when a socket is let go
            await asyncio.sleep(0.005)
