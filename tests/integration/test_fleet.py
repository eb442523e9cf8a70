"""Several gateways over one store: what one learned all know, and one asks for all."""

import signal
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path

import httpx
import pytest
import redis

from tests.support.gateway import Gateway, Json, Mock, eventually, question, running_gateway, settings, text_of
from tests.support.servers import Server, free_port
from tests.support.stores import grpc_port, redis_alone

_numbers = count()

SEMANTIC: list[Json] = [{"name": "default", "cache": {"mode": "semantic", "ttl": "1h", "ttl_jitter": 0}}]
QUESTION = "How do I reset the password of my account?"
REWORDED = "How can I reset my account password?"
MASKING: list[Json] = [{"name": "default", "rules": [{"detect": "email", "on": "input", "action": "mask"}]}]


def in_redis(server: Server, **more: Json) -> Json:
    prefix = f"fleet-{next(_numbers)}"
    return {
        "cache": {
            "exact": {"store": "redis", "deadline": "5s"},
            "vector": {"store": "redis", "deadline": "5s"},
            **more,
        },
        "redis": {"url": f"redis://127.0.0.1:{server.port}", "prefix": prefix},
        "endpoints": SEMANTIC,
    }


def with_qdrant(redis: Server, qdrant: Server) -> Json:
    prefix = f"fleet-{next(_numbers)}"
    return {
        "cache": {"exact": {"store": "redis", "deadline": "5s"}, "vector": {"store": "qdrant", "deadline": "5s"}},
        "redis": {"url": f"redis://127.0.0.1:{redis.port}", "prefix": prefix},
        "qdrant": {"url": qdrant.url, "grpc_port": grpc_port(qdrant), "prefix": prefix},
        "endpoints": SEMANTIC,
    }


@contextmanager
def fleet(directory: Path, upstream: str, sections: Json, *, size: int = 2) -> Iterator[list[Gateway]]:
    """Gateways that have nothing in common but what `sections` name."""
    with ExitStack() as running:
        gateways = []
        for number in range(size):
            home = directory / str(number)
            home.mkdir()
            gateways.append(running.enter_context(running_gateway(home, settings(home, upstream, **sections))))
        yield gateways


@pytest.fixture(params=["redis", pytest.param("qdrant", marks=pytest.mark.full)])
def pair(
    request: pytest.FixtureRequest, tmp_path: Path, mock: Mock, store_server: Callable[[str], Server]
) -> Iterator[list[Gateway]]:
    redis = store_server("redis")
    sections = in_redis(redis) if request.param == "redis" else with_qdrant(redis, store_server("qdrant"))
    with fleet(tmp_path, mock.url, sections) as gateways:
        yield gateways


def outcome(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return answer.headers["x-keepgate-cache"]


def test_what_one_gateway_was_answered_the_other_knows(pair: list[Gateway]) -> None:
    one, other = pair

    first = one.ask(QUESTION, model="m")
    assert eventually(lambda: outcome(other.ask(QUESTION, model="m")) == "exact")
    again, reworded = other.ask(QUESTION, model="m"), other.ask(REWORDED, model="m")

    assert [outcome(answer) for answer in (first, again, reworded)] == ["miss", "exact", "semantic"]
    assert text_of(again) == text_of(reworded) == text_of(first)


def test_what_is_cleared_on_one_is_gone_from_all(pair: list[Gateway], mock: Mock) -> None:
    one, other = pair
    one.ask(QUESTION, model="m")
    assert eventually(lambda: outcome(other.ask(QUESTION, model="m")) == "exact")

    cleared = one.admin("DELETE", "/cache?endpoint=default")
    calls = mock.calls()
    after = other.ask(QUESTION, model="m")

    assert cleared.json()["entries"] >= 1
    assert outcome(after) == "miss"
    assert mock.calls() == calls + 1


def test_the_same_question_at_once_is_one_upstream_call_for_all(pair: list[Gateway], mock: Mock) -> None:
    mock.behaves(latency=1500)

    with ThreadPoolExecutor(40) as callers:
        answers = list(callers.map(lambda number: pair[number % 2].ask("asked at once", model="m"), range(40)))

    assert mock.calls("/v1/chat/completions") == 1
    assert len({text_of(answer) for answer in answers}) == 1
    outcomes = Counter(outcome(answer) for answer in answers)
    assert outcomes["miss"] == 1
    assert outcomes["coalesced"] >= 20


def test_who_streams_does_not_wait_for_another_gateway(pair: list[Gateway], mock: Mock) -> None:
    mock.behaves(latency=1000)
    body = question("streamed at once", model="m", stream=True)

    with ThreadPoolExecutor(2) as callers:
        answers = list(callers.map(lambda gateway: gateway.client.post("/v1/chat/completions", json=body), pair))

    assert [outcome(answer) for answer in answers] == ["miss", "miss"]
    assert mock.calls("/v1/chat/completions") == 2


def test_a_leader_that_is_killed_delays_the_others_by_its_lease_and_no_more(
    tmp_path: Path, mock: Mock, store_server: Callable[[str], Server]
) -> None:
    mock.behaves(latency=30_000)
    with (
        fleet(tmp_path, mock.url, in_redis(store_server("redis"))) as (one, other),
        ThreadPoolExecutor(2) as callers,
    ):
        callers.submit(one.ask, "who leads?", model="m")
        assert eventually(lambda: mock.calls("/v1/chat/completions") == 1)
        mock.behaves(latency=0)
        waiting = callers.submit(other.ask, "who leads?", model="m")
        one.server.signal(signal.SIGKILL)

        answer = waiting.result(timeout=10)

    assert outcome(answer) == "miss"
    assert mock.calls("/v1/chat/completions") == 2


def test_an_answer_that_is_not_kept_makes_nobody_wait_twice(
    tmp_path: Path, mock: Mock, store_server: Callable[[str], Server]
) -> None:
    mock.behaves(latency=1000)
    with (
        fleet(tmp_path, mock.url, in_redis(store_server("redis")), size=3) as gateways,
        ThreadPoolExecutor(3) as callers,
    ):
        answers = list(callers.map(lambda gateway: gateway.ask("cut short", model="m", max_tokens=2), gateways))

    # One leads; the others wait for it and then call at once, side by side.
    assert [outcome(answer) for answer in answers] == ["miss"] * 3
    assert max(answer.elapsed.total_seconds() for answer in answers) < 2.9


def test_a_value_has_the_same_placeholder_on_every_gateway(
    tmp_path: Path, mock: Mock, store_server: Callable[[str], Server]
) -> None:
    sections = in_redis(store_server("redis")) | {"guardrails": MASKING}
    sent = []
    with fleet(tmp_path, mock.url, sections) as gateways:
        for number, gateway in enumerate(gateways):
            gateway.ask(f"{number}: write to jo@example.com", model="m")
            sent.append(mock.last_body()["messages"][0]["content"].partition(": ")[2])

    assert sent[0] == sent[1]
    assert "jo@example.com" not in sent[0]


def test_a_secret_agreed_on_later_puts_nothing_else_into_effect(tmp_path: Path, mock: Mock) -> None:
    port = free_port()
    sent: list[str] = []
    sections = {
        "cache": {"exact": {"store": "redis"}},
        "redis": {"url": f"redis://127.0.0.1:{port}"},
        "guardrails": MASKING,
        "endpoints": [{"name": "default", "cache": {"mode": "exact"}}],
    }

    def masked(gateway: Gateway) -> str:
        gateway.ask(f"{next(_numbers)}: write to jo@example.com", model="m")
        text: str = mock.last_body()["messages"][0]["content"].partition(": ")[2]
        sent.append(text)
        return text

    with running_gateway(tmp_path, settings(tmp_path, mock.url, **sections)) as gateway:
        own = masked(gateway)
        gateway.config.write_text("half: written")
        with redis_alone(tmp_path / "redis", port=port):
            with redis.Redis(port=port) as client:
                client.set("keepgate:secret:secret", b"s" * 32)

            agreed = eventually(lambda: (mask := masked(gateway)) != own and mask)
        log = gateway.log()

    assert "jo@example.com" not in "".join(sent)
    assert agreed != own
    assert "the new configuration is refused" not in log


def test_an_idle_gateway_says_how_its_store_is(tmp_path: Path, mock: Mock) -> None:
    port = free_port()
    sections = {
        "cache": {"exact": {"store": "redis"}},
        "redis": {"url": f"redis://127.0.0.1:{port}"},
        "endpoints": [{"name": "default", "cache": {"mode": "exact"}}],
    }

    with running_gateway(tmp_path, settings(tmp_path, mock.url, **sections)) as gateway:

        def exact() -> str:
            told: str = gateway.client.get("/health/ready").json()["tiers"]["exact"]
            return told

        before = exact()
        with redis_alone(tmp_path / "redis", port=port):
            eventually(lambda: exact() == "up", within=5.0)
            assert gateway.metric("keepgate_degraded", component="exact") == 0

    assert before == "degraded"
