"""A fake answers or refuses whatever is in a body, as its vendor does: it never breaks itself."""

import copy
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from tests.support.fake_anthropic import Anthropic
from tests.support.fake_gemini import Gemini
from tests.support.fake_openai import OpenAI
from tests.support.fake_vendor import KEY, Asked, Json, Refused, Reply, Vendor

HEADERS = {"x-api-key": KEY, "authorization": f"Bearer {KEY}", "x-goog-api-key": KEY, "anthropic-version": "2023-06-01"}
ODD: list[Any] = [None, True, -1, 1.5, "", "x", [], {}, [None], {"a": 1}, {"type": "text"}]
RAW = [b"", b"{", b"\xff", b"[]", b"null", b'"x"']
SCHEMA = {"type": "object", "properties": {"c": {"type": "string"}}, "required": ["c"], "additionalProperties": False}

MESSAGES: Json = {
    "model": "m",
    "max_tokens": 2000,
    "stream": True,
    "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}],
    "thinking": {"type": "disabled"},
    "temperature": 0.5,
    "stop_sequences": ["q"],
    "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": SCHEMA}},
    "tools": [{"name": "w", "input_schema": SCHEMA}],
    "tool_choice": {"type": "auto"},
    "messages": [
        {"role": "user", "content": [
            {"type": "text", "text": "hi"},
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
        ]},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "w", "input": {"c": 1}}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "r"}]},
        ]},
    ],
}  # fmt: skip
CHAT: Json = {
    "model": "m",
    "stream": True,
    "stream_options": {"include_usage": True},
    "max_completion_tokens": 50,
    "stop": ["q"],
    "logprobs": True,
    "top_logprobs": 2,
    "n": 2,
    "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": True}},
    "tools": [{"type": "function", "function": {"name": "w", "parameters": SCHEMA, "strict": True}}],
    "tool_choice": "auto",
    "messages": [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [
            {"type": "text", "text": "hi"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
            {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
            {"type": "file", "file": {"file_data": "data:application/pdf;base64,AAAA", "filename": "x"}},
        ]},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "w", "arguments": "{}"}},
        ]},
        {"role": "tool", "tool_call_id": "a", "content": [{"type": "text", "text": "x"}]},
    ],
}  # fmt: skip
RESPONSE: Json = {
    "model": "m",
    "stream": True,
    "max_output_tokens": 50,
    "instructions": "i",
    "reasoning": {"effort": "low", "summary": "auto"},
    "include": ["reasoning.encrypted_content", "message.output_text.logprobs"],
    "text": {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA, "strict": True}},
    "tools": [{"type": "function", "name": "w", "parameters": SCHEMA, "strict": True}],
    "input": [
        {"role": "user", "content": [
            {"type": "input_text", "text": "hi"},
            {"type": "input_image", "image_url": "data:image/png;base64,AAAA"},
        ]},
        {"type": "reasoning", "summary": []},
        {"type": "function_call", "call_id": "a", "name": "w", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "a", "output": "x"},
    ],
}  # fmt: skip
GENERATE: Json = {
    "systemInstruction": {"parts": [{"text": "s"}]},
    "generationConfig": {
        "temperature": 1,
        "maxOutputTokens": 5,
        "candidateCount": 2,
        "stopSequences": ["q"],
        "responseMimeType": "application/json",
        "responseSchema": {"type": "OBJECT", "properties": {"c": {"type": "STRING"}}},
        "thinkingConfig": {"includeThoughts": True, "thinkingBudget": 5},
        "responseLogprobs": True,
        "logprobs": 2,
    },
    "tools": [{"functionDeclarations": [{"name": "w", "parametersJsonSchema": SCHEMA}]}],
    "toolConfig": {"functionCallingConfig": {"mode": "AUTO"}},
    "contents": [
        {"role": "user", "parts": [
            {"text": "hi"},
            {"inlineData": {"mimeType": "image/png", "data": "AAAA"}},
            {"fileData": {"fileUri": "x", "mimeType": "y"}},
        ]},
        {"role": "model", "parts": [
            {"functionCall": {"name": "w", "args": {}}, "thoughtSignature": "skip_thought_signature_validator"},
        ]},
        {"role": "user", "parts": [{"functionResponse": {"name": "w", "response": {"a": 1}}}]},
    ],
}  # fmt: skip
EMBED: Json = {"requests": [{"model": "models/m", "content": {"parts": [{"text": "x"}]}, "outputDimensionality": 8}]}


@pytest.mark.parametrize(
    ("vendor", "path", "body"),
    [
        (Anthropic(), "/v1/messages", MESSAGES),
        (OpenAI(), "/v1/chat/completions", CHAT),
        (OpenAI(), "/v1/responses", RESPONSE),
        (OpenAI(), "/v1/embeddings", {"model": "m", "input": ["a"], "dimensions": 8, "encoding_format": "base64"}),
        (OpenAI(), "/v1/moderations", {"model": "m", "input": [{"type": "text", "text": "x"}]}),
        (Gemini(), "/v1beta/models/gemini-3-x:streamGenerateContent", GENERATE),
        (Gemini(), "/v1beta/models/m:batchEmbedContents", EMBED),
    ],
)
def test_a_wrong_value_anywhere_is_answered_or_refused_in_the_vendors_shape(
    vendor: Vendor, path: str, body: Json
) -> None:
    assert _told(vendor, path, msgspec.json.encode(body)).status == 200

    replies = [_told(vendor, path, raw) for raw in (*RAW, *_spoilt(body))]

    refused = [reply for reply in replies if reply.status != 200]
    assert len(refused) > len(replies) / 2
    assert {reply.status for reply in refused} <= {400, 404}
    assert all(b'"message":"' in reply.pieces[0] for reply in refused)


def _told(vendor: Vendor, path: str, raw: bytes) -> Reply:
    try:
        return vendor.answer(Asked("POST", path, {}, HEADERS, raw))
    except Refused as refused:
        return refused.reply


def _spoilt(body: Json) -> Iterator[bytes]:
    for place in _places(body):
        for odd in ODD:
            yield msgspec.json.encode(_with(body, place, odd))


def _places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield place
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield from _places(item, (*place, key))


def _with(body: Json, place: tuple[Any, ...], odd: Any) -> Any:
    if not place:
        return odd
    changed: Any = copy.deepcopy(body)
    target = changed
    for step in place[:-1]:
        target = target[step]
    target[place[-1]] = odd
    return changed
