"""`keepgate bench cache`: policies of a semantic cache side by side on streams made of your own labelled questions.

Nothing is asked of a provider and nothing is stored: keys, namespaces and
rules are the gateway's, the answers are made up (service/bench/cache_traffic).
"""

import asyncio
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
from numpy.typing import NDArray

from backends import registry
from backends.embedding.base import Embedder
from models.errors import ConfigError, TextRefused
from service.bench import cache_policies, cache_report
from service.bench.cache_policies import NAMES, PRICE_EMBEDDING, PRICE_IN, PRICE_OUT, SHIPPED, Judge, Stream
from service.bench.cache_traffic import PROFILES, Labelled, Profile, read, sample, siblings, stream
from service.caching.verifier import TreesRefused, Verifier, load

Json = dict[str, Any]

_CHUNK = 64
_PROGRESS = 0.2


class Size(NamedTuple):
    """`pool` is of how many questions a stream is made at most, `labels` how many requests `certified` learns from."""

    pool: int
    requests: int
    labels: int
    seeds: int


QUICK = Size(pool=1_200, requests=1_500, labels=2_000, seeds=5)
FULL = Size(pool=3_000, requests=3_000, labels=4_000, seeds=20)


# The share done, and what is being done.
Progress = Callable[[float, str], None]


def main(
    data: Path,
    *,
    profile: str = "faq",
    quick: bool = False,
    seeds: int | None = None,
    policies: Sequence[str] | None = None,
    json_to: str | None = None,
    html_to: Path | None = None,
    limit: float | None = None,
    zipf: float | None = None,
) -> int:
    """The exit code. `json_to` is a file beside the table, `-` in its place. Raises `ConfigError`.

    `limit` is the share of wrong hits that `certified` and vCache's rule are
    held to; without one `certified` is left out. `zipf` stands for the
    profile's exponent.
    """
    traffic = _profile(profile, zipf)
    names = _policies(policies, limit)
    if limit is not None and not 0 < limit < 1:
        raise ConfigError(f"a limit of {limit}: a share between 0 and 1 is meant, like 0.01")
    if seeds is not None and seeds < 1:
        raise ConfigError(f"{seeds} seeds: at least one is needed")
    files = [Path(to) for to in (json_to, html_to) if to not in (None, "-")]
    for file in files:
        try:
            file.touch()
        except OSError as error:
            raise ConfigError(f"{file} cannot be written: {error.strerror}") from error
    labelled = read(data)
    size = QUICK if quick else FULL
    size = size._replace(seeds=seeds or size.seeds)
    with_progress = Bar(sys.stderr)
    embedder: Embedder = registry.create("embedding", "onnx")
    try:
        verifier: Verifier | None = load(embedder.revision)
    except TreesRefused as error:
        print(f"without the verifier: {error}", file=sys.stderr)
        verifier = None
    result = asyncio.run(
        run(labelled, embedder, verifier, traffic, size, names=names, limit=limit, progress=with_progress)
    )
    with_progress.end()
    result["about"]["profile"] = profile
    if json_to not in (None, "-"):
        Path(str(json_to)).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if html_to is not None:
        html_to.write_text(cache_report.page(result), encoding="utf-8")
    print(json.dumps(result) if json_to == "-" else cache_report.table(result))
    return 0


async def run(
    labelled: Labelled,
    embedder: Embedder,
    verifier: Verifier | None,
    profile: Profile,
    size: Size,
    *,
    names: Sequence[str] = NAMES,
    limit: float | None = None,
    progress: Progress = lambda _done, _what: None,
) -> Json:
    """What cache_report shows, as JSON. Every text is embedded once; the same arguments give the same result."""
    vectors = Vectors(embedder)
    progress(0.0, "loading the embedder")
    await embedder.load()
    found: dict[tuple[str, str], list[cache_report.Figures]] = {}
    pairs, refused, reusable = [], [], 0
    certifies = limit is not None and "certified" in names
    try:
        for seed in range(size.seeds):
            told = f"seed {seed + 1} of {size.seeds}"

            def within(share: float, what: str, done: int = seed, told: str = told) -> None:
                progress((done + share) / size.seeds, f"{told}: {what}")

            asked = await _stream(labelled, profile, size, 2 * seed, vectors, within)
            # Of other questions, as far as there are others.
            before = await _stream(labelled, profile, size, 2 * seed + 1, vectors, within) if certifies else None
            played = cache_policies.outcomes(names, asked, verifier, seed=seed, limit=limit, before=before)
            for at, (name, family, outcome) in enumerate(played):
                found.setdefault((name, family), []).append(cache_report.figures(asked, outcome))
                within(0.5 + min(at / 50, 0.49), name)
            pairs.append(cache_policies.pairs(asked, Judge(asked, verifier) if verifier else None))
            refused.append(asked.refused)
            reusable += int(asked.reusable.sum())
    finally:
        await embedder.close()
    progress(1.0, "done")
    return {
        "about": {
            "data": labelled.name,
            "profile": "",
            "traffic": profile._asdict(),
            "requests": size.requests,
            "seeds": size.seeds,
            "labels": size.labels if limit is not None else None,
            "limit": limit,
            "questions": len(labelled.texts),
            "answers": len(set(labelled.classes)),
            "pool": size.pool,
            "unread": labelled.unread,
            "named": labelled.named,
            "reusable": reusable / (size.requests * size.seeds),
            "refused": cache_report.added(refused),
            "embedder": embedder.revision,
            "verifier": verifier.revision if verifier else None,
            "cut": verifier.cut(SHIPPED) if verifier else None,
            "prices": {"in": PRICE_IN, "out": PRICE_OUT, "embedding": PRICE_EMBEDDING},
        },
        "policies": [cache_report.summary(name, family, of_seeds) for (name, family), of_seeds in found.items()],
        "histograms": cache_report.histograms(pairs),
        "left_out": _left_out(names, verifier, limit),
    }


async def _stream(
    labelled: Labelled, profile: Profile, size: Size, seed: int, vectors: "Vectors", within: Progress
) -> Stream:
    """An odd seed is for labels."""
    questions = sample(labelled, size.pool, seed)
    await vectors.add(questions.texts, lambda share: within(0.5 * share, "embedding"))
    near = siblings(questions, np.stack([vectors[text] for text in questions.texts]))
    requests = size.labels if seed % 2 else size.requests
    made = cache_policies.prepared(stream(questions, near, profile, requests=requests, seed=seed))
    await vectors.add(made.wording)
    return cache_policies.with_cosines(made, np.stack([vectors[text] for text in made.wording]))


def _left_out(names: Sequence[str], verifier: Verifier | None, limit: float | None) -> list[str]:
    left = []
    if verifier is None:
        left += [f"{name}: there is no verifier for this embedder" for name in ("ours", "certified") if name in names]
    elif limit is None and "certified" in names:
        left.append("certified: no limit is given")
    return left


def _profile(name: str, zipf: float | None) -> Profile:
    if name not in PROFILES:
        raise ConfigError(f"no profile is named {name!r}; known: {', '.join(PROFILES)}")
    if zipf is not None and not 0 <= zipf <= 5:
        raise ConfigError(f"a Zipf exponent of {zipf}: 0 to 5 is meant")
    return PROFILES[name] if zipf is None else PROFILES[name]._replace(zipf=zipf)


def _policies(names: Sequence[str] | None, limit: float | None) -> Sequence[str]:
    if names is None:
        return [name for name in NAMES if name != "certified" or limit is not None]
    unknown = [name for name in names if name not in NAMES]
    if unknown or not names:
        raise ConfigError(f"no policy is named {', '.join(map(repr, unknown))}; known: {', '.join(NAMES)}")
    return list(dict.fromkeys(names))


class Vectors:
    """Of texts, each made once. One that the embedder refuses has a vector of zeros and is near to nothing."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._known: dict[str, NDArray[np.float32]] = {}

    def __getitem__(self, text: str) -> NDArray[np.float32]:
        return self._known[text]

    async def add(self, texts: Iterable[str], progress: Callable[[float], None] | None = None) -> None:
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        for at in range(0, len(new), _CHUNK):
            chunk = new[at : at + _CHUNK]
            try:
                rows = await self._embedder.embed(chunk, role="query")
            except TextRefused:
                rows = np.stack([await self._one(text) for text in chunk])
            self._known.update(zip(chunk, rows, strict=True))
            if progress is not None:
                progress(at / len(new))

    async def _one(self, text: str) -> NDArray[np.float32]:
        try:
            row: NDArray[np.float32] = (await self._embedder.embed([text], role="query"))[0]
        except TextRefused:
            return np.zeros(self._embedder.dimensions, np.float32)
        return row


class Bar:
    """On a terminal a bar that is redrawn; elsewhere a line for each tenth."""

    def __init__(self, to: TextIO) -> None:
        self._to = to
        self._drawn = self._tenth = -1.0

    def __call__(self, done: float, what: str) -> None:
        if not self._to.isatty():
            if int(done * 10) > self._tenth:
                self._tenth = int(done * 10)
                print(f"{done:4.0%} {what}", file=self._to, flush=True)
            return
        now = time.monotonic()
        if done < 1 and now < self._drawn + _PROGRESS:
            return
        self._drawn = now
        full = round(30 * done)
        print(f"\r\x1b[K{'█' * full}{'░' * (30 - full)} {done:4.0%} {what}", end="", file=self._to, flush=True)

    def end(self) -> None:
        if self._to.isatty():
            print("\r\x1b[K", end="", file=self._to, flush=True)
