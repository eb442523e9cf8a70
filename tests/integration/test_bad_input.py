"""What no well-behaved client sends, to a real gateway: a clear refusal, and nothing left behind."""

import contextlib
import json
import signal
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.gateway import (
    AS_SHIPPED,
    Gateway,
    Mock,
    eventually,
    everything,
    question,
    running_gateway,
    settings,
    streamed_text,
    text_of,
)

CHAT = "/v1/chat/completions"
MAX_BODY = 10 * 1024**2
# Words whose stream is larger than what the kernel takes for a client that reads nothing.
LONGER_THAN_BUFFERS = 40_000


@pytest.fixture(scope="module")
def impatient_gateway(tmp_path_factory: pytest.TempPathFactory, provider: Mock) -> Iterator[Gateway]:
    directory = tmp_path_factory.mktemp("bad-input")
    sections = {
        "server": {"body_timeout": "1s"},
        "endpoints": [{"name": "default", "cache": {"mode": "exact"}}],
        "models": [{"name": "known", "targets": [{"upstream": "mock", "model": "known"}]}],
        "guardrails": AS_SHIPPED,
    }
    with running_gateway(directory, settings(directory, provider.url, **sections)) as gateway:
        yield gateway


@pytest.fixture
def gateway(impatient_gateway: Gateway, mock: Mock) -> Iterator[Gateway]:
    """Waits a second for a body, and must be well after every test."""
    mock.behaves(tokens=20)

    yield impatient_gateway

    assert impatient_gateway.ask("are you well?", model="known").status_code == 200
    assert eventually(lambda: impatient_gateway.metric("keepgate_inflight") == 0)


def chat(**fields: Any) -> bytes:
    return json.dumps({**question("hello", model="known"), **fields}).encode()


def chat_with(raw: str) -> bytes:
    """A chat request with one more field, as text that need not be JSON."""
    return chat()[:-1] + f', "more": {raw}}}'.encode()


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "is empty"),
        (b"{nope", "not valid JSON"),
        (b"hello=world", "not valid JSON"),
        (chat() + b" more", "not valid JSON"),
        (chat() * 2, "not valid JSON"),
        (chat().decode().encode("utf-16"), "not valid JSON in UTF-8"),
        (b"\xef\xbb\xbf" + chat(), "not valid JSON in UTF-8"),  # JSON has no byte order mark
        (chat_with('"\\u0000').replace(b"\\u0000", b"\x00"), "not valid JSON"),
        (chat_with('"é"').decode().encode("latin-1"), "not valid JSON in UTF-8"),
        (chat_with('"?"').replace(b"?", b"\xed\xa0\x80"), "not valid JSON in UTF-8"),  # half a pair, encoded
        (chat_with('"\\ud800"'), "not valid JSON"),
        (chat_with('"\\udc00"'), "not valid JSON"),
        (chat_with('{"\\udc00": 1}'), "not valid JSON"),
        (chat_with("NaN"), "not valid JSON"),
        (chat_with("Infinity"), "not valid JSON"),
        (chat_with("1e999"), "not valid JSON"),
        (chat_with("[" * 100_000), "nested too deeply"),
        (chat_with("[" * 5_000 + "]" * 5_000), "nested too deeply"),
        (chat_with('{"a":' * 5_000 + "1" + "}" * 5_000), "nested too deeply"),
        (b"[]", "must be a JSON object"),
        (b'"hello"', "must be a JSON object"),
        (b"null", "must be a JSON object"),
    ],
)
def test_a_body_that_is_no_json_object_is_refused(gateway: Gateway, mock: Mock, body: bytes, says: str) -> None:
    refused = gateway.client.post(CHAT, content=body)

    assert error(refused, 400)["code"] == "invalid_request"
    assert says in error(refused, 400)["message"]
    assert mock.calls(CHAT) == 0


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"model": 5}, "model"),
        ({"model": ""}, "model"),
        ({"model": "gpt\n4"}, "model"),
        ({"model": "gpt\x00"}, "model"),
        ({"model": "m" * 300}, "model"),
        ({"messages": None}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": {}}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [None]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": "a"}, {"content": "b"}]}, "messages[1]"),
        ({"messages": [{"role": 1, "content": "a"}]}, "messages[0]"),
        ({"stream": "yes"}, "stream"),
        ({"stream": 1}, "stream"),
        ({"stream_options": [True]}, "stream_options"),
        ({"n": [1]}, "n"),
        ({"n": True}, "n"),
        ({"temperature": "hot"}, "temperature"),
    ],
)
def test_a_field_that_cannot_be_used_is_named(gateway: Gateway, mock: Mock, fields: dict[str, Any], param: str) -> None:
    refused = gateway.client.post(CHAT, content=chat(**fields))

    assert error(refused, 400)["code"] == "invalid_request"
    assert error(refused, 400)["param"] == param
    assert param in error(refused, 400)["message"]
    assert mock.calls(CHAT) == 0


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {"model": "known"}, "prompt"),
        ("/v1/embeddings", {"model": "known"}, "input"),
        ("/v1/embeddings", {"model": "known", "input": "a", "stream": True}, "stream"),
    ],
)
def test_what_the_other_routes_need_is_named(gateway: Gateway, path: str, body: dict[str, Any], param: str) -> None:
    refused = gateway.post(body, path=path)

    assert error(refused, 400)["code"] == "invalid_request"
    assert error(refused, 400)["param"] == param


@pytest.mark.parametrize("opening, closing", [("[", "]"), ('{"a":', "}")])  # noqa: PT006  # as it is drawn
def test_nesting_at_the_limit_is_served_or_refused(gateway: Gateway, opening: str, closing: str) -> None:
    answers = {
        gateway.client.post(
            CHAT, content=chat_with(opening * depth + "0" + closing * depth), headers={"x-keepgate-cache": mode}
        ).status_code
        for depth in range(955, 1000)
        for mode in ("exact", "off")
    }

    assert answers == {200, 400}


def test_numbers_beyond_64_bits_reach_the_provider_as_they_came(gateway: Gateway, mock: Mock) -> None:
    seed = 10**40 + 1

    answer = gateway.client.post(CHAT, content=chat(seed=seed))

    assert answer.status_code == 200
    assert mock.last_body()["seed"] == seed


def test_a_key_given_twice_is_forwarded_as_it_was_hashed(gateway: Gateway, mock: Mock) -> None:
    twice = (
        b'{"model": "known", "messages": [{"role": "user", "content": "harmless"}],'
        b' "messages": [{"role": "user", "content": "looked harmless", "content": "the real one"}]}'
    )

    first = gateway.client.post(CHAT, content=twice)
    sent = mock.report()["last"]["body"]
    repeated = gateway.ask("the real one", model="known")

    assert first.headers["x-keepgate-cache"] == "miss"
    assert "harmless" not in sent
    assert json.loads(sent) == question("the real one", model="known")
    assert repeated.headers["x-keepgate-cache"] == "exact"
    assert "the real one" in text_of(repeated)


def test_an_unknown_model_is_told_the_known_ones(gateway: Gateway) -> None:
    refused = gateway.ask("hello", model="gpt-99")

    assert error(refused, 404)["code"] == "model_not_found"
    assert "known" in error(refused, 404)["message"]
    assert "mock/MODEL" in error(refused, 404)["message"]


def test_an_unknown_endpoint_is_told_the_known_ones(gateway: Gateway) -> None:
    refused = gateway.ask("hello", model="known", endpoint="nobody's")

    assert error(refused, 400)["code"] == "unknown_endpoint"
    assert "default" in error(refused, 400)["message"]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("POST", "/v1/nothing", 404, "not_found"),
        ("GET", CHAT, 405, "method_not_allowed"),
        ("PUT", CHAT, 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
    ],
)
def test_an_unknown_route_or_method_is_refused(
    gateway: Gateway, method: str, path: str, status: int, code: str
) -> None:
    refused = gateway.client.request(method, path)

    assert error(refused, status)["code"] == code


@pytest.mark.parametrize("path", ["/", "/health/live", "/health/ready", "/metrics", "/v1/models"])
def test_head_is_get_without_the_body(gateway: Gateway, path: str) -> None:
    answer = gateway.client.head(path)

    assert answer.status_code == 200
    assert answer.content == b""


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("x-keepgate-cache", "maybe"),
        ("x-keepgate-threshold", "1.5"),
        ("x-keepgate-threshold", "high"),
        ("x-keepgate-ttl", "soon"),
        ("x-keepgate-ttl", "-1"),
        ("Cache-Control", "max-age=soon"),
        ("x-keepgate-namespace", ""),
        ("x-keepgate-context", "d" * 5_000),
        ("Content-Encoding", "gzip"),
    ],
)
def test_a_header_that_cannot_be_used_is_named(gateway: Gateway, mock: Mock, header: str, value: str) -> None:
    refused = gateway.ask("hello", model="known", headers={header: value})

    assert error(refused, 400)["code"] == "invalid_request"
    assert header in error(refused, 400)["message"]
    assert mock.calls(CHAT) == 0


def test_content_encoding_identity_is_none(gateway: Gateway) -> None:
    assert gateway.ask("hello", model="known", headers={"Content-Encoding": "Identity"}).status_code == 200


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_of_50_mb_is_refused_and_not_held(gateway: Gateway, chunked: bool) -> None:
    pieces = [b"x" * 1_000_000] * 50
    before = resident_bytes(gateway)

    refused = gateway.client.post(CHAT, content=iter(pieces) if chunked else b"".join(pieces))

    assert error(refused, 413)["code"] == "request_too_large"
    assert str(MAX_BODY) in error(refused, 413)["message"]
    assert resident_bytes(gateway) < before + 3 * MAX_BODY


def test_a_body_at_the_limit_is_served_and_one_byte_more_is_not(gateway: Gateway) -> None:
    frame = len(chat_with('""'))

    fits = gateway.client.post(CHAT, content=chat_with(f'"{"x" * (MAX_BODY - frame)}"'))
    refused = gateway.client.post(CHAT, content=chat_with(f'"{"x" * (MAX_BODY - frame + 1)}"'))

    assert fits.status_code == 200
    assert refused.status_code == 413


def test_a_client_that_waits_for_leave_to_send_too_much_is_not_given_it(gateway: Gateway) -> None:
    head = request_head(50_000_000, "Expect: 100-continue")

    answer = spoken(gateway, head)

    assert answer.startswith(b"HTTP/1.1 413 ")


def test_a_client_that_waits_for_leave_to_send_is_given_it(gateway: Gateway) -> None:
    body = chat()

    with connected(gateway) as connection:
        connection.sendall(request_head(len(body), "Expect: 100-continue", "Connection: close"))
        leave = connection.recv(1024)
        connection.sendall(body)
        answer = everything(connection)

    assert leave == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert answer.startswith(b"HTTP/1.1 200 ")


def test_a_body_in_drips_is_given_up_in_time(gateway: Gateway, mock: Mock) -> None:
    body = chat()

    with connected(gateway) as connection:
        connection.sendall(request_head(len(body)))
        answer = b""
        connection.settimeout(0.1)
        for byte in body:
            with contextlib.suppress(ConnectionError):
                connection.send(bytes([byte]))
            with contextlib.suppress(TimeoutError):
                answer = connection.recv(65536)
            if answer:
                break
        answer += everything(connection)

    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in answer
    assert b'"request_timeout"' in answer
    assert mock.calls(CHAT) == 0


def test_a_body_cut_short_leaves_nothing(gateway: Gateway, mock: Mock) -> None:
    with connected(gateway) as connection:
        connection.sendall(request_head(1000) + b'{"model": ')

    assert eventually(lambda: gateway.metric("keepgate_inflight") == 0)
    assert mock.calls(CHAT) == 0


def test_pipelined_requests_are_answered_in_their_order(gateway: Gateway) -> None:
    texts = ["first", "second", "third"]
    bodies = [json.dumps(question(text, model="known")).encode() for text in texts]
    more = [request_head(len(body)) + body for body in bodies]

    answers = spoken(gateway, b"".join(more) + b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")

    assert answers.count(b"HTTP/1.1 200 OK") == 4
    places = [answers.index(f"to: {text}".encode()) for text in texts]
    assert places == sorted(places)
    assert answers.endswith(b'{"status":"live"}')


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"GET /health/live HTTP/1.1\r\nHost: x\r\nx-long: ", id="one header"),
        pytest.param(b"GET /", id="the request line"),
    ],
)
def test_a_head_without_end_is_refused_and_not_held(gateway: Gateway, head: bytes) -> None:
    before = resident_bytes(gateway)

    answer = spoken(gateway, head, *[b"a" * 1_000_000] * 40)

    # A client that goes on sending may lose the answer to the reset that follows it.
    assert answer == b"" or answer.startswith(b"HTTP/1.1 431 ")
    assert resident_bytes(gateway) < before + MAX_BODY


def test_a_head_that_is_too_long_is_told_so(gateway: Gateway) -> None:
    with connected(gateway) as connection:
        connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\nx-long: ")
        answer = b""
        connection.settimeout(0.01)
        for _ in range(200):
            connection.sendall(b"a" * 1_000)
            with contextlib.suppress(TimeoutError):
                answer = connection.recv(65536)
            if answer:
                break
        answer += everything(connection)

    assert answer.startswith(b"HTTP/1.1 431 ")
    assert b"65536" in answer


def test_long_headers_within_reason_are_read(gateway: Gateway) -> None:
    assert gateway.ask("hello", model="known", headers={"x-long": "a" * 30_000}).status_code == 200


@pytest.mark.parametrize("noise", [b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"GET\r\n\r\n", b"\x00\xff hello\r\n\r\n"])
def test_what_is_not_http_is_refused(gateway: Gateway, noise: bytes) -> None:
    answer = spoken(gateway, noise)

    assert answer.startswith(b"HTTP/1.1 400 ")


def test_a_slow_reader_gets_its_whole_stream_and_holds_up_nobody(gateway: Gateway, mock: Mock, model: str) -> None:
    mock.behaves(tokens=4_000)
    whole = question("a long story", model=f"mock/{model}", stream=True)
    body = json.dumps(whole).encode()

    with connected(gateway, receive_buffer=4_096) as connection:
        connection.sendall(request_head(len(body), "Connection: close"))
        connection.sendall(body)
        # It reads nothing yet, and the flight ends without it.
        assert eventually(lambda: mock.calls(CHAT) == 1 and mock.report()["open_streams"] == 0)
        meanwhile = gateway.ask("short", model="known")
        stream = everything(connection)

    assert meanwhile.status_code == 200
    assert stream.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    assert len(streamed_text(stream.decode()).split()) == 4_000


def test_a_reader_that_stops_and_leaves_is_let_go(gateway: Gateway, mock: Mock, model: str) -> None:
    mock.behaves(tokens=LONGER_THAN_BUFFERS)
    body = json.dumps(question("a long story", model=f"mock/{model}", stream=True)).encode()

    with connected(gateway, receive_buffer=4_096) as connection:
        connection.sendall(request_head(len(body)) + body)
        assert eventually(lambda: gateway.metric("keepgate_inflight") == 1)

    assert eventually(lambda: gateway.metric("keepgate_inflight") == 0)


@pytest.mark.full
def test_a_reader_that_stops_and_stays_is_let_go_after_a_minute(gateway: Gateway, mock: Mock, model: str) -> None:
    mock.behaves(tokens=LONGER_THAN_BUFFERS)
    body = json.dumps(question("a long story", model=f"mock/{model}", stream=True)).encode()

    with connected(gateway, receive_buffer=4_096) as connection:
        connection.sendall(request_head(len(body)) + body)
        assert eventually(lambda: gateway.metric("keepgate_inflight") == 1)

        assert eventually(lambda: gateway.metric("keepgate_inflight") == 0, within=90)


def test_a_reader_that_stops_does_not_keep_the_gateway_from_stopping(tmp_path: Path, mock: Mock) -> None:
    mock.behaves(tokens=LONGER_THAN_BUFFERS)
    body = json.dumps(question("a long story", model="m", stream=True)).encode()
    config = settings(tmp_path, mock.url, server={"drain": "1s"}, endpoints=[{"name": "default"}])
    with running_gateway(tmp_path, config, ready=False) as gateway, connected(gateway, receive_buffer=4_096) as stuck:
        stuck.sendall(request_head(len(body)) + body)
        assert eventually(lambda: gateway.metric("keepgate_inflight") == 1)

        gateway.server.signal(signal.SIGTERM)

        assert gateway.server.process.wait(15) == 0


@pytest.mark.full
def test_a_client_that_never_begins_or_never_finishes_its_headers_is_let_go(gateway: Gateway) -> None:
    with connected(gateway) as silent, connected(gateway) as slow:
        silent.settimeout(45)
        slow.settimeout(45)
        slow.sendall(b"GET /health/live HTTP/1.1\r\nHost: ")

        nothing = everything(silent)
        answer = everything(slow)

    assert nothing == b""
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"request_timeout"' in answer


def test_a_hundred_thousand_messages_are_served(gateway: Gateway, mock: Mock) -> None:
    messages = [{"role": "user", "content": str(number)} for number in range(100_000)]

    whole = gateway.client.post(CHAT, content=chat(messages=messages))
    streamed = gateway.client.post(CHAT, content=chat(messages=messages, stream=True))

    assert text_of(whole).split()[4] == "99999"
    assert streamed.headers["x-keepgate-cache"] == "exact"
    assert streamed_text(streamed.text) == text_of(whole)
    assert mock.calls(CHAT) == 1


# --- what these tests speak with


def error(answer: httpx.Response, status: int) -> dict[str, Any]:
    """The error of an answer that must have this status, with what every refusal carries."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    found: dict[str, Any] = answer.json()["error"]
    assert found["type"] == "invalid_request_error"
    assert found["request_id"] == answer.headers["x-keepgate-request-id"]
    return found


def request_head(length: int, *headers: str) -> bytes:
    lines = [f"POST {CHAT} HTTP/1.1", "Host: x", f"Content-Length: {length}", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


@contextlib.contextmanager
def connected(gateway: Gateway, *, receive_buffer: int | None = None) -> Iterator[socket.socket]:
    with socket.socket() as connection:
        if receive_buffer is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.settimeout(10)
        connection.connect(("127.0.0.1", gateway.server.port))
        yield connection


def spoken(gateway: Gateway, *pieces: bytes) -> bytes:
    """What the gateway says to these bytes, sent for as long as it takes any."""
    with connected(gateway) as connection:
        with contextlib.suppress(ConnectionError):
            send_all(connection, pieces)
        return everything(connection)


def send_all(connection: socket.socket, pieces: Iterable[bytes]) -> None:
    for piece in pieces:
        connection.sendall(piece)


def resident_bytes(gateway: Gateway) -> int:
    status = Path(f"/proc/{gateway.server.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024
