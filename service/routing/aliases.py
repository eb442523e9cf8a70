"""Which upstreams and models a requested name stands for."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import msgspec

from models.errors import RequestError

Strategy = Literal["weighted", "least-busy", "least-latency"]

WILDCARD = "*"

_USUAL_CALLS = 3


class Target(msgspec.Struct, frozen=True, gc=False):
    upstream: str
    model: str
    weight: float = 1.0


class Route(msgspec.Struct, frozen=True, gc=False):
    """`identity` is what the name stands for: two names with the same targets share their entries.

    `sticky`: a conversation stays with its target. `timeout` is for all calls
    of a request together, in seconds until a whole answer or the first chunk,
    `attempts` the most calls it may cause.
    """

    targets: tuple[Target, ...]
    fallbacks: tuple[Target, ...]
    identity: str
    strategy: Strategy = "weighted"
    sticky: bool = False
    timeout: float | None = None
    attempts: int = _USUAL_CALLS


def route(
    targets: Sequence[Target],
    fallbacks: Sequence[Target] = (),
    *,
    places: Mapping[str, str],
    strategy: Strategy = "weighted",
    sticky: bool = False,
    timeout: float | None = None,
    attempts: int | None = None,
) -> Route:
    """`places` tells what each upstream's name stands for now: under another address the same name is another place.

    The identity is made of targets and fallbacks alone: all else says how
    often and how soon, not what. `attempts` None is three, or one for each of
    them where they are more.
    """
    # As JSON, because clients may choose the model's name: joined by any mark it could pose as several.
    named = [[[place.upstream, places[place.upstream], place.model] for place in some] for some in (targets, fallbacks)]
    return Route(
        tuple(targets),
        tuple(fallbacks),
        msgspec.json.encode(named).decode(),
        strategy=strategy,
        sticky=sticky,
        timeout=timeout,
        attempts=attempts or max(_USUAL_CALLS, len(targets) + len(fallbacks)),
    )


class _Pattern(NamedTuple):
    """A name with a `*`: what comes before it and after it."""

    before: str
    after: str
    way: Route

    def part(self, name: str) -> str | None:
        """What the `*` stands for in `name`, None where the name does not fit."""
        before, after, _ = self
        fits = len(name) > len(before) + len(after) and name.startswith(before) and name.endswith(after)
        return name[len(before) : len(name) - len(after)] if fits else None


def _pattern(name: str, way: Route) -> _Pattern:
    before, _, after = name.partition(WILDCARD)
    return _Pattern(before, after, way)


class Aliases:
    """The configured names first, then those with a `*` and `upstream/model`, then a bare name where there is only one
    upstream and none is configured.

    Of the names with a `*` that fit, the one with the longest text before it
    counts; an upstream is as good as a name `upstream/*` after those. What
    stands for the `*`, one character at least, takes the place of the `*` in
    the model of each target. `timeout` and `attempts` are for names that are
    not configured.
    """

    def __init__(
        self,
        models: Mapping[str, Route],
        places: Mapping[str, str],
        *,
        timeout: float | None = None,
        attempts: int | None = None,
    ) -> None:
        self.models = {name: way for name, way in models.items() if WILDCARD not in name}
        self.upstreams = tuple(places)
        self._places = places
        self._timeout = timeout
        self._attempts = attempts
        patterns = [_pattern(name, way) for name, way in models.items() if WILDCARD in name]
        self._patterns = sorted(patterns, key=lambda one: (len(one.before), len(one.after)), reverse=True)
        self.any_bare_name = not models and len(places) == 1
        # Clients name few models and name them often; what is refused is not remembered.
        self.resolve = lru_cache(maxsize=1024)(self._resolve)

    def _resolve(self, name: str) -> Route:
        """Raises `RequestError` (`model_not_found`) with the names that exist."""
        configured = self.models.get(name)
        if configured is not None:
            return configured
        upstream, slash, model = name.partition("/")
        addressed = bool(slash and model and upstream in self.upstreams)
        for pattern in self._patterns:
            if addressed and len(pattern.before) <= len(upstream):
                break
            part = pattern.part(name)
            if part is not None:
                return self._filled(pattern.way, part)
        if addressed:
            return self._only(Target(upstream, model))
        if self.any_bare_name:
            return self._only(Target(self.upstreams[0], name))
        patterns = (f"{before}{WILDCARD}{after}" for before, after, _ in self._patterns)
        known = [*self.models, *patterns, *(f"{upstream}/MODEL" for upstream in self.upstreams)]
        raise RequestError(f"no model of that name; known: {', '.join(known)}", code="model_not_found", param="model")

    def _only(self, target: Target) -> Route:
        return route([target], places=self._places, timeout=self._timeout, attempts=self._attempts)

    def _filled(self, way: Route, part: str) -> Route:
        targets, fallbacks = (
            [Target(target.upstream, target.model.replace(WILDCARD, part), target.weight) for target in some]
            for some in (way.targets, way.fallbacks)
        )
        return route(
            targets,
            fallbacks,
            places=self._places,
            strategy=way.strategy,
            sticky=way.sticky,
            timeout=way.timeout,
            attempts=way.attempts,
        )
