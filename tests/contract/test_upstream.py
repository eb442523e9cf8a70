"""Every upstream answers alike; over HTTP, whatever goes wrong is an `UpstreamError` and passes."""

import asyncio
import base64
import json
import re
import struct
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, closing, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest
import trustme

from backends.upstream.base import Call, ChunkStream, Passage, Reply, Upstream
from backends.upstream.demo import DemoUpstream
from backends.upstream.http import HttpUpstream
from backends.upstream.providers import providers
from backends.upstream.providers import upstream as provider_upstream
from backends.upstream.transport import Transport
from models.errors import ConfigError, Untranslatable, UpstreamError
from models.request import Dialect, Operation
from service.bench.mock_upstream import answer
from tests.support.fake_anthropic import Anthropic
from tests.support.fake_gemini import Gemini
from tests.support.fake_openai import OpenAI
from tests.support.fake_provider import KEY as FAKE_KEY
from tests.support.fake_provider import Fake
from tests.support.fake_provider import running as served
from tests.support.fake_vendor import Vendor
from tests.support.servers import Server, free_port, mock_upstream, running

# An upstream in each dialect that providers speak, and what its API is called where it is served by a fake. A provider
# is a few lines of data over these: tests/unit/test_providers.py has them all.
DIALECTS: dict[Dialect, Vendor | None] = {
    "openai": None,
    "responses": OpenAI(),
    "anthropic": Anthropic(),
    "gemini": Gemini(),
}
SUITE = {
    "upstream": {"demo", *(name for name, provider in providers().items() if set(provider.dialects) <= set(DIALECTS))}
}

KEY = "sk-secret-of-the-operator"
QUESTION = "Where is the Zürich lighthouse?"
TOKENS = 20


def openai_upstream(*, provider: str = "openai-compatible", api_key: str | None = None, **options: Any) -> HttpUpstream:
    return provider_upstream(provider=provider, api_keys=[] if api_key is None else [api_key], **options)


class Mock:
    """The mock provider's controls."""

    def __init__(self, server: Server) -> None:
        self.base_url = f"{server.url}/v1"
        self._url = f"{server.url}/mock"

    def set(self, **behaviour: Any) -> None:
        self._ask("PUT", json.dumps(behaviour).encode())

    def reset(self) -> None:
        self._ask("DELETE")

    def report(self) -> dict[str, Any]:
        return self._ask("GET")

    def sent(self) -> dict[str, Any]:
        body: dict[str, Any] = json.loads(self.report()["last"]["body"])
        return body

    async def until(self, holds: Callable[[dict[str, Any]], bool], *, within: float = 2.0) -> None:
        async with asyncio.timeout(within):
            while not holds(self.report()):  # noqa: ASYNC110 - it is another process that is waited for
                await asyncio.sleep(0.005)

    def _ask(self, method: str, body: bytes | None = None) -> dict[str, Any]:
        request = urllib.request.Request(self._url, data=body, method=method)  # noqa: S310 - loopback
        with urllib.request.urlopen(request, timeout=5) as reply:  # noqa: S310 - loopback
            report: dict[str, Any] = json.load(reply)
            return report


@pytest.fixture(scope="module")
def mock_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mock]:
    with mock_upstream(tmp_path_factory.mktemp("mock") / "log", f"tokens={TOKENS}") as server:
        yield Mock(server)


@pytest.fixture
def mock(mock_process: Mock) -> Mock:
    mock_process.reset()
    return mock_process


@pytest.fixture(scope="module")
def fakes() -> Iterator[dict[Dialect, Fake]]:
    with ExitStack() as stack:
        yield {dialect: stack.enter_context(served(vendor)) for dialect, vendor in DIALECTS.items() if vendor}


@pytest.fixture(params=["demo", *DIALECTS])
async def upstream(request: pytest.FixtureRequest, mock: Mock, fakes: dict[Dialect, Fake]) -> AsyncIterator[Upstream]:
    dialect = request.param
    made: Upstream
    if dialect == "demo":
        made = DemoUpstream(name="it")
    elif dialect == "openai":
        made = openai_upstream(name="it", base_url=mock.base_url, api_key=KEY)
    else:
        provider = "openai" if dialect == "responses" else dialect
        made = openai_upstream(
            name="it", provider=provider, dialects=[dialect], base_url=fakes[dialect].base_url, api_key=FAKE_KEY
        )
    yield made
    await made.close()


def needs(upstream: Upstream, operation: Operation) -> None:
    if operation not in upstream.capabilities:
        pytest.skip(f"its dialect has no {operation}")


@pytest.fixture
async def http(mock: Mock) -> AsyncIterator[HttpUpstream]:
    """One with little patience and a small appetite, so that tests of both are quick."""
    made = openai_upstream(
        name="it",
        base_url=mock.base_url,
        api_key=KEY,
        connect_timeout=1.0,
        read_timeout=0.3,
        total_timeout=0.8,
        max_answer_bytes=200_000,
    )
    yield made
    await made.close()


def call_of(body: dict[str, Any], operation: Operation = "chat", *, model: str = "m", **rest: Any) -> Call:
    body = {"model": model, **body}
    return Call(operation=operation, model=model, body=body, raw=json.dumps(body).encode(), **rest)


def chat(question: str = QUESTION, *, model: str = "m", **fields: Any) -> Call:
    return call_of({"messages": [{"role": "user", "content": question}], **fields}, model=model)


async def collected(stream: ChunkStream) -> list[dict[str, Any]]:
    seen: list[dict[str, Any]] = []
    await read_into(seen, stream)
    return seen


async def read_into(seen: list[dict[str, Any]], stream: ChunkStream) -> None:
    async for payload, fields in stream:
        assert json.loads(payload) == fields
        seen.append(fields)  # what came before an error counts


def text_of(chunks: list[dict[str, Any]]) -> str:
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


# Every upstream


async def test_a_chat_is_answered(upstream: Upstream) -> None:
    reply = msgspec.json.decode((await upstream.complete(chat())).body)

    assert reply["object"] == "chat.completion"
    assert reply["choices"][0]["message"]["role"] == "assistant"
    assert QUESTION in reply["choices"][0]["message"]["content"]
    assert reply["choices"][0]["finish_reason"] == "stop"
    assert reply["usage"]["total_tokens"] == reply["usage"]["prompt_tokens"] + reply["usage"]["completion_tokens"]


async def test_the_same_call_gets_the_same_answer(upstream: Upstream) -> None:
    first, second = await upstream.complete(chat()), await upstream.complete(chat())

    assert first.body == second.body


async def test_a_stream_says_what_the_whole_says(upstream: Upstream) -> None:
    whole = msgspec.json.decode((await upstream.complete(chat())).body)
    chunks = await collected(await upstream.stream(chat(stream=True)))

    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert text_of(chunks) == whole["choices"][0]["message"]["content"]
    assert [c["choices"][0]["finish_reason"] for c in chunks if c["choices"]][-1] == "stop"
    assert {chunk["id"] for chunk in chunks} == {whole["id"]}
    assert len(chunks) > 5


async def test_a_stream_ends_with_its_usage_though_the_client_did_not_ask(upstream: Upstream) -> None:
    whole = msgspec.json.decode((await upstream.complete(chat())).body)
    chunks = await collected(await upstream.stream(chat(stream=True)))

    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == whole["usage"]


async def test_a_text_completion_is_answered_whole_and_streamed(upstream: Upstream) -> None:
    needs(upstream, "completion")
    call = call_of({"prompt": QUESTION}, "completion")

    whole = msgspec.json.decode((await upstream.complete(call)).body)
    chunks = await collected(await upstream.stream(call))

    assert QUESTION in whole["choices"][0]["text"]
    assert "".join(c["choices"][0]["text"] for c in chunks if c["choices"]) == whole["choices"][0]["text"]


async def test_embeddings_have_one_unit_vector_a_text(upstream: Upstream) -> None:
    needs(upstream, "embedding")
    call = call_of({"input": ["one", "two", "one"], "dimensions": 8}, "embedding")

    rows = msgspec.json.decode((await upstream.complete(call)).body)["data"]

    first, second, third = (row["embedding"] for row in rows)
    assert first == third != second
    assert sum(x * x for x in second) == pytest.approx(1.0)
    assert len(second) == 8


async def test_embeddings_in_base64_are_the_same_numbers(upstream: Upstream) -> None:
    needs(upstream, "embedding")
    body = {"input": "one", "dimensions": 4}
    numbers = msgspec.json.decode((await upstream.complete(call_of(body, "embedding"))).body)
    packed = msgspec.json.decode(
        (await upstream.complete(call_of({**body, "encoding_format": "base64"}, "embedding"))).body
    )

    unpacked = struct.unpack("<4f", base64.b64decode(packed["data"][0]["embedding"]))
    assert list(unpacked) == pytest.approx(numbers["data"][0]["embedding"])


async def test_a_hundred_calls_at_once_each_get_their_own_answer(upstream: Upstream) -> None:
    async def ask(number: int) -> str:
        call = chat(f"question {number} of many", stream=number % 2 == 0)
        if number % 2 == 0:
            return text_of(await collected(await upstream.stream(call)))
        reply = msgspec.json.decode((await upstream.complete(call)).body)
        return str(reply["choices"][0]["message"]["content"])

    answers = await asyncio.gather(*map(ask, range(100)))

    assert all(f"question {number} of many" in text for number, text in enumerate(answers))


async def test_a_stream_can_be_closed_early_and_twice(upstream: Upstream) -> None:
    stream = await upstream.stream(chat(stream=True))
    first = await anext(aiter(stream))

    await stream.close()
    await stream.close()

    assert first.fields["object"] == "chat.completion.chunk"
    assert [chunk async for chunk in stream] == []


async def test_it_names_its_models(upstream: Upstream) -> None:
    assert await upstream.models()


async def test_it_can_be_closed_twice(upstream: Upstream) -> None:
    reply = await upstream.complete(chat())

    await upstream.close()
    await upstream.close()

    assert reply.body, "what was answered outlives the closing"


async def test_the_call_is_left_as_it_was(upstream: Upstream) -> None:
    call = chat(model="renamed", stream=True, stream_options={"extra": 1})
    before = json.dumps(call.body)

    await collected(await upstream.stream(call))
    await upstream.complete(call)

    assert json.dumps(call.body) == before


# The demo


async def test_the_demo_says_what_it_is_and_how_to_get_a_real_one() -> None:
    reply = msgspec.json.decode((await DemoUpstream().complete(chat("why " * 200, tools=[{"type": "function"}]))).body)

    text = reply["choices"][0]["message"]["content"]
    assert "demo upstream, not a language model" in text
    assert "upstreams:" in text
    assert "calls no tools" in text
    assert "tool_calls" not in reply["choices"][0]["message"]
    assert len(text) < 700


async def test_the_demo_reads_the_text_parts_of_a_message() -> None:
    parts = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": "x"}}]
    call = call_of({"messages": [{"role": "user", "content": parts}]})

    reply = msgspec.json.decode((await DemoUpstream().complete(call)).body)

    assert "“What is this?”" in reply["choices"][0]["message"]["content"]


@pytest.mark.parametrize("body", [{"input": []}, {"input": 7}, {"input": "a", "dimensions": 0}])
async def test_the_demo_refuses_embeddings_it_cannot_make(body: dict[str, Any]) -> None:
    with pytest.raises(UpstreamError) as refused:
        await DemoUpstream().complete(call_of(body, "embedding"))

    assert refused.value.status == 400
    assert refused.value.body is not None


# What is sent


async def test_bytes_go_out_as_they_came_when_nothing_changes(http: HttpUpstream, mock: Mock) -> None:
    raw = b'{ "model": "m",\n  "temperature": 0.5, "messages": [{"role": "user", "content": "hi"}], "x_new": [1] }'

    await http.complete(Call(operation="chat", model="m", body=json.loads(raw), raw=raw))

    assert mock.report()["last"]["body"] == raw.decode()


async def test_a_key_given_twice_is_sent_once_as_it_was_screened(http: HttpUpstream, mock: Mock) -> None:
    raw = b'{"model": "m", "messages": [{"role": "user", "content": "bad", "content": "good"}]}'

    await http.complete(Call(operation="chat", model="m", body=msgspec.json.decode(raw), raw=raw))

    assert "bad" not in mock.report()["last"]["body"]
    assert mock.sent()["messages"] == [{"role": "user", "content": "good"}]


async def test_the_upstreams_model_replaces_the_clients_and_the_rest_stays(http: HttpUpstream, mock: Mock) -> None:
    body = {"model": "alias", "messages": [{"role": "user", "content": "hi"}], "seed": 12345678901234567890}

    await http.complete(Call(operation="chat", model="real", body=body, raw=json.dumps(body).encode()))

    assert mock.sent() == {**body, "model": "real"}


async def test_a_stream_asks_for_usage_and_keeps_the_clients_options(http: HttpUpstream, mock: Mock) -> None:
    await collected(await http.stream(chat(stream=True, stream_options={"include_obfuscation": False})))

    assert mock.sent()["stream_options"] == {"include_obfuscation": False, "include_usage": True}


async def test_no_usage_is_asked_for_where_the_upstream_does_not_know_it(mock: Mock) -> None:
    plain = openai_upstream(name="it", base_url=mock.base_url, stream_usage=False)

    chunks = await collected(await plain.stream(chat(stream=True)))
    await plain.close()

    assert "stream_options" not in mock.sent()
    assert all(chunk["choices"] for chunk in chunks)


@pytest.mark.parametrize("options", [{"include_usage": True}, {}, None])
async def test_an_upstream_that_does_not_know_stream_options_is_not_sent_the_clients(mock: Mock, options: Any) -> None:
    plain = openai_upstream(name="it", base_url=mock.base_url, stream_usage=False)

    await collected(await plain.stream(chat(stream=True, stream_options=options)))
    await plain.close()

    assert mock.sent().keys() == {"model", "messages", "stream"}


async def test_a_whole_answer_to_a_stream_request_is_asked_for_as_such(http: HttpUpstream, mock: Mock) -> None:
    await http.complete(chat(stream=True, stream_options={"include_usage": True}))

    assert mock.sent().keys() == {"model", "messages"}


async def test_headers_carry_the_key_and_what_the_policy_let_through(http: HttpUpstream, mock: Mock) -> None:
    call = msgspec.structs.replace(chat(), headers=(("openai-beta", "x=1"),), authorization="Bearer the-clients-own")

    await http.complete(call)

    headers = mock.report()["last"]["headers"]
    assert headers["authorization"] == f"Bearer {KEY}"
    assert headers["openai-beta"] == "x=1"
    assert headers["content-type"] == "application/json"
    assert headers["accept-encoding"] == "identity"
    assert "cookie" not in headers


async def test_passthrough_sends_the_callers_credential_and_none_of_ours(mock: Mock) -> None:
    through = openai_upstream(name="it", base_url=mock.base_url, api_key=KEY, auth="passthrough")

    await through.complete(msgspec.structs.replace(chat(), authorization="Bearer theirs"))
    theirs = mock.report()["last"]["headers"].get("authorization")
    await through.complete(chat())
    none = mock.report()["last"]["headers"].get("authorization")
    await through.close()

    assert (theirs, none) == ("Bearer theirs", None)


async def test_the_providers_request_id_and_limits_come_back_prefixed(http: HttpUpstream) -> None:
    whole = await http.complete(chat())
    stream = await http.stream(chat(stream=True))
    await collected(stream)

    assert whole.headers == (("x-upstream-request-id", "mock-1"), ("x-upstream-x-ratelimit-remaining-requests", "99"))
    assert stream.headers[0] == ("x-upstream-request-id", "mock-2")


async def test_the_environments_proxy_is_not_used(mock: Mock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    direct = openai_upstream(name="it", base_url=mock.base_url)

    reply = await direct.complete(chat())
    await direct.close()

    assert reply.body


@pytest.mark.parametrize("base_url", [None, "ftp://example.com", "example.com/v1", "http://", "http://a b/v1"])
def test_a_base_url_that_cannot_be_used_is_refused_at_start(base_url: str | None) -> None:
    with pytest.raises(ConfigError, match=r"upstreams\.it\.base_url"):
        openai_upstream(name="it", base_url=base_url)


# What can go wrong


async def healthy(upstream: Upstream) -> bool:
    whole = msgspec.json.decode((await upstream.complete(chat("and now?"))).body)
    chunks = await collected(await upstream.stream(chat("and now?", stream=True)))
    expected = answer("m", "and now?", TOKENS)
    return bool(whole["choices"][0]["message"]["content"] == expected == text_of(chunks))


async def asked(upstream: Upstream, *, streamed: bool) -> None:
    if streamed:
        await collected(await upstream.stream(chat(stream=True)))
    else:
        await upstream.complete(chat())


def is_silent_about_secrets(error: UpstreamError) -> bool:
    return not any(word in error.message for word in (KEY, QUESTION, "lighthouse", "the mock"))


@pytest.mark.parametrize(
    ("fault", "code", "status"),
    [
        ("500", "upstream_error", None),
        ("429", "upstream_error", 429),
        ("401", "upstream_error", None),
        ("403", "upstream_error", None),
        ("400", "upstream_error", 400),
        ("html", "upstream_error", None),
        ("redirect", "upstream_error", None),
        ("malformed", "upstream_error", None),
        ("empty", "upstream_error", None),
        ("truncated", "upstream_error", None),
        ("cut", "upstream_error", None),
        ("huge", "upstream_error", None),
        ("error_event", "upstream_error", None),
        ("stall", "upstream_timeout", None),
        ("stall_midway", "upstream_timeout", None),
        ("slow_headers", "upstream_timeout", None),
        ("endless", "upstream_timeout", None),
    ],
)
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
async def test_a_fault_is_a_typed_error_and_passes(
    fault: str, code: str, status: int | None, streamed: bool, http: HttpUpstream, mock: Mock
) -> None:
    mock.set(fault=fault, fault_times=1)

    with pytest.raises(UpstreamError) as failed:
        await asked(http, streamed=streamed)

    assert (failed.value.code, failed.value.status) == (code, status)
    assert is_silent_about_secrets(failed.value)
    assert await healthy(http)
    await mock.until(lambda report: report["open_streams"] == 0)


async def test_the_providers_own_4xx_keeps_status_body_and_retry_after(http: HttpUpstream, mock: Mock) -> None:
    mock.set(fault="429", fault_times=1)

    with pytest.raises(UpstreamError) as refused:
        await http.complete(chat())

    assert refused.value.retry_after == "7"
    assert json.loads(refused.value.body or b"")["error"]["type"] == "rate_limit_error"
    assert ("x-upstream-request-id", "mock-1") in refused.value.headers


@pytest.mark.parametrize("fault", ["401", "403"])
async def test_refused_credentials_are_ours_to_mend(fault: str, http: HttpUpstream, mock: Mock) -> None:
    mock.set(fault=fault, fault_times=1)

    with pytest.raises(UpstreamError, match="refused its credentials; check api_key") as refused:
        await http.complete(chat())

    assert (refused.value.status, refused.value.body) == (None, None)


@pytest.mark.parametrize("dialect", [dialect for dialect, vendor in DIALECTS.items() if vendor])
async def test_a_wrong_key_is_ours_to_mend_whatever_its_vendor_calls_it(
    dialect: Dialect, fakes: dict[Dialect, Fake]
) -> None:
    """Google calls it a bad request."""
    provider = "openai" if dialect == "responses" else dialect
    wrong = openai_upstream(
        name="it", provider=provider, dialects=[dialect], base_url=fakes[dialect].base_url, api_key="wrong"
    )

    with pytest.raises(UpstreamError, match="refused its credentials; check api_key") as refused:
        await wrong.complete(chat())
    await wrong.close()

    assert (refused.value.status, refused.value.body, refused.value.answered) == (None, None, 401)


@pytest.mark.parametrize("fault", ["401", "403"])
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
async def test_refused_credentials_of_the_caller_are_the_callers_to_mend(
    fault: str, streamed: bool, mock: Mock
) -> None:
    through = openai_upstream(name="it", base_url=mock.base_url, auth="passthrough")
    mock.set(fault=fault, fault_times=1)

    with pytest.raises(UpstreamError, match="credentials of the request") as refused:
        await asked(through, streamed=streamed)
    await through.close()

    assert refused.value.status == int(fault)
    assert json.loads(refused.value.body or b"")["error"]["message"]


@pytest.mark.parametrize(("fault", "usage"), [("no_done", True), ("no_usage", False), ("whole", True)])
async def test_odd_streams_are_still_answers(fault: str, usage: bool, http: HttpUpstream, mock: Mock) -> None:
    mock.set(fault=fault, fault_times=1)

    chunks = await collected(await http.stream(chat(stream=True)))

    assert text_of(chunks) == answer("m", QUESTION, TOKENS)
    assert [c["choices"][0]["finish_reason"] for c in chunks if c["choices"]][-1] == "stop"
    assert any(chunk.get("usage") for chunk in chunks) is usage


async def test_what_came_before_a_break_is_delivered(http: HttpUpstream, mock: Mock) -> None:
    mock.set(fault="cut", fault_times=1)
    stream = await http.stream(chat(stream=True))
    seen: list[dict[str, Any]] = []

    with pytest.raises(UpstreamError):
        await read_into(seen, stream)

    assert answer("m", QUESTION, TOKENS).startswith(text_of(seen))
    assert len(seen) > 5


async def test_tool_calls_come_whole_and_streamed(http: HttpUpstream) -> None:
    call = chat(tools=[{"type": "function", "function": {"name": "find"}}], tool_choice="required", stream=True)

    whole = msgspec.json.decode((await http.complete(call)).body)["choices"][0]
    chunks = await collected(await http.stream(call))

    wanted = whole["message"]["tool_calls"][0]["function"]
    deltas = [tool for c in chunks for choice in c["choices"] for tool in choice["delta"].get("tool_calls", [])]
    assert whole["finish_reason"] == "tool_calls"
    assert deltas[0]["function"]["name"] == wanted["name"] == "find"
    assert "".join(delta["function"]["arguments"] for delta in deltas) == wanted["arguments"]


async def test_chunks_are_given_as_they_arrive(http: HttpUpstream, mock: Mock) -> None:
    mock.set(chunk_delay=20, tokens=8)
    arrivals = []

    async for _ in await http.stream(chat(stream=True)):
        arrivals.append(asyncio.get_running_loop().time())  # noqa: PERF401 - the time of each, not of the list

    gaps = [later - earlier for earlier, later in pairwise(arrivals)]
    assert len(gaps) >= 9
    assert sum(gap > 0.01 for gap in gaps) >= len(gaps) - 2


async def test_closing_a_stream_cancels_the_call_upstream(http: HttpUpstream, mock: Mock) -> None:
    mock.set(fault="endless", fault_times=1)
    stream = await http.stream(chat(stream=True))
    await anext(aiter(stream))

    await stream.close()

    await mock.until(lambda report: report["cancelled"] == 1 and report["open_streams"] == 0)
    assert await healthy(http)


async def test_closing_a_stream_wakes_who_waits_for_its_next_chunk(http: HttpUpstream, mock: Mock) -> None:
    mock.set(fault="stall_midway", fault_times=1)
    stream = await http.stream(chat(stream=True))
    seen: list[dict[str, Any]] = []
    reading = asyncio.create_task(read_into(seen, stream))
    await mock.until(lambda _: len(seen) >= TOKENS // 2)

    await stream.close()

    with pytest.raises(UpstreamError):
        await reading
    await mock.until(lambda report: report["cancelled"] == 1)


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
async def test_cancelling_a_call_that_waits_for_headers_cancels_it_upstream(
    streamed: bool, mock: Mock, http: HttpUpstream
) -> None:
    mock.set(fault="stall", fault_times=1)
    call = asyncio.create_task(asked(http, streamed=streamed))
    await mock.until(lambda report: report["requests"].get("/v1/chat/completions") == 1)

    call.cancel()

    with pytest.raises(asyncio.CancelledError):
        await call
    await mock.until(lambda report: report["cancelled"] == 1, within=0.2)
    assert await healthy(http)


async def test_a_refused_connection_is_unavailable() -> None:
    nobody = openai_upstream(name="it", base_url=f"http://127.0.0.1:{free_port()}/v1")

    with pytest.raises(UpstreamError) as failed:
        await nobody.complete(chat())
    await nobody.close()

    assert failed.value.code == "upstream_unavailable"


async def test_a_host_that_is_not_known_is_unavailable() -> None:
    nobody = openai_upstream(name="it", base_url="http://nobody.invalid/v1")

    with pytest.raises(UpstreamError, match="check base_url") as failed:
        await nobody.complete(chat())
    await nobody.close()

    assert failed.value.code == "upstream_unavailable"


ANSWERED = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 15\r\n\r\n" + b'{"choices": []}'


class Scripted:
    """A server that gives the same bytes to every request and counts its connections."""

    def __init__(self, reply: bytes, *, keep_open: bool = True) -> None:
        self.connections = 0
        self.requests: list[bytes] = []
        self._reply = reply
        self._keep_open = keep_open

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = re.search(rb"content-length: (\d+)", head)
                self.requests.append(head + await reader.readexactly(int(length[1]) if length else 0))
                writer.write(self._reply)
                await writer.drain()
                if not self._keep_open:
                    break
        except asyncio.IncompleteReadError:
            pass  # the client is done
        finally:
            writer.close()


@asynccontextmanager
async def serving(
    handle: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    *,
    crossing: float = 0.0,
    **options: Any,
) -> AsyncIterator[HttpUpstream]:
    """`crossing`: for how long a kept connection must have been idle to be taken for closed by that."""
    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        there = openai_upstream(name="it", base_url=f"http://127.0.0.1:{port}/v1", **options)
        there._transport._crossing = crossing
        try:
            yield there
        finally:
            await there.close()


@pytest.mark.parametrize(
    "reply",
    [
        b"220 smtp.example.com ready\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"a" * 100_000,
        b"HTTP/1.1 200 OK\r\n" + b"x: aaaaaaaaaa\r\n" * 10_000,
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n",
    ],
    ids=["no HTTP", "long header", "many headers", "upgrade", "two lengths", "no chunk"],
)
async def test_what_is_not_http_as_it_should_be_is_an_upstream_error(reply: bytes) -> None:
    async with serving(Scripted(reply), read_timeout=0.5) as there:
        with pytest.raises(UpstreamError) as failed:
            await there.complete(chat())

    assert failed.value.code == "upstream_error"


async def test_a_hangup_without_an_answer_is_not_tried_again() -> None:
    server = Scripted(b"", keep_open=False)

    async with serving(server) as there:
        with pytest.raises(UpstreamError, match="without an answer") as failed:
            await there.complete(chat())

    assert failed.value.code == "upstream_error"
    assert server.connections == 1


async def test_an_interim_answer_is_passed_over() -> None:
    async with serving(Scripted(b"HTTP/1.1 103 Early Hints\r\nx-request-id: no\r\n\r\n" + ANSWERED)) as there:
        reply = await there.complete(chat())

    assert (reply.body, reply.headers) == (b'{"choices": []}', ())


async def test_an_error_that_is_null_is_none() -> None:
    body = b'{"error": null, "choices": []}'
    reply = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)

    async with serving(Scripted(reply)) as there:
        assert (await there.complete(chat())).body == body


async def test_an_answer_too_deep_to_decode_is_an_upstream_error() -> None:
    body = b'{"choices": [' + b"[" * 50_000 + b"]" * 50_000 + b"]}"
    reply = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)

    async with serving(Scripted(reply)) as there:
        with pytest.raises(UpstreamError) as failed:
            await there.complete(chat())

    assert failed.value.code == "upstream_error"


async def test_a_body_without_a_length_ends_with_its_connection() -> None:
    reply = b'HTTP/1.1 200 OK\r\n\r\n{"choices": []}'

    async with serving(Scripted(reply, keep_open=False)) as there:
        assert (await there.complete(chat())).body == b'{"choices": []}'


async def test_calls_one_after_another_share_a_connection() -> None:
    server = Scripted(ANSWERED)

    async with serving(server) as there:
        for _ in range(5):
            await there.complete(chat())

    assert (server.connections, len(server.requests)) == (1, 5)


async def test_a_kept_connection_that_was_closed_is_replaced() -> None:
    server = Scripted(ANSWERED, keep_open=False)  # though it does not say so

    async with serving(server) as there:
        for _ in range(5):
            await there.complete(chat())
            await asyncio.sleep(0.01)  # the end of the connection has to arrive

    assert server.connections == 5


class ClosesTheKept:
    """Answers the first request of a connection, unless its number is in `unanswered`, and ends it at the next one with
    `last_words`."""

    def __init__(self, *, last_words: bytes = b"", unanswered: frozenset[int] = frozenset()) -> None:
        self.connections = 0
        self.requests = 0
        self._last_words = last_words
        self._unanswered = unanswered

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        answers = self.connections not in self._unanswered
        with closing(writer), suppress(asyncio.IncompleteReadError):  # the client is done
            if answers:
                await self._read(reader)
                writer.write(ANSWERED)
            await self._read(reader)
            writer.write(self._last_words)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        assert length is not None
        await reader.readexactly(int(length[1]))
        self.requests += 1


async def test_a_call_that_crosses_the_end_of_a_kept_connection_is_sent_once_more() -> None:
    server = ClosesTheKept()

    async with serving(server) as there:
        bodies = [(await there.complete(chat())).body for _ in range(3)]

    assert bodies == [b'{"choices": []}'] * 3
    assert (server.connections, server.requests) == (3, 5)  # the second and the third were sent twice


async def test_a_call_that_finds_a_busy_connection_closed_is_not_sent_again() -> None:
    server = ClosesTheKept()

    async with serving(server, crossing=1.0) as there:
        await there.complete(chat())
        with pytest.raises(UpstreamError, match="without an answer"):
            await there.complete(chat())

    assert (server.connections, server.requests) == (1, 2)


async def test_a_call_that_crosses_the_end_of_a_kept_connection_is_sent_no_third_time() -> None:
    server = ClosesTheKept(unanswered=frozenset({2}))

    async with serving(server) as there:
        await there.complete(chat())
        with pytest.raises(UpstreamError, match="without an answer"):
            await there.complete(chat())

    assert (server.connections, server.requests) == (2, 3)


@pytest.mark.parametrize("last_words", [b"H", b"HTTP/1.1 103 Early Hints\r\n\r\n", ANSWERED[:-1]])
async def test_a_call_that_was_answered_in_part_is_not_sent_again(last_words: bytes) -> None:
    server = ClosesTheKept(last_words=last_words)

    async with serving(server) as there:
        await there.complete(chat())
        with pytest.raises(UpstreamError):
            await there.complete(chat())

    assert (server.connections, server.requests) == (1, 2)


async def test_a_call_on_a_kept_connection_that_takes_too_long_is_not_sent_again() -> None:
    requests = 0

    async def falls_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        with closing(writer), suppress(asyncio.IncompleteReadError):  # the client is done
            while True:
                await reader.readuntil(b"\r\n\r\n{")
                requests += 1
                if requests == 1:
                    writer.write(ANSWERED)

    async with serving(falls_silent, read_timeout=0.1) as there:
        await there.complete(chat())
        with pytest.raises(UpstreamError) as failed:
            await there.complete(chat())

    assert failed.value.code == "upstream_timeout"
    assert requests == 2


async def test_connections_that_nobody_needs_any_more_are_closed() -> None:
    ended = asyncio.Semaphore(0)
    scripted = Scripted(ANSWERED)

    async def counted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await scripted(reader, writer)
        ended.release()

    async with await asyncio.start_server(counted, "127.0.0.1", 0) as server:
        there = Transport(
            name="it",
            base_url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}",
            connect_timeout=1.0,
            read_timeout=1.0,
            total_timeout=1.0,
            proxy=None,
            ca_file=None,
            keep_alive=0.02,
        )
        answers = await asyncio.gather(*[there.send("POST", "/", {}, b"{}") for _ in range(5)])
        await asyncio.gather(*[answer.read(1_000) for answer in answers])

        async with asyncio.timeout(2):
            for _ in range(5):
                await ended.acquire()
        await there.close()

    assert scripted.connections == 5


@pytest.mark.parametrize("more", [ANSWERED, b"\r\nHTTP/1.1 200 OK\r\n", b"x"])
async def test_what_comes_after_an_answer_never_answers_another_call(more: bytes) -> None:
    server = Scripted(ANSWERED + more)

    async with serving(server) as there:
        results = [await asyncio.gather(there.complete(chat()), return_exceptions=True) for _ in range(3)]

    assert server.connections == 3
    assert all(isinstance(result, UpstreamError | Reply) for [result] in results)
    assert {result.body for [result] in results if isinstance(result, Reply)} <= {b'{"choices": []}'}


async def test_streams_that_ended_leave_their_connection_to_the_next() -> None:
    events = b'data: {"choices": [{"index": 0, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    server = Scripted(head + b"%x\r\n%s\r\n0\r\n\r\n" % (len(events), events))

    async with serving(server) as there:
        for _ in range(5):
            assert len(await collected(await there.stream(chat(stream=True)))) == 1

    assert server.connections == 1


def event_stream(*payloads: str) -> bytes:
    """A whole answer; no payload is JSON that spans lines."""
    events = "".join(f"data: {payload}\n\n" for payload in payloads).encode()
    head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
    return f"{head}content-length: {len(events)}\r\n\r\n".encode() + events


async def test_a_stream_with_nothing_in_it_is_an_error() -> None:
    async with serving(Scripted(event_stream("[DONE]"))) as there:
        stream = await there.stream(chat(stream=True))

        with pytest.raises(UpstreamError, match="had nothing in it") as failed:
            await collected(stream)

    assert failed.value.code == "upstream_error"


async def test_a_stream_that_ends_without_a_finish_reason_is_an_answer() -> None:
    said = '{"choices": [{"index": 0, "delta": {"content": "all of it"}}]}'

    async with serving(Scripted(event_stream(said, "[DONE]"))) as there:
        chunks = await collected(await there.stream(chat(stream=True)))

    assert chunks == [json.loads(said)]


async def test_a_slow_reader_makes_the_upstream_wait(mock: Mock) -> None:
    patient = openai_upstream(name="it", base_url=mock.base_url, read_timeout=0.2)
    mock.set(fault="huge", fault_times=1)
    stream = await patient.stream(chat(stream=True))

    first = await anext(aiter(stream))
    await asyncio.sleep(0.5)  # longer than the upstream may be silent, which it is not
    second = await anext(aiter(stream))
    await stream.close()
    await patient.close()

    assert first.fields["id"] == second.fields["id"]


async def test_a_large_body_goes_out_whole(http: HttpUpstream, mock: Mock) -> None:
    await http.complete(chat("word " * 200_000))

    assert len(mock.report()["last"]["body"]) > 1_000_000


async def test_a_header_with_a_line_end_is_not_sent(http: HttpUpstream, mock: Mock) -> None:
    call = msgspec.structs.replace(chat(), headers=(("openai-beta", "x\r\nx-smuggled: 1"),))

    with pytest.raises(UpstreamError, match="line end"):
        await http.complete(call)

    assert mock.report()["requests"] == {}


async def test_a_proxy_of_plain_http_is_told_the_whole_address() -> None:
    proxy = Scripted(ANSWERED)
    async with await asyncio.start_server(proxy, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        there = openai_upstream(
            name="it", base_url="http://models.invalid/v1", proxy=f"http://me:secret@127.0.0.1:{port}"
        )
        await there.complete(chat())
        await there.close()

    head = proxy.requests[0].decode()
    assert head.startswith("POST http://models.invalid/v1/chat/completions HTTP/1.1\r\nhost: models.invalid\r\n")
    assert "proxy-authorization: Basic bWU6c2VjcmV0\r\n" in head


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1", "127.0.0.1:3128"])
def test_a_proxy_that_cannot_be_used_is_refused_at_start(proxy: str) -> None:
    with pytest.raises(ConfigError, match=r"upstreams\.it\.proxy"):
        openai_upstream(name="it", base_url="http://localhost/v1", proxy=proxy)


@pytest.fixture
def tls_mock(tmp_path: Path) -> Iterator[str]:
    """The base URL of a mock that speaks TLS; its authority is in `ca.pem`."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    certificate = authority.issue_cert("localhost")
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    certificate.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    port = free_port()
    start = "from service.bench.mock_upstream import run; import sys; "
    start += "run(port=int(sys.argv[1]), certfile=sys.argv[2], keyfile=sys.argv[3])"
    command = [sys.executable, "-c", start, str(port), str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")]
    with running(command, port=port, log=tmp_path / "log"):
        yield f"https://localhost:{port}/v1"


async def test_tls_is_trusted_by_ca_file_and_by_nothing_else(tls_mock: str, tmp_path: Path) -> None:
    trusting = openai_upstream(name="it", base_url=tls_mock, ca_file=str(tmp_path / "ca.pem"))
    doubting = openai_upstream(name="it", base_url=tls_mock)

    replies = [await trusting.complete(chat()) for _ in range(3)]
    with pytest.raises(UpstreamError, match="not trusted") as failed:
        await doubting.complete(chat())
    await trusting.close()
    await doubting.close()

    assert all(QUESTION in reply.body.decode() for reply in replies)
    assert failed.value.code == "upstream_unavailable"


@pytest.mark.parametrize("admitted", [True, False])
async def test_tls_goes_through_a_proxy_as_a_tunnel(tls_mock: str, tmp_path: Path, admitted: bool) -> None:
    asked: list[bytes] = []

    async def tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        if admitted:
            there = await asyncio.open_connection("127.0.0.1", urlsplit(tls_mock).port)
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await asyncio.gather(pump(reader, there[1]), pump(there[0], writer))
        else:
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n")
            writer.close()

    async with await asyncio.start_server(tunnel, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        proxy = f"http://127.0.0.1:{port}"
        there = openai_upstream(name="it", base_url=tls_mock, ca_file=str(tmp_path / "ca.pem"), proxy=proxy)
        [result] = await asyncio.gather(there.complete(chat()), return_exceptions=True)
        await there.close()

    assert asked[0].startswith(b"CONNECT localhost:")
    if admitted:
        assert isinstance(result, Reply)
        assert QUESTION in result.body.decode()
    else:
        assert isinstance(result, UpstreamError)
        assert (result.code, "407" in result.message) == ("upstream_unavailable", True)


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while piece := await reader.read(65_536):
            writer.write(piece)
    except ConnectionError:
        pass  # the end of either side ends both
    finally:
        writer.close()


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_ca_file_that_cannot_be_used_is_refused_at_start(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)

    with pytest.raises(ConfigError, match=r"upstreams\.it\.ca_file"):
        openai_upstream(name="it", base_url="https://localhost/v1", ca_file=str(path))


def test_a_process_may_end_with_calls_in_flight(mock: Mock) -> None:
    program = f"""
import asyncio
from backends.upstream.base import Call
from backends.upstream.providers import upstream as made

async def main():
    upstream = made(name="it", provider="openai-compatible", base_url={mock.base_url!r})
    body = {{"model": "fault:stall", "messages": []}}
    calls = [asyncio.ensure_future(upstream.complete(Call("chat", "fault:stall", body, None))) for _ in range(20)]
    await asyncio.sleep(0.2)

asyncio.run(main())
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=20, check=False)  # noqa: S603

    assert ended.returncode == 0


# Several dialects


def answered(body: Any, *, status: int = 200) -> bytes:
    encoded = msgspec.json.encode(body)
    head = f"HTTP/1.1 {status} It is\r\ncontent-type: application/json\r\ncontent-length: {len(encoded)}\r\n\r\n"
    return head.encode() + encoded


def asked_for(server: Scripted) -> list[str]:
    return [request.split(b" HTTP/", 1)[0].decode() for request in server.requests]


MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [{"type": "text", "text": "Hi"}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 1, "output_tokens": 1},
}


def message_call(**fields: Any) -> Call:
    native = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "Hi"}]}
    body = {"model": "m", "max_completion_tokens": 5, "messages": [{"role": "user", "content": "Hi"}], **fields}
    return Call("chat", "m", body, msgspec.json.encode(native), dialect="anthropic", native=native)


async def test_a_dialect_may_be_spoken_under_a_path_of_its_own() -> None:
    server = Scripted(answered(MESSAGE))

    async with serving(server, provider="deepseek") as there:
        await there.complete(message_call())
        await (await there.forward(Passage("POST", "/messages/count_tokens", (), b"{}", dialect="anthropic"))).close()
        await (await there.forward(Passage("GET", "/files", (), None))).close()
        await there.models()

    assert asked_for(server) == [
        "POST /v1/anthropic/v1/messages",
        "POST /v1/anthropic/v1/messages/count_tokens",
        "GET /v1/files",
        "GET /v1/models",
    ]


async def test_who_speaks_messages_is_told_their_version_unless_the_client_says_another() -> None:
    server = Scripted(answered(MESSAGE))
    newer = msgspec.structs.replace(message_call(), headers=(("anthropic-version", "2026-10-21"),))

    async with serving(server, dialects=["openai", "anthropic"]) as there:
        await there.complete(message_call())
        await there.complete(newer)

    assert [re.findall(rb"anthropic-version: (\S+)", request) for request in server.requests] == [
        [b"2023-06-01"],
        [b"2026-10-21"],
    ]


async def test_what_the_best_dialect_has_no_words_for_is_said_in_the_next() -> None:
    server = Scripted(ANSWERED)
    document = {"type": "file", "file": {"file_url": "https://example.com/a.pdf", "filename": "a.pdf"}}
    call = message_call(messages=[{"role": "user", "content": [document, {"type": "text", "text": "What is it?"}]}])

    async with serving(server, provider="openai") as there:
        with pytest.raises(UpstreamError):  # it is not answered as Responses are
            await there.complete(call)

    assert asked_for(server) == ["POST /v1/responses"]


async def test_what_no_dialect_has_words_for_is_refused_as_the_best_one_would() -> None:
    server = Scripted(ANSWERED)

    async with serving(server, provider="openai") as there:
        with pytest.raises(Untranslatable, match=r"\(openai\): top_k"):
            await there.complete(message_call(top_k=5))

    assert server.requests == []


@pytest.mark.parametrize(
    ("provider", "listed", "asked"),
    [
        ("anthropic", {"data": [{"type": "model", "id": "a"}, {"type": "model", "id": "b"}]}, "/models?limit=1000"),
        ("gemini", {"models": [{"name": "models/a"}, {"name": "models/b"}]}, "/models?pageSize=1000"),
        ("together", [{"id": "a", "object": "model"}, {"id": "b", "object": "model"}], "/models"),
        ("openai", {"object": "list", "data": [{"id": "a"}, {"id": "b"}]}, "/models"),
        ("llama-cpp", {"models": [{"name": "x", "model": "x"}], "data": [{"id": "a"}, {"id": "b"}]}, "/models"),
    ],
)
async def test_models_are_listed_as_the_provider_lists_them(provider: str, listed: Any, asked: str) -> None:
    server = Scripted(answered(listed))

    async with serving(server, provider=provider) as there:
        assert await there.models() == ["a", "b"]

    assert asked_for(server) == [f"GET /v1{asked}"]


@pytest.mark.parametrize("listed", ["a", 7, None, {"data": {}}, {"models": [7]}, [7], [["a"]]])
async def test_a_model_list_that_is_none_is_an_error(listed: Any) -> None:
    async with serving(Scripted(answered(listed))) as there:
        with pytest.raises(UpstreamError, match="no model list"):
            await there.models()


@pytest.mark.parametrize(
    ("provider", "dialect", "whose"),
    [("anthropic", "openai", "anthropic"), ("deepseek", "anthropic", "anthropic"), ("deepseek", "openai", "openai")],
)
async def test_a_refused_passage_says_whose_words_it_has(provider: str, dialect: Dialect, whose: Dialect) -> None:
    async with serving(Scripted(answered({"error": {}}, status=404)), provider=provider) as there:
        with pytest.raises(UpstreamError) as refused:
            await there.forward(Passage("GET", "/files", (), None, dialect=dialect))

    assert (refused.value.dialect, refused.value.answered) == (whose, 404)
