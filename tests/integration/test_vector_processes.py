"""The embedded vector store under several processes, kills, restarts and full disks."""

import asyncio
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from backends.vector import faiss
from backends.vector.faiss import FaissStore
from models.errors import BackendError, StoreFull

ROOT = Path(__file__).parents[2]
DIMENSIONS = 384
ENTRIES = 10_000
SPACE = "support/default"

# A second process on the same store: does what each line says and answers with a line.
_OTHER = """
import asyncio, sys
from pathlib import Path
import numpy as np
from backends.vector.faiss import FaissStore

def unit(seed):
    row = np.random.default_rng(seed).standard_normal(384, dtype=np.float32)
    return row / np.linalg.norm(row)

async def main():
    exact_below = int(sys.argv[2])
    store = FaissStore(path=Path(sys.argv[1]), dimensions=384, revision="test@1", exact_below=exact_below)
    print("ready", flush=True)
    for line in sys.stdin:
        operation, namespace, argument = line.split()
        if operation == "upsert":
            await store.upsert(namespace, argument, unit(int(argument)), argument.encode(), ttl=600)
            print("done", flush=True)
        elif operation == "delete":
            await store.delete(namespace, argument)
            print("done", flush=True)
        elif operation == "clear":
            print(await store.clear(namespace), flush=True)
        elif operation == "nearest":
            found = await store.nearest(namespace, unit(int(argument)), limit=1)
            print(found[0].entry_id if found and found[0].similarity > 0.999 else "none", flush=True)
        elif operation == "storm":
            async def writer(first):
                for number in range(first, 10**9, 16):
                    await store.upsert(namespace, str(number), unit(number), b"x" * 700, ttl=600)
                    print(number, flush=True)
            await asyncio.gather(*(writer(first) for first in range(16)))
    await store.close()

asyncio.run(main())
"""


class OtherProcess:
    def __init__(self, path: Path, *, exact_below: int = 20_000) -> None:
        self.process = subprocess.Popen(  # noqa: S603 - our own interpreter and text
            [sys.executable, "-c", _OTHER, str(path), str(exact_below)],
            cwd=ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.read() == "ready"

    def read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def send(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def ask(self, line: str) -> str:
        self.send(line)
        return self.read()

    def kill(self) -> str:
        """What it had still printed."""
        self.process.send_signal(signal.SIGKILL)
        rest, _ = self.process.communicate()
        return rest


@pytest.fixture
def other(tmp_path: Path) -> Iterator[OtherProcess]:
    other = OtherProcess(tmp_path)
    yield other
    other.kill()


@asynccontextmanager
async def opened(
    path: Path,
    *,
    revision: str = "test@1",
    dimensions: int = DIMENSIONS,
    max_entries: int = 1_000_000,
    max_bytes: int = 1 << 30,
    exact_below: int = 20_000,
    clock: Callable[[], float] = time.time,
) -> AsyncIterator[FaissStore]:
    store = FaissStore(
        path=path,
        dimensions=dimensions,
        revision=revision,
        max_entries=max_entries,
        max_bytes=max_bytes,
        exact_below=exact_below,
        clock=clock,
    )
    try:
        yield store
    finally:
        await store.close()


def data_file(path: Path, directory: str = "*") -> Path:
    return next(path.glob(f"{directory}/data.mdb"))


def names_in(path: Path) -> list[str]:
    return [child.name for child in path.iterdir()]


def unit(seed: int) -> NDArray[np.float32]:
    row = np.random.default_rng(seed).standard_normal(DIMENSIONS, dtype=np.float32)
    row /= np.float32(np.linalg.norm(row))
    return row


def units(count: int) -> NDArray[np.float32]:
    rows = np.random.default_rng(0).standard_normal((count, DIMENSIONS), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


async def write(store: FaissStore, rows: NDArray[np.float32], *, namespace: str = SPACE, first: int = 0) -> None:
    for start in range(0, len(rows), 1_000):
        await asyncio.gather(
            *(
                store.upsert(namespace, str(first + number), rows[number], b"answer", ttl=600)
                for number in range(start, min(len(rows), start + 1_000))
            )
        )


async def test_two_processes_find_each_others_writes_in_their_next_search(tmp_path: Path, other: OtherProcess) -> None:
    async with opened(tmp_path) as store:
        for number in range(50):
            await store.upsert("a/b", str(number), unit(number), b"", ttl=600)
            assert other.ask(f"nearest a/b {number}") == str(number)

            other.ask(f"upsert a/c {number}")
            (found,) = await store.nearest("a/c", unit(number), limit=1)
            assert (found.entry_id, found.payload) == (str(number), str(number).encode())

        await store.delete("a/b", "7")
        assert other.ask("nearest a/b 7") == "none"
        other.ask("delete a/c 8")
        assert (await store.nearest("a/c", unit(8), limit=1))[0].entry_id != "8"
        assert other.ask("clear a/b -") == "49"
        assert list(await store.nearest("a/b", unit(3), limit=5)) == []
        assert await store.clear("a") == 49
        assert other.ask("nearest a/c 3") == "none"


async def test_every_acknowledged_write_survives_a_kill(tmp_path: Path, other: OtherProcess) -> None:
    other.send(f"storm {SPACE} -")
    acknowledged = [int(other.read()) for _ in range(3_000)]
    acknowledged += [int(line) for line in other.kill().split("\n")[:-1]]

    async with opened(tmp_path) as store:
        found = [(await store.nearest(SPACE, unit(number), limit=1))[0].entry_id for number in acknowledged]

        assert found == [str(number) for number in acknowledged]
        await store.upsert(SPACE, "after", unit(10**9), b"", ttl=600)
        assert (await store.nearest(SPACE, unit(10**9), limit=1))[0].entry_id == "after"


async def test_a_killed_process_stops_no_other(tmp_path: Path, other: OtherProcess) -> None:
    async with opened(tmp_path) as store:
        other.send(f"storm {SPACE} -")
        for number in range(300):
            await store.upsert("mine", str(number), unit(number), b"", ttl=600)
            if number == 150:
                other.kill()

        assert len(await store.nearest("mine", unit(0), limit=1_000)) == 300


async def test_a_restart_keeps_what_is_live(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await write(store, units(200))
        await store.upsert(SPACE, "5", units(200)[6], b"replaced", ttl=600)
        await store.delete(SPACE, "9")
        await write(store, units(10), namespace="cleared/below")
        await store.clear("cleared")

    async with opened(tmp_path) as store:
        found = {neighbor.entry_id: neighbor for neighbor in await store.nearest(SPACE, units(200)[6], limit=1_000)}

        assert sorted(found) == sorted(str(number) for number in range(200) if number != 9)
        assert found["5"].payload == b"replaced"
        assert found["5"].similarity == pytest.approx(1.0, abs=1e-5)
        assert list(await store.nearest("cleared/below", units(1)[0], limit=1)) == []


async def test_an_entry_that_expired_while_nothing_ran_does_not_come_back(tmp_path: Path) -> None:
    async with opened(tmp_path, clock=lambda: 1_000.0) as store:
        await store.upsert(SPACE, "brief", unit(1), b"", ttl=10)
        await store.upsert(SPACE, "lasting", unit(2), b"", ttl=100)

    async with opened(tmp_path, clock=lambda: 1_011.0) as store:
        found = await store.nearest(SPACE, unit(1), limit=5)

        assert [neighbor.entry_id for neighbor in found] == ["lasting"]
        assert await store.sweep() == 1
        assert await store.count() == 1


async def test_swept_and_replaced_entries_leave_memory_and_disk(tmp_path: Path) -> None:
    now = 1_000.0
    async with opened(tmp_path, clock=lambda: now, max_bytes=64 << 20) as store:
        rows = units(100)
        for _ in range(300):  # 50 MB of vectors, were they kept
            await write(store, rows)
            now += 1
        assert await store.count() == 100
        now += 1_000

        swept = await store.sweep()
        await store.load()

        assert swept == 100
        assert store._namespaces == {}
        assert data_file(tmp_path).stat().st_size < 16 << 20


async def test_who_slept_through_removals_starts_again(tmp_path: Path) -> None:
    now = 1_000.0
    async with opened(tmp_path, clock=lambda: now) as store:
        await write(store, units(3))
        await store.load()
        await store.delete(SPACE, "0")
        await store.clear("nothing")
        now += 700  # beyond the time removals are kept; the entries have expired as well
        await store.upsert(SPACE, "new", unit(5), b"", ttl=600)

        await store._writer.write(lambda txn: store._log.forget_removals(txn, before=now - 600))
        found = await store.nearest(SPACE, unit(5), limit=10)

        assert [neighbor.entry_id for neighbor in found] == ["new"]
        assert store._namespaces[next(iter(store._namespaces))].live == 1


async def test_beyond_the_limit_the_first_written_make_room(tmp_path: Path) -> None:
    async with opened(tmp_path, max_entries=500) as store:
        await write(store, units(2_000))

        found = {neighbor.entry_id for neighbor in await store.nearest(SPACE, unit(0), limit=5_000)}

        assert 450 <= len(found) <= 500
        assert {str(number) for number in range(1_600, 2_000)} <= found
        assert await store.count() == len(found)


async def test_a_full_map_evicts_and_goes_on(tmp_path: Path) -> None:
    async with opened(tmp_path, max_bytes=8 << 20) as store:
        for number in range(400):  # 40 MB
            await store.upsert(SPACE, str(number), unit(number), bytes(100_000), ttl=600)

        newest = await store.nearest(SPACE, unit(399), limit=1)

        assert newest[0].entry_id == "399"
        assert newest[0].payload == bytes(100_000)
        assert 20 < await store.count() < 80


async def test_what_never_fits_is_refused_and_the_rest_is_served(tmp_path: Path) -> None:
    async with opened(tmp_path, max_bytes=4 << 20) as store:
        await store.upsert(SPACE, "small", unit(1), b"small", ttl=600)

        refused, accepted = await asyncio.gather(
            store.upsert(SPACE, "large", unit(2), bytes(5 << 20), ttl=600),
            store.upsert(SPACE, "other", unit(3), b"other", ttl=600),
            return_exceptions=True,
        )

        assert isinstance(refused, StoreFull)
        assert accepted is None
        assert (await store.nearest(SPACE, unit(3), limit=1))[0].payload == b"other"
        await store.upsert(SPACE, "after", unit(4), b"after", ttl=600)
        assert (await store.nearest(SPACE, unit(4), limit=1))[0].payload == b"after"


async def test_a_full_disk_refuses_writes_until_there_is_room(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await write(store, units(100))
        length = data_file(tmp_path).stat().st_size
        unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
        ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (length, unlimited[1]))  # a disk of exactly what is there
        try:
            with pytest.raises(StoreFull, match="cannot write"):
                await store.upsert(SPACE, "large", unit(1), bytes(3 << 20), ttl=600)
            during = await store.nearest(SPACE, units(100)[3], limit=1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
            signal.signal(signal.SIGXFSZ, ignored)

        await store.upsert(SPACE, "large", unit(1), bytes(3 << 20), ttl=600)

        assert during[0].entry_id == "3"
        assert (await store.nearest(SPACE, unit(1), limit=1))[0].entry_id == "large"


async def test_writes_beyond_the_queue_are_refused(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        payload = bytes(4 << 20)

        outcomes = await asyncio.gather(
            *(store.upsert(SPACE, str(number), unit(number), payload, ttl=600) for number in range(40)),
            return_exceptions=True,
        )

        refused = [outcome for outcome in outcomes if outcome is not None]
        assert refused
        assert all(isinstance(outcome, StoreFull) for outcome in refused)
        assert await store.count() == 40 - len(refused)
        await store.upsert(SPACE, "after", unit(99), b"", ttl=600)


async def test_closing_keeps_what_was_accepted_and_refuses_the_rest(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        waiting = [asyncio.create_task(store.upsert(SPACE, str(n), unit(n), b"", ttl=600)) for n in range(200)]
        await asyncio.sleep(0)
        await store.close()
        await asyncio.gather(*waiting)

        with pytest.raises(BackendError, match="closed"):
            await store.upsert(SPACE, "late", unit(0), b"", ttl=600)
        with pytest.raises(BackendError):
            await store.nearest(SPACE, unit(0), limit=1)

    async with opened(tmp_path) as store:
        assert await store.count() == 200


async def test_another_revision_or_dimension_is_another_store(tmp_path: Path) -> None:
    async with opened(tmp_path, revision="org/model@1") as one, opened(tmp_path, revision="org-model@1") as two:
        await one.upsert(SPACE, "a", unit(0), b"", ttl=600)
        assert list(await two.nearest(SPACE, unit(0), limit=1)) == []

    async with opened(tmp_path, revision="org/model@1", dimensions=8) as small:
        assert list(await small.nearest(SPACE, unit(0)[:8], limit=1)) == []

    async with opened(tmp_path, revision="org/model@1") as one:
        assert await one.count() == 1


async def test_vectors_of_an_embedder_unused_for_a_week_are_removed(tmp_path: Path) -> None:
    (tmp_path / "not-ours").mkdir()
    for revision in ("old@1", "recent@1"):
        async with opened(tmp_path, revision=revision) as store:
            await store.upsert(SPACE, "a", unit(0), b"", ttl=600)
    week_ago = time.time() - 8 * 24 * 3600
    for directory in (tmp_path / "not-ours", data_file(tmp_path, "old-1-*").parent):
        os.utime(directory, (week_ago, week_ago))

    async with opened(tmp_path, revision="new@1"):
        left = sorted(name.partition("-384-")[0] for name in names_in(tmp_path))

    assert left == ["new-1", "not-ours", "recent-1"]


async def test_a_path_that_cannot_be_used_is_a_backend_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(BackendError, match=r"storage\.path"):
        FaissStore(path=tmp_path / "file", dimensions=DIMENSIONS, revision="test@1")


async def test_a_namespace_that_grows_large_answers_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss, "_INLINE_ROWS", 5_000)  # the limit is no option anybody should set
    now = 1_000.0
    rows = units(5_000)
    queries = [rows[17], rows[4_000], rows[23], unit(1)]
    async with opened(tmp_path, clock=lambda: now) as store:
        await write(store, rows)
        await store.delete(SPACE, "23")
        await store.upsert(SPACE, "brief", rows[17], b"", ttl=1)
        now += 1
        before = [await store.nearest(SPACE, query, limit=10) for query in queries]

        for extra in range(3):
            await store.upsert(SPACE, f"opposite-{extra}", np.negative(rows[17]), b"", ttl=600)
        after = [await store.nearest(SPACE, query, limit=10) for query in queries]

        assert "faiss" in sys.modules
        assert list(await store.nearest(SPACE, rows[17], limit=0)) == []
        assert [[n.entry_id for n in found] for found in after] == [[n.entry_id for n in found] for found in before]
        for found, same in zip(after, before, strict=True):
            assert [n.similarity for n in found] == pytest.approx([n.similarity for n in same], abs=1e-5)


async def _ready_seconds(path: Path, entries: int, *, indexed: int) -> float:
    rows = units(entries)
    async with opened(path, max_bytes=4 << 30) as store:
        await write(store, rows)
        if indexed:
            await store.indexed()

    started = time.perf_counter()
    async with opened(path, max_bytes=4 << 30) as store:
        await store.load()
        seconds = time.perf_counter() - started
        assert indexed_rows(store) >= indexed

        for number in range(0, entries, entries // 20):
            assert (await store.nearest(SPACE, rows[number], limit=1))[0].entry_id == str(number)
        assert await store.count() == entries
    return seconds


async def test_ten_thousand_entries_are_ready_at_once(tmp_path: Path) -> None:
    assert await _ready_seconds(tmp_path, ENTRIES, indexed=0) < 1.5


@pytest.mark.full
async def test_an_index_is_ready_at_once(tmp_path: Path) -> None:
    assert await _ready_seconds(tmp_path, 20_000, indexed=20_000) < 1.5


@pytest.mark.full
async def test_a_hundred_thousand_entries_without_an_index_are_ready_in_five_seconds(tmp_path: Path) -> None:
    assert await _ready_seconds(tmp_path, 100_000, indexed=0) < 5.0


async def test_the_event_loop_runs_on_while_entries_are_read_and_searched(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await write(store, units(2 * ENTRIES))

    async with opened(tmp_path) as store:
        searches = [asyncio.create_task(store.nearest(SPACE, unit(n), limit=10)) for n in range(20)]
        gaps = []
        while not all(search.done() for search in searches):
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            gaps.append(time.perf_counter() - before)

        assert all(len(search.result()) == 10 for search in searches)
        assert len(gaps) > 5
        assert sorted(gaps)[len(gaps) // 2] < 0.02


def indexed_rows(store: FaissStore) -> int:
    return sum(segment.live for rows in store._namespaces.values() for segment in rows.segments)


def snapshots(path: Path) -> list[Path]:
    return sorted(path.glob("*/*.hnsw"))


async def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def test_an_index_that_one_process_makes_is_used_by_the_other(tmp_path: Path) -> None:
    rows = units(1_200)
    async with opened(tmp_path, exact_below=1_000) as store, opened_elsewhere(tmp_path, exact_below=1_000) as other:
        await write(store, rows)
        await store.indexed()
        await store.load()
        other.ask("upsert a/b 1")
        file = snapshots(tmp_path)[0]
        await until(lambda: file.name in Path(f"/proc/{other.process.pid}/maps").read_text())

        other.ask(f"delete {SPACE} 7")
        other.ask(f"upsert {SPACE} 5000")

        assert (await store.nearest(SPACE, rows[7], limit=1))[0].entry_id != "7"
        assert [(await store.nearest(SPACE, rows[n], limit=1))[0].entry_id for n in range(8, 200)] == [
            str(n) for n in range(8, 200)
        ]
        assert (await store.nearest(SPACE, unit(5_000), limit=1))[0].entry_id == "5000"
        await store.delete(SPACE, "5000")
        assert other.ask(f"nearest {SPACE} 5000") == "none"


@asynccontextmanager
async def opened_elsewhere(path: Path, *, exact_below: int) -> AsyncIterator[OtherProcess]:
    other = OtherProcess(path, exact_below=exact_below)
    try:
        yield other
    finally:
        other.kill()


async def test_a_start_takes_the_index_from_its_file_and_the_rest_from_the_log(tmp_path: Path) -> None:
    rows = units(2_000)
    async with opened(tmp_path, exact_below=1_000) as store:
        await write(store, rows[:1_500])
        await store.indexed()
    async with opened(tmp_path, exact_below=10_000) as store:  # makes no index of what it writes
        await store.delete(SPACE, "3")
        await store.upsert(SPACE, "4", rows[1_999], b"replaced", ttl=600)
        await write(store, rows[1_500:1_600], first=1_500)
        await write(store, rows[:5], namespace="other")
        await store._writer.write(lambda txn: store._log.forget_removals(txn, before=time.time() + 1))

    async with opened(tmp_path, exact_below=10_000) as store:
        await store.load()

        assert indexed_rows(store) == 1_498
        assert await store.count() == 1_604
        assert (await store.nearest(SPACE, rows[3], limit=1))[0].entry_id != "3"
        assert (await store.nearest(SPACE, rows[1_999], limit=1))[0].payload == b"replaced"
        assert (await store.nearest(SPACE, rows[1_550], limit=1))[0].entry_id == "1550"
        assert (await store.nearest(SPACE, rows[17], limit=1))[0].entry_id == "17"
        assert len(await store.nearest(SPACE, rows[0], limit=5_000)) == 1_599
        assert len(await store.nearest("other", rows[0], limit=10)) == 5


async def test_a_damaged_index_is_said_and_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = units(1_200)
    async with opened(tmp_path, exact_below=1_000) as store:
        await write(store, rows)
        await store.indexed()
    (file,) = snapshots(tmp_path)
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    file.write_bytes(damaged)

    async with opened(tmp_path, exact_below=1_000) as store:
        assert (await store.nearest(SPACE, rows[17], limit=1))[0].entry_id == "17"
        await store.indexed()

        assert indexed_rows(store) == 1_200
        assert (await store.nearest(SPACE, rows[17], limit=1))[0].entry_id == "17"
    assert [record.getMessage() for record in caplog.records if "checksum is wrong" in record.getMessage()]


async def test_an_index_of_other_entries_is_not_used(tmp_path: Path) -> None:
    async with opened(tmp_path, exact_below=1_000) as store:
        await write(store, units(1_200))
        await store.indexed()
    data_file(tmp_path).unlink()  # as after damage: numbers begin again

    async with opened(tmp_path, exact_below=10_000) as store:
        await write(store, units(1_300)[::-1].copy())

        assert indexed_rows(store) == 0
        assert (await store.nearest(SPACE, units(1_300)[17], limit=1))[0].entry_id == str(1_299 - 17)


async def test_searches_and_writes_go_on_while_an_index_is_made(tmp_path: Path) -> None:
    rows = units(4_000)
    async with opened(tmp_path, exact_below=1_000) as store:
        await write(store, rows[:1_000])
        making = asyncio.create_task(store.indexed())
        at = 1_000
        while not making.done() or at < 1_100:
            await store.upsert(SPACE, str(at), rows[at % 4_000], b"", ttl=600)
            assert (await store.nearest(SPACE, rows[at % 4_000], limit=1))[0].similarity > 0.999
            assert (await store.nearest(SPACE, rows[at % 1_000], limit=1))[0].entry_id == str(at % 1_000)
            at += 1
        await making

        assert at > 1_050
        assert indexed_rows(store) >= 1_000


async def test_what_mostly_went_is_indexed_anew(tmp_path: Path) -> None:
    rows = units(1_500)
    async with opened(tmp_path, exact_below=1_000) as store:
        await write(store, rows)
        await store.indexed()
        await asyncio.gather(*(store.delete(SPACE, str(number)) for number in range(1_000)))
        await store.indexed()

        (segment,) = next(iter(store._namespaces.values())).segments
        assert len(segment.numbers) == len(segment.hashes) == 500
        assert len(await store.nearest(SPACE, rows[0], limit=2_000)) == 500
        assert await store.clear("") == 500
        await store.load()
        assert store._namespaces == {}


async def test_a_process_killed_while_it_makes_an_index_leaves_that_to_another(tmp_path: Path) -> None:
    async with opened(tmp_path, exact_below=1_000) as store, opened_elsewhere(tmp_path, exact_below=100) as other:
        await write(store, units(900))
        other.ask(f"nearest {SPACE} 1")
        other.kill()
        await write(store, units(1_100)[900:], first=900)
        await store.indexed()

        assert indexed_rows(store) + next(iter(store._namespaces.values())).tail == 1_100
        assert indexed_rows(store) >= 900
        assert (await store.nearest(SPACE, units(1_100)[1_050], limit=1))[0].entry_id == "1050"
