"""The openai SDK in front of every vendor: what it does with OpenAI, it does with the others."""

import base64
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion
from pydantic import BaseModel

from tests.support.fake_scenario import THOUGHT
from tests.support.vendors import MODELS, Vendors, apart

QUESTION = "How do I reset my password?"
ANSWER = f"You said: {QUESTION}"
PIXEL = base64.b64encode(b"\x89PNG0123").decode()
FORECAST = json.dumps({"degrees": 21})


class Weather(BaseModel):
    """Looks up the weather of a city."""

    city: str
    days: int


class Clock(BaseModel):
    """Tells the time."""


Json = dict[str, Any]


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> str:
    return MODELS[request.param]


@pytest.fixture
def client(vendors: Vendors) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{vendors.gateway.url}/v1", api_key="sk-anything", max_retries=0, default_headers=apart()
    ) as client:
        yield client


@pytest.fixture
async def async_client(vendors: Vendors) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{vendors.gateway.url}/v1", api_key="sk-anything", max_retries=0, default_headers=apart()
    ) as client:
        yield client


def said(text: str, *, system: str | None = None) -> Any:
    before = [] if system is None else [{"role": "system", "content": system}]
    return [*before, {"role": "user", "content": text}]


def sent_back(message: Any) -> Json:
    """An answer as the next request has it: without what the SDK adds for the program alone."""
    fields: Json = message.model_dump(exclude_unset=True, exclude={"parsed"})
    for call in fields.get("tool_calls") or ():
        call.pop("index", None)
        call["function"].pop("parsed_arguments", None)
    return fields


# --- chat completions


def test_a_chat_is_answered_and_repeated(client: openai.OpenAI, vendors: Vendors, model: str) -> None:
    def ask() -> tuple[str, ChatCompletion]:
        raw = client.chat.completions.with_raw_response.create(
            model=model, messages=said(QUESTION, system="Be brief."), max_completion_tokens=100, temperature=0.5
        )
        return raw.headers["x-keepgate-cache"], raw.parse()

    missed, whole = ask()
    hit, again = ask()

    assert (missed, hit) == ("miss", "exact")
    kept_there = whole.id.startswith("resp_")  # under this id the provider keeps what was asked: a replay has another
    assert (again.id != whole.id) == kept_there
    assert kept_there or again == whole
    assert again.choices[0].message.content == whole.choices[0].message.content
    assert again.usage == whole.usage
    assert whole.choices[0].message.content == ANSWER
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage is not None
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    assert whole.usage.completion_tokens == len(ANSWER.split())
    assert vendors.calls == 1


def test_a_chat_streams_and_is_replayed_in_both_shapes(client: openai.OpenAI, vendors: Vendors, model: str) -> None:
    def stream() -> tuple[str, ChatCompletion]:
        with client.chat.completions.stream(
            model=model, messages=said(QUESTION), stream_options={"include_usage": True}
        ) as events:
            text = "".join(event.delta for event in events if event.type == "content.delta")
            return text, events.get_final_completion()

    streamed, final = stream()
    replayed, final_again = stream()
    whole = client.chat.completions.create(model=model, messages=said(QUESTION))

    assert streamed == replayed == whole.choices[0].message.content == ANSWER
    assert final.usage == final_again.usage == whole.usage
    assert final.choices[0].finish_reason == final_again.choices[0].finish_reason == "stop"
    assert vendors.calls == 1


async def test_the_async_client_asks_and_streams(
    async_client: openai.AsyncOpenAI, vendors: Vendors, model: str
) -> None:
    whole = await async_client.chat.completions.create(model=model, messages=said(QUESTION))
    async with async_client.chat.completions.stream(model=model, messages=said(QUESTION)) as events:
        streamed = "".join([event.delta async for event in events if event.type == "content.delta"])

    assert streamed == whole.choices[0].message.content == ANSWER
    assert vendors.calls == 1


def test_structured_output_is_parsed_missed_streamed_and_repeated(
    client: openai.OpenAI, vendors: Vendors, model: str
) -> None:
    asked: Any = {"model": model, "messages": said("Oslo"), "response_format": Weather}

    parsed = client.chat.completions.parse(**asked).choices[0].message.parsed
    with client.chat.completions.stream(**asked) as events:
        streamed = events.get_final_completion().choices[0].message.parsed

    assert parsed == streamed == Weather(city="Oslo", days=42)
    assert vendors.calls == 1


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(("mark", "names"), [("#tool", ["Weather"]), ("#tools #say", ["Weather", "Clock"])])
def test_tools_are_called_and_their_results_understood(
    client: openai.OpenAI, vendors: Vendors, model: str, mark: str, names: list[str], *, streamed: bool
) -> None:
    tools = [openai.pydantic_function_tool(Weather), openai.pydantic_function_tool(Clock)]
    conversation = said(f"Oslo {mark}")

    def ask() -> Any:
        if not streamed:
            return client.chat.completions.create(model=model, messages=conversation, tools=tools).choices[0]
        with client.chat.completions.stream(model=model, messages=conversation, tools=tools) as events:
            return events.get_final_completion().choices[0]

    called = ask()
    repeated = ask()
    calls = called.message.tool_calls
    conversation.append(sent_back(called.message))
    conversation += [{"role": "tool", "tool_call_id": call.id, "content": FORECAST} for call in calls]
    answered = ask()

    assert called.finish_reason == repeated.finish_reason == "tool_calls"
    assert [call.function.name for call in calls] == names
    assert json.loads(calls[0].function.arguments) == {"city": f"Oslo {mark}", "days": 42}
    assert [call.id for call in repeated.message.tool_calls] == [call.id for call in calls]
    assert repeated.message.content == called.message.content
    assert (called.message.content or "") == ("Let me look." if "#say" in mark else "")
    assert answered.message.content.startswith("The tools said: ")
    assert answered.message.content.count("21") == len(names)
    assert vendors.calls == 2


@pytest.mark.parametrize("name", ["anthropic/claude-haiku-4-5", "gemini/gemini-3.1-pro-preview", MODELS["responses"]])
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_signed_reasoning_survives_a_round_of_tools(client: openai.OpenAI, name: str, *, streamed: bool) -> None:
    asked: Any = {
        "model": name,
        "messages": said("Oslo #tool"),
        "tools": [openai.pydantic_function_tool(Weather)],
        "reasoning_effort": "low",
        "max_completion_tokens": 4096,
    }

    def ask() -> Any:
        if not streamed:
            return client.chat.completions.create(**asked).choices[0].message
        with client.chat.completions.stream(**asked) as events:
            return events.get_final_completion().choices[0].message

    thought = ask()
    result = {"role": "tool", "tool_call_id": thought.tool_calls[0].id, "content": FORECAST}
    asked["messages"] += [sent_back(thought), result]
    answered = ask()

    # The vendors refuse a signature they did not write, and a turn that lacks one.
    assert thought.reasoning_details
    assert answered.content.startswith("The tools said: ")


@pytest.mark.parametrize("name", ["openai/gpt-4o", "anthropic/claude-haiku-4-5", "gemini/gemini-3.1-pro-preview"])
def test_reasoning_can_be_read(client: openai.OpenAI, name: str) -> None:
    # OpenAI's chat completions keep it to themselves; servers that are compatible with them do not.
    message: Any = (
        client.chat.completions.create(
            model=name, messages=said("Why? #reason"), reasoning_effort="low", max_completion_tokens=4096
        )
        .choices[0]
        .message
    )

    assert message.reasoning_content == THOUGHT
    assert message.content == "You said: Why? #reason"


def test_an_image_is_seen(client: openai.OpenAI, model: str) -> None:
    image: Any = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}
    content: Any = [{"type": "text", "text": "What is it?"}, image]

    answer = client.chat.completions.create(model=model, messages=[{"role": "user", "content": content}])

    assert answer.choices[0].message.content == "[image/png, 8 bytes]\nYou said: What is it?"


@pytest.mark.parametrize(
    ("text", "limit", "reason"), [("Count #long", 20, "length"), ("Say it #filter", None, "content_filter")]
)
def test_why_an_answer_ended_is_told(
    client: openai.OpenAI, model: str, text: str, limit: int | None, reason: str
) -> None:
    asked: Any = {"model": model, "messages": said(text), "max_tokens": limit or openai.omit}
    if model == MODELS["responses"]:
        asked["max_completion_tokens"] = asked.pop("max_tokens")

    whole = client.chat.completions.create(**asked).choices[0]
    *_, last = client.chat.completions.create(**asked, stream=True)

    assert whole.finish_reason == last.choices[0].finish_reason == reason


def test_what_a_vendor_has_no_words_for_is_refused_by_its_name(client: openai.OpenAI, vendors: Vendors) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODELS["anthropic"], messages=said(QUESTION), n=2, logit_bias={"1": 5})

    assert (caught.value.code, caught.value.param) == ("invalid_request", "logit_bias")
    assert caught.value.message.endswith("(anthropic): logit_bias, n")
    assert vendors.calls == 0


# --- responses


def test_a_response_is_created_and_repeated_whole_and_streamed(
    client: openai.OpenAI, vendors: Vendors, model: str
) -> None:
    asked: Any = {"model": model, "input": QUESTION, "instructions": "Be brief.", "max_output_tokens": 100}

    raw = client.responses.with_raw_response.create(**asked)
    again = client.responses.with_raw_response.create(**asked)
    with client.responses.stream(**asked) as events:
        streamed = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        final = events.get_final_response()

    whole = raw.parse()
    assert (raw.headers["x-keepgate-cache"], again.headers["x-keepgate-cache"]) == ("miss", "exact")
    assert whole.output_text == final.output_text == streamed == ANSWER
    assert whole.status == final.status == "completed"
    assert whole.usage is not None
    assert whole.usage == final.usage == again.parse().usage
    assert whole.usage.total_tokens == whole.usage.input_tokens + whole.usage.output_tokens
    assert vendors.calls == 1


def test_a_streamed_response_is_kept(client: openai.OpenAI, vendors: Vendors, model: str) -> None:
    kinds = [event.type for event in client.responses.create(model=model, input=QUESTION, stream=True)]
    replayed = [event.type for event in client.responses.create(model=model, input=QUESTION, stream=True)]
    whole = client.responses.create(model=model, input=QUESTION)

    assert kinds[0] == replayed[0] == "response.created"
    assert kinds[-1] == replayed[-1] == "response.completed"
    assert (
        kinds.count("response.output_text.delta") == replayed.count("response.output_text.delta") == len(ANSWER.split())
    )
    assert whole.output_text == ANSWER
    assert vendors.calls == 1


async def test_the_async_client_creates_and_streams_responses(
    async_client: openai.AsyncOpenAI, vendors: Vendors, model: str
) -> None:
    whole = await async_client.responses.create(model=model, input=QUESTION)
    async with async_client.responses.stream(model=model, input=QUESTION) as events:
        streamed = "".join([event.delta async for event in events if event.type == "response.output_text.delta"])

    assert streamed == whole.output_text == ANSWER
    assert vendors.calls == 1


def test_a_response_is_parsed(client: openai.OpenAI, vendors: Vendors, model: str) -> None:
    parsed = client.responses.parse(model=model, input="Oslo", text_format=Weather).output_parsed
    with client.responses.stream(model=model, input="Oslo", text_format=Weather) as events:
        streamed = events.get_final_response().output_parsed

    assert parsed == streamed == Weather(city="Oslo", days=42)
    assert vendors.calls == 1


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("reasons", [False, True], ids=["plain", "reasoning"])
def test_a_round_of_tools_in_responses(
    client: openai.OpenAI, vendors: Vendors, model: str, *, streamed: bool, reasons: bool
) -> None:
    asked: Any = {
        "model": model,
        "tools": [openai.pydantic_function_tool(Weather)["function"] | {"type": "function"}],
        "store": False,
        "include": ["reasoning.encrypted_content"],
    }
    if reasons:
        asked |= {"reasoning": {"effort": "low", "summary": "auto"}, "max_output_tokens": 4096}
    conversation: list[Any] = [{"role": "user", "content": "Oslo #tool #say"}]

    def ask() -> Any:
        if not streamed:
            return client.responses.create(**asked, input=conversation)
        with client.responses.stream(**asked, input=conversation) as events:
            return events.get_final_response()

    called, repeated = ask(), ask()
    call = called.output[-1]
    conversation += called.output
    conversation.append({"type": "function_call_output", "call_id": call.call_id, "output": FORECAST})
    answered = ask()

    assert (call.type, call.name) == ("function_call", "Weather")
    assert json.loads(call.arguments) == {"city": "Oslo #tool #say", "days": 42}
    assert called.output_text == "Let me look."
    assert [item.type for item in repeated.output] == [item.type for item in called.output]
    if reasons and model != MODELS["openai"]:  # chat completions tell nothing of it
        assert called.output[0].type == "reasoning"
    assert answered.output_text.startswith("The tools said: ")
    assert vendors.calls == 2


def test_one_question_in_two_dialects_is_one_entry(client: openai.OpenAI, vendors: Vendors, model: str) -> None:
    chat = client.chat.completions.create(model=model, messages=said(QUESTION, system="Be brief."), max_tokens=100)

    raw = client.responses.with_raw_response.create(
        model=model, instructions="Be brief.", input=QUESTION, max_output_tokens=100
    )

    assert raw.headers["x-keepgate-cache"] == "exact"
    assert raw.parse().output_text == chat.choices[0].message.content
    assert vendors.calls == 1


def test_a_response_that_goes_on_from_another_reaches_who_keeps_it(client: openai.OpenAI) -> None:
    first = client.responses.create(model=MODELS["responses"], input="One.")
    raw = client.responses.with_raw_response.create(
        model=MODELS["responses"], input="Two.", previous_response_id=first.id
    )
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model=MODELS["anthropic"], input="Two.", previous_response_id=first.id)

    assert raw.headers["x-keepgate-cache"] == "bypass"
    assert raw.parse().output_text == "You said: Two."
    assert caught.value.param == "previous_response_id"


# --- embeddings, models, and what is passed on


@pytest.mark.parametrize("name", ["openai/text-embedding-3-small", "gemini/gemini-embedding-001"])
def test_texts_are_embedded_once(client: openai.OpenAI, vendors: Vendors, name: str) -> None:
    def embed(**more: Any) -> tuple[str, list[list[float]]]:
        raw = client.embeddings.with_raw_response.create(model=name, input=["one text", "another"], **more)
        return raw.headers["x-keepgate-cache"], [item.embedding for item in raw.parse().data]

    missed, vectors = embed()  # as base64, unless told otherwise
    hit, repeated = embed()
    _, floats = embed(encoding_format="float")

    assert (missed, hit) == ("miss", "exact")
    assert repeated == vectors
    assert [len(vector) for vector in vectors] == [64, 64]
    assert vectors[0] != vectors[1]
    assert floats[1] == pytest.approx(vectors[1], abs=1e-6)
    assert vendors.calls == 2


def test_models_of_all_vendors_are_listed_as_they_are_asked_for(client: openai.OpenAI) -> None:
    listed = [card.id for card in client.models.list()]

    assert {"openai/gpt-4o", "anthropic/claude-haiku-4-5", "gemini/gemini-2.5-flash"} <= set(listed)
    assert client.models.retrieve("anthropic/claude-haiku-4-5").owned_by == "anthropic"


def test_azures_clients_name_the_deployment_in_the_path(vendors: Vendors, model: str) -> None:
    with openai.AzureOpenAI(
        azure_endpoint=vendors.gateway.url,
        azure_deployment=model,
        api_key="an-azure-key",
        api_version="2024-10-21",
        max_retries=0,
        default_headers=apart(),
    ) as azure:
        whole = azure.chat.completions.create(model="whatever", messages=said(QUESTION))
        raw = azure.chat.completions.with_raw_response.create(model="other", messages=said(QUESTION), stream=True)
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in raw.parse())

    assert whole.choices[0].message.content == streamed == ANSWER
    assert raw.headers["x-keepgate-cache"] == "exact"
    assert vendors.calls == 1


def test_azures_newer_path_is_openais_own(vendors: Vendors, model: str) -> None:
    with openai.OpenAI(
        base_url=f"{vendors.gateway.url}/openai/v1/", api_key="an-azure-key", max_retries=0, default_headers=apart()
    ) as azure:
        answer = azure.responses.create(model=model, input=QUESTION)

    assert answer.output_text == ANSWER


def test_moderations_audio_and_files_are_passed_on(client: openai.OpenAI, vendors: Vendors) -> None:
    moderated = client.moderations.create(model="openai/omni-moderation-latest", input=["fine", "bad #flag"])
    heard = client.audio.transcriptions.create(model="openai/whisper-1", file=("speech.wav", b"RIFF0123"))
    kept = client.files.create(
        file=("notes.txt", b"some notes"), purpose="user_data", extra_headers={"x-keepgate-upstream": "openai"}
    )

    asked = vendors.fakes["openai"].calls
    assert [result.flagged for result in moderated.results] == [False, True]
    assert heard.text == "Heard 8 bytes of speech.wav."
    assert (kept.filename, kept.bytes) == ("notes.txt", 10)
    assert [call.path for call in asked] == ["/v1/moderations", "/v1/audio/transcriptions", "/v1/files"]
    assert asked[0].model == "omni-moderation-latest"
    assert b"whisper-1" in asked[1].raw
    assert b"openai/whisper-1" not in asked[1].raw


# --- errors


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    ("fault", "expected", "status"),
    [
        ("400", openai.BadRequestError, 400),
        ("404", openai.NotFoundError, 404),
        ("413", openai.APIStatusError, 413),
        ("500", openai.InternalServerError, 502),
        ("529", openai.InternalServerError, 502),
    ],
)
def test_what_any_vendor_refuses_is_an_error_of_the_sdk(
    client: openai.OpenAI,
    vendors: Vendors,
    model: str,
    fault: str,
    expected: type[openai.APIStatusError],
    status: int,
    *,
    stream: bool,
) -> None:
    vendors.fail(fault, message="the vendor's own words")

    with pytest.raises(expected) as chat:
        client.chat.completions.create(model=model, messages=said(QUESTION), stream=stream)
    with pytest.raises(expected) as response:
        client.responses.create(model=model, input=QUESTION, stream=stream)

    for caught in (chat, response):
        assert caught.value.status_code == status
        assert ("the vendor's own words" in caught.value.message) == (status < 500)
        assert caught.value.response.headers["x-keepgate-request-id"]


def test_a_key_that_a_vendor_refuses_is_not_the_callers_to_mend(client: openai.OpenAI, model: str) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model=f"keyless-{model}", messages=said(QUESTION))

    # It rests once it was refused.
    assert (caught.value.status_code, caught.value.code) in [(502, "upstream_error"), (503, "upstream_unavailable")]


def test_a_rate_limit_is_waited_out(client: openai.OpenAI, vendors: Vendors) -> None:
    vendors.fail("429", times=1, retry_after="1")

    # By the gateway where it has patience left, else by the SDK, which is told for how long.
    answer = client.with_options(max_retries=1).responses.create(model=MODELS["responses"], input=QUESTION)

    assert answer.output_text == ANSWER
    assert vendors.calls == 2


def test_a_stream_that_breaks_raises_and_leaves_nothing_behind(
    client: openai.OpenAI, vendors: Vendors, model: str
) -> None:
    vendors.fail("cut", times=2)
    for ask in (client.chat.completions.create, client.responses.create):
        asked = {"messages": said(QUESTION)} if ask == client.chat.completions.create else {"input": QUESTION}
        stream = ask(model=model, stream=True, **asked)
        with pytest.raises(openai.APIError, match="upstream"):
            list(stream)

    raw = client.chat.completions.with_raw_response.create(model=model, messages=said(QUESTION))
    assert raw.headers["x-keepgate-cache"] == "miss"
