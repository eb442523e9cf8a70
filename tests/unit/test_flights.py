"""What a request gets that joined another's call, or leads one: the whole path, from its body to its answer."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import msgspec
import pytest

from backends.exact.memory import MemoryStore
from backends.keyring.memory import MemoryKeyring
from backends.upstream.base import Call, ChunkStream, Passage, Passed, Reply
from guardrails.placeholders import Placeholders
from models.completion import Chunk
from models.errors import UpstreamError
from models.request import Dialect, Operation, Request
from service.api.dialect import Asked
from service.api.openai_chat import OPENAI
from service.api.serve import serve
from service.caching.single_flight import Flight, Flights
from service.context import Directives, Endpoint, Limits
from service.pipeline.exact_tier import ExactTier
from service.pipeline.gateway import Gateway
from service.pipeline.screen import Screens
from service.routing.aliases import Aliases, Target, route
from service.routing.balance import Standing
from service.telemetry.metrics import Metrics
from tests.support.outcomes import forgotten

Json = dict[str, Any]
BROKEN = UpstreamError("broken", answered=500)


def whole(text: str, **fields: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    return msgspec.json.encode({"id": "c", "model": "m", "choices": [choice], "usage": usage, **fields})


def deltas(*said: Json) -> list[Json]:
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    told: list[Json] = [{"id": "c", "choices": [{"index": 0, "delta": delta}]} for delta in said]
    told.append({"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    return [*told, {"id": "c", "choices": [], "usage": usage}]


class Paused:
    """A stream that stops after its first chunk, until `go` is set, and ends as told."""

    headers: tuple[tuple[str, str], ...] = ()
    dropped: tuple[str, ...] = ()

    def __init__(self, chunks: Sequence[Json], go: asyncio.Event, error: UpstreamError | None = None) -> None:
        self._chunks = chunks
        self._go = go
        self._error = error

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        for number, fields in enumerate(self._chunks):
            if number == 1:
                await self._go.wait()
                if self._error is not None:
                    raise self._error
            yield Chunk(msgspec.json.encode(fields), fields)

    async def close(self) -> None: ...


class Scripted:
    """Streams what `streams` makes, and answers whole with `answer`, or raises it; once `go` is set, where there is
    one."""

    provider = "scripted"
    capabilities: frozenset[Operation] = frozenset({"chat"})
    dialects: frozenset[Dialect] = frozenset({"openai"})
    keys = 1

    def __init__(
        self,
        name: str,
        answer: bytes | UpstreamError,
        streams: Callable[[], ChunkStream] | None = None,
        go: asyncio.Event | None = None,
    ) -> None:
        self.name = name
        self.calls = 0
        self.called = asyncio.Event()
        self._answer = answer
        self._streams = streams
        self._go = go

    async def complete(self, call: Call) -> Reply:  # noqa: ARG002  # the protocol's
        self.calls += 1
        self.called.set()
        if self._go is not None:
            await self._go.wait()
        if isinstance(self._answer, UpstreamError):
            raise self._answer
        return Reply(self._answer)

    async def stream(self, call: Call) -> ChunkStream:  # noqa: ARG002  # the protocol's
        self.calls += 1
        self.called.set()
        assert self._streams is not None
        return self._streams()

    async def forward(self, passage: Passage) -> Passed:
        raise AssertionError(passage.path)  # nothing is passed on here

    async def models(self) -> Sequence[str]:
        return []

    async def close(self) -> None: ...


class Answered:
    def __init__(self, sent: Sequence[Any]) -> None:
        self.status: int = sent[0]["status"]
        self.headers: dict[str, str] = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        self.body = b"".join(message.get("body", b"") for message in sent[1:])

    @property
    def outcome(self) -> str:
        return self.headers["x-keepgate-cache"]

    @property
    def text(self) -> str:
        return str(msgspec.json.decode(self.body)["choices"][0]["message"]["content"])


class Path:
    """A gateway in front of `upstreams`: the first is the target of `m`, the others its fallbacks."""

    def __init__(self, *upstreams: Scripted, attempts: int | None = None) -> None:
        self.metrics = Metrics()
        names = {upstream.name: upstream.name for upstream in upstreams}
        first, *others = [Target(name, "m") for name in names]
        endpoint = Endpoint("default", mode="exact", fallback_answers=True)
        exact = ExactTier(MemoryStore(), deadline=None, metrics=self.metrics)
        self.gateway = Gateway(
            endpoints={"default": (endpoint, Directives("exact", 0.9, 60.0))},
            aliases=Aliases({"m": route([first], others, places=names, attempts=attempts)}, names),
            upstreams={upstream.name: upstream for upstream in upstreams},
            standings={name: Standing(name) for name in names},
            passthrough=frozenset(),
            keyring=MemoryKeyring(),
            keys_required=False,
            secret=b"s" * 32,
            exact=exact,
            semantic=None,
            screens=Screens({}, placeholders=Placeholders(b"s" * 32), metrics=self.metrics),
            flights=Flights(),
            leads=None,
            outcomes=forgotten(exact, self.metrics),
            limits=Limits(max_body=1_000_000, body_timeout=1.0),
            metrics=self.metrics,
            recorder=None,
        )

    def ask(self, *, stream: bool = False) -> asyncio.Task[Answered]:
        return asyncio.create_task(self._ask({"model": "m", "stream": stream, "messages": [{"role": "user"}]}))

    async def _ask(self, body: Json) -> Answered:
        sent: list[Any] = []
        bodies = [{"type": "http.request", "body": msgspec.json.encode(body)}]

        async def receive() -> Any:
            return bodies.pop() if bodies else await asyncio.Event().wait()

        async def send(message: Any) -> None:
            sent.append(message)

        await serve(self.gateway, OPENAI, Asked("chat"), "default", {"headers": []}, receive, send)
        return Answered(sent)

    async def followed_by(self, requests: int) -> None:
        while self.metrics.coalesced.state().get((), 0) < requests:  # noqa: ASYNC110  # a counter wakes nobody
            await asyncio.sleep(0)


async def led(path: Path, upstream: Scripted, *, stream: bool) -> asyncio.Task[Answered]:
    """A request whose call is under way."""
    leader = path.ask(stream=stream)
    await upstream.called.wait()
    return leader


async def test_whole_followers_of_a_stream_that_broke_are_served_by_another_target() -> None:
    go = asyncio.Event()
    said = deltas({"role": "assistant", "content": "Hel"}, {"content": "lo"})
    first = Scripted("first", BROKEN, lambda: Paused(said, go, UpstreamError("broke")))
    second = Scripted("second", whole("Hello"))
    path = Path(first, second)
    leader = await led(path, first, stream=True)
    followers = [path.ask() for _ in range(3)]
    await path.followed_by(3)

    go.set()
    told = await leader
    answers = await asyncio.gather(*followers)

    assert b'"code":"upstream_error"' in told.body
    assert [(answer.status, answer.text) for answer in answers] == [(200, "Hello")] * 3
    assert sorted(answer.outcome for answer in answers) == ["coalesced", "coalesced", "miss"]
    assert {answer.headers["x-keepgate-upstream"] for answer in answers} == {"second/m"}
    assert (first.calls, second.calls) == (2, 1)


async def test_a_whole_follower_of_a_stream_that_does_not_add_up_asks_for_a_whole_answer() -> None:
    go = asyncio.Event()
    said = deltas({"audio": {"id": "a", "data": "AA"}}, {"audio": {"data": "BB"}})
    first = Scripted("first", whole("Hello"), lambda: Paused(said, go))
    path = Path(first)
    leader = await led(path, first, stream=True)
    follower = path.ask()
    await path.followed_by(1)

    go.set()
    told, answer = await leader, await follower

    assert told.body.endswith(b"data: [DONE]\n\n")
    assert (answer.status, answer.text, answer.outcome) == (200, "Hello", "miss")


async def test_a_follower_is_answered_anew_only_once() -> None:
    go = asyncio.Event()
    said = deltas({"role": "assistant", "content": "Hel"}, {"content": "lo"})
    first = Scripted("first", BROKEN, lambda: Paused(said, go, UpstreamError("broke")))
    path = Path(first, attempts=1)
    leader = await led(path, first, stream=True)
    follower = path.ask()
    await path.followed_by(1)

    go.set()
    await leader
    answer = await follower

    assert (answer.status, answer.outcome) == (502, "miss")
    assert first.calls == 2


async def test_a_failure_before_the_first_chunk_is_every_followers() -> None:
    go = asyncio.Event()
    first = Scripted("first", BROKEN, go=go)
    path = Path(first, attempts=1)
    leader = await led(path, first, stream=False)
    followers = [path.ask(), path.ask(stream=True)]
    await path.followed_by(2)

    go.set()
    answers = await asyncio.gather(leader, *followers)

    assert [(answer.status, answer.outcome) for answer in answers] == [
        (502, "miss"),
        (502, "coalesced"),
        (502, "coalesced"),
    ]
    assert first.calls == 1


async def test_who_is_answered_anew_follows_no_other_stream() -> None:
    go = asyncio.Event()
    first = Scripted("first", whole("Hello"), lambda: Paused(deltas({"content": "Hel"}, {"content": "lo"}), go))
    path = Path(first)
    leader = await led(path, first, stream=True)
    request = Request("chat", "m", {"model": "m", "messages": [{"role": "user"}]}, b"{}")
    context = path.gateway.authenticate({}, "default", request_id="r", started=0.0)

    flight = await path.gateway.answer(request, context, streams=False)

    assert isinstance(flight, Flight)
    assert not flight.streamed
    assert (await flight.whole()).completion.finish_reasons == ("stop",)
    flight.leave()
    go.set()
    await leader


# --- what is told of an upstream


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (BROKEN, "first/m"),
        (UpstreamError("bad", status=400), "first/m"),
        (UpstreamError("down", code="upstream_unavailable"), None),
        (UpstreamError("late", code="upstream_timeout"), None),
    ],
)
async def test_an_error_names_the_upstream_that_answered_with_it(error: UpstreamError, named: str | None) -> None:
    answer = await Path(Scripted("first", error), attempts=1).ask()

    assert answer.status >= 400
    assert answer.headers.get("x-keepgate-upstream") == named


# --- what is kept


@pytest.mark.parametrize(
    ("fields", "outcome"),
    [
        ({}, "exact"),
        ({"provider_fields": {"dialect": "anthropic", "container": None}}, "exact"),
        ({"provider_fields": {"dialect": "anthropic", "container": {"id": "container_1"}}}, "miss"),
    ],
)
async def test_an_answer_that_opens_a_container_is_for_one_caller(fields: Json, outcome: str) -> None:
    path = Path(Scripted("first", whole("Hello", **fields)))

    await path.ask()
    again = await path.ask()

    assert (again.text, again.outcome) == ("Hello", outcome)
