"""The fake of Anthropic's API, driven by Anthropic's SDK; every answer and event held to the SDK's types."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest
from anthropic.types import Message, MessageTokensCount, RawMessageStreamEvent

from tests.support.fake_anthropic import Anthropic
from tests.support.fake_provider import KEY, Fake, running
from tests.support.sdk_shapes import misfit

MODEL = "claude-sonnet-5-5"
WEATHER = {
    "name": "weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
TIME = {"name": "time", "input_schema": {"type": "object", "properties": {}}}
SEARCH = {"type": "web_search_20250305", "name": "web_search"}
PIXEL = base64.b64encode(b"\x89PNG0123").decode()
THINKING = {"type": "enabled", "budget_tokens": 1024}
OLD = {"anthropic-version": "2023-06-01"}

Json = dict[str, Any]


@pytest.fixture(scope="module")
def shared() -> Iterator[Fake]:
    with running(Anthropic()) as fake:
        yield fake


@pytest.fixture
def fake(shared: Fake) -> Fake:
    shared.reset()
    return shared


@pytest.fixture
def client(fake: Fake) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(api_key=KEY, base_url=fake.url, max_retries=0) as client:
        yield client


def asked(text: str | list[Json], **more: Any) -> Json:
    return {"model": MODEL, "max_tokens": 2048, "messages": [{"role": "user", "content": text}], **more}


def posted(fake: Fake, body: Json, **headers: str) -> httpx.Response:
    named = {"x-api-key": KEY, "anthropic-version": "2026-10-21", **headers}
    return httpx.post(f"{fake.url}/v1/messages", json=body, headers=named)


def told(fake: Fake, body: Json, **headers: str) -> Json:
    """The message, the same whole and streamed."""
    whole = posted(fake, body, **headers)
    assert whole.status_code == 200, whole.text
    assert misfit(whole.json(), Message) is None
    streamed = _assembled(posted(fake, {**body, "stream": True}, **headers).text)
    assert streamed["content"] == [_without_nothing(block) for block in whole.json()["content"]]
    assert streamed["stop_reason"] == whole.json()["stop_reason"]
    assert streamed["output_tokens"] == whole.json()["usage"]["output_tokens"]
    return dict(whole.json())


def _without_nothing(block: Json) -> Json:
    return {name: value for name, value in block.items() if value is not None}


def _assembled(stream: str) -> Json:
    """By the rules of the documentation, not by the SDK's code. Every event but `ping` has to fit its type."""
    blocks: list[Json] = []
    arguments = ""
    ended: Json = {}
    for part in stream.strip().split("\n\n"):
        name, _, data = part.partition("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        if event["type"] == "ping":
            continue
        assert misfit(event, RawMessageStreamEvent) is None
        match event["type"]:
            case "content_block_start":
                assert event["index"] == len(blocks)
                blocks.append(_without_nothing(event["content_block"]))
                arguments = ""
            case "content_block_delta":
                delta = event["delta"]
                block = blocks[event["index"]]
                if delta["type"] == "input_json_delta":
                    arguments += delta["partial_json"]
                elif delta["type"] == "citations_delta":
                    block["citations"].append(delta["citation"])
                else:
                    field = delta["type"].removesuffix("_delta")
                    block[field] += delta[field]
            case "content_block_stop" if arguments:
                blocks[event["index"]]["input"] = json.loads(arguments)
            case "message_delta":
                ended = {**event["delta"], **event["usage"]}
    return {"content": blocks, **ended}


@pytest.mark.parametrize(
    ("text", "more", "kinds", "reason"),
    [
        ("hello", {}, ["text"], "end_turn"),
        ("hello #long", {}, ["text"], "end_turn"),
        ("hello", {"thinking": THINKING}, ["thinking", "text"], "end_turn"),
        ("hello", {"thinking": {"type": "adaptive", "display": "omitted"}}, ["thinking", "text"], "end_turn"),
        ("hi #redacted", {"thinking": THINKING}, ["thinking", "redacted_thinking", "text"], "end_turn"),
        ("hi #tool", {"tools": [WEATHER, TIME]}, ["tool_use"], "tool_use"),
        ("hi #tools", {"tools": [WEATHER, TIME]}, ["tool_use", "tool_use"], "tool_use"),
        ("hi #empty", {"tools": [WEATHER]}, ["tool_use"], "tool_use"),
        ('#call time {"zone": "CET"}', {"tools": [WEATHER, TIME]}, ["tool_use"], "tool_use"),
        ("hi #tool #say", {"tools": [WEATHER]}, ["text", "tool_use"], "tool_use"),
        ("hi", {"tools": [WEATHER, TIME], "tool_choice": {"type": "tool", "name": "time"}}, ["tool_use"], "tool_use"),
        ("hi #tool", {"tools": [WEATHER], "tool_choice": {"type": "none"}}, ["text"], "end_turn"),
        ("hi #cite", {}, ["text"], "end_turn"),
        ("hi #search", {"tools": [SEARCH]}, ["server_tool_use", "web_search_tool_result", "text"], "end_turn"),
        ("one two three four five", {"max_tokens": 3}, ["text"], "max_tokens"),
        ("one STOP two", {"stop_sequences": ["STOP"]}, ["text"], "stop_sequence"),
        ("hi #refuse", {}, [], "refusal"),
        ("hi #filter", {}, ["text"], "refusal"),
        ("hi #pause", {}, ["text"], "pause_turn"),
        ("hi #cached", {}, ["text"], "end_turn"),
    ],
)
def test_answers_the_same_whole_and_streamed_in_the_vendors_shapes(
    fake: Fake, text: str, more: Json, kinds: list[str], reason: str
) -> None:
    message = told(fake, asked(text, **more))

    assert [block["type"] for block in message["content"]] == kinds
    assert message["stop_reason"] == reason


def test_answers_with_the_text_and_what_was_attached(fake: Fake) -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}
    document = {"type": "document", "source": {"type": "url", "url": "https://example.com/a.pdf"}}

    message = told(fake, asked([image, document, {"type": "text", "text": "What is it?"}]))

    said = "[image/png, 8 bytes]\n[document at https://example.com/a.pdf]\nYou said: What is it?"
    assert message["content"][0]["text"] == said


def test_gives_an_instance_of_the_schema(fake: Fake) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}, "n": {"type": "integer"}}}

    message = told(fake, asked("x", output_config={"format": {"type": "json_schema", "schema": schema}}))

    assert json.loads(message["content"][0]["text"]) == {"a": "x", "n": 42}


def test_goes_on_after_a_tool_result_and_knows_its_own_thinking(client: anthropic.Anthropic) -> None:
    first = client.messages.create(**asked("hi #tool", tools=[WEATHER], thinking=THINKING))
    call = first.content[-1]
    assert call.type == "tool_use"
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}

    turns = [{"role": "user", "content": "hi #tool"}, {"role": "assistant", "content": first.content}]
    messages: Any = [*turns, {"role": "user", "content": [result]}]
    second = client.messages.create(**asked("", messages=messages, tools=[WEATHER], thinking=THINKING))

    assert call.input == {"city": "hi #tool"}
    assert second.content[-1].type == "text"
    assert second.content[-1].text == "The tools said: sunny"


def test_the_sdk_reads_a_stream_as_it_reads_a_whole_answer(client: anthropic.Anthropic) -> None:
    with client.messages.stream(**asked("hi #tools #say", tools=[WEATHER, TIME])) as stream:
        final = stream.get_final_message()

    assert [block.type for block in final.content] == ["text", "tool_use", "tool_use"]
    assert final.stop_reason == "tool_use"
    assert final.usage.output_tokens > 1


def test_counts_tokens_and_lists_models(fake: Fake, client: anthropic.Anthropic) -> None:
    messages: Any = [{"role": "user", "content": "one two three"}]

    counted = client.messages.count_tokens(model=MODEL, messages=messages)
    listed = client.models.list()

    assert counted.input_tokens > 3
    assert misfit(counted.model_dump(), MessageTokensCount) is None
    assert listed.data[0].id == MODEL
    assert (
        misfit(
            httpx.get(f"{fake.url}/v1/models/x", headers={"x-api-key": KEY, **OLD}).json(), anthropic.types.ModelInfo
        )
        is None
    )


def _turns(*blocks: list[Json] | str) -> Json:
    roles = ["user", "assistant"] * len(blocks)
    return {"messages": [{"role": role, "content": content} for role, content in zip(roles, blocks, strict=False)]}


CALL = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "x"}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"max_tokens": None}, "max_tokens: "),
        ({"max_tokens": "5"}, "max_tokens: Input should be a valid integer"),
        ({"frobnicate": 1}, "frobnicate: Extra inputs are not permitted"),
        ({"temperature": 1.0}, "temperature: Extra inputs are not permitted"),
        ({"messages": []}, "messages: at least one message"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, 'first message must use the "user" role'),
        (_turns([{"type": "text"}]), "messages.0.content.0.text: Field required"),
        (_turns(" "), "messages.0.content.0.text: text content blocks must be non-empty"),
        (_turns("hi", [CALL], "x"), "`tool_use` ids were found without `tool_result` blocks"),
        (_turns("hi", "x", [RESULT]), "unexpected `tool_use_id`"),
        (_turns("hi", [CALL], [{"type": "text", "text": "x"}, RESULT]), "must come before any other content"),
        (_turns("hi", [{"type": "thinking", "thinking": "x", "signature": "forged"}], "x"), "Invalid `signature`"),
        (_turns("hi", [{"type": "redacted_thinking", "data": "eA=="}], "x"), "Invalid `data`"),
        ({"thinking": {"type": "enabled", "budget_tokens": 4096}}, "must be greater than `thinking.budget_tokens`"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1}}, "greater than or equal to 1024"),
        ({"tools": [{"name": "a b", "input_schema": {"type": "object"}}]}, "tools.0.custom.name"),
        ({"tools": [{"name": "a", "input_schema": {}}]}, "tools.0.custom.input_schema.type: Field required"),
        ({"tool_choice": {"type": "any"}}, "tool_choice: may only be specified"),
        ({"tools": [TIME], "tool_choice": {"type": "tool", "name": "x"}}, "Tool 'x' not found"),
    ],
)
def test_refuses_what_the_vendor_refuses_and_names_it(fake: Fake, change: Json, named: str) -> None:
    body = {name: value for name, value in {**asked("hi"), **change}.items() if value is not None}

    answer = posted(fake, body)

    assert answer.status_code == 400
    assert answer.json()["type"] == "error"
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert named in answer.json()["error"]["message"]


def test_the_older_version_takes_a_temperature_of_at_most_one(fake: Fake) -> None:
    assert posted(fake, asked("hi", temperature=0.5, top_k=5), **OLD).status_code == 200
    refused = posted(fake, asked("hi", temperature=1.5), **OLD)

    assert refused.status_code == 400
    assert refused.json()["error"]["message"].startswith("temperature: ")


@pytest.mark.parametrize(
    ("headers", "status"),
    [({"x-api-key": ""}, 401), ({"x-api-key": "kg-client"}, 401), ({"anthropic-version": "2020-01-01"}, 400)],
)
def test_wants_its_key_and_a_version(fake: Fake, headers: dict[str, str], status: int) -> None:
    answer = posted(fake, asked("hi"), **headers)

    assert answer.status_code == status
    assert answer.json()["error"]["type"] == ("authentication_error" if status == 401 else "invalid_request_error")


def test_does_not_know_every_model(fake: Fake) -> None:
    answer = posted(fake, asked("hi", model="unknown-1"))

    assert answer.status_code == 404
    assert answer.json()["error"] == {"type": "not_found_error", "message": "model: unknown-1"}
