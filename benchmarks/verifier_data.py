"""Labelled pairs for the verifier, split so that no question is on both sides, and the vectors of their texts."""

import asyncio
import hashlib
import json
import random
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from backends.embedding.base import Embedder
from backends.embedding.onnx import OnnxEmbedder
from models.errors import TextTooLong

_SLICE = 500
_KEPT = 20_000  # texts after which the file is written

Part = Literal["learn", "cut", "test"]

# Pairs that are learned from, and what one of them counts beside a pair of questions.
LEARNED = {
    "gptcache_qqp": ("gptcache_qqp/norm_pairs.jsonl", 1.0),
    "apt": ("langcache_sources/norm_apt_pairs.jsonl", 0.5),
    "parade": ("langcache_sources/norm_parade_pairs.jsonl", 0.05),
    "sick": ("langcache_sources/norm_sick_pairs.jsonl", 0.15),
    "mrpc": ("mrpc/norm_pairs.jsonl", 0.08),
    "disfl_qa": ("disfl_qa/norm_pairs.jsonl", 0.1),
}
# Never learned from; the first so many of each.
MOST_MEASURED = {"simclue_zh": 3_000}
MEASURED = {
    "checklist_qqp": "checklist_qqp/norm_pairs_sample.jsonl",
    "simclue_zh": "simclue_zh/norm_pairs.jsonl",
}


class Labelled(NamedTuple):
    """`label` 1 where one answer serves both. `test` is the name of a set's own subset."""

    a: str
    b: str
    label: int
    source: str
    part: Part
    weight: float
    test: str = ""


def labelled(folder: Path, *, seed: int) -> list[Labelled]:
    """All pairs: 60 % of the components of those learned from to learn, 15 % to choose the cut, 25 % to test.

    A component is what pairs of any set connect, directly or through others; texts are compared without case and
    spaces around. The largest component is learned from, whatever its size.
    """
    found: list[Labelled] = []
    for source, (path, weight) in LEARNED.items():
        found += [
            Labelled(str(row["a"]), str(row["b"]), int(str(row["label"])), source, "learn", weight)
            for row in lines(folder / path)
        ]
    found += _intents(folder / "clinc150/norm_clusters.jsonl", seed)
    groups = components([(pair.a, pair.b) for pair in found])
    sizes: dict[int, int] = {}
    for group in groups:
        sizes[group] = sizes.get(group, 0) + 1
    largest = max(sizes, key=lambda group: sizes[group])
    draw = random.Random(seed)  # noqa: S311 - nothing secret, the same again is the point
    parts: dict[int, Part] = {}
    for group in dict.fromkeys(groups):
        chance = draw.random()
        parts[group] = "learn" if chance < 0.6 or group == largest else "cut" if chance < 0.75 else "test"
    found = [pair._replace(part=parts[group]) for pair, group in zip(found, groups, strict=True)]
    for source, path in MEASURED.items():
        found += [
            Labelled(
                str(row["a"]), str(row["b"]), int(str(row["label"])), source, "test", 1.0, str(row.get("test", ""))
            )
            for row in lines(folder / path)[: MOST_MEASURED.get(source)]
        ]
    return found


# Sets of questions by class, never learned from: at most so many questions of each are looked at.
CLASSES = {"banking77": 2_000, "osschat_clusters": 2_000}


def neighbours(folder: Path, name: str, vectors: "Vectors", *, seed: int, each: int = 5) -> list[Labelled]:
    """Questions of a set of `CLASSES` with the `each` nearest of the others; 1 where both are of one class."""
    rows = [(str(row["text"]), str(row["cluster"])) for row in lines(folder / name / "norm_clusters.jsonl")]
    draw = random.Random(seed)  # noqa: S311 - nothing secret, the same again is the point
    chosen = dict(draw.sample(rows, min(CLASSES[name], len(rows))))
    texts = list(chosen)
    vectors.add(texts)
    return [
        Labelled(text, other, int(chosen[text] == chosen[other]), name, "test", 1.0)
        for text, others in zip(texts, vectors.strangers(texts, texts, each=each), strict=True)
        for other in others
        if text.strip().casefold() != other.strip().casefold()
    ]


def halves(pairs: Sequence[Labelled], *, seed: int) -> NDArray[np.int64]:
    """0 or 1 for each pair, the same for all of one component. A pair made of a question is where its question is."""
    draw = random.Random(seed)  # noqa: S311 - nothing secret, the same again is the point
    first = [pair for pair in pairs if pair.source in LEARNED or pair.source == "clinc150"]
    drawn: dict[int, int] = {}
    of: dict[str, int] = {}
    for pair, group in zip(first, components([(pair.a, pair.b) for pair in first]), strict=True):
        if group not in drawn:
            drawn[group] = draw.randrange(2)
        of[pair.a.strip().casefold()] = of[pair.b.strip().casefold()] = drawn[group]
    found = []
    for pair in pairs:
        known = [of[text] for text in (pair.a.strip().casefold(), pair.b.strip().casefold()) if text in of]
        found.append(known[0] if known else draw.randrange(2))
    return np.array(found, np.int64)


def strangers(pairs: Sequence[Labelled], vectors: "Vectors", *, seed: int) -> list[Labelled]:
    """Questions and those nearest to them that no pair connects them with: what a cache is asked beside its hits.

    Many of the very near ones mean the same and nobody said so, which is why they stop at a cosine of .85.
    """
    draw = random.Random(seed)  # noqa: S311 - nothing secret, the same again is the point
    chosen = [pair for pair in pairs if pair.source == "gptcache_qqp"]
    group = {pair.a: one for pair, one in zip(chosen, components([(pair.a, pair.b) for pair in chosen]), strict=True)}
    found: list[Labelled] = []
    parts: tuple[tuple[Part, int], ...] = (("learn", 4_000), ("test", 1_500))
    for part, count in parts:
        texts = sorted({pair.a for pair in chosen if pair.part == part})
        vectors.add(texts)
        asked = draw.sample(texts, min(count, len(texts)))
        near = vectors.strangers(asked, texts, each=6)
        found += [
            Labelled(text, other, 0, "strangers", part, 0.1)
            for text, others in zip(asked, near, strict=True)
            for other in others
            if group[text] != group[other]
        ]
    cosines = vectors.cosines([pair.a for pair in found], [pair.b for pair in found])
    return [pair for pair, cosine in zip(found, cosines, strict=True) if cosine < 0.85]


def _intents(path: Path, seed: int) -> list[Labelled]:
    """Pairs within and across half of the intents, for a small share: an intent is not an answer."""
    draw = random.Random(seed)  # noqa: S311 - nothing secret, the same again is the point
    intents: dict[str, list[str]] = {}
    for row in lines(path):
        intents.setdefault(str(row["cluster"]), []).append(str(row["text"]))
    names = sorted(name for name in intents if name != "oos")
    learned = draw.sample(names, len(names) // 2)
    pairs = []
    for name in sorted(learned):
        texts = intents[name]
        for _ in range(20):
            one, other = draw.sample(texts, 2)
            pairs.append(Labelled(one, other, 1, "clinc150", "learn", 0.1))
        others = [other for other in learned if other != name]
        pairs += [
            Labelled(draw.choice(texts), draw.choice(intents[draw.choice(others)]), 0, "clinc150", "learn", 0.2)
            for _ in range(20)
        ]
    return pairs


def components(pairs: Sequence[tuple[str, str]]) -> list[int]:
    """The same number for pairs that share a text, directly or through others."""
    smallest: list[int] = []
    place: dict[str, int] = {}

    def root(one: int) -> int:
        while smallest[one] != one:
            smallest[one] = smallest[smallest[one]]
            one = smallest[one]
        return one

    ends = []
    for a, b in pairs:
        for text in (a, b):
            if place.setdefault(text.strip().casefold(), len(smallest)) == len(smallest):
                smallest.append(len(smallest))
        one, other = root(place[a.strip().casefold()]), root(place[b.strip().casefold()])
        smallest[max(one, other)] = min(one, other)
        ends.append(one)
    return [root(end) for end in ends]


def lines(path: Path) -> list[dict[str, object]]:
    """The objects of a JSON lines file."""
    with path.open(encoding="utf-8") as rows:
        return [json.loads(row) for row in rows]


class Vectors:
    """Vectors of the texts of one set, kept in `folder` by set and embedder revision.

    `<set>-<hash of the revision>.npy` holds the rows, the `.jsonl` beside it the texts in their order. Texts that are
    not there yet are embedded one a run and added.
    """

    def __init__(self, folder: Path, name: str, embedder: Embedder | None = None) -> None:
        self._embedder = embedder or OnnxEmbedder()
        stem = f"{name}-{hashlib.sha256(self._embedder.revision.encode()).hexdigest()[:12]}"
        self._rows, self._texts = folder / f"{stem}.npy", folder / f"{stem}.jsonl"
        self._place: dict[str, int] = {}
        self._matrix = np.empty((0, self._embedder.dimensions), np.float32)
        if self._rows.exists() and self._texts.exists():
            with self._texts.open(encoding="utf-8") as texts:
                self._place = {json.loads(text): place for place, text in enumerate(texts)}
            self._matrix = np.load(self._rows)

    def add(self, texts: Iterable[str]) -> None:
        """Embeds and keeps those that are not there yet. A text beyond the window gets a row of zeros."""
        missing = [text for text in dict.fromkeys(texts) if text not in self._place]
        if missing:
            asyncio.run(self._embed(missing))

    def strangers(self, texts: Sequence[str], others: Sequence[str], *, each: int) -> list[list[str]]:
        """The `each` nearest of `others` to each of `texts` that are not it, all of which were added before."""
        matrix = self._matrix[[self._place[text] for text in others]]
        found: list[list[str]] = []
        for at in range(0, len(texts), 250):
            rows = self._matrix[[self._place[text] for text in texts[at : at + 250]]] @ matrix.T
            best = np.argpartition(-rows, each, axis=1)[:, : each + 1]
            for text, places in zip(texts[at : at + 250], best.tolist(), strict=True):
                found.append([others[place] for place in places if others[place] != text])
        return found

    def cosines(self, left: Sequence[str], right: Sequence[str]) -> NDArray[np.float64]:
        """Of each pair of texts, all of which were added before."""
        a, b = (np.fromiter((self._place[text] for text in side), np.int64, len(side)) for side in (left, right))
        parts = [
            np.einsum("ij,ij->i", self._matrix[a[at : at + 10_000]], self._matrix[b[at : at + 10_000]])
            for at in range(0, len(a), 10_000)
        ]
        return np.concatenate(parts).astype(np.float64) if parts else np.empty(0)

    async def _embed(self, texts: Sequence[str]) -> None:
        await self._embedder.load()
        started = time.monotonic()
        for at in range(0, len(texts), _KEPT):
            rows = [
                await self._rows_of(texts[place : place + _SLICE])
                for place in range(at, min(at + _KEPT, len(texts)), _SLICE)
            ]
            self._keep(texts[at : at + _KEPT], np.concatenate(rows))
            print(f"{self._rows.stem}: {len(self._place)}, {time.monotonic() - started:.0f} s", file=sys.stderr)
        await self._embedder.close()

    async def _rows_of(self, texts: Sequence[str]) -> NDArray[np.float32]:
        try:
            return await self._embedder.embed(texts, role="query")
        except TextTooLong:
            if len(texts) == 1:
                return np.zeros((1, self._embedder.dimensions), np.float32)
            half = len(texts) // 2
            return np.concatenate([await self._rows_of(texts[:half]), await self._rows_of(texts[half:])])

    def _keep(self, texts: Sequence[str], rows: NDArray[np.float32]) -> None:
        self._place |= {text: place for place, text in enumerate(texts, len(self._place))}
        self._matrix = np.concatenate([self._matrix, rows])
        partial = self._rows.with_suffix(".tmp")
        with partial.open("wb") as file:
            np.save(file, self._matrix)
        self._texts.write_text("".join(json.dumps(text) + "\n" for text in self._place), encoding="utf-8")
        partial.replace(self._rows)
