"""Workers as real processes, because what matters is how they end."""

import asyncio
import os
import shutil
import signal
import stat
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from service.telemetry.group import Group
from service.telemetry.metrics import Metrics, render

ROOT = Path(__file__).parents[2]
# Counts as it is told on its standard input, and says when it has.
WORKER = """
import asyncio, sys
from pathlib import Path
from service.telemetry.group import Group
from service.telemetry.metrics import Metrics

async def main():
    metrics = Metrics()
    group = Group(metrics, run_dir=Path(sys.argv[1]), slot=int(sys.argv[2]), keep_every=float(sys.argv[3]))
    await group.start()
    print("ready", flush=True)
    while count := await asyncio.to_thread(sys.stdin.readline):
        metrics.requests.add(("default", "gpt-4o", "", "200", "exact"), int(count))
        metrics.request_seconds.observe(("default", "exact"), 0.001)
        metrics.inflight.set((), 1)
        metrics.degraded.set(("embedder",), 1)
        print("counted", flush=True)
    await group.close()

asyncio.run(main())
"""
# Later than any test: what was not asked for stays off the file.
NEVER = 3600.0


async def test_any_worker_reports_the_whole_group(run_dir: Path) -> None:
    async with running(run_dir, slot=1) as one, running(run_dir, slot=2) as two, member(run_dir) as group:
        await count(one, 2)
        await count(two, 3)

        report = await report_of(group)

    assert report.requests == 5
    assert report.inflight == 2
    assert report.degraded == 1


async def test_the_reporting_worker_counts_itself_once(run_dir: Path) -> None:
    metrics = Metrics()
    metrics.requests.add(("default", "gpt-4o", "", "200", "exact"), 4)

    async with member(run_dir, metrics) as group:
        report = await report_of(group)

    assert report.requests == 4


async def test_a_killed_worker_leaves_its_counts_and_not_its_gauges(run_dir: Path) -> None:
    async with running(run_dir, slot=1, keep_every=0.01) as worker, member(run_dir) as group:
        await count(worker, 7)
        await until(lambda: on_file(run_dir, 7))
        await kill(worker)

        report = await report_of(group)

    assert report.requests == 7
    assert report.inflight == 0
    assert report.degraded is None


async def test_what_was_reported_once_never_falls(run_dir: Path) -> None:
    async with running(run_dir, slot=1, keep_every=NEVER) as worker, member(run_dir) as group:
        await count(worker, 7)
        before = await report_of(group)
        await kill(worker)

        after = await report_of(group)

    assert before.requests == after.requests == 7


async def test_a_worker_that_stopped_in_good_order_leaves_all_its_counts(run_dir: Path) -> None:
    async with running(run_dir, slot=1, keep_every=NEVER) as worker, member(run_dir) as group:
        await count(worker, 7)
        await stop(worker)

        report = await report_of(group)

    assert report.requests == 7
    assert report.inflight == 0


async def test_a_hung_worker_is_reported_from_its_file_and_holds_nobody_up(run_dir: Path) -> None:
    async with running(run_dir, slot=1) as hung, running(run_dir, slot=2) as well, member(run_dir) as group:
        await count(hung, 2)
        await count(well, 3)
        await report_of(group)
        hung.send_signal(signal.SIGSTOP)

        started = time.monotonic()
        report = await report_of(group)
        took = time.monotonic() - started

    assert report.requests == 5
    assert report.inflight == 2
    assert 0.5 <= took < 3


async def test_a_successor_counts_on_and_leaves_one_file(run_dir: Path) -> None:
    async with member(run_dir) as group:
        for generation in range(1, 4):
            async with running(run_dir, slot=1, keep_every=NEVER) as worker:
                await count(worker, 1)
                assert (await report_of(group)).requests == generation
                await kill(worker)

        report = await report_of(group)

    assert report.requests == 3
    assert report.observed == 3
    assert len(files_of_slot(run_dir, 1)) == 1


async def test_a_successor_that_overlaps_its_predecessor_counts_for_itself(run_dir: Path) -> None:
    async with running(run_dir, slot=1) as old, running(run_dir, slot=1) as new, member(run_dir) as group:
        await count(old, 2)
        await count(new, 3)
        both = await report_of(group)
        await stop(old)

        report = await report_of(group)

    assert both.requests == report.requests == 5


async def test_reports_never_fall_while_workers_come_and_go(run_dir: Path) -> None:
    reports: list[float] = []

    async def report_all_the_time(group: Group) -> None:
        while True:
            reports.append((await report_of(group)).requests)

    async with member(run_dir) as group:
        reporting = asyncio.create_task(report_all_the_time(group))
        for _ in range(5):
            async with running(run_dir, slot=1) as worker:
                await count(worker, 1)
                await stop(worker)
        reporting.cancel()
        report = await report_of(group)

    assert report.requests == 5
    assert len(reports) > 10
    assert reports == sorted(reports)


async def test_a_damaged_file_costs_its_own_counts_only(run_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with running(run_dir, slot=1) as worker, member(run_dir) as group:
        await count(worker, 3)
        (run_dir / "2-99-abc.metrics").write_bytes(b"\x93 cut sho")

        report = await report_of(group)

    assert report.requests == 3
    assert "worker 2-99-abc is missing from the metrics" in caplog.text


async def test_a_directory_that_went_away_leaves_a_worker_its_own_counts(
    run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = Metrics()
    async with member(run_dir, metrics) as group:
        shutil.rmtree(run_dir)
        metrics.requests.add(("default", "gpt-4o", "", "200", "exact"), 4)

        report = await report_of(group)

    assert report.requests == 4
    assert "metrics cannot be kept" in caplog.text


async def test_the_directory_is_for_its_owner_only(run_dir: Path) -> None:
    open_to_all(run_dir)

    async with member(run_dir):
        mode = mode_of(run_dir)

    assert mode == 0o700


async def test_a_process_alone_needs_no_directory() -> None:
    metrics = Metrics()
    metrics.coalesced.add((), 3)
    group = Group(metrics)
    await group.start()

    snapshots = await group.collect()
    await group.close()

    assert snapshots == [metrics.snapshot()]


class Report:
    """What a scrape says."""

    def __init__(self, body: bytes) -> None:
        self._lines = dict(
            line.rsplit(" ", 1) for line in body.decode().splitlines() if line and not line.startswith("#")
        )
        self.requests = (
            self._value(
                'keepgate_requests_total{cache="exact",endpoint="default",model="gpt-4o",status="200",upstream=""}'
            )
            or 0.0
        )
        self.observed = self._value('keepgate_request_seconds_count{cache="exact",endpoint="default"}')
        self.inflight = self._value("keepgate_inflight")
        self.degraded = self._value('keepgate_degraded{component="embedder"}')

    def _value(self, series: str) -> float | None:
        return float(self._lines[series]) if series in self._lines else None


async def report_of(group: Group) -> Report:
    return Report(render(await group.collect())[0])


@pytest.fixture
def run_dir() -> Iterator[Path]:
    # Not tmp_path: a socket's path has about a hundred characters.
    with tempfile.TemporaryDirectory(prefix="kg-", ignore_cleanup_errors=True) as path:
        yield Path(path)


@asynccontextmanager
async def member(run_dir: Path, metrics: Metrics | None = None) -> AsyncIterator[Group]:
    group = Group(metrics or Metrics(), run_dir=run_dir, slot=0, keep_every=0.05)
    await group.start()
    try:
        yield group
    finally:
        await group.close()


@asynccontextmanager
async def running(run_dir: Path, *, slot: int, keep_every: float = 0.05) -> AsyncIterator[asyncio.subprocess.Process]:
    worker = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        WORKER,
        str(run_dir),
        str(slot),
        str(keep_every),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        assert worker.stdout is not None
        assert await worker.stdout.readline() == b"ready\n"
        yield worker
    finally:
        if worker.returncode is None:
            await kill(worker)


async def count(worker: asyncio.subprocess.Process, requests: int) -> None:
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write(b"%d\n" % requests)
    assert await worker.stdout.readline() == b"counted\n"


async def kill(worker: asyncio.subprocess.Process) -> None:
    worker.kill()
    await worker.communicate()


async def stop(worker: asyncio.subprocess.Process) -> None:
    await worker.communicate(b"")  # nothing more to count: it closes its part of the group and ends
    assert worker.returncode == 0


def open_to_all(run_dir: Path) -> None:
    run_dir.chmod(0o755)


def mode_of(run_dir: Path) -> int:
    return stat.S_IMODE(run_dir.stat().st_mode)


def files_of_slot(run_dir: Path, slot: int) -> list[Path]:
    return list(run_dir.glob(f"{slot}-*.metrics"))


def on_file(run_dir: Path, requests: int) -> bool:
    snapshots = [path.read_bytes() for path in run_dir.glob("*.metrics")]
    return Report(render(snapshots)[0]).requests == requests


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - another process writes the file: there is no event to wait for
            await asyncio.sleep(0.01)
