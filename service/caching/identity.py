"""What makes two requests the same: a hash of everything that is not known to be neutral.

A field the gateway does not know is meaning. So are case and white space in
a text; white space and key order of the JSON are not.
"""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

import msgspec

# Fields of the body that shape how an answer travels or who is noted as asking, never what it says.
NEUTRAL = frozenset({"stream", "stream_options", "user", "safety_identifier", "metadata", "prompt_cache_key"})

# The model is in the identity by what it stands for (the route), not by the name it was asked by.
_DROPPED = NEUTRAL | {"model"}

# An answer to these depends on state that lies elsewhere, or is not an answer yet.
STATEFUL = frozenset({"previous_response_id", "conversation", "background"})


class Question(NamedTuple):
    """A request cut in two: the text that is compared, and the namespace of all that must be equal."""

    text: str
    namespace: str


def exact_key(body: dict[str, Any], meaning: Sequence[str]) -> str:
    """64 hex digits over the body and `meaning`: operation, route, headers and rules that change an answer."""
    return _digest({name: value for name, value in body.items() if name not in _DROPPED}, meaning)


def question(body: dict[str, Any], meaning: Sequence[str]) -> Question | None:
    """The last user turn as the text to compare; all else, earlier turns included, as its namespace.

    None where the last message is not a user's, or is not text alone.
    """
    last = body["messages"][-1]
    if last.get("role") != "user":
        return None
    content = last.get("content")
    shape: object = "text"
    if isinstance(content, str):
        text = content
    elif isinstance(content, list):
        texts = [
            part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content
        ]
        if not all(isinstance(part, str) for part in texts):
            return None
        # What else a part carries is meaning, as is how many there are.
        text, shape = "\n".join(map(str, texts)), [{**part, "text": ""} for part in content]
    else:
        return None
    rest = {name: value for name, value in body.items() if name not in _DROPPED}
    rest["messages"] = [*body["messages"][:-1], {**last, "content": shape}]
    return Question(text, _digest(rest, (*meaning, "question")))


def _digest(body: dict[str, Any], meaning: Sequence[str]) -> str:
    # Two encodings end to end could be cut in another place; an array of both cannot.
    encoded = msgspec.json.encode([meaning, body], order="deterministic")
    return blake2b(encoded, digest_size=32).hexdigest()
