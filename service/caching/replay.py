"""A whole completion as the chunks of a stream.

The inverse of `assembly`: replayed and put together again, a completion is
what it was.
https://platform.openai.com/docs/api-reference/chat-streaming
"""

import re
from collections.abc import Iterator
from typing import Any

from models.request import Operation

# White space travels with the word after it, as tokens do. Long runs without any are cut.
_PIECE = re.compile(r"\s*\S{1,24}|\s+\Z")
# Fields of a message that stream as text.
_STREAMED_TEXT = ("content", "refusal", "reasoning_content", "reasoning")


def chunks(completion: dict[str, Any], operation: Operation, *, include_usage: bool) -> Iterator[dict[str, Any]]:
    """Chat: role first, content in token-like pieces, the finish reason, usage when asked for."""
    chat = operation == "chat"
    frame = {name: value for name, value in completion.items() if name not in ("choices", "usage", "object")}
    frame["object"] = "chat.completion.chunk" if chat else "text_completion"
    # With include_usage every chunk has the field, null in all but the last (the API's own rule).
    usage: dict[str, Any] = {"usage": None} if include_usage else {}
    parts = _chat_parts if chat else _text_parts
    for choice in completion.get("choices", ()):
        index = choice.get("index", 0)
        for part in parts(choice):
            yield {**frame, "choices": [{"index": index, **part}], **usage}
    if include_usage:
        yield {**frame, "choices": [], "usage": completion.get("usage")}


def _chat_parts(choice: dict[str, Any]) -> Iterator[dict[str, Any]]:
    message = dict(choice.get("message") or {})
    texts = [(name, message.pop(name)) for name in _STREAMED_TEXT if isinstance(message.get(name), str)]
    calls = message.pop("tool_calls", None)
    # An SDK that adds up deltas starts from an empty text; null stays null where there is none.
    opening = {"role": "assistant", **message, **({"content": ""} if "content" not in message else {})}
    yield {"delta": opening, "logprobs": None, "finish_reason": None}
    logprobs = choice.get("logprobs")
    for name, text in texts:
        for piece in _pieces(text) or [""]:
            yield {"delta": {name: piece}, "logprobs": logprobs, "finish_reason": None}
            logprobs = None
    for index, call in enumerate(calls or ()):
        yield {"delta": {"tool_calls": [{"index": index, **call}]}, "logprobs": None, "finish_reason": None}
    closing = {name: value for name, value in choice.items() if name not in ("index", "message", "logprobs")}
    yield {"delta": {}, "logprobs": logprobs, **closing}


def _text_parts(choice: dict[str, Any]) -> Iterator[dict[str, Any]]:
    closing = {name: value for name, value in choice.items() if name not in ("index", "text", "logprobs")}
    logprobs = choice.get("logprobs")
    for piece in _pieces(choice.get("text") or ""):
        yield {"text": piece, "logprobs": logprobs, "finish_reason": None}
        logprobs = None
    yield {"text": "", "logprobs": logprobs, **closing}


def _pieces(text: str) -> list[str]:
    return _PIECE.findall(text)
