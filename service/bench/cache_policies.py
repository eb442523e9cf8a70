"""Rules by which a cache answers, each over the same stream of requests, and what comes of it.

The peers are modelled by what they compare and where they cut, as they ship:
what users said, by cosine, within an account. That leaves out what each does
beside it, and it lends all of them an exact tier in front.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from models.request import Request
from service.bench.cache_traffic import Ask, body
from service.bench.vcache import VCacheEntry
from service.caching import eligibility, identity
from service.caching.agreement import LOOKED_AT, Agreement, agreement
from service.caching.certificate import Certificate, Origin, Shortfall, certify
from service.caching.features import Prepared, prepare
from service.caching.fit import Fit, features_of, fit
from service.caching.verifier import Verifier
from service.caching.vetoes import conflict

GRID = (0.60, 0.70, 0.75, 0.80, 0.85, 0.90, 0.925, 0.95, 0.975)
SHARES = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1)
SHIPPED = 0.01
VCACHE_ERROR = 0.01
CANDIDATES = 10

# Tokens as the mock counts them, and dollars for a million. Prices of a small hosted model, as an assumption.
CHARACTERS_A_TOKEN = 4
ANSWER_TOKENS = (50, 400)
PRICE_IN, PRICE_OUT, PRICE_EMBEDDING = 0.40, 1.60, 0.02
AUDIT_RATE = 0.01
CHARGES = (1, 5, 10, 50)

MISS, KNOWN = -1, -2
# Which kept request answers; `MISS`, or `KNOWN` for a miss that taught nothing and is not kept to be compared.
Rule = Callable[[int, NDArray[np.int64], NDArray[np.float32]], int]
# The last message; the same in requests of few messages; all that the user said, in such; the question where all else
# is equal; the same where it is eligible.
Scope = Literal["said", "short", "turns", "question", "eligible"]
_SHORT, _TURNS = 3, 4  # messages at most

# Cosines as they ship; GPTCache's is what the default on its own scale comes to. Bifrost leaves out requests of more
# than 3 messages (its conversation_history_threshold), Portkey those of more than 4.
PEERS: Mapping[str, tuple[float, Scope]] = {
    "gptcache": (0.60, "said"),
    "bifrost": (0.80, "short"),
    "redisvl": (0.90, "said"),
    "portkey": (0.95, "turns"),
}
NAMES = ("off", "exact", "static", *PEERS, "vcache", "ours", "certified")


class Stream(NamedTuple):
    """Requests by number. `exact` and `answers` are equal where keys and answers are; `scopes` hold a namespace each,
    -1 where nothing is looked up; `texts` and `cosines` are of what a scope compares. `cost` in dollars, `tokens` in
    all, `embedding` in dollars for one look-up. `refused` counts requests by why ours does not look."""

    asks: Sequence[Ask]
    exact: NDArray[np.int64]
    answers: NDArray[np.int64]
    scopes: Mapping[Scope, NDArray[np.int64]]
    texts: Mapping[Scope, NDArray[np.int64]]
    cosines: NDArray[np.float32]
    wording: Sequence[str]
    tokens: NDArray[np.float64]
    cost: NDArray[np.float64]
    embedding: NDArray[np.float64]
    reusable: NDArray[np.bool_]
    refused: Mapping[str, int]


class Outcome(NamedTuple):
    """Of each request: 0 for a miss, 1 for an exact hit, 2 for a semantic one; whether it brought a wrong answer; and
    whether it was looked up by its vector. `audited` is the share of semantic hits sent upstream as well. `certificate`
    is `certified`, or why there is none; empty where nothing certifies."""

    hits: NDArray[np.int8]
    wrong: NDArray[np.bool_]
    looked: NDArray[np.bool_]
    audited: float = 0.0
    certificate: str = ""


def prepared(asks: Sequence[Ask]) -> Stream:
    """Keys and namespaces of a stream, by the same rules as in the gateway. Its cosines are still to be made, of the
    texts in `wording`: `with_cosines`."""
    keys: dict[object, int] = {}
    wording: dict[str, int] = {}
    refused: dict[str, int] = defaultdict(int)
    exact, answers = [], []
    scopes: dict[Scope, list[int]] = {scope: [] for scope in get_args(Scope)}
    texts: dict[Scope, list[int]] = {scope: [] for scope in get_args(Scope)}
    for ask in asks:
        sent = body(ask)
        meaning = ("chat", "mock", ask.account)
        exact.append(keys.setdefault(identity.exact_key(sent, meaning), len(keys)))
        answers.append(keys.setdefault(ask.answer, len(keys)))
        turns = "\n".join((*ask.history[::2], ask.said))
        account, messages = keys.setdefault(("said", ask.account), len(keys)), len(sent["messages"])
        found = identity.asked(sent, meaning)
        namespace, text, reason = -1, ask.said, found
        if not isinstance(found, str):
            namespace, text = keys.setdefault(found.namespace, len(keys)), found.text
            reason = eligibility.judge(Request("chat", "mock", sent, b""), text) or ""
        if reason:
            refused[str(reason)] += 1
        looked: tuple[tuple[Scope, int, str], ...] = (
            ("said", account, ask.said),
            ("short", account if messages <= _SHORT else -1, ask.said),
            ("turns", account if messages <= _TURNS else -1, turns),
            ("question", namespace, text),
            ("eligible", -1 if reason else namespace, text),
        )
        for scope, where, compared in looked:
            scopes[scope].append(where)
            texts[scope].append(wording.setdefault(compared if where >= 0 else ask.said, len(wording)))
    draw = np.random.default_rng(0)
    sizes = {number: float(draw.integers(*ANSWER_TOKENS)) for number in dict.fromkeys(answers)}
    said_tokens = np.array([len(ask.said) / CHARACTERS_A_TOKEN for ask in asks])
    asked = np.array([sum(map(len, (ask.system, *ask.history))) / CHARACTERS_A_TOKEN for ask in asks]) + said_tokens
    told = np.array([sizes[number] for number in answers])
    known: set[int] = set()
    reusable = []
    for number in answers:
        reusable.append(number in known)
        known.add(number)
    return Stream(
        asks,
        np.array(exact),
        np.array(answers),
        {scope: np.array(namespaces) for scope, namespaces in scopes.items()},
        {scope: np.array(places) for scope, places in texts.items()},
        np.empty((0, 0), np.float32),
        list(wording),
        asked + told,
        (asked * PRICE_IN + told * PRICE_OUT) / 1e6,
        said_tokens * PRICE_EMBEDDING / 1e6,
        np.array(reusable, bool),
        dict(refused),
    )


def with_cosines(stream: Stream, vectors: NDArray[np.float32]) -> Stream:
    """`vectors` is a unit row for each text of the stream's `wording`."""
    return stream._replace(cosines=vectors @ vectors.T)


def replay(stream: Stream, rule: Rule | None, scope: Scope = "question", *, exact: bool = True) -> Outcome:
    """One request after another: an exact hit, or what `rule` says of those kept in its namespace. A miss is kept, in
    both tiers; a hit is not."""
    n = len(stream.asks)
    hits, wrong, looked = np.zeros(n, np.int8), np.zeros(n, bool), np.zeros(n, bool)
    same: dict[int, int] = {}
    shelves: dict[int, tuple[NDArray[np.int64], list[int]]] = {}
    keys, answers = stream.exact.tolist(), stream.answers
    where, texts, cosines = stream.scopes[scope].tolist(), stream.texts[scope], stream.cosines
    for i in range(n):
        chosen = same.get(keys[i], MISS) if exact else MISS
        if chosen >= 0:
            hits[i], wrong[i] = 1, answers[chosen] != answers[i]
            continue
        if rule is not None and where[i] >= 0:
            looked[i] = True
            if where[i] not in shelves:
                shelves[where[i]] = (np.empty(n, np.int64), [0])
            shelf, count = shelves[where[i]]
            kept = shelf[: count[0]]
            chosen = rule(i, kept, cosines[texts[i]][texts[kept]])
            if chosen >= 0:
                hits[i], wrong[i] = 2, answers[chosen] != answers[i]
                continue
            if chosen == MISS:
                shelf[count[0]] = i
                count[0] += 1
        same[keys[i]] = i
    return Outcome(hits, wrong, looked)


# --- rules


def threshold(cut: float) -> Rule:
    """The most similar, at or above the cut."""

    def rule(asked: int, kept: NDArray[np.int64], cosines: NDArray[np.float32]) -> int:
        del asked
        if not len(kept):
            return MISS
        best = int(cosines.argmax())
        return int(kept[best]) if cosines[best] >= cut else MISS

    return rule


def vcache(stream: Stream, *, error_rate: float, seed: int) -> Rule:
    """vCache's: the nearest one's own curve says how often to ask upstream instead. What upstream then says is compared
    with what was stored, and kept where it is another answer."""
    draw = random.Random(seed)  # noqa: S311 - which requests explore
    entries: dict[int, VCacheEntry] = defaultdict(VCacheEntry)

    def rule(asked: int, kept: NDArray[np.int64], cosines: NDArray[np.float32]) -> int:
        if not len(kept):
            return MISS
        best = int(cosines.argmax())
        nearest, cosine = int(kept[best]), float(cosines[best])
        if draw.random() > entries[nearest].explore(cosine, error_rate=error_rate):
            return nearest
        right = bool(stream.answers[nearest] == stream.answers[asked])
        entries[nearest].observe(cosine, right=right)
        return KNOWN if right else MISS

    return rule


class Judge:
    """The verifier and the vetoes over the texts of one stream; each pair is looked at once."""

    def __init__(self, stream: Stream, verifier: Verifier) -> None:
        self._stream = stream
        self._texts = stream.texts["eligible"]
        self._verifier = verifier
        self._read: dict[int, Prepared] = {}
        self._chances: dict[tuple[int, int], float] = {}

    def cut(self, share: float) -> float:
        return self._verifier.cut(share)

    def chances(self, asked: int, kept: Sequence[int], cosines: Sequence[float]) -> list[float]:
        """P of each kept request's answer; -1 where something vetoes it."""
        one = int(self._texts[asked])
        others = [int(self._texts[other]) for other in kept]
        new = [at for at, other in enumerate(others) if (one, other) not in self._chances]
        if new:
            found = self._verifier.probabilities(
                self._prepared(one), [self._prepared(others[at]) for at in new], [cosines[at] for at in new]
            )
            for at, chance in zip(new, found, strict=True):
                vetoed = conflict(self._prepared(one), self._prepared(others[at])) is not None
                self._chances[one, others[at]] = -1.0 if vetoed else chance
        return [self._chances[one, other] for other in others]

    def _prepared(self, text: int) -> Prepared:
        if text not in self._read:
            self._read[text] = prepare(self._stream.wording[text])
        return self._read[text]


def verified(judge: Judge, cut: float) -> Rule:
    """The likeliest of the ten nearest that nothing vetoes, at or above the cut."""

    def rule(asked: int, kept: NDArray[np.int64], cosines: NDArray[np.float32]) -> int:
        places = nearest(cosines, CANDIDATES)
        others = kept[places].tolist()
        chances = judge.chances(asked, others, cosines[places].tolist())
        best = max(range(len(others)), key=lambda at: chances[at], default=None)
        return others[best] if best is not None and chances[best] >= cut else MISS

    return rule


class Look(NamedTuple):
    """What an endpoint's fit is told of one look-up: of the first candidate that nothing vetoes."""

    stored: int
    cosine: float
    chance: float
    around: tuple[list[float], list[int]]


def looks(stream: Stream, judge: Judge) -> Callable[[int, NDArray[np.int64], NDArray[np.float32]], Look | None]:
    def look(asked: int, kept: NDArray[np.int64], cosines: NDArray[np.float32]) -> Look | None:
        places = nearest(cosines, LOOKED_AT)
        others, near = kept[places].tolist(), cosines[places].tolist()
        for at, other in enumerate(others[:CANDIDATES]):
            (chance,) = judge.chances(asked, [other], [near[at]])
            if chance >= 0:
                return Look(other, near[at], chance, (near[at:], stream.answers[others[at:]].tolist()))
        return None

    return look


def certified(before: Stream, judged_before: Judge, limit: float) -> tuple[Fit, Certificate | Shortfall]:
    """Fits and certifies on the look-ups of an earlier stream, all of which went upstream and have a label so."""
    look = looks(before, judged_before)
    seen: list[tuple[int, Look]] = []

    def shadow(asked: int, kept: NDArray[np.int64], cosines: NDArray[np.float32]) -> int:
        found = look(asked, kept, cosines)
        if found is not None:
            seen.append((asked, found))
        return MISS

    replay(before, shadow, "eligible")
    wrong = np.array([before.answers[found.stored] != before.answers[asked] for asked, found in seen], bool)
    around = np.array([agreement(*found.around) for _, found in seen], np.float64)
    cosines = np.array([found.cosine for _, found in seen], np.float64)
    chances = np.array([found.chance for _, found in seen], np.float64)
    groups = np.array([before.texts["eligible"][asked] for asked, _ in seen], np.int64)
    around = around.reshape(len(seen), len(Agreement._fields))
    fitted = fit(features_of(cosines, chances, around), wrong, groups=groups)
    origin = Origin(labelled_by="automatic", embedder="", verifier="", data="", date="")
    return fitted.fit, certify(fitted.scores, wrong, limit=limit, curve=fitted.curve, origin=origin)


def fitted(stream: Stream, judge: Judge, model: Fit, cut: float) -> Rule:
    """The first candidate that nothing vetoes, by the endpoint's own fit."""
    look = looks(stream, judge)

    def rule(asked: int, kept: NDArray[np.int64], cosines: NDArray[np.float32]) -> int:
        found = look(asked, kept, cosines)
        if found is None:
            return MISS
        return found.stored if model.score(found.cosine, found.chance, agreement(*found.around)) >= cut else MISS

    return rule


def nearest(cosines: NDArray[np.float32], limit: int) -> NDArray[np.int64]:
    """Places of the most similar, most similar first."""
    if len(cosines) > limit:
        best = np.argpartition(-cosines, limit - 1)[:limit]
        return np.asarray(best[np.argsort(-cosines[best], kind="stable")], np.int64)
    return np.asarray(np.argsort(-cosines, kind="stable"), np.int64)


class Pairs(NamedTuple):
    """Of each look-up of a stream of which everything is kept: the nearest one's cosine, the likeliest one's P, and
    whether their answers are right."""

    cosines: NDArray[np.float64]
    nearest_right: NDArray[np.bool_]
    chances: NDArray[np.float64]
    likeliest_right: NDArray[np.bool_]


def pairs(stream: Stream, judge: Judge | None) -> Pairs:
    """P is 0 where all are vetoed. Exact repeats are no look-ups."""
    near: list[tuple[float, bool]] = []
    likely: list[tuple[float, bool]] = []

    def shadow(asked: int, kept: NDArray[np.int64], cosines: NDArray[np.float32]) -> int:
        places = nearest(cosines, CANDIDATES)
        if len(places):
            others = kept[places].tolist()
            right = [bool(stream.answers[other] == stream.answers[asked]) for other in others]
            near.append((float(cosines[places[0]]), right[0]))
            if judge is not None:
                chances = judge.chances(asked, others, cosines[places].tolist())
                best = max(range(len(others)), key=chances.__getitem__)
                likely.append((max(chances[best], 0.0), right[best]))
        return MISS

    replay(stream, shadow, "eligible")
    return Pairs(
        np.array([value for value, _ in near], np.float64),
        np.array([right for _, right in near], bool),
        np.array([value for value, _ in likely], np.float64),
        np.array([right for _, right in likely], bool),
    )


# --- all of them


def outcomes(
    names: Iterable[str],
    stream: Stream,
    verifier: Verifier | None,
    *,
    seed: int,
    limit: float | None,
    before: Stream | None,
) -> Iterable[tuple[str, str, Outcome]]:
    """Each policy's name, its family and what came of it. `static` and `ours` are families of several cuts.

    Without a verifier ours is left out. `before` is the stream whose look-ups are labelled for `certified`.
    """
    judge = Judge(stream, verifier) if verifier is not None else None
    for name in names:
        if name == "off":
            yield name, name, replay(stream, None, exact=False)
        elif name == "exact":
            yield name, name, replay(stream, None)
        elif name == "static":
            for cut in GRID:
                yield f"static {cut:g}", name, replay(stream, threshold(cut))
        elif name in PEERS:
            cut, scope = PEERS[name]
            yield name, name, replay(stream, threshold(cut), scope)
        elif name == "vcache":
            yield name, name, replay(stream, vcache(stream, error_rate=limit or VCACHE_ERROR, seed=seed))
        elif name == "ours" and judge is not None:
            for share in SHARES:
                label = name if share == SHIPPED else f"ours {share:.2%}"
                yield label, name, replay(stream, verified(judge, judge.cut(share)), "eligible")
        elif name == "certified" and judge is not None and verifier is not None and before and limit:
            model, found = certified(before, Judge(before, verifier), limit)
            if isinstance(found, Certificate):
                outcome = replay(stream, fitted(stream, judge, model, found.cut), "eligible")
                yield name, name, outcome._replace(audited=AUDIT_RATE, certificate="certified")
            else:
                # What is not certified serves by the shipped cut of half the limit.
                outcome = replay(stream, verified(judge, judge.cut(limit / 2)), "eligible")
                yield name, name, outcome._replace(audited=AUDIT_RATE, certificate=found.reason)
