"""Many rows of one namespace, found through an HNSW graph.

A graph is never changed once it is made: what goes is masked out of its
results, what comes is searched elsewhere until a larger graph is grown from
this one. So searches take no lock, and processes share one file.

Vectors stand in it as 16-bit floats, half the memory at the same recall; who
asks compares what was found with the vectors as they were written. Rows whose
16-bit vectors are equal share a node, because a graph of equal nodes falls
apart. Every node is searched for when the graph is made, and those that the
search misses (`strays`) are compared one by one ever after: a vector that is
in it is always found.
"""

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from backends.vector.base import Vector

LINKS = 16  # a node; twice as many on the lowest level
_BREADTH_TO_BUILD = 64
_BREADTH = 128  # recall@1 1.000 for paraphrases among 50,000 random and 100,000 clustered vectors, 0.3 ms
_SPARE = 8  # rounding may put a few in the wrong order
_STEP_ROWS = 512  # added in a tenth of a second
_NEAR = 1e-3  # more than rounding to 16 bits costs a cosine
_import = threading.Lock()


class Part(NamedTuple):
    """Rows to be indexed, by ascending number; `vectors` gives those of a range of them."""

    numbers: NDArray[np.int64]
    expires_at: NDArray[np.float64]
    vectors: Callable[[slice], NDArray[np.float32]]


class Tables(NamedTuple):
    """What belongs to a graph: by row, ascending `numbers`, `expires_at` and `nodes`; by node, `hashes`."""

    numbers: NDArray[np.int64]
    expires_at: NDArray[np.float64]
    nodes: NDArray[np.int32]
    hashes: NDArray[np.uint64]
    strays: NDArray[np.int32]


class Title(NamedTuple):
    """A segment's namespace key, the numbers it covers, and the log's last number when its rows were taken."""

    namespace: bytes
    low: int
    high: int
    built: int

    def covers(self, other: "Title") -> bool:
        within = self.low <= other.low and other.high <= self.high
        return self.namespace == other.namespace and within and (self.built, self.high) > (other.built, other.high)

    def exceeds(self, other: "Title") -> bool:
        """Covers some of the same numbers and others."""
        apart = self.high < other.low or other.high < self.low
        return not apart and not (other.low <= self.low and self.high <= other.high)


class Segment:
    """Every row of a namespace in the numbers of its title. `remove`, `restore`, `expire` need the store's lock."""

    def __init__(self, graph: Any, tables: Tables, title: Title) -> None:
        self.title = title
        self.graph = graph
        self.numbers, self.nodes, self.hashes = tables.numbers, tables.nodes, tables.hashes
        self.expires_at = np.array(tables.expires_at)  # -inf once removed
        self._written = tables.expires_at
        self._by_node = np.argsort(self.nodes, kind="stable").astype(np.int32)
        self._starts = np.searchsorted(self.nodes[self._by_node], np.arange(len(self.hashes) + 1)).astype(np.int32)
        self._strays = tables.strays
        self._stray_vectors = self.vectors_of(tables.strays)
        self._expiring = np.argsort(tables.expires_at, kind="stable")
        self.restore(self.numbers)

    @property
    def live(self) -> int:
        """Rows that were not removed; those past their TTL count until they are."""
        return self._live

    @property
    def worn(self) -> bool:
        """So much of it went that it should be made anew."""
        return 3 * self._live < 2 * max(len(self.numbers), len(self.hashes))

    def has(self, numbers: NDArray[np.int64]) -> bool:
        """All of these, which ascend: alive or removed."""
        return bool(among(numbers, self.numbers).all())

    def restore(self, numbers: NDArray[np.int64]) -> None:
        """Lives from now on: those of its rows that are in `numbers`, which ascend."""
        there = among(self.numbers, numbers)
        self.expires_at[:] = np.where(there, self._written, -math.inf)
        self._live = int(np.count_nonzero(there))
        self._expired = 0
        self._mask_all(there)

    def remove(self, number: int) -> bool:
        row = int(np.searchsorted(self.numbers, number))
        if row == len(self.numbers) or self.numbers[row] != number or self.expires_at[row] == -math.inf:
            return False
        self.expires_at[row] = -math.inf
        self._live -= 1
        self._mask_out(row, now=-math.inf)
        return True

    def expire(self, now: float) -> None:
        """Whatever has expired takes no place in the searches to come."""
        end = int(np.searchsorted(self._written, now, side="right", sorter=self._expiring))
        if end - self._expired > _STEP_ROWS:
            self._mask_all(self.expires_at > now)
        else:
            for row in self._expiring[self._expired : end].tolist():
                self._mask_out(row, now=now)
        self._expired = max(end, self._expired)

    def alive(self) -> NDArray[np.int64]:
        """Numbers that were not removed, ascending."""
        numbers: NDArray[np.int64] = self.numbers[self.expires_at > -math.inf]
        return numbers

    def part(self) -> Part:
        rows = np.flatnonzero(self.expires_at > -math.inf)
        nodes = self.nodes[rows]
        return Part(self.numbers[rows], self.expires_at[rows], lambda some: self.vectors_of(nodes[some]))

    def vectors_of(self, nodes: NDArray[np.int32]) -> NDArray[np.float32]:
        if not len(nodes):
            return np.empty((0, self.graph.d), dtype=np.float32)
        vectors: NDArray[np.float32] = self.graph.storage.reconstruct_batch(nodes.astype(np.int64))
        return vectors

    def closest(self, query: Vector, *, limit: int, now: float) -> list[int]:
        """Numbers of the most similar rows alive at `now`, in no order: the `limit` best are among them."""
        wanted = min(limit + _SPARE, self._alive)
        if limit <= 0 or wanted <= 0:
            return []
        total = len(self.hashes)
        breadth = max(_BREADTH, 2 * wanted) * total // self._alive  # the masked are met on the way too
        found: list[int] = []
        if 4 * breadth <= total and 2 * self._alive >= total:
            found = self._walk(query, wanted, breadth)
        if len(found) < wanted:
            found = self._compare(query, wanted)
        elif len(self._strays):
            similar = np.vecdot(self._stray_vectors, query)
            found += self._strays[np.argsort(-similar)[:wanted]].tolist()
            found = list(dict.fromkeys(found))
        return self._rows(found, now=now)

    def _walk(self, query: Vector, wanted: int, breadth: int) -> list[int]:
        faiss = single_threaded()
        parameters = faiss.SearchParametersHNSW(efSearch=breadth, sel=self._selector(faiss))
        _, nodes = self.graph.search(query[None], wanted, params=parameters)
        found: list[int] = nodes[0][nodes[0] >= 0].tolist()
        return found

    def _compare(self, query: Vector, wanted: int) -> list[int]:
        faiss = single_threaded()
        parameters = faiss.SearchParameters(sel=self._selector(faiss))
        _, nodes = self.graph.storage.search(query[None], wanted, params=parameters)
        found: list[int] = nodes[0][nodes[0] >= 0].tolist()
        return found

    def _selector(self, faiss: Any) -> Any:
        return faiss.IDSelectorBitmap(self._mask)

    def _rows(self, nodes: Sequence[int], *, now: float) -> list[int]:
        numbers: list[int] = []
        for node in nodes:
            rows = self._by_node[self._starts[node] : self._starts[node + 1]]
            numbers += self.numbers[rows[self.expires_at[rows] > now]].tolist()
        return numbers

    def _mask_all(self, rows: NDArray[np.bool_]) -> None:
        """All but the nodes of these."""
        alive = np.zeros(len(self.hashes), dtype=np.bool_)
        alive[self.nodes[rows]] = True
        self._mask = np.packbits(alive, bitorder="little")
        self._alive = int(np.count_nonzero(alive))

    def _mask_out(self, row: int, *, now: float) -> None:
        """The row's node, unless another of its rows lives beyond `now`."""
        node = int(self.nodes[row])
        rows = self._by_node[self._starts[node] : self._starts[node + 1]]
        bit = np.uint8(1 << (node & 7))
        if self._mask[node >> 3] & bit and not (self.expires_at[rows] > now).any():
            self._mask[node >> 3] &= ~bit
            self._alive -= 1


class Interrupted(Exception):
    """The store closes."""


def grow(
    parts: Sequence[Part], *, onto: tuple[Any, Segment] | None, dimensions: int, go_on: Callable[[], bool]
) -> tuple[Any, Tables]:
    """A graph of the rows in `parts`, which ascend; a second for every one or two thousand.

    `onto` is a segment whose rows come first, and a copy of its graph to be
    added to. Raises `Interrupted` when `go_on` says no.
    """
    faiss = single_threaded()
    if onto is None:
        quantizer = faiss.ScalarQuantizer.QT_fp16
        graph = faiss.IndexHNSWSQ(dimensions, quantizer, LINKS, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = _BREADTH_TO_BUILD
        head, hashes = [], [np.empty(0, dtype=np.uint64)]
    else:
        graph, old = onto
        rows = np.flatnonzero(old.expires_at > -math.inf)
        head, hashes = [(old.numbers[rows], old.expires_at[rows], old.nodes[rows])], [old.hashes]
    known = len(hashes[0])
    hashes += [_hashes(vectors) for vectors in _steps(parts, go_on)]
    every = np.concatenate(hashes)
    _, first, inverse = np.unique(every, return_index=True, return_inverse=True)
    nodes = np.argsort(np.argsort(first))[inverse].astype(np.int32)
    new = (first[inverse] == np.arange(len(every)))[known:]
    at = 0
    for vectors in _steps(parts, go_on):
        some = vectors[new[at : at + len(vectors)]]
        if len(some):
            graph.add(some)
        at += len(vectors)
    columns = [*head, (*_columns(parts), nodes[known:])]
    numbers, expires_at, node_of = (np.concatenate(column) for column in zip(*columns, strict=True))
    strays = _strays(graph, faiss, go_on)
    return graph, Tables(numbers, expires_at, node_of, every[np.sort(first)], strays)


def single_threaded() -> Any:
    """FAISS, imported where rows are many: 37 MB, and 0.09 s during which no other thread runs."""
    with _import:
        faiss = import_module("faiss")
    faiss.omp_set_num_threads(1)  # of the calling thread: the cores are the workers'
    return faiss


def among(numbers: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of `numbers` are in `others`; both ascend."""
    if not len(others):
        return np.zeros(len(numbers), dtype=np.bool_)
    at = np.minimum(np.searchsorted(others, numbers), len(others) - 1)
    there: NDArray[np.bool_] = others[at] == numbers
    return there


def _steps(parts: Sequence[Part], go_on: Callable[[], bool]) -> Iterator[NDArray[np.float32]]:
    for part in parts:
        for start in range(0, len(part.numbers), _STEP_ROWS):
            if not go_on():
                raise Interrupted
            yield np.ascontiguousarray(part.vectors(slice(start, start + _STEP_ROWS)))


def _columns(parts: Sequence[Part]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    numbers = [np.empty(0, dtype=np.int64), *(part.numbers for part in parts)]
    return np.concatenate(numbers), np.concatenate([np.empty(0), *(part.expires_at for part in parts)])


def _hashes(vectors: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Equal for vectors that are equal in 16 bits; that two others are is one chance in 10^19."""
    factors = np.random.default_rng(_STEP_ROWS).integers(1, 2**63, vectors.shape[1], dtype=np.uint64) * np.uint64(2) + 1
    words = (vectors.astype(np.float16) + np.float16(0)).view(np.uint16).astype(np.uint64)  # -0 is 0
    mixed = words * factors
    mixed ^= mixed >> np.uint64(29)
    hashes: NDArray[np.uint64] = (mixed * np.uint64(0x9E3779B97F4A7C15)).sum(axis=1, dtype=np.uint64)
    return hashes


def _strays(graph: Any, faiss: Any, go_on: Callable[[], bool]) -> NDArray[np.int32]:
    """Nodes that do not find themselves. A wide search goes wherever a narrow one goes, so most are done with that."""
    suspects = np.arange(graph.ntotal)
    for breadth in (_BREADTH // 4, _BREADTH):
        parameters = faiss.SearchParametersHNSW(efSearch=breadth)
        missed = [np.empty(0, dtype=np.int64)]
        for start in range(0, len(suspects), _STEP_ROWS):
            if not go_on():
                raise Interrupted
            nodes = suspects[start : start + _STEP_ROWS]
            vectors = graph.storage.reconstruct_batch(nodes)
            similarities, _ = graph.search(vectors, 1, params=parameters)
            missed.append(nodes[similarities[:, 0] < np.vecdot(vectors, vectors) - _NEAR])
        suspects = np.concatenate(missed)
    return suspects.astype(np.int32)
