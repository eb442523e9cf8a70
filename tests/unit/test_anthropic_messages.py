"""Anthropic's dialect: what is asked in it, and what its clients read of an answer."""

import base64
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import anthropic
import httpx2
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.completion import Completion, Usage
from models.errors import (
    AccessError,
    ContentBlocked,
    GatewayError,
    LimitError,
    NotCached,
    RequestError,
    Untranslatable,
    UpstreamError,
)
from models.request import Request
from service.api.anthropic_messages import ANTHROPIC, counted_tokens, model_card, model_list
from service.api.anthropic_request import decode_count
from service.api.dialect import Asked
from service.api.openai_chat import OPENAI
from service.caching import replay
from service.caching.identity import exact_key
from tests.support.examples import examples

Json = dict[str, Any]

CHAT = Asked("chat")
USER = {"role": "user", "content": "hi"}
MARK = base64.b64encode(b"keepgate:").decode()
PIXEL = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
WEATHER = {"name": "weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}


def asked(*messages: Json, **fields: Any) -> Request:
    body = {"model": "m", "max_tokens": 9, "messages": list(messages) or [USER], **fields}
    return ANTHROPIC.decode(msgspec.json.encode(body), CHAT)


def refusal(**fields: Any) -> RequestError:
    body = {"model": "m", "max_tokens": 9, "messages": [USER], **fields}
    with pytest.raises(RequestError) as refused:
        ANTHROPIC.decode(msgspec.json.encode(body), CHAT)
    return refused.value


def completion(message: Json, *, usage: Json | None = None, **choice: Any) -> Completion:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": "stop", **choice}
    body = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    counted = usage or {"prompt_tokens": 12, "completion_tokens": 5, "total_tokens": 17}
    return Completion(msgspec.json.encode({**body, "usage": counted}), "m", Usage(12, 5), (choice["finish_reason"],))


def told(message: Json, **fields: Any) -> Json:
    answer: Json = msgspec.json.decode(ANTHROPIC.whole(completion(message, **fields), asked()))
    return answer


def streamed(done: Completion, *, include_usage: bool = True, batch: int = 3) -> bytes:
    chunks = list(replay.chunks(msgspec.json.decode(done.body), "chat", include_usage=include_usage))
    return encoded(chunks, done, batch=batch)


def encoded(chunks: Sequence[Json], done: Completion, *, batch: int = 1) -> bytes:
    encoder = ANTHROPIC.stream(asked(stream=True))
    payloads = [msgspec.json.encode(chunk) for chunk in chunks]
    parts = [encoder.chunks(payloads[at : at + batch]) for at in range(0, len(payloads), batch)]
    return b"".join([*parts, encoder.end(done)])


def delta(fields: Json, finish: str | None = None) -> Json:
    choice = {"index": 0, "delta": fields, "finish_reason": finish}
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "m", "choices": [choice]}


def call_delta(index: int, arguments: str, name: str | None = None) -> Json:
    opening = {"id": f"call_{index}", "type": "function"} if name else {}
    function = {"name": name, "arguments": arguments} if name else {"arguments": arguments}
    return delta({"tool_calls": [{"index": index, **opening, "function": function}]})


def events(stream: bytes) -> Iterator[tuple[str, Json]]:
    for event in stream.decode().split("\n\n")[:-1]:
        name, data = event.split("\n")
        yield name.removeprefix("event: "), msgspec.json.decode(data.removeprefix("data: "))


def client(status: int, content: bytes, media_type: str = "application/json") -> anthropic.Anthropic:
    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(status, headers={"content-type": media_type}, content=content, request=request)

    transport = httpx2.Client(transport=httpx2.MockTransport(answer))
    return anthropic.Anthropic(api_key="k", http_client=transport, max_retries=0)


def read_whole(content: bytes) -> anthropic.types.Message:
    sdk = client(200, content)
    return sdk.messages.create(model="m", max_tokens=9, messages=[{"role": "user", "content": "hi"}])


def read_stream(content: bytes) -> anthropic.types.Message:
    sdk = client(200, content, "text/event-stream")
    with sdk.messages.stream(model="m", max_tokens=9, messages=[{"role": "user", "content": "hi"}]) as stream:
        return stream.get_final_message()


# --- the question


def test_the_same_question_has_the_same_key_in_both_dialects() -> None:
    here = asked(
        {"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]},
        {"role": "assistant", "content": [{"type": "text", "text": "hello"}]},
        {"role": "user", "content": [{"type": "text", "text": "what is this?"}, PIXEL]},
        system=[{"type": "text", "text": "be brief", "cache_control": {"type": "ephemeral"}}],
        stop_sequences=["END"],
        temperature=0.5,
        tools=[WEATHER],
        tool_choice={"type": "auto"},
        metadata={"user_id": "somebody"},
        service_tier="auto",
        stream=True,
    )
    there = {
        "model": "m",
        "max_tokens": 9,
        "messages": [
            {"role": "developer", "content": "be brief"},
            USER,
            {"role": "assistant", "content": "hello", "refusal": None},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "what is this?"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}},
                ],
            },
        ],
        "stop": "END",
        "temperature": 0.5,
        "tools": [{"type": "function", "function": {"name": "weather", "parameters": WEATHER["input_schema"]}}],
    }

    assert exact_key(here.body, ()) == exact_key(OPENAI.decode(msgspec.json.encode(there), CHAT).body, ())
    assert (here.beyond, here.refused, here.dropped) == ({}, (), ())
    assert (here.stream, here.include_usage, here.dialect) == (True, True, "anthropic")


@pytest.mark.parametrize(
    ("fields", "canonical"),
    [
        ({"system": "be brief"}, {"messages": [{"role": "system", "content": "be brief"}, USER]}),
        ({"system": ""}, {}),
        ({"system": None, "metadata": None, "tools": None, "stop_sequences": None}, {}),
        ({"top_k": 5, "top_p": 0.9}, {"top_k": 5, "top_p": 0.9}),
        ({"tool_choice": {"type": "any"}}, {"tool_choice": "required"}),
        ({"tool_choice": {"type": "none"}}, {"tool_choice": "none"}),
        (
            {"tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True}},
            {"tool_choice": {"type": "function", "function": {"name": "f"}}, "parallel_tool_calls": False},
        ),
        ({"thinking": {"type": "enabled", "budget_tokens": 2048}}, {"reasoning_budget": 2048}),
        ({"thinking": {"type": "disabled"}}, {"reasoning_budget": 0}),
        ({"thinking": {"type": "adaptive"}}, {"reasoning_budget": -1}),
        ({"output_config": {"effort": "max"}}, {"reasoning_effort": "max"}),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": True},
                }
            },
        ),
        ({"metadata": {"user_id": "u"}, "diagnostics": {"previous_message_id": "msg_1"}}, {"user": "u"}),
        ({"metadata": {"user_id": "u" * 64}}, {"user": "u" * 64}),
        (
            {"metadata": {"user_id": "u" * 65}},  # too long for OpenAI
            {"user": "f20e249d15fa4b9f44ba21d154f62e1efa76ddfdce5d25139a33a4787cee5a8b"},
        ),
        (
            {
                "tools": [
                    {**WEATHER, "type": "custom", "strict": True, "description": "d", "eager_input_streaming": True}
                ]
            },
            {
                "tools": [
                    {
                        "type": "function",
                        "function": {
                            "name": "weather",
                            "description": "d",
                            "parameters": WEATHER["input_schema"],
                            "strict": True,
                        },
                    }
                ]
            },
        ),
    ],
)
def test_a_field_has_its_canonical_form(fields: Json, canonical: Json) -> None:
    request = asked(**fields)

    assert request.body == {"model": "m", "max_completion_tokens": 9, "messages": [USER], **canonical}
    assert (request.beyond, request.refused, request.dropped) == ({}, (), ())


@pytest.mark.parametrize(
    ("block", "parts"),
    [
        ({"type": "text", "text": "a"}, "a"),
        (
            {"type": "image", "source": {"type": "url", "url": "https://a.example/b.png"}},
            [{"type": "image_url", "image_url": {"url": "https://a.example/b.png"}}],
        ),
        (
            {
                "type": "document",
                "title": "a.pdf",
                "source": {"type": "base64", "media_type": "application/pdf", "data": "aGk="},
            },
            [{"type": "file", "file": {"file_data": "data:application/pdf;base64,aGk=", "filename": "a.pdf"}}],
        ),
        (
            {
                "type": "document",
                "context": "a contract",
                "source": {"type": "url", "url": "https://a.example/b.pdf"},
            },
            [
                {"type": "text", "text": "a contract"},
                {"type": "file", "file": {"file_url": "https://a.example/b.pdf"}},
            ],
        ),
        ({"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "words"}}, "words"),
        (
            {
                "type": "document",
                "title": "T",
                "source": {"type": "content", "content": [{"type": "text", "text": "w"}]},
            },
            [{"type": "text", "text": "T"}, {"type": "text", "text": "w"}],
        ),
        (
            {"type": "search_result", "title": "T", "source": "S", "content": [{"type": "text", "text": "found"}]},
            "T\nS\n\nfound",
        ),
    ],
)
def test_a_block_has_its_canonical_part(block: Json, parts: str | list[Json]) -> None:
    request = asked({"role": "user", "content": [{**block, "cache_control": {"type": "ephemeral"}}]})

    assert request.body["messages"] == [{"role": "user", "content": parts}]
    assert (request.refused, request.dropped) == ((), ())


def _document(**fields: Any) -> Json:
    source = {"type": "text", "media_type": "text/plain", "data": "words"}
    return {"type": "document", "source": source, **fields}


def _found(title: str, source: str) -> Json:
    return {"type": "search_result", "title": title, "source": source, "content": [{"type": "text", "text": "found"}]}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (_document(title="a\nb"), _document(title="a", context="b")),
        (_found("a\nb", "c"), _found("a", "b\nc")),
        (_document(), _document(source={**_document()["source"], "page": 2})),
        (_document(), _document(citations={"enabled": False, "style": "long"})),
    ],
)
def test_what_is_joined_or_unknown_still_tells_two_questions_apart(one: Json, other: Json) -> None:
    first, second = (asked({"role": "user", "content": [block]}) for block in (one, other))

    assert (first.body, first.beyond) != (second.body, second.beyond)


def test_a_name_of_the_clients_own_does_not_pass_for_a_path() -> None:
    said = {"thinking": {"type": "adaptive", "display": "omitted"}}
    posed = {"thinking": {"type": "adaptive"}, "thinking.display": "omitted"}

    first, second = (asked({"role": "user", "content": "Hi"}, **fields) for fields in (said, posed))

    assert first.beyond != second.beyond


def test_a_round_of_tools_becomes_calls_and_results() -> None:
    use = {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Rom"}, "caller": {"type": "direct"}}
    results = [
        {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "sun"}, PIXEL]},
        {"type": "tool_result", "tool_use_id": "t2", "content": "no such city", "is_error": True},
        {"type": "tool_result", "tool_use_id": "t3"},
        {"type": "text", "text": "and now?"},
    ]

    request = asked(USER, {"role": "assistant", "content": [use]}, {"role": "user", "content": results})

    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}
    call = {"id": "t1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Rom"}'}}
    assert request.body["messages"] == [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "t1", "content": [{"type": "text", "text": "sun"}, image]},
        {"role": "tool", "tool_call_id": "t2", "content": "no such city", "is_error": True},
        {"role": "tool", "tool_call_id": "t3", "content": ""},
        {"role": "user", "content": "and now?"},
    ]
    assert (request.beyond, request.refused) == ({}, ())


def test_signed_reasoning_travels_with_its_turn() -> None:
    blocks = [
        {"type": "thinking", "thinking": "hm", "signature": "SIG"},
        {"type": "redacted_thinking", "data": "XX"},
        {"type": "text", "text": "yes"},
    ]

    request = asked(USER, {"role": "assistant", "content": blocks}, USER)

    assert request.body["messages"][1] == {
        "role": "assistant",
        "content": "yes",
        "reasoning_content": "hm",
        "reasoning_details": [
            {"type": "reasoning.text", "index": 0, "format": "anthropic-claude-v1", "text": "hm", "signature": "SIG"},
            {"type": "reasoning.encrypted", "index": 1, "format": "anthropic-claude-v1", "data": "XX"},
        ],
    }
    assert (request.beyond, request.refused) == ({}, ())


@pytest.mark.parametrize(
    ("fields", "refused"),
    [
        ({"tools": [WEATHER, {"type": "web_search_20260318", "name": "web_search"}]}, "tools[1] (web_search_20260318)"),
        ({"container": "c1"}, "container"),
        ({"mcp_servers": [{"type": "url", "url": "https://a.example", "name": "a"}]}, "mcp_servers"),
        ({"inference_geo": "us"}, "inference_geo"),
        ({"messages": [USER, {"role": "assistant", "content": "{"}]}, "messages[1] (the beginning of the answer)"),
        (
            {"messages": [{"role": "user", "content": [{"type": "container_upload", "file_id": "f"}]}]},
            "messages[0].content[0] (container_upload)",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image", "source": {"type": "file", "file_id": "f"}}]}
                ]
            },
            "messages[0].content[0] (image from file)",
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {
                                "type": "document",
                                "citations": {"enabled": True},
                                "source": {"type": "text", "media_type": "text/plain", "data": "w"},
                            }
                        ],
                    }
                ]
            },
            "messages[0].content[0].citations",
        ),
        (
            {"messages": [USER, {"role": "system", "content": "x", "clear_at": "next_user_message"}, USER]},
            "messages[1].clear_at",
        ),
    ],
)
def test_what_changes_the_answer_and_only_this_dialect_has_is_named(fields: Json, refused: str) -> None:
    request = asked(**fields)

    assert request.refused == (refused,)
    assert exact_key({**request.body, "beyond": request.beyond}, ()) != exact_key(request.body, ())


def test_blocks_of_this_dialect_alone_are_kept_as_they_came_and_in_their_place() -> None:
    search = {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {"query": "x"}}
    turn = {"role": "assistant", "content": [search, {"type": "text", "text": "yes"}]}

    request = asked(USER, turn, USER)

    assert request.body["messages"][1] == {
        "role": "assistant",
        "content": "yes",
        "provider_content": [{"dialect": "anthropic", "block": search}],
    }
    assert request.refused == ("messages[1].content[0] (server_tool_use)",)
    assert request.beyond["messages[1].order"] == ["other", "text"]


def test_what_does_no_harm_when_missing_is_part_of_the_question_but_not_refused() -> None:
    request = asked(service_tier="standard_only", context_management={"edits": []}, speed="standard")

    assert request.beyond == {"service_tier": "standard_only", "context_management": {"edits": []}}
    assert (request.refused, request.dropped) == ((), ())


def test_fields_nobody_knows_are_named_wherever_they_are() -> None:
    request = asked({"role": "user", "content": [{"type": "text", "text": "a", "mood": 1}], "tone": 2}, colour="red")

    assert request.dropped == ("messages[0].tone", "messages[0].content[0].mood", "colour")
    assert request.beyond == {"messages[0].tone": 2, "messages[0].content[0].mood": 1, "colour": "red"}


def test_what_the_client_wrote_is_kept_beside_its_translation() -> None:
    raw = b'{"model": "m", "max_tokens": 9,  "messages": [{"role": "user", "content": "hi"}]}'

    request = ANTHROPIC.decode(raw, CHAT)

    assert request.raw is raw
    assert request.native == msgspec.json.decode(raw)


def test_a_thread_goes_on_with_nothing_new_and_nothing_else_does() -> None:
    thread = {"type": "continue", "previous_message_id": "msg_1"}
    body = {"model": "m", "max_tokens": 9, "messages": [], "thread": thread}

    request = ANTHROPIC.decode(msgspec.json.encode(body), CHAT)

    assert request.native == body
    assert request.refused == ("thread",)
    assert refusal(messages=[], thread={"type": "create"}).param == "messages"


def test_a_count_of_tokens_needs_no_limit() -> None:
    raw = msgspec.json.encode({"model": "m", "messages": [USER], "system": "s"})

    assert decode_count(raw).body == {"model": "m", "messages": [{"role": "system", "content": "s"}, USER]}
    with pytest.raises(RequestError, match="max_tokens"):
        ANTHROPIC.decode(raw, CHAT)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": 3}, "model"),
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0]"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_result", "content": "x"}]}]},
            "messages[0].content[0].tool_use_id",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "thinking", "thinking": "x"}]}]},
            "messages[0].content[0]",
        ),
        ({"messages": [{"role": "assistant", "content": [PIXEL]}]}, "messages[0].content[0]"),
        (
            {
                "messages": [
                    {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "b", "input": "c"}]}
                ]
            },
            "messages[0].content[0].input",
        ),
        ({"system": 1}, "system"),
        ({"stream": "yes"}, "stream"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_k": 0.5}, "top_k"),
        ({"stop_sequences": "END"}, "stop_sequences"),
        ({"stop_sequences": [1]}, "stop_sequences[0]"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "sometimes"}}, "thinking.type"),
        ({"metadata": "x"}, "metadata"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type"),
    ],
)
def test_a_body_that_cannot_be_used_is_refused_with_the_field(fields: Json, param: str) -> None:
    refused = refusal(**fields)

    assert refused.param == param
    assert refused.code == "invalid_request"
    assert param.partition("[")[0].partition(".")[0] in refused.message


EVERYTHING: Json = {
    "model": "m",
    "max_tokens": 9,
    "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "a"}, PIXEL]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": MARK},
                {"type": "redacted_thinking", "data": "XX"},
                {"type": "text", "text": "b", "citations": []},
                {"type": "tool_use", "id": "t", "name": "f", "input": {}},
                {"type": "server_tool_use", "id": "s", "name": "g", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "t",
                    "content": [{"type": "text", "text": "c"}],
                    "is_error": True,
                },
                {"type": "document", "title": "T", "source": {"type": "content", "content": [PIXEL]}},
                {"type": "document", "source": {"type": "url", "url": "u"}, "citations": {"enabled": True}},
                {"type": "search_result", "title": "t", "source": "s", "content": [{"type": "text", "text": "d"}]},
            ],
        },
        {"role": "system", "content": [{"type": "text", "text": "e"}], "output_config": {"effort": "low"}},
    ],
    "tools": [{**WEATHER, "strict": True}, {"type": "bash_20250124", "name": "bash"}],
    "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True},
    "thinking": {"type": "enabled", "budget_tokens": 2048, "display": "omitted"},
    "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": {}}},
    "stop_sequences": ["a"],
    "temperature": 1,
    "top_k": 1,
    "metadata": {"user_id": "u"},
    "container": {"id": "c"},
    "context_management": {"edits": []},
    "stream": True,
}


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from paths(value[key], (*path, key))


def outcome(body: Json) -> Request | RequestError:
    try:
        return ANTHROPIC.decode(msgspec.json.encode(body), CHAT)
    except RequestError as refused:
        return refused


WRONG: tuple[Any, ...] = (None, True, 0, -1.5, "", "x", [], [[]], [None], {}, {"type": 1}, {"type": "x"})


@pytest.mark.parametrize("path", list(paths(EVERYTHING))[1:], ids=str)
def test_no_type_of_value_anywhere_is_more_than_a_refusal(path: tuple[Any, ...]) -> None:
    outcomes = []
    for wrong in WRONG:
        body = inner = msgspec.json.decode(msgspec.json.encode(EVERYTHING))
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = wrong
        outcomes.append(outcome(body))

    assert all(result.body["messages"] if isinstance(result, Request) else result.param for result in outcomes)


# --- the answer


@pytest.mark.parametrize(
    ("message", "content"),
    [
        ({"content": "hello"}, [{"type": "text", "text": "hello"}]),
        ({"content": None}, []),
        (
            {"content": "yes", "reasoning_content": "hm"},
            [{"type": "thinking", "thinking": "hm", "signature": MARK}, {"type": "text", "text": "yes"}],
        ),
        (
            {
                "content": "yes",
                "reasoning_content": "hm",
                "reasoning_details": [
                    {"type": "reasoning.text", "format": "anthropic-claude-v1", "text": "hm", "signature": "SIG"},
                    {"type": "reasoning.encrypted", "format": "anthropic-claude-v1", "data": "XX"},
                ],
                "layout": [["content", 1], ["reasoning_details", 2], ["content", 2]],
            },
            [
                {"type": "text", "text": "y"},
                {"type": "thinking", "thinking": "hm", "signature": "SIG"},
                {"type": "redacted_thinking", "data": "XX"},
                {"type": "text", "text": "es"},
            ],
        ),
        ({"content": "yes", "layout": [["content", 2]]}, [{"type": "text", "text": "yes"}]),
        (
            {"content": "", "tool_calls": [{"id": "c1", "function": {"name": "f", "arguments": '{"a":1}'}}]},
            [{"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}}],
        ),
        (
            {"content": None, "tool_calls": [{"id": "c1", "function": {"name": "f", "arguments": '{"a":'}}]},
            [{"type": "tool_use", "id": "c1", "name": "f", "input": {"INVALID_JSON": '{"a":'}}],
        ),
        (
            {"content": None, "tool_calls": [{"function": {"name": "f", "arguments": ""}}]},
            [{"type": "tool_use", "id": "toolu_chatcmpl-1_0", "name": "f", "input": {}}],
        ),
        ({"content": None, "refusal": "no"}, [{"type": "text", "text": "no"}]),
        (
            {
                "content": None,
                "tool_calls": [
                    {
                        "id": "a",
                        "function": {"name": "f"},
                        "caller": {"type": "code_execution_20260120", "tool_id": "s"},
                    },
                    {"id": "b", "function": {"name": "f"}, "caller": {"type": "agent"}, "toolset_name": "browser"},
                ],
            },
            [
                {
                    "type": "tool_use",
                    "id": "a",
                    "name": "f",
                    "input": {},
                    "caller": {"type": "code_execution_20260120", "tool_id": "s"},
                },
                {"type": "tool_use", "id": "b", "name": "f", "input": {}, "toolset_name": "browser"},
            ],
        ),
        (
            {
                "content": "it is so",
                "provider_content": [
                    {"dialect": "gemini", "block": {"type": "x"}},
                    {"dialect": "anthropic", "block": {"type": "text_citations", "length": 2, "citations": [{"a": 1}]}},
                    {"dialect": "anthropic", "block": {"type": "container_upload", "file_id": "f"}},
                ],
            },
            [
                {"type": "text", "text": "it is "},
                {"type": "text", "text": "so", "citations": [{"a": 1}]},
                {"type": "container_upload", "file_id": "f"},
            ],
        ),
    ],
)
def test_an_answer_has_its_blocks_in_their_order(message: Json, content: list[Json]) -> None:
    assert told(message)["content"] == content


@pytest.mark.parametrize(
    ("choice", "message", "reason", "sequence"),
    [
        ({"finish_reason": "stop"}, {}, "end_turn", None),
        ({"finish_reason": "length"}, {}, "max_tokens", None),
        ({"finish_reason": "tool_calls"}, {}, "tool_use", None),
        ({"finish_reason": "content_filter"}, {}, "refusal", None),
        ({"finish_reason": "stop", "native_finish_reason": "pause_turn"}, {}, "pause_turn", None),
        ({"finish_reason": "stop", "native_finish_reason": "STOP"}, {}, "end_turn", None),
        ({"finish_reason": "content_filter", "native_finish_reason": "end_turn"}, {}, "refusal", None),
        ({"finish_reason": "stop", "stop_sequence": "END"}, {}, "stop_sequence", "END"),
        ({"finish_reason": "stop"}, {"tool_calls": [{"function": {"name": "f"}}]}, "tool_use", None),
        ({"finish_reason": "stop"}, {"refusal": "no"}, "refusal", None),
    ],
)
def test_an_answer_ends_for_a_reason_of_this_dialect(
    choice: Json, message: Json, reason: str, sequence: str | None
) -> None:
    done = completion({"content": "x", **message}, **choice)

    answers = [read_whole(ANTHROPIC.whole(done, asked())), read_stream(streamed(done))]

    assert [(answer.stop_reason, answer.stop_sequence) for answer in answers] == [(reason, sequence)] * 2


def test_tokens_read_from_the_cache_are_counted_beside_the_others() -> None:
    usage = {
        "prompt_tokens": 100,
        "completion_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 60, "cache_write_tokens": 30},
        "completion_tokens_details": {"reasoning_tokens": 4},
        "provider_usage": {"dialect": "anthropic", "service_tier": "priority"},
    }

    assert told({"content": "x"}, usage=usage)["usage"] == {
        "input_tokens": 10,
        "cache_creation_input_tokens": 30,
        "cache_read_input_tokens": 60,
        "output_tokens": 7,
        "output_tokens_details": {"thinking_tokens": 4},
        "service_tier": "priority",
    }


def test_reasoning_of_another_maker_comes_back_and_is_kept_from_anthropic() -> None:
    details = [
        {"type": "reasoning.summary", "index": 0, "format": "openai-responses-v1", "summary": "hm"},
        {"type": "reasoning.encrypted", "index": 1, "format": "openai-responses-v1", "data": "sealed"},
    ]
    answer = told({"content": "yes", "reasoning_content": "hm", "reasoning_details": details})

    request = asked(USER, {"role": "assistant", "content": answer["content"]}, USER)

    assert request.body["messages"][1] == {
        "role": "assistant",
        "content": "yes",
        "reasoning_content": "hm",
        "reasoning_details": details,
    }
    kept = [USER, {"role": "assistant", "content": [{"type": "text", "text": "yes"}]}, USER]
    assert request.native is not None
    assert request.native["messages"] == kept
    assert msgspec.json.decode(request.raw)["messages"] == kept


def test_a_signature_after_the_answer_does_not_hide_it() -> None:
    sealed = {"type": "reasoning.encrypted", "index": 0, "format": "google-gemini-v1", "data": "sealed"}
    last = [["content", 3], ["reasoning_details", 1]]
    done = completion({"content": "yes", "reasoning_details": [sealed], "layout": last})
    chunks = [delta({"content": "yes"}), delta({"reasoning_details": [sealed]}, "stop")]

    answers = [
        read_whole(ANTHROPIC.whole(done, asked())),
        read_stream(streamed(done)),
        read_stream(encoded(chunks, done)),
    ]

    assert [[block.type for block in answer.content] for answer in answers] == [["text"]] * 3


def test_a_signature_before_the_answer_is_told_with_nothing_to_read() -> None:
    sealed = {"type": "reasoning.encrypted", "index": 0, "format": "google-gemini-v1", "data": "sealed"}
    done = completion({"content": "yes", "reasoning_details": [sealed]})
    chunks = [delta({"reasoning_details": [sealed]}), delta({"content": "yes"}, "stop")]

    answers = [read_whole(ANTHROPIC.whole(done, asked())), read_stream(encoded(chunks, done))]

    assert [[block.type for block in answer.content] for answer in answers] == [["thinking", "text"]] * 2


def test_a_turn_of_nothing_but_another_makers_reasoning_is_no_turn_for_anthropic() -> None:
    turn = {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "signature": f"{MARK}not base64"}]}

    request = asked(USER, turn, {"role": "user", "content": "go on"})

    assert request.body["messages"][1] == {"role": "assistant", "content": "", "reasoning_content": "hm"}
    assert request.native is not None
    assert request.native["messages"] == [USER, {"role": "user", "content": "go on"}]


# --- the stream


def test_a_stream_has_the_events_of_the_api_in_their_order() -> None:
    chunks = [
        delta({"role": "assistant", "content": ""}),
        delta({"reasoning_content": "hm"}),
        delta({"content": "It "}),
        delta({"content": "is"}),
        call_delta(0, "", "f"),
        call_delta(0, '{"a":1}'),
        delta({}, "tool_calls"),
        {"id": "chatcmpl-1", "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}},
    ]

    told = list(events(encoded(chunks, completion({}))))

    assert all(name == event["type"] for name, event in told)
    assert [(name, event.get("index"), event.get("content_block", event.get("delta", {}))) for name, event in told] == [
        ("message_start", None, {}),
        ("content_block_start", 0, {"type": "thinking", "thinking": "", "signature": ""}),
        ("content_block_delta", 0, {"type": "thinking_delta", "thinking": "hm"}),
        ("content_block_delta", 0, {"type": "signature_delta", "signature": MARK}),
        ("content_block_stop", 0, {}),
        ("content_block_start", 1, {"type": "text", "text": ""}),
        ("content_block_delta", 1, {"type": "text_delta", "text": "It "}),
        ("content_block_delta", 1, {"type": "text_delta", "text": "is"}),
        ("content_block_stop", 1, {}),
        ("content_block_start", 2, {"type": "tool_use", "id": "call_0", "name": "f", "input": {}}),
        ("content_block_delta", 2, {"type": "input_json_delta", "partial_json": '{"a":1}'}),
        ("content_block_stop", 2, {}),
        ("message_delta", None, {"stop_reason": "tool_use", "stop_sequence": None, "stop_details": None}),
        ("message_stop", None, {}),
    ]
    assert told[0][1]["message"] | {"usage": None} == {
        "id": "msg_chatcmpl-1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "stop_details": None,
        "usage": None,
    }
    assert told[-2][1]["usage"]["input_tokens"] == 3
    assert told[-2][1]["usage"]["output_tokens"] == 4


def open_blocks(stream: bytes) -> list[int]:
    """How many blocks were open after each event; the API never has more than one."""
    steps = {"content_block_start": 1, "content_block_stop": -1}
    return list(itertools.accumulate(steps.get(name, 0) for name, _ in events(stream)))


def test_parallel_calls_that_arrive_interleaved_are_told_one_after_the_other() -> None:
    chunks = [
        call_delta(0, '{"a":', "f"),
        call_delta(1, '{"b"', "g"),
        call_delta(0, "{}"),
        call_delta(1, ":2"),
        call_delta(0, "}"),
        call_delta(1, "}"),
        delta({"content": "done"}),
        delta({}, "tool_calls"),
    ]

    stream = encoded(chunks, completion({}))

    assert max(open_blocks(stream)) == 1
    assert [block.to_dict() for block in read_stream(stream).content] == [
        {"type": "tool_use", "id": "call_0", "name": "f", "input": {"a": {}}},
        {"type": "tool_use", "id": "call_1", "name": "g", "input": {"b": 2}},
        {"type": "text", "text": "done"},
    ]


def test_a_call_is_told_as_it_arrives_once_the_one_before_is_complete() -> None:
    encoder = ANTHROPIC.stream(asked())
    encoder.chunks([msgspec.json.encode(call_delta(0, '{"a":1}', "f"))])

    later = encoder.chunks([msgspec.json.encode(call_delta(1, '{"b":', "g"))])

    assert [name for name, _ in events(later)] == [
        "content_block_stop",
        "content_block_start",
        "content_block_delta",
    ]


def test_a_text_is_told_as_soon_as_it_arrives() -> None:
    encoder = ANTHROPIC.stream(asked())

    first = encoder.chunks([msgspec.json.encode(delta({"content": "a"}))])

    assert [name for name, _ in events(first)] == ["message_start", "content_block_start", "content_block_delta"]


def test_usage_that_no_chunk_had_is_read_from_the_whole() -> None:
    message = read_stream(streamed(completion({"content": "x"}), include_usage=False))

    assert (message.usage.input_tokens, message.usage.output_tokens) == (12, 5)


def test_an_empty_stream_is_still_a_message() -> None:
    message = read_stream(encoded([], completion({"content": ""})))

    assert (message.id, message.content, message.stop_reason) == ("msg_chatcmpl-1", [], "end_turn")


def test_two_texts_are_two_where_the_provider_said_so() -> None:
    stop = {"type": "content_block_stop", "index": 0}
    cited = {"type": "text_citations", "length": 1, "citations": [{"type": "char_location", "cited_text": "c"}]}
    chunks = [
        delta({"content": "a"}),
        {"choices": [], "provider_event": {"dialect": "anthropic", "data": stop}},
        delta({"content": "b"}),
        delta({"provider_content": [{"dialect": "anthropic", "block": cited}]}),
        delta({"content": "c"}),
    ]

    stream = encoded(chunks, completion({}))

    assert [block.text for block in read_stream(stream).content if block.type == "text"] == ["a", "b", "c"]
    assert [event["index"] for _, event in events(stream) if event.get("delta", {}).get("citation")] == [1]


def test_an_event_of_this_dialect_is_passed_on() -> None:
    chunks = [{"choices": [], "provider_event": {"dialect": "anthropic", "data": {"type": "news", "x": 1}}}]

    assert ("news", {"type": "news", "x": 1}) in events(encoded(chunks, completion({})))


def test_a_stream_that_breaks_says_so() -> None:
    encoder = ANTHROPIC.stream(asked())
    begun = encoder.chunks([msgspec.json.encode(delta({"content": "a"}))])

    stream = begun + encoder.error(LimitError("later", code="overloaded"), "req_1")

    with pytest.raises(anthropic.APIStatusError, match="later"):
        read_stream(stream)
    name, event = list(events(stream))[-1]
    assert name == "error"
    assert event == {
        "type": "error",
        "error": {"type": "overloaded_error", "message": "later", "code": "overloaded"},
        "request_id": "req_1",
    }


TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30)
OWN: Json = {"format": "anthropic-claude-v1"}
PIECES = st.one_of(
    st.tuples(st.just("content"), TEXTS),
    st.tuples(
        st.just("reasoning_details"),
        st.one_of(
            st.builds(
                lambda text, signed: {**OWN, "type": "reasoning.text", "text": text, "signature": signed}, TEXTS, TEXTS
            ),
            st.builds(lambda sealed: {**OWN, "type": "reasoning.encrypted", "data": sealed}, TEXTS),
            st.builds(lambda text: {"format": "x", "type": "reasoning.summary", "summary": text}, TEXTS),
            st.builds(lambda sealed: {"format": "x", "type": "reasoning.encrypted", "data": sealed}, TEXTS),
        ),
    ),
    st.tuples(
        st.just("tool_calls"),
        st.builds(
            lambda name, value: {
                "id": "call_" + str(len(name)),
                "type": "function",
                "function": {"name": name, "arguments": msgspec.json.encode(value).decode()},
            },
            TEXTS,
            st.dictionaries(TEXTS, st.one_of(TEXTS, st.integers(-9, 9), st.none(), st.booleans()), max_size=3),
        ),
    ),
    st.tuples(
        st.just("provider_content"),
        st.sampled_from(
            [
                {"dialect": "anthropic", "block": {"type": "container_upload", "file_id": "f"}},
                {
                    "dialect": "anthropic",
                    "block": {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {"query": "x"}},
                },
                {"dialect": "gemini", "block": {"type": "executable_code"}},
            ]
        ),
    ),
)


def message_of(pieces: Sequence[tuple[str, Any]], *, laid_out: bool) -> Json:
    message: Json = {"content": ""}
    layout: list[list[Any]] = []
    for name, piece in pieces:
        if name == "reasoning_details":
            piece = {**piece, "index": len(message.get(name, ()))}
        message[name] = message[name] + piece if name == "content" else [*message.get(name, ()), piece]
        size = len(piece) if name == "content" else 1
        if layout and layout[-1][0] == name:
            layout[-1][1] += size
        else:
            layout.append([name, size])
    readable = [item.get("text") or item.get("summary") or "" for item in message.get("reasoning_details", ())]
    if any(readable):
        message["reasoning_content"] = "".join(readable)
    return {**message, "layout": layout} if laid_out else message


@settings(max_examples=examples(150), deadline=None)
@given(
    pieces=st.lists(PIECES, max_size=8),
    laid_out=st.booleans(),
    batch=st.integers(1, 9),
    extra=st.sampled_from([{}, {"refusal": "no"}]),
)
def test_a_replayed_stream_adds_up_to_the_whole_answer(
    pieces: list[tuple[str, Any]], laid_out: bool, batch: int, extra: Json
) -> None:
    done = completion({**message_of(pieces, laid_out=laid_out), **extra})

    stream = streamed(done, batch=batch)

    assert set(open_blocks(stream)) <= {0, 1}
    assert read_stream(stream).to_dict() == read_whole(ANTHROPIC.whole(done, asked())).to_dict()


JSON_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.text(max_size=3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["index", "type", "text", "block", "dialect", "function", "arguments", "format", "data"]),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=8,
)


@settings(max_examples=examples(150), deadline=None)
@given(
    fields=st.dictionaries(
        st.sampled_from(
            [
                *("content", "reasoning_content", "reasoning_details", "tool_calls", "provider_content"),
                *("refusal", "layout", "reasoning"),
            ]
        ),
        JSON_VALUES,
    ),
    usage=JSON_VALUES,
    choice=st.dictionaries(st.sampled_from(["stop_sequence", "native_finish_reason", "stop_details"]), JSON_VALUES),
    fields_of_provider=JSON_VALUES,
)
def test_no_type_of_value_in_an_answer_stops_it(
    fields: Json, usage: Any, choice: Json, fields_of_provider: Any
) -> None:
    done = completion(fields, usage={"prompt_tokens": usage, "prompt_tokens_details": usage}, **choice)
    chunk = delta(fields) | {"provider_fields": fields_of_provider, "provider_event": usage}
    chunk["choices"][0] |= choice

    whole = msgspec.json.decode(ANTHROPIC.whole(done, asked()))

    assert whole["type"] == "message"
    assert list(events(encoded([chunk], done)))[-1][0] == "message_stop"


# --- errors, models, counts


@pytest.mark.parametrize(
    ("error", "status", "kind", "raised"),
    [
        (RequestError("x"), 400, "invalid_request_error", anthropic.BadRequestError),
        (ContentBlocked("x"), 400, "invalid_request_error", anthropic.BadRequestError),
        (AccessError("x"), 401, "authentication_error", anthropic.AuthenticationError),
        (LimitError("x", code="budget_exceeded"), 402, "billing_error", anthropic.APIStatusError),
        (AccessError("x", code="not_allowed"), 403, "permission_error", anthropic.PermissionDeniedError),
        (RequestError("x", code="model_not_found"), 404, "not_found_error", anthropic.NotFoundError),
        (RequestError("x", code="request_timeout"), 408, "timeout_error", anthropic.APIStatusError),
        (RequestError("x", code="request_too_large"), 413, "request_too_large", anthropic.APIStatusError),
        (LimitError("x"), 429, "rate_limit_error", anthropic.RateLimitError),
        (GatewayError("x"), 500, "api_error", anthropic.InternalServerError),
        (UpstreamError("x"), 502, "api_error", anthropic.InternalServerError),
        (UpstreamError("x", code="upstream_unavailable"), 503, "api_error", anthropic.InternalServerError),
        (LimitError("x", code="overloaded"), 503, "overloaded_error", anthropic.InternalServerError),
        (UpstreamError("x", code="upstream_timeout"), 504, "timeout_error", anthropic.InternalServerError),
        (NotCached("x"), 504, "api_error", anthropic.InternalServerError),
    ],
)
def test_an_error_has_the_shape_and_the_types_of_the_api(
    error: GatewayError, status: int, kind: str, raised: type[anthropic.APIStatusError]
) -> None:
    body = ANTHROPIC.error(error, "req_1")

    with pytest.raises(raised) as seen:
        client(status, body).messages.count_tokens(model="m", messages=[{"role": "user", "content": "hi"}])
    assert seen.value.type == kind
    assert msgspec.json.decode(body) == {
        "type": "error",
        "error": {"type": kind, "message": "x", "code": error.code},
        "request_id": "req_1",
    }


def test_a_providers_own_words_are_kept_in_its_dialect_and_told_in_another() -> None:
    own = b'{"type":"error","error":{"type":"invalid_request_error","message":"too long"}}'
    here = UpstreamError("x", status=400, body=own, dialect="anthropic")
    there = UpstreamError("x", status=404, body=b'{"error":{"message":"no such model"}}', dialect="openai")

    assert ANTHROPIC.error(here, "req_1") == own
    assert msgspec.json.decode(ANTHROPIC.error(there, "req_1"))["error"] == {
        "type": "not_found_error",
        "message": "no such model",
        "code": "upstream_error",
    }


def test_a_thread_that_cannot_be_held_is_refused_in_the_words_on_which_sdks_go_on_without() -> None:
    error = Untranslatable(["tools[0]", "thread"], dialect="openai")

    assert msgspec.json.decode(ANTHROPIC.error(error, "req_1"))["error"]["details"] == {
        "error_code": "thread_unsupported_request"
    }


def test_models_are_listed_in_the_shape_of_the_api() -> None:
    page = client(200, model_list([("a", "openai"), ("b", "local")])).models.list()

    assert [(model.id, model.type, model.display_name) for model in page] == [("a", "model", "a"), ("b", "model", "b")]
    assert (page.first_id, page.last_id, page.has_more) == ("a", "b", False)
    assert msgspec.json.decode(model_list([])) == {"data": [], "has_more": False, "first_id": None, "last_id": None}
    assert client(200, model_card("a", "openai")).models.retrieve("a").id == "a"


def test_a_count_has_the_shape_of_the_api() -> None:
    sdk = client(200, counted_tokens(7))

    assert sdk.messages.count_tokens(model="m", messages=[{"role": "user", "content": "hi"}]).input_tokens == 7
