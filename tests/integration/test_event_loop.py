"""No request holds up the others: measured from outside, on a second connection.

While a big request runs, another process asks for `/health/live` all the time;
the longest wait for an answer is how long the event loop was blocked, and what
a busy machine adds. Blocking comes back with every attempt and noise does not,
so the best of a few attempts counts.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from tests.support.gateway import AS_SHIPPED, Gateway, Mock, running_gateway, settings

CHAT = "/v1/chat/completions"
ATTEMPTS = 6
# Largest wait in seconds by size of the body: what no request may exceed.
UP_TO_1_MB = 0.020
UP_TO_10_MB = 0.100

# Prints when each probe began and how long it took, as soon as its standard input is closed.
PROBE = """
import json, select, socket, sys, time
connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
waits = []
print("probing", flush=True)
while not select.select([sys.stdin], [], [], 0.0005)[0]:
    began = time.monotonic()
    connection.sendall(b"GET /health/live HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
    answer = b""
    while not answer.endswith(b'{"status":"live"}'):
        answer += connection.recv(4096)
    waits.append((began, time.monotonic() - began))
print(json.dumps(waits))
"""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, provider: Mock) -> Iterator[Gateway]:
    directory = tmp_path_factory.mktemp("event-loop")
    sections = {
        "cache": {"embedder": {"kind": "static"}, "vector": {"deadline": "5s"}},
        "endpoints": [{"name": "default", "cache": {"mode": "semantic"}}],
        "guardrails": AS_SHIPPED,
    }
    with running_gateway(directory, settings(directory, provider.url, **sections)) as gateway:
        # What is loaded once, at the first request of its kind, is not what is measured.
        gateway.ask("hello", model="fault:no_usage")
        yield gateway


@pytest.fixture(autouse=True)
def _few_words(mock: Mock) -> None:
    mock.behaves(tokens=10)


def one_text(size: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": "word " * (size // 5)}]


def one_word(size: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": "x" * size}]


def many_messages(size: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": "a line of a long talk, and more of it"} for _ in range(size // 80)]


def hundred_thousand(_: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": str(number)} for number in range(100_000)]


Shape = Callable[[int], list[dict[str, str]]]


@pytest.mark.parametrize(
    ("shape", "size", "limit"),
    [
        (one_text, 950_000, UP_TO_1_MB),
        (one_word, 950_000, UP_TO_1_MB),
        (many_messages, 900_000, UP_TO_1_MB),
        (one_text, 9_500_000, UP_TO_10_MB),
        (many_messages, 9_000_000, UP_TO_10_MB),
        (hundred_thousand, 0, UP_TO_10_MB),
    ],
)
@pytest.mark.parametrize("model", ["m", "fault:no_usage"])
def test_a_large_body_holds_up_nobody(gateway: Gateway, shape: Shape, size: int, limit: float, model: str) -> None:
    def miss(attempt: int) -> None:
        body = {"model": model, "messages": [{"role": "system", "content": str(attempt)}, *shape(size)]}
        post(gateway, body, expect="miss")

    assert longest_wait(gateway, miss, limit) <= limit


@pytest.mark.parametrize(
    ("shape", "size", "limit"), [(one_text, 950_000, UP_TO_1_MB), (hundred_thousand, 0, UP_TO_10_MB)]
)
def test_a_large_body_that_is_in_the_cache_holds_up_nobody(
    gateway: Gateway, shape: Shape, size: int, limit: float
) -> None:
    body = {"model": "cached", "messages": shape(size)}
    post(gateway, body, expect="miss")

    def hit(_: int) -> None:
        post(gateway, body, expect="exact")

    assert longest_wait(gateway, hit, limit) <= limit


@pytest.mark.parametrize("stream", [False, True])
def test_a_long_answer_holds_up_nobody(gateway: Gateway, mock: Mock, stream: bool) -> None:
    mock.behaves(tokens=16_000)

    def miss(attempt: int) -> None:
        messages = [{"role": "user", "content": f"a long story, number {attempt}"}]
        post(
            gateway, {"model": f"long-{stream}", "messages": messages, "stream": stream, "seed": attempt}, expect="miss"
        )

    assert longest_wait(gateway, miss, UP_TO_1_MB) <= UP_TO_1_MB


@pytest.mark.parametrize("stream", [False, True])
def test_a_long_answer_out_of_the_cache_holds_up_nobody(gateway: Gateway, mock: Mock, stream: bool) -> None:
    mock.behaves(tokens=16_000)
    asked = {"model": "replayed", "messages": [{"role": "user", "content": f"a long story {stream}"}]}
    post(gateway, asked, expect="miss")

    def hit(_: int) -> None:
        post(gateway, {**asked, "stream": stream}, expect="exact")

    assert longest_wait(gateway, hit, UP_TO_1_MB) <= UP_TO_1_MB


# --- what these tests measure with


def post(gateway: Gateway, body: dict[str, Any], *, expect: str) -> None:
    answer = gateway.client.post(CHAT, content=json.dumps(body).encode())
    assert answer.status_code == 200, answer.text[:500]
    assert answer.headers["x-keepgate-cache"] == expect


def longest_wait(gateway: Gateway, request: Callable[[int], None], limit: float) -> float:
    """Seconds: the least, over attempts until one stays below `limit`, of the longest wait of any probe meanwhile."""
    best = float("inf")
    for attempt in range(ATTEMPTS):
        best = min(best, _longest_wait(gateway, partial(request, attempt)))
        if best <= limit:
            break
    return best


def _longest_wait(gateway: Gateway, request: Callable[[], None]) -> float:
    command = [sys.executable, "-c", PROBE, str(gateway.server.port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as probe:  # noqa: S603
        assert probe.stdin is not None
        assert probe.stdout is not None
        assert probe.stdout.readline() == "probing\n"
        time.sleep(0.05)
        began = time.monotonic()
        request()
        ended = time.monotonic()
        time.sleep(0.05)
        waits: list[tuple[float, float]] = json.loads(probe.communicate("")[0])
    return max(wait for start, wait in waits if start + wait >= began and start <= ended)
