"""Streams of requests with known answers, made from labelled questions.

What is asked is the labelled set's own; when, by whom and in what conversation
is drawn with a seed. The answer of a request is a function of what is asked,
of the account, of the context it is asked in and of the system prompt's
version, so that a hit is judged by the answer it brings.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.errors import ConfigError

Kind = Literal["exact", "paraphrase", "trap", "follow-up", "unique"]

# Whose questions have no answer in common, by the word that labelled sets use for them.
OUT_OF_SCOPE = "oos"
_MOST_NAMED = 5  # places of unread lines
_MOST_OF_A_CLASS, _LEAST_OF_A_CLASS = 60, 8
_TRIES = 8
_SIBLINGS = 4
_ROWS = 500


class Profile(NamedTuple):
    """Shares of requests by kind; the rest are questions nobody asked before. `zipf` is the exponent by which what is
    asked again is popular. `contexts` is the number of passages that a question may stand beside."""

    exact: float = 0.18
    paraphrase: float = 0.30
    trap: float = 0.10
    follow_up: float = 0.15
    zipf: float = 1.0
    accounts: int = 1
    contexts: int = 0
    versions: int = 1
    tools: bool = False


PROFILES: Mapping[str, Profile] = {
    "faq": Profile(zipf=1.2),
    "support": Profile(zipf=1.0, accounts=3),
    "chat-real": Profile(exact=0.03, paraphrase=0.02, trap=0.05, follow_up=0.40, zipf=0.7),
    "search": Profile(exact=0.35, paraphrase=0.20, follow_up=0.0, zipf=1.2),
    "rag": Profile(follow_up=0.0, zipf=0.7, contexts=12),
    "agent": Profile(exact=0.08, paraphrase=0.15, follow_up=0.45, zipf=0.7, versions=2, tools=True),
    "adversarial": Profile(exact=0.05, paraphrase=0.15, trap=0.45, follow_up=0.30, zipf=0.0),
    "unique": Profile(exact=0.0, paraphrase=0.0, trap=0.0, follow_up=0.0, zipf=0.0),
}


class Labelled(NamedTuple):
    """`classes[i]` is the answer that `texts[i]` has; `different` are pairs of places whose answers are known to
    differ. `unread` counts lines by why nothing can be said of them, `named` the first of them by their places."""

    name: str
    texts: list[str]
    classes: list[int]
    different: list[tuple[int, int]]
    unread: Mapping[str, int]
    named: list[str]


class Ask(NamedTuple):
    """`said` is the last message as it is sent, `question` what of it is asked; `history` are the turns before, user
    first, and `context` is the passage beside the first question."""

    kind: Kind
    question: str
    said: str
    account: str
    context: str
    system: str
    history: tuple[str, ...]
    tools: bool
    answer: str


# --- labelled questions


def read(data: Path) -> Labelled:
    """Every line of the file, or of all `*.jsonl` in the folder: `{"text", "cluster"}`, `{"a", "b", "label"}`, or a row
    of a gateway's log of look-ups with texts.

    Questions of one cluster have one answer, and so have questions that pairs
    of label 1 join; all others are taken to have different ones. A cluster that
    is null or `oos`, or none, is an answer of its own. Lines that cannot be
    read are counted and skipped, as is what contradicts a line before it.
    Raises `ConfigError` where nothing is left to ask.
    """
    if not data.exists():
        raise ConfigError(f"{data}: there is no such file or folder")
    files = [data] if data.is_file() else sorted(data.rglob("*.jsonl"))
    unread: Counter[str] = Counter()
    named: list[str] = []
    places: dict[str, int] = {}
    parents: list[int] = []
    clusters: dict[tuple[str, str], int] = {}
    of_cluster: dict[int, tuple[str, str]] = {}
    apart: list[tuple[int, int, str]] = []
    looked: list[tuple[int, int, tuple[str, str], object, str]] = []
    verdicts: dict[tuple[str, str], dict[str, bool]] = {}

    def refuse(reason: str, place: str) -> None:
        unread[reason] += 1
        if unread[reason] <= _MOST_NAMED:
            named.append(f"{place}: {reason}")

    def place_of(text: str) -> int:
        if text not in places:
            places[text] = len(parents)
            parents.append(len(parents))
        return places[text]

    def root(place: int) -> int:
        while parents[place] != place:
            parents[place] = parents[parents[place]]
            place = parents[place]
        return place

    for file in files:
        name = file.name if file == data else str(file.relative_to(data))
        try:
            lines = file.read_bytes().splitlines()
        except OSError as error:
            raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            place = f"{name}:{number}"
            try:
                row = msgspec.json.decode(line)
            except (msgspec.DecodeError, RecursionError):
                refuse("no JSON", place)
                continue
            match row:
                case {"a": str(a), "b": str(b), "label": 0 | 1 as label} if a.strip() and b.strip():
                    one, other = place_of(a), place_of(b)
                    if label:
                        parents[root(one)] = root(other)
                    elif one != other:
                        apart.append((one, other, place))
                    else:
                        refuse("different from itself", place)
                case {"text": str(text), "cluster": str() | int() as cluster} if text.strip() and (
                    cluster != OUT_OF_SCOPE
                ):
                    key, at = (name, str(cluster)), place_of(text)
                    if of_cluster.setdefault(at, key) != key:
                        refuse("in two clusters", place)
                    else:
                        parents[root(at)] = root(clusters.setdefault(key, at))
                case {"text": str(text)} if text.strip() and row.get("cluster") in (None, OUT_OF_SCOPE):
                    place_of(text)
                case {"kind": "lookup", "question": str(asked), "stored": str(stored)} if (
                    asked.strip() and stored.strip()
                ):
                    # The endpoint's own log, docs/cache.md: compared answers are labels, unless somebody says better.
                    pair = (str(row.get("asked") or place), str(row.get("entry")))
                    looked.append((place_of(asked), place_of(stored), pair, row.get("outcome"), place))
                case {"kind": "lookup"}:
                    refuse("a look-up without its texts: set cache.lookups: texts", place)
                case {"kind": "verdict", "asked": str(said_of), "entry": str(entry), "wrong": bool(wrong)}:
                    by = verdicts.setdefault((said_of, entry), {})
                    if row.get("undone"):
                        by.pop(str(row.get("by")), None)
                    else:
                        by[str(row.get("by"))] = wrong
                case {"kind": "verdict"}:
                    pass  # on an entry as such: it joins no two questions
                case _:
                    refuse("neither text and cluster nor a, b and label", place)
    for one, other, pair, outcome, place in looked:
        if said := verdicts.get(pair):
            outcome = "different" if any(said.values()) else "same"
        if outcome == "same":
            parents[root(one)] = root(other)
        elif outcome == "different" and one != other:
            apart.append((one, other, place))
    different = []
    for one, other, place in apart:
        if root(one) == root(other):
            refuse("different, though others make them the same", place)
        else:
            different.append((one, other))
    if not places:
        why = f" ({', '.join(f'{count:,} lines: {reason}' for reason, count in unread.items())})" if unread else ""
        where = f"{data}: no labelled questions" if data.is_file() else f"{data}: no labelled questions in its *.jsonl"
        raise ConfigError(f"{where}{why}")
    numbers: dict[int, int] = {}
    classes = [numbers.setdefault(root(place), len(numbers)) for place in range(len(parents))]
    return Labelled(data.name, list(places), classes, different, dict(unread), named)


def sample(labelled: Labelled, most: int, seed: int) -> Labelled:
    """At most about `most` questions, in whole classes and with those that are known to be different from them."""
    draw = random.Random(seed)  # noqa: S311 - the same again is the point
    members: dict[int, list[int]] = defaultdict(list)
    for place, number in enumerate(labelled.classes):
        members[number].append(place)
    near: dict[int, list[int]] = defaultdict(list)
    for one, other in labelled.different:
        near[labelled.classes[one]].append(labelled.classes[other])
        near[labelled.classes[other]].append(labelled.classes[one])
    order = sorted(members)
    draw.shuffle(order)
    several = sum(len(places) > 1 for places in members.values())
    cap = min(_MOST_OF_A_CLASS, max(_LEAST_OF_A_CLASS, most // max(several, 1)))
    # What can be asked in other words comes first and gets half of the room, if anything else is there to ask.
    order.sort(key=lambda number: len(members[number]) < 2)
    room = most if several == len(members) else most // 2
    chosen: dict[int, None] = {}
    count = 0
    for number in order:
        if count >= room and len(members[number]) > 1:
            continue
        for one in (number, *near[number][:2]):
            if one not in chosen and count < most:
                chosen[one] = None
                count += min(len(members[one]), cap)
    kept: list[int] = []
    for number in chosen:
        places = members[number]
        kept += draw.sample(places, min(len(places), cap))
    at = {place: new for new, place in enumerate(kept)}
    return labelled._replace(
        texts=[labelled.texts[place] for place in kept],
        classes=[labelled.classes[place] for place in kept],
        different=[(at[one], at[other]) for one, other in labelled.different if one in at and other in at],
    )


def siblings(labelled: Labelled, vectors: NDArray[np.float32]) -> list[list[int]]:
    """Of each question those with another answer that are taken for it most easily: by label, else by their vectors.

    `vectors` is a unit row for each text.
    """
    found: list[list[int]] = [[] for _ in labelled.texts]
    for one, other in labelled.different:
        found[one].append(other)
        found[other].append(one)
    classes = np.array(labelled.classes)
    most = min(_SIBLINGS, len(classes))
    for start in range(0, len(classes), _ROWS):
        cosines = vectors[start : start + _ROWS] @ vectors.T
        cosines[classes[start : start + _ROWS, None] == classes[None, :]] = -2.0
        for row, places in enumerate(_most(cosines, most)):
            if not found[start + row]:
                found[start + row] = [int(place) for place in places if cosines[row, place] > -2.0]
    return found


def _most(cosines: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    best = np.argpartition(-cosines, count - 1, axis=1)[:, :count]
    order = np.argsort(-np.take_along_axis(cosines, best, axis=1), axis=1, kind="stable")
    return np.take_along_axis(best, order, axis=1)


# --- requests


def answer(what: str, account: str, context: str, version: int) -> str:
    """What the mock says: the same for the same four, and never the same for others."""
    digest = blake2b("\0".join([what, account, context, str(version)]).encode(), digest_size=12)
    return f"Answer {digest.hexdigest()}."


def stream(
    labelled: Labelled, near: Sequence[Sequence[int]], profile: Profile, *, requests: int, seed: int
) -> list[Ask]:
    """`requests` of them. `near` are `siblings`.

    Every phrasing of a class is used once before any is used again, a trap
    comes after the question that it is taken for, and a follow-up asks what was
    not asked in such a conversation before. Where the set has no more
    questions that nobody asked, some are made up.
    """
    draw = random.Random(seed)  # noqa: S311 - the same again is the point
    members: dict[int, list[int]] = defaultdict(list)
    for place, number in enumerate(labelled.classes):
        members[number].append(place)
    for places in members.values():
        draw.shuffle(places)
    fresh = sorted(members)
    draw.shuffle(fresh)
    weights = {number: (rank + 1.0) ** -profile.zipf for rank, number in enumerate(fresh)}
    # Taken from the end: first what can be asked in other words, and of that what is popular.
    fresh.sort(key=lambda number: (len(members[number]) < 2, draw.expovariate(1.0) / weights[number]), reverse=True)
    seen: dict[Any, list[Ask]] = {}
    order: list[Any] = []
    running: list[float] = []
    used: Counter[int] = Counter()
    several: list[int] = []  # classes asked that have other words

    def note(number: Any, ask: Ask) -> Ask:
        if number not in seen:
            seen[number] = []
            order.append(number)
            weight = weights.get(number, 1.0 / len(weights) ** profile.zipf)
            running.append(weight + (running[-1] if running else 0.0))
            if len(members.get(number, ())) > 1:
                several.append(number)
        seen[number].append(ask)
        return ask

    def made(kind: Kind, what: Any, text: str, account: str, context: str, version: int) -> Ask:
        said = f"Context: {context}\n\nQuestion: {text}" if context else text
        system = f"You answer the questions of our users. Revision {version + 1}."
        return Ask(
            kind, text, said, account, context, system, (), profile.tools, answer(str(what), account, context, version)
        )

    def someone(version: int) -> tuple[str, str]:
        return f"account-{draw.randrange(profile.accounts)}", (
            _passage(draw.randrange(profile.contexts), version) if profile.contexts else ""
        )

    def next_phrasing(number: int) -> str:
        places = members[number]
        text = labelled.texts[places[used[number] % len(places)]]
        used[number] += 1
        return text

    def one(at: int, version: int) -> Ask:
        kind = draw.choices(
            ("exact", "paraphrase", "trap", "follow-up", "unique"),
            (
                profile.exact,
                profile.paraphrase,
                profile.trap,
                profile.follow_up,
                1 - profile.exact - profile.paraphrase - profile.trap - profile.follow_up,
            ),
        )[0]
        if kind == "exact" and order:
            number = draw.choices(order, cum_weights=running)[0]
            return note(number, draw.choice(seen[number])._replace(kind="exact"))
        if kind == "paraphrase" and several:
            unused = [number for number in several if used[number] < len(members[number])] or several
            number = draw.choices(unused, [weights[number] for number in unused])[0]
            first = draw.choice(seen[number])
            context = first.context
            return note(number, made("paraphrase", number, next_phrasing(number), first.account, context, version))
        if kind == "trap" and order:
            for left in reversed(range(_TRIES)):
                number = draw.choices(order, cum_weights=running)[0]
                first = draw.choice(seen[number])
                if (profile.accounts > 1 or profile.contexts > 1) and draw.random() < 0.5:
                    account, context = someone(version)
                    if (account, context) != (first.account, first.context) and not first.history:
                        return note(number, made("trap", number, first.question, account, context, version))
                    continue
                place = place_of.get(first.question)
                others = [other for other in near[place] if other not in trapped] if place is not None else []
                if others:
                    # One whose answer was given before is no trap, and only taken where there are no others.
                    chosen = min(others, key=lambda other: labelled.classes[other] in seen)
                    if left and labelled.classes[chosen] in seen:
                        continue
                    trapped.add(chosen)
                    other, text = labelled.classes[chosen], labelled.texts[chosen]
                    return note(other, made("trap", other, text, first.account, first.context, version))
        if kind == "follow-up" and order:
            for _ in range(_TRIES):
                first = draw.choice(seen[draw.choices(order, cum_weights=running)[0]])
                text = draw.choice(FOLLOW_UPS)
                if (first.answer, text) not in seen:
                    return note((first.answer, text), _followed(first, text, version))
        while fresh:
            number = fresh.pop()
            if number not in seen:
                return note(number, made("unique", number, next_phrasing(number), *someone(version), version))
        text = invented()
        made_up = f"made up {at}: {text}"
        return note(made_up, made("unique", made_up, text, *someone(version), version))

    def invented() -> str:
        """A question about three things, no two of which stood together before, as far as there are such."""
        for _ in range(_TRIES):
            things = draw.sample(_THINGS, 3)
            together = {frozenset(pair) for pair in combinations(things, 2)}
            if not together & met:
                break
        met.update(together)
        return draw.choice(_FRAMES).format(*things)

    place_of = {text: place for place, text in enumerate(labelled.texts)}
    trapped: set[int] = set()
    met: set[frozenset[str]] = set()
    return [one(at, at * profile.versions // requests) for at in range(requests)]


def _followed(first: Ask, text: str, version: int) -> Ask:
    """The same caller's next turn."""
    return first._replace(
        kind="follow-up",
        question=text,
        said=text,
        history=(*first.history, first.said, first.answer),
        answer=answer(text, first.account, first.answer, version),
    )


def body(ask: Ask) -> dict[str, Any]:
    """The request as a client sends it."""
    turns = [
        {"role": "assistant" if at % 2 else "user", "content": content}
        for at, content in enumerate((*ask.history, ask.said))
    ]
    sent: dict[str, Any] = {"model": "mock", "messages": [{"role": "system", "content": ask.system}, *turns]}
    return {**sent, "tools": _TOOLS} if ask.tools else sent


def _passage(number: int, version: int) -> str:
    thing, other, third = _THINGS[number % len(_THINGS)], _THINGS[(number * 7 + 3) % len(_THINGS)], version + 1
    return (
        f"Handbook {number + 1}, edition {third}, for the department of {thing}. Whoever works with {other} follows "
        f"rule {number * 11 + 5} and writes down what was done."
    )


# What is said in the middle of a conversation, and means another thing in each.
FOLLOW_UPS = (
    "And for kids?", "Why is that?", "How much does it cost?", "What about the other one?", "Is it safe?",
    "Can you explain that again?", "And how long does it take?", "Give me an example.", "Who decides that?",
    "What else should I know about it?", "Does that also work abroad?", "And if I don't?",
)  # fmt: skip
_FRAMES = (
    "Write a short poem about {0}, {1} and {2}", "How did {0} change the trade in {1} near the {2}?",
    "Compare {0} with {1} for somebody who owns a {2}", "Draft a letter to a museum of {0} that mentions {1} and a {2}",
    "Why would {0} matter to people who study {1} and {2}?", "Invent a game with {0}, {1} and one {2}",
    "Explain {0} to a child who likes {1} and {2}", "Sketch a business that turns {0} into {1} with a {2}",
    "Which {0} would survive a {1} falling onto a {2}?", "Plan a weekend around {0}; we have {1} and {2}",
    "What is the {0} doing in that painting of a {1} by a {2}?", "Name a villain made of {0} who fears {1} and {2}",
    "My {0} broke the {1}: does insurance cover the {2}?", "Translate 'the {0} under the {1}' into the slang of {2}",
    "Rank {0}, {1} and {2} by weight", "Could one build a {0} on top of a {1} without a {2}?",
    "Find three puns that join {0} to {1} and end with {2}", "Is there a saint of {0}, of {1} or of {2}?",
    "Write SQL that joins a table of {0} to one of {1} by its {2}", "A riddle about {0}, with {1} and {2} in it",
    "Who first photographed a {0} beside a {1} during a {2}?", "Give {0} as a gift, or rather {1}, to a fan of {2}?",
    "Describe the smell of {0} after {1} met {2}", "Design a stamp showing {0}, a tiny {1} and half a {2}",
)  # fmt: skip
_WORDS = (
    "lighthouse glacier violin beehive compost telescope bridge sourdough tapestry submarine orchid volcano"
    " chessboard windmill saffron turbine cathedral octopus fossil kayak loom thermostat accordion vineyard"
    " meteor pottery harbour falcon marble ladder origami penguin quarry satellite tunnel umbrella wallpaper"
    " yeast zeppelin anvil balloon canal dynamo envelope fountain granite hammock iceberg jigsaw kettle"
    " lantern magnet needle orchard pulley quilt raincoat saddle trombone urn velvet walnut xylophone yogurt"
    " zipper almond barometer clarinet dragonfly espresso ferry gondola hourglass incense jasmine kiln library"
    " mosaic nightingale observatory parachute quartz reindeer sundial treadmill ukulele viaduct waterfall"
    " yacht asteroid bonsai cinnamon driftwood eclipse fjord"
)
_THINGS = tuple(_WORDS.split())
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look_up",
            "description": "Looks a record up",
            "parameters": {"type": "object", "properties": {"id": {"type": "string"}}},
        },
    }
]
