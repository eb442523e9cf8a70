"""Secrets: the token formats of issuers, and values that are assigned to a name which says so."""

import asyncio
import hashlib
import math
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any

from guardrails import checksums_tokens
from guardrails.expression import NotUnderstood
from guardrails.gitleaks import SHIPPED, Allowed, Rule, compiled, load
from guardrails.patterns import LONG, Match, Pattern, PatternSet, opened
from guardrails.unfinished import Growing, Unfinished
from models.finding import Finding, Segment

BLOCK_CAP = 16 * 1024
"""No key is longer, in code points."""

_VERSION = "3"  # changes when the same rules may find something else
_CONTEXT = 256  # before a secret; where a match may begin earlier, a stream waits from its beginning
_OPEN_CAP = 15 * 1024  # no manifest is longer, and nothing else a stream has to wait for: it can hold so much
_LINE_CAP = 1000  # of what an allowlist for lines gets to see on either side
_PEM_END = re.compile(r"-----END[ A-Z0-9]{0,40}-----")
# What is between the lines of a key in a text, a string of JSON or source code, a quotation or a diff.
_PEM_BODY = re.compile(r"""(?:[0-9A-Za-z+/=\s"'\x60,;:>|#*.()_-]|\\[nrt"\n])*+""")
_PEM_LINES = re.compile(
    r"""(?:(?:[\s"'\x60,;>|#*.+-]|\\[nrt]|(?:Proc-Type|DEK-Info|Version|Comment): [^\n\\]{0,100}){0,40}"""
    r"""[0-9A-Za-z+/=]{16,})*+(?:\s{0,4}[0-9A-Za-z+/=]{1,15}\Z)?"""
)
_PEM_CHARACTER = re.compile(r"[0-9A-Za-z+/]")
_PEM_LEAST = 32
# The next document, or a line that is no YAML.
_NO_MANIFEST = re.compile(r"""^(?:---|(?![\s#-]|["']?[\w./-]{1,253}["']?[ \t]*:[ \t\r\n])[^\n]+\n)""", re.MULTILINE)
_IN_A_MANIFEST = re.compile(
    r"""^[ \t-]*["']?(?:(?:data|stringData)["']?[ \t]*:[ \t]*"""
    r"""|(?i:kind["']?[ \t]*:[ \t]*["']?Secret["']?)[ \t,]*)\r?$""",
    re.MULTILINE,
)
_DATA = re.compile(r"^([ \t-]*)[\"']?(?:data|stringData)[\"']?[ \t]*:[ \t]*\r?$", re.MULTILINE)
_ENTRY = re.compile(  # indentation, and the value beside a name or on a line of its own
    r"""([ \t]*)(?:#.*|["']?[\w.-]{1,253}["']?[ \t]*:[ \t]*(?:[|>][-+]?|["']?([^\s"'#][^\n"']*?)?["']?)"""
    r"""|(\S.*?))?[ \t]*\r?$"""
)


class SecretsDetector:
    """Reports the secret, not the name it was assigned to; of a private key, all of the block.

    Those of another file may take the place of the shipped rules. `allow` is
    what an endpoint knows to be no secret: a string that a secret equals, or
    an expression (re2) that matches all of one.

    Most secrets have no white space in them, and so are whole where a stream
    is cut; `open_from` knows the others. A stream holds PEM blocks by itself.
    """

    name = "secrets"
    inline = True

    def __init__(self, rules: Sequence[Rule] | None = None, *, allow: Sequence[str] = ()) -> None:
        self._rules = load(SHIPPED).rules if rules is None else tuple(rules)
        self._allow = frozenset(allow)
        self._allowed = _alternatives(allow)
        # Of several groups the first that took part is the secret: the first, mostly.
        self._patterns = _pattern_set(
            tuple(
                Pattern(rule.id, rule.expression, rule.keywords, 1 if rule.group is None else rule.group)
                for rule in self._rules
            )
        )
        self._unfinished = _unfinished(tuple(_growing(rule) for rule in self._rules if rule.extent == "match"))
        self._manifests = any(rule.extent == "kubernetes" for rule in self._rules)
        # A stream waits for its end where nothing is known of a pattern.
        self.reach: int | None = None if self._unfinished is None else 0
        self.open_from: Callable[[str], int] | None = None if self._unfinished is None else self._open_from
        self.context = _LINE_CAP if any(map(_minds_its_line, self._rules)) else _CONTEXT
        self.kinds = frozenset(rule.kind for rule in self._rules)
        self.revision = _revision(self._rules, sorted(self._allow))

    async def detect(self, segments: Sequence[Segment]) -> Sequence[Finding]:
        found: list[Finding] = []
        for segment in segments:
            found += self.scan(segment) if len(segment.text) <= LONG else await asyncio.to_thread(self.scan, segment)
        return found

    def scan(self, segment: Segment) -> list[Finding]:
        """The same for one text, for those who are in a thread of their own.

        In the order of the text; where several rules find the same, the one that comes first in the file is first:
        the shipped rules for formats come before those for names.
        """
        text = opened(segment.text)
        found: list[tuple[int, int, int, Finding]] = []
        done: dict[int, int] = {}  # for each rule with an extent, up to where the text is reported
        for match in self._patterns.scan(text):
            rule = self._rules[match.pattern]
            spans: Sequence[tuple[int, int]]
            if rule.extent == "match":
                spans = (_secret(match, rule),)
            elif match.start < done.get(match.pattern, 0):
                continue
            elif rule.extent == "pem":
                spans = _pem(text, match)
                done[match.pattern] = max([match.end, *(end for _, end in spans)])
            else:
                low, high = _manifest(text, match, done.get(match.pattern, 0))
                spans = _kubernetes(text, low, high)
                done[match.pattern] = high
            for start, end in spans:
                secret = text[start:end]
                if secret and not self._excused(text, match, rule, secret):
                    confidence = _confidence(rule, secret)
                    finding = Finding(segment.index, rule.kind, start, end, confidence, rule.id)
                    found.append((start, end, match.pattern, finding))
        found.sort(key=itemgetter(0, 1, 2))
        return [finding for *_, finding in found]

    def _open_from(self, text: str) -> int:
        """From where on `text` may be part of a secret that is not whole yet; its length where nothing is open."""
        text = opened(text)
        least = max(0, len(text) - _OPEN_CAP)
        start = least + self._unfinished.open_from(text[least:]) if self._unfinished is not None else len(text)
        return min(start, _open_manifest(text)) if self._manifests else start

    def _excused(self, text: str, match: Match, rule: Rule, secret: str) -> bool:
        if rule.entropy and entropy(secret) < rule.entropy:
            return True
        if secret in self._allow or (self._allowed is not None and self._allowed.fullmatch(secret) is not None):
            return True
        if not rule.allowed:
            return False
        start, end = match.groups[0]
        whole = text[start:end]
        line = _line(text, match) if any(allowed.target == "line" for allowed in rule.allowed) else ""
        name = text[start : match.start]
        return any(allowed.covers(secret=secret, match=whole, line=line, name=name) for allowed in rule.allowed)


@lru_cache(maxsize=4)
def _pattern_set(patterns: tuple[Pattern, ...]) -> PatternSet:
    """Shared by the endpoints, which differ in what they allow: it takes seconds to build, and keeps no text."""
    return PatternSet(patterns)


@lru_cache(maxsize=4)
def _unfinished(patterns: tuple[Growing, ...]) -> Unfinished | None:
    try:
        return Unfinished(patterns, limit=_CONTEXT)
    except NotUnderstood:
        return None


def _growing(rule: Rule) -> Growing:
    groups = range(1, compiled(rule.expression).groups + 1) if rule.group is None else [rule.group]
    return Growing(rule.expression, frozenset(groups) - {0}, after=_LINE_CAP if _minds_its_line(rule) else 0)


def _minds_its_line(rule: Rule) -> bool:
    return any(allowed.target == "line" for allowed in rule.allowed)


def entropy(text: str) -> float:
    """Shannon's, in bits a character."""
    length = len(text)
    counts = [text.count(character) for character in set(text)]
    return sum(count * math.log2(length / count) for count in counts) / length


def _alternatives(allow: Sequence[str]) -> Any:
    """Those that are no expressions are strings only."""
    usable = []
    for entry in allow:
        try:
            compiled(entry)
        except ValueError:
            continue
        usable.append(f"(?:{entry})")
    return compiled("|".join(usable)) if usable else None


def _revision(rules: Sequence[Rule], allow: Sequence[str]) -> str:
    digest = hashlib.sha256(_VERSION.encode())
    for rule in rules:
        digest.update(repr(rule._replace(allowed=())).encode())
        digest.update(repr([_told(allowed) for allowed in rule.allowed]).encode())
    digest.update(repr(allow).encode())
    return digest.hexdigest()[:16]


def _told(allowed: Allowed) -> tuple[str, ...]:
    patterns = (allowed.regexes, allowed.stopwords)
    return (
        *(pattern.pattern if pattern is not None else "" for pattern in patterns),
        allowed.target,
        str(allowed.every),
    )


def _secret(match: Match, rule: Rule) -> tuple[int, int]:
    if rule.group is not None:
        return match.groups[rule.group]
    return next((span for span in match.groups[1:] if span[0] < span[1]), match.groups[0])


def _confidence(rule: Rule, secret: str) -> float:
    if rule.checksum:
        passed = checksums_tokens.passes(rule.checksum, secret)
        if passed is not None:
            return 1.0 if passed else rule.confidence / 2
    return rule.confidence


def _line(text: str, match: Match) -> str:
    start = text.rfind("\n", max(0, match.start - _LINE_CAP), match.start) + 1 or max(0, match.start - _LINE_CAP)
    end = text.find("\n", match.end, match.end + _LINE_CAP)
    return text[start : end if end >= 0 else match.end + _LINE_CAP]


def _pem(text: str, match: Match) -> list[tuple[int, int]]:
    """On to the END line, or as long as it looks like a key: one that was cut off is a leak all the same."""
    cap = match.end + BLOCK_CAP
    another = text.find("-----BEGIN", match.end, cap)
    cap = cap if another < 0 else another
    body = _PEM_BODY.match(text, match.end, cap)
    closing = _PEM_END.search(text, match.end, body.end() if body is not None else cap)
    lines = _PEM_LINES.match(text, match.end, cap) if closing is None else None
    stop = closing.start() if closing is not None else lines.end() if lines is not None else match.end
    if len(_PEM_CHARACTER.findall(text, match.end, stop)) < _PEM_LEAST:
        return []
    return [(match.start, closing.end() if closing is not None else stop)]


def _manifest(text: str, match: Match, done: int) -> tuple[int, int]:
    low = max(0, done, match.start - _OPEN_CAP)
    for other in _NO_MANIFEST.finditer(text, low, match.start):
        low = other.end()
    closing = _NO_MANIFEST.search(text, match.end, match.end + _OPEN_CAP)
    return low, closing.start() if closing is not None else min(len(text), match.end + _OPEN_CAP)


def _open_manifest(text: str) -> int:
    """Where one begins to tell what it is, or to have values, that may go on and become one of a secret."""
    if "ata" not in text and "ecret" not in text:
        return len(text)
    begun = _IN_A_MANIFEST.search(text, max(0, len(text) - _OPEN_CAP))
    while begun is not None and (other := _NO_MANIFEST.search(text, begun.end())) is not None:
        begun = _IN_A_MANIFEST.search(text, other.end())
    return len(text) if begun is None else begun.start()


def _kubernetes(text: str, low: int, high: int) -> list[tuple[int, int]]:
    """The values under `data` and `stringData` of the manifest, wherever in it they are."""
    found = []
    for header in _DATA.finditer(text, low, high):
        at = header.end() + 1
        while at < high:
            line_end = text.find("\n", at, high)
            entry = _ENTRY.match(text, at, high if line_end < 0 else line_end)
            if entry is None or (entry[0].strip() and len(entry[1]) <= len(header[1])):
                break
            group = 2 if entry[2] else 3
            if entry[group]:
                found.append(entry.span(group))
            at = entry.end() + 1
    return found
