"""How good semantic hits are: every row of the table in docs/cache-quality.md, with what it is compared with.

    python -m benchmarks.quality --data DIR [--vectors DIR] [--seeds 100] [--streams FILE] [--full]
        [--only PART ...] [--json FILE] [--write docs/cache-quality.md]
    python -m benchmarks.quality --record

`DIR` holds the labelled sets, one folder each. `--vectors` is where embeddings
are kept. `--streams` takes the rows of an earlier `python -m benchmarks.streams
--json FILE`, which at 100 seeds takes half an hour or more. `--full` plays the
streams of `keepgate bench cache` at full length. `--write` puts the tables
between the two marks in a page; parts left out by `--only` stay as they are in
`--json`'s file, if it is there. `--record` measures the samples in
tests/support/quality instead, which is what the tests compare with.

Ours is always the product's path: a hit has P at or above the shipped cut, and
nothing vetoes it. `one cosine, in hindsight` is the best single threshold for
the very figure of the row, which nobody has in advance: the recall it reaches
at the same share of wrong ones, or the wrong ones it serves at the same recall.
"""

import argparse
import asyncio
import dataclasses
import json
import math
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from backends import registry
from backends.embedding import minilm
from benchmarks import quality_sample, streams, train_verifier
from benchmarks.eligibility import _plain, _same, rows
from benchmarks.train_verifier import TOGETHER
from benchmarks.verifier_data import Labelled, Vectors, labelled
from models.request import Request
from service.bench import cache
from service.bench.cache_policies import NAMES as POLICIES
from service.bench.cache_policies import PEERS
from service.bench.cache_traffic import PROFILES, read
from service.caching.certificate import needed, upper_bound
from service.caching.eligibility import judge
from service.caching.features import NAMES, Prepared, prepare
from service.caching.identity import Question, asked
from service.caching.verifier import Verifier, load
from service.caching.vetoes import conflict
from service.context import Keeping

Floats = NDArray[np.float64]

HINDSIGHT = "one cosine, in hindsight"
TITLES = {"gptcache": "GPTCache .60", "bifrost": "Bifrost .80", "redisvl": "RedisVL .90", "portkey": "Portkey .95"}
CUTS = {TITLES[name]: cut for name, (cut, _) in PEERS.items()}
SEED = 6
RESAMPLED = 1_000
SHARES = (0.01, 0.02, 0.05)
CANDIDATES = 10

# CheckList's tests by what differs in their pairs, and the most that may be served.
CAPABILITIES: dict[str, tuple[str, float]] = {
    "number": (r"Change numbers", 0.01),
    "name": (r"Change first", 0.01),
    "place": (r"Change location", 0.01),
    "negation": (r"How can I become a X person != |Is it .* != Is it .* not to |should not worry", 0.01),
    "before, after": (r"before becoming|before Y it !=|after != before", 0.01),
    "role": (r"asymmetric|Simple coref", 0.01),
    "passive": (r"wrong active / passive", 0.01),
    "used to, becoming": (r"Did person use to be|Is person becoming", 0.01),
    "more, less": (r"How can I become more X != ", 0.01),
    "other people, animals, traits": (r"^different adj|^Different animals|same adjectives|different injuries", 0.01),
    "and, or": (r"^A or B is not", 0.01),
    "modifier added": (r"Modifier: adj", 0.03),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One row. `ours` and its interval (95 %) are shares, or microseconds where `unit` says so; `others` are what is
    shown of other rules, and `rival` is the figure of one cosine in hindsight, `more` whether more is better. `met`
    None: there is no target."""

    part: str
    name: str
    ours: float | None
    low: float | None
    high: float | None
    n: int
    others: dict[str, str]
    target: str = ""
    met: bool | None = None
    unit: str = "%"
    note: str = ""
    rival: float | None = None
    more: bool = True


# --- pairs


class Pairs(NamedTuple):
    """`chances` are P, 0 where something vetoes."""

    of: list[Labelled]
    cosines: Floats
    chances: Floats
    same: NDArray[np.bool_]

    def where(self, wanted: Callable[[Labelled], bool]) -> "Pairs":
        keep = np.array([wanted(pair) for pair in self.of], bool)
        chosen = [pair for pair, kept in zip(self.of, keep, strict=True) if kept]
        return Pairs(chosen, self.cosines[keep], self.chances[keep], self.same[keep])


def judged(pairs: list[Labelled], folder: Path, verifier: Verifier) -> Pairs:
    """As the gateway judges a candidate: vetoes, the floor below which it does not look, P."""
    looked = train_verifier.looked(pairs, folder)
    cosines = looked.x[:, NAMES.index("cosine")]
    known = {text: prepare(text) for pair in pairs for text in (pair.a, pair.b)}
    chances = np.array(
        [
            quality_sample.chance(verifier, known[pair.a], known[pair.b], float(cosine))
            for pair, cosine in zip(pairs, cosines, strict=True)
        ]
    )
    return Pairs(pairs, cosines, chances, looked.y == 1)


def recall(scores: Floats, same: NDArray[np.bool_], share: float) -> float:
    """Of the same, those above all but `share` of the different."""
    different = np.sort(scores[~same])[::-1]
    return float((scores[same] > different[min(int(share * len(different)), len(different) - 1)]).mean())


def bootstrapped(figure: Callable[[NDArray[np.int64]], float], n: int) -> tuple[float, float]:
    """95 % of a figure of `n` things drawn again."""
    draw = np.random.default_rng(SEED)
    values = [figure(draw.integers(0, n, n)) for _ in range(RESAMPLED)]
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def exact_interval(count: int, n: int) -> tuple[float, float]:
    """Clopper and Pearson's, at 95 %."""
    if not n:
        return 0.0, 1.0
    return 1 - upper_bound(n - count, n, 0.975), upper_bound(count, n, 0.975) if count < n else 1.0


def percent(share: float | None, digits: int = 1) -> str:
    return "–" if share is None or math.isnan(share) else f"{100 * share:.{digits}f}"


def pair_rows(data: Path, folder: Path, verifier: Verifier) -> list[Row]:
    sources = {"gptcache_qqp", "apt", "checklist_qqp", *TOGETHER["word order"]}
    # What the verifier learned from is told by the seed it was trained with, the end of its name.
    seed = int(trained[1]) if (trained := re.search(r"-(\d+)/", verifier.revision)) else SEED
    every = labelled(data, seed=seed)
    every += train_verifier.generated(every, seed=seed)
    pairs = judged([one for one in every if one.part == "test" and one.source in sources], folder, verifier)
    cut = verifier.cut()
    qqp = pairs.where(lambda one: one.source == "gptcache_qqp")
    found = [
        _recall_row("QQP, held out", qqp, share, target)
        for share, target in zip(SHARES, (0.20, 0.33, 0.53), strict=True)
    ]
    found.append(_defaults_row("QQP, held out", qqp, cut))
    checklist = pairs.where(lambda one: one.source == "checklist_qqp")
    for name, (tests, most) in CAPABILITIES.items():
        found.append(_traps_row(f"CheckList: {name}", _of_tests(checklist, tests), checklist, cut, most))
    missing = {one.test for one in checklist.of if not one.label} - {
        one.test
        for one in checklist.of
        if not one.label and any(re.search(tests, one.test) for tests, _ in CAPABILITIES.values())
    }
    assert not missing, missing
    found.append(_defaults_row("CheckList, all", checklist, cut))
    for name, wanted in (("word order, generated", TOGETHER["word order"]), ("APT", ("apt",))):
        some = _of_sources(pairs, wanted)
        served = some.chances >= cut
        row = _traps_row(f"{name}: different served", some.where(lambda one: not one.label), some, cut, 0.015)
        found.append(row)
        found.append(_share_row("pairs", f"{name}: same served", served[some.same], {}, least=0.45))
    return found + sample_rows(verifier)


def _of_tests(checklist: Pairs, tests: str) -> Pairs:
    pattern = re.compile(tests)
    return checklist.where(lambda one: not one.label and pattern.search(one.test) is not None)


def _of_sources(pairs: Pairs, sources: Sequence[str]) -> Pairs:
    return pairs.where(lambda one: one.source in sources)


def _median(values: Floats) -> Callable[[NDArray[np.int64]], float]:
    return lambda drawn: float(np.median(values[drawn]))


def sample_rows(verifier: Verifier) -> list[Row]:
    """Questions of an FAQ with many wordings: all pairs of a cluster, and each with the nearest of other clusters."""
    sample = quality_sample.Sample()
    chosen = [at for at, pair in enumerate(sample.pairs) if pair.kind in ("cluster", "neighbor")]
    of = [
        Labelled(sample.pairs[at].a, sample.pairs[at].b, int(sample.pairs[at].kind == "cluster"), "faq", "test", 1.0)
        for at in chosen
    ]
    cosines = np.array([sample.cosines[at] for at in chosen])
    chances = np.array(
        [
            quality_sample.chance(verifier, sample.prepared[pair.a], sample.prepared[pair.b], float(cosine))
            for pair, cosine in zip(of, cosines, strict=True)
        ]
    )
    pairs = Pairs(of, cosines, chances, np.array([bool(pair.label) for pair in of]))
    found = [_recall_row("FAQ sample", pairs, share, None) for share in SHARES]
    return [*found, _defaults_row("FAQ sample", pairs, verifier.cut())]


def _recall_row(name: str, pairs: Pairs, share: float, target: float | None) -> Row:
    def of(scores: Floats) -> Callable[[NDArray[np.int64]], float]:
        return lambda drawn: recall(scores[drawn], pairs.same[drawn], share)

    value = recall(pairs.chances, pairs.same, share)
    low, high = bootstrapped(of(pairs.chances), len(pairs.of))
    cosine, edges = recall(pairs.cosines, pairs.same, share), bootstrapped(of(pairs.cosines), len(pairs.of))
    return Row(
        "pairs",
        f"{name}: same served at {100 * share:g} % of the different",
        value,
        low,
        high,
        len(pairs.of),
        {HINDSIGHT: f"{percent(cosine)} ({percent(edges[0])} to {percent(edges[1])})"},
        target="" if target is None else f"≥ {percent(target, 0)}",
        met=None if target is None else value >= target,
        rival=cosine,
    )


def _defaults_row(name: str, pairs: Pairs, cut: float) -> Row:
    """What each serves where it cuts as it ships: of the different, and of the same."""
    served = pairs.chances >= cut
    wrong = int(served[~pairs.same].sum())
    low, high = exact_interval(wrong, int((~pairs.same).sum()))
    right = float(served[pairs.same].mean())

    def told(threshold: float) -> str:
        over = pairs.cosines >= threshold
        return f"{percent(float(over[~pairs.same].mean()))}; {percent(float(over[pairs.same].mean()))}"

    matched = _matched(pairs.cosines[pairs.same], right)
    return Row(
        "pairs",
        f"{name}, as shipped: different served; same served",
        wrong / int((~pairs.same).sum()),
        low,
        high,
        int((~pairs.same).sum()),
        {
            HINDSIGHT: told(matched),
            **{title: told(threshold) for title, threshold in CUTS.items()},
        },
        note=f"; {percent(right)}",
        rival=float((pairs.cosines[~pairs.same] >= matched).mean()),
        more=False,
    )


def _traps_row(name: str, traps: Pairs, around: Pairs, cut: float, most: float) -> Row:
    """`around` has the same pairs by whose recall the threshold in hindsight is chosen."""
    matched = _matched(around.cosines[around.same], float((around.chances[around.same] >= cut).mean()))
    rival = float((traps.cosines >= matched).mean())
    others = {HINDSIGHT: percent(rival)}
    others |= {title: percent(float((traps.cosines >= threshold).mean())) for title, threshold in CUTS.items()}
    return _share_row("pairs", name, traps.chances >= cut, others, most=most, rival=rival)


def _matched(same: Floats, share: float) -> float:
    """The cosine from which on about `share` of the same are served."""
    return float(np.sort(same)[::-1][max(math.ceil(share * len(same)) - 1, 0)])


def _share_row(
    part: str,
    name: str,
    counted: NDArray[np.bool_] | Sequence[bool],
    others: dict[str, str],
    *,
    most: float | None = None,
    least: float | None = None,
    rival: float | None = None,
) -> Row:
    count, n = int(np.sum(counted)), len(counted)
    share = count / n
    low, high = exact_interval(count, n)
    target, met = "", None
    if most is not None:
        target, met = (f"≤ {100 * most:g}", share <= most) if most else ("0", not count)
    elif least is not None:
        target, met = f"≥ {100 * least:g}", share >= least
    return Row(part, name, share, low, high, n, others, target, met, rival=rival, more=least is not None)


# --- conversations

Decide = Callable[[str, Sequence[str], Sequence[float]], int | None]


def at_cosine(threshold: float) -> Decide:
    def decide(question: str, stored: Sequence[str], cosines: Sequence[float]) -> int | None:
        del question
        best = max(range(len(stored)), key=lambda at: (cosines[at], -at), default=None)
        return best if best is not None and cosines[best] >= threshold else None

    return decide


def by_verifier(verifier: Verifier) -> Decide:
    cut = verifier.cut()

    def decide(question: str, stored: Sequence[str], cosines: Sequence[float]) -> int | None:
        if judge(Request("chat", "m", {"messages": []}, b""), question) is not None:
            return None
        near = sorted(range(len(stored)), key=lambda at: (-cosines[at], at))[:CANDIDATES]
        one, others = prepare(question), [prepare(stored[at]) for at in near]
        chances = verifier.probabilities(one, others, [cosines[at] for at in near])
        fitting = [
            (chance, -rank) for rank, chance in enumerate(chances)
            if chance >= cut and conflict(one, others[rank]) is None
        ]  # fmt: skip
        return near[-max(fitting)[1]] if fitting else None

    return decide


class Chats:
    """Two-turn conversations: first question, follow-up, both in other words, and the first answer."""

    def __init__(self, chats: Sequence[tuple[str, ...]], vectors: dict[str, NDArray[np.float32]]) -> None:
        self.chats = list(chats)
        self.vectors = vectors
        self.first = [chat[0] for chat in chats]
        self.follow = [chat[1] for chat in chats]
        self.joined = ["\n".join(chat[:2]) for chat in chats]
        self._matrix: dict[str, NDArray[np.float32]] = {}
        self._places: dict[str, list[str | None]] = {}

    def cosines(self, text: str, of: str) -> list[float]:
        """To all `first`, `follow` or `joined`."""
        if of not in self._matrix:
            self._matrix[of] = np.stack([self.vectors[other] for other in getattr(self, of)])
        found: list[float] = (self._matrix[of] @ self.vectors[text]).tolist()
        return found

    def places(self, mode: str) -> list[str | None]:
        """The namespace in which each one's follow-up is stored."""
        if mode not in self._places:
            turns = [((chat[0], chat[4], chat[1]), chat[0]) for chat in self.chats]
            self._places[mode] = [_place(said, mode, parent) for said, parent in turns]
        return self._places[mode]


def _asked(turns: Sequence[str], keeping: Keeping, parent: str | None = None) -> Question | None:
    said = [{"role": "assistant" if at % 2 else "user", "content": text} for at, text in enumerate(turns)]
    found = asked({"messages": said}, (), keeping=keeping, parents=() if parent is None else (parent,))
    return found if isinstance(found, Question) else None


def _place(turns: Sequence[str], mode: str, parent: str) -> str | None:
    keeping: Any = "full" if mode == "parents" else mode
    found = _asked(turns, keeping, parent if mode == "parents" else None)
    return None if found is None else found.namespace


def answered(chats: Chats, first: str, follow: str, mode: str, decide: Decide) -> int | None:
    """Which stored conversation's follow-up answers `follow` after `first`; None is a miss.

    `turns`: all the user said is compared. Else what `cache.context` says, and
    `parents`: the entry that answered the first turn stands for it.
    """
    stored = chats.chats
    if mode == "turns":
        text = f"{first}\n{follow}"
        return decide(text, chats.joined, chats.cosines(text, "joined"))
    known = decide(first, chats.first, chats.cosines(first, "first"))
    # Whoever was answered from an entry has its text in their history.
    said = "a fresh answer" if known is None else stored[known][4]
    place = _place((first, said, follow), mode, first if known is None else stored[known][0])
    where = [at for at, other in enumerate(chats.places(mode)) if place is not None and other == place]
    cosines = chats.cosines(follow, "follow")
    chosen = decide(follow, [chats.follow[at] for at in where], [cosines[at] for at in where])
    return None if chosen is None else where[chosen]


class Told(NamedTuple):
    right: int
    wrong: int
    asked: int

    @property
    def precision(self) -> float:
        return self.right / (self.right + self.wrong) if self.right + self.wrong else math.nan

    @property
    def recall(self) -> float:
        return self.right / self.asked


def played(chats: Chats, mode: str, decide: Decide) -> Told:
    """Every conversation in other words, and every follow-up under another first question, where its own is wrong."""
    right = wrong = 0
    n = len(chats.chats)
    for at, (_, _, first, follow, _) in enumerate(chats.chats):
        hit = answered(chats, first, follow, mode, decide)
        fits = hit is not None and _same(chats.chats, chats.vectors, hit, at)
        right, wrong = right + fits, wrong + (hit is not None and not fits)
        other = (at + 7) % n
        trap = answered(chats, chats.chats[other][2], follow, mode, decide)
        wrong += trap is not None and not _same(chats.chats, chats.vectors, trap, other)
    return Told(right, wrong, n)


def conversation_rows(data: Path, verifier: Verifier) -> list[Row]:
    lines = rows(data / "meancache_contextual/norm_multiturn_dup.jsonl")
    every: list[tuple[str, ...]] = [
        (one["u0"], one["u1"], one["u0_duplicate"], one["u1_duplicate"], one["system_q0"]) for one in lines
    ]
    unique = list({(chat[0], chat[1]): chat for chat in every}.values())
    # A follow-up under the first question that asks it in `played`.
    asking = [f"{chat[2]}\n{chat[3]}" for chat in unique]
    asking += [f"{unique[(at + 7) % len(unique)][2]}\n{chat[3]}" for at, chat in enumerate(unique)]
    texts = {text for chat in unique for text in chat[:4]} | {"\n".join(chat[:2]) for chat in unique} | set(asking)
    chats = Chats(unique, asyncio.run(embedded(sorted(texts))))
    ours = by_verifier(verifier)
    peers = {
        "GPTCache .60": played(chats, "last-turn", at_cosine(0.60)),
        "Bifrost .80": played(chats, "last-turn", at_cosine(0.80)),  # three messages are within its limit
        "RedisVL .90": played(chats, "last-turn", at_cosine(0.90)),
        "Portkey .95": played(chats, "turns", at_cosine(0.95)),
    }
    found = []
    for mode, name in (
        ("full", "all earlier turns are identity (`full`)"),
        ("last-turn-if-self-contained", "`last-turn-if-self-contained`"),
        ("parents", "matched parents"),
    ):
        told = played(chats, mode, ours)
        grid = [played(chats, mode, at_cosine(cut / 100)) for cut in range(50, 100)]
        within = [one for one in grid if one.wrong <= 0.02 * (one.right + one.wrong)] or [Told(0, 0, 1)]
        best = max(within, key=lambda one: one.right)
        for figure, count, of, least in (
            ("precision", told.right, told.right + told.wrong, 0.98),
            ("recall", told.right, told.asked, 0.78),
        ):
            others = {title: percent(getattr(one, figure)) for title, one in peers.items()}
            others = {HINDSIGHT: percent(getattr(best, figure)), **others}
            low, high = exact_interval(count, of) if of else (None, None)
            share = count / of if of else None
            wanted = mode == "parents"
            found.append(
                Row(
                    "conversations",
                    f"MeanCache, {name}: {figure}",
                    share,
                    low,
                    high,
                    of,
                    others,
                    target=f"≥ {100 * least:g}" if wanted else "",
                    met=share is not None and share >= least if wanted else None,
                    rival=None if math.isnan(getattr(best, figure)) else getattr(best, figure),
                )
            )
    return found + canard_rows(data)


def canard_rows(data: Path) -> list[Row]:
    """A trap is hit where both turns land in one namespace: the string is the same."""
    listed = list(rows(data / "canard/norm_mt_traps.jsonl"))
    # One request, of which two people made different things, is no other context.
    traps = [trap for trap in listed if trap["history_a"] != trap["history_b"]]

    def together(trap: dict[str, Any], keeping: Keeping) -> bool:
        one = _asked((*trap["history_a"], trap["utterance_a"]), keeping)
        other = _asked((*trap["history_b"], trap["utterance_b"]), keeping)
        return one is not None and other is not None and one.namespace == other.namespace

    last = percent(1.0)
    short = percent(sum(len(one["history_a"]) == len(one["history_b"]) == 2 for one in traps) / len(traps))
    # Bifrost leaves out requests of more than three messages; Portkey compares all that the user said.
    others = {"GPTCache .60": last, "Bifrost .80": short, "RedisVL .90": last, HINDSIGHT: last}
    settings: tuple[tuple[Keeping, float | None], ...] = (
        ("full", 0.0),
        ("last-turn-if-self-contained", 0.0),
        ("last-turn", None),
    )
    found = [
        _share_row(
            "conversations",
            f"CANARD, same string in another dialogue, `{keeping}`: served",
            [together(trap, keeping) for trap in traps],
            others,
            most=most,
            rival=1.0,
        )
        for keeping, most in settings
    ]
    turns = list(rows(data / "canard/norm_multiturn.jsonl"))
    leaning = [turn for turn in turns if _plain(turn["utterance"]) != _plain(turn["resolved"])]
    for keeping in ("full", "last-turn-if-self-contained"):
        kept = [_asked((*turn["history"], turn["utterance"]), keeping) for turn in leaning]
        alone = [one is not None and one.history == "dropped" for one in kept]
        name = f"CANARD, turns that need their dialogue, `{keeping}`: looked up without it"
        found.append(_share_row("conversations", name, alone, {}, most=0.0 if keeping == "full" else None))
    return found


async def embedded(texts: Sequence[str]) -> dict[str, NDArray[np.float32]]:
    embedder = registry.create("embedding", "onnx")
    await embedder.load()
    try:
        return {text: (await embedder.embed([text], role="query"))[0] for text in texts}
    finally:
        await embedder.close()


# --- streams

_TARGETS = {"banking77": (0.21, 0.51, 0.72), "clinc150": (0.24, 0.48, 0.74)}
_CERTIFIED = "certified: cosine, P, agreement"


def stream_rows(found: Iterable[streams.Row]) -> list[Row]:
    by = {(one.set, one.limit, one.rule): one for one in found}
    made = []
    for (name, limit, rule), one in by.items():
        if rule != _CERTIFIED:
            continue
        others = {}
        for title, other in (
            (HINDSIGHT, "one threshold, in hindsight"), ("vCache", "vCache"),
            ("certified: cosine", "certified: cosine"),
            ("certified, without the verifier", "certified: cosine, agreement"),
        ):  # fmt: skip
            if (known := by.get((name, limit, other))) is not None:
                others[title] = f"{percent(known.hits)}; {percent(known.wrong_of_served, 2)}"
        hindsight = by.get((name, limit, "one threshold, in hindsight"))
        target = _TARGETS.get(name, (math.nan,) * 3)[streams.LIMITS.index(limit)]
        kept = one.kept / one.seeds
        made += [
            Row(
                "streams", f"{name}, at most {100 * limit:g} % wrong: hits; wrong of served", one.hits, one.hits_from,
                one.hits_to, one.seeds * one.requests, others, target=f"≥ {100 * target:g}", met=one.hits >= target,
                note=f"; {percent(one.wrong_of_served, 2)} (certified in {one.certified} of {one.seeds} seeds)",
                rival=None if hindsight is None else hindsight.hits,
            ),
            Row(
                "streams", f"{name}, at most {100 * limit:g} % wrong: seeds that kept to it", kept,
                *exact_interval(one.kept, one.seeds), one.seeds,
                {
                    title: f"{by[name, limit, other].kept} of {by[name, limit, other].seeds}"
                    for title, other in (("vCache", "vCache"), ("certified: cosine", "certified: cosine"))
                    if (name, limit, other) in by
                },
                target="≥ 95", met=kept >= 0.95, note=f" (worst seed {percent(one.worst, 2)})",
            ),
        ]  # fmt: skip
    return made


def measured_streams(data: Path, seeds: int, cache_folder: Path | None) -> list[streams.Row]:
    verify = streams.shipped_verifier()
    found = []
    for name in streams.SETS:
        stream = asyncio.run(streams.read(data / name / "norm_clusters.jsonl", cache_folder))
        for rule, outcomes in streams.measure(stream, seeds, min(10, seeds), verify):
            found += [streams.summary(name, rule, limit, outcomes[limit]) for limit in streams.LIMITS]
    return found


# --- traffic and cost


def traffic_rows(data: Path, verifier: Verifier, *, full: bool) -> list[Row]:
    """Conversations, agents and prompts with passages, as `keepgate bench cache` plays them."""
    made = []
    size = cache.FULL if full else cache.QUICK
    for name in ("gptcache_qqp", "osschat_clusters"):
        for profile in ("chat-real", "agent", "rag"):
            result = asyncio.run(
                cache.run(
                    read(data / name),
                    registry.create("embedding", "onnx"),
                    verifier,
                    PROFILES[profile],
                    size,
                    names=[one for one in POLICIES if one not in ("off", "certified")],
                )
            )
            made += _traffic(name, profile, result)
            print(f"traffic: {name}, {profile}", file=sys.stderr)
    return made


def _traffic(name: str, profile: str, result: dict[str, Any]) -> list[Row]:
    by = {one["policy"]: one for one in result["policies"]}
    ours = by["ours"]
    most = ours["wrong_of_semantic"]["share"] or 0.0
    static = [
        one for one in result["policies"]
        if one["family"] == "static" and (one["wrong_of_semantic"]["share"] or 0.0) <= most
    ]  # fmt: skip
    best = max(static, key=lambda one: one["captured"]["share"], default=None)
    named = {TITLES[peer]: by[peer] for peer in PEERS} | {"vCache": by["vcache"], "exact only": by["exact"]}
    told_of_all = {
        "captured": f" ({percent(ours['hits']['share'])} of all answered by the cache)",
        "wrong_of_semantic": (
            f" (at most {percent(ours['wrong_at_most'])}; {percent(ours['wrong_of_all']['share'], 2)} of all)"
        ),
    }
    made = []
    for figure, told in (("captured", "of what was given before, served"), ("wrong_of_semantic", "wrong")):
        interval = ours[figure]["interval"] or [None, None]
        hits = ours["semantic_hits"]
        others = {title: percent(one[figure]["share"]) for title, one in named.items()}
        shown = best if best is not None or figure != "captured" else by["exact"]
        others = {HINDSIGHT: percent(shown[figure]["share"]) if shown else "–", **others}
        made.append(
            Row(
                "traffic",
                f"{name}, {profile}: {told}" if figure == "captured" else f"{name}, {profile}: semantic hits {told}",
                ours[figure]["share"],
                interval[0],
                interval[1],
                ours["requests"] if figure == "captured" else hits,
                others,
                note=told_of_all[figure],
                rival=shown[figure]["share"] if shown else None,
                more=figure == "captured",
            )
        )
    return made


def _fastest(work: Callable[[], None], times: int = 5) -> float:
    """In seconds, of several times: others use the machine, too."""
    spent = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        spent.append(time.perf_counter() - began)
    return min(spent)


def cost_rows(data: Path, folder: Path, verifier: Verifier, *, questions: int = 500) -> list[Row]:
    """Of one look-up that has ten candidates: reading the question, vetoes and P; and what comes before it.

    What is stored was read before, as in the gateway."""
    stored = list(dict.fromkeys(str(one["a"]) for one in rows(data / "gptcache_qqp/norm_pairs.jsonl")))[:5_000]
    vectors = Vectors(folder, "gptcache_qqp")
    vectors.add(stored)
    near = vectors.strangers(stored[:questions], stored, each=CANDIDATES)
    near = [others[:CANDIDATES] for others in near]
    known = {text: prepare(text) for others in near for text in others}
    spent: dict[str, list[float]] = {
        "judging ten candidates": [],
        "finding the question, and whether it is eligible": [],
    }
    request = Request("chat", "m", {}, b"")
    for text, others in zip(stored[:questions], near, strict=True):
        cosines = vectors.cosines([text] * len(others), others).tolist()
        body = {"messages": [{"role": "system", "content": "You answer questions."}, {"role": "user", "content": text}]}
        candidates = [known[other] for other in others]

        def judged_once(text: str = text, candidates: list[Prepared] = candidates, near: list[float] = cosines) -> None:
            one = prepare(text)
            for candidate in candidates:
                conflict(one, candidate)
            verifier.probabilities(one, candidates, near)

        def found_once(text: str = text, body: dict[str, Any] = body) -> None:
            asked(body, ("chat", "here"))
            judge(request, text)

        spent["judging ten candidates"].append(_fastest(judged_once))
        spent["finding the question, and whether it is eligible"].append(_fastest(found_once))
    made = []
    for name, seconds in spent.items():
        middle = statistics.median(seconds)
        low, high = bootstrapped(_median(np.array(seconds)), len(seconds))
        note = f" (99 of 100 within {1e6 * float(np.quantile(seconds, 0.99)):.0f})"
        judging = name == "judging ten candidates"
        made.append(
            Row(
                "cost",
                f"{name}: median µs",
                1e6 * middle,
                1e6 * low,
                1e6 * high,
                len(seconds),
                {},
                target="≤ 100" if judging else "",
                met=1e6 * middle <= 100 if judging else None,
                unit="µs",
                note=note,
            )
        )
    return made


# --- the page

PARTS = ("pairs", "conversations", "streams", "traffic", "cost")
_HEADS = {
    "pairs": "Pairs of questions",
    "conversations": "Conversations",
    "streams": "Streams, certified after 3,000 labels",
    "traffic": "Chats, agents and RAG prompts (`keepgate bench cache`)",
    "cost": "Cost beyond the embedding",
}
BEGIN = "<!-- quality: made by `python -m benchmarks.quality --write`, do not edit -->"
END = "<!-- /quality -->"


def page(result: dict[str, Any]) -> str:
    about = result["about"]
    lines = [
        f"Measured {about['date']} with the verifier `{about['verifier']}` on `{about['embedder']}`.",
        "Shares are in per cent.",
        "",
    ]
    for part in PARTS:
        of = [Row(**row) for row in result["rows"] if row["part"] == part]
        if of:
            lines += [f"### {_HEADS[part]}", "", f"`{about['commands'][part]}`", "", *table(of), ""]
    lines += ["### Where one threshold, chosen in hindsight, does better", "", *losses(result["rows"]), ""]
    lines += [
        "### What a certificate takes",
        "",
        "Labelled hits that certify a limit with a chance of 80 %, where this share of them is in truth wrong:",
        "",
        *labels_table(),
    ]
    return "\n".join(lines)


def table(of: Sequence[Row]) -> list[str]:
    others = list(dict.fromkeys(name for row in of for name in row.others))
    heads = ["", "Keepgate", "95 %", "n", *others, "target", ""]
    lines = [f"| {' | '.join(heads)} |", "|---|" + "---|" * (len(heads) - 1)]
    for row in of:
        digits = 0 if row.unit == "µs" else 1
        scale = 1.0 if row.unit == "µs" else 100.0

        def number(value: float | None, scale: float = scale, digits: int = digits) -> str:
            return "–" if value is None else f"{scale * value:.{digits}f}"

        cells = [
            row.name, f"**{number(row.ours)}**{row.note}",
            "" if row.low is None else f"{number(row.low)} to {number(row.high)}", f"{row.n:,}",
            *(row.others.get(name, "") for name in others),
            row.target, "" if row.met is None else "reached" if row.met else "**not reached**",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def losses(of: Iterable[dict[str, Any]]) -> list[str]:
    """The rows in which one cosine, with the labels of the very row, is better than what ships."""
    found = []
    for row in (Row(**one) for one in of):
        if row.ours is None or row.rival is None or abs(row.rival - row.ours) < 0.0005:
            continue
        if (row.rival > row.ours) == row.more:
            found.append(f"- {row.name}: {percent(row.rival)} against {percent(row.ours)}")
    return found or ["- None."]


def labels_table() -> list[str]:
    rates = ((0.1, "a tenth of the limit"), (0.25, "a quarter"), (0.5, "half"), (0.75, "three quarters"))
    lines = [f"| limit | {' | '.join(name for _, name in rates)} |", "|---|" + "---|" * len(rates)]
    for limit in (0.005, 0.01, 0.02, 0.05):
        counts = [needed(limit, limit * rate) for rate, _ in rates]
        lines.append(f"| {100 * limit:g} % | {' | '.join('–' if one is None else f'{one:,}' for one in counts)} |")
    return lines


def written(text: str, tables: str) -> str:
    """The page with the tables between its marks. Raises `ValueError` where it has none."""
    begin, end = text.find(BEGIN), text.find(END)
    if begin < 0 or end < begin:
        raise ValueError(f"the page lacks the marks {BEGIN} and {END}")
    return f"{text[: begin + len(BEGIN)]}\n\n{tables}\n\n{text[end:]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the labelled sets")
    parser.add_argument("--vectors", type=Path, default=Path("vectors"), help="folder where embeddings are kept")
    parser.add_argument("--seeds", type=int, default=100, help="of the certified streams")
    parser.add_argument("--streams", type=Path, help="rows of an earlier run of benchmarks.streams")
    parser.add_argument("--full", action="store_true", help="traffic at full length")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS), help="none: write what is in --json")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--write", type=Path, metavar="PAGE")
    parser.add_argument("--record", action="store_true", help="measure the samples that the tests compare with")
    options = parser.parse_args()
    if options.record:
        quality_sample.record()
        return 0
    if options.data is None:
        parser.error("--data is needed")
    options.vectors.mkdir(parents=True, exist_ok=True)
    verifier = load(minilm.REVISION)
    result = _known(options.json)
    for part in options.only:
        began = time.monotonic()
        if part == "pairs":
            found = pair_rows(options.data, options.vectors, verifier)
        elif part == "conversations":
            found = conversation_rows(options.data, verifier)
        elif part == "streams" and options.streams is not None:
            found = stream_rows(streams.Row(**row) for row in json.loads(options.streams.read_text()))
        elif part == "streams":
            found = stream_rows(measured_streams(options.data, options.seeds, options.vectors / "streams"))
        elif part == "traffic":
            found = traffic_rows(options.data, verifier, full=options.full)
        else:
            found = cost_rows(options.data, options.vectors, verifier)
        result["rows"] = [row for row in result["rows"] if row["part"] != part]
        result["rows"] += [dataclasses.asdict(row) for row in found]
        result["about"]["commands"][part] = _command(part, options)
        print(f"{part}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    if options.only:
        result["about"] |= {
            "date": datetime.now(UTC).date().isoformat(),
            "verifier": verifier.revision,
            "embedder": minilm.REVISION,
        }
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    tables = page(result)
    if options.write is not None:
        options.write.write_text(written(options.write.read_text(encoding="utf-8"), tables), encoding="utf-8")
    print(tables)
    return 0


def _command(part: str, options: argparse.Namespace) -> str:
    """What measures this part again."""
    again = f"python -m benchmarks.quality --data DIR --only {part}"
    if part == "streams" and options.streams is not None:
        return f"python -m benchmarks.streams --data DIR --json FILE; {again} --streams FILE"
    if part == "streams":
        return f"{again} --seeds {options.seeds}"
    return f"{again} --full" if part == "traffic" and options.full else again


def _known(file: Path | None) -> dict[str, Any]:
    """What was measured before: a part may be measured again by itself."""
    if file is not None and file.exists():
        known: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return known
    return {"about": {"commands": {}}, "rows": []}


if __name__ == "__main__":
    raise SystemExit(main())
