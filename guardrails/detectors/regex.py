"""The user's own patterns. re2 runs them, so none can hang."""

import hashlib
from collections.abc import Sequence

from guardrails.expression import NotUnderstood, assertions, can_hold_white_space, parse, width
from guardrails.patterns import Pattern, PatternSet
from models.finding import Finding, Segment


class RegexDetector:
    """Reports what `pattern` matches, or its `group`, as `kind`."""

    name = "regex"
    inline = True

    def __init__(self, pattern: str, *, kind: str = "regex", group: int = 0) -> None:
        """Raises `PatternError`, which says what to write instead."""
        self.kinds = frozenset({kind})
        self.revision = hashlib.sha256(f"{pattern}\n{kind}\n{group}".encode("utf-8", "replace")).hexdigest()[:16]
        self._kind = kind
        self._patterns = PatternSet([Pattern(id=kind, expression=pattern, group=group)])
        self.reach = reach(pattern)

    async def detect(self, segments: Sequence[Segment]) -> Sequence[Finding]:
        """Raises `ScanGaveUp`, a `DetectorError`, where the pattern reads the same stretch over and over."""
        return [
            Finding(segment=segment.index, kind=self._kind, start=match.start, end=match.end, rule=self._kind)
            for segment in segments
            for match in await self._patterns.scan_aside(segment.text)
        ]


def reach(pattern: str) -> int | None:
    """As `Detector.reach`. A pattern tied to an end of the text or of a line has none: only the whole text has them."""
    try:
        node = parse(pattern).node
    except NotUnderstood:
        return None
    tied = assertions(node)
    if tied & {"A", "z", "^", "$"}:
        return None
    if not can_hold_white_space(node):
        return 0
    longest = width(node)[1]
    return longest if longest is None or not tied else longest + 1  # the code point that `\b` looks at
