"""Which upstream and model a requested name stands for."""

import random
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import msgspec

from models.errors import RequestError


class Target(msgspec.Struct, frozen=True, gc=False):
    upstream: str
    model: str
    weight: float = 1.0


class Route(msgspec.Struct, frozen=True, gc=False):
    """`identity` is what the name stands for: two names with the same targets share their entries."""

    targets: tuple[Target, ...]
    fallbacks: tuple[Target, ...]
    identity: str


def route(targets: Sequence[Target], fallbacks: Sequence[Target] = (), *, places: Mapping[str, str]) -> Route:
    """`places` tells what each upstream's name stands for now: under another address the same name is another place.

    Weights are not part of the identity: they say how often, not what.
    """
    # As JSON, because clients may choose the model's name: joined by any mark it could pose as several.
    named = [[[place.upstream, places[place.upstream], place.model] for place in some] for some in (targets, fallbacks)]
    return Route(tuple(targets), tuple(fallbacks), msgspec.json.encode(named).decode())


class Aliases:
    """The configured names first, then `upstream/model`, then a bare name where there is only one upstream."""

    def __init__(self, models: Mapping[str, Route], places: Mapping[str, str]) -> None:
        self.models = models
        self.upstreams = tuple(places)
        self._places = places
        # Clients name few models and name them often; what is refused is not remembered.
        self.resolve = lru_cache(maxsize=1024)(self._resolve)

    def _resolve(self, name: str) -> Route:
        """Raises `RequestError` (`model_not_found`) with the names that exist."""
        configured = self.models.get(name)
        if configured is not None:
            return configured
        upstream, slash, model = name.partition("/")
        if slash and model and upstream in self.upstreams:
            return route([Target(upstream, model)], places=self._places)
        if not self.models and len(self.upstreams) == 1:
            return route([Target(self.upstreams[0], name)], places=self._places)
        known = [*self.models, *(f"{upstream}/MODEL" for upstream in self.upstreams)]
        raise RequestError(f"no model of that name; known: {', '.join(known)}", code="model_not_found", param="model")


def in_order(way: Route, *, choose: Callable[[], float] = random.random) -> tuple[Target, ...]:
    """One target drawn by weight, then the fallbacks."""
    targets = way.targets
    if len(targets) == 1:
        return (*targets, *way.fallbacks)
    point = choose() * sum(target.weight for target in targets)
    for target in targets:
        point -= target.weight
        if point < 0:
            break
    return (target, *way.fallbacks)
