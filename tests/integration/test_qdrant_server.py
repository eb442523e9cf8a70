"""The Qdrant store under what a real server does to it: away, killed, hanging, emptied, locked, full."""

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import numpy as np
import pytest
import trustme
from qdrant_client import AsyncQdrantClient

from backends.vector.base import Vector
from backends.vector.qdrant import QdrantStore
from models.errors import BackendError, ConfigError, StoreFull
from tests.support.clock import ManualClock
from tests.support.servers import Server, free_port
from tests.support.stores import missing, must_run, qdrant

DIMENSIONS = 8
HERE = "support/team:blue"
RECOVERED_WITHIN = 5.0

T = TypeVar("T")


@pytest.fixture(autouse=True)
def _installed() -> None:
    if lacking := missing("qdrant"):
        (pytest.fail if must_run() else pytest.skip)(f"Qdrant cannot be started without {lacking[0]}")


@pytest.fixture(params=["gRPC", "HTTP"])
def over(request: pytest.FixtureRequest) -> str:
    way: str = request.param
    return way


@contextmanager
def serving(directory: Path, **options: Any) -> Iterator[Server]:
    """Killed at the end: asked to stop, it waits for the connections that it has."""
    with qdrant(directory, **options) as running:
        yield running
        running.process.kill()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path / "qdrant") as running:
        yield running


def store_at(port: int, over: str | None = None, **options: Any) -> QdrantStore:
    defaults = {"url": f"http://127.0.0.1:{port}", "grpc_port": port + 1, "dimensions": DIMENSIONS, "revision": "a@1"}
    return QdrantStore(**{**defaults, "grpc": None if over is None else over == "gRPC", **options})


@asynccontextmanager
async def opened(port: int, over: str | None = None, **options: Any) -> AsyncIterator[QdrantStore]:
    store = store_at(port, over, **options)
    try:
        yield store
    finally:
        await store.close()


@contextmanager
def restarted(server: Server, directory: Path, **options: Any) -> Iterator[Server]:
    """Another one in its place, after `kill -9`."""
    server.process.kill()
    server.process.wait()
    with serving(directory, port=server.port, **options) as running:
        yield running


def axis(number: int) -> Vector:
    unit = np.zeros(DIMENSIONS, dtype=np.float32)
    unit[number] = 1.0
    return unit


async def ids(store: QdrantStore, namespace: str = HERE, vector: Vector | None = None) -> list[str]:
    found = await store.nearest(namespace, axis(0) if vector is None else vector, limit=10)
    return [neighbor.entry_id for neighbor in found]


async def soon(call: Callable[[], Awaitable[T]]) -> T:
    """What `call` gives once the store has recovered; it is called as a gateway would, with a deadline."""
    until = time.monotonic() + RECOVERED_WITHIN
    while True:
        try:
            async with asyncio.timeout(0.25):
                return await call()
        except (BackendError, TimeoutError):
            if time.monotonic() > until:
                raise
        await asyncio.sleep(0.02)  # the next request


async def ask(server: Server, method: str, path: str, body: Any = None) -> Any:
    """A call of Qdrant's own API."""
    async with aiohttp.request(method, server.url + path, json=body) as answer:
        text = await answer.read()
        assert answer.status == 200, text
        return json.loads(text)["result"]


async def collections(server: Server) -> list[str]:
    return [one["name"] for one in (await ask(server, "GET", "/collections"))["collections"]]


async def test_a_server_that_is_down_fails_at_once_and_is_found_when_it_comes(tmp_path: Path, over: str) -> None:
    port = free_port()
    async with opened(port, over) as store:
        started = time.monotonic()
        for _ in range(5):
            with pytest.raises(BackendError, match="cannot be reached"):
                await store.nearest(HERE, axis(0), limit=1)
        took = time.monotonic() - started

        with serving(tmp_path, port=port):
            await soon(lambda: store.upsert(HERE, "a", axis(0), b"", ttl=60))

            assert await ids(store) == ["a"]
    assert took < 1.0


async def test_a_killed_server_comes_back_with_its_entries(server: Server, tmp_path: Path, over: str) -> None:
    async with opened(server.port, over) as store:
        await store.upsert(HERE, "a", axis(0), b"kept", ttl=60)

        with restarted(server, tmp_path / "qdrant"):
            found = await soon(lambda: store.nearest(HERE, axis(0), limit=1))

    assert [neighbor.payload for neighbor in found] == [b"kept"]


async def test_a_server_that_lost_all_is_filled_again(server: Server, tmp_path: Path, over: str) -> None:
    async with opened(server.port, over) as store:
        await store.upsert(HERE, "a", axis(0), b"lost", ttl=60)

        with restarted(server, tmp_path / "another disk"):
            before = await soon(lambda: ids(store))
            await store.upsert(HERE, "b", axis(0), b"", ttl=60)

            assert before == []
            assert await ids(store) == ["b"]


async def test_calls_to_a_dead_server_fail_at_once(server: Server, over: str) -> None:
    async with opened(server.port, over) as store:
        await store.upsert(HERE, "a", axis(0), b"", ttl=60)
        server.process.kill()
        server.process.wait()

        started = time.monotonic()
        calls: list[Callable[[], Awaitable[Any]]] = [
            lambda: store.nearest(HERE, axis(0), limit=1),
            lambda: store.upsert(HERE, "a", axis(0), b"", ttl=60),
            lambda: store.delete(HERE, "a"),
            lambda: store.clear(HERE),
            lambda: store.count(),
            lambda: anext(aiter(store.entries(""))),
            lambda: store.load(),
        ]
        for call in calls:
            with pytest.raises(BackendError):
                await call()

    assert time.monotonic() - started < 2.0


async def test_a_deleted_collection_is_made_again(server: Server, over: str) -> None:
    async with opened(server.port, over) as store:
        await store.upsert(HERE, "a", axis(0), b"", ttl=60)
        (name,) = await collections(server)
        await ask(server, "DELETE", f"/collections/{name}")
        after_a_search = await ids(store)
        made_again = await collections(server)
        await ask(server, "DELETE", f"/collections/{name}")
        await store.upsert(HERE, "b", axis(0), b"", ttl=60)

        assert after_a_search == []
        assert made_again == [name]
        assert await ids(store) == ["b"]
        assert set((await ask(server, "GET", f"/collections/{name}"))["payload_schema"]) == {"space", "path", "expires"}


async def test_a_caller_leaves_a_hanging_server_at_its_deadline(server: Server, over: str) -> None:
    async with opened(server.port, over) as store:
        for number in range(DIMENSIONS):
            await store.upsert(f"n/{number}", str(number), axis(number), b"", ttl=60)
        server.signal(signal.SIGSTOP)
        started = time.monotonic()
        for number in range(DIMENSIONS):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await ids(store, f"n/{number}")
        took = time.monotonic() - started
        server.signal(signal.SIGCONT)
        first = await soon(lambda: ids(store, "n/7"))

        found = await asyncio.gather(*(ids(store, f"n/{number}") for number in range(DIMENSIONS)))

    assert took < DIMENSIONS * 0.15
    assert first == ["7"]
    assert found == [[str(number)] for number in range(DIMENSIONS)]


async def test_a_server_that_hangs_at_first_does_not_hold_the_store_for_long(server: Server, over: str) -> None:
    server.signal(signal.SIGSTOP)
    async with opened(server.port, over) as store:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await store.nearest(HERE, axis(0), limit=1)
        server.signal(signal.SIGCONT)

        assert await soon(lambda: ids(store)) == []


async def test_callers_that_leave_never_get_another_callers_answer(server: Server, over: str) -> None:
    async with opened(server.port, over) as store:
        for number in range(DIMENSIONS):
            await store.upsert(f"n/{number}", str(number), axis(number), b"", ttl=60)
        chance = np.random.default_rng(3)
        left = 0

        async def search(number: int, patience: float) -> None:
            nonlocal left
            try:
                async with asyncio.timeout(patience):
                    assert await ids(store, f"n/{number}") == [str(number)]
            except TimeoutError:
                left += 1

        for _ in range(40):
            await asyncio.gather(
                *(search(int(chance.integers(DIMENSIONS)), float(chance.uniform(0, 0.008))) for _ in range(20))
            )
        await asyncio.gather(*(search(number % DIMENSIONS, 20) for number in range(100)))

    assert 0 < left < 800


async def test_a_store_that_is_closed_while_it_connects_leaves_nothing(server: Server, over: str) -> None:
    store = store_at(server.port, over)
    search = asyncio.create_task(store.nearest(HERE, axis(0), limit=1))
    await asyncio.sleep(0)

    await store.close()
    await store.close()

    with pytest.raises(BackendError, match="closed"):
        await search
    with pytest.raises(BackendError, match="closed"):
        await store.nearest(HERE, axis(0), limit=1)


async def test_calls_that_wait_when_the_store_is_closed_fail_as_any_other(server: Server, over: str) -> None:
    store = store_at(server.port, over)
    await store.upsert(HERE, "a", axis(0), b"", ttl=60)
    server.signal(signal.SIGSTOP)
    searches = [asyncio.create_task(store.nearest(HERE, axis(0), limit=1)) for _ in range(50)]
    await asyncio.wait(searches, timeout=0.05)

    await store.close()

    ended = await asyncio.gather(*searches, return_exceptions=True)
    server.signal(signal.SIGCONT)
    assert [type(end) for end in ended if not isinstance(end, BackendError)] == []


async def test_a_url_that_is_not_qdrants_is_doubted(server: Server, over: str) -> None:
    async with opened(server.port, over, url=f"{server.url}/elsewhere") as store:
        with pytest.raises(BackendError, match=r"is qdrant\.url right"):
            await store.nearest(HERE, axis(0), limit=1)


async def test_a_key_that_may_only_read_is_named(tmp_path: Path) -> None:
    with serving(tmp_path, service__api_key="all", service__read_only_api_key="read") as server:
        async with opened(server.port, api_key="read") as store:
            with pytest.raises(BackendError, match="refused the API key"):
                await store.load()


async def test_a_wrong_key_is_named_and_not_told(tmp_path: Path, over: str) -> None:
    with serving(tmp_path, service__api_key="the right key") as server:
        async with opened(server.port, over, api_key="not the key") as locked_out:
            with pytest.raises(BackendError, match=r"refused the API key: see qdrant\.api_key") as caught:
                await locked_out.upsert(HERE, "a", axis(0), b"", ttl=60)
        async with opened(server.port, over, api_key="the right key") as store:
            await store.upsert(HERE, "a", axis(0), b"", ttl=60)

            assert await ids(store) == ["a"]
    assert "not the key" not in str(caught.value)


async def test_a_key_that_is_taken_away_is_told_as_such(server: Server, tmp_path: Path, over: str) -> None:
    async with opened(server.port, over, api_key="first") as store:
        await store.upsert(HERE, "a", axis(0), b"", ttl=60)

        with restarted(server, tmp_path / "qdrant", service__api_key="second"):
            until = time.monotonic() + RECOVERED_WITHIN
            told = ""
            while "API key" not in told and time.monotonic() < until:
                with pytest.raises(BackendError) as caught:
                    await store.nearest(HERE, axis(0), limit=1)
                told = str(caught.value)

    assert told == "Qdrant refused the API key: see qdrant.api_key"


async def test_speaks_tls_to_a_server_it_trusts_and_to_no_other(tmp_path: Path, over: str) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    ca, cert, key = (tmp_path / name for name in ("ca.pem", "cert.pem", "key.pem"))
    authority.cert_pem.write_to_path(str(ca))
    certificate.cert_chain_pems[0].write_to_path(str(cert))
    certificate.private_key_pem.write_to_path(str(key))

    with serving(
        tmp_path / "qdrant", service__enable_tls="true", tls__cert=str(cert), tls__key=str(key), service__api_key="k"
    ) as server:
        url = f"https://127.0.0.1:{server.port}"
        async with opened(server.port, over, url=url, ca_file=ca, api_key="k") as store:
            await store.upsert(HERE, "a", axis(0), b"", ttl=60)
            found = await ids(store)
        async with opened(server.port, over, url=url, api_key="k") as wary:
            with pytest.raises(BackendError, match="Certificate"):
                await wary.nearest(HERE, axis(0), limit=1)

    assert found == ["a"]


async def test_what_another_embedder_made_under_this_name_is_refused(server: Server, over: str) -> None:
    async with opened(server.port, over) as store:
        await store.load()
    (name,) = await collections(server)
    made = {"vectors": {"size": DIMENSIONS, "distance": "Cosine"}, "metadata": {"revision": "a@1"}}
    others = [
        {**made, "metadata": {"revision": "b@2"}},
        {"vectors": made["vectors"]},
        {**made, "vectors": {"size": DIMENSIONS, "distance": "Dot"}},
        {**made, "vectors": {"size": DIMENSIONS + 1, "distance": "Cosine"}},
        {**made, "vectors": {"named": made["vectors"]}},
    ]

    for other in others:
        await ask(server, "DELETE", f"/collections/{name}")
        await ask(server, "PUT", f"/collections/{name}", other)
        async with opened(server.port, over) as store:
            for _ in range(2):
                with pytest.raises(
                    BackendError, match=r"not made for the embedder 'a@1'.*set another prefix, or delete"
                ):
                    await store.nearest(HERE, axis(0), limit=1)


async def test_embedders_and_prefixes_do_not_meet(server: Server) -> None:
    variants = [{}, {"revision": "b@2"}, {"prefix": "other"}]
    stores = [store_at(server.port, **variant) for variant in variants]
    await stores[0].upsert(HERE, "a", axis(0), b"", ttl=60)

    found = [await ids(store) for store in stores]

    for store in stores:
        await store.close()
    assert found == [["a"], [], []]
    assert len(await collections(server)) == 3


async def test_a_new_collection_tells_of_those_of_other_embedders(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with opened(server.port) as store:
        await store.load()
    (old,) = await collections(server)

    async with opened(server.port, revision="b@2") as store:
        await store.load()

    assert [record.message for record in caplog.records if old in record.message] == [
        record.message for record in caplog.records if "entries of other embedders stay in" in record.message
    ]
    assert f"stay in {old} until you delete" in caplog.text


async def test_every_process_finds_an_entry_in_its_next_search(server: Server) -> None:
    async with opened(server.port, "gRPC") as one, opened(server.port, "HTTP") as other:
        for number in range(100):
            await one.upsert(f"n/{number}", "a", axis(0), b"", ttl=60)
            assert await ids(other, f"n/{number}") == ["a"]
            await other.delete(f"n/{number}", "a")
            assert await ids(one, f"n/{number}") == []


async def test_stores_that_start_at_once_make_one_collection(server: Server, over: str) -> None:
    stores = [store_at(server.port, over) for _ in range(8)]

    await asyncio.gather(*(s.upsert(HERE, str(n), axis(n), b"", ttl=60) for n, s in enumerate(stores)))
    found = [sorted(await ids(store)) for store in stores]

    for store in stores:
        await store.close()
    assert found == [[str(n) for n in range(8)]] * 8
    assert len(await collections(server)) == 1


async def test_a_server_without_room_is_full_and_still_answers(server: Server, over: str) -> None:
    async with opened(server.port, over) as store:
        await store.upsert(HERE, "a", axis(0), b"", ttl=60)
        (name,) = await collections(server)
        limits = {"strict_mode_config": {"enabled": True, "max_points_count": 1}}
        await ask(server, "PATCH", f"/collections/{name}", limits)

        with pytest.raises(StoreFull):  # noqa: PT012 - the server counts every 32 writes
            for number in range(100):
                await store.upsert(HERE, f"b{number}", axis(1), b"", ttl=60)

        assert (await ids(store))[0] == "a"


async def test_what_has_expired_leaves_the_server_and_the_rest_stays(server: Server) -> None:
    clock = ManualClock(1_800_000_000.0)
    async with opened(server.port, clock=clock) as store:
        await asyncio.gather(*(store.upsert("old", str(n), axis(0), b"", ttl=10) for n in range(1_500)))
        await store.upsert("new", "rewritten", axis(0), b"", ttl=10)
        await store.upsert("new", "for ever", axis(0), b"", ttl=None)
        clock.advance(10)
        await store.upsert("new", "rewritten", axis(0), b"", ttl=10)

        swept = await store.sweep()

        (name,) = await collections(server)
        assert swept == 1_500
        assert (await ask(server, "GET", f"/collections/{name}"))["points_count"] == 2
        assert sorted(await ids(store, "new")) == ["for ever", "rewritten"]


async def test_pages_of_entries_have_each_once_with_its_vector(server: Server, over: str) -> None:
    clock = ManualClock(1_800_000_000.0)
    rows = np.random.default_rng(5).standard_normal((200, DIMENSIONS), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    async with opened(server.port, over, clock=clock) as store:
        for number, row in enumerate(rows):
            await store.upsert("a/b" if number % 2 else "a", str(number), row, b"%d" % number, ttl=number + 1)
        await store.upsert("ab", "elsewhere", axis(0), b"", ttl=None)
        clock.advance(20)

        entries = {entry.entry_id: entry async for entry in store.entries("a")}
        below = [entry async for entry in store.entries("a/b")]
        everything = [entry.expires_at async for entry in store.entries("")]

    assert sorted(map(int, entries)) == list(range(20, 200))
    assert max(np.abs(entry.vector - rows[int(name)]).max() for name, entry in entries.items()) < 1e-6
    assert {(e.namespace, e.payload, e.expires_at) for e in entries.values()} == {
        ("a/b" if n % 2 else "a", b"%d" % n, 1_800_000_001.0 + n) for n in range(20, 200)
    }
    assert len(below) == 90
    assert max(everything) == float("inf")


async def test_names_may_hold_what_is_no_unicode(server: Server, over: str) -> None:
    namespace, entry_id = "a\x00b/\ud800", "\udfff\x00"
    async with opened(server.port, over) as store:
        await store.upsert(namespace, entry_id, axis(0), b"\x00\xff", ttl=60)

        assert await ids(store, namespace) == [entry_id]
        assert await store.clear("a\x00b") == 1


async def test_goes_over_http_where_grpc_is_not_served(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        nobody = free_port()
        async with opened(server.port, grpc_port=nobody) as store:
            await store.upsert(HERE, "a", axis(0), b"", ttl=60)
            found = await ids(store)
        async with opened(server.port, "gRPC", grpc_port=nobody) as strict:
            with pytest.raises(BackendError, match="over gRPC"):
                await strict.nearest(HERE, axis(0), limit=1)

    assert found == ["a"]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"prefix": "a/b"}, r"qdrant\.prefix"),
        ({"prefix": ""}, r"qdrant\.prefix"),
        ({"url": "127.0.0.1:6333"}, r"qdrant\.url"),
        ({"url": "https://127.0.0.1:6333", "ca_file": Path("/nowhere.pem")}, r"qdrant\.ca_file"),
    ],
)
def test_what_cannot_be_used_is_named_when_the_store_is_made(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        store_at(6333, **options)


async def test_the_official_client_reads_what_the_store_wrote(server: Server, over: str) -> None:
    store = store_at(server.port, over)
    await store.upsert(HERE, "entry", axis(0), b"what was asked", ttl=60)

    client = AsyncQdrantClient(url=server.url, check_compatibility=False)
    (collection,) = (await client.get_collections()).collections
    records, _ = await client.scroll(collection.name, with_vectors=True)
    nearest = await client.query_points(collection.name, query=axis(0).tolist(), limit=1)
    await client.close()
    await store.close()

    assert [record.vector for record in records] == [axis(0).tolist()]
    assert nearest.points[0].id == records[0].id
    assert nearest.points[0].score == pytest.approx(1.0, abs=1e-5)
