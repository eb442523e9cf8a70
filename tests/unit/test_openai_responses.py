import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx2
import msgspec
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from models.completion import Completion, Usage
from models.errors import LimitError, RequestError, UpstreamError
from models.request import Request
from service.api.dialect import Asked
from service.api.openai_responses import RESPONSES
from service.caching import identity, replay
from service.caching.assembly import Assembly, whole
from tests.support.examples import examples
from tests.support.sdk_shapes import misfit

ASKED = Asked("chat")
JsonObject = dict[str, Any]


def decoded(**fields: Any) -> Request:
    return RESPONSES.decode(msgspec.json.encode({"model": "m", **fields}), ASKED)


def messages(*items: Any) -> list[JsonObject]:
    said: list[JsonObject] = decoded(input=list(items)).body["messages"]
    return said


def completion(message: JsonObject, *, finish: str = "stop", **fields: Any) -> Completion:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "logprobs": None, "finish_reason": finish}
    choice |= fields.pop("choice", {})
    body = {
        "id": "chatcmpl-Ab1",
        "object": "chat.completion",
        "created": 1700000000,
        "model": "gpt-4o",
        "choices": [choice],
        "usage": {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18},
        **fields,
    }
    return whole(msgspec.json.encode(body), "chat")[0]


def told_whole(answer: Completion, request: Request | None = None) -> JsonObject:
    reply: JsonObject = msgspec.json.decode(RESPONSES.whole(answer, request or decoded(input="hi")))
    return reply


def streamed(answer: Completion, request: Request | None = None, *, at_once: int = 3) -> bytes:
    body = msgspec.json.decode(answer.body)
    chunks = list(map(msgspec.json.encode, replay.chunks(body, "chat", include_usage=True)))
    encoder = RESPONSES.stream(request or decoded(input="hi", stream=True))
    batches = [encoder.chunks(chunks[at : at + at_once]) for at in range(0, len(chunks), at_once)]
    return b"".join([*batches, encoder.end(answer)])


def events(stream: bytes) -> list[JsonObject]:
    read = []
    for block in stream.decode().split("\n\n")[:-1]:
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        read.append(event)
    assert [event["sequence_number"] for event in read] == list(range(len(read)))
    return read


def strict(event: JsonObject) -> None:
    kinds: dict[str, Any] = {
        member.model_fields["type"].annotation.__args__[0]: member for member in _members(ResponseStreamEvent)
    }
    assert misfit(event, kinds[event["type"]]) is None


def _members(union: Any) -> Iterator[Any]:
    yield from union.__origin__.__args__


def sdk(reply: bytes, kind: str = "text/event-stream") -> openai.OpenAI:
    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, content=reply, headers={"content-type": kind}))
    return openai.OpenAI(api_key="k", base_url="http://gateway/v1", http_client=httpx2.Client(transport=transport))


# --- requests


def test_a_question_is_the_same_one_as_in_chat_form() -> None:
    request = decoded(
        instructions="Be brief.",
        input=[{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}],
        max_output_tokens=50,
        temperature=0.5,
        text={"format": {"type": "text"}, "verbosity": "medium"},
        tool_choice="auto",
        parallel_tool_calls=True,
        truncation="disabled",
        previous_response_id=None,
        store=False,
        user="u",
        metadata={"a": "b"},
    )

    assert request.body == {
        "model": "m",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}],
        "max_completion_tokens": 50,
        "temperature": 0.5,
    }
    assert (request.beyond, request.refused, request.dropped) == ({}, (), ())


def test_a_text_alone_is_a_user_message() -> None:
    assert decoded(input="hi").body["messages"] == [{"role": "user", "content": "hi"}]


def test_the_request_says_how_it_travels() -> None:
    request = decoded(input="hi", stream=True, stream_options={"include_obfuscation": False})

    assert (request.dialect, request.operation, request.stream, request.include_usage) == (
        "responses",
        "chat",
        True,
        True,
    )
    assert request.native == msgspec.json.decode(request.raw)


def test_parts_are_translated() -> None:
    said = messages(
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "see"},
                {"type": "input_image", "image_url": "data:image/png;base64,AA==", "detail": "auto"},
                {"type": "input_image", "image_url": "https://x/y.png", "detail": "low"},
                {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,AA=="},
                {"type": "input_file", "file_id": "file-1"},
                {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
            ],
        }
    )

    assert said == [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "see"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
                {"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "low"}},
                {"type": "file", "file": {"file_data": "data:application/pdf;base64,AA==", "filename": "a.pdf"}},
                {"type": "file", "file": {"file_id": "file-1"}},
                {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
            ],
        }
    ]


def test_one_turn_of_items_is_one_assistant_message() -> None:
    said = messages(
        {"role": "user", "content": "weather?"},
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [{"type": "summary_text", "text": "Look it up."}],
            "encrypted_content": "opaque",
        },
        {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "One moment.", "annotations": []}],
        },
        {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "weather", "arguments": '{"city":"Rome"}'},
        {"type": "function_call", "id": "fc_2", "call_id": "c2", "name": "weather", "arguments": '{"city":"Oslo"}'},
        {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "snow"}]},
    )

    frame = {"format": "openai-responses-v1", "id": "rs_1"}
    assert said == [
        {"role": "user", "content": "weather?"},
        {
            "role": "assistant",
            "content": "One moment.",
            "reasoning_content": "Look it up.",
            "reasoning_details": [
                {"type": "reasoning.summary", **frame, "summary": "Look it up.", "index": 0},
                {"type": "reasoning.encrypted", **frame, "data": "opaque", "index": 1},
            ],
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Rome"}'}},
                {"id": "c2", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Oslo"}'}},
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
        {"role": "tool", "tool_call_id": "c2", "content": "snow"},
    ]


def test_reasoning_that_anyone_can_read_is_no_signed_detail() -> None:
    said = messages(
        {"role": "user", "content": "1+1"},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "easy"}]},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "sure?"},
    )

    assert said[1] == {"role": "assistant", "content": "2", "reasoning_content": "easy"}


def test_answers_in_a_row_stay_apart() -> None:
    said = messages(
        {"role": "assistant", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        {"role": "developer", "content": "go on"},
    )

    assert said == [
        {"role": "assistant", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "assistant", "content": None, "refusal": "no"},
        {"role": "system", "content": "go on"},
    ]


def test_tools_are_translated() -> None:
    schema = {"type": "object", "properties": {}}
    request = decoded(
        input="hi",
        tools=[
            {"type": "function", "name": "f", "description": "d", "parameters": schema, "strict": False},
            {"type": "function", "name": "g", "parameters": schema, "strict": True},
            {
                "type": "custom",
                "name": "apply_patch",
                "format": {"type": "grammar", "syntax": "lark", "definition": "start: /x/"},
            },
            {
                "type": "namespace",
                "name": "agents",
                "description": "…",
                "tools": [{"type": "function", "name": "spawn"}],
            },
        ],
        tool_choice={"type": "function", "name": "f"},
        parallel_tool_calls=False,
    )

    assert request.body["tools"] == [
        {"type": "function", "function": {"name": "f", "description": "d", "parameters": schema}},
        {"type": "function", "function": {"name": "g", "parameters": schema, "strict": True}},
        {
            "type": "custom",
            "custom": {
                "name": "apply_patch",
                "format": {"type": "grammar", "grammar": {"syntax": "lark", "definition": "start: /x/"}},
            },
        },
        {"type": "function", "function": {"name": "agents__spawn"}},
    ]
    assert request.body["tool_choice"] == {"type": "function", "function": {"name": "f"}}
    assert request.body["parallel_tool_calls"] is False
    assert (request.refused, request.dropped) == ((), ())


def test_what_the_codex_command_line_sends_by_default_asks_nothing_that_chat_lacks() -> None:
    request = decoded(
        stream=True,
        input=[
            {
                "type": "additional_tools",
                "id": "at_1",
                "role": "developer",
                "tools": [
                    {
                        "type": "namespace",
                        "name": "functions",
                        "description": "",
                        "tools": [
                            {"type": "custom", "name": "exec", "description": "d", "format": {"type": "text"}},
                            {"type": "function", "name": "wait", "strict": False, "parameters": {"type": "object"}},
                        ],
                    }
                ],
            },
            {
                "type": "message",
                "id": "msg_1",
                "role": "developer",
                "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}],
            },
            {"type": "message", "id": "msg_2", "role": "user", "content": [{"type": "input_text", "text": "say hi"}]},
        ],
        tools=[
            {"type": "function", "name": "exec_command", "strict": False, "parameters": {"type": "object"}},
            {"type": "tool_search", "execution": "client", "description": "s", "parameters": {"type": "object"}},
            {"type": "web_search", "external_web_access": False},
        ],
        tool_choice="auto",
        parallel_tool_calls=False,
        reasoning={"effort": "low", "context": "all_turns", "summary": "auto"},
        store=False,
        include=["reasoning.encrypted_content"],
        prompt_cache_key="k",
        text={"verbosity": "low"},
        client_metadata={"session_id": "s"},
    )

    assert request.body == {
        "model": "m",
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "user", "content": "say hi"},
        ],
        "tools": [
            {"type": "function", "function": {"name": "exec_command", "parameters": {"type": "object"}}},
            {
                "type": "function",
                "function": {"name": "tool_search", "description": "s", "parameters": {"type": "object"}},
            },
            {"type": "custom", "custom": {"name": "exec", "description": "d"}},
            {"type": "function", "function": {"name": "wait", "parameters": {"type": "object"}}},
        ],
        "parallel_tool_calls": False,
        "reasoning_effort": "low",
        "verbosity": "low",
    }
    assert request.refused == ()
    assert request.dropped == ("tools.web_search",)


@pytest.mark.parametrize(
    ("fields", "refused"),
    [
        ({"tools": [{"type": "file_search", "vector_store_ids": ["v"]}]}, ("tools[0]",)),
        ({"tools": [{"type": "mcp", "server_label": "s"}]}, ("tools[0]",)),
        ({"tools": [{"type": "web_search"}], "tool_choice": "required"}, ("tools[0]",)),
        ({"tools": [{"type": "web_search"}], "tool_choice": {"type": "web_search"}}, ("tools[0]", "tool_choice")),
        ({"tools": [{"type": "computer"}], "tool_choice": "none"}, ()),
        ({"previous_response_id": "resp_1"}, ("previous_response_id",)),
        ({"conversation": {"id": "conv_1"}}, ("conversation",)),
        ({"background": True}, ("background",)),
        ({"background": False}, ()),
        ({"prompt": {"id": "pmpt_1"}}, ("prompt",)),
        ({"reasoning": {"mode": "pro"}}, ("reasoning.mode",)),
        ({"text": {"format": {"type": "grammar"}}}, ("text.format",)),
        ({"max_tool_calls": 3, "truncation": "auto", "include": ["file_search_call.results"]}, ()),
        ({"service_tier": "ultrafast"}, ()),
    ],
)
def test_what_changes_the_answer_is_refused_by_name(fields: JsonObject, refused: tuple[str, ...]) -> None:
    assert decoded(input="hi", **fields).refused == refused


@pytest.mark.parametrize("name", ["previous_response_id", "conversation", "background", "prompt"])
def test_state_that_lies_elsewhere_can_be_seen_by_its_name(name: str) -> None:
    value = True if name == "background" else "x"

    assert decoded(input="hi", **{name: value}).beyond == {name: value}


@pytest.mark.parametrize(
    ("item", "refused"),
    [
        ({"type": "item_reference", "id": "msg_1"}, True),
        ({"id": "msg_1"}, True),
        ({"type": "web_search_call", "id": "ws_1", "status": "completed"}, False),
        ({"type": "mcp_call", "id": "mcp_1", "name": "n", "arguments": "{}", "server_label": "s"}, True),
        ({"type": "computer_call_output", "call_id": "c", "output": {}}, True),
        ({"type": "compaction", "encrypted_content": "x"}, True),
        ({"type": "of_next_year"}, True),
    ],
)
def test_items_that_only_this_dialect_has_are_kept_as_they_came(item: JsonObject, refused: bool) -> None:
    request = decoded(input=[{"role": "user", "content": "hi"}, item])

    assert request.body["messages"][-1]["provider_content"] == [{"dialect": "responses", "block": item}]
    assert request.refused == (("input[1]",) if refused else ())


def test_a_field_nobody_knows_is_named_and_is_part_of_the_identity() -> None:
    plain, odd = decoded(input="hi"), decoded(input="hi", mystery=1, reasoning={"effort": "low", "color": "red"})

    assert odd.beyond == {"mystery": 1, "reasoning.color": "red"}
    assert odd.dropped == ("mystery", "reasoning.color")
    assert plain.beyond == {}


def test_log_probabilities_are_asked_for_by_what_is_included() -> None:
    request = decoded(input="hi", include=["message.output_text.logprobs"], top_logprobs=2)

    assert (request.body["logprobs"], request.body["top_logprobs"]) == (True, 2)
    assert "logprobs" not in decoded(input="hi", top_logprobs=2).body


def test_a_schema_for_the_answer_is_translated() -> None:
    form = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}

    assert decoded(input="hi", text={"format": form}).body["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True},
    }


def test_tools_that_may_not_be_called_are_not_offered() -> None:
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "g"}]}
    tools = [{"type": "function", "name": name, "strict": False} for name in ("f", "g")]
    request = decoded(input="hi", tools=tools, tool_choice=allowed)

    assert request.body["tools"] == [{"type": "function", "function": {"name": "g"}}]
    assert request.body["tool_choice"] == "required"
    assert request.beyond == {"tool_choice": allowed, "tools[0]": tools[0]}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": 1}, "input"),
        ({"input": [1]}, "input[0]"),
        ({"input": [{"role": "robot", "content": ""}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": 1}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id"),
        ({"input": "hi", "tools": {}}, "tools"),
        ({"input": "hi", "tools": [{"type": "function"}]}, "tools[0].name"),
        ({"input": "hi", "temperature": "warm"}, "temperature"),
        ({"input": "hi", "max_output_tokens": 1.5}, "max_output_tokens"),
        ({"input": "hi", "stream": "yes"}, "stream"),
        ({"input": "hi", "text": {"format": {"type": "json_schema"}}}, "text.format.name"),
        ({"input": "hi", "reasoning": "much"}, "reasoning"),
        ({"input": "hi", "include": "all"}, "include"),
        ({"input": "hi", "tool_choice": 1}, "tool_choice"),
        ({"input": "hi", "instructions": 1}, "instructions"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(fields: JsonObject, param: str) -> None:
    with pytest.raises(RequestError) as refusal:
        decoded(**fields)

    assert refusal.value.param == param


FULL: JsonObject = {
    "model": "m",
    "instructions": "i",
    "input": [
        {"role": "user", "content": [{"type": "input_image", "image_url": "u", "detail": "low"}]},
        {
            "role": "user",
            "content": [{"type": "input_file", "file_id": "f"}, {"type": "input_audio", "input_audio": {}}],
        },
        {
            "type": "reasoning",
            "id": "r",
            "summary": [{"text": "t"}],
            "content": [{"text": "t"}],
            "encrypted_content": "e",
        },
        {"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "n"}], "phase": "x"},
        {"type": "function_call", "call_id": "c", "name": "n", "namespace": "s", "arguments": "{}"},
        {"type": "custom_tool_call", "call_id": "d", "name": "n", "input": "x"},
        {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "t"}]},
        {"type": "tool_search_call", "execution": "client", "call_id": "s", "arguments": {}},
        {
            "type": "tool_search_output",
            "execution": "client",
            "call_id": "s",
            "tools": [{"type": "function", "name": "f"}],
        },
        {"type": "additional_tools", "tools": [{"type": "namespace", "name": "n", "tools": []}]},
        {"type": "item_reference", "id": "x"},
    ],
    "tools": [
        {"type": "function", "name": "f", "description": "d", "parameters": {}, "strict": True},
        {"type": "custom", "name": "c", "format": {"type": "grammar", "syntax": "lark", "definition": "d"}},
        {"type": "mcp"},
    ],
    "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]},
    "parallel_tool_calls": False,
    "text": {"format": {"type": "json_schema", "name": "n", "schema": {}, "strict": True}, "verbosity": "low"},
    "reasoning": {"effort": "low", "summary": "auto", "mode": "pro"},
    "include": ["message.output_text.logprobs"],
    "top_logprobs": 1,
    "temperature": 1,
    "top_p": 1,
    "max_output_tokens": 5,
    "service_tier": "flex",
    "moderation": {"model": "m"},
    "background": True,
    "conversation": "c",
    "prompt_cache_options": {"prewarm": True},
    "stream": True,
    "stream_options": {},
    "metadata": {},
}
WRONG: tuple[Any, ...] = (None, True, 0, -1.5, "", "x", [], [None], [[]], [{}], {}, {"type": []}, {"type": "x"})


def places(value: Any) -> Iterator[tuple[str | int, ...]]:
    yield ()
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from ((key, *rest) for rest in places(inner))


def changed(value: Any, place: tuple[str | int, ...], wrong: Any) -> Any:
    if not place:
        return wrong
    key, *rest = place
    if isinstance(value, dict):
        return {**value, key: changed(value[key], tuple(rest), wrong)}
    return [changed(inner, tuple(rest), wrong) if at == key else inner for at, inner in enumerate(value)]


@pytest.mark.parametrize("place", list(places(FULL)), ids=lambda place: ".".join(map(str, place)) or "body")
def test_any_type_anywhere_is_read_or_refused_and_never_breaks(place: tuple[str | int, ...]) -> None:
    for wrong in WRONG:
        try:
            request = RESPONSES.decode(msgspec.json.encode(changed(FULL, place, wrong)), ASKED)
        except RequestError as refusal:
            assert refusal.message  # noqa: PT017  # either is right: only another exception is wrong
            continue
        identity.exact_key(request.body, ())
        for answer in (completion({"content": "hi"}), completion({"tool_calls": [{"index": 0}]})):
            assert told_whole(answer, request)["object"] == "response"


# --- answers

WEATHER = [
    {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Rome"}'}},
    {"id": "c2", "type": "function", "function": {"name": "agents__spawn", "arguments": "{}"}},
    {"id": "c3", "type": "custom", "custom": {"name": "apply_patch", "input": "*** Begin Patch"}},
]
OWN = {"format": "openai-responses-v1", "id": "rs_9"}
SEARCHED = {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "q"}}
ANSWERS: dict[str, Completion] = {
    "text": completion({"content": "Hello there, friend."}),
    "nothing": completion({"content": ""}),
    "refusal": completion({"content": None, "refusal": "I will not."}),
    "cut off": completion({"content": "Once upon a"}, finish="length"),
    "filtered": completion({"content": "Well"}, finish="content_filter"),
    "tools": completion({"content": None, "tool_calls": WEATHER}, finish="tool_calls"),
    "text and tools": completion({"content": "Wait.", "tool_calls": WEATHER[:1]}, finish="tool_calls"),
    "readable reasoning": completion({"content": "2", "reasoning_content": "One and one."}),
    "own reasoning": completion(
        {
            "content": "2",
            "reasoning_content": "One.\n\nAnd one.",
            "reasoning_details": [
                {"type": "reasoning.summary", "index": 0, **OWN, "summary": "One."},
                {"type": "reasoning.summary", "index": 1, **OWN, "summary": "And one."},
                {"type": "reasoning.encrypted", "index": 2, **OWN, "data": "opaque"},
                {"type": "reasoning.summary", "index": 3, **OWN, "id": "rs_10", "summary": ""},
            ],
        }
    ),
    "another's reasoning": completion(
        {
            "content": "2",
            "reasoning_content": "One and one.",
            "reasoning_details": [
                {
                    "type": "reasoning.text",
                    "index": 0,
                    "format": "anthropic-claude-v1",
                    "text": "One and one.",
                    "signature": "sig",
                },
                {"type": "reasoning.encrypted", "index": 1, "format": "anthropic-claude-v1", "data": "redacted"},
            ],
        }
    ),
    "another order": completion(
        {
            "content": "First. Then.",
            "reasoning_content": "ab",
            "reasoning_details": [
                {
                    "type": "reasoning.text",
                    "index": i,
                    "format": "anthropic-claude-v1",
                    "text": "ab"[i],
                    "signature": "s",
                }
                for i in (0, 1)
            ],
            "provider_content": [
                {"dialect": "responses", "block": SEARCHED},
                {"dialect": "anthropic", "block": {"type": "server_tool_use"}},
            ],
            "layout": [
                ["reasoning_details", 1],
                ["content", 7],
                ["provider_content", 2],
                ["reasoning_details", 1],
                ["content", 5],
            ],
        }
    ),
    "two messages": completion(
        {
            "content": "Looking. Found it.",
            "content_items": [
                {"offset": 0, "id": "msg_a", "phase": "commentary"},
                {"offset": 9, "id": "msg_b", "phase": "final_answer"},
            ],
            "annotations": [
                {
                    "type": "url_citation",
                    "url_citation": {"start_index": 9, "end_index": 14, "url": "https://x", "title": "X"},
                }
            ],
        }
    ),
    "log probabilities": completion(
        {"content": "Hi"},
        choice={"logprobs": {"content": [{"token": "Hi", "logprob": -0.1, "bytes": None, "top_logprobs": []}]}},
    ),
    "counted in detail": completion(
        {"content": "Hi"},
        usage={
            "prompt_tokens": 20,
            "completion_tokens": 9,
            "prompt_tokens_details": {"cached_tokens": 15},
            "completion_tokens_details": {"reasoning_tokens": 4},
        },
    ),
}
TOOLED = {
    "tools": [
        {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": True},
        {"type": "custom", "name": "apply_patch"},
        {"type": "namespace", "name": "agents", "description": "", "tools": [{"type": "function", "name": "spawn"}]},
    ]
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_a_whole_answer_is_what_the_sdk_calls_a_response(answer: Completion) -> None:
    request = decoded(input="hi", **TOOLED, reasoning={"effort": "low"})
    body = RESPONSES.whole(answer, request)

    assert misfit(msgspec.json.decode(body), Response) is None
    parsed = sdk(body, "application/json").responses.create(model="m", input="hi")
    assert parsed.output_text == (msgspec.json.decode(answer.body)["choices"][0]["message"]["content"] or "")


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_the_events_end_with_the_whole_answer(answer: Completion) -> None:
    request = decoded(input="hi", stream=True, **TOOLED)

    for at_once in (1, 1000):
        last = events(streamed(answer, request, at_once=at_once))[-1]
        assert last["type"] == f"response.{last['response']['status']}"
        assert last["response"] == told_whole(answer, request)


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_every_event_is_one_the_sdk_knows(answer: Completion) -> None:
    for event in events(streamed(answer, decoded(input="hi", **TOOLED))):
        strict(event)


@pytest.mark.parametrize("name", [name for name in ANSWERS if name not in ("cut off", "filtered")])
def test_the_sdk_adds_the_events_up_to_the_whole_answer(name: str) -> None:
    answer = ANSWERS[name]

    with sdk(streamed(answer)).responses.stream(model="m", input="hi") as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()

    assert "".join(deltas) == final.output_text
    assert final.id == told_whole(answer)["id"]


def test_a_stream_is_told_in_the_order_of_the_api() -> None:
    told = events(streamed(ANSWERS["text and tools"]))

    assert [event["type"].removeprefix("response.") for event in told] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    assert [event["output_index"] for event in told if "output_index" in event] == [0] * 6 + [1] * 4


def test_calls_are_told_by_the_names_the_client_gave_them() -> None:
    output = told_whole(ANSWERS["tools"], decoded(input="hi", **TOOLED))["output"]

    assert output == [
        {
            "id": "fc_kg_Ab1_0",
            "type": "function_call",
            "status": "completed",
            "call_id": "c1",
            "name": "weather",
            "arguments": '{"city":"Rome"}',
        },
        {
            "id": "fc_kg_Ab1_1",
            "type": "function_call",
            "status": "completed",
            "call_id": "c2",
            "name": "spawn",
            "namespace": "agents",
            "arguments": "{}",
        },
        {
            "id": "ctc_kg_Ab1_2",
            "type": "custom_tool_call",
            "call_id": "c3",
            "name": "apply_patch",
            "input": "*** Begin Patch",
        },
    ]


def test_a_custom_tool_that_a_provider_called_as_a_function_is_called_as_one() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "apply_patch", "arguments": '{"input":"*** Begin"}'}}
    answer = completion({"content": None, "tool_calls": [call]}, finish="tool_calls")
    request = decoded(input="hi", **TOOLED)

    assert told_whole(answer, request)["output"][0]["input"] == "*** Begin"
    told = events(streamed(answer, request))
    assert [event["delta"] for event in told if event["type"] == "response.custom_tool_call_input.delta"] == [
        "*** Begin"
    ]


def test_a_search_for_tools_goes_to_the_client_and_what_it_finds_can_be_called() -> None:
    search = {"type": "tool_search", "execution": "client", "description": "d", "parameters": {"type": "object"}}
    call = {"id": "c", "type": "function", "function": {"name": "tool_search", "arguments": '{"query":"mail"}'}}
    answer = completion({"content": None, "tool_calls": [call]}, finish="tool_calls")

    item = told_whole(answer, decoded(input="hi", tools=[search]))["output"][0]
    found = {"type": "function", "name": "send_mail"}
    output = {"type": "tool_search_output", "execution": "client", "call_id": "c", "tools": [found]}
    request = decoded(input=[{"role": "user", "content": "hi"}, item, output], tools=[search])

    assert (item["type"], item["execution"], item["arguments"]) == ("tool_search_call", "client", {"query": "mail"})
    assert request.body["messages"][1:] == [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": '["send_mail"]'},
    ]
    assert [tool["function"]["name"] for tool in request.body["tools"]] == ["tool_search", "send_mail"]
    assert request.refused == ()


def test_reasoning_another_api_signed_comes_back_as_it_was_and_is_not_sent_to_this_one() -> None:
    answer = ANSWERS["another's reasoning"]
    details = msgspec.json.decode(answer.body)["choices"][0]["message"]["reasoning_details"]

    output = told_whole(answer)["output"]
    request = decoded(input=[{"role": "user", "content": "1+1"}, *output, {"role": "user", "content": "sure?"}])

    assert [item["type"] for item in output] == ["reasoning", "message"]
    assert request.body["messages"][1] == {
        "role": "assistant",
        "content": "2",
        "reasoning_content": "One and one.",
        "reasoning_details": details,
    }
    assert request.native is not None
    assert [item.get("type") for item in request.native["input"]] == [None, "message", None]
    assert msgspec.json.decode(request.raw) == request.native


def test_own_reasoning_keeps_its_ids() -> None:
    assert told_whole(ANSWERS["own reasoning"])["output"][:2] == [
        {
            "id": "rs_9",
            "type": "reasoning",
            "summary": [{"type": "summary_text", "text": "One."}, {"type": "summary_text", "text": "And one."}],
            "encrypted_content": "opaque",
        },
        {"id": "rs_10", "type": "reasoning", "summary": []},
    ]


def test_messages_of_one_answer_stay_apart_and_count_their_citations_each_from_its_begin() -> None:
    first, second = told_whole(ANSWERS["two messages"])["output"]

    assert (first["id"], first["phase"], first["content"][0]["text"]) == ("msg_a", "commentary", "Looking. ")
    assert first["content"][0]["annotations"] == []
    assert (second["id"], second["phase"], second["content"][0]["text"]) == ("msg_b", "final_answer", "Found it.")
    assert second["content"][0]["annotations"] == [
        {"type": "url_citation", "start_index": 0, "end_index": 5, "url": "https://x", "title": "X"}
    ]


def test_what_cut_an_answer_off_is_said() -> None:
    told = told_whole(ANSWERS["cut off"])

    assert (told["status"], told["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert told["output"][0]["status"] == "incomplete"
    assert told_whole(ANSWERS["filtered"])["incomplete_details"] == {"reason": "content_filter"}


@pytest.mark.parametrize("odd", WRONG)
def test_what_only_a_provider_counts_is_told_where_it_is_of_this_dialect(odd: Any) -> None:
    beside = {"dialect": "responses", "input_tokens_details": odd, "tool_usage": {"web_search": {"num_requests": 1}}}
    told = told_whole(
        completion({"content": "Hi"}, usage={"prompt_tokens": 1, "completion_tokens": 2, "provider_usage": beside})
    )

    assert told["tool_usage"] == {"web_search": {"num_requests": 1}}
    assert told["usage"]["total_tokens"] == 3


def test_tokens_are_counted_by_this_dialects_names() -> None:
    assert told_whole(ANSWERS["counted in detail"])["usage"] == {
        "input_tokens": 20,
        "input_tokens_details": {"cached_tokens": 15, "cache_write_tokens": 0},
        "output_tokens": 9,
        "output_tokens_details": {"reasoning_tokens": 4},
        "total_tokens": 29,
    }


def test_an_answer_repeats_what_was_asked() -> None:
    request = decoded(input="hi", instructions="i", temperature=0.2, metadata={"a": "b"}, text={"verbosity": "low"})

    told = told_whole(ANSWERS["text"], request)

    assert {
        name: told[name] for name in ("instructions", "temperature", "metadata", "text", "tool_choice", "top_p")
    } == {
        "instructions": "i",
        "temperature": 0.2,
        "metadata": {"a": "b"},
        "text": {"format": {"type": "text"}, "verbosity": "low"},
        "tool_choice": "auto",
        "top_p": 1.0,
    }


def test_calls_that_arrive_in_turns_are_each_told_whole() -> None:
    def chunk(index: int, **call: Any) -> bytes:
        return msgspec.json.encode(
            {"id": "x", "choices": [{"index": 0, "delta": {"tool_calls": [{"index": index, **call}]}}]}
        )

    encoder = RESPONSES.stream(decoded(input="hi"))
    written = encoder.chunks(
        [
            chunk(0, id="a", type="function", function={"name": "f", "arguments": ""}),
            chunk(1, id="b", type="function", function={"name": "g", "arguments": "[1"}),
            chunk(0, function={"arguments": "[0"}),
            chunk(1, function={"arguments": "]"}),
            chunk(0, function={"arguments": "]"}),
        ]
    )
    written += encoder.end(Completion(b"{}", "m", Usage(1, 1), ("tool_calls",)))

    output = events(written)[-1]["response"]["output"]
    assert [(item["call_id"], item["name"], item["arguments"]) for item in output] == [
        ("a", "f", "[0]"),
        ("b", "g", "[1]"),
    ]


def test_events_only_this_dialect_has_are_passed_on_under_the_streams_own_numbers() -> None:
    def event(**data: Any) -> bytes:
        told = {"dialect": "responses", "data": {"sequence_number": 77, **data}}
        return msgspec.json.encode({"id": "x", "choices": [], "provider_event": told})

    def delta(**fields: Any) -> bytes:
        return msgspec.json.encode({"id": "x", "choices": [{"index": 0, "delta": fields}]})

    item = {"type": "web_search_call", "id": "ws_1", "status": "in_progress", "action": {"type": "search"}}
    done = {**item, "status": "completed"}
    encoder = RESPONSES.stream(decoded(input="hi"))
    written = encoder.chunks(
        [
            delta(role="assistant", content="Let me see."),
            event(type="response.output_item.added", output_index=5, item=item),
            event(type="response.web_search_call.searching", output_index=5, item_id="ws_1"),
            delta(provider_content=[{"dialect": "responses", "block": done}]),
            delta(content="There."),
        ]
    )
    told = events(written + encoder.end(ANSWERS["text"]))

    mine = [event for event in told if event.get("output_index") == 1]
    assert [event["type"] for event in mine] == [
        "response.output_item.added",
        "response.web_search_call.searching",
        "response.output_item.done",
    ]
    assert [item["type"] for item in told[-1]["response"]["output"]] == ["message", "web_search_call", "message"]


def test_nothing_is_told_of_a_first_chunk_that_says_nothing() -> None:
    encoder = RESPONSES.stream(decoded(input="hi"))

    assert encoder.chunks([b'{"id":"","choices":[],"prompt_filter_results":[]}']) == b""


async def test_the_asynchronous_sdk_raises_where_a_stream_breaks() -> None:
    encoder = RESPONSES.stream(decoded(input="hi"))
    begun = encoder.chunks([msgspec.json.encode({"id": "x", "choices": [{"index": 0, "delta": {"content": "Hel"}}]})])
    broken = begun + encoder.error(UpstreamError("the stream broke"), "req_1")
    transport = httpx2.MockTransport(
        lambda _: httpx2.Response(200, content=broken, headers={"content-type": "text/event-stream"})
    )

    async with asyncio.timeout(5), httpx2.AsyncClient(transport=transport) as http:
        client = openai.AsyncOpenAI(api_key="k", base_url="http://gateway/v1", http_client=http)
        stream = await client.responses.create(model="m", input="hi", stream=True)
        with pytest.raises(openai.APIError, match="the stream broke"):
            _ = [event async for event in stream]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UpstreamError("the stream broke"), "server_error"),
        (LimitError("too many"), "rate_limit_exceeded"),
        (LimitError("stopping", code="overloaded"), "server_error"),
    ],
)
def test_a_broken_stream_ends_with_both_events_of_a_failure(error: UpstreamError | LimitError, code: str) -> None:
    told = events(RESPONSES.stream(decoded(input="hi")).error(error, "req_1"))

    assert [event["type"] for event in told] == ["response.created", "response.in_progress", "error", "response.failed"]
    assert (told[2]["message"], told[2]["code"]) == (error.message, error.code)
    assert told[3]["response"]["error"] == {"code": code, "message": error.message}
    for event in told:
        TypeAdapter(ResponseStreamEvent).validate_python(event)


def test_an_error_before_the_answer_has_the_body_of_the_openai_api() -> None:
    body = msgspec.json.decode(RESPONSES.error(RequestError("no", param="input"), "req_1"))

    assert (body["error"]["message"], body["error"]["param"]) == ("no", "input")


# --- answers that were another request's

KEPT = completion(
    {
        "content": "Looking. Found it.",
        "content_items": [{"offset": 0, "id": "msg_kept1"}, {"offset": 9, "id": "msg_kept2"}],
        "reasoning_content": "One.",
        "reasoning_details": [
            {"type": "reasoning.summary", "index": 0, **OWN, "id": "rs_kept1", "summary": "One."},
            {"type": "reasoning.encrypted", "index": 1, **OWN, "id": "rs_kept1", "data": "opaque"},
            {"type": "reasoning.summary", "index": 2, **OWN, "id": "rs_kept2", "summary": ""},
        ],
        "tool_calls": [{**WEATHER[0], "item_id": "fc_kept"}],
        "provider_content": [
            {
                "dialect": "responses",
                "block": {
                    "type": "code_interpreter_call",
                    "id": "ci_kept",
                    "container_id": "cntr_kept",
                    "code": "1",
                    "outputs": None,
                    "status": "completed",
                },
            },
            {"dialect": "responses", "block": SEARCHED | {"id": "ws_kept"}},
        ],
        "annotations": [
            {
                "type": "container_file_citation",
                "container_file_citation": {
                    "container_id": "cntr_kept",
                    "file_id": "cfile_kept",
                    "filename": "a.csv",
                    "start_index": 0,
                    "end_index": 7,
                },
            }
        ],
    },
    finish="tool_calls",
    id="resp_kept",
)


def replaying(**fields: Any) -> Request:
    request = decoded(**{"input": "hi", **fields})
    request.replayed = True
    return request


def test_a_replayed_answer_has_no_id_under_which_the_provider_keeps_anything() -> None:
    whole_, stream = RESPONSES.whole(KEPT, replaying(**TOOLED)), streamed(KEPT, replaying(**TOOLED))

    assert b"kept" not in whole_ + stream
    ids = [msgspec.json.decode(whole_)["id"], events(stream)[-1]["response"]["id"], told_whole(KEPT, replaying())["id"]]
    assert len(set(ids)) == 3
    assert b"kept" in RESPONSES.whole(KEPT, decoded(input="hi"))
    assert b"kept" in streamed(KEPT, decoded(input="hi"))


def test_a_replayed_answer_is_the_same_but_for_its_ids() -> None:
    live, replayed = told_whole(KEPT), told_whole(KEPT, replaying())

    def without_ids(item: JsonObject) -> JsonObject:
        return {name: value for name, value in item.items() if name not in ("id", "container_id", "content")}

    assert list(map(without_ids, replayed["output"])) == list(map(without_ids, live["output"]))
    assert [item["id"].split("_")[:2] for item in replayed["output"]] == [
        [kind, "kg"] for kind in ("rs", "rs", "msg", "msg", "fc", "ci", "ws")
    ]
    assert len({item["id"] for item in replayed["output"]}) == 7
    citation, call = replayed["output"][2]["content"][0]["annotations"][0], replayed["output"][5]
    assert citation["container_id"] == call["container_id"]


@pytest.mark.parametrize("answer", [*ANSWERS.values(), KEPT], ids=[*ANSWERS, "kept"])
def test_the_events_of_a_replay_end_with_the_whole_answer(answer: Completion) -> None:
    request = replaying(**TOOLED)

    def named(told: JsonObject) -> JsonObject:
        base = told["id"].removeprefix("resp_kg_")
        renamed: JsonObject = msgspec.json.decode(msgspec.json.encode(told).replace(base.encode(), b"_"))
        return renamed

    told = events(streamed(answer, request))
    for event in told:
        strict(event)
    assert named(told[-1]["response"]) == named(told_whole(answer, request))
    assert misfit(told_whole(answer, request), Response) is None


def test_events_that_are_passed_on_to_another_client_have_the_ids_of_its_items() -> None:
    def event(**data: Any) -> bytes:
        return msgspec.json.encode(
            {"id": "resp_kept", "choices": [], "provider_event": {"dialect": "responses", "data": data}}
        )

    item = {"type": "web_search_call", "id": "ws_kept", "status": "in_progress", "action": {"type": "search"}}
    block = {"dialect": "responses", "block": {**item, "status": "completed"}}
    encoder = RESPONSES.stream(replaying())
    written = encoder.chunks(
        [
            event(type="response.output_item.added", output_index=0, item=item),
            event(type="response.web_search_call.searching", output_index=0, item_id="ws_kept"),
            msgspec.json.encode({"id": "resp_kept", "choices": [{"index": 0, "delta": {"provider_content": [block]}}]}),
        ]
    )
    told = events(written + encoder.end(KEPT))

    assert b"kept" not in written
    ids = [event["item"]["id"] if "item" in event else event["item_id"] for event in told if "output_index" in event]
    assert len(ids) == 3
    assert set(ids) == {told[-1]["response"]["output"][0]["id"]}


def test_a_replayed_answer_says_that_it_is_stored_nowhere() -> None:
    assert told_whole(KEPT, replaying(store=True))["store"] is False
    assert told_whole(KEPT, decoded(input="hi", store=True))["store"] is True


def test_ids_that_were_made_here_are_told_to_no_provider() -> None:
    output = told_whole(KEPT, replaying())["output"]

    request = decoded(input=[{"role": "user", "content": "hi"}, *output, {"role": "user", "content": "on"}])

    assert request.native is not None
    assert msgspec.json.decode(request.raw) == request.native
    assert [(item.get("type"), item.get("id")) for item in request.native["input"]] == [
        (None, None),
        ("reasoning", None),  # the one with nothing to read is gone: the provider finds it by its own id alone
        ("message", None),
        ("message", None),
        ("function_call", None),
        ("code_interpreter_call", output[5]["id"]),
        ("web_search_call", output[6]["id"]),
        (None, None),
    ]
    assert request.native["input"][1]["encrypted_content"] == "opaque"


@pytest.mark.parametrize("name", ["own reasoning", "readable reasoning", "two messages", "tools", "another order"])
def test_what_two_clients_go_on_to_ask_after_one_replayed_answer_is_one_question(name: str) -> None:
    def again() -> str:
        output = told_whole(ANSWERS[name], replaying())["output"]
        request = decoded(input=[{"role": "user", "content": "hi"}, *output, {"role": "user", "content": "on"}])
        return identity.exact_key(request.body, [msgspec.json.encode(request.beyond, order="deterministic").decode()])

    assert again() == again()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_kg_1"}, "previous_response_id"),
        ({"input": [{"type": "item_reference", "id": "msg_kg_1_0"}]}, "input[0].id"),
    ],
)
def test_nobody_is_asked_for_what_is_kept_nowhere(fields: JsonObject, param: str) -> None:
    with pytest.raises(RequestError) as refusal:
        decoded(**{"input": "hi", **fields})

    assert refusal.value.param == param


texts = st.text(max_size=12)
details = st.one_of(
    st.builds(
        lambda n, text: {
            "type": "reasoning.summary",
            "format": "openai-responses-v1",
            "id": f"rs_{n}",
            "summary": text,
        },
        st.integers(0, 2),
        texts,
    ),
    st.builds(
        lambda n, text: {"type": "reasoning.encrypted", "format": "openai-responses-v1", "id": f"rs_{n}", "data": text},
        st.integers(0, 2),
        texts,
    ),
    st.builds(
        lambda text: {"type": "reasoning.text", "format": "anthropic-claude-v1", "text": text, "signature": "s"}, texts
    ),
)
calls = st.builds(
    lambda name, text: {"type": "function", "function": {"name": name, "arguments": text}},
    st.sampled_from(["weather", "agents__spawn", "apply_patch", "other"]),
    texts,
)


@st.composite
def answers(draw: st.DrawFn) -> Completion:
    """Of every shape, with a layout that adds up."""
    message: JsonObject = {"content": draw(st.none() | texts)}
    lists: JsonObject = {
        "reasoning_details": [{**d, "index": i} for i, d in enumerate(draw(st.lists(details, max_size=3)))],
        "tool_calls": [{**c, "id": f"c{i}"} for i, c in enumerate(draw(st.lists(calls, max_size=3)))],
        "provider_content": [
            {"dialect": "responses", "block": {"type": "web_search_call", "id": f"ws_{i}"}}
            for i in range(draw(st.integers(0, 2)))
        ],
    }
    message |= {name: value for name, value in lists.items() if value}
    runs = [(name, 1) for name in replay.LAID_OUT for _ in message.get(name) or ()]
    if draw(st.booleans()):
        message["layout"] = draw(st.permutations(runs))
    for name in ("reasoning_content", "refusal"):
        if draw(st.booleans()):
            message[name] = draw(texts)
    return completion(message, finish=draw(st.sampled_from(["stop", "length", "tool_calls", "content_filter"])))


@settings(max_examples=examples(150), deadline=None)
@given(answers())
def test_whatever_an_answer_holds_its_events_come_to_the_whole_of_it(answer: Completion) -> None:
    request = decoded(input="hi", **TOOLED)

    assert events(streamed(answer, request))[-1]["response"] == told_whole(answer, request)


@settings(max_examples=100, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | texts,
        lambda inner: (
            st.lists(inner, max_size=2)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "role",
                        "content",
                        "refusal",
                        "annotations",
                        "content_items",
                        "reasoning_details",
                        "reasoning_content",
                        "tool_calls",
                        "provider_content",
                        "layout",
                        "function",
                        "custom",
                        "name",
                        "arguments",
                        "index",
                        "id",
                        "type",
                        "dialect",
                        "block",
                        "offset",
                    ]
                ),
                inner,
                max_size=4,
            )
        ),
    )
)
def test_an_answer_of_any_shape_is_told_somehow(message: Any) -> None:
    reply = {
        "id": message,
        "created": message,
        "model": message,
        "choices": [{"index": 0, "message": message}],
        "usage": message,
    }
    odd = Completion(msgspec.json.encode(reply), "m", Usage(1, 1), ("stop",))

    assert told_whole(odd)["object"] == "response"
    encoder = RESPONSES.stream(decoded(input="hi"))
    chunk = {"id": message, "choices": [{"index": 0, "delta": message}], "provider_event": message, "usage": message}
    assert events(encoder.chunks([msgspec.json.encode(chunk)]) + encoder.end(odd))[-1]["type"] == "response.completed"


def test_a_live_stream_comes_to_what_its_assembled_answer_is_told_as() -> None:
    body = msgspec.json.decode(ANSWERS["another order"].body)
    assembly = Assembly("chat")
    for chunk in replay.chunks(body, "chat", include_usage=True):
        assembly.add(chunk)

    assert told_whole(assembly.completion(Usage(11, 7)))["output"] == told_whole(ANSWERS["another order"])["output"]
