"""Hyperscan databases, and a folder that keeps the large ones: they take seconds to compile, and no time to load."""

import contextlib
import os
import time
from collections.abc import Mapping
from functools import cache
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from secrets import token_hex
from typing import Final, NamedTuple

import hyperscan

_MODE: Final = hyperscan.HS_MODE_BLOCK
_MOST: Final = 16  # those used last stay
_SUFFIX: Final = ".hs"
_CHECK: Final = 32  # bytes of a file that say what the others are


class _Kept(NamedTuple):
    folder: Path
    least: float


_kept: _Kept | None = None


def keep_in(folder: Path | None, *, least: float = 0.1) -> None:
    """Databases that take `least` seconds to compile, for all of this process from here on; None: nowhere. Whoever can
    write to the folder says what is found. It is made when there is something to keep."""
    global _kept  # patterns are compiled far below whoever knows of a folder
    _kept = None if folder is None else _Kept(folder, least)


def database(expressions: Mapping[int, tuple[bytes, int]]) -> hyperscan.Database | None:
    """Each with its flags, by what it reports. None where Hyperscan cannot compile one of them, or there is none."""
    if not expressions:
        return None
    if _kept is None:
        return _compiled(expressions)
    file = _kept.folder / f"{_name(expressions)}{_SUFFIX}"
    known = _loaded(file)
    if known is not None:
        return known
    began = time.perf_counter()
    compiled = _compiled(expressions)
    if compiled is not None and time.perf_counter() - began >= _kept.least:
        # A disk that is full or read-only costs the next start its seconds, nothing else.
        with contextlib.suppress(OSError):
            _keep(file, hyperscan.dumpb(compiled))
    return compiled


def _compiled(expressions: Mapping[int, tuple[bytes, int]]) -> hyperscan.Database | None:
    compiled = hyperscan.Database(mode=_MODE)
    try:
        compiled.compile(
            expressions=[expression for expression, _ in expressions.values()],
            ids=list(expressions),
            flags=[flags for _, flags in expressions.values()],
        )
    except hyperscan.error:
        return None
    return compiled


def _name(expressions: Mapping[int, tuple[bytes, int]]) -> str:
    return blake2b(repr((_builder(), sorted(expressions.items()))).encode(), digest_size=16).hexdigest()


@cache
def _builder() -> str:
    """The library's version and what of the processor it uses; Hyperscan itself refuses what another one built."""
    least = hyperscan.Database(mode=_MODE)
    least.compile(expressions=[b"x"], ids=[0], flags=[0])
    return f"{version('hyperscan')} {least.info()!r}"


def _loaded(file: Path) -> hyperscan.Database | None:
    """None where there is none, or it is damaged."""
    try:
        content = file.read_bytes()
        if blake2b(content[_CHECK:], digest_size=_CHECK).digest() != content[:_CHECK]:
            return None
        loaded = hyperscan.loadb(content[_CHECK:], _MODE)
        loaded.scratch = hyperscan.Scratch(loaded)
    except (OSError, hyperscan.error):
        return None
    with contextlib.suppress(OSError):  # another's file, which may be read only
        os.utime(file)
    return loaded


def _keep(file: Path, content: bytes) -> None:
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = file.with_name(f".{file.name}-{token_hex(8)}")
    try:
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as opened:
            opened.write(blake2b(content, digest_size=_CHECK).digest() + content)
        fresh.replace(file)
    finally:
        fresh.unlink(missing_ok=True)
    files = sorted(file.parent.glob(f"*{_SUFFIX}"), key=_used, reverse=True)
    for forgotten in files[_MOST:]:
        forgotten.unlink(missing_ok=True)


def _used(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except FileNotFoundError:  # another process has just removed it
        return 0.0
