"""Placeholders that stand for values on their way upstream, and the way back.

`<EMAIL_7f3a9c>`: the kind, and a keyed hash of the value. The same value has
the same placeholder in every turn, worker and node with the same key. A text
that looks like a placeholder is itself a value, with a placeholder of its own:
so whatever looks like one upstream was issued here, and stands for one value.
"""

import json as json_library
import re
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b

from guardrails.redact import Edit, applied, label

_LEAST, _STEP, _MOST = 6, 4, 64
_NAME = r"[A-Z][A-Z0-9_]{0,47}_[0-9a-f]{6,64}"
_PLACEHOLDER = re.compile(rf"<({_NAME})>")
# In JSON `<` and `>` may be written as escapes; Go's encoder always does. An escaped backslash begins no escape.
_IN_JSON = re.compile(rf"\\\\|(?:<|\\u003[cC])({_NAME})(?:>|\\u003[eE])")
_OPEN = re.compile(r"<(?:[A-Z][A-Z0-9_]{0,48}[0-9a-f]{0,64})?\Z")
_ESCAPE_OPEN = r"\\(?:u(?:0(?:03?)?)?)?"
_OPEN_IN_JSON = re.compile(
    rf"(?:<|\\u003[cC])(?:[A-Z][A-Z0-9_]{{0,48}}[0-9a-f]{{0,64}}(?:{_ESCAPE_OPEN})?)?\Z|{_ESCAPE_OPEN}\Z"
)
_LONGEST = 1 + 48 + 1 + 64 + 1 + 10  # the last for two escapes


class Placeholders:
    """`revision` changes with the key: what was stored with other placeholders cannot be restored."""

    def __init__(self, key: bytes) -> None:
        if len(key) < 16:
            raise ValueError("the key of placeholders needs at least 16 bytes")
        self._key = blake2b(key, digest_size=32, person=b"placeholder").digest()
        self.revision = blake2b(self._key, digest_size=8, person=b"revision").hexdigest()

    def issue(self, kind: str, value: str, issued: dict[str, str]) -> str:
        """The placeholder of `value`, noted in `issued`. Where another value has it already, a longer one."""
        name = label(kind)
        digest = blake2b(f"{name}\0{value}".encode(), key=self._key, digest_size=_MOST // 2).hexdigest()
        for length in range(_LEAST, _MOST + 1, _STEP):
            placeholder = f"<{name}_{digest[:length]}>"
            if issued.setdefault(placeholder, value) == value:
                return placeholder
        raise AssertionError("two values with the same hash of 256 bits")

    def escapes(self, text: str, issued: dict[str, str], *, beside: Sequence[Edit] = ()) -> list[Edit]:
        """An edit for each thing in `text` that looks like a placeholder and that no edit of `beside` touches, which
        are in order."""
        edits: list[Edit] = []
        others = iter(beside)
        other = next(others, None)
        for found in _PLACEHOLDER.finditer(text) if "<" in text else ():
            while other is not None and other.end <= found.start():
                other = next(others, None)
            if other is None or found.end() <= other.start:
                kind = found[1].rpartition("_")[0]
                edits.append(Edit(found.start(), found.end(), self.issue(kind, found[0], issued)))
        return edits


def restore(text: str, issued: Mapping[str, str], *, json: bool = False) -> str:
    """`text` with the values back. Only what is in `issued` is restored. `json`: inside JSON, escaped as it needs."""
    return applied(text, restorations(text, issued, json=json))


def restorations(text: str, issued: Mapping[str, str], *, json: bool = False) -> list[Edit]:
    if not issued or ("<" not in text and not (json and "\\u003" in text)):
        return []
    edits = []
    for found in (_IN_JSON if json else _PLACEHOLDER).finditer(text):
        value = None if found[1] is None else issued.get(f"<{found[1]}>")
        if value is not None:
            written = json_library.dumps(value, ensure_ascii=False)[1:-1] if json else value
            edits.append(Edit(found.start(), found.end(), written))
    return edits


def open_prefix(text: str, issued: Iterable[str] | None = None, *, json: bool = False) -> int:
    """From where on the end of `text` may be the beginning of a placeholder; its length where nothing is open.

    With `issued` of one of those; without, and in JSON, of any. `text` never
    begins inside an escape, and so what is cut off from there does not either.
    """
    least = max(len(text) - _LONGEST, 0)
    if json:
        opened = _OPEN_IN_JSON.search(text, least)
        while opened is not None and opened[0].startswith("\\") and _is_escaped(text, opened.start()):
            opened = _OPEN_IN_JSON.search(text, opened.start() + 1)
        return len(text) if opened is None else opened.start()
    opened = _OPEN.search(text, least)
    if opened is None or (issued is not None and not any(one.startswith(opened[0]) for one in issued)):
        return len(text)
    return opened.start()


def _is_escaped(text: str, at: int) -> bool:
    before = text[:at]
    return (at - len(before.rstrip("\\"))) % 2 == 1
