"""Replacements in a text: labels in place of what was found, and where the rest has gone."""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

_NOT_IN_A_LABEL = re.compile(r"[^A-Z0-9_]+")
_LONGEST_LABEL = 48


class Edit(NamedTuple):
    """`text` in place of the code points from `start` to `end`, `end` excluded."""

    start: int
    end: int
    text: str


@lru_cache(maxsize=1024)
def label(kind: str) -> str:
    """`EMAIL` for `email`: what stands in `[EMAIL]` and `<EMAIL_7f3a9c>`. A letter first, 48 characters at most."""
    name = _NOT_IN_A_LABEL.sub("_", kind.upper()).strip("_")[:_LONGEST_LABEL].rstrip("_")
    return name if name[:1].isalpha() else f"X_{name}".rstrip("_")[:_LONGEST_LABEL]


def redaction(kind: str) -> str:
    return f"[{label(kind)}]"


def applied(text: str, edits: Sequence[Edit]) -> str:
    """`edits` in order, none overlapping another."""
    pieces: list[str] = []
    at = 0
    for edit in edits:
        pieces += (text[at : edit.start], edit.text)
        at = edit.end
    pieces.append(text[at:])
    return "".join(pieces)


def moved(offset: int, edits: Sequence[Edit]) -> int:
    """Where a place of the text is after the edits. One inside a replaced span moves to the end of its replacement."""
    shift = 0
    for edit in edits:
        if offset <= edit.start:
            break
        shift += len(edit.text) - (edit.end - edit.start)
        if offset < edit.end:
            return edit.end + shift
    return offset + shift


def origin(start: int, end: int, edits: Sequence[Edit]) -> tuple[int, int]:
    """The span of the text that a span of the edited one stands for; of a replacement it is all that was replaced."""
    return _back(start, edits, ends=False), _back(end, edits, ends=True)


def _back(offset: int, edits: Sequence[Edit], *, ends: bool) -> int:
    shift = 0
    for edit in edits:
        begin = edit.start + shift
        finish = begin + len(edit.text)
        if offset < begin or (ends and offset == begin):
            break
        if offset < finish or (ends and offset == finish):
            return edit.end if ends else edit.start
        shift += len(edit.text) - (edit.end - edit.start)
    return offset - shift


def difference(before: str, after: str) -> Edit:
    """The one edit that makes `after` of `before`: all between what both begin and what both end with."""
    start, most = 0, min(len(before), len(after))
    while start < most and before[start] == after[start]:
        start += 1
    tail = 0
    while tail < most - start and before[-1 - tail] == after[-1 - tail]:
        tail += 1
    return Edit(start, len(before) - tail, after[start : len(after) - tail])
