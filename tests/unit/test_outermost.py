"""Whatever nobody thought of is an answer all the same, and the log says where, not what."""

import asyncio
import io
from typing import Any, cast

import msgspec

from models.completion import Completion, Entry, Usage
from service.api.dialect import Asked
from service.api.openai_chat import OPENAI
from service.api.serve import serve
from service.context import Caller, Context, Directives, Endpoint, Limits
from service.pipeline.gateway import Gateway, Hit
from service.telemetry import logs
from service.telemetry.metrics import Metrics

BODY = b'{"model": "m", "stream": true, "messages": [{"role": "user", "content": "a customer\'s words"}]}'
# Nothing keeps this from being stored by an older version or another's tool.
UNREADABLE = Completion(b'{"choices": [5], "usage": {}}', "m", Usage(1, 1), ("stop",))


class Failing:
    """A gateway that hands out `answer`, or raises it."""

    def __init__(self, answer: Hit | Exception, endpoint: Endpoint | None = None) -> None:
        self.endpoints = {"default": endpoint or Endpoint("default")}
        self.limits = Limits(max_body=1_000_000, body_timeout=1.0)
        self.metrics = Metrics()
        self.recorder = None
        self.users = 0
        self._answer = answer

    def authenticate(self, headers: Any, endpoint: str, *, request_id: str, started: float) -> Context:
        directives = Directives("exact", 0.9, 60.0)
        return Context(request_id, self.endpoints[endpoint], Caller("everyone"), directives, started, headers)

    async def answer(self, _request: Any, context: Context) -> Hit:
        if isinstance(self._answer, Exception):
            raise self._answer
        context.outcome = "exact"
        return self._answer


async def served(gateway: Failing) -> tuple[int, bytes, str]:
    """Status, body and log."""
    log = io.StringIO()
    logs.configure("info", stream=log)
    sent: list[Any] = []
    bodies = [{"type": "http.request", "body": BODY}]

    async def receive() -> Any:
        if bodies:
            return bodies.pop()
        return await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    await serve(cast("Gateway", gateway), OPENAI, Asked("chat"), "default", {"headers": []}, receive, send)
    body = b"".join(message.get("body", b"") for message in sent)
    return sent[0]["status"], body, log.getvalue()


async def test_before_the_answer_it_is_a_500_in_the_apis_shape() -> None:
    gateway = Failing(KeyError("a customer's words"))

    status, body, log = await served(gateway)

    assert status == 500
    assert msgspec.json.decode(body)["error"]["code"] == "internal_error"
    assert "KeyError" in log
    assert "customer" not in log
    assert gateway.users == 0
    assert gateway.metrics.inflight.state() == {(): 0}


async def test_within_a_stream_it_is_an_error_event() -> None:
    entry = Entry(UNREADABLE, 0.0, 1e12, "key", "up/m")

    status, body, log = await served(Failing(Hit(entry)))

    assert status == 200
    assert b'"code":"internal_error"' in body.splitlines()[-2]
    assert "AttributeError" in log


async def test_a_paced_replay_that_outlives_the_drain_ends_with_an_error_event() -> None:
    told = Completion(b'{"choices": [{"message": {"content": "one two"}, "finish_reason": "stop"}]}', "m", Usage(1, 1))
    gateway = Failing(Hit(Entry(told, 0.0, 1e12, "key", "up/m")), Endpoint("default", replay="paced", replay_rate=0.01))
    sent: list[Any] = []
    begun = asyncio.Event()

    async def receive() -> Any:
        if not sent:
            return {"type": "http.request", "body": BODY}
        return await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)
        if message["type"] == "http.response.body":
            begun.set()

    serving = asyncio.create_task(
        serve(cast("Gateway", gateway), OPENAI, Asked("chat"), "default", {"headers": []}, receive, send)
    )
    await begun.wait()
    serving.cancel()
    await serving

    assert b'"code":"overloaded"' in sent[-2]["body"]
    assert not sent[-1].get("more_body")
