"""Where a text ends in the middle of a match: what a stream must not let out yet.

For each pattern there is another one for what its matches may begin with,
tied to the end of the text. re2 reads those backwards from the end and stops
where nothing can have begun, so that a look costs next to nothing.
"""

import codecs
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, Final, NamedTuple

import re2

from guardrails.expression import (
    FOLDING,
    Chars,
    Choice,
    Look,
    Node,
    NotUnderstood,
    Repeat,
    Series,
    can_hold_white_space,
    parse,
    width,
)

_MEMORY: Final = 64 * 1024 * 1024
_LEAST: Final = 10  # repeats that are counted
_SHORT: Final = 5  # of what is no longer
_MOST_BEHIND: Final = 64  # to be counted
_NOTHING: Final = Series(())
_ON_ITS_LINE: Final = Chars((1 << 128) - 1 & ~(1 << ord("\n")), wide=True)
_NONE: Final = r"[^\x00-\xff]"
_COUNTS: Final = {"{0,}": "*", "{1,}": "+", "{0,1}": "?", "{1,1}": ""}

# Each code point becomes a byte: beyond ASCII the letters that a pattern names have their own, all others this one.
_WIDE: Final = 0xFF
_IN_A_WORD: Final = bytes(code for code in range(128) if not chr(code).isspace())
_ONE_BYTE_EACH: Final = "guardrails.one_byte_each"


def _one_byte_each(error: UnicodeError) -> tuple[bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return bytes([_WIDE]) * (error.end - error.start), error.end


codecs.register_error(_ONE_BYTE_EACH, _one_byte_each)


class Growing(NamedTuple):
    """A pattern over a text that grows. What it finds is the first of `groups` that takes part; without any, or where
    none does, the whole match. `after`: what stands behind a match on its line counts as well, so many code points."""

    expression: str
    groups: frozenset[int] = frozenset()
    after: int = 0


class Unfinished:
    """Of patterns in re2's syntax; raises `NotUnderstood` where one is beyond it.

    `context` is how far before what it finds a match may begin, but for those
    that may begin further before it than `limit`: they are open from their
    beginning.
    """

    def __init__(self, patterns: Sequence[Growing], *, limit: int) -> None:
        heads = [0]
        nodes = [parse(pattern.expression, captures=True).node for pattern in patterns]
        letters = sorted({letter for node in nodes for letter in _letters(node)})
        own = dict(zip(letters, range(0x80, _WIDE), strict=False))
        self._bytes = {**dict.fromkeys(range(0x80, _WIDE), _WIDE), **own} if own else {}
        self._open: list[_Opening] = []
        for pattern, node in zip(patterns, nodes, strict=True):
            ways = _ways(node, pattern.groups, limit)
            heads += [width(way.head)[1] or 0 for way in ways]
            ways = [way for way in ways if pattern.after or _goes_past_a_break(way.rest)]
            if ways:
                self._open.append(_Opening(pattern, ways, own))
        self.context = max(heads) + 1  # for what `\b` looks at
        self._any = _tied_to_the_end([one.expression for one in self._open])

    def __bool__(self) -> bool:
        """Whether any of them can go on past a place where a stream is cut."""
        return bool(self._open)

    def open_from(self, text: str) -> int:
        """From where on `text` may be, or belong to, what is found once more of it is there; or a little before.

        Its length where nothing is open. What has no place to cut in it counts as
        nothing: no stream is cut there.
        """
        plain = text if not self._bytes or text.isascii() else text.translate(self._bytes)
        data = plain.encode("latin-1", _ONE_BYTE_EACH)
        begun = self._any.search(data)
        if begun is None or begun.start() >= len(data.rstrip(_IN_A_WORD)):
            return len(data)
        return min(one.start(text, data) for one in self._open)


class _Way(NamedTuple):
    """One way to what is found: `head` comes before it, `rest` begins with it."""

    head: Node
    rest: Node


class _Opening:
    def __init__(self, pattern: Growing, ways: Sequence[_Way], own: Mapping[int, int]) -> None:
        longest = [width(Series(way))[1] for way in ways]
        self._longest = None if None in longest else max(most or 0 for most in longest) + pattern.after
        settles = all(_settles(Series(way)) for way in ways)
        # With all counts the expressions would be too large for re2 to be quick: the whole length has to do.
        ways = [_Way(_simpler(head, own), _simpler(rest, own)) for head, rest in ways]
        if pattern.after:
            behind = Repeat(_ON_ITS_LINE, 0, pattern.after if pattern.after <= _MOST_BEHIND else None)
            ways = [_Way(head, Series((rest, behind))) for head, rest in ways]
        self.expression = _alternatives(_begun(ways))
        self._begun = _tied_to_the_end([self.expression])
        self._whole: Any = None if pattern.after else _compiled(pattern.expression, wide=True)
        # A lazy repeat can always go on, and does not once what follows it is there: where that is sure.
        self._lazy = not pattern.after and any(_is_lazy(way.rest) for way in ways) and settles
        self._eager = _tied_to_the_end(_begun(ways, lazily=False))

    def start(self, text: str, data: bytes) -> int:
        begun = self._begun.search(data, 0 if self._longest is None else max(0, len(data) - self._longest))
        if begun is None or self._whole is None:
            return len(data) if begun is None else int(begun.start())
        for start, end in self._found(text):
            if end <= begun.start():
                continue
            if start > begun.start() or (start == begun.start() and not self._is_over(data, start)):
                break
            begun = self._begun.search(data, end)
            if begun is None:
                return len(data)
        return int(begun.start())

    def _found(self, text: str) -> Iterator[tuple[int, int]]:
        data = text.encode("utf-8", "replace")
        at = points = 0
        for match in self._whole.finditer(data):
            if len(data) == len(text):
                yield match.span()
                continue
            start = points + len(data[at : match.start()].decode())
            points = start + len(data[match.start() : match.end()].decode())
            at = match.end()
            yield start, points

    def _is_over(self, data: bytes, start: int) -> bool:
        if not self._lazy:
            return False
        goes_on = self._eager.search(data, start)
        return goes_on is None or goes_on.start() > start


def _ways(node: Node, groups: frozenset[int], limit: int) -> list[_Way]:
    if _takes_part(node, groups):
        ways = list(_split(node, groups))
        widths = [width(way.head)[1] for way in ways]
        if all(widest is not None and widest <= limit for widest in widths):
            return ways
    return [_Way(_NOTHING, node)]


def _takes_part(node: Node, groups: frozenset[int]) -> bool:
    """In every match one of them does, and is not empty."""
    match node:
        case Series(items, group):
            return (group in groups and width(node)[0] > 0) or any(_takes_part(item, groups) for item in items)
        case Choice(items):
            return all(_takes_part(item, groups) for item in items)
        case Repeat(item, least):
            return least > 0 and _takes_part(item, groups)
        case _:
            return False


def _split(node: Node, groups: frozenset[int]) -> Iterator[_Way]:
    match node:
        case Series(_, group) if group in groups:
            yield _Way(_NOTHING, node)
        case Series(items):
            for place, item in enumerate(items):
                for head, rest in _split(item, groups):
                    yield _Way(Series((*items[:place], head)), Series((rest, *items[place + 1 :])))
        case Choice(items):
            for item in items:
                yield from _split(item, groups)
        case Repeat(item) if next(_split(item, groups), None) is not None:
            yield _Way(_NOTHING, node)


def _goes_past_a_break(node: Node) -> bool:
    """Whether more of it may follow after a place where a stream is cut."""
    match node:
        case Series(items):
            return bool(items) and (any(map(can_hold_white_space, items[:-1])) or _goes_past_a_break(items[-1]))
        case Choice(items):
            return any(map(_goes_past_a_break, items))
        case Repeat(item, _, most):
            return most != 0 and (_goes_past_a_break(item) or (most != 1 and can_hold_white_space(item)))
        case _:
            return False


def _letters(node: Node) -> Iterator[int]:
    """That it names one by one, beyond ASCII."""
    match node:
        case Chars(exact=int() as code):
            yield code
        case Series(items) | Choice(items):
            for item in items:
                yield from _letters(item)
        case Repeat(item):
            yield from _letters(item)


def _simpler(node: Node, own: Mapping[int, int]) -> Node:
    """It, or what matches more, without high counts and in bytes; `own` are those of letters."""
    match node:
        case Chars(exact=int() as code):
            return Chars(0, wide=True, exact=own.get(code, _WIDE))
        case Series(items):
            return Series(tuple(_simpler(item, own) for item in items))
        case Choice(items):
            return Choice(tuple(_simpler(item, own) for item in items))
        case Repeat(item, least, most, lazy) if most != 0:
            least = min(least, _LEAST if (width(item)[1] or _MEMORY) <= _SHORT else 1)
            return Repeat(_simpler(item, own), least, most if most == 1 else None, lazy)
        case _:
            return node


def _is_lazy(node: Node) -> bool:
    match node:
        case Series(items) | Choice(items):
            return any(map(_is_lazy, items))
        case Repeat(item, lazy=lazy):
            return lazy or _is_lazy(item)
        case _:
            return False


def _settles(node: Node) -> bool:
    """Whether a match with a lazy repeat is over as soon as what must follow that is there. Not if nothing must; nor if
    another way to match, which goes before, may still be in its own: so there is one way to each of them."""
    match node:
        case Series():
            items = list(_in_order(node))
            last = max((place for place, item in enumerate(items) if _is_lazy(item)), default=-1)
            for place, item in enumerate(items[: last + 1]):
                least, most = width(item)
                after = Series(tuple(items[place + 1 :]))
                if isinstance(item, Repeat) and item.lazy:
                    if _is_lazy(item.item) or width(after)[0] == 0:
                        return False
                elif _is_lazy(item):
                    if place < last or not _settles(item):
                        return False
                elif least != most and not _ends_before(item, after):
                    return False
            return True
        case Choice(items):
            firsts = [first for item in items if (first := _first(item)) is not None]
            apart = len(firsts) == len(items) and all(_differ(*pair) for pair in combinations(firsts, 2))
            return apart and all(map(_settles, items))
        case _:
            return not _is_lazy(node)


def _ends_before(node: Node, after: Node) -> bool:
    """Whether the next character alone says if it goes on."""
    if not isinstance(node, Repeat) or len(set(width(node.item))) > 1:
        return False
    one, other = _first(node.item), _first(after)
    return one is not None and other is not None and _differ(one, other)


def _in_order(node: Node) -> Iterator[Node]:
    if isinstance(node, Series):
        for item in node.items:
            yield from _in_order(item)
    else:
        yield node


def _alone(node: Node) -> list[Node]:
    """It, or what a group of one holds; of more, nothing."""
    items = list(_in_order(node))
    return items if len(items) == 1 else []


def _first(node: Node) -> Chars | None:
    """What it begins with, where that is one thing."""
    match node:
        case Chars():
            return node
        case Series(items):
            return next((_first(item) for item in items if not isinstance(item, Look)), None)
        case Repeat(item, least) if least > 0:
            return _first(item)
        case _:
            return None


def _differ(one: Chars, other: Chars) -> bool:
    return not (one.ascii & other.ascii or (one.wide and other.wide))


# --- what a match begins with, in re2's syntax, over bytes


def _begun(ways: Sequence[_Way], *, lazily: bool = True) -> list[str]:
    rests = [(_written(head), _beginnings(rest, lazily=lazily)) for head, rest in ways]
    return [head + _alternatives(begun) for head, begun in rests if begun]


def _beginnings(node: Node, *, lazily: bool) -> list[str]:
    """Of what it matches all that is not everything, and nothing empty but where it cannot be helped. Not `lazily`:
    none that ends in a lazy repeat."""
    match node:
        case Choice(items):
            return [begun for item in items for begun in _beginnings(item, lazily=lazily)]
        case Series((first,)):
            return _beginnings(first, lazily=lazily)
        case Series((first, *others)):
            begun = _beginnings(first, lazily=lazily)
            further = _beginnings(Series(tuple(others)), lazily=lazily)
            may_end = lazily or not any(isinstance(item, Repeat) and item.lazy for item in _alone(first))
            if further:
                begun.append(_written(first) + _alternatives(further) + ("?" if may_end else ""))
            elif may_end:
                begun.append(_written(first))
            return begun
        case Repeat(item, _, most, lazy) if most != 0:
            most = None if most is None else most - 1
            begun = [_counted(item, 0, most) + one for one in _beginnings(item, lazily=lazily)]
            if most != 0 and (lazily or not lazy):
                begun.append(_counted(item, 1, most))
            return begun
        case _:
            return []


def _written(node: Node) -> str:
    """It, or what matches more: that the text or a line must end is left out."""
    match node:
        case Chars():
            return _class(node)
        case Look(at):
            return {"A": r"\A", "b": r"\b", "B": r"\B", "^": "(?m:^)"}.get(at, "")
        case Series(items):
            return "".join(map(_written, items))
        case Choice(items):
            return _alternatives([_written(item) for item in items])
        case Repeat(item, least, most):
            return _counted(item, least, most)


def _class(chars: Chars) -> str:
    if chars.exact is not None:
        return f"\\x{chars.exact:02x}"
    bits = chars.ascii
    folded = any(bits >> letter & 1 and bits >> letter - 32 & 1 for letter in FOLDING.values())
    codes = "".join(f"\\x{code:02x}" for code in range(128) if bits >> code & 1)
    beyond = r"\x80-\xff" if chars.wide else r"\xff" if folded else ""
    return f"[{codes}{beyond}]" if codes or beyond else _NONE


def _counted(item: Node, least: int, most: int | None) -> str:
    written = _written(item)
    if most == 0 or not written:
        return ""
    count = f"{{{least},{'' if most is None else most}}}"
    return f"(?:{written}){_COUNTS.get(count, count)}"


def _alternatives(expressions: Sequence[str]) -> str:
    return f"(?:{'|'.join(expressions)})"


def _tied_to_the_end(expressions: Sequence[str]) -> Any:
    """Without any it matches nothing."""
    return _compiled(_alternatives(expressions or [_NONE]) + r"\z", wide=False)


def _compiled(expression: str, *, wide: bool) -> Any:
    options = re2.Options()
    options.log_errors = False
    options.never_capture = True
    options.max_mem = _MEMORY
    options.encoding = re2.Options.Encoding.UTF8 if wide else re2.Options.Encoding.LATIN1
    try:
        return re2.compile(expression.encode(), options)
    except re2.error as problem:
        raise NotUnderstood("too large to be looked for unfinished") from problem
