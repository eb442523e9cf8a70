"""Many patterns over one text: a prefilter says where each may match, re2 says where it does.

The prefilter is one Hyperscan database over all of them or, where that has no
wheel, Aho-Corasick over the literals that their matches must hold. Either may
only say too much, so both engines find the same. Everything is linear in the
text: re2 looks only around what the prefilter reported, and a pattern that
would make it read the same stretch over and over is stopped.
"""

import asyncio
import re
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Literal, NamedTuple

import ahocorasick
import re2

from guardrails.base import DetectorError
from guardrails.expression import (
    FOLDING,
    PADDING,
    MatchesBytes,
    NotUnderstood,
    Parsed,
    byte_width,
    for_hyperscan,
    holds_one_of,
    literals,
    longest_word,
    parse,
    width,
)

try:
    import hyperscan

    from guardrails import databases
except ImportError:
    _HAS_HYPERSCAN = False
else:
    _HAS_HYPERSCAN = True

Engine = Literal["hyperscan", "portable"]

LONG: Final = 64 * 1024
"""Texts above this many code points are best not scanned on the event loop."""

_MEMORY: Final = 8 * 1024 * 1024  # for each pattern; what re2 caches beyond it is thrown away
_MAX_PROGRAM: Final = 20_000  # a program of this size costs some 5 ms per KB on the text that suits it worst
_MAX_WINDOW: Final = 4096  # patterns with longer matches look at the whole text
_TOGETHER: Final = 4
_LONG_WORD: Final = 20
_A_LONG_WORD: Final = re2.compile(rb"[^ \t\n\v\f\r]{%d}" % _LONG_WORD)
_GAP: Final = 64  # hits closer than this are one

# Seconds of CPU that one pattern may take: hundreds of times what it takes to read everything once, and several times
# what it takes to report what is found, since a core that others use as well counts more for the same. A full garbage
# collection that falls into it counts too: in a large process half a second. Not looked at where even reading on to the
# end each time costs little.
_GRACE: Final = 1.0
_PER_BYTE: Final = 3e-6
_PER_MATCH: Final = 4e-5
_CHECK_EVERY: Final = 64
_LITTLE: Final = 64 * 1024 * 1024

_WHOLE: Final = ((0, None),)
_FOLDING: Final = re.compile("[" + "".join(map(chr, FOLDING)) + "]")
_ASCII_LETTERS: Final = {code: chr(letter) for code, letter in FOLDING.items()}

Span = tuple[int, int]
Window = tuple[int, int | None]


class PatternError(ValueError):
    """`id` is the pattern's, `reason` says what to write instead."""

    def __init__(self, pattern: str, reason: str) -> None:
        super().__init__(f"pattern {pattern!r}: {reason}")
        self.id = pattern
        self.reason = reason


class ScanGaveUp(DetectorError):
    """A pattern read the same stretches over and over; see `PatternSet.scan`."""


class Pattern(NamedTuple):
    """`expression` is in re2's syntax. It is tried only in texts that hold one of `keywords` in any case (lower case
    here; none: in all texts). What it finds is its `group`, or the whole match where that took no part or is empty."""

    id: str
    expression: str
    keywords: tuple[str, ...] = ()
    group: int = 0


class Match(NamedTuple):
    """`pattern` is the position among those given. Code points, ends excluded. `groups[0]` is the whole match; a
    group that took no part is `(-1, -1)`."""

    pattern: int
    start: int
    end: int
    groups: tuple[Span, ...]


class PatternSet:
    """Safe to use from several threads at once."""

    engine: Engine

    def __init__(self, patterns: Sequence[Pattern], *, engine: Engine | None = None) -> None:
        """Raises `PatternError`; `engine` None takes Hyperscan where there is one."""
        if engine == "hyperscan" and not _HAS_HYPERSCAN:
            raise ValueError("no hyperscan on this machine")
        self._patterns = tuple(patterns)
        parsed = [_parse(pattern) for pattern in self._patterns]
        self._compiled = [_compile(pattern, known) for pattern, known in zip(self._patterns, parsed, strict=True)]
        self._reach = [_window_reach(known) for known in parsed]
        self._keywords = [
            () if known is not None and holds_one_of(known.node, pattern.keywords) else pattern.keywords
            for pattern, known in zip(self._patterns, parsed, strict=True)
        ]
        self._literals = _Literals(parsed)
        self._database = None
        if engine != "portable" and _HAS_HYPERSCAN:
            self._database = _Database(parsed, self._reach)
        self.engine = "portable" if self._database is None else "hyperscan"
        words = [0 if known is None else longest_word(known.node) for known in parsed]
        self._unions = _Unions(self._patterns, words, (self._database or self._literals).without)
        self._others = _Unions(self._patterns, words, self._literals.without)

    def scan(self, text: str) -> list[Match]:
        """In the order they begin. For each pattern the leftmost matches that do not overlap; two in a row may share
        one code point that lies behind the `group` of the first.

        Raises `ScanGaveUp` when a pattern takes far more CPU time than it takes
        to read the text once: `x.*y|x` on a text of x reads all of it at every x.
        """
        data = text.encode("utf-8", "replace")  # a lone surrogate becomes one "?": positions stay
        candidates = self._candidates(text, data)
        if not candidates:
            return []
        lowered: str | None = None
        found: list[tuple[int, tuple[Span, ...]]] = []
        for index, windows in candidates.items():
            keywords = self._keywords[index]
            if keywords:
                lowered = text.lower() if lowered is None else lowered
                if not any(keyword in lowered for keyword in keywords):
                    continue
            found.extend((index, spans) for spans in self._confirm(index, data, windows))
        if not found:
            return []
        points = None if len(data) == len(text) else _code_points(data, found)
        matches = [self._match(index, spans, points) for index, spans in found]
        matches.sort(key=_position)
        return matches

    async def scan_aside(self, text: str) -> list[Match]:
        """As `scan`, in a thread where the text is `LONG`: Hyperscan and re2 run without the interpreter's lock."""
        return self.scan(text) if len(text) <= LONG else await asyncio.to_thread(self.scan, text)

    def _candidates(self, text: str, data: bytes) -> dict[int, Sequence[Window]]:
        """For each pattern that may match, windows (in order, apart) of which one holds every match whole."""
        folding = not text.isascii() and any(chr(code) in text for code in FOLDING)
        runs = None if self._database is None or folding else self._database.scan(data)
        if runs is None or self._database is None:
            whole, runs = self._others.scan(data), self._literals.scan(text, data, folding=folding)
        else:
            whole = self._unions.scan(data)
        candidates: dict[int, Sequence[Window]] = dict.fromkeys(whole, _WHOLE)
        for index, ends in runs.items():
            reach = self._reach[index]
            candidates[index] = _WHOLE if reach is None else _windows(ends, reach, len(data))
        return candidates

    def _confirm(self, index: int, data: bytes, windows: Sequence[Window]) -> Iterator[tuple[Span, ...]]:
        compiled = self._compiled[index]
        groups = range(compiled.groups + 1)
        group = self._patterns[index].group
        began: float | None = None
        count = 0
        for start, end in windows:
            at = start
            while (match := compiled.search(data, at, end)) is not None:
                spans = tuple([match.span(number) for number in groups])
                at = _resume(data, spans, group)
                if spans[0][0] < spans[0][1]:
                    yield spans
                count += 1
                if count % _CHECK_EVERY == 0 and count * len(data) > _LITTLE:
                    now = time.thread_time()  # a system call: 30 us on some virtual machines
                    began = now if began is None else began
                    if now - began > _GRACE + _PER_BYTE * len(data) + _PER_MATCH * count:
                        name = self._patterns[index].id
                        raise ScanGaveUp(f"pattern {name!r} takes too long: it reads on far past what it finds")

    def _match(self, index: int, spans: tuple[Span, ...], points: dict[int, int] | None) -> Match:
        if points is not None:
            spans = tuple((points[start], points[end]) for start, end in spans)
        start, end = spans[self._patterns[index].group]
        if start == end:
            start, end = spans[0]
        return Match(index, start, end, spans)


class _Runs(dict[int, list[int]]):
    """For each key where hits end: first and last of every run of close ones, one after another."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.left = most

    def add(self, key: int, end: int) -> bool:
        """True once there have been more than `most`."""
        self.left -= 1
        runs = self.get(key)
        if runs is None:
            self[key] = [end, end]
        elif 0 <= end - runs[-1] <= _GAP:
            runs[-1] = end
        else:
            runs += (end, end)
        return self.left < 0


class _Database:
    """What Hyperscan knows: `without` are the patterns that it cannot look for."""

    def __init__(self, parsed: Sequence[Parsed | None], reach: Sequence[int | None]) -> None:
        expressions: dict[int, tuple[bytes, int]] = {}
        for index, known in enumerate(parsed):
            if known is None:
                continue
            try:
                # One hit will do where re2 reads the whole text anyway.
                flags = hyperscan.HS_FLAG_SINGLEMATCH if reach[index] is None else 0
                expressions[index] = for_hyperscan(known.node).encode(), flags
            except NotUnderstood:
                continue
        self._database = databases.database(expressions)
        if self._database is None:
            expressions = {i: one for i, one in expressions.items() if databases.database({i: one}) is not None}
            self._database = databases.database(expressions)
        if self._database is None:
            expressions = {}
        self.without = tuple(index for index in range(len(parsed)) if index not in expressions)
        self._local = threading.local()

    def scan(self, data: bytes) -> _Runs | None:
        """None where there is so much that it is quicker not to be told."""
        if self._database is None:
            return _Runs(0)
        try:
            scratch = self._local.scratch
        except AttributeError:
            scratch = self._local.scratch = self._database.scratch.clone()
        runs = _Runs(1024 + len(data) // 4)
        try:
            self._database.scan(data + PADDING, _hit, 0, runs, scratch)
        except hyperscan.ScanTerminated:
            return None
        return runs


class _Unions:
    """Patterns without a prefilter: in most texts one pass of re2 says of all at once that none of them matches.

    Of those whose matches hold a long word few go together, because they count,
    and what re2 would have to keep of many does not fit into a cache: one pass
    for 4 takes 1.5 us a KB, as for one, and for 23 it took 57. A text without a
    long word is spared them.
    """

    def __init__(self, patterns: Sequence[Pattern], words: Sequence[int], without: Sequence[int]) -> None:
        anywhere = [index for index in without if words[index] < _LONG_WORD]
        self._all = _union([patterns[index].expression for index in anywhere])
        self._anywhere = _grouped(patterns, anywhere)
        self._in_words = _grouped(patterns, [index for index in without if words[index] >= _LONG_WORD])

    def scan(self, data: bytes) -> Sequence[int]:
        groups: list[tuple[Sequence[int], re2._Regexp | None]] = []
        if self._anywhere and (self._all is None or self._all.search(data) is not None):
            groups += self._anywhere
        if self._in_words and _A_LONG_WORD.search(data) is not None:
            groups += self._in_words
        return [index for group, union in groups if union is None or union.search(data) is not None for index in group]


def _grouped(patterns: Sequence[Pattern], indices: Sequence[int]) -> list[tuple[Sequence[int], "re2._Regexp | None"]]:
    groups = [indices[start : start + _TOGETHER] for start in range(0, len(indices), _TOGETHER)]
    return [(group, _union([patterns[index].expression for index in group])) for group in groups]


class _Literals:
    """The same with Aho-Corasick: `without` are the patterns of which no literal is known."""

    def __init__(self, parsed: Sequence[Parsed | None]) -> None:
        words: dict[bytes, list[int]] = {}
        without: list[int] = []
        for index, known in enumerate(parsed):
            some = literals(known.node) if known is not None else frozenset()
            if not some:
                without.append(index)
            for word in some:
                words.setdefault(word, []).append(index)
        self.without = tuple(without)
        self._patterns = list(words.values())
        self._automaton = ahocorasick.Automaton()
        for position, word in enumerate(words):
            self._automaton.add_word(word.decode("latin-1"), position)
        self._automaton.make_automaton()

    def scan(self, text: str, data: bytes, *, folding: bool) -> _Runs:
        found = _Runs(0)
        if not self._patterns:
            return found
        by_word = _Runs(0)
        seen = text.translate(_ASCII_LETTERS).encode("utf-8", "replace") if folding else data
        add = by_word.add
        for last, word in self._automaton.iter(seen.lower().decode("latin-1")):
            add(word, last + 1)
        moved = _moves(text) if folding else None
        for word, runs in by_word.items():
            ends = runs if moved is None else [end + moved(end) for end in runs]
            for index in self._patterns[word]:
                found.setdefault(index, []).extend(ends)
        return found


def _hit(key: int, _start: int, end: int, _flags: int, runs: object) -> bool:
    """What Hyperscan calls; True ends the scan."""
    return not isinstance(runs, _Runs) or runs.add(key, end)


def _parse(pattern: Pattern) -> Parsed | None:
    try:
        return parse(pattern.expression)
    except MatchesBytes:
        raise PatternError(pattern.id, r"\C can match half a character: write (?s:.) instead") from None
    except NotUnderstood:
        return None  # re2 may well know it: then it is tried on every text


def _compile(pattern: Pattern, known: Parsed | None) -> re2._Regexp:
    options = re2.Options()
    options.log_errors = False
    options.max_mem = _MEMORY
    try:
        compiled = re2.compile(pattern.expression.encode(), options)
    except re2.error as error:
        raise PatternError(pattern.id, _reason(error.args[0].decode())) from None
    except UnicodeEncodeError:
        raise PatternError(pattern.id, "it is not valid Unicode") from None
    if max(compiled.programsize, compiled.reverseprogramsize) > _MAX_PROGRAM:
        raise PatternError(pattern.id, _TOO_LARGE)
    if (width(known.node)[0] == 0) if known is not None else compiled.search(b"") is not None:
        raise PatternError(
            pattern.id, "it matches the empty text, and so everywhere: ask for at least one character, as in + for *"
        )
    if not 0 <= pattern.group <= compiled.groups:
        raise PatternError(pattern.id, f"it has no group {pattern.group}, only {compiled.groups}")
    return compiled


_TOO_LARGE: Final = "it is too large: lower its counts, as in {0,100} for {0,1000}, or use fewer of them"


def _reason(error: str) -> str:
    """What re2 says, and what to write instead."""
    if "(?=" in error or "(?!" in error or "(?<" in error:
        return (
            f"{error}: look-around is not supported. Let the pattern match what stands around as well and put what is "
            r"to be found in a group, as in (?:^|\D)(\d{9})(?:\D|$) with group 1, or use \b"
        )
    if error[-1:].isdigit() and "escape" in error:
        return f"{error}: back-references are not supported. Write out each alternative, as in '[^']*'|`[^`]*`"
    if "too large" in error or "repetition size" in error:
        return f"{error}: {_TOO_LARGE}"
    if "(?>" in error or "repetition operator" in error:
        return f"{error}: repeats never backtrack here, so possessive ones and atomic groups are not needed"
    if error.endswith("\\Z"):
        return f"{error}: write \\z for the end of the text"
    return error


def _union(expressions: Sequence[str]) -> re2._Regexp | None:
    """None where they do not go together: two groups of one name, too large."""
    options = re2.Options()
    options.log_errors = False
    options.max_mem = _MEMORY
    options.never_capture = True
    try:
        return re2.compile("|".join(f"(?:{expression})" for expression in expressions).encode(), options)
    except re2.error:
        return None


def _window_reach(known: Parsed | None) -> int | None:
    """How many bytes around a hit can belong to the match; None where re2 shall look at the whole text."""
    if known is None or not literals(known.node):
        return None
    longest = byte_width(known.node)
    return longest if longest is not None and longest <= _MAX_WINDOW else None


def _windows(runs: list[int], reach: int, size: int) -> list[Window]:
    windows: list[Window] = []
    start, end = 0, -1
    for first, last in sorted(zip(runs[::2], runs[1::2], strict=True)):
        if first - reach > end:
            if end >= 0:
                windows.append((start, end))
            start = max(0, first - reach)
        end = max(end, min(size, last + reach))
    windows.append((start, end))
    return windows


def _resume(data: bytes, spans: tuple[Span, ...], group: int) -> int:
    """Where to look for the next match: what parted two findings may belong to both, if it is one code point."""
    start, end = spans[0]
    if start == end:
        return end + 1
    if spans[group][1] in (end, -1):
        return end
    at = end - 1
    while data[at] & 0xC0 == 0x80:
        at -= 1
    return at if at > start else end


def _code_points(data: bytes, found: Sequence[tuple[int, tuple[Span, ...]]]) -> dict[int, int]:
    points = {-1: -1}
    at = count = 0
    for offset in sorted({offset for _, spans in found for span in spans for offset in span if offset >= 0}):
        count += len(data[at:offset].decode())
        points[offset] = count
        at = offset
    return points


def _position(match: Match) -> tuple[int, int]:
    return match.start, match.pattern


def _moves(text: str) -> Callable[[int], int]:
    """Maps a byte offset in the text with `FOLDING` replaced to how much further on it is in the text itself."""
    ends: list[int] = []
    moved = [0]
    at = size = 0
    for special in _FOLDING.finditer(text):
        size += len(text[at : special.start()].encode("utf-8", "replace")) + 1
        at = special.end()
        ends.append(size)
        moved.append(moved[-1] + len(special[0].encode()) - 1)
    return lambda offset: moved[bisect_right(ends, offset)]


# What a log, or JSON inside a string, writes as text for a new line, a quote or a colour.
_ESCAPE: Final = re.compile(r"\\[nrt]|\\u00(?:0[9adAD]|2[02-7]|3[a-eA-E])|\x1b\[[0-9;]{0,12}m")
_MEANT: Final = {"n": "\n", "r": "\n", "t": "\t"}


def opened(text: str) -> str:
    r"""The same length, with blanks and the character itself in place of each escape: a token right behind `\n` begins
    a word there, and one before it ends."""
    if "\\" not in text and "\x1b" not in text:
        return text
    return _ESCAPE.sub(_meant, text)


def _meant(escape: re.Match[str]) -> str:
    written = escape[0]
    if written[1] == "[":
        return " " * len(written)
    meant = chr(int(written[2:], 16)) if len(written) > 2 else _MEANT[written[1]]
    return meant.rjust(len(written))
