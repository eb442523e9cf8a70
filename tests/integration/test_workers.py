"""Processes: workers that share one cache, a configuration read again, and every way to stop."""

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest

from tests.support.gateway import (
    Gateway,
    Json,
    Mock,
    alive,
    children,
    eventually,
    keepgate,
    question,
    running_gateway,
    settings,
    streamed_text,
    text_of,
    worker_of,
)

QUESTION = "How do I change my email address?"
REPHRASED = "How can I change my email address?"
EXACT = [{"name": "default", "cache": {"mode": "exact"}}]


@pytest.fixture(scope="module")
def shared_pair(tmp_path_factory: pytest.TempPathFactory, provider: Mock) -> Iterator[Gateway]:
    directory = tmp_path_factory.mktemp("pair")
    config = settings(directory, provider.url, endpoints=[{"name": "default", "cache": {"mode": "semantic"}}])
    with running_gateway(directory, config, "--workers", "2") as gateway:
        # Each worker is ready by itself, and /health/ready spoke for one of them.
        probe = partial(each_worker, gateway, "ready?", "probe", control="no-store")
        eventually(lambda: not any("loading" in each.headers["cache-status"] for each in probe().values()))
        yield gateway


@pytest.fixture
def pair(shared_pair: Gateway, mock: Mock) -> Gateway:  # noqa: ARG001 - a test that asks begins with a fresh mock
    """A gateway of two workers."""
    return shared_pair


@pytest.fixture(params=[1, 2], ids=["one-worker", "two-workers"])
def alone(request: pytest.FixtureRequest, tmp_path: Path, mock: Mock) -> Iterator[Gateway]:
    """A gateway of the test's own, which it may stop, of one worker or two."""
    workers: int = request.param
    config = exact_only(tmp_path, mock, server={"workers": workers, "drain": "20s"})
    with running_gateway(tmp_path, config) as gateway:
        yield gateway


def exact_only(directory: Path, mock: Mock, **sections: object) -> Json:
    return settings(directory, mock.url, **{"endpoints": EXACT, **sections})


def fresh(gateway: Gateway, text: str, model: str, **headers: str) -> httpx.Response:
    """An answer on a connection of its own, by whichever worker takes it."""
    return gateway.ask(text, model=model, headers={**headers, "Connection": "close"})


def each_worker(
    gateway: Gateway, text: str, model: str, *, count: int = 2, control: str | None = None
) -> dict[str, httpx.Response]:
    """The latest answer of each worker, once all of them gave one."""
    headers = {} if control is None else {"Cache-Control": control}
    answers: dict[str, httpx.Response] = {}

    def asked_all() -> bool:
        answer = fresh(gateway, text, model, **headers)
        answers[worker_of(answer)] = answer
        return len(answers) >= count

    eventually(asked_all, every=0, within=30)
    return answers


def on_all(gateway: Gateway, text: str, model: str, count: int, wanted: Callable[[httpx.Response], bool]) -> None:
    """Waits until every worker answers as wanted."""
    eventually(lambda: all(map(wanted, each_worker(gateway, text, model, count=count).values())), within=30)


def workers_of(gateway: Gateway) -> list[int]:
    """Process ids of the workers under a supervisor."""
    found = []
    for pid in children(gateway.server.process.pid):
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        if b"spawn_main" in command:
            found.append(pid)
    return found


class RunningStream:
    """A stream being read in a thread; `text` when it has ended."""

    def __init__(self, gateway: Gateway, model: str) -> None:
        self.body = ""
        self._begun = threading.Event()
        self._url = f"{gateway.url}/v1/chat/completions"
        self._asked = question("Tell me a long story.", model=model, stream=True)
        self._thread = threading.Thread(target=self._read)
        self._thread.start()
        assert self._begun.wait(10)

    def _read(self) -> None:
        with httpx.stream("POST", self._url, json=self._asked, timeout=30) as answer:
            for piece in answer.iter_text():
                self.body += piece
                self._begun.set()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def end(self) -> str:
        self._thread.join(30)
        assert not self._thread.is_alive()
        return self.body


# --- one cache


def test_an_answer_that_one_worker_got_is_an_exact_hit_on_all(pair: Gateway, mock: Mock, model: str) -> None:
    first = fresh(pair, QUESTION, model)
    # Findable by its vector, it has been an entry for longer.
    pair.await_cached(REPHRASED, model=model)

    answers = each_worker(pair, QUESTION, model)

    assert {answer.headers["x-keepgate-cache"] for answer in answers.values()} == {"exact"}
    assert {text_of(answer) for answer in answers.values()} == {text_of(first)}
    assert mock.calls() == 1


def test_an_answer_that_one_worker_got_is_a_semantic_hit_on_all(pair: Gateway, mock: Mock, model: str) -> None:
    first = fresh(pair, QUESTION, model)
    pair.await_cached(REPHRASED, model=model)

    answers = each_worker(pair, REPHRASED, model, control="only-if-cached")

    assert [answer.headers["x-keepgate-cache"] for answer in answers.values()] == ["semantic"] * 2
    assert {text_of(answer) for answer in answers.values()} == {text_of(first)}
    assert mock.calls() == 1


def test_clearing_an_endpoint_empties_it_for_all_workers(pair: Gateway, model: str) -> None:
    fresh(pair, QUESTION, model)
    pair.await_cached(REPHRASED, model=model)

    cleared = pair.admin("DELETE", "/cache", params={"endpoint": "default"})

    assert cleared.json()["entries"] >= 1
    for text in (QUESTION, REPHRASED):
        answers = each_worker(pair, text, model, control="only-if-cached")
        assert [answer.status_code for answer in answers.values()] == [504] * 2


def test_metrics_of_any_worker_are_those_of_all(pair: Gateway, model: str) -> None:
    def counted() -> float:
        with httpx.Client(base_url=pair.url) as fresh_connection:
            exposed = fresh_connection.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in exposed if line.startswith("keepgate_requests_total{"))

    before = counted()
    asked = 0
    workers: set[str] = set()
    while len(workers) < 2 or asked < 10:
        workers.add(worker_of(fresh(pair, QUESTION, model)))
        asked += 1

    assert {counted() for _ in range(8)} == {before + asked}


def test_two_gateways_on_one_storage_are_one_cache(pair: Gateway, mock: Mock, model: str, tmp_path: Path) -> None:
    def found(gateway: Gateway, text: str, tier: str) -> bool:
        return gateway.await_cached(text, model=model).headers["x-keepgate-cache"] == tier

    beside = settings(tmp_path, mock.url, endpoints=[{"name": "default", "cache": {"mode": "semantic"}}])
    beside["storage"] = {"path": str(pair.config.parent / "data")}
    with running_gateway(tmp_path, beside) as other:
        pair.ask(QUESTION, model=model)
        eventually(lambda: found(other, QUESTION, "exact"))
        assert found(other, REPHRASED, "semantic")

        other.ask("Who wrote Faust?", model=model)
        eventually(lambda: found(pair, "Who wrote Faust?", "exact"))

    assert mock.calls() == 2


# --- read again


@pytest.mark.parametrize("workers", [1, 2])
def test_sighup_makes_a_changed_file_count_on_every_worker_and_drops_no_stream(
    tmp_path: Path, mock: Mock, model: str, workers: int
) -> None:
    server = {"workers": workers}
    with running_gateway(tmp_path, exact_only(tmp_path, mock, server=server)) as gateway:
        fresh(gateway, QUESTION, model)
        on_all(gateway, QUESTION, model, workers, lambda answer: answer.headers["x-keepgate-cache"] == "exact")
        before = sorted(each_worker(gateway, QUESTION, model, count=workers))
        mock.behaves(chunk_delay=60, tokens=30)
        stream = RunningStream(gateway, model)
        mock.behaves(chunk_delay=0)

        changed = exact_only(tmp_path, mock, server=server, endpoints=[{"name": "default", "cache": {"mode": "off"}}])
        changed["upstreams"][0]["name"] = "renamed"
        gateway.configure(changed)
        gateway.server.signal(signal.SIGHUP)

        on_all(gateway, QUESTION, model, workers, lambda answer: answer.headers["x-keepgate-cache"] == "bypass")
        after = each_worker(gateway, QUESTION, model, count=workers)
        assert sorted(after) == before, "a worker was restarted"
        assert {answer.headers["x-keepgate-upstream"] for answer in after.values()} == {f"renamed/{model}"}
        assert len(streamed_text(stream.end()).split()) == 30
        assert stream.body.endswith("data: [DONE]\n\n")


def test_streams_outlive_two_reloads_that_drop_their_upstream(tmp_path: Path, mock: Mock, model: str) -> None:
    with running_gateway(tmp_path, exact_only(tmp_path, mock)) as gateway:
        mock.behaves(chunk_delay=100, tokens=30)
        stream = RunningStream(gateway, model)
        mock.behaves(chunk_delay=0)
        changed = exact_only(tmp_path, mock, endpoints=[{"name": "default", "cache": {"mode": "off"}}])
        gateway.configure(changed)
        gateway.server.signal(signal.SIGHUP)
        on_all(gateway, QUESTION, model, 1, lambda answer: answer.headers["x-keepgate-cache"] == "bypass")

        changed["upstreams"][0] |= {"name": "renamed", "read_timeout": "17s"}
        gateway.configure(changed)
        gateway.server.signal(signal.SIGHUP)
        on_all(gateway, QUESTION, model, 1, lambda answer: "renamed" in answer.headers["x-keepgate-upstream"])
        assert stream.running

        assert len(streamed_text(stream.end()).split()) == 30
        assert stream.body.endswith("data: [DONE]\n\n")


def test_a_body_that_arrives_across_a_reload_is_served(tmp_path: Path, mock: Mock, model: str) -> None:
    with running_gateway(tmp_path, exact_only(tmp_path, mock)) as gateway:
        body = json.dumps(question(QUESTION, model=model)).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", gateway.server.port), timeout=20) as client:
            client.sendall(head.encode() + body[:20])
            changed = exact_only(tmp_path, mock)
            changed["upstreams"][0]["name"] = "renamed"
            eventually(lambda: gateway.metric("keepgate_inflight") == 1)
            gateway.configure(changed)
            gateway.server.signal(signal.SIGHUP)
            eventually(lambda: "read again" in gateway.log())
            client.sendall(body[20:])

            answer = b"".join(iter(lambda: client.recv(65_536), b""))

        assert answer.startswith(b"HTTP/1.1 200")


def test_a_reload_changes_the_threshold(tmp_path: Path, mock: Mock, model: str) -> None:
    def config(threshold: float) -> Json:
        endpoints = [{"name": "default", "cache": {"mode": "semantic", "threshold": threshold}}]
        return settings(tmp_path, mock.url, endpoints=endpoints)

    with running_gateway(tmp_path, config(0.9)) as gateway:
        gateway.ask(QUESTION, model=model)
        gateway.await_cached(REPHRASED, model=model)

        gateway.configure(config(0.999))
        gateway.server.signal(signal.SIGHUP)

        cached = {"Cache-Control": "only-if-cached"}
        eventually(lambda: gateway.ask(REPHRASED, model=model, headers=cached).status_code == 504)
        assert gateway.ask(QUESTION, model=model, headers=cached).status_code == 200
        assert gateway.admin("GET", "/status").json()["endpoints"]["default"]["threshold"] == 0.999


def test_a_reload_may_begin_to_compare(tmp_path: Path, mock: Mock, model: str) -> None:
    with running_gateway(tmp_path, exact_only(tmp_path, mock)) as gateway:
        semantic = [{"name": "default", "cache": {"mode": "semantic"}}]
        gateway.configure(exact_only(tmp_path, mock, endpoints=semantic))
        gateway.server.signal(signal.SIGHUP)
        eventually(lambda: gateway.client.get("/health/ready").json()["tiers"].get("embedder") == "up")

        gateway.ask(QUESTION, model=model)

        assert gateway.await_cached(REPHRASED, model=model).headers["x-keepgate-cache"] == "semantic"


def test_an_invalid_file_is_refused_and_the_old_one_stays(alone: Gateway, model: str) -> None:
    fresh(alone, QUESTION, model)
    for number, broken in enumerate(["endpoints: [{name: default, cache: {mode: of}}]", "server: ["], start=1):
        alone.config.write_text(broken)
        alone.server.signal(signal.SIGHUP)
        eventually(lambda: alone.log().count("the new configuration is refused") >= number)  # noqa: B023 - used at once

    assert "endpoints.0.cache.mode" in alone.log()
    assert alone.server.process.poll() is None
    assert fresh(alone, QUESTION, model).headers["x-keepgate-cache"] == "exact"


def test_what_needs_a_restart_says_so(tmp_path: Path, mock: Mock, model: str) -> None:
    with running_gateway(tmp_path, exact_only(tmp_path, mock)) as gateway:
        gateway.configure(exact_only(tmp_path, mock, storage={"path": str(tmp_path / "elsewhere")}))
        gateway.server.signal(signal.SIGHUP)

        eventually(lambda: "that takes effect with the next start" in gateway.log())
        assert gateway.ask(QUESTION, model=model).status_code == 200


# --- stopping


def test_a_running_stream_finishes_and_nobody_new_is_let_in(alone: Gateway, mock: Mock, model: str) -> None:
    mock.behaves(chunk_delay=100, tokens=25)
    stream = RunningStream(alone, model)

    alone.server.signal(signal.SIGTERM)

    def refused() -> bool:
        try:
            socket.create_connection(("127.0.0.1", alone.server.port), timeout=1).close()
        except ConnectionRefusedError:
            return True
        return False

    eventually(refused)
    assert stream.running, "the stream was over before it could be seen that nobody is let in"
    assert stream.end().endswith("data: [DONE]\n\n")
    assert len(streamed_text(stream.body).split()) == 25
    assert alone.server.process.wait(10) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["term", "int"])
def test_an_idle_connection_does_not_hold_the_stop(
    tmp_path: Path, mock: Mock, model: str, number: signal.Signals
) -> None:
    with (
        running_gateway(tmp_path, exact_only(tmp_path, mock)) as gateway,
        httpx.Client(base_url=gateway.url) as idle,
    ):
        idle.post("/v1/chat/completions", json=question(QUESTION, model=model)).raise_for_status()

        began = time.monotonic()
        gateway.server.signal(number)

        assert gateway.server.process.wait(10) == 0
        assert time.monotonic() - began < 5


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stream_that_outlives_the_drain_ends_with_an_error_event(tmp_path: Path, mock: Mock, workers: int) -> None:
    config = exact_only(tmp_path, mock, server={"workers": workers, "drain": "1s"})
    with running_gateway(tmp_path, config) as gateway:
        stream = RunningStream(gateway, "fault:endless")

        gateway.server.signal(signal.SIGTERM)

        assert gateway.server.process.wait(10) == 0
        assert "overloaded" in stream.end().splitlines()[-2]
        assert "[DONE]" not in stream.body
        eventually(lambda: mock.report()["open_streams"] == 0)


def test_what_was_answered_before_a_stop_or_a_kill_is_there_after_the_next_start(
    tmp_path: Path, mock: Mock, model: str
) -> None:
    config = settings(tmp_path, mock.url, endpoints=[{"name": "default", "cache": {"mode": "semantic"}}])
    with running_gateway(tmp_path, config) as first:
        first.ask(QUESTION, model=model)
        first.await_cached(REPHRASED, model=model)
        first.server.signal(signal.SIGTERM)
        assert first.server.process.wait(10) == 0

    with running_gateway(tmp_path, config) as second:
        after_stop = [second.ask(text, model=model).headers["x-keepgate-cache"] for text in (QUESTION, REPHRASED)]
        second.ask("Another question altogether?", model=model)
        # An answer leaves before its entry is written. The other wording counts as well, as an alias.
        eventually(lambda: second.metric("keepgate_cache_entries", endpoint="default") == 3)
        second.server.process.kill()
        second.server.process.wait(10)

    with running_gateway(tmp_path, config) as third:
        texts = (QUESTION, REPHRASED, "Another question altogether?")
        after_kill = [third.ask(text, model=model).headers["x-keepgate-cache"] for text in texts]

    assert after_stop == ["exact", "semantic"]
    assert after_kill == ["exact", "semantic", "exact"]
    assert mock.calls() == 2


# --- crashes


def test_a_killed_worker_is_replaced_and_serving_goes_on(tmp_path: Path, mock: Mock, model: str) -> None:
    with running_gateway(tmp_path, exact_only(tmp_path, mock), "--workers", "2") as gateway:
        before = workers_of(gateway)
        names = {*each_worker(gateway, QUESTION, model)}

        os.kill(before[0], signal.SIGKILL)

        eventually(lambda: len(workers_of(gateway)) == 2 and before[0] not in workers_of(gateway), within=20)
        after = workers_of(gateway)
        eventually(lambda: worker_of(fresh(gateway, QUESTION, model)) not in names, every=0, within=20)
        assert before[1] in after, "the other worker was restarted too"
        assert fresh(gateway, QUESTION, model).headers["x-keepgate-cache"] == "exact"
        gateway.server.signal(signal.SIGTERM)
        assert gateway.server.process.wait(10) == 0


def test_a_worker_that_dies_while_the_file_is_invalid_is_replaced_by_one_that_serves_as_the_others_do(
    tmp_path: Path, mock: Mock, model: str
) -> None:
    config = exact_only(tmp_path, mock, keys={"require": True})
    with running_gateway(tmp_path, config, "--workers", "2") as gateway:
        before = workers_of(gateway)
        for broken in ({**config, "keys": {"require": False}, "storage": {"path": str(tmp_path / "other")}}, {"no": 1}):
            gateway.configure(broken)  # nobody said that it should be read

            os.kill(before[0], signal.SIGKILL)
            eventually(lambda: len(workers_of(gateway)) == 2 and before[0] not in workers_of(gateway), within=20)  # noqa: B023
            before = workers_of(gateway)

        refusals = each_worker(gateway, QUESTION, model)
        assert {answer.status_code for answer in refusals.values()} == {401}
        assert not (tmp_path / "other").exists()


def test_a_reload_reaches_a_worker_that_is_still_starting(tmp_path: Path, mock: Mock, model: str) -> None:
    def config(mode: str) -> Json:
        return exact_only(tmp_path, mock, endpoints=[{"name": "default", "cache": {"mode": mode}}])

    with running_gateway(tmp_path, config("exact"), "--workers", "2") as gateway:
        before = workers_of(gateway)
        os.kill(before[0], signal.SIGKILL)
        eventually(lambda: len(workers_of(gateway)) == 2 and before[0] not in workers_of(gateway), within=20)

        gateway.configure(config("off"))
        gateway.server.signal(signal.SIGHUP)

        on_all(gateway, QUESTION, model, 2, lambda answer: answer.headers["x-keepgate-cache"] == "bypass")
        assert "ended with -1;" not in gateway.log(), "the signal killed a worker that could not hear it yet"


def test_a_killed_supervisor_leaves_no_worker_behind(tmp_path: Path, mock: Mock) -> None:
    with running_gateway(tmp_path, exact_only(tmp_path, mock), "--workers", "2") as gateway:
        workers = workers_of(gateway)
        assert len(workers) == 2

        gateway.server.process.kill()
        gateway.server.process.wait(10)

        eventually(lambda: not any(map(alive, workers)), within=10)


def test_a_port_that_is_taken_is_named(tmp_path: Path, mock: Mock) -> None:
    config = tmp_path / "keepgate.yaml"
    config.write_text(json.dumps(exact_only(tmp_path, mock)))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        refused = keepgate("serve", "--config", str(config), "--port", str(port))

    assert refused.returncode == 1
    assert f"127.0.0.1:{port} cannot be bound" in refused.stderr
