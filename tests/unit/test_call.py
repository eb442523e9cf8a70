"""Who answers, in which order, and when it is settled that they do."""

from collections.abc import AsyncIterator, Sequence

import pytest

from backends.upstream.base import Call, Reply
from models.errors import UpstreamError
from models.request import Operation, Request
from service.caching.single_flight import Flight
from service.context import Caller, Context, Directives, Endpoint
from service.pipeline.call import Begun, call
from service.routing.aliases import Target
from service.telemetry.metrics import Metrics

REQUEST = Request("chat", "m", {"messages": []}, b"{}")
STREAMED = Request("chat", "m", {"messages": []}, b"{}", stream=True)
FIRST, SECOND = Target("first", "m"), Target("second", "m")


class Stream:
    """Gives `chunks`, then ends as told."""

    headers: tuple[tuple[str, str], ...] = ()

    def __init__(self, chunks: Sequence[bytes], error: UpstreamError | None = None) -> None:
        self._chunks = chunks
        self._error = error
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self._chunks:
            yield chunk
        if self._error is not None:
            raise self._error

    async def close(self) -> None:
        self.closed = True


class Scripted:
    """An upstream that answers with one thing."""

    provider = "scripted"

    def __init__(
        self, name: str, answer: Stream | UpstreamError | bytes, serves: frozenset[Operation] = frozenset({"chat"})
    ) -> None:
        self.name = name
        self.capabilities = serves
        self.asked = 0
        self._answer = answer

    async def complete(self, _call: Call) -> Reply:
        self.asked += 1
        if isinstance(self._answer, UpstreamError):
            raise self._answer
        assert isinstance(self._answer, bytes)
        return Reply(self._answer)

    async def stream(self, _call: Call) -> Stream:
        self.asked += 1
        if isinstance(self._answer, UpstreamError):
            raise self._answer
        assert isinstance(self._answer, Stream)
        return self._answer

    async def models(self) -> Sequence[str]:
        return []

    async def close(self) -> None: ...


async def called(
    request: Request, *upstreams: Scripted, metrics: Metrics | None = None
) -> tuple[Reply | Begun, Flight]:
    context = Context("req", Endpoint("default"), Caller("everyone"), Directives("exact", 0.9, 60.0), 0.0, {})
    flight = Flight(streamed=request.stream)
    reply = await call(
        request,
        context,
        flight,
        targets=[FIRST, SECOND][: len(upstreams)],
        upstreams={upstream.name: upstream for upstream in upstreams},
        metrics=metrics or Metrics(),
    )
    return reply, flight


@pytest.mark.parametrize(
    "failure",
    [
        UpstreamError("down", code="upstream_unavailable"),
        UpstreamError("late", code="upstream_timeout"),
        UpstreamError("500"),
        UpstreamError("busy", status=429),
    ],
)
async def test_a_target_that_cannot_answer_hands_over(failure: UpstreamError) -> None:
    reply, flight = await called(REQUEST, Scripted("first", failure), Scripted("second", b"answer"))

    assert isinstance(reply, Reply)
    assert reply.body == b"answer"
    assert flight.upstream == "second"


async def test_a_refusal_of_the_request_itself_is_final() -> None:
    second = Scripted("second", b"answer")

    with pytest.raises(UpstreamError, match="bad"):
        await called(REQUEST, Scripted("first", UpstreamError("bad", status=400)), second)

    assert second.asked == 0


@pytest.mark.parametrize("broken", [Stream([], UpstreamError("broke")), Stream([])])
async def test_a_stream_without_a_first_chunk_hands_over(broken: Stream) -> None:
    reply, flight = await called(STREAMED, Scripted("first", broken), Scripted("second", Stream([b"1", b"2"])))

    assert isinstance(reply, Begun)
    assert [chunk async for chunk in reply] == [b"1", b"2"]
    assert flight.upstream == "second"


async def test_the_first_chunk_commits() -> None:
    second = Scripted("second", Stream([b"other"]))
    reply, _ = await called(STREAMED, Scripted("first", Stream([b"1"], UpstreamError("broke"))), second)

    assert isinstance(reply, Begun)
    with pytest.raises(UpstreamError, match="broke"):
        [chunk async for chunk in reply]
    assert second.asked == 0


async def test_a_target_that_does_not_serve_the_operation_is_passed_over() -> None:
    embedder = Scripted("first", b"vectors", serves=frozenset({"embedding"}))

    _, flight = await called(REQUEST, embedder, Scripted("second", b"answer"))

    assert embedder.asked == 0
    assert flight.upstream == "second"


async def test_when_none_answers_the_last_error_is_told_and_each_attempt_counted() -> None:
    metrics = Metrics()

    with pytest.raises(UpstreamError, match="late"):
        await called(
            REQUEST,
            Scripted("first", UpstreamError("down", code="upstream_unavailable")),
            Scripted("second", UpstreamError("late", code="upstream_timeout")),
            metrics=metrics,
        )

    assert metrics.upstream_attempts.state() == {
        ("first", "upstream_unavailable"): 1,
        ("second", "upstream_timeout"): 1,
    }
