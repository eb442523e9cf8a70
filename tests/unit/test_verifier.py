"""Trees judge pairs as they were trained to, and only those of their own embedder."""

import numpy as np
import pytest

from backends.embedding.minilm import REVISION
from service.caching.features import NAMES, prepare
from service.caching.verifier import LEAVES, Trees, TreesRefused, Verifier, dump, load, read


def two_trees() -> Trees:
    """Served at a cosine above .9 if not more than one number is lacking; the second tree says nothing."""
    feature = np.zeros((LEAVES - 1, 2), np.int64)
    threshold = np.full((LEAVES - 1, 2), np.inf)
    mask = np.full((LEAVES - 1, 2), 0xFFFF, np.uint16)
    feature[:2, 0] = NAMES.index("cosine"), NAMES.index("numbers_most")
    threshold[:2, 0] = 0.9, 1.0
    mask[:2, 0] = 0xFFFF ^ 0b001, 0xFFFF ^ 0b010  # leaves from the left: low cosine, few numbers, many numbers
    value = np.zeros((2, LEAVES))
    value[0, :3] = -2.0, 2.0, -1.0
    return Trees(
        feature, threshold, mask, value, 0.0, "some-embedder", "by-hand", {0.01: 0.6, 0.05: 0.4},
        {0.01: (0.95,) * 10 + (0.5,), 0.05: (0.8,) * 10 + (0.3,)},
    )  # fmt: skip


def sigmoid(score: float) -> float:
    return float(1 / (1 + np.exp(-score)))


@pytest.mark.parametrize(
    ("cosine", "numbers", "score"),
    [(0.5, 0, -2.0), (0.9, 0, -2.0), (0.91, 1, 2.0), (0.91, 2, -1.0), (0.5, 2, -2.0)],
)
def test_a_row_falls_into_its_leaf(cosine: float, numbers: int, score: float) -> None:
    row = np.zeros((1, len(NAMES)))
    row[0, NAMES.index("cosine")], row[0, NAMES.index("numbers_most")] = cosine, numbers

    assert Verifier(two_trees()).judge(row)[0] == pytest.approx(sigmoid(score))


def test_the_cosine_counts_beside_the_trees() -> None:
    row = np.zeros((1, len(NAMES)))
    row[0, NAMES.index("cosine")] = 0.95

    verifier = Verifier(two_trees()._replace(cosine=4.0, bias=-1.0))

    assert verifier.scores(row)[0] == pytest.approx(2.0 + 0.95 * 4.0 - 1.0)
    assert verifier.judge(row)[0] == pytest.approx(sigmoid(4.8))


def test_a_pair_is_judged_the_same_in_any_company() -> None:
    verifier = load(REVISION)
    asked = prepare("How do I reset my password?")
    stored = [
        prepare(text) for text in ("How can I reset my password?", "How do I reset a broken password manager?", "")
    ]

    together = verifier.probabilities(asked, stored, [0.95, 0.8, 0.1])

    assert together == [
        verifier.probabilities(asked, [one], [cosine])[0] for one, cosine in zip(stored, [0.95, 0.8, 0.1], strict=True)
    ]
    assert all(0 <= p <= 1 for p in together)
    assert together[0] > together[1] > together[2]
    assert verifier.probabilities(asked, [], []) == []


def test_a_candidate_far_below_any_cut_is_not_looked_at() -> None:
    verifier = Verifier(two_trees())
    asked = prepare("How do I sort a list?")

    assert verifier.probabilities(asked, [asked, asked], [0.29, 0.3]) == [0.0, pytest.approx(sigmoid(-2.0))]
    other = prepare("How do I sort a bag?")
    assert verifier.probabilities(asked, [other, other], [0.79, 0.8]) == [0.0, pytest.approx(sigmoid(-2.0))]


@pytest.mark.parametrize(
    ("share", "looked_at"),
    [(0.01, [0.5]), (0.002, [0.5]), (0.02, [0.3, 0.5]), (0.05, [0.3, 0.5]), (0.5, [0.2, 0.3, 0.5])],
)
def test_a_stricter_cut_looks_at_fewer_candidates(share: float, looked_at: list[float]) -> None:
    verifier = Verifier(two_trees())
    asked = prepare("How do I sort a list?")

    found = verifier.probabilities(asked, [asked] * 3, [0.2, 0.3, 0.5], share=share)

    assert [cosine for cosine, p in zip([0.2, 0.3, 0.5], found, strict=True) if p] == looked_at


def test_two_texts_without_words_are_nothing_to_judge() -> None:
    verifier = Verifier(two_trees())

    assert verifier.probabilities(prepare("…"), [prepare("")], [1.0]) == [0.0]


def test_what_was_not_read_of_a_long_text_must_be_the_same() -> None:
    verifier = Verifier(two_trees())
    long = "one two three " * 1_000
    asked, same, other = prepare(f"{long} four"), prepare(f"{long} four"), prepare(f"{long} five")

    assert verifier.probabilities(asked, [same, other], [1.0, 1.0]) == [pytest.approx(sigmoid(2.0)), 0.0]


def test_trees_survive_the_file_and_the_file_is_the_same_twice() -> None:
    trees = two_trees()._replace(cosine=3.5)

    again = read(dump(trees), revision="some-embedder")

    assert dump(trees) == dump(again)
    assert (again.cuts, again.floors, again.cosine) == (trees.cuts, trees.floors, trees.cosine)
    assert (again.threshold == trees.threshold).all()


@pytest.mark.parametrize(
    ("content", "revision", "why"),
    [
        (dump(two_trees()), "another-embedder", "trained for some-embedder"),
        (b"", "some-embedder", "no file"),
        (b"PK\x03\x04 and no more", "some-embedder", "no file"),
        (dump(two_trees())[:-40], "some-embedder", "no file"),
        (dump(two_trees()._replace(feature=two_trees().feature + 200)), "some-embedder", "features there are not"),
    ],
)
def test_other_trees_are_refused_with_the_reason(content: bytes, revision: str, why: str) -> None:
    with pytest.raises(TreesRefused, match=why):
        read(content, revision=revision)


def test_the_shipped_trees_are_small_and_for_the_shipped_embedder() -> None:
    verifier = load(REVISION)

    assert 0 < verifier.cut(0.001) <= 1
    assert verifier.cut(0.005) > verifier.cut() > verifier.cut(0.05)
    with pytest.raises(TreesRefused, match=r"the embedder is other@1"):
        load("other@1")


def test_the_cut_of_a_limit_between_two_known_ones_is_the_stricter() -> None:
    verifier = Verifier(two_trees())

    assert verifier.cut() == verifier.cut(0.02) == 0.6
    assert verifier.cut(0.05) == verifier.cut(1.0) == 0.4
    assert verifier.cut(0.001) == np.inf  # nothing is known to keep it


@pytest.mark.parametrize(
    ("asked", "stored", "cosine"),
    [
        ("Is Mona Reuter a glazier?", "Is Mona Reuter a retired glazier?", 0.95),
        ("Is Mona Reuter a glazier?", "Is Nils Reuter a glazier?", 0.93),
        ("Is it safe to dive before 9am?", "Is it safe to dive after 9am?", 0.97),
        ("Did Mona greet Nils?", "Did Nils greet Mona?", 0.98),
        ("Did Mona greet Nils?", "Was Mona greeted by Nils?", 0.97),
        ("Is Mona a glazier?", "Did Mona use to be a glazier?", 0.94),
        ("How do I get from Oslo to Bergen?", "How do I get from Bergen to Oslo?", 0.99),
        ("Can I return it within 14 days?", "Can I return it within 30 days?", 0.97),
        ("Is it rude to whistle in Peru?", "Is it rude not to whistle in Peru?", 0.96),
        ("Can I sing in Welsh?", "Can you please sing in Welsh?", 0.95),
    ],
)
def test_a_trap_stays_below_the_shipped_cut(asked: str, stored: str, cosine: float) -> None:
    verifier = load(REVISION)

    [p] = verifier.probabilities(prepare(asked), [prepare(stored)], [cosine])

    assert p < verifier.cut()


@pytest.mark.parametrize(
    ("asked", "stored", "cosine"),
    [
        ("How do I sort a list in Python?", "In Python, how do I sort a list?", 0.99),
        ("What's the capital of Peru?", "what is the capital of peru", 0.99),
        ("How do I learn to juggle?", "How do I learn to jugle?", 0.93),
    ],
)
def test_the_same_question_in_other_words_passes_the_shipped_cut(asked: str, stored: str, cosine: float) -> None:
    verifier = load(REVISION)

    [p] = verifier.probabilities(prepare(asked), [prepare(stored)], [cosine])

    assert p >= verifier.cut()
