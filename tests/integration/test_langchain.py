"""langchain-openai against the gateway: only its base URL changes."""

from typing import Any

import pytest
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

from tests.support.gateway import Gateway, Mock

QUESTION = "How do I export my contacts?"
REPHRASED = "How can I export my contacts?"


@pytest.fixture
def chat(gateway: Gateway, model: str) -> Any:
    return ChatOpenAI(
        model=model, base_url=f"{gateway.url}/v1", api_key="sk-anything", max_retries=0, include_response_headers=True
    )


def outcome(answer: Any) -> str:
    word: str = answer.response_metadata["headers"]["x-keepgate-cache"]
    return word


def test_invoke_repeats_and_rephrases_from_the_cache(gateway: Gateway, mock: Mock, model: str, chat: Any) -> None:
    asked, repeated = chat.invoke(QUESTION), chat.invoke(QUESTION)
    gateway.await_cached(REPHRASED, model=model)
    rephrased = chat.invoke(REPHRASED)

    assert [outcome(answer) for answer in (asked, repeated, rephrased)] == ["miss", "exact", "semantic"]
    assert QUESTION in asked.content
    assert asked.content == repeated.content == rephrased.content
    assert repeated.usage_metadata == asked.usage_metadata
    assert mock.calls() == 1


def test_a_stream_and_its_replay_say_the_same(mock: Mock, chat: Any) -> None:
    streamed, replayed = (list(chat.stream(QUESTION)) for _ in range(2))

    texts = ["".join(chunk.content for chunk in chunks) for chunks in (streamed, replayed)]
    assert texts[0] == texts[1]
    assert QUESTION in texts[0]
    assert len(replayed) > 5
    assert mock.calls() == 1


async def test_the_async_calls_share_the_cache(mock: Mock, chat: Any) -> None:
    asked = await chat.ainvoke(QUESTION)
    streamed = "".join([chunk.content async for chunk in chat.astream(QUESTION)])

    assert streamed == asked.content
    assert mock.calls() == 1


def test_embeddings_come_from_the_cache_the_second_time(gateway: Gateway, mock: Mock, model: str) -> None:
    embeddings: Any = OpenAIEmbeddings(
        model=model,
        base_url=f"{gateway.url}/v1",
        api_key="sk-anything",
        check_embedding_ctx_length=False,
    )

    first, again = (embeddings.embed_documents(["one text", "another text"]) for _ in range(2))

    assert first == again
    assert len(first) == 2
    assert mock.calls("/v1/embeddings") == 1
