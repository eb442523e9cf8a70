"""A request that is passed on as it is, and made once: a file or a batch must not be made twice."""

import asyncio
import math
from collections.abc import AsyncIterator, Sequence

import msgspec

from backends.upstream.base import Passage, Passed
from models.errors import GatewayError, LimitError, UpstreamError
from service.context import Context
from service.pipeline.call import Switchboard
from service.routing.aliases import Target
from service.routing.balance import Standing
from service.routing.retry import wait_asked


class Forwarded:
    """An answer that has begun; it keeps its place at the upstream until it is closed."""

    def __init__(self, passed: Passed, target: Target, standing: Standing) -> None:
        self.status = passed.status
        self.headers = passed.headers
        self.target = target
        self._passed = passed
        self._standing = standing
        self._closed = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return aiter(self._passed)

    async def close(self) -> None:
        """Safe to repeat."""
        if self._closed:
            return
        self._closed = True
        try:
            await self._passed.close()
        finally:
            self._standing.release()


async def forward(passage: Passage, targets: Sequence[Target], context: Context, board: Switchboard) -> Forwarded:
    """The answer of the first of `targets` that a connection is had to; it does not wait in a queue.

    What comes of it says little of the upstream: it may lack the route, or the
    credential the right to it. Only that nobody answers, or asks for patience,
    counts for the calls of models as well. Raises `UpstreamError`, or
    `LimitError` (`overloaded`).
    """
    failure: GatewayError | None = None
    for target in targets:
        standing = board.standings[target.upstream]
        now = board.clock()
        key = standing.ready_key(now)
        if key is None:
            failure = failure or _resting(standing, now)
        elif standing.in_flight >= standing.limit:
            failure = failure or _full(standing)
        else:
            try:
                return await _passed(msgspec.structs.replace(passage, key=key), target, standing, context, board)
            except UpstreamError as error:
                if error.code != "upstream_unavailable":
                    raise
                failure = error  # nothing was sent
    raise failure or UpstreamError("no upstream is named", code="upstream_unavailable")


async def _passed(
    passage: Passage, target: Target, standing: Standing, context: Context, board: Switchboard
) -> Forwarded:
    standing.take()
    probe = standing.begin(passage.key)
    breaker = standing.breakers[passage.key]
    began = board.clock()
    outcome = "cancelled"
    try:
        passed = await board.upstreams[target.upstream].forward(passage)
    except UpstreamError as error:
        outcome = error.code
        if error.answered is None:
            breaker.failed(board.clock(), probe=probe)
        else:
            breaker.answered(probe=probe)
            if error.answered == 429 and standing.own:
                breaker.limited(board.clock(), wait_asked(error.retry_after))
        standing.release()
        raise
    except asyncio.CancelledError:
        breaker.left(probe=probe)
        standing.release()
        raise
    else:
        outcome = "ok"
        breaker.answered(probe=probe)
        return Forwarded(passed, target, standing)
    finally:
        waited = board.clock() - began
        context.waited += waited
        board.metrics.upstream_attempts.add((target.upstream, outcome))
        board.metrics.upstream_seconds.observe((target.upstream,), waited)
        board.show(standing)


def _resting(standing: Standing, now: float) -> UpstreamError:
    return UpstreamError(
        f"the upstream {standing.name!r} is not asked at the moment, after failures or because credentials rest",
        code="upstream_unavailable",
        retry_after=str(max(1, math.ceil(standing.ready_at() - now))),
    )


def _full(standing: Standing) -> LimitError:
    return LimitError(
        f"all places for calls of the upstream {standing.name!r} are taken", code="overloaded", retry_after="1"
    )
