"""What the verifier is trained on is what it says, and what is exported judges as what was trained."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks import templates
from benchmarks.train_verifier import exported, settled, wilson
from benchmarks.verifier_data import Labelled, Vectors, components, halves, neighbours
from benchmarks.verifier_words import common, lines, said, says, word_weights
from service.caching.features import NAMES
from service.caching.verifier import LEAVES, Trees, Verifier


def test_exported_trees_judge_as_the_library_that_trained_them() -> None:
    lightgbm = pytest.importorskip("lightgbm", reason="training needs lightgbm")
    draw = np.random.default_rng(1)
    x = np.round(draw.random((3_000, len(NAMES))), 2)
    y = (x[:, 0] + x[:, 5] * x[:, 9] > 0.8).astype(int)
    parameters = {"objective": "binary", "num_leaves": 15, "use_missing": False, "verbosity": -1, "num_threads": 1}

    booster = lightgbm.train(parameters, lightgbm.Dataset(x, y), num_boost_round=20)
    verifier = Verifier(exported(booster.dump_model(), trained="here"))

    assert np.allclose(verifier.judge(x), booster.predict(x), atol=1e-6)


def test_what_is_settled_says_how_many_have_one_answer_and_keeps_the_order() -> None:
    draw = np.random.default_rng(4)
    x = np.zeros((3_000, len(NAMES)))
    x[:, 0] = draw.random(3_000)
    y = (draw.random(3_000) < 1 / (1 + np.exp(2 - 3 * x[:, 0]))).astype(np.int64)
    nodes = np.zeros((LEAVES - 1, 1), np.int64)
    silent = Trees(
        nodes, np.full(nodes.shape, np.inf), np.full(nodes.shape, 0xFFFF, np.uint16), np.zeros((1, LEAVES)), 0.0,
        "here", "by-hand", {}, {}, cosine=10.0,
    )  # fmt: skip

    p = Verifier(settled(silent, x, y)).judge(x)

    assert p.mean() == pytest.approx(y.mean(), abs=1e-6)
    assert (np.argsort(p) == np.argsort(x[:, 0])).all()
    assert p[x[:, 0] > 0.9].mean() == pytest.approx(y[x[:, 0] > 0.9].mean(), abs=0.07)


def test_pairs_that_share_a_text_are_one_component() -> None:
    pairs = [("a", "b"), ("c", "d"), ("B ", "e"), ("f", "g"), ("d", "f")]

    one, two, again, three, joined = components(pairs)

    assert one == again
    assert two == three == joined
    assert one != two


@pytest.mark.parametrize("family", sorted(templates.TEMPLATES))
def test_every_sentence_can_be_filled(family: str) -> None:
    others = frozenset(templates.TEMPLATES) - {family}

    pairs = list(templates.templates(5, random.Random(1), without=others))  # noqa: S311 - nothing secret

    assert len(pairs) == 5 * len(templates.TEMPLATES[family])
    assert {pair.family for pair in pairs} == {family}
    for pair in pairs:
        assert pair.a.strip()
        assert pair.b.strip()
        assert not set("{}|") & set(pair.a + pair.b)
        assert "(n)" not in pair.a + pair.b
        assert pair.a != pair.b


@pytest.mark.parametrize(
    ("family", "text"),
    [
        ("swap number", "What happened in 1987?"),
        ("swap place", "How big is Berlin now?"),
        ("swap name", "Did they meet Ada there?"),
        ("swap two names", "Did they tell Ada about Grace there?"),
        ("swap two words", "Can a dog bite a postman?"),
        ("swap negation", "Is it safe to swim here?"),
        ("swap opposite", "How do I buy a house?"),
        ("swap added", "Is this a house?"),
        ("swap dropped", "How do I sort a list in Python?"),
        ("same typo", "How do I sort a list?"),
        ("same contraction", "What is a list?"),
        ("same polite", "How do I sort a list?"),
        ("same careless", "How do I sort a list?"),
        ("same filler", "Is it safe to swim?"),
        ("same moved", "How do I sort a list in Python?"),
        ("same and", "Should I look at cats and dogs?"),
    ],
)
def test_every_swap_changes_what_it_names(family: str, text: str) -> None:
    others = frozenset(templates.SWAPS) - {family}

    pairs = [
        pair
        for seed in range(20)
        for pair in templates.swaps([text], 1, random.Random(seed), without=others)  # noqa: S311 - nothing secret
    ]

    assert pairs
    for pair in pairs:
        assert text in (pair.a, pair.b)
        assert pair.a != pair.b
        assert pair.label == templates.SWAPS[family][0] == int(family.startswith("same"))


def test_the_same_seed_makes_the_same_pairs() -> None:
    one, again = (list(templates.templates(1, random.Random(7))) for _ in range(2))  # noqa: S311 - nothing secret

    assert one == again


def test_a_word_in_every_text_weighs_less_than_one_in_few() -> None:
    pairs = [
        Labelled(f"the {'cat' if number % 4 else 'owl'} on a{'b' * number}", "the", 0, "here", "learn", 1.0)
        for number in range(40)
    ]

    weights = word_weights(pairs, least=1)

    assert weights["the"] < weights["cat"] < weights["owl"]


def test_a_word_says_what_pairs_that_differ_in_it_were_labelled() -> None:
    draw = np.random.default_rng(2)
    apart = [("before",) if number % 3 == 0 else ("really",) if number % 3 == 1 else ("blue",) for number in range(600)]
    y = np.array([0 if number % 3 == 0 else 1 if number % 3 == 1 else number % 2 for number in range(600)])

    spoken = says(draw.random((600, 3)), y, np.ones(600), apart, frozenset({"before", "really"}))

    assert spoken["before"] < -0.5
    assert spoken["really"] > 0.5
    assert set(spoken) == {"before", "really"}
    assert said([("before", "blue"), ()], spoken).tolist() == [spoken["before"], 0.0]


def test_names_say_nothing() -> None:
    pairs = [Labelled("did Ada meet the owl", "the owl and Ada", 0, "gptcache_qqp", "learn", 1.0)]

    assert "owl" in common(pairs)
    assert "ada" not in common(pairs)


def test_the_words_file_has_a_weight_and_what_is_said_before_its_stems() -> None:
    assert lines({"owl": 9.5, "cat": 9.5, "befor": 3.0}, {"befor": -1.2}) == "3 -1.2 befor\n9.5 0 cat owl\n"


def test_a_question_and_what_was_made_of_it_are_in_one_half() -> None:
    pairs = [Labelled(f"a{number}", f"b{number}", 1, "mrpc", "learn", 1.0) for number in range(50)]
    made = [Labelled(f"b{number}", f"not b{number}", 0, "swap negation", "learn", 1.0) for number in range(50)]

    half = halves([*pairs, *made], seed=3)

    assert (half[:50] == half[50:]).all()
    assert 0 < half.sum() < 100


@pytest.mark.parametrize(
    ("hits", "of", "low", "high"), [(0, 300, 0.0, 0.01264), (150, 300, 0.44374, 0.55626), (3, 3, 0.4385, 1.0)]
)
def test_a_share_has_wilsons_interval(hits: int, of: int, low: float, high: float) -> None:
    assert wilson(hits, of) == [pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4)]


class Letters:
    """Texts are near each other as far as they have the same letters."""

    revision = "letters"
    dimensions = 26

    async def load(self) -> None: ...

    async def close(self) -> None: ...

    async def embed(self, texts: Sequence[str], *, role: str) -> NDArray[np.float32]:
        assert role == "query"
        rows = np.array([[text.lower().count(chr(97 + at)) for at in range(26)] for text in texts], np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return rows


def test_neighbours_have_one_answer_where_they_are_of_one_class(tmp_path: Path) -> None:
    folder = tmp_path / "osschat_clusters"
    folder.mkdir()
    classes = {"aab": "x", "aba": "x", "aac": "y", "AAB": "x", "zzy": "z"}
    rows = [json.dumps({"text": text, "cluster": of}) + "\n" for text, of in classes.items()]
    (folder / "norm_clusters.jsonl").write_text("".join(rows), encoding="utf-8")

    found = neighbours(tmp_path, "osschat_clusters", Vectors(tmp_path, "it", Letters()), seed=1, each=2)

    by_pair = {(pair.a, pair.b): pair.label for pair in found}
    assert by_pair["aab", "aba"] == 1
    assert ("aab", "AAB") not in by_pair
    assert all(label == int(classes[a] == classes[b]) for (a, b), label in by_pair.items())
    assert {(pair.part, pair.source) for pair in found} == {("test", "osschat_clusters")}
