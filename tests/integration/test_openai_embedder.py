"""The OpenAI-compatible embedder against a real HTTP server on loopback."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from backends.embedding.openai import OpenAIEmbedder
from models.errors import BackendError, ConfigError, TextTooLong
from tests.support.embeddings_server import DIMENSIONS, EmbeddingsServer, embeddings_server, vector

SECRET = "sk-secret"


@pytest.fixture
async def server() -> AsyncIterator[EmbeddingsServer]:
    async with embeddings_server() as server:
        yield server


def embedder_of(server: EmbeddingsServer, **options: Any) -> OpenAIEmbedder:
    return OpenAIEmbedder(
        base_url=server.url, **{"api_key": SECRET, "model": "hash", "dimensions": DIMENSIONS, **options}
    )


@pytest.fixture
async def embedder(server: EmbeddingsServer) -> AsyncIterator[OpenAIEmbedder]:
    embedder = embedder_of(server)
    await embedder.load()
    yield embedder
    await embedder.close()


async def test_vectors_are_the_apis_own_at_length_one(embedder: OpenAIEmbedder) -> None:
    expected = np.array(vector("hello"))

    rows = await embedder.embed(["hello"], role="query")

    assert rows[0] == pytest.approx(expected / np.linalg.norm(expected), abs=1e-6)


async def test_the_call_carries_model_key_and_texts(server: EmbeddingsServer, embedder: OpenAIEmbedder) -> None:
    await embedder.embed(["a", "b", "a"], role="document")

    assert server.calls == [{"model": "hash", "input": ["a", "b"], "encoding_format": "float"}]
    assert server.headers["authorization"] == f"Bearer {SECRET}"
    assert server.headers["content-type"] == "application/json"


async def test_without_a_key_none_is_sent(server: EmbeddingsServer) -> None:
    embedder = embedder_of(server, api_key=None, shorten=True)
    await embedder.load()

    await embedder.embed(["a"], role="query")
    await embedder.close()

    assert "authorization" not in server.headers
    assert server.calls[0]["dimensions"] == DIMENSIONS


async def test_a_hundred_callers_with_one_text_make_one_call(
    server: EmbeddingsServer, embedder: OpenAIEmbedder
) -> None:
    rows = await asyncio.gather(*(embedder.embed(["the same"], role="query") for _ in range(100)))

    assert len({row.tobytes() for row in rows}) == 1
    assert len(server.calls) == 1


@pytest.mark.parametrize("status", [301, 307, 401, 403, 404, 429, 500, 503])
async def test_a_refusal_is_a_backend_error_without_the_apis_words(
    server: EmbeddingsServer, embedder: OpenAIEmbedder, status: int
) -> None:
    server.status = status

    with pytest.raises(BackendError, match=f"status {status}") as raised:
        await embedder.embed(["a private text"], role="query")

    assert "sk-" not in str(raised.value)
    assert "private" not in str(raised.value)
    assert len(server.calls) == (2 if status in (429, 500, 503) else 1)  # no redirect followed


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
async def test_trouble_that_passes_costs_one_more_call(
    server: EmbeddingsServer, embedder: OpenAIEmbedder, status: int
) -> None:
    server.status, server.failing = status, 1

    assert (await embedder.embed(["a"], role="query")).shape == (1, DIMENSIONS)
    assert len(server.calls) == 2


@pytest.mark.parametrize("hang_up", [1, 2])
async def test_a_lost_connection_is_tried_once_more(
    server: EmbeddingsServer, embedder: OpenAIEmbedder, hang_up: int
) -> None:
    server.hang_up = hang_up

    if hang_up == 1:
        assert (await embedder.embed(["a"], role="query")).shape == (1, DIMENSIONS)
    else:
        with pytest.raises(BackendError, match="cannot be reached"):
            await embedder.embed(["a"], role="query")
    assert len(server.calls) == 2


@pytest.mark.parametrize(
    ("retry_after", "calls"),
    [("0", 2), ("0.01", 2), ("-5", 2), ("60", 1), ("inf", 1), ("nan", 1), ("Fri, 20 Nov 2026 16:00:00 GMT", 1)],
)
async def test_a_pause_that_is_asked_for_is_kept_or_not_waited_for(
    server: EmbeddingsServer, embedder: OpenAIEmbedder, retry_after: str, calls: int
) -> None:
    server.status, server.retry_after = 429, retry_after

    with pytest.raises(BackendError, match="status 429"):
        await embedder.embed(["a"], role="query")

    assert len(server.calls) == calls


async def test_a_second_call_is_not_made_when_the_time_is_up(server: EmbeddingsServer) -> None:
    server.status, server.retry_after = 503, "1"
    embedder = embedder_of(server, timeout=0.5)
    await embedder.load()

    with pytest.raises(BackendError, match="status 503"):
        await embedder.embed(["a"], role="query")
    await embedder.close()

    assert len(server.calls) == 1


async def test_an_answer_beyond_all_measure_is_not_read_to_its_end(
    server: EmbeddingsServer, embedder: OpenAIEmbedder
) -> None:
    server.answer = b" " * 1_000_000

    with pytest.raises(BackendError, match="more than 327,680 bytes"):
        await embedder.embed(["a"], role="query")


async def test_a_text_that_no_api_takes_is_not_sent(server: EmbeddingsServer, embedder: OpenAIEmbedder) -> None:
    with pytest.raises(TextTooLong, match="200,000 characters"):
        await embedder.embed(["x" * 200_001], role="query")

    assert server.calls == []


@pytest.mark.parametrize(
    "answer",
    [
        b"<html>502</html>",
        b"",
        b"{}",
        b'{"data": [{"index": 0}]}',
        b'{"data": []}',
        b'{"data": [{"index": 1, "embedding": [1, 0]}]}',
        b'{"data": [{"index": 0, "embedding": ["one"]}]}',
        b'{"data": [{"index": 0, "embedding": null}]}',
    ],
)
async def test_an_answer_that_is_no_embedding_is_a_backend_error(
    server: EmbeddingsServer, embedder: OpenAIEmbedder, answer: bytes
) -> None:
    server.answer = answer

    with pytest.raises(BackendError, match="the embeddings API answered"):
        await embedder.embed(["a"], role="query")


async def test_other_dimensions_than_configured_say_what_to_set(
    server: EmbeddingsServer, embedder: OpenAIEmbedder
) -> None:
    server.dimensions = 64

    with pytest.raises(BackendError, match=r"vectors of 64: set cache\.embedder\.dimensions"):
        await embedder.embed(["a"], role="query")


async def test_a_zero_vector_is_a_backend_error(server: EmbeddingsServer, embedder: OpenAIEmbedder) -> None:
    server.answer = b'{"data": [{"index": 0, "embedding": [%s]}]}' % b",".join([b"0"] * DIMENSIONS)

    with pytest.raises(BackendError, match="no direction"):
        await embedder.embed(["a"], role="query")


async def test_texts_in_one_call_with_a_bad_one_are_sent_again_alone(
    server: EmbeddingsServer, embedder: OpenAIEmbedder
) -> None:
    bad, long, good = await asyncio.gather(
        embedder.embed(["\u2620"], role="query"),
        embedder.embed(["ox " * 300], role="query"),
        embedder.embed(["fine"], role="query"),
        return_exceptions=True,
    )

    assert type(bad) is not TextTooLong
    assert isinstance(bad, BackendError)
    assert isinstance(long, TextTooLong)
    assert not isinstance(good, BaseException)
    assert len(server.calls) == 4


async def test_a_caller_that_gives_up_ends_the_call(server: EmbeddingsServer, embedder: OpenAIEmbedder) -> None:
    server.open.clear()
    caller = asyncio.create_task(embedder.embed(["a"], role="query"))
    await server.called.wait()

    caller.cancel()

    async with asyncio.timeout(5):
        await server.hung_up.wait()
    assert caller.cancelled()


async def test_an_api_that_does_not_answer_is_a_backend_error(server: EmbeddingsServer) -> None:
    server.open.clear()
    embedder = embedder_of(server, timeout=0.05)
    await embedder.load()

    with pytest.raises(BackendError, match="in time"):
        await embedder.embed(["a"], role="query")
    await embedder.close()


async def test_an_api_that_is_not_there_is_a_backend_error() -> None:
    async with embeddings_server() as gone:
        embedder = embedder_of(gone)
    await embedder.load()

    with pytest.raises(BackendError, match="cannot be reached"):
        await embedder.embed(["a"], role="query")
    await embedder.close()


async def test_proxies_of_the_environment_are_not_used(
    server: EmbeddingsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    embedder = embedder_of(server)
    await embedder.load()

    assert (await embedder.embed(["a"], role="query")).shape == (1, DIMENSIONS)
    await embedder.close()


def test_the_revision_tells_models_addresses_and_dimensions_apart() -> None:
    def revision(base_url: str, model: str, dimensions: int) -> str:
        return OpenAIEmbedder(base_url=base_url, model=model, dimensions=dimensions).revision

    usual = revision("http://127.0.0.1:9/v1", "small", 8)

    assert usual == revision("http://127.0.0.1:9/v1/", "small", 8)
    assert (
        len({usual, revision("http://127.0.0.1:8/v1", "small", 8), revision("http://127.0.0.1:9/v1", "large", 8)}) == 3
    )
    assert usual != revision("http://127.0.0.1:9/v1", "small", 16)


def test_a_revision_of_ones_own_makes_another() -> None:
    settings: dict[str, Any] = {"base_url": "http://127.0.0.1:9/v1", "model": "small", "dimensions": 8}

    revisions = [OpenAIEmbedder(**settings, revision=one).revision for one in (None, "weights of May", "of June")]

    assert len(set(revisions)) == 3


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("base_url", "127.0.0.1:9"),
        ("base_url", "ftp://127.0.0.1/v1"),
        ("base_url", "http://me:secret@127.0.0.1:9/v1"),
        ("dimensions", 0),
        ("api_key", "two\nlines"),
    ],
)
def test_settings_that_cannot_work_are_a_configuration_error(setting: str, value: object) -> None:
    settings: dict[str, Any] = {"base_url": "http://127.0.0.1:9/v1", "model": "small", "dimensions": 8}

    with pytest.raises(ConfigError, match=rf"cache\.embedder\.{setting}: ") as raised:
        OpenAIEmbedder(**{**settings, setting: value})

    assert "secret" not in str(raised.value)
    assert "two" not in str(raised.value)
