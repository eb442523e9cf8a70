"""How a judge is weighed beside the verifier, and what it is trained on."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer

from backends.embedding.minilm import REVISION
from backends.judging.onnx import CrossEncoder
from benchmarks import second_opinion, train_cross_encoder
from benchmarks.cross_encoder_graph import cross_encoder
from benchmarks.second_opinion import Judged, fitted
from benchmarks.train_verifier import SHARES
from benchmarks.verifier_data import Labelled
from service.caching.second_opinion import Weights, dump, read
from service.caching.verifier import Verifier, load
from tests.support import cross_encoder as made

PAIRS = 6_000


@pytest.fixture(scope="module")
def verifier() -> Verifier:
    return load(REVISION)


def rows(opinion_of: NDArray[np.float64]) -> Judged:
    """Pairs of questions, a third of them the same, of which the verifier knows something; `opinion_of` 0 and 1."""
    draw = np.random.default_rng(3)
    y = (np.arange(PAIRS) % 3 == 0).astype(np.int64)
    noise = draw.normal(0, 1.2, PAIRS)
    pairs = [
        Labelled(f"a{place}", f"b{place}", label, "gptcache_qqp", "cut", 1.0) for place, label in enumerate(y.tolist())
    ]
    return Judged(pairs, y, chance(2.0 * y - 1.0 + noise), opinion_of[y], np.zeros(PAIRS, bool))


def chance(log_odds: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(1 / (1 + np.exp(-log_odds)))


def knowing() -> Judged:
    plain = rows(np.array([0.5, 0.5]))
    noise = np.random.default_rng(4).normal(0, 1.5, PAIRS)
    return plain._replace(opinion=chance(3.0 * plain.y - 1.5 + noise))


def test_at_every_cut_as_many_different_questions_are_served_as_by_the_verifier(verifier: Verifier) -> None:
    known = knowing()

    both = known.both(fitted(known, verifier))[known.y == 0]

    for share in SHARES:
        assert float((both > verifier.cut(share) + 1e-9).mean()) == pytest.approx(share, abs=1e-3)


def test_a_judge_that_knows_something_serves_more_of_the_same_questions(verifier: Verifier) -> None:
    known = knowing()
    weights = fitted(known, verifier)

    tested = known._replace(pairs=[pair._replace(part="test") for pair in known.pairs])
    figures = second_opinion.measured(tested, verifier, weights, seed=1)

    recall = figures["recall"]["gptcache_qqp"]
    assert weights.opinion > 0.3
    assert recall["both"]["recall"][0] > recall["verifier"]["recall"][0] + 0.1
    assert recall["added"][0][0] > 0
    assert figures["served"]["gptcache_qqp [same]"]["both: asked"] > 0.1


@pytest.mark.parametrize("opinion", [np.array([0.5, 0.5]), np.array([0.9, 0.1])])
def test_a_judge_that_knows_nothing_or_the_contrary_is_not_listened_to(
    verifier: Verifier, opinion: NDArray[np.float64]
) -> None:
    weights = fitted(rows(opinion), verifier)

    assert weights.opinion == pytest.approx(0.0, abs=1e-6)
    assert weights.chance > 0


def test_pairs_without_an_opinion_are_weighed_by_the_verifier_alone(verifier: Verifier) -> None:
    known = knowing()
    known.opinion[::2] = np.nan

    both = known.both(fitted(known, verifier))

    assert (both[::2] == known.chance[::2]).all()
    assert (both[1::2] != known.chance[1::2]).any()


def test_what_was_fitted_can_be_read_by_the_gateway(verifier: Verifier) -> None:
    weights = fitted(knowing(), verifier)

    again = read(dump(weights, judge="j", verifier="v"), judge="j", verifier="v")

    assert again == Weights(weights.bias, weights.chance, weights.opinion, weights.most, weights.levels, again.revision)


def test_examples_hold_both_texts_and_where_the_second_begins() -> None:
    pairs = [Labelled("how are you", "who is it", 1, "gptcache_qqp", "learn", 1.0)] * 40
    pairs += [Labelled("word " * 200, "word", 0, "gptcache_qqp", "learn", 1.0)]

    found = train_cross_encoder.examples(pairs, seed=1)

    assert len(found) == 40  # the long one costs too much
    assert {(len(one.ids), one.second) for one in found} == {(9, 5)}
    assert len({tuple(one.ids) for one in found}) == 2  # either text first


def test_what_is_trained_and_the_graph_are_the_same_model(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="training needs torch")
    folder, weights = made.untrained(tmp_path / "m"), made.weights()
    (folder / "model.onnx").write_bytes(cross_encoder(weights, window=made.WINDOW, quantized=False))
    graph = CrossEncoder(folder)
    graph.open()
    texts = ["how are you", "who is it then"]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    examples = [
        train_cross_encoder.Example(pair.ids, pair.type_ids.index(1), 1, 1.0)
        for pair in tokenizer.encode_batch([(one, other) for one in texts for other in texts])
    ]

    ids, segments, mask, _, _ = train_cross_encoder.padded(examples)
    tensors = {name: torch.from_numpy(array) for name, array in weights.items()}
    logits = train_cross_encoder.forward(tensors, *(torch.from_numpy(array) for array in (ids, segments, mask)))

    opinions = [graph.opinion(one, other) for one in texts for other in texts]
    assert opinions == pytest.approx((1 / (1 + np.exp(-logits.numpy()))).tolist(), abs=1e-5)
