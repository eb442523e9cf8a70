"""A provider that speaks OpenAI Responses: what it is sent, and what its answers and events come to."""

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion
from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming
from openai.types.responses import Response, ResponseStreamEvent
from openai.types.responses.response_create_params import ResponseCreateParamsNonStreaming

from backends.upstream.base import Call
from backends.upstream.responses import ResponsesWire
from backends.upstream.responses_request import _HARMLESS, _REFUSED, _SAME, _TRANSLATED
from backends.upstream.wire import Unreadable, Wire
from models.completion import Chunk, Completion, Usage
from models.errors import Untranslatable
from models.request import Dialect
from service.api.dialect import Asked
from service.api.openai_responses import RESPONSES
from service.caching.assembly import Assembly
from tests.support.examples import examples
from tests.support.sdk_shapes import fields, misfit

WIRE: Wire = ResponsesWire()
FORMAT = "openai-responses-v1"
HI = {"role": "user", "content": "Hi"}


def call_of(body: dict[str, Any], *, dialect: Dialect = "openai", **more: Any) -> Call:
    return Call("chat", "gpt-5", {"model": "fast", "messages": [HI], **body}, None, dialect=dialect, **more)


def sent(body: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The translation, which must be a body that the SDK could have sent."""
    request = WIRE.request(call_of(body, **more), stream=False)
    translated: dict[str, Any] = json.loads(request.body)
    assert request.path == "/responses"
    assert misfit(translated, ResponseCreateParamsNonStreaming) is None
    return translated


def items(*messages: dict[str, Any], **body: Any) -> list[dict[str, Any]]:
    said: list[dict[str, Any]] = sent({"messages": list(messages), **body})["input"]
    return said


# --- requests


def test_what_a_responses_client_wrote_travels_as_its_bytes() -> None:
    raw = b'{ "model": "gpt-5", "input": "Hi", "prompt": {"id": "pmpt_1"}, "news": 1.0 }'
    call = call_of({}, dialect="responses", native=json.loads(raw))

    written = WIRE.request(msgspec.structs.replace(call, raw=raw), stream=False)

    assert written.body == raw
    assert written.dropped == ()


@pytest.mark.parametrize(
    ("native", "stream", "expected"),
    [
        ({"model": "fast", "input": "Hi"}, False, {"model": "gpt-5", "input": "Hi"}),
        ({"model": "fast", "input": "Hi"}, True, {"model": "gpt-5", "input": "Hi", "stream": True}),
        (
            {"model": "gpt-5", "input": "Hi", "stream": True, "stream_options": {"include_obfuscation": False}},
            False,
            {"model": "gpt-5", "input": "Hi"},
        ),
    ],
)
def test_only_the_model_and_the_stream_of_such_a_request_change(
    native: dict[str, Any], stream: bool, expected: dict[str, Any]
) -> None:
    call = msgspec.structs.replace(call_of({}, dialect="responses"), native=native, raw=msgspec.json.encode(native))

    assert json.loads(WIRE.request(call, stream=stream).body) == expected


def test_a_key_written_twice_is_sent_as_it_was_read() -> None:
    raw = b'{"model": "gpt-5", "input": "first", "input": "second"}'
    call = msgspec.structs.replace(call_of({}, dialect="responses"), native=json.loads(raw), raw=raw)

    assert json.loads(WIRE.request(call, stream=False).body) == {"model": "gpt-5", "input": "second"}


@pytest.mark.parametrize(("dialect", "strict"), [("openai", True), ("anthropic", False), ("gemini", False)])
def test_a_schema_that_cannot_be_strict_is_none_where_it_goes_without_saying(dialect: Dialect, *, strict: bool) -> None:
    schema = {"type": "object", "properties": {"a": {}}}
    asked = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}

    told = sent({"response_format": asked}, dialect=dialect, native={})

    assert told["text"]["format"]["strict"] is strict


def test_a_chat_request_is_told_in_the_words_of_responses() -> None:
    schema = {"type": "object", "properties": {}}
    body = {
        "messages": [{"role": "system", "content": "Be brief."}, HI],
        "max_completion_tokens": 50,
        "temperature": 0.2,
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": True}},
        "verbosity": "low",
        "tools": [
            {"type": "function", "function": {"name": "f", "description": "d", "parameters": schema, "strict": True}},
            {"type": "function", "function": {"name": "bare"}},
            {
                "type": "custom",
                "custom": {
                    "name": "sql",
                    "format": {"type": "grammar", "grammar": {"definition": "s", "syntax": "lark"}},
                },
            },
        ],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "parallel_tool_calls": False,
        "reasoning_effort": "low",
        "logprobs": True,
        "top_logprobs": 2,
        "user": "u",
    }

    assert sent(body) == {
        "model": "gpt-5",
        "instructions": "Be brief.",
        "input": [{"type": "message", "role": "user", "content": "Hi"}],
        "max_output_tokens": 50,
        "temperature": 0.2,
        "text": {
            "format": {"type": "json_schema", "name": "a", "schema": schema, "strict": True},
            "verbosity": "low",
        },
        "tools": [
            {"type": "function", "name": "f", "description": "d", "parameters": schema, "strict": True},
            {"type": "function", "name": "bare", "parameters": schema, "strict": False},
            {"type": "custom", "name": "sql", "format": {"type": "grammar", "definition": "s", "syntax": "lark"}},
        ],
        "tool_choice": {"type": "function", "name": "f"},
        "parallel_tool_calls": False,
        "reasoning": {"effort": "low"},
        "include": ["message.output_text.logprobs", "reasoning.encrypted_content"],
        "top_logprobs": 2,
        "user": "u",
        "store": False,
    }


def test_only_some_tools_are_allowed_in_either_form() -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [tool]}}

    translated = sent({"tools": [tool], "tool_choice": choice})

    assert translated["tool_choice"] == {
        "type": "allowed_tools",
        "mode": "required",
        "tools": [{"type": "function", "name": "f"}],
    }


@pytest.mark.parametrize(
    ("asked", "reasoning"),
    [
        ({"reasoning_effort": "xhigh"}, {"effort": "xhigh"}),
        ({"reasoning_budget": 0}, {"effort": "none"}),
        ({"reasoning_budget": -1}, {"summary": "auto"}),
        ({"reasoning_budget": 1024}, {"effort": "minimal", "summary": "auto"}),
        ({"reasoning_budget": 4096}, {"effort": "low", "summary": "auto"}),
        ({"reasoning_budget": 4097}, {"effort": "medium", "summary": "auto"}),
        ({"reasoning_budget": 100_000}, {"effort": "high", "summary": "auto"}),
        ({"reasoning_budget": 100_000, "reasoning_effort": "low"}, {"effort": "low", "summary": "auto"}),
        ({}, None),
    ],
)
def test_a_budget_becomes_an_effort(asked: dict[str, Any], reasoning: dict[str, str] | None) -> None:
    assert sent(asked).get("reasoning") == reasoning


def test_pictures_and_documents_are_parts_of_the_input() -> None:
    parts = [
        {"type": "text", "text": "look", "cache_control": {"type": "ephemeral"}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
        {"type": "image_url", "image_url": {"url": "https://a.test/b.png", "detail": "low"}},
        {"type": "file", "file": {"file_data": "data:application/pdf;base64,AA=="}},
        {"type": "file", "file": {"file_url": "https://a.test/c.pdf"}},
    ]

    (message,) = items({"role": "user", "content": parts})

    assert message["content"] == [
        {"type": "input_text", "text": "look"},
        {"type": "input_image", "image_url": "data:image/png;base64,AA==", "detail": "auto"},
        {"type": "input_image", "image_url": "https://a.test/b.png", "detail": "low"},
        {"type": "input_file", "file_data": "data:application/pdf;base64,AA==", "filename": "document"},
        {"type": "input_file", "file_url": "https://a.test/c.pdf"},
    ]


def test_calls_and_their_results_are_items() -> None:
    turn = {
        "role": "assistant",
        "content": "One moment.",
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
            {"id": "call_2", "type": "custom", "custom": {"name": "sql", "input": "select 1"}},
        ],
    }
    picture = {"type": "image_url", "image_url": {"url": "https://a.test/b.png"}}
    results: list[dict[str, Any]] = [
        {"role": "tool", "tool_call_id": "call_1", "content": "boom", "is_error": True},
        {"role": "tool", "tool_call_id": "call_2", "content": [{"type": "text", "text": "1"}, picture]},
    ]

    assert items(HI, turn, *results)[1:] == [
        {"type": "message", "role": "assistant", "content": "One moment."},
        {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}"},
        {"type": "custom_tool_call", "call_id": "call_2", "name": "sql", "input": "select 1"},
        {"type": "function_call_output", "call_id": "call_1", "output": "boom"},
        {
            "type": "custom_tool_call_output",
            "call_id": "call_2",
            "output": [
                {"type": "input_text", "text": "1"},
                {"type": "input_image", "image_url": "https://a.test/b.png", "detail": "auto"},
            ],
        },
    ]


REASONED = {
    "role": "assistant",
    "content": "Let me see. Done.",
    "reasoning_content": "Hm.",
    "reasoning_details": [
        {"type": "reasoning.summary", "index": 0, "format": FORMAT, "id": "rs_1", "summary": "Hm."},
        {"type": "reasoning.encrypted", "index": 1, "format": FORMAT, "id": "rs_1", "data": "AAA"},
        {"type": "reasoning.text", "index": 2, "format": "anthropic-claude-v1", "text": "x", "signature": "s"},
    ],
    "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": ""}, "item_id": "fc_1"}],
    "content_items": [
        {"offset": 0, "id": "msg_1", "phase": "commentary"},
        {"offset": 11, "id": "msg_2", "phase": "final_answer"},
    ],
    "layout": [["reasoning_details", 3], ["content", 11], ["tool_calls", 1], ["content", 6]],
}


def test_a_turn_that_reasoned_goes_back_item_by_item() -> None:
    said: list[dict[str, Any]] = [
        {"type": "output_text", "text": text, "annotations": []} for text in ("Let me see.", " Done.")
    ]
    message = {"type": "message", "role": "assistant", "status": "completed"}

    assert items(HI, REASONED)[1:] == [
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [{"type": "summary_text", "text": "Hm."}],
            "encrypted_content": "AAA",
        },
        {**message, "id": "msg_1", "phase": "commentary", "content": said[:1]},
        {"type": "function_call", "id": "fc_1", "call_id": "c", "name": "f", "arguments": ""},
        {**message, "id": "msg_2", "phase": "final_answer", "content": said[1:]},
    ]
    assert sent({"messages": [HI, REASONED]})["include"] == ["reasoning.encrypted_content"]


def test_where_one_id_is_missing_none_is_sent() -> None:
    turn = {name: value for name, value in REASONED.items() if name not in ("content_items", "layout")}

    call = call_of({"messages": [HI, turn]})
    translated = json.loads(WIRE.request(call, stream=False).body)["input"]

    assert [item.get("id") for item in translated] == [None] * 4
    assert [item["type"] for item in translated] == ["message", "reasoning", "message", "function_call"]


def test_reasoning_that_nobody_can_read_again_stays_behind() -> None:
    turn = {"role": "assistant", "content": "Yes.", "reasoning_details": REASONED["reasoning_details"][::2]}

    assert items(turn, HI)[0] == {"type": "message", "role": "assistant", "content": "Yes."}


def test_what_only_this_dialect_has_goes_back_as_it_came() -> None:
    search = {
        "type": "web_search_call",
        "id": "ws_1",
        "status": "completed",
        "action": {"type": "search", "query": "q"},
    }
    turn = {
        "role": "assistant",
        "content": "Found.",
        "provider_content": [{"dialect": "responses", "block": search}],
        "layout": [["provider_content", 1], ["content", 6]],
    }

    assert items(HI, turn)[1:] == [search, {"type": "message", "role": "assistant", "content": "Found."}]


def test_a_layout_that_does_not_add_up_is_ignored() -> None:
    turn = {**REASONED, "layout": [["content", 900]]}

    assert [item["type"] for item in items(HI, turn)[1:]] == ["reasoning", "message", "message", "function_call"]


def test_a_refusal_is_said_as_one() -> None:
    turn = {"role": "assistant", "content": None, "refusal": "No."}

    translated = json.loads(WIRE.request(call_of({"messages": [turn]}), stream=True).body)

    assert translated["stream"] is True
    assert translated["input"][0]["content"] == [{"type": "refusal", "refusal": "No."}]


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ({"stop": ["x"]}, ("stop",)),
        ({"n": 2, "top_k": 3}, ("n", "top_k")),
        ({"frequency_penalty": 0.5}, ("frequency_penalty",)),
        ({"logit_bias": {"1": 2}}, ("logit_bias",)),
        ({"modalities": ["text", "audio"], "audio": {"voice": "alloy"}}, ("modalities", "audio")),
        ({"web_search_options": {}}, ("web_search_options",)),
        ({"response_format": {"type": "grammar"}}, ("response_format",)),
        ({"tools": [{"type": "retrieval"}]}, ("tools[0]",)),
        ({"tool_choice": {"type": "x"}}, ("tool_choice",)),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, ("messages[0].content[0]",)),
        ({"messages": [HI, {"role": "assistant", "audio": {"id": "a"}}]}, ("messages[1].audio",)),
        (
            {"messages": [{"role": "assistant", "provider_content": [{"dialect": "gemini", "block": {}}]}]},
            ("messages[0].provider_content[0]",),
        ),
    ],
)
def test_what_it_has_no_words_for_is_refused_by_name(body: dict[str, Any], names: tuple[str, ...]) -> None:
    with pytest.raises(Untranslatable) as refusal:
        WIRE.request(call_of(body), stream=False)

    assert refusal.value.names == names


def test_what_the_clients_own_dialect_could_not_say_is_refused_too() -> None:
    with pytest.raises(Untranslatable) as refusal:
        WIRE.request(call_of({}, dialect="anthropic", native={}, refused=("container",)), stream=False)

    assert refusal.value.names == ("container",)


def test_fields_nobody_knows_are_dropped_and_named() -> None:
    body = {"news": 1, "seed": 3, "n": 1, "stop": None, "messages": [{**HI, "mood": "good", "name": "Ann"}]}

    request = WIRE.request(call_of(body, dropped=("safety",)), stream=False)

    assert request.dropped == ("safety", "messages[].mood", "news")
    assert json.loads(request.body) == {
        "model": "gpt-5",
        "input": [{"type": "message", "role": "user", "content": "Hi"}],
        "store": False,
    }


def test_every_field_of_a_chat_request_is_translated_refused_or_known_to_be_harmless() -> None:
    assert fields(CompletionCreateParamsStreaming).keys() <= _SAME | _TRANSLATED | _HARMLESS | _REFUSED.keys()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-2, 2) | st.text("a1{}", max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["type", "text", "id"]), inner),
    max_leaves=4,
)


@st.composite
def spoiled(draw: st.DrawFn, value: Any) -> Any:
    """`value` with JSON of any type in one place, at any depth."""
    if not value or not isinstance(value, dict | list) or draw(st.integers(0, 5)) == 0:
        return draw(JSON)
    copy: Any = dict(value) if isinstance(value, dict) else list(value)
    place = draw(st.sampled_from(sorted(value)) if isinstance(value, dict) else st.integers(0, len(value) - 1))
    copy[place] = draw(spoiled(value[place]))
    return copy


FULL = {
    "messages": [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "file", "file": {"file_id": "f"}}]},
        REASONED,
        {"role": "tool", "tool_call_id": "c", "content": [{"type": "image_url", "image_url": {"url": "u"}}]},
        {"role": "assistant", "provider_content": [{"dialect": "responses", "block": {"type": "x"}}], "refusal": "n"},
    ],
    "tools": [{"type": "function", "function": {"name": "f"}}, {"type": "custom", "custom": {"name": "g"}}],
    "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"type": "function"}]}},
    "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}},
    "reasoning_effort": "low",
    "reasoning_budget": 5,
    "stop": [],
}


@settings(max_examples=examples(400), deadline=None)
@given(spoiled(FULL).filter(lambda body: isinstance(body, dict)))
def test_a_request_of_any_shape_is_translated_or_refused(body: dict[str, Any]) -> None:
    names: tuple[str, ...] = ()
    translated: Any = None

    try:
        translated = json.loads(WIRE.request(call_of(body), stream=False).body)
    except Untranslatable as refusal:
        names = refusal.names

    assert bool(names) != (translated is not None and isinstance(translated["input"], list))


# --- answers


def response(output: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    usage = {
        "input_tokens": 7,
        "input_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 0},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 3},
        "total_tokens": 12,
    }
    frame = {"id": "resp_1", "object": "response", "created_at": 1_700_000_000, "model": "gpt-5-1", "error": None}
    echo = {"parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "metadata": {}, "temperature": 1.0}
    end = {"status": "completed", "incomplete_details": None, "service_tier": "default", "usage": usage}
    return {**frame, **echo, **end, "output": output, **more}


def message(*parts: dict[str, Any], item_id: str = "msg_1", **more: Any) -> dict[str, Any]:
    return {"type": "message", "id": item_id, "role": "assistant", "status": "completed", "content": [*parts], **more}


def text(said: str, **more: Any) -> dict[str, Any]:
    return {"type": "output_text", "text": said, "annotations": [], "logprobs": [], **more}


def canonical(answer: dict[str, Any]) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(WIRE.whole(msgspec.json.encode(answer), call_of({})))
    return read


def test_a_whole_answer_is_a_chat_completion() -> None:
    answer = response([message(text("Hello"))])

    completion = canonical(answer)

    assert misfit(answer, Response) is None
    assert completion == {
        "id": "resp_1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "gpt-5-1",
        "service_tier": "default",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "Hello",
                    "content_items": [{"offset": 0, "id": "msg_1"}],
                },
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 7,
            "completion_tokens": 5,
            "total_tokens": 12,
            "prompt_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 3},
        },
    }
    ChatCompletion.model_validate(completion)


def test_every_kind_of_item_has_its_place() -> None:
    search = {
        "type": "web_search_call",
        "id": "ws_1",
        "status": "completed",
        "action": {"type": "search", "query": "q"},
    }
    citation = {"type": "url_citation", "start_index": 0, "end_index": 2, "title": "T", "url": "https://a.test"}
    answer = response(
        [
            {
                "type": "reasoning",
                "id": "rs_1",
                "summary": [{"type": "summary_text", "text": "One."}, {"type": "summary_text", "text": "Two."}],
                "encrypted_content": "AAA",
            },
            search,
            message(text("See. "), text("It", annotations=[citation]), phase="commentary"),
            {
                "type": "function_call",
                "id": "fc_1",
                "call_id": "call_1",
                "name": "f",
                "arguments": "{}",
                "namespace": "ns",
            },
            {"type": "custom_tool_call", "id": "ctc_1", "call_id": "call_2", "name": "sql", "input": "select 1"},
            {"type": "reasoning", "id": "rs_2", "summary": []},
        ]
    )

    choice = canonical(answer)["choices"][0]

    assert misfit(answer, Response) is None
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"] == {
        "role": "assistant",
        "content": "See. It",
        "reasoning_content": "One.\n\nTwo.",
        "reasoning_details": [
            {"type": "reasoning.summary", "index": 0, "format": FORMAT, "summary": "One.", "id": "rs_1"},
            {"type": "reasoning.summary", "index": 1, "format": FORMAT, "summary": "Two.", "id": "rs_1"},
            {"type": "reasoning.encrypted", "index": 2, "format": FORMAT, "data": "AAA", "id": "rs_1"},
            {"type": "reasoning.summary", "index": 3, "format": FORMAT, "summary": "", "id": "rs_2"},
        ],
        "provider_content": [{"dialect": "responses", "block": search}],
        "content_items": [{"offset": 0, "id": "msg_1", "phase": "commentary"}],
        "annotations": [
            {
                "type": "url_citation",
                "url_citation": {"start_index": 5, "end_index": 7, "title": "T", "url": "https://a.test"},
            }
        ],
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "item_id": "fc_1",
                "namespace": "ns",
                "function": {"name": "f", "arguments": "{}"},
            },
            {
                "id": "call_2",
                "type": "custom",
                "item_id": "ctc_1",
                "custom": {"name": "sql", "input": "select 1"},
            },
        ],
        "layout": [
            ["reasoning_details", 3],
            ["provider_content", 1],
            ["content", 7],
            ["tool_calls", 2],
            ["reasoning_details", 1],
        ],
    }


@pytest.mark.parametrize(
    ("status", "reason", "expected"),
    [
        ("completed", None, {"finish_reason": "stop"}),
        ("incomplete", "max_output_tokens", {"finish_reason": "length"}),
        ("incomplete", "content_filter", {"finish_reason": "content_filter"}),
        ("incomplete", "steered", {"finish_reason": "length", "native_finish_reason": "steered"}),
        ("queued", None, {"finish_reason": None, "native_finish_reason": "queued"}),
    ],
)
def test_how_it_ended(status: str, reason: str | None, expected: dict[str, Any]) -> None:
    answer = response([], status=status, incomplete_details={"reason": reason} if reason else None)

    choice = canonical(answer)["choices"][0]

    assert {name: choice[name] for name in choice if name not in ("index", "message", "logprobs")} == expected


def test_an_item_that_waits_for_the_client_ends_as_a_call() -> None:
    shell = {"type": "local_shell_call", "id": "l", "call_id": "c", "status": "completed", "action": {}}

    assert canonical(response([shell]))["choices"][0]["finish_reason"] == "tool_calls"


def test_counts_that_the_chat_api_has_no_name_for_are_kept_apart() -> None:
    tools = {"web_search": {"num_requests": 1}}
    usage = {"input_tokens": 1, "output_tokens": 2, "input_tokens_details": {"cached_tokens": 1, "more": {"a": 1}}}

    counted = canonical(response([], usage=usage, tool_usage=tools))["usage"]

    assert counted == {
        "prompt_tokens": 1,
        "completion_tokens": 2,
        "total_tokens": 3,
        "prompt_tokens_details": {"cached_tokens": 1},
        "provider_usage": {"dialect": "responses", "input_tokens_details": {"more": {"a": 1}}, "tool_usage": tools},
    }


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b'{"output": 1}',
        b'{"output": [1]}',
        b'{"output": [{"type": "message", "content": "x"}]}',
        b'{"output": [{"type": "function_call", "call_id": "c"}]}',
        b'{"output": [{"type": "x", "a": "\xff"}]}',
        b'{"output": [], "error": {"message": "secret"}}',
        b'{"output": [], "status": "failed"}',
        b'{"output": ' + b"[" * 9000 + b"]" * 9000 + b"}",
    ],
)
def test_what_is_no_answer_is_unreadable_and_not_quoted(body: bytes) -> None:
    with pytest.raises(Unreadable) as refusal:
        WIRE.whole(body, call_of({}))

    assert "secret" not in str(refusal.value)
    assert refusal.value.__cause__ is None


# --- events


class Script:
    """The events that tell of an answer, in the API's own order."""

    def __init__(self, answer: dict[str, Any], draw: st.DrawFn | None = None) -> None:
        self._draw = draw
        self._answer = answer
        self.events: list[dict[str, Any]] = []
        begun = {**answer, "status": "in_progress", "output": [], "usage": None, "service_tier": "auto"}
        self._emit("response.created", response=begun)
        self._emit("response.in_progress", response=begun)
        for index, item in enumerate(answer["output"]):
            self._item(index, item)
        self._emit(f"response.{answer['status']}", response=answer)

    def _emit(self, kind: str, **more: Any) -> None:
        self.events.append({"type": kind, "sequence_number": len(self.events), **more})

    def _cut(self, whole: str) -> list[str]:
        if self._draw is None or len(whole) < 2:
            return [whole] if whole else []
        at = self._draw(st.integers(1, len(whole) - 1))
        return [whole[:at], whole[at:]]

    def _item(self, index: int, item: dict[str, Any]) -> None:
        emptied: dict[str, Any] = {
            name: [] if name in ("content", "summary") else "" if name in ("arguments", "input") else value
            for name, value in item.items()
        }
        self._emit("response.output_item.added", output_index=index, item=emptied)
        of = {"item_id": item.get("id", ""), "output_index": index}
        if item["type"] == "message":
            for at, part in enumerate(item["content"]):
                self._part(part, {**of, "content_index": at})
        elif item["type"] == "function_call":
            for piece in self._cut(item["arguments"]):
                self._emit("response.function_call_arguments.delta", **of, delta=piece)
            self._emit("response.function_call_arguments.done", **of, arguments=item["arguments"])
        elif item["type"] == "custom_tool_call":
            for piece in self._cut(item["input"]):
                self._emit("response.custom_tool_call_input.delta", **of, delta=piece)
            self._emit("response.custom_tool_call_input.done", **of, input=item["input"])
        elif item["type"] == "reasoning":
            for at, part in enumerate(item["summary"]):
                place = {**of, "summary_index": at}
                self._emit("response.reasoning_summary_part.added", **place, part={**part, "text": ""})
                for piece in self._cut(part["text"]):
                    self._emit("response.reasoning_summary_text.delta", **place, delta=piece)
                self._emit("response.reasoning_summary_text.done", **place, text=part["text"])
                self._emit("response.reasoning_summary_part.done", **place, part=part)
            for at, part in enumerate(item.get("content", ())):
                place = {**of, "content_index": at}
                for piece in self._cut(part["text"]):
                    self._emit("response.reasoning_text.delta", **place, delta=piece)
                self._emit("response.reasoning_text.done", **place, text=part["text"])
        else:
            self._emit("response.web_search_call.in_progress", **of)
            self._emit("response.web_search_call.searching", **of)
            self._emit("response.web_search_call.completed", **of)
        self._emit("response.output_item.done", output_index=index, item=item)

    def _part(self, part: dict[str, Any], place: dict[str, Any]) -> None:
        field = "text" if part["type"] == "output_text" else "refusal"
        kind = "output_text" if field == "text" else "refusal"
        emptied = {**part, field: ""} | ({"annotations": [], "logprobs": []} if field == "text" else {})
        self._emit("response.content_part.added", **place, part=emptied)
        # The events of a text say less of each token than the text itself does at its end.
        logprobs = [
            {name: told[name] for name in ("token", "logprob")} | {"top_logprobs": [{"token": "b", "logprob": -1.5}]}
            for told in part.get("logprobs", ())
        ]
        every = list(logprobs)
        for piece in self._cut(part[field]):
            more = {"logprobs": logprobs[:1]} if field == "text" else {}
            del logprobs[:1]
            self._emit(f"response.{kind}.delta", **place, delta=piece, **more)
        for at, annotation in enumerate(part.get("annotations", ())):
            self._emit("response.output_text.annotation.added", **place, annotation_index=at, annotation=annotation)
        more = {"logprobs": every} if field == "text" else {}
        self._emit(f"response.{kind}.done", **place, **{field: part[field]}, **more)
        self._emit("response.content_part.done", **place, part=part)


def chunks_of(events: list[dict[str, Any]]) -> list[Chunk]:
    decoder = WIRE.decoder(call_of({}))
    chunks = [chunk for event in events for chunk in decoder.feed(msgspec.json.encode(event))]
    assert decoder.finished
    return chunks


def assembled(events: list[dict[str, Any]]) -> dict[str, Any]:
    assembly = Assembly("chat")
    for chunk in chunks_of(events):
        assert msgspec.json.decode(chunk.payload) == chunk.fields
        assembly.add(chunk.fields)
    assert assembly.adds_up
    completion: dict[str, Any] = json.loads(assembly.completion(assembly.usage or Usage()).body)
    return completion


said = st.text("ab é\n😀", max_size=9)
logprob = st.fixed_dictionaries(
    {
        "token": said,
        "logprob": st.just(-0.5),
        "bytes": st.just([97]),
        "top_logprobs": st.just([{"token": "b", "logprob": -1.5, "bytes": [98]}]),
    }
)
citations = st.lists(
    st.just({"type": "url_citation", "start_index": 0, "end_index": 1, "title": "T", "url": "https://a.test"}),
    max_size=2,
)
output_texts = st.builds(text, said, annotations=citations, logprobs=st.lists(logprob, max_size=2))
refusals = st.builds(lambda words: {"type": "refusal", "refusal": words}, said)
summaries = st.lists(st.builds(lambda words: {"type": "summary_text", "text": words}, said), max_size=3)
thoughts = st.lists(st.builds(lambda words: {"type": "reasoning_text", "text": words}, said), max_size=2)
an_item = st.one_of(
    st.builds(
        lambda parts, phase: message(*parts, **({"phase": phase} if phase else {})),
        st.lists(output_texts | refusals, max_size=3),
        st.sampled_from([None, "commentary", "final_answer"]),
    ),
    st.builds(
        lambda words: {"type": "function_call", "call_id": "c", "name": "f", "arguments": words, "status": "completed"},
        said,
    ),
    st.builds(lambda words: {"type": "custom_tool_call", "call_id": "c", "name": "f", "input": words}, said),
    st.builds(
        lambda summary, content, sealed: {
            "type": "reasoning",
            "summary": summary,
            **({"content": content} if content else {}),
            **({"encrypted_content": sealed} if sealed else {}),
        },
        summaries,
        thoughts,
        st.sampled_from([None, "AAA"]),
    ),
    st.just({"type": "web_search_call", "status": "completed", "action": {"type": "search", "query": "q"}}),
)


@st.composite
def answers(draw: st.DrawFn) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    output = [{**item, "id": f"item_{at}"} for at, item in enumerate(draw(st.lists(an_item, max_size=5)))]
    cut_off = draw(st.booleans())
    ending = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}} if cut_off else {}
    answer = response(output, **ending)
    return answer, Script(answer, draw).events


def test_a_client_of_the_same_dialect_gets_the_items_back() -> None:
    output: list[dict[str, Any]] = [
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [{"type": "summary_text", "text": "One."}, {"type": "summary_text", "text": "Two."}],
            "encrypted_content": "AAA",
        },
        {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "q"}},
        message(text("See."), phase="commentary"),
        {
            "type": "function_call",
            "id": "fc_1",
            "call_id": "call_1",
            "name": "f",
            "arguments": "{}",
            "namespace": "ns",
            "status": "completed",
        },
        {"type": "custom_tool_call", "id": "ctc_1", "call_id": "call_2", "name": "sql", "input": "select 1"},
        message(text("End."), item_id="msg_2", phase="final_answer"),
        {"type": "reasoning", "id": "rs_2", "summary": []},
    ]
    asked = RESPONSES.decode(b'{"model": "fast", "input": "Hi"}', Asked("chat"))
    body = WIRE.whole(msgspec.json.encode(response(output)), call_of({}))
    encoder = RESPONSES.stream(asked)

    whole = json.loads(RESPONSES.whole(Completion(body, "m", Usage(1, 1)), asked))
    events = encoder.chunks([chunk.payload for chunk in chunks_of(Script(response(output)).events)])
    events += encoder.end(Completion(body, "m", Usage(1, 1)))

    assert whole["output"] == output
    assert json.loads(events.decode().strip().rpartition("data: ")[2])["response"]["output"] == output


@settings(max_examples=examples(300), deadline=None)
@given(answers())
def test_events_cut_anywhere_come_to_the_same_as_the_whole_answer(
    told: tuple[dict[str, Any], list[dict[str, Any]]],
) -> None:
    answer, events = told

    assert misfit(answer, Response) is None
    assert [wrong for event in events if (wrong := misfit(event, ResponseStreamEvent))] == []
    assert without_bytes(assembled(events)) == without_bytes(canonical(answer))


def without_bytes(completion: dict[str, Any]) -> dict[str, Any]:
    """Events of a text do not have the bytes of its tokens."""
    for token in (completion["choices"][0]["logprobs"] or {"content": []})["content"]:
        for one in (token, *token["top_logprobs"]):
            one["bytes"] = None
    return completion


def quirks() -> Iterator[Any]:
    answer = response(
        [
            {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Hm."}]},
            message(text("Hello")),
            {"type": "function_call", "id": "fc_1", "call_id": "c", "name": "f", "arguments": "{}"},
        ]
    )
    events = Script(answer).events
    yield pytest.param(answer, events, id="as the API tells it")
    yield pytest.param(answer, [events[0], events[-1]], id="all of it at the end")
    yield pytest.param(answer, [event for event in events if "delta" not in event], id="no deltas")
    only_items = [event for event in events if event["type"] != "response.output_item.added"]
    yield pytest.param(answer, [e for e in only_items if "item" in e or "response" in e], id="only finished items")
    placeless = [{key: value for key, value in event.items() if key != "output_index"} for event in events]
    yield pytest.param(answer, placeless, id="no places")
    renamed = [{**event, "item_id": f"other_{at}"} if "delta" in event else event for at, event in enumerate(events)]
    yield pytest.param(answer, renamed, id="ids that change")
    half = [{k: v for k, v in e.items() if k != "output_index" or "item" in e} for e in events]
    yield pytest.param(answer, half, id="places of items alone")
    strange = {"type": "response.mood.changed", "delta": {"a": 1}, "output_index": "x"}
    yield pytest.param(answer, [*events[:3], {**strange, "output_index": 0}, *events[3:]], id="an event of next year")


@pytest.mark.parametrize(("answer", "events"), list(quirks()))
def test_servers_that_tell_less_are_understood(answer: dict[str, Any], events: list[dict[str, Any]]) -> None:
    assert assembled(events) == canonical(answer)


def test_nothing_is_passed_on_before_the_first_item() -> None:
    events = Script(response([message(text("Hello"))])).events
    decoder = WIRE.decoder(call_of({}))

    before = [chunk for event in events[:2] for chunk in decoder.feed(msgspec.json.encode(event))]
    (first,) = decoder.feed(msgspec.json.encode(events[2]))

    assert before == []
    assert first.fields["id"] == "resp_1"
    assert first.fields["choices"][0]["delta"]["role"] == "assistant"


def test_progress_of_what_only_this_dialect_has_is_passed_on_beside_the_answer() -> None:
    search = {
        "type": "web_search_call",
        "id": "ws_1",
        "status": "completed",
        "action": {"type": "search", "query": "q"},
    }
    events = Script(response([search])).events

    chunks = [chunk.fields for chunk in chunks_of(events)]

    told = [chunk["provider_event"]["data"] for chunk in chunks if "provider_event" in chunk]
    assert [event["type"] for event in told] == [
        "response.output_item.added",
        "response.web_search_call.in_progress",
        "response.web_search_call.searching",
        "response.web_search_call.completed",
    ]
    assert all(chunk["choices"] == [] for chunk in chunks if "provider_event" in chunk)


@pytest.mark.parametrize(
    "event",
    [
        {"type": "error", "code": "server_error", "message": "secret", "param": None, "sequence_number": 1},
        {"type": "response.failed", "response": response([], status="failed"), "sequence_number": 1},
        {"type": "response.completed", "response": response([], error={"code": "x", "message": "secret"})},
    ],
)
def test_an_error_ends_the_stream_unread(event: dict[str, Any]) -> None:
    decoder = WIRE.decoder(call_of({}))

    with pytest.raises(Unreadable, match=r"\Aended with an error\Z"):
        decoder.feed(msgspec.json.encode(event))

    assert not decoder.finished


def test_a_stream_without_its_last_event_is_not_whole() -> None:
    decoder = WIRE.decoder(call_of({}))

    for event in Script(response([message(text("Hello"))])).events[:-1]:
        decoder.feed(msgspec.json.encode(event))
    decoder.feed(b"[DONE]")

    assert not decoder.finished
    assert not decoder.complete


EVENTS = Script(
    response(
        [
            {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Hm."}]},
            message(text("Hello", annotations=[{"type": "file_path", "file_id": "f", "index": 0}])),
            {"type": "function_call", "id": "fc_1", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "custom_tool_call", "id": "ctc", "call_id": "d", "name": "g", "input": "x"},
            {"type": "web_search_call", "id": "ws", "status": "completed", "action": {"type": "search", "query": "q"}},
        ]
    )
).events


@settings(max_examples=examples(400), deadline=None)
@given(spoiled(EVENTS).filter(lambda events: isinstance(events, list)))
def test_events_of_any_shape_are_read_or_unreadable(events: list[Any]) -> None:
    decoder = WIRE.decoder(call_of({}))
    assembly = Assembly("chat")
    broken = ""

    try:
        for event in events:
            for chunk in decoder.feed(msgspec.json.encode(event)):
                assembly.add(chunk.fields)
    except Unreadable as error:
        broken = str(error)

    assert broken == "" or broken.startswith(("had ", "ended "))


@settings(max_examples=examples(300), deadline=None)
@given(spoiled(EVENTS[-1]["response"]))
def test_an_answer_of_any_shape_is_read_or_unreadable(answer: Any) -> None:
    broken, role = "", None

    try:
        role = canonical(answer)["choices"][0]["message"]["role"]
    except Unreadable as error:
        broken = str(error)

    assert role == "assistant" or broken.startswith(("answered with ", "had "))
