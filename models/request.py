"""A request, whichever dialect it was asked in."""

from typing import Any, Literal

import msgspec

Operation = Literal["chat", "completion", "embedding"]


class Request(msgspec.Struct, gc=False):
    """What a client asked, in the shape of the OpenAI API.

    `body` is the decoded JSON object with every field as it came, also those
    the gateway does not know. `raw` is the same as bytes. `stream` and
    `include_usage` are read out of it because they shape the reply, not the
    answer.
    """

    operation: Operation
    model: str
    body: dict[str, Any]
    raw: bytes
    stream: bool = False
    include_usage: bool = False
