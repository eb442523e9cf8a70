"""From settings to policies. What detectors find, and what the engine does with it, is tested elsewhere."""

from collections.abc import Callable
from pathlib import Path

import pytest

from guardrails.engine import screen
from guardrails.policy import Facts, Policy, Rule
from models.errors import ConfigError
from models.finding import Segment
from service.policies import check, policies
from service.settings import Settings, load

Reading = Callable[[str], Settings]

RULES = '[[rules]]\nid = "acme-key"\nregex = "acme_[a-z]{8}"\n'


@pytest.fixture
def settings(tmp_path: Path) -> Reading:
    def of_text(text: str) -> Settings:
        path = tmp_path / "keepgate.yaml"
        path.write_text(text.replace("HERE", str(tmp_path)), encoding="utf-8")
        return load(path, {})

    return of_text


@pytest.fixture
def rules(settings: Reading) -> Callable[[str], tuple[Rule, ...]]:
    """Of a policy named `p` with these rules, in YAML's short form."""

    def of_text(text: str) -> tuple[Rule, ...]:
        (policy,) = policies(
            settings(
                f"endpoints: [{{name: a, guardrails: [p]}}, {{name: default, guardrails: []}}]\n"
                f"guardrails: [{{name: p, rules: [{text}]}}]"
            )
        )["a"]
        return policy.rules

    return of_text


def told(policy: Policy) -> list[tuple[str, str, list[str], str]]:
    return [(rule.name, rule.action, sorted(rule.on), rule.fail) for rule in policy.rules]


def test_a_new_user_gets_secrets_redacted_and_personal_data_logged(settings: Reading) -> None:
    (default,) = policies(settings(""))["default"]

    assert told(default) == [
        ("default/secrets", "redact", ["input", "output"], "closed"),
        ("default/pii", "log", ["input", "output"], "open"),
    ]


def test_a_policy_named_default_takes_the_place_of_the_built_in_one(settings: Reading) -> None:
    found = policies(settings("guardrails: [{name: default, rules: [{detect: email, on: input, action: block}]}]"))

    assert [told(policy) for policy in found["default"]] == [[("default/email", "block", ["input"], "closed")]]


def test_a_policy_named_default_without_rules_switches_them_off(settings: Reading) -> None:
    assert policies(settings("guardrails: [{name: default}]"))["default"] == (Policy("default", ()),)


def test_each_endpoint_has_its_own_in_the_order_it_names_them(settings: Reading) -> None:
    found = policies(
        settings(
            "endpoints: [{name: faq, guardrails: [legal, default]}, {name: raw, guardrails: []}, {name: plain}]\n"
            "guardrails: [{name: legal, rules: [{detect: regex, pattern: legal, on: output, action: block}]}]"
        )
    )

    assert {endpoint: [policy.name for policy in applied] for endpoint, applied in found.items()} == {
        "faq": ["legal", "default"],
        "raw": [],
        "plain": ["default"],
        "default": ["default"],
    }


def test_endpoints_and_configurations_share_what_is_the_same(settings: Reading) -> None:
    first = policies(settings("endpoints: [{name: a}, {name: b}]"))
    second = policies(settings("endpoints: [{name: c}]"))

    assert first["a"][0] is first["b"][0]
    assert [rule.detector for rule in second["c"][0].rules] == [rule.detector for rule in first["a"][0].rules]


def test_each_word_is_a_rule_of_one_detector(rules: Callable[[str], tuple[Rule, ...]]) -> None:
    found = rules("{detect: [email, iban, zero_width], on: [input, tool_result], action: redact}")

    assert [(rule.name, rule.kinds) for rule in found] == [
        ("p/email", frozenset({"email"})),
        ("p/iban", frozenset({"iban"})),
        ("p/zero_width", frozenset({"zero_width"})),
    ]
    assert found[0].detector is found[1].detector


def test_words_under_one_name_are_a_rule_of_each_detector(rules: Callable[[str], tuple[Rule, ...]]) -> None:
    found = rules("{detect: [email, iban, zero_width, hidden_text], name: people, on: input, action: redact}")

    assert [(rule.name, rule.detector.name, rule.kinds) for rule in found] == [
        ("p/people", "pii", frozenset({"email", "iban"})),
        ("p/people", "hidden_text", None),
    ]


def test_a_rule_has_what_it_says(rules: Callable[[str], tuple[Rule, ...]]) -> None:
    (rule,) = rules(
        "{detect: email, on: [tool_args], action: block, when: \"model == 'm'\", sample: 0.5, timeout: 2s, fail: open,"
        " dry_run: true, send: original, threshold: 0.8}"
    )

    assert (rule.sample, rule.timeout, rule.fail, rule.dry_run) == (0.5, 2.0, "open", True)
    assert (rule.original, rule.confidence, rule.on) == (True, 0.8, frozenset({"tool_args"}))
    assert rule.when is not None
    assert rule.when.holds(Facts("m", "a")) is True
    assert rule.when.holds(Facts("n", "a")) is False


async def test_a_pattern_is_found_under_the_name_of_its_rule(rules: Callable[[str], tuple[Rule, ...]]) -> None:
    found = rules(
        '{detect: regex, name: Project-Code, pattern: "[(](PROJ-[0-9]{4})", group: 1, on: input, action: redact}'
    )

    screened = await screen([Segment(0, "see (PROJ-1234) now")], found, phase="input")

    assert screened.texts == {0: "see ([PROJECT_CODE]) now"}
    assert screened.acted == ("p/Project-Code=redact",)


async def test_what_is_allowed_is_no_secret(rules: Callable[[str], tuple[Rule, ...]]) -> None:
    key, other = "AKIA" + "Z3MSJV4WYXWXAABB", "AKIA" + "Z3MSJV4WYXWXAABC"
    found = rules(f"{{detect: secrets, on: input, action: redact, allow: {key}}}")

    screened = await screen([Segment(0, f"{key} and {other}")], found, phase="input")

    assert screened.texts == {0: f"{key} and [AWS_ACCESS_KEY]"}


async def test_rules_of_a_file_take_the_place_of_the_shipped_ones(
    rules: Callable[[str], tuple[Rule, ...]], tmp_path: Path
) -> None:
    (tmp_path / "rules.toml").write_text(RULES)

    found = rules("{detect: acme_key, rules: HERE/rules.toml, on: input, action: redact}")
    screened = await screen([Segment(0, "use acme_abcdefgh")], found, phase="input")

    assert screened.texts == {0: "use [ACME_KEY]"}


def test_a_stream_waits_for_nothing_long_where_only_addresses_are_looked_for(
    rules: Callable[[str], tuple[Rule, ...]],
) -> None:
    addresses = rules("{detect: [email, crypto_address], on: output, action: redact}")
    numbers = rules("{detect: [email, iban], on: output, action: redact}")

    assert [rule.detector.reach for rule in addresses] == [0, 0]
    assert addresses[0].detector is addresses[1].detector
    assert numbers[0].detector.reach != 0


def test_prompt_injection_is_not_looked_for_where_it_cannot_be(rules: Callable[[str], tuple[Rule, ...]]) -> None:
    (rule,) = rules("{detect: prompt_injection, threshold: 0.9, on: [input, output], action: block}")

    assert rule.on == {"input"}
    assert rule.confidence == 0.9


def test_a_file_that_broke_since_it_was_read_is_a_problem_at_its_path(settings: Reading, tmp_path: Path) -> None:
    (tmp_path / "rules.toml").write_text(RULES)
    read = settings(
        "guardrails: [{name: default, rules: [{detect: secrets, rules: HERE/rules.toml, on: input, action: block}]}]"
    )
    (tmp_path / "rules.toml").write_text(RULES.replace("]{8}", "{8}"))

    with pytest.raises(ConfigError) as refused:
        policies(read)

    (problem,) = refused.value.problems
    assert problem.startswith(f"guardrails.0.rules.0.rules: {tmp_path}/rules.toml:1: rule 'acme-key': regex: missing ]")


def test_a_pattern_of_a_file_that_reading_cannot_judge_is_found_by_a_check(settings: Reading, tmp_path: Path) -> None:
    (tmp_path / "rules.toml").write_text(RULES.replace("acme_[a-z]{8}", "(?:acme)*"))
    read = settings(
        "guardrails: [{name: spare, rules: [{detect: secrets, rules: HERE/rules.toml, on: input, action: block}]}]"
    )

    with pytest.raises(ConfigError) as refused:
        check(read)

    (problem,) = refused.value.problems
    assert problem.startswith(
        f"guardrails.0.rules.0.rules: {tmp_path}/rules.toml:2: rule 'acme-key': it matches the empty text"
    )


def test_what_no_endpoint_has_is_not_built(settings: Reading, tmp_path: Path) -> None:
    (tmp_path / "rules.toml").write_text(RULES.replace("acme_[a-z]{8}", "(?:acme)*"))
    read = settings(
        "endpoints: [{name: default, guardrails: []}]\n"
        "guardrails: [{name: spare, rules: [{detect: secrets, rules: HERE/rules.toml, on: input, action: block}]}]"
    )

    assert policies(read) == {"default": ()}


@pytest.mark.parametrize(("mode", "place"), [(0o700, "cache/keepgate"), (0o770, "home")])
def test_what_takes_long_to_compile_is_kept_where_nobody_else_writes(
    settings: Reading, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, place: str
) -> None:
    databases = pytest.importorskip("guardrails.databases")
    (tmp_path / "cache" / "keepgate").mkdir(parents=True)
    (tmp_path / "cache" / "keepgate").chmod(mode)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    try:
        policies(settings("endpoints: [{name: default, guardrails: []}]"), tmp_path / "home")

        assert databases._kept.folder == tmp_path / place / "patterns"
    finally:
        databases.keep_in(None)
