"""Identical requests in flight share one upstream call, and nobody waits for, or loses, what is another's."""

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import msgspec
import pytest

from tests.support.gateway import Gateway, Mock, events_of, eventually, question, streamed_text, text_of

QUESTION = "Why is the sky blue?"


@pytest.fixture
async def session(gateway: Gateway) -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(gateway.url, connector=connector) as session:
        yield session


async def ask(
    session: aiohttp.ClientSession, model: str, *, endpoint: str = "exact", headers: Any = None, **fields: Any
) -> tuple[int, str, str]:
    """Status, what the cache did, and the text; the body where there is none."""
    body = question(QUESTION, model=model, **fields)
    async with session.post(f"/e/{endpoint}/v1/chat/completions", json=body, headers=headers) as answer:
        text = await answer.text()
        outcome = answer.headers["x-keepgate-cache"]
        if answer.status == 200:
            text = streamed_text(text) if fields.get("stream") else text_of(msgspec.json.decode(text))
        return answer.status, outcome, text


async def until(probe: Any, *, within: float = 10.0) -> None:
    """Waits for the gateway or the mock in a thread: the clients of the test go on meanwhile."""
    await asyncio.to_thread(eventually, probe, within=within)


@pytest.mark.timeout(90)
async def test_a_thousand_identical_requests_make_one_upstream_call(
    session: aiohttp.ClientSession, gateway: Gateway, mock: Mock, model: str
) -> None:
    mock.behaves(latency=1500)

    answers = await asyncio.gather(*(ask(session, model, stream=number % 2 == 1) for number in range(1000)))

    statuses, outcomes, texts = (Counter(column) for column in zip(*answers, strict=True))
    assert mock.calls() == 1
    assert statuses == {200: 1000}
    assert len(texts) == 1
    assert outcomes["miss"] == 1
    assert outcomes["coalesced"] >= 500
    # Who came when the answer was there already found it.
    assert outcomes["coalesced"] + outcomes["exact"] == 999
    assert gateway.ask(QUESTION, model=model, endpoint="exact").headers["x-keepgate-cache"] == "exact"


@pytest.mark.parametrize("leader_streams", [True, False])
async def test_whoever_leads_streamed_and_whole_get_the_same(
    session: aiohttp.ClientSession, gateway: Gateway, mock: Mock, model: str, *, leader_streams: bool
) -> None:
    mock.behaves(latency=1000)
    leader = asyncio.create_task(ask(session, model, stream=leader_streams))
    await until(lambda: mock.calls() == 1)

    followers = await asyncio.gather(*(ask(session, model, stream=stream) for stream in (True, False, True, False)))

    first = await leader
    assert first[:2] == (200, "miss")
    assert followers == [(200, "coalesced", first[2])] * 4
    assert mock.calls() == 1
    assert gateway.metric("keepgate_inflight") == 0


async def test_after_the_answer_the_entry_is_an_exact_hit(
    session: aiohttp.ClientSession, mock: Mock, model: str
) -> None:
    mock.behaves(latency=200)
    for stream in (False, True):
        await asyncio.gather(*(ask(session, f"{model}-{stream}", stream=stream) for _ in range(3)))

        status, outcome, _ = await ask(session, f"{model}-{stream}")

        assert (status, outcome) == (200, "exact")


async def test_who_joins_a_running_stream_gets_it_from_its_start(
    session: aiohttp.ClientSession, mock: Mock, model: str
) -> None:
    mock.behaves(chunk_delay=60, tokens=25)
    body = question(QUESTION, model=model, stream=True)
    async with session.post("/e/exact/v1/chat/completions", json=body) as leader:
        led = [await leader.content.readuntil(b"\n\n") for _ in range(6)]

        async with session.post("/e/exact/v1/chat/completions", json=body) as follower:
            followed = [await follower.content.readuntil(b"\n\n") for _ in range(6)]
            running = await asyncio.to_thread(mock.report)
            rest = await asyncio.gather(leader.read(), follower.read())

    assert follower.headers["x-keepgate-cache"] == "coalesced"
    assert "collapsed" in follower.headers["cache-status"]
    assert followed == led
    assert running["open_streams"] == 1, "the follower read its beginning only when the stream was over"
    assert rest[0] == rest[1]
    assert rest[0].endswith(b"data: [DONE]\n\n")
    assert mock.calls() == 1


async def test_a_client_that_does_not_read_stalls_nobody_else(
    session: aiohttp.ClientSession, gateway: Gateway, mock: Mock, model: str
) -> None:
    mock.behaves(tokens=40_000, latency=300)
    body = msgspec.json.encode(question(QUESTION, model=model, stream=True))
    with socket.socket() as lazy:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.connect(("127.0.0.1", gateway.server.port))
        head = f"POST /e/exact/v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        lazy.sendall(head.encode() + body)
        await until(lambda: mock.calls() == 1)

        status, outcome, text = await asyncio.wait_for(ask(session, model, stream=True), 30)

        assert (status, outcome) == (200, "coalesced")
        assert len(text.split()) == 40_000


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_hangs_up_cancels_the_upstream_call(
    session: aiohttp.ClientSession, mock: Mock, model: str, *, stream: bool
) -> None:
    mock.behaves(**({"chunk_delay": 100} if stream else {"latency": 30_000}))
    asking = asyncio.create_task(ask(session, model, stream=stream))
    await until(lambda: mock.calls() == 1)

    asking.cancel()

    await until(lambda: mock.cancelled() == 1)
    mock.reset()
    assert (await ask(session, model))[1] == "miss", "half an answer was kept"


async def test_a_client_that_hangs_up_cancels_nothing_while_others_wait(
    session: aiohttp.ClientSession, gateway: Gateway, mock: Mock, model: str
) -> None:
    mock.behaves(chunk_delay=50, tokens=25)
    joined = gateway.metric("keepgate_coalesced_total")
    leader = asyncio.create_task(ask(session, model, stream=True))
    await until(lambda: mock.calls() == 1)
    followers = [asyncio.create_task(ask(session, model, stream=stream)) for stream in (True, False)]
    await until(lambda: gateway.metric("keepgate_coalesced_total") == joined + 2)

    leader.cancel()

    answers = await asyncio.gather(*followers)
    assert [answer[:2] for answer in answers] == [(200, "coalesced")] * 2
    assert answers[0][2] == answers[1][2]
    assert len(answers[0][2].split()) == 25
    assert (mock.calls(), mock.cancelled()) == (1, 0)


@pytest.mark.parametrize(
    ("endpoint", "headers", "outcome"),
    [
        ("exact", {"Cache-Control": "no-cache"}, "bypass"),
        ("exact", {"Cache-Control": "no-store"}, "miss"),
        ("exact", {"x-keepgate-cache": "off"}, "bypass"),
        ("off", {}, "bypass"),
    ],
)
async def test_who_wants_no_cache_shares_no_call(
    session: aiohttp.ClientSession, mock: Mock, model: str, endpoint: str, headers: dict[str, str], outcome: str
) -> None:
    mock.behaves(latency=300)

    answers = await asyncio.gather(*(ask(session, model, endpoint=endpoint, headers=headers) for _ in range(3)))

    assert [answer[:2] for answer in answers] == [(200, outcome)] * 3
    assert mock.calls() == 3


@pytest.mark.parametrize("header", ["x-keepgate-namespace", "x-keepgate-context"])
async def test_partitions_share_no_call(session: aiohttp.ClientSession, mock: Mock, model: str, header: str) -> None:
    mock.behaves(latency=300)

    answers = await asyncio.gather(*(ask(session, model, headers={header: name}) for name in ("a", "b")))

    assert [answer[1] for answer in answers] == ["miss", "miss"]
    assert mock.calls() == 2


@pytest.mark.parametrize("stream", [True, False])
async def test_a_failure_before_the_first_byte_reaches_each_follower_as_a_status(
    session: aiohttp.ClientSession, gateway: Gateway, mock: Mock, model: str, *, stream: bool
) -> None:
    mock.behaves(latency=1000, fault="500")
    leader = asyncio.create_task(ask(session, model, stream=stream))
    await until(lambda: mock.calls() == 1)

    answers = await asyncio.gather(*(ask(session, model, stream=each) for each in (True, False, True)))

    codes = [msgspec.json.decode(text)["error"]["code"] for _, _, text in (await leader, *answers)]
    assert codes == ["upstream_error"] * 4
    assert [answer[:2] for answer in answers] == [(502, "coalesced")] * 3
    assert mock.calls() == 1
    mock.reset()
    assert gateway.ask(QUESTION, model=model, endpoint="exact").headers["x-keepgate-cache"] == "miss"


async def test_each_of_a_flight_gets_usage_as_it_asked(session: aiohttp.ClientSession, mock: Mock, model: str) -> None:
    mock.behaves(latency=400)

    async def chunks(**fields: Any) -> list[Any]:
        body = question(QUESTION, model=model, stream=True, **fields)
        async with session.post("/e/exact/v1/chat/completions", json=body) as answer:
            *events, _ = events_of(await answer.text())
            return [msgspec.json.decode(event) for event in events]

    without, with_usage = await asyncio.gather(chunks(), chunks(stream_options={"include_usage": True}))

    assert mock.calls() == 1
    assert not any(chunk.get("usage") for chunk in without)
    assert with_usage[:-1] == without
    assert with_usage[-1]["usage"]["total_tokens"] > 0


async def test_who_waits_for_the_whole_of_a_stream_that_breaks_asks_anew(
    session: aiohttp.ClientSession, mock: Mock, model: str
) -> None:
    mock.behaves(chunk_delay=40, tokens=30, fault="cut", fault_times=1)
    leader = asyncio.create_task(ask(session, model, stream=True))
    await until(lambda: mock.calls() == 1)

    status, outcome, text = await ask(session, model)

    assert (await leader)[0] == 200
    assert (status, outcome) == (200, "miss")
    assert len(text.split()) == 30
    assert mock.calls() == 2


async def test_a_stream_that_breaks_breaks_for_each_follower(
    session: aiohttp.ClientSession, mock: Mock, model: str
) -> None:
    mock.behaves(chunk_delay=40, tokens=30, fault="cut", fault_times=1)
    body = question(QUESTION, model=model, stream=True)

    async def read() -> tuple[str, list[str]]:
        async with session.post("/e/exact/v1/chat/completions", json=body) as answer:
            return answer.headers["x-keepgate-cache"], events_of(await answer.text())

    leader = asyncio.create_task(read())
    await until(lambda: mock.calls() == 1)
    (_, followed), (_, led) = await asyncio.gather(read(), leader)

    assert followed[:-1] == led[:-1]
    for events in (led, followed):
        assert msgspec.json.decode(events[-1])["error"]["code"] == "upstream_error"
    assert mock.calls() == 1
    mock.reset()
    assert (await ask(session, model))[1] == "miss"
