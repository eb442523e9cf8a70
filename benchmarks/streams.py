"""Streams of questions with classes: hits within a limit that is certified after 3,000 labels, beside others' rules.

    python -m benchmarks.streams --data DIR [--seeds 100] [--sets banking77 clinc150] [--compared 10]
        [--embeddings DIR] [--json FILE]

DIR holds a folder for each set with `norm_clusters.jsonl`: `text` and
`cluster`. The class stands for the answer: a hit is right when the question
whose answer it is was of the same class, and what is out of scope (`oos`) has
a class for each question, so that it must never hit. Classes are only roughly
answers: this shows the mechanics, not what a user would call correct.

A seed shuffles the set. The first 3,000 requests all go upstream and are kept,
as in shadow mode. `tune` then looks each of them up among the other 2,999, and
the nearest one's label says whether its answer would have served: the fit is
crossed over ten parts, and each limit certified. All further requests (10,083
or 20,700) are the test, one after another: a hit is served and not kept, a
miss goes upstream and is kept. A limit is kept in a seed when the share of
wrong answers among those served is at or below it; a seed in which nothing
could be certified serves nothing.

Beside it, in the same streams but for `--compared` seeds of them: the best
single threshold in hindsight for that very test (which nobody has in advance),
and vCache's rule, which learns from the first 3,000 as well, everything sent
upstream, and then by itself, with its error rate set to the limit.

`every hit an alias` is what keeping served questions with the answer they were
given does. Embeddings are made one text at a time and kept in `--embeddings`.
"""

import argparse
import asyncio
import functools
import hashlib
import json
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from backends.embedding import minilm
from backends.embedding.onnx import OnnxEmbedder
from service.bench.vcache import VCacheEntry
from service.caching.agreement import LOOKED_AT, agreement, agreements
from service.caching.certificate import Certificate, Origin, Shortfall, certify, upper_bound
from service.caching.features import prepare
from service.caching.fit import Fit, Fitted, features_of, fit
from service.caching.verifier import TreesRefused, load

SETS = ("banking77", "clinc150")
OUT_OF_SCOPE = "oos"
LABELS = 3_000
LIMITS = (0.01, 0.02, 0.05)
STATIC = tuple(round(0.60 + 0.01 * i, 2) for i in range(40))
LISTED = 400  # neighbours of each question that are sorted beforehand
ROWS = 1_000

Verify = Callable[[str, str, float], float]


class Stream(NamedTuple):
    """`nearest` and `cosines`: the `LISTED` most similar to each text, most similar first."""

    texts: list[str]
    vectors: NDArray[np.float32]
    classes: NDArray[np.int64]
    nearest: NDArray[np.int32]
    cosines: NDArray[np.float32]


class Outcome(NamedTuple):
    """Of one seed's test. `certified` is None where the rule does not certify."""

    requests: int
    served: int
    wrong: int
    certified: bool | None = None


class Index:
    """The texts that are kept, found by the lists sorted beforehand, or exactly where these run out."""

    def __init__(self, stream: Stream, kept: NDArray[np.int64]) -> None:
        self._stream = stream
        self._kept = np.zeros(len(stream.texts), bool)
        self._kept[kept] = True

    def add(self, text: int) -> None:
        self._kept[text] = True

    def nearest(self, text: int, limit: int) -> tuple[NDArray[np.int64], list[float]]:
        listed = self._stream.nearest[text]
        at = np.flatnonzero(self._kept[listed])[:limit]
        if len(at) == limit:
            return listed[at].astype(np.int64), self._stream.cosines[text][at].tolist()
        kept = np.flatnonzero(self._kept)
        kept = kept[kept != text]
        cosines = self._stream.vectors[kept] @ self._stream.vectors[text]
        order = np.argsort(-cosines, kind="stable")[:limit]
        return kept[order], cosines[order].tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--compared", type=int, default=10, help="seeds for what is compared with")
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--embeddings", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--without-verifier", action="store_true")
    options = parser.parse_args()
    verify = None if options.without_verifier else shipped_verifier()
    rows: list[Row] = []
    for name in options.sets:
        stream = asyncio.run(read(options.data / name / "norm_clusters.jsonl", options.embeddings))
        requests = len(stream.texts) - LABELS
        print(f"{name}: {requests:,} test requests of each seed", file=sys.stderr)
        found = [
            summary(name, rule, limit, outcomes[limit])
            for rule, outcomes in measure(stream, options.seeds, min(options.compared, options.seeds), verify)
            for limit in LIMITS
        ]
        # After every set: a long run that is interrupted leaves what it has.
        print(table(found), flush=True)
        rows += found
        if options.json:
            options.json.write_text(json.dumps([row._asdict() for row in rows], indent=1) + "\n")


def measure(
    stream: Stream, seeds: int, compared: int, verify: Verify | None
) -> list[tuple[str, dict[float, list[Outcome]]]]:
    found: dict[str, dict[float, list[Outcome]]] = {}

    def note(rule: str, limit: float, outcome: Outcome) -> None:
        found.setdefault(rule, {limit: [] for limit in LIMITS})[limit].append(outcome)

    began = time.monotonic()
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(stream.texts))
        ours: list[tuple[str, Verify | None, bool]] = [("certified: cosine, agreement", None, True)]
        if seed < compared:
            ours.append(("certified: cosine", None, False))
        if verify is not None:
            ours.append(("certified: cosine, P, agreement", verify, True))
        for rule, judge, around in ours:
            fitted, wrong = tuned(stream, order[:LABELS], judge, around=around)
            for limit in LIMITS:
                certificate = certify(fitted.scores, wrong, limit=limit, curve=fitted.curve, origin=ORIGIN)
                note(rule, limit, served(stream, order, fitted.fit, certificate, judge, aliases=False))
                if seed < compared and around and judge is None:
                    with_aliases = served(stream, order, fitted.fit, certificate, judge, aliases=True)
                    note(f"{rule}; every hit an alias", limit, with_aliases)
        if seed < compared:
            by_cut = [static(stream, order, cut) for cut in STATIC]
            for limit in LIMITS:
                within = [one for one in by_cut if one.wrong <= limit * one.served]
                note("one threshold, in hindsight", limit, max(within, key=lambda one: one.served))
                note("vCache", limit, vcache(stream, order, limit, seed))
        print(f"\r{seed + 1} of {seeds} seeds, {time.monotonic() - began:.0f} s", end="", file=sys.stderr)
    print(file=sys.stderr)
    return list(found.items())


ORIGIN = Origin(labelled_by="people", embedder="", verifier="", data="", date="")


def tuned(
    stream: Stream, logged: NDArray[np.int64], verify: Verify | None, *, around: bool
) -> tuple[Fitted, NDArray[np.bool_]]:
    """Each logged request looked up among the others, and whether the nearest one's answer is wrong for it."""
    vectors, classes = stream.vectors[logged], stream.classes[logged]
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -2.0)
    nearest, near = most_similar(cosines, LOOKED_AT)
    wrong = classes[nearest[:, 0]] != classes
    verified = None
    if verify is not None:
        verified = np.array(
            [
                verify(stream.texts[logged[i]], stream.texts[logged[nearest[i, 0]]], float(near[i, 0]))
                for i in range(len(logged))
            ]
        )
    features = features_of(
        near[:, 0].astype(np.float64), verified, agreements(near, classes[nearest]) if around else None
    )
    return fit(features, wrong), wrong


def served(
    stream: Stream,
    order: NDArray[np.int64],
    model: Fit,
    certificate: Certificate | Shortfall,
    verify: Verify | None,
    *,
    aliases: bool,
) -> Outcome:
    requests = len(order) - LABELS
    if isinstance(certificate, Shortfall):
        return Outcome(requests, 0, 0, certified=False)
    index, answers = Index(stream, order[:LABELS]), stream.classes.copy()
    hits = wrong = 0
    for text in order[LABELS:].tolist():
        nearest, cosines = index.nearest(text, LOOKED_AT)
        around = answers[nearest].tolist()
        verified = None if verify is None else verify(stream.texts[text], stream.texts[nearest[0]], cosines[0])
        if model.score(cosines[0], verified, agreement(cosines, around)) >= certificate.cut:
            hits += 1
            wrong += int(around[0] != stream.classes[text])
            if aliases:
                answers[text] = around[0]
                index.add(text)
        else:
            index.add(text)
    return Outcome(requests, hits, wrong, certified=True)


def static(stream: Stream, order: NDArray[np.int64], cut: float) -> Outcome:
    index = Index(stream, order[:LABELS])
    hits = wrong = 0
    for text in order[LABELS:].tolist():
        nearest, cosines = index.nearest(text, 1)
        if cosines[0] >= cut:
            hits += 1
            wrong += int(stream.classes[nearest[0]] != stream.classes[text])
        else:
            index.add(text)
    return Outcome(len(order) - LABELS, hits, wrong)


def vcache(stream: Stream, order: NDArray[np.int64], error_rate: float, seed: int) -> Outcome:
    """What went upstream and was told something new is kept: the paper's rule, and the better one for it here."""
    draw = random.Random(seed)  # noqa: S311 - which requests explore
    index, entries = Index(stream, order[:1]), {int(order[0]): VCacheEntry()}
    hits = wrong = 0
    for at, text in enumerate(order.tolist()):
        if not at:
            continue
        (nearest,), (cosine,) = index.nearest(text, 1)
        entry = entries[int(nearest)]
        right = bool(stream.classes[nearest] == stream.classes[text])
        if at >= LABELS and draw.random() > entry.explore(cosine, error_rate=error_rate):
            hits += 1
            wrong += not right
            continue
        entry.observe(cosine, right=right)
        if not right:
            entries[text] = VCacheEntry()
            index.add(text)
    return Outcome(len(order) - LABELS, hits, wrong)


class Row(NamedTuple):
    """Means over seeds. Hits are of all requests, wrong ones of those served and of all; `worst` is of one seed, and
    `certified` None where a rule does not certify."""

    set: str
    rule: str
    limit: float
    seeds: int
    requests: int
    hits: float
    hits_from: float
    hits_to: float
    hits_median: float
    wrong_of_served: float
    worst: float
    wrong_of_all: float
    kept: int
    broken_at_most: float
    certified: int | None


def summary(name: str, rule: str, limit: float, outcomes: Sequence[Outcome]) -> Row:
    hits = [one.served / one.requests for one in outcomes]
    kept = sum(one.wrong <= limit * one.served for one in outcomes)
    n = len(outcomes)
    spread = 1.96 * statistics.stdev(hits) / math.sqrt(n) if n > 1 else math.nan
    mean = statistics.mean(hits)
    certified = [one.certified for one in outcomes if one.certified is not None]
    return Row(
        set=name,
        rule=rule,
        limit=limit,
        seeds=n,
        requests=outcomes[0].requests,
        hits=mean,
        hits_from=mean - spread,
        hits_to=mean + spread,
        hits_median=statistics.median(hits),
        wrong_of_served=sum(one.wrong for one in outcomes) / max(sum(one.served for one in outcomes), 1),
        worst=max(one.wrong / max(one.served, 1) for one in outcomes),
        wrong_of_all=sum(one.wrong for one in outcomes) / sum(one.requests for one in outcomes),
        kept=kept,
        broken_at_most=upper_bound(n - kept, n),
        certified=sum(certified) if certified else None,
    )


def table(rows: Sequence[Row]) -> str:
    lines = [
        "| set | rule | limit | hits (95 %) | median | wrong of served (worst) | of all | limit kept | certified |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        certified = "" if row.certified is None else f"{row.certified} of {row.seeds}"
        lines.append(
            f"| {row.set} | {row.rule} | {row.limit:.0%} | {row.hits:.3f} ({row.hits_from:.3f} to {row.hits_to:.3f}) "
            f"| {row.hits_median:.3f} | {row.wrong_of_served:.2%} ({row.worst:.2%}) | {row.wrong_of_all:.2%} "
            f"| {row.kept} of {row.seeds} | {certified} |"
        )
    return "\n".join(lines)


async def read(path: Path, cache: Path | None) -> Stream:
    numbers: dict[str, int] = {}
    texts, classes = [], []
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            texts.append(row["text"])
            cluster = row["cluster"]
            key = f"{cluster} {len(texts)}" if cluster == OUT_OF_SCOPE else cluster
            classes.append(numbers.setdefault(key, len(numbers)))
    vectors = await embedded(texts, path.parent.name, cache)
    nearest, cosines = sorted_neighbors(vectors)
    return Stream(texts, vectors, np.array(classes, np.int64), nearest, cosines)


async def embedded(texts: Sequence[str], name: str, cache: Path | None) -> NDArray[np.float32]:
    """One text a run. Kept by the set's name, the model's revision and, where it differs, the texts."""
    embedder = OnnxEmbedder()
    revision = hashlib.sha256(embedder.revision.encode()).hexdigest()[:12]
    kept = None if cache is None else cache / f"{name}-{revision}.npy"
    if kept is not None and kept.exists():
        vectors: NDArray[np.float32] = np.load(kept)
        if len(vectors) == len(texts):
            return vectors
    await embedder.load()
    try:
        parts = [await embedder.embed(texts[i : i + 500], role="query") for i in range(0, len(texts), 500)]
    finally:
        await embedder.close()
    vectors = np.concatenate(parts)
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.save(kept, vectors)
    return vectors


def sorted_neighbors(vectors: NDArray[np.float32]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    n = len(vectors)
    listed = min(LISTED, n - 1)
    nearest, cosines = np.empty((n, listed), np.int32), np.empty((n, listed), np.float32)
    for at in range(0, n, ROWS):
        block = vectors[at : at + ROWS] @ vectors.T
        block[np.arange(len(block)), np.arange(at, at + len(block))] = -2.0
        nearest[at : at + ROWS], cosines[at : at + ROWS] = most_similar(block, listed)
    return nearest, cosines


def most_similar(cosines: NDArray[np.float32], limit: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Of each row, most similar first."""
    best = np.argpartition(-cosines, limit - 1, axis=1)[:, :limit]
    values = np.take_along_axis(cosines, best, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    return np.take_along_axis(best, order, axis=1), np.take_along_axis(values, order, axis=1)


def shipped_verifier() -> Verify | None:
    """None where there are no trees for this embedder."""
    try:
        verifier = load(minilm.REVISION)
    except (FileNotFoundError, TreesRefused) as error:
        print(f"without a verifier: {error}", file=sys.stderr)
        return None
    read_once = functools.cache(prepare)

    @functools.cache
    def verify(asked: str, stored: str, cosine: float) -> float:
        return verifier.probabilities(read_once(asked), [read_once(stored)], [cosine])[0]

    return verify


if __name__ == "__main__":
    main()
