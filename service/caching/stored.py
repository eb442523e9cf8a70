"""What is kept beside the vector of a stored question, and how two answers are compared."""

from typing import Any

import msgspec

from models.completion import Completion
from service.caching.agreement import agree, sketch


class StoredQuestion(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """`sketch` is of the answer (`agreement.sketch`; empty where it was kept without one). `alias_of`: the question was
    found to have the answer of that entry, and is served from it."""

    text: str
    sketch: bytes = b""
    alias_of: str = ""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(StoredQuestion).decode
# An array of three in msgpack. No text in UTF-8 begins with it.
_ARRAY = 0x93


def payload(question: StoredQuestion) -> bytes:
    return _encode(question)


def read(payload: bytes) -> StoredQuestion:
    """Also what was kept as the plain text of a question."""
    if payload[:1] == bytes([_ARRAY]):
        try:
            return _decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError):
            pass
    return StoredQuestion(payload.decode("utf-8", "replace"))


def answer_text(completion: Completion) -> str:
    """What the answer says, its calls included; nothing where it has several choices, or none."""
    try:
        choices = msgspec.json.decode(completion.body, type=_Reply).choices
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    if len(choices) != 1:
        return ""
    message = choices[0].message
    said = message.content if isinstance(message.content, str) else ""
    calls = [call.get("function") for call in message.tool_calls or () if isinstance(call, dict)]
    return f"{said}\n{msgspec.json.encode(calls).decode()}" if calls else said


def sketched(completion: Completion) -> bytes:
    """Of the answer's text; b"" of none."""
    said = answer_text(completion)
    return sketch(said) if said else b""


def says_the_same(one: bytes, other: bytes) -> bool | None:
    """Whether two sketched answers agree; None where one of them is not known."""
    return agree(one, other) if one and other else None


class _Message(msgspec.Struct):
    content: Any = None
    tool_calls: list[Any] | None = None


class _Choice(msgspec.Struct):
    message: _Message = msgspec.field(default_factory=_Message)


class _Reply(msgspec.Struct):
    choices: list[_Choice] = []
