"""What two questions differ in is seen, whichever of them was stored."""

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.caching.features import FEATURES, GROUPS, NAMES, features, prepare
from tests.support.examples import examples


def row(asked: str, stored: str, *, cosine: float = 0.9) -> dict[str, float]:
    return dict(zip(NAMES, features(prepare(asked), prepare(stored), cosine), strict=True))


def test_every_feature_has_a_group_and_a_meaning() -> None:
    values = features(prepare("one"), prepare("two"), 0.5)

    assert len(values) == len(FEATURES) > 60
    assert values.dtype == np.float64
    assert all(group in GROUPS and meaning for group, meaning in FEATURES.values())


@pytest.mark.parametrize(
    ("asked", "stored", "name", "value"),
    [
        ("How do I fly?", "how do I fly", "cover_least", 1.0),
        ("What's new?", "What is new?", "cover_least", 1.0),
        ("Why can't I log in?", "Why can not I log in?", "cover_least", 1.0),
        ("Which films are best?", "Which movies are best?", "jaccard", 1.0),
        ("Is Xqzt here?", "Is Zvkw here?", "heaviest_least", 10.0),
        ("Was 5 enough in 2019?", "Was 6 enough in 2019?", "numbers_least", 1.0),
        ("Was 5 enough in 2019?", "Was 6 enough in 2019?", "numbers_shared", 1.0),
        ("Is 5 km far?", "Is 5 miles far?", "units", 1.0),
        ("Is 5 km far?", "Is 5 kilometers far?", "units", 0.0),
        ("Open on Monday?", "Open on Friday?", "dates", 2.0),
        ("Is E404 bad?", "Is E500 bad?", "identifiers", 2.0),
        ("Mail <EMAIL_00aa11>", "Mail <EMAIL_00aa12>", "identifiers", 2.0),
        ("Is C fast?", "Is C++ fast?", "lacking_words_least", 1.0),
        ("did we meet Ann Baker", "did we meet Bob Baker", "names_least", 1.0),
        ("Is it safe?", "Isn't it safe?", "negation", 1.0),
        ("Is it not unsafe?", "Is it unsafe?", "negation_parity", 1.0),
        ("Is it legal?", "Is it illegal?", "antonyms", 1.0),
        ("How to become more calm?", "How to become less calm?", "more_less", 2.0),
        ("Eat before noon?", "Eat after noon?", "before_after", 2.0),
        ("Is Ann a baker?", "Did Ann use to be a baker?", "used_to", 1.0),
        ("Is Ann a baker?", "Is Ann becoming a baker?", "becoming", 1.0),
        ("Is Ann a cook and a baker?", "Is Ann a cook or a baker?", "and_or", 1.0),
        ("Would he call her?", "Would she call him?", "pronoun_order", 1.0),
        ("How is it made?", "Why is it made?", "asked_for_both", 1.0),
        ("Can I pay?", "How can I pay?", "yes_no", 1.0),
        ("How many cats?", "How do cats?", "how_many", 1.0),
        ("Did Ann paint the wall?", "Was the wall painted by Ann?", "passive", 1.0),
        ("Did Ann paint the wall?", "Was the wall painted by Ann?", "roles", 0.0),
        ("Did Ann paint Bob?", "Was Ann painted by Bob?", "roles", 1.0),
        ("Did Ann paint Bob?", "Did Bob paint Ann?", "roles", 1.0),
        ("Fly from Rome to Oslo?", "Fly from Oslo to Rome?", "reversed", 1.0),
        ("Are Ann and Bob tall?", "Are Bob and Ann tall?", "symmetric", 1.0),
        ("Is Ann a baker?", "Is Ann a good baker?", "added_after_article", 1.0),
        ("Is it here?", "Is it actually here?", "fillers", 1.0),
        ("How do I reset a pasword?", "How do I reset a password?", "near_spellings", 1.0),
        ("Where can I buy it?", "Where can I purchase it?", "synonyms", 1.0),
        ("Can I sing here?", "Can you sing here?", "actor", 2.0),
        ("How do I sing?", "How do you sing?", "actor", 1.0),
        ("How do I sing?", "How do we sing?", "actor", 0.0),
        ("Can I sing here?", "Could you sing here?", "addressed", 1.0),
        ("How do you sing?", "How does he sing?", "addressed", 0.0),
        ("Who is Ann?", "Who is Bob no wait Ann?", "corrections", 1.0),
        ("我想买苹果", "我想卖苹果", "gap_least", 1.0),
        ("🙂", "🙃", "cover_most", 0.0),
        ("", "", "length", 0.0),
    ],
)  # fmt: skip
def test_a_difference_is_seen_from_both_sides(asked: str, stored: str, name: str, value: float) -> None:
    assert row(asked, stored)[name] == value
    assert row(stored, asked)[name] == value


@given(st.text(max_size=200), st.text(max_size=200), st.floats(-1, 1))
@settings(max_examples=examples(200), deadline=None)
def test_any_two_texts_have_finite_features_without_an_order(asked: str, stored: str, cosine: float) -> None:
    one, other = prepare(asked), prepare(stored)

    values = features(one, other, cosine)

    assert np.isfinite(values).all()
    assert (values == features(other, one, cosine)).all()


def test_a_text_and_itself_lack_nothing() -> None:
    values = row("Why did Ann pay $5 to Bob in 2019?", "Why did Ann pay $5 to Bob in 2019?")

    assert values["cover_least"] == values["trigrams"] == values["prefix"] == 1.0
    assert not any(values[name] for name in NAMES if FEATURES[name][0] in ("unmatched", "negation", "questions"))


@pytest.mark.parametrize(
    "piece", ["a", "7", "7 ", "ab ", "not ", "中", "x1 ", "'", "’s", "from a to b ", "<EMAIL_", "1,", "🙂", "\x00", "?"]
)  # fmt: skip
def test_a_hostile_text_takes_no_time(piece: str) -> None:
    text = (piece * 100_000)[:100_000]

    started = time.process_time()
    values = features(prepare(text), prepare(text[:-1] + "b"), 0.9)

    assert time.process_time() - started < 0.2
    assert math.isfinite(values.sum())


def test_only_what_was_not_read_tells_two_long_texts_apart() -> None:
    long = "one two three " * 1_000

    assert prepare(long).beyond == prepare(long).beyond != 0
    assert prepare(long + "four").beyond != prepare(long + "five").beyond
    assert prepare("short").beyond == 0
