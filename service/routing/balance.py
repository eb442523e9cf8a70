"""How busy, fast and well each upstream is, and in which order a request asks the targets of its model."""

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from operator import itemgetter
from typing import Any

import msgspec

from models.request import Request
from service.routing.aliases import Route, Target
from service.routing.breaker import Breaker

Waiter = asyncio.Future["Standing | None"]

_NEWEST_WEIGHS = 0.2
_MEASURED = 1024
_EXPLORED = 0.05


class Standing:
    """How one upstream stands with this worker: its credentials, the calls under way, and who waits for a place.

    `own`: its credentials are the operator's; with `auth: passthrough` what a
    call of one caller comes to says little of another's. `limit` is the most
    calls at a time, `queue` how many requests may wait and `patience` how many
    seconds each. `current` until a reload puts another in its place: calls
    that began before it go on with this one.
    """

    __slots__ = (
        "_first",
        "_latency",
        "_waiting",
        "breakers",
        "current",
        "in_flight",
        "limit",
        "name",
        "own",
        "patience",
        "queue",
        "resting",
    )

    def __init__(
        self,
        name: str,
        *,
        keys: int = 1,
        own: bool = True,
        limit: int | None = None,
        queue: int = 100,
        patience: float = 10.0,
        failures: int = 10,
        rest: float = 10.0,
    ) -> None:
        self.name = name
        self.current = True
        self.own = own
        self.breakers = tuple(Breaker(failures=failures, rest=rest) for _ in range(keys))
        self.in_flight = 0
        self.limit: float = math.inf if limit is None else limit
        self.queue = queue
        self.patience = patience
        self.resting = 0  # requests that wait for the end of a rest
        self._first = 0
        self._waiting: dict[Waiter, None] = {}
        self._latency: dict[tuple[str, bool], float] = {}

    # --- credentials

    def ready_key(self, now: float, preferred: Sequence[int] = (), *, in_need: bool = False) -> int | None:
        """The credential to ask with: the first of `preferred` that is ready, by turns where there is no preference."""
        breakers = self.breakers
        if len(breakers) == 1:
            return 0 if breakers[0].ready(now, in_need=in_need) else None
        for place in preferred or range(self._first, self._first + len(breakers)):
            key = place % len(breakers)
            if breakers[key].ready(now, in_need=in_need):
                return key
        return None

    def begin(self, key: int) -> bool:
        """A call with that credential; the next one begins with the next. True: it is a probe, see `Breaker`."""
        self._first = key + 1
        return self.breakers[key].begin()

    def rested_at(self, now: float) -> float:
        """When the next credential is ready that only rests; infinity where there is none."""
        return min(breaker.rested_at(now) for breaker in self.breakers)

    def ready_at(self) -> float:
        return min(breaker.ready_at for breaker in self.breakers)

    @property
    def open(self) -> int:
        """How many of its credentials are not asked but by probes."""
        return sum(breaker.open for breaker in self.breakers)

    # --- places

    @property
    def waiting(self) -> int:
        return len(self._waiting) + self.resting

    @property
    def has_room(self) -> bool:
        """For one more to wait."""
        return len(self._waiting) + self.resting < self.queue

    def take(self) -> None:
        """A place; the caller saw that one is free. `release` gives it back."""
        self.in_flight += 1

    def release(self) -> None:
        """The place goes to who has waited for longest."""
        while self._waiting:
            waiter = next(iter(self._waiting))
            del self._waiting[waiter]
            if not waiter.done():  # it may have got a place elsewhere
                waiter.set_result(self)
                return
        self.in_flight -= 1

    def join(self, waiter: Waiter) -> None:
        """`waiter` is done with this standing when it has a place here, which is then taken."""
        self._waiting[waiter] = None

    def leave(self, waiter: Waiter) -> None:
        self._waiting.pop(waiter, None)

    # --- speed

    def latency(self, model: str, *, streamed: bool) -> float:
        """Seconds until an answer, or the first chunk of a stream, lately; 0 where it was not measured."""
        return self._latency.get((model, streamed), 0.0)

    def took(self, model: str, seconds: float, *, streamed: bool) -> None:
        measured = (model, streamed)
        known = self._latency.get(measured)
        if known is None:
            if len(self._latency) >= _MEASURED:  # clients choose the names
                del self._latency[next(iter(self._latency))]
            self._latency[measured] = seconds
        else:
            self._latency[measured] = known + _NEWEST_WEIGHS * (seconds - known)


def in_order(
    way: Route,
    standings: Mapping[str, Standing],
    *,
    streamed: bool,
    draw: Callable[[], float],
    conversation: bytes | None = None,
) -> Sequence[Target]:
    """All targets, best first by the route's strategy, then the fallbacks as configured.

    `conversation` comes before the strategy: the same one has the same order
    for as long as the targets are the same. `draw` gives numbers from 0 to 1,
    1 excluded.
    """
    targets = way.targets
    if len(targets) == 1:
        return targets if not way.fallbacks else (*targets, *way.fallbacks)
    if conversation is not None:
        ordered = _by(targets, lambda target: _pull(conversation, f"{target.upstream}/{target.model}", target.weight))
    elif way.strategy == "least-busy":
        ordered = _by(targets, lambda target: (standings[target.upstream].in_flight / target.weight, draw()))
    elif way.strategy == "least-latency" and draw() >= _EXPLORED:
        ordered = _by(
            targets, lambda target: (standings[target.upstream].latency(target.model, streamed=streamed), draw())
        )
    elif way.strategy == "least-latency":
        ordered = _by(targets, lambda _: draw())
    else:
        ordered = _drawn(targets, draw)
    return (*ordered, *way.fallbacks)


def conversation_of(request: Request, partition: str) -> bytes | None:
    """Stands for what a conversation begins with, which later turns repeat: all up to its first user turn, and who
    asks. None where the request is none."""
    messages = request.body.get("messages")
    if request.operation != "chat" or not isinstance(messages, list):
        return None
    first = next((at for at, turn in enumerate(messages) if isinstance(turn, dict) and turn.get("role") == "user"), 0)
    begin: list[Any] = [partition, *messages[: first + 1]]
    return blake2b(msgspec.json.encode(begin), digest_size=16).digest()


def keys_in_order(conversation: bytes, name: str, keys: int) -> Sequence[int]:
    """The order in which a conversation asks with the credentials of the upstream `name`."""
    return sorted(range(keys), key=lambda key: _pull(conversation, f"{name}#{key}", 1.0))


def _by(targets: Sequence[Target], rank: Callable[[Target], Any]) -> list[Target]:
    return [target for _, target in sorted(((rank(target), target) for target in targets), key=itemgetter(0))]


def _drawn(targets: Sequence[Target], draw: Callable[[], float]) -> list[Target]:
    """By weight: the first, then the second among the others, and so on."""
    left, drawn = [*targets], []
    while len(left) > 1:
        point = draw() * sum(target.weight for target in left)
        for at, target in enumerate(left):  # noqa: B007  # the last one where rounding leaves a rest
            point -= target.weight
            if point < 0:
                break
        drawn.append(left.pop(at))
    return drawn + left


def _pull(conversation: bytes, name: str, weight: float) -> float:
    """Weighted rendezvous hashing: the smallest goes first, and each in proportion to its weight.

    Thaler and Ravishankar, "A Name-Based Mapping Scheme for Rendezvous" (1996), with the
    weights of Schindelhauer and Schomaker, "Weighted Distributed Hash Tables" (2005).
    """
    digest = blake2b(name.encode(errors="surrogatepass"), key=conversation, digest_size=8).digest()
    return -math.log((int.from_bytes(digest) + 1) / 2**64) / weight
