"""The google-genai SDK in front of every vendor: what it does with Gemini, it does with the others."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import anthropic
import pytest
from google import genai
from google.genai import errors, types
from pydantic import BaseModel

from tests.support.fake_scenario import THOUGHT
from tests.support.vendors import MODELS, Vendors, apart

QUESTION = "How do I reset my password?"
ANSWER = f"You said: {QUESTION}"
THINKERS = [
    "gemini/gemini-2.5-flash",
    "gemini/gemini-3.1-pro-preview",
    "anthropic/claude-haiku-4-5",
    MODELS["responses"],
]
WEATHER = types.FunctionDeclaration(
    name="weather",
    description="Looks up the weather of a city.",
    parameters=types.Schema(
        type=types.Type.OBJECT, properties={"city": types.Schema(type=types.Type.STRING)}, required=["city"]
    ),
)
CLOCK = types.FunctionDeclaration(name="clock", parameters_json_schema={"type": "object", "properties": {}})
TOOLS = types.Tool(function_declarations=[WEATHER, CLOCK])


class Weather(BaseModel):
    city: str
    days: int


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> str:
    return MODELS[request.param]


def gemini(vendors: Vendors, **options: Any) -> genai.Client:
    http: dict[str, Any] = {"base_url": f"{vendors.gateway.url}/genai", "headers": apart(), **options}
    return genai.Client(api_key="anything", http_options=types.HttpOptions(**http))


@pytest.fixture
def client(vendors: Vendors) -> Iterator[genai.Client]:
    with gemini(vendors) as client:
        yield client


@pytest.fixture
async def async_client(vendors: Vendors) -> AsyncIterator[Any]:
    async with gemini(vendors).aio as client:
        yield client


def cached(answer: types.GenerateContentResponse) -> str:
    assert answer.sdk_http_response is not None
    assert answer.sdk_http_response.headers is not None
    return answer.sdk_http_response.headers["x-keepgate-cache"]


def finish(answer: types.GenerateContentResponse) -> str:
    assert answer.candidates is not None
    reason = answer.candidates[0].finish_reason
    assert reason is not None
    return reason.value


def parts(answer: types.GenerateContentResponse) -> list[types.Part]:
    assert answer.candidates is not None
    content = answer.candidates[0].content
    assert content is not None
    return content.parts or []


# --- content


def test_content_is_generated_and_repeated(client: genai.Client, vendors: Vendors, model: str) -> None:
    config = types.GenerateContentConfig(system_instruction="Be brief.", max_output_tokens=100, temperature=0)

    answer = client.models.generate_content(model=model, contents=QUESTION, config=config)
    again = client.models.generate_content(model=model, contents=QUESTION, config=config)

    assert (cached(answer), cached(again)) == ("miss", "exact")
    assert answer.text == again.text == ANSWER
    assert finish(answer) == "STOP"
    assert answer.usage_metadata is not None
    assert answer.usage_metadata == again.usage_metadata
    assert answer.usage_metadata.candidates_token_count == len(ANSWER.split())
    assert vendors.calls == 1


def test_content_streams_and_is_replayed_in_both_shapes(client: genai.Client, vendors: Vendors, model: str) -> None:
    streamed, replayed = (list(client.models.generate_content_stream(model=model, contents=QUESTION)) for _ in range(2))
    whole = client.models.generate_content(model=model, contents=QUESTION)

    for chunks in (streamed, replayed):
        assert "".join(chunk.text or "" for chunk in chunks) == ANSWER
        assert len(chunks) > 2
        assert finish(chunks[-1]) == "STOP"
        assert chunks[-1].usage_metadata is not None
        assert chunks[-1].usage_metadata.total_token_count
    assert whole.text == ANSWER
    assert vendors.calls == 1


# The SDK derives from a class of aiohttp that is not meant for it.
@pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")
async def test_the_async_client_asks_and_streams(async_client: Any, vendors: Vendors, model: str) -> None:
    whole = await async_client.models.generate_content(model=model, contents=QUESTION)
    stream = await async_client.models.generate_content_stream(model=model, contents=QUESTION)
    streamed = "".join([chunk.text or "" async for chunk in stream])

    assert streamed == whole.text == ANSWER
    assert vendors.calls == 1


def test_a_chat_keeps_its_history(client: genai.Client, vendors: Vendors, model: str) -> None:
    chat = client.chats.create(model=model)

    first = chat.send_message("One.")
    second = "".join(chunk.text or "" for chunk in chat.send_message_stream("Two."))

    assert (first.text, second) == ("You said: One.", "You said: Two.")
    assert [content.role for content in chat.get_history(curated=True)][:3] == ["user", "model", "user"]
    assert vendors.calls == 2


def test_an_image_is_seen(client: genai.Client, model: str) -> None:
    image = types.Part.from_bytes(data=b"\x89PNG0123", mime_type="image/png")

    answer = client.models.generate_content(model=model, contents=[image, "What is it?"])

    assert answer.text == "[image/png, 8 bytes]\nYou said: What is it?"


@pytest.mark.parametrize("schema", [Weather, Weather.model_json_schema()], ids=["response_schema", "json_schema"])
def test_structured_output_is_parsed_and_repeated(
    client: genai.Client, vendors: Vendors, model: str, schema: Any
) -> None:
    field = "response_json_schema" if isinstance(schema, dict) else "response_schema"
    config = types.GenerateContentConfig(response_mime_type="application/json", **{field: schema})

    answer, again = (client.models.generate_content(model=model, contents="Oslo", config=config) for _ in range(2))

    assert answer.text is not None
    assert Weather.model_validate_json(answer.text) == Weather(city="Oslo", days=42)
    if field == "response_schema":
        assert answer.parsed == again.parsed == Weather(city="Oslo", days=42)
    assert cached(again) == "exact"
    assert vendors.calls == 1


@pytest.mark.parametrize(
    ("text", "limit", "reason"), [("Count #long", 20, "MAX_TOKENS"), ("Say it #filter", None, "filter")]
)
def test_why_an_answer_ended_is_told(
    client: genai.Client, model: str, text: str, limit: int | None, reason: str
) -> None:
    config = types.GenerateContentConfig(max_output_tokens=limit)

    whole = client.models.generate_content(model=model, contents=text, config=config)
    *_, last = client.models.generate_content_stream(model=model, contents=text, config=config)

    if reason == "filter":
        reason = "PROHIBITED_CONTENT" if model == MODELS["gemini"] else "SAFETY"
    assert finish(whole) == finish(last) == reason


# --- thinking and functions


@pytest.mark.parametrize("name", THINKERS)
def test_thoughts_are_told_to_who_asks_for_them(client: genai.Client, vendors: Vendors, name: str) -> None:
    thinking = types.ThinkingConfig(thinking_budget=1024, include_thoughts=True)
    config = types.GenerateContentConfig(thinking_config=thinking, max_output_tokens=4096)

    whole = client.models.generate_content(model=name, contents=QUESTION, config=config)
    streamed = list(client.models.generate_content_stream(model=name, contents=QUESTION, config=config))

    told = [part for chunk in streamed for part in parts(chunk)]
    for said in (parts(whole), told):
        assert "".join(part.text or "" for part in said if part.thought) == THOUGHT
        assert "".join(part.text or "" for part in said if not part.thought) == ANSWER
    assert vendors.calls == 1


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("name", [*THINKERS, MODELS["openai"]])
def test_functions_are_called_and_their_results_understood(
    client: genai.Client, vendors: Vendors, name: str, *, streamed: bool
) -> None:
    config = types.GenerateContentConfig(tools=[TOOLS])
    contents: list[Any] = [types.UserContent(parts=[types.Part(text="Oslo #tools #say")])]

    def ask() -> list[types.Part]:
        if not streamed:
            return parts(client.models.generate_content(model=name, contents=contents, config=config))
        chunks = client.models.generate_content_stream(model=name, contents=contents, config=config)
        return [part for chunk in chunks for part in parts(chunk)]

    called, repeated = ask(), ask()
    calls = [part.function_call for part in called if part.function_call]
    results = [
        types.Part(function_response=types.FunctionResponse(id=call.id, name=call.name, response={"output": word}))
        for call, word in zip(calls, ("rain", "noon"), strict=True)
    ]
    contents += [types.ModelContent(parts=called), types.UserContent(parts=results)]
    answered = "".join(part.text or "" for part in ask() if not part.thought)

    assert [(call.name, call.args) for call in calls] == [("weather", {"city": "Oslo #tools #say"}), ("clock", {})]
    assert [part.function_call.name for part in repeated if part.function_call] == ["weather", "clock"]
    assert "".join(part.text or "" for part in called if not part.thought) == "Let me look."
    assert answered.startswith("The tools said: ")
    assert answered.index("rain") < answered.index("noon")
    assert vendors.calls == 2


def test_the_sdk_calls_a_python_function_itself(client: genai.Client, vendors: Vendors, model: str) -> None:
    asked = []

    def weather(city: str) -> str:
        """Looks up the weather of a city."""
        asked.append(city)
        return "rain"

    config = types.GenerateContentConfig(tools=[weather])
    answer = client.models.generate_content(model=model, contents="Oslo #tool", config=config)

    assert asked == ["Oslo #tool"]
    assert answer.text is not None
    assert answer.text.startswith("The tools said: ")
    assert "rain" in answer.text
    assert vendors.calls == 2


def test_a_forced_function_is_called(client: genai.Client, model: str) -> None:
    mode = types.FunctionCallingConfig(mode=types.FunctionCallingConfigMode.ANY, allowed_function_names=["clock"])
    config = types.GenerateContentConfig(tools=[TOOLS], tool_config=types.ToolConfig(function_calling_config=mode))

    answer = client.models.generate_content(model=model, contents=QUESTION, config=config)

    assert [call.name for call in answer.function_calls or []] == ["clock"]


def test_what_only_gemini_does_is_refused_by_its_name_elsewhere(client: genai.Client, vendors: Vendors) -> None:
    config = types.GenerateContentConfig(tools=[types.Tool(google_search=types.GoogleSearch())])

    native = client.models.generate_content(model=MODELS["gemini"], contents="News? #search", config=config)
    with pytest.raises(errors.ClientError, match=r"tools\[0\]") as caught:
        client.models.generate_content(model=MODELS["openai"], contents="News? #search", config=config)

    assert native.candidates is not None
    assert native.candidates[0].grounding_metadata is not None
    assert (caught.value.code, caught.value.status) == (400, "INVALID_ARGUMENT")
    assert vendors.calls == 1


def test_one_question_in_two_dialects_is_one_entry(vendors: Vendors, model: str) -> None:
    headers = apart()
    with (
        anthropic.Anthropic(base_url=vendors.gateway.url, api_key="x", default_headers=headers, max_retries=0) as there,
        gemini(vendors, headers=headers) as here,
    ):
        there.messages.create(
            model=model, max_tokens=100, messages=[{"role": "user", "content": QUESTION}], system="Be brief."
        )
        config = types.GenerateContentConfig(system_instruction="Be brief.", max_output_tokens=100)
        answer = here.models.generate_content(model=model, contents=QUESTION, config=config)

    assert cached(answer) == "exact"
    assert answer.text == ANSWER
    assert vendors.calls == 1


# --- counts and models


def test_tokens_are_counted_by_the_vendor_or_here(client: genai.Client, vendors: Vendors, model: str) -> None:
    counted = client.models.count_tokens(model=model, contents="one two three four")

    assert counted.total_tokens is not None
    assert 3 < counted.total_tokens < 20
    assert vendors.calls == (model == MODELS["gemini"])


def test_models_of_all_vendors_are_listed_as_they_are_asked_for(client: genai.Client) -> None:
    listed = [card.name for card in client.models.list()]

    assert {"models/openai/gpt-4o", "models/gemini/gemini-2.5-flash"} <= set(listed)
    assert client.models.get(model="anthropic/claude-haiku-4-5").name == "models/anthropic/claude-haiku-4-5"


# --- errors


def test_what_a_caller_does_wrong_is_an_error_of_the_sdk(client: genai.Client, vendors: Vendors) -> None:
    with (
        gemini(vendors, headers={"x-goog-api-key": "kg-nobody-made-this"}) as stranger,
        pytest.raises(errors.ClientError) as no_key,
    ):
        stranger.models.generate_content(model=MODELS["gemini"], contents=QUESTION)
    with pytest.raises(errors.ClientError) as no_model:
        client.models.generate_content(model="nowhere/gemini", contents=QUESTION)
    with pytest.raises(errors.ClientError) as no_contents:
        client.models.generate_content(model=MODELS["gemini"], contents=types.Content(role="nobody", parts=[]))

    told = [(caught.value.code, caught.value.status) for caught in (no_key, no_model, no_contents)]
    assert told == [(401, "UNAUTHENTICATED"), (404, "NOT_FOUND"), (400, "INVALID_ARGUMENT")]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    ("fault", "expected", "status"),
    [
        ("400", errors.ClientError, 400),
        ("404", errors.ClientError, 404),
        ("500", errors.ServerError, 502),
        ("529", errors.ServerError, 502),
    ],
)
def test_what_any_vendor_refuses_is_an_error_of_the_sdk(
    client: genai.Client,
    vendors: Vendors,
    model: str,
    fault: str,
    expected: type[errors.APIError],
    status: int,
    *,
    stream: bool,
) -> None:
    vendors.fail(fault, message="the vendor's own words")

    ask = client.models.generate_content_stream if stream else client.models.generate_content
    with pytest.raises(expected) as caught:
        list(ask(model=model, contents=QUESTION))

    assert caught.value.code == status
    assert ("the vendor's own words" in str(caught.value.message)) == (status < 500)


def test_a_key_that_a_vendor_refuses_is_not_the_callers_to_mend(client: genai.Client, model: str) -> None:
    with pytest.raises(errors.ServerError) as caught:
        client.models.generate_content(model=f"keyless-{model}", contents=QUESTION)

    assert caught.value.code in (502, 503)  # it rests once it was refused


@pytest.mark.parametrize("name", [MODELS["gemini"], MODELS["openai"]])
def test_a_rate_limit_is_waited_out(vendors: Vendors, name: str) -> None:
    vendors.fail("429", times=1, retry_after="1")
    retries = types.HttpRetryOptions(attempts=3, initial_delay=0.5, http_status_codes=[429])

    # By the gateway where it has patience left, else by the SDK.
    with gemini(vendors, retry_options=retries) as client:
        answer = client.models.generate_content(model=name, contents=QUESTION)

    assert answer.text == ANSWER
    assert vendors.calls == 2


def test_a_stream_that_breaks_raises_and_leaves_nothing_behind(
    client: genai.Client, vendors: Vendors, model: str
) -> None:
    vendors.fail("cut", times=1)

    with pytest.raises(errors.APIError):
        list(client.models.generate_content_stream(model=model, contents=QUESTION))

    assert cached(client.models.generate_content(model=model, contents=QUESTION)) == "miss"
