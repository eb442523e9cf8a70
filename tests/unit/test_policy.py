"""Which rules there are, and which of them apply to a request."""

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from guardrails.policy import Condition, Facts, Policy, PolicyError, Rule, chosen, finds_secrets, revision, usual_fail
from models.finding import Finding, Segment

FACTS = Facts("gpt-4o", "support", "crm", {"x-team": "blue"})


class Nothing:
    """Finds nothing."""

    reach: int | None = 0
    inline = True

    def __init__(self, name: str = "pii", kinds: frozenset[str] = frozenset({"email", "phone"}), revision: str = "1"):
        self.name = name
        self.kinds = kinds
        self.revision = revision

    async def detect(self, segments: Sequence[Segment]) -> Sequence[Finding]:
        del segments
        return []


PII = Nothing()


def rule(**fields: Any) -> Rule:
    return Rule(**{"name": "default/pii", "detector": PII, "action": "redact", "on": frozenset({"input"}), **fields})


def policy(*rules: Rule) -> list[Policy]:
    return [Policy("default", rules)]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"action": "mask", "on": frozenset({"input", "output"})}, "cannot be on output"),
        ({"on": frozenset()}, "nothing to look at"),
        ({"kinds": frozenset({"email", "iban"})}, "finds no iban"),
        ({"sample": 0.0}, "`sample`"),
        ({"sample": 1.1}, "`sample`"),
        ({"timeout": 0.0}, "`timeout`"),
        ({"timeout": float("inf")}, "`timeout`"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(PolicyError, match=reason):
        rule(**fields)


def test_a_detector_of_any_kinds_takes_all_names() -> None:
    open_ended = Nothing("ner", frozenset())

    assert rule(detector=open_ended, kinds=frozenset({"person"})).kinds == frozenset({"person"})


@pytest.mark.parametrize(
    ("on", "phase", "roles"),
    [
        ({"input"}, "input", {"user", "system", "tool_args", "tool_result", "name", "document", "other"}),
        ({"input"}, "output", set()),
        ({"output"}, "output", {"user", "system", "tool_args", "tool_result", "name", "document", "other"}),
        ({"output"}, "input", set()),
        ({"tool_args"}, "input", {"tool_args"}),
        ({"tool_args"}, "output", {"tool_args"}),
        ({"tool_result"}, "input", {"tool_result"}),
        ({"tool_result"}, "output", set()),
        ({"tool_args", "tool_result"}, "input", {"tool_args", "tool_result"}),
    ],
)
def test_a_rule_looks_at_what_it_is_on(on: set[str], phase: Any, roles: set[str]) -> None:
    looking = rule(on=frozenset(on))

    every: list[Any] = ["user", "system", "tool_args", "tool_result", "name", "document", "other"]
    assert {role for role in every if looking.looks_at(role, phase)} == roles


def test_a_mask_never_acts_on_an_answer() -> None:
    masking = rule(action="mask", on=frozenset({"tool_args"}))

    assert masking.looks_at("tool_args", "input")
    assert not masking.looks_at("tool_args", "output")


@pytest.mark.parametrize("name", ["secrets", "detect_secrets"])
def test_a_mask_of_secrets_redacts(name: str) -> None:
    assert rule(detector=Nothing(name), action="mask").acts == "redact"
    assert rule(action="mask").acts == "mask"


def test_a_detector_of_somebody_else_may_say_that_it_finds_secrets() -> None:
    theirs = Nothing("vault")
    assert not finds_secrets(theirs)

    theirs.secrets = True  # type: ignore[attr-defined]  # not in the protocol

    assert finds_secrets(theirs)


def test_only_what_logs_fails_open_unless_told() -> None:
    assert [usual_fail(action) for action in ("block", "redact", "mask", "log")] == [
        "closed",
        "closed",
        "closed",
        "open",
    ]


# --- conditions


@pytest.mark.parametrize(
    ("source", "holds"),
    [
        ('model == "gpt-4o"', True),
        ('model.startsWith("claude")', False),
        ('endpoint in ["support", "sales"] && key != ""', True),
        ('headers["x-team"] == "blue"', True),
        ('"x-team" in headers && headers["x-team"] == "red"', False),
        ('headers["x-other"] == "blue"', None),
        ("true", True),
    ],
)
def test_a_condition_asks_about_the_request(source: str, holds: bool | None) -> None:
    assert Condition(source).holds(FACTS) is holds


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("model ==", "Syntax error"),
        ("body.contains('x')", "knows no 'body'"),
        ("model + 1", "Unsupported operation"),
        ("model.nothing()", "nothing"),
        ('"yes"', "neither true nor false"),
        ("1", "neither true nor false"),
        ('model == "' + "a" * 5000 + '"', "longer than"),
    ],
)
def test_one_that_cannot_be_used_is_refused_with_the_reason(source: str, reason: str) -> None:
    with pytest.raises(PolicyError, match=reason):
        Condition(source)


def test_a_rule_applies_where_its_condition_holds() -> None:
    one, other = rule(when=Condition('key == "crm"')), rule(when=Condition('key == "web"'))

    choice = chosen(policy(one, other), FACTS, 0.0)

    assert choice.rules == (one,)
    assert choice.keepable
    assert choice.revision == revision([one])


def test_a_condition_that_fails_counts_as_one_that_holds_where_the_rule_fails_closed() -> None:
    fails = Condition('headers["x-other"] == "a"')
    closed, opened, logging = (
        rule(when=fails),
        rule(when=fails, fail="open"),
        rule(when=fails, fail="open", action="log"),
    )

    assert chosen(policy(closed), FACTS, 0.0)[:2] == ((closed,), True)
    assert chosen(policy(opened), FACTS, 0.0)[:2] == ((), False)
    assert chosen(policy(logging), FACTS, 0.0)[:2] == ((), True)


# --- samples and revisions


@pytest.mark.parametrize(("draw", "looks"), [(0.0, True), (0.0999, True), (0.1, False), (0.99, False)])
def test_a_sample_looks_at_its_share_of_requests(draw: float, looks: bool) -> None:
    sampled = rule(sample=0.1)

    choice = chosen(policy(sampled), FACTS, draw)

    assert choice.rules == ((sampled,) if looks else ())
    assert choice.keepable is looks
    assert choice.revision == revision([sampled])


def test_what_only_logs_may_be_sampled_without_harm() -> None:
    assert chosen(policy(rule(sample=0.1, action="log")), FACTS, 0.5).keepable


def test_rules_of_several_policies_keep_their_order() -> None:
    first, second = rule(name="a/x"), rule(name="b/y")

    assert chosen([Policy("a", (first,)), Policy("b", (second,))], FACTS, 0.0).rules == (first, second)


def test_no_rules_have_no_revision() -> None:
    assert revision([]) == ""
    assert chosen([], FACTS, 0.0) == ((), True, "")


@pytest.mark.parametrize(
    "fields",
    [
        {"detector": Nothing(revision="2")},
        {"detector": Nothing("other")},
        {"action": "log"},
        {"kinds": frozenset({"email"})},
        {"on": frozenset({"output"})},
        {"dry_run": True},
        {"confidence": 0.5},
        {"original": True},
    ],
)
def test_whatever_changes_what_is_done_changes_the_revision(fields: dict[str, Any]) -> None:
    assert revision([rule(**fields)]) != revision([rule()])


@pytest.mark.parametrize("fields", [{"name": "new name"}, {"sample": 0.5}, {"timeout": 1.0}, {"fail": "open"}])
def test_what_changes_nothing_does_not(fields: dict[str, Any]) -> None:
    assert revision([rule(**fields)]) == revision([rule()])


def test_the_order_of_rules_and_the_key_of_placeholders_count() -> None:
    one, other = rule(), rule(action="mask")

    assert revision([one, other]) != revision([other, one])
    assert revision([other], placeholders="k1") != revision([other], placeholders="k2")
    assert revision([one], placeholders="k1") == revision([one], placeholders="k2")


def test_a_revision_is_the_same_in_every_process() -> None:
    assert revision([rule(kinds=frozenset({"phone", "email"}))]) == revision(
        [rule(kinds=frozenset({"email", "phone"}))]
    )
    assert len(msgspec.json.encode(revision([rule()]))) == 18
