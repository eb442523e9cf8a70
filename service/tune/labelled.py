"""Labelled questions out of a file of any length: pairs, or texts with a cluster each.

The forms are those of `keepgate bench cache --data`. Lines that cannot be used
are counted by why, and the first of them named by number; their text is not.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import msgspec

from service.caching.certificate import Label, Labeller, settle
from service.tune.lot import Lot

MOST_PAIRS = 100_000
MOST_QUESTIONS = 30_000
LONGEST_LINE = 16 * 2**20
_MOST_NAMED = 5
_TOLD_EVERY = 10_000  # lines
_OUT_OF_SCOPE = "oos"
_BY: tuple[Labeller, ...] = ("people", "judge", "automatic")


class Question(NamedTuple):
    """`cluster` None: no other has its answer."""

    text: str
    cluster: str | None
    by: Labeller


class Labelled(NamedTuple):
    """`pairs` are settled: one label each, texts in alphabetical order, since a pair has no direction. `unread` counts
    lines by why nothing can be said of them, `named` the first of them; `left_out` went by lot."""

    pairs: list[Label]
    questions: list[Question]
    unread: Mapping[str, int]
    named: list[str]
    repeated: int
    contradictory: int
    left_out: int


# Of bytes or of texts: how many are done of how many.
Progress = Callable[[int, int], None]


def read(
    file: Path,
    *,
    most_pairs: int = MOST_PAIRS,
    most_questions: int = MOST_QUESTIONS,
    progress: Progress = lambda _done, _total: None,
) -> Labelled:
    """Streams it; memory does not grow with the file. Raises `OSError`."""
    return _Reading(file.name, most_pairs, most_questions).of(file, progress)


def numbered_lines(source: BinaryIO) -> Iterator[tuple[int, int, bytes | None, bool]]:
    """(number, offset, line, whether it was ended) each; None for one that is longer than any that is meant."""
    number = offset = 0
    while line := source.readline(LONGEST_LINE):
        number += 1
        begun, ended = offset, line.endswith(b"\n")
        offset += len(line)
        if ended or len(line) < LONGEST_LINE:
            yield number, begun, line, ended
            continue
        while not ended and (more := source.readline(LONGEST_LINE)):
            ended = more.endswith(b"\n")
            offset += len(more)
        yield number, begun, None, ended


class Unread:
    """Lines that were skipped."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.named: list[str] = []

    def note(self, why: str, place: str) -> None:
        self.counts[why] += 1
        if self.counts[why] <= _MOST_NAMED:
            self.named.append(f"{place}: {why}")


class _Reading:
    def __init__(self, name: str, most_pairs: int, most_questions: int) -> None:
        self._name = name
        self._unread = Unread()
        # The two texts, and a bit for each of what was said of them by whom.
        self._pairs: Lot[tuple[str, str, int]] = Lot(most_pairs)
        self._questions: Lot[Question] = Lot(most_questions)
        self._repeated = self._contradictory = 0

    def of(self, file: Path, progress: Progress) -> Labelled:
        size = file.stat().st_size
        with file.open("rb") as source:
            for number, offset, line, _ in numbered_lines(source):
                if not number % _TOLD_EVERY:
                    progress(offset, size)
                if line is None:
                    self._unread.note("longer than 16 MB", f"{self._name}:{number}")
                elif line.strip():
                    self._take(line, f"{self._name}:{number}")
        labels = [
            Label(asked=a, stored=b, wrong=bool(bit & 1), by=_BY[bit >> 1])
            for _, (a, b, said) in self._pairs.items()
            for bit in range(2 * len(_BY))
            if said >> bit & 1
        ]
        settled = settle(labels)
        return Labelled(
            settled.labels,
            [question for _, question in self._questions.items()],
            dict(self._unread.counts),
            self._unread.named,
            self._repeated,
            self._contradictory + settled.contradictory,
            self._pairs.left_out + self._questions.left_out,
        )

    def _take(self, line: bytes, place: str) -> None:
        try:
            row = msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self._unread.note("no JSON in UTF-8", place)
            return
        by = row.get("by", "people") if isinstance(row, dict) else "people"
        if by not in _BY:
            self._unread.note("by is none of people, judge, automatic", place)
            return
        match row:
            case {"a": str(a), "b": str(b), "label": label} if label in (0, 1):
                self._pair(a, b, by, wrong=not label, place=place)
            case {"text": str(text), "cluster": str() | int() | None as cluster}:
                self._question(text, cluster, by, place=place)
            case {"text": str(text)} if "cluster" not in row:
                self._question(text, None, by, place=place)
            case _:
                self._unread.note("neither a, b and label (0 or 1) nor text and cluster", place)

    def _pair(self, a: str, b: str, by: Labeller, *, wrong: bool, place: str) -> None:
        if not a.strip() or not b.strip():
            self._unread.note("an empty question", place)
        elif a == b:
            self._unread.note("different from itself" if wrong else "twice the same text: the exact tier's", place)
        else:
            a, b = min(a, b), max(a, b)
            key, said = digest(a, b), 1 << (2 * _BY.index(by) + wrong)
            known = self._pairs.get(key)
            if known is not None:
                self._repeated += 1
                self._pairs.put(key, (a, b, known[2] | said))
            else:
                self._pairs.put(key, (a, b, said), size=_memory(a, b))

    def _question(self, text: str, cluster: Any, by: Labeller, *, place: str) -> None:
        if not text.strip():
            self._unread.note("an empty question", place)
            return
        named = None if cluster in (None, _OUT_OF_SCOPE) else str(cluster)
        key = digest(text)
        known = self._questions.get(key)
        if known is None:
            self._questions.put(key, Question(text, named, by), size=_memory(text))
            return
        self._repeated += 1
        if known.cluster != named:
            # Who asks it is answered wrongly by somebody's account, whatever it is answered with.
            self._contradictory += 1
            self._questions.put(key, known._replace(cluster=None))


def digest(*texts: str) -> bytes:
    return blake2b("\0".join(texts).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _memory(*texts: str) -> int:
    return 300 + sum(map(len, texts)) * 2
