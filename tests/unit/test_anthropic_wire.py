import base64
import copy
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from anthropic.types.message_create_params import MessageCreateParams
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.chat.completion_create_params import CompletionCreateParamsBase

from backends.upstream import anthropic_request
from backends.upstream.anthropic import AnthropicWire
from backends.upstream.base import Call
from backends.upstream.wire import Unreadable
from models.completion import Chunk, Usage
from models.errors import RequestError, Untranslatable
from service.caching.assembly import Assembly
from tests.support.examples import examples
from tests.support.sdk_shapes import misfit

Json = dict[str, Any]

WIRE = AnthropicWire(clock=lambda: 1_700_000_000.9)
HELLO = [{"role": "user", "content": "Hello"}]
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
TIME = {"type": "function", "function": {"name": "time"}}
CALLED = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Paris"}'}}
PDF = base64.b64encode(b"%PDF-").decode()
SIGNED = {
    "type": "reasoning.text",
    "index": 0,
    "format": "anthropic-claude-v1",
    "text": "Hm.",
    "signature": "c2ln",
}


def call(body: Json, *, model: str = "claude-opus-4-6", **fields: Any) -> Call:
    return Call("chat", model, body, msgspec.json.encode(body), **fields)


def sent(body: Json, *, model: str = "claude-opus-4-6", stream: bool = False) -> Json:
    """The translated body, which is one that the SDK's types allow, sampling aside: newest versions lack it."""
    request = WIRE.request(call({"messages": HELLO, **body}, model=model), stream=stream)
    translated: Json = msgspec.json.decode(request.body)
    plain = {name: value for name, value in translated.items() if name not in {"temperature", "top_p", "top_k"}}
    assert misfit(plain, MessageCreateParams) is None
    return translated


def turns(*messages: Json) -> list[Json]:
    translated: list[Json] = sent({"messages": list(messages)})["messages"]
    return translated


def refused(body: Json, *, model: str = "claude-opus-4-6") -> tuple[str, ...]:
    with pytest.raises(Untranslatable) as caught:
        WIRE.request(call({"messages": HELLO, **body}, model=model), stream=False)
    return caught.value.names


def whole(message: Json) -> Json:
    body: Json = msgspec.json.decode(WIRE.whole(msgspec.json.encode(message), call({})))
    return body


def fed(events: Iterable[Json]) -> list[Chunk]:
    decoder = WIRE.decoder(call({}))
    return [chunk for event in events for chunk in decoder.feed(msgspec.json.encode(event))]


def assembled(chunks: Sequence[Chunk]) -> Json:
    assembly = Assembly("chat")
    for chunk in chunks:
        assembly.add(copy.deepcopy(chunk.fields))
    assert assembly.adds_up
    body: Json = msgspec.json.decode(assembly.completion(Usage()).body)
    return body


def message(*content: Json, stop_reason: str = "end_turn", **fields: Any) -> Json:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-opus-4-6",
        "content": list(content),
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": {"input_tokens": 10, "output_tokens": 5},
        **fields,
    }


def text(said: str, **fields: Any) -> Json:
    return {"type": "text", "text": said, **fields}


# --- a call of the same dialect


NATIVE = {"max_tokens": 5, "model": "claude-opus-4-6", "messages": HELLO, "tomorrow": {"field": 1}}
TOLD = {"type": "tool_use", "id": "call_1", "name": "look", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "call_1", "content": "sunny"}


def test_a_call_of_the_same_dialect_that_needs_no_change_is_sent_as_its_bytes() -> None:
    raw = b' {"max_tokens": 5, "model":"claude-opus-4-6", "messages":[], "tomorrow":1}'
    native = msgspec.json.decode(raw)

    request = WIRE.request(
        Call("chat", "claude-opus-4-6", {}, raw, dialect="anthropic", native=native, dropped=("tomorrow",)),
        stream=False,
    )

    assert request == ("/messages", raw, ())


def test_model_and_stream_are_all_that_changes_and_fields_keep_their_places() -> None:
    asked = Call("chat", "claude-opus-5", {}, b"", dialect="anthropic", native=NATIVE, refused=("container",))

    whole_body = WIRE.request(asked, stream=False).body
    stream_body = WIRE.request(asked, stream=True).body

    assert whole_body == msgspec.json.encode({**NATIVE, "model": "claude-opus-5"})
    assert stream_body == msgspec.json.encode({**NATIVE, "model": "claude-opus-5", "stream": True})


def test_a_whole_answer_is_asked_for_where_the_client_streams() -> None:
    native = {**NATIVE, "stream": True}

    request = WIRE.request(
        Call("chat", "claude-opus-4-6", {}, msgspec.json.encode(native), dialect="anthropic", native=native),
        stream=False,
    )

    assert request.body == msgspec.json.encode(NATIVE)


@pytest.mark.parametrize(
    ("thinking", "said", "results", "kept"),
    [
        ({"type": "enabled", "budget_tokens": 1024}, [TOLD], [RESULT], False),
        (
            {"type": "enabled", "budget_tokens": 1024},
            [{"type": "redacted_thinking", "data": "x"}, TOLD],
            [RESULT],
            True,
        ),
        ({"type": "enabled", "budget_tokens": 1024}, [TOLD], [{"type": "text", "text": "And?"}], True),
        ({"type": "enabled", "budget_tokens": 1024}, [], [RESULT], True),
        ({"type": "enabled", "budget_tokens": 1024}, "Hm.", [RESULT, 7], True),
        ({"type": "adaptive"}, [TOLD], [RESULT], True),
    ],
)
def test_a_turn_that_another_provider_began_without_thoughts_goes_on_without_a_budget_for_them(
    thinking: Json, said: Any, results: Any, kept: bool
) -> None:
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": said},
        {"role": "user", "content": results},
    ]
    native: Json = {**NATIVE, "messages": turns, "thinking": thinking}
    raw = msgspec.json.encode(native)

    request = WIRE.request(Call("chat", native["model"], {}, raw, dialect="anthropic", native=native), stream=False)

    unsaid = {name: value for name, value in native.items() if name != "thinking"}
    assert msgspec.json.decode(request.body) == (native if kept else unsaid)


def test_bytes_with_a_key_twice_are_not_sent() -> None:
    raw = b'{"model":"claude-opus-4-6","max_tokens":5,"messages":[],"max_tokens":6}'
    native = msgspec.json.decode(raw)

    request = WIRE.request(Call("chat", "claude-opus-4-6", {}, raw, dialect="anthropic", native=native), stream=False)

    assert request.body == b'{"model":"claude-opus-4-6","max_tokens":6,"messages":[]}'


# --- a request that is translated


def test_the_smallest_request_gets_the_limit_the_api_wants() -> None:
    assert sent({}) == {"model": "claude-opus-4-6", "max_tokens": 64_000, "messages": HELLO}


@pytest.mark.parametrize(
    ("model", "limit"),
    [
        ("claude-opus-5", 64_000),
        ("anthropic/claude-haiku-4.5", 64_000),
        ("claude-mythos-preview", 64_000),
        ("claude-sonnet-4-20250514", 4096),
        ("claude-3-5-sonnet-20241022", 4096),
        ("qwen3", 4096),
    ],
)
def test_the_usual_limit_is_one_that_the_model_has(model: str, limit: int) -> None:
    assert sent({}, model=model)["max_tokens"] == limit


def test_a_limit_that_is_given_is_kept() -> None:
    assert sent({"max_tokens": 7})["max_tokens"] == 7
    assert sent({"max_completion_tokens": 8, "max_tokens": 7})["max_tokens"] == 8


def test_system_prompts_become_one_wherever_they_were() -> None:
    translated = sent(
        {
            "messages": [
                {"role": "developer", "content": "Be brief."},
                {"role": "user", "content": "Hi"},
                {"role": "system", "content": [{"type": "text", "text": "In French."}]},
            ]
        }
    )

    assert translated["system"] == [text("Be brief."), text("In French.")]
    assert translated["messages"] == [{"role": "user", "content": "Hi"}]


def test_one_system_prompt_is_a_string_and_with_nothing_beside_it_the_question() -> None:
    system = {"role": "system", "content": "Say something."}

    assert sent({"messages": [system, *HELLO]})["system"] == "Say something."
    assert sent({"messages": [system]})["messages"] == [{"role": "user", "content": "Say something."}]


def test_messages_of_one_side_become_one_turn_and_empty_ones_none() -> None:
    assert turns(
        {"role": "user", "content": "One", "name": "ann"},
        {"role": "user", "content": [{"type": "text", "text": "Two"}, {"type": "text", "text": ""}]},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "Three"},
        {"role": "assistant", "content": "Four"},
        {"role": "assistant", "content": None, "refusal": "No."},
    ) == [
        {"role": "user", "content": [text("One"), text("Two"), text("Three")]},
        {"role": "assistant", "content": [text("Four"), text("No.")]},
    ]


def test_tool_calls_and_their_results_become_blocks_of_two_turns() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}

    called, answered = turns(
        *HELLO,
        {"role": "assistant", "content": "Looking.", "tool_calls": [CALLED, {**CALLED, "id": "functions.weather:1"}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "18 °C"},
        {"role": "tool", "tool_call_id": "functions.weather:1", "content": [image], "is_error": True},
        {"role": "user", "content": "And?"},
    )[1:]

    use = {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Paris"}}
    assert called["content"] == [text("Looking."), use, {**use, "id": "functions_weather_1"}]
    assert answered["content"] == [
        {"type": "tool_result", "tool_use_id": "call_1", "content": "18 °C"},
        {
            "type": "tool_result",
            "tool_use_id": "functions_weather_1",
            "content": [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}],
            "is_error": True,
        },
        text("And?"),
    ]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", {}),
        ("{}", {}),
        ('{"a": 1.5}', {"a": 1.5}),
        ('{"a": ', {"INVALID_JSON": '{"a": '}),
        ("[1]", {"INVALID_JSON": "[1]"}),
    ],
)
def test_arguments_that_are_no_object_stay_readable(arguments: str, expected: Json) -> None:
    function = {"name": "weather", "arguments": arguments}
    asked = {"role": "assistant", "content": None, "tool_calls": [{**CALLED, "function": function}]}

    assert turns(*HELLO, asked)[1]["content"][0]["input"] == expected


@pytest.mark.parametrize(
    ("part", "block"),
    [
        (
            {"type": "image_url", "image_url": {"url": "https://example.test/cat.png", "detail": "high"}},
            {"type": "image", "source": {"type": "url", "url": "https://example.test/cat.png"}},
        ),
        (
            {"type": "file", "file": {"file_data": f"data:application/pdf;base64,{PDF}", "filename": "a.pdf"}},
            {
                "type": "document",
                "source": {"type": "base64", "media_type": "application/pdf", "data": PDF},
                "title": "a.pdf",
            },
        ),
        (
            {"type": "file", "file": {"file_data": "data:text/markdown;charset=utf-8;base64,IyBIaQ=="}},
            {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "# Hi"}},
        ),
        (
            {"type": "file", "file": {"file_url": "https://example.test/a.pdf"}},
            {"type": "document", "source": {"type": "url", "url": "https://example.test/a.pdf"}},
        ),
        (
            {"type": "text", "text": "Long.", "cache_control": {"type": "ephemeral"}},
            {"type": "text", "text": "Long.", "cache_control": {"type": "ephemeral"}},
        ),
    ],
)
def test_parts_become_blocks(part: Json, block: Json) -> None:
    assert turns({"role": "user", "content": [part]}) == [{"role": "user", "content": [block]}]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "image_url", "image_url": {"url": "data:image/tiff;base64,AAAA"}},
        {"type": "image_url", "image_url": {"url": "data:image/png,AAAA"}},
        {"type": "image_url", "image_url": {"url": "gs://bucket/cat.png"}},
        {"type": "file", "file": {"file_id": "file-1"}},
        {"type": "file", "file": {"file_data": "data:audio/wav;base64,AAAA"}},
        {"type": "hologram", "hologram": {}},
    ],
)
def test_parts_that_have_no_block_are_refused_by_their_place(part: Json) -> None:
    content = [{"type": "text", "text": "Look:"}, part]

    assert refused({"messages": [*HELLO, {"role": "user", "content": content}]}) == ("messages[1].content[1]",)


def test_tools_and_the_choice_among_them() -> None:
    described = {"name": "weather", "description": "Of a city", "parameters": {"type": "object", "properties": {}}}
    tools = [{"type": "function", "function": described, "cache_control": {"type": "ephemeral"}}, TIME]

    assert sent({"tools": tools, "tool_choice": "auto"})["tools"] == [
        {
            "name": "weather",
            "description": "Of a city",
            "input_schema": {"type": "object", "properties": {}},
            "cache_control": {"type": "ephemeral"},
        },
        {"name": "time", "input_schema": {"type": "object", "properties": {}}},
    ]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"tool_choice": "auto"}, None),
        ({"tool_choice": "none", "parallel_tool_calls": False}, {"type": "none"}),
        ({"tool_choice": "required"}, {"type": "any"}),
        ({"tool_choice": {"type": "function", "function": {"name": "time"}}}, {"type": "tool", "name": "time"}),
        ({"parallel_tool_calls": False}, {"type": "auto", "disable_parallel_tool_use": True}),
        ({"parallel_tool_calls": True}, None),
        (
            {"tool_choice": "required", "parallel_tool_calls": False},
            {"type": "any", "disable_parallel_tool_use": True},
        ),
    ],
)
def test_tool_choices(asked: Json, expected: Json | None) -> None:
    assert sent({"tools": [WEATHER, TIME], **asked}).get("tool_choice") == expected
    assert "tool_choice" not in sent(asked)  # it may not be there without tools


def test_a_choice_of_some_tools_leaves_the_others_out() -> None:
    named = {"type": "function", "function": {"name": "time"}}
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named]}}

    translated = sent({"tools": [WEATHER, TIME], "tool_choice": choice})

    assert [tool["name"] for tool in translated["tools"]] == ["time"]
    assert translated["tool_choice"] == {"type": "any"}


def test_a_schema_is_closed_and_what_it_cannot_hold_an_answer_to_is_told() -> None:
    schema = {
        "type": "object",
        "properties": {
            "age": {"type": "integer", "minimum": 0, "description": "In years"},
            "mail": {"type": "string", "format": "email"},
            "tags": {"type": "array", "minItems": 1, "maxItems": 3, "items": {"type": "string"}},
            "pet": {"oneOf": [{"$ref": "#/$defs/pet"}, {"type": "null"}]},
        },
        "required": ["age"],
        "$defs": {"pet": {"type": "object", "properties": {}, "additionalProperties": False}},
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": schema}}

    assert sent({"response_format": wanted})["output_config"] == {
        "format": {
            "type": "json_schema",
            "schema": {
                "type": "object",
                "properties": {
                    "age": {"type": "integer", "description": 'In years\n\n{"minimum":0}'},
                    "mail": {"type": "string", "format": "email"},
                    "tags": {
                        "type": "array",
                        "minItems": 1,
                        "items": {"type": "string"},
                        "description": '{"maxItems":3}',
                    },
                    "pet": {"anyOf": [{"$ref": "#/$defs/pet"}, {"type": "null"}]},
                },
                "required": ["age"],
                "$defs": {"pet": {"type": "object", "properties": {}, "additionalProperties": False}},
                "additionalProperties": False,
            },
        }
    }


def test_formats_that_cannot_be_promised_are_refused() -> None:
    free = {"type": "object", "additionalProperties": {"type": "string"}, "properties": {}}
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": free}}

    assert refused({"response_format": wanted}) == ("response_format.json_schema.schema.additionalProperties",)
    assert refused({"response_format": {"type": "json_object"}}) == ("response_format",)
    assert "output_config" not in sent({"response_format": {"type": "text"}})


SHOWN = {"type": "adaptive", "display": "summarized"}


@pytest.mark.parametrize(
    ("model", "asked", "expected"),
    [
        ("claude-opus-5", {}, {}),
        ("claude-opus-5", {"reasoning_effort": "high"}, {"thinking": SHOWN, "output_config": {"effort": "high"}}),
        ("claude-opus-5", {"reasoning_effort": "minimal"}, {"thinking": SHOWN, "output_config": {"effort": "low"}}),
        ("claude-opus-5", {"reasoning_effort": "xhigh"}, {"thinking": SHOWN, "output_config": {"effort": "xhigh"}}),
        ("claude-opus-5", {"reasoning_budget": 8000}, {"thinking": SHOWN, "output_config": {"effort": "medium"}}),
        ("claude-opus-5", {"reasoning_budget": 99_999}, {"thinking": SHOWN, "output_config": {"effort": "max"}}),
        ("claude-opus-5", {"reasoning_budget": -1}, {"thinking": SHOWN}),
        ("claude-opus-5", {"reasoning_budget": 0}, {"thinking": {"type": "disabled"}}),
        ("claude-opus-5", {"reasoning_effort": "none"}, {"thinking": {"type": "disabled"}}),
        ("claude-sonnet-5-5", {"reasoning_effort": "none"}, {"thinking": {"type": "between_tools"}}),
        ("claude-opus-4-8", {"reasoning_effort": "none"}, {}),
        (
            "claude-opus-4-6",
            {"reasoning_effort": "xhigh"},
            {"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}},
        ),
        ("claude-haiku-4-5", {"reasoning_effort": "low"}, {"thinking": {"type": "enabled", "budget_tokens": 2048}}),
        ("claude-haiku-4-5", {"reasoning_budget": 5000}, {"thinking": {"type": "enabled", "budget_tokens": 5000}}),
        ("claude-haiku-4-5", {"reasoning_budget": 10}, {"thinking": {"type": "enabled", "budget_tokens": 1024}}),
        ("claude-haiku-4-5", {"reasoning_budget": -1}, {"thinking": {"type": "enabled", "budget_tokens": 8192}}),
        (
            "claude-haiku-4-5",
            {"reasoning_effort": "high", "max_tokens": 2000},
            {"thinking": {"type": "enabled", "budget_tokens": 1999}, "max_tokens": 2000},
        ),
        ("claude-haiku-4-5", {"reasoning_effort": "high", "max_tokens": 1024}, {"max_tokens": 1024}),
        (
            "claude-sonnet-4-20250514",
            {"reasoning_effort": "high"},
            {"thinking": {"type": "enabled", "budget_tokens": 16384}, "max_tokens": 20480},
        ),
        ("claude-opus-5", {"reasoning_effort": "low", "tools": [TIME], "tool_choice": "required"},
         {"output_config": {"effort": "low"}}),
    ],
)  # fmt: skip
def test_reasoning_is_asked_for_in_the_words_of_the_model(model: str, asked: Json, expected: Json) -> None:
    translated = sent(asked, model=model)

    assert {name: translated[name] for name in ("thinking", "output_config") if name in translated} == {
        name: value for name, value in expected.items() if name != "max_tokens"
    }
    assert translated["max_tokens"] == expected.get("max_tokens", 64_000)


def test_a_budget_is_not_given_to_a_tool_turn_whose_thoughts_are_gone() -> None:
    asked = {"role": "assistant", "content": None, "tool_calls": [CALLED]}
    result = {"role": "tool", "tool_call_id": "call_1", "content": "18"}
    without = {"reasoning_effort": "low", "messages": [*HELLO, asked, result]}
    kept = {"reasoning_effort": "low", "messages": [*HELLO, {**asked, "reasoning_details": [SIGNED]}, result]}

    assert "thinking" not in sent(without, model="claude-haiku-4-5")
    assert sent(kept, model="claude-haiku-4-5")["thinking"] == {"type": "enabled", "budget_tokens": 2048}
    assert "thinking" in sent(without, model="claude-opus-5")


def test_signed_reasoning_goes_back_first_and_that_of_others_not_at_all() -> None:
    details = [
        {**SIGNED, "text": "H", "signature": None},
        {**SIGNED, "text": "m."},
        {"type": "reasoning.encrypted", "index": 1, "format": "anthropic-claude-v1", "data": "eno"},
        {"type": "reasoning.encrypted", "index": 2, "format": "openai-responses-v1", "data": "eno"},
        {"type": "reasoning.text", "index": 3, "format": "anthropic-claude-v1", "text": "never signed"},
    ]
    said = {"role": "assistant", "content": "So.", "reasoning_content": "Hm.", "reasoning_details": details}

    assert turns(*HELLO, said)[1]["content"] == [
        {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"},
        {"type": "redacted_thinking", "data": "eno"},
        text("So."),
    ]


def test_blocks_of_this_dialect_go_back_as_they_came_and_those_of_another_are_refused() -> None:
    use = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "x"}}
    said = {"role": "assistant", "content": "So.", "provider_content": [{"dialect": "anthropic", "block": use}]}
    foreign = {"role": "assistant", "content": "So.", "provider_content": [{"dialect": "gemini", "block": {}}]}

    assert turns(*HELLO, said)[1]["content"] == [text("So."), use]
    assert refused({"messages": [*HELLO, foreign]}) == ("messages[1].provider_content[0]",)


def test_an_answer_sent_back_is_what_the_model_said_in_its_order() -> None:
    cited = {"type": "char_location", "cited_text": "18", "document_index": 0, "document_title": None,
             "start_char_index": 0, "end_char_index": 2}  # fmt: skip
    content = [
        {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"},
        text("Let me see. "),
        {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {}},
        {"type": "thinking", "thinking": "", "signature": "c2lnbg"},
        text("It is "),
        text("18 °C.", citations=[cited]),
        {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}},
    ]
    answer = whole(message(*content))["choices"][0]["message"]

    blocks = turns(*HELLO, answer)[1]["content"]

    assert blocks == content


def test_sampling_is_translated_where_the_model_takes_it_and_refused_where_not() -> None:
    sampling = {"temperature": 0.5, "top_p": 0.9, "top_k": 4}

    assert sent(sampling).items() >= sampling.items()
    assert sent(sampling, model="qwen3").items() >= sampling.items()
    assert refused(sampling, model="claude-opus-4-7") == ("temperature", "top_p", "top_k")
    assert refused({"temperature": 1.5}) == ("temperature",)
    assert sent({"temperature": 1, "top_p": 1.0}, model="claude-opus-5").keys() == {"model", "max_tokens", "messages"}
    with_budget = {**sampling, "top_p": 0.96, "reasoning_effort": "low"}
    assert refused(with_budget, model="claude-haiku-4-5") == ("temperature", "top_k")


def test_stop_is_a_list_and_white_space_alone_is_refused() -> None:
    assert sent({"stop": "END"})["stop_sequences"] == ["END"]
    assert sent({"stop": ["END", "STOP"]})["stop_sequences"] == ["END", "STOP"]
    assert refused({"stop": ["END", "\n\n"]}) == ("stop[1]",)


def test_who_asks_is_told() -> None:
    assert sent({"user": "u1"})["metadata"] == {"user_id": "u1"}
    assert sent({"user": "u1", "safety_identifier": "s1"})["metadata"] == {"user_id": "s1"}


def test_every_field_of_the_openai_api_is_translated_harmless_or_refused() -> None:
    fields = set(CompletionCreateParamsBase.__annotations__) | {"stream", "top_k", "reasoning_budget"}

    assert not fields - anthropic_request._TRANSLATED - anthropic_request._HARMLESS - set(anthropic_request._REFUSED)


@pytest.mark.parametrize(
    "field",
    [
        {"n": 2}, {"logprobs": True}, {"top_logprobs": 3}, {"logit_bias": {"1": 5}}, {"frequency_penalty": 0.5},
        {"presence_penalty": -1}, {"audio": {"voice": "alloy", "format": "wav"}}, {"modalities": ["text", "audio"]},
        {"functions": [{"name": "f"}]}, {"function_call": "auto"}, {"verbosity": "low"}, {"web_search_options": {}},
        {"moderation": {"model": "m"}}, {"reasoning_effort": "gigantic"},
    ],
)  # fmt: skip
def test_what_changes_the_answer_is_refused_by_name(field: Json) -> None:
    assert refused(field) == tuple(field)


def test_what_says_what_is_so_anyway_is_left_out() -> None:
    said = {"n": 1, "logprobs": False, "top_logprobs": 0, "logit_bias": {}, "frequency_penalty": 0.0, "audio": None}
    harmless = {"modalities": ["text"], "seed": 7, "store": True, "metadata": {"a": "b"}, "service_tier": "flex"}

    assert sent({**said, **harmless}) == sent({})


def test_fields_nobody_knows_are_named_once_and_what_another_dialect_lost_as_well() -> None:
    body = {
        "messages": [{"role": "user", "content": "Hi", "mood": 1}, {"role": "assistant", "content": "Hi", "mood": 2}],
        "tomorrow": 1,
        "tools": [{**TIME, "defer": True}],
    }

    request = WIRE.request(call(body, dialect="gemini", dropped=("safetySettings",)), stream=False)

    assert request.dropped == ("safetySettings", "tomorrow", "messages[].mood", "tools[].defer")


def test_what_another_dialect_says_and_cannot_be_said_here_is_refused_with_the_rest() -> None:
    with pytest.raises(Untranslatable) as caught:
        WIRE.request(call({"messages": HELLO, "n": 2}, dialect="gemini", refused=("cachedContent",)), stream=False)

    assert caught.value.names == ("cachedContent", "n")


def test_a_stream_is_asked_for() -> None:
    assert sent({}, stream=True)["stream"] is True


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.sampled_from(["", "text", "user", "\n"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
RICH: Json = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}},
                {"type": "image_url", "image_url": {"url": "https://example.test/cat.png"}},
                {"type": "file", "file": {"file_data": f"data:application/pdf;base64,{PDF}", "filename": "a.pdf"}},
                {"type": "file", "file": {"file_data": "data:text/plain;base64,IyBIaQ=="}},
            ],
        },
        {
            "role": "assistant",
            "content": "So.",
            "tool_calls": [CALLED],
            "reasoning_details": [SIGNED],
            "provider_content": [
                {"dialect": "anthropic", "block": {"type": "text_citations", "length": 3, "citations": []}}
            ],
            "layout": [["reasoning_details", 1], ["tool_calls", 1], ["content", 3], ["provider_content", 1]],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "18", "is_error": True},
    ],
    "tools": [WEATHER, {"type": "function", "function": {"name": "time", "strict": True}}],
    "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [TIME]}},
    "response_format": {
        "type": "json_schema",
        "json_schema": {
            "name": "a",
            "schema": {"type": "object", "properties": {"a": {"anyOf": [{"type": "string", "format": "date"}]}}},
        },
    },
    "stop": ["END"],
    "max_tokens": 5,
    "temperature": 0.5,
    "top_k": 3,
    "reasoning_effort": "low",
    "reasoning_budget": 2000,
    "n": 1,
    "user": "u",
}


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner: Iterable[tuple[Any, Any]] = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    return [path, *(place for key, item in inner for place in places(item, (*path, key)))]


def replaced(value: Any, path: tuple[Any, ...], junk: Any) -> Any:
    if not path:
        return junk
    changed = copy.copy(value)
    changed[path[0]] = replaced(value[path[0]], path[1:], junk)
    return changed


def test_the_rich_request_is_one_that_can_be_sent() -> None:
    assert sent({**RICH, "tools": [WEATHER, TIME]})["messages"][1]["content"][0]["type"] == "thinking"


@settings(max_examples=examples(600), deadline=None)
@given(place=st.sampled_from(places(RICH)[1:]), junk=JUNK, model=st.sampled_from(["claude-opus-5", "claude-haiku-4-5"]))
def test_a_request_of_any_types_is_sent_or_refused_with_a_name(place: tuple[Any, ...], junk: Any, model: str) -> None:
    body = replaced(RICH, place, junk)
    try:
        outcome = msgspec.json.decode(WIRE.request(call(body, model=model), stream=True).body)["model"]
    except RequestError as error:
        outcome = error.param

    assert outcome


def test_a_schema_nested_beyond_reason_is_refused() -> None:
    schema: Json = {"type": "string"}
    for _ in range(2000):
        schema = {"type": "array", "items": schema}
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}

    with pytest.raises(RequestError, match="nested too deeply"):
        WIRE.request(Call("chat", "claude-opus-5", {"messages": HELLO, "response_format": wanted}, None), stream=False)


# --- answers


def test_a_text_is_the_answer() -> None:
    body = whole(message(text("Hello!"), stop_reason="end_turn"))

    assert body == {
        "id": "msg_1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "claude-opus-4-6",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello!"},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 10,
            "completion_tokens": 5,
            "total_tokens": 15,
            "prompt_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        },
    }
    assert ChatCompletion.model_validate(body).choices[0].message.content == "Hello!"


@pytest.mark.parametrize(
    ("reason", "fields", "expected"),
    [
        ("end_turn", {}, {"finish_reason": "stop"}),
        ("tool_use", {}, {"finish_reason": "tool_calls"}),
        ("max_tokens", {}, {"finish_reason": "length"}),
        (
            "stop_sequence",
            {"stop_sequence": "END"},
            {"finish_reason": "stop", "native_finish_reason": "stop_sequence", "stop_sequence": "END"},
        ),
        (
            "model_context_window_exceeded",
            {},
            {"finish_reason": "length", "native_finish_reason": "model_context_window_exceeded"},
        ),
        ("pause_turn", {}, {"finish_reason": "length", "native_finish_reason": "pause_turn"}),
        (
            "refusal",
            {"stop_details": {"type": "refusal", "category": "cyber", "explanation": None}},
            {
                "finish_reason": "content_filter",
                "native_finish_reason": "refusal",
                "stop_details": {"type": "refusal", "category": "cyber", "explanation": None},
            },
        ),
        ("tomorrow", {}, {"finish_reason": "length", "native_finish_reason": "tomorrow"}),
    ],
)
def test_why_it_stopped(reason: str, fields: Json, expected: Json) -> None:
    answered = message(text("So"), stop_reason=reason, **fields)

    choice = whole(answered)["choices"][0]
    last = [chunk.fields for chunk in fed(events(answered)) if chunk.fields["choices"]][-1]["choices"][0]

    assert {name: choice[name] for name in choice if name not in {"index", "message", "logprobs"}} == expected
    assert {name: last[name] for name in last if name not in {"index", "delta"}} == expected


def test_cached_tokens_are_prompt_tokens_and_the_rest_of_the_counts_is_kept() -> None:
    usage = {
        "input_tokens": 3,
        "cache_read_input_tokens": 20,
        "cache_creation_input_tokens": 100,
        "cache_creation": {"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 0},
        "output_tokens": 7,
        "output_tokens_details": {"thinking_tokens": 4},
        "server_tool_use": None,
        "service_tier": "standard",
    }

    assert whole(message(text("So"), usage=usage))["usage"] == {
        "prompt_tokens": 123,
        "completion_tokens": 7,
        "total_tokens": 130,
        "prompt_tokens_details": {"cached_tokens": 20, "cache_write_tokens": 100},
        "completion_tokens_details": {"reasoning_tokens": 4},
        "provider_usage": {
            "dialect": "anthropic",
            "cache_creation": {"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 0},
            "service_tier": "standard",
        },
    }


@pytest.mark.parametrize("usage", [None, [], {}, {"input_tokens": "3", "output_tokens": 1}, {"output_tokens": -1}])
def test_counts_that_are_none_are_left_to_be_counted(usage: Any) -> None:
    assert "usage" not in whole(message(text("So"), usage=usage))


def test_what_the_api_says_of_the_whole_answer_is_kept() -> None:
    container = {"id": "container_1", "expires_at": "2026-11-20T10:00:00Z"}
    answered = message(text("So"), container=container, diagnostics=None)

    expected = {"dialect": "anthropic", "container": container}
    assert whole(answered)["provider_fields"] == expected
    assert assembled(fed(events(answered)))["provider_fields"] == expected


def test_reasoning_is_readable_and_signed() -> None:
    answer = whole(
        message(
            {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"},
            {"type": "redacted_thinking", "data": "eno"},
            text("So."),
        )
    )["choices"][0]["message"]

    assert answer == {
        "role": "assistant",
        "content": "So.",
        "reasoning_content": "Hm.",
        "reasoning_details": [
            SIGNED,
            {"type": "reasoning.encrypted", "index": 1, "format": "anthropic-claude-v1", "data": "eno"},
        ],
    }


def test_a_call_has_its_arguments_as_text_and_no_text_is_null() -> None:
    use = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Paris"}}
    asked = whole(message(use, stop_reason="tool_use"))["choices"][0]["message"]

    function = {"name": "weather", "arguments": '{"city":"Paris"}'}
    assert asked == {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "toolu_1", "type": "function", "function": function}],
    }


def test_citations_follow_the_text_they_are_of() -> None:
    citations = [{"type": "web_search_result_location", "url": "https://example.test", "title": "A"}]

    answer = whole(message(text("It is "), text("18 °C.", citations=citations), text(" Bye.")))["choices"][0]["message"]

    block = {"type": "text_citations", "length": 6, "citations": citations}
    assert answer["content"] == "It is 18 °C. Bye."
    assert answer["provider_content"] == [{"dialect": "anthropic", "block": block}]
    assert answer["layout"] == [["content", 12], ["provider_content", 1], ["content", 5]]


def test_an_answer_of_nothing_is_an_empty_text() -> None:
    answered = message()

    assert whole(answered)["choices"][0]["message"]["content"] == ""
    assert assembled(fed(events(answered)))["choices"][0]["message"]["content"] == ""


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b'"text"', b"{}", b'{"type":"error","error":{"type":"overloaded_error"}}',
        b'{"id":"a","model":"m","content":{}}', b'{"id":"a","model":"m","content":[1]}', b"\xff",
        b'{"id":"a","model":"m","content":[{"type":"text"}]}', b"[" * 100_000,
    ],
)  # fmt: skip
def test_a_reply_that_is_none_is_unreadable(body: bytes) -> None:
    with pytest.raises(Unreadable):
        WIRE.whole(body, call({}))


# --- streams


def cut(words: str, draw_at: Sequence[int]) -> list[str]:
    ends = sorted({min(at, len(words)) for at in draw_at} | {len(words)})
    return [words[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


def events(answered: Json, at: Sequence[int] = (2, 5)) -> list[Json]:
    """What the API streams for a message, its texts cut at the given places."""
    start = {**answered, "content": [], "stop_reason": None, "stop_sequence": None, "stop_details": None}
    start["usage"] = {**answered["usage"], "output_tokens": 1}
    said: list[Json] = [{"type": "message_start", "message": start}, {"type": "ping"}]
    for index, block in enumerate(answered["content"]):
        opened, deltas = opening(block, at)
        said.append({"type": "content_block_start", "index": index, "content_block": opened})
        said += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        said.append({"type": "content_block_stop", "index": index})
    ended = {name: answered.get(name) for name in ("stop_reason", "stop_sequence", "stop_details")}
    usage = {"output_tokens": answered["usage"]["output_tokens"], "input_tokens": None}
    return [*said, {"type": "message_delta", "delta": ended, "usage": usage}, {"type": "message_stop"}]


def opening(block: Json, at: Sequence[int]) -> tuple[Json, list[Json]]:
    match block["type"]:
        case "text":
            cited = [{"type": "citations_delta", "citation": citation} for citation in block.get("citations") or []]
            deltas = [{"type": "text_delta", "text": piece} for piece in cut(block["text"], at)]
            return {"type": "text", "text": "", **({"citations": []} if cited else {})}, [*cited, *deltas]
        case "thinking":
            deltas = [{"type": "thinking_delta", "thinking": piece} for piece in cut(block["thinking"], at)]
            signed = {"type": "signature_delta", "signature": block["signature"]}
            return {**block, "thinking": "", "signature": ""}, [*deltas, signed]
        case "tool_use" | "server_tool_use":
            arguments = msgspec.json.encode(block["input"]).decode() if block["input"] else ""
            return {**block, "input": {}}, [
                {"type": "input_json_delta", "partial_json": piece} for piece in ["", *cut(arguments, at)]
            ]
        case _:
            return block, []


WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
CITATION = st.fixed_dictionaries({"type": st.just("search_result_location"), "title": WORDS, "cited_text": WORDS})
INPUT = st.dictionaries(st.text("abc", max_size=3), st.integers(0, 9) | WORDS, max_size=2)
BLOCKS: st.SearchStrategy[Json] = st.one_of(
    st.builds(text, WORDS),
    st.builds(lambda said, citations: text(said, citations=citations), WORDS, st.lists(CITATION, min_size=1)),
    st.fixed_dictionaries({"type": st.just("thinking"), "thinking": WORDS | st.just(""), "signature": WORDS}),
    st.fixed_dictionaries({"type": st.just("redacted_thinking"), "data": WORDS}),
    st.fixed_dictionaries({"type": st.just("tool_use"), "id": WORDS, "name": WORDS, "input": INPUT}),
    st.fixed_dictionaries({"type": st.just("server_tool_use"), "id": WORDS, "name": WORDS, "input": INPUT}),
    st.fixed_dictionaries({"type": st.just("web_search_tool_result"), "tool_use_id": WORDS, "content": st.just([])}),
)


@settings(deadline=None)
@given(content=st.lists(BLOCKS, max_size=6), at=st.lists(st.integers(0, 12), max_size=4))
def test_a_stream_adds_up_to_the_whole_wherever_it_is_cut(content: list[Json], at: list[int]) -> None:
    answered = message(*content)

    chunks = fed(events(answered, at))

    assert assembled(chunks) == whole(answered)


@settings(deadline=None)
@given(content=st.lists(BLOCKS, max_size=6))
def test_an_answer_sent_back_is_the_same_but_for_texts_that_meet(content: list[Json]) -> None:
    signed = [block for block in content if block["type"] != "text" or block["text"].strip()]
    answer = whole(message(*signed))["choices"][0]["message"]

    if not signed:
        return
    blocks = msgspec.json.decode(WIRE.request(call({"messages": [*HELLO, answer]}), stream=False).body)["messages"][1]
    said = blocks["content"] if isinstance(blocks["content"], list) else [text(blocks["content"])]

    assert met(said) == met(
        [{**block, "id": re_id(block["id"])} if block["type"] == "tool_use" else block for block in signed]
    )


def re_id(given: str) -> str:
    return "".join(letter if letter.isascii() and (letter.isalnum() or letter in "_-") else "_" for letter in given)


def met(blocks: Iterable[Mapping[str, Any]]) -> list[Json]:
    joined: list[Json] = []
    for block in blocks:
        last = joined[-1] if joined else {}
        if block.keys() == {"type", "text"} == last.keys():
            joined[-1] = text(last["text"] + block["text"])
        else:
            joined.append(dict(block))
    return joined


def test_every_chunk_is_one_of_the_api_and_the_first_has_the_role() -> None:
    use = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Paris"}}
    chunks = fed(events(message(text("Let me see."), use, stop_reason="tool_use")))

    for chunk in chunks:
        assert msgspec.json.decode(chunk.payload) == chunk.fields
        assert ChatCompletionChunk.model_validate(chunk.fields).object == "chat.completion.chunk"
        assert chunk.fields.items() >= {"id": "msg_1", "created": 1_700_000_000, "model": "claude-opus-4-6"}.items()
    assert chunks[0].fields["choices"][0]["delta"]["role"] == "assistant"
    assert chunks[-2].fields["choices"][0]["finish_reason"] == "tool_calls"
    assert (chunks[-1].fields["choices"], chunks[-1].fields["usage"]["total_tokens"]) == ([], 15)


def test_the_events_and_messages_of_these_tests_are_those_of_the_sdk() -> None:
    use = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Paris"}}
    answered = message({"type": "thinking", "thinking": "Hm.", "signature": "c2ln"}, text("So."), use)

    assert misfit(answered, Message) is None
    streamed = [misfit(event, RawMessageStreamEvent) for event in events(answered) if event["type"] != "ping"]
    assert streamed == [None] * len(streamed)


def test_where_one_text_ends_and_another_begins_is_an_event_of_the_dialect() -> None:
    chunks = fed(events(message(text("One."), text("Two."))))

    borders = [chunk.fields["provider_event"] for chunk in chunks if "provider_event" in chunk.fields]
    assert borders == [{"dialect": "anthropic", "data": {"type": "content_block_stop", "index": 0}}]


def test_an_event_nobody_knows_is_passed_on_to_who_may_know_it() -> None:
    event = {"type": "tomorrow", "x": 1}
    said = events(message(text("One.")))

    chunks = fed([*said[:2], event, *said[2:]])

    assert chunks[1].fields["provider_event"] == {"dialect": "anthropic", "data": event}
    assert assembled(chunks) == whole(message(text("One.")))


def test_a_block_nobody_knows_grows_with_its_deltas() -> None:
    said = events(message({"type": "compaction", "content": "So ", "list": [1]}))
    delta = {"type": "compaction_delta", "content": "far.", "list": [2], "new": True}
    grown = {"type": "content_block_delta", "index": 0, "delta": delta}

    chunks = fed([*said[:3], grown, *said[3:]])

    block = {"type": "compaction", "content": "So far.", "list": [1, 2], "new": True}
    own = assembled(chunks)["choices"][0]["message"]["provider_content"]
    assert own == [{"dialect": "anthropic", "block": block}]


def test_nothing_is_passed_on_before_there_is_something_to_say() -> None:
    said = events(message(text("One.")))

    assert fed(said[:3]) == []  # its beginning, a ping, an empty text
    assert [chunk.fields["choices"][0]["delta"] for chunk in fed(said[:4])] == [
        {"role": "assistant", "content": None},
        {"content": "On"},
    ]


def test_a_call_whose_input_came_at_once_has_it() -> None:
    use = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Paris"}}
    said = events(message(text("So.")))
    opened = {"type": "content_block_start", "index": 0, "content_block": use}

    chunks = fed([said[0], opened, {"type": "content_block_stop", "index": 0}, *said[-2:]])

    assert assembled(chunks)["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"] == '{"city":"Paris"}'


def test_a_stream_is_whole_once_it_said_why_it_stopped_and_finished_at_its_end_mark() -> None:
    decoder = WIRE.decoder(call({}))
    states = []
    for event in events(message(text("So."))):
        decoder.feed(msgspec.json.encode(event))
        states.append((event["type"], decoder.complete, decoder.finished))

    assert states[-3:] == [
        ("content_block_stop", False, False),
        ("message_delta", True, False),
        ("message_stop", True, True),
    ]


def test_an_end_mark_without_a_reason_is_an_end() -> None:
    said = events(message(text("So.")))

    chunks = fed([*said[:-3], said[-1]])  # neither the end of the block nor a reason

    assert assembled(chunks)["choices"][0]["finish_reason"] == "stop"


START = {"type": "message_start", "message": message()}


@pytest.mark.parametrize(
    ("said", "how"),
    [
        ([START, {"type": "error", "error": {"type": "overloaded_error"}}], "ended with an error"),
        ([{"type": "error"}], "ended with an error"),
        ([START, START], "began twice"),
        ([{"type": "message_stop"}], "before its beginning"),
        ([START, {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta"}}], "not one of this API"),
        ([START, {"type": "content_block_stop", "index": 0}], "not one of this API"),
        ([{"type": "message_start", "message": {"id": 1}}], "not one of this API"),
        ([[]], "not the JSON it should be"),
    ],
)
def test_a_stream_that_breaks_is_unreadable(said: list[Json], how: str) -> None:
    with pytest.raises(Unreadable, match=how):
        fed(said)


STREAM = events(
    message(
        {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"},
        text("So.", citations=[{"type": "page_location"}]),
        {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Paris"}},
        {"type": "web_search_tool_result", "tool_use_id": "a", "content": []},
    )
)


@settings(max_examples=examples(600), deadline=None)
@given(place=st.sampled_from(places(STREAM)[1:]), junk=JUNK.filter(lambda junk: junk == junk))
def test_events_of_any_types_are_read_or_unreadable(place: tuple[Any, ...], junk: Any) -> None:
    decoder = WIRE.decoder(call({}))
    try:
        for event in replaced(STREAM, place, junk):
            for chunk in decoder.feed(msgspec.json.encode(event)):
                assert isinstance(chunk.fields["choices"], list)
    except Unreadable:
        assert not decoder.finished


@settings(max_examples=examples(300), deadline=None)
@given(data=st.data(), junk=JUNK)
def test_replies_of_any_types_are_read_or_unreadable(data: st.DataObject, junk: Any) -> None:
    answered = message(
        {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"},
        text("So.", citations=[{"type": "page_location"}]),
        {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Paris"}},
    )
    place = data.draw(st.sampled_from(places(answered)))
    try:
        body = WIRE.whole(msgspec.json.encode(replaced(answered, place, junk)), call({}))
    except Unreadable:
        return
    assert msgspec.json.decode(body)["choices"][0]["message"]["role"] == "assistant"


def test_reasoning_in_many_pieces_and_deep_schemas_are_read_in_no_time() -> None:
    pieces = [{"type": "reasoning.text", "index": 0, "format": "anthropic-claude-v1", "text": "x" * 50}] * 60_000
    pieces.append({"index": 0, "type": "reasoning.text", "format": "anthropic-claude-v1", "signature": "s"})
    schema: dict[str, Any] = {"type": "object", "properties": {}}
    for _ in range(150):
        schema = {"type": "object", "properties": {"k" * 10_000: schema}}
    body = {
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b", "reasoning_details": pieces},
        ],
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}},
    }

    began = time.perf_counter()
    translated = AnthropicWire().request(Call("chat", "claude-opus-4-5", body, None), stream=False)

    assert b"x" * 3_000_000 in translated.body
    assert time.perf_counter() - began < 1.5
