"""From texts to look-ups: what the request path would look at, and what it never would."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from backends.embedding.base import Role
from models.errors import BackendError, TextTooLong
from service.caching.certificate import Label
from service.tune.labelled import Question
from service.tune.samples import Measure, joined


class Letters:
    """A vector of how often each letter occurs. Takes no more than 200 characters."""

    revision, dimensions = "letters@1", 26

    def __init__(self, *, stumbles: int = 0) -> None:
        self.stumbles = stumbles
        self.asked: list[str] = []

    async def load(self) -> None: ...

    async def embed(self, texts: Sequence[str], *, role: Role) -> NDArray[np.float32]:
        assert role == "query"
        if self.stumbles:
            self.stumbles -= 1
            raise BackendError("away for a moment")
        if any(len(text) > 200 for text in texts):
            raise TextTooLong("too long")
        self.asked += texts
        rows = np.array([[text.lower().count(chr(97 + i)) + 0.01 for i in range(26)] for text in texts], np.float32)
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)

    async def close(self) -> None: ...


def label(a: str, b: str, *, wrong: bool = False) -> Label:
    return Label(asked=a, stored=b, wrong=wrong, by="people")


def silent(done: int, total: int) -> None:
    assert 0 <= done <= total


async def test_a_pair_has_its_cosine_and_no_neighbours() -> None:
    samples = await Measure(Letters(), None).pairs([label("open the gate", "open the gates", wrong=True)], silent)

    assert samples.features[0, 0] == pytest.approx(0.97, abs=0.02)
    assert np.isnan(samples.features[0, 1:]).all()
    assert samples.wrong.tolist() == [True]


@pytest.mark.parametrize(
    ("a", "b", "why"),
    [
        ("where is order 8812 kept", "where is order 8831 kept", "vetoed: identifiers"),
        ("what is the price today", "what does it cost to send", "never looked up: fresh"),
        ("🎉🎉", "how do I open the gate", "never looked up: not-text"),
        ("open " * 50, "how do I open the gate", "the embedder does not take it"),
        ("x" * 100_000, "how do I open the gate", "never looked up: too-long"),
    ],
)
async def test_what_is_never_served_is_no_sample(a: str, b: str, why: str) -> None:
    samples = await Measure(Letters(), None).pairs([label(a, b), label("open the gate", "open a gate")], silent)

    assert len(samples.wrong) == 1
    assert [reason.replace("numbers", "identifiers") for reason in samples.left_out] == [why]


async def test_a_rule_that_the_endpoint_ignores_is_ignored_here() -> None:
    pair = label("what is the price today", "what is a price")

    samples = await Measure(Letters(), None, off={"freshness", "day"}).pairs([pair], silent)

    assert len(samples.wrong) == 1


async def test_each_question_is_looked_up_among_all_others() -> None:
    questions = [
        Question("how do I open the gate", "open", "people"),
        Question("how do I open that gate", "open", "judge"),
        Question("why is the sky blue above us", "sky", "people"),
        Question("why is the sky blue over us", None, "people"),
    ]

    samples = await Measure(Letters(), None).questions(questions, silent)

    assert samples.wrong.tolist() == [False, False, True, True]
    assert samples.by == ["judge", "judge", "people", "people"]
    assert np.isfinite(samples.features[:, 2:]).all()
    assert samples.groups.tolist() == [0, 1, 2, 3]


async def test_a_vetoed_neighbour_makes_room_for_the_next() -> None:
    questions = [
        Question("how do I open gate 7", "seven", "people"),
        Question("how do I open gate 8", "eight", "people"),
        Question("how do I open the gate 7", "seven", "people"),
    ]

    samples = await Measure(Letters(), None).questions(questions, silent)

    assert samples.wrong.tolist() == [False, False]
    assert samples.left_out == {"every candidate is vetoed": 1}


@pytest.mark.parametrize("count", [0, 1])
async def test_alone_a_question_has_no_candidate(count: int) -> None:
    samples = await Measure(Letters(), None).questions([Question("how so", "a", "people")][:count], silent)

    assert samples.features.shape == (0, 9)


async def test_each_text_is_embedded_once_while_it_is_remembered() -> None:
    embedder = Letters()
    pairs = [label("open the gate", f"open a gate {'x' * i}") for i in range(1, 100)]

    await Measure(embedder, None).pairs(pairs, silent)

    assert len(embedder.asked) == len(set(embedder.asked)) == 100


async def test_an_embedder_may_stumble_but_not_be_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.tune.samples._PAUSE", 0.0)

    samples = await Measure(Letters(stumbles=2), None).pairs([label("open the gate", "open a gate")], silent)
    with pytest.raises(BackendError):
        await Measure(Letters(stumbles=3), None).pairs([label("open the gate", "open a gate")], silent)

    assert len(samples.wrong) == 1


async def test_pairs_beside_clusters_leave_agreement_out_of_the_fit() -> None:
    measure = Measure(Letters(), None)
    pairs = await measure.pairs([label("open the gate", "open a gate")], silent)
    questions = await measure.questions([Question("so how", "a", "people"), Question("how so", "a", "people")], silent)

    both = joined([pairs, questions])

    assert both.features.shape == (3, 9)
    assert np.isnan(both.features[:, 2:]).any()
    assert both.groups.tolist() == [0, 1, 2]
