"""The fake of OpenAI's API, driven by OpenAI's SDK; every answer and event held to the SDK's types."""

import base64
import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai.types import CreateEmbeddingResponse, FileObject, Model, ModerationCreateResponse
from openai.types.audio import Transcription
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel

from tests.support.fake_openai import OpenAI
from tests.support.fake_provider import KEY, Fake, running
from tests.support.fake_scenario import REFUSAL
from tests.support.sdk_shapes import misfit

Json = dict[str, Any]

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": CITY, "strict": True}}
TIME = {"type": "function", "function": {"name": "time", "parameters": {"type": "object", "properties": {}}}}
FLAT = {"type": "function", "name": "weather", "parameters": CITY, "strict": True}
CLOCK = {"type": "function", "name": "time", "parameters": {"type": "object", "properties": {}}, "strict": False}
PIXEL = f"data:image/png;base64,{base64.b64encode(b'PNG01234').decode()}"


@pytest.fixture(scope="module")
def shared() -> Iterator[Fake]:
    with running(OpenAI()) as fake:
        yield fake


@pytest.fixture
def fake(shared: Fake) -> Fake:
    shared.reset()
    return shared


@pytest.fixture
def client(fake: Fake) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key=KEY, base_url=fake.base_url, max_retries=0) as client:
        yield client


def posted(fake: Fake, path: str, body: Json) -> httpx.Response:
    return httpx.post(f"{fake.base_url}{path}", json=body, headers={"authorization": f"Bearer {KEY}"})


def question(text: str | list[Json], **more: Any) -> Json:
    return {"model": "gpt-4o", "messages": [{"role": "user", "content": text}], **more}


def chatted(fake: Fake, body: Json) -> Json:
    """The completion, the same whole and streamed."""
    answer = posted(fake, "/chat/completions", body)
    assert answer.status_code == 200, answer.text
    whole: Json = answer.json()
    streamed = posted(fake, "/chat/completions", {**body, "stream": True, "stream_options": {"include_usage": True}})
    assembled = _assembled(streamed.text)
    for choice in whole["choices"]:
        said = {name: value for name, value in choice["message"].items() if value not in (None, [])}
        assert assembled["choices"][choice["index"]] == {**said, "finish_reason": choice["finish_reason"]}
        # Two fields are known from compatible providers and from search models, but not in the types of the SDK.
        choice["message"].pop("reasoning_content", None)
    assert assembled["usage"] == whole["usage"]
    assert misfit(whole, ChatCompletion) is None
    return whole


def _assembled(stream: str) -> Json:
    *events, done = [line.removeprefix("data: ") for line in stream.splitlines() if line]
    assert done == "[DONE]"
    choices: dict[int, Json] = defaultdict(dict)
    usage = None
    for event in events:
        chunk = json.loads(event)
        for choice in chunk["choices"]:
            _add(choices[choice["index"]], choice["delta"], choice["finish_reason"])
            for unknown in ("reasoning_content", "annotations"):
                choice["delta"].pop(unknown, None)
        assert misfit(chunk, ChatCompletionChunk) is None
        usage = chunk["usage"] or usage
    return {"choices": choices, "usage": usage}


def _add(message: Json, delta: Json, reason: str | None) -> None:
    for name in ("content", "refusal", "reasoning_content"):
        if delta.get(name):
            message[name] = message.get(name, "") + delta[name]
    for name in ("role", "annotations"):
        if name in delta:
            message[name] = delta[name]
    for call in delta.get("tool_calls", ()):
        calls = message.setdefault("tool_calls", [])
        if "id" in call:
            assert call["index"] == len(calls)
            calls.append({name: value for name, value in call.items() if name != "index"})
        else:
            calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]
    if reason is not None:
        message["finish_reason"] = reason


@pytest.mark.parametrize(
    ("text", "more", "reason"),
    [
        ("hello", {}, "stop"),
        ("hello #long #cached", {}, "stop"),
        ("hello", {"n": 2}, "stop"),
        ("hello", {"logprobs": True, "top_logprobs": 3}, "stop"),
        ("hello", {"reasoning_effort": "low"}, "stop"),
        ("hello #reason", {}, "stop"),
        ("hello #cite", {}, "stop"),
        ("hello #tool", {"tools": [WEATHER, TIME]}, "tool_calls"),
        ("hello #tools #say", {"tools": [WEATHER, TIME]}, "tool_calls"),
        ("hello #tools", {"tools": [WEATHER], "parallel_tool_calls": False}, "tool_calls"),
        ("hello #empty", {"tools": [WEATHER]}, "tool_calls"),
        ('#call time {"zone": "CET"}', {"tools": [WEATHER, TIME]}, "tool_calls"),
        ("hello", {"tools": [WEATHER, TIME], "tool_choice": {"type": "function", "function": {"name": "time"}}},
         "tool_calls"),
        ("hello #tool", {"tools": [WEATHER], "tool_choice": "none"}, "stop"),
        ("one two three four", {"max_completion_tokens": 3}, "length"),
        ("one STOP two", {"stop": "STOP"}, "stop"),
        ("hello #refuse", {}, "stop"),
        ("hello #filter", {}, "content_filter"),
    ],
)  # fmt: skip
def test_completes_a_chat_the_same_whole_and_streamed(fake: Fake, text: str, more: Json, reason: str) -> None:
    completion = chatted(fake, question(text, **more))

    assert {choice["finish_reason"] for choice in completion["choices"]} == {reason}


def test_says_what_was_attached(fake: Fake) -> None:
    audio = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
    image = {"type": "image_url", "image_url": {"url": PIXEL}}

    completion = chatted(fake, question([image, audio, {"type": "text", "text": "What?"}]))

    said = "[image/png, 8 bytes]\n[audio/wav, 3 bytes]\nYou said: What?"
    assert completion["choices"][0]["message"]["content"] == said


class Place(BaseModel):
    city: str
    people: int


def test_the_sdk_parses_structured_output_and_calls_tools(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "Oslo"}]
    parsed = client.chat.completions.parse(model="gpt-4o", messages=messages, response_format=Place)
    messages = [{"role": "user", "content": "Oslo #tools"}]
    tools: Any = [WEATHER]
    with client.chat.completions.stream(model="gpt-4o", messages=messages, tools=tools) as stream:
        message = stream.get_final_completion().choices[0].message
    assert message.tool_calls is not None
    results = [{"role": "tool", "tool_call_id": call.id, "content": "sunny"} for call in message.tool_calls]
    calls = [call.model_dump(include={"id", "type", "function"}) for call in message.tool_calls]
    for call in calls:
        call["function"].pop("parsed_arguments", None)
    messages += [{"role": "assistant", "content": None, "tool_calls": calls}, *results]
    after = client.chat.completions.create(model="gpt-4o", messages=messages, tools=tools)

    assert parsed.choices[0].message.parsed == Place(city="Oslo", people=42)
    assert [call.function.arguments for call in message.tool_calls] == ['{"city":"Oslo #tools"}'] * 2
    assert after.choices[0].message.content == "The tools said: sunny; sunny"


def responded(fake: Fake, body: Json) -> Json:
    """The response, the same whole and streamed."""
    answer = posted(fake, "/responses", body)
    assert answer.status_code == 200, answer.text
    whole: Json = answer.json()
    assert misfit(whole, Response) is None
    events = []
    for part in posted(fake, "/responses", {**body, "stream": True}).text.strip().split("\n\n"):
        name, _, data = part.partition("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert misfit(event, ResponseStreamEvent) is None
        events.append(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[-1]["response"] == whole
    assert [event["item"] for event in events if event["type"] == "response.output_item.done"] == whole["output"]
    _check_deltas(events)
    return whole


def _check_deltas(events: list[Json]) -> None:
    """What came in deltas is what its `done` event says."""
    streamed: dict[str, str] = defaultdict(str)
    for event in events:
        kind = event["type"]
        key = f"{kind.rpartition('.')[0]} {event.get('item_id')} {event.get('content_index')}"
        if kind.endswith(".delta"):
            streamed[key] += event["delta"]
        elif kind.endswith(".done") and key in streamed:
            finished = event.get("text", event.get("arguments", event.get("refusal")))
            assert streamed.pop(key) == finished
    assert not streamed


@pytest.mark.parametrize(
    ("text", "more", "kinds", "status"),
    [
        ("hello", {}, ["message"], "completed"),
        ("hello", {"reasoning": {"effort": "low", "summary": "auto"}}, ["reasoning", "message"], "completed"),
        ("hello", {"reasoning": {"effort": "low"}, "include": ["reasoning.encrypted_content"], "store": False},
         ["reasoning", "message"], "completed"),
        ("hello", {"reasoning": {"effort": "none"}}, ["message"], "completed"),
        ("hello #tool", {"tools": [FLAT]}, ["function_call"], "completed"),
        ("hello #tools #say", {"tools": [FLAT, CLOCK]}, ["message", "function_call", "function_call"], "completed"),
        ("hello #empty", {"tools": [FLAT]}, ["function_call"], "completed"),
        ("hello", {"tools": [FLAT, CLOCK], "tool_choice": {"type": "function", "name": "time"}}, ["function_call"],
         "completed"),
        ("hello #search", {"tools": [{"type": "web_search"}]}, ["web_search_call", "message"], "completed"),
        ("hello #cite", {}, ["message"], "completed"),
        ("hello", {"include": ["message.output_text.logprobs"], "top_logprobs": 2}, ["message"], "completed"),
        ("hello #long", {"max_output_tokens": 16}, ["message"], "incomplete"),
        ("hello #filter", {}, ["message"], "incomplete"),
        ("hello #refuse", {}, ["message"], "completed"),
        ("hello", {"text": {"format": {"type": "json_schema", "name": "x", "schema": CITY, "strict": True}}},
         ["message"], "completed"),
    ],
)  # fmt: skip
def test_responds_the_same_whole_and_in_events(
    fake: Fake, text: str, more: Json, kinds: list[str], status: str
) -> None:
    response = responded(fake, {"model": "gpt-5.2", "input": text, **more})

    assert [item["type"] for item in response["output"]] == kinds
    assert response["status"] == status


@pytest.mark.parametrize("kept", [True, False])
def test_a_tool_loop_goes_on_with_what_was_kept_or_sent_back(client: openai.OpenAI, *, kept: bool) -> None:
    thinks: Any = {"reasoning": {"effort": "low"}, "include": ["reasoning.encrypted_content"], "tools": [FLAT]}
    first = client.responses.create(model="gpt-5.2", input="hi #tool", store=kept, **thinks)
    call = first.output[-1]
    assert call.type == "function_call"
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}

    back: Any = {"previous_response_id": first.id, "input": [result]}
    if not kept:
        back = {"input": [{"role": "user", "content": "hi #tool"}, *first.to_dict()["output"], result]}
    second = client.responses.create(model="gpt-5.2", store=kept, **thinks, **back)

    assert second.output_text == "The tools said: sunny"


def test_the_sdk_streams_and_parses_a_response(client: openai.OpenAI) -> None:
    with client.responses.stream(model="gpt-5.2", input="Oslo", text_format=Place) as stream:
        parsed = stream.get_final_response().output_parsed
    refused = client.responses.create(model="gpt-5.2", input="hi #refuse").output[0]

    assert parsed == Place(city="Oslo", people=42)
    assert refused.type == "message"
    assert refused.content[0].type == "refusal"
    assert refused.content[0].refusal == REFUSAL


def test_embeds_moderates_transcribes_keeps_files_and_lists_models(fake: Fake, client: openai.OpenAI) -> None:
    embedded = client.embeddings.create(model="text-embedding-3-small", input=["a b", "a b", "c"])
    floats = posted(fake, "/embeddings", {"model": "m", "input": "a b", "encoding_format": "float"}).json()
    moderated = posted(fake, "/moderations", {"input": ["fine", "not #flag"]}).json()
    heard = client.audio.transcriptions.create(model="whisper-1", file=("a.wav", b"RIFF\r\n\x00\xff", "audio/wav"))
    file = client.files.create(file=("a.jsonl", b"{}\n"), purpose="batch")
    model = client.models.list().data[0]

    vectors = [item.embedding for item in embedded.data]
    assert vectors[0] == vectors[1] != vectors[2]
    assert floats["data"][0]["embedding"] == pytest.approx(vectors[0])
    assert misfit(floats, CreateEmbeddingResponse) is None
    assert misfit(moderated, ModerationCreateResponse) is None
    assert [result["flagged"] for result in moderated["results"]] == [False, True]
    assert heard.text == "Heard 8 bytes of a.wav."
    assert misfit(heard.to_dict(), Transcription) is None
    assert (file.filename, file.bytes) == ("a.jsonl", 3)
    assert misfit(file.to_dict(), FileObject) is None
    assert misfit(model.to_dict(), Model) is None


TOOL_TURN = {"role": "assistant", "content": None, "tool_calls": [
    {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}]}  # fmt: skip
USER = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    ("change", "message", "param", "code"),
    [
        ({"frobnicate": 1}, "Unrecognized request argument supplied: frobnicate", None, None),
        ({"messages": [{**USER, "x": 1}]}, "Unknown parameter: 'messages[0].x'", "messages[0].x", "unknown_parameter"),
        ({"messages": None}, "Missing required parameter: 'messages'", "messages", "missing_required_parameter"),
        ({"messages": []}, "Invalid 'messages': empty array", "messages", "empty_array"),
        ({"temperature": "x"}, "Invalid type for 'temperature'", "temperature", "invalid_type"),
        ({"temperature": 3}, "Invalid 'temperature'", "temperature", "integer_above_max_value"),
        ({"user": "u" * 65}, "Invalid 'user': string too long", "user", "string_above_max_length"),
        ({"messages": [USER, {"role": "tool", "tool_call_id": "x", "content": ""}]}, "role 'tool' must be a response",
         "messages.[1].role", None),
        ({"messages": [USER, TOOL_TURN, USER]}, "did not have response messages: call_1", "messages.[2].role", None),
        ({"messages": [{"role": "nobody", "content": ""}]}, "Invalid value: 'nobody'", "messages[0].role",
         "invalid_value"),
        ({"top_logprobs": 2}, "'top_logprobs' parameter is only allowed", "top_logprobs", None),
        ({"stream_options": {"include_usage": True}}, "only allowed when 'stream'", "stream_options", None),
        ({"tool_choice": "auto"}, "'tool_choice' is only allowed when 'tools'", "tool_choice", None),
        ({"model": "gpt-5.2", "max_tokens": 5}, "Unsupported parameter: 'max_tokens'", "max_tokens",
         "unsupported_parameter"),
        ({"model": "unknown-1"}, "The model `unknown-1` does not exist", None, "model_not_found"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "does not match pattern",
         "tools[0].function.name", "invalid_value"),
        ({"tools": [{"type": "function", "function": {"name": "a", "strict": True, "parameters": {"type": "object",
          "properties": {}}}}]}, "'additionalProperties' is required", "tools[0]", "invalid_json_schema"),
        ({"response_format": {"type": "json_object"}}, "must contain the word 'json'", "messages", None),
    ],
)  # fmt: skip
def test_refuses_a_chat_that_the_vendor_refuses(
    fake: Fake, change: Json, message: str, param: str | None, code: str | None
) -> None:
    body = {name: value for name, value in question("hi", **change).items() if value is not None}

    answer = posted(fake, "/chat/completions", body)

    assert answer.status_code == (404 if code == "model_not_found" else 400)
    error = answer.json()["error"]
    assert message in error["message"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)


RESULT = {"type": "function_call_output", "call_id": "call_1", "output": "x"}
THOUGHT = {"type": "reasoning", "id": "rs_1", "summary": []}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"messages": []}, "Unrecognized request argument supplied: messages"),
        ({"input": None}, "Missing required parameter: 'input'"),
        ({"model": None}, "Missing required parameter: 'model'"),
        ({"input": [USER, RESULT]}, "No tool call found for function call output with call_id call_1"),
        ({"input": [USER, {"type": "function_call", "call_id": "call_1", "name": "a", "arguments": ""}]},
         "No tool output found for function call call_1"),
        ({"input": [USER, THOUGHT]}, "without its required following item"),
        ({"input": [USER, {**THOUGHT, "encrypted_content": "eA=="}, {"role": "assistant", "content": "x"}]},
         "encrypted content could not be verified"),
        ({"input": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}, "Invalid value: 'text'"),
        ({"max_output_tokens": 5}, "Expected a value >= 16, but got 5"),
        ({"previous_response_id": "resp_0"}, "Previous response with id 'resp_0' not found"),
    ],
)  # fmt: skip
def test_refuses_a_response_that_the_vendor_refuses(fake: Fake, change: Json, message: str) -> None:
    body = {name: value for name, value in {"model": "m", "input": "hi", **change}.items() if value is not None}

    answer = posted(fake, "/responses", body)

    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


@pytest.mark.parametrize(("header", "code"), [({}, None), ({"authorization": "Bearer kg-x"}, "invalid_api_key")])
def test_wants_its_key(fake: Fake, header: dict[str, str], code: str | None) -> None:
    answer = httpx.post(f"{fake.base_url}/chat/completions", json=question("hi"), headers=header)

    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == code


def test_a_stream_breaks_off_in_the_words_of_its_api(fake: Fake, client: openai.OpenAI) -> None:
    fake.script("error_midway", "error_midway")

    messages: Any = [{"role": "user", "content": "hi"}]
    with pytest.raises(openai.APIError, match="The server had an error"):
        list(client.chat.completions.create(model="gpt-4o", messages=messages, stream=True))
    events = list(client.responses.create(model="gpt-4o", input="hi", stream=True))

    assert events[0].type == "response.created"
    assert events[-1].type == "error"
    assert events[-1].message == "The server had an error."
