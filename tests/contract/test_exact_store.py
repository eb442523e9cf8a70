"""What every exact store does."""

import asyncio
import contextlib
import random
import threading
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from backends.exact.base import ExactStore, Stored
from backends.redis_address import RedisAddress
from backends.registry import create
from models.errors import BackendError, StoreFull
from tests.support.clock import ManualClock
from tests.support.servers import Server

SUITE = {"exact": {"memory", "lmdb", "redis"}}

EMBEDDED = ["lmdb", "memory"]
REMOTE = ["redis on redis", "redis on redis-alone", "redis on valkey"]

HERE, ELSEWHERE = "support/team:blue", "support/team:red"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1_000.0)


@pytest.fixture(params=EMBEDDED + REMOTE)
async def exact_store(
    request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock, store_server: Callable[[str], Server]
) -> AsyncIterator[ExactStore]:
    name, _, server = request.param.partition(" on ")
    options: dict[str, object] = {}
    match name:
        case "memory":
            options = {"max_bytes": 32 << 20}
        case "lmdb":
            options = {"max_bytes": 32 << 20, "path": tmp_path / "exact"}
        case "redis":
            url = f"redis://127.0.0.1:{store_server(server).port}"
            options = {"address": RedisAddress(url=url, prefix=uuid.uuid4().hex)}
    store: ExactStore = create("exact", name, clock=clock, **options)
    yield store
    if server:
        with contextlib.suppress(BackendError):  # closed by the test
            await store.clear("")
    await store.close()


def test_every_implementation_is_run() -> None:
    assert {name.partition(" on ")[0] for name in EMBEDDED + REMOTE} == SUITE["exact"]


async def test_a_value_comes_back_as_it_was_put(exact_store: ExactStore) -> None:
    await exact_store.put(HERE, "key", b"\x00value\xff", ttl=None)

    assert await exact_store.get(HERE, "key") == b"\x00value\xff"


async def test_a_key_nobody_put_is_a_miss(exact_store: ExactStore) -> None:
    await exact_store.put(HERE, "key", b"value", ttl=None)

    assert await exact_store.get(HERE, "other") is None


async def test_an_empty_value_is_not_a_miss(exact_store: ExactStore) -> None:
    await exact_store.put(HERE, "key", b"", ttl=None)

    assert await exact_store.get(HERE, "key") == b""


async def test_one_namespace_never_sees_another(exact_store: ExactStore) -> None:
    await exact_store.put(HERE, "key", b"mine", ttl=None)

    assert await exact_store.get(ELSEWHERE, "key") is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("a", "b/c"), ("a/b", "c")),
        (("a\x00b", "c"), ("a", "b\x00c")),
        (("a\x01", "c"), ("a\x00", "c")),
        (("a\x01\x01", "c"), ("a\x00", "c")),
        (("ab", "c"), ("a", "bc")),
        (("n" * 900, "c"), ("n" * 901, "c")),
        (("a", "k" * 900), ("a", "k" * 901)),
    ],
)
async def test_names_that_could_be_confused_are_not(
    exact_store: ExactStore, one: tuple[str, str], other: tuple[str, str]
) -> None:
    await exact_store.put(*one, b"one", ttl=None)
    await exact_store.put(*other, b"other", ttl=None)

    assert await exact_store.get(*one) == b"one"
    assert await exact_store.get(*other) == b"other"


@pytest.mark.parametrize("name", ["ключ/日本語 🗝", "with space", "half \ud83d surrogate", "k" * 5_000, "é" * 300])
async def test_any_text_is_a_namespace_and_a_key(exact_store: ExactStore, name: str) -> None:
    await exact_store.put(name, name, b"value", ttl=None)

    assert await exact_store.get(name, name) == b"value"
    assert await exact_store.sizes() == {name: 1}
    assert await exact_store.delete(name, name) is True
    assert await exact_store.get(name, name) is None


async def test_the_last_put_wins_and_counts_once(exact_store: ExactStore) -> None:
    await exact_store.put(HERE, "key", b"first", ttl=1)
    await exact_store.put(HERE, "key", b"second", ttl=None)

    assert await exact_store.get(HERE, "key") == b"second"
    assert await exact_store.sizes() == {HERE: 1}


async def test_a_value_lasts_until_its_ttl_and_no_longer(exact_store: ExactStore, clock: ManualClock) -> None:
    await exact_store.put(HERE, "key", b"value", ttl=2.5)

    clock.advance(2.49)
    before = await exact_store.get(HERE, "key")
    clock.advance(0.01)
    after = await exact_store.get(HERE, "key")

    assert (before, after) == (b"value", None)


async def test_a_read_does_not_prolong_a_ttl(exact_store: ExactStore, clock: ManualClock) -> None:
    await exact_store.put(HERE, "key", b"value", ttl=10)

    clock.advance(9)
    await exact_store.get(HERE, "key")
    clock.advance(1)

    assert await exact_store.get(HERE, "key") is None


async def test_an_overwrite_brings_its_own_ttl(exact_store: ExactStore, clock: ManualClock) -> None:
    await exact_store.put(HERE, "key", b"first", ttl=100)
    await exact_store.put(HERE, "key", b"second", ttl=5)

    clock.advance(6)

    assert await exact_store.get(HERE, "key") is None


async def test_a_value_without_ttl_stays(exact_store: ExactStore, clock: ManualClock) -> None:
    await exact_store.put(HERE, "key", b"value", ttl=None)

    clock.advance(1e9)

    assert await exact_store.get(HERE, "key") == b"value"


async def test_delete_says_whether_there_was_something(exact_store: ExactStore, clock: ManualClock) -> None:
    await exact_store.put(HERE, "key", b"value", ttl=None)
    await exact_store.put(HERE, "expired", b"value", ttl=1)
    clock.advance(1)

    first = await exact_store.delete(HERE, "key")
    second = await exact_store.delete(HERE, "key")
    expired = await exact_store.delete(HERE, "expired")

    assert (first, second, expired) == (True, False, False)
    assert await exact_store.get(HERE, "key") is None


async def test_clear_takes_a_namespace_and_what_is_below_it_only(exact_store: ExactStore) -> None:
    for namespace in ("a", "a/b", "a/b/c", "ab", "a-b", "a.b", "b/a", "A"):
        await exact_store.put(namespace, "1", b"value", ttl=None)
        await exact_store.put(namespace, "2", b"value", ttl=None)

    gone = await exact_store.clear("a")

    assert gone == 6
    assert await exact_store.sizes() == {"ab": 2, "a-b": 2, "a.b": 2, "b/a": 2, "A": 2}
    assert await exact_store.get("a/b", "1") is None
    assert await exact_store.get("ab", "1") == b"value"


@pytest.mark.parametrize("length", [299, 300, 301, 511, 2_000])
async def test_clear_works_at_any_length(exact_store: ExactStore, length: int) -> None:
    namespace = "n" * length
    for name in (namespace, f"{namespace}/below", f"{namespace}x"):
        await exact_store.put(name, "key", b"value", ttl=None)

    gone = await exact_store.clear(namespace)

    assert gone == 2
    assert await exact_store.sizes() == {f"{namespace}x": 1}


async def test_clearing_nothing_in_particular_takes_everything(exact_store: ExactStore) -> None:
    await exact_store.put(HERE, "key", b"value", ttl=None)
    await exact_store.put(ELSEWHERE, "key", b"value", ttl=5)

    gone = await exact_store.clear("")
    await exact_store.put(HERE, "again", b"value", ttl=5)

    assert gone == 2
    assert await exact_store.sizes() == {HERE: 1}


async def test_clearing_what_is_not_there_takes_nothing(exact_store: ExactStore) -> None:
    await exact_store.put(HERE, "key", b"value", ttl=None)

    assert await exact_store.clear("support/team:b") == 0
    assert await exact_store.get(HERE, "key") == b"value"


async def test_a_value_of_a_megabyte_comes_back_whole(exact_store: ExactStore) -> None:
    value = bytes(range(256)) * 4096

    await exact_store.put(HERE, "key", value, ttl=60)

    assert await exact_store.get(HERE, "key") == value


async def test_a_value_larger_than_the_store_is_refused(exact_store: ExactStore) -> None:
    with pytest.raises(StoreFull):
        await exact_store.put(HERE, "key", bytes(33 << 20), ttl=None)

    assert await exact_store.get(HERE, "key") is None


async def test_two_hundred_writers_at_once_lose_nothing(exact_store: ExactStore) -> None:
    async def write(number: int) -> None:
        for turn in range(5):
            await exact_store.put(f"writer/{number % 20}", f"{number}.{turn}", f"{number} {turn}".encode(), ttl=60)

    await asyncio.gather(*(write(number) for number in range(200)))

    found = [await exact_store.get(f"writer/{n % 20}", f"{n}.{turn}") for n in range(200) for turn in range(5)]
    assert found == [f"{number} {turn}".encode() for number in range(200) for turn in range(5)]
    assert await exact_store.sizes() == {f"writer/{number}": 50 for number in range(20)}


@pytest.mark.parametrize("exact_store", EMBEDDED, indirect=True)  # a server's size and what goes are its own settings
async def test_what_was_used_survives_ten_times_the_size_limit(exact_store: ExactStore) -> None:
    hot = [f"hot {number}" for number in range(20)]
    for key in hot:
        await exact_store.put(HERE, key, b"h" * 20_000, ttl=None)

    for turn in range(320):
        await asyncio.gather(*(exact_store.put(HERE, f"{turn}.{n}", bytes(50_000), ttl=None) for n in range(20)))
        for key in hot:
            await exact_store.get(HERE, key)

    kept = [await exact_store.get(HERE, key) for key in hot]
    sizes = await exact_store.sizes()
    assert kept == [b"h" * 20_000] * len(hot)
    assert 300 < sizes[HERE] < 700  # 32 MiB of 50 kB, of the 6,400 that were put
    assert await exact_store.get(HERE, "0.0") is None


async def test_random_writes_leave_what_a_dictionary_would_hold(exact_store: ExactStore, clock: ManualClock) -> None:
    chance = random.Random(5)  # noqa: S311 - a choice of operations
    namespaces = ["a", "a/b", "ab", "b"]
    held: dict[tuple[str, str], tuple[bytes, float]] = {}

    for turn in range(2_000):
        namespace, key = chance.choice(namespaces), str(chance.randrange(30))
        match chance.randrange(20):
            case 0:
                cleared = [name for name in held if name[0] == namespace or name[0].startswith(f"{namespace}/")]
                await exact_store.clear(namespace)
                for name in cleared:
                    del held[name]
            case 1 | 2 | 3:
                _, expires_at = held.pop((namespace, key), (b"", 0.0))
                assert await exact_store.delete(namespace, key) == (expires_at > clock.now)
            case 4 | 5:
                clock.advance(1)
            case _:
                value, ttl = str(turn).encode() * 50, chance.choice([1.0, 20.0, None])
                held[namespace, key] = (value, float("inf") if ttl is None else clock.now + ttl)
                await exact_store.put(namespace, key, value, ttl=ttl)

        expected, expires_at = held.get((namespace, key), (None, 0.0))
        assert await exact_store.get(namespace, key) == (expected if expires_at > clock.now else None)

    await exact_store.clear("")
    assert await exact_store.sizes() == {}


async def test_a_walk_meets_every_entry_of_a_namespace_and_below_once(exact_store: ExactStore) -> None:
    for namespace in ("a", "a/b", "a/b/c", "ab", "a-b", "b/a"):
        await exact_store.put(namespace, "1", namespace.encode(), ttl=None)
        await exact_store.put(namespace, "2", b"", ttl=20)

    found = sorted([entry async for entry in exact_store.entries("a")])

    assert found == [
        Stored("a", "1", b"a", float("inf")),
        Stored("a", "2", b"", 1_020.0),
        Stored("a/b", "1", b"a/b", float("inf")),
        Stored("a/b", "2", b"", 1_020.0),
        Stored("a/b/c", "1", b"a/b/c", float("inf")),
        Stored("a/b/c", "2", b"", 1_020.0),
    ]


async def test_a_walk_over_everything_meets_thousands(exact_store: ExactStore) -> None:
    names = [(f"space/{number % 7}", str(number)) for number in range(3_000)]
    await asyncio.gather(*(exact_store.put(*name, name[1].encode(), ttl=60) for name in names))

    found = [entry async for entry in exact_store.entries("")]

    assert sorted((entry.namespace, entry.key) for entry in found) == sorted(names)
    assert all(entry.value == entry.key.encode() and entry.expires_at == 1_060.0 for entry in found)


async def test_a_walk_passes_over_what_has_expired(exact_store: ExactStore, clock: ManualClock) -> None:
    await exact_store.put(HERE, "short", b"value", ttl=5)
    await exact_store.put(HERE, "long", b"value", ttl=50)
    clock.advance(5)

    found = [entry.key async for entry in exact_store.entries("")]

    assert found == ["long"]


@pytest.mark.parametrize(
    "name",
    ["ключ/日本語 🗝", "half \ud83d surrogate", "a\x00b\x01\x01\x02c", "*[a-z]?\\^", "k" * 5_000, "é" * 300, "n" * 301],
)
async def test_a_walk_tells_any_name_as_it_was(exact_store: ExactStore, name: str) -> None:
    await exact_store.put(name, name, b"value", ttl=None)
    await exact_store.put(f"{name}x", name, b"value", ttl=None)

    found = [entry async for entry in exact_store.entries(name)]

    assert found == [Stored(name, name, b"value", float("inf"))]


async def test_what_is_written_and_goes_during_a_walk_does_not_break_it(exact_store: ExactStore) -> None:
    for number in range(500):
        await exact_store.put(HERE, f"stays {number}", b"value", ttl=None)
        await exact_store.put(HERE, f"goes {number}", b"value", ttl=None)

    found: list[str] = []
    async for entry in exact_store.entries(HERE):
        if len(found) < 500:
            await exact_store.delete(HERE, f"goes {len(found)}")
            await exact_store.put(HERE, f"comes {len(found)}", b"value", ttl=None)
        found.append(entry.key)

    assert len(found) == len(set(found))
    assert {key for key in found if key.startswith("stays")} == {f"stays {number}" for number in range(500)}


@pytest.mark.parametrize("name", ["*", "a?", "[a-z]", "\\*", "^"])
async def test_clear_takes_names_literally(exact_store: ExactStore, name: str) -> None:
    await exact_store.put(f"{name}/below", "key", b"value", ttl=None)
    await exact_store.put("ab/below", "key", b"value", ttl=None)

    gone = await exact_store.clear(name)

    assert gone == 1
    assert await exact_store.sizes() == {"ab/below": 1}


async def test_closing_twice_is_fine(exact_store: ExactStore) -> None:
    await exact_store.close()

    await exact_store.close()

    assert "exact-store-writer" not in {thread.name for thread in threading.enumerate()}
