"""Whether the stored answers around a question agree: eight numbers from its nearest neighbours.

Where several entries answer one intent, that those around a question say the
same tells more about it than any likeness of two texts.
"""

import math
import re
import unicodedata
from collections.abc import Sequence
from hashlib import blake2b
from itertools import islice
from typing import NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from backends.vector.base import Vector

NEAREST = 10
# How far it is looked for another answer: where the ten agree, how far off the next one lies says the most.
LOOKED_AT = 20
# A neighbour's say falls by e for each .05 that its cosine lies below the first one's.
_FADE = 0.05

# A sketch: a digest of the whole text, one of what must be equal, and the least of each permutation of its words.
_DIGEST = 8
_SLOTS = 128
SKETCH = 2 * _DIGEST + _SLOTS
_ALIKE = 0.5  # least share of words in common
# What is read of an answer word by word: all but the longest.
_READ = 20_000
_WORDS = 4_000

# Digits with what is written onto them: 3.11, 10:30, 2026-11-20, A-17, 12kg.
_WRITTEN = re.compile(r"[\w.,:/-]+")
_DIGIT = re.compile(r"\d")
# A script written without spaces is read sign by sign.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")
# A capital behind a word or a comma begins a name, behind a full stop a sentence.
_NAME = re.compile(r"(?<=[\w,;] )(?=[^\W\d_])\w{2,}")
_NEGATION = re.compile(r"\b(?:not|no|never|none|nothing|nor|neither|cannot|without)\b|n['’]t\b")

# Who is compared with whom: each of the ten with each, those behind them with the first.
_ONES, _OTHERS = np.array(
    [(one, other) for other in range(LOOKED_AT) for one in range(other if other < NEAREST else 1)]
).T

_rng = np.random.default_rng(20_260)
_MULTIPLIERS = _rng.integers(1, 2**63, size=(_SLOTS, 1), dtype=np.uint64) | np.uint64(1)
_SUMMANDS = _rng.integers(0, 2**63, size=(_SLOTS, 1), dtype=np.uint64)


class Agreement(NamedTuple):
    """`cosine` of the nearest; `margin` from it to the best neighbour with another answer, and `depth` from the mean of
    the ten; `share` of the ten with the nearest one's answer, an absent one having none; `weighted`, the same among
    those there, by nearness; `three`, the share of the first three; how many different `answers` the ten have; `mean`
    cosine of the first three.

    Where all twenty agree, or all that are there, another answer is taken to
    lie where the last one does: a lone neighbour has no margin.
    """

    cosine: float
    margin: float
    depth: float
    share: float
    weighted: float
    three: float
    answers: float
    mean: float


def agreement(similarities: Sequence[float], answers: Sequence[int]) -> Agreement:
    """Of at most twenty neighbours, most similar first; equal numbers in `answers` are answers that agree.

    Raises `ValueError` without a neighbour, or for lengths that differ. About 7 µs.
    """
    if not similarities or len(similarities) != len(answers):
        raise ValueError(f"{len(similarities)} neighbours and {len(answers)} answers")
    top, first = similarities[0], answers[0]
    same, near, all_near = 0, 0.0, 0.0
    ten, said = similarities[:NEAREST], answers[:NEAREST]
    for similarity, answer in zip(ten, said, strict=True):
        weight = math.exp((similarity - top) / _FADE)
        all_near += weight
        if answer == first:
            same += 1
            near += weight
    other = similarities[min(len(similarities), LOOKED_AT) - 1]
    for similarity, answer in zip(similarities[:LOOKED_AT], answers, strict=False):
        if answer != first:
            other = similarity
            break
    three = similarities[:3]
    return Agreement(
        cosine=top,
        margin=top - other,
        depth=sum(ten) / len(ten) - other,
        share=same / NEAREST,
        weighted=near / all_near,
        three=answers[:3].count(first) / 3,
        answers=float(len(set(said))),
        mean=sum(three) / len(three),
    )


def agreements(similarities: Vector, answers: NDArray[np.int64]) -> NDArray[np.float64]:
    """The same of many lookups at once: (n, 20) cosines and answers, -1 where there is no neighbour, to (n, 8).

    A row without a neighbour is all 0.
    """
    there = answers >= 0
    cosines = np.where(there, similarities, 0.0).astype(np.float64)
    top = cosines[:, :1]
    rows = np.arange(len(cosines))
    same = there & (answers == answers[:, :1])
    different = there & ~same
    last = np.maximum(there.sum(axis=1) - 1, 0)
    other = cosines[rows, np.where(different.any(axis=1), different.argmax(axis=1), last)]
    ten = slice(0, NEAREST)
    weights = np.where(there[:, ten], np.exp((cosines[:, ten] - top) / _FADE), 0.0)
    ordered = np.sort(answers[:, ten], axis=1)
    changes = (np.diff(ordered, axis=1) != 0).sum(axis=1) + 1 - (ordered[:, 0] < 0)
    return np.column_stack(
        [
            top[:, 0],
            top[:, 0] - other,
            (cosines[:, ten].sum(axis=1) / np.maximum(there[:, ten].sum(axis=1), 1)) - other,
            same[:, ten].sum(axis=1) / NEAREST,
            (weights * same[:, ten]).sum(axis=1) / np.maximum(weights.sum(axis=1), 1e-12),
            same[:, :3].sum(axis=1) / 3,
            changes,
            cosines[:, :3].sum(axis=1) / np.maximum(there[:, :3].sum(axis=1), 1),
        ]
    )


def sketch(answer: str) -> bytes:
    """What is kept of an answer to tell later whether another agrees with it: `SKETCH` bytes, no text.

    At most 30 ms, for an answer of any length.
    """
    normal = " ".join(unicodedata.normalize("NFKC", answer).casefold().split())
    words = list(islice((found[0] for found in _WORD.finditer(normal[:_READ])), _WORDS))
    whole = " ".join(words) if words and len(normal) <= _READ and len(words) < _WORDS else normal
    beginning = answer[:_READ]
    facts = (
        sorted(run.strip(".,:/-") for run in _WRITTEN.findall(normal[:_READ]) if _DIGIT.search(run)),
        sorted({name for name in _NAME.findall(beginning) if name[0].isupper()}),
        _NEGATION.search(normal[:_READ]) is not None,
        normal[_READ:],
    )
    return _digest(whole) + _digest(repr(facts)) + _least(words or [normal])


def alike(sketches: Sequence[bytes]) -> list[int]:
    """A number for each answer, the same for those that agree: 0 for the first and for all that agree with it.

    Two agree when they are equal but for case, white space and punctuation, or
    have at least half of their words in common and name the same numbers and
    names. An answer joins the first that it agrees with; behind the ten only
    the very first is asked. For at most twenty, in about 25 µs.
    """
    rows = np.frombuffer(b"".join(sketches), np.uint8).reshape(len(sketches), SKETCH)
    digests = rows[:, : 2 * _DIGEST].copy().view(np.uint64)
    within = np.searchsorted(_OTHERS, len(sketches))
    ones, others = _ONES[:within], _OTHERS[:within]
    pairs = digests[ones] == digests[others]
    equal, near = pairs[:, 0], pairs[:, 1]
    doubtful = np.flatnonzero(near & ~equal)
    if len(doubtful):
        slots = rows[:, 2 * _DIGEST :]
        common = (slots[ones[doubtful]] == slots[others[doubtful]]).sum(axis=1, dtype=np.uint8)
        equal[doubtful[common >= _ALIKE * _SLOTS]] = True
    numbers = list(range(len(sketches)))
    agreeing = np.flatnonzero(equal)
    for one, other in zip(ones[agreeing].tolist(), others[agreeing].tolist(), strict=True):
        if numbers[one] == one and numbers[other] == other:
            numbers[other] = one
    return numbers


def agree(one: bytes, other: bytes) -> bool:
    """Whether two sketched answers say the same."""
    return alike([one, other]) == [0, 0]


def _digest(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_DIGEST).digest()


def _least(words: Sequence[str]) -> bytes:
    """One byte of each slot's least value (Broder 1997; b-bit minwise hashing, Li and König 2010)."""
    hashes = np.array(sorted({crc32(word.encode("utf-8", "surrogatepass")) for word in words}), np.uint64)
    with np.errstate(over="ignore"):
        least = (hashes * _MULTIPLIERS + _SUMMANDS).min(axis=1)
    slots: NDArray[np.uint8] = (least >> np.uint64(32)).astype(np.uint8)
    return slots.tobytes()
