"""Which rules there are, and which of them apply to a request."""

import math
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Literal, NamedTuple, Protocol

import msgspec

from guardrails.base import Detector
from guardrails.spans import Action
from models.finding import Role

On = Literal["input", "output", "tool_args", "tool_result"]
Phase = Literal["input", "output"]

# Changes whenever the same rules may do something else to the same text.
_ENGINE = "1"

# What these find is never put back into an answer. Another detector says so with `secrets = True`.
_SECRETS = frozenset({"secrets", "gitleaks", "detect_secrets"})

_LONGEST_CONDITION = 4096
_VARIABLES = ("model", "endpoint", "key", "headers")
# Whatever an expression over values of other types, or keys that are not there, ends in.
_CANNOT_SAY = (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError)


class PolicyError(ValueError):
    """A rule that cannot be used, and why."""


class Facts(NamedTuple):
    """What a condition may ask about. `key` is the name of the virtual key, empty without one; names of headers are
    in lower case."""

    model: str
    endpoint: str
    key: str = ""
    headers: Mapping[str, str] = {}


class _Program(Protocol):
    def execute(self, context: dict[str, Any]) -> Any: ...


class Condition:
    """A CEL expression that says whether a rule applies, compiled. Raises `PolicyError`."""

    def __init__(self, source: str) -> None:
        # Half a second, most of it for a command line of its own: only where a rule has a condition.
        import cel

        if len(source) > _LONGEST_CONDITION:
            raise PolicyError(f"longer than {_LONGEST_CONDITION} characters")
        try:
            program = cel.compile(source)
            unknown = sorted(set(program.variables()) - set(_VARIABLES))
        except (ValueError, RuntimeError) as error:
            raise PolicyError(" ".join(str(error).split())) from error
        if unknown:
            raise PolicyError(f"knows no {unknown[0]!r}, only {', '.join(_VARIABLES)}")
        self.source = source
        self._program: _Program = program
        self._asks = tuple(program.variables())
        self._try()

    def holds(self, facts: Facts) -> bool | None:
        """None where the expression fails or is no yes or no: a header it takes for granted may be missing."""
        given: dict[str, Any] = {name: getattr(facts, name) for name in self._asks}
        try:
            answer = self._program.execute(given)
        except _CANNOT_SAY:
            return None
        return answer if isinstance(answer, bool) else None

    def _try(self) -> None:
        """Finds types that never fit. A header that is missing here may be there in a request."""
        try:
            answer = self._program.execute({"model": "", "endpoint": "", "key": "", "headers": {}})
        except LookupError:
            return
        except _CANNOT_SAY as error:
            raise PolicyError(" ".join(str(error).split())) from error
        if not isinstance(answer, bool):
            raise PolicyError("is neither true nor false")


class Rule(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """`name` is what the operator and the client are told: `default/secrets`. `kinds` None is every kind.

    `on` is a union: `input` and `output` are every string in that direction,
    `tool_args` the arguments of tool calls in both, `tool_result` the tool
    results in requests. `mask` acts on requests only, and what a detector of
    secrets found it redacts. `confidence` is the least that counts. `timeout`
    in seconds. `sample` is the share of requests it looks at. With `dry_run`
    it acts on nothing, and says what it would have done. `original`: a
    detector elsewhere gets the text as it came, not masked.
    """

    name: str
    detector: Detector
    action: Action
    on: frozenset[On]
    kinds: frozenset[str] | None = None
    when: Condition | None = None
    sample: float = 1.0
    timeout: float = 5.0
    fail: Literal["open", "closed"] = "closed"
    dry_run: bool = False
    original: bool = False
    confidence: float = 0.0

    def __post_init__(self) -> None:
        if not self.on:
            raise PolicyError("`on` names nothing to look at")
        if self.action == "mask" and "output" in self.on:
            raise PolicyError("`mask` cannot be on output: nobody could put the values back; `redact` can")
        if self.kinds is not None and self.detector.kinds and not self.kinds <= self.detector.kinds:
            unknown = sorted(self.kinds - self.detector.kinds)
            raise PolicyError(f"{self.detector.name} finds no {', '.join(unknown)}")
        if not 0 < self.sample <= 1:
            raise PolicyError("`sample` must be above 0 and at most 1")
        if not (self.timeout > 0 and math.isfinite(self.timeout)):
            raise PolicyError("`timeout` must be above 0")

    @property
    def acts(self) -> Action:
        """What is done where it is found: a secret is not masked, because what is masked comes back."""
        return "redact" if self.action == "mask" and finds_secrets(self.detector) else self.action

    @property
    def gates(self) -> bool:
        """Whether a text may be another after it, or none."""
        return self.action != "log"

    def looks_at(self, role: Role, phase: Phase) -> bool:
        if phase == "output":
            return self.action != "mask" and ("output" in self.on or (role == "tool_args" and role in self.on))
        return "input" in self.on or (role in ("tool_args", "tool_result") and role in self.on)


class Policy(NamedTuple):
    name: str
    rules: tuple[Rule, ...]


class Choice(NamedTuple):
    """The rules for one request, in order. `revision` is part of the cache identity.

    Not `keepable`: a rule that gates was left out by chance or because its
    condition failed, so nothing of this request may be stored as screened.
    """

    rules: tuple[Rule, ...]
    keepable: bool
    revision: str


def finds_secrets(detector: Detector) -> bool:
    return detector.name in _SECRETS or getattr(detector, "secrets", False) is True


def usual_fail(action: Action) -> Literal["open", "closed"]:
    return "open" if action == "log" else "closed"


def chosen(policies: Iterable[Policy], facts: Facts, draw: float, *, placeholders: str = "") -> Choice:
    """`draw` is random, from 0 up to 1 and without it, and the only one of the request: what is in a sample of 1 %
    is in one of 10 % as well. `placeholders` is their revision.

    A condition that fails applies its rule where that fails closed. What a
    rule left out by chance would have seen is not stored, so what is stored
    under `revision` was seen by all rules of it.
    """
    applying: list[Rule] = []
    running: list[Rule] = []
    keepable = True
    for policy in policies:
        for rule in policy.rules:
            holds = True if rule.when is None else rule.when.holds(facts)
            if holds is None:
                holds = rule.fail == "closed"
                keepable = keepable and (holds or not rule.gates)
            if not holds:
                continue
            applying.append(rule)
            if draw < rule.sample:
                running.append(rule)
            else:
                keepable = keepable and not rule.gates
    return Choice(tuple(running), keepable, revision(applying, placeholders=placeholders))


def revision(rules: Sequence[Rule], *, placeholders: str = "") -> str:
    """16 hex digits over what these rules find and do; of no rules the empty string. Names, samples and time limits
    are no part: they change nothing in what was screened in full."""
    if not rules:
        return ""
    masks = any(rule.acts == "mask" for rule in rules)
    said = [
        [
            rule.detector.name,
            rule.detector.revision,
            None if rule.kinds is None else sorted(rule.kinds),
            sorted(rule.on),
            rule.acts,
            rule.dry_run,
            rule.original,
            rule.confidence,
        ]
        for rule in rules
    ]
    return blake2b(msgspec.json.encode([_ENGINE, placeholders if masks else "", said]), digest_size=8).hexdigest()
