"""Route and call: the one stage that waits for somebody else.

service/routing/retry.py says what is next, this does it.
"""

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import msgspec

from backends.upstream.base import Call, ChunkStream, Reply, Upstream
from models.completion import Chunk
from models.errors import GatewayError, LimitError, Untranslatable, UpstreamError
from models.request import Request
from service.caching.single_flight import Flight
from service.context import Context
from service.pipeline.headers import forwarded
from service.routing.aliases import Route
from service.routing.balance import Standing, Waiter, conversation_of, in_order, keys_in_order
from service.routing.retry import Ask, GiveUp, Option, Wait, backoff, next_step, outcome_of, wait_asked
from service.telemetry.metrics import Metrics

# Those who waited for the same rest do not all come back in the same moment. Seconds.
_SPREAD = 0.25


def _later(seconds: float, what: Callable[..., object], *arguments: Any) -> asyncio.Handle:
    return asyncio.get_running_loop().call_later(seconds, what, *arguments)


class Switchboard(msgspec.Struct, frozen=True):
    """The upstreams and how they stand, by name. `clock` gives seconds, `draw` numbers from 0 to 1, and `later` calls
    back after so many seconds."""

    upstreams: Mapping[str, Upstream]
    standings: Mapping[str, Standing]
    metrics: Metrics
    clock: Callable[[], float] = time.monotonic
    draw: Callable[[], float] = random.random
    later: Callable[..., asyncio.Handle] = _later

    def show(self, standing: Standing) -> None:
        """In the gauge of what is open, which is the current configuration's."""
        if standing.current:
            self.metrics.upstream_open.set((standing.name,), standing.open)


class Begun:
    """A stream whose first chunk is here: it commits, and no other target is asked any more.

    It keeps its place at the upstream until it has ended or was closed.
    """

    def __init__(self, first: Chunk, rest: AsyncIterator[Chunk], stream: ChunkStream, attempt: "_Attempt") -> None:
        self.headers = stream.headers
        self.dropped = stream.dropped
        self._stream = stream
        self._first: Chunk | None = first
        self._rest = rest
        self._attempt = attempt

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self

    async def __anext__(self) -> Chunk:
        if self._first is not None:
            first, self._first = self._first, None
            return first
        try:
            return await anext(self._rest)
        except StopAsyncIteration:
            self._attempt.succeeded()
            raise
        except UpstreamError as error:
            self._attempt.failed(error)
            raise

    async def close(self) -> None:
        try:
            await self._stream.close()
        finally:
            self._attempt.end()


async def call(request: Request, context: Context, flight: Flight, route: Route, board: Switchboard) -> Reply | Begun:
    """The answer of the first target that gives one; for a streamed request, a stream that has begun.

    A target that could not answer hands over to the next, and is asked again
    when all were. Raises the last one's `UpstreamError`; `Untranslatable` where
    no target has words for the request; `LimitError` (`overloaded`) where none
    has a place. Leaves in `flight` who answered and how long that took.
    """
    if route.timeout is None:
        return await _answer(request, context, flight, route, board, None)
    limit = asyncio.timeout(route.timeout)
    try:
        async with limit:
            return await _answer(request, context, flight, route, board, limit)
    except TimeoutError:
        raise UpstreamError(
            f"no answer within the {route.timeout:g} s that requests for this model have", code="upstream_timeout"
        ) from None


async def _answer(
    request: Request, context: Context, flight: Flight, route: Route, board: Switchboard, limit: asyncio.Timeout | None
) -> Reply | Begun:
    options = _options(request, context, route, board)
    if not options:
        raise UpstreamError(f"no target of this model serves {request.operation} requests")
    credential = context.caller.credential
    authorization = None if credential is None else f"Bearer {credential}"
    headers = forwarded(context.headers)
    now = board.clock()
    deadline = math.inf if route.timeout is None else now + route.timeout
    patience = math.inf
    calls = route.attempts
    failure: GatewayError | None = None
    untold: Untranslatable | None = None
    held: Standing | None = None
    while True:
        step = next_step(options, now=now, calls=calls, deadline=deadline, patience=patience, held=held)
        if held is not None and not (isinstance(step, Ask) and step.option.standing is held):
            held.release()
            held = None
        if isinstance(step, Ask):
            option = step.option
            asked = Call(
                request.operation,
                option.target.model,
                request.body,
                request.raw,
                headers,
                authorization,
                request.dialect,
                request.native,
                request.refused,
                request.dropped,
                step.key,
            )
            attempt = _Attempt(option, step.key, board, route, limit, now, held=held is not None)
            held = None
            try:
                return await attempt.answer(asked, flight, streamed=request.stream)
            except Untranslatable as error:
                untold = error
                options.remove(option)
            except UpstreamError as error:
                if not attempt.again:
                    raise
                failure = error
                calls -= 1
        elif isinstance(step, Wait):
            if patience == math.inf and (step.queues or step.resting):
                patience = now + max(s.patience for s in step.queues or (step.resting,) if s is not None)
            held = await _waited(step, board)
            flight.waited += board.clock() - now
        elif untold is not None and not options:
            raise untold
        else:
            # Who could be told may only be full, or rest.
            raise failure or _nobody(step, options)
        now = board.clock()


class _Attempt:
    """One call: the place it takes, and what its end says of the upstream and of the credential it was made with.

    `again`: another may do better.
    """

    __slots__ = (
        "_board",
        "_key",
        "_limit",
        "_option",
        "_over",
        "_probe",
        "_route",
        "_said",
        "_standing",
        "_started",
        "again",
    )

    def __init__(
        self,
        option: Option,
        key: int,
        board: Switchboard,
        route: Route,
        limit: asyncio.Timeout | None,
        now: float,
        *,
        held: bool,
    ) -> None:
        self._option = option
        self._standing = option.standing
        self._key = key
        self._board = board
        self._route = route
        self._limit = limit
        self._started = now
        self._said = False
        self._over = False
        self.again = False
        if not held:
            self._standing.take()
        self._probe = self._standing.begin(key)

    async def answer(self, asked: Call, flight: Flight, *, streamed: bool) -> Reply | Begun:
        target, name = self._option.target, self._standing.name
        before = flight.upstream, flight.upstream_model
        flight.upstream, flight.upstream_model = name, target.model
        outcome = "cancelled"
        begun = False
        try:
            upstream = self._board.upstreams[name]
            if streamed:
                reply: Reply | Begun = await self._begun(upstream, asked)
                begun = True
            else:
                reply = await upstream.complete(asked)
                self.succeeded()
        except Untranslatable:
            outcome = ""
            flight.upstream, flight.upstream_model = before
            raise
        except UpstreamError as error:
            outcome = error.code
            self.failed(error)
            raise
        except asyncio.CancelledError:
            self._given_up()
            raise
        else:
            outcome = "ok"
            flight.dropped = reply.dropped
            return reply
        finally:
            if not begun:
                self.end()
            if outcome:
                seconds = self._board.clock() - self._started
                flight.waited += seconds
                self.measure(outcome, seconds, streamed=streamed)

    async def _begun(self, upstream: Upstream, asked: Call) -> Begun:
        stream = await upstream.stream(asked)
        chunks = aiter(stream)
        try:
            first = await anext(chunks, None)
            if first is None:
                raise UpstreamError(f"the stream of the upstream {upstream.name!r} had nothing in it")
        except BaseException:  # cancelled or broken: nobody else will close it
            await stream.close()
            raise
        begun = Begun(first, chunks, stream, self)
        self._answered()
        return begun

    def succeeded(self) -> None:
        self._answered()
        self._standing.breakers[self._key].succeeded()
        self.end()

    def failed(self, error: UpstreamError) -> None:
        now = self._board.clock()
        option, standing = self._option, self._standing
        breaker = standing.breakers[self._key]
        wait = wait_asked(error.retry_after)
        outcome = outcome_of(error, own=standing.own)
        self.again = outcome != "final"
        if outcome == "failed":
            self._failed(now, everywhere=error.code == "upstream_unavailable")
        elif outcome == "refused":
            breaker.refused(now, probe=self._probe)
            self._told()
        else:
            self._answered()
            if outcome == "limited":
                breaker.limited(now, wait)
            else:
                breaker.succeeded()
        if outcome in ("limited", "refused"):
            if standing.ready_key(now, option.keys) is None:
                option.asked += 1
        else:
            option.asked += 1
            option.again_at = now + max(backoff(option.asked, self._board.draw), wait or 0.0)
        self.end()

    def end(self) -> None:
        """Gives the place back; safe to repeat."""
        if not self._over:
            self._over = True
            if not self._said:
                self._standing.breakers[self._key].left(probe=self._probe)
            self._standing.release()

    def _given_up(self) -> None:
        """A client that left says nothing. A deadline does, where this call had most of the time."""
        now = self._board.clock()
        timeout = self._route.timeout
        if self._limit is not None and self._limit.expired() and timeout and now - self._started >= timeout / 2:
            self._failed(now, everywhere=False)

    def _failed(self, now: float, *, everywhere: bool) -> None:
        for key, breaker in enumerate(self._standing.breakers):
            if key == self._key:
                breaker.failed(now, probe=self._probe)
            elif everywhere:  # nobody answers there, whoever asks
                breaker.failed(now, probe=False)
        self._told()

    def _answered(self) -> None:
        if self._probe and not self._said:
            self._standing.breakers[self._key].answered(probe=True)
            self._told()
        self._said = True

    def _told(self) -> None:
        # What comes of a probe after its first word is an ordinary call's.
        self._said, self._probe = True, False
        self._board.show(self._standing)

    def measure(self, outcome: str, seconds: float, *, streamed: bool) -> None:
        name = self._standing.name
        self._board.metrics.upstream_attempts.add((name, outcome))
        self._board.metrics.upstream_seconds.observe((name,), seconds)
        # A failure comes fast from who is not there, and late from who is slow.
        if self._route.strategy == "least-latency" and outcome in ("ok", "upstream_timeout"):
            self._standing.took(self._option.target.model, seconds, streamed=streamed)


def _options(request: Request, context: Context, route: Route, board: Switchboard) -> list[Option]:
    standings = board.standings
    conversation = conversation_of(request, context.caller.partition) if route.sticky else None
    targets = in_order(route, standings, streamed=request.stream, draw=board.draw, conversation=conversation)
    options = []
    for target in targets:
        if request.operation in board.upstreams[target.upstream].capabilities:
            standing = standings[target.upstream]
            keys = len(standing.breakers)
            preferred = () if conversation is None or keys == 1 else keys_in_order(conversation, standing.name, keys)
            options.append(Option(target, standing, preferred))
    return options


async def _waited(step: Wait, board: Switchboard) -> Standing | None:
    """Where a place came free, which is then taken; None when the time is over."""
    waiter: Waiter = asyncio.get_running_loop().create_future()
    waiting = step.queues or (() if step.resting is None else (step.resting,))
    spread = board.draw() * _SPREAD if step.resting is not None else 0.0
    timer = board.later(step.seconds + spread, _time_is_over, waiter)
    for standing in waiting:
        if step.queues:
            standing.join(waiter)
        else:
            standing.resting += 1
        board.metrics.upstream_waiting.add((standing.name,), 1)
    try:
        return await waiter
    except asyncio.CancelledError:
        if waiter.done() and not waiter.cancelled() and (place := waiter.result()) is not None:
            place.release()
        raise
    finally:
        timer.cancel()
        for standing in waiting:
            if step.queues:
                standing.leave(waiter)
            else:
                standing.resting -= 1
            board.metrics.upstream_waiting.add((standing.name,), -1)


def _time_is_over(waiter: Waiter) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _nobody(step: GiveUp, options: list[Option]) -> GatewayError:
    names = ", ".join(dict.fromkeys(repr(option.standing.name) for option in options))
    retry_after = str(max(1, math.ceil(step.seconds)))
    if step.full:
        return LimitError(
            f"all places for calls are taken, and too many requests wait for one: {names}",
            code="overloaded",
            retry_after=retry_after,
        )
    return UpstreamError(
        f"nobody is asked at the moment, after failures or because credentials rest: {names}",
        code="upstream_unavailable",
        retry_after=retry_after,
    )
