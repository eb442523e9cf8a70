"""The cache as the openai SDK sees it: what works against the provider works here, and repeats come from the cache."""

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionToolParam

from tests.support.gateway import Gateway, Mock, running_gateway, settings

QUESTION = "How do I reset my password?"
REPHRASED = "How can I reset my password?"
TOOL: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Finds an article.",
        "parameters": {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]},
    },
}


@pytest.fixture
def client(gateway: Gateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="sk-anything", max_retries=0) as client:
        yield client


@pytest.fixture
async def async_client(gateway: Gateway) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="sk-anything", max_retries=0) as client:
        yield client


def ask(client: openai.OpenAI, text: str, model: str, **fields: Any) -> tuple[str, str]:
    """How the cache took part, and the answer."""
    raw = client.chat.completions.with_raw_response.create(
        model=model, messages=[{"role": "user", "content": text}], **fields
    )
    answer = raw.parse().choices[0].message.content
    assert answer
    return raw.headers["x-keepgate-cache"], answer


def test_a_repeat_is_the_same_answer_from_the_exact_cache(client: openai.OpenAI, mock: Mock, model: str) -> None:
    first = ask(client, QUESTION, model)
    again = ask(client, QUESTION, model)

    assert first[0] == "miss"
    assert again == ("exact", first[1])
    assert mock.calls() == 1


def test_a_rephrasing_is_served_from_the_semantic_cache(
    client: openai.OpenAI, gateway: Gateway, mock: Mock, model: str
) -> None:
    _, answer = ask(client, QUESTION, model)
    gateway.await_cached(REPHRASED, model=model)

    raw = client.chat.completions.with_raw_response.create(
        model=model, messages=[{"role": "user", "content": REPHRASED}]
    )

    assert raw.headers["x-keepgate-cache"] == "semantic"
    assert 0.92 <= float(raw.headers["x-keepgate-similarity"]) < 1
    assert raw.headers["x-keepgate-entry"]
    assert raw.parse().choices[0].message.content == answer
    assert mock.calls() == 1


def test_another_question_is_not(client: openai.OpenAI, gateway: Gateway, mock: Mock, model: str) -> None:
    ask(client, QUESTION, model)
    gateway.await_cached(REPHRASED, model=model)

    outcome, _ = ask(client, "What is the capital of Mongolia?", model)

    assert outcome == "miss"
    assert mock.calls() == 2


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": REPHRASED}]},
        {"tools": [TOOL]},
        {"response_format": {"type": "json_object"}},
        {"seed": 7},
        {"temperature": 0.1},
        {"top_p": 0.5},
        {"max_tokens": 5},
        {"stop": ["."]},
        {"extra_body": {"a_field_of_tomorrow": 1}},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_a_field_that_changes_the_answer_is_never_bridged(
    client: openai.OpenAI, gateway: Gateway, model: str, fields: dict[str, Any]
) -> None:
    ask(client, QUESTION, model)
    gateway.await_cached(REPHRASED, model=model)

    asked = {"messages": [{"role": "user", "content": REPHRASED}], **fields}
    raw = client.chat.completions.with_raw_response.create(model=model, **asked)

    assert raw.headers["x-keepgate-cache"] == "miss"


def test_user_and_metadata_change_nothing(client: openai.OpenAI, model: str) -> None:
    _, answer = ask(client, QUESTION, model, user="one", metadata={"run": "1"})

    again = ask(client, QUESTION, model, user="two")

    assert again == ("exact", answer)


def test_earlier_turns_are_part_of_what_must_be_equal(client: openai.OpenAI, model: str) -> None:
    def follow_up(subject: str) -> str:
        raw = client.chat.completions.with_raw_response.create(
            model=model,
            messages=[
                {"role": "user", "content": subject},
                {"role": "assistant", "content": "It depends."},
                {"role": "user", "content": "And for kids?"},
            ],
        )
        return raw.headers["x-keepgate-cache"]

    assert follow_up("Is aspirin safe?") == "miss"
    assert follow_up("Is trampolining safe?") == "miss"
    assert follow_up("Is aspirin safe?") == "exact"


def test_a_miss_streams_and_replays_streamed_and_whole_alike(client: openai.OpenAI, mock: Mock, model: str) -> None:
    def streamed() -> tuple[str, str, list[Any]]:
        raw = client.chat.completions.with_raw_response.create(
            model=model, messages=[{"role": "user", "content": QUESTION}], stream=True
        )
        chunks = list(raw.parse())
        said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        return raw.headers["x-keepgate-cache"], said, chunks

    outcome, said, chunks = streamed()
    replayed_outcome, replayed, replayed_chunks = streamed()
    whole = ask(client, QUESTION, model)

    assert (outcome, replayed_outcome, whole[0]) == ("miss", "exact", "exact")
    assert said == replayed == whole[1] != ""
    for each in (chunks, replayed_chunks):
        assert each[0].choices[0].delta.role == "assistant"
        assert each[-1].choices[0].finish_reason == "stop"
        assert [chunk.choices[0].finish_reason for chunk in each[:-1]] == [None] * (len(each) - 1)
        assert all(chunk.usage is None for chunk in each)
        assert {chunk.id for chunk in each} == {chunks[0].id}
    assert len(replayed_chunks) > 5
    assert mock.calls() == 1


def test_an_answer_that_came_whole_replays_streamed(client: openai.OpenAI, model: str) -> None:
    _, answer = ask(client, QUESTION, model)

    stream = client.chat.completions.create(model=model, messages=[{"role": "user", "content": QUESTION}], stream=True)

    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == answer


def test_a_rephrasing_streams_from_the_cache(client: openai.OpenAI, gateway: Gateway, mock: Mock, model: str) -> None:
    _, answer = ask(client, QUESTION, model)
    gateway.await_cached(REPHRASED, model=model)

    raw = client.chat.completions.with_raw_response.create(
        model=model, messages=[{"role": "user", "content": REPHRASED}], stream=True
    )

    assert "".join(chunk.choices[0].delta.content or "" for chunk in raw.parse()) == answer
    assert raw.headers["x-keepgate-cache"] == "semantic"
    assert mock.calls() == 1


def test_a_stream_ends_with_usage_for_who_asks_for_it(client: openai.OpenAI, model: str) -> None:
    def last_chunk() -> Any:
        *_, last = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": QUESTION}],
            stream=True,
            stream_options={"include_usage": True},
        )
        return last

    missed, replayed = last_chunk(), last_chunk()

    assert missed.choices == replayed.choices == []
    assert missed.usage.prompt_tokens == 6
    assert missed.usage.total_tokens == missed.usage.prompt_tokens + missed.usage.completion_tokens
    assert replayed.usage == missed.usage


def test_a_forced_tool_call_passes_through_streamed_and_whole(client: openai.OpenAI, model: str) -> None:
    asked: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": QUESTION}],
        "tools": [TOOL],
        "tool_choice": "required",
    }

    whole = client.chat.completions.create(**asked).choices[0]
    with client.chat.completions.stream(**asked) as stream:
        streamed = stream.get_final_completion().choices[0]

    assert whole.finish_reason == streamed.finish_reason == "tool_calls"
    assert whole.message.tool_calls
    assert streamed.message.tool_calls
    call, streamed_call = whole.message.tool_calls[0], streamed.message.tool_calls[0]
    assert call.type == "function"
    assert call.function.name == "look_up"
    assert json.loads(call.function.arguments) == {"query": QUESTION}
    assert (streamed_call.id, streamed_call.function.arguments) == (call.id, call.function.arguments)


def test_several_choices_are_repeated_exactly_and_replayed_streamed(client: openai.OpenAI, model: str) -> None:
    asked: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": QUESTION}], "n": 3}

    whole = client.chat.completions.create(**asked)
    raw = client.chat.completions.with_raw_response.create(**asked, stream=True)
    texts = ["", "", ""]
    for chunk in raw.parse():
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""

    assert raw.headers["x-keepgate-cache"] == "exact"
    assert texts == [choice.message.content for choice in whole.choices]


def test_completions_repeat_whole_and_streamed(client: openai.OpenAI, mock: Mock, model: str) -> None:
    first = client.completions.create(model=model, prompt="Once upon a time")
    raw = client.completions.with_raw_response.create(model=model, prompt="Once upon a time")
    stream = client.completions.create(model=model, prompt="Once upon a time", stream=True)

    assert raw.headers["x-keepgate-cache"] == "exact"
    assert raw.parse().choices[0].text == first.choices[0].text
    assert "".join(chunk.choices[0].text for chunk in stream) == first.choices[0].text
    assert mock.calls("/v1/completions") == 1


def test_embeddings_repeat_exactly_and_are_never_compared(client: openai.OpenAI, mock: Mock, model: str) -> None:
    def embed(text: str) -> tuple[str, list[float]]:
        # The SDK asks for base64 unless told otherwise, and decodes it.
        raw = client.embeddings.with_raw_response.create(model=model, input=text)
        return raw.headers["x-keepgate-cache"], raw.parse().data[0].embedding

    outcome, vector = embed(QUESTION)
    again = embed(QUESTION)
    rephrased, _ = embed(REPHRASED)
    floats = client.embeddings.create(model=model, input=QUESTION, encoding_format="float")

    assert outcome == "miss"
    assert len(vector) == 64
    assert again == ("exact", vector)
    assert rephrased == "miss"
    assert floats.data[0].embedding == pytest.approx(vector, abs=1e-6)
    assert mock.calls("/v1/embeddings") == 3


def test_several_texts_are_embedded_in_their_order(client: openai.OpenAI, model: str) -> None:
    both = client.embeddings.create(model=model, input=["one text", "another text"])
    second = client.embeddings.create(model=model, input="another text")

    assert [item.index for item in both.data] == [0, 1]
    assert both.data[1].embedding == second.data[0].embedding


def test_models_are_those_of_the_upstream(client: openai.OpenAI) -> None:
    listed = [model.id for model in client.models.list()]

    assert listed == ["mock-large", "mock-small", "mock-embedding"]
    assert client.models.retrieve("mock-small").id == "mock-small"


def test_a_base_url_chooses_an_endpoint_and_its_policy(gateway: Gateway, mock: Mock, model: str) -> None:
    def client(endpoint: str) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{gateway.url}/e/{endpoint}/v1", api_key="sk-anything", max_retries=0)

    with client("exact") as exact, client("off") as off:
        outcomes = [ask(exact, text, model)[0] for text in (QUESTION, REPHRASED, QUESTION)]
        outcomes += [ask(off, text, model)[0] for text in (QUESTION, QUESTION)]
        models = [model.id for model in exact.models.list()]

    assert outcomes == ["miss", "miss", "exact", "bypass", "bypass"]
    assert "mock-large" in models
    assert mock.calls("/v1/chat/completions") == 4


async def test_the_async_client_asks_repeats_rephrases_and_streams(
    async_client: openai.AsyncOpenAI, gateway: Gateway, mock: Mock, model: str
) -> None:
    outcomes, texts = [], []
    for text in (QUESTION, QUESTION, REPHRASED):
        if text is REPHRASED:
            gateway.await_cached(text, model=model)
        raw = await async_client.chat.completions.with_raw_response.create(
            model=model, messages=[{"role": "user", "content": text}]
        )
        outcomes.append(raw.headers["x-keepgate-cache"])
        texts.append(raw.parse().choices[0].message.content)
    stream = await async_client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": QUESTION}], stream=True
    )
    streamed = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert outcomes == ["miss", "exact", "semantic"]
    assert {*texts, streamed} == {texts[0]}
    assert mock.calls() == 1


FAILS = {
    "400": (openai.BadRequestError, 400),
    "401": (openai.InternalServerError, 502),  # the gateway's own credential: not the caller's to mend
    "403": (openai.InternalServerError, 502),
    "500": (openai.InternalServerError, 502),
    "html": (openai.InternalServerError, 502),
    "empty": (openai.InternalServerError, 502),
    "redirect": (openai.InternalServerError, 502),
    "malformed": (openai.InternalServerError, 502),
    "truncated": (openai.InternalServerError, 502),
}
# A stream meets these after its beginning: test_streaming.py.
AFTER_THE_FIRST_CHUNK = ("malformed", "truncated")


@pytest.mark.parametrize(
    ("fault", "stream"), [(f, s) for f in FAILS for s in (False, True) if not (s and f in AFTER_THE_FIRST_CHUNK)]
)
def test_what_an_upstream_does_wrong_is_an_error_of_the_sdk(client: openai.OpenAI, fault: str, *, stream: bool) -> None:
    expected, status = FAILS[fault]

    with pytest.raises(expected) as caught:
        client.chat.completions.create(
            model=f"fault:{fault}", messages=[{"role": "user", "content": QUESTION}], stream=stream
        )

    assert caught.value.status_code == status
    assert caught.value.response.headers["x-keepgate-request-id"]
    if status == 502:
        assert caught.value.code == "upstream_error"
        assert QUESTION not in caught.value.message
        assert caught.value.response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("stream", [False, True])
def test_a_rate_limit_of_the_upstream_keeps_its_retry_after_and_its_words(
    tmp_path: Path, mock: Mock, *, stream: bool
) -> None:
    asked: Any = [{"role": "user", "content": QUESTION}]
    # A gateway of its own: what was asked for patience is left alone for a while.
    with (
        running_gateway(tmp_path, settings(tmp_path, mock.url)) as gateway,
        openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="sk-anything", max_retries=0) as client,
        pytest.raises(openai.RateLimitError) as caught,
    ):
        client.chat.completions.create(model="fault:429", messages=asked, stream=stream)

    assert caught.value.response.headers["retry-after"] == "7"
    assert "the mock answers 429" in caught.value.message


def test_what_a_caller_does_wrong_is_an_error_of_the_sdk(gateway: Gateway, client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as no_messages:
        client.chat.completions.create(model="any", messages=[])
    with pytest.raises(openai.AuthenticationError) as unknown_key:
        client.with_options(api_key="kg-nobody-made-this").models.list()
    with (
        openai.OpenAI(base_url=f"{gateway.url}/e/nowhere/v1", api_key="x") as elsewhere,
        pytest.raises(openai.BadRequestError) as no_endpoint,
    ):
        elsewhere.models.list()

    assert (no_messages.value.code, no_messages.value.param) == ("invalid_request", "messages")
    assert unknown_key.value.code == "invalid_key"
    assert no_endpoint.value.code == "unknown_endpoint"


def test_an_error_of_the_upstream_is_not_kept(client: openai.OpenAI, mock: Mock, model: str) -> None:
    mock.behaves(fault="500", fault_times=1)
    with pytest.raises(openai.InternalServerError):
        ask(client, QUESTION, model)

    after = [ask(client, QUESTION, model)[0] for _ in range(2)]

    assert after == ["miss", "exact"]


def test_a_stream_cut_midway_raises_and_leaves_nothing_behind(client: openai.OpenAI, mock: Mock, model: str) -> None:
    mock.behaves(fault="cut", fault_times=1)
    stream = client.chat.completions.create(model=model, messages=[{"role": "user", "content": QUESTION}], stream=True)

    received: list[Any] = []
    with pytest.raises(openai.APIError, match="upstream"):
        received.extend(stream)

    assert ask(client, QUESTION, model)[0] == "miss"
