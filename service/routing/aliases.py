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


def route(targets: Sequence[Target], fallbacks: Sequence[Target] = ()) -> Route:
    identity = "|".join(f"{target.upstream}/{target.model}*{target.weight:g}" for target in targets)
    return Route(tuple(targets), tuple(fallbacks), identity)


class Aliases:
    """The configured names first, then `upstream/model`, then a bare name where there is only one upstream."""

    def __init__(self, models: Mapping[str, Route], upstreams: Sequence[str]) -> None:
        self.models = models
        self.upstreams = tuple(upstreams)
        # Clients name few models and name them often; what is refused is not remembered.
        self.resolve = lru_cache(maxsize=1024)(self._resolve)

    def _resolve(self, name: str) -> Route:
        """Raises `RequestError` (`model_not_found`) with the names that exist."""
        configured = self.models.get(name)
        if configured is not None:
            return configured
        upstream, slash, model = name.partition("/")
        if slash and model and upstream in self.upstreams:
            return route([Target(upstream, model)])
        if not self.models and len(self.upstreams) == 1:
            return route([Target(self.upstreams[0], name)])
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
