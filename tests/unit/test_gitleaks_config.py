from pathlib import Path

import pytest

from guardrails.detectors.secrets import SecretsDetector
from guardrails.gitleaks import RuleFile, load
from models.errors import ConfigError
from models.finding import Segment


def written(folder: Path, text: str, name: str = "gitleaks.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def found(rules: RuleFile, text: str) -> list[tuple[str, str]]:
    findings = SecretsDetector(rules.rules).scan(Segment(0, text))
    return [(finding.rule, text[finding.start : finding.end]) for finding in findings]


def test_reads_a_rule_as_gitleaks_does(tmp_path: Path) -> None:
    rules = load(
        written(
            tmp_path,
            """
            title = "ours"
            minVersion = "v8.25.0"
            [[rules]]
            id = "Our-Token.v2"
            description = "A token of ours"
            regex = '''(?i)our[_-]?token\\s*=\\s*(["']?)(our-[0-9a-f]{8})'''
            secretGroup = 2
            entropy = 2.5
            keywords = ["OUR"]
            tags = ["ours"]
            """,
        )
    )

    (rule,) = rules.rules

    assert (rule.id, rule.kind, rule.keywords, rule.group) == ("Our-Token.v2", "our_token_v2", ("our",), 2)
    assert found(rules, "OUR_TOKEN = 'our-01234567'") == [("Our-Token.v2", "our-01234567")]
    assert found(rules, "OUR_TOKEN = 'our-00000000'") == []
    assert rules.notes == ()


def test_the_secret_is_the_first_group_that_took_part(tmp_path: Path) -> None:
    rules = load(written(tmp_path, "[[rules]]\nid = 'a'\nregex = '''a=(?:\"([a-z]+)\"|([a-z]+))'''"))

    assert found(rules, 'a="xyz" a=uvw') == [("a", "xyz"), ("a", "uvw")]


@pytest.mark.parametrize(
    ("allowlist", "left"),
    [
        ("[[rules.allowlists]]\nregexes = ['^aaa']", ["bbb1", "ccc1"]),
        ("[rules.allowlist]\nregexes = ['^aaa']", ["bbb1", "ccc1"]),
        ("[[rules.allowlists]]\nregexTarget = 'match'\nregexes = ['y=']", ["aaa1", "ccc1"]),
        ("[[rules.allowlists]]\nregexTarget = 'line'\nregexes = ['# test$']", ["aaa1", "bbb1"]),
        ("[[rules.allowlists]]\nstopwords = ['BB']", ["aaa1", "ccc1"]),
        ("[[rules.allowlists]]\nregexes = ['^a']\nstopwords = ['bb']", ["ccc1"]),
        ("[[rules.allowlists]]\ncondition = 'AND'\nregexes = ['^[ab]']\nstopwords = ['bb']", ["aaa1", "ccc1"]),
        ("[[rules.allowlists]]\ncondition = 'AND'\nregexes = ['^[ab]']\npaths = ['x']", ["aaa1", "bbb1", "ccc1"]),
        ("[[rules.allowlists]]\npaths = ['x']\ncommits = ['y']", ["aaa1", "bbb1", "ccc1"]),
        ("[allowlist]\nregexes = ['^ccc']", ["aaa1", "bbb1"]),
        ("[[allowlists]]\ntargetRules = ['r']\nregexes = ['^ccc']", ["aaa1", "bbb1"]),
        ("[[allowlists]]\ntargetRules = ['another']\nregexes = ['^ccc']", ["aaa1", "bbb1", "ccc1"]),
    ],
)
def test_allowlists_say_what_is_no_secret(tmp_path: Path, allowlist: str, left: list[str]) -> None:
    rules = load(written(tmp_path, f"[[rules]]\nid = 'r'\nregex = '''[xyz]=([a-z]{{3}}1)'''\n{allowlist}\n"))

    assert [secret for _, secret in found(rules, "x=aaa1\ny=bbb1\nz=ccc1 # test\n")] == left


def test_a_rule_for_file_names_is_left_out_with_a_note(tmp_path: Path) -> None:
    rules = load(
        written(
            tmp_path,
            "[[rules]]\nid = 'file'\npath = '''x$'''\n[[rules]]\nid = 'both'\npath = '''x$'''\nregex = '''s3cr3t'''",
        )
    )

    assert [rule.id for rule in rules.rules] == ["both"]
    assert any("'file'" in note and "left out" in note for note in rules.notes)
    assert found(rules, "a s3cr3t") == [("both", "s3cr3t")]


def test_extends_another_file_and_mends_its_rules(tmp_path: Path) -> None:
    written(tmp_path, "[[rules]]\nid='a'\nregex='''a[0-9]'''\n[[rules]]\nid='b'\nregex='''b[0-9]'''\n", "base.toml")
    rules = load(
        written(
            tmp_path,
            "[extend]\npath = 'base.toml'\ndisabledRules = ['b']\n"
            "[[rules]]\nid = 'a'\n[[rules.allowlists]]\nregexes = ['1']\n"
            "[[rules]]\nid = 'c'\nregex = '''c[0-9]'''\n",
        )
    )

    assert found(rules, "a1 a2 b1 c1") == [("a", "a2"), ("c", "c1")]


def test_the_rules_keepgate_ships_stand_in_for_the_default_ones(tmp_path: Path) -> None:
    rules = load(written(tmp_path, "[extend]\nuseDefault = true\n[[rules]]\nid = 'own'\nregex = '''own-[0-9]+'''\n"))

    assert {"github-pat", "private-key", "own"} <= {rule.id for rule in rules.rules}
    assert any("useDefault" in note for note in rules.notes)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[[rules]]\nid = 'a'\nregex = '''a(?=b)'''", "gitleaks.toml:1: rule 'a': regex: invalid perl operator: (?="),
        ("\n\n[[rules]]\nid = 'a'\nregex = '''a('''", "gitleaks.toml:3: rule 'a': regex: missing )"),
        ("[[rules]]\nid = 'a'\n[[rules]]\nregex = '''a'''", "gitleaks.toml:3: a rule without an id"),
        ("[[rules]]\nid = 'a'", "rule 'a': has neither regex nor path"),
        ("[[rules]]\nid = 'a'\nregex = '''(a)'''\nsecretGroup = 2", "secretGroup is 2, and the regex has 1 groups"),
        ("[[rules]]\nid = 'a'\nregex = '''a'''\nentropy = 'high'", "entropy is not a number"),
        ("[[rules]]\nid = 'a'\nregex = '''a'''\nkeywords = 'a'", "keywords is not a list of strings"),
        (
            "[[rules]]\nid = 'a'\nregex = '''a'''\n[[rules.allowlists]]\nregexes = ['(']",
            "rule 'a': allowlist: missing )",
        ),
        ("[[rules]]\nid = 'a'\nregex = '''a'''\n[[rules.allowlists]]\nregexTarget = 'file'", "regexTarget is one of"),
        ("[extend]\nurl = 'https://x.org/a.toml'\n[[rules]]\nid='a'\nregex='''a'''", "extend.url is not fetched"),
        ("[extend]\npath = 'gitleaks.toml'", "extend goes deeper than"),
        ("[extend]\npath = 'missing.toml'", "missing.toml: cannot be read"),
        ("rules = 3", "rules is not a list of tables"),
        ("title = 'nothing'", "no rule that looks at text"),
        ("[[rules]\n", "gitleaks.toml: Expected"),
    ],
)
def test_an_error_names_file_rule_and_reason(tmp_path: Path, text: str, reason: str) -> None:
    path = written(tmp_path, text)

    with pytest.raises(ConfigError) as refused:
        load(path)

    assert reason in str(refused.value)
    assert str(tmp_path) in str(refused.value)


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    path = written(tmp_path, "[[rules]]\nid = 'a'\nregex = '''('''\n[[rules]]\nid = 'b'\nregex = ''')'''\n")

    with pytest.raises(ConfigError) as refused:
        load(path)

    assert len(refused.value.problems) == 2


def test_the_revision_changes_with_the_file_and_what_it_extends(tmp_path: Path) -> None:
    own = "[extend]\npath = 'base.toml'\n[[rules]]\nid = 'b'\nregex = '''b'''\n"
    written(tmp_path, "[[rules]]\nid = 'a'\nregex = '''a'''\n", "base.toml")
    before = load(written(tmp_path, own)).revision
    written(tmp_path, "[[rules]]\nid = 'a'\nregex = '''aa'''\n", "base.toml")
    extended = load(tmp_path / "gitleaks.toml").revision
    changed = load(written(tmp_path, own + "# and a word more\n")).revision

    assert len({before, extended, changed}) == 3
