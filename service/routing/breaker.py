"""Whether one credential of an upstream may be asked now."""

# The longest an upstream is left alone between two probes, and a credential between two tries, in seconds.
_LONGEST_OPEN = 120.0
_LONGEST_REST = 600.0
_SHORTEST_REST = 0.1
_FIRST_REST = 1.0
_LONGEST_GUESS = 60.0
_REFUSED_REST = 60.0


class Breaker:
    """Opens after so many `failures` in a row, and lets one probe at a time through after `rest` seconds, which double
    with each probe that fails. Apart from that a credential that was turned away rests.

    Times are seconds on the caller's clock. `begin` says whether the call is
    the probe; how it ended must be told with the same word, once, or `left`
    where it ended without saying anything of the upstream. What calls say that
    began before it opened no longer counts.
    """

    __slots__ = ("_failed", "_failures", "_limited", "_open_for", "_probing", "_rest", "open", "ready_at")

    def __init__(self, *, failures: int = 10, rest: float = 10.0) -> None:
        self.open = False
        self.ready_at = float("-inf")
        self._failures = failures
        self._rest = rest
        self._failed = 0
        self._limited = 0
        self._open_for = rest
        self._probing = False

    def ready(self, now: float) -> bool:
        return now >= self.ready_at and not self._probing

    def begin(self) -> bool:
        """True: this call is the probe. Only where `ready`."""
        self._probing = self.open
        return self.open

    def answered(self, *, probe: bool) -> None:
        """It is alive: it gave an answer, if only a refusal, or began one."""
        if probe:
            self.open = self._probing = False
            self._open_for = self._rest
            self._failed = 0

    def succeeded(self) -> None:
        """It answered to the end: a stream that began may still break, and an upstream that always does is no good."""
        if not self.open:
            self._failed = self._limited = 0

    def failed(self, now: float, *, probe: bool) -> None:
        if self.open and not probe:
            return
        self._failed += 1
        if probe or self._failed >= self._failures:
            self.open, self._probing = True, False
            self.ready_at = max(self.ready_at, now + self._open_for)
            self._open_for = min(2 * self._open_for, max(self._rest, _LONGEST_OPEN))

    def limited(self, now: float, wait: float | None) -> None:
        """Asked too often (429): rests `wait` seconds, or one that doubles where the upstream does not say."""
        if wait is None:
            wait = min(_FIRST_REST * 2**self._limited, _LONGEST_GUESS)
            if now >= self.ready_at:  # one of many that were under way together says no more than the first
                self._limited = min(self._limited + 1, 10)
        self.ready_at = max(self.ready_at, now + min(max(wait, _SHORTEST_REST), _LONGEST_REST))

    def refused(self, now: float, *, probe: bool) -> None:
        """The credential is not good, and will not be in a moment."""
        self.failed(now, probe=probe)
        self.ready_at = max(self.ready_at, now + _REFUSED_REST)

    def left(self, *, probe: bool) -> None:
        if probe:
            self._probing = False
