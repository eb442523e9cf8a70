"""Semantic hits are as good as they were recorded to be, on small samples with the real embedder.

After a change that is meant to change them: `python -m benchmarks.quality --record`, and look at what git says.
"""

from collections.abc import Callable
from importlib.resources import files

import pytest

from backends.embedding import minilm
from benchmarks.quality_sample import Sample, recorded, worse
from service.caching.verifier import Trees, Verifier, load, read


@pytest.fixture(scope="module")
def sample() -> Sample:
    return Sample()


def with_cut(trees: Trees, cut: float) -> Trees:
    return trees._replace(cuts=dict.fromkeys(trees.cuts, cut))


def with_fewer(trees: Trees, count: int) -> Trees:
    return trees._replace(
        feature=trees.feature[:, :count],
        threshold=trees.threshold[:, :count],
        mask=trees.mask[:, :count],
        value=trees.value[:count],
    )


def test_hits_are_as_good_as_recorded(sample: Sample) -> None:
    assert worse(sample.figures(load(minilm.REVISION)), recorded()) == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda trees: with_cut(trees, 0.4), "nearest of other clusters, served"),
        (lambda trees: with_cut(trees, 0.97), "same pairs, served"),
        (lambda trees: with_fewer(trees, 15), "cluster, above 1 % of the nearest of other clusters"),
    ],
    ids=["a looser cut", "a stricter cut", "fewer trees"],
)
def test_a_worse_verifier_is_noticed(sample: Sample, change: Callable[[Trees], Trees], named: str) -> None:
    shipped = files("service.caching").joinpath("verifier/trees.npz").read_bytes()
    verifier = Verifier(change(read(shipped, revision=minilm.REVISION)))

    found = sample.judged(verifier)
    told = worse(found, {name: one for name, one in recorded().items() if name in found})

    assert any(line.startswith(f"{named}:") for line in told), told
