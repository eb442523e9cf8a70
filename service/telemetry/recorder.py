"""The request log: one row of JSON a request, written behind the requests' backs.

A row never holds prompt text, a key or a vector. Rows wait in a bounded queue
for a thread that writes them; when the sink is slow or fails they are dropped
and counted, because a full disk must not become an outage. The log of look-ups
is written in the same way.
"""

import contextlib
import errno
import fcntl
import logging
import os
import select
import stat
import sys
import threading
from collections import deque
from pathlib import Path

import msgspec

from service.telemetry.metrics import Metrics

_log = logging.getLogger("keepgate.telemetry")

_STATUS = {status: str(status) for status in range(100, 600)}

_LIMIT = 20_000
_EVERY = 0.2
_WAKE_AT = 1_000
# A batch is encoded in one go under the interpreter's lock: 0.15 ms of everybody's time.
_BATCH = 1_000
_PATIENCE_MS = 1_000
_NEWLINE = ord("\n")


class Record(msgspec.Struct, gc=False, omit_defaults=True):
    """A request, as the log and the metrics see it. Times are seconds, `time` since the epoch.

    `model` is what the client asked for; `upstream` and `upstream_model` are
    empty when nothing was sent. `cache` is exact, semantic, coalesced, miss or
    bypass, and `detail` the reason. `similarity` is that of a semantic hit or
    of the nearest rejected entry; `shadow` is that of the hit shadow mode did
    not serve. `prompt_tokens` and `completion_tokens` are those of an upstream
    call, `tokens_saved` those of the call that was not needed. `status` is 0
    when the client left before an answer began; `code` is an error's.
    `first_token_seconds` is for streams.
    """

    time: float
    request_id: str
    endpoint: str = ""
    key_id: str = ""
    operation: str = ""
    model: str = ""
    upstream: str = ""
    upstream_model: str = ""
    status: int = 0
    code: str = ""
    # Made, not given: a row then says so, where other defaults are left out.
    cache: str = msgspec.field(default_factory=lambda: "bypass")
    similarity: float | None = None
    detail: str = ""
    shadow: float | None = None
    stream: bool = False
    seconds: float = 0.0
    overhead_us: int = 0
    first_token_seconds: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    tokens_saved: int = 0
    usage_estimated: bool = False
    entry: str = ""
    client_gone: bool = False
    guardrails: str = ""


def observe(metrics: Metrics, record: Record) -> None:
    """Counts a finished request: what metrics say about a request as a whole.

    Tokens of upstream calls are not among it: they are counted when a call is
    settled, which also happens for a client that left.
    """
    # What follows /e/ is the client's own words unless an endpoint of that name exists.
    endpoint = record.endpoint
    cache = record.cache
    metrics.requests.add((endpoint, record.model, record.upstream, _STATUS.get(record.status, "0"), cache))
    outcome = (endpoint, cache)
    metrics.request_seconds.observe(outcome, record.seconds)
    metrics.overhead_seconds.observe(outcome, record.overhead_us * 1e-6)
    if record.first_token_seconds is not None:
        metrics.time_to_first_token_seconds.observe(outcome, record.first_token_seconds)
    if record.tokens_saved:
        metrics.tokens_saved.add((endpoint, record.model, cache), record.tokens_saved)
    if record.similarity is not None:
        result = "hit" if cache == "semantic" else "miss"
        metrics.cache_similarity.observe((endpoint, result), record.similarity)
    if record.shadow is not None:
        metrics.cache_similarity.observe((endpoint, "shadow"), record.shadow)


class Recorder:
    """Writes records as JSON lines to a file or an open file descriptor.

    A file is opened for appending when the recorder is made (OSError if that
    fails) and again after `reopen`, so that it can be rotated. Lines of
    several processes do not mix: a file is appended to in whole lines, and a
    pipe is given no more at once than it takes in one piece. A file of
    `most` bytes is renamed to end in `.1` and its suffix, in the place of an
    older one, and begun anew.
    """

    def __init__(
        self,
        target: int | Path,
        *,
        name: str = "request log",
        most: int | None = None,
        limit: int = _LIMIT,
        every: float = _EVERY,
    ) -> None:
        self._name = name
        self._most = most
        self._path = target if isinstance(target, Path) else None
        self._descriptor = _opened(target) if isinstance(target, Path) else target
        self._piece = _piece(self._descriptor)
        self._limit = limit
        self._every = every
        self._rows: deque[msgspec.Struct] = deque()
        self._encoder = msgspec.json.Encoder()
        self._wake = threading.Event()
        self._reopening = threading.Event()
        self._closing = threading.Event()
        # Each is written by one thread only: the caller's and the writer's.
        self._refused = 0
        self._lost = 0
        self._failing = False
        self._torn = False
        self._thread = threading.Thread(target=self._write_until_closed, name="keepgate-recorder", daemon=True)

    @property
    def dropped(self) -> int:
        """Rows lost since the start."""
        return self._refused + self._lost

    def start(self) -> None:
        self._thread.start()

    def record(self, record: msgspec.Struct) -> None:
        """Takes a row, which must not change any more. Never waits, never raises."""
        waiting = len(self._rows)
        if waiting >= self._limit:
            self._refused += 1
            return
        self._rows.append(record)
        if waiting == _WAKE_AT:
            self._wake.set()

    def reopen(self) -> None:
        """Before the next row is written, opens the file's path anew."""
        self._reopening.set()
        self._wake.set()

    def close(self, *, timeout: float = 2.0) -> None:
        """Writes what waits, for no longer than `timeout` seconds; what is left then counts as dropped."""
        self._closing.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout)
        self._refused += len(self._rows)
        # A writer that is still stuck keeps its descriptor: the number could be somebody else's by the time it wakes.
        if self._path is not None and not self._thread.is_alive():
            os.close(self._descriptor)

    def _write_until_closed(self) -> None:
        last = False
        while not last:
            self._wake.wait(self._every)
            self._wake.clear()
            last = self._closing.is_set()
            if self._reopening.is_set():
                self._reopening.clear()
                self._open_anew()
            while self._rows:
                if self._most is not None:
                    self._rotate(self._most)
                self._write([self._rows.popleft() for _ in range(min(_BATCH, len(self._rows)))])

    def _write(self, rows: list[msgspec.Struct]) -> None:
        # A write that failed midway left half a line: end it, so that the next one can be read.
        mend = b"\n" if self._torn else b""
        lines = mend + self._encoded(rows)
        written = 0
        try:
            while written < len(lines):
                written += self._write_piece(lines, written)
        except OSError as error:
            self._lost += lines.count(b"\n", max(written, len(mend)))
            if not self._failing:
                _log.warning("%s: %s; rows are dropped until it can be written", self._name, error.strerror)
            self._failing = True
        else:
            if self._failing and written:
                _log.warning("%s: written again; %d rows were dropped since the start", self._name, self.dropped)
                self._failing = False
        if written:
            self._torn = lines[written - 1] != _NEWLINE

    def _encoded(self, rows: list[msgspec.Struct]) -> bytes:
        try:
            return self._encoder.encode_lines(rows)
        except (TypeError, ValueError):
            if len(rows) == 1:  # this is the one that is no JSON, such as a string with half a surrogate pair
                self._lost += 1
                return b""
            return b"".join(self._encoded([row]) for row in rows)

    def _write_piece(self, lines: bytes, start: int) -> int:
        end = len(lines)
        if end - start > self._piece:
            # Whole lines as far as they fit; a line that does not fit goes alone.
            end = (lines.rfind(b"\n", start, start + self._piece) + 1) or (lines.find(b"\n", start) + 1)
        try:
            return os.write(self._descriptor, lines[start:end])
        except BlockingIOError:
            # Somebody we share the descriptor with made it non-blocking.
            writable = select.poll()
            writable.register(self._descriptor, select.POLLOUT)
            if not writable.poll(_PATIENCE_MS):
                raise
            return 0

    def _rotate(self, most: int) -> None:
        """Where another process has done so, its new file is taken."""
        if self._path is None:
            return
        try:
            # Two who rename one after the other would leave nothing of the older file. Whoever is not first writes on.
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        except OSError:
            pass  # a file system without locks
        try:
            mine = os.fstat(self._descriptor)
            there = self._path.stat()
            if there.st_ino == mine.st_ino and mine.st_size >= most:
                self._path.replace(self._path.with_suffix(f".1{self._path.suffix}"))
            elif there.st_ino == mine.st_ino:
                return
        except FileNotFoundError:
            pass  # it was taken away, and is begun anew
        except OSError as error:
            _log.warning("%s: %s cannot be rotated: %s", self._name, self._path, error.strerror)
            return
        finally:
            with contextlib.suppress(OSError):
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        self._open_anew()

    def _open_anew(self) -> None:
        if self._path is None:
            return
        try:
            descriptor = _opened(self._path)
        except OSError as error:
            _log.warning("%s: %s cannot be opened again: %s", self._name, self._path, error.strerror)
            return
        os.close(self._descriptor)
        self._descriptor = descriptor
        self._torn = False


def append(path: Path, lines: bytes) -> None:
    """Adds whole lines to a file that others append to as well; returns when they are kept. Raises `OSError`."""
    # By name each time: the file may have been renamed since the last one.
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        # What another is just writing looks like a line that was cut off.
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        end = os.lseek(descriptor, 0, os.SEEK_END)
        if end and os.pread(descriptor, 1, end - 1) != b"\n":
            lines = b"\n" + lines  # a line that was cut off stays one of its own
        if os.write(descriptor, lines) != len(lines):
            raise OSError(errno.ENOSPC, "no room for it")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _opened(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)


def _piece(descriptor: int) -> int:  # the most bytes one write may have for it not to mix with another process's
    mode = os.fstat(descriptor).st_mode
    return select.PIPE_BUF if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) else sys.maxsize
