"""An endpoint's own score of a candidate: how cosine, verifier and agreement weigh where it stands.

Logistic regression on a handful of numbers, drawn towards weights that were
learned elsewhere: without labels it is those, with thousands it is the
endpoint's own. On what one label says of another see `fit`.
"""

import math
from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from service.caching.agreement import Agreement
from service.caching.certificate import Curve, expected_curve

Column = Literal["cosine", "verifier", "margin", "depth", "share", "weighted", "three", "answers", "mean"]
COLUMNS: tuple[Column, ...] = ("cosine", "verifier", "margin", "depth", "share", "weighted", "three", "answers", "mean")
_AGREEMENT: tuple[Column, ...] = COLUMNS[2:]

# Where a column is centred and what counts as a step in it: the same everywhere, so that weights can be compared.
_CENTERS = np.array([0.85, 0.0, 0.15, 0.1, 0.8, 0.8, 0.8, 2.0, 0.8])
_SCALES = np.array([0.1, 2.0, 0.1, 0.1, 0.25, 0.2, 0.25, 1.5, 0.1])
# More of these never makes a candidate worse, whatever a few labels say.
_RISING = np.array([True, True, True, True, True, True, True, False, False])

# Scores at which an endpoint may cut: chances of being right from 99.99 % to 50 %, evenly in log-odds.
CUTS: tuple[float, ...] = tuple(np.linspace(math.log(9_999), 0.0, 185).tolist())

_FOLDS = 10
_PRIOR = 2.0  # how many steps' worth of labels the weights from elsewhere stand for
_CHOICES_NEED = 50  # labels of the rarer kind before a set of columns is chosen by them
_STEPS = 50
_SETTLED = 1e-8
_LEAST_CHANCE = 1e-6
_LEAST_COSINE = 0.05  # in log-odds a step: it is never quite without a say


class Fit(msgspec.Struct, frozen=True):
    """The score is in log-odds: `bias` and a weight for each of `columns`. `labels` it was fitted to."""

    columns: list[Column]
    weights: list[float]
    bias: float
    labels: int

    def score(self, cosine: float, verified: float | None, agreement: Agreement | None) -> float:
        """The log-odds that the stored answer serves, for the nearest candidate. About 5 µs.

        `verified` is the verifier's chance; it and `agreement` are used where
        the fit was made with them. Raises `ValueError` where one is missing.
        """
        total = self.bias
        for column, weight in zip(self.columns, self.weights, strict=True):
            if column == "cosine":
                value = cosine
            elif column == "verifier":
                if verified is None:
                    raise ValueError("this fit needs the verifier's chance")
                value = _log_odds(verified)
            elif agreement is None:
                raise ValueError("this fit needs the agreement of the nearest")
            else:
                value = getattr(agreement, column)
            at = COLUMNS.index(column)
            total += weight * (value - _CENTER[at]) / _SCALE[at]
        return total

    def scores(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """The same for rows of `features_of`."""
        kept = [COLUMNS.index(column) for column in self.columns]
        found: NDArray[np.float64] = _steps(features)[:, kept] @ np.array(self.weights) + self.bias
        return found


class Fitted(msgspec.Struct, frozen=True):
    """`fit` saw every label. The score of each labelled lookup in `scores` is by a fit that did not see it, and `curve`
    says what those expect of one another's: both are fit to be certified with."""

    fit: Fit
    scores: NDArray[np.float64]
    curve: Curve


_CENTER: list[float] = _CENTERS.tolist()
_SCALE: list[float] = _SCALES.tolist()

# What a label is weighed against. Slopes as half of CLINC150's classes have them (18,000 lookups in indexes of 1,000 to
# 6,000); the bias a step lower, and cosine and verifier with more say, as other endpoints' answers lie less in classes.
_LEARNED: dict[tuple[Column, ...], tuple[float, list[float]]] = {
    ("cosine",): (1.8, [1.3]),
    ("cosine", "verifier"): (1.8, [0.4, 1.4]),
    ("cosine", *_AGREEMENT): (3.0, [0.2, 0.6, 0.1, 1.3, 0.1, 0.4, 0.0, 0.5]),
    ("cosine", "verifier", *_AGREEMENT): (3.0, [0.2, 0.8, 0.6, 0.1, 1.0, 0.1, 0.4, 0.0, 0.3]),
}


def features_of(
    cosines: NDArray[np.float64],
    verified: NDArray[np.float64] | None,
    agreements: NDArray[np.float64] | None,
) -> NDArray[np.float64]:
    """Rows of `COLUMNS`: (n,) cosines, (n,) chances by the verifier, (n, 8) agreements; what is None is not a number,
    and no fit uses it."""
    n = len(cosines)
    chances = np.full(n, np.nan) if verified is None else verified
    around = np.full((n, len(_AGREEMENT)), np.nan) if agreements is None else agreements[:, 1:]
    return np.column_stack([cosines, chances, around])


def default_fit(*, verifier: bool, agreement: bool) -> Fit:
    """What is shipped, for an endpoint without labels."""
    columns = _columns(verifier=verifier, agreement=agreement)
    bias, weights = _LEARNED[columns]
    return Fit(columns=list(columns), weights=weights, bias=bias, labels=0)


def fit(
    features: NDArray[np.float64],
    wrong: NDArray[np.bool_],
    *,
    groups: NDArray[np.int64] | None = None,
    seed: int = 0,
) -> Fitted:
    """Fits to rows of `features_of` with a label each; columns that hold NaN are left out.

    Every score comes from a fit that saw nine tenths of the labels and not this
    one; lookups with one number in `groups` (the same question, asked again)
    stay on one side. Which columns are used is chosen by the same scores'
    likelihood, once there are enough errors to choose by: a choice among four
    at most, so what it lends the certificate is small. Cosine is always one.
    Raises `ValueError` for a cosine that is not finite, or lengths that differ.
    """
    if features.ndim != 2 or features.shape != (len(wrong), len(COLUMNS)):
        raise ValueError(f"features of {features.shape} for {wrong.shape} labels: {len(COLUMNS)} columns are meant")
    if not np.isfinite(features[:, 0]).all():
        raise ValueError("a cosine is not a finite number")
    steps = _steps(features)
    right = ~wrong
    whole: NDArray[np.bool_] = np.asarray(np.isfinite(steps).all(axis=0))
    verifier, agreement = bool(whole[1]), bool(whole[2:].all())
    choices = [
        _columns(verifier=with_verifier, agreement=with_agreement)
        for with_agreement in ([True, False] if agreement else [False])
        for with_verifier in ([True, False] if verifier else [False])
    ]
    rarer = int(min(right.sum(), wrong.sum()))
    if rarer < _CHOICES_NEED:
        choices = choices[:1]
    folds = _folds(len(wrong), groups, seed)
    best, scores, columns = math.inf, np.zeros(len(wrong)), choices[0]
    for choice in choices:
        kept = [COLUMNS.index(column) for column in choice]
        found = np.zeros(len(wrong))
        for fold in range(_FOLDS):
            seen, unseen = folds != fold, folds == fold
            if unseen.any():
                weights, bias = _regress(steps[np.ix_(seen, kept)], right[seen], choice)
                found[unseen] = steps[np.ix_(unseen, kept)] @ weights + bias
        loss = float(np.logaddexp(0.0, np.where(right, -found, found)).mean()) if len(wrong) else 0.0
        if loss < best:
            best, scores, columns = loss, found, choice
    kept = [COLUMNS.index(column) for column in columns]
    weights, bias = _regress(steps[:, kept], right, columns)
    return Fitted(
        fit=Fit(columns=list(columns), weights=weights.tolist(), bias=bias, labels=len(wrong)),
        scores=scores,
        curve=expected_curve(scores, _chance(-scores), CUTS),
    )


def _columns(*, verifier: bool, agreement: bool) -> tuple[Column, ...]:
    return ("cosine", *(("verifier",) if verifier else ()), *(_AGREEMENT if agreement else ()))


def _steps(features: NDArray[np.float64]) -> NDArray[np.float64]:
    """Every column in steps from its centre."""
    values = features.copy()
    chances = np.clip(values[:, 1], _LEAST_CHANCE, 1 - _LEAST_CHANCE)
    values[:, 1] = np.log(chances) - np.log1p(-chances)
    steps: NDArray[np.float64] = (values - _CENTERS) / _SCALES
    return steps


def _regress(
    steps: NDArray[np.float64], right: NDArray[np.bool_], columns: Sequence[Column]
) -> tuple[NDArray[np.float64], float]:
    """The most probable weights and bias (Newton's method), where some may not fall below a floor."""
    learned_bias, learned = _LEARNED[tuple(columns)]
    prior = np.array([*learned, learned_bias])
    pull = np.full(len(prior), _PRIOR)
    rising = np.array([*_RISING[[COLUMNS.index(column) for column in columns]], False])
    floor = np.where(rising, 0.0, -np.inf)
    floor[0] = _LEAST_COSINE
    inputs = np.column_stack([steps, np.ones(len(steps))])
    weights, free = prior.copy(), np.ones(len(prior), bool)
    for _ in range(_STEPS):
        chances = _chance(inputs @ weights)
        slope = inputs.T @ (chances - right) + pull * (weights - prior)
        # A weight at its floor comes loose again when its slope says so.
        free = (weights > floor) | (slope < 0)
        bend = (inputs * (chances * (1 - chances))[:, None]).T @ inputs + np.diag(pull)
        change = np.zeros(len(prior))
        change[free] = np.linalg.solve(bend[np.ix_(free, free)], slope[free])
        moved = np.maximum(weights - change, floor)
        done = float(np.abs(moved - weights).max()) < _SETTLED
        weights = moved
        if done:
            break
    return weights[:-1], float(weights[-1])


def _folds(n: int, groups: NDArray[np.int64] | None, seed: int) -> NDArray[np.int64]:
    each = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1]
    dealt = np.random.default_rng(seed).permutation(int(each.max(initial=-1)) + 1) % _FOLDS
    folds: NDArray[np.int64] = dealt[each]
    return folds


def _chance(log_odds: NDArray[np.float64]) -> NDArray[np.float64]:
    chances: NDArray[np.float64] = 0.5 * (1 + np.tanh(0.5 * log_odds))
    return chances


def _log_odds(chance: float) -> float:
    chance = min(max(chance, _LEAST_CHANCE), 1 - _LEAST_CHANCE)
    return math.log(chance / (1 - chance))
