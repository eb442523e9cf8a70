"""What is remembered of texts, for how long, and for whom."""

import asyncio
import gc
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from backends.embedding.base import Role
from backends.embedding.batching import Memory
from backends.embedding.remembering import RememberingEmbedder
from models.errors import BackendError, TextRefused


class Slow:
    """Embeds when `open`; counts what it was asked."""

    revision = "slow/1"
    dimensions = 3

    def __init__(self) -> None:
        self.asked: list[tuple[Role, str]] = []
        self.open = asyncio.Event()
        self.open.set()
        self.cancelled = 0
        self.error: Exception | None = None
        self.closed = False

    async def load(self) -> None: ...

    async def embed(self, texts: Sequence[str], *, role: Role) -> NDArray[np.float32]:
        if self.closed:
            raise BackendError("the embedder is closed")
        self.asked += [(role, text) for text in texts]
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        return np.array([[len(text), len(role), 1] for text in texts], np.float32)

    async def close(self) -> None:
        self.closed = True


async def begun(embedder: RememberingEmbedder, *texts: str, role: Role = "query") -> asyncio.Task[Any]:
    """Asked, and under way at the embedder."""
    task = asyncio.create_task(embedder.embed(texts, role=role))
    for _ in range(3):
        await asyncio.sleep(0)
    return task


async def test_a_text_asked_for_again_is_not_embedded_again() -> None:
    slow = Slow()
    embedder = RememberingEmbedder(slow, texts=10)

    first = await embedder.embed(["a", "bb"], role="query")
    again = await embedder.embed(["bb", "a", "bb"], role="query")

    assert again.tolist() == [first[1].tolist(), first[0].tolist(), first[1].tolist()]
    assert len(slow.asked) == 2


async def test_the_same_text_in_another_role_is_another() -> None:
    slow = Slow()
    embedder = RememberingEmbedder(slow, texts=10)

    rows = [await embedder.embed(["a"], role=role) for role in ("query", "document", "query")]

    assert [row[0, 1] for row in rows] == [5, 8, 5]
    assert slow.asked == [("query", "a"), ("document", "a")]


async def test_two_who_ask_at_the_same_time_wait_for_one_embedding() -> None:
    slow = Slow()
    slow.open.clear()
    embedder = RememberingEmbedder(slow, texts=10)
    callers = [await begun(embedder, "a"), await begun(embedder, "a", "bb")]

    slow.open.set()
    rows = await asyncio.gather(*callers)

    assert rows[0].tobytes() == rows[1][:1].tobytes()
    assert slow.asked == [("query", "a"), ("query", "bb")]


async def test_cancelling_one_of_two_leaves_the_other_its_embedding() -> None:
    slow = Slow()
    slow.open.clear()
    embedder = RememberingEmbedder(slow, texts=10)
    leaving, staying = await begun(embedder, "a"), await begun(embedder, "a")

    leaving.cancel()
    await asyncio.wait([leaving])
    slow.open.set()

    assert (await staying)[0, 0] == 1
    assert slow.cancelled == 0


async def test_what_nobody_waits_for_any_more_is_stopped_and_not_kept() -> None:
    slow = Slow()
    slow.open.clear()
    embedder = RememberingEmbedder(slow, texts=10)
    callers = [await begun(embedder, "a"), await begun(embedder, "a")]

    for caller in callers:
        caller.cancel()
    await asyncio.wait(callers)
    slow.open.set()
    await embedder.embed(["a"], role="query")

    assert slow.cancelled == 1
    assert len(slow.asked) == 2


async def test_an_error_reaches_all_who_wait_and_is_not_kept() -> None:
    slow = Slow()
    slow.open.clear()
    slow.error = BackendError("the model failed")
    embedder = RememberingEmbedder(slow, texts=10)
    callers = [await begun(embedder, "a"), await begun(embedder, "a")]

    slow.open.set()
    outcomes = await asyncio.gather(*callers, return_exceptions=True)
    slow.error = None

    assert [str(outcome) for outcome in outcomes] == ["the model failed"] * 2
    assert (await embedder.embed(["a"], role="query"))[0, 0] == 1


async def test_the_texts_used_last_are_kept() -> None:
    slow = Slow()
    embedder = RememberingEmbedder(slow, texts=2)

    for text in ("a", "bb", "a", "ccc", "a", "bb"):
        await embedder.embed([text], role="query")

    assert [text for _, text in slow.asked] == ["a", "bb", "ccc", "bb"]


def test_vectors_stay_within_their_bytes() -> None:
    memory = Memory(texts=1000, size=10_000)

    for number in range(100):
        memory.keep(b"%d" % number, np.zeros(384, np.float32))
    memory.keep(b"99", np.zeros(384, np.float32))
    kept = len(memory)
    memory.keep(b"huge", np.zeros(10_000, np.float32))

    assert kept == 5  # of 1,536 bytes and what is beside them
    assert memory.recall(b"94") is None
    assert len(memory) == 5  # one that has no room does not put the others out
    assert memory.recall(b"huge") is None


async def test_no_text_stays_in_memory() -> None:
    slow = Slow()
    embedder = RememberingEmbedder(slow, texts=10)
    text = f"a private question {id(slow)}"
    before = sys.getrefcount(text)

    await embedder.embed([text], role="query")
    slow.asked.clear()
    gc.collect()

    assert sys.getrefcount(text) == before


async def test_a_row_can_be_changed_without_harm() -> None:
    embedder = RememberingEmbedder(Slow(), texts=10)
    row = await embedder.embed(["a"], role="query")

    row[:] = 0

    assert (await embedder.embed(["a"], role="query"))[0, 0] == 1


async def test_nothing_is_remembered_after_closing() -> None:
    embedder = RememberingEmbedder(Slow(), texts=10)
    await embedder.embed(["a"], role="query")

    await embedder.close()

    with pytest.raises(BackendError, match="closed"):
        await embedder.embed(["a"], role="query")


async def test_revision_and_dimensions_are_the_embedders_own() -> None:
    embedder = RememberingEmbedder(Slow(), texts=10)

    assert (embedder.revision, embedder.dimensions) == ("slow/1", 3)
    assert (await embedder.embed([], role="query")).shape == (0, 3)


async def test_what_is_no_unicode_text_is_refused() -> None:
    with pytest.raises(TextRefused, match="lone surrogate"):
        await RememberingEmbedder(Slow(), texts=10).embed(["half a pair: \ud83e"], role="query")
