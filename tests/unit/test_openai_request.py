"""What of another dialect's request an OpenAI-compatible provider is told."""

import json
import time
from typing import Any

import pytest

from backends.upstream.base import Call
from backends.upstream.openai import OpenAIWire
from backends.upstream.openai_request import Quirks
from models.errors import Untranslatable

CUSTOM = {"type": "custom", "custom": {"name": "patch", "description": "Edits a file."}}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}


def sent(body: dict[str, Any], *, accepted: frozenset[str] = frozenset(), refused: tuple[str, ...] = ()) -> Any:
    body = {"messages": [{"role": "user", "content": "Hi"}], **body}
    call = Call("chat", "m", body, None, dialect="anthropic", native={}, refused=refused)
    return json.loads(OpenAIWire(quirks=Quirks(accepted=accepted)).request(call, stream=False).body)


def test_the_canonical_body_goes_out_under_the_upstreams_model() -> None:
    assert sent({"model": "asked", "max_completion_tokens": 5, "stream": True}) == {
        "model": "m",
        "max_completion_tokens": 5,
        "messages": [{"role": "user", "content": "Hi"}],
    }


@pytest.mark.parametrize(("budget", "effort"), [(0, "none"), (2048, "low"), (2049, "medium"), (32_000, "high")])
def test_a_budget_for_reasoning_becomes_an_effort(budget: int, effort: str) -> None:
    body = sent({"reasoning_budget": budget})

    assert body["reasoning_effort"] == effort
    assert "reasoning_budget" not in body


def test_a_budget_that_is_the_models_choice_is_left_to_it() -> None:
    assert "reasoning_effort" not in sent({"reasoning_budget": -1})


def test_what_only_other_dialects_read_stays_here() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}, "item_id": "fc_1"}
    turn = {
        "role": "assistant",
        "content": "So",
        "reasoning_content": "Hm",
        "reasoning_details": [{"type": "reasoning.text", "text": "Hm", "signature": "s"}],
        "layout": [["content", 2]],
        "tool_calls": [call],
    }
    result = {"role": "tool", "tool_call_id": "c", "content": "4", "is_error": True}

    messages = sent({"messages": [turn, result]})["messages"]

    assert messages == [
        {
            "role": "assistant",
            "content": "So",
            "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "c", "content": "4"},
    ]


def test_what_tools_show_follows_their_results_in_a_turn_of_the_user() -> None:
    results = [
        {"role": "tool", "tool_call_id": "a", "content": [{"type": "text", "text": "Done"}, PICTURE]},
        {"role": "tool", "tool_call_id": "b", "content": [PICTURE]},
    ]

    messages = sent({"messages": [*results, {"role": "user", "content": "And?"}]})["messages"]

    assert messages == [
        {"role": "tool", "tool_call_id": "a", "content": [{"type": "text", "text": "Done"}]},
        {"role": "tool", "tool_call_id": "b", "content": ""},
        {"role": "user", "content": [PICTURE, PICTURE]},
        {"role": "user", "content": "And?"},
    ]


def test_a_tool_of_free_form_is_offered_as_a_function_of_one_text() -> None:
    made = {"id": "c", "type": "custom", "custom": {"name": "patch", "input": "+ a"}}
    body = sent(
        {
            "tools": [CUSTOM],
            "tool_choice": {"type": "custom", "custom": {"name": "patch"}},
            "messages": [{"role": "assistant", "content": None, "tool_calls": [made]}],
        }
    )

    assert body["tools"][0]["function"]["name"] == "patch"
    assert body["tools"][0]["function"]["parameters"]["required"] == ["input"]
    assert body["tool_choice"] == {"type": "function", "function": {"name": "patch"}}
    assert body["messages"][0]["tool_calls"][0]["function"] == {"name": "patch", "arguments": '{"input":"+ a"}'}


def test_a_provider_that_has_tools_of_free_form_is_offered_them() -> None:
    assert sent({"tools": [CUSTOM]}, accepted=frozenset({"custom_tools"}))["tools"] == [CUSTOM]


@pytest.mark.parametrize(
    ("schema", "strict"),
    [
        ({"type": "object", "properties": {"a": {}}, "required": ["a"], "additionalProperties": False}, True),
        ({"type": "object", "properties": {"a": {}}, "required": [], "additionalProperties": False}, False),
        ({"type": "object", "properties": {"a": {}}, "required": ["a"]}, False),
        (
            {
                "type": "object",
                "properties": {"a": {"type": "array", "items": {"type": "object", "properties": {}}}},
                "required": ["a"],
                "additionalProperties": False,
            },
            False,
        ),
        ({"type": "object", "properties": [["a"]], "required": ["a"], "additionalProperties": False}, False),
        (json.loads('{"items":' * 400 + "{}" + "}" * 400), True),
    ],
)
def test_a_schema_is_strict_only_where_the_api_takes_it_so(schema: dict[str, Any], *, strict: bool) -> None:
    asked = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}

    told = sent({"response_format": asked})["response_format"]

    assert told["json_schema"]["strict"] is strict


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"top_k": 3}, "top_k"),
        ({"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_url": "https://x"}}]}]}, "address"),
        ({"messages": [{"role": "user", "content": "", "provider_content": [{"dialect": "gemini"}]}]}, "messages[0]"),
    ],
)
def test_what_the_api_has_no_words_for_is_named(body: dict[str, Any], named: str) -> None:
    with pytest.raises(Untranslatable, match=r".") as refused:
        sent(body)

    assert named in refused.value.names[0]
    assert sent(body | {"messages": [{"role": "user", "content": "Hi"}]}, accepted=frozenset({"top_k"}))


def test_what_the_clients_dialect_found_untranslatable_is_named() -> None:
    with pytest.raises(Untranslatable) as refused:
        sent({}, refused=("mcp_servers",))

    assert refused.value.names == ("mcp_servers",)


def test_many_turns_that_cannot_be_told_are_named_in_no_time() -> None:
    turns = [{"role": "user", "content": "", "provider_content": [{"dialect": "gemini"}]} for _ in range(20_000)]
    refused = tuple(f"messages[{at}].content[0] (q)" for at in range(0, 20_000, 2))

    began = time.perf_counter()
    with pytest.raises(Untranslatable) as named:
        sent({"messages": turns}, refused=refused)

    assert len(named.value.names) == 20_000
    assert time.perf_counter() - began < 1.0
