"""Tokens that no upstream counted: near enough, and never at the cost of the process."""

import asyncio
import threading

import pytest

from models.request import Request
from service.pipeline.settle import estimated, tokens_in


class Letters:
    """A vocabulary of single characters, that notes what it was given."""

    def __init__(self, remembers: int = 0) -> None:
        self.cache_len = remembers
        self.pieces: list[str] = []

    def encode_batch_flat(self, texts: list[str]) -> tuple[bytes, bytes]:
        self.pieces += texts
        return b"1234" * sum(map(len, texts)), b""

    def clear_cache(self) -> None:
        self.cache_len = 0


@pytest.mark.parametrize("length", [0, 1, 2047, 2048, 2049, 999_999, 1_000_000])
def test_a_text_is_counted_whole_and_in_pieces(length: int) -> None:
    letters = Letters()

    assert tokens_in("y" * length, letters) == length
    assert sum(map(len, letters.pieces)) == length
    assert max(map(len, letters.pieces), default=0) <= 2048


@pytest.mark.parametrize("length", [1_000_001, 9_900_000, 60_000_000])
def test_of_a_very_long_text_samples_are_counted(length: int) -> None:
    letters = Letters()

    assert tokens_in("y" * length, letters) == length
    assert sum(map(len, letters.pieces)) <= 1_002_048
    assert max(map(len, letters.pieces)) <= 2048


def test_the_samples_come_from_all_over_the_text() -> None:
    letters = Letters()

    tokens_in("a" * 2_000_000 + "b" * 2_000_000, letters)

    share = sum(piece.count("b") for piece in letters.pieces) / sum(map(len, letters.pieces))
    assert share == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(("remembers", "left"), [(4096, 4096), (4097, 0)])
def test_words_are_forgotten_when_there_are_many(remembers: int, left: int) -> None:
    letters = Letters(remembers)

    tokens_in("one", letters)

    assert letters.cache_len == left


async def test_texts_are_counted_one_at_a_time() -> None:
    request = Request("completion", "m", {"prompt": "one two three four"}, b"")

    before = set(threading.enumerate())
    usages = await asyncio.gather(*(estimated(request, "five six") for _ in range(8)))
    started = [thread.name for thread in set(threading.enumerate()) - before if "counting" in thread.name]

    assert {(usage.prompt_tokens, usage.completion_tokens, usage.estimated) for usage in usages} == {(4, 2, True)}
    assert len(started) <= 1
