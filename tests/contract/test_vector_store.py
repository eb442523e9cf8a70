"""What every vector store does, run over each of them."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from backends.redis_address import RedisAddress
from backends.registry import create
from backends.vector.base import Vector, VectorStore
from models.errors import BackendError
from tests.support.servers import Server
from tests.support.stores import grpc_port

SUITE = {"vector": {"flat", "faiss", "redis", "qdrant"}}

EMBEDDED = ["faiss", "faiss of many", "flat"]
REMOTE = [
    "redis on redis",
    "redis on redis-alone",
    "redis on valkey",
    "qdrant over gRPC on qdrant",
    "qdrant over HTTP on qdrant",
]

DIMENSIONS = 32
HERE = "support/team:blue/1f0c"
TTL = 3_600.0  # servers remove what expired by their own clock


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=EMBEDDED + REMOTE)
async def store(
    request: pytest.FixtureRequest, tmp_path: Path, clock: Clock, store_server: Callable[[str], Server]
) -> AsyncIterator[VectorStore]:
    name, _, server = request.param.partition(" on ")
    name, _, many = name.partition(" of ")
    name, _, way = name.partition(" over ")
    options: dict[str, object] = {}
    match name:
        case "faiss":
            options = {"path": tmp_path, "revision": "test@1", "exact_below": 8 if many else 20_000}
        case "redis":
            url = f"redis://127.0.0.1:{store_server(server).port}"
            options = {"address": RedisAddress(url=url, prefix=uuid.uuid4().hex), "revision": "test@1"}
        case "qdrant":
            at = store_server(server)
            options = {"url": at.url, "grpc": way == "gRPC", "grpc_port": grpc_port(at)}
            options |= {"prefix": uuid.uuid4().hex, "revision": "test@1"}
    store: VectorStore = create("vector", name, dimensions=DIMENSIONS, clock=clock, **options)
    yield store
    if server:
        with contextlib.suppress(BackendError):  # closed by the test
            await store.clear("")
    await store.close()


def test_every_implementation_is_run() -> None:
    assert {name.partition(" o")[0] for name in EMBEDDED + REMOTE} == SUITE["vector"]


def axis(number: int, dimensions: int = DIMENSIONS) -> Vector:
    """The unit vector along one axis: its cosine to another is 0."""
    unit = np.zeros(dimensions, dtype=np.float32)
    unit[number] = 1.0
    return unit


def toward(cosine: float) -> Vector:
    """A unit vector of that cosine to `axis(0)`."""
    unit = np.zeros(DIMENSIONS, dtype=np.float32)
    unit[:2] = cosine, np.sqrt(1 - cosine**2)
    return unit


def random_units(count: int, *, seed: int) -> NDArray[np.float32]:
    rows = np.random.default_rng(seed).standard_normal((count, DIMENSIONS), dtype=np.float32)
    unit: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


async def fill(store: VectorStore, namespace: str, vectors: Sequence[Vector] | NDArray[np.float32]) -> None:
    """Entries `0`, `1`, … whose payload is their id."""
    await asyncio.gather(*(store.upsert(namespace, str(i), v, str(i).encode(), ttl=TTL) for i, v in enumerate(vectors)))


async def ids(store: VectorStore, namespace: str, vector: Vector, *, limit: int = 10) -> list[str]:
    return [neighbor.entry_id for neighbor in await store.nearest(namespace, vector, limit=limit)]


async def test_finds_an_entry_with_its_payload_and_its_cosine(store: VectorStore) -> None:
    await store.upsert(HERE, "a", toward(0.8), b"an answer", ttl=TTL)

    (found,) = await store.nearest(HERE, axis(0), limit=1)

    assert (found.entry_id, found.payload) == ("a", b"an answer")
    assert found.similarity == pytest.approx(0.8, abs=1e-5)


async def test_an_empty_namespace_has_no_neighbours(store: VectorStore) -> None:
    assert list(await store.nearest(HERE, axis(0), limit=5)) == []


@pytest.mark.parametrize(
    ("one", "other"),
    [("a/b", "a/bc"), ("a/b", "a"), ("a", "a/b"), ("a/b", "A/b"), ("a/b", "ab"), ("a/é", "a/e\u0301")],
)
async def test_one_namespace_never_sees_another(store: VectorStore, one: str, other: str) -> None:
    await store.upsert(one, "mine", axis(0), b"mine", ttl=TTL)

    assert await ids(store, other, axis(0)) == []


async def test_the_same_id_lives_in_each_namespace(store: VectorStore) -> None:
    await store.upsert("a/b", "same", axis(0), b"first", ttl=TTL)
    await store.upsert("a/c", "same", axis(0), b"second", ttl=TTL)

    assert [n.payload for n in await store.nearest("a/b", axis(0), limit=2)] == [b"first"]
    assert [n.payload for n in await store.nearest("a/c", axis(0), limit=2)] == [b"second"]


async def test_the_most_similar_comes_first(store: VectorStore) -> None:
    await fill(store, HERE, [toward(0.2), toward(0.9), toward(-0.5), toward(0.6)])

    assert await ids(store, HERE, axis(0), limit=3) == ["1", "3", "0"]


@pytest.mark.parametrize("store", EMBEDDED, indirect=True)  # servers order a tie as they like
async def test_a_tie_goes_to_the_entry_written_first(store: VectorStore) -> None:
    for entry_id in ("b", "a", "c"):
        await store.upsert(HERE, entry_id, axis(0), b"", ttl=TTL)

    assert await ids(store, HERE, axis(0)) == ["b", "a", "c"]


async def test_similarity_is_the_cosine_numpy_computes(store: VectorStore) -> None:
    rows = random_units(1_000, seed=7)
    query = random_units(1, seed=8)[0]
    await fill(store, HERE, rows)

    found = await store.nearest(HERE, query, limit=1_000)

    exact = rows.astype(np.float64) @ query.astype(np.float64)
    assert len(found) == 1_000
    assert max(abs(n.similarity - exact[int(n.entry_id)]) for n in found) < 1e-5
    assert [n.similarity for n in found] == sorted((n.similarity for n in found), reverse=True)


async def test_similarity_stays_within_one(store: VectorStore) -> None:
    rows = random_units(200, seed=9)
    await fill(store, HERE, rows)

    best = [(await store.nearest(HERE, row, limit=1))[0].similarity for row in rows]
    worst = [(await store.nearest(HERE, -row, limit=200))[-1].similarity for row in rows]

    assert max(best) <= 1.0
    assert min(worst) >= -1.0


async def test_an_entry_is_always_nearest_to_itself(store: VectorStore) -> None:
    rows = random_units(500, seed=10)
    await fill(store, HERE, rows)

    assert [(await ids(store, HERE, row, limit=1))[0] for row in rows] == [str(i) for i in range(500)]


async def test_a_limit_beyond_the_namespace_gives_all_of_it(store: VectorStore) -> None:
    await fill(store, HERE, [axis(0), axis(1), axis(2)])

    assert sorted(await ids(store, HERE, axis(0), limit=1_000)) == ["0", "1", "2"]


async def test_an_expired_entry_never_comes_back(store: VectorStore, clock: Clock) -> None:
    await store.upsert(HERE, "brief", axis(0), b"", ttl=10)
    await store.upsert(HERE, "lasting", toward(0.5), b"", ttl=None)

    clock.now += 9.9
    before = await ids(store, HERE, axis(0))
    clock.now += 0.1

    assert before == ["brief", "lasting"]
    assert await ids(store, HERE, axis(0)) == ["lasting"]
    assert await store.count() == 1


async def test_expired_entries_take_no_place_in_the_result(store: VectorStore, clock: Clock) -> None:
    await asyncio.gather(*(store.upsert(HERE, f"old-{i}", axis(0), b"", ttl=10) for i in range(300)))
    await asyncio.gather(*(store.upsert(HERE, f"new-{i}", toward(0.1), b"", ttl=20) for i in range(3)))

    clock.now += 15

    assert sorted(await ids(store, HERE, axis(0), limit=3)) == ["new-0", "new-1", "new-2"]


async def test_writing_an_id_again_replaces_all_of_it(store: VectorStore, clock: Clock) -> None:
    await store.upsert(HERE, "a", axis(0), b"first", ttl=10)
    await store.upsert(HERE, "a", axis(1), b"second", ttl=100)

    clock.now += 50
    found = await store.nearest(HERE, axis(1), limit=5)

    assert [(n.entry_id, n.payload) for n in found] == [("a", b"second")]
    assert found[0].similarity == pytest.approx(1.0, abs=1e-5)
    assert await store.count() == 1


async def test_a_deleted_entry_is_gone_and_can_be_written_again(store: VectorStore) -> None:
    await fill(store, HERE, [axis(0), axis(1)])

    await store.delete(HERE, "0")
    await store.delete(HERE, "0")
    await store.delete(HERE, "never there")
    after = await ids(store, HERE, axis(0))
    await store.upsert(HERE, "0", axis(0), b"", ttl=TTL)

    assert after == ["1"]
    assert await ids(store, HERE, axis(0)) == ["0", "1"]


async def test_clear_counts_and_leaves_siblings(store: VectorStore, clock: Clock) -> None:
    for namespace in ("a/b", "a/b/c", "a/b/d", "a/bc", "a", "b/a/b"):
        await fill(store, namespace, [axis(0), axis(1)])
    await store.upsert("a/b", "expired", axis(0), b"", ttl=1)
    clock.now += 2

    assert await store.clear("a/b") == 6

    assert [await ids(store, name, axis(0)) for name in ("a/b", "a/b/c", "a/b/d")] == [[], [], []]
    assert [len(await ids(store, name, axis(0))) for name in ("a/bc", "a", "b/a/b")] == [2, 2, 2]
    assert await store.clear("a/b") == 0
    assert await store.clear("nothing/here") == 0


async def test_clear_of_the_empty_prefix_is_everything(store: VectorStore) -> None:
    for number in range(30):
        await fill(store, f"n/{number}", random_units(50, seed=number))

    assert await store.clear("") == 1_500

    assert await store.count() == 0
    assert await ids(store, "n/7", axis(0)) == []


@pytest.mark.parametrize("wrong", [axis(0, 31), axis(0, 33), np.eye(DIMENSIONS, dtype=np.float32)])
async def test_a_vector_of_other_dimensions_is_a_value_error(store: VectorStore, wrong: Vector) -> None:
    with pytest.raises(ValueError, match="32 dimensions"):
        await store.upsert(HERE, "a", wrong, b"", ttl=TTL)
    with pytest.raises(ValueError, match="32 dimensions"):
        await store.nearest(HERE, wrong, limit=1)
    assert await store.count() == 0


@pytest.mark.parametrize("store", REMOTE, indirect=True)  # where it would be every gateway's
@pytest.mark.parametrize("scale", [0.0, float("nan"), 1e20, 0.5])
async def test_a_vector_that_is_not_of_length_one_is_a_value_error(store: VectorStore, scale: float) -> None:
    with pytest.raises(ValueError, match="unit vector"):
        await store.upsert(HERE, "a", axis(0) * np.float32(scale), b"", ttl=TTL)
    with pytest.raises(ValueError, match="unit vector"):
        await store.nearest(HERE, axis(0) * np.float32(scale), limit=1)
    assert await store.count() == 0


@pytest.mark.parametrize("limit", [0, 1_000_001, 2**32, 2**40, 2**70])
async def test_any_limit_is_at_most_what_is_there(store: VectorStore, limit: int) -> None:
    await fill(store, HERE, [axis(0), axis(1)])

    found = await ids(store, HERE, axis(0), limit=limit)

    assert found == (["0", "1"] if limit > 0 else [])
    assert await ids(store, HERE, axis(1), limit=1) == ["1"]  # the server is still there


async def test_a_namespace_of_many_steps_is_cleared_from_any_of_them(store: VectorStore) -> None:
    deep = "/".join(["step"] * 300)
    await fill(store, deep, [axis(0)])

    assert await store.clear("step/st") == 0
    assert await store.clear("/".join(["step"] * 150)) == 1


async def test_names_may_be_unicode_and_long_and_payloads_large(store: VectorStore) -> None:
    namespace, entry_id, payload = (
        "поддержка/équipe:蓝/" + "x" * 3_000,
        "✓ id\x00" + "é" * 2_000,
        bytes(range(256)) * 4096,
    )
    await store.upsert(namespace, entry_id, axis(0), payload, ttl=TTL)

    (found,) = await store.nearest(namespace, axis(0), limit=1)

    assert found.entry_id == entry_id
    assert found.payload == payload


async def test_two_hundred_writers_at_once_lose_nothing(store: VectorStore) -> None:
    rows = random_units(2_000, seed=11)

    async def writer(number: int) -> None:
        for i in range(number, 2_000, 200):
            await store.upsert(f"w/{i % 7}", str(i), rows[i], str(i).encode(), ttl=TTL)
            assert await ids(store, f"w/{i % 7}", rows[i], limit=1) == [str(i)]

    await asyncio.gather(*(writer(number) for number in range(200)))

    assert await store.count() == 2_000
    sizes = [len(await ids(store, f"w/{n}", rows[0], limit=2_000)) for n in range(7)]
    assert sizes == [286, 286, 286, 286, 286, 285, 285]


async def test_the_callers_array_may_change_afterwards(store: VectorStore) -> None:
    row = axis(0).copy()
    await store.upsert(HERE, "a", row, b"", ttl=TTL)
    row[:] = axis(1)

    (found,) = await store.nearest(HERE, axis(0), limit=1)

    assert found.similarity == pytest.approx(1.0, abs=1e-5)


async def test_random_writes_leave_what_a_dictionary_would_hold(store: VectorStore, clock: Clock) -> None:
    chance = np.random.default_rng(12)
    rows = random_units(60, seed=13)
    held: dict[str, dict[str, tuple[int, float]]] = {"x": {}, "x/y": {}}

    for _ in range(1_500):
        namespace = ("x", "x/y")[chance.integers(2)]
        entry_id, row = str(chance.integers(40)), int(chance.integers(60))
        match chance.integers(20):
            case 0:
                held["x/y"].clear()
                await store.clear("x/y")
            case 1 | 2 | 3:
                held[namespace].pop(entry_id, None)
                await store.delete(namespace, entry_id)
            case 4 | 5:
                clock.now += 1
            case _:
                held[namespace][entry_id] = (row, clock.now + 30)
                await store.upsert(namespace, entry_id, rows[row], str(row).encode(), ttl=30)
        found = await store.nearest(namespace, rows[row], limit=100)
        live = {name: str(r).encode() for name, (r, until) in held[namespace].items() if until > clock.now}
        assert {n.entry_id: n.payload for n in found} == live


async def test_entries_are_all_that_lives_below_a_prefix(store: VectorStore, clock: Clock) -> None:
    rows = random_units(900, seed=14)
    for namespace in ("a", "a/b", "a/b/é蓝", "a/bc"):
        await fill(store, namespace, rows)
    await store.upsert("a/b", "brief", rows[0], b"", ttl=1)
    await store.upsert("a/b", "lasting", rows[1], b"\x00" * 1_000_000, ttl=None)
    await store.delete("a/b", "17")
    clock.now += 2

    found = {(entry.namespace, entry.entry_id): entry async for entry in store.entries("a/b")}

    expected = {(namespace, str(number)) for namespace in ("a/b", "a/b/é蓝") for number in range(900)}
    assert set(found) == expected - {("a/b", "17")} | {("a/b", "lasting")}
    assert found["a/b/é蓝", "5"].payload == b"5"
    assert found["a/b/é蓝", "5"].expires_at == pytest.approx(clock.now - 2 + TTL)
    assert found["a/b", "lasting"].expires_at == float("inf")
    assert found["a/b", "lasting"].payload == b"\x00" * 1_000_000
    assert all(np.allclose(found["a/b", str(n)].vector, rows[n], atol=1e-6) for n in range(20, 900))


async def test_entries_come_once_while_others_write(store: VectorStore) -> None:
    rows = random_units(600, seed=15)
    await fill(store, HERE, rows)
    met: list[str] = []

    async for entry in store.entries(""):
        met.append(entry.entry_id)
        if len(met) % 100 == 1:
            await store.upsert(HERE, entry.entry_id, rows[0], b"again", ttl=TTL)
            await store.delete(HERE, "599")

    assert len(met) == len(set(met))
    assert {str(number) for number in range(599)} <= set(met)


async def test_nothing_kept_is_no_entries(store: VectorStore) -> None:
    await fill(store, "a/bc", [axis(0)])

    assert [entry async for entry in store.entries("a/b")] == []
