"""What programs are written with, in front of every vendor: pydantic-ai, langchain and litellm."""

import json
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from types import ModuleType
from typing import Any

import anthropic
import openai
import pytest
from google import genai
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models import Model
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.google import GoogleModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.profiles.anthropic import AnthropicModelProfile
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.google import GoogleProvider
from pydantic_ai.providers.openai import OpenAIProvider

from tests.support.vendors import MODELS, Vendors, apart

QUESTION = "How do I export my contacts?"
REPHRASED = "How can I export my contacts?"
ANSWER = f"You said: {QUESTION}"


class Weather(BaseModel):
    """The weather of a city."""

    city: str
    days: int


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> str:
    return MODELS[request.param]


# --- pydantic-ai

# The google-genai SDK derives from a class of aiohttp that is not meant for it.
_ASYNC_GOOGLE = pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")
SPOKEN = ["chat", "responses", "messages", pytest.param("generateContent", marks=_ASYNC_GOOGLE)]


@pytest.fixture(params=SPOKEN)
async def agents_model(request: pytest.FixtureRequest, vendors: Vendors, model: str) -> AsyncIterator[Model]:
    """A model of pydantic-ai's, each of which speaks its provider's dialect."""
    url, headers = vendors.gateway.url, apart()
    if request.param in ("chat", "responses"):
        async with openai.AsyncOpenAI(
            base_url=f"{url}/v1", api_key="x", default_headers=headers, max_retries=0
        ) as client:
            kind = OpenAIChatModel if request.param == "chat" else OpenAIResponsesModel
            yield kind(model, provider=OpenAIProvider(openai_client=client))
    elif request.param == "messages":
        async with anthropic.AsyncAnthropic(
            base_url=url, api_key="x", default_headers=headers, max_retries=0
        ) as client:
            # What a model can do it reads out of a name, which here begins with that of an upstream.
            able = AnthropicModelProfile(supports_json_schema_output=True)
            yield AnthropicModel(model, provider=AnthropicProvider(anthropic_client=client), profile=able)
    else:
        google = genai.Client(api_key="x", http_options={"base_url": f"{url}/genai", "headers": headers})
        async with google.aio:
            yield GoogleModel(model, provider=GoogleProvider(client=google))


async def test_an_agent_calls_its_tool_and_repeats_from_the_cache(agents_model: Model, vendors: Vendors) -> None:
    asked = []
    agent = Agent(agents_model, instructions="Be brief.")

    @agent.tool_plain
    def weather(city: str) -> str:
        """Looks up the weather of a city."""
        asked.append(city)
        return "rain"

    first = await agent.run("Oslo #tool")
    calls = vendors.calls
    again = await agent.run("Oslo #tool")

    assert asked == ["Oslo #tool"] * 2
    assert first.output.startswith("The tools said: ")
    assert "rain" in first.output
    assert again.output == first.output
    assert first.usage.requests == calls == 2
    assert first.usage.output_tokens > 0
    assert vendors.calls == calls


@pytest.mark.parametrize("how", [Weather, NativeOutput(Weather)], ids=["by a tool", "by its schema"])
async def test_an_agent_answers_with_an_object(agents_model: Model, vendors: Vendors, how: Any) -> None:
    answer = await Agent(agents_model, output_type=how).run("Oslo")

    assert answer.output == Weather(city="Oslo", days=42)
    assert vendors.calls == 1


async def test_an_agent_streams_a_conversation(agents_model: Model, vendors: Vendors) -> None:
    agent = Agent(agents_model)

    async def say(text: str, history: Any = None) -> tuple[list[str], Any]:
        async with agent.run_stream(text, message_history=history) as run:
            return [piece async for piece in run.stream_text(delta=True, debounce_by=None)], run.all_messages()

    pieces, history = await say(QUESTION)
    replayed, _ = await say(QUESTION)
    further, _ = await say("And then?", history)

    assert "".join(pieces) == "".join(replayed) == ANSWER
    assert len(pieces) > 1
    assert "".join(further) == "You said: And then?"
    assert vendors.calls == 2


# --- langchain


@pytest.fixture(params=["chat", "responses", "messages"])
def chat(request: pytest.FixtureRequest, vendors: Vendors, model: str) -> Any:
    url = vendors.gateway.url
    common: Any = {"model": model, "api_key": "x", "max_retries": 0, "default_headers": apart()}
    if request.param == "messages":
        return ChatAnthropic(base_url=url, **common)
    return ChatOpenAI(base_url=f"{url}/v1", use_responses_api=request.param == "responses", **common)


# langchain keeps a connection pool for all of a program, which is that of one event loop.
@pytest.mark.asyncio(loop_scope="module")
async def test_langchain_asks_and_streams(chat: Any, vendors: Vendors) -> None:
    whole = await chat.ainvoke(QUESTION)
    streamed = [chunk.text async for chunk in chat.astream(QUESTION)]
    again = "".join(chunk.text for chunk in chat.stream(QUESTION))

    assert whole.text == "".join(streamed) == again == ANSWER
    assert whole.usage_metadata["output_tokens"] == len(ANSWER.split())
    assert len(streamed) > 2
    assert vendors.calls == 1


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_langchain_calls_tools(chat: Any, vendors: Vendors, *, streamed: bool) -> None:
    @tool
    def weather(city: str) -> str:
        """Looks up the weather of a city."""
        return f"rain in {city}"

    bound = chat.bind_tools([weather])
    conversation: list[Any] = [HumanMessage("Oslo #tool #say")]

    def ask() -> Any:
        if not streamed:
            return bound.invoke(conversation)
        first, *rest = bound.stream(conversation)
        for chunk in rest:
            first += chunk
        return first

    called = ask()
    conversation += [called, *(weather.invoke(call) for call in called.tool_calls)]
    answered = ask()

    assert [(call["name"], call["args"]) for call in called.tool_calls] == [("weather", {"city": "Oslo #tool #say"})]
    assert called.text == "Let me look."
    assert isinstance(conversation[-1], ToolMessage)
    assert answered.text.startswith("The tools said: ")
    assert "rain in Oslo" in answered.text
    assert vendors.calls == 2


@pytest.mark.parametrize("method", ["function_calling", "json_schema"])
def test_langchain_answers_with_an_object(chat: Any, vendors: Vendors, method: str) -> None:
    structured = chat.with_structured_output(Weather, method=method)

    assert structured.invoke("Oslo") == structured.invoke("Oslo") == Weather(city="Oslo", days=42)
    assert vendors.calls == 1


def test_a_rephrasing_is_answered_from_the_cache(vendors: Vendors, model: str) -> None:
    headers = apart()
    base = f"{vendors.gateway.url}/e/semantic"
    common: Any = {"model": model, "max_tokens": 100, "api_key": "x", "max_retries": 0, "default_headers": headers}
    there = ChatAnthropic(base_url=base, **common)
    here: Any = ChatOpenAI(base_url=f"{base}/v1", include_response_headers=True, **common)

    asked = there.invoke(QUESTION)
    vendors.gateway.await_cached(REPHRASED, model=model, endpoint="semantic", headers=headers, max_tokens=100)
    rephrased = here.invoke(REPHRASED)

    assert rephrased.response_metadata["headers"]["x-keepgate-cache"] == "semantic"
    assert rephrased.text == asked.text == ANSWER
    assert vendors.calls == 1


def test_langchain_embeds_once(vendors: Vendors) -> None:
    embeddings: Any = OpenAIEmbeddings(
        model="openai/text-embedding-3-small",
        base_url=f"{vendors.gateway.url}/v1",
        api_key="x",
        check_embedding_ctx_length=False,
        default_headers=apart(),
    )

    first, again = (embeddings.embed_documents(["one text", "another text"]) for _ in range(2))

    assert first == again
    assert len(first) == 2
    assert vendors.calls == 1


# --- litellm

Ask = Callable[..., Any]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.fixture(scope="module")
def litellm() -> ModuleType:
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it would fetch its prices when it is imported
    import litellm

    return litellm


@pytest.fixture(params=["openai", "anthropic"])
def ask(request: pytest.FixtureRequest, litellm: ModuleType, vendors: Vendors, model: str) -> Iterator[Ask]:
    """`litellm.completion` in one of its modes; in that of Anthropic it sends the key as `x-api-key`."""
    url = vendors.gateway.url
    given: dict[str, Any] = {"api_key": "x", "extra_headers": apart(), "num_retries": 0, "max_tokens": 4096}
    with ExitStack() as stack:
        if request.param == "anthropic":
            # It leaves streams open, and httpx waits for itself where one is collected while it opens another: a client
            # for each test keeps the two apart.
            handler = litellm.llms.custom_httpx.http_handler.HTTPHandler()
            stack.callback(handler.close)
            given |= {"api_base": url, "client": handler}
        else:
            given |= {"api_base": f"{url}/v1"}
        yield lambda messages, **more: litellm.completion(
            model=f"{request.param}/{model}", messages=messages, **given, **more
        )


def test_litellm_asks_and_streams(ask: Ask, vendors: Vendors) -> None:
    messages = [{"role": "user", "content": QUESTION}]

    whole = ask(messages)
    streamed = [chunk.choices[0].delta.content or "" for chunk in ask(messages, stream=True)]

    assert whole.choices[0].message.content == "".join(streamed) == ANSWER
    assert whole.usage.completion_tokens == len(ANSWER.split())
    assert vendors.calls == 1


def test_litellm_calls_tools(ask: Ask, vendors: Vendors) -> None:
    messages: list[Any] = [{"role": "user", "content": "Oslo #tool"}]

    called = ask(messages, tools=[TOOL]).choices[0].message
    call = called.tool_calls[0]
    messages += [
        called.model_dump(include={"role", "content", "tool_calls"}),
        {"role": "tool", "tool_call_id": call.id, "content": "rain"},
    ]
    answered = ask(messages, tools=[TOOL]).choices[0].message

    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Oslo #tool"})
    assert answered.content.startswith("The tools said: ")
    assert "rain" in answered.content
    assert vendors.calls == 2


def test_litellm_answers_with_an_object(ask: Ask, vendors: Vendors) -> None:
    answer = ask([{"role": "user", "content": "Oslo"}], response_format=Weather)

    assert Weather.model_validate_json(answer.choices[0].message.content) == Weather(city="Oslo", days=42)
    assert vendors.calls == 1


def test_litellm_raises_the_vendors_refusal(litellm: ModuleType, ask: Ask, vendors: Vendors) -> None:
    vendors.fail("400", message="the vendor's own words")

    with pytest.raises(litellm.BadRequestError, match="the vendor's own words"):
        ask([{"role": "user", "content": QUESTION}])
