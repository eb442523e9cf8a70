"""What is past its TTL is served only to who did not say how old an answer may be."""

import msgspec

from backends.exact.memory import MemoryStore
from models.completion import Completion, Usage
from service.context import Caller, Context, Directives, Endpoint
from service.pipeline.exact_tier import ExactTier
from service.telemetry.metrics import Metrics

COMPLETION = Completion(body=b"{}", model="m", usage=Usage(1, 1), finish_reasons=("stop",))
CONTEXT = Context(
    request_id="r",
    endpoint=Endpoint(name="default", ttl_jitter=0.0, stale=600.0),
    caller=Caller(partition="everyone"),
    directives=Directives(mode="semantic", threshold=0.0, ttl=60.0),
    started=0.0,
    headers={},
)


async def test_who_names_an_age_is_served_nothing_stale() -> None:
    now = 1_000.0
    exact = ExactTier(MemoryStore(), deadline=None, metrics=Metrics(), clock=lambda: now)
    await exact.keep(CONTEXT, exact.entry(CONTEXT, "key", COMPLETION, "mock/m"), asked_at=now)
    aged = msgspec.structs.replace(CONTEXT, directives=msgspec.structs.replace(CONTEXT.directives, max_age=3_600.0))

    young = await exact.lookup(aged, "key")
    now += 90.0
    refused = await exact.lookup(aged, "key")
    stale = await exact.lookup(CONTEXT, "key")

    assert young is not None
    assert refused is None  # RFC 9111, 5.2.1.1: without max-stale, a stale response is not wanted
    assert stale is not None
