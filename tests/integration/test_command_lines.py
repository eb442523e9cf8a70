"""The real command lines of Anthropic and of OpenAI, answered through the gateway by models of every provider."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.command_lines import CommandFailed, claude, codex, missing
from tests.support.fake_provider import Fake
from tests.support.gateway import Gateway, Json, Mock, eventually, mock_provider, running_gateway, settings
from tests.support.vendors import MODELS, Vendors

QUESTION = "What is a heron?"
PROVIDERS = ["openai", "responses", "anthropic", "gemini"]

CommandLine = Callable[..., str]


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    absent = missing()
    if absent and not os.environ.get("CI"):
        pytest.skip("the command lines are not installed: `make test` does it, where an npm registry can be reached")
    assert not absent


@pytest.fixture(scope="module")
def wordy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mock]:
    """Says so many words that the question is among them: claude puts others before it."""
    with mock_provider(tmp_path_factory.mktemp("wordy"), "--tokens", "250") as mock:
        yield mock


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, wordy: Mock) -> Iterator[Gateway]:
    """Wants keys. The upstream `chat` speaks OpenAI's dialect alone, `both` Anthropic's as well."""
    directory = tmp_path_factory.mktemp("guarded")
    upstream = {"provider": "openai-compatible", "base_url": wordy.url}
    upstreams = [{"name": "chat", **upstream}, {"name": "both", **upstream, "dialects": ["openai", "anthropic"]}]
    endpoints = [{"name": "default"}, {"name": "support"}]
    config = settings(directory, wordy.url, upstreams=upstreams, endpoints=endpoints, keys={"require": True})
    with running_gateway(directory, config) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def key(guarded: Gateway) -> str:
    return guarded.make_key("command-lines")


@pytest.fixture
def provider(wordy: Mock) -> Mock:
    wordy.reset()
    return wordy


@pytest.mark.parametrize(
    ("command_line", "path", "endpoint", "upstream", "asked"),
    [
        (claude, "", "default", "chat", "/v1/chat/completions"),
        (claude, "/anthropic", "default", "chat", "/v1/chat/completions"),
        (claude, "/e/support/anthropic", "support", "chat", "/v1/chat/completions"),
        (claude, "", "default", "both", "/v1/messages"),
        (claude, "/e/support/anthropic", "support", "both", "/v1/messages"),
        (codex, "/v1", "default", "chat", "/v1/chat/completions"),
        (codex, "/e/support/v1", "support", "chat", "/v1/chat/completions"),
    ],
)
def test_a_command_line_is_answered_under_a_virtual_key(
    command_line: CommandLine,
    path: str,
    endpoint: str,
    upstream: str,
    asked: str,
    guarded: Gateway,
    provider: Mock,
    key: str,
    model: str,
    tmp_path: Path,
) -> None:
    name = f"{upstream}/{model}"
    said = command_line(QUESTION, gateway=guarded.url + path, key=key, model=name, directory=tmp_path)

    assert f" from {model} to: " in said
    assert QUESTION in said
    assert provider.report()["requests"] == {asked: 1}
    assert len(provider.report()["last"]["body"]) > 30_000
    [record] = records(guarded, name)
    seen = {"status": 200, "operation": "chat", "endpoint": endpoint, "upstream_model": model, "cache": "miss"}
    assert seen.items() <= record.items()
    assert record["key_id"]
    assert guarded.metric("keepgate_requests_total", model=name, status="200") == 1


def test_claude_reaches_its_own_dialect_as_it_wrote(
    guarded: Gateway, provider: Mock, key: str, model: str, tmp_path: Path
) -> None:
    claude(QUESTION, gateway=guarded.url, key=key, model=f"both/{model}", directory=tmp_path)

    body, headers = provider.last_body(), provider.last_headers()
    assert body["model"] == model
    assert {"system", "tools", "metadata", "thinking", "context_management"} <= body.keys()
    assert "claude-code-20250219" in headers["anthropic-beta"]
    assert headers["x-forwarded-user-agent"].startswith("claude-cli/")


@pytest.mark.parametrize(("command_line", "path"), [(claude, ""), (codex, "/v1")])
def test_the_same_question_asked_again_comes_out_of_the_cache(
    command_line: CommandLine, path: str, guarded: Gateway, provider: Mock, key: str, model: str, tmp_path: Path
) -> None:
    def asked() -> str:
        return command_line(QUESTION, gateway=guarded.url + path, key=key, model=f"chat/{model}", directory=tmp_path)

    first = asked()
    second = asked()

    assert second == first
    assert provider.calls() == 1
    assert [record["cache"] for record in records(guarded, f"chat/{model}", count=2)] == ["miss", "exact"]


def test_claude_gives_up_at_once_under_a_key_that_is_none(guarded: Gateway, provider: Mock, tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match="401 this key is unknown, expired or revoked"):
        claude(QUESTION, gateway=guarded.url, key="kg-nobodys", model="chat/any", directory=tmp_path)

    assert guarded.metric("keepgate_requests_total", status="401") == 1
    assert provider.calls() == 0


@pytest.mark.parametrize("name", PROVIDERS)
def test_claude_reads_a_file_because_a_model_of_any_provider_says_so(
    name: str, vendors: Vendors, tmp_path: Path
) -> None:
    note = tmp_path / "work" / "note.txt"
    note.parent.mkdir()
    note.write_text("The heron is grey.\n")
    prompt = "Read it. #call Read " + json.dumps({"file_path": str(note)})

    said = claude(prompt, gateway=vendors.gateway.url, key="any", model=MODELS[name], directory=tmp_path)

    assert said.startswith("The tools said: ")
    assert "The heron is grey." in said
    assert statuses(vendors.fakes[name]) == [200, 200]


@pytest.mark.parametrize("name", PROVIDERS)
def test_codex_runs_a_command_because_a_model_of_any_provider_says_so(
    name: str, vendors: Vendors, tmp_path: Path
) -> None:
    prompt = "Run it. #call exec_command " + json.dumps({"cmd": "echo heron-$((6 * 7))"})

    said = codex(prompt, gateway=f"{vendors.gateway.url}/v1", key="any", model=MODELS[name], directory=tmp_path)

    assert said.startswith("The tools said: ")
    assert "heron-42" in said
    assert statuses(vendors.fakes[name]) == [200, 200]


def records(gateway: Gateway, model: str, *, count: int = 1) -> list[Json]:
    """The request log's, as soon as there are `count`: it is written after the answer has left."""

    def written() -> list[Json] | None:
        lines = (gateway.config.parent / "requests.jsonl").read_text().splitlines()
        found = [record for line in lines if (record := json.loads(line))["model"] == model]
        return found if len(found) >= count else None

    found = eventually(written)
    assert found is not None
    return found


def statuses(fake: Fake) -> list[int | None]:
    return [call.status for call in fake.calls]
