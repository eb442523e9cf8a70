"""From labels to what the endpoint's fit would be told: look-ups with a label each.

As on the request path: the first of ten candidates that nothing vetoes, with
its cosine, the verifier's chance and the agreement of the twenty nearest from
there on. What is never looked up, or never served, is no sample of what is.
"""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Sequence, Set
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from backends.embedding.base import Embedder
from models.errors import BackendError, TextRefused
from models.request import Request
from service.caching.agreement import LOOKED_AT, Agreement, agreement
from service.caching.certificate import Label, Labeller
from service.caching.eligibility import judge
from service.caching.features import Prepared, prepare
from service.caching.fit import features_of
from service.caching.verifier import Verifier
from service.caching.vetoes import conflict
from service.tune.labelled import Progress, Question, digest

CANDIDATES = 10
_CHUNK = 64
_ROWS = 500
_REMEMBERED = 20_000
_TRIES = 3
_PAUSE = 1.0


class Samples(NamedTuple):
    """Rows of `fit.features_of`, `wrong`, who labelled, `groups` of the same question, and what each label is known by.

    `among` are the rows of all look-ups of which these are the labelled ones; None where there are no others.
    `left_out` counts labels by why they are about nothing that would be served.
    """

    features: NDArray[np.float64]
    wrong: NDArray[np.bool_]
    by: list[Labeller]
    groups: NDArray[np.int64]
    keys: list[bytes]
    left_out: dict[str, int]
    among: NDArray[np.float64] | None = None


def data_revision(samples: Samples, chosen: NDArray[np.bool_]) -> str:
    """Names the labels used, in whatever order they came."""
    lines = sorted(
        key + bytes([wrong]) + by.encode()
        for key, wrong, by, taken in zip(samples.keys, samples.wrong.tolist(), samples.by, chosen.tolist(), strict=True)
        if taken
    )
    return blake2b(b"\n".join(lines), digest_size=12).hexdigest()


class Measure:
    """Embeds and compares texts for one endpoint. `off` are the rules of eligibility that it ignores."""

    def __init__(self, embedder: Embedder, verifier: Verifier | None, *, off: Set[str] = frozenset()) -> None:
        self._embedder = embedder
        self._verifier = verifier
        self._off = off
        self._vectors: OrderedDict[str, NDArray[np.float32] | None] = OrderedDict()

    async def pairs(self, labels: Sequence[Label], progress: Progress) -> Samples:
        """A row for each pair; they have no neighbours, so nothing is known of agreement."""
        left_out: Counter[str] = Counter()
        kept: list[tuple[Label, float, float]] = []
        for at in range(0, len(labels), _CHUNK):
            progress(at, len(labels))
            eligible = []
            for label in labels[at : at + _CHUNK]:
                reason = self._refused(label.asked) or self._refused(label.stored)
                if reason:
                    left_out[reason] += 1
                else:
                    eligible.append(label)
            await self._embed([text for label in eligible for text in (label.asked, label.stored)])
            for label in eligible:
                one, other = self._vectors[label.asked], self._vectors[label.stored]
                if one is None or other is None:
                    left_out["the embedder does not take it"] += 1
                    continue
                asked, stored = prepare(label.asked), prepare(label.stored)
                veto = conflict(asked, stored)
                if veto is not None:
                    left_out[f"vetoed: {veto}"] += 1
                    continue
                cosine = float(one @ other)
                kept.append((label, cosine, self._chance(asked, stored, cosine)))
        progress(len(labels), len(labels))
        return Samples(
            self._features([cosine for _, cosine, _ in kept], [chance for *_, chance in kept], None),
            np.array([label.wrong for label, *_ in kept], bool),
            [label.by for label, *_ in kept],
            _numbered([label.asked for label, *_ in kept]),
            [digest(label.asked, label.stored) for label, *_ in kept],
            dict(left_out),
        )

    async def questions(self, questions: Sequence[Question], progress: Progress) -> Samples:
        """Each question looked up among all others, as if it came last."""
        left_out: Counter[str] = Counter()
        kept: list[Question] = []
        rows: list[NDArray[np.float32]] = []
        for at in range(0, len(questions), _CHUNK):
            progress(at, len(questions))
            eligible = []
            for question in questions[at : at + _CHUNK]:
                reason = self._refused(question.text)
                if reason:
                    left_out[reason] += 1
                else:
                    eligible.append(question)
            await self._embed([question.text for question in eligible])
            for question in eligible:
                vector = self._vectors[question.text]
                if vector is None:
                    left_out["the embedder does not take it"] += 1
                else:
                    kept.append(question)
                    rows.append(vector)
        progress(len(questions), len(questions))
        clusters: dict[str, int] = {}
        answers = [
            len(kept) + at if one.cluster is None else clusters.setdefault(one.cluster, len(clusters))
            for at, one in enumerate(kept)
        ]
        return self._looked_up(kept, np.stack(rows) if rows else np.empty((0, 1), np.float32), answers, left_out)

    def _looked_up(
        self,
        questions: Sequence[Question],
        vectors: NDArray[np.float32],
        answers: Sequence[int],
        left_out: Counter[str],
    ) -> Samples:
        read = [prepare(question.text) for question in questions]
        cosines, chances, around, wrong, by, asked, keys = [], [], [], [], [], [], []
        listed = min(LOOKED_AT, len(questions) - 1)
        for start in range(0, len(questions) if listed > 0 else 0, _ROWS):
            block = vectors[start : start + _ROWS] @ vectors.T
            block[np.arange(len(block)), np.arange(start, start + len(block))] = -2.0
            best = np.argpartition(-block, listed - 1, axis=1)[:, :listed]
            near = np.take_along_axis(block, best, axis=1)
            order = np.argsort(-near, axis=1, kind="stable")
            places = np.take_along_axis(best, order, axis=1).tolist()
            for row, (others, similar) in enumerate(
                zip(places, np.take_along_axis(near, order, axis=1).tolist(), strict=True)
            ):
                here = start + row
                at = next(
                    (at for at, other in enumerate(others[:CANDIDATES]) if conflict(read[here], read[other]) is None),
                    None,
                )
                if at is None:
                    left_out["every candidate is vetoed"] += 1
                    continue
                there = others[at]
                cosines.append(similar[at])
                chances.append(self._chance(read[here], read[there], similar[at]))
                around.append(agreement(similar[at:], [answers[other] for other in others[at:]]))
                wrong.append(answers[there] != answers[here])
                by.append(_least(questions[here].by, questions[there].by))
                asked.append(here)
                keys.append(digest(questions[here].text, questions[there].text))
        return Samples(
            self._features(cosines, chances, around),
            np.array(wrong, bool),
            by,
            np.array(asked, np.int64),
            keys,
            dict(left_out),
        )

    def _features(
        self, cosines: Sequence[float], chances: Sequence[float], around: Sequence[Agreement] | None
    ) -> NDArray[np.float64]:
        return features_of(
            np.array(cosines, np.float64),
            None if self._verifier is None else np.array(chances, np.float64),
            None if around is None else np.array(around, np.float64).reshape(len(around), len(Agreement._fields)),
        )

    def _chance(self, asked: Prepared, stored: Prepared, cosine: float) -> float:
        return 0.0 if self._verifier is None else self._verifier.probabilities(asked, [stored], [cosine])[0]

    def _refused(self, text: str) -> str:
        request = Request("chat", "", {"messages": [{"role": "user", "content": text}]}, b"")
        reason = judge(request, text, off=self._off)
        return f"never looked up: {reason}" if reason else ""

    async def _embed(self, texts: Sequence[str]) -> None:
        """Into `_vectors`, None for those the embedder refuses."""
        new = [text for text in dict.fromkeys(texts) if text not in self._vectors]
        for text in texts:
            if text in self._vectors:
                self._vectors.move_to_end(text)
        if new:
            try:
                rows = await self._embedded(new)
                self._vectors.update(zip(new, rows, strict=True))
            except TextRefused:
                for text in new:
                    try:
                        self._vectors[text] = (await self._embedded([text]))[0]
                    except TextRefused:
                        self._vectors[text] = None
        while len(self._vectors) > _REMEMBERED:
            self._vectors.popitem(last=False)

    async def _embedded(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """An embedder behind a network may stumble: an hour's work must not end there."""
        for left in reversed(range(_TRIES)):
            try:
                return await self._embedder.embed(texts, role="query")
            except TextRefused:
                raise
            except BackendError:
                if not left:
                    raise
                await asyncio.sleep(_PAUSE * (_TRIES - left))
        raise AssertionError("unreachable")


def joined(samples: Sequence[Samples]) -> Samples:
    """Of several kinds as one. What one kind lacks, no fit of all can use."""
    left_out: Counter[str] = Counter()
    groups, first = [], 0
    for one in samples:
        left_out.update(one.left_out)
        groups.append(one.groups + first)
        first += int(one.groups.max(initial=-1)) + 1
    return Samples(
        np.concatenate([one.features for one in samples]),
        np.concatenate([one.wrong for one in samples]),
        [by for one in samples for by in one.by],
        np.concatenate(groups),
        [key for one in samples for key in one.keys],
        dict(left_out),
    )


def _numbered(names: Sequence[str]) -> NDArray[np.int64]:
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], np.int64)


def _least(one: Labeller, other: Labeller) -> Labeller:
    ranks: tuple[Labeller, ...] = ("automatic", "judge", "people")
    return min(one, other, key=ranks.index)
