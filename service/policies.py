"""From the settings of guardrails to the policies of each endpoint, with their detectors built."""

import os
from collections.abc import Collection, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from guardrails import registry
from guardrails.base import Detector
from guardrails.policy import Condition, On, Policy, PolicyError, Rule, usual_fail
from models.errors import ConfigError
from service.settings import GuardrailSettings, RuleSettings, Settings

# What a new user gets, and every endpoint that names no policies where none is called so.
DEFAULT = GuardrailSettings(
    name="default",
    rules=(
        RuleSettings(detect=("secrets",), on=("input", "output"), action="redact"),
        RuleSettings(detect=("pii",), on=("input", "output"), action="log"),
    ),
)


def policies(settings: Settings, home: Path | None = None) -> Mapping[str, tuple[Policy, ...]]:
    """By endpoint, in the order they are applied. Detectors are shared with whoever has the same already.

    Takes seconds where that is nobody: best in a thread. What is compiled is
    kept in the user's cache folder, or under `home` where there is none, so
    that the next start has it. Policies that no endpoint has are not built.
    Raises `ConfigError` with every problem.
    """
    cache = _cache_folder() or home
    if cache is not None:
        registry.keep_compiled(cache / "patterns")
    written = _written(settings)
    applied = {
        endpoint.name: (DEFAULT.name,) if endpoint.guardrails is None else endpoint.guardrails
        for endpoint in settings.endpoints
    }
    problems: list[str] = []
    built = {name: _policy(*written[name], problems) for name in dict.fromkeys(chain(*applied.values()))}
    if problems:
        raise ConfigError(*problems)
    return {endpoint: tuple(built[name] for name in names) for endpoint, names in applied.items()}


def _cache_folder() -> Path | None:
    """`$XDG_CACHE_HOME/keepgate`, else `~/.cache/keepgate`; None where nobody but this user can be sure of what is in
    it: who can write there says what is found."""
    configured = os.environ.get("XDG_CACHE_HOME", "")
    try:
        folder = (Path(configured) if Path(configured).is_absolute() else Path.home() / ".cache") / "keepgate"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except (OSError, RuntimeError):  # no home, or one that cannot be written to
        return None
    return folder if status.st_uid == os.geteuid() and not status.st_mode & 0o022 else None


def check(settings: Settings) -> None:
    """Builds what may turn out not to work, for endpoints or not. Raises `ConfigError` with every problem."""
    problems: list[str] = []
    for policy, path in _written(settings).values():
        if policy is not DEFAULT:
            _policy(policy, path, problems)
    if problems:
        raise ConfigError(*problems)


def _written(settings: Settings) -> dict[str, tuple[GuardrailSettings, str]]:
    """Each policy, and where it is written."""
    written = {DEFAULT.name: (DEFAULT, "guardrails.default")}
    return written | {policy.name: (policy, f"guardrails.{at}") for at, policy in enumerate(settings.guardrails)}


def _policy(settings: GuardrailSettings, path: str, problems: list[str]) -> Policy:
    rules: list[Rule] = []
    for at, rule in enumerate(settings.rules):
        place = f"{path}.rules.{at}"
        try:
            rules += _rules(settings.name, rule)
        except registry.CannotBuild as error:
            option = f".{error.option}" if error.option else ""
            problems += [f"{place}{option}: {problem}" for problem in error.problems]
        except ConfigError as error:
            problems += [f"{place}: {problem}" for problem in error.problems]
        except PolicyError as error:
            problems.append(f"{place}: {error}")
    return Policy(settings.name, tuple(rules))


def _rules(policy: str, settings: RuleSettings) -> Iterator[Rule]:
    """One for each word of `detect`; under a name of its own, one for each detector."""
    when = None if settings.when is None else Condition(settings.when)
    secrets = None if settings.rules is None else {rule.kind for rule in registry.rule_file(settings.rules).rules}
    looks: dict[str, registry.Meaning] = {}  # by what tells them apart
    for word in settings.detect:
        meaning = registry.meaning(word, secrets=secrets)
        if meaning is None:  # since the settings were read: the file of rules is another, a package was removed
            raise registry.CannotBuild("detect", f"nothing is called {word!r}")
        place = word if settings.name is None else meaning.detector
        known = looks.get(place, meaning)
        kinds = None if known.kinds is None or meaning.kinds is None else known.kinds | meaning.kinds
        looks[place] = registry.Meaning(meaning.detector, kinds)
    for word, meaning in looks.items():
        yield Rule(
            name=f"{policy}/{settings.name or word}",
            detector=_detector(meaning, settings, looks.values()),
            kinds=meaning.kinds,
            action=settings.action,
            on=_on(meaning.detector, settings),
            when=when,
            sample=settings.sample,
            timeout=settings.timeout,
            fail=settings.fail or usual_fail(settings.action),
            dry_run=settings.dry_run,
            original=settings.send == "original",
            confidence=settings.threshold or 0.0,
        )


def _on(detector: str, settings: RuleSettings) -> frozenset[On]:
    """A stream would wait for its end before one that reads all of it, and that never finds anything there."""
    on = frozenset(settings.on)
    return on - {"output", "tool_args"} if detector == "prompt_injection" else on


def _detector(meaning: registry.Meaning, settings: RuleSettings, looks: Collection[registry.Meaning]) -> Detector:
    name = meaning.detector
    detector = registry.built(name, **_options(name, settings))
    if name == "pii" and settings.action != "log" and "output" in settings.on:
        wanted = [look.kinds for look in looks if look.detector == name]
        if None not in wanted:
            # Streams wait less where nothing long is looked for; else one that looks for all serves all rules.
            narrow = registry.built(name, kinds=tuple(sorted(frozenset[str]().union(*filter(None, wanted)))))
            detector = narrow if narrow.reach != detector.reach else detector
    return detector


def _options(name: str, settings: RuleSettings) -> dict[str, Any]:
    match name:
        case "regex":
            named = {} if settings.name is None else {"kind": settings.name.lower()}
            return {"pattern": settings.pattern, "group": settings.group, **named}
        case "secrets":
            return {"rules": settings.rules, "allow": settings.allow}
        case "prompt_injection":
            return {} if settings.threshold is None else {"threshold": settings.threshold}
        case "presidio":
            return {"model": settings.model, "entities": settings.entities, "language": settings.language}
        case _:
            return settings.options if name not in registry.BUILT_IN else {}
