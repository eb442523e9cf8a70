"""Opening an LMDB environment that several processes share and that may have been damaged while it was closed."""

import contextlib
import errno
import fcntl
import logging
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import lmdb

from models.errors import BackendError

_log = logging.getLogger(__name__)

_GATE_SECONDS = 30.0
_TRIAL_SECONDS = 4.0  # 50,000 entries of 4 KB take 0.3 s
_MAX_READERS = 512  # slots of the reader table, shared by all processes

_MAGIC = 0xBEEFC0DE
_IS_META = 0x08
# Of a meta page, in the machine's own order: its number, flags, magic, format,
# address and size of the map, then page size (which the free list's record holds).
_META_HEAD = struct.Struct("=QHHIIIQQI")
_META_LAST_PAGE = struct.Struct("=QQ")  # last page number, transaction
_META_LAST_PAGE_AT = 136

# Runs in a process of its own because it may find anything. Exit status 3 is a
# finding; every other failure says nothing about the file.
_TRIAL = """
import sys
from lmdb.verify import verify
try:
    problems = verify(sys.argv[1], subdir=False)
except Exception as error:
    problems = [str(error) or type(error).__name__]
if problems:
    print(problems[0])
    sys.exit(3)
"""
_TRIAL_FOUND = 3


class SharedEnvironment:
    """An open environment and the place this process holds among those that share it.

    `lmdb` may be used by any thread. Close it once, after every transaction
    has ended. It must not cross a fork.
    """

    def __init__(self, environment: lmdb.Environment, path: Path, in_use: int) -> None:
        self.lmdb = environment
        self.path = path
        self._in_use = in_use

    def adopt_map_size(self) -> None:
        """After `lmdb.MapResizedError`: takes the larger map another process has set.

        No transaction of this process may be open, in any thread.
        """
        self.lmdb.set_mapsize(0)

    def doubt(self) -> None:
        """After `lmdb.CorruptedError` and its like: the next start checks the whole file."""
        (self.path / "doubt").touch(mode=0o600)

    def close(self) -> None:
        """Safe to repeat. The last process to close flushes to disk and leaves word that the file is whole."""
        if self._in_use < 0:
            return
        with _gate(self.path):
            last = _locked(self._in_use, fcntl.LOCK_EX)
            try:
                if last:
                    self.lmdb.sync(True)
                self.lmdb.close()
                if last:
                    _write_mark(self._in_use, _stamp(self.path / "data.mdb"))
            except (lmdb.Error, OSError) as error:
                # Nothing is lost: without the mark the next start checks the whole file.
                _log.warning("%s was not closed cleanly: %s", self.path, error)
                self.lmdb.close()
            finally:
                os.close(self._in_use)
                self._in_use = -1


def open_environment(
    path: Path,
    *,
    map_size: int,
    max_dbs: int = 8,
    sync: bool,
    aside: Callable[[Path], None] | None = None,
) -> SharedEnvironment:
    """Opens the environment in the directory `path`, or begins one there. Blocks; call it at start.

    A process that maps a truncated file dies of SIGBUS when it reads what is
    missing, so the file is looked at first: both meta pages, its length
    against them, and, unless the last process closed it and nobody touched it
    since, a walk over every page in a child process (at most four seconds;
    what is still unread then is taken on trust). A file that fails is moved to
    `<path>.corrupt-<time>`, logged, told to `aside`, and a new one begun.
    While another process has the file open it is sound and is not looked at.

    `map_size` in bytes is the most the file can grow to. `sync=False` commits
    without waiting for the disk: what was committed survives the end of the
    process, also by SIGKILL, but after a power cut the file may be damaged.
    Never uses `writemap`, under which a stray write would reach the file.

    Raises `BackendError` for a path that cannot be used, and when this process
    has it open already: LMDB's locks allow one open a process.
    """
    data = path / "data.mdb"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _gate(path), contextlib.ExitStack() as undo:
            in_use = os.open(path / "in-use", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            undo.callback(os.close, in_use)
            alone = _locked(in_use, fcntl.LOCK_EX)
            if alone:
                doubt = path / "doubt"
                flaw = _flaw(data, mark=b"" if doubt.exists() else _read_mark(in_use))
                if flaw is not None:
                    _move_aside(path, flaw, aside)
                doubt.unlink(missing_ok=True)
                _write_mark(in_use, b"")
            try:
                environment = _open(path, map_size, max_dbs, sync)
            except (lmdb.InvalidError, lmdb.CorruptedError, lmdb.VersionMismatchError) as error:
                if not alone:
                    raise
                _move_aside(path, str(error), aside)
                environment = _open(path, map_size, max_dbs, sync)
            undo.callback(environment.close)
            _locked(in_use, fcntl.LOCK_SH)  # the gate is still ours, so nobody takes it in between
            environment.reader_check()
            undo.pop_all()
            return SharedEnvironment(environment, path, in_use)
    except lmdb.Error as error:
        raise BackendError(_advice(path, getattr(error, "code", 0), str(error))) from error
    except OSError as error:
        raise BackendError(_advice(path, error.errno or 0, str(error))) from error


def _open(path: Path, map_size: int, max_dbs: int, sync: bool) -> lmdb.Environment:
    return lmdb.Environment(
        str(path),
        map_size=map_size,
        max_dbs=max_dbs,
        sync=sync,
        metasync=sync,
        writemap=False,
        mode=0o600,
        max_readers=_MAX_READERS,
        max_spare_txns=4,  # a read transaction that is renewed costs a third of a new one
    )


def _advice(path: Path, code: int, reason: str) -> str:
    if "already open in this process" in reason:
        return f"{path} is already open in this process; share the one store"
    if code in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{path} cannot be read and written by user {os.geteuid()}: change its owner or mode, or storage.path"
    if code in (errno.ENOSPC, errno.EDQUOT):
        return f"no room on the disk of {path}: free some, or change storage.path"
    return f"{path} cannot be opened ({reason}): storage.path must be a directory that can be written"


@contextlib.contextmanager
def _gate(path: Path) -> Iterator[None]:
    """One process at a time opens, checks, moves or closes what lies in `path`."""
    directory = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + _GATE_SECONDS
        while not _locked(directory, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                raise BackendError(f"another process has been opening {path} for {_GATE_SECONDS:.0f} s: stop it")
            time.sleep(0.01)
        yield
    finally:
        os.close(directory)


def _locked(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _stamp(data: Path) -> bytes:
    status = data.stat()
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ino}".encode()


def _read_mark(descriptor: int) -> bytes:
    return os.pread(descriptor, 100, 0)


def _write_mark(descriptor: int, mark: bytes) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, mark, 0)


def _flaw(data: Path, *, mark: bytes) -> str | None:
    """What is wrong with the file, None if nothing is known to be."""
    if not data.exists():
        return None
    try:
        whole = _meta_length(data) <= data.stat().st_size
    except ValueError as error:
        return str(error)
    if whole and mark == _stamp(data):
        return None
    try:
        trial = subprocess.run(  # noqa: S603 - our own interpreter and text
            [sys.executable, "-I", "-c", _TRIAL, str(data)], capture_output=True, text=True, timeout=_TRIAL_SECONDS
        )
    except subprocess.TimeoutExpired:
        # Pages that were allocated and freed again need not be in the file, so
        # a short file may be sound; one that cannot be shown to be is not mapped.
        return None if whole else "it is shorter than its last page"
    if trial.returncode == _TRIAL_FOUND:
        return trial.stdout.strip()
    if trial.returncode < 0:
        return f"a trial read ended with signal {-trial.returncode}"
    if trial.returncode:
        _log.warning("%s could not be checked: %s", data, trial.stderr.strip()[-200:])
    return None


def _meta_length(data: Path) -> int:
    """Bytes up to the end of the last page in use. Raises `ValueError` for meta pages that are none.

    The layout is that of LMDB 0.9 on a 64-bit machine; LMDB itself refuses others.
    """
    with data.open("rb") as file:
        page_size = 0
        newest = (-1, 0)
        for number in (0, 1):
            file.seek(number * page_size)
            page = file.read(_META_LAST_PAGE_AT + _META_LAST_PAGE.size)
            if len(page) < _META_LAST_PAGE_AT + _META_LAST_PAGE.size:
                raise ValueError(f"it ends within meta page {number}")
            _, _, flags, _, magic, _, _, _, size = _META_HEAD.unpack_from(page)
            if magic != _MAGIC or not flags & _IS_META or not 512 <= size <= 0x10000:
                raise ValueError(f"meta page {number} is not LMDB's")
            last_page, transaction = _META_LAST_PAGE.unpack_from(page, _META_LAST_PAGE_AT)
            newest = max(newest, (transaction, last_page))
            page_size = size
    return (newest[1] + 1) * page_size


def _move_aside(path: Path, flaw: str, aside: Callable[[Path], None] | None) -> None:
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
    away = path.with_name(f"{path.name}.corrupt-{stamp}")
    away.mkdir(mode=0o700)
    for name in ("data.mdb", "lock.mdb"):
        with contextlib.suppress(FileNotFoundError):
            (path / name).rename(away / name)
    _log.warning("%s is damaged (%s): moved to %s, and a new one is begun", path, flaw, away)
    if aside is not None:
        aside(away)
