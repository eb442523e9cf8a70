"""Personal data: addresses, accounts and numbers, by their format, their check digits and the words beside them."""

import re
import socket
from bisect import bisect_right
from collections.abc import Callable, Collection, Sequence
from functools import cache
from hashlib import sha256
from itertools import accumulate
from typing import Literal, NamedTuple

from guardrails import checksums, pii_patterns
from guardrails.patterns import Match, Pattern, PatternSet, opened
from guardrails.pii_patterns import NUMBERS, TOKENS, WORDS, Number
from guardrails.unfinished import Growing, Unfinished
from models.finding import Finding, Segment

# Whatever changes what is found, other than the patterns, raises it.
_LOGIC = 3
_LEAST = 0.5
_BEFORE = 40  # characters before a number, and after it, in which a word says what it is
_AFTER = 32
_EXTENSION_AFTER = 18  # of a phone number
_LONGEST_NUMBER = 40  # with its spaces; an IBAN of 34 has eight
_LONGEST_IBAN = 44
_LONGEST_LIST = 240  # of numbers, only the first of which has a word beside it
_LONGEST_RUN = 256  # of groups of digits that a stream waits for: more of it are no number
_LONGEST_ALONE = 64  # of a text that is nothing but a number
_CREDENTIALS_BEFORE = 80
_LONGEST_WIDE_LOCAL = 8  # the name in an address, where no space tells where it begins

_KINDS = frozenset(
    {number.kind for number in NUMBERS}
    | {token.kind for token in TOKENS}
    | {"email", "phone", "iban", "ip_address", "mac_address", "crypto_address", "date_of_birth"}
)
_NO_SPACES = frozenset({"email", "crypto_address"})


class PiiDetector:
    """`kinds` limits what is reported, not what is looked at: a card is not reported as a phone number because
    nobody asked for cards."""

    name = "pii"
    inline = True

    def __init__(self, kinds: Collection[str] | None = None) -> None:
        unknown = set(kinds or ()) - _KINDS
        if unknown:
            raise ValueError(
                f"no personal data is called {', '.join(sorted(unknown))}; known: {', '.join(sorted(_KINDS))}"
            )
        self.kinds = _KINDS if kinds is None else frozenset(kinds)
        self.reach: int | None = 0 if self.kinds <= _NO_SPACES else _LONGEST_IBAN + _AFTER
        self.context = _CREDENTIALS_BEFORE if self.kinds <= _NO_SPACES else _LONGEST_LIST + _BEFORE + _LONGEST_IBAN
        self._patterns = PatternSet(_PATTERNS)
        self.revision = _revision()

    async def detect(self, segments: Sequence[Segment]) -> Sequence[Finding]:
        return [
            Finding(segment.index, found.kind, found.start, found.end, found.confidence)
            for segment in segments
            for found in self._search(segment)
            if found.kind in self.kinds
        ]

    def open_from(self, text: str) -> int:
        """From where on `text` may be part of what is found, or the words after it that decide; its length where
        nothing is open."""
        least = max(0, len(text) - _LONGEST_RUN)
        end = _Text(Segment(0, text[least:], "assistant"))
        opened = _open_address(end)
        if not self.kinds <= _NO_SPACES:
            opened = min(opened, _unfinished().open_from(end.folded))
            if len(text) <= _LONGEST_ALONE and self._is_alone(end):
                opened = 0
        return least + opened

    def _is_alone(self, text: "_Text") -> bool:
        """Whether all so far is a number, or may be one: a word more, and it is not all there is."""
        if text.bare:
            return True
        said = text.plain.strip()
        return any(match.groups[0][1] - match.groups[0][0] >= len(said) for match in self._patterns.scan(said))

    def _search(self, segment: Segment) -> "list[_Found]":
        text = _Text(segment)
        found: list[_Found] = []
        for match in self._patterns.scan(text.plain):
            _LOOKS[match.pattern](text, match, found)
        return _resolved(found) if len(found) > 1 else found


class _Found(NamedTuple):
    start: int
    end: int
    kind: str
    confidence: float
    listed: int = -1  # where the list of such numbers begins that it is in


def _resolved(found: list[_Found]) -> list[_Found]:
    """Of those that overlap the surest, then the longest; in order."""
    found.sort()
    kept: list[_Found] = []
    first, end = 0, found[0].end
    for place, one in enumerate(found):
        if one.start >= end:
            kept += _best(found[first:place])
            first = place
        end = max(end, one.end)
    return kept + _best(found[first:])


def _best(found: list[_Found]) -> list[_Found]:
    if len(found) == 1:
        return found
    kept: list[_Found] = []
    for one in sorted(found, key=lambda f: (-f.confidence, f.start - f.end)):
        place = bisect_right(kept, one)
        if not (place and kept[place - 1].end > one.start) and not (place < len(kept) and kept[place].start < one.end):
            kept.insert(place, one)
    return kept


# Everything is looked for in ASCII of the same length, so that offsets are those of the original.


def _folds() -> dict[str, str]:
    import unicodedata

    folds = {chr(c): chr(c - 0xFEE0) for c in range(0xFF01, 0xFF5F) if chr(c) not in "，：；！？"}
    for zero in (0x660, 0x6F0, 0x966, 0x9E6, 0xE50):
        folds |= {chr(zero + i): str(i) for i in range(10)}
    for letter in map(chr, (*range(0xC0, 0x250), *range(0x1E00, 0x1F00))):
        base = unicodedata.normalize("NFKD", letter)[0]
        if base.isascii() and base.isalpha():
            folds[letter] = base
    folds |= dict(zip("ßøØæÆłŁđĐıœŒ", "soOaAlLdDioO", strict=True))
    folds |= dict.fromkeys(
        map(chr, (0xA0, 0x1680, *range(0x2000, 0x2010), 0x202F, 0x205F, 0x2060, 0x3000, 0xFEFF)), " "
    )
    folds |= dict.fromkeys(map(chr, (0xAD, *range(0x202A, 0x202F), *range(0x2066, 0x206A))), " ")
    folds |= dict.fromkeys(map(chr, (*range(0x2010, 0x2016), 0x2043, 0x2212, 0xFE58, 0xFE63)), "-")
    return folds | {"\ufe6b": "@", "\u2024": "."}


_FOLDS = _folds()
_FOLDED = re.compile("[" + "".join(map(re.escape, _FOLDS)) + "]")
_LETTER = re.compile(r"[A-Za-z]")
_WORD = re.compile(r"[a-z]+")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")


_SPEAKS: dict[str, list[tuple[list[str], str]]] = {}
_SPEAKS_ANYWHERE: list[tuple[str, str]] = []
for _kind, _phrases in WORDS.items():
    for _phrase in _phrases:
        if _phrase.isascii():
            _SPEAKS.setdefault(_phrase.split()[0], []).append((_phrase.split(), _kind))
        else:
            _SPEAKS_ANYWHERE.append((_phrase, _kind))


def _words(window: str) -> list[str]:
    if window.isspace() or not window:
        return []
    return _WORD.findall(_CAMEL.sub(" ", window).lower())


class _Text:
    __slots__ = ("_bare", "_near", "folded", "original", "plain", "role")

    def __init__(self, segment: Segment) -> None:
        self.original = self.folded = self.plain = opened(segment.text)
        self.role = segment.role
        self._bare: bool | None = None
        self._near: tuple[tuple[int, int], Collection[str]] = ((-1, -1), ())
        if not self.plain.isascii():
            self.folded = _FOLDED.sub(lambda m: _FOLDS[m[0]], self.plain)
            self.plain = self.folded.encode("ascii", "replace").decode("ascii")

    @property
    def bare(self) -> bool:
        """All there is, is numbers: what somebody answers who was asked for one. In a tool's fields it says nothing."""
        if self._bare is None:
            text = self.original
            self._bare = self.role in ("user", "assistant") and len(text) <= 64 and not any(map(str.isalpha, text))
        return self._bare

    def kinds_near(self, start: int, end: int) -> Collection[str]:
        """Of what a word speaks that stands before it, or after it on the same line."""
        if self._near[0] != (start, end):
            self._near = ((start, end), () if self.silent(start, end) else self._kinds_near(start, end))
        return self._near[1]

    def silent(self, start: int, end: int) -> bool:
        """No word stands beside it."""
        if self.original is not self.plain or _LETTER.search(self.plain, max(0, start - _BEFORE), start):
            return False
        return _LETTER.search(self.plain, end, end + _AFTER) is None

    def _kinds_near(self, start: int, end: int) -> Collection[str]:
        before = self.plain[max(0, start - _BEFORE) : start]
        words = _words(before)
        if words and start > _BEFORE and before[0].isalpha() and self.plain[start - _BEFORE - 1].isalpha():
            del words[0]
        words.append("")  # nothing spans the number
        words += _words(self.plain[end : end + _AFTER].partition("\n")[0])
        kinds: set[str] = set()
        for place, word in enumerate(words):
            for phrase, kind in _SPEAKS.get(word, ()):
                if words[place : place + len(phrase)] == phrase:
                    kinds.add(kind)
        if self.original is not self.plain:
            after = self.original[end : end + _AFTER].partition("\n")[0]
            window = self.original[max(0, start - _BEFORE) : start] + "\n" + after
            if not window.isascii():
                window = window.lower()
                kinds.update(kind for phrase, kind in _SPEAKS_ANYWHERE if phrase in window)
        return kinds

    def near(self, kind: str, start: int, end: int) -> bool:
        return kind in self.kinds_near(start, end)

    def near_phone(self, start: int, end: int) -> "bool | Literal['weak'] | None":
        """True beside a word that says so, False beside one that says something else, None where there is neither.

        The nearest before it on its line decides; a label may stand at the end
        of the line before, or right after the number.
        """
        earlier, _, line = self.plain[max(0, start - _BEFORE) : start].rpartition("\n")
        words = _words(line)
        if words and words[-1] in pii_patterns.PHONE_WORDS_AFTER:
            return True
        verdict = _nearest_phone_word(words)
        if verdict is not None:
            return verdict
        if not words:
            above = earlier.rstrip().rpartition("\n")[2]
            if _nearest_phone_word(_words(above)):
                return True
        after = _words(self.plain[end : end + _AFTER].partition("\n")[0])
        while after and after[0] in pii_patterns.BETWEEN_WORDS:
            del after[0]
        if after and after[0] in pii_patterns.PHONE_WORDS_AFTER:
            return True
        if self.original is not self.plain:
            window = self.original[max(0, start - _BEFORE) : start].lower()
            if any(phrase in window for phrase in pii_patterns.PHONE_PHRASES):
                return True
        return "weak" if not pii_patterns.WEAK_PHONE_WORDS.isdisjoint(words) else None

    def glued_before(self, start: int) -> bool:
        """The tail of a longer token: a7f3-123456789."""
        return start > 0 and (
            self.plain[start - 1] in _WORD_CHARS or bool(_TAIL.search(self.plain, max(0, start - 16), start))
        )

    def glued_after(self, end: int) -> bool:
        return bool(_HEAD.match(self.plain, end))


def _nearest_phone_word(words: list[str]) -> bool | None:
    for word in reversed(words):
        if word in pii_patterns.PHONE_WORDS:
            return True
        if word in pii_patterns.NOT_PHONE_WORDS:
            return False
    return None


_WORD_CHARS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")
_TAIL = re.compile(r"[A-Za-z]\d[A-Za-z0-9]*[-_]\Z|\d[A-Za-z]+[-_]\Z|[0-9a-f]{3,}-\Z")
_HEAD = re.compile(r"[A-Za-z0-9_]|-[A-Za-z]*\d")

_Look = Callable[[_Text, Match, list[_Found]], None]


# Electronic mail (RFC 5321; RFC 6531 where the letters are not ASCII)

_LOCAL_BACKWARDS = re.compile(r"[A-Za-z0-9_%+&'~.\-]{1,64}")
_LOCAL_ANY_BACKWARDS = re.compile(r"[\w%+&'~.\-]{1,64}")
_DOMAIN = re.compile(r"[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})+")
_DOMAIN_ANY = re.compile(r"[^\W_](?:[\w-]{0,62})(?:[.\u3002][\w-]{1,63})+")
_HOST = re.compile(r"[\w.\u3002-]*")
_GLUED_TOP = re.compile(r"[a-z]{2,}(?=[A-Z][a-z])")  # ...@example.comThen
_CREDENTIALS = re.compile(r"://[^\s/]*\Z")


def _email(text: _Text, match: Match, found: list[_Found]) -> None:
    plain, original = text.plain, text.original
    at = plain.index("@", match.start)
    start = _local_start(plain, original, at)
    end = _domain_end(plain, original, at + 1)
    if start >= at or not end or plain[start:at] == "git":
        return
    if _CREDENTIALS.search(plain, max(0, start - _CREDENTIALS_BEFORE), start) and not plain.startswith(
        "mailto", max(0, start - 9)
    ):
        return  # the user of a URL
    found.append(_Found(start, end, "email", 1.0))


def _local_start(plain: str, original: str, at: int) -> int:
    """Where the name before `at` begins. Scripts without spaces belong to it only right before it."""
    backwards = original[max(0, at - 64) : at][::-1]
    local = _LOCAL_BACKWARDS.match(plain[max(0, at - 64) : at][::-1])
    length = local.end() if local else 0
    if original is not plain and length < len(backwards):
        beyond = backwards[length]
        if not length and _without_spaces(beyond):
            wide = _LOCAL_ANY_BACKWARDS.match(backwards[:_LONGEST_WIDE_LOCAL])
            length = wide.end() if wide else 0
        elif beyond.isalpha() and not _without_spaces(beyond):
            wide = _LOCAL_ANY_BACKWARDS.match(backwards)
            length = wide.end() if wide else 0
            length = next((i for i, c in enumerate(backwards[:length]) if _without_spaces(c)), length)
    start = at - length
    while start < at and original[start] in "-.&'~%+":
        start += 1
    return start if start < at and original[at - 1] != "." else at


def _open_address(text: _Text) -> int:
    """Of those in ASCII nothing is open: a stream is not cut in a word."""
    plain, original = text.plain, text.original
    if plain is original:
        return len(plain)
    at = plain.rfind("@")
    if at >= 0 and _HOST.fullmatch(original, at + 1):
        return _local_start(plain, original, at)
    local = _LOCAL_ANY_BACKWARDS.match(original[-_LONGEST_WIDE_LOCAL:][::-1])
    return len(original) - local.end() if local and _without_spaces(original[-1]) else len(original)


def _domain_end(plain: str, original: str, start: int) -> int:
    """0 where no host name begins there."""
    for pattern in (_DOMAIN, _DOMAIN_ANY):
        name = pattern.match(plain if pattern is _DOMAIN else original, start, start + 254)
        if not name:
            continue
        end = name.end()
        if pattern is _DOMAIN and original is not plain and end < len(original):
            beyond = original[end]
            if plain[end] == "?" and beyond.isalpha() and not _without_spaces(beyond):
                continue
        labels = name[0].rstrip("-.").split(".") if pattern is _DOMAIN else re.split("[.\u3002]", name[0].rstrip("-"))
        while len(labels) > 1 and not _is_top(labels):
            labels.pop()
        glued = _GLUED_TOP.match(labels[-1])
        if glued:
            labels[-1] = glued[0]
        if len(labels) > 1 and all(label and label[0] != "-" and label[-1] != "-" for label in labels):
            return start + sum(map(len, labels)) + len(labels) - 1
    return 0


def _is_top(labels: list[str]) -> bool:
    top, before = labels[-1], labels[-2]
    if top.lower().startswith("xn--"):
        return True
    if len(top) < 2 or not top.isalpha() or top.lower() in pii_patterns.FILE_SUFFIXES:
        return False
    return not (top[0].isupper() and top[1:].islower() and before.islower())  # ...@example.com.Then


def _without_spaces(c: str) -> bool:
    """Han, kana, Hangul, Thai, Lao, Khmer, Myanmar: a word does not end at a space there."""
    return "\u2e80" <= c <= "\uffdc" or "\u0e00" <= c <= "\u109f" or "\u1780" <= c <= "\u17ff" or c > "\U0001ffff"


# Internet and hardware addresses

_ZONE = re.compile(r"%[A-Za-z0-9_.-]{1,15}")
_PREFIX = re.compile(r"/(\d{1,3})(?!\d)")
_SLICE = re.compile(r"[\w\])]\[\Z")
_NOT_ADDRESS_BEFORE = re.compile(
    r"(?i)(?:\b(?:v|ver|vers|version|release|build|section|chapter)\.?[ :=]{0,2}|[a-z]/|[=<>~!]= ?)\Z"
)


def _ipv4(text: _Text, match: Match, found: list[_Found]) -> None:
    plain, start, end = text.plain, match.start, match.end
    parts = plain[start:end].split(".")
    if any(int(part) > 255 or (len(part) > 1 and part[0] == "0") for part in parts):
        return
    before = plain[start - 1] if start else " "
    if before in _WORD_CHARS or before == "." or (before == "-" and start > 1 and plain[start - 2] in _WORD_CHARS):
        return
    after = plain[end : end + 2]
    if after[:1] in _WORD_CHARS and after:
        return
    if after[:1] == "." and after[1:].isdigit() and parts[:2] != ["192", "168"]:
        return  # an object identifier, a section
    if after[:1] == "-" and after[1:] in _WORD_CHARS and not after[1:].isdigit():
        return  # 1.2.3.4-beta
    if _NOT_ADDRESS_BEFORE.search(plain, max(0, start - 12), start):
        return
    found.append(_Found(start, _with_prefix(plain, end, 32), "ip_address", 0.9))


def _with_prefix(plain: str, end: int, longest: int) -> int:
    prefix = _PREFIX.match(plain, end)
    return prefix.end() if prefix and int(prefix[1]) <= longest else end


def _ipv6(text: _Text, match: Match, found: list[_Found]) -> None:
    plain, start, end = text.plain, match.start, match.end
    if end - start > 48:
        return
    while end > start and plain[end - 1] == ".":
        end -= 1
    if end - start > 2 and plain[end - 1] == ":" and plain[end - 2] != ":":
        end -= 1
    address = plain[start:end]
    try:
        socket.inet_pton(socket.AF_INET6, address)
    except (OSError, ValueError):  # ValueError: a NUL
        return
    if start and (plain[start - 1] in _WORD_CHARS or plain[start - 1] == ":"):
        return
    if end < len(plain) and (plain[end] in _WORD_CHARS or plain[end] == ":"):
        return
    if not _tells(address) and not (
        text.original.strip().split("/")[0] == address or text.near("ip_address", start, end)
    ):
        return
    if _SLICE.search(plain, max(0, start - 2), start):
        return  # items[::2]
    zone = _ZONE.match(plain, end)
    end = zone.end() if zone else _with_prefix(plain, end, 128)
    found.append(_Found(start, end, "ip_address", 0.9))


def _tells(address: str) -> bool:
    """Not as short as what programming languages write with colons."""
    if address == "::1" or "." in address:
        return True
    groups = [group for group in address.split(":") if group]
    if not any(map(str.isdigit, address)):
        return False
    return len(groups) > 2 or (bool(groups) and len(groups[0]) > 2 and not address.startswith("::"))


def _mac(text: _Text, match: Match, found: list[_Found]) -> None:
    plain, start, end = text.plain, match.start, match.end
    address = plain[start:end]
    sign = address[4] if address[4] == "." else address[2]
    if address.count(sign) not in (5, 2) or {c for c in address if c in ":-."} != {sign}:
        return
    octets = address.replace(sign, "").lower()
    if octets in ("0" * 12, "f" * 12):
        return
    for beside in (plain[start - 2 : start][::-1] if start > 1 else plain[:start], plain[end : end + 2]):
        if beside[:1] in _WORD_CHARS and beside:
            return
        if beside[:1] == sign and beside[1:] in _WORD_CHARS and len(beside) == 2:
            return
    if sign != ":" and octets.isdigit() and not text.near("mac_address", start, end):
        return
    found.append(_Found(start, end, "mac_address", 0.9))


# Accounts


def _iban(text: _Text, match: Match, found: list[_Found]) -> None:
    plain, start = text.plain, match.start
    if start and plain[start - 1] in _WORD_CHARS:
        return
    length = checksums.IBAN_LENGTHS.get(plain[start : start + 2].upper(), 0)
    end, left = start, length
    limit = min(len(plain), start + _LONGEST_IBAN)
    while left and end < limit:
        c = plain[end]
        if c in " -" and end + 1 < limit and plain[end + 1] in _WORD_CHARS:
            end += 1
            continue
        if c == "_" or c not in _WORD_CHARS:
            return
        end += 1
        left -= 1
    if left or not length or (end < len(plain) and plain[end] in _WORD_CHARS):
        return
    if "-" in plain[start:end] and any(len(group) != 4 for group in plain[start:end].split("-")[:-1]):
        return
    if checksums.iban(plain[start:end].replace(" ", "").replace("-", "").upper()):
        found.append(_Found(start, end, "iban", 1.0))


def _wallet(text: _Text, match: Match, found: list[_Found]) -> None:
    plain, start, end = text.plain, match.start, match.end
    address = plain[start:end]
    if (start and plain[start - 1] in _WORD_CHARS) or (end < len(plain) and plain[end] in _WORD_CHARS):
        return
    segwit = address[2:4].lower() in ("1q", "1p", "c1")
    if address[:2] == "0x" or (checksums.bech32 if segwit else checksums.base58check)(address):
        found.append(_Found(start, end, "crypto_address", 0.9))


# Dates of birth

_MONTHS = [
    "jan",
    "feb",
    "mar",
    "apr",
    "may",
    "jun",
    "jul",
    "aug",
    "sep",
    "oct",
    "nov",
    "dec",
    "mai",
    "okt",
    "dez",
    "ene",
    "abr",
    "ago",
    "dic",
    "fev",
    "gen",
    "mag",
    "giu",
    "lug",
    "set",
    "ott",
    "dez",
    "avr",
    "juin",
    "juil",
    "aou",
]
_BORN = re.compile(
    r"[^0-9\n]{0,24}?\b(\d{4}[-./]\d{1,2}[-./]\d{1,2}|\d{1,2}[-./ ]\d{1,2}[-./ ]\d{4}|\d{1,2}[-./]\d{1,2}[-./]\d{2}|"
    rf"\d{{1,2}}(?:st|nd|rd|th|\.)? ?(?:of |de )?(?:{'|'.join(_MONTHS)})[a-z]{{0,7}}\.?,? (?:de )?\d{{4}}|"
    rf"(?:{'|'.join(_MONTHS)})[a-z]{{0,7}}\.? \d{{1,2}}(?:st|nd|rd|th)?,? \d{{4}})\b",
    re.IGNORECASE,
)


def _birth(text: _Text, match: Match, found: list[_Found]) -> None:
    if not _GROUPS.search(text.plain, match.end, match.end + 40):
        return
    born = _BORN.match(text.plain, match.end, match.end + 64)
    if born and not _HEAD.match(text.plain, born.end()):
        found.append(_Found(born.start(1), born.end(1), "date_of_birth", 0.85))


# Letters and digits


def _token(token: pii_patterns.Token) -> _Look:
    def look(text: _Text, match: Match, found: list[_Found]) -> None:
        start, end = match.start, match.end
        written = text.plain[start:end]
        if text.glued_before(start) or text.glued_after(end):
            return
        kept = written.upper() if token.kind == "fi_hetu" else "".join(filter(str.isalnum, written)).upper()
        if token.kind == "fi_hetu":
            kept = kept[:6] + kept[7:]
        if not token.check(kept):
            return
        near = text.near(token.kind, start, end)
        if token.alone and (near or written.upper() == written or text.original.strip() == written):
            found.append(_Found(start, end, token.kind, 0.95 if near else 0.7))
        elif near:
            found.append(_Found(start, end, token.kind, 0.8))

    return look


# Digits in groups


def _coded(shape: str) -> str:
    return "".join(chr(64 + int(part)) if part.isdigit() else part for part in re.findall(r"\d+|\D", shape))


_RULES: dict[str, tuple[list[Number], list[Number]]] = {}
for _number_known in NUMBERS:
    for _column, _shapes in enumerate((_number_known.alone, _number_known.nearby)):
        for _shape in filter(None, _shapes.split("|")):
            _RULES.setdefault(_coded(_shape), ([], []))[_column].append(_number_known)
# Every shape that a longer one begins with.
_STARTING = {
    shape: [(own, alone, nearby) for own, (alone, nearby) in _RULES.items() if shape.startswith(own)]
    for shape in _RULES
}
_SHAPES = re.compile("(?=(" + "|".join(re.escape(shape) for shape in sorted(_RULES, key=len, reverse=True)) + "))")
_GROUPS = re.compile(r"\d+")
_BETWEEN = re.compile(r"\D+")
_LENGTHS = [chr(64 + length) if length <= 26 else "`" for length in range(27)]


_SIGNS = frozenset(" -./")


def _digits(text: _Text, match: Match, found: list[_Found]) -> None:
    """A run of groups of digits: the windows in it that have the shape of a number, and what may be a phone number."""
    plain = text.plain
    start, end = match.start, match.end
    first_sign = plain[start]
    while not plain[start].isdigit():
        start += 1
    calendar = _CALENDAR.match(plain, start, end)
    if calendar and end - calendar.end() < 8:
        return  # with an hour, or the beginning of one
    groups = _GROUPS.findall(plain, start, end)
    letters = [_LENGTHS[length] if length < 27 else "`" for length in map(len, groups)]
    glued = text.glued_before(start)
    if glued:
        letters[0] = "@"
    if text.glued_after(end):
        letters[-1] = "@"
    if len(groups) == 1:
        if letters[0] in _RULES:
            _number(text, letters[0], 0, letters[0], start, end, found)
    else:
        between = _BETWEEN.findall(plain, start, end)
        coded = [""] * (2 * len(groups) - 1)
        coded[::2] = letters
        coded[1::2] = [sign if sign in _SIGNS else "?" for sign in between]
        key = "".join(coded)
        starts: list[int] = []
        for window in _SHAPES.finditer(key):
            if not starts:
                widths = [len(group) + len(sign) for group, sign in zip(groups, [*between, ""], strict=True)]
                starts = list(accumulate(widths, initial=start))
            first = window.start() // 2
            last = first + len(window[1]) // 2
            _number(
                text, window[1], window.start(), key, starts[first], starts[last] + len(groups[last]), found, starts
            )
    if not glued and not (len(groups) == 1 and first_sign != "+" and not text.bare and text.silent(start, end)):
        _phones(text, match.start, end, found)


def _number(
    text: _Text,
    shape: str,
    at: int,
    key: str,
    start: int,
    end: int,
    found: list[_Found],
    starts: Sequence[int] = (),
) -> None:
    """`shape` stands at `at` in `key`, the whole run; shorter ones that begin there are tried too."""
    for own, alone, nearby in _STARTING[shape]:
        size = len(own)
        stop = end if size == len(shape) else starts[(at + size) // 2] + ord(own[-1]) - 64
        crowd = _crowd(key, at, own) if size < len(key) else ""
        if crowd == "part":
            continue
        kinds = text.kinds_near(start, stop)
        last, listed = _listed(start, found)
        if not kinds and not last and (crowd or (not alone and not text.bare)):
            continue
        digits = "".join(_GROUPS.findall(text.plain, start, stop))
        for number in alone:
            near = number.kind in kinds or number.kind == last
            if (near or not crowd) and number.check(digits):
                sure = 0.95 if near else (0.75 if number.checked else 0.65)
                begins = listed if number.kind == last and number.kind not in kinds else start
                found.append(_Found(start, stop, number.kind, sure, begins))
        bare = not crowd and text.bare
        if not kinds and not last and not bare:
            continue
        for number in nearby:
            near = number.kind in kinds or number.kind == last
            if (near or (bare and number.bare)) and number.check(digits):
                sure = (0.85 if near else 0.6) if number.checked else (0.7 if near else _LEAST)
                begins = listed if number.kind == last and number.kind not in kinds else start
                found.append(_Found(start, stop, number.kind, sure, begins))


def _listed(start: int, found: Sequence[_Found]) -> tuple[str, int]:
    """The kind of the number right before it, and where the list begins that they are in."""
    if not found or not 0 <= start - found[-1].end <= 8:
        return "", -1
    begins = found[-1].start if found[-1].listed < 0 else found[-1].listed
    return (found[-1].kind, begins) if start - begins <= _LONGEST_LIST else ("", -1)


def _crowd(key: str, at: int, shape: str) -> str:
    """`part` where the signs beside it are its own: a longer number; `table` where it is one of many alike."""
    signs = shape[1::2]
    before, after = key[at - 1 : at] if at else "", key[at + len(shape) : at + len(shape) + 1]
    for sign in (before, after):
        if sign in ("-", ".", "/") and (sign in signs or (not signs and sign != "/")):
            return "part"
    if " " in (before, after) and " " in signs:
        beside = (key[at - 2] if before else "", key[at + len(shape) + 1] if after else "")
        if beside[0] == shape[0] or beside[1] == shape[-1]:
            return "table"
    return ""


# Phone numbers: E.164, national formats, and other digits only beside a word

_SPACES = re.compile(r" {2,}")
_DAY = r"(?:0?[1-9]|[12]\d|3[01])"
_MONTH = r"(?:0?[1-9]|1[0-2])"
_CALENDAR = re.compile(
    rf"(?<!\d)(?:(?:19|20)\d\d([-./ ]){_MONTH}\1{_DAY}|{_DAY}([-./]){_DAY}\2(?:19|20)\d\d|"
    r"(?:19|20)\d\d ?[-/] ?(?:19|20)\d\d)(?!\d)"
)
_BOOK = re.compile(r"97[89](?:[ -]?\d){10}$|\d[ -]\d{2,7}[ -]\d{1,7}[ -]\d$")
_NORTH_AMERICA = re.compile(r"(?:1[-. ])?(?:\([1-9]\d\d\)[-. ]{0,3}|([1-9]\d\d)[-./ ])(\d{3})([-. ])(\d{4})$")
_NORTH_AMERICA_INSIDE = re.compile(
    r"(?<![\d.-])(?:\([2-9]\d\d\) ?|[2-9]\d\d([-.]))[2-9]\d\d(?(1)\1|[-.])\d{4}(?![\d-])"
)
_AREA = re.compile(r"\((0?[1-9]\d{0,3})\)[ -]?\d{2,}[-. ]?\d{2,}[-. ]?\d*$")
_TRUNK = re.compile(r"0[1-9]\d{0,4}(?:(?:[ /]|-|(\.))(?=\d\d)[\d]+)(?:[ .-]\d{2,})*$")
_BRAZIL = re.compile(r"\(?[1-9]\d\)? ?9\d{4}-\d{4}$")
_PAIRS = re.compile(r"\d\d(?:[ .-]\d\d){5,}$")
_SOCIAL_SECURITY = re.compile(r"\d{3}([-. ])\d{2}\1\d{4}$")
_ZIP = re.compile(r"\d{5}-\d{4}$")
_QUAD = re.compile(r"\d{1,3}(?:\.\d{1,3}){3}$")
_EXTENSION = re.compile(r"(?i) {0,2}(?:x|ext\.?|extension|durchwahl|#) ?\d{1,6}(?![a-z0-9])")
_MONEY = frozenset("$€£¥₹₩₽₺")


def _phones(text: _Text, start: int, end: int, found: list[_Found]) -> None:
    plain = text.plain
    if end - start <= _LONGEST_NUMBER and "  " not in plain[start:end]:
        _phone(text, start, end, True, found)
        return
    at = start
    for gap in [*_SPACES.finditer(plain, start, end), None]:
        until = gap.start() if gap else end
        if until - at <= _LONGEST_NUMBER:
            _phone(text, at, until, until == end, found)
        at = gap.end() if gap else end


def _phone(text: _Text, start: int, end: int, last: bool, found: list[_Found]) -> None:
    plain = text.plain
    raw = plain[start:end]
    while raw and ("(" in raw) != (")" in raw):
        start += raw.index(")") + 1 if ")" in raw else raw.index("(") + 1
        while start < end and plain[start] in " -./":
            start += 1
        raw = plain[start:end]
    plus = "+" in raw[:2]
    while plus and sum(map(str.isdigit, raw)) > 15 and " " in raw:
        raw = raw.rpartition(" ")[0].rstrip(" -./()")
        end, last = start + len(raw), False
    strength = _strength(raw, plus=plus)
    if strength < 0.5 and not plus:
        inside = _NORTH_AMERICA_INSIDE.search(raw)
        if inside:
            start, end, strength = start + inside.start(), start + inside.end(), 0.7
    if not strength or (start and plain[start - 1] in _WORD_CHARS):
        return
    if last and end < len(plain):
        extension = _EXTENSION.match(plain, end)
        if extension:
            end = extension.end()
        elif (
            text.glued_after(end)
            or plain[end] in "%="
            or text.original[end] in _MONEY
            or (strength < 0.9 and plain[end] in ":," and plain[end + 1 : end + 2].isdigit())
        ):
            return
    verdict = text.near_phone(start, end)
    if start and strength < 0.9:
        before = text.original[start - 1]
        if before in _MONEY or (before in "#=/.," and not verdict):
            return
    if verdict == "weak" and raw.isdigit() and not 8 <= len(raw) <= 12:
        return
    if verdict == "weak":
        strength = max(0.6, strength)  # less than a number whose own name stands there
    elif verdict:
        strength = min(0.95, max(0.7, strength + 0.15))
    elif strength < _LEAST and text.bare and _answers(raw):
        strength = _LEAST
    elif (verdict is False and strength < 0.8) or strength < _LEAST:
        return
    found.append(_Found(start, end, "phone", strength))


def _answers(raw: str) -> bool:
    """Long enough for a phone number that is all somebody said."""
    if _PAIRS.match(raw) or _ZIP.match(raw):
        return False
    return 9 <= sum(map(str.isdigit, raw)) <= 12 and (not raw.isdigit() or (raw[0] == "0" and len(raw) in (10, 11)))


def _strength(raw: str, *, plus: bool) -> float:
    """How much its form alone says; 0 is never a phone number, below 0.5 only beside a word."""
    digits = "".join(_GROUPS.findall(raw))
    if not 7 <= len(digits) <= 15:
        return 0
    if plus:
        digits = digits.replace("0", "", 1) if "(0)" in raw else digits
        code = next((digits[:n] for n in (1, 2, 3) if digits[:n] in pii_patterns.CALLING_CODES), "")
        return 0.9 if code and (len(digits) == 11 if code in ("1", "7") else len(digits) >= 8) else 0
    if (
        _CALENDAR.search(raw)
        or _BOOK.match(raw)
        or _QUAD.match(raw)
        or _SOCIAL_SECURITY.match(raw)
        or len(set(digits)) < 3
        or raw.count(".") > 4
    ):
        return 0
    if raw.isdigit():
        return 0 if raw in "01234567890123456789" or raw in "98765432109876543210" else 0.2
    if raw.count(".") == 1 and raw.replace(".", "").isdigit() and raw.index(".") != 3:
        return 0  # 40.7127
    if digits[:2] == "00":
        country = any(digits[2 : 2 + n] in pii_patterns.CALLING_CODES for n in (1, 2, 3))
        return 0.8 if country and len(digits) >= 11 else 0
    american = _NORTH_AMERICA.match(raw)
    if american:
        if american[3] != " " or not american[1]:
            return 0.7 if "1" in (american[1] or raw[1])[:1] else 0.8
        return _LEAST if american[2][0] not in "01" and american[1][0] != "1" and american[1][1] != "9" else 0.3
    area = _AREA.match(raw)
    if area and len(digits) >= 8 and area[1][:2] not in ("19", "20"):
        return 0.7
    if _TRUNK.match(raw) and not _PAIRS.match(raw) and 9 <= len(digits) <= 12:
        pair = len(_GROUPS.findall(raw)) == 2
        return 0.6 if ("." not in raw or raw.count(".") == 4) and not (pair and len(digits) < 10) else 0.3
    if _BRAZIL.match(raw):
        return 0.6
    return 0.3


_BASE58 = "[1-9A-HJ-NP-Za-km-z]"
_IPV6 = r"(?:(?:[0-9A-Fa-f]{1,4}:){1,7}|:):[0-9A-Fa-f:.]*|(?:[0-9A-Fa-f]{1,4}:){6}[0-9A-Fa-f:.]+"
_DIGITS = r"[+(]{0,2}\d(?:[ .()/-]{0,3}\d){6,}"
_BECH32 = "[02-9ac-hj-np-z]"
_TABLE: tuple[tuple[str, str, int, _Look], ...] = (
    ("email", r"[^\s@]@[A-Za-z0-9?][A-Za-z0-9?.-]*\.[A-Za-z0-9?-]{2}", 0, _email),
    ("ipv4", r"\d{1,3}(?:\.\d{1,3}){3}", 0, _ipv4),
    ("ipv6", _IPV6, 0, _ipv6),
    ("mac", r"[0-9A-Fa-f]{2}(?:[:-][0-9A-Fa-f]{2}){5}|[0-9A-Fa-f]{4}\.[0-9A-Fa-f]{4}\.[0-9A-Fa-f]{4}", 0, _mac),
    ("iban", rf"(?i)\b(?:{'|'.join(sorted(checksums.IBAN_LENGTHS))})\d\d[ -]?[a-z0-9]", 0, _iban),
    (
        "wallet",
        rf"\b(?:[13LMDTX]{_BASE58}{{25,34}}|(?:bc|tb|lt)c?1{_BECH32}{{20,80}}|BC1{_BECH32.upper()}{{20,80}}|0x[0-9A-Fa-f]{{40}})\b",
        0,
        _wallet,
    ),
    ("birth", rf"(?i)\b(?:{pii_patterns.BIRTH_WORDS})", 0, _birth),
    ("digits", _DIGITS, 0, _digits),
    *((token.kind, token.expression, 1, _token(token)) for token in TOKENS),
)
# What a stream has to wait for: numbers, and the words behind them.
_GROWING = (
    Growing(_DIGITS, after=_EXTENSION_AFTER + _AFTER),
    Growing(rf"(?i)\b(?:{'|'.join(sorted(checksums.IBAN_LENGTHS))})\d\d(?:[ -]?[a-z0-9]){{1,{_LONGEST_IBAN}}}"),
    Growing(rf"(?i)\b(?:{pii_patterns.BIRTH_WORDS}){_BORN.pattern}", frozenset({1})),
    Growing(rf"(?:^|[^0-9A-Za-z_:])({_IPV6})", frozenset({1}), after=_AFTER),
    Growing("|".join(f"(?:{token.expression})" for token in TOKENS), after=_AFTER),
)
_PATTERNS = [Pattern(name, expression, group=group) for name, expression, group, _ in _TABLE]
_LOOKS = [look for *_, look in _TABLE]


@cache
def _unfinished() -> Unfinished:
    return Unfinished(_GROWING, limit=_LONGEST_IBAN)


def _revision() -> str:
    tables = (NUMBERS, TOKENS, sorted(WORDS.items()), sorted(pii_patterns.PHONE_WORDS))
    known = (
        _LOGIC,
        _PATTERNS,
        [tuple(getattr(part, "__name__", part) for part in row) for table in tables[:2] for row in table],
        tables[2:],
        sorted(pii_patterns.PHONE_WORDS_AFTER),
        sorted(pii_patterns.PHONE_PHRASES),
        sorted(pii_patterns.NOT_PHONE_WORDS),
        sorted(pii_patterns.WEAK_PHONE_WORDS),
        sorted(pii_patterns.FILE_SUFFIXES),
    )
    return sha256(repr(known).encode()).hexdigest()[:16]
