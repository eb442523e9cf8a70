"""The user's own patterns. re2 runs them, so none can hang."""

import hashlib
from collections.abc import Callable, Sequence

from guardrails.expression import NotUnderstood, assertions, can_hold_white_space, parse, width
from guardrails.patterns import Pattern, PatternSet
from guardrails.unfinished import Growing, Unfinished
from models.finding import Finding, Segment

_CONTEXT = 1024  # before what is found; where a match may begin earlier, a stream waits from its beginning


class RegexDetector:
    """Reports what `pattern` matches, or its `group`, as `kind`.

    A stream waits where a match has begun; for its end only where nothing is
    known of the pattern.
    """

    name = "regex"
    inline = True

    def __init__(self, pattern: str, *, kind: str = "regex", group: int = 0) -> None:
        """Raises `PatternError`, which says what to write instead."""
        self.kinds = frozenset({kind})
        self.revision = hashlib.sha256(f"{pattern}\n{kind}\n{group}".encode("utf-8", "replace")).hexdigest()[:16]
        self._kind = kind
        self._patterns = PatternSet([Pattern(id=kind, expression=pattern, group=group)])
        self.reach = reach(pattern)
        self.context = 0
        self.open_from: Callable[[str], int] | None = None
        try:
            unfinished = Unfinished([Growing(pattern, frozenset({group}) - {0})], limit=_CONTEXT)
        except NotUnderstood:
            return
        self.context = unfinished.context
        if unfinished:
            self.open_from = unfinished.open_from
        else:
            self.reach = 0

    async def detect(self, segments: Sequence[Segment]) -> Sequence[Finding]:
        """Raises `ScanGaveUp`, a `DetectorError`, where the pattern reads the same stretch over and over."""
        return [
            Finding(segment=segment.index, kind=self._kind, start=match.start, end=match.end, rule=self._kind)
            for segment in segments
            for match in await self._patterns.scan_aside(segment.text)
        ]


def reach(pattern: str) -> int | None:
    """As `Detector.reach`."""
    try:
        node = parse(pattern).node
    except NotUnderstood:
        return None
    if not can_hold_white_space(node):
        return 0
    longest = width(node)[1]
    return longest if longest is None or not assertions(node) else longest + 1  # the code point that `\b` looks at
