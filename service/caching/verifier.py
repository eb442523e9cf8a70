"""P(the stored answer serves this question): boosted trees over `features`, evaluated without a training library.

All nodes of all trees are compared at once. A node that fails takes the leaves
of its left side away; the leftmost leaf that is left is the tree's (QuickScorer:
Lucchese et al., SIGIR 2015).
"""

import io
import json
import zipfile
from collections.abc import Sequence
from importlib.resources import files
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.errors import ConfigError
from service.caching.features import NAMES, Prepared, numbers_of, shared_tenths

LEAVES = 16  # of a tree at most: the bits of a mask
_FORMAT = 2
_TENTHS = 11
_COSINE = NAMES.index("cosine")
_NO_FLOORS = (-1.0,) * _TENTHS


class TreesRefused(ConfigError):
    """The trees cannot judge these vectors; the message says why. Go by a plain threshold."""


class Trees(NamedTuple):
    """`feature`, `threshold` and `mask` are (nodes, trees), padded with thresholds of infinity; `value` is
    (trees, `LEAVES`). `cuts` maps the share of different pairs served to the P from which on it is kept; `floors` maps
    it to the cosines below which nothing reaches that P, by the tenths of content words shared (11 of them).
    `cosine` is what a cosine of 1 adds to the log-odds beside the trees: texts unlike those that the trees saw are
    ranked better by it than by them."""

    feature: NDArray[np.int64]
    threshold: NDArray[np.float64]
    mask: NDArray[np.uint16]
    value: NDArray[np.float64]
    bias: float
    revision: str
    trained: str
    cuts: dict[float, float]
    floors: dict[float, tuple[float, ...]]
    cosine: float = 0.0


class Verifier:
    """Judges candidates by trees made for one revision of one embedder."""

    def __init__(self, trees: Trees) -> None:
        self._trees = trees
        nodes, count = trees.mask.shape
        self._shape = nodes, count
        self._feature = trees.feature.reshape(-1).astype(np.intp)
        self._threshold = np.ascontiguousarray(trees.threshold).reshape(-1)
        self._taken = np.ascontiguousarray(~trees.mask).reshape(-1)  # leaves that a failing node takes away
        self._places = np.arange(count) * LEAVES
        self._values = np.ascontiguousarray(trees.value).reshape(-1)
        self.revision = f"{trees.trained}/{_FORMAT}"

    def probabilities(
        self, asked: Prepared, stored: Sequence[Prepared], cosines: Sequence[float], *, share: float = 0.05
    ) -> list[float]:
        """P for each of the stored questions, in [0, 1]; the same for a pair whoever else is judged beside it.

        It is 0 where one has no word that could be compared, where they differ behind what is read of a long text, and
        where the cosine is too low for so few shared words to reach `cut(share)`: whoever serves from that cut on asks
        with its share, and pays for fewer candidates.
        """
        floors = self._floors(share)
        found = [0.0] * len(stored)
        near = [
            place
            for place, (one, cosine) in enumerate(zip(stored, cosines, strict=True))
            if asked.words and one.words and asked.beyond == one.beyond and cosine >= floors[shared_tenths(asked, one)]
        ]
        if near:
            rows = np.array([numbers_of(asked, stored[place], cosines[place]) for place in near], np.float64)
            for place, p in zip(near, self.judge(rows).tolist(), strict=True):
                found[place] = p
        return found

    def judge(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """P of rows of `features`."""
        return np.asarray(1.0 / (1.0 + np.exp(-self.scores(rows))), np.float64)

    def scores(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Log-odds of P."""
        fails = rows.take(self._feature, axis=1) > self._threshold
        taken = (fails * self._taken).reshape(len(rows), *self._shape)
        leaf = _LOWEST_BIT.take(~np.bitwise_or.reduce(taken, axis=1))
        score = self._values.take(leaf + self._places).sum(axis=1) + self._trees.bias
        return np.asarray(score + self._trees.cosine * rows[:, _COSINE], np.float64)

    def _floors(self, share: float) -> tuple[float, ...]:
        known = [limit for limit in self._trees.floors if limit >= share]
        return self._trees.floors[min(known)] if known else _NO_FLOORS

    def cut(self, share: float = 0.01) -> float:
        """The P from which on a hit is served, so that of different public pairs about `share` (0..1) are served.

        Between the shares known it is the stricter one's; below the smallest, nothing is served (1.0 and more).
        """
        known = [limit for limit in self._trees.cuts if limit <= share]
        return self._trees.cuts[max(known)] if known else np.inf


def load(revision: str) -> Verifier:
    """The shipped verifier. Raises `TreesRefused` if its trees were made for another embedder than `revision`."""
    return Verifier(read(files("service.caching").joinpath("verifier/trees.npz").read_bytes(), revision=revision))


def read(content: bytes, *, revision: str) -> Trees:
    """Trees from a file. Raises `TreesRefused` for those of another embedder, other features or no such file."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            about = json.loads(bytes(file["about"]).decode())
            feature, threshold = file["feature"].astype(np.int64), file["threshold"].astype(np.float64)
            mask, value = file["mask"].astype(np.uint16), file["value"].astype(np.float64)
        made_for, names, number = about["embedder"], tuple(about["features"]), about["format"]
        cuts = {float(share): float(cut) for share, cut in about["cuts"].items()}
        floors = {
            float(share): tuple(float(floor) for floor in by_tenths) for share, by_tenths in about["floors"].items()
        }
        bias, trained, of_cosine = float(about["bias"]), str(about["trained"]), float(about["cosine"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise TreesRefused(f"this is no file of the verifier's trees ({type(error).__name__})") from error
    if made_for != revision:
        raise TreesRefused(f"the verifier was trained for {made_for}, the embedder is {revision}")
    if number != _FORMAT or names != NAMES:
        raise TreesRefused("the verifier was trained for other features than this version's")
    count = value.shape[0]
    if not (
        feature.shape == threshold.shape == mask.shape == (feature.shape[0], count) and value.shape == (count, LEAVES)
    ):
        raise TreesRefused("the verifier's trees are of odd shapes")
    if any(len(by_tenths) != _TENTHS for by_tenths in floors.values()):
        raise TreesRefused("the verifier's trees have odd floors")
    if feature.size and not 0 <= int(feature.min()) <= int(feature.max()) < len(NAMES):
        raise TreesRefused("the verifier's trees ask for features there are not")
    return Trees(feature, threshold, mask, value, bias, made_for, trained, cuts, floors, of_cosine)


def dump(trees: Trees) -> bytes:
    """The file that `read` reads; the same bytes for the same trees."""
    about = {
        "format": _FORMAT, "embedder": trees.revision, "features": list(NAMES), "bias": trees.bias,
        "trained": trees.trained, "cosine": trees.cosine,
        "cuts": {str(share): cut for share, cut in trees.cuts.items()},
        "floors": {str(share): list(by_tenths) for share, by_tenths in trees.floors.items()},
    }  # fmt: skip
    content = io.BytesIO()
    np.savez_compressed(
        content,
        about=np.frombuffer(json.dumps(about).encode(), np.uint8),
        feature=trees.feature.astype(np.uint8),
        threshold=trees.threshold,
        mask=trees.mask,
        value=trees.value.astype(np.float32),
    )
    return content.getvalue()


def _lowest_bits() -> NDArray[np.int64]:
    places = np.zeros(1 << LEAVES, np.int64)
    for bit in reversed(range(LEAVES)):
        places[1 << bit :: 2 << bit] = bit
    return places


_LOWEST_BIT = _lowest_bits()
