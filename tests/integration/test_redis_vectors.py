"""The vector store of Redis against servers that forget, refuse, fill up, hang or change."""

import asyncio
import logging
import signal
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from redis import Redis

from backends.redis_address import RedisAddress
from backends.redis_client import connect
from backends.vector.base import Vector
from backends.vector.redis import RedisVectorStore
from backends.vector.redis_names import short, space
from models.errors import BackendError, StoreFull
from tests.support.clock import ManualClock
from tests.support.servers import Server, free_port
from tests.support.stores import SERVERS, redis_alone, redis_with_search, valkey_with_search

DIMENSIONS = 16
HERE = "support/team:blue/1f0c"
NOW = 1_800_000_000.0

both_ways = pytest.mark.parametrize("kind", ["redis", "redis-alone"])  # the query engine, vector sets


@pytest.fixture(autouse=True)
def _installed(store_server: Callable[[str], Server]) -> None:
    """Skips or fails the test where Redis cannot be started."""
    store_server("redis")


def at(port: int, **options: Any) -> RedisAddress:
    return RedisAddress(**{"url": f"redis://127.0.0.1:{port}", "prefix": uuid.uuid4().hex, **options})


@asynccontextmanager
async def opened(address: RedisAddress, **options: Any) -> AsyncIterator[RedisVectorStore]:
    store = RedisVectorStore(address=address, **{"dimensions": DIMENSIONS, "revision": "test@1", **options})
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def talking(address: RedisAddress) -> AsyncIterator[Any]:
    client = connect(address)
    try:
        yield client
    finally:
        await client.aclose()


def random_units(count: int) -> NDArray[np.float32]:
    rows = np.random.default_rng(7).standard_normal((count, DIMENSIONS), dtype=np.float32)
    unit: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


ROWS = random_units(200)


async def ids(store: RedisVectorStore, vector: Vector, *, limit: int = 10) -> list[str]:
    return [neighbor.entry_id for neighbor in await store.nearest(HERE, vector, limit=limit)]


async def fill(store: RedisVectorStore, count: int) -> None:
    await asyncio.gather(*(store.upsert(HERE, str(i), ROWS[i], str(i).encode(), ttl=60) for i in range(count)))


async def one_after_another(work: Iterator[Awaitable[None]]) -> None:
    for each in work:
        await each


async def until(question: Callable[[], Awaitable[bool]], *, seconds: float) -> None:
    """Asks again and again; what fails meanwhile is a no."""
    deadline = time.monotonic() + seconds
    while True:
        with suppress(BackendError, TimeoutError):
            async with asyncio.timeout(0.5):
                if await question():
                    return
        assert time.monotonic() < deadline, f"not so after {seconds} s"
        await asyncio.sleep(0.02)


# --- one server, many gateways


@both_ways
async def test_what_one_gateway_writes_another_finds_in_its_next_search(
    kind: str, store_server: Callable[[str], Server]
) -> None:
    address = at(store_server(kind).port)
    async with opened(address) as one, opened(address) as other:
        for number, row in enumerate(ROWS):
            await one.upsert(HERE, str(number), row, b"", ttl=60)

            assert await ids(other, row, limit=1) == [str(number)]


@both_ways
async def test_vectors_of_different_embedders_never_meet(kind: str, store_server: Callable[[str], Server]) -> None:
    address = at(store_server(kind).port)
    async with opened(address) as one, opened(address, revision="test@2") as other:
        await fill(one, 3)

        assert await ids(other, ROWS[0]) == []
        assert await other.clear("") == 0
        assert await one.count() == 3


@both_ways
async def test_prefixes_keep_stores_apart(kind: str, store_server: Callable[[str], Server]) -> None:
    port, prefix = store_server(kind).port, uuid.uuid4().hex
    async with opened(at(port, prefix=prefix)) as one, opened(at(port, prefix=f"{prefix}:v")) as other:
        await fill(one, 3)
        await fill(other, 2)

        assert (await one.count(), await other.count()) == (3, 2)
        assert await one.clear("") == 3
        assert await other.count() == 2


@both_ways
async def test_many_first_uses_at_once_find_out_once(
    kind: str, store_server: Callable[[str], Server], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="backends.vector.redis")
    async with opened(at(store_server(kind).port)) as store:
        await fill(store, 200)

        assert await store.count() == 200
    said = {"redis": "vectors are in the query engine of", "redis-alone": "vectors are in vector sets of"}
    assert [message.partition(" redis://")[0] for message in caplog.messages] == [said[kind]]


# --- time


@both_ways
async def test_the_server_frees_what_expired_by_itself(kind: str, tmp_path: Path) -> None:
    with SERVERS[kind][0](tmp_path) as server:
        address = at(server.port)
        async with opened(address) as store, talking(address) as client:
            await asyncio.gather(*(store.upsert(f"n/{i}", "a", ROWS[i], b"x" * 1_000, ttl=0.5) for i in range(50)))

            async def nothing_is_left() -> bool:
                return bool(await client.dbsize() == 0)

            assert await client.dbsize() >= 50
            await until(nothing_is_left, seconds=10)


async def test_writes_sweep_what_expired_from_a_living_vector_set(store_server: Callable[[str], Server]) -> None:
    clock = ManualClock(NOW)
    address = at(store_server("redis-alone").port)
    async with opened(address, clock=clock) as store, talking(address) as client:
        await fill(store, 100)
        clock.advance(61)
        for number in range(30):
            await store.upsert(HERE, f"new {number}", ROWS[number], b"", ttl=60)

        sizes = [
            await client.execute_command("VCARD", key)
            async for key in client.scan_iter(match=f"{address.prefix}:*:set", count=1_000)
        ]
        assert sizes == [30]


@both_ways
async def test_a_later_shorter_life_does_not_shorten_that_of_others(
    kind: str, store_server: Callable[[str], Server]
) -> None:
    async with opened(at(store_server(kind).port)) as store:
        await store.upsert(HERE, "for ever", ROWS[0], b"", ttl=None)
        await store.upsert(HERE, "long", ROWS[1], b"", ttl=60)
        await store.upsert(HERE, "short", ROWS[2], b"", ttl=0.2)

        async def the_short_one_is_gone() -> bool:
            return await store.count() == 2

        await until(the_short_one_is_gone, seconds=5)
        assert sorted(await ids(store, ROWS[0])) == ["for ever", "long"]


# --- walking over all of it


@both_ways
async def test_entries_are_those_of_the_prefix_with_all_they_were_written_with(
    kind: str, store_server: Callable[[str], Server]
) -> None:
    clock = ManualClock(NOW)
    async with opened(at(store_server(kind).port), clock=clock) as store:
        for number, row in enumerate(np.tile(ROWS, (3, 1))):
            await store.upsert(f"a/{number % 3}", f"id {number}", row, str(number).encode(), ttl=60 + number)
        await store.upsert("a", "é\x00\ud800", ROWS[0], b"", ttl=None)
        await store.upsert("ab", "other", ROWS[0], b"", ttl=60)
        await store.upsert("a/0", "expired", ROWS[0], b"", ttl=1)
        clock.advance(2)

        found = [entry async for entry in store.entries("a")]

        written = {f"id {n}": (f"a/{n % 3}", str(n).encode(), NOW + 60 + n) for n in range(600)}
        written["é\x00\ud800"] = ("a", b"", float("inf"))
        assert {e.entry_id: (e.namespace, e.payload, e.expires_at) for e in found} == written
        assert len(found) == 601
        rows = {f"id {n}": row for n, row in enumerate(np.tile(ROWS, (3, 1)))} | {"é\x00\ud800": ROWS[0]}
        assert max(float(np.abs(entry.vector - rows[entry.entry_id]).max()) for entry in found) < 1e-6


@both_ways
async def test_who_stops_walking_early_leaves_nothing_open(kind: str, store_server: Callable[[str], Server]) -> None:
    async with opened(at(store_server(kind).port)) as store:
        await asyncio.gather(*(store.upsert(HERE, str(i), ROWS[i % 200], b"", ttl=60) for i in range(600)))

        for _ in range(50):
            walk = store.entries("")
            await anext(walk)
            await walk.aclose()  # type: ignore[attr-defined]  # an async generator

        assert len([entry async for entry in store.entries("")]) == 600


# --- what the server is


async def test_a_server_with_neither_says_what_it_lacks(store_server: Callable[[str], Server]) -> None:
    async with opened(at(store_server("valkey-alone").port)) as store:
        with pytest.raises(BackendError, match=r"neither the query engine .* nor vector sets"):
            await store.nearest(HERE, ROWS[0], limit=1)


async def test_another_database_has_vector_sets_only(store_server: Callable[[str], Server]) -> None:
    redis, valkey = (store_server(kind).port for kind in ("redis", "valkey"))
    async with opened(at(redis, url=f"redis://127.0.0.1:{redis}/1")) as store:
        await fill(store, 3)

        assert await ids(store, ROWS[1], limit=1) == ["1"]
    async with opened(at(valkey, url=f"redis://127.0.0.1:{valkey}/1")) as store:
        with pytest.raises(BackendError, match="database 0 only"):
            await fill(store, 1)


async def test_an_index_of_other_vectors_under_its_name_is_refused(store_server: Callable[[str], Server]) -> None:
    address = at(store_server("redis").port)
    name = f"{address.prefix}:v:{space('test@1', DIMENSIONS)}"
    async with opened(address) as store, talking(address) as client:
        await client.execute_command(
            *("FT.CREATE", name, "SCHEMA", "vector", "VECTOR", "FLAT", 6),
            *("TYPE", "FLOAT32", "DIM", DIMENSIONS + 1, "DISTANCE_METRIC", "COSINE"),
        )

        with pytest.raises(BackendError, match=f"FT.DROPINDEX {name} DD"):
            await fill(store, 1)
        await client.execute_command("FT.DROPINDEX", name, "DD")
        await fill(store, 1)

        assert await ids(store, ROWS[0]) == ["0"]


async def test_a_vector_set_of_other_vectors_under_its_name_is_refused(store_server: Callable[[str], Server]) -> None:
    address = at(store_server("redis-alone").port)
    async with opened(address) as store, talking(address) as client:
        await fill(store, 1)
        (key,) = [key async for key in client.scan_iter(match=f"{address.prefix}:*:set", count=1_000)]
        await client.unlink(key)
        await client.execute_command("VADD", key, "VALUES", 2, 1.0, 0.0, "a", "NOQUANT")

        with pytest.raises(BackendError, match="other vectors than this embedder's"):
            await fill(store, 1)
        with pytest.raises(BackendError, match="other vectors than this embedder's"):
            await ids(store, ROWS[0])


@pytest.mark.parametrize("index", ["flat", "hnsw"])
async def test_either_index_finds_every_entry_and_an_old_one_stays_as_it_was_made(
    index: str, store_server: Callable[[str], Server], caplog: pytest.LogCaptureFixture
) -> None:
    address = at(store_server("redis").port)
    async with opened(address, index=index) as store:
        await fill(store, 200)

        assert [(await ids(store, row, limit=1))[0] for row in ROWS] == [str(i) for i in range(200)]
    assert caplog.messages == []
    async with opened(address, index={"flat": "hnsw", "hnsw": "flat"}[index]) as store:
        assert [(await ids(store, row, limit=1))[0] for row in ROWS] == [str(i) for i in range(200)]
    assert ["stays as it was made" in message for message in caplog.messages] == [True]


async def test_a_cluster_keeps_each_namespace_on_one_node(tmp_path: Path) -> None:
    clock = ManualClock(NOW)
    # Its own choice for the other port, 10,000 above, is none where this one is high.
    with redis_alone(tmp_path, "--cluster-enabled", "yes", "--cluster-port", str(free_port())) as server:
        async with talking(at(server.port)) as client:
            await client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16_383)

            async def it_serves() -> bool:
                return bool((await client.execute_command("CLUSTER INFO"))["cluster_state"] == "ok")

            await until(it_serves, seconds=10)
        async with opened(at(server.port, cluster=True), clock=clock) as store:
            await asyncio.gather(*(store.upsert(f"n/{i % 20}", str(i), ROWS[i], b"", ttl=60) for i in range(200)))
            await store.delete("n/0", "0")

            found = await asyncio.gather(*(store.nearest(f"n/{i % 20}", ROWS[i], limit=1) for i in range(1, 200)))
            assert [neighbors[0].entry_id for neighbors in found[:19]] == [str(i) for i in range(1, 20)]
            assert len([entry async for entry in store.entries("n/7")]) == 10
            assert (await store.count(), await store.clear("n/7"), await store.count()) == (199, 10, 189)


async def test_clear_ends_while_others_write_as_fast_as_it_removes(store_server: Callable[[str], Server]) -> None:
    address = at(store_server("redis").port)
    looks = 0

    def clock_of_a_writer() -> float:
        """Whoever looks at it finds 200 entries more."""
        nonlocal looks
        looks += 1
        pipeline = writer.pipeline()
        for number in range(200 if looks < 50 else 0):
            pipeline.hset(f"{key.rpartition(':')[0]}:{looks}-{number}", mapping=fields)
        pipeline.execute()
        return time.time()

    async with opened(address) as store, talking(address) as client:
        await fill(store, 200)
        before = [key.decode() async for key in client.scan_iter(match=f"{address.prefix}:*", count=1_000)]
        key = before[0]
        with Redis(port=store_server("redis").port) as writer:
            fields = writer.hgetall(key)
            async with opened(address, clock=clock_of_a_writer) as other:
                gone = await other.clear(HERE)

        assert 200 <= gone <= 1_000
        assert await client.exists(*before) == 0


@pytest.mark.parametrize("part", ["set", "entries", "times"])
async def test_a_namespace_of_which_a_part_was_evicted_begins_anew(
    part: str, store_server: Callable[[str], Server]
) -> None:
    address = at(store_server("redis-alone").port)
    async with opened(address) as store, talking(address) as client:
        await fill(store, 100)
        (key,) = [key async for key in client.scan_iter(match=f"{address.prefix}:*:{part}", count=1_000)]
        await client.delete(key)

        await store.upsert(HERE, "new", ROWS[150], b"", ttl=60)

        assert await ids(store, ROWS[0], limit=1) == ["new"]  # nothing that is gone takes its place
        assert await store.count() == 1
        assert await store.clear(HERE) == 1
        assert [key async for key in client.scan_iter(match=f"{address.prefix}:*", count=1_000)] == []


@pytest.mark.parametrize("part", ["entries", "times"])
async def test_a_search_frees_what_eviction_left_of_a_namespace(
    part: str, store_server: Callable[[str], Server]
) -> None:
    address = at(store_server("redis-alone").port)
    async with opened(address) as store, talking(address) as client:
        await fill(store, 100)
        (key,) = [key async for key in client.scan_iter(match=f"{address.prefix}:*:{part}", count=1_000)]
        await client.delete(key)

        assert await ids(store, ROWS[0]) == []

        assert [key async for key in client.scan_iter(match=f"{address.prefix}:*", count=1_000)] == []
        assert await store.count() == 0


@pytest.mark.parametrize("part", ["entries", "times"])
async def test_a_server_that_takes_no_writes_finds_nothing_in_what_eviction_left(part: str, tmp_path: Path) -> None:
    with redis_alone(tmp_path) as server:
        address = at(server.port)
        async with opened(address) as store, talking(address) as client:
            await fill(store, 3)
            await store.upsert("whole", "a", ROWS[0], b"", ttl=60)
            await client.delete(f"{address.prefix}:s:{space('test@1', DIMENSIONS)}:{{{short(HERE)}}}:{part}")
            await client.execute_command("REPLICAOF", "127.0.0.1", free_port())

            assert await ids(store, ROWS[0]) == []
            assert len(await store.nearest("whole", ROWS[0], limit=1)) == 1


async def test_everything_that_is_found_in_vector_sets_can_be_cleared(store_server: Callable[[str], Server]) -> None:
    address = at(store_server("redis-alone").port)
    async with opened(address) as store, talking(address) as client:
        await fill(store, 5)
        parts = {key.rpartition(b":")[2] async for key in client.scan_iter(match=f"{address.prefix}:*", count=1_000)}

        assert parts == {b"set", b"entries", b"times"}  # no list of names beside them, which could be evicted alone
        assert await store.clear("support") == 5
        assert [key async for key in client.scan_iter(match=f"{address.prefix}:*", count=1_000)] == []


async def test_deleting_the_last_entry_leaves_nothing_of_a_vector_set(store_server: Callable[[str], Server]) -> None:
    address = at(store_server("redis-alone").port)
    async with opened(address) as store, talking(address) as client:
        await store.upsert(HERE, "a", ROWS[0], b"", ttl=None)

        await store.delete(HERE, "a")

        assert [key async for key in client.scan_iter(match=f"{address.prefix}:*", count=1_000)] == []


async def test_a_vector_set_takes_entries_after_m_was_changed(store_server: Callable[[str], Server]) -> None:
    address = at(store_server("redis-alone").port)
    async with opened(address, m=16) as store:
        await fill(store, 3)

    async with opened(address, m=32) as store:
        await store.upsert(HERE, "after", ROWS[9], b"", ttl=60)
        await store.upsert("elsewhere", "new", ROWS[9], b"", ttl=60)

        assert await ids(store, ROWS[9], limit=1) == ["after"]
        assert await store.count() == 5


async def test_another_server_at_the_same_place_is_found_out_about(tmp_path: Path) -> None:
    port = free_port()
    async with opened(at(port)) as store:
        with valkey_with_search(tmp_path / "before", port=port):
            await fill(store, 3)
            await ids(store, ROWS[0])
        with redis_alone(tmp_path / "after", port=port):

            async def it_holds_vectors_again() -> bool:
                await fill(store, 3)
                return await ids(store, ROWS[0], limit=1) == ["0"]

            await until(it_holds_vectors_again, seconds=5)


# --- bad weather


@both_ways
async def test_it_is_down_at_first_and_comes_by_itself(kind: str, tmp_path: Path) -> None:
    port = free_port()
    async with opened(at(port)) as store:
        with pytest.raises(BackendError, match="no connection to Redis"):
            await store.load()
        with SERVERS[kind][0](tmp_path, port=port):
            await store.load()
            await fill(store, 1)

            assert await ids(store, ROWS[0]) == ["0"]


@both_ways
async def test_a_restart_that_lost_the_data_is_an_empty_store(kind: str, tmp_path: Path) -> None:
    port = free_port()
    async with opened(at(port)) as store, opened(at(port)) as writer:
        with SERVERS[kind][0](tmp_path / "before", port=port):
            await fill(store, 20)
            await fill(writer, 20)
        with SERVERS[kind][0](tmp_path / "after", port=port):

            async def it_is_empty() -> bool:
                return await ids(store, ROWS[0]) == []

            async def it_takes_a_write() -> bool:
                await fill(writer, 1)
                return True

            await until(it_is_empty, seconds=5)
            await until(it_takes_a_write, seconds=5)
            await fill(store, 3)

            assert sorted(await ids(store, ROWS[0])) == ["0", "1", "2"]
            assert await ids(writer, ROWS[0]) == ["0"]


@both_ways
@pytest.mark.parametrize("used_first", ["write", "search", "count", "entries", "clear", "delete"])
async def test_whatever_is_asked_first_after_a_flush_works(kind: str, used_first: str, tmp_path: Path) -> None:
    with SERVERS[kind][0](tmp_path) as server:
        address = at(server.port)
        async with opened(address) as store, talking(address) as client:
            await fill(store, 20)
            await client.flushall()

            match used_first:
                case "write":
                    await fill(store, 1)
                case "search":
                    assert await ids(store, ROWS[0]) == []
                case "count":
                    assert await store.count() == 0
                case "entries":
                    assert [entry async for entry in store.entries("")] == []
                case "clear":
                    assert await store.clear("") == 0
                case _:
                    await store.delete(HERE, "0")
            await fill(store, 2)

            assert sorted(await ids(store, ROWS[0])) == ["0", "1"]


async def test_a_lost_index_is_made_again_over_the_entries_that_are_there(
    store_server: Callable[[str], Server],
) -> None:
    address = at(store_server("redis").port)
    name = f"{address.prefix}:v:{space('test@1', DIMENSIONS)}"
    async with opened(address) as store, talking(address) as client:
        await fill(store, 200)
        await client.execute_command("FT.DROPINDEX", name)

        await store.load()

        assert [(await ids(store, row, limit=1))[0] for row in ROWS] == [str(i) for i in range(200)]


async def test_a_saved_index_comes_back_with_its_entries(tmp_path: Path) -> None:
    port = free_port()
    async with opened(at(port)) as store:
        with redis_with_search(tmp_path, port=port):
            await fill(store, 200)
            async with talking(at(port)) as client:
                await client.save()
        with redis_with_search(tmp_path, port=port):

            async def it_is_loaded() -> bool:
                await store.load()
                return True

            await until(it_is_loaded, seconds=10)

            assert [(await ids(store, row, limit=1))[0] for row in ROWS] == [str(i) for i in range(200)]


@both_ways
async def test_a_wrong_password_says_what_to_mend(kind: str, tmp_path: Path) -> None:
    with SERVERS[kind][0](tmp_path, "--requirepass", "open sesame") as server:
        async with opened(at(server.port, url=f"redis://:open%20sesame@127.0.0.1:{server.port}")) as let_in:
            await fill(let_in, 1)
        for wrong in ("", ":hush@", "somebody:hush@"):
            async with opened(at(server.port, url=f"redis://{wrong}127.0.0.1:{server.port}")) as locked_out:
                with pytest.raises(BackendError, match=r"redis\.url") as refused:
                    await fill(locked_out, 1)

                assert "hush" not in str(refused.value)


@both_ways
async def test_a_full_server_refuses_writes_and_still_answers(kind: str, tmp_path: Path) -> None:
    with SERVERS[kind][0](tmp_path, "--maxmemory", "24mb", "--maxmemory-policy", "noeviction") as server:
        async with opened(at(server.port)) as store:
            large = (store.upsert(HERE, str(i), ROWS[i], bytes(400_000), ttl=60) for i in range(200))
            with pytest.raises(StoreFull, match="maxmemory"):
                await one_after_another(large)

            assert await ids(store, ROWS[0], limit=1) == ["0"]
            assert await store.clear("") > 5
            assert await ids(store, ROWS[0]) == []

            async def there_is_room_again() -> bool:
                await store.upsert(HERE, "again", ROWS[0], b"", ttl=60)
                return True

            await until(there_is_room_again, seconds=5)
            assert await ids(store, ROWS[0]) == ["again"]


@both_ways
async def test_a_hanging_server_costs_the_deadline_and_no_answer_goes_astray(kind: str, tmp_path: Path) -> None:
    with SERVERS[kind][0](tmp_path) as server:
        async with opened(at(server.port)) as store:
            await fill(store, 200)

            async def found(number: int) -> str | None:
                try:
                    async with asyncio.timeout(0.05):
                        return (await ids(store, ROWS[number], limit=1))[0]
                except TimeoutError:
                    return None

            server.signal(signal.SIGSTOP)
            began = time.monotonic()
            hung = [await asyncio.gather(*(found(number) for number in range(50))) for _ in range(4)]
            took = time.monotonic() - began
            server.signal(signal.SIGCONT)

            async def it_answers() -> bool:
                return await found(0) == "0"

            await until(it_answers, seconds=5)
            after = await asyncio.gather(*(ids(store, row, limit=1) for row in reversed(ROWS)))
            assert hung == [[None] * 50] * 4
            assert took < 2.0
            assert after == [[str(number)] for number in reversed(range(200))]


@both_ways
async def test_callers_that_leave_at_any_moment_take_no_answer_from_others(
    kind: str, store_server: Callable[[str], Server]
) -> None:
    chance = np.random.default_rng(5)
    async with opened(at(store_server(kind).port)) as store:
        await fill(store, 200)

        async def search(number: int, patience: float) -> tuple[int, list[str]] | None:
            try:
                async with asyncio.timeout(patience):
                    return number, await ids(store, ROWS[number], limit=1)
            except TimeoutError:
                return None

        answers: list[tuple[int, list[str]] | None] = []
        for _ in range(10):
            waits = [*chance.uniform(0, 0.02, 150), *[10.0] * 50]
            answers += await asyncio.gather(*(search(number, wait) for number, wait in enumerate(waits)))

        answered = [answer for answer in answers if answer is not None]
        assert all(found == [str(number)] for number, found in answered)
        assert 500 <= len(answered) < 2_000


async def test_after_close_it_says_so(store_server: Callable[[str], Server]) -> None:
    async with opened(at(store_server("redis").port)) as store:
        await fill(store, 1)
        await store.close()

        with pytest.raises(BackendError, match="closed"):
            await store.nearest(HERE, ROWS[0], limit=1)
