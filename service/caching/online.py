"""What audited hits say while they come in: bounds that hold at every moment, and a cut that follows them.

A bound for a fixed sample is broken by looking at it again and again. These
are betting martingales (Waudby-Smith and Ramdas 2023, "Estimating means of
bounded random variables by betting"): against a share p they bet, at several
stakes at once, that wrong answers are rarer or more frequent, and exclude p
once the bets have won 1 / (1 - confidence) times what was put in. By Ville's
inequality that happens to the true share with a chance of at most
1 - confidence, however often and for however long one looks.
"""

import math
from collections.abc import Callable

import msgspec

from service.caching.certificate import Certificate, Curve

# The bets: that wrong answers come this many times as often as the share that is bet against.
_RARER = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9)
_MORE = (1.25, 1.5, 2.0, 4.0, 8.0, 16.0)
_HALVINGS = 50

# Under a limit that is just kept, an alarm is false once in this many audits or less often.
_FALSE_ALARM_EVERY = 1_000.0
# A broken limit moves the cut to where at most this share of the errors is expected.
_TIGHTEN = 0.5
_MOST_BORNE = 0.999


class Watch(msgspec.Struct, frozen=True):
    """An endpoint's cut between its certified one and the strictest. `cut` is None when nothing may be served: what
    would be served at the strictest cut is then audited in shadow.

    `seen` and `wrong` count audits since the cut was last moved; `evidence`
    holds a bet for each of several stakes against the limit being kept.
    """

    limit: float
    confidence: float
    curve: Curve
    certified: float
    cut: float | None
    seen: int = 0
    wrong: int = 0
    evidence: tuple[float, ...] = (0.0,) * len(_MORE)
    tightened: int = 0
    relaxed: int = 0

    def __post_init__(self) -> None:
        """Raises `ValueError` for one that contradicts itself: it may come from a file."""
        cuts = self.curve.cuts
        if self.certified not in cuts or self.cut not in (None, *cuts) or len(self.evidence) != len(_MORE):
            raise ValueError("the watch is not about this curve")

    @property
    def upper(self) -> float:
        """No more than this share of hits is wrong, by the audits since the cut was last moved."""
        return upper_bound(self.wrong, self.seen, self.confidence)

    @property
    def lower(self) -> float:
        return lower_bound(self.wrong, self.seen, self.confidence)


def watch(certificate: Certificate, curve: Curve, *, misjudged: float = 0.0) -> Watch:
    """Begins at the certificate's cut, which is one of the curve's. Raises `ValueError` where it is not.

    Audits compare answers automatically, and of right ones call the share
    `misjudged` different: so many more are borne before the limit is broken.
    """
    if certificate.cut not in curve.cuts:
        raise ValueError("the certificate is not about this curve")
    return Watch(
        limit=borne(certificate, misjudged),
        confidence=certificate.confidence,
        curve=curve,
        certified=certificate.cut,
        cut=certificate.cut,
    )


def borne(certificate: Certificate, misjudged: float) -> float:
    """The share of audits that may come out different while the limit is kept."""
    return min(certificate.limit + (1 - certificate.limit) * misjudged, _MOST_BORNE)


def audited(watch: Watch, *, wrong: bool) -> Watch:
    """What is so after one more audited hit at the watch's cut. About 20 µs, some 100 where no wrong one is among many.

    The limit counts as broken when an e-detector (Shin, Ramdas and Rinaldo
    2023: the sum of the bets begun at every audit so far) reaches 1,000: that
    finds a change for the worse after a long good time as soon as at once.
    The cut then moves to where half of the errors are expected. It moves back
    by a single step, when the bound since the last move is within the limit.
    """
    limit = watch.limit
    evidence = tuple(
        (bet + 1) * (more if wrong else max(1 - more * limit, 0.0) / (1 - limit))
        for bet, more in zip(watch.evidence, (min(more, 1 / limit) for more in _MORE), strict=True)
    )
    now = msgspec.structs.replace(watch, seen=watch.seen + 1, wrong=watch.wrong + wrong, evidence=evidence)
    if sum(evidence) / len(evidence) >= _FALSE_ALARM_EVERY:
        return _moved(now, _stricter(now), tightened=1)
    if now.cut != now.certified and not wrong and now.upper <= limit:
        return _moved(now, _looser(now), relaxed=1)
    return now


def upper_bound(wrong: int, seen: int, confidence: float = 0.95) -> float:
    """Above the share of wrong answers at every moment, with `confidence`; 1 before anything is seen.

    For outcomes that come one after another, each wrong with a chance that,
    given those before, is never below the true share.
    """
    return _boundary(lambda share: _won(_RARER, wrong, seen - wrong, share) < -math.log1p(-confidence))


def lower_bound(wrong: int, seen: int, confidence: float = 0.95) -> float:
    """Below the share of wrong answers at every moment, with `confidence`; 0 before anything is seen."""
    return _boundary(lambda share: _won(_MORE, wrong, seen - wrong, share) >= -math.log1p(-confidence))


def _won(bets: tuple[float, ...], wrong: int, right: int, share: float) -> float:
    """The log of what each unit has become that was bet against `share`: rising with it for `_RARER`, falling for
    `_MORE`."""
    logs = []
    for times in bets:
        chance = times * share
        if (chance == 0 and wrong) or chance > 1 or (chance == 1 and right):
            continue  # this bet has lost all, or could not be made
        log = wrong * math.log(times) if wrong else 0.0
        logs.append(log + (right * (math.log1p(-chance) - math.log1p(-share)) if right else 0.0))
    if not logs:
        return -math.inf
    most = max(logs)
    return most + math.log(sum(math.exp(log - most) for log in logs) / len(bets))


def _boundary(below: Callable[[float], bool]) -> float:
    """Where `below` ceases to hold between 0 and 1."""
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if below(middle):
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _stricter(watch: Watch) -> float | None:
    """The loosest cut at which half as many errors are expected as at this one."""
    if watch.cut is None:
        return None
    cuts, expected = watch.curve.cuts, watch.curve.wrong
    at = cuts.index(watch.cut)
    for i in range(at - 1, -1, -1):
        if expected[i] <= _TIGHTEN * expected[at]:
            return cuts[i]
    return None


def _looser(watch: Watch) -> float:
    cuts = watch.curve.cuts
    certified = cuts.index(watch.certified)
    return cuts[min(_strictest(watch) if watch.cut is None else cuts.index(watch.cut) + 1, certified)]


def _strictest(watch: Watch) -> int:
    """The cut that is watched in shadow, and the first to come back to: that of the fewest expected errors."""
    return min(range(len(watch.curve.cuts)), key=watch.curve.wrong.__getitem__)


def _moved(watch: Watch, cut: float | None, *, tightened: int = 0, relaxed: int = 0) -> Watch:
    return msgspec.structs.replace(
        watch,
        cut=cut,
        seen=0,
        wrong=0,
        evidence=(0.0,) * len(_MORE),
        tightened=watch.tightened + tightened,
        relaxed=watch.relaxed + relaxed,
    )
