"""One set of metrics for all the workers of a gateway.

Every worker answers on a unix socket, in a directory they share, with what it
has counted, and keeps the same in a file beside it for when it cannot answer:

    <slot>-<pid>-<random>.sock     listening: alive
    <slot>-<pid>-<random>.metrics  what it has counted, at most a second old

What a worker reports is on file before it is reported, so a sum never falls
because a worker was killed or hangs. A worker that ended leaves its file; the
next one in its slot takes it over and counts on from there, so that files do
not pile up.
"""

import asyncio
import contextlib
import logging
import os
import secrets
import socket
from functools import partial
from pathlib import Path

from service.telemetry.metrics import Metrics, without_gauges

_log = logging.getLogger("keepgate.telemetry")

_LENGTH_BYTES = 8
_ATTEMPTS = 3


class Group:
    """The workers that share `run_dir`; without one, this process alone.

    `slot` numbers the workers from 0. Two that live at once may share a slot,
    as a worker and its successor do for a moment; both are counted. `deadline`
    is how long another worker is waited for, `keep_every` how often what was
    counted is put on file, both in seconds.
    """

    def __init__(
        self,
        metrics: Metrics,
        *,
        run_dir: Path | None = None,
        slot: int = 0,
        deadline: float = 0.5,
        keep_every: float = 1.0,
    ) -> None:
        self._metrics = metrics
        self._run_dir = run_dir
        self._slot = slot
        self._name = f"{slot}-{os.getpid()}-{secrets.token_hex(3)}"
        self._deadline = deadline
        self._keep_every = keep_every
        self._keeping = asyncio.Lock()
        self._kept = b""
        self._failing = False
        self._closing = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Joins the group. OSError if the directory cannot be used, also when its path is too long for a socket."""
        if self._run_dir is None:
            return
        self._run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._run_dir.chmod(0o700)
        # Listening comes first: who does not listen has ended, and its file may be taken.
        self._server = await asyncio.start_unix_server(
            partial(self._answer, self._run_dir), self._run_dir / f"{self._name}.sock"
        )
        self._take_over(self._run_dir)
        await self._keep(self._run_dir)
        self._keeper = asyncio.create_task(self._keep_regularly(self._run_dir), name="metrics on file")

    async def collect(self) -> list[bytes]:
        """A snapshot of every worker, this one first; of workers that ended, without their gauges."""
        if self._run_dir is None:
            return [self._metrics.snapshot()]
        own = await self._keep(self._run_dir)
        others: list[bytes] = []
        for _ in range(_ATTEMPTS):
            sockets, files = _listed(self._run_dir, ".sock"), _listed(self._run_dir, ".metrics")
            names = sorted((sockets | files) - {self._name})
            others = await asyncio.gather(*(self._ask(self._run_dir / name) for name in names))
            # A file that was taken over meanwhile may have been counted twice, or not at all.
            if files <= _listed(self._run_dir, ".metrics"):
                break
        return [own, *filter(None, others)]

    async def close(self) -> None:
        """Leaves the group; what was counted stays in its sums."""
        if self._run_dir is None or self._server is None or self._keeper is None:
            return
        self._closing.set()
        await self._keeper
        await self._keep(self._run_dir)
        self._server.close()
        (self._run_dir / f"{self._name}.sock").unlink(missing_ok=True)

    async def _ask(self, worker: Path) -> bytes:  # empty: nothing is known of it
        try:
            async with asyncio.timeout(self._deadline):
                return await _answer_of(worker.with_suffix(".sock"))
        except TimeoutError:
            ended = False
        except (OSError, EOFError):
            ended = True
        try:
            kept = worker.with_suffix(".metrics").read_bytes()
            return without_gauges(kept) if ended else kept
        except FileNotFoundError:
            return b""
        except (OSError, ValueError) as error:
            _log.warning("worker %s is missing from the metrics: %s", worker.name, error)
            return b""

    async def _answer(self, run_dir: Path, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Who asked may have run into its deadline and gone.
        with contextlib.suppress(ConnectionError):
            snapshot = await self._keep(run_dir)
            writer.write(len(snapshot).to_bytes(_LENGTH_BYTES) + snapshot)
            await writer.drain()
        writer.close()

    async def _keep_regularly(self, run_dir: Path) -> None:
        while not self._closing.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), self._keep_every)
            await self._keep(run_dir)

    async def _keep(self, run_dir: Path) -> bytes:
        async with self._keeping:
            snapshot = self._metrics.snapshot()
            if snapshot == self._kept:
                return snapshot
            try:
                await asyncio.to_thread(_replace, run_dir / f"{self._name}.metrics", snapshot)
            except OSError as error:
                if not self._failing:
                    _log.warning("metrics cannot be kept for when this worker ends: %s", error)
                self._failing = True
            else:
                self._kept = snapshot
                self._failing = False
            return snapshot

    def _take_over(self, run_dir: Path) -> None:
        own_file = run_dir / f"{self._name}.metrics"
        taken = False
        for name in sorted(_listed(run_dir, ".sock") | _listed(run_dir, ".metrics")):
            if not name.startswith(f"{self._slot}-") or _listens(run_dir / f"{name}.sock"):
                continue
            for left in (".sock", ".tmp"):
                (run_dir / f"{name}{left}").unlink(missing_ok=True)
            # More than one can only be left by workers that shared the slot; those stay, and stay counted.
            if not taken:
                taken = _moved(run_dir / f"{name}.metrics", own_file)
        if taken:
            try:
                self._metrics.absorb(without_gauges(own_file.read_bytes()))
            except ValueError as error:
                _log.warning("what the last worker of slot %d counted is lost: %s", self._slot, error)


async def _answer_of(path: Path) -> bytes:
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        length = int.from_bytes(await reader.readexactly(_LENGTH_BYTES))
        return await reader.readexactly(length)
    finally:
        writer.close()


def _listed(run_dir: Path, suffix: str) -> set[str]:
    return {path.stem for path in run_dir.glob(f"*{suffix}")}


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except BlockingIOError:  # its queue is full: it hangs
            return True
        return True


def _moved(source: Path, target: Path) -> bool:
    try:
        source.rename(target)
    except FileNotFoundError:
        return False
    return True


def _replace(path: Path, content: bytes) -> None:
    fresh = path.with_suffix(".tmp")
    fresh.write_bytes(content)
    fresh.replace(path)
