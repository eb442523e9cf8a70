"""What a request does next: ask one of its targets, wait, or give up. Pure: call.py does it.

Every target is asked once before any is asked again. One whose credentials
all rest or are open, or that is full, is passed over; where nothing else is
left, the end of a rest or a free place is waited for. Last of all is what is
open or was refused: one call, if nobody else tries the same.
"""

import math
import time
from collections.abc import Callable, Sequence
from email.utils import mktime_tz, parsedate_tz
from typing import Literal, NamedTuple

from models.errors import UpstreamError
from service.routing.aliases import Target
from service.routing.balance import Standing

LONGEST_WAIT = 5.0
"""Seconds. What takes longer is for the client to wait for."""

_BACKOFF = 0.25

Outcome = Literal["limited", "refused", "failed", "again", "final"]


class Option:
    """A target as one request sees it: how often it was asked, and from when it may be again."""

    __slots__ = ("again_at", "asked", "keys", "standing", "target")

    def __init__(self, target: Target, standing: Standing, keys: Sequence[int] = ()) -> None:
        self.target = target
        self.standing = standing
        self.keys = keys
        self.asked = 0
        self.again_at = -math.inf


class Ask(NamedTuple):
    option: Option
    key: int


class Wait(NamedTuple):
    """Until there is a place in one of `queues`, at most `seconds`; `resting` is whose credential rests as long."""

    seconds: float
    queues: Sequence[Standing] = ()
    resting: Standing | None = None


class GiveUp(NamedTuple):
    """`full`: there were too many requests for what could be asked. `seconds` until another try may do better."""

    full: bool
    seconds: float


def next_step(
    options: Sequence[Option],
    *,
    now: float,
    calls: int,
    deadline: float = math.inf,
    patience: float = math.inf,
    held: Standing | None = None,
) -> Ask | Wait | GiveUp:
    """`options` in order of preference; `calls` are left. Nothing that comes after `deadline` is waited for, and no
    place or rest before a first call that comes after `patience`. `held` is where the request has a place already.
    Times are on one clock."""
    best: Ask | None = None
    full: list[Standing] = []
    soonest, resting = math.inf, None
    if calls:
        for option in options:
            standing = option.standing
            key = standing.ready_key(now, option.keys)
            if key is None:
                rested = max(standing.rested_at(now), option.again_at)
                patient = standing.has_room and rested <= min(patience, now + standing.patience)
                if rested < soonest and (patient or option.asked):
                    soonest, resting = rested, standing
            elif option.again_at > now:
                if option.again_at < soonest:
                    soonest, resting = option.again_at, None
            elif standing.in_flight >= standing.limit and standing is not held:
                full.append(standing)
            elif not option.asked:
                return Ask(option, key)
            elif best is None or option.asked < best.option.asked:
                best = Ask(option, key)
    if best is not None:
        return best
    queues = [standing for standing in full if standing.has_room]
    if queues and now < patience:
        longest = max(standing.patience for standing in queues)
        return Wait(max(0.0, min(now + longest, patience, soonest, deadline) - now), queues)
    if soonest <= min(now + LONGEST_WAIT, deadline):
        return Wait(max(0.0, soonest - now), (), resting)
    for option in options if calls else ():
        # It may be back, or says what is wrong; and in need nobody is asked more than once, nor by two at a time.
        standing = option.standing
        key = None if option.asked else standing.ready_key(now, option.keys, in_need=True)
        if key is not None and (standing.in_flight < standing.limit or standing is held):
            return Ask(option, key)
    if full:
        return GiveUp(full=True, seconds=max(standing.patience for standing in full))
    return GiveUp(full=False, seconds=min((option.standing.ready_at() for option in options), default=now) - now)


def outcome_of(error: UpstreamError, *, own: bool) -> Outcome:
    """What a failed call says. `own`: it was made with a credential of the operator.

    `limited` and `refused` are about that credential, `failed` about the
    upstream, `again` about neither and worth another try, `final` about the
    request, which any other target would refuse as well.
    """
    answered = error.answered
    if error.code != "upstream_error" or answered is None or answered >= 500 or answered < 400:
        return "failed"
    if answered == 429:
        return "limited" if own else "again"
    if answered in (401, 403):
        return "refused" if own else "final"
    # A lock that was not had in time, and a body that was not: the vendors' own SDKs ask again.
    return "again" if answered in (408, 409) else "final"


def backoff(asked: int, draw: Callable[[], float]) -> float:
    """Seconds before a target that was asked so often is asked again: exponential, with full jitter.

    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """
    return draw() * min(_BACKOFF * 2.0 ** (asked - 1), LONGEST_WAIT)


def wait_asked(retry_after: str | None, *, wall: Callable[[], float] = time.time) -> float | None:
    """Seconds a `Retry-After` asks to wait (RFC 9110, section 10.2.3), None where it cannot be read."""
    if retry_after is None:
        return None
    text = retry_after.strip()
    if len(text) > 40:  # longer than any date
        return None
    whole, _, fraction = text.partition(".")
    if whole.isascii() and whole.isdecimal() and (not fraction or (fraction.isascii() and fraction.isdecimal())):
        return float(text)
    parsed = parsedate_tz(text)
    if parsed is None:
        return None
    try:
        return max(0.0, mktime_tz(parsed) - wall())
    except (ValueError, OverflowError):  # a date that is none
        return None
