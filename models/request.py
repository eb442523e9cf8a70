"""A request, whichever dialect it was asked in."""

from typing import Any, Literal

import msgspec

Operation = Literal["chat", "completion", "embedding"]
Dialect = Literal["openai", "responses", "anthropic", "gemini"]


class Request(msgspec.Struct, gc=False):
    """What a client asked, in the canonical form of docs/dialects.md: the OpenAI API's own, with a few fields more.

    `raw` are the bytes as they came. `native` is what they decode to where
    `dialect` is not `openai`; with `openai` that is `body` itself, every field
    as it came, also those the gateway does not know.

    `beyond` holds what the client's dialect says and `body` cannot. It is part
    of what makes two requests the same, and reaches only an upstream of the
    same dialect. `refused` names what of it changes the answer: without it
    another dialect would answer another question. `dropped` names what of it
    the gateway does not know. The rest of it is known to do no harm.

    `stream` and `include_usage` are read out of the request because they
    shape the reply, not the answer. `replayed` is set once it is known that the
    answer was given to another request: ids under which a provider keeps what
    that one asked are then not this client's to learn.
    """

    operation: Operation
    model: str
    body: dict[str, Any]
    raw: bytes
    stream: bool = False
    include_usage: bool = False
    dialect: Dialect = "openai"
    native: dict[str, Any] | None = None
    beyond: dict[str, Any] = {}
    refused: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    replayed: bool = False
