"""The model names that exist, for `GET /v1/models` and the message of a 404."""

import asyncio
import logging
import time
from collections.abc import Mapping

from backends.upstream.base import Upstream
from models.errors import UpstreamError
from service.routing.aliases import Aliases

log = logging.getLogger("keepgate.routing")

_KEPT = 60.0
_DEADLINE = 3.0


class Catalog:
    """The configured names; where none are configured, what each upstream says it serves.

    An upstream that does not say in time is left out, and asked again with
    the next request after a minute.
    """

    def __init__(self, aliases: Aliases, upstreams: Mapping[str, Upstream]) -> None:
        self._aliases = aliases
        self._upstreams = upstreams
        self._names: list[str] = []
        self._asked_at = float("-inf")
        self._asking = asyncio.Lock()

    async def names(self) -> list[str]:
        if self._aliases.models:
            return list(self._aliases.models)
        async with self._asking:
            if time.monotonic() - self._asked_at > _KEPT:
                lists = await asyncio.gather(*(self._of(upstream) for upstream in self._upstreams.values()))
                self._names = [name for names in lists for name in names]
                self._asked_at = time.monotonic()
        return self._names

    async def _of(self, upstream: Upstream) -> list[str]:
        try:
            async with asyncio.timeout(_DEADLINE):
                served = await upstream.models()
        except (UpstreamError, TimeoutError) as error:
            log.warning("the models of upstream %s are not known: %s", upstream.name, error or "it is late")
            return []
        return [name if self._aliases.any_bare_name else f"{upstream.name}/{name}" for name in served]
