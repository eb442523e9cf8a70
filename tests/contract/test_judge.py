"""What every judge does, run over each of them."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from backends.judging.base import Judge
from backends.registry import BUILT_IN, create
from models.errors import TextRefused, TextTooLong
from tests.support import cross_encoder

SUITE = {"judging": {"onnx", "judge"}}

ASKED, STORED = "How do I reset my password?", "How can I change my password?"
ODD = [
    "",
    " ",
    "\n\t ",
    "?",
    "🦄",
    "\u200b",
    "\x00",
    "naïve café",
    "我想买苹果",
    "a\u0301" * 20,
    '", "second": "',
    "}{",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cross_encoder.untrained(tmp_path_factory.mktemp("judge") / "untrained")


async def yes(_: Sequence[Mapping[str, str]]) -> str:
    return "ONE_ANSWER"


@pytest.fixture(params=sorted(BUILT_IN["judging"]))
async def judge(request: pytest.FixtureRequest, folder: Path) -> AsyncIterator[Judge]:
    options: dict[str, dict[str, Any]] = {"onnx": {"path": folder}, "judge": {"ask": yes, "model": "local/yes"}}
    judge: Judge = create("judging", request.param, **options.get(request.param, {}))
    await judge.load()
    yield judge
    await judge.close()


async def test_an_opinion_is_a_chance(judge: Judge) -> None:
    assert 0.0 <= await judge.opinion(ASKED, STORED) <= 1.0


async def test_a_pair_has_the_same_opinion_alone_and_among_others(judge: Judge) -> None:
    alone = await judge.opinion(ASKED, STORED)

    among = await asyncio.gather(*(judge.opinion(ASKED, text) for text in (*ODD, STORED)), return_exceptions=True)

    assert among[-1] == alone


@pytest.mark.parametrize("odd", ODD)
async def test_what_is_odd_is_judged_or_refused(judge: Judge, odd: str) -> None:
    for pair in ((odd, STORED), (ASKED, odd), (odd, odd)):
        found = await asyncio.gather(judge.opinion(*pair), return_exceptions=True)

        assert isinstance(found[0], TextRefused) or 0.0 <= float(str(found[0])) <= 1.0


async def test_a_pair_beyond_the_window_has_no_opinion_on_its_beginning(judge: Judge) -> None:
    for text in ("word " * 420, "word " * 20_000):
        with pytest.raises(TextTooLong):
            await judge.opinion(text, STORED)
        with pytest.raises(TextTooLong):
            await judge.opinion(ASKED, text)


async def test_no_unicode_is_refused(judge: Judge) -> None:
    with pytest.raises(TextRefused):
        await judge.opinion("\ud800", STORED)


async def test_loading_twice_does_no_harm(judge: Judge) -> None:
    before = await judge.opinion(ASKED, STORED)

    await judge.load()

    assert await judge.opinion(ASKED, STORED) == before


async def test_the_revision_names_the_model(judge: Judge) -> None:
    assert judge.revision.startswith(("untrained@", "local/yes/"))
