"""Route and call: the one stage that waits for somebody else."""

import time
from collections.abc import AsyncIterator, Mapping, Sequence

from backends.upstream.base import Call, ChunkStream, Reply, Upstream
from models.errors import UpstreamError
from models.request import Request
from service.caching.single_flight import Flight
from service.context import Context
from service.pipeline.headers import forwarded
from service.routing.aliases import Target
from service.telemetry.metrics import Metrics


class Begun:
    """A stream whose first chunk is here: it commits, and no other target is asked any more."""

    def __init__(self, first: bytes, rest: AsyncIterator[bytes], stream: ChunkStream) -> None:
        self.headers = stream.headers
        self.close = stream.close
        self._first: bytes | None = first
        self._rest = rest

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._first is None:
            return await anext(self._rest)
        first, self._first = self._first, None
        return first


async def call(
    request: Request,
    context: Context,
    flight: Flight,
    *,
    targets: Sequence[Target],
    upstreams: Mapping[str, Upstream],
    metrics: Metrics,
) -> Reply | Begun:
    """The answer of the first target that gives one; for a streamed request, a stream that has begun.

    A target that could not answer (refused, late, 408, 429, 5xx, a stream
    that broke before its first chunk) hands over to the next. Raises the last
    one's `UpstreamError`. Leaves in `flight` who answered and how long that took.
    """
    credential = context.caller.credential
    authorization = None if credential is None else f"Bearer {credential}"
    headers = forwarded(context.headers)
    failure = UpstreamError(f"no target of this model serves {request.operation} requests")
    for target in targets:
        upstream = upstreams[target.upstream]
        if request.operation not in upstream.capabilities:
            continue
        flight.upstream, flight.upstream_model = target.upstream, target.model
        asked = Call(request.operation, target.model, request.body, request.raw, headers, authorization)
        started = time.perf_counter()
        outcome = "cancelled"
        try:
            reply = await (_begun(upstream, asked) if request.stream else upstream.complete(asked))
        except UpstreamError as error:
            outcome = error.code
            failure = error
            if not _worth_another(error):
                raise
        else:
            outcome = "ok"
            return reply
        finally:
            seconds = time.perf_counter() - started
            flight.waited += seconds
            metrics.upstream_attempts.add((target.upstream, outcome))
            metrics.upstream_seconds.observe((target.upstream,), seconds)
    raise failure


async def _begun(upstream: Upstream, asked: Call) -> Begun:
    stream = await upstream.stream(asked)
    chunks = aiter(stream)
    try:
        return Begun(await anext(chunks), chunks, stream)
    except StopAsyncIteration:
        raise UpstreamError(f"the stream of the upstream {upstream.name!r} had nothing in it") from None
    except BaseException:  # cancelled or broken: nobody else will close it
        await stream.close()
        raise


def _worth_another(error: UpstreamError) -> bool:
    return error.status is None or error.status in (408, 429)
