"""What becomes of requests when a remote store is down, killed, silent, slow, full, emptied or locked.

All of them are answered from upstream, soon; and hits come back by themselves.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
import redis

from tests.support.bad_line import BadLine, bad_line
from tests.support.gateway import Gateway, Json, Mock, eventually, running_gateway, settings
from tests.support.servers import Server, free_port
from tests.support.stores import SERVERS, missing, must_run, qdrant, redis_with_search

_numbers = count()

ENDPOINTS: list[Json] = [{"name": "default", "cache": {"mode": "semantic", "ttl": "1h", "ttl_jitter": 0}}]
ASKED = ("How do I reset the password of my account?", "How can I reset my account password?")
# A request that pays both deadlines, on a machine that does other things as well.
SOON = 1.5


class Store(NamedTuple):
    """One remote store and how a gateway is told to use it, at that port."""

    server: str
    tiers: frozenset[str]
    sections: Callable[[int], Json]


def redis_sections(port: int) -> Json:
    return {
        "cache": {"exact": {"store": "redis"}, "vector": {"store": "redis", "deadline": "250ms"}},
        "redis": {"url": f"redis://127.0.0.1:{port}", "prefix": f"weather-{next(_numbers)}"},
    }


def qdrant_sections(port: int) -> Json:
    return {
        "cache": {"vector": {"store": "qdrant", "deadline": "250ms"}},
        "qdrant": {"url": f"http://127.0.0.1:{port}", "grpc": False, "prefix": f"weather-{next(_numbers)}"},
    }


STORES = {
    "redis": Store("redis", frozenset({"exact", "vector"}), redis_sections),
    "qdrant": Store("qdrant", frozenset({"vector"}), qdrant_sections),
}


@pytest.fixture(params=["redis", pytest.param("qdrant", marks=pytest.mark.full)])
def store(request: pytest.FixtureRequest) -> Store:
    chosen = STORES[request.param]
    if lacking := missing(chosen.server):
        reason = f"{chosen.server} cannot be started without {lacking[0]}: `make test` installs it"
        (pytest.fail if must_run() else pytest.skip)(reason)
    return chosen


class Place:
    """A store's server that can be started and killed, always at the same port."""

    def __init__(self, store: Store, directory: Path) -> None:
        self.port = free_port()
        self._start = SERVERS[store.server][0]
        self._directory = directory
        self._running: AbstractContextManager[Server] | None = None
        self._server: Server | None = None
        self._starts = count()

    def start(self, *options: str) -> None:
        """Empty, as after a loss of its data."""
        home = self._directory / f"store-{next(self._starts)}"
        self._running = self._start(home, *options, port=self.port)
        self._server = self._running.__enter__()

    def kill(self) -> None:
        assert self._running is not None
        assert self._server is not None
        self._server.process.kill()
        self._running.__exit__(None, None, None)
        self._running = None

    def stop(self) -> None:
        if self._running is not None:
            self.kill()


@pytest.fixture
def place(store: Store, tmp_path: Path) -> Iterator[Place]:
    place = Place(store, tmp_path)
    yield place
    place.stop()


@contextmanager
def gateway_at(directory: Path, mock: Mock, sections: Json) -> Iterator[Gateway]:
    directory.mkdir(exist_ok=True)
    with running_gateway(directory, settings(directory, mock.url, endpoints=ENDPOINTS, **sections)) as gateway:
        yield gateway


def ask_many(gateway: Gateway, number: int) -> list[float]:
    """The seconds each of so many new questions took; all of them were answered."""
    seconds = []
    for _ in range(number):
        began = time.monotonic()
        answer = gateway.ask(f"a question nobody asked before, number {next(_numbers)}", model="m")
        seconds.append(time.monotonic() - began)
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-keepgate-cache"] == "miss"
    return seconds


def hits(gateway: Gateway) -> bool:
    """Whether both tiers have what they are asked for, now that it was asked."""
    question, reworded = ASKED
    number = next(_numbers)
    told = [gateway.ask(text, model=f"m{number}") for text in (question, question)]
    if told[1].headers["x-keepgate-cache"] != "exact":
        return False
    return bool(gateway.ask(reworded, model=f"m{number}").headers["x-keepgate-cache"] == "semantic")


def degraded(gateway: Gateway) -> frozenset[str]:
    tiers: dict[str, str] = gateway.client.get("/health/ready").json()["tiers"]
    return frozenset(name for name, state in tiers.items() if state == "degraded")


def recovers(gateway: Gateway) -> float:
    """Seconds until hits are back; five at most."""
    began = time.monotonic()
    assert eventually(lambda: hits(gateway), within=5.0)
    assert eventually(lambda: not degraded(gateway), within=5.0)
    return time.monotonic() - began


def test_a_store_that_is_down_at_start_is_declared_and_joins_later(
    tmp_path: Path, mock: Mock, store: Store, place: Place
) -> None:
    with gateway_at(tmp_path / "gateway", mock, store.sections(place.port)) as gateway:
        seconds = ask_many(gateway, 10)
        declared = degraded(gateway)
        place.start()

        recovers(gateway)

    assert max(seconds) < SOON
    assert declared == store.tiers


def test_a_store_that_is_killed_and_comes_back_empty_costs_hits_and_nothing_else(
    tmp_path: Path, mock: Mock, store: Store, place: Place
) -> None:
    place.start()
    with gateway_at(tmp_path / "gateway", mock, store.sections(place.port)) as gateway:
        assert eventually(lambda: hits(gateway))
        place.kill()
        seconds = ask_many(gateway, 10)
        declared = degraded(gateway)
        place.start()

        recovers(gateway)

    assert max(seconds) < SOON
    assert declared == store.tiers


@pytest.mark.parametrize("weather", ["silent", "slow"])
def test_a_store_that_answers_late_or_never_is_paid_for_a_few_times_only(
    tmp_path: Path, mock: Mock, store: Store, place: Place, weather: str
) -> None:
    place.start()
    with (
        bad_line(place.port) as line,
        gateway_at(tmp_path / "gateway", mock, store.sections(line.port)) as gateway,
    ):
        assert eventually(lambda: hits(gateway))
        usual = statistics.median(ask_many(gateway, 10))
        worsen(line, weather)
        first = ask_many(gateway, 5)
        later = statistics.median(ask_many(gateway, 20))
        declared = degraded(gateway)
        line.resume()

        recovers(gateway)

    assert max(first) < SOON
    assert later < usual + 0.04  # less than the deadline of one look-up
    assert declared == store.tiers


def worsen(line: BadLine, weather: str) -> None:
    if weather == "silent":
        line.hang()
    else:
        line.delay = 1.0


def test_connections_that_break_are_made_anew(tmp_path: Path, mock: Mock, store: Store, place: Place) -> None:
    place.start()
    with (
        bad_line(place.port) as line,
        gateway_at(tmp_path / "gateway", mock, store.sections(line.port)) as gateway,
    ):
        assert eventually(lambda: hits(gateway))
        line.cut()

        recovers(gateway)


def test_a_full_redis_is_read_and_not_written(tmp_path: Path, mock: Mock) -> None:
    place = Place(STORES["redis"], tmp_path)
    with ExitStack() as after:
        after.callback(place.stop)
        place.start("--maxmemory-policy", "noeviction")
        sections = redis_sections(place.port)
        with gateway_at(tmp_path / "gateway", mock, sections) as gateway:
            gateway.ask(ASKED[0], model="m")
            assert eventually(lambda: gateway.ask(ASKED[0], model="m").headers["x-keepgate-cache"] == "exact")
            configure(place.port, "maxmemory", "1mb")

            ask_many(gateway, 5)
            kept = gateway.ask(ASKED[0], model="m").headers["x-keepgate-cache"]
            declared = degraded(gateway)
            log = gateway.log()
            configure(place.port, "maxmemory", "0")
            recovers(gateway)

    assert kept == "exact"
    assert "exact" in declared
    assert "raise its maxmemory" in log


def configure(port: int, name: str, value: str) -> None:
    with redis.Redis(port=port) as client:
        client.config_set(name, value)


def test_a_wrong_password_is_said_and_costs_no_request(tmp_path: Path, mock: Mock, store: Store) -> None:
    with (
        locked(store, tmp_path) as (port, setting, locks),
        gateway_at(tmp_path / "gateway", mock, with_a_wrong_password(store.sections(port))) as gateway,
    ):
        seconds = ask_many(gateway, 10)
        declared = degraded(gateway)
        log = gateway.log()

    assert locks
    assert max(seconds) < SOON
    assert declared == store.tiers
    assert setting in log
    assert "wrong-password" not in log


@contextmanager
def locked(store: Store, directory: Path) -> Iterator[tuple[int, str, bool]]:
    """A server that asks for a password: its port, the setting that has to be right, and that it does ask."""
    if store.server == "redis":
        with redis_with_search(directory / "locked", "--requirepass", "right") as server:
            with redis.Redis(port=server.port) as client, pytest.raises(redis.AuthenticationError):
                client.ping()
            yield server.port, "redis.url", True
    else:
        with qdrant(directory / "locked", service__api_key="right") as server:
            yield server.port, "qdrant.api_key", httpx.get(f"{server.url}/collections").status_code == 401


def with_a_wrong_password(sections: Json) -> Json:
    if "redis" in sections:
        url = sections["redis"]["url"].replace("//", "//:wrong-password@")
        return {**sections, "redis": {**sections["redis"], "url": url}}
    return {**sections, "qdrant": {**sections["qdrant"], "api_key": "wrong-password"}}
