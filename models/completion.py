"""An answer, whichever upstream gave it."""

from typing import Any, NamedTuple

import msgspec


class Usage(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """Tokens. `estimated`: counted here because the upstream reported none."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    estimated: bool = False


class Chunk(NamedTuple):
    """A piece of a streamed answer, in the canonical form: `payload` is the JSON of `fields`."""

    payload: bytes
    fields: dict[str, Any]


class Completion(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A finished answer in the canonical form: the OpenAI API's whole reply, see docs/dialects.md.

    `body` is its JSON. `finish_reasons` has one item a choice and is empty
    for embeddings.
    """

    body: bytes
    model: str
    usage: Usage
    finish_reasons: tuple[str, ...] = ()


class Entry(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A completion as the cache keeps it. Times are seconds since the epoch. `acted` is what guardrails did when it was
    made; `masked`: placeholders may be in it, and who asked has what they stand for. `question` is the last part of the
    namespace in which its question can be found by likeness.

    With `alias_of` it is no answer: the question was answered by that entry, at
    this `similarity`, under this `rule`; without a `question` it was taken out of
    its conversation for that.
    """

    completion: Completion
    created_at: float
    expires_at: float
    entry_id: str
    upstream: str
    acted: tuple[str, ...] = ()
    masked: bool = False
    question: str = ""
    alias_of: str = ""
    similarity: float = 0.0
    rule: str = ""
