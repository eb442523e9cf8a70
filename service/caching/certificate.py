"""What labelled lookups prove about an endpoint: the loosest cut that keeps its limit, with a stated confidence.

A grid of cuts is fixed before a label is looked at and walked from strict to
loose, each tested at the full level, until one fails (fixed-sequence testing:
Angelopoulos et al. 2021, "Learn then test"). The bound on the share of wrong
answers among those served is Clopper and Pearson's (1934): it holds for every
sample size, if the sample resembles what comes.
"""

import math
from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

Labeller = Literal["people", "judge", "automatic"]
_RANK: dict[Labeller, int] = {"automatic": 0, "judge": 1, "people": 2}

_POWER = 0.8
_MOST_LABELS = 10_000_000
_TINY = 1e-300
_EPSILON = 1e-15


class Label(msgspec.Struct, frozen=True):
    """`asked` and `stored` name the two questions, by text or by any other key. `wrong`: the stored answer is no answer
    to the one asked."""

    asked: str
    stored: str
    wrong: bool
    by: Labeller


class Settled(msgspec.Struct, frozen=True):
    """One label a pair, in order of first sight. `repeated` and `contradictory` count what was folded into these."""

    labels: list[Label]
    repeated: int
    contradictory: int


class Origin(msgspec.Struct, frozen=True):
    """What a certificate is about: it holds for no other embedder, verifier or kind of data. `date` is ISO 8601."""

    labelled_by: Labeller
    embedder: str
    verifier: str
    data: str
    date: str


class Curve(msgspec.Struct, frozen=True):
    """What is expected before a label is seen: the share of `wrong` answers among those served at each of `cuts`.

    Cuts fall, from strict to loose. A score at or above the cut is served.
    """

    cuts: list[float]
    wrong: list[float]


class Certificate(msgspec.Struct, frozen=True):
    """At `cut`, `wrong` of `served` of `samples` were wrong, and `upper` bounds their share at `confidence`."""

    limit: float
    confidence: float
    samples: int
    served: int
    wrong: int
    upper: float
    cut: float
    origin: Origin

    @property
    def certifies(self) -> bool:
        """Answers compared automatically only inform."""
        return self.origin.labelled_by != "automatic"


class Shortfall(msgspec.Struct, frozen=True):
    """Why nothing is certified, by the counts at the cut that was tried first (`cut` is None where none could be).

    `missing` is about how many more labels it takes, None where no number of
    them would do.
    """

    reason: Literal["no-labels", "none-served", "too-few", "too-often-wrong"]
    limit: float
    confidence: float
    samples: int
    served: int
    wrong: int
    upper: float
    cut: float | None
    missing: int | None


def certify(
    scores: NDArray[np.float64],
    wrong: NDArray[np.bool_],
    *,
    limit: float,
    curve: Curve,
    origin: Origin,
    confidence: float = 0.95,
) -> Certificate | Shortfall:
    """The loosest cut of `curve` at which wrong answers among those served stay below `limit`.

    `scores` and `wrong` are one labelled lookup each, in any order, of which
    neither the scores' model nor the curve has seen the label. The walk begins
    where the curve gives a test the best chance to pass, which depends on the
    scores and never on the labels, so that one early error does not end it.
    Raises `ValueError` for a limit or confidence outside (0, 1), scores that
    are not finite, or arrays of different lengths.
    """
    _check(limit, confidence)
    if scores.ndim != 1 or scores.shape != wrong.shape:
        raise ValueError(f"{scores.shape} scores and {wrong.shape} labels: one of each a lookup")
    if not np.isfinite(scores).all():
        raise ValueError("a score is not a finite number")
    samples = len(scores)
    order = np.argsort(-scores, kind="stable")
    served = np.searchsorted(-scores[order], -np.asarray(curve.cuts, np.float64), side="right")
    errors = np.concatenate([[0], np.cumsum(wrong[order])])[served]

    def short(reason: Literal["no-labels", "none-served", "too-few", "too-often-wrong"], at: int | None) -> Shortfall:
        return Shortfall(
            reason=reason,
            limit=limit,
            confidence=confidence,
            samples=samples,
            served=0 if at is None else int(served[at]),
            wrong=0 if at is None else int(errors[at]),
            upper=1.0 if at is None else upper_bound(int(errors[at]), int(served[at]), confidence),
            cut=None if at is None else curve.cuts[at],
            missing=_missing(served, curve, samples, limit, confidence),
        )

    if not samples:
        return short("no-labels", None)
    if not served.any():
        return short("none-served", None)
    start = _start(served, curve, limit, confidence)
    if start is None:
        return short("too-few", None)
    last = None
    for at in range(start, len(served)):
        if upper_bound(int(errors[at]), int(served[at]), confidence) > limit:
            break
        last = at
    if last is None:
        return short("too-often-wrong" if errors[start] > limit * served[start] else "too-few", start)
    return Certificate(
        limit=limit,
        confidence=confidence,
        samples=samples,
        served=int(served[last]),
        wrong=int(errors[last]),
        upper=upper_bound(int(errors[last]), int(served[last]), confidence),
        cut=curve.cuts[last],
        origin=origin,
    )


def expected_curve(
    scores: NDArray[np.float64], wrong: NDArray[np.float64] | NDArray[np.bool_], cuts: Sequence[float]
) -> Curve:
    """Of what is expected of each score, a chance in [0, 1] or a label from elsewhere, at falling `cuts`.

    Half an error is added everywhere, so that no cut is expected to be flawless.
    """
    order = np.argsort(-scores, kind="stable")
    served = np.searchsorted(-scores[order], -np.asarray(cuts, np.float64), side="right")
    errors = np.concatenate([[0.0], np.cumsum(wrong[order].astype(np.float64))])[served]
    return Curve(cuts=[float(cut) for cut in cuts], wrong=((errors + 0.5) / (served + 1)).tolist())


def settle(labels: Sequence[Label]) -> Settled:
    """One label a pair: what people say outweighs a judge model, and both outweigh what was compared automatically.

    A pair whose best labellers contradict one another counts as wrong: leaving
    it out would leave out the hard ones.
    """
    best: dict[tuple[str, str], Label] = {}
    disputed: set[tuple[str, str]] = set()
    for label in labels:
        pair = (label.asked, label.stored)
        known = best.get(pair)
        if known is None or _RANK[label.by] > _RANK[known.by]:
            best[pair] = label
            disputed.discard(pair)
        elif label.by == known.by and label.wrong != known.wrong:
            disputed.add(pair)
            if label.wrong:
                best[pair] = label
    return Settled(labels=list(best.values()), repeated=len(labels) - len(best), contradictory=len(disputed))


def labelled_by(labels: Sequence[Label]) -> Labeller:
    """The least of those who labelled: a certificate is worth no more. Raises `ValueError` without a label."""
    return min((label.by for label in labels), key=_RANK.__getitem__)


def needed(
    limit: float,
    rate: float | None = None,
    *,
    share: float = 1.0,
    confidence: float = 0.95,
    power: float = _POWER,
) -> int | None:
    """How many labels certify `limit` with a chance of `power`, where `rate` of what is served is in truth wrong.

    `rate` is half the limit if not given, and `share` of the labelled lookups
    are served: 361 for a limit of 5 %, 969 for 2 %, 1,941 for 1 %. None where
    no sane number does.
    """
    _check(limit, confidence)
    rate = limit / 2 if rate is None else rate
    if rate >= limit or share <= 0:
        return None
    allowed = 0
    while True:
        served = _least_served(allowed, limit, confidence)
        if served / share > _MOST_LABELS:
            return None
        if _at_most(allowed, served, rate) >= power:
            return math.ceil(served / share)
        # The count allowed grows in steps that matter, not by one: large ones are only ever approximate.
        allowed += 1 + allowed // 100


def upper_bound(wrong: int, served: int, confidence: float = 0.95) -> float:
    """Clopper and Pearson's one-sided upper bound on a share of which `wrong` of `served` were seen; 1 of none."""
    if wrong >= served:
        return 1.0
    low, high = wrong / served, 1.0
    # The chance of so few falls as the share grows; 60 halvings reach the spacing of doubles.
    for _ in range(60):
        middle = (low + high) / 2
        if _at_most(wrong, served, middle) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def _check(limit: float, confidence: float) -> None:
    if not 0 < limit < 1:
        raise ValueError(f"a limit of {limit}: a share between 0 and 1 is meant, like 0.01")
    if not 0 < confidence < 1:
        raise ValueError(f"a confidence of {confidence}: a share between 0 and 1 is meant, like 0.95")


def _start(served: NDArray[np.int64], curve: Curve, limit: float, confidence: float) -> int | None:
    """The cut whose test passes most likely, by the curve; the loosest of equals. None where no test could."""
    best, at = 0.0, None
    for i, (count, rate) in enumerate(zip(served.tolist(), curve.wrong, strict=True)):
        allowed = _allowed(count, limit, confidence)
        if allowed < 0:
            continue
        chance = _at_most(allowed, count, rate)
        if chance >= best:
            best, at = chance, i
    return at


def _missing(served: NDArray[np.int64], curve: Curve, samples: int, limit: float, confidence: float) -> int | None:
    """Labels still to be had, at the cut that needs the fewest by what the curve expects."""
    best: tuple[float, float, float] | None = None
    for count, rate in zip(served.tolist(), curve.wrong, strict=True):
        share = count / samples if samples else 1.0
        if share and rate < limit:
            # What a normal approximation says, up to a factor that all cuts share.
            spread = 2 * math.sqrt(limit * (1 - limit)) + math.sqrt(rate * (1 - rate))
            about = (spread / (limit - rate)) ** 2 / share
            best = min(best or (math.inf, 0.0, 0.0), (about, rate, share))
    if best is None:
        return None
    total = needed(limit, best[1], share=best[2], confidence=confidence)
    return None if total is None else max(total - samples, 1)


def _allowed(served: int, limit: float, confidence: float) -> int:
    """The most errors among `served` that still pass; -1 where not even none would."""
    if served == 0 or (1 - limit) ** served > 1 - confidence:
        return -1
    low, high = 0, served
    while high - low > 1:
        middle = (low + high) // 2
        if _at_most(middle, served, limit) <= 1 - confidence:
            low = middle
        else:
            high = middle
    return low


def _least_served(wrong: int, limit: float, confidence: float) -> int:
    """The fewest served of which `wrong` may be wrong and the bound still be at or below `limit`."""
    low, high = wrong, max(16, 2 * wrong)
    while _at_most(wrong, high, limit) > 1 - confidence:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if _at_most(wrong, middle, limit) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def _at_most(wrong: int, served: int, rate: float) -> float:
    """The chance of at most `wrong` errors among `served`, each with `rate`."""
    if wrong >= served or rate <= 0:
        return 1.0
    return 0.0 if rate >= 1 else incomplete_beta(served - wrong, wrong + 1, 1 - rate)


def incomplete_beta(a: float, b: float, x: float) -> float:
    """I_x(a, b), the regularised incomplete beta function, by Lentz's continued fraction (Press et al., 6.4).

    For a, b > 0 and x in [0, 1]; to about 1e-12.
    """
    if x <= 0 or x >= 1:
        return float(x >= 1)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    if x < (a + 1) / (a + b + 2):
        return math.exp(log_front) * _fraction(a, b, x) / a
    return 1 - math.exp(log_front) * _fraction(b, a, 1 - x) / b


def _fraction(a: float, b: float, x: float) -> float:
    c, d = 1.0, _away_from_zero(1 - (a + b) * x / (a + 1))
    d = 1 / d
    value = d
    # It converges within some sqrt(max(a, b)) terms.
    for m in range(1, 200 + 20 * math.isqrt(int(max(a, b)) + 1)):
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / _away_from_zero(1 + numerator * d)
            c = _away_from_zero(1 + numerator / c)
            value *= d * c
        if abs(d * c - 1) < _EPSILON:
            break
    return value


def _away_from_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
