"""Tuning as files in a folder: one a document, replaced in one step, locked between processes."""

import contextlib
import fcntl
import os
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from secrets import token_hex

from models.errors import BackendError


class TuningFiles:
    """`<endpoint>.<name>.json` in `path`, which is made when something is written first."""

    def __init__(self, *, path: Path) -> None:
        self._path = path

    def read(self, endpoint: str, name: str) -> bytes | None:
        try:
            return self._file(endpoint, name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise BackendError(f"{self._file(endpoint, name)} cannot be read: {error.strerror}") from error

    def write(self, endpoint: str, name: str, content: bytes | None) -> None:
        self.change(endpoint, name, lambda _: content)

    def change(self, endpoint: str, name: str, change: Callable[[bytes | None], bytes | None]) -> bytes | None:
        file = self._file(endpoint, name)
        try:
            self._path.mkdir(parents=True, exist_ok=True, mode=0o700)
            with self._locked():
                old = self.read(endpoint, name)
                new = change(old)
                if new is None:
                    file.unlink(missing_ok=True)
                elif new != old:
                    self._replace(file, new)
                self._kept()
                return new
        except OSError as error:
            raise BackendError(f"{file} cannot be written: {error.strerror}") from error

    def stamp(self) -> Hashable:
        try:
            with os.scandir(self._path) as files:
                stats = [(file.name, file.stat()) for file in files if file.name.endswith(".json")]
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise BackendError(f"{self._path} cannot be read: {error.strerror}") from error
        return tuple(sorted((name, stat.st_ino, stat.st_mtime_ns, stat.st_size) for name, stat in stats))

    def _file(self, endpoint: str, name: str) -> Path:
        return self._path / f"{endpoint}.{name}.json"

    def _replace(self, file: Path, content: bytes) -> None:
        fresh = file.with_name(f".{file.name}.{token_hex(8)}")
        try:
            with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
                out.write(content)
                out.flush()
                os.fsync(out.fileno())
            fresh.replace(file)
        except OSError:
            fresh.unlink(missing_ok=True)
            raise

    def _kept(self) -> None:
        """The folder's entries survive a power cut, too."""
        folder = os.open(self._path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        lock = os.open(self._path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)  # ends with the process that held it
            yield
        finally:
            os.close(lock)
