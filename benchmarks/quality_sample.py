"""The short version of benchmarks/quality.py: figures of small samples, and whether they are as good as those recorded.

The samples lie in tests/support/quality, written for this: questions of
customers and others in clusters, pairs by what differs in them, turns of
conversations, and texts by the rule that declines them. They show that
something has become worse, not how good it is.
"""

import asyncio
import json
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from backends import registry
from backends.embedding import minilm
from models.request import Request
from service.bench import cache
from service.bench.cache_traffic import PROFILES, read
from service.caching.context import leans_on
from service.caching.eligibility import judge
from service.caching.features import Prepared, prepare
from service.caching.verifier import Verifier, load
from service.caching.vetoes import conflict

SAMPLES = Path(__file__).parents[1] / "tests" / "support" / "quality"
RECORDED = SAMPLES / "recorded.json"
# Of what is recorded; where less is better, its inverse.
KEPT = 0.9
LEAST_ALLOWANCE = 0.005
NEIGHBORS = 3
SIZE = cache.Size(pool=424, requests=500, labels=0, seeds=3)


class Figure(msgspec.Struct, frozen=True):
    """A share of `n`, and whether more of it is better or less."""

    value: float
    n: int
    better: Literal["more", "less"]


class Pair(NamedTuple):
    a: str
    b: str
    kind: str


def chance(verifier: Verifier, asked: Prepared, stored: Prepared, cosine: float) -> float:
    """P of one candidate as the gateway has it: 0 where something vetoes."""
    if conflict(asked, stored) is not None:
        return 0.0
    return verifier.probabilities(asked, [stored], [cosine])[0]


class Sample:
    """The samples with their vectors: embedded once, judged as often as one likes."""

    def __init__(self) -> None:
        self.pairs = [Pair(one["a"], one["b"], one["kind"]) for one in _lines("pairs")]
        clusters: dict[str, list[str]] = {}
        self.questions = _lines("questions")
        for one in self.questions:
            clusters.setdefault(one["cluster"] or f"alone {one['text']}", []).append(one["text"])
        self.pairs += [Pair(a, b, "cluster") for texts in clusters.values() for a, b in combinations(texts, 2)]
        cluster_of = {text: name for name, texts in clusters.items() for text in texts}
        texts = list(dict.fromkeys([*cluster_of, *(text for pair in self.pairs for text in pair[:2])]))
        vectors = dict(zip(texts, asyncio.run(_embedded(texts)), strict=True))
        self.pairs += [Pair(text, other, "neighbor") for text, other in _neighbors(cluster_of, vectors)]
        self.cosines = [float(np.dot(vectors[pair.a], vectors[pair.b])) for pair in self.pairs]
        self.prepared = {text: prepare(text) for text in texts}

    def figures(self, verifier: Verifier) -> dict[str, Figure]:
        return {**self.judged(verifier), **_rules(), **_traffic(verifier)}

    def judged(self, verifier: Verifier) -> dict[str, Figure]:
        """Those of pairs alone."""
        cut = verifier.cut()
        served: dict[str, list[bool]] = {}
        chances: dict[str, list[float]] = {}
        for pair, cosine in zip(self.pairs, self.cosines, strict=True):
            p = chance(verifier, self.prepared[pair.a], self.prepared[pair.b], cosine)
            served.setdefault(pair.kind, []).append(p >= cut)
            chances.setdefault(pair.kind, []).append(p)
        traps = {kind: some for kind, some in served.items() if kind not in ("same", "cluster", "neighbor")}
        found = {
            "same pairs, served": _share(served["same"], "more"),
            "same pairs and clusters, served": _share(served["same"] + served["cluster"], "more"),
            "nearest of other clusters, served": _share(served["neighbor"], "less"),
            "traps, served": _share([one for some in traps.values() for one in some], "less"),
        }
        for kind, share in (("same", 0.01), ("same", 0.05), ("cluster", 0.01), ("cluster", 0.05)):
            # Whatever the cut: as many of the nearest others served as that.
            edge = sorted(chances["neighbor"], reverse=True)[int(share * len(chances["neighbor"]))]
            name = f"{kind}, above {100 * share:g} % of the nearest of other clusters"
            found[name] = _share([p > edge for p in chances[kind]], "more")
        found |= {f"traps, {kind}: served": _share(some, "less") for kind, some in sorted(traps.items())}
        return found


def worse(found: dict[str, Figure], recorded: dict[str, Figure]) -> list[str]:
    """What has fallen below nine tenths of what is recorded, or risen above its tenth-ninths and one more of them.

    What is in only one of the two is named as well.
    """
    told = [f"{name}: recorded, and not measured" for name in recorded.keys() - found.keys()]
    told += [f"{name}: measured, and not recorded" for name in found.keys() - recorded.keys()]
    for name in found.keys() & recorded.keys():
        now, then = found[name], recorded[name]
        # A share of few things moves in steps: one of them is no news.
        most = then.value / KEPT + max(LEAST_ALLOWANCE, 1 / then.n) + 1e-9
        if now.value < KEPT * then.value if then.better == "more" else now.value > most:
            told.append(f"{name}: {now.value:.3f}, recorded {then.value:.3f}")
    return sorted(told)


def recorded() -> dict[str, Figure]:
    return msgspec.convert(json.loads(RECORDED.read_bytes())["figures"], dict[str, Figure])


def record() -> None:
    verifier = load(minilm.REVISION)
    found = Sample().figures(verifier)
    about = {"verifier": verifier.revision, "embedder": minilm.REVISION}
    written = {"about": about, "figures": msgspec.to_builtins(found)}
    RECORDED.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    for name, one in found.items():
        print(f"{name:44} {one.value:7.4f} of {one.n:>5}, {one.better} is better")


def _rules() -> dict[str, Figure]:
    request = Request("chat", "m", {"messages": []}, b"")
    declined = _lines("eligibility")
    turns = _lines("turns")
    leaning = [leans_on(one["turn"], "\n".join(one["history"])) is not None for one in turns]
    leans = [one["leans"] for one in turns]
    return {
        "eligibility, as expected": _share([judge(request, one["text"]) == one["reason"] for one in declined], "more"),
        "turns that lean, called self-contained": _share(
            [not found for found, told in zip(leaning, leans, strict=True) if told], "less"
        ),
        "turns that stand alone, called dependent": _share(
            [found for found, told in zip(leaning, leans, strict=True) if not told], "less"
        ),
    }


def _traffic(verifier: Verifier) -> dict[str, Figure]:
    """What `keepgate bench cache` makes of the questions."""
    result = asyncio.run(
        cache.run(
            read(SAMPLES / "questions.jsonl"),
            registry.create("embedding", "onnx"),
            verifier,
            PROFILES["faq"],
            SIZE,
            names=["exact", "ours"],
        )
    )
    by = {one["policy"]: one for one in result["policies"]}
    requests = SIZE.requests * SIZE.seeds
    reusable = round(result["about"]["reusable"] * requests)
    ours = by["ours"]
    return {
        "traffic, ours: captured": Figure(ours["captured"]["share"], reusable, "more"),
        "traffic, exact: captured": Figure(by["exact"]["captured"]["share"], reusable, "more"),
        "traffic, ours: wrong of semantic hits": Figure(
            ours["wrong_of_semantic"]["share"] or 0.0, max(ours["semantic_hits"], 1), "less"
        ),
        "traffic, exact: wrong": Figure(by["exact"]["wrong_of_all"]["share"], requests, "less"),
    }


def _neighbors(cluster_of: dict[str, str], vectors: dict[str, NDArray[np.float32]]) -> Iterable[tuple[str, str]]:
    """Each question and those of other clusters that are nearest to it."""
    texts = list(cluster_of)
    matrix = np.stack([vectors[text] for text in texts])
    cosines = matrix @ matrix.T
    for at, text in enumerate(texts):
        order = np.argsort(-cosines[at], kind="stable")
        others = [texts[place] for place in order if cluster_of[texts[place]] != cluster_of[text]]
        yield from ((text, other) for other in others[:NEIGHBORS])


async def _embedded(texts: Sequence[str]) -> list[NDArray[np.float32]]:
    embedder = registry.create("embedding", "onnx")
    await embedder.load()
    try:
        return [(await embedder.embed([text], role="query"))[0] for text in texts]
    finally:
        await embedder.close()


def _share(of: Sequence[bool], better: Literal["more", "less"]) -> Figure:
    return Figure(sum(of) / len(of), len(of), better)


def _lines(name: str) -> list[dict[str, Any]]:
    with (SAMPLES / f"{name}.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
