"""The anthropic SDK in front of every vendor: what it does with Anthropic, it does with the others."""

import base64
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anthropic
import openai
import pytest
from anthropic import beta_tool
from anthropic.types import Message
from pydantic import BaseModel

from tests.support.fake_scenario import REFUSAL, THOUGHT
from tests.support.vendors import MODELS, Vendors, apart

QUESTION = "How do I reset my password?"
ANSWER = f"You said: {QUESTION}"
PIXEL = base64.b64encode(b"\x89PNG0123").decode()
THINKING: Any = {"type": "enabled", "budget_tokens": 1024}
THINKERS = [
    "anthropic/claude-haiku-4-5",
    MODELS["responses"],
    "gemini/gemini-2.5-flash",
    "gemini/gemini-3.1-pro-preview",
]
WEATHER: Any = {
    "name": "weather",
    "description": "Looks up the weather of a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CLOCK: Any = {"name": "clock", "input_schema": {"type": "object", "properties": {}}}

Json = dict[str, Any]


class Weather(BaseModel):
    city: str
    days: int


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> str:
    return MODELS[request.param]


@pytest.fixture
def client(vendors: Vendors) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(
        base_url=vendors.gateway.url, api_key="sk-ant-anything", max_retries=0, default_headers=apart()
    ) as client:
        yield client


@pytest.fixture
async def async_client(vendors: Vendors) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(
        base_url=f"{vendors.gateway.url}/anthropic", api_key="sk-ant-anything", max_retries=0, default_headers=apart()
    ) as client:
        yield client


def asking(model: str, content: Any = QUESTION, **more: Any) -> Json:
    return {"model": model, "max_tokens": 4096, "messages": [{"role": "user", "content": content}], **more}


def text_of(message: Message) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


# --- messages


def test_a_message_is_answered_and_repeated(client: anthropic.Anthropic, vendors: Vendors, model: str) -> None:
    def ask() -> tuple[str, Message]:
        raw = client.messages.with_raw_response.create(**asking(model, system="Be brief."))
        return raw.headers["x-keepgate-cache"], raw.parse()

    missed, message = ask()
    hit, again = ask()

    assert (missed, hit) == ("miss", "exact")
    assert again.content == message.content
    assert text_of(message) == ANSWER
    assert (message.type, message.role, message.stop_reason) == ("message", "assistant", "end_turn")
    assert message.usage.output_tokens == again.usage.output_tokens == len(ANSWER.split())
    assert message.usage.input_tokens == again.usage.input_tokens > 0
    assert vendors.calls == 1


def test_a_message_streams_and_is_replayed_in_both_shapes(
    client: anthropic.Anthropic, vendors: Vendors, model: str
) -> None:
    def stream() -> tuple[list[str], Message]:
        with client.messages.stream(**asking(model)) as events:
            return [event.text for event in events if event.type == "text"], events.get_final_message()

    streamed, final = stream()
    replayed, final_again = stream()
    whole = client.messages.create(**asking(model))

    assert "".join(streamed) == "".join(replayed) == text_of(whole) == ANSWER
    assert len(streamed) > 1
    assert final.stop_reason == final_again.stop_reason == "end_turn"
    assert final.usage.output_tokens == final_again.usage.output_tokens == whole.usage.output_tokens
    assert final_again.usage.input_tokens == whole.usage.input_tokens > 0
    assert vendors.calls == 1


async def test_the_async_client_asks_and_streams_under_its_own_prefix(
    async_client: anthropic.AsyncAnthropic, vendors: Vendors, model: str
) -> None:
    whole = await async_client.messages.create(**asking(model))
    async with async_client.messages.stream(**asking(model)) as events:
        streamed = "".join([text async for text in events.text_stream])

    assert streamed == text_of(whole) == ANSWER
    assert vendors.calls == 1


def test_a_system_prompt_in_cached_blocks_is_the_same_question(
    client: anthropic.Anthropic, vendors: Vendors, model: str
) -> None:
    plain = client.messages.create(**asking(model, system="Be brief."))

    block = {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}
    raw = client.messages.with_raw_response.create(**asking(model, system=[block]))

    assert raw.headers["x-keepgate-cache"] == "exact"
    assert raw.parse().content == plain.content
    assert vendors.calls == 1


def test_what_the_vendor_cached_is_counted(client: anthropic.Anthropic) -> None:
    block = {"type": "text", "text": "Be brief and kind.", "cache_control": {"type": "ephemeral"}}

    native = client.messages.create(**asking(MODELS["anthropic"], system=[block])).usage
    translated = client.messages.create(**asking(MODELS["openai"], "One two three four. #cached")).usage

    assert native.cache_creation_input_tokens == native.input_tokens - 1 > 0
    assert translated.cache_read_input_tokens == translated.input_tokens > 0


def test_an_image_and_a_document_are_seen(client: anthropic.Anthropic, model: str) -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}
    paper = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": PIXEL}}

    message = client.messages.create(**asking(model, [image, paper, {"type": "text", "text": "What are they?"}]))

    assert text_of(message) == "[image/png, 8 bytes]\n[application/pdf, 8 bytes]\nYou said: What are they?"


def test_structured_output_is_parsed_missed_streamed_and_repeated(
    client: anthropic.Anthropic, vendors: Vendors, model: str
) -> None:
    parsed = client.messages.parse(**asking(model, "Oslo"), output_format=Weather)
    with client.messages.stream(**asking(model, "Oslo"), output_format=Weather) as events:
        streamed = events.get_final_message()

    assert parsed.parsed_output == streamed.parsed_output == Weather(city="Oslo", days=42)
    assert vendors.calls == 1


@pytest.mark.parametrize(
    ("text", "more", "reason"),
    [
        ("Count #long", {"max_tokens": 20}, "max_tokens"),
        ("Say it #filter", {}, "refusal"),
        ("Never #refuse", {}, "refusal"),
    ],
)
def test_why_an_answer_ended_is_told(
    client: anthropic.Anthropic, model: str, text: str, more: Json, reason: str
) -> None:
    whole = client.messages.create(**asking(model, text) | more)
    with client.messages.stream(**asking(model, text) | more) as events:
        streamed = events.get_final_message()

    if model in (MODELS["openai"], MODELS["responses"]) and "#refuse" in text:
        assert text_of(whole) == REFUSAL  # in words, which Anthropic and Gemini have none of
    assert whole.stop_reason == streamed.stop_reason == reason


@pytest.mark.parametrize("name", [MODELS["anthropic"], MODELS["openai"], MODELS["gemini"]])
def test_a_stop_sequence_ends_the_answer(client: anthropic.Anthropic, name: str) -> None:
    message = client.messages.create(**asking(name, "one two three"), stop_sequences=[" three"])

    assert text_of(message) == "You said: one two"
    # Only Anthropic says which one it was.
    assert message.stop_reason == ("stop_sequence" if name == MODELS["anthropic"] else "end_turn")


# --- thinking and tools


@pytest.mark.parametrize("name", THINKERS)
def test_thinking_streams_before_the_text_and_is_replayed(
    client: anthropic.Anthropic, vendors: Vendors, name: str
) -> None:
    def kinds() -> tuple[list[str], Message]:
        with client.messages.stream(**asking(name, thinking=THINKING)) as events:
            told = [event.type for event in events]
            return list(dict.fromkeys(told)), events.get_final_message()

    streamed, final = kinds()
    replayed, final_again = kinds()
    whole = client.messages.create(**asking(name, thinking=THINKING))

    for message in (final, final_again, whole):
        assert [block.type for block in message.content] == ["thinking", "text"]
        assert message.content[0].type == "thinking"
        assert message.content[0].thinking == THOUGHT
        assert message.content[0].signature
        assert text_of(message) == ANSWER
    for told in (streamed, replayed):
        assert told.index("thinking") < told.index("signature") < told.index("text")
    assert vendors.calls == 1


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("thinks", [False, True], ids=["plain", "thinking"])
@pytest.mark.parametrize("name", [*THINKERS, MODELS["openai"]])
def test_a_round_of_tools(
    client: anthropic.Anthropic, vendors: Vendors, name: str, *, streamed: bool, thinks: bool
) -> None:
    asked = asking(name, "Oslo #tools #say", tools=[WEATHER, CLOCK], **({"thinking": THINKING} if thinks else {}))

    def ask() -> tuple[Message, str]:
        if not streamed:
            return client.messages.create(**asked), ""
        with client.messages.stream(**asked) as events:
            given = "".join(event.partial_json for event in events if event.type == "input_json")
            return events.get_final_message(), given

    called, given = ask()
    repeated, _ = ask()
    uses = [block for block in called.content if block.type == "tool_use"]
    results = [
        {"type": "tool_result", "tool_use_id": uses[0].id, "content": [{"type": "text", "text": "rain"}]},
        {"type": "tool_result", "tool_use_id": uses[1].id, "content": "broken", "is_error": True},
    ]
    asked["messages"] += [{"role": "assistant", "content": called.content}, {"role": "user", "content": results}]
    answered, _ = ask()

    assert called.stop_reason == repeated.stop_reason == "tool_use"
    assert [(use.name, use.input) for use in uses] == [("weather", {"city": "Oslo #tools #say"}), ("clock", {})]
    assert given.startswith('{"city":' if streamed else "")
    assert [block.type for block in repeated.content] == [block.type for block in called.content]
    assert text_of(called) == "Let me look."
    # OpenAI's chat completions keep their reasoning to themselves, Gemini 3 signs its calls unasked.
    shows = (thinks and name != MODELS["openai"]) or "gemini-3" in name
    assert any(block.type == "thinking" for block in called.content) == shows
    assert text_of(answered).startswith("The tools said: ")
    assert "rain" in text_of(answered)
    assert "broken" in text_of(answered)
    assert vendors.calls == 2


def test_the_tool_runner_calls_the_tools_itself(client: anthropic.Anthropic, vendors: Vendors, model: str) -> None:
    asked = []

    @beta_tool
    def weather(city: str) -> str:
        """Looks up the weather.

        Args:
            city: The city's name.
        """
        asked.append(city)
        return "rain"

    last = client.beta.messages.tool_runner(**asking(model, "Oslo #tool"), tools=[weather]).until_done()

    assert asked == ["Oslo #tool"]
    assert [block.text for block in last.content if block.type == "text"][-1].startswith("The tools said: ")
    assert vendors.calls == 2


def test_a_thread_is_held_by_the_vendor_and_never_cached(client: anthropic.Anthropic) -> None:
    create = client.beta.messages.with_raw_response.create
    betas = ["message-threads-2026-08-12"]

    begun = create(**asking(MODELS["anthropic"], "One."), thread={"type": "create"}, betas=betas)
    at = {"type": "continue", "previous_message_id": begun.parse().id}
    further: Any = {"model": MODELS["anthropic"], "max_tokens": 100, "thread": at, "betas": betas}
    followed = create(**further, messages=[{"role": "user", "content": "Two."}])
    resumed = create(**further, messages=[])
    with pytest.raises(anthropic.NotFoundError, match="No thread"):
        create(**{**further, "thread": {**at, "previous_message_id": "msg_0"}}, messages=[])

    assert [raw.headers["x-keepgate-cache"] for raw in (begun, followed, resumed)] == ["bypass"] * 3
    assert [block.text for block in followed.parse().content if block.type == "text"] == ["You said: Two."]


def test_a_forced_tool_is_called(client: anthropic.Anthropic, model: str) -> None:
    choice = {"type": "tool", "name": "clock", "disable_parallel_tool_use": True}

    message = client.messages.create(**asking(model, tools=[WEATHER, CLOCK], tool_choice=choice))

    assert [block.name for block in message.content if block.type == "tool_use"] == ["clock"]


def test_what_only_anthropic_does_is_refused_by_its_name_elsewhere(
    client: anthropic.Anthropic, vendors: Vendors
) -> None:
    searching = asking(
        MODELS["anthropic"], "News? #search", tools=[{"type": "web_search_20250305", "name": "web_search"}]
    )

    native = client.messages.create(**searching)
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.messages.create(**searching | {"model": MODELS["openai"]})

    assert [block.type for block in native.content] == ["server_tool_use", "web_search_tool_result", "text"]
    assert "tools[0]" in caught.value.message
    assert vendors.calls == 1


def test_one_question_in_two_dialects_is_one_entry(vendors: Vendors, model: str) -> None:
    headers = apart()
    base = vendors.gateway.url
    with (
        openai.OpenAI(base_url=f"{base}/v1", api_key="x", default_headers=headers, max_retries=0) as there,
        anthropic.Anthropic(base_url=base, api_key="x", default_headers=headers, max_retries=0) as here,
    ):
        chat = there.chat.completions.create(
            model=model, messages=[{"role": "user", "content": QUESTION}], max_completion_tokens=4096
        )
        raw = here.messages.with_raw_response.create(**asking(model))
        with here.messages.stream(**asking(model)) as events:
            streamed = events.get_final_text()

    assert raw.headers["x-keepgate-cache"] == "exact"
    assert text_of(raw.parse()) == streamed == chat.choices[0].message.content
    assert vendors.calls == 1


# --- counts and models


def test_tokens_are_counted_by_the_vendor_or_here(client: anthropic.Anthropic, vendors: Vendors, model: str) -> None:
    messages: Any = [{"role": "user", "content": "one two three four"}]

    counted = client.messages.count_tokens(model=model, messages=messages, system="five six")

    assert 5 < counted.input_tokens < 30
    assert vendors.calls == (model == MODELS["anthropic"])


def test_models_of_all_vendors_are_listed_as_they_are_asked_for(client: anthropic.Anthropic) -> None:
    listed = [card.id for card in client.models.list()]

    assert {"openai/gpt-4o", "anthropic/claude-haiku-4-5", "gemini/gemini-2.5-flash"} <= set(listed)
    assert client.models.retrieve("openai/gpt-4o").type == "model"


# --- errors


def test_what_a_caller_does_wrong_is_an_error_of_the_sdk(client: anthropic.Anthropic, model: str) -> None:
    with pytest.raises(anthropic.AuthenticationError) as no_key:
        client.with_options(api_key="kg-nobody-made-this").messages.create(**asking(model))
    with pytest.raises(anthropic.NotFoundError) as no_model:
        client.messages.create(**asking("nowhere/claude"))
    with pytest.raises(anthropic.BadRequestError) as no_text:
        client.messages.create(**asking(model, [{"type": "text", "text": 5}]))

    told = [caught.value.body["error"] for caught in (no_key, no_model, no_text)]  # type: ignore[index] # an object
    assert [error["type"] for error in told] == ["authentication_error", "not_found_error", "invalid_request_error"]
    assert [error["code"] for error in told] == ["invalid_key", "model_not_found", "invalid_request"]
    assert "messages[0].content[0].text" in told[2]["message"]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    ("fault", "expected", "status"),
    [
        ("400", anthropic.BadRequestError, 400),
        ("404", anthropic.NotFoundError, 404),
        ("413", anthropic.RequestTooLargeError, 413),
        ("529", anthropic.InternalServerError, 502),
    ],
)
def test_what_any_vendor_refuses_is_an_error_of_the_sdk(
    client: anthropic.Anthropic,
    vendors: Vendors,
    model: str,
    fault: str,
    expected: type[anthropic.APIStatusError],
    status: int,
    *,
    stream: bool,
) -> None:
    vendors.fail(fault, message="the vendor's own words")

    with pytest.raises(expected) as caught:
        client.messages.create(**asking(model), stream=stream)

    assert caught.value.status_code == status
    assert ("the vendor's own words" in caught.value.message) == (status < 500)
    assert caught.value.response.headers["x-keepgate-request-id"]


def test_a_key_that_a_vendor_refuses_is_not_the_callers_to_mend(client: anthropic.Anthropic, model: str) -> None:
    with pytest.raises((anthropic.InternalServerError, anthropic.ServiceUnavailableError)) as caught:
        client.messages.create(**asking(f"keyless-{model}"))

    # It rests once it was refused.
    assert caught.value.status_code in (502, 503)
    assert caught.value.body["error"]["type"] == "api_error"  # type: ignore[index] # an object


@pytest.mark.parametrize("name", [MODELS["anthropic"], MODELS["openai"]])
def test_a_rate_limit_is_waited_out(client: anthropic.Anthropic, vendors: Vendors, name: str) -> None:
    vendors.fail("429", times=1, retry_after="1")

    # By the gateway where it has patience left, else by the SDK, which is told for how long.
    message = client.with_options(max_retries=1).messages.create(**asking(name))

    assert text_of(message) == ANSWER
    assert vendors.calls == 2


def test_a_stream_that_breaks_raises_and_leaves_nothing_behind(
    client: anthropic.Anthropic, vendors: Vendors, model: str
) -> None:
    vendors.fail("cut", times=1)

    with pytest.raises(anthropic.APIError), client.messages.stream(**asking(model)) as events:
        events.until_done()

    raw = client.messages.with_raw_response.create(**asking(model))
    assert raw.headers["x-keepgate-cache"] == "miss"
