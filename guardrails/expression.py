"""What an expression in re2's syntax can match: how long it gets, and a wider expression for Hyperscan.

`parse` trusts that re2 has compiled the expression: it never refuses one that re2 would take, but may say
`NotUnderstood`, and then nothing is known about it. Semantics are re2's: `\\w`, `\\d`, `\\s` and `\\b` are ASCII,
`$` is the end of the text, `.` is a code point.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

_ALL: Final = (1 << 128) - 1
_LOWER: Final = sum(1 << ord(c) for c in "abcdefghijklmnopqrstuvwxyz")
_UPPER: Final = _LOWER >> 32
_DIGITS: Final = sum(1 << ord(c) for c in "0123456789")
_WORD: Final = _LOWER | _UPPER | _DIGITS | 1 << ord("_")
_SPACE: Final = sum(1 << ord(c) for c in "\t\n\f\r ")
_NOT_A_LINE_END: Final = _ALL & ~(1 << ord("\n"))
_PUNCTUATION: Final = sum(1 << c for c in range(33, 127)) & ~(_LOWER | _UPPER | _DIGITS)
# What Unicode calls white space in ASCII: re2's `\s`, and the controls that `str.isspace` adds.
_BLANK: Final = sum(1 << c for c in range(128) if chr(c).isspace())

_PERL: Final = {"d": _DIGITS, "s": _SPACE, "w": _WORD}
_POSIX: Final = {
    "alnum": _LOWER | _UPPER | _DIGITS,
    "alpha": _LOWER | _UPPER,
    "ascii": _ALL,
    "blank": 1 << 9 | 1 << 32,
    "cntrl": (1 << 32) - 1 | 1 << 127,
    "digit": _DIGITS,
    "graph": _LOWER | _UPPER | _DIGITS | _PUNCTUATION,
    "lower": _LOWER,
    "print": _LOWER | _UPPER | _DIGITS | _PUNCTUATION | 1 << 32,
    "punct": _PUNCTUATION,
    "space": _SPACE | 1 << 11,
    "upper": _UPPER,
    "word": _WORD,
    "xdigit": _DIGITS | sum(1 << ord(c) for c in "abcdefABCDEF"),
}
_CONTROL: Final = {"a": 7, "f": 12, "n": 10, "r": 13, "t": 9, "v": 11}
PADDING: Final = b"\n" * 96
"""Behind every text for Hyperscan, so that none is short: those have an engine of their own, with that flaw."""

# The two code points outside ASCII that fold to an ASCII letter: the long s and the Kelvin sign.
FOLDING: Final = {0x17F: ord("s"), 0x212A: ord("k")}

_REPEAT: Final = re.compile(r"\{(\d{1,4})(,?)(\d{0,4})\}")
_FLAGS: Final = re.compile(r"\?([imsU]*)(-[imsU]+)?([:)])")
_NAME: Final = re.compile(r"\?P?<\w+>")
_PROPERTY: Final = re.compile(r"[pP](?:\{\^?([A-Za-z_]+)\}|([A-Z]))")
_MAX_DEPTH: Final = 100

# For Hyperscan: it unrolls counted groups, so past this many positions a count becomes "at least a few"; a longer gap
# is cut off with what follows.
_MAX_POSITIONS: Final = 400
_MAX_COUNT: Final = 512
_SHORT_GAP: Final = 16

_SHORTEST_LITERAL: Final = 3
_MOST_LITERALS: Final = 32
_LONGEST_REPEATED: Final = 16


class NotUnderstood(ValueError):
    """A construct this parser does not know. The expression may be fine: ask re2."""


class MatchesBytes(ValueError):
    """`\\C`: a byte, which may be half a code point."""


@dataclass(frozen=True, slots=True)
class Chars:
    """One code point: of ASCII those whose bit is set, and any beyond ASCII if `wide`. `exact` is a literal one."""

    ascii: int
    wide: bool
    exact: int | None = None


@dataclass(frozen=True, slots=True)
class Look:
    """An assertion of no width: `A`, `z`, `b`, `B`, `^`, `$` (the last two at line ends)."""

    at: str


@dataclass(frozen=True, slots=True)
class Series:
    """`group` is the number under which it is captured; 0: it is not."""

    items: tuple["Node", ...]
    group: int = 0


@dataclass(frozen=True, slots=True)
class Choice:
    items: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    item: "Node"
    least: int
    most: int | None
    lazy: bool = False


Node = Chars | Look | Series | Choice | Repeat


@dataclass(frozen=True, slots=True)
class Parsed:
    """`groups` is how many capture."""

    node: Node
    groups: int


def parse(expression: str, *, captures: bool = False) -> Parsed:
    """Raises `NotUnderstood`. With `captures` each group is a `Series` of its own, otherwise only what is in it."""
    parser = _Parser(expression, captures=captures)
    node = parser.choice(_Modes(), depth=0)
    if parser.at != len(expression):
        raise NotUnderstood("a closing bracket with nothing open")
    return Parsed(node, parser.groups)


def width(node: Node) -> tuple[int, int | None]:
    """The shortest and the longest match in code points; None where there is no longest."""
    match node:
        case Chars():
            return 1, 1
        case Look():
            return 0, 0
        case Series(items):
            widths = [width(item) for item in items]
            return sum(least for least, _ in widths), _sum([most for _, most in widths])
        case Choice(items):
            widths = [width(item) for item in items]
            longest = [most for _, most in widths]
            return min(least for least, _ in widths), None if None in longest else max(m or 0 for m in longest)
        case Repeat(item, least, most):
            low, high = width(item)
            if high == 0:
                return 0, 0
            return low * least, None if most is None or high is None else high * most


def can_hold_white_space(node: Node) -> bool:
    """Or a letter of a script that puts none between words: nothing beyond ASCII is told apart."""
    match node:
        case Chars(ascii=bits, wide=wide):
            return wide or bool(bits & _BLANK)
        case Look():
            return False
        case Series(items) | Choice(items):
            return any(can_hold_white_space(item) for item in items)
        case Repeat(item, _, most):
            return most != 0 and can_hold_white_space(item)


def longest_word(node: Node) -> int:
    """Every match holds so many code points in a row, or more, of which none is white space of ASCII."""
    return _words(node)[2]


def _words(node: Node) -> tuple[bool, int, int]:
    """Whether no match holds white space, how long the shortest is if so, and `longest_word`."""
    match node:
        case Chars(ascii=bits):
            return (False, 0, 0) if bits & _BLANK else (True, 1, 1)
        case Look():
            return True, 0, 0
        case Series(items):
            longest = length = 0
            unbroken = True
            for solid, least, word in map(_words, items):
                length = length + least if solid else 0
                unbroken = unbroken and solid
                longest = max(longest, length, word)
            return unbroken, length, longest
        case Choice(items):
            parts = [_words(item) for item in items]
            least = min(least for _, least, _ in parts)
            return all(solid for solid, _, _ in parts), least, min(word for _, _, word in parts)
        case Repeat(item, least, _):
            solid, length, word = _words(item)
            return solid, length * least, length * least if solid else word if least else 0


def assertions(node: Node) -> frozenset[str]:
    """Every `Look.at` in it."""
    match node:
        case Chars():
            return frozenset()
        case Look(at):
            return frozenset({at})
        case Series(items) | Choice(items):
            return frozenset().union(*(assertions(item) for item in items))
        case Repeat(item):
            return assertions(item)


def for_hyperscan(node: Node) -> str:
    """An expression over bytes that is found in the UTF-8 of every text in which re2 finds this one, and maybe in more.

    It begins with one of `literals`. What Vectorscan (as 5.4.12 in the wheels)
    overlooks are the places where it leaps ahead to the next of a few pairs of
    bytes: a search that only literals can start, with nothing behind them that
    goes on over almost any byte and no second literal to start from, has none.
    Not for texts with a code point of `FOLDING`; the text must end in `PADDING`.
    Raises `NotUnderstood` where no literal is known.
    """
    if not literals(node):
        raise NotUnderstood("no literal is known")
    items, _ = _led(node)
    while _optional(items[-1]):
        del items[-1]
    last = items[-1]
    if isinstance(last, Repeat):
        items[-1] = Repeat(last.item, last.least, last.least)
    return "".join(_bytes_of(item) for item in items)


def byte_width(node: Node) -> int | None:
    """No match is longer than this in UTF-8."""
    match node:
        case Chars(ascii=bits, wide=wide):
            folds = any(bits >> letter & 1 and bits >> letter - 32 & 1 for letter in FOLDING.values())
            return 4 if wide else 3 if folds else 1
        case Look():
            return 0
        case Series(items):
            return _sum([byte_width(item) for item in items])
        case Choice(items):
            widths = [byte_width(item) for item in items]
            return None if None in widths else max(w or 0 for w in widths)
        case Repeat(item, _, most):
            each = byte_width(item)
            return 0 if each == 0 else None if most is None or each is None else each * most


def literals(node: Node) -> frozenset[bytes]:
    """Every match holds one of these when its ASCII is in lower case and `FOLDING` replaced; empty if none is known.

    None is shorter than three bytes, and none is one byte over and over.
    """
    return min(_literal_sets(node), key=_worse, default=frozenset())


def holds_one_of(node: Node, words: Sequence[str]) -> bool:
    """Surely every match does, in the sense of `literals`. False may mean that it is not known."""
    wanted = [word.encode() for word in words]
    return any(all(any(word in some for word in wanted) for some in choices) for choices in _literal_sets(node))


def _sum(widths: list[int | None]) -> int | None:
    return None if None in widths else sum(w or 0 for w in widths)


def _worse(some: frozenset[bytes]) -> tuple[int, int]:
    return -min(map(len, some)), len(some)


@lru_cache(maxsize=4096)  # asked of the same nodes again and again: on all ways down to them, and by many patterns
def _literal_sets(node: Node) -> tuple[frozenset[bytes], ...]:
    match node:
        case Series():
            return tuple(some for _, _, some in _places(_flat(node)))
        case Choice(items):
            best = [literals(item) for item in items]
            together = frozenset().union(*best)
            return (together,) if all(best) and len(together) <= _MOST_LITERALS else ()
        case Repeat(item, least, _) if least:
            return _literal_sets(item)
        case _:
            return ()


def _places(items: list[Node]) -> list[tuple[int, int, frozenset[bytes]]]:
    """From where to where among the items which literals are."""
    found: list[tuple[int, int, frozenset[bytes]]] = []
    for start, stop, run in _runs(items):
        if len(set(run)) > 1:
            found.append((start, stop, frozenset({run})))
    for index, item in enumerate(items):
        found.extend((index, index + 1, some) for some in _literal_sets(item))
    return found


def _runs(items: list[Node]) -> list[tuple[int, int, bytes]]:
    found: list[tuple[int, int, bytes]] = []
    start, run = 0, b""
    for index, item in enumerate([*items, Look("A")]):
        letter = _letter(item)
        if letter is not None:
            start = start if run else index
            run += letter
            continue
        if len(run) >= _SHORTEST_LITERAL:
            found.append((start, index, run))
        run = b""
    return found


def _led(node: Node, *, to_the_end: bool = False) -> tuple[list[Node], bool]:
    """What is left of it from its literals on, and whether that reaches its end: the best ones, or those with which it
    does."""
    match node:
        case Choice(items):
            parts = [_led(item, to_the_end=True) for item in items]
            return [Choice(tuple(_series(part) for part, _ in parts))], all(whole for _, whole in parts)
        case Repeat(item) if not isinstance(item, Chars):
            return _led(item)[0], False
    flat = _flat(node)
    places = sorted(_places(flat), key=lambda place: _worse(place[2]))
    found = [_led_from(flat, start, stop) for start, stop, _ in (places if to_the_end else places[:1])]
    return next((one for one in found if one[1]), found[0])


def _led_from(flat: list[Node], start: int, stop: int) -> tuple[list[Node], bool]:
    begins = {begin for begin, _, _ in _runs(flat)}
    led, whole = (flat[start:stop], True) if start in begins else _led(flat[start])
    if not whole:
        return led, False
    for index in range(stop, len(flat)):
        if index in begins or _goes_on(flat[index]) or _literal_sets(flat[index]):
            return led, False
        led.append(flat[index])
    return led, True


def _flat(node: Node) -> list[Node]:
    if isinstance(node, Series):
        return [leaf for item in node.items for leaf in _flat(item)]
    if (
        isinstance(node, Repeat)
        and node.least == node.most
        and node.least <= _LONGEST_REPEATED
        and isinstance(node.item, Chars)
    ):
        return [node.item] * node.least
    return [node]


def _letter(node: Node) -> bytes | None:
    """The one byte sequence this code point is, in lower case."""
    if not isinstance(node, Chars):
        return None
    if node.exact is not None:
        return chr(node.exact).encode() if node.exact not in FOLDING else None
    if node.wide or not node.ascii:
        return None
    highest = 1 << node.ascii.bit_length() - 1
    letter = bytes([node.ascii.bit_length() - 1])
    return letter.lower() if node.ascii == highest or (node.ascii == _fold(highest) and letter.isalpha()) else None


def _goes_on(node: Node) -> bool:
    """Over almost any byte, or over one and the same."""
    match node:
        case Repeat(Chars(wide=True), _, most) if most is None or most > _SHORT_GAP:
            return True
        case Repeat(item, least, _):
            return _goes_on(item) or (_letter(item) is not None and least >= _SHORTEST_LITERAL)
        case Series(items) | Choice(items):
            return any(_goes_on(item) for item in items)
        case _:
            return False


def _optional(node: Node) -> bool:
    return width(node)[0] == 0 and not assertions(node) & {"A", "b", "B"}


def _positions(node: Node) -> int:
    match node:
        case Chars():
            return 1
        case Look():
            return 1
        case Series(items) | Choice(items):
            return sum(_positions(item) for item in items)
        case Repeat(item, least, most):
            return max(least, most or 0, 1) * _positions(item)


def _bytes_of(node: Node) -> str:
    match node:
        case Chars(exact=int() as code):
            return "(?:" + "".join(f"\\x{byte:02x}" for byte in chr(code).encode()) + ")"
        case Chars():
            return _byte_class(node) + ("{1,4}" if node.wide else "")
        case Look(at):
            # An end is not an end before the padding: it is left out, which only finds more.
            return {"A": r"\A", "b": r"\b", "B": r"\B"}.get(at, "")
        case Series(items):
            return "".join(_bytes_of(item) for item in items)
        case Choice(items):
            return "(?:" + "|".join(_bytes_of(item) for item in items) + ")"
        case Repeat(Chars(exact=None) as item, least, most):
            ends = most if most is None or not item.wide else 4 * most
            return _byte_class(item) + _count(min(least, _MAX_COUNT), None if (ends or 0) > _MAX_COUNT else ends)
        case Repeat(item, least, most):
            inner = _bytes_of(item)
            if not inner or most == 0:
                return ""
            if _positions(node) > _MAX_POSITIONS:
                least, most = min(least, 2), None
            return f"(?:{inner})" + _count(least, most)


def _count(least: int, most: int | None) -> str:
    if most is None:
        return {0: "*", 1: "+"}.get(least, f"{{{least},}}")
    return f"{{{least}}}" if least == most else f"{{{least},{most}}}"


@lru_cache(maxsize=1024)
def _byte_class(chars: Chars) -> str:
    spans: list[tuple[int, int]] = []
    code = 0
    while code < 128:
        if chars.ascii >> code & 1:
            end = code
            while end < 127 and chars.ascii >> (end + 1) & 1:
                end += 1
            spans.append((code, end))
            code = end
        code += 1
    if chars.wide:
        spans.append((0x80, 0xFF))
    if not spans:
        raise NotUnderstood("a class that holds nothing")
    return "[" + "".join(f"\\x{a:02x}" if a == b else f"\\x{a:02x}-\\x{b:02x}" for a, b in spans) + "]"


@dataclass(slots=True)
class _Modes:
    fold: bool = False
    lines: bool = False
    dot_all: bool = False
    lazy: bool = False


class _Parser:
    def __init__(self, expression: str, *, captures: bool) -> None:
        self.text = expression
        self.at = 0
        self.groups = 0
        self._captures = captures

    def choice(self, outer: _Modes, *, depth: int) -> Node:
        if depth > _MAX_DEPTH:
            raise NotUnderstood("groups nested too deep")
        modes = replace(outer)
        branches: list[Node] = []
        items: list[Node] = []
        while self.at < len(self.text) and self.text[self.at] != ")":
            if self.text[self.at] == "|":
                self.at += 1
                branches.append(_series(items))
                items = []
            else:
                self._piece(modes, items, depth)
        branches.append(_series(items))
        return branches[0] if len(branches) == 1 else Choice(tuple(branches))

    def _piece(self, modes: _Modes, items: list[Node], depth: int) -> None:
        character = self.text[self.at]
        self.at += 1
        match character:
            case "(":
                group = self._group(modes, depth)
                if group is not None:
                    items.append(group)
            case "[":
                items.append(self._bracket(modes))
            case ".":
                items.append(Chars(_ALL if modes.dot_all else _NOT_A_LINE_END, wide=True))
            case "^":
                items.append(Look("^" if modes.lines else "A"))
            case "$":
                items.append(Look("$" if modes.lines else "z"))
            case "\\":
                self._escape(modes, items)
            case "*" | "+" | "?":
                least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}[character]
                self._repeat(modes, items, least, most)
            case "{":
                counted = _REPEAT.match(self.text, self.at - 1)
                if counted is None:
                    items.append(_literal(ord("{"), modes))
                    return
                self.at = counted.end()
                least = int(counted[1])
                self._repeat(modes, items, least, (int(counted[3]) if counted[3] else None) if counted[2] else least)
            case _:
                items.append(_literal(ord(character), modes))

    def _repeat(self, modes: _Modes, items: list[Node], least: int, most: int | None) -> None:
        marked = self.text.startswith("?", self.at)
        self.at += marked
        if not items:
            raise NotUnderstood("a repetition of nothing")
        items[-1] = Repeat(items[-1], least, most, lazy=marked != modes.lazy)

    def _group(self, modes: _Modes, depth: int) -> Node | None:
        flags = _FLAGS.match(self.text, self.at)
        inner = modes
        if flags is not None:
            self.at = flags.end()
            if flags[3] == ")":
                _switch(modes, flags[1], flags[2])
                return None
            inner = replace(modes)
            _switch(inner, flags[1], flags[2])
            group = 0
        else:
            name = _NAME.match(self.text, self.at)
            if name is not None:
                self.at = name.end()
            elif self.text.startswith("?", self.at):
                raise NotUnderstood("an unknown kind of group")
            self.groups += 1
            group = self.groups
        node = self.choice(inner, depth=depth + 1)
        if not self.text.startswith(")", self.at):
            raise NotUnderstood("a group that is not closed")
        self.at += 1
        return Series((node,), group) if group and self._captures else node

    def _escape(self, modes: _Modes, items: list[Node]) -> None:
        if self.at == len(self.text):
            raise NotUnderstood("a lone backslash")
        character = self.text[self.at]
        if character == "Q":
            end = self.text.find("\\E", self.at)
            end = len(self.text) if end < 0 else end
            items.extend(_literal(ord(c), modes) for c in self.text[self.at + 1 : end])
            self.at = end + 2
        elif character == "C":
            raise MatchesBytes
        elif character in "AzbB":
            self.at += 1
            items.append(Look(character))
        else:
            bits, wide = self._class_escape() or (-1, False)
            if bits >= 0:
                items.append(Chars(_fold(bits) if modes.fold else bits, wide=wide))
            else:
                items.append(_literal(self._code(), modes))

    def _class_escape(self) -> tuple[int, bool] | None:
        """`\\d`, `\\pL` and their like, after the backslash."""
        character = self.text[self.at]
        if character in "dsw":
            self.at += 1
            return _PERL[character], False
        if character in "DSW":
            self.at += 1
            return _ALL & ~_PERL[character.lower()], True
        if character in "pP":
            return self._property()
        return None

    def _property(self) -> tuple[int, bool]:
        found = _PROPERTY.match(self.text, self.at)
        if found is None:
            raise NotUnderstood("an unknown property")
        self.at = found.end()
        name = found[1] or found[2]
        if name not in _CATEGORIES:
            raise NotUnderstood("a script")
        bits = sum(1 << c for c in range(128) if unicodedata.category(chr(c)).startswith(name))
        negated = (found[0][0] == "P") != ("^" in found[0])
        return (_ALL & ~bits if negated else bits), True

    def _code(self) -> int:
        """The code point an escape stands for, after the backslash."""
        character = self.text[self.at]
        if character in _CONTROL:
            self.at += 1
            return _CONTROL[character]
        if character in "01234567":
            digits = re.compile("[0-7]{1,3}").match(self.text, self.at)
        elif character == "x":
            self.at += 1
            digits = re.compile(r"\{[0-9A-Fa-f]+\}|[0-9A-Fa-f]{2}").match(self.text, self.at)
        elif character.isascii() and not character.isalnum():
            self.at += 1
            return ord(character)
        else:
            raise NotUnderstood("an unknown escape")
        if digits is None:
            raise NotUnderstood("an escape without digits")
        self.at = digits.end()
        return int(digits[0].strip("{}"), 16 if character == "x" else 8)

    def _bracket(self, modes: _Modes) -> Node:
        negated = self.text.startswith("^", self.at)
        self.at += negated
        bits, wide, first = 0, False, True
        while first or not self.text.startswith("]", self.at):
            if self.at >= len(self.text):
                raise NotUnderstood("a class that is not closed")
            first = False
            some, beyond = self._bracket_item(modes)
            bits |= some
            wide |= beyond
        self.at += 1
        if modes.fold:
            bits = _fold(bits)
        # What lies beyond ASCII is not told apart: a class that leaves something out may still hold the rest.
        return Chars(_ALL & ~bits, wide=True) if negated else Chars(bits, wide=wide)

    def _bracket_item(self, modes: _Modes) -> tuple[int, bool]:
        if self.text.startswith("[:", self.at):
            end = self.text.find(":]", self.at)
            name = self.text[self.at + 2 : end]
            if end >= 0 and name.removeprefix("^") in _POSIX:
                self.at = end + 2
                bits = _POSIX[name.removeprefix("^")]
                return (_ALL & ~(_fold(bits) if modes.fold else bits), True) if name.startswith("^") else (bits, False)
        if self.text.startswith("\\", self.at) and self.at + 1 < len(self.text):
            self.at += 1
            group = self._class_escape()
            if group is not None:
                return group
            low = self._code()
        else:
            low = ord(self.text[self.at])
            self.at += 1
        high = low
        if self.text.startswith("-", self.at) and self.at + 1 < len(self.text) and self.text[self.at + 1] != "]":
            self.at += 1
            if self.text[self.at] == "\\":
                self.at += 1
                high = self._code()
            else:
                high = ord(self.text[self.at])
                self.at += 1
        bits = (1 << min(high, 127) + 1) - (1 << low) if low < 128 else 0
        if modes.fold:
            bits |= sum(1 << letter for code, letter in FOLDING.items() if low <= code <= high)
        return bits, high > 127


def _switch(modes: _Modes, on: str, off: str | None) -> None:
    for letters, value in ((on, True), (off or "", False)):
        modes.fold = value if "i" in letters else modes.fold
        modes.lines = value if "m" in letters else modes.lines
        modes.dot_all = value if "s" in letters else modes.dot_all
        modes.lazy = value if "U" in letters else modes.lazy


def _series(items: list[Node]) -> Node:
    return items[0] if len(items) == 1 else Series(tuple(items))


def _literal(code: int, modes: _Modes) -> Chars:
    if code < 128:
        return Chars(_fold(1 << code) if modes.fold else 1 << code, wide=False)
    if not modes.fold:
        return Chars(0, wide=True, exact=code)
    return Chars(_fold(1 << FOLDING[code]) if code in FOLDING else 0, wide=True)


def _fold(bits: int) -> int:
    return bits | (bits & _UPPER) << 32 | (bits & _LOWER) >> 32


_CATEGORIES: Final = frozenset(
    category[:length]
    for category in {unicodedata.category(chr(code)) for code in range(0x3000)} | {"Co", "Cs"}
    for length in (1, 2)
)
