"""Commands as a shell runs them: what goes to stdout, what to stderr, and the exit code."""

import json
import re
import socket
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.support.gateway import Mock, keepgate, running_gateway, settings, usage
from tests.support.servers import free_port, running

COMMANDS: list[list[str]] = [
    [],
    ["serve"],
    ["check-config"],
    ["mock-upstream"],
    ["tune"],
    ["keys"],
    ["keys", "create"],
    ["keys", "list"],
    ["keys", "revoke"],
]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "keepgate.yaml"
    file.write_text(json.dumps(settings(tmp_path, "http://127.0.0.1:9/v1")))
    return file


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_level_has_help(command: list[str]) -> None:
    code, shown, errors = usage(*command, "--help")

    assert code == 0
    assert shown.startswith(f"usage: keepgate {' '.join(command)}".rstrip())
    assert errors == ""


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["no-such-command"],
        ["serve", "--port", "70000"],
        ["serve", "--workers", "0"],
        ["mock-upstream", "--error-rate", "2"],
        ["keys"],
        ["keys", "create"],
        ["keys", "create", "--name", "x", "--expires", "soon"],
        ["keys", "create", "--name", "x", "--expires", "9999d"],
        ["keys", "create", "--name", "x", "--expires", "0s"],
        ["keys", "create", "--name", ""],
        ["keys", "create", "--name", "two\nlines"],
        ["keys", "create", "--name", "\x1b[31mred"],
        ["keys", "create", "--name", "x" * 129],
        ["keys", "create", "--name", "x", "--team", " "],
        ["keys", "create", "--name", "x", "--model", "\x07"],
        ["check-config"],
    ],
    ids=" ".join,
)
def test_bad_usage_is_2_and_says_what_was_expected(arguments: list[str]) -> None:
    code, out, said = usage(*arguments)

    assert code == 2
    assert "usage: keepgate" in said
    assert out == ""


def test_the_shell_is_given_the_exit_code_of_bad_usage() -> None:
    refused = keepgate("keys")

    assert refused.returncode == 2
    assert "usage: keepgate" in refused.stderr
    assert refused.stdout == ""


def test_the_version_is_that_of_the_package() -> None:
    assert re.fullmatch(r"keepgate \d+\.\d+\.\d+\n", keepgate("--version").stdout)


# --- check-config


def test_a_valid_file_is_said_to_be_valid(config: Path) -> None:
    plain, machine = keepgate("check-config", str(config)), keepgate("check-config", str(config), "--json")

    assert (plain.returncode, machine.returncode) == (0, 0)
    assert plain.stdout == f"{config} is valid\n"
    assert json.loads(machine.stdout) == {"valid": True, "problems": [], "warnings": []}


def test_every_problem_has_its_own_line_with_its_path(tmp_path: Path) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(
        "server: {port: eighty, wrokers: 2}\n"
        "upstreams: [{name: a, provider: openai, api_key: env.KEEPGATE_TEST_UNSET}]\n"
        "endpoints: [{name: default, cache: {mode: sometimes}}]\n"
    )

    plain, machine = keepgate("check-config", str(file)), keepgate("check-config", str(file), "--json")

    lines = plain.stdout.splitlines()
    paths = {line.partition(": ")[0] for line in lines}
    assert (plain.returncode, machine.returncode) == (1, 1)
    assert {"server.port", "server.wrokers", "upstreams.0.api_key", "endpoints.0.cache.mode"} <= paths
    assert json.loads(machine.stdout)["problems"] == lines
    assert "workers" in plain.stdout


def test_rules_that_only_fail_when_they_are_built_are_problems_too(tmp_path: Path) -> None:
    rules, file = tmp_path / "rules.toml", tmp_path / "guarded.yaml"
    rules.write_text('[[rules]]\nid = "anything"\nregex = "x*"\n')
    file.write_text(
        f"guardrails: [{{name: spare, rules: [{{detect: secrets, rules: {rules}, on: input, action: block}}]}}]"
    )

    checked = keepgate("check-config", str(file))

    assert checked.returncode == 1
    assert checked.stdout.startswith(
        f"guardrails.0.rules.0.rules: {rules}:2: rule 'anything': it matches the empty text"
    )


def test_a_file_that_is_not_there_is_a_problem_and_no_traceback(tmp_path: Path) -> None:
    missing = keepgate("check-config", str(tmp_path / "none.yaml"))

    assert missing.returncode == 1
    assert "cannot be read" in missing.stdout
    assert missing.stderr == ""


def test_serve_refuses_a_broken_file_with_every_problem(tmp_path: Path) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text("server: {port: eighty}\ncache: {exact: {store: paper}}\n")

    refused = keepgate("serve", "--config", str(file))

    assert refused.returncode == 1
    assert refused.stdout == ""
    assert "server.port" in refused.stderr
    assert "cache.exact.store" in refused.stderr
    assert "Traceback" not in refused.stderr


# --- keys


def test_a_key_is_made_listed_and_revoked_without_a_gateway(config: Path) -> None:
    options = ["--config", str(config)]
    made = keepgate("keys", "create", "--name", "my app", "--team", "blue", "--expires", "90d", *options)
    key_id = re.findall(r"Key (\w+) \(my app\)", made.stderr)[0]
    listed = keepgate("keys", "list", *options)
    revoked = keepgate("keys", "revoke", key_id, *options)
    after = json.loads(keepgate("keys", "list", "--json", *options).stdout)

    assert [command.returncode for command in (made, listed, revoked)] == [0, 0, 0]
    # Nothing but the secret: KEY=$(keepgate keys create ...) works.
    assert re.fullmatch(r"kg-[\w-]{43}\n", made.stdout)
    expires = time.strftime("%Y-%m-%d %H:%M", time.gmtime(after[0]["expires_at"]))
    assert listed.stdout.startswith("ID ")
    assert listed.stdout.splitlines()[0].split()[-3:] == ["CREATED", "EXPIRES", "STATE"]
    assert re.search(rf"^{key_id} +my app +blue +all +all +\S+ \S+ +{expires} +active$", listed.stdout, re.MULTILINE)
    assert made.stdout.strip() not in listed.stdout
    assert [key["key_id"] for key in after] == [key_id]
    assert after[0]["revoked_at"] is not None
    assert 89 * 86400 < after[0]["expires_at"] - after[0]["created_at"] <= 90 * 86400


def test_a_key_without_an_end_never_expires(config: Path) -> None:
    keepgate("keys", "create", "--name", "forever", "--config", str(config))

    listed = keepgate("keys", "list", "--config", str(config))

    assert re.search(r" never +active$", listed.stdout, re.MULTILINE)


def test_a_key_for_an_endpoint_that_does_not_exist_is_refused(config: Path) -> None:
    refused = keepgate("keys", "create", "--name", "x", "--endpoint", "nowhere", "--config", str(config))

    assert refused.returncode == 1
    assert "nowhere" in refused.stderr
    assert "default" in refused.stderr
    assert refused.stdout == ""


def test_revoking_what_does_not_exist_says_where_to_look(config: Path) -> None:
    refused = keepgate("keys", "revoke", "0123456789ab", "--config", str(config))

    assert refused.returncode == 1
    assert "keepgate keys list" in refused.stderr


# --- serve and mock-upstream


def test_without_a_file_serve_runs_the_demo_and_says_what_to_try(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "service", "serve", "--port", str(port)]
    environment = {"KEEPGATE_STORAGE__PATH": str(tmp_path / "data"), "KEEPGATE_LOGS__REQUESTS": "off"}
    with running(command, port=port, log=tmp_path / "log", env=environment) as server:
        body = {"model": "demo", "messages": [{"role": "user", "content": "How do I reset my password?"}]}
        answers = [httpx.post(f"{server.url}/v1/chat/completions", json=body) for _ in range(2)]
        printed = server.output()

    assert [answer.headers["x-keepgate-cache"] for answer in answers] == ["miss", "exact"]
    assert "not a language model" in answers[0].json()["choices"][0]["message"]["content"]
    assert "embedded defaults with the demo upstream" in printed
    assert len(re.findall(rf"^ *curl .*127\.0\.0\.1:{port}", printed, re.MULTILINE)) == 3
    assert "Admin token" in printed


def test_the_environment_overrides_the_file(tmp_path: Path, mock: Mock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEEPGATE_KEYS__REQUIRE", "true")
    config = settings(tmp_path, mock.url, endpoints=[{"name": "default", "cache": {"mode": "exact"}}])

    with running_gateway(tmp_path, config) as gateway:
        answer = gateway.ask("Who is there?", model="m")

    assert answer.status_code == 401


def test_requests_are_logged_one_json_line_each_without_their_text(tmp_path: Path, mock: Mock, model: str) -> None:
    config = settings(tmp_path, mock.url, endpoints=[{"name": "default", "cache": {"mode": "exact"}}])
    with running_gateway(tmp_path, config) as gateway:
        answers = [gateway.ask("A secret question", model=model, stream=stream) for stream in (False, True)]
        gateway.ask("A secret question", model="fault:500")

    log = (tmp_path / "requests.jsonl").read_text()
    rows = [json.loads(line) for line in log.splitlines()]
    assert [row["cache"] for row in rows] == ["miss", "exact", "miss"]
    assert [row["status"] for row in rows] == [200, 200, 502]
    assert [row["request_id"] for row in rows[:2]] == [answer.headers["x-keepgate-request-id"] for answer in answers]
    assert "secret question" not in log + gateway.log()


def test_the_mock_answers_as_its_options_say(tmp_path: Path) -> None:
    port = free_port()
    options = ["--port", str(port), "--tokens", "5", "--error-rate", "0.5"]
    command = [sys.executable, "-m", "service", "mock-upstream", *options]
    with running(command, port=port, log=tmp_path / "log") as server:
        body = {"model": "m", "messages": [{"role": "user", "content": "one two three four five six"}]}
        answers = [httpx.post(f"{server.url}/v1/chat/completions", json=body) for _ in range(4)]

    assert sorted(answer.status_code for answer in answers) == [200, 200, 500, 500]
    served = next(answer for answer in answers if answer.status_code == 200)
    assert len(served.json()["choices"][0]["message"]["content"].split()) == 5


def test_a_mock_on_a_port_that_is_taken_says_so_and_ends() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        refused = keepgate("mock-upstream", "--port", str(port))

    assert refused.returncode == 1
    assert refused.stderr.startswith(f"keepgate: 127.0.0.1:{port} cannot be bound: Address already in use")
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize("command", ["check-config", "serve"])
def test_what_this_machine_lacks_is_said_before_anything_starts(tmp_path: Path, command: str) -> None:
    file = tmp_path / "keepgate.yaml"
    file.write_text(json.dumps(settings(tmp_path, "http://127.0.0.1:9/v1", logs={"requests": "/no/such/log"})))

    refused = keepgate(command, *(["--config"] if command == "serve" else []), str(file))

    assert refused.returncode == 1
    assert refused.stdout + refused.stderr == "logs.requests: there is no folder /no/such\n"
