"""What words weigh, and what a word says that only one of two questions has. Both are in verifier/words.txt."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.verifier_data import Labelled
from service.caching import vocabulary

_STEPS = 300
_RATE = 0.05
_LEAST_PAIRS = 12  # in which a word is the odd one out, to be told what it says
_KEPT_SMALL = 8.0  # the strength of the ridge
_MOST = 1.5


def word_weights(pairs: Sequence[Labelled], *, most: int = 6_000, least: int = 8) -> dict[str, float]:
    """Of the stems in at least `least` texts that are learned from: the natural logarithm of one in how many texts has
    the stem, in halves."""
    texts = {text for pair in pairs if pair.part == "learn" for text in (pair.a, pair.b)}
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update({
            vocabulary.stem(lower)
            for _, lower in vocabulary.words_of(text)
            if lower.isascii() and lower.isalpha() and len(lower) < 20
        })  # fmt: skip
    kept = sorted((one for one in counts if counts[one] >= least), key=lambda one: (-counts[one], one))[:most]
    return {one: min(round(2 * math.log(len(texts) / counts[one])) / 2, 10.0) for one in kept}


def lines(weights: dict[str, float], says: dict[str, float]) -> str:
    """Lines of a weight, what is said, and the stems of which that holds."""
    bands: dict[tuple[float, float], list[str]] = {}
    for one, weight in weights.items():
        bands.setdefault((weight, says.get(one, 0.0)), []).append(one)
    return "".join(f"{band[0]:g} {band[1]:g} {' '.join(sorted(bands[band]))}\n" for band in sorted(bands))


def common(pairs: Sequence[Labelled]) -> frozenset[str]:
    """Stems that stand in small letters more often than not: a name says nothing of other people's questions."""
    small: Counter[str] = Counter()
    texts = {text for pair in pairs if pair.part == "learn" and pair.source == "gptcache_qqp" for text in pair[:2]}
    for text in texts:
        for place, (written, lower) in enumerate(vocabulary.words_of(text)):
            if place and lower.isascii() and lower.isalpha():
                small[vocabulary.stem(lower)] += -1 if written[0].isupper() else 1
    return frozenset(one for one, count in small.items() if count > 0)


def says(
    x: NDArray[np.float64],
    y: NDArray[np.int64],
    weight: NDArray[np.float64],
    apart: Sequence[Sequence[str]],
    words: frozenset[str],
) -> dict[str, float]:
    """For each of `words` that stands `apart` (is in one of a pair's texts only) often enough: what it adds to the
    log-odds of `y`, in tenths, beside the features `x` (standardised). Logistic regression with a ridge, by Adam."""
    counts = Counter(one for of in apart for one in of if one in words)
    known = {one: place for place, one in enumerate(sorted(one for one in counts if counts[one] >= _LEAST_PAIRS))}
    found = [(row, known[one]) for row, of in enumerate(apart) for one in of if one in known]
    at = np.array([row for row, _ in found], np.int64)
    column = np.array([place for _, place in found], np.int64)
    spread = x.std(axis=0)
    dense = np.clip((x - x.mean(axis=0)) / np.where(spread > 0, spread, 1.0), -4, 4).astype(np.float32)
    dense = np.column_stack([dense, np.ones(len(dense), np.float32)])
    wide = dense.shape[1]
    ridge = np.concatenate([np.full(wide, 0.1), np.full(len(known), _KEPT_SMALL)])
    of_words, moment, second = np.zeros(wide + len(known)), np.zeros(wide + len(known)), np.zeros(wide + len(known))
    for step in range(1, _STEPS + 1):
        score = dense @ of_words[:wide].astype(np.float32)
        score = score + np.bincount(at, weights=of_words[wide:][column], minlength=len(y))
        wrong = weight * (1 / (1 + np.exp(-score)) - y)
        slope = np.concatenate([
            wrong.astype(np.float32) @ dense, np.bincount(column, weights=wrong[at], minlength=len(known)),
        ]) + ridge * of_words  # fmt: skip
        moment = 0.9 * moment + 0.1 * slope
        second = 0.99 * second + 0.01 * slope**2
        rate = _RATE * 0.5 * (1 + math.cos(math.pi * step / _STEPS))
        of_words -= rate * (moment / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.99**step)) + 1e-9)
    rounded = np.clip(np.round(of_words[wide:], 1), -_MOST, _MOST) + 0.0
    return {one: float(rounded[place]) for one, place in known.items() if rounded[place]}


def said(apart: Iterable[Sequence[str]], spoken: dict[str, float]) -> NDArray[np.float64]:
    """The feature of that name, of pairs whose words apart these are."""
    return np.array([sum(spoken.get(one, 0.0) for one in of) for of in apart], np.float64)
