"""Spans of a text that rules act on: which of those that overlap wins, and texts that are looked at joined.

Overlapping spans become one that covers them all, so nothing that was found
is left standing. What happens to it is decided by the severest of them
(redact before mask), among equals by the longest, then the one that begins
first, then the rule that comes first, then the one that was reported first.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from operator import attrgetter
from typing import Literal, NamedTuple

Action = Literal["block", "redact", "mask", "log"]

_SEVERITY: dict[Action, int] = {"block": 3, "redact": 2, "mask": 1, "log": 0}

# A finding that is split over two texts is looked for this far from where they meet.
SEAM = 4096


class Span(NamedTuple):
    """A finding in one text with the rule that acts on it, by its place among the rules."""

    start: int
    end: int
    kind: str
    action: Action
    rule: int


def merged(spans: Sequence[Span]) -> list[Span]:
    """In order, none overlapping another. Spans that only touch stay two."""
    result: list[Span] = []
    for span in sorted(spans, key=attrgetter("start")):
        if not result or span.start >= result[-1].end:
            result.append(span)
            best = span
            continue
        # `best` is the winner as it was found: how long the union has grown does not count.
        best = min(best, span, key=_rank)
        result[-1] = best._replace(start=result[-1].start, end=max(result[-1].end, span.end))
    return result


def _rank(span: Span) -> tuple[int, int, int, int]:
    return -_SEVERITY[span.action], span.start - span.end, span.start, span.rule


class Piece(NamedTuple):
    """`length` code points of text `text`, from `start` on, which are at `at` in the joint."""

    text: int
    start: int
    length: int
    at: int


class Joint(NamedTuple):
    text: str
    pieces: tuple[Piece, ...]

    def split(self, start: int, end: int) -> list[tuple[int, int, int]]:
        """A finding as (text, start, end) of each text it is in; none where it lies in one, which was looked at."""
        first = bisect_right(self.pieces, start, key=attrgetter("at")) - 1
        found: list[tuple[int, int, int]] = []
        for place in range(first, len(self.pieces)):
            text, begin, length, at = self.pieces[place]
            if at >= end:
                break
            found.append((text, begin + max(start - at, 0), begin + min(end - at, length)))
        return found if len(found) > 1 else []


def joints(run: Sequence[tuple[int, str]]) -> Iterator[Joint]:
    """Texts that follow each other, by number, end to end. Of long ones only what is near their ends."""
    pieces: list[Piece] = []
    parts: list[str] = []
    at = 0
    for number, text in run:
        if not text:
            continue
        if len(text) <= 2 * SEAM:
            pieces.append(Piece(number, 0, len(text), at))
            parts.append(text)
            at += len(text)
            continue
        pieces.append(Piece(number, 0, SEAM, at))
        parts.append(text[:SEAM])
        if len(pieces) > 1:
            yield Joint("".join(parts), tuple(pieces))
        pieces, parts, at = [Piece(number, len(text) - SEAM, SEAM, 0)], [text[-SEAM:]], SEAM
    if len(pieces) > 1:
        yield Joint("".join(parts), tuple(pieces))
