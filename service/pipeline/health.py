"""How a part of a cache tier stands: whether it is worth asking, and that operators hear when that changes.

Caches fail open, so what fails costs its deadline on every request. After a
few failures in a row a part is given a rest, and one request in a while tries
it; the first that succeeds ends the rest.
"""

import logging
import time
from collections.abc import Callable
from typing import Literal

from models.errors import BackendError
from service.telemetry.metrics import Metrics

log = logging.getLogger("keepgate.cache")

# They fail and recover apart: a full disk refuses writes and is read as before.
Activity = Literal["reading", "writing"]
READING: Activity = "reading"
WRITING: Activity = "writing"

_IN_A_ROW = 3
_REST = 1.0


class Resting(BackendError):
    """It was not asked."""


class Health:
    """One part of the cache: `exact`, `embedder` or `vector`. `clock` is monotonic, in seconds."""

    def __init__(self, component: str, metrics: Metrics, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._component = component
        self._metrics = metrics
        self._clock = clock
        self._failures: dict[Activity, int] = {}
        self._asked_again_at: dict[Activity, float] = {}
        metrics.degraded.set((component,), 0)

    def failing(self, activity: Activity) -> bool:
        return activity in self._failures

    def ask(self, activity: Activity) -> None:
        """Before each use. Raises `Resting`; who may try after a rest is one at a time."""
        if not self._failures or self._failures.get(activity, 0) < _IN_A_ROW:
            return
        now = self._clock()
        if now < self._asked_again_at[activity]:
            raise Resting(f"{self._component} failed and is given a rest")
        self._asked_again_at[activity] = now + _REST

    def failed(self, activity: Activity, error: Exception) -> None:
        if isinstance(error, Resting):
            return
        if activity not in self._failures:
            reason = str(error) or ("no answer in time" if isinstance(error, TimeoutError) else type(error).__name__)
            log.warning("the cache is degraded (%s, %s): %s", self._component, activity, reason)
        self._failures[activity] = self._failures.get(activity, 0) + 1
        self._asked_again_at[activity] = self._clock() + _REST
        self._metrics.degraded.set((self._component,), 1)

    def works(self, activity: Activity) -> None:
        if activity not in self._failures:
            return
        del self._failures[activity]
        log.info("the cache is well again (%s, %s)", self._component, activity)
        if not self._failures:
            self._metrics.degraded.set((self._component,), 0)
