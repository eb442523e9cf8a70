"""Reserve, route, call: the one stage that waits for somebody else."""

import time
from collections.abc import Mapping, Sequence

from backends.upstream.base import Call, ChunkStream, Reply, Upstream
from models.errors import RequestError, UpstreamError
from models.request import Request
from service.caching.single_flight import Flight
from service.context import Context
from service.routing.aliases import Target
from service.telemetry.metrics import Metrics

_FORWARDED = frozenset({b"openai-beta", b"openai-organization", b"openai-project", b"idempotency-key", b"traceparent"})


async def call(
    request: Request,
    context: Context,
    flight: Flight,
    *,
    targets: Sequence[Target],
    upstreams: Mapping[str, Upstream],
    metrics: Metrics,
) -> Reply | ChunkStream:
    """The answer of the first target that gives one; a stream that has begun for a streamed request.

    A target that could not answer (refused, late, 429, 5xx) hands over to the
    next. Raises the last one's `UpstreamError`. Leaves in `flight` who
    answered and how long that took.
    """
    headers = forwarded(context.headers)
    credential = context.caller.credential
    authorization = None if credential is None else f"Bearer {credential}"
    for number, target in enumerate(targets, start=1):
        upstream = upstreams[target.upstream]
        if request.operation not in upstream.capabilities:
            raise RequestError(f"the upstream {upstream.name} does not serve {request.operation} requests")
        flight.upstream, flight.upstream_model = target.upstream, target.model
        started = time.perf_counter()
        outcome = "ok"
        try:
            asked = Call(request.operation, target.model, request.body, request.raw, headers, authorization)
            return await (upstream.stream(asked) if request.stream else upstream.complete(asked))
        except UpstreamError as error:
            outcome = error.code
            if number == len(targets) or not _worth_another(error):
                raise
        finally:
            seconds = time.perf_counter() - started
            flight.waited += seconds
            metrics.upstream_attempts.add((target.upstream, outcome))
            metrics.upstream_seconds.observe((target.upstream,), seconds)
    raise UpstreamError("no target is configured for this model", code="upstream_unavailable")


def forwarded(headers: Mapping[bytes, bytes]) -> tuple[tuple[str, str], ...]:
    """The client's headers that carry meaning upstream; never credentials, cookies, or where the client sits."""
    found = [
        (name.decode("latin-1"), value.decode("latin-1"))
        for name, value in headers.items()
        if name in _FORWARDED or name.startswith(b"anthropic-")
    ]
    agent = headers.get(b"user-agent")
    if agent is not None:
        found.append(("x-forwarded-user-agent", agent.decode("latin-1")))
    return tuple(found)


def _worth_another(error: UpstreamError) -> bool:
    return error.status is None or error.status in (408, 429)
