"""The Gemini dialect: generateContent, streamGenerateContent, the list of models and countTokens, under `/genai`.

https://ai.google.dev/api/generate-content
"""

from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from models.request import Request
from service.api.dialect import Asked, Dialect
from service.api.gemini_answer import ArrayFraming, EventFraming, Stream, error_body, wants_thoughts, whole
from service.api.gemini_request import decode

_ROOTS = ("/genai/v1beta/", "/genai/v1/")
_STREAMED = {"generateContent": False, "streamGenerateContent": True}


def asked(path: str, query: str) -> Asked | None:
    """What a path asks to generate; None where it asks for something else.

    `{root}models/{model}:{method}`: a model's name may hold slashes and
    colons. `path` is percent-decoded already, as ASGI gives it.
    """
    model, method = _model_and_method(path)
    if model is None or method not in _STREAMED:
        return None
    return Asked("chat", model, _STREAMED[method], query)


def counted_model(path: str) -> str | None:
    """The model whose tokens a `:countTokens` path asks to count. The body is for `decode_count`."""
    model, method = _model_and_method(path)
    return model if method == "countTokens" else None


def dialect_for(request: Asked) -> Dialect:
    """With `alt=sse` a stream is server-sent events, else a JSON array."""
    options = dict(parse_qsl(request.query))
    return GEMINI_SSE if options.get("alt", options.get("$alt")) == "sse" else GEMINI_ARRAY


def model_list(cards: Iterable[tuple[str, str]]) -> bytes:
    """`{"models": [{"name": "models/…", …}]}` of names and the upstreams that own them, all on one page."""
    return msgspec.json.encode({"models": [_card(*card) for card in cards]})


def model_card(name: str, owner: str) -> bytes:
    return msgspec.json.encode(_card(name, owner))


def token_count(tokens: int) -> bytes:
    return msgspec.json.encode({"totalTokens": tokens})


def _card(name: str, owner: str) -> dict[str, Any]:
    return {
        "name": f"models/{name}",
        "displayName": name,
        "description": f"served by {owner}",
        "supportedGenerationMethods": ["generateContent", "streamGenerateContent", "countTokens"],
    }


def _model_and_method(path: str) -> tuple[str | None, str]:
    for root in _ROOTS:
        if path.startswith(root):
            model, _, method = path.removeprefix(root).rpartition(":")
            if model.startswith("models/"):
                return model.removeprefix("models/"), method
            if model.startswith("tunedModels/"):
                return model, method
    return None, ""


def _events(request: Request) -> Stream:
    return Stream(EventFraming(), thoughts=wants_thoughts(request))


def _array(request: Request) -> Stream:
    return Stream(ArrayFraming(), thoughts=wants_thoughts(request))


GEMINI_SSE = Dialect("gemini", decode, whole, _events, error_body)
GEMINI_ARRAY = Dialect("gemini", decode, whole, _array, error_body)
