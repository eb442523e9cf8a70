"""The protocol of a detector: it finds and reports, and neither edits nor decides."""

from collections.abc import Sequence
from typing import Protocol

from models.finding import Finding, Segment


class DetectorError(Exception):
    """It could not look, or not at everything. Becomes the fail mode of the rule that asked. Never holds a text."""


class Detector(Protocol):
    """`name` is what `detect:` in a rule calls it; for which `kinds` it has words too is said in the registry.

    `revision` changes whenever the same text may give other findings: it is
    part of the cache identity. `reach` is the longest finding that may hold
    white space, or a letter of a script that puts none between words, in code
    points, with the context before it that it needs: 0 where none can, None
    where there is no longest one. `inline`: it answers in microseconds and
    never waits.

    One that knows better what a stream must wait for may also have
    `context: int`, how far before a finding it looks, which is no reason to
    wait, so that `reach` is the finding's alone; and `open_from(text: str) ->
    int`, from where on the end of `text` may be part of a finding that is not
    whole yet (`len(text)`: nothing is), which then counts instead of `reach`.
    """

    name: str
    kinds: frozenset[str]
    revision: str
    reach: int | None
    inline: bool

    async def detect(self, segments: Sequence[Segment]) -> Sequence[Finding]:
        """In any order. Raises `DetectorError`; a text it cannot look at is one."""
