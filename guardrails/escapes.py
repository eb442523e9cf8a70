"""Escapes as text: what a log or JSON inside a string writes for a new line, a quote or a colour."""

import re

_ESCAPE = re.compile(r"\\[nrt]|\\u00(?:0[9adAD]|2[02-7]|3[a-eA-E])|\x1b\[[0-9;]{0,12}m")
_SPACES = {"n": "\n", "r": "\n", "t": "\t"}


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
    meant = chr(int(written[2:], 16)) if len(written) > 2 else _SPACES[written[1]]
    return meant.rjust(len(written))
