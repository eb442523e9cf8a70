"""`keepgate guard scan`: what the policies would do, shown before anybody relies on it."""

import io
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import guardrails.detectors
from guardrails import registry
from guardrails.base import DetectorError
from guardrails.detectors.regex import RegexDetector
from guardrails.policy import Condition, On, Policy, Rule
from models.finding import Finding, Segment
from service import guard_scan
from service.policies import policies as configured
from service.settings import load
from tests.support.gateway import keepgate, usage
from tests.support.servers import ROOT

Json = dict[str, Any]

BOTH: frozenset[On] = frozenset({"input", "output"})
INPUT: frozenset[On] = frozenset({"input"})


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Lost:
    """A detector that cannot look."""

    name = "lost"
    kinds = frozenset({"anything"})
    revision = "1"
    reach: int | None = 0
    inline = False

    async def detect(self, segments: Sequence[Segment]) -> Sequence[Finding]:
        del segments
        raise DetectorError("nobody answers")


def policies(**changes: Any) -> list[Policy]:
    """Badges are masked, projects redacted, orders noted; a codename ends it."""
    rules = [
        Rule(name="house/badge", detector=RegexDetector("B-[0-9]{4}", kind="badge"), action="mask", on=INPUT),
        Rule(name="house/project", detector=RegexDetector("PROJ-[0-9]{4}", kind="project"), action="redact", on=BOTH),
        Rule(name="house/order", detector=RegexDetector("order [0-9]+", kind="order"), action="log", on=BOTH),
        Rule(
            name="house/codename",
            detector=RegexDetector("bluebird", kind="codename"),
            action="block",
            on=BOTH,
            **changes,
        ),
    ]
    return [Policy("house", tuple(rules))]


def scanned(given: bytes | str | Json, *, phase: Any = "input", using: list[Policy] | None = None) -> Json:
    source = json.dumps(given) if isinstance(given, dict) else given
    out = io.StringIO()
    code = guard_scan.run(
        io.BytesIO(source.encode() if isinstance(source, str) else source),
        using or policies(),
        endpoint="default",
        phase=phase,
        as_json=True,
        out=out,
    )
    return {"code": code, **json.loads(out.getvalue())}


def shown(given: str, *, using: list[Policy] | None = None) -> str:
    out = Terminal()
    source = io.BytesIO(given.encode())
    guard_scan.run(source, using or policies(), endpoint="default", phase="input", as_json=False, out=out)
    return out.getvalue()


@pytest.mark.parametrize(
    ("text", "outcome", "acted"),
    [
        ("nothing to see", "clean", []),
        ("order 12", "noted", ["house/order=log"]),
        ("PROJ-1234", "changed", ["house/project=redact"]),
        ("bluebird", "blocked", ["house/codename=block"]),
        ("bluebird, order 12", "blocked", ["house/order=log", "house/codename=block"]),
        ("", "clean", []),
    ],
)
def test_it_says_what_becomes_of_a_text(text: str, outcome: str, acted: list[str]) -> None:
    result = scanned(text)

    (item,) = result["items"]
    assert (item["form"], item["outcome"], item["acted"]) == ("text", outcome, acted)
    assert result["outcomes"][outcome] == 1
    assert result["code"] == 0


def test_findings_are_places_in_the_text_and_never_the_text() -> None:
    (item,) = scanned("🙂 about PROJ-1234 and bluebird")["items"]

    assert [(one["kind"], one["start"], one["end"]) for one in item["findings"]] == [
        ("project", 8, 17),
        ("codename", 22, 30),
    ]
    assert "PROJ-1234" not in json.dumps(item)


@pytest.mark.parametrize(
    "body",
    [
        {"model": "m", "messages": [{"role": "user", "content": "see PROJ-1234"}]},
        {
            "model": "m",
            "system": "s",
            "messages": [{"role": "user", "content": [{"type": "text", "text": "PROJ-1234"}]}],
        },
        {"model": "m", "input": "see PROJ-1234", "instructions": "be brief"},
        {"model": "m", "input": [{"role": "user", "content": [{"type": "input_text", "text": "PROJ-1234"}]}]},
        {"contents": [{"role": "user", "parts": [{"text": "see PROJ-1234"}]}]},
        {"model": "m", "prompt": "see PROJ-1234"},
    ],
    ids=["chat", "anthropic", "responses", "responses items", "gemini", "completion"],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_a_request_of_any_dialect_is_told_as_it_would_go_on(body: Json, indent: int | None) -> None:
    (item,) = scanned(json.dumps(body, indent=indent))["items"]

    assert item["form"] == "request"
    assert json.dumps(item["sent"]) == json.dumps(body).replace("PROJ-1234", "[PROJECT]")
    assert item["findings"][0]["role"] == "user"


def test_the_arguments_of_a_tool_call_are_looked_at_and_keep_their_form() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "find", "arguments": '{"who": "B-1234"}'}}

    (item,) = scanned({"messages": [{"role": "assistant", "tool_calls": [call]}]})["items"]

    assert item["findings"][0]["role"] == "tool_args"
    arguments = json.loads(item["sent"]["messages"][0]["tool_calls"][0]["function"]["arguments"])
    assert arguments["who"].startswith("<BADGE_")


@pytest.mark.parametrize(
    "answer",
    [
        {"choices": [{"index": 0, "message": {"role": "assistant", "content": "it is PROJ-1234"}}]},
        {"type": "message", "role": "assistant", "content": [{"type": "text", "text": "it is PROJ-1234"}]},
        {"candidates": [{"content": {"role": "model", "parts": [{"text": "it is PROJ-1234"}]}}]},
        {
            "output": [
                {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "PROJ-1234"}]}
            ]
        },
    ],
    ids=["chat", "anthropic", "gemini", "responses"],
)
def test_an_answer_of_any_dialect_is_told_as_it_would_come_back(answer: Json) -> None:
    (item,) = scanned(answer, phase="output")["items"]

    assert item["form"] == "answer"
    assert json.dumps(item["sent"]) == json.dumps(answer).replace("PROJ-1234", "[PROJECT]")


def test_a_log_is_told_line_by_line_but_for_what_is_clean() -> None:
    chat = {"model": "m", "messages": [{"role": "user", "content": "bluebird"}]}
    lines = [
        json.dumps({"model": "m", "messages": [{"role": "user", "content": "hello"}]}),
        "",
        json.dumps({"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": chat}),
        json.dumps({"time": 5, "request": json.dumps(chat)}),
        json.dumps({"text": "PROJ-1234"}),
        "no JSON, but PROJ-1234",
        json.dumps({"note": "PROJ-1234"}),
    ]

    result = scanned("\n".join(lines))

    told = [(item["line"], item["form"], item["outcome"]) for item in result["items"]]
    assert told == [
        (3, "request", "blocked"),
        (4, "request", "blocked"),
        (5, "text", "changed"),
        (6, "text", "changed"),
        (7, "text", "changed"),
    ]
    assert result["outcomes"] == {"clean": 1, "noted": 0, "changed": 3, "blocked": 2, "unavailable": 0}
    assert result["acted"] == {"house/project=redact": 3, "house/codename=block": 2}


def test_the_answers_of_a_batch_are_found_in_it() -> None:
    body = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "bluebird"}}]}

    (item,) = scanned({"custom_id": "1", "response": {"status_code": 200, "body": body}}, phase="output")["items"]

    assert (item["form"], item["outcome"]) == ("answer", "blocked")


@pytest.mark.parametrize(
    "body",
    [
        {
            "custom_id": "1",
            "params": {"messages": [{"role": "user", "content": "B-1234"}]},
        },
        {"key": "1", "request": {"contents": [{"role": "user", "parts": [{"text": "B-1234"}]}]}},
    ],
    ids=["anthropic", "gemini"],
)
def test_the_requests_of_a_batch_are_found_in_it(body: Json) -> None:
    (item,) = scanned(body)["items"]

    assert (item["form"], item["acted"]) == ("request", ["house/badge=mask"])


def test_the_answers_of_anthropics_batches_are_found_in_them() -> None:
    message = {"type": "message", "role": "assistant", "content": [{"type": "text", "text": "bluebird"}]}

    (item,) = scanned({"custom_id": "1", "result": {"type": "succeeded", "message": message}}, phase="output")["items"]

    assert (item["form"], item["outcome"]) == ("answer", "blocked")


@pytest.mark.parametrize("coding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_log_may_begin_with_the_mark_of_its_encoding(coding: str) -> None:
    lines = ['{"messages": [{"role": "user", "content": "grün"}]}', '{"text": "PROJ-1234"}']

    result = scanned("\r\n".join(lines).encode(coding))

    assert result["outcomes"] == {"clean": 1, "noted": 0, "changed": 1, "blocked": 0, "unavailable": 0}
    assert result["items"][0]["sent"] == "[PROJECT]"


@pytest.mark.parametrize(
    "given",
    [
        b"\xff\xfe order 12",
        b"\xff\xfe order 123",
        b'["order 12"]',
        b'{"a": "order 12"}',
        b'{"messages": ' + b"[" * 20_000 + b'"order 12"' + b"]" * 20_000 + b"}",
        b'{"messages": [{"content": "\\ud800 order 12"}]}',
        b"\n\n  order 12",
        b'{"messages": "order 12"}',
        b'{"text": 5, "note": "order 12"}',
    ],
)
def test_whatever_it_is_given_it_looks_at(given: bytes) -> None:
    result = scanned(given)

    assert result["acted"] == {"house/order=log": 1}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("\U0001f468\u200d\U0001f469\u200d\U0001f467 ", " \U0001f3f3\ufe0f\u200d\U0001f308"),
        ("cafe\u0301 a\u0308\u0323 ", " e\u0301"),
        ("\u05e9\u05dc\u05d5\u05dd ", " \u0645\u0631\u062d\u0628\u0627"),
        ("\u5c08\u6848", "\u5df2\u7d50\u675f"),
        ("\U00020000", "\uff0c\U0002f800"),
    ],
    ids=["emoji", "combining marks", "right to left", "CJK", "beyond the first plane"],
)
def test_places_are_code_points_whatever_stands_around(before: str, after: str) -> None:
    (item,) = scanned(f"{before}PROJ-1234{after}")["items"]

    assert [(one["start"], one["end"]) for one in item["findings"]] == [(len(before), len(before) + 9)]
    assert item["sent"] == f"{before}[PROJECT]{after}"


def test_a_dry_run_is_told_and_stops_nothing() -> None:
    (item,) = scanned("bluebird PROJ-1234", using=policies(dry_run=True))["items"]

    assert item["acted"] == ["house/project=redact", "house/codename=block;dry-run"]
    assert item["sent"] == "bluebird [PROJECT]"


def test_a_rule_for_a_sample_looks_at_everything() -> None:
    assert scanned("bluebird", using=policies(sample=0.001))["outcomes"]["blocked"] == 1


@pytest.mark.parametrize(("model", "outcome"), [("big", "blocked"), ("small", "clean")])
def test_a_condition_is_asked_about_the_request(model: str, outcome: str) -> None:
    using = policies(when=Condition("model == 'big' && endpoint == 'default'"))

    result = scanned({"model": model, "messages": [{"role": "user", "content": "bluebird"}]}, using=using)

    assert result["outcomes"][outcome] == 1


@pytest.mark.parametrize(("fail", "outcome"), [("closed", "unavailable"), ("open", "changed")])
def test_a_detector_that_cannot_look_is_work_that_failed(
    fail: Any, outcome: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = Rule(name="house/lost", detector=Lost(), action="redact", on=INPUT, fail=fail)
    using = [*policies(), Policy("more", (lost,))]

    result = scanned("PROJ-1234", using=using)

    assert result["code"] == 1
    assert result["outcomes"][outcome] == 1
    assert result["items"][0]["failed"] == [{"rule": "house/lost", "reason": "nobody answers"}]
    assert "house/lost could not look (1 times): nobody answers" in capsys.readouterr().err


def test_in_a_terminal_spans_are_coloured_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")

    lines = shown("see PROJ-1234 now").splitlines()

    assert lines[0] == "goes on changed: house/project=redact"
    assert lines[1] == "    see \x1b[43;30mPROJ-1234\x1b[0m\x1b[2m (project redact)\x1b[0m now"


def test_without_colours_spans_are_in_brackets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")

    said = shown("see PROJ-1234, order 12")

    assert "see [[PROJ-1234]] (project redact), [[order 12]] (order log)" in said
    assert "\x1b" not in said


def test_what_is_far_from_any_finding_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")

    said = shown(f"{'a' * 1000}PROJ-1234{'b' * 1000}order 12{'c' * 1000}")

    a, b, c = "a" * 60, "b" * 60, "c" * 60
    assert f"    …{a}[[PROJ-1234]] (project redact){b}…{b}[[order 12]] (order log){c}…\n" in said


def test_findings_that_overlap_are_marked_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    wide = Rule(name="house/wide", detector=RegexDetector("a PROJ-1", kind="wide"), action="log", on=INPUT)

    said = shown("a PROJ-1234", using=[*policies(), Policy("more", (wide,))])

    assert "    [[a PROJ-1234]] (wide log, project redact)\n" in said


def test_nothing_in_a_text_reaches_the_terminal_as_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    body = {"messages": [{"role": "user", "content": "\x1b[2J\x07\u202e PROJ-1234\x9b"}], "\x1b[31m": "PROJ-1234"}

    said = shown(json.dumps(body))

    assert r"\x1b[2J\x07\u202e [[PROJ-1234]] (project redact)\x9b" in said
    assert said.replace("\n", "").isprintable()


# --- the command

TOKEN = "ghp_" + "a1B2c3D4e5F6g7H8i9J0" + "k1L2m3N4o5P6q7R8"  # of the form of an access token, and nobody's
TEXT = f"the key is {TOKEN}, ask jo@example.com"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text(TEXT)
    return file


@pytest.mark.parametrize("level", [["guard"], ["guard", "scan"], ["bench"], ["bench", "guardrails"]], ids=" ".join)
def test_every_level_has_help(level: list[str]) -> None:
    code, shown, _ = usage(*level, "--help")

    assert code == 0
    assert shown.startswith(f"usage: keepgate {' '.join(level)}")


@pytest.mark.parametrize(
    "arguments",
    [
        ["guard"],
        ["guard", "scan", "--phase", "sideways"],
        ["guard", "scan", "a", "b"],
        ["bench", "guardrails"],
        ["bench", "guardrails", "--data", ".", "--detectors", "a,,b"],
        ["bench", "guardrails", "--data", ".", "--alias", "phone"],
    ],
    ids=" ".join,
)
def test_bad_usage_is_2(arguments: list[str]) -> None:
    code, _, said = usage(*arguments)

    assert code == 2
    assert "usage: keepgate" in said


def test_out_of_the_box_secrets_go_and_personal_data_is_noted(text: Path) -> None:
    for phase in ("input", "output"):
        done = keepgate("guard", "scan", str(text), "--phase", phase)

        (item,) = json.loads(done.stdout)["items"]
        assert done.returncode == 0
        assert item["acted"] == ["default/secrets=redact", "default/pii=log"]
        assert item["sent"] == "the key is [GITHUB_PAT], ask jo@example.com"
        assert done.stderr == ""


def test_the_policies_of_a_configuration_are_tried_on_what_comes_in_by_a_pipe(tmp_path: Path) -> None:
    config = tmp_path / "keepgate.yaml"
    config.write_text(
        "guardrails:\n"
        "  - {name: strict, rules: [{detect: email, on: input, action: block}]}\n"
        "endpoints:\n"
        "  - {name: support, guardrails: [strict]}\n"
    )

    done = subprocess.run(  # noqa: S603 - the tests' own command
        [sys.executable, "-m", "service", "guard", "scan", "--config", str(config), "--endpoint", "support"],
        cwd=ROOT,
        input=TEXT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0
    assert json.loads(done.stdout)["acted"] == {"strict/email=block": 1}


def test_a_reader_who_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text(f"{TEXT}\n" * 5_000)

    with subprocess.Popen(  # noqa: S603 - the tests' own command
        [sys.executable, "-m", "service", "guard", "scan", str(log)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as scan:
        assert scan.stdout is not None
        assert scan.stderr is not None
        began = scan.stdout.read(10)
        scan.stdout.close()
        told = scan.stderr.read()

    assert began == b'{"endpoint'
    assert b"Traceback" not in told  # on a slow machine it has told how far it is
    assert b"Broken pipe" not in told
    assert scan.returncode == 141


def test_who_is_to_type_is_told_so() -> None:
    ours, theirs = pty.openpty()
    os.write(ours, b"order 12\n\x04")

    done = subprocess.run(
        [sys.executable, "-m", "service", "guard", "scan"],
        cwd=ROOT,
        stdin=theirs,
        capture_output=True,
        timeout=60,
        check=False,
    )
    os.close(theirs)
    os.close(ours)

    assert done.stderr == b"keepgate: reading what you type; it ends with Ctrl-D\n"
    assert json.loads(done.stdout)["outcomes"]["clean"] == 1


def test_what_cannot_be_done_is_1_and_says_why(tmp_path: Path, text: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("guardrails: [{name: default, rules: [{detect: nonsense, on: input, action: log}]}]")

    no_endpoint = keepgate("guard", "scan", str(text), "--endpoint", "nowhere")
    no_file = keepgate("guard", "scan", str(tmp_path / "none"))
    no_config = keepgate("guard", "scan", str(text), "--config", str(broken))

    assert [no_endpoint.returncode, no_file.returncode, no_config.returncode] == [1, 1, 1]
    assert "no endpoint is named 'nowhere'; known: default" in no_endpoint.stderr
    assert "none cannot be read: No such file or directory" in no_file.stderr
    assert "guardrails.0.rules.0.detect: nothing is called 'nonsense'" in no_config.stderr
    assert no_endpoint.stdout == no_file.stdout == no_config.stdout == ""


def test_in_a_terminal_a_person_is_shown_the_spans(text: Path) -> None:
    ours, theirs = pty.openpty()
    environ = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | {"TERM": "xterm"}

    done = subprocess.run(  # noqa: S603 - the tests' own command
        [sys.executable, "-m", "service", "guard", "scan", str(text)],
        cwd=ROOT,
        env=environ,
        stdout=theirs,
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    os.close(theirs)
    said = os.read(ours, 65536).decode()
    os.close(ours)

    assert done.returncode == 0
    assert f"\x1b[43;30m{TOKEN}\x1b[0m\x1b[2m (github_pat redact, api_key redact)" in said
    assert "input of endpoint default, 2 rules: 1 changed" in said


def test_the_benchmark_prints_a_table_and_writes_json(tmp_path: Path) -> None:
    data, result = tmp_path / "data", tmp_path / "result.json"
    data.mkdir()
    tag = "\U000e0041"
    cases = [
        {"text": f"a{tag}b", "spans": [{"start": 1, "end": 2, "kind": "unicode_tags"}]},
        {"text": "ab", "label": 0},
    ]
    (data / "set.jsonl").write_text("\n".join(map(json.dumps, cases)))

    done = keepgate("bench", "guardrails", "--data", str(data), "--detectors", "hidden_text", "--json", str(result))

    assert done.returncode == 0
    assert "set.jsonl: 2 texts" in done.stdout
    measured = json.loads(result.read_text())
    assert measured["sets"]["set.jsonl"]["kinds"]["unicode_tags"]["recall"] == 1.0
    assert measured["speed"]["hidden_text"]["worst"]


# --- the example of CONTRIBUTING.md


def blocks(language: str) -> list[str]:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text[text.index("## Adding a detector") : text.index("## Tests")]
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)


async def test_the_detector_of_the_contributors_guide_works_with_one_file_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, line = blocks("python")
    (config,) = blocks("yaml")
    (tmp_path / "badges.py").write_text(module)
    (tmp_path / "keepgate.yaml").write_text(config)
    monkeypatch.setattr(guardrails.detectors, "__path__", [*guardrails.detectors.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "guardrails.detectors.badges", raising=False)
    for name, target in json.loads(f"{{{line.strip().rstrip(',')}}}").items():
        monkeypatch.setitem(registry.BUILT_IN, name, target)

    applying = configured(load(tmp_path / "keepgate.yaml", {}))["default"]
    item = next(guard_scan.items(io.BytesIO(b"B-123455 let B-123459 in"), phase="input"))
    verdict = await guard_scan.judge(item, applying, endpoint="default", phase="input")

    assert verdict.sent == "[BADGE_NUMBER] let B-123459 in"
    assert verdict.acted == ("default/badges=redact",)


def written_policies() -> list[str]:
    """The configurations in the documentation of guardrails."""
    pages = [ROOT / "README.md", ROOT / "docs" / "guardrails.md"]
    found = [block for page in pages for block in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL)]
    return [block for block in found if "guardrails:" in block]


@pytest.mark.parametrize("block", written_policies())
def test_the_policies_in_the_documentation_can_be_used(block: str, tmp_path: Path) -> None:
    # A policy that comes with an endpoint of several stands beside the one before it.
    default = "" if "name: default" in block else "  - {name: default, rules: []}\n"
    (tmp_path / "keepgate.yaml").write_text(block.replace("guardrails:\n", f"guardrails:\n{default}", 1))

    applying = configured(load(tmp_path / "keepgate.yaml", {}))

    assert any(policy.rules for policies in applying.values() for policy in policies)


def test_a_secret_goes_and_an_address_is_masked_with_the_three_lines_of_the_readme(tmp_path: Path, text: Path) -> None:
    (block,) = re.findall(r"```yaml\n(guardrails:.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    config = tmp_path / "keepgate.yaml"
    config.write_text(block)

    done = keepgate("guard", "scan", "--config", str(config), str(text))

    assert len(block.splitlines()) == 3
    assert re.fullmatch(
        r"the key is \[GITHUB_PAT\], ask <EMAIL_[0-9a-f]{6}>", json.loads(done.stdout)["items"][0]["sent"]
    )
