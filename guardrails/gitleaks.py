"""Rule files in the shape of a gitleaks configuration: the shipped ones, and a user's own, unchanged."""

import hashlib
import re
import tomllib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import re2

from models.errors import ConfigError

SHIPPED = Path(__file__).parent / "rules" / "secrets.toml"

Target = Literal["secret", "match", "line", "name"]
Extent = Literal["match", "pem", "kubernetes"]

_TARGETS: dict[str, Target] = {"": "secret", "secret": "secret", "match": "match", "line": "line", "name": "name"}
_EXTENTS: dict[str, Extent] = {"match": "match", "pem": "pem", "kubernetes": "kubernetes"}
_DEPTH = 3  # files that extend files: as many as gitleaks follows, so that no circle hangs
_MAX_MEMORY = 64 << 20

# A name, what may follow it inside a name or a type, an assignment in any language, a cell of a table or a list of
# names and values, quotes; and after the value, nothing that could be more of it.
_ASSIGNED = (
    r"[\w.\[\] \t-]{0,24}[\"'\x60\\*]{0,4}[\])]?[ \t]{0,8}"
    r"(?:(?:[:?.+|!=]{0,3}=>?|:{1,2}\*{0,2}|>)[ \t\r\n]{0,24}|[,|][ \t]{0,4}"
    r"|,?\s{1,24}[\"']?[vV]alue[\"']?[ \t]?[:=][ \t]?)(?:String |str )?[(\[{]?[ \t]?[\"'\x60\\]{0,3}"
)
_ENDED = r"(?:[^0-9A-Za-z_=/+-]|$)"


class Allowed(NamedTuple):
    """What a rule finds and yet is no secret. `regexes` is looked for in the target, `stopwords` in the secret. The
    name is what of a match stands before its secret."""

    regexes: Any = None  # a compiled re2 pattern; the package has no type for it
    target: Target = "secret"
    stopwords: Any = None
    every: bool = False

    def covers(self, *, secret: str, match: str, line: str, name: str) -> bool:
        seen = {"secret": secret, "match": match, "line": line, "name": name}[self.target]
        if self.every and self.regexes is not None and self.stopwords is not None:
            return self.regexes.search(seen) is not None and self.stopwords.search(secret) is not None
        return (self.regexes is not None and self.regexes.search(seen) is not None) or (
            self.stopwords is not None and self.stopwords.search(secret) is not None
        )


class Rule(NamedTuple):
    """`group` is the secret in a match of `expression`; None: of its groups, the first that took part. `entropy` is the
    least there must be in it, in bits a character. `extent` is how far it goes beyond the match."""

    id: str
    kind: str
    expression: str
    keywords: tuple[str, ...] = ()
    group: int | None = 0
    entropy: float = 0.0
    allowed: tuple[Allowed, ...] = ()
    confidence: float = 0.9
    checksum: str = ""
    extent: Extent = "match"
    description: str = ""


class RuleFile(NamedTuple):
    """`notes` say what in the file was left out, and why; `revision` changes with its contents."""

    rules: tuple[Rule, ...]
    notes: tuple[str, ...]
    revision: str


def load(path: Path) -> RuleFile:
    """Raises `ConfigError` that names the file, the rule and its line, and the reason."""
    return _load(path, depth=0)


@lru_cache(maxsize=2048)
def compiled(expression: str) -> Any:
    """Raises `ValueError` with what is wrong. Nothing it compiles can take more than linear time."""
    options = re2.Options()
    options.log_errors = False
    options.max_mem = _MAX_MEMORY
    try:
        return re2.compile(expression, options)
    except re2.error as problem:
        reason = problem.args[0] if problem.args else problem
        raise ValueError(reason.decode() if isinstance(reason, bytes) else str(reason)) from problem


def _load(path: Path, *, depth: int) -> RuleFile:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise ConfigError(f"{path}: cannot be read: {problem}") from problem
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as problem:
        raise ConfigError(f"{path}: {problem}") from problem
    return _File(path, text, document, depth).read()


class _File:
    def __init__(self, path: Path, text: str, document: Mapping[str, Any], depth: int) -> None:
        self._path = path
        self._text = text
        self._document = document
        self._depth = depth
        self._notes: list[str] = []
        self._problems: list[str] = []
        self._headers = [
            number for number, line in enumerate(text.splitlines(), 1) if re.match(r"\s*\[\[\s*rules\s*\]\]", line)
        ]

    def read(self) -> RuleFile:
        extended = self._extended()
        everywhere = self._everywhere()
        rules: dict[str, Rule] = {}
        if extended is not None:
            disabled = self._strings(self._table("extend"), "disabledRules", f"{self._path}: extend")
            rules = {rule.id: rule for rule in extended.rules if rule.id not in disabled}
        for number, table in enumerate(self._tables(self._document, "rules", str(self._path))):
            rule = self._rule(table, number, rules)
            if rule is not None:
                rules[rule.id] = rule
        for name, rule in rules.items():
            general = [allowed for targets, allowed in everywhere if not targets or name in targets]
            rules[name] = rule._replace(allowed=(*rule.allowed, *general))
        if self._problems:
            raise ConfigError(*self._problems)
        if not rules:
            raise ConfigError(f"{self._path}: no rule that looks at text")
        digest = hashlib.sha256(self._text.encode())
        digest.update((extended.revision if extended else "").encode())
        notes = (*(extended.notes if extended else ()), *self._notes)
        return RuleFile(tuple(rules.values()), notes, digest.hexdigest()[:16])

    def _extended(self) -> RuleFile | None:
        extend = self._table("extend")
        if not extend:
            return None
        if extend.get("url"):
            self._problems.append(f"{self._path}: extend.url is not fetched; name a file in extend.path")
            return None
        base = SHIPPED if extend.get("useDefault") is True else None
        if extend.get("path"):
            base = self._path.parent / str(extend["path"])
        elif base is not None:
            self._notes.append("extend.useDefault: the rules Keepgate ships stand in for those of gitleaks")
        if base is None:
            return None
        if self._depth + 1 >= _DEPTH:
            raise ConfigError(f"{self._path}: extend goes deeper than {_DEPTH} files")
        return _load(base, depth=self._depth + 1)

    def _everywhere(self) -> list[tuple[frozenset[str], Allowed]]:
        tables = [*self._tables(self._document, "allowlists", str(self._path))]
        if "allowlist" in self._document:
            tables.append(self._table("allowlist"))
        found = []
        for table in tables:
            targets = frozenset(self._strings(table, "targetRules", f"{self._path}: allowlist"))
            found += [(targets, allowed) for allowed in self._allowed(table, f"{self._path}: allowlist")]
        return found

    def _rule(self, table: Mapping[str, Any], number: int, known: Mapping[str, Rule]) -> Rule | None:
        name = table.get("id")
        line = self._headers[number] if number < len(self._headers) else 0
        where = f"{self._path}:{line}: rule {name!r}"
        if not isinstance(name, str) or not name:
            self._problems.append(f"{self._path}:{line}: a rule without an id")
            return None
        base = known.get(name)
        allowlists = self._allowlists(table, where)
        allowed = tuple(allowed for entry in allowlists for allowed in self._allowed(entry, f"{where}: allowlist"))
        expression = self._expression(table, where)
        if expression is None and base is not None:
            return base._replace(
                allowed=(*base.allowed, *allowed),
                entropy=self._number(table, "entropy", where, base.entropy),
                keywords=tuple(dict.fromkeys((*base.keywords, *self._keywords(table, where)))),
            )
        if expression is None:
            if table.get("path"):
                self._notes.append(f"rule {name!r} looks at file names only: left out")
            else:
                self._problems.append(f"{where}: has neither regex nor path")
            return None
        if table.get("path"):
            self._notes.append(f"rule {name!r} has a path: it looks at every text, as texts have none")
        return self._checked(table, where, name, expression, allowed)

    def _checked(
        self, table: Mapping[str, Any], where: str, name: str, expression: str, allowed: tuple[Allowed, ...]
    ) -> Rule | None:
        try:
            groups = compiled(expression).groups
        except ValueError as problem:
            self._problems.append(f"{where}: regex: {problem}")
            return None
        group = table.get("secretGroup")
        if group is not None and (not isinstance(group, int) or not 0 <= group <= groups):
            self._problems.append(f"{where}: secretGroup is {group!r}, and the regex has {groups} groups")
        extent = _EXTENTS.get(str(table.get("extent", "match")))
        if extent is None:
            self._problems.append(f"{where}: extent is one of {', '.join(_EXTENTS)}")
        return Rule(
            id=name,
            kind=str(table.get("kind") or re.sub(r"\W+", "_", name).strip("_").lower() or "secret"),
            expression=expression,
            keywords=self._keywords(table, where),
            group=group or (groups if groups < 2 else None),
            entropy=self._number(table, "entropy", where, 0.0),
            allowed=allowed,
            confidence=self._number(table, "confidence", where, 0.9),
            checksum=str(table.get("checksum", "")),
            extent=extent or "match",
            description=str(table.get("description", "")),
        )

    def _expression(self, table: Mapping[str, Any], where: str) -> str | None:
        """Beside `regex`, the shipped rules have `names` and `value`: what is assigned to a name that holds one."""
        expression = table.get("regex")
        if isinstance(expression, str) and expression:
            return expression
        if expression not in (None, ""):
            self._problems.append(f"{where}: regex is not a string")
        names, value = self._strings(table, "names", where), table.get("value")
        if names and isinstance(value, str):
            return f"(?i:{'|'.join(names)}){_ASSIGNED}({value}){_ENDED}"
        return None

    def _allowlists(self, table: Mapping[str, Any], where: str) -> list[Mapping[str, Any]]:
        found = [*self._tables(table, "allowlists", where)]
        single = table.get("allowlist")
        if isinstance(single, Mapping):
            found.append(single)
        elif single is not None:
            self._problems.append(f"{where}: allowlist is not a table")
        return found

    def _allowed(self, table: Mapping[str, Any], where: str) -> list[Allowed]:
        every = str(table.get("condition", "OR")).upper() in ("AND", "&&")
        if every and (table.get("paths") or table.get("commits")):
            return []  # texts have neither path nor commit, so this one can never be met
        target = _TARGETS.get(str(table.get("regexTarget", "")))
        if target is None:
            self._problems.append(f"{where}: regexTarget is one of secret, match, line, name")
            return []
        regexes = self._strings(table, "regexes", where)
        words = self._strings(table, "stopwords", where)
        try:
            for regex in regexes:
                compiled(regex)
            allowed = Allowed(
                regexes=compiled("|".join(f"(?:{regex})" for regex in regexes)) if regexes else None,
                target=target,
                stopwords=compiled("(?i)" + "|".join(re2.escape(word) for word in words)) if words else None,
                every=every,
            )
        except ValueError as problem:
            self._problems.append(f"{where}: {problem}")
            return []
        return [allowed] if regexes or words else []

    def _keywords(self, table: Mapping[str, Any], where: str) -> tuple[str, ...]:
        keywords = self._strings(table, "keywords", where) or self._strings(table, "names", where)
        return tuple(keyword.lower() for keyword in keywords)

    def _table(self, key: str) -> Mapping[str, Any]:
        found = self._document.get(key, {})
        if isinstance(found, Mapping):
            return found
        raise ConfigError(f"{self._path}: {key} is not a table")

    def _tables(self, table: Mapping[str, Any], key: str, where: str) -> Sequence[Mapping[str, Any]]:
        found = table.get(key, [])
        if isinstance(found, list) and all(isinstance(entry, Mapping) for entry in found):
            return found
        self._problems.append(f"{where}: {key} is not a list of tables")
        return []

    def _strings(self, table: Mapping[str, Any], key: str, where: str) -> list[str]:
        found = table.get(key, [])
        if isinstance(found, list) and all(isinstance(entry, str) for entry in found):
            return found
        self._problems.append(f"{where}: {key} is not a list of strings")
        return []

    def _number(self, table: Mapping[str, Any], key: str, where: str, otherwise: float) -> float:
        found = table.get(key, otherwise)
        if isinstance(found, int | float) and not isinstance(found, bool):
            return float(found)
        self._problems.append(f"{where}: {key} is not a number")
        return otherwise
