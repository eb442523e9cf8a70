"""Texts that are looked at, and what was found in them."""

from typing import Literal

import msgspec

Role = Literal[
    "system",
    "user",
    "assistant",
    "tool_args",
    "tool_result",
    "tool_definition",
    "document",
    "name",
    "other",
]


class Segment(msgspec.Struct, frozen=True, gc=False):
    """One string of a request or an answer. `index` is its place among those looked at together, `path` its place in
    the JSON, for messages to the operator: never for clients, whose own names it holds."""

    index: int
    text: str
    role: Role = "user"
    path: tuple[str | int, ...] = ()


class Finding(msgspec.Struct, frozen=True, gc=False):
    """`start` and `end` are code points of the segment's text, `end` excluded. `kind` is what was found (`email`,
    `aws_access_key`), in lower case; `rule` the id of the rule that found it where a detector has many."""

    segment: int
    kind: str
    start: int
    end: int
    confidence: float = 1.0
    rule: str = ""
