"""How much of a growing text can be let out, and how much waits for what comes next."""

import re
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from guardrails.policy import Rule
from guardrails.redact import Edit, applied, moved

Json = dict[str, Any]

CAP = 16 * 1024
"""So many code points of a text without a place to cut it are held, but for those that are held to their end."""

_BATCH = 64
_LONGEST_RUN = 64  # of digits: no card, account or phone number is longer
_SLACK = 64  # more context than is asked for, so that matches fall into step again
_PIECES = 64
_SEAM = 1024  # where a text was cut inside a word, so much of the word is context

_KEY = re.compile(r"-{4,5} ?BEGIN(?P<header>[ A-Z0-9_]{0,100})(?P<open>\Z)?|-{4,5} (?:B(?:E(?:GI?)?)?)?\Z", re.I)
_KEY_END = re.compile(r"-{4,5} ?END[ A-Z0-9_]{0,100}-{4,5}", re.I)
_BETWEEN_DIGITS = frozenset(" \t\xa0.-/()+:")
# White space, and scripts that put none between words, with their punctuation. Not the wide forms of ASCII, which are
# ASCII to some.
_BREAK = (
    r"(?:\s|(?!\d)[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fdf\u3001-\u312f\u31a0-\u31ff\u3400-\u4dbf"
    r"\u4e00-\u9fff\uf900-\ufaff\uff01\uff0c\uff1a\uff1b\uff1f\U00020000-\U0003ffff])"
)
_A_BREAK = re.compile(_BREAK)
_TO_THE_LAST_BREAK = re.compile(f".*{_BREAK}", re.DOTALL)


class Gate(NamedTuple):
    """What texts wait for. `reach` None: for their end. `openers` say from where on an end is not decided. `batch` is
    how much is looked at together where it is there."""

    rules: tuple[Rule, ...]
    reach: int | None
    context: int
    openers: tuple[Callable[[str], int], ...]
    batch: int


def gate(rules: Sequence[Rule]) -> Gate:
    reach: int | None = 0
    context = 0
    openers = []
    for detector in (rule.detector for rule in rules):
        context = max(context, getattr(detector, "context", detector.reach or 0))
        opener: Callable[[str], int] | None = getattr(detector, "open_from", None)
        if reach is None or not detector.inline:
            reach = None  # one that is asked elsewhere is asked once
        elif opener is not None:
            openers.append(opener)
        else:
            reach = None if detector.reach is None else max(reach, detector.reach)
    return Gate(tuple(rules), reach, context, tuple(openers), max(_BATCH, (context + (reach or 0)) // 4))


class Window(NamedTuple):
    """`text` begins at `start`; what begins before `cut` can be decided."""

    text: str
    start: int
    cut: int


class Beside(NamedTuple):
    """What travels with the code points from `start` to `end` of a text, or waits for those before it.

    `text`, `summary`: a detail of reasoning that says them once more in this
    field; `choice`: fields of the choice; `chunk`: a chunk of its own.
    """

    start: int
    end: int
    kind: Literal["text", "summary", "detail", "logprobs", "content_items", "delta", "choice", "chunk"]
    value: Any


class Piece(msgspec.Struct):
    """A part of a text that goes out with what belongs to it. `chunk` goes alone."""

    text: str = ""
    said: Json = {}
    details: list[Json] = []
    logprobs: Any = None
    choice: Json = {}
    chunk: Json | None = None


class HeldText:
    """One text as it grows. Offsets are code points from the beginning of the text as it came."""

    def __init__(self, name: str, gate: Gate, *, keep: bool) -> None:
        self.name = name
        self.size = 0
        self.released = 0
        self.trusted = 0  # what begins before it, in the context, may be something else in the whole text
        self.waits = 0  # nothing can be decided before that is there
        self._again = 0  # nor is it looked at again before that is
        self.rewritten = False
        self.beside: deque[Beside] = deque()
        self._gate = gate
        self._text = ""  # context and what is held, from `_base` on, but for what is fresh
        self._base = 0
        self._fresh: list[str] = []
        self._broken = 0  # the last place to cut at
        self._unbroken = 0  # there is none between `released` and here
        self._written = 0  # code points that went out
        self._edited = -1  # where the last edit ended
        self._replaced, self._replaced_to = 0, -1  # the span of it, with those that it went on from
        self._all = _Growing() if keep else None

    @property
    def holds(self) -> bool:
        return self.released < self.size

    def was_replaced(self, start: int) -> bool:
        """Whether nothing has gone of the text from `start` on."""
        return self._replaced_to == self.released and self._replaced <= start

    @property
    def overfull(self) -> bool:
        return self._gate.reach is not None and self.size - self.released > CAP + self._gate.reach

    def said(self) -> str:
        return "" if self._all is None else self._all.whole()

    def add(self, text: str) -> None:
        self._fresh.append(text)
        if len(self._fresh) > _many_beside(self._text):
            self._join()
        if self._all is not None:
            self._all.add(text)
        place = _last_break(text, len(text), 0)
        if place:
            self._broken = self.size + place
        self.size += len(text)

    def attach(self, kind: Any, value: Any, *, length: int = 0) -> None:
        """Beside the last `length` code points."""
        self.beside.append(Beside(self.size - length, self.size, kind, value))

    def window(self, *, whole: bool) -> Window | None:
        """What to look at; None where nothing can be decided yet."""
        if not self.holds:
            return None
        gate = self._gate
        if whole or not gate.rules:
            return self.all_there_is()
        if gate.reach is None:
            return None
        limit = min(self.size - gate.reach, self._broken)
        # With a long reach much is looked at twice: not for every word.
        if self.size < self._again or limit <= max(self.released + gate.reach // 16, self.waits - 1):
            return None
        self._join()
        cut = self.break_before(limit)
        held = self.released - self._base
        end = cut - self._base
        opened = min(_open_run(self._text, end, held), _open_key(self._text, end, held))
        for opener in gate.openers:
            opened = min(opened, opener(self._text))
        if opened + self._base < cut:
            cut = self.break_before(opened + self._base)
        if cut <= max(self.released, self.waits - 1):
            self._again = self.size + (self.size - self.released) // 16
            return None
        # Looked at to the end of the last word: what is found may go on beyond the cut.
        return Window(self._text if gate.reach or gate.openers else self._text[:end], self._base, cut)

    def all_there_is(self) -> Window:
        self._join()
        return Window(self._text, self._base, self.size)

    def break_before(self, place: int) -> int:
        """The last place to cut at that is not after `place`; where there is none, where the held text begins."""
        if place >= self._broken:
            return max(self._broken, self.released)
        least = max(self.released, self._unbroken)
        if place <= least:
            return self.released
        cut = _last_break(self._text, place - self._base, least - self._base) + self._base
        if cut <= least:
            self._unbroken = place
            return self.released
        return cut

    def release(self, cut: int, edits: Sequence[Edit]) -> list[Piece]:
        """What goes out up to `cut`, with all that travels beside it."""
        self._join()
        pieces = self._pieces(cut, edits)
        begin = self.released
        self.released = self._unbroken = cut
        self.rewritten = self.rewritten or bool(edits)
        if edits:
            self._edited = edits[-1].end
            # One that was continued began where the one before it did.
            self._replaced = self._replaced if edits[-1].start == begin == self._replaced_to else edits[-1].start
            self._replaced_to = self._edited
        end = cut - self._base
        self.trusted = cut - self._gate.context
        if end and _A_BREAK.match(self._text, end - 1) is None:
            word = _last_break(self._text, end, max(end - _SEAM, 0)) + self._base
            self.trusted = min(self.trusted, word)
        begins = max(self.trusted - 1 - (_SLACK if self._gate.context else 0) - self._base, 0)
        # Not inside a word: the end of "hissn" is a word that speaks of what follows.
        begins = _last_break(self._text, begins, max(begins - _SEAM, 0))
        self._text = self._text[begins:]
        self._base += begins
        return pieces

    def _join(self) -> None:
        if self._fresh:
            self._text = "".join((self._text, *self._fresh))
            self._fresh = []

    def _pieces(self, cut: int, edits: Sequence[Edit]) -> list[Piece]:
        if not edits and not self.beside:
            text = self._text[self.released - self._base : cut - self._base]
            self._written += len(text)
            return [Piece(text)] if text else []
        pieces: list[Piece] = []
        out = _Writer(self._text, self._base, self.released, edits)
        logprobs: Any = None
        kept: deque[Beside] = deque()

        def until(place: int) -> None:
            nonlocal logprobs
            text = out.until(place)
            if text or logprobs is not None:
                pieces.append(Piece(text, logprobs=logprobs))
                logprobs = None

        for one in self.beside:
            start, end, kind, value = one
            if start > cut or (end > cut and (start == cut or kind == "logprobs")) or self._awaits(one, cut):
                kept.append(one)
            elif kind in ("text", "summary"):
                if end > cut:
                    kept.append(one)
                if not edits and not self.rewritten:
                    start = max(start, self.released)
                    until(start)
                    words = out.until(min(end, cut))
                    _add_detail(pieces, {**value, kind: words}, kind, words)
            elif kind == "detail":
                until(start)
                if pieces and pieces[-1].details:
                    pieces[-1].details = [*pieces[-1].details, value]
                else:
                    pieces.append(Piece(details=[value]))
            elif kind == "logprobs":
                if start >= self._edited and not any(_touches(edit, start, end) for edit in edits):
                    logprobs = _joined(logprobs, value)
            else:
                until(out.outside(start))
                if kind == "content_items":
                    value = [self._moved(item, edits) for item in value]
                    pieces.append(Piece(said={kind: value}))
                elif kind == "delta":
                    pieces.append(Piece(said=value))
                elif kind == "choice":
                    pieces.append(Piece(choice=value))
                else:
                    pieces.append(Piece(chunk=value))
        until(cut)
        self.beside = kept
        self._written += out.written
        return pieces

    def _awaits(self, one: Beside, cut: int) -> bool:
        """A token that is no text yet is part of the next character."""
        return one.kind == "logprobs" and one.start == one.end == cut < self.size

    def _moved(self, item: Any, edits: Sequence[Edit]) -> Any:
        """An offset in this text, as it is in what goes out."""
        if not isinstance(item, dict) or not isinstance(item.get("offset"), int) or item["offset"] < self.released:
            return item
        since = [Edit(edit.start - self.released, edit.end - self.released, edit.text) for edit in edits]
        return {**item, "offset": self._written + moved(item["offset"] - self.released, since)}


class _Growing:
    def __init__(self) -> None:
        self._text = ""
        self._fresh: list[str] = []

    def add(self, text: str) -> None:
        self._fresh.append(text)
        if len(self._fresh) > _many_beside(self._text):
            self.whole()

    def whole(self) -> str:
        self._text = "".join((self._text, *self._fresh))
        self._fresh = []
        return self._text


def _many_beside(text: str) -> int:
    """More pieces than that take more than the text they are joined to: each has a head of 50 bytes."""
    return _PIECES + len(text) // _PIECES


class _Writer:
    """Goes through a text once, edits applied."""

    def __init__(self, text: str, base: int, at: int, edits: Sequence[Edit]) -> None:
        self.written = 0
        self._text = text
        self._base = base
        self._at = at
        self._edits = deque(edits)
        self._spans = [(edit.start, edit.end) for edit in edits]

    def outside(self, place: int) -> int:
        """`place`, or the end of the edit it is in."""
        return next((end for start, end in self._spans if start < place < end), place)

    def until(self, place: int) -> str:
        if place <= self._at:
            return ""
        begin, self._at = self._at, place
        mine = []
        while self._edits and self._edits[0].end <= place:
            edit = self._edits.popleft()
            mine.append(Edit(edit.start - begin, edit.end - begin, edit.text))
        text = applied(self._text[begin - self._base : place - self._base], mine)
        self.written += len(text)
        return text


def _add_detail(pieces: list[Piece], detail: Json, field: str, words: str) -> None:
    """Pieces of one item that follow each other go together."""
    last = pieces[-1] if pieces else None
    if last is not None and len(last.details) == 1:
        before = last.details[0]
        if isinstance(before.get(field), str) and {**before, field: ""} == {**detail, field: ""}:
            last.details = [{**before, field: before[field] + words}]
            last.text += words
            return
    pieces.append(Piece(words, details=[detail]))


def _touches(edit: Edit, start: int, end: int) -> bool:
    """Also of an empty span at either end."""
    return (edit.start < end and start < edit.end) or edit.start <= start == end <= edit.end


def _joined(so_far: Any, more: Any) -> Any:
    if not isinstance(so_far, dict) or not isinstance(more, dict):
        return more if so_far is None else so_far
    result = dict(so_far)
    for name, value in more.items():
        both = isinstance(value, list) and isinstance(result.get(name), list)
        result[name] = result[name] + value if both else value or result.get(name)
    return result


# --- places to cut at


def _last_break(text: str, end: int, least: int) -> int:
    """`least` where there is none after it."""
    found = _TO_THE_LAST_BREAK.match(text, least, end)
    return least if found is None else found.end()


def _open_run(text: str, end: int, least: int) -> int:
    """Where the digits begin that the text may go on with after `end`; `end` where it cannot."""
    if end < len(text) and not text[end].isdigit() and text[end] not in _BETWEEN_DIGITS:
        return end
    first = end
    for at in range(end - 1, max(least, end - _LONGEST_RUN) - 1, -1):
        char = text[at]
        if char.isdigit():
            first = at
        elif char not in _BETWEEN_DIGITS:
            break
    return first


def _open_key(text: str, end: int, least: int) -> int:
    """Where a private key begins that has no end before `end`, and may have one."""
    if text.find("----", least) < 0:
        return len(text)
    at = least
    while (found := _KEY.search(text, at)) is not None:
        header = found["header"]
        if header is None:
            return found.start()
        at = found.end()
        if found["open"] is None and "PRIVATE KEY" not in header.upper():
            continue
        closed = _KEY_END.search(text, at)
        if closed is not None and closed.end() <= end:
            at = closed.end()
        elif len(text) - found.start() < CAP:
            return found.start()
    return len(text)
