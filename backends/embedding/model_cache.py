"""Models that were built on this machine, kept in the user's cache folder."""

import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from models.errors import BackendError

_log = logging.getLogger(__name__)
_MANIFEST = "manifest.json"
_LARGE = 1024 * 1024
_KEPT_HASHES = 200
_DIGEST = re.compile(r"[0-9a-f]{64}")


def default_cache() -> Path:
    """`$XDG_CACHE_HOME/keepgate/models`, else `~/.cache/keepgate/models`."""
    configured = os.environ.get("XDG_CACHE_HOME", "")
    # The specification of base directories says to ignore a relative one.
    home = Path(configured) if Path(configured).is_absolute() else Path.home() / ".cache"
    return home / "keepgate" / "models"


def cached(name: str, write: Callable[[Path], None], *, cache: Path | None, report: Callable[[str], None]) -> Path:
    """The folder `name` of the cache, written by `write` into an empty folder if it is missing or damaged.

    Any number of processes may ask at once: one writes, the others wait.
    Raises `BackendError` if the cache cannot be written.
    """
    home = cache or default_cache()
    folder = home / name
    if folder.exists() and _damage(folder) is None:
        return folder
    try:
        home.mkdir(parents=True, exist_ok=True)
        with _lock(home / f".{name}.lock"):
            return _write_locked(folder, write, report)
    except OSError as error:
        raise BackendError(
            f"the model cannot be kept in {home} ({error.strerror or error}): "
            "make it writable, or point XDG_CACHE_HOME to a folder that is"
        ) from error


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_mark(files: Sequence[Path], *, cache: Path | None = None) -> str:
    """Sixteen hexadecimal digits of the names and contents of `files`, in their order.

    Large files are read again only when they changed: their hashes are kept in
    the cache under size, times and inode, which no write leaves as they were.
    A cache that cannot be written costs the reading. Raises `OSError`.
    """
    known = _Hashes((cache or default_cache()) / "hashes.json")
    marks = [f"{path.name}\0{known.sha256(path)}" for path in files]
    known.keep()
    return hashlib.sha256("\n".join(marks).encode()).hexdigest()[:16]


class _Hashes:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._new: dict[str, str] = {}
        self._known: dict[str, Any] = {}
        with suppress(OSError, ValueError):
            content = json.loads(path.read_bytes())
            self._known = content if isinstance(content, dict) else {}

    def sha256(self, path: Path) -> str:
        stat = path.stat()
        if stat.st_size < _LARGE:
            return sha256(path)
        key = f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ctime_ns}\0{stat.st_ino}\0{stat.st_dev}"
        key = hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()
        found = self._known.get(key)
        if not isinstance(found, str) or not _DIGEST.fullmatch(found):
            found = self._new[key] = sha256(path)
        return found

    def keep(self) -> None:
        """What other processes keep at the same time may be lost, and is read once more then."""
        if not self._new:
            return
        kept = dict([*self._known.items(), *self._new.items()][-_KEPT_HASHES:])
        draft = self._path.with_name(f".hashes-{os.getpid()}-{threading.get_ident()}")
        try:
            draft.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(json.dumps(kept))
            draft.replace(self._path)
        except OSError as error:
            _log.info("the hashes of a model's files cannot be kept in %s: %s", self._path.parent, error.strerror)
            with suppress(OSError):
                draft.unlink(missing_ok=True)


def _write_locked(folder: Path, write: Callable[[Path], None], report: Callable[[str], None]) -> Path:
    damage = _damage(folder) if folder.exists() else "missing"
    if damage is None:
        return folder  # another process wrote it while this one waited for the lock
    for leftover in folder.parent.glob(f".{folder.name}.draft-*"):
        shutil.rmtree(leftover, ignore_errors=True)  # of a process that was killed: we hold the lock
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.draft-") as draft:
        if folder.exists():
            _log.warning("%s is damaged (%s): building it again", folder, damage)
            folder.rename(Path(draft) / "damaged")
        report(f"building {folder.name} into {folder.parent}")
        built = Path(draft) / "built"
        built.mkdir()
        write(built)
        written = sorted(path for path in built.rglob("*") if path.is_file())
        files = {path.relative_to(built).as_posix(): sha256(path) for path in written}
        # No fsync: a file that a power cut left short is found by its hash.
        (built / _MANIFEST).write_text(json.dumps({"sha256": files}, indent=2) + "\n")
        built.rename(folder)
    return folder


def _damage(folder: Path) -> str | None:
    """What is wrong with it, None if every file is as it was written."""
    try:
        files = json.loads((folder / _MANIFEST).read_bytes())["sha256"]
        for file, expected in files.items():
            if sha256(folder / file) != expected:
                return f"{file} is not as it was written"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed, also by a crash
        yield
