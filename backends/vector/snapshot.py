"""Segments in files: written once by one process, mapped by all that share the store.

A file is FAISS's own, followed by the tables and a footer with what it is
about and a checksum of all before it. It comes into being under its final
name, so what is there is whole or damaged by others; what does not belong to
the log it lies beside is stale. Both are ignored.
"""

import logging
import os
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from backends.vector.hnsw import Segment, Tables, Title, single_threaded

_VERSION = 1
_SUFFIX = ".hnsw"
_NAME = re.compile(r"([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{16})-([0-9a-f]{16})\.hnsw")
# Magic, version, dimensions; identity of the log, namespace key; low, high, built;
# bytes of FAISS's part, rows, nodes, strays; checksum of all that precedes it.
_FOOTER = struct.Struct("=8sII16s16sQQQQQQQI")
_MAGIC = b"keepgate"
_CHUNK = 8 << 20

_log = logging.getLogger(__name__)


class Unusable(Exception):
    """Says why, to be logged."""


def titles(directory: Path) -> list[Title]:
    """Those that no later one covers, in the order of their numbers."""
    found = [
        Title(bytes.fromhex(name[1]), int(name[2], 16), int(name[3], 16), int(name[4], 16))
        for name in (_NAME.fullmatch(path.name) for path in directory.iterdir())
        if name
    ]
    return sorted(title for title in found if not any(other.covers(title) for other in found))


def write(directory: Path, title: Title, graph: Any, tables: Tables, *, identity: bytes) -> None:
    """Raises `OSError`, also when the disk is full."""
    unfinished = directory / f"{_file_name(title)}.{os.getpid()}"
    try:
        try:
            single_threaded().write_index(graph, str(unfinished))
        except RuntimeError as error:  # FAISS's only kind
            raise OSError(f"an index could not be written: {error}") from error
        length = unfinished.stat().st_size
        with unfinished.open("ab") as file:
            for table in tables:
                file.write(np.ascontiguousarray(table).tobytes())
        rows, nodes, strays = len(tables.numbers), len(tables.hashes), len(tables.strays)
        with unfinished.open("r+b") as file:
            checksum = _checksum(file)
            about = (_MAGIC, _VERSION, graph.d, identity, *title, length, rows, nodes, strays, checksum)
            file.write(_FOOTER.pack(*about))
        unfinished.chmod(0o600)  # what was asked can be told from vectors
        unfinished.replace(directory / _file_name(title))
    finally:
        unfinished.unlink(missing_ok=True)


def read(directory: Path, title: Title, *, identity: bytes, dimensions: int) -> Segment:
    """Raises `Unusable`. The vectors and the graph stay in the file's pages, which all processes share."""
    path = directory / _file_name(title)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            if size < _FOOTER.size:
                raise Unusable("it is cut off")
            file.seek(size - _FOOTER.size)
            magic, version, width, log, *found, length, rows, nodes, strays, checksum = _FOOTER.unpack(file.read())
            if magic != _MAGIC or version != _VERSION:
                raise Unusable("it is no snapshot of this version, or it is cut off")
            if log != identity or width != dimensions or tuple(found) != tuple(title):
                raise Unusable("it belongs to other entries")
            if length + 20 * rows + 8 * nodes + 4 * strays + _FOOTER.size != size:
                raise Unusable("its parts do not add up")
            file.seek(0)
            if _checksum(file, size - _FOOTER.size) != checksum:
                raise Unusable("its checksum is wrong")
            file.seek(length)
            tables = Tables(
                np.frombuffer(file.read(8 * rows), dtype=np.int64),
                np.frombuffer(file.read(8 * rows), dtype=np.float64),
                np.frombuffer(file.read(4 * rows), dtype=np.int32),
                np.frombuffer(file.read(8 * nodes), dtype=np.uint64),
                np.frombuffer(file.read(4 * strays), dtype=np.int32),
            )
        faiss = single_threaded()
        graph = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except (OSError, RuntimeError) as error:
        raise Unusable(str(error)) from error
    return Segment(graph, tables, title)


def copy_of_graph(directory: Path, title: Title) -> Any:
    """One in memory of its own, that may be added to. Raises `Unusable`."""
    try:
        return single_threaded().read_index(str(directory / _file_name(title)))
    except RuntimeError as error:
        raise Unusable(str(error)) from error


def remove_all_but(directory: Path, kept: set[Title]) -> None:
    """For the one process that writes. Who has a file mapped keeps it."""
    names = {_file_name(title) for title in kept}
    for path in directory.iterdir():
        if _SUFFIX in path.name and path.name not in names:
            path.unlink(missing_ok=True)


def _file_name(title: Title) -> str:
    return f"{title.namespace.hex()}-{title.low:016x}-{title.high:016x}-{title.built:016x}{_SUFFIX}"


def _checksum(file: Any, size: int | None = None) -> int:
    checksum = 0
    for chunk in _chunks(file, size):
        checksum = zlib.crc32(chunk, checksum)
    return checksum


def _chunks(file: Any, size: int | None) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK if size is None else min(_CHUNK, size)):
        yield chunk
        size = None if size is None else size - len(chunk)
