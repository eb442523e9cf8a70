"""Every store at several sizes: lookups, writes, memory, and whether the nearest vector is the one that is found.

    python -m benchmarks.stores [--stores lmdb faiss ...] [--sizes 1000 10000 100000] [--seconds 2] [--json FILE]
    python -m benchmarks.stores --stores faiss --sizes 1000000 --limit 3600 --json FILE

Servers are started from the packages that `make test` installs, one for each
measurement, on loopback, keeping nothing. Each measurement has a process of
its own, so that its memory is the store's. A Markdown table on stdout,
progress on stderr. Machines are shared: the load average stands beside each.

Vectors come in clusters of 20 with a cosine of about 0.8 between any two of
one cluster. A paraphrase is a stored vector with noise, at a cosine of about
0.89 to it; what is found for it is compared with an exact search over all.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec
import numpy as np

from backends import registry
from backends.exact.base import ExactStore
from backends.redis_address import RedisAddress
from backends.vector.base import Vector, VectorStore
from models.errors import BackendError
from tests.support.servers import Server
from tests.support.stores import SERVERS, grpc_port, missing

DIMENSIONS = 384  # MiniLM's
NAMESPACE = "support-faq/team:blue"
ANSWER = os.urandom(700)  # bytes of an entry
QUESTION = b"q" * 100  # what a vector leads to
TTL = 7 * 24 * 3600.0
CLUSTER = 20
CHUNK = 1_000
NOISE = 0.5
QUERIES = 500
AT_ONCE = 32
FILLING = 256  # writes under way while a store is filled


class Options(msgspec.Struct, frozen=True):
    """`seconds` for each figure, `limit` in seconds for a whole measurement."""

    seconds: float
    limit: float
    m: int
    ef_construction: int
    ef: int
    directory: str | None


class Case(NamedTuple):
    """`server` as tests name it; `most` is the size beyond which it is not measured."""

    seam: str
    store: str
    server: str | None = None
    options: Mapping[str, Any] = MappingProxyType({})
    most: int = 10_000_000


CASES = {
    "memory": Case("exact", "memory"),
    "lmdb": Case("exact", "lmdb"),
    "redis": Case("exact", "redis", "redis-alone"),
    "flat": Case("vector", "flat", most=10_000),
    "faiss": Case("vector", "faiss"),
    "redis-hnsw": Case("vector", "redis", "redis", {"index": "hnsw"}),
    "redis-flat": Case("vector", "redis", "redis", {"index": "flat"}),
    "redis-sets": Case("vector", "redis", "redis-alone"),
    "valkey-hnsw": Case("vector", "redis", "valkey", {"index": "hnsw"}),
    "qdrant-grpc": Case("vector", "qdrant", "qdrant", {"grpc": True}),
    "qdrant-rest": Case("vector", "qdrant", "qdrant", {"grpc": False}),
}


class Timing(msgspec.Struct):
    """Milliseconds of one at a time; calls a second, one and 32 at a time."""

    p50: float
    p99: float
    alone: float
    together: float


class Figures(msgspec.Struct):
    """Of one store at one size. Memory in MB: `own` and `mapped` of this process, `server` of the server's."""

    store: str
    entries: int
    lookups: Timing
    writes: Timing
    filled: float  # entries a second, 256 at a time, from empty
    indexed: float  # seconds after that until the index is complete
    own: float
    mapped: float
    server: float | None
    ready: float | None  # seconds from opening again until all is found
    paraphrases: float | None  # found the nearest, of 1
    selves: float | None
    load: float


def main() -> int:
    arguments = _arguments()
    options = Options(
        seconds=arguments.seconds,
        limit=arguments.limit,
        m=arguments.m,
        ef_construction=arguments.ef_construction,
        ef=arguments.ef,
        directory=None if arguments.directory is None else str(arguments.directory),
    )
    found = _earlier(arguments.json)
    for name in arguments.stores:
        case = CASES[name]
        if case.server is not None and missing(case.server):
            _say(f"{name}: {case.server} is not installed: `make test` installs it")
            continue
        for size in arguments.sizes:
            if size > case.most:
                _say(f"{name} {size:,}: not measured, a write copies what is there")
                continue
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
                try:
                    figures = process.submit(measure, name, size, options).result()
                except TimeoutError:
                    _say(f"{name} {size:,}: not done within {options.limit:.0f} s")
                    break
                except BackendError as error:
                    _say(f"{name} {size:,}: {error}")
                    break
            found[name, size] = figures
            if arguments.json is not None:  # what there is, also where the rest is interrupted
                arguments.json.parent.mkdir(parents=True, exist_ok=True)
                arguments.json.write_bytes(msgspec.json.format(msgspec.json.encode(list(found.values()))) + b"\n")
    _print([found[key] for key in sorted(found, key=lambda key: (list(CASES).index(key[0]), key[1]))])
    return 0


def _earlier(file: Path | None) -> dict[tuple[str, int], Figures]:
    """What the file has by store and size; a measurement that is repeated takes the place of the earlier one."""
    if file is None or not file.exists():
        return {}
    rows = msgspec.json.decode(file.read_bytes(), type=list[Figures])
    return {(row.store, row.entries): row for row in rows if row.store in CASES}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--stores", nargs="+", choices=CASES, default=list(CASES), metavar="STORE", help=", ".join(CASES)
    )
    parser.add_argument("--sizes", nargs="+", type=int, default=[1_000, 10_000, 100_000])
    parser.add_argument("--seconds", type=float, default=2.0, help="for each figure")
    parser.add_argument("--limit", type=float, default=900.0, help="seconds for one store at one size")
    parser.add_argument("--m", type=int, default=16, help="as cache.vector.m")
    parser.add_argument("--ef-construction", type=int, default=200, help="as cache.vector.ef_construction")
    parser.add_argument("--ef", type=int, default=128, help="as cache.vector.ef")
    parser.add_argument("--directory", type=Path, help="where embedded stores put their files; a temporary one")
    parser.add_argument("--json", type=Path, help="write the figures here as well, beside those of earlier runs")
    return parser.parse_args()


# --- one store at one size, in a process of its own


def measure(name: str, size: int, options: Options) -> Figures:
    """Raises TimeoutError where it takes longer than `options.limit`."""
    case = CASES[name]
    with ExitStack() as running:
        directory = Path(
            running.enter_context(tempfile.TemporaryDirectory(prefix="keepgate-stores-", dir=options.directory))
        )
        server = None
        if case.server is not None:
            server = running.enter_context(SERVERS[case.server][0](directory / "server"))
        work = _measured_exact if case.seam == "exact" else _measured_vectors
        return asyncio.run(_within(options.limit, work(name, size, options, directory, server)))


async def _within(seconds: float, work: Awaitable[Figures]) -> Figures:
    async with asyncio.timeout(seconds):
        return await work


async def _measured_exact(name: str, size: int, options: Options, directory: Path, server: Server | None) -> Figures:
    def opened() -> ExactStore:
        store: ExactStore = registry.create("exact", CASES[name].store, **_exact_options(name, directory, server))
        return store

    store = opened()
    before = _memory(server)
    filled = await _fill(name, size, lambda number: store.put(NAMESPACE, _key(number), _bytes(number, ANSWER), ttl=TTL))
    after = _memory(server)
    order = np.random.default_rng(3).integers(size, size=1 << 16)

    async def look_up(number: int) -> None:
        assert await store.get(NAMESPACE, _key(int(order[number % len(order)]))) is not None

    lookups = await _timed(f"{name} {size:,} lookups", look_up, options.seconds)
    ready = None
    if name == "lmdb":
        await store.close()
        began = time.perf_counter()
        store = opened()
        assert await store.get(NAMESPACE, _key(size - 1)) is not None
        ready = time.perf_counter() - began
    writes = await _timed(
        f"{name} {size:,} writes",
        lambda number: store.put(NAMESPACE, _key(size + number), _bytes(number, ANSWER), ttl=TTL),
        options.seconds,
    )
    await store.close()
    return Figures(
        *(name, size, lookups, writes, filled, 0.0, *_grown(before, after), ready, None, None, os.getloadavg()[0])
    )


async def _measured_vectors(name: str, size: int, options: Options, directory: Path, server: Server | None) -> Figures:
    def opened() -> VectorStore:
        given = _vector_options(name, size, options, directory, server)
        store: VectorStore = registry.create("vector", CASES[name].store, dimensions=DIMENSIONS, revision="1", **given)
        return store

    queries, nearest = _queries(size)
    rows = _Rows()
    store = opened()
    try:
        await store.load()
        before = _memory(server)

        async def write(number: int) -> None:
            await store.upsert(NAMESPACE, str(number), rows[number], _bytes(number, QUESTION), ttl=TTL)

        filled = await _fill(name, size, write)
        began = time.perf_counter()
        await _indexed(store, server)
        indexed = time.perf_counter() - began

        _say(f"{name} {size:,}: recall")
        paraphrases = 0
        for query, similarity in zip(queries, nearest, strict=True):
            found = await store.nearest(NAMESPACE, query, limit=1)
            paraphrases += bool(found and found[0].similarity > similarity - 1e-3)
        picked = [int(number) for number in np.random.default_rng(4).integers(size, size=QUERIES)]
        selves = 0
        for number in picked:
            found = await store.nearest(NAMESPACE, rows[number], limit=1)
            selves += bool(found and found[0].entry_id == str(number))

        async def look_up(number: int) -> None:
            assert await store.nearest(NAMESPACE, queries[number % QUERIES], limit=4)

        lookups = await _timed(f"{name} {size:,} lookups", look_up, options.seconds)
        after = _memory(server)
        ready = None
        if name == "faiss":
            await store.close()
            began = time.perf_counter()
            store = opened()
            await store.load()
            assert await store.nearest(NAMESPACE, queries[0], limit=4)
            ready = time.perf_counter() - began
        writes = await _timed(f"{name} {size:,} writes", lambda number: write(size + number), options.seconds)
        return Figures(
            *(name, size, lookups, writes, filled, indexed, *_grown(before, after), ready),
            *(paraphrases / QUERIES, selves / QUERIES, os.getloadavg()[0]),
        )
    finally:  # also where time is up: FAISS then leaves the index it is at
        await store.close()


def _exact_options(name: str, directory: Path, server: Server | None) -> dict[str, Any]:
    if server is not None:
        return {"address": RedisAddress(url=f"redis://127.0.0.1:{server.port}")}
    return {"max_bytes": 4 << 30, **({"path": directory / "exact"} if name == "lmdb" else {})}


def _vector_options(name: str, size: int, options: Options, directory: Path, server: Server | None) -> dict[str, Any]:
    case = CASES[name]
    if case.store == "redis" and server is not None:
        address = RedisAddress(url=f"redis://127.0.0.1:{server.port}")
        graph = {"m": options.m, "ef_construction": options.ef_construction, "ef": options.ef}
        return {"address": address, **graph, **case.options}
    if case.store == "qdrant" and server is not None:
        graph = {"m": options.m, "ef_construct": options.ef_construction, "ef": options.ef}
        return {"url": server.url, "grpc_port": grpc_port(server), **graph, **case.options}
    return {"path": directory / "vectors", "max_entries": 2 * size + 100_000} if name == "faiss" else {}


# --- what is stored and asked


class _Rows:
    """Unit vectors by number, the same in every run, a chunk of them in memory at a time."""

    def __init__(self) -> None:
        self._at = -1
        self._rows = np.empty((0, DIMENSIONS), dtype=np.float32)

    def __getitem__(self, number: int) -> Vector:
        at, row = divmod(number, CHUNK)
        if at != self._at:
            self._at, self._rows = at, _chunk(at)
        vector: Vector = self._rows[row]
        return vector


def _chunk(number: int) -> Vector:
    random = np.random.default_rng([1, number])
    centres = _unit(random.standard_normal((CHUNK // CLUSTER, DIMENSIONS), dtype=np.float32))
    return _noisy(np.repeat(centres, CLUSTER, axis=0)[random.permutation(CHUNK)], random)


def _queries(size: int) -> tuple[Vector, Vector]:
    """Paraphrases of stored vectors, and the cosine of each to its nearest among all that are stored."""
    random = np.random.default_rng(2)
    rows = _Rows()
    queries = _noisy(np.stack([rows[int(number)] for number in np.sort(random.integers(size, size=QUERIES))]), random)
    random.shuffle(queries)
    nearest = np.full(QUERIES, -1.0, dtype=np.float32)
    for at in range(0, size, CHUNK):
        nearest = np.maximum(nearest, (_chunk(at // CHUNK)[: size - at] @ queries.T).max(axis=0))
    return queries, nearest


def _noisy(rows: Vector, random: np.random.Generator) -> Vector:
    return _unit(rows + NOISE * _unit(random.standard_normal(rows.shape, dtype=np.float32)))


def _unit(rows: Vector) -> Vector:
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def _key(number: int) -> str:
    return f"{number:032x}"


def _bytes(number: int, rest: bytes) -> bytes:
    return number.to_bytes(8) + rest  # an object of its own


# --- how long it takes


async def _fill(name: str, size: int, write: Callable[[int], Awaitable[None]]) -> float:
    """Entries a second."""
    began = told = time.perf_counter()
    for first in range(0, size, FILLING):
        await asyncio.gather(*(write(number) for number in range(first, min(size, first + FILLING))))
        if time.perf_counter() > told + 2.0:
            told = time.perf_counter()
            _say(f"{name} {size:,}: {first + FILLING:,} written")
    return size / (time.perf_counter() - began)


async def _indexed(store: VectorStore, server: Server | None) -> None:
    """Returns when what was written is where it is found fastest."""
    if hasattr(store, "indexed"):  # FAISS
        await store.indexed()
        return
    await store.load()
    while server is not None and not await asyncio.to_thread(_green, server):  # noqa: ASYNC110 - on a server
        await asyncio.sleep(0.2)


def _green(server: Server) -> bool:
    """Whether Qdrant has indexed all it will; other servers index what they are given at once."""
    if server.log.name != "qdrant.log":
        return True

    def asked(path: str) -> Any:
        with urllib.request.urlopen(f"{server.url}{path}", timeout=10) as answer:  # noqa: S310 - our own server
            return json.load(answer)["result"]

    names = [collection["name"] for collection in asked("/collections")["collections"]]
    return all(asked(f"/collections/{name}")["status"] == "green" for name in names)


async def _timed(what: str, work: Callable[[int], Awaitable[None]], seconds: float) -> Timing:
    numbers = iter(range(1 << 60))
    _say(what)
    until = time.perf_counter() + min(0.2, seconds)
    while time.perf_counter() < until:
        await work(next(numbers))
    times = []
    began = now = time.perf_counter()
    while now < began + seconds:
        await work(next(numbers))
        times.append(-now + (now := time.perf_counter()))
    alone = len(times) / (now - began)
    together = await _together(work, numbers, seconds)
    centiles = statistics.quantiles(times, n=100) if len(times) > 1 else [times[0]] * 99
    return Timing(centiles[49] * 1e3, centiles[98] * 1e3, alone, together)


async def _together(work: Callable[[int], Awaitable[None]], numbers: Iterator[int], seconds: float) -> float:
    """Calls a second of 32 tasks."""
    began = time.perf_counter()
    done = 0

    async def one() -> None:
        nonlocal done
        while time.perf_counter() < began + seconds:
            await work(next(numbers))
            done += 1

    await asyncio.gather(*(one() for _ in range(AT_ONCE)))
    return done / (time.perf_counter() - began)


# --- memory


class _Memory(NamedTuple):
    own: float
    mapped: float
    server: float | None


def _memory(server: Server | None) -> _Memory:
    ours = _status("self")
    theirs = None if server is None else _status(str(server.process.pid))["VmRSS"]
    return _Memory(ours["RssAnon"], ours["RssFile"], theirs)


def _status(process: str) -> dict[str, float]:
    """Its memory by kind, MB."""
    lines = Path("/proc", process, "status").read_text().splitlines()
    return {
        name: int(rest.split()[0]) / 1024 for name, _, rest in (line.partition(":") for line in lines) if " kB" in rest
    }


def _grown(before: _Memory, after: _Memory) -> tuple[float, float, float | None]:
    server = None if before.server is None or after.server is None else after.server - before.server
    return max(0.0, after.own - before.own), max(0.0, after.mapped - before.mapped), server


# --- what is shown


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _print(found: Sequence[Figures]) -> None:
    for seam in ("exact", "vector"):
        rows = [row for row in found if CASES[row.store].seam == seam]
        if rows:
            table = [_cells(row) for row in rows]
            shown = [name for name in table[0] if any(cells[name] for cells in table)]
            print(f"\n| {' | '.join(shown)} |")
            print(f"|---|{'--:|' * (len(shown) - 1)}")
            for cells in table:
                print(f"| {' | '.join(cells[name] for name in shown)} |")


def _cells(row: Figures) -> dict[str, str]:
    memory = [row.own, row.mapped] if row.server is None else [row.own, row.mapped, row.server]
    return {
        "store": f"`{row.store}`",
        "entries": f"{row.entries:,}",
        "lookup p50 / p99, ms": _pair(row.lookups.p50, row.lookups.p99),
        "lookups/s, 1 task / 32": f"{row.lookups.alone:,.0f} / {row.lookups.together:,.0f}",
        "write p50 / p99, ms": _pair(row.writes.p50, row.writes.p99),
        "writes/s, 1 task / 32": f"{row.writes.alone:,.0f} / {row.writes.together:,.0f}",
        "recall@1": "" if row.paraphrases is None else f"{row.paraphrases:.3f}",
        "of itself": "" if row.selves is None else f"{row.selves:.3f}",
        "process + mapped + server, MB": " + ".join(f"{size:,.0f}" for size in memory),
        "indexed after, s": f"{row.indexed:.1f}" if row.indexed >= 0.05 else "",
        "start, s": "" if row.ready is None else f"{row.ready:.2f}",
        "load": f"{row.load:.1f}",
    }


def _pair(p50: float, p99: float) -> str:
    return f"{_short(p50)} / {_short(p99)}"


def _short(milliseconds: float) -> str:
    return f"{milliseconds:.3f}" if milliseconds < 1 else f"{milliseconds:.1f}"


if __name__ == "__main__":
    sys.exit(main())
