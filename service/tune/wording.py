"""What a terminal is shown: numbers for people, and texts of strangers that can do nothing to it."""

import sys
import unicodedata
from typing import TextIO

# Joins parts of one emoji, and letters in Persian.
_HARMLESS = frozenset("\u200c\u200d")


def plain(text: str, *, most: int = 300) -> str:
    """One line in which nothing moves a cursor, changes a colour or turns the direction: such signs are spelled out.

    Of a longer one the first `most` characters, and how many there are more.
    """
    shown = "".join(_visible(sign) for sign in text[:most])
    return shown if len(text) <= most else f"{shown}… ({len(text) - most:,} more characters)"


def paragraph(text: str, *, most: int = 1_500, indent: str = "    ") -> str:
    """The same of several lines, each indented."""
    lines = text[:most].splitlines() or [""]
    shown = "\n".join(indent + plain(line, most=most) for line in lines)
    return shown if len(text) <= most else f"{shown}\n{indent}… ({len(text) - most:,} more characters)"


def _visible(sign: str) -> str:
    if sign in _HARMLESS or unicodedata.category(sign) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
        return sign
    return " " if sign in "\t\n" else sign.encode("unicode_escape").decode()


def tell(text: str, to: TextIO | None = None, *, end: str = "\n") -> None:
    """Prints, also where the terminal has no such letters."""
    to = to or sys.stdout
    encoding = to.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=to, end=end, flush=True)


def percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def count(number: int, one: str, several: str = "") -> str:
    return f"{number:,} {one if number == 1 else several or one + 's'}"
