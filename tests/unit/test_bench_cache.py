"""What the benchmark of cache policies makes of labelled questions, and how it judges."""

import asyncio
import functools
import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from numpy.typing import NDArray

from backends.embedding import minilm
from models.errors import ConfigError, TextTooLong
from service.bench import cache
from service.bench.cache import Size, main, run
from service.bench.cache_policies import (
    NAMES,
    PEERS,
    Outcome,
    Scope,
    Stream,
    outcomes,
    prepared,
    replay,
    threshold,
    with_cosines,
)
from service.bench.cache_report import page, table
from service.bench.cache_traffic import (
    FOLLOW_UPS,
    PROFILES,
    Ask,
    Labelled,
    Profile,
    answer,
    body,
    read,
    sample,
    siblings,
    stream,
)
from service.caching.verifier import load

Json = dict[str, Any]

_TOPICS = ("piano", "bicycle", "passport", "garden", "mortgage", "sourdough", "router", "violin", "kitten", "tent")
_ACTS = ("repair", "insure", "sell", "clean", "paint", "transport")
_PHRASINGS = (
    "How do I {act} a {topic}?",
    "How can I {act} a {topic}?",
    "What is the best way to {act} a {topic}?",
    "Please tell me how one can {act} a {topic}",
)
TINY = Size(pool=200, requests=300, labels=300, seeds=2)


class WordsEmbedder:
    """A vector of the words in a text: near are texts that share many. Refuses texts of more than 1,000 characters."""

    revision = "words/1"
    dimensions = 64

    def __init__(self) -> None:
        self.embedded: Counter[str] = Counter()

    async def load(self) -> None: ...

    async def close(self) -> None: ...

    async def embed(self, texts: Sequence[str], *, role: str) -> NDArray[np.float32]:
        del role
        if any(len(text) > 1_000 for text in texts):
            raise TextTooLong("more than 1,000 characters")
        self.embedded.update(texts)
        return np.stack([_of_words(text) for text in texts])


def _of_words(text: str) -> NDArray[np.float32]:
    vector = np.full(64, 0.01, np.float32)
    for word in re.findall(r"\w+", text.lower()):
        vector[crc32(word.encode()) % 64] += 1
    return np.asarray(vector / np.linalg.norm(vector), np.float32)


@functools.cache
def questions() -> Labelled:
    asked = [
        (phrasing.format(act=act, topic=topic), f"{act} {topic}")
        for topic in _TOPICS
        for act in _ACTS
        for phrasing in _PHRASINGS
    ]
    numbers: dict[str, int] = {}
    classes = [numbers.setdefault(about, len(numbers)) for _, about in asked]
    return Labelled("made up", [text for text, _ in asked], classes, [], {}, [])


@functools.cache
def asks(profile: Profile, *, requests: int = 1_000, seed: int = 1) -> list[Ask]:
    labelled = questions()
    near = siblings(labelled, np.stack([_of_words(text) for text in labelled.texts]))
    return stream(labelled, near, profile, requests=requests, seed=seed)


def stream_of(made: Sequence[Ask]) -> Stream:
    keyed = prepared(made)
    return with_cosines(keyed, np.stack([_of_words(text) for text in keyed.wording]))


def written(folder: Path, *lines: Json | str) -> Path:
    file = folder / "mine.jsonl"
    file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return file


# --- labelled questions


def test_questions_of_a_cluster_and_of_equal_pairs_have_one_answer(tmp_path: Path) -> None:
    mine = written(
        tmp_path,
        {"text": "Where is my card?", "cluster": "card"},
        {"text": "My card is not here", "cluster": "card"},
        {"a": "Is tea healthy?", "b": "Is tea good for you?", "label": 1},
        {"a": "Is tea good for you?", "b": "Is green tea good for me?", "label": 1},
        {"a": "Is tea healthy?", "b": "Is coffee healthy?", "label": 0},
        {"text": "Sing!", "cluster": "oos"},
        {"text": "Dance!", "cluster": "oos"},
    )

    labelled = read(mine)

    assert labelled.classes == [0, 0, 1, 1, 1, 2, 3, 4]
    assert labelled.different == [(2, 5)]
    assert labelled.unread == {}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "no JSON"),
        ("\udcff".encode("utf-8", "surrogatepass").decode("latin-1"), "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[]", "neither text and cluster nor a, b and label"),
        ({"text": "  ", "cluster": 1}, "neither text and cluster nor a, b and label"),
        ({"text": "one", "cluster": [1]}, "neither text and cluster nor a, b and label"),
        ({"a": "one", "b": "two", "label": 2}, "neither text and cluster nor a, b and label"),
        ({"a": "one", "b": "", "label": 1}, "neither text and cluster nor a, b and label"),
        ({"a": "one", "b": "one", "label": 0}, "different from itself"),
        ({"text": "What?", "cluster": "other"}, "in two clusters"),
        ({"kind": "lookup", "asked": "6e8a", "cosine": 0.9}, "a look-up without its texts: set cache.lookups: texts"),
    ],
)
def test_a_bad_line_is_counted_named_and_skipped(tmp_path: Path, line: Json | str, reason: str) -> None:
    mine = written(tmp_path, {"text": "What?", "cluster": "what"}, line, {"text": "Who?", "cluster": "who"})

    labelled = read(mine)

    assert labelled.unread == {reason: 1}
    assert labelled.named == [f"mine.jsonl:2: {reason}"]
    assert "Who?" in labelled.texts


def test_a_gateways_own_log_is_a_labelled_file(tmp_path: Path) -> None:
    mine = written(
        tmp_path,
        {"kind": "lookup", "question": "Is tea good for you?", "stored": "Is tea healthy?", "outcome": "same"},
        {"kind": "lookup", "question": "Is coffee healthy?", "stored": "Is tea healthy?", "outcome": "different"},
        {"kind": "lookup", "question": "Is water healthy?", "stored": "Is tea healthy?"},
        {"kind": "verdict", "entry": "e", "wrong": True, "by": "people"},
    )

    labelled = read(mine)

    assert dict(zip(labelled.texts, labelled.classes, strict=True)) == {
        "Is tea good for you?": 0,
        "Is tea healthy?": 0,
        "Is coffee healthy?": 1,
        "Is water healthy?": 2,
    }
    assert len(labelled.different) == 1
    assert labelled.unread == {}


def test_a_verdict_on_a_logged_pair_stands_above_its_compared_answers(tmp_path: Path) -> None:
    def looked(asked: str, text: str, outcome: str) -> Json:
        about = {"asked": asked, "entry": "e", "question": text, "stored": "Is tea healthy?"}
        return {"kind": "lookup", "outcome": outcome, **about}

    def said(asked: str, *, wrong: bool, undone: bool = False) -> Json:
        return {"kind": "verdict", "asked": asked, "entry": "e", "wrong": wrong, "by": "people", "undone": undone}

    mine = written(
        tmp_path,
        looked("1", "Is tea good for you?", "different"),
        looked("2", "Is coffee healthy?", "same"),
        looked("3", "Is tea good for one?", "same"),
        {"kind": "verdict", "entry": "e", "wrong": True, "by": "people"},
        said("1", wrong=False),
        said("2", wrong=True),
        said("3", wrong=True),
        said("3", wrong=True, undone=True),
    )

    labelled = read(mine)

    assert dict(zip(labelled.texts, labelled.classes, strict=True)) == {
        "Is tea good for you?": 0,
        "Is tea healthy?": 0,
        "Is coffee healthy?": 1,
        "Is tea good for one?": 0,
    }
    assert len(labelled.different) == 1
    assert labelled.unread == {}


def test_a_pair_that_others_contradict_is_not_believed_to_differ(tmp_path: Path) -> None:
    mine = written(
        tmp_path,
        {"a": "one", "b": "two", "label": 0},
        {"a": "one", "b": "three", "label": 1},
        {"a": "three", "b": "two", "label": 1},
    )

    labelled = read(mine)

    assert labelled.different == []
    assert labelled.unread == {"different, though others make them the same": 1}


def test_a_set_without_a_question_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"1 lines: no JSON"):
        read(written(tmp_path, "{"))
    with pytest.raises(ConfigError, match=r"there is no such file or folder"):
        read(tmp_path / "nothing")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match=r"no labelled questions in its \*\.jsonl"):
        read(tmp_path / "folder")


def test_a_sample_has_classes_with_all_that_is_different_from_them(tmp_path: Path) -> None:
    lines: list[Json] = [{"a": f"why {n}", "b": f"how come {n}", "label": 1} for n in range(50)]
    lines += [{"a": f"why {n}", "b": f"when {n}", "label": 0} for n in range(50)]

    drawn = sample(read(written(tmp_path, *lines)), 30, 1)

    assert 20 <= len(drawn.texts) <= 33
    assert drawn.different
    assert all(drawn.texts[one].split()[-1] == drawn.texts[other].split()[-1] for one, other in drawn.different)


# --- streams


def test_a_seed_makes_the_same_stream_again_and_another_seed_another() -> None:
    labelled = questions()
    near: list[list[int]] = [[] for _ in labelled.texts]

    def made(seed: int) -> list[Ask]:
        return stream(labelled, near, PROFILES["faq"], requests=200, seed=seed)

    assert made(1) == made(1)
    assert made(1) != made(2)


def test_kinds_come_in_the_shares_of_the_profile() -> None:
    kinds = Counter[str](ask.kind for seed in range(4) for ask in asks(PROFILES["faq"], requests=600, seed=seed))

    for kind, share in {"exact": 0.18, "paraphrase": 0.30, "trap": 0.10, "follow-up": 0.15, "unique": 0.27}.items():
        assert kinds[kind] / 2_400 == pytest.approx(share, abs=0.04)


def test_every_phrasing_is_used_once_before_any_is_used_again() -> None:
    said: dict[str, Counter[str]] = defaultdict(Counter)
    of_text = dict(zip(questions().texts, questions().classes, strict=True))

    for ask in asks(Profile(exact=0.0, paraphrase=0.8, trap=0.0, follow_up=0.0)):
        if ask.question in of_text:
            used = said[str(of_text[ask.question])]
            used[ask.question] += 1
            assert max(used.values()) - min(used[text] for text in _same(of_text, ask.question)) <= 1


def _same(of_text: dict[str, int], question: str) -> list[str]:
    return [text for text, number in of_text.items() if number == of_text[question]]


def test_a_trap_comes_after_the_question_it_is_taken_for() -> None:
    labelled = questions()
    near = siblings(labelled, np.stack([_of_words(text) for text in labelled.texts]))
    places = {text: place for place, text in enumerate(labelled.texts)}
    asked: set[int] = set()
    traps = 0

    for ask in asks(PROFILES["adversarial"]):
        if ask.kind == "trap":
            traps += 1
            assert any(places[ask.question] in near[one] for one in asked)
        if ask.question in places:
            asked.add(places[ask.question])
    assert traps > 50


def test_siblings_are_those_labelled_different_or_else_the_nearest_of_another_class() -> None:
    labelled = Labelled("", ["a b c", "a b d", "x y", "a b c e"], [0, 1, 2, 0], [(0, 2)], {}, [])

    near = siblings(labelled, np.stack([_of_words(text) for text in labelled.texts]))

    assert near[0] == [2]
    assert near[1][0] == 0
    assert near[3][0] == 1


def test_an_answer_is_anothers_for_another_class_account_context_or_version() -> None:
    one = ("what", "me", "here", 1)

    others = {answer(*one), answer("why", *one[1:]), answer("what", "you", "here", 1), answer("what", "me", "", 1)}

    assert len({*others, answer("what", "me", "here", 2)}) == 5
    assert answer(*one) == answer(*one)


def test_the_same_follow_up_means_another_thing_in_another_conversation() -> None:
    by_words: dict[str, dict[tuple[str, ...], str]] = defaultdict(dict)

    for ask in asks(PROFILES["agent"]):
        if ask.question in FOLLOW_UPS:
            assert len(ask.history) % 2 == 0
            by_words[ask.question][ask.history] = ask.answer

    assert any(len(set(answers.values())) > 5 for answers in by_words.values())


def test_nobody_asks_for_the_same_answer_twice_in_the_profile_unique() -> None:
    made = asks(PROFILES["unique"], requests=500)

    assert len({ask.answer for ask in made}) == 500


def test_chats_as_they_are_have_little_to_reuse() -> None:
    assert 0.02 < stream_of(asks(PROFILES["chat-real"], requests=3_000)).reusable.mean() < 0.08


def test_a_request_is_sent_with_its_turns_in_their_order() -> None:
    ask = next(ask for ask in asks(PROFILES["agent"]) if len(ask.history) >= 2)

    messages = body(ask)["messages"]

    assert [message["role"] for message in messages[:4]] == ["system", "user", "assistant", "user"]
    assert messages[-1]["content"] == ask.said
    assert body(ask)["tools"]


# --- policies


def one_ask(question: str, meant: str, *, account: str = "me", history: tuple[str, ...] = ()) -> Ask:
    return Ask("unique", question, question, account, "", "Be kind.", history, False, answer(meant, account, "", 1))


def test_a_hit_brings_the_answer_of_what_was_kept_and_is_not_kept_itself() -> None:
    made = [
        one_ask("how to paint a boat", "boat"),
        one_ask("how to paint a boat please", "boat"),
        one_ask("how to paint a goat please", "goat"),
        one_ask("how to paint a boat", "boat"),
    ]

    outcome = replay(stream_of(made), threshold(0.7))

    assert outcome.hits.tolist() == [0, 2, 2, 1]
    assert outcome.wrong.tolist() == [False, False, True, False]


def test_no_policy_looks_into_another_account() -> None:
    made = [one_ask("how to paint a boat", "boat"), one_ask("how to paint a boat", "boat", account="you")]

    scopes: tuple[Scope, ...] = ("said", "short", "turns", "question", "eligible")
    for scope in scopes:
        assert replay(stream_of(made), threshold(0.0), scope).hits.tolist() == [0, 0]


def test_the_last_message_alone_answers_for_another_conversation() -> None:
    made = [
        one_ask("And for kids?", "swimming for kids", history=("Is swimming healthy?", "Yes.")),
        one_ask("And for kids?", "whisky for kids", history=("Is whisky healthy?", "No.")),
    ]

    assert replay(stream_of(made), threshold(0.95), "said").wrong.tolist() == [False, True]
    assert replay(stream_of(made), threshold(0.0), "short").looked.tolist() == [False, False]
    assert replay(stream_of(made), threshold(0.95), "turns").hits.tolist() == [0, 0]
    assert replay(stream_of(made), threshold(0.0), "question").hits.tolist() == [0, 0]


def test_passages_are_compared_by_peers_and_must_be_equal_for_ours() -> None:
    made = stream_of(asks(PROFILES["rag"]))
    ours = replay(made, threshold(0.0), "question")

    contexts: dict[int, str] = {}
    for at, namespace in enumerate(made.scopes["question"].tolist()):
        assert contexts.setdefault(namespace, made.asks[at].context) == made.asks[at].context
    assert ours.hits.any()


def test_what_asks_for_the_day_is_not_compared_by_ours() -> None:
    made = stream_of([one_ask("What is the latest news?", "news"), one_ask("What is the latest news now?", "later")])

    assert replay(made, threshold(0.0), "eligible").hits.tolist() == [0, 0]
    assert made.refused == {"fresh": 2}


def test_only_right_hits_of_what_was_asked_before_can_be_reused() -> None:
    made = stream_of(asks(PROFILES["support"]))

    for rule in (None, threshold(0.6), threshold(0.9)):
        outcome: Outcome = replay(made, rule)
        right = (outcome.hits > 0) & ~outcome.wrong
        assert not (right & ~made.reusable).any()
        assert not (outcome.wrong & (outcome.hits == 1)).any()


# --- all of it


@functools.cache
def found(profile: str) -> Json:
    verifier = load(minilm.REVISION)
    return asyncio.run(run(questions(), WordsEmbedder(), verifier, PROFILES[profile], TINY, limit=0.05))


def policy(result: Json, name: str) -> Json:
    (row,) = (row for row in result["policies"] if row["policy"] == name)
    return dict(row)


def test_every_policy_has_its_row() -> None:
    families = [row["family"] for row in found("faq")["policies"]]

    assert list(dict.fromkeys(families)) == list(NAMES)


def test_off_saves_nothing_and_exact_is_never_wrong() -> None:
    off, exact = policy(found("faq"), "off"), policy(found("faq"), "exact")

    assert off["hits"]["share"] == 0
    assert off["net"]["1"]["share"] == 0
    assert exact["hits"]["share"] > 0.1
    assert exact["wrong_of_all"]["share"] == 0
    assert exact["net"]["50"] == exact["net"]["1"]


def test_traffic_without_repeats_saves_nothing_under_any_policy() -> None:
    for row in found("unique")["policies"]:
        assert row["tokens_saved"]["share"] == 0
        assert row["net"]["1"]["share"] <= 0


def test_a_wrong_hit_costs_more_the_more_it_is_charged() -> None:
    net = policy(found("faq"), "gptcache")["net"]

    assert net["1"]["share"] > net["5"]["share"] > net["10"]["share"] > net["50"]["share"]


def test_ours_is_less_often_wrong_than_any_peer() -> None:
    result = found("adversarial")

    ours = policy(result, "ours")["wrong_of_all"]["share"]
    assert all(ours < policy(result, peer)["wrong_of_all"]["share"] for peer in PEERS)


def test_it_is_told_in_how_many_seeds_the_limit_was_certified() -> None:
    row = policy(found("faq"), "certified")

    assert sum(row["certificates"].values()) == TINY.seeds
    assert "a limit of 5.0% in 2 seeds: " in table(found("faq"))


def test_enough_labels_without_an_error_certify_and_none_do_not() -> None:
    made = stream_of([one_ask("how to paint a boat", "boat")])
    twice = [text + mark for text in questions().texts[:: len(_PHRASINGS)] for mark in ("", " ?")]
    labelled = stream_of([one_ask(text, text.rstrip(" ?")) for text in twice])
    verifier = load(minilm.REVISION)

    def certificate(before: Stream) -> str:
        ((_, _, outcome),) = outcomes(["certified"], made, verifier, seed=1, limit=0.2, before=before)
        return outcome.certificate

    assert certificate(labelled) == "certified"
    assert certificate(stream_of([one_ask("how to paint", "paint")])) == "no-labels"


def test_intervals_hold_the_share_and_a_single_seed_has_none() -> None:
    for row in found("faq")["policies"]:
        low, high = row["hits"]["interval"]
        assert low <= row["hits"]["share"] <= high
    single = asyncio.run(
        run(questions(), WordsEmbedder(), None, PROFILES["faq"], TINY._replace(seeds=1), names=("exact",))
    )
    assert policy(single, "exact")["hits"]["interval"] is None


async def test_a_text_is_embedded_once_and_a_run_repeats_itself() -> None:
    embedder = WordsEmbedder()
    names = ("exact", "bifrost", "vcache")

    first = await run(questions(), embedder, None, PROFILES["faq"], TINY, names=names)
    again = await run(questions(), WordsEmbedder(), None, PROFILES["faq"], TINY, names=names)

    assert set(embedder.embedded.values()) == {1}
    assert json.dumps(first) == json.dumps(again)


async def test_texts_that_no_embedder_takes_are_near_to_nothing() -> None:
    long = ["long " * 30_000, "\N{PARTY POPPER}" * 2_000, "x" * 5_000]
    labelled = Labelled("long", [*long, "short"], [0, 1, 2, 3], [], {}, [])

    result = await run(labelled, WordsEmbedder(), load(minilm.REVISION), PROFILES["faq"], TINY._replace(seeds=1))

    assert policy(result, "ours")["hits"]["share"] > 0


async def test_a_question_that_is_cut_out_of_a_labelled_text_is_embedded_as_well() -> None:
    text = "Context: tea has caffeine.\n\nQuestion: is tea healthy?"
    labelled = Labelled("labelled", [text, "Why?"], [0, 1], [], {}, [])

    result = await run(labelled, WordsEmbedder(), None, PROFILES["unique"], TINY, names=("static",))

    assert result["policies"]


async def test_a_set_of_one_question_can_be_asked() -> None:
    labelled = Labelled("one", ["Why?"], [0], [], {}, [])

    result = await run(labelled, WordsEmbedder(), None, PROFILES["adversarial"], TINY, names=("gptcache",))

    assert policy(result, "gptcache")["requests"] == 600


async def test_without_a_verifier_ours_is_left_out_and_named() -> None:
    result = await run(questions(), WordsEmbedder(), None, PROFILES["faq"], TINY, names=("exact", "ours"))

    assert [row["policy"] for row in result["policies"]] == ["exact"]
    assert result["left_out"] == ["ours: there is no verifier for this embedder"]
    assert "left out: ours" in table(result)
    assert "<svg" in page(result)


def test_the_page_loads_nothing_and_shows_text_as_text() -> None:
    result = json.loads(json.dumps(found("faq")))
    result["about"]["data"] = "<script>alert(1)</script>"

    shown = page(result)

    assert "<script" not in shown
    assert not re.search(r"https?:|src=|href=|@import|<link", shown)
    assert shown.count("<svg") >= 8
    assert "nan" not in shown


def test_skipped_lines_are_named_in_the_table() -> None:
    result = json.loads(json.dumps(found("faq")))
    result["about"] |= {"unread": {"no JSON": 3}, "named": ["mine.jsonl:7: no JSON"]}

    assert "skipped lines: 3 no JSON" in table(result)
    assert "mine.jsonl:7" in table(result)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"profile": "shop"}, "no profile is named 'shop'; known: faq, support"),
        ({"policies": ["ours", "theirs"]}, "no policy is named 'theirs'; known: off, exact"),
        ({"policies": []}, "no policy is named"),
        ({"limit": 1.0}, "a limit of 1.0"),
        ({"zipf": -1.0}, "a Zipf exponent of -1.0"),
        ({"seeds": 0}, "0 seeds"),
        ({"json_to": "/nowhere/at/all.json"}, "cannot be written"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_embedded(
    tmp_path: Path, options: Json, message: str
) -> None:
    mine = written(tmp_path, {"text": "What?", "cluster": "what"})

    with pytest.raises(ConfigError, match=re.escape(message)):
        main(mine, **options)


def test_a_bar_off_the_terminal_is_a_line_for_each_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    bar = cache.Bar(sys.stderr)

    for at in range(101):
        bar(at / 100, "embedding")

    assert len(capsys.readouterr().err.splitlines()) == 11
