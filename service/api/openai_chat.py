"""The OpenAI dialect: chat completions, completions, embeddings and the list of models.

https://platform.openai.com/docs/api-reference
"""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from models.completion import Completion
from models.errors import GatewayError, RequestError
from models.request import Operation, Request
from service.api import sse
from service.api.body import json_object, model_name
from service.api.dialect import Asked, Dialect
from service.api.errors import openai_body

_TEXT_FIELD: dict[Operation, str] = {"chat": "messages", "completion": "prompt", "embedding": "input"}


def decode(raw: bytes, asked: Asked) -> Request:
    """Raises `RequestError` that says which field cannot be used. Fields it does not know are kept.

    A model in the path (Azure's SDKs have it there) is the one that is meant.
    """
    operation = asked.operation
    body = json_object(raw)
    if asked.model is not None:
        body["model"] = asked.model
    model = model_name(body.get("model"))
    stream = body.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise RequestError("stream must be true or false", param="stream")
    options = body.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise RequestError("stream_options must be an object", param="stream_options")
    if operation == "chat":
        _check_messages(body.get("messages"))
    elif body.get(_TEXT_FIELD[operation]) is None:
        raise RequestError(f"{_TEXT_FIELD[operation]} is missing", param=_TEXT_FIELD[operation])
    elif operation == "embedding" and stream:
        raise RequestError("embeddings do not stream", param="stream")
    for name in ("n", "temperature"):
        value = body.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise RequestError(f"{name} must be a number", param=name)
    include_usage = bool(options and options.get("include_usage"))
    return Request(operation, model, body, raw, stream or False, include_usage)


def model_list(cards: Iterable[tuple[str, str]]) -> bytes:
    """`{"object": "list", "data": [{"id", "object", "created", "owned_by"}]}`."""
    return msgspec.json.encode({"object": "list", "data": [_card(*card) for card in cards]})


def model_card(name: str, owner: str) -> bytes:
    return msgspec.json.encode(_card(name, owner))


class _Stream:
    """The canonical chunks are this dialect's own."""

    media_type = sse.MEDIA_TYPE

    def chunks(self, payloads: Sequence[bytes]) -> bytes:
        return sse.events(payloads)

    def end(self, completion: Completion) -> bytes:
        del completion  # its usage went out as a chunk, where the client asked for it
        return sse.DONE

    def error(self, error: GatewayError, request_id: str) -> bytes:
        return sse.event(openai_body(error, request_id))


def _whole(completion: Completion, request: Request) -> bytes:
    del request
    return completion.body


def _stream(request: Request) -> _Stream:
    del request
    return _STREAM


_STREAM = _Stream()  # it keeps nothing
OPENAI = Dialect("openai", decode, _whole, _stream, openai_body)


def _card(name: str, owner: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": owner}


def _check_messages(messages: object) -> None:
    if not isinstance(messages, list) or not messages:
        raise RequestError("messages must be a list of at least one message", param="messages")
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise RequestError(f"messages[{number}] must be an object with a role", param=f"messages[{number}]")
