"""The embedded stores under what a machine does to them: kills, cuts, full disks, other processes."""

import asyncio
import contextlib
import logging
import multiprocessing
import os
import random
import resource
import shutil
from collections.abc import Awaitable, Callable, Iterator
from hashlib import sha256
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from backends.environment import open_environment
from backends.exact.lmdb import LmdbStore
from backends.keyring.lmdb import LmdbKeyring
from models.errors import BackendError, StoreFull
from models.key import VirtualKey
from tests.support.clock import ManualClock

SPACE = "storm/key:1"
_processes = multiprocessing.get_context("spawn")


@contextlib.contextmanager
def other_process(target: Callable[..., None], *arguments: Any) -> Iterator[tuple[Any, Connection]]:
    """A process running `target(connection, *arguments)`, killed at the end if it still runs."""
    ours, theirs = _processes.Pipe()
    process = _processes.Process(target=target, args=(theirs, *arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        yield process, ours
    finally:
        process.kill()
        process.join()
        process.close()
        ours.close()


def value_of(number: int) -> bytes:
    """Its content and length follow from the number; 32 B to 96 kB."""
    seed = sha256(str(number).encode()).digest()
    return seed * (1 + int.from_bytes(seed[:4], "big") % (3_000 if number % 10 == 0 else 100))


def storm(connection: Connection, path: Path, first: int) -> None:
    async def write(store: LmdbStore, numbers: Iterator[int]) -> None:
        for number in numbers:
            await store.put(SPACE, str(number), value_of(number), ttl=None)
            connection.send(number)

    async def run() -> None:
        store = LmdbStore(path=path, max_bytes=256 << 20)
        numbers = iter(range(first, first + 100_000))
        await asyncio.gather(*(write(store, numbers) for _ in range(20)))

    asyncio.run(run())


async def test_every_acknowledged_put_survives_a_kill_at_any_moment(tmp_path: Path) -> None:
    path = tmp_path / "exact"
    chance = random.Random(7)  # noqa: S311 - a choice of moments
    moved: list[Path] = []
    acknowledged: set[int] = set()

    for turn in range(22):
        with other_process(storm, path, turn * 100_000) as (process, connection):
            for _ in range(chance.randrange(1, 300)):
                acknowledged.add(connection.recv())
            process.kill()
            with contextlib.suppress(EOFError):
                while True:
                    acknowledged.add(connection.recv())
        store = LmdbStore(path=path, max_bytes=256 << 20, aside=moved.append)
        lost = [number for number in acknowledged if await store.get(SPACE, str(number)) != value_of(number)]
        sizes = await store.sizes()
        await store.close()

        assert lost == []
        assert moved == []
        assert set(table_sizes(path).values()) == {sizes[SPACE]}
        # What was written and not yet acknowledged may be there too, and is counted.
        assert len(acknowledged) <= sizes[SPACE] <= len(acknowledged) + 20 * (turn + 1)


def table_sizes(path: Path) -> dict[str, int]:
    """Items in the tables that hold one an entry."""
    environment = open_environment(path, map_size=1 << 30, sync=False)
    names = ("entries", "records", "ages")
    tables = {name: environment.lmdb.open_db(name.encode(), create=False) for name in names}
    with environment.lmdb.begin() as transaction:
        sizes = {name: transaction.stat(table)["entries"] for name, table in tables.items()}
    environment.close()
    return sizes


async def filled(path: Path, *, entries: int = 2_000) -> None:
    store = LmdbStore(path=path, max_bytes=64 << 20)
    await asyncio.gather(*(store.put(SPACE, str(number), value_of(number), ttl=None) for number in range(entries)))
    await store.close()


async def test_a_file_cut_anywhere_is_moved_aside_or_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = tmp_path / "whole"
    await filled(whole)
    length = (whole / "data.mdb").stat().st_size
    chance = random.Random(11)  # noqa: S311 - a choice of places
    cuts = [1, 16, 4_095, 4_096, 8_191, 8_192, length - 1, length - 4_096]
    cuts += [chance.randrange(length) for _ in range(16)]
    moved: list[Path] = []

    for cut in cuts:
        path = tmp_path / f"cut-{cut}"
        shutil.copytree(whole, path)
        os.truncate(path / "data.mdb", cut)
        before = len(moved)
        store = LmdbStore(path=path, max_bytes=64 << 20, aside=moved.append)
        if len(moved) == before:
            for number in range(2_000):
                assert await store.get(SPACE, str(number)) == value_of(number)
        else:
            assert await store.sizes() == {}
            assert (moved[-1] / "data.mdb").stat().st_size == cut
        await store.put(SPACE, "new", b"value", ttl=None)
        assert await store.get(SPACE, "new") == b"value"
        await store.close()

    assert len(moved) >= len(cuts) - 2
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == len(moved)


@pytest.mark.parametrize("content", [b"", b"not a database", random.Random(3).randbytes(300_000)])  # noqa: S311
async def test_a_file_of_something_else_is_moved_aside(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "exact"
    path.mkdir()
    (path / "data.mdb").write_bytes(content)
    moved: list[Path] = []

    store = LmdbStore(path=path, max_bytes=64 << 20, aside=moved.append)

    await store.put(SPACE, "new", b"value", ttl=None)
    assert await store.get(SPACE, "new") == b"value"
    assert [(away / "data.mdb").read_bytes() for away in moved] == [content]
    await store.close()


async def test_a_file_overwritten_in_the_middle_is_moved_aside(tmp_path: Path) -> None:
    path = tmp_path / "exact"
    await filled(path)
    with (path / "data.mdb").open("r+b") as file:
        file.seek(64 << 10)
        file.write(random.Random(5).randbytes(256 << 10))  # noqa: S311
    moved: list[Path] = []

    store = LmdbStore(path=path, max_bytes=64 << 20, aside=moved.append)

    assert len(moved) == 1
    assert await store.sizes() == {}
    await store.close()


def serve(connection: Connection, path: Path, options: dict[str, Any]) -> None:
    """Calls the store's methods as told, until the connection closes."""

    async def run() -> None:
        store = LmdbStore(path=path, **options)
        connection.send("open")
        with contextlib.suppress(EOFError):
            while True:
                method, arguments, keywords = await asyncio.to_thread(connection.recv)
                call: Callable[..., Awaitable[Any]] = getattr(store, method)
                connection.send(await call(*arguments, **keywords))
        await store.close()

    asyncio.run(run())


def ask(connection: Connection, method: str, *arguments: Any, **keywords: Any) -> Any:
    connection.send((method, arguments, keywords))
    return connection.recv()


async def test_two_processes_see_each_others_entries_at_once(tmp_path: Path) -> None:
    path = tmp_path / "exact"
    store = LmdbStore(path=path, max_bytes=64 << 20)
    with other_process(serve, path, {"max_bytes": 64 << 20}) as (_, other):
        assert other.recv() == "open"

        for turn in range(50):
            await store.put("a", f"ours {turn}", b"ours", ttl=None)
            assert ask(other, "get", "a", f"ours {turn}") == b"ours"
            ask(other, "put", "a", f"theirs {turn}", b"theirs", ttl=None)
            assert await store.get("a", f"theirs {turn}") == b"theirs"

        assert await store.sizes() == ask(other, "sizes") == {"a": 100}
        assert ask(other, "clear", "a") == 100
        assert await store.get("a", "ours 1") is None
    await store.close()


async def test_use_by_another_process_keeps_an_entry(tmp_path: Path) -> None:
    path = tmp_path / "exact"
    store = LmdbStore(path=path, max_bytes=8 << 20)
    with other_process(serve, path, {"max_bytes": 8 << 20}) as (_, other):
        assert other.recv() == "open"
        await store.put("a", "used there", b"value", ttl=None)
        await store.put("a", "used nowhere", b"value", ttl=None)

        for turn in range(200):
            await store.put("a", str(turn), bytes(200_000), ttl=None)
            ask(other, "get", "a", "used there")
            ask(other, "put", "b", "tick", b"", ttl=None)  # a write carries the uses noted before it

        assert await store.get("a", "used there") == b"value"
        assert await store.get("a", "used nowhere") is None
    await store.close()


@pytest.mark.parametrize("first", ["get", "put", "sizes"])
async def test_a_map_that_another_process_made_larger_is_adopted(tmp_path: Path, first: str) -> None:
    path = tmp_path / "exact"
    store = LmdbStore(path=path, max_bytes=256 << 20, map_size=4 << 20)
    with other_process(serve, path, {"max_bytes": 256 << 20, "map_size": 64 << 20}) as (_, other):
        assert other.recv() == "open"

        for turn in range(20):
            ask(other, "put", "a", str(turn), bytes(1 << 20), ttl=None)
        if first == "put":
            await store.put("a", "19", b"ours", ttl=None)
        elif first == "sizes":
            assert await store.sizes() == {"a": 20}

        assert await store.get("a", "19") == (b"ours" if first == "put" else bytes(1 << 20))
        assert await store.sizes() == {"a": 20}
    await store.close()


async def test_only_the_last_process_to_close_vouches_for_the_file(tmp_path: Path) -> None:
    path = tmp_path / "exact"
    store = LmdbStore(path=path, max_bytes=64 << 20)
    with other_process(serve, path, {"max_bytes": 64 << 20}) as (process, other):
        assert other.recv() == "open"

        await store.close()
        while_open = (path / "in-use").read_bytes()
        other.close()
        process.join()

    assert while_open == b""
    assert (path / "in-use").read_bytes() != b""


async def test_the_file_stays_within_its_map_over_ten_times_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "exact"
    limit = 8 << 20
    store = LmdbStore(path=path, max_bytes=limit)
    chance = random.Random(1)  # noqa: S311 - sizes

    written = 0
    while written < 10 * limit:
        values = [bytes(chance.choice((100, 3_000, 40_000, 400_000))) for _ in range(10)]
        await asyncio.gather(*(store.put("a", f"{written} {n}", value, ttl=60) for n, value in enumerate(values)))
        written += sum(map(len, values))

    sizes = await store.sizes()
    await store.close()
    assert sizes["a"] > 20
    assert set(table_sizes(path).values()) == {sizes["a"]}
    assert (path / "data.mdb").stat().st_size < 3 * limit


def hold_a_read(connection: Connection, path: Path, map_size: int) -> None:
    environment = open_environment(path, map_size=map_size, sync=False)
    with environment.lmdb.begin():
        connection.send("reading")
        connection.recv()
    environment.close()
    connection.send("done")


async def overwrite(store: LmdbStore, *, turns: int) -> None:
    for turn in range(turns):
        await store.put("a", str(turn % 5), bytes(100_000), ttl=None)


async def test_a_full_map_pauses_writing_and_recovers(tmp_path: Path) -> None:
    path = tmp_path / "exact"
    clock = ManualClock(1_000.0)
    store = LmdbStore(path=path, max_bytes=64 << 20, map_size=4 << 20, clock=clock)
    await store.put("a", "kept", b"value", ttl=None)
    with other_process(hold_a_read, path, 4 << 20) as (_, reader):
        assert reader.recv() == "reading"  # no page freed from now on can be used again

        with pytest.raises(StoreFull, match="no room"):
            await overwrite(store, turns=100)
        with pytest.raises(StoreFull, match="paused"):
            await store.put("a", "key", b"value", ttl=None)
        while_full = await store.get("a", "kept")
        reader.send("stop")
        assert reader.recv() == "done"

    clock.advance(5)
    await overwrite(store, turns=100)

    assert while_full == b"value"
    assert await store.get("a", "4") == bytes(100_000)
    await store.close()


async def test_a_reader_that_was_killed_does_not_hold_pages(tmp_path: Path) -> None:
    path = tmp_path / "exact"
    store = LmdbStore(path=path, max_bytes=64 << 20, map_size=4 << 20)
    await store.put("a", "first", b"value", ttl=None)
    with other_process(hold_a_read, path, 4 << 20) as (process, reader):
        assert reader.recv() == "reading"
        process.kill()
        process.join()

    await overwrite(store, turns=200)

    assert await store.get("a", "4") == bytes(100_000)
    await store.close()


def meet_a_full_disk(connection: Connection, path: Path) -> None:
    async def run() -> None:
        clock = ManualClock(1_000.0)
        store = LmdbStore(path=path, max_bytes=64 << 20, clock=clock)
        for number in range(100):
            await store.put("a", str(number), value_of(number), ttl=None)
        # The nearest thing to a full disk that needs no rights: a file may not grow past this.
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, ((path / "data.mdb").stat().st_size, most))
        refusals = []
        for number in range(20):
            try:
                await store.put("a", f"big {number}", bytes(2 << 20), ttl=None)
            except StoreFull as error:
                refusals.append(str(error))
            clock.advance(1)
        kept = [await store.get("a", str(number)) == value_of(number) for number in range(100)]
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        clock.advance(5)
        await store.put("a", "after", b"value", ttl=None)
        after = await store.get("a", "after")
        await store.close()
        connection.send((refusals, sum(kept), after))

    asyncio.run(run())


async def test_a_full_disk_pauses_writing_and_recovers(tmp_path: Path) -> None:
    with other_process(meet_a_full_disk, tmp_path / "exact") as (_, connection):
        refusals, kept, after = connection.recv()

    assert len(refusals) == 20
    assert sum("paused" in refusal for refusal in refusals) == 16  # one try every five seconds
    assert kept >= 90
    assert after == b"value"


def open_with_others(connection: Connection, path: Path, number: int) -> None:
    async def run() -> None:
        moved: list[Path] = []
        connection.send("ready")
        connection.recv()
        store = LmdbStore(path=path, max_bytes=64 << 20, aside=moved.append)
        await store.put("a", str(number), b"value", ttl=None)
        connection.send(len(moved))
        connection.recv()
        connection.send(await store.sizes())
        await store.close()

    asyncio.run(run())


async def test_processes_that_open_a_damaged_store_together_share_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "exact"
    await filled(path)
    os.truncate(path / "data.mdb", 100_000)

    with contextlib.ExitStack() as running:
        others = [running.enter_context(other_process(open_with_others, path, n))[1] for n in range(4)]
        assert [other.recv() for other in others] == ["ready"] * 4
        for other in others:
            other.send("go")
        moves = [other.recv() for other in others]
        for other in others:
            other.send("count")
        sizes = [other.recv() for other in others]

    assert sorted(moves) == [0, 0, 0, 1]
    assert sizes == [{"a": 4}] * 4


async def test_expired_entries_are_swept_without_being_asked_for(tmp_path: Path) -> None:
    clock = ManualClock(1_000.0)
    store = LmdbStore(path=tmp_path / "exact", max_bytes=64 << 20, clock=clock)
    await asyncio.gather(*(store.put("short", str(n), b"value", ttl=10) for n in range(300)))
    await store.put("long", "key", b"value", ttl=1_000)

    clock.advance(12)
    for _ in range(4):  # every write sweeps a little
        await store.put("long", "key", b"value", ttl=1_000)

    assert await store.sizes() == {"long": 1}
    await store.close()


async def test_an_idle_store_sweeps_and_notes_what_was_read(tmp_path: Path) -> None:
    clock = ManualClock(1_000.0)
    store = LmdbStore(path=tmp_path / "exact", max_bytes=8 << 20, clock=clock)
    await store.put("a", "read", b"value", ttl=None)
    for turn in range(30):
        await store.put("a", str(turn), bytes(200_000), ttl=None)
    await asyncio.gather(*(store.put("short", str(n), b"value", ttl=10) for n in range(2_500)))

    clock.advance(12)
    await store.get("a", "read")
    await asyncio.to_thread(store._tidy)  # what the writer does once a second
    sizes = await store.sizes()
    await store.close()  # and forgets what it knew of reads
    again = LmdbStore(path=tmp_path / "exact", max_bytes=8 << 20, clock=clock)
    for turn in range(30, 55):
        await again.put("a", str(turn), bytes(200_000), ttl=None)

    assert sizes == {"a": 31}
    assert await again.get("a", "read") == b"value"
    assert await again.get("a", "0") is None
    await again.close()


async def test_what_waits_for_the_writer_is_bounded(tmp_path: Path) -> None:
    store = LmdbStore(path=tmp_path / "exact", max_bytes=64 << 20, queue_bytes=1 << 20)

    puts = (store.put("a", str(n), bytes(100_000), ttl=None) for n in range(100))
    outcomes = await asyncio.gather(*puts, return_exceptions=True)

    refused = [outcome for outcome in outcomes if outcome is not None]
    assert refused
    assert all(isinstance(outcome, StoreFull) for outcome in refused)
    assert await store.sizes() == {"a": 100 - len(refused)}
    await store.close()


@pytest.mark.parametrize("namespaces", [1_999, 2_000, 2_001, 4_000])
async def test_any_number_of_namespaces_is_counted(tmp_path: Path, namespaces: int) -> None:
    store = LmdbStore(path=tmp_path / "exact", max_bytes=64 << 20)
    await asyncio.gather(*(store.put(f"n/{number}", "key", b"", ttl=None) for number in range(namespaces)))

    assert await store.sizes() == {f"n/{number}": 1 for number in range(namespaces)}
    await store.close()


async def test_a_closed_store_refuses(tmp_path: Path) -> None:
    store = LmdbStore(path=tmp_path / "exact", max_bytes=64 << 20)
    await store.close()

    with pytest.raises(BackendError, match="closed"):
        await store.get("a", "key")
    with pytest.raises(BackendError, match="closed"):
        await store.put("a", "key", b"value", ttl=None)


async def test_close_keeps_what_was_accepted(tmp_path: Path) -> None:
    store = LmdbStore(path=tmp_path / "exact", max_bytes=64 << 20)
    puts = [asyncio.ensure_future(store.put("a", str(n), b"value", ttl=None)) for n in range(500)]
    await asyncio.sleep(0)  # each put has handed its value over

    await store.close()
    await asyncio.gather(*puts)

    again = LmdbStore(path=tmp_path / "exact", max_bytes=64 << 20)
    assert await again.sizes() == {"a": 500}
    await again.close()


def revoke(connection: Connection, path: Path) -> None:
    keyring = LmdbKeyring(path=path)
    connection.send(keyring.find(b"d" * 32))
    keyring.revoke("k1", 50.0)
    connection.send("revoked")
    connection.recv()


async def test_a_revocation_is_seen_by_the_next_find_of_another_process(tmp_path: Path) -> None:
    keyring = LmdbKeyring(path=tmp_path / "keys")
    key = VirtualKey(key_id="k1", name="one", created_at=1.0)
    keyring.add(b"d" * 32, key)

    with other_process(revoke, tmp_path / "keys") as (process, connection):
        assert connection.recv() == key
        assert connection.recv() == "revoked"
        found = keyring.find(b"d" * 32)
        process.kill()
        process.join()
    keyring.close()
    again = LmdbKeyring(path=tmp_path / "keys")

    assert found is not None
    assert found.revoked_at == 50.0
    assert list(again.all()) == [found]
    again.close()
