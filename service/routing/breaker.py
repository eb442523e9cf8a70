"""Whether one credential of an upstream may be asked now."""

import math

# The longest an upstream is left alone between two probes, and a credential between two tries, in seconds.
_LONGEST_OPEN = 120.0
_LONGEST_REST = 600.0
_SHORTEST_REST = 0.1
_FIRST_REST = 1.0
_LONGEST_GUESS = 60.0
_REFUSED_REST = 60.0
_LONG_AGO = -math.inf


class Breaker:
    """Opens after so many `failures` in a row, and lets one probe at a time through after `rest` seconds, which double
    with each probe that fails. Apart from that a credential that was turned away rests.

    Times are seconds on the caller's clock. `begin` says whether the call is
    a probe, as is one with a credential that was refused; how it ended must be
    told with the same word, once, or `left` where it ended without saying
    anything of the upstream. What calls say that began before it opened no
    longer counts.
    """

    __slots__ = (
        "_failed",
        "_failures",
        "_limited",
        "_open_for",
        "_open_until",
        "_probing",
        "_refused_until",
        "_rest",
        "_rests_until",
        "open",
        "ready_at",
    )

    def __init__(self, *, failures: int = 10, rest: float = 10.0) -> None:
        self.open = False
        self.ready_at = _LONG_AGO
        self._open_until = self._rests_until = self._refused_until = _LONG_AGO  # `ready_at` is the last of them
        self._failures = failures
        self._rest = rest
        self._failed = 0
        self._limited = 0
        self._open_for = rest
        self._probing = False

    def ready(self, now: float, *, in_need: bool = False) -> bool:
        """`in_need`: there is nobody else to ask. Then a probe need not wait, and a credential that was refused may be
        good again; but who was told to wait does."""
        return now >= (self._rests_until if in_need else self.ready_at) and not self._probing

    def rested_at(self, now: float) -> float:
        """When it is ready again where it only rests. Infinity where it is open or was refused: nobody knows whether
        that will be better then."""
        return math.inf if self.open or self._probing or now < self._refused_until else self.ready_at

    def begin(self) -> bool:
        """True: this call is the probe. Only where `ready`."""
        self._probing = self.open or self._refused_until > _LONG_AGO
        return self._probing

    def answered(self, *, probe: bool) -> None:
        """It is alive: it gave an answer, if only a refusal, or began one."""
        if probe:
            if self.open:
                self._failed = self._failures - 1  # until an answer is whole, the next failure opens it again
            self.open = self._probing = False
            self._until(open_until=_LONG_AGO, refused_until=_LONG_AGO)

    def succeeded(self) -> None:
        """It answered to the end: a stream that began may still break, and an upstream that always does is no good."""
        if self._refused_until > _LONG_AGO:
            self._until(refused_until=_LONG_AGO)
        if not self.open:
            self._failed = self._limited = 0
            self._open_for = self._rest

    def failed(self, now: float, *, probe: bool) -> None:
        if self.open and not probe:
            return
        self._failed += 1
        if probe:
            self._probing = False
        if self._failed >= self._failures and now >= self._open_until:  # a probe in need changes nothing
            self.open = True
            self._until(open_until=now + self._open_for)
            self._open_for = min(2 * self._open_for, max(self._rest, _LONGEST_OPEN))

    def limited(self, now: float, wait: float | None) -> None:
        """Asked too often (429): rests `wait` seconds, or one that doubles where the upstream does not say."""
        if wait is None:
            wait = min(_FIRST_REST * 2**self._limited, _LONGEST_GUESS)
            if now >= self._rests_until:  # one of many that were under way together says no more than the first
                self._limited = min(self._limited + 1, 10)
        rest = min(max(wait, _SHORTEST_REST), _LONGEST_REST)
        self._until(rests_until=max(self._rests_until, now + rest))

    def refused(self, now: float, *, probe: bool) -> None:
        """The credential is not good, and will not be in a moment: for a minute any other is better."""
        self.failed(now, probe=probe)
        self._until(refused_until=now + _REFUSED_REST)

    def left(self, *, probe: bool) -> None:
        if probe:
            self._probing = False

    def _until(
        self,
        *,
        open_until: float | None = None,
        rests_until: float | None = None,
        refused_until: float | None = None,
    ) -> None:
        if open_until is not None:
            self._open_until = open_until
        if rests_until is not None:
            self._rests_until = rests_until
        if refused_until is not None:
            self._refused_until = refused_until
        self.ready_at = max(self._open_until, self._rests_until, self._refused_until)
