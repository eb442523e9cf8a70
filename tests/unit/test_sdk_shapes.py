"""The check that the fakes and their tests rest on: it finds what an SDK of a vendor would let pass."""

from typing import Any

import pytest
from anthropic.types import Message, RawMessageStreamEvent
from anthropic.types.message_create_params import MessageCreateParams
from google.genai.types import Content
from openai.types.chat.completion_create_params import CompletionCreateParams
from openai.types.responses.response_create_params import ResponseCreateParams

from tests.support.sdk_shapes import misfit

USER = {"role": "user", "content": "hi"}
ASKED: dict[str, Any] = {"model": "m", "max_tokens": 5, "messages": [USER]}
SAID: dict[str, Any] = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [{"type": "text", "text": "x"}],
    "usage": {"input_tokens": 1, "output_tokens": 1},
}


@pytest.mark.parametrize(
    ("value", "shape"),
    [
        (ASKED, MessageCreateParams),
        ({**ASKED, "stream": True, "tools": [{"name": "a", "input_schema": {"type": "object", "x": 1}}]},
         MessageCreateParams),
        (SAID, Message),
        ({"type": "message_stop"}, RawMessageStreamEvent),
        ({"model": "m", "messages": [USER], "stream": None, "stop": ["a"]}, CompletionCreateParams),
        ({"model": "m", "input": [{"type": "function_call_output", "call_id": "a", "output": "x"}]},
         ResponseCreateParams),
        ({"role": "user", "parts": [{"inlineData": {"data": "aGk=", "mimeType": "a/b"}}]}, Content),
    ],
)  # fmt: skip
def test_takes_what_fits(value: Any, shape: Any) -> None:
    assert misfit(value, shape) is None


@pytest.mark.parametrize(
    ("value", "shape", "kind", "path"),
    [
        ({**ASKED, "foo": 1}, MessageCreateParams, "unknown", "foo"),
        ({"model": "m", "messages": [USER]}, MessageCreateParams, "missing", "max_tokens"),
        ({**ASKED, "max_tokens": True}, MessageCreateParams, "type", "max_tokens"),
        ({**ASKED, "stream": "yes"}, MessageCreateParams, "value", "stream"),
        ({**ASKED, "messages": [{"role": "user", "content": [{"type": "text"}]}]}, MessageCreateParams, "missing",
         "messages.0.content.0.text"),
        ({**SAID, "content": [{"type": "text", "text": "x", "foo": 1}]}, Message, "unknown", "content.0.foo"),
        ({**SAID, "usage": {"input_tokens": 1}}, Message, "missing", "usage.output_tokens"),
        ({"type": "message_stop", "x": 1}, RawMessageStreamEvent, "unknown", "x"),
        ({"type": "nothing"}, RawMessageStreamEvent, "value", "type"),
        ({"model": "m", "messages": [{"role": "tool", "content": "x"}]}, CompletionCreateParams, "missing",
         "messages.0.tool_call_id"),
        ({"model": "m", "input": [{"type": "function_call_output", "output": 5}]}, ResponseCreateParams, "type",
         "input.0.output"),
        ({"parts": [{"txt": "x"}]}, Content, "unknown", "parts.0.txt"),
        ({"parts": [{"inlineData": {"data": "a"}}]}, Content, "value", "parts.0.inlineData.data"),
        ([], MessageCreateParams, "type", ""),
        (None, Message, "type", ""),
    ],
)  # fmt: skip
def test_finds_and_names_what_does_not(value: Any, shape: Any, kind: str, path: str) -> None:
    found = misfit(value, shape)

    assert found is not None
    assert (found.kind, ".".join(map(str, found.path))) == (kind, path)
