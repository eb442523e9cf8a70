"""What a word after `detect:` stands for, and the detector of a name; imported when one is built.

Third parties add a name with an entry point in the group `keepgate.detectors`:
a callable that takes the rule's `options` as keywords and gives a `Detector`.
"""

import contextlib
import inspect
import re
import threading
import tomllib
from collections.abc import Callable, Collection, Mapping
from functools import cache
from importlib import import_module, resources
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakValueDictionary

from guardrails.base import Detector
from models.errors import ConfigError

if TYPE_CHECKING:
    from guardrails.gitleaks import RuleFile

GROUP = "keepgate.detectors"

BUILT_IN: dict[str, str] = {
    "secrets": "guardrails.detectors.secrets:SecretsDetector",
    "pii": "guardrails.detectors.pii:PiiDetector",
    "regex": "guardrails.detectors.regex:RegexDetector",
    "hidden_text": "guardrails.detectors.hidden_text:HiddenTextDetector",
    "prompt_injection": "guardrails.detectors.prompt_injection:PromptInjectionDetector",
    "presidio": "guardrails.detectors.presidio:PresidioDetector",
    "detect_secrets": "guardrails.detectors.detect_secrets:DetectSecretsDetector",
}


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Kinds that are words of their own, so that a configuration can be read without what finds them. Those of `secrets`
# are in its file of rules.
KINDS: dict[str, frozenset[str]] = {
    "pii": _words(
        "ar_cuit au_abn au_medicare au_tfn be_nrn br_cnpj br_cpf ca_sin ch_ahv cl_rut cn_resident_id credit_card "
        "crypto_address date_of_birth de_tax_id dk_cpr email es_dni es_nie fi_hetu fr_nir iban il_id in_aadhaar "
        "in_pan ip_address it_codice_fiscale jp_my_number kr_rrn mac_address mx_curp nl_bsn no_fnr passport phone "
        "pl_pesel pt_nif ru_snils se_personnummer sg_nric th_id tr_id uk_nhs uk_nino us_itin us_ssn za_id"
    ),
    "hidden_text": _words("bidi_control chat_template unicode_tags zero_width"),
}

# Packages that come with an extra of ours.
_EXTRAS = {"presidio": ("presidio_analyzer", "presidio"), "detect_secrets": ("detect_secrets", "detect-secrets")}
# It is shown in headers and is a label of metrics.
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
# What a constructor of somebody else's may raise. The message may hold one of its options, so it is not repeated.
_RAISED = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, OSError, RuntimeError, TypeError),
    ValueError,
)
_PARTS: tuple[tuple[str, type | tuple[type, ...]], ...] = (
    ("name", str),
    ("kinds", Collection),
    ("revision", str),
    ("reach", (int, type(None))),
    ("inline", bool),
)

_shared: WeakValueDictionary[tuple[str, str], Detector] = WeakValueDictionary()
_building = threading.Lock()


class CannotBuild(ConfigError):
    """`option` is what it is about; empty where that is not known."""

    def __init__(self, option: str, *problems: str) -> None:
        super().__init__(*problems)
        self.option = option


class Meaning(NamedTuple):
    """`kinds` None are all that the detector finds."""

    detector: str
    kinds: frozenset[str] | None = None


def names() -> set[str]:
    """Of detectors, not of kinds."""
    return {*BUILT_IN, *_added()}


def words() -> set[str]:
    """Whatever means something after `detect:` with the shipped rules."""
    return names().union(secret_kinds(), *KINDS.values())


def meaning(word: str, *, secrets: Collection[str] | None = None) -> Meaning | None:
    """None of a word that means nothing. `secrets` are the kinds in another file of rules than the shipped one.

    Our own come before those of third parties. What presidio, detect_secrets
    and third parties find has no words.
    """
    if word in BUILT_IN:
        return Meaning(word)
    for detector, kinds in KINDS.items():
        if word in kinds:
            return Meaning(detector, frozenset({word}))
    if word in (secret_kinds() if secrets is None else secrets):
        return Meaning("secrets", frozenset({word}))
    return Meaning(word) if word in _added() else None


@cache
def secret_kinds() -> frozenset[str]:
    """Of the shipped rules."""
    rules = tomllib.loads(resources.files("guardrails").joinpath("rules/secrets.toml").read_text(encoding="utf-8"))
    return frozenset(rule.get("kind") or rule["id"].replace("-", "_").lower() for rule in rules["rules"])


def rule_file(path: Path) -> "RuleFile":
    """Rules of the user's. Raises `CannotBuild` with every problem in it and its line."""
    from guardrails.gitleaks import load  # brings re2, which reading a configuration mostly has no need for

    try:
        return load(path)
    except ConfigError as error:
        raise CannotBuild("rules", *error.problems) from error


def not_installed(name: str) -> str | None:
    """What to install before this detector can be built."""
    package, extra = _EXTRAS.get(name, ("", ""))
    return f"is not installed: pip install 'keepgate[{extra}]'" if package and find_spec(package) is None else None


def built(name: str, /, **options: Any) -> Detector:
    """The one of these options; the same object as long as somebody has it. May take seconds.

    `secrets` takes `rules`, the path of a file, and is another one when the
    file has changed. Raises `ConfigError`, if it knows more `CannotBuild`.
    """
    with _building:
        build, key = _prepared(name, options)
        detector = _shared.get(key)
        if detector is None:
            detector = build()
            with contextlib.suppress(TypeError):  # it has slots, and none for a weak reference
                _shared[key] = detector
        return detector


def keep_compiled(folder: Path) -> None:
    """For what is built from here on: the next start has its patterns from there, in no time."""
    if find_spec("hyperscan") is not None:
        from guardrails.databases import keep_in

        keep_in(folder)


def class_of(name: str) -> Any:
    """What builds it: for what is known without building, such as `inline` and mostly `reach`. Raises `ConfigError`."""
    target = BUILT_IN.get(name)
    try:
        if target is not None:
            module, _, attribute = target.partition(":")
            return getattr(import_module(module), attribute)
        if name not in _added():
            raise ConfigError(f"no detector is named {name!r}; known: {', '.join(sorted(names()))}")
        return _added()[name].load()
    except (ImportError, AttributeError) as error:
        if (missing := not_installed(name)) is not None:
            raise ConfigError(f"{name} {missing}") from error
        wanted = getattr(error, "name", None) or type(error).__name__
        raise ConfigError(f"{name} cannot be imported: {wanted}") from error


def _prepared(name: str, options: Mapping[str, Any]) -> tuple[Callable[[], Detector], tuple[str, str]]:
    key = (name, repr(sorted(options.items())))
    if name == "secrets":
        return _secrets(**options)
    if name == "regex":
        return lambda: _regex(options), key
    factory = class_of(name)
    if name in BUILT_IN:
        return lambda: _own(name, factory, options), key
    return lambda: _somebodys(name, factory, options), key


def _own(name: str, factory: Callable[..., Detector], options: Mapping[str, Any]) -> Detector:
    try:
        return factory(**options)
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from error


def _secrets(rules: Path | None = None, allow: Collection[str] = ()) -> tuple[Callable[[], Detector], tuple[str, str]]:
    from guardrails.detectors.secrets import SecretsDetector
    from guardrails.patterns import PatternError

    file = None if rules is None else rule_file(rules)
    allow = tuple(sorted(set(allow)))

    def build() -> Detector:
        try:
            return SecretsDetector(None if file is None else file.rules, allow=allow)
        except PatternError as error:
            raise CannotBuild("rules", f"{_place(rules, error.id)}: rule {error.id!r}: {error.reason}") from error
        except ValueError as error:
            raise CannotBuild("allow", str(error)) from error

    return build, ("secrets", repr(("" if file is None else file.revision, allow)))


def _regex(options: Mapping[str, Any]) -> Detector:
    from guardrails.detectors.regex import RegexDetector
    from guardrails.patterns import PatternError

    try:
        return RegexDetector(**options)
    except PatternError as error:
        raise CannotBuild("pattern", error.reason) from error


def _somebodys(name: str, factory: Callable[..., Any], options: Mapping[str, Any]) -> Detector:
    try:
        inspect.signature(factory).bind(**options)
    except TypeError as error:  # names options, and none of their values
        raise CannotBuild("options", str(error)) from error
    except ValueError:
        pass  # written in C, without a signature
    try:
        detector: Detector = factory(**options)
    except ConfigError:
        raise
    except _RAISED as error:
        raise ConfigError(f"{name} cannot be built: {type(error).__name__}") from error
    for part, kind in _PARTS:
        if not isinstance(getattr(detector, part, ...), kind):
            raise ConfigError(f"{name} is no detector: its {part!r} is missing or of another type")
    if not callable(getattr(detector, "detect", None)):
        raise ConfigError(f"{name} is no detector: it has no detect()")
    return detector


def _place(file: Path | None, rule: str) -> str:
    """The file and the line where a rule of that id is: it may also be in a file that this one extends."""
    if file is None:
        return "the shipped rules"
    text = file.read_text(encoding="utf-8")
    found = re.search(rf"""^[ \t]*id[ \t]*=[ \t]*["']{re.escape(rule)}["']""", text, re.MULTILINE)
    return str(file) if found is None else f"{file}:{text.count(chr(10), 0, found.start()) + 1}"


def _added() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP) if _WORD.fullmatch(point.name)}
