"""What every embedder does, run over each of them.

The first run on a machine builds MiniLM and its word table into the user's
cache folder, as the gateway does: some seconds, once.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from backends.embedding import minilm
from backends.embedding.base import Embedder
from backends.embedding.remembering import RememberingEmbedder
from backends.registry import BUILT_IN, create, not_installed
from models.errors import BackendError, TextTooLong
from tests.support.embeddings_server import DIMENSIONS, EmbeddingsServer, embeddings_server

SUITE = {"embedding": {"onnx", "static", "openai", "sentence-transformers"}}

QUESTION = "How do I reset my password?"
ODD = [
    "",
    " ",
    "\n\t ",
    "a",
    "?",
    "🦄",
    "\u200b",
    "\x00",
    "naïve café",
    "我想买苹果",
    "สวัสดี",
    "a\u0301" * 40,
    "x" * 300,
    "مرحبا بالعالم",
    "Привет, как сбросить пароль?",
    "🦄🐙🔥 👩‍👩‍👧‍👦",
    "def f(x):\n\treturn {'a': x[0]}  # \u00e9\n",
    "<script>alert('\x1b[31m')</script>",
]


@pytest.fixture
async def server() -> AsyncIterator[EmbeddingsServer]:
    async with embeddings_server() as server:
        yield server


REMEMBERING = "onnx behind a memory"


@pytest.fixture(params=[*sorted(BUILT_IN["embedding"]), REMEMBERING])
async def unloaded(request: pytest.FixtureRequest, server: EmbeddingsServer) -> AsyncIterator[Embedder]:
    if request.param == REMEMBERING:
        remembering = RememberingEmbedder(create("embedding", "onnx"), texts=5)  # so few that some are put out
        yield remembering
        await remembering.close()
        return
    if lacking := not_installed("embedding", request.param):
        pytest.skip(f"{request.param} {lacking}")
    options: dict[str, dict[str, Any]] = {
        "openai": {"base_url": server.url, "model": "hash", "dimensions": DIMENSIONS},
        "sentence-transformers": {"path": minilm.source()},
    }
    embedder: Embedder = create("embedding", request.param, **options.get(request.param, {}))
    yield embedder
    await embedder.close()


@pytest.fixture
async def embedder(unloaded: Embedder) -> Embedder:
    await unloaded.load()
    return unloaded


def numbered(count: int) -> list[str]:
    return [f"what does chapter {number} of the manual say about {number * 7} things?" for number in range(count)]


async def test_rows_have_length_one(embedder: Embedder) -> None:
    rows = await embedder.embed([QUESTION, *ODD, "word " * 200], role="query")

    assert rows.dtype == np.float32
    assert rows.shape == (len(ODD) + 2, embedder.dimensions)
    assert np.linalg.norm(rows.astype(np.float64), axis=1) == pytest.approx(1.0, abs=1e-6)


async def test_a_text_gets_the_same_bits_alone_and_among_others(embedder: Embedder) -> None:
    others = ["hi", "a much longer text, so that any padding or shared scale would show " * 5, *ODD]
    alone = await embedder.embed([QUESTION], role="query")

    among = await embedder.embed([*others, QUESTION], role="query")
    crowds = await asyncio.gather(*(embedder.embed([other, QUESTION], role="query") for other in others))

    assert among[-1].tobytes() == alone[0].tobytes()
    assert {crowd[1].tobytes() for crowd in crowds} == {alone[0].tobytes()}


async def test_rows_follow_the_order_of_the_texts(embedder: Embedder) -> None:
    texts = numbered(20)

    forth = await embedder.embed(texts, role="query")
    back = await embedder.embed(texts[::-1], role="query")

    assert forth.tobytes() == back[::-1].tobytes()
    assert len({row.tobytes() for row in forth}) == 20


async def test_a_text_twice_in_one_call_is_two_equal_rows(embedder: Embedder) -> None:
    rows = await embedder.embed([QUESTION, "another", QUESTION], role="query")

    assert rows[0].tobytes() == rows[2].tobytes() != rows[1].tobytes()


async def test_no_texts_are_no_rows(embedder: Embedder) -> None:
    assert (await embedder.embed([], role="query")).shape == (0, embedder.dimensions)


async def test_a_row_is_the_callers_own(embedder: Embedder) -> None:
    first = await embedder.embed([QUESTION], role="query")
    kept = first.copy()

    first[:] = 0.0

    assert (await embedder.embed([QUESTION], role="query")).tobytes() == kept.tobytes()


async def test_revision_and_dimensions_are_known_before_load(unloaded: Embedder) -> None:
    before = unloaded.revision, unloaded.dimensions

    await unloaded.load()
    await unloaded.load()

    assert (unloaded.revision, unloaded.dimensions) == before
    assert unloaded.revision
    assert (await unloaded.embed(["hello"], role="query")).shape == (1, unloaded.dimensions)


async def test_asking_before_load_is_an_error(unloaded: Embedder) -> None:
    with pytest.raises(BackendError, match="not loaded"):
        await unloaded.embed([QUESTION], role="query")


async def test_asking_after_close_is_an_error(embedder: Embedder) -> None:
    await embedder.close()

    with pytest.raises(BackendError):
        await embedder.embed([QUESTION], role="query")


@pytest.mark.parametrize("words", [257, 100_000])
async def test_a_text_beyond_the_window_is_refused(embedder: Embedder, words: int) -> None:
    with pytest.raises(TextTooLong):
        await embedder.embed(["ox " * words], role="query")


@pytest.mark.parametrize("letter", ["x", "我", "🦄", "\u0301", "(", "\x00"])
async def test_a_hundred_thousand_characters_without_a_blank_are_a_vector_or_too_long(
    embedder: Embedder, letter: str
) -> None:
    try:
        rows = await embedder.embed([letter * 100_000], role="query")
    except TextTooLong:
        rows = await embedder.embed([QUESTION], role="query")

    assert rows.shape == (1, embedder.dimensions)


async def test_one_text_too_long_fails_nobody_elses(embedder: Embedder) -> None:
    bad, good = await asyncio.gather(
        embedder.embed(["ox " * 300], role="query"), embedder.embed([QUESTION], role="query"), return_exceptions=True
    )

    assert isinstance(bad, TextTooLong)
    assert not isinstance(good, BaseException)
    assert good.shape == (1, embedder.dimensions)


async def test_a_caller_that_leaves_takes_nothing_from_the_others(embedder: Embedder) -> None:
    expected = await embedder.embed(numbered(10), role="query")
    leaving = [asyncio.create_task(embedder.embed(numbered(10), role="query")) for _ in range(3)]
    staying = asyncio.create_task(embedder.embed(numbered(10), role="query"))
    await asyncio.sleep(0)

    for task in leaving:
        task.cancel()

    assert (await staying).tobytes() == expected.tobytes()


async def test_a_caller_whose_time_is_up_can_ask_again(embedder: Embedder) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await embedder.embed(numbered(50), role="query")

    assert (await embedder.embed(numbered(50), role="query")).shape == (50, embedder.dimensions)


async def test_fifty_texts_do_not_hold_up_the_event_loop(embedder: Embedder) -> None:
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        last = time.perf_counter()
        while True:
            await asyncio.sleep(0)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now

    watcher = asyncio.create_task(watch())
    started = time.perf_counter()
    await embedder.embed(
        [f"{number}: {'a rather long question about shipping ' * 20}" for number in range(50)], role="query"
    )
    taken = time.perf_counter() - started
    watcher.cancel()

    # A bound on a shared machine; run on the loop, the transformer would hold it for all of the time taken.
    assert longest < max(0.05, taken / 4)


async def test_a_lone_surrogate_is_an_error_not_a_crash(embedder: Embedder) -> None:
    with pytest.raises(BackendError):
        await embedder.embed(["half a pair: \ud83e"], role="query")
