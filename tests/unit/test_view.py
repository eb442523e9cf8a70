"""Segments over every string of a request or an answer, and the JSON with other texts."""

import base64
import json
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails.redact import Edit
from guardrails.view import DERIVED, OPAQUE, PLAIN, View, answer_segments, request_segments, views_of
from models.request import Dialect, Request
from service.api.anthropic_messages import ANTHROPIC
from service.api.dialect import Asked
from service.api.gemini_generate import GEMINI_SSE
from service.api.openai_chat import OPENAI
from service.api.openai_responses import RESPONSES
from service.caching.replay import adds_up

Json = dict[str, Any]

PNG = base64.b64encode(b"\x89PNG").decode()
PDF = base64.b64encode(b"%PDF-1.7").decode()
NOTE = base64.b64encode("a note, naïve".encode()).decode()
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "where", "enum": ["Bern", "Oslo"]}},
    "required": ["city"],
    "$defs": {"who": {"type": ["string", "null"], "default": "me"}},
    "x-note": {"type": "by the caller"},
}

CHAT: Json = {
    "model": "gpt-5",
    "messages": [
        {"role": "system", "content": "be brief"},
        {"role": "user", "name": "ann", "content": "hello"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "look"},
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}", "detail": "low"}},
                {"type": "image_url", "image_url": {"url": "https://example.com/a?token=b"}},
                {"type": "input_audio", "input_audio": {"data": PNG, "format": "wav"}},
                {"type": "file", "file": {"file_data": f"data:application/pdf;base64,{PDF}", "filename": "q.pdf"}},
                {"type": "file", "file": {"file_data": f"data:text/plain;base64,{NOTE}", "filename": "n.txt"}},
                {"type": "text", "text": "and say", "cache_control": {"type": "ephemeral"}},
            ],
        },
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "hm",
            "reasoning_details": [
                {"type": "reasoning.text", "index": 0, "format": "f", "text": "hm", "signature": "c2ln"}
            ],
            "tool_calls": [
                {
                    "id": "c1",
                    "type": "function",
                    "function": {"name": "weather", "arguments": '{"city": "B\\u0065rn"}'},
                },
                {"id": "c2", "type": "custom", "custom": {"name": "sql", "input": "select 1"}},
                {"id": "c3", "type": "function", "function": {"name": "weather", "arguments": "{broken"}},
            ],
            "provider_content": [{"dialect": "anthropic", "block": {"type": "container_upload", "note": "kept"}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
        {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "1 row"}]},
        {"role": "user", "content": "thanks"},
    ],
    "tools": [
        {"type": "function", "function": {"name": "weather", "description": "tells it", "parameters": SCHEMA}},
        {
            "type": "custom",
            "custom": {
                "name": "sql",
                "format": {"type": "grammar", "grammar": {"definition": "d d", "syntax": "lark"}},
            },
        },
    ],
    "tool_choice": {"type": "function", "function": {"name": "weather"}},
    "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}},
    "prediction": {"type": "content", "content": "it rains"},
    "stop": ["THE END"],
    "user": "ann@example.com",
    "metadata": {"team of ann": "blue", "type": "a b"},
    "logit_bias": {"50256": -100},
    "stream": True,
    "news": {"id": "from the future", "deep": [{"type": "unheard of"}]},
}
COMPLETION: Json = {"model": "m", "prompt": ["once", "upon a time"], "suffix": "the end", "stop": "\n"}
EMBEDDING: Json = {"model": "m", "input": ["one text", "another"], "encoding_format": "float"}
ANTHROPIC_BODY: Json = {
    "model": "claude-5",
    "max_tokens": 9,
    "system": [{"type": "text", "text": "be brief", "cache_control": {"type": "ephemeral", "ttl": "1h"}}],
    "metadata": {"user_id": "ann at home"},
    "stop_sequences": ["THE END"],
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "look"},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}},
                {"type": "image", "source": {"type": "url", "url": "https://example.com/a"}},
                {
                    "type": "document",
                    "title": "the title",
                    "context": "the context",
                    "source": {"type": "text", "media_type": "text/plain", "data": "plainwords"},
                },
                {"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "inner"}]}},
                {
                    "type": "search_result",
                    "source": "https://example.com/b",
                    "title": "found",
                    "content": [{"type": "text", "text": "a passage"}],
                },
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "well well", "signature": "c2lnbmVk"},
                {"type": "redacted_thinking", "data": "c2VhbGVk"},
                {
                    "type": "text",
                    "text": "I look",
                    "citations": [{"type": "char_location", "cited_text": "cited words"}],
                },
                {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city of": ["Bern", {"type": "tid"}]}},
                {"type": "server_tool_use", "id": "t2", "name": "web_search", "input": {"query": "weather bern"}},
                {
                    "type": "web_search_tool_result",
                    "tool_use_id": "t2",
                    "content": [
                        {
                            "type": "web_search_result",
                            "title": "a page",
                            "url": "https://example.com/c",
                            "encrypted_content": "ZW5jcnlwdGVk",
                            "page_age": "two days",
                        }
                    ],
                },
            ],
        },
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "rain"}]}],
        },
    ],
    "tools": [{"name": "weather", "description": "tells it", "input_schema": SCHEMA}],
    "tool_choice": {"type": "tool", "name": "weather"},
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "container": {"id": "c", "skills": [{"type": "custom", "skill_id": "my skill"}]},
}
RESPONSES_BODY: Json = {
    "model": "gpt-5",
    "instructions": "be brief",
    "input": [
        {"role": "user", "content": "hello"},
        {
            "type": "message",
            "role": "user",
            "content": [
                {"type": "input_text", "text": "look"},
                {"type": "input_image", "image_url": f"data:image/png;base64,{PNG}", "detail": "auto"},
                {"type": "input_file", "filename": "q.pdf", "file_data": f"data:application/pdf;base64,{PDF}"},
                {"type": "input_text", "text": "here"},
            ],
        },
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [{"type": "summary_text", "text": "hm"}],
            "encrypted_content": "Zm9v",
        },
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city": "Bern"}'},
        {"type": "function_call_output", "call_id": "c1", "output": "rain"},
        {"type": "custom_tool_call", "call_id": "c2", "name": "sql", "input": "select 1"},
        {"type": "custom_tool_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "1 row"}]},
        {
            "type": "web_search_call",
            "id": "ws",
            "status": "completed",
            "action": {"type": "search", "query": "bern now"},
        },
        {
            "type": "mcp_call",
            "id": "m",
            "name": "do",
            "server_label": "my server",
            "arguments": '{"a": "b c"}',
            "output": "done it",
        },
        {"type": "image_generation_call", "id": "ig", "result": PNG, "revised_prompt": "a red fox"},
        {
            "type": "message",
            "role": "assistant",
            "content": [
                {
                    "type": "output_text",
                    "text": "it rains",
                    "annotations": [
                        {
                            "type": "url_citation",
                            "url": "https://example.com/d",
                            "title": "a page",
                            "start_index": 0,
                            "end_index": 2,
                        }
                    ],
                    "logprobs": [{"token": "it", "logprob": 0.0, "top_logprobs": []}],
                },
                {"type": "refusal", "refusal": "no more"},
            ],
        },
    ],
    "tools": [
        {"type": "function", "name": "weather", "description": "tells it", "parameters": SCHEMA, "strict": False},
        {
            "type": "mcp",
            "server_label": "my server",
            "server_url": "https://example.com/mcp",
            "headers": {"X-Key": "k k"},
        },
    ],
    "text": {"format": {"type": "json_schema", "name": "answer", "schema": SCHEMA}, "verbosity": "low"},
    "reasoning": {"effort": "low", "summary": "auto"},
    "prompt_cache_key": "app-1",
    "metadata": {"team": "the blue one"},
    "include": ["reasoning.encrypted_content"],
}
GEMINI_BODY: Json = {
    "systemInstruction": {"parts": [{"text": "be brief"}]},
    "contents": [
        {
            "role": "user",
            "parts": [
                {"text": "look"},
                {"inlineData": {"mimeType": "image/png", "data": PNG, "displayName": "the pixel"}},
                {"inlineData": {"mimeType": "text/plain", "data": NOTE}},
                {"fileData": {"mimeType": "application/pdf", "fileUri": "https://example.com/q.pdf"}},
            ],
        },
        {
            "role": "model",
            "parts": [
                {"text": "hm", "thought": True},
                {"text": "I look", "thoughtSignature": "c2ln"},
                {"functionCall": {"id": "f1", "name": "weather", "args": {"city of": "Bern", "id": "gid"}}},
                {"executableCode": {"language": "PYTHON", "code": "print(1)"}},
                {"codeExecutionResult": {"outcome": "OUTCOME_OK", "output": "1 line"}},
            ],
        },
        {
            "role": "user",
            "parts": [
                {"functionResponse": {"id": "f1", "name": "weather", "response": {"output": "rain", "type": "rtype"}}}
            ],
        },
    ],
    "tools": [{"functionDeclarations": [{"name": "weather", "description": "tells it", "parameters": SCHEMA}]}],
    "toolConfig": {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["weather"]}},
    "generationConfig": {
        "stopSequences": ["THE END"],
        "responseMimeType": "application/json",
        "responseSchema": SCHEMA,
    },
    "safetySettings": [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "OFF"}],
    "labels": {"team": "the blue one"},
}
ANSWER: Json = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "gpt-5",
    "service_tier": "default",
    "choices": [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "it rains in Bern",
                "refusal": "not more",
                "reasoning_content": "hm",
                "reasoning_details": [{"type": "reasoning.text", "index": 0, "format": "f", "text": "hm", "id": "r"}],
                "tool_calls": [
                    {"id": "c", "type": "function", "function": {"name": "weather", "arguments": '{"a": ["b c"]}'}}
                ],
                "annotations": [
                    {
                        "type": "url_citation",
                        "url_citation": {
                            "url": "https://example.com",
                            "title": "a page",
                            "start_index": 3,
                            "end_index": 8,
                        },
                    }
                ],
                "provider_content": [
                    {"dialect": "gemini", "block": {"executableCode": {"language": "PYTHON", "code": "print(2)"}}},
                    {
                        "dialect": "anthropic",
                        "block": {"type": "text_citations", "length": 2, "citations": [{"cited_text": "cited words"}]},
                    },
                ],
                "audio": {"id": "audio_1", "data": PNG, "transcript": "spoken words"},
                "layout": [["content", 8], ["tool_calls", 1], ["content", 8]],
                "content_items": [{"offset": 0, "id": "msg_1"}, {"offset": 8, "id": "msg_2"}],
            },
            "logprobs": {"content": [{"token": "it", "logprob": 0.0, "bytes": [105, 116], "top_logprobs": []}]},
            "finish_reason": "tool_calls",
            "native_finish_reason": "tool_use",
            "stop_sequence": "THE END",
            "provider_fields": {"dialect": "gemini", "groundingMetadata": {"webSearchQueries": ["bern now"]}},
        },
        {"index": 1, "message": {"role": "assistant", "content": "or not"}, "logprobs": None, "finish_reason": "stop"},
    ],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1},
    "provider_fields": {"dialect": "gemini", "modelStatus": {"message": "going away"}},
}

BODIES: list[tuple[Dialect, Json]] = [
    ("openai", CHAT),
    ("openai", COMPLETION),
    ("openai", EMBEDDING),
    ("anthropic", ANTHROPIC_BODY),
    ("responses", RESPONSES_BODY),
    ("gemini", GEMINI_BODY),
]


def strings(node: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Every string value with its path, found another way than the view does."""
    if isinstance(node, str):
        yield path, node
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from strings(value, (*path, key))
    elif isinstance(node, list):
        for place, value in enumerate(node):
            yield from strings(value, (*path, place))


def unseen(tree: Json, view: View) -> list[tuple[tuple[str | int, ...], str]]:
    """Strings in no segment and on no list."""
    texts = {segment.text for segment in view.texts}
    missed = []
    for path, text in strings(tree):
        name = next((str(step) for step in reversed(path) if isinstance(step, str)), "")
        listed = name in PLAIN | OPAQUE or bool(DERIVED & set(path)) or name in ("$schema", "result")
        holds_data = text.startswith("data:") and ("text/" not in text or "a note, naïve" in texts)
        parsed = name == "arguments" and all(inner in texts for _, inner in strings(_parsed(text)))
        if text and text not in texts and not (listed or holds_data or parsed):
            missed.append((path, text))
    return missed


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def role_of(view: View, text: str) -> str:
    (role,) = {segment.role for segment in view.texts if segment.text == text}
    return role


def changed(view: View, old: str, new: str) -> Any:
    return view.rewritten({s.index: s.text.replace(old, new) for s in view.texts if old in s.text})


# --- what is looked at


@pytest.mark.parametrize(("dialect", "body"), BODIES)
def test_every_string_of_a_request_is_a_segment_or_on_a_list(dialect: Dialect, body: Json) -> None:
    assert unseen(body, request_segments(body, dialect)) == []


def test_every_string_of_an_answer_is_a_segment_or_on_a_list() -> None:
    assert unseen(ANSWER, answer_segments(ANSWER)) == []


@pytest.mark.parametrize(
    ("dialect", "body"), [(ANTHROPIC, ANTHROPIC_BODY), (RESPONSES, RESPONSES_BODY), (GEMINI_SSE, GEMINI_BODY)]
)
def test_so_is_every_string_of_its_canonical_form(dialect: Any, body: Json) -> None:
    request = dialect.decode(msgspec.json.encode(body), Asked("chat", "m", stream=False))

    assert unseen(request.body, request_segments(request.body, "openai")) == []


@pytest.mark.parametrize("dialect", ["openai", "responses", "anthropic", "gemini"])
@given(
    st.recursive(
        st.text(alphabet="ab @é", min_size=1),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["type", "id", "content", "data", "x"]), inner),
    )
)
def test_what_is_in_an_unknown_field_is_looked_at_whatever_its_name(dialect: Dialect, value: Any) -> None:
    view = request_segments({"model": "m", "of tomorrow": value}, dialect)

    texts = {segment.text for segment in view.texts}
    assert {text for _, text in strings(value)} | {"of tomorrow"} <= texts


@pytest.mark.parametrize("name", sorted(PLAIN | OPAQUE))
def test_a_field_on_a_list_is_looked_at_where_it_holds_what_no_such_field_does(name: str) -> None:
    body = {"messages": [{"role": "user", name: "my card is 4111 1111"}]}

    assert "my card is 4111 1111" in {segment.text for segment in request_segments(body, "openai").texts}


@pytest.mark.parametrize(
    ("dialect", "body", "text", "role"),
    [
        ("openai", CHAT, "be brief", "system"),
        ("openai", CHAT, "ann", "name"),
        ("openai", CHAT, "look", "user"),
        ("openai", CHAT, "q.pdf", "name"),
        ("openai", CHAT, "a note, naïve", "document"),
        ("openai", CHAT, "select 1", "tool_args"),
        ("openai", CHAT, "{broken", "tool_args"),
        ("openai", CHAT, "rain", "tool_result"),
        ("openai", CHAT, "1 row", "tool_result"),
        ("openai", CHAT, "tells it", "tool_definition"),
        ("openai", CHAT, "ann@example.com", "other"),
        ("openai", CHAT, "team of ann", "other"),
        ("openai", CHAT, "it rains", "assistant"),
        ("openai", COMPLETION, "upon a time", "user"),
        ("openai", EMBEDDING, "another", "user"),
        ("anthropic", ANTHROPIC_BODY, "be brief", "system"),
        ("anthropic", ANTHROPIC_BODY, "plainwords", "document"),
        ("anthropic", ANTHROPIC_BODY, "inner", "document"),
        ("anthropic", ANTHROPIC_BODY, "a passage", "document"),
        ("anthropic", ANTHROPIC_BODY, "well well", "assistant"),
        ("anthropic", ANTHROPIC_BODY, "city of", "tool_args"),
        ("anthropic", ANTHROPIC_BODY, "tid", "tool_args"),
        ("anthropic", ANTHROPIC_BODY, "weather bern", "tool_args"),
        ("anthropic", ANTHROPIC_BODY, "a page", "tool_result"),
        ("anthropic", ANTHROPIC_BODY, "rain", "tool_result"),
        ("responses", RESPONSES_BODY, "be brief", "system"),
        ("responses", RESPONSES_BODY, "look", "user"),
        ("responses", RESPONSES_BODY, "rain", "tool_result"),
        ("responses", RESPONSES_BODY, "1 row", "tool_result"),
        ("responses", RESPONSES_BODY, "select 1", "tool_args"),
        ("responses", RESPONSES_BODY, "bern now", "tool_args"),
        ("responses", RESPONSES_BODY, "b c", "tool_args"),
        ("responses", RESPONSES_BODY, "done it", "tool_result"),
        ("responses", RESPONSES_BODY, "it rains", "assistant"),
        ("gemini", GEMINI_BODY, "be brief", "system"),
        ("gemini", GEMINI_BODY, "a note, naïve", "document"),
        ("gemini", GEMINI_BODY, "the pixel", "name"),
        ("gemini", GEMINI_BODY, "I look", "assistant"),
        ("gemini", GEMINI_BODY, "gid", "tool_args"),
        ("gemini", GEMINI_BODY, "print(1)", "tool_args"),
        ("gemini", GEMINI_BODY, "1 line", "tool_result"),
        ("gemini", GEMINI_BODY, "rain", "tool_result"),
        ("gemini", GEMINI_BODY, "rtype", "tool_result"),
        ("gemini", GEMINI_BODY, "tells it", "tool_definition"),
    ],
)
def test_a_segment_has_the_role_of_where_it_stands(dialect: Dialect, body: Json, text: str, role: str) -> None:
    assert role_of(request_segments(body, dialect), text) == role


def test_gemini_may_write_its_names_in_snake_case() -> None:
    body = {
        "system_instruction": {"parts": [{"text": "be brief"}]},
        "contents": [
            {
                "parts": [
                    {"inline_data": {"mime_type": "image/png", "data": PNG}},
                    {"function_call": {"name": "f", "args": {"a": "b"}}},
                    {"function_response": {"name": "f", "response": {"a": "c"}}},
                ]
            }
        ],
    }

    view = request_segments(body, "gemini")

    assert role_of(view, "be brief") == "system"
    assert role_of(view, "b") == "tool_args"
    assert role_of(view, "c") == "tool_result"
    assert PNG not in {segment.text for segment in view.texts}


def test_the_words_of_a_schema_need_no_look_and_its_names_do() -> None:
    texts = {segment.text for segment in request_segments(ANTHROPIC_BODY, "anthropic").texts}

    assert {"string", "object", "null", "properties"}.isdisjoint(texts)
    assert {"city", "who", "where", "Oslo", "me", "x-note", "by the caller"} <= texts


def test_an_answer_is_the_assistants() -> None:
    view = answer_segments(ANSWER)

    assert role_of(view, "it rains in Bern") == "assistant"
    assert role_of(view, "not more") == "assistant"
    assert role_of(view, "b c") == "tool_args"
    assert role_of(view, "weather") == "name"
    assert role_of(view, "print(2)") == "tool_args"


def test_segments_are_numbered_from_the_body_on_into_the_native_form() -> None:
    request = ANTHROPIC.decode(msgspec.json.encode(ANTHROPIC_BODY), Asked("chat"))

    views = views_of(request)

    assert [segment.index for segment in views.texts] == list(range(len(views.texts)))
    assert sum(segment.text == "be brief" for segment in views.texts) == 2


def test_an_openai_request_is_looked_at_once() -> None:
    request = OPENAI.decode(msgspec.json.encode(CHAT), Asked("chat"))

    assert sum(segment.text == "be brief" for segment in views_of(request).texts) == 1


# --- what is read as one text


def test_parts_and_messages_of_one_turn_are_joined() -> None:
    body = {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "one"},
                    {"type": "image_url", "image_url": {"url": "https://a"}},
                    {"type": "text", "text": "two"},
                ],
            },
            {"role": "user", "name": "ann", "content": "three"},
            {"role": "assistant", "content": "four"},
            {"role": "user", "content": "five"},
        ]
    }

    view = request_segments(body, "openai")

    assert [[view.texts[index].text for index in run] for run in view.joints] == [["one", "two", "three"]]


@pytest.mark.parametrize(
    ("dialect", "body"),
    [
        ("anthropic", {"system": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "messages": []}),
        ("gemini", {"contents": [{"role": "user", "parts": [{"text": "a"}, {"text": "b"}]}]}),
        (
            "responses",
            {
                "input": [
                    {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
                    {"role": "user", "content": "b"},
                ]
            },
        ),
        (
            "responses",
            {
                "input": [
                    {
                        "type": "function_call_output",
                        "call_id": "c",
                        "output": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}],
                    }
                ]
            },
        ),
    ],
)
def test_so_they_are_in_every_dialect(dialect: Dialect, body: Json) -> None:
    view = request_segments(body, dialect)

    assert [[view.texts[index].text for index in run] for run in view.joints] == [["a", "b"]]


def test_choices_of_an_answer_are_not_joined() -> None:
    assert answer_segments(ANSWER).joints == ()


# --- other texts


@pytest.mark.parametrize(("dialect", "body"), BODIES)
def test_nothing_rewritten_is_the_tree_itself(dialect: Dialect, body: Json) -> None:
    view = request_segments(body, dialect)

    assert view.rewritten({}) is body
    assert view.rewritten({segment.index: segment.text for segment in view.texts}) is body


@pytest.mark.parametrize(("dialect", "body"), BODIES)
def test_rewriting_every_segment_changes_no_shape_and_not_the_original(dialect: Dialect, body: Json) -> None:
    before = deepcopy(body)
    view = request_segments(body, dialect)

    there = view.rewritten({s.index: f"{s.text}…" for s in view.texts}, resealed=range(len(view.texts)))
    again = request_segments(there, dialect)

    assert body == before
    if not any("\u2026" in str(step) for s in again.texts for step in s.path):
        assert [s.text for s in again.texts] == [f"{s.text}…" for s in view.texts]


@pytest.mark.parametrize(("dialect", "body"), BODIES)
def test_a_value_is_rewritten_wherever_it_is(dialect: Dialect, body: Json) -> None:
    marked = json.loads(
        json.dumps(body)
        .replace("Bern", "SECRET")
        .replace("be brief", "SECRET")
        .replace("one text", "SECRET")
        .replace("once", "SECRET")
    )

    there = changed(request_segments(marked, dialect), "SECRET", "[X]")

    assert "SECRET" not in json.dumps(there)
    assert "[X]" in json.dumps(there)


def test_what_is_not_touched_is_shared() -> None:
    view = request_segments(CHAT, "openai")

    there = changed(view, "hello", "[X]")

    assert there["messages"][1]["content"] == "[X]"
    assert there["messages"][0] is CHAT["messages"][0]
    assert there["tools"] is CHAT["tools"]


def test_arguments_are_rewritten_in_place_and_escaped() -> None:
    arguments = '{"a": 1.0, "to": "x\\n\\"SECRET\\"", "n": 12345678901234567890123, "to": "SECRET"}'
    body = {"choices": [{"message": {"tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}}]}

    there = changed(answer_segments(body), "SECRET", 'a"b')

    written = there["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"]
    assert written == '{"a": 1.0, "to": "x\\n\\"a\\"b\\"", "n": 12345678901234567890123, "to": "a\\"b"}'


def test_a_value_that_arguments_write_in_escapes_is_seen() -> None:
    body = {
        "messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '"\\u0053ECRET"'}}]}]
    }

    assert "SECRET" in {segment.text for segment in request_segments(body, "openai").texts}


@pytest.mark.parametrize(
    "arguments", ["{broken SECRET", '{"a": "SECRET', '"\\ud800 SECRET"', "SECRET", '{"a": NaN, "b": "SECRET"}']
)
def test_arguments_that_are_no_json_are_one_text(arguments: str) -> None:
    body = {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}]}

    there = changed(request_segments(body, "openai"), "SECRET", "[X]")

    assert there["messages"][0]["tool_calls"][0]["function"]["arguments"] == arguments.replace("SECRET", "[X]")


def test_names_are_rewritten_in_order_and_none_gets_lost() -> None:
    body = {"metadata": {"SECRET": 1, "b": 2, "[X]": 3, "SECRET ": 4}}

    view = request_segments(body, "openai")
    there = view.rewritten({s.index: "[X]" for s in view.texts if "SECRET" in s.text})

    assert list(there["metadata"].items()) == [("[X]_2", 1), ("b", 2), ("[X]", 3), ("[X]_3", 4)]


def test_a_text_in_base64_is_rewritten_in_base64() -> None:
    there = changed(request_segments(CHAT, "openai"), "a note", "[X]")

    encoded = there["messages"][2]["content"][5]["file"]["file_data"].removeprefix("data:text/plain;base64,")
    assert base64.b64decode(encoded).decode() == "[X], naïve"


def test_a_signed_thought_that_changed_is_left_out() -> None:
    view = request_segments(ANTHROPIC_BODY, "anthropic")

    there = changed(view, "well well", "[X]")

    assert [block["type"] for block in there["messages"][1]["content"]][:2] == ["redacted_thinking", "text"]
    assert ANTHROPIC_BODY["messages"][1]["content"][0]["thinking"] == "well well"


def test_one_that_is_again_what_was_signed_stays() -> None:
    view = request_segments(ANTHROPIC_BODY, "anthropic")
    (thought,) = [segment.index for segment in view.texts if segment.text == "well well"]

    there = view.rewritten({thought: "<EMAIL_7f3a9c>"}, resealed={thought})

    assert there["messages"][1]["content"][0] == {
        "type": "thinking",
        "thinking": "<EMAIL_7f3a9c>",
        "signature": "c2lnbmVk",
    }


def test_a_turn_of_nothing_but_changed_thoughts_says_them_as_text() -> None:
    thought = {"type": "thinking", "thinking": "SECRET", "signature": "c2ln"}
    body = {"messages": [{"role": "assistant", "content": [thought]}]}

    there = changed(request_segments(body, "anthropic"), "SECRET", "[X]")

    assert there["messages"][0]["content"] == [{"type": "text", "text": "[X]"}]


def test_places_in_an_answer_move_with_its_text() -> None:
    view = answer_segments(ANSWER)
    (content,) = [segment.index for segment in view.texts if segment.text == "it rains in Bern"]
    edits = [Edit(0, 2, "[LONGER]"), Edit(12, 16, "[X]")]

    there = view.rewritten({content: "[LONGER] rains in [X]"}, edits={content: edits})

    choice = there["choices"][0]
    message = choice["message"]
    assert message["layout"] == [["content", 14], ["tool_calls", 1], ["content", 7]]
    assert message["content_items"] == [{"offset": 0, "id": "msg_1"}, {"offset": 14, "id": "msg_2"}]
    assert message["annotations"][0]["url_citation"]["start_index"] == 9
    assert message["annotations"][0]["url_citation"]["end_index"] == 14
    assert adds_up(message["layout"], {**message, "reasoning_details": [], "provider_content": []})
    assert choice["logprobs"] is None
    assert ANSWER["choices"][0]["logprobs"] is not None


def test_both_forms_of_a_request_are_rewritten() -> None:
    request = ANTHROPIC.decode(msgspec.json.encode(ANTHROPIC_BODY), Asked("chat"))
    views = views_of(request)

    body, native = views.rewritten({s.index: s.text.replace("rain", "[X]") for s in views.texts if "rain" in s.text})

    assert body["messages"][-1]["content"] == "[X]"
    assert native["messages"][-1]["content"][0]["content"][0]["text"] == "[X]"
    assert request.native == ANTHROPIC_BODY


# --- hostile shapes


def nested(depth: int) -> Any:
    value: Any = "SECRET"
    for level in range(depth):
        value = {"a": value} if level % 2 else [value]
    return value


@pytest.mark.parametrize("depth", [100, 5000])
def test_deep_arguments_are_walked_and_rewritten_without_recursion(depth: int) -> None:
    body = {
        "messages": [
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {"x": nested(depth)}}],
            }
        ]
    }

    there = changed(request_segments(body, "anthropic"), "SECRET", "[X]")

    value = there["messages"][0]["content"][0]["input"]["x"]
    while not isinstance(value, str):
        value = value["a"] if isinstance(value, dict) else value[0]
    assert value == "[X]"


@pytest.mark.parametrize("depth", [100, 100_000])
def test_so_are_deep_arguments_in_json(depth: int) -> None:
    arguments = "[" * depth + '"SECRET"' + "]" * depth
    body = {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}]}

    there = changed(request_segments(body, "openai"), "SECRET", "[X]")

    assert there["messages"][0]["tool_calls"][0]["function"]["arguments"] == arguments.replace("SECRET", "[X]")


def test_a_hundred_thousand_parts_are_segments_in_order() -> None:
    parts = [{"type": "text", "text": str(number)} for number in range(100_000)]
    view = request_segments({"messages": [{"role": "user", "content": parts}]}, "openai")

    there = view.rewritten({99_999: "last"})

    assert len(view.texts) == 100_000
    assert view.joints == (tuple(range(100_000)),)
    assert there["messages"][0]["content"][-1] == {"type": "text", "text": "last"}


@given(
    st.recursive(
        st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_no_shape_is_too_strange(value: Any) -> None:
    body = {"messages": value, "input": value, "contents": value, "tools": value, "system": value, "image_url": value}

    for dialect in ("openai", "responses", "anthropic", "gemini"):
        view = request_segments(body, dialect)
        assert view.rewritten({segment.index: segment.text + "x" for segment in view.texts}) is not None


def test_a_request_without_strings_has_no_segments() -> None:
    request = Request("embedding", "m", {"model": "m", "input": [1, 2]}, b"")

    assert views_of(request).texts == []
    assert views_of(request).rewritten({}) == (request.body,)


def test_what_callers_name_their_users_by_is_looked_at() -> None:
    named = {"user": "a", "safety_identifier": "b", "prompt_cache_key": "c", "metadata": {"user_id": "d"}}

    said = {segment.text for segment in request_segments(named, "openai").texts}

    assert {"a", "b", "c", "d"} <= said
