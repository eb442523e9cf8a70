"""Which pairs of the log are worth a verdict, and in what order."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.caching.fit import COLUMNS, CUTS, fit
from service.caching.tuned import Tuned
from service.tune.labelled import digest
from service.tune.lookup_log import Learned, Pair, is_decided

# In log-odds: what lies so far below the cut in question may come above it once the fit is better.
_MARGIN = 0.5


class Undecided(NamedTuple):
    """`pairs` in the order to ask them, `chances` that their answers serve, of which the first `above` are at or above
    the cut in question. `without_texts` could be asked if their texts had been kept, `decided` have a verdict."""

    pairs: list[Pair]
    chances: list[float]
    above: int
    cut: float
    decided: int
    without_texts: int


def undecided(learned: Learned, *, limit: float, tuned: Tuned | None) -> Undecided:
    """First those that a cut in question would serve, drawn by lot, then the others, those nearest to it first.

    By lot, because a certificate is about all that is served: labels from near
    the cut alone are a sample of the hardest, and the bound on them is far
    above what it is on all. Whoever stops early leaves a fair sample.
    """
    samples = learned.samples
    among: NDArray[np.float64] = np.empty((0, len(COLUMNS))) if samples.among is None else samples.among
    fitted = fit(samples.features, samples.wrong, groups=samples.groups)
    model = tuned.fit if tuned is not None and not len(samples.wrong) else fitted.fit
    cut = _in_question(model.scores(among), limit) - _MARGIN
    scores = model.scores(among).tolist()
    above: list[tuple[Pair, float]] = []
    below: list[tuple[Pair, float]] = []
    decided = without = 0
    for pair, score in zip(learned.among, scores, strict=True):
        if is_decided(pair):
            decided += 1
        elif pair.texts is None:
            without += 1
        else:
            (above if score >= cut else below).append((pair, score))
    above.sort(key=lambda one: digest(one[0].asked, one[0].entry))
    below.sort(key=lambda one: -one[1])
    ordered = above + below
    return Undecided(
        [pair for pair, _ in ordered],
        [float(0.5 * (1 + np.tanh(0.5 * score))) for _, score in ordered],
        len(above),
        cut,
        decided,
        without,
    )


def _in_question(scores: NDArray[np.float64], limit: float) -> float:
    """The loosest score at which, by what the scores themselves expect, the limit is kept."""
    if not len(scores):
        return CUTS[0]
    ordered = np.sort(scores)[::-1]
    expected = np.cumsum(0.5 * (1 - np.tanh(0.5 * ordered))) / np.arange(1, len(ordered) + 1)
    within = np.flatnonzero(expected <= limit)
    return max(float(ordered[within[-1]]), CUTS[-1]) if len(within) else CUTS[0]
