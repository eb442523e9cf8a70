"""How the fakes fail, and what they remember: the same for every vendor, seen through a plain HTTP client."""

import email.utils
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.fake_anthropic import Anthropic
from tests.support.fake_provider import KEY, Fake, Fault, running
from tests.support.gateway import eventually

HEADERS = {"x-api-key": KEY, "anthropic-version": "2026-10-21"}
BODY = {"model": "m", "max_tokens": 500, "messages": [{"role": "user", "content": "hello #long"}]}


@pytest.fixture(scope="module")
def shared() -> Iterator[Fake]:
    with running(Anthropic()) as fake:
        yield fake


@pytest.fixture
def fake(shared: Fake) -> Fake:
    shared.reset()
    return shared


@pytest.fixture
def client(fake: Fake) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=fake.url, headers=HEADERS, timeout=5) as client:
        yield client


def ask(client: httpx.Client, *, stream: bool = False, **more: Any) -> httpx.Response:
    return client.post("/v1/messages", json={**BODY, "stream": stream, **more})


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 409, 413, 429, 500, 502, 503, 529])
def test_fails_with_a_status_in_the_words_of_the_vendor_and_then_recovers(
    fake: Fake, client: httpx.Client, status: int
) -> None:
    fake.fail(str(status))

    answers = [ask(client), ask(client)]

    assert [answer.status_code for answer in answers] == [status, 200]
    assert answers[0].json()["error"]["message"] == "the fake was told to fail"
    assert [call.status for call in fake.calls] == [status, 200]
    assert [call.fault for call in fake.calls] == [str(status), ""]


def test_says_when_to_try_again_in_each_of_the_forms(fake: Fake, client: httpx.Client) -> None:
    fake.script(*(Fault("429", retry_after=told) for told in ("1", "ms:250", "date:60")), "429")

    answers = [ask(client).headers for _ in range(4)]

    assert answers[0]["retry-after"] == "1"
    assert answers[1]["retry-after-ms"] == "250"
    assert 50 < email.utils.parsedate_to_datetime(answers[2]["retry-after"]).timestamp() - time.time() < 70
    assert "retry-after" not in answers[3]


def test_answers_with_a_page_with_nothing_and_with_half_of_the_json(fake: Fake, client: httpx.Client) -> None:
    fake.script("html", "empty", "malformed")

    page, empty, half = (ask(client) for _ in range(3))

    assert (page.status_code, page.headers["content-type"]) == (502, "text/html")
    assert (empty.status_code, empty.content) == (200, b"")
    assert half.status_code == 200
    with pytest.raises(ValueError, match=r"Unterminated|Expecting"):
        half.json()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("reset", httpx.ReadError),
        ("reset_midway", httpx.ReadError),
        ("cut", httpx.RemoteProtocolError),
        ("stall", httpx.ReadTimeout),
        ("stall_midway", httpx.ReadTimeout),
    ],
)
def test_breaks_off_or_falls_silent(
    fake: Fake, client: httpx.Client, fault: str, error: type[Exception], *, stream: bool
) -> None:
    fake.fail(fault)
    client.timeout = httpx.Timeout(0.3)
    received: list[bytes] = []

    with pytest.raises(error), client.stream("POST", "/v1/messages", json={**BODY, "stream": stream}) as answer:
        received.extend(answer.iter_bytes())

    assert bool(received) == (fault not in {"reset", "stall"})
    assert eventually(lambda: fake.calls[0].outcome != "in flight")
    assert fake.calls[0].outcome == ("left" if "stall" in fault else "broken")
    assert fake.in_flight == 0


def test_a_stream_says_that_it_failed_first_or_midway(fake: Fake, client: httpx.Client) -> None:
    fake.script("error_first", "error_midway")

    first, midway = ask(client, stream=True).text, ask(client, stream=True).text

    assert first.startswith("event: error\n")
    assert midway.startswith("event: message_start\n")
    assert midway.rpartition("event: ")[2].startswith("error\n")
    assert "message_stop" not in midway


def test_a_stream_may_end_early_as_if_that_were_all_or_hold_half_an_event(fake: Fake, client: httpx.Client) -> None:
    fake.script("unfinished", "malformed")

    unfinished, malformed = ask(client, stream=True).text, ask(client, stream=True).text

    assert "content_block_delta" in unfinished
    assert "message_stop" not in unfinished
    assert not malformed.rstrip().endswith("}")


def test_an_endless_stream_ends_with_its_caller(fake: Fake, client: httpx.Client) -> None:
    fake.fail("endless", seconds=0.001)

    with client.stream("POST", "/v1/messages", json={**BODY, "stream": True}) as answer:
        whole = ask(client, stream=True).content
        seen = 0
        for piece in answer.iter_bytes():
            seen += len(piece)
            if seen > 2 * len(whole):
                break

    assert eventually(lambda: fake.calls[0].outcome == "left")


def test_drips_and_is_slow_and_is_whole_all_the_same(fake: Fake, client: httpx.Client) -> None:
    usual = ask(client).content
    fake.script(Fault("drip", seconds=0.0001), Fault("slow", seconds=0.05))

    assert ask(client).content == usual
    assert ask(client).content == usual
    assert (fake.calls[2].took or 0) >= 0.05


def test_fails_at_random_the_same_way_with_the_same_seed(fake: Fake, client: httpx.Client) -> None:
    def met() -> list[str]:
        fake.reset()
        fake.fail_at_random(0.3, "500", "429", seed=7)
        for _ in range(60):
            ask(client)
        return [call.fault for call in fake.calls]

    first = met()

    assert met() == first
    assert 6 < len([fault for fault in first if fault]) < 30
    assert set(first) == {"", "500", "429"}


def test_a_fault_meets_only_the_credential_and_model_it_is_meant_for(fake: Fake, client: httpx.Client) -> None:
    fake.fail("429", times=None, credential="key-2")
    fake.fail("500", times=None, model="bad")

    statuses = [
        client.post("/v1/messages", json={**BODY, "model": model}, headers={"x-api-key": key}).status_code
        for key, model in [("key-1", "m"), ("key-2", "m"), ("key-1", "bad"), ("key-1", "m")]
    ]

    assert statuses == [200, 429, 500, 200]
    assert [call.credential for call in fake.calls] == ["key-1", "key-2", "key-1", "key-1"]


def test_refuses_connections_and_takes_them_again(fake: Fake) -> None:
    fake.refuse()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", fake.port), timeout=1)

    fake.accept()
    socket.create_connection(("127.0.0.1", fake.port), timeout=1).close()


def test_counts_what_is_under_way_at_once(fake: Fake) -> None:
    fake.latency = 0.2
    threads = [
        threading.Thread(
            target=httpx.post, args=(f"{fake.url}/v1/messages",), kwargs={"json": BODY, "headers": HEADERS}
        )
        for _ in range(3)
    ]

    for thread in threads:
        thread.start()
    assert eventually(lambda: fake.in_flight == 3, every=0.005)
    for thread in threads:
        thread.join()

    assert (fake.in_flight, fake.most_in_flight) == (0, 3)


def test_can_be_told_and_asked_over_http(client: httpx.Client) -> None:
    told = client.put("/fake", json={"script": ["ok", {"name": "503", "times": 2}], "chunk_delay": 0})
    refused = client.put("/fake", json={"script": ["sunshine"]})

    statuses = [ask(client).status_code for _ in range(4)]
    report = client.get("/fake").json()
    client.delete("/fake")

    assert (told.status_code, refused.status_code) == (200, 400)
    assert statuses == [200, 503, 503, 200]
    assert [call["status"] for call in report["calls"]] == statuses
    assert report["calls"][0]["credential"] == KEY
    assert client.get("/fake").json()["calls"] == []


def test_knows_no_other_faults() -> None:
    with pytest.raises(ValueError, match="no fault is named 'sunshine'"):
        Fault("sunshine")
