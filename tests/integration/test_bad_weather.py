"""Upstreams, stores and embedders that fail, behind a real gateway: the client is told, or does not notice."""

import contextlib
import json
import os
import resource
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.support.gateway import (
    AS_SHIPPED,
    Gateway,
    Json,
    Mock,
    events_of,
    eventually,
    keepgate,
    mock_provider,
    question,
    running_gateway,
    settings,
    streamed_text,
    text_of,
)
from tests.support.servers import free_port

CHAT = "/v1/chat/completions"
EXACT = [{"name": "default", "cache": {"mode": "exact"}}]
SEMANTIC = [{"name": "default", "cache": {"mode": "semantic", "threshold": 0.8}}]


@pytest.fixture(scope="module")
def shared_odd_provider() -> Iterator["OddProvider"]:
    with OddProvider.running() as provider:
        yield provider


@pytest.fixture
def odd_provider(shared_odd_provider: "OddProvider") -> "OddProvider":
    """Answers with JSON until told otherwise."""
    shared_odd_provider.media_type = "application/json"
    return shared_odd_provider


@pytest.fixture(scope="module")
def unwilling() -> Iterator[str]:
    """The base URL of a server that takes no more connections: the kernel leaves who knocks waiting."""
    with contextlib.ExitStack() as open_sockets:
        listener = open_sockets.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            waiting = open_sockets.enter_context(socket.socket())
            waiting.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                waiting.connect(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"


@pytest.fixture(scope="module")
def impatient_gateway(
    tmp_path_factory: pytest.TempPathFactory, provider: Mock, shared_odd_provider: "OddProvider", unwilling: str
) -> Iterator[Gateway]:
    directory = tmp_path_factory.mktemp("weather")
    compatible = {"provider": "openai-compatible", "read_timeout": "500ms", "total_timeout": "1500ms"}
    sections = {
        "upstreams": [
            {"name": "mock", "base_url": provider.url, **compatible},
            {"name": "odd", "base_url": shared_odd_provider.url, **compatible},
            {"name": "unwilling", "base_url": unwilling, **compatible, "connect_timeout": "200ms"},
            {"name": "refused", "base_url": f"http://127.0.0.1:{free_port()}/v1", **compatible},
        ],
        "endpoints": EXACT,
        "guardrails": AS_SHIPPED,
    }
    with running_gateway(directory, settings(directory, provider.url, **sections)) as gateway:
        yield gateway


@pytest.fixture
def gateway(impatient_gateway: Gateway, mock: Mock) -> Iterator[Gateway]:
    """Waits half a second for a sign of life and three times that for an answer; must be well after every test."""
    mock.behaves(tokens=20)

    yield impatient_gateway

    mock.reset()
    assert impatient_gateway.ask("are you well?", model="mock/known").status_code == 200
    assert eventually(lambda: impatient_gateway.metric("keepgate_inflight") == 0)
    assert mock.report()["open_streams"] == 0


# --- upstreams


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        ("500", 502, "upstream_error"),
        ("401", 502, "upstream_error"),
        ("403", 502, "upstream_error"),
        ("html", 502, "upstream_error"),
        ("empty", 502, "upstream_error"),
        ("redirect", 502, "upstream_error"),
        ("stall", 504, "upstream_timeout"),
        ("slow_headers", 504, "upstream_timeout"),
    ],
)
def test_an_upstream_that_gives_no_answer_is_named_and_nothing_is_kept(
    gateway: Gateway, mock: Mock, model: str, fault: str, status: int, code: str, stream: bool
) -> None:
    asked = question("private words", model=f"mock/{model}", stream=stream)
    mock.behaves(fault=fault, fault_times=1)

    failed = gateway.post(asked)
    again = gateway.post(asked)

    assert failed.status_code == status
    assert failed.json()["error"]["code"] == code
    assert "'mock'" in failed.json()["error"]["message"]
    assert "private" not in failed.text
    assert failed.headers["x-should-retry"] == "false"
    assert again.status_code == 200
    assert again.headers["x-keepgate-cache"] == "miss"


@pytest.mark.parametrize("fault", ["malformed", "cut", "truncated", "error_event"])
def test_a_whole_answer_that_is_broken_is_an_upstream_error(
    gateway: Gateway, mock: Mock, model: str, fault: str
) -> None:
    mock.behaves(fault=fault, fault_times=1)

    failed = gateway.ask("hello", model=f"mock/{model}")
    again = gateway.ask("hello", model=f"mock/{model}")

    assert failed.status_code == 502
    assert failed.json()["error"]["code"] == "upstream_error"
    assert again.headers["x-keepgate-cache"] == "miss"


@pytest.mark.parametrize("fault", ["stall_midway", "endless"])
def test_a_whole_answer_that_never_ends_is_given_up(gateway: Gateway, mock: Mock, model: str, fault: str) -> None:
    mock.behaves(fault=fault, fault_times=1)

    failed = gateway.ask("hello", model=f"mock/{model}")

    assert failed.status_code == 504
    assert failed.json()["error"]["code"] == "upstream_timeout"


@pytest.mark.parametrize(
    ("fault", "code", "says"),
    [
        ("cut", "upstream_error", "short"),
        ("truncated", "upstream_error", "short"),
        ("malformed", "upstream_error", "not the JSON"),
        ("error_event", "upstream_error", "ended with an error"),
        ("huge", "upstream_error", "too long"),
        ("stall_midway", "upstream_timeout", "in time"),
        ("endless", "upstream_timeout", "in time"),
    ],
)
def test_a_stream_that_breaks_ends_with_an_error_event_and_is_not_kept(
    gateway: Gateway, mock: Mock, model: str, fault: str, code: str, says: str
) -> None:
    asked = question("hello", model=f"mock/{model}", stream=True)
    mock.behaves(fault=fault, fault_times=1)

    broken = gateway.post(asked)
    again = gateway.post(asked)

    *chunks, last = events_of(broken.text)
    assert broken.status_code == 200
    assert json.loads(last)["error"]["code"] == code
    assert says in json.loads(last)["error"]["message"]
    assert "[DONE]" not in chunks
    assert all(json.loads(chunk)["object"] == "chat.completion.chunk" for chunk in chunks)
    assert again.headers["x-keepgate-cache"] == "miss"
    assert events_of(again.text)[-1] == "[DONE]"


def test_a_provider_that_asks_for_patience_is_quoted(tmp_path: Path, mock: Mock) -> None:
    mock.behaves(fault="429", fault_times=1)

    with running_gateway(tmp_path, settings(tmp_path, mock.url, endpoints=EXACT)) as gateway:
        limited = gateway.ask("hello", model="m")

    assert limited.status_code == 429
    assert limited.headers["retry-after"] == "7"
    assert limited.headers["x-upstream-x-ratelimit-remaining-requests"] == "99"
    assert limited.json()["error"]["type"] == "rate_limit_error"


@pytest.mark.parametrize("stream", [False, True])
def test_a_providers_refusal_of_the_request_passes_through(
    gateway: Gateway, mock: Mock, model: str, stream: bool
) -> None:
    mock.behaves(fault="400", fault_times=1)

    refused = gateway.post(question("hello", model=f"mock/{model}", stream=stream))

    assert refused.status_code == 400
    assert refused.json()["error"]["message"] == "the mock answers 400 to 'hello'"


def test_a_refused_connection_is_unavailable(gateway: Gateway) -> None:
    failed = gateway.ask("hello", model="refused/any")

    assert failed.status_code == 503
    assert failed.json()["error"]["code"] == "upstream_unavailable"
    assert "'refused'" in failed.json()["error"]["message"]


def test_a_connection_that_is_not_made_in_time_is_a_timeout(gateway: Gateway) -> None:
    failed = gateway.ask("hello", model="unwilling/any")

    assert failed.status_code == 504
    assert failed.json()["error"]["code"] == "upstream_timeout"
    assert "no connection to the upstream 'unwilling' in time" in failed.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", ["no_done", "no_usage", "whole"])
def test_an_answer_in_an_odd_shape_is_an_answer_and_is_kept(
    gateway: Gateway, mock: Mock, model: str, fault: str, stream: bool
) -> None:
    asked = question("hello", model=f"mock/{model}", stream=stream)
    mock.behaves(fault=fault, fault_times=1)

    first = gateway.post(asked)
    again = gateway.ask("hello", model=f"mock/{model}")

    said = streamed_text(first.text) if stream else text_of(first)
    assert first.headers["x-keepgate-cache"] == "miss"
    assert again.headers["x-keepgate-cache"] == "exact"
    assert text_of(again) == said
    assert "to: hello" in said


def test_tokens_nobody_counted_are_counted_here_and_marked(gateway: Gateway, mock: Mock, model: str) -> None:
    asked = question("hello", model=f"mock/{model}", stream=True, stream_options={"include_usage": True})
    mock.behaves(fault="no_usage", fault_times=1)

    *_, last, done = events_of(gateway.post(asked).text)

    assert done == "[DONE]"
    assert json.loads(last)["choices"] == []
    assert json.loads(last)["usage"]["estimated"] is True
    assert json.loads(last)["usage"]["completion_tokens"] > 10


def test_tokens_of_a_completion_with_fields_of_a_chat_are_counted(gateway: Gateway, mock: Mock, model: str) -> None:
    mock.behaves(fault="no_usage", fault_times=1)

    answer = gateway.post(
        {"model": f"mock/{model}", "prompt": "hello", "messages": ["not", 4, "chat"]}, path="/v1/completions"
    )

    assert answer.status_code == 200


def test_an_answer_that_says_nothing_is_not_kept(gateway: Gateway, odd_provider: "OddProvider", model: str) -> None:
    odd_provider.says = b'{"id": "x", "object": "chat.completion", "choices": []}'

    first = gateway.ask("hello", model=f"odd/{model}")
    again = gateway.ask("hello", model=f"odd/{model}")

    assert first.status_code == 200
    assert again.headers["x-keepgate-cache"] == "miss"


@pytest.mark.parametrize("counts", ["many", {"prompt_tokens": -5}, {"prompt_tokens": 1, "completion_tokens": 10**30}])
def test_counts_of_tokens_that_cannot_be_are_counted_here(
    gateway: Gateway, odd_provider: "OddProvider", model: str, counts: object
) -> None:
    choice = {"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}
    odd_provider.says = json.dumps({"choices": [choice], "usage": counts}).encode()

    answer = gateway.ask("hello", model=f"odd/{model}")
    again = gateway.ask("hello", model=f"odd/{model}")

    assert text_of(answer) == "hello"
    assert again.headers["x-keepgate-cache"] == "exact"
    assert 0 < int(again.headers["x-keepgate-tokens-saved"]) < 10
    assert gateway.client.get("/metrics").status_code == 200


@pytest.mark.parametrize(
    "choice",
    [
        {"index": 0, "delta": {"tool_calls": [5]}},
        {"index": 0, "delta": {"tool_calls": [{"index": "first"}]}},
        {"index": 0, "delta": {"content": "a"}, "logprobs": 5},
        {"index": "first", "delta": {"content": "a"}},
        "a choice",
    ],
)
def test_a_chunk_of_another_shape_is_an_upstream_error(
    gateway: Gateway, odd_provider: "OddProvider", model: str, choice: object
) -> None:
    odd_provider.media_type = "text/event-stream"
    chunk = json.dumps({"object": "chat.completion.chunk", "choices": [choice]})
    odd_provider.says = f"data: {chunk}\n\ndata: {chunk}\n\ndata: [DONE]\n\n".encode()

    failed = gateway.ask("hello", model=f"odd/{model}", stream=True)

    last = failed.text if failed.status_code == 502 else events_of(failed.text)[-1]
    assert json.loads(last)["error"]["code"] == "upstream_error"


def test_an_answer_nested_beyond_reason_is_an_upstream_error(
    gateway: Gateway, odd_provider: "OddProvider", model: str
) -> None:
    odd_provider.says = b'{"choices": [], "more": %b}' % (b"[" * 5_000 + b"]" * 5_000)

    failed = gateway.ask("hello", model=f"odd/{model}")

    assert failed.status_code == 502
    assert failed.json()["error"]["code"] == "upstream_error"


# --- embedders


@pytest.fixture(scope="module")
def embeddings_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mock]:
    with mock_provider(tmp_path_factory.mktemp("embeddings")) as mock:
        yield mock


@pytest.fixture(scope="module")
def embedding_gateway(
    tmp_path_factory: pytest.TempPathFactory, provider: Mock, embeddings_api: Mock
) -> Iterator[Gateway]:
    directory = tmp_path_factory.mktemp("embedding")
    embedder = {"kind": "openai", "model": "any", "base_url": embeddings_api.url, "dimensions": 64}
    sections: Json = {"cache": {"embedder": embedder, "vector": {"deadline": "300ms"}}, "endpoints": SEMANTIC}
    with running_gateway(directory, settings(directory, provider.url, **sections)) as gateway:
        yield gateway


@pytest.mark.parametrize(
    "fault", ["stall", "slow_headers", "500", "429", "html", "malformed", "truncated", "cut", "empty"]
)
def test_an_embedder_that_fails_costs_no_answer_and_at_most_its_deadline(
    embedding_gateway: Gateway, embeddings_api: Mock, mock: Mock, model: str, fault: str
) -> None:
    gateway = embedding_gateway
    degraded: dict[str, float] = {}
    embeddings_api.reset()
    gateway.ask("how do I reset my password again?", model=model)
    assert gateway.await_cached("how do I reset my password again", model=model)
    embeddings_api.behaves(fault=fault)

    answer = gateway.ask(f"how do I live with {fault}?", model=model)
    degraded["during"] = gateway.metric("keepgate_degraded", component="embedder")
    overhead_us = int(answer.headers["x-keepgate-overhead-us"])
    embeddings_api.reset()
    similar = gateway.await_cached("how do I reset my password, again?", model=model)
    degraded["after"] = gateway.metric("keepgate_degraded", component="embedder")

    assert answer.status_code == 200
    assert answer.headers["x-keepgate-cache"] == "miss"
    assert "detail=degraded" in answer.headers["cache-status"]
    assert overhead_us < 2_000_000  # the deadline, and what a busy machine adds
    assert similar.headers["x-keepgate-cache"] == "semantic"
    assert degraded == {"during": 1, "after": 0}
    assert mock.calls(CHAT) == 2


def test_an_embedder_that_cannot_be_reached_is_declared_and_does_without(tmp_path: Path, mock: Mock) -> None:
    nobody = f"http://127.0.0.1:{free_port()}/v1"
    sections: Json = {
        "cache": {"embedder": {"kind": "openai", "model": "any", "base_url": nobody, "dimensions": 64}},
        "endpoints": SEMANTIC,
    }
    with running_gateway(tmp_path, settings(tmp_path, mock.url, **sections)) as gateway:
        first = gateway.ask("hello", model="m")
        again = gateway.ask("hello", model="m")
        tiers = gateway.client.get("/health/ready").json()["tiers"]

    assert first.headers["x-keepgate-cache"] == "miss"
    assert again.headers["x-keepgate-cache"] == "exact"
    assert tiers == {"exact": "up", "embedder": "degraded", "vector": "up"}


def test_a_model_that_cannot_be_kept_is_declared_and_does_without(
    tmp_path: Path, mock: Mock, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keepgate").write_text("a file where the model's folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with running_gateway(tmp_path, settings(tmp_path, mock.url, endpoints=SEMANTIC)) as gateway:
        answer = gateway.ask("hello", model="m")
        degraded = gateway.metric("keepgate_degraded", component="embedder")
        log = gateway.log()

    assert answer.status_code == 200
    assert "detail=degraded" in answer.headers["cache-status"]
    assert degraded == 1
    assert "point XDG_CACHE_HOME to a folder" in log


# --- stores


def test_a_full_disk_pauses_caching_and_nothing_else(tmp_path: Path, mock: Mock) -> None:
    mock.behaves(tokens=2_000)
    with running_gateway(tmp_path, settings(tmp_path, mock.url, endpoints=EXACT)) as gateway:
        for number in range(20):
            gateway.ask(f"before {number}", model="m")
        assert eventually(lambda: gateway.metric("keepgate_cache_entries") == 20)  # written, and not only on its way
        limit_file_size(gateway, 8_192)

        answers = [gateway.ask(f"question {number}", model="m").status_code for number in range(30)]
        degraded = gateway.metric("keepgate_degraded", component="exact")
        kept = gateway.ask("before 19", model="m").headers["x-keepgate-cache"]
        still = gateway.metric("keepgate_degraded", component="exact")
        limit_file_size(gateway, resource.RLIM_INFINITY)
        numbers = iter(range(1_000))

        def is_well() -> bool:
            gateway.ask(f"afterwards {next(numbers)}", model="m")
            return gateway.metric("keepgate_degraded", component="exact") == 0

        assert eventually(is_well, within=15)
        log = gateway.log()

    assert set(answers) == {200}
    assert degraded == 1
    assert kept == "exact"
    assert still == 1  # reading works, and does not hide that writing does not
    assert log.count("the cache is degraded (exact") == 1


def test_a_store_at_its_limit_keeps_what_is_new(tmp_path: Path, mock: Mock) -> None:
    mock.behaves(tokens=2_000)
    sections: Json = {"cache": {"exact": {"max_size": "1MB"}}, "endpoints": EXACT}
    with running_gateway(tmp_path, settings(tmp_path, mock.url, **sections)) as gateway:
        answers = [gateway.ask(f"question {number}", model="m").status_code for number in range(200)]
        newest = gateway.ask("question 199", model="m").headers["x-keepgate-cache"]
        oldest = gateway.ask("question 0", model="m").headers["x-keepgate-cache"]
        degraded = gateway.metric("keepgate_degraded", component="exact")

    assert set(answers) == {200}
    assert (newest, oldest) == ("exact", "miss")
    assert degraded == 0


def garbage(file: Path) -> None:
    file.write_bytes(b"not a database " * (file.stat().st_size // 15))


def half(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 8192 * 4096)


@pytest.mark.parametrize("damage", [garbage, half])
def test_damaged_stores_are_moved_aside_and_lost_keys_let_nobody_in(
    tmp_path: Path, mock: Mock, damage: Callable[[Path], None]
) -> None:
    sections: Json = {
        "cache": {"embedder": {"kind": "static"}, "vector": {"deadline": "5s"}},
        "endpoints": SEMANTIC,
        "keys": {"require": True},
    }
    config = settings(tmp_path, mock.url, **sections)
    with running_gateway(tmp_path, config) as gateway:
        old = {"Authorization": f"Bearer {gateway.make_key('old')}"}
        for number in range(20):
            gateway.ask(f"how do I reset the password of account {number}?", model="m", headers=old)
        assert gateway.await_cached("how do I reset the password of account 7", model="m", headers=old)
    stores = sorted((tmp_path / "data").rglob("data.mdb"))
    for store in stores:
        damage(store)

    with running_gateway(tmp_path, config) as gateway:
        refused = gateway.ask("hello", model="m", headers=old)
        anonymous = gateway.ask("hello", model="m")
        new = {"Authorization": f"Bearer {gateway.make_key('new')}"}
        first = gateway.ask("hello", model="m", headers=new)
        again = gateway.ask("hello", model="m", headers=new)
        log = gateway.log()

    assert len(stores) == 3
    assert len(list((tmp_path / "data").rglob("*.corrupt-*/data.mdb"))) == 3
    assert log.count("is damaged") == 3
    assert refused.status_code == anonymous.status_code == 401
    assert first.headers["x-keepgate-cache"] == "miss"
    assert again.headers["x-keepgate-cache"] == "exact"


def test_a_damaged_secret_stops_the_start_and_says_what_to_do(tmp_path: Path, mock: Mock) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "secret").write_bytes(b"")

    code, said = start(tmp_path, settings(tmp_path, mock.url, endpoints=EXACT))

    assert code == 1
    assert "secret is damaged: remove it" in said


def test_storage_that_cannot_be_written_stops_the_start_and_is_named(tmp_path: Path, mock: Mock) -> None:
    (tmp_path / "data").write_text("a file where a folder should be")

    code, said = start(tmp_path, settings(tmp_path, mock.url, endpoints=EXACT))

    assert code == 1
    assert f"storage.path: {tmp_path / 'data'} is a file" in said
    assert "Traceback" not in said


def test_two_gateways_on_one_storage_are_one_cache(tmp_path: Path, mock: Mock) -> None:
    sections: Json = {"cache": {"embedder": {"kind": "static"}, "vector": {"deadline": "5s"}}, "endpoints": SEMANTIC}
    config = settings(tmp_path, mock.url, **sections)
    homes = [tmp_path / "one", tmp_path / "other"]
    for home in homes:
        home.mkdir()
    with running_gateway(homes[0], config) as one, running_gateway(homes[1], config) as other:
        asked = one.ask("how do I reset my password?", model="m")
        repeated = other.await_cached("how do I reset my password?", model="m")
        other.ask("where is the capital of France?", model="m")
        rephrased = one.await_cached("where is the capital of France", model="m")

    assert asked.headers["x-keepgate-cache"] == "miss"
    assert repeated.headers["x-keepgate-cache"] == "exact"
    assert rephrased.headers["x-keepgate-cache"] == "semantic"


def test_what_a_killed_gateway_kept_is_whole(tmp_path: Path, mock: Mock) -> None:
    mock.behaves(tokens=300)
    # Writes vectors too, and answers with nothing but what was said to the very question.
    shadow = [{"name": "default", "cache": {"mode": "shadow"}}]
    sections: Json = {"cache": {"embedder": {"kind": "static"}, "vector": {"deadline": "5s"}}, "endpoints": shadow}
    config = settings(tmp_path, mock.url, **sections)
    said: dict[str, str] = {}
    with running_gateway(tmp_path, config) as gateway:

        def ask_until_it_dies(part: int) -> None:
            try:
                with httpx.Client(base_url=gateway.url) as client:
                    for number in range(10_000):
                        text = f"what is {part} times {number}?"
                        said[text] = text_of(client.post(CHAT, json=question(text, model="m")))
            except httpx.TransportError:
                return

        storm = [threading.Thread(target=ask_until_it_dies, args=(part,)) for part in range(4)]
        for thread in storm:
            thread.start()
        assert eventually(lambda: len(said) > 300)
        gateway.server.signal(signal.SIGKILL)
        for thread in storm:
            thread.join()

    with running_gateway(tmp_path, config) as gateway:
        answers = {text: gateway.ask(text, model="m", headers={"x-keepgate-cache": "exact"}) for text in said}
        log = gateway.log()

    hits = [answer for answer in answers.values() if answer.headers["x-keepgate-cache"] == "exact"]
    assert {text: text_of(answer) for text, answer in answers.items()} == said
    # An answer may leave before its entry is written; what each thread asked last may be lost.
    assert len(hits) >= len(said) - len(storm)
    assert "is damaged" not in log


# --- what these tests speak with


class OddProvider:
    """Answers every request with what `says` holds."""

    def __init__(self, server: ThreadingHTTPServer) -> None:
        self.url = f"http://127.0.0.1:{server.server_port}/v1"
        self.says = b"{}"
        self.media_type = "application/json"

    @classmethod
    @contextlib.contextmanager
    def running(cls) -> Iterator["OddProvider"]:
        class Answering(BaseHTTPRequestHandler):
            def do_POST(self) -> None:  # the name http.server looks for
                self.rfile.read(int(self.headers["content-length"]))
                self.send_response(200)
                self.send_header("content-type", provider.media_type)
                self.send_header("content-length", str(len(provider.says)))
                self.end_headers()
                self.wfile.write(provider.says)

            def log_message(self, *_: Any) -> None:
                """Nobody reads it here."""

        with ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
            provider = cls(server)
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            try:
                yield provider
            finally:
                server.shutdown()
                thread.join()


def limit_file_size(gateway: Gateway, limit: int) -> None:
    """How far any file of the gateway may grow from now on, in bytes: beyond it, writing fails as on a full disk."""
    resource.prlimit(gateway.server.process.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))


def start(directory: Path, config: Json) -> tuple[int, str]:
    """Exit code and stderr of a gateway that does not start."""
    file = directory / "keepgate.yaml"
    file.write_text(yaml.safe_dump(config))
    ended = keepgate("serve", "--config", str(file), "--port", str(free_port()))
    return ended.returncode, ended.stderr
