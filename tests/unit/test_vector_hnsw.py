"""Segments: what a graph of rows finds, whatever went, expired or is there twice."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from backends.vector import snapshot
from backends.vector.hnsw import Interrupted, Part, Segment, Title, grow

DIMENSIONS = 64
NAMESPACE = bytes(range(16))
IDENTITY = bytes(16)
Rows = NDArray[np.float32]


def random_units(count: int, *, seed: int) -> Rows:
    rows = np.random.default_rng(seed).standard_normal((count, DIMENSIONS), dtype=np.float32)
    unit: Rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def near(rows: Rows, *, seed: int) -> Rows:
    """Of cosine 0.8 or so to the row in the same place."""
    mixed = rows + random_units(len(rows), seed=seed) * np.float32(0.7)
    unit: Rows = mixed / np.linalg.norm(mixed, axis=1, keepdims=True)
    return unit


def clustered_units(count: int, *, seed: int) -> Rows:
    return near(np.repeat(random_units(count // 20, seed=seed), 20, axis=0), seed=seed + 1)


def part(rows: Rows, *, first: int = 1, expires_at: float = math.inf) -> Part:
    numbers = np.arange(first, first + len(rows), dtype=np.int64)
    return Part(numbers, np.full(len(rows), expires_at), lambda some: rows[some])


def segment_of(*parts: Part) -> Segment:
    graph, tables = grow(parts, onto=None, dimensions=DIMENSIONS, go_on=lambda: True)
    return Segment(graph, tables, Title(NAMESPACE, 0, int(tables.numbers[-1]), 0))


def first_found(segment: Segment, rows: Rows, query: NDArray[np.float32], *, now: float = 0.0) -> int:
    """The number of the best, as the store ranks what a segment found."""
    found = segment.closest(query, limit=1, now=now)
    return max(found, key=lambda number: (float(np.vecdot(rows[number - 1], query)), -number))


@pytest.mark.parametrize("make", [random_units, clustered_units])
def test_finds_the_best_as_often_as_comparing_all(make: Callable[..., Rows]) -> None:
    rows = make(3_000, seed=1)
    segment = segment_of(part(rows))
    queries = near(rows[::10], seed=3)

    found = [first_found(segment, rows, query) for query in queries]

    best = np.argmax(queries @ rows.T, axis=1) + 1
    assert np.mean(found == best) >= 0.99


def test_every_row_finds_itself() -> None:
    rows = clustered_units(2_000, seed=4)
    segment = segment_of(part(rows[:1_500]), part(rows[1_500:], first=1_501))

    assert [first_found(segment, rows, row) for row in rows] == list(range(1, 2_001))


def test_rows_that_went_take_no_place() -> None:
    rows = random_units(3_000, seed=5)
    segment = segment_of(part(rows))
    gone = set(range(1, 3_001, 3))

    removed = [segment.remove(number) for number in gone]
    found = [segment.closest(row, limit=5, now=0) for row in rows[:300]]

    assert all(removed)
    assert not any(segment.remove(number) for number in gone)
    assert not any(gone.intersection(numbers) for numbers in found)
    assert all(len(numbers) >= 5 for numbers in found)
    assert segment.live == 2_000
    assert not segment.worn
    segment.remove(2)
    assert segment.worn


@pytest.mark.parametrize("left", [1, 10, 1_000])
def test_the_few_that_are_left_are_all_found(left: int) -> None:
    rows = random_units(2_000, seed=6)
    segment = segment_of(part(rows))
    for number in range(1, 2_001 - left):
        segment.remove(number)

    found = segment.closest(rows[0], limit=left, now=0)

    assert set(found) == set(range(2_001 - left, 2_001))


@pytest.mark.parametrize("brief", [100, 1_900])  # one by one, and all at once
def test_expired_rows_take_no_place(brief: int) -> None:
    rows = random_units(2_000, seed=7)
    segment = segment_of(part(rows[:brief], expires_at=10.0), part(rows[brief:], first=brief + 1))

    before = set(segment.closest(rows[0], limit=2_000, now=9.9))
    segment.expire(10.0)
    after = set(segment.closest(rows[0], limit=2_000, now=10.0))

    assert before == set(range(1, 2_001))
    assert after == set(range(brief + 1, 2_001))


def test_equal_rows_are_all_found_and_live_on_without_each_other() -> None:
    rows = np.concatenate([random_units(1_000, seed=8), np.tile(random_units(1, seed=9), (500, 1))])
    segment = segment_of(part(rows))

    assert set(segment.closest(rows[1_000], limit=500, now=0)) >= set(range(1_001, 1_501))
    for number in range(1_001, 1_500):
        segment.remove(number)
    assert 1_500 in segment.closest(rows[1_000], limit=1, now=0)
    segment.remove(1_500)
    assert max(segment.closest(rows[1_000], limit=1, now=0)) <= 1_000


def test_a_segment_read_from_its_file_can_be_grown(tmp_path: Path) -> None:
    rows = random_units(2_500, seed=10)
    rows[2_400] = rows[100]
    graph, tables = grow([part(rows[:2_000])], onto=None, dimensions=DIMENSIONS, go_on=lambda: True)
    title = Title(NAMESPACE, 0, 2_000, 2_000)
    snapshot.write(tmp_path, title, graph, tables, identity=IDENTITY)
    old = snapshot.read(tmp_path, title, identity=IDENTITY, dimensions=DIMENSIONS)
    old.remove(7)

    onto = (snapshot.copy_of_graph(tmp_path, title), old)
    graph, tables = grow([part(rows[2_000:], first=2_001)], onto=onto, dimensions=DIMENSIONS, go_on=lambda: True)
    grown = Segment(graph, tables, Title(NAMESPACE, 0, 2_500, 2_500))

    assert grown.live == 2_499
    assert first_found(grown, rows, rows[6]) != 7
    assert set(grown.closest(rows[100], limit=1, now=0)) >= {101, 2_401}
    assert all(first_found(grown, rows, rows[n]) == n + 1 for n in range(2_000, 2_400))


def test_growing_stops_when_told() -> None:
    with pytest.raises(Interrupted):
        grow([part(random_units(2_000, seed=11))], onto=None, dimensions=DIMENSIONS, go_on=lambda: False)


@pytest.fixture
def written(tmp_path: Path) -> Title:
    graph, tables = grow([part(random_units(600, seed=12))], onto=None, dimensions=DIMENSIONS, go_on=lambda: True)
    title = Title(NAMESPACE, 0, 600, 600)
    snapshot.write(tmp_path, title, graph, tables, identity=IDENTITY)
    return title


def test_a_file_damaged_anywhere_is_unusable(tmp_path: Path, written: Title) -> None:
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    places = [0, 30, len(whole) // 2, len(whole) - 200, len(whole) - 3]

    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        file.write_bytes(damaged)
        with pytest.raises(snapshot.Unusable):
            snapshot.read(tmp_path, written, identity=IDENTITY, dimensions=DIMENSIONS)
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(snapshot.Unusable):
            snapshot.read(tmp_path, written, identity=IDENTITY, dimensions=DIMENSIONS)


def test_a_file_of_another_log_or_width_is_unusable(tmp_path: Path, written: Title) -> None:
    for identity, dimensions in ((b"another identity", DIMENSIONS), (IDENTITY, DIMENSIONS + 1)):
        with pytest.raises(snapshot.Unusable, match="other entries"):
            snapshot.read(tmp_path, written, identity=identity, dimensions=dimensions)
    with pytest.raises(snapshot.Unusable):
        snapshot.read(tmp_path, written._replace(high=601), identity=IDENTITY, dimensions=DIMENSIONS)


def test_what_a_later_segment_covers_is_passed_over(tmp_path: Path) -> None:
    titles = [
        Title(NAMESPACE, 0, 10, 10),
        Title(NAMESPACE, 11, 20, 20),
        Title(NAMESPACE, 0, 20, 25),
        Title(NAMESPACE, 21, 30, 30),
        Title(bytes(16), 0, 10, 10),
    ]
    graph, tables = grow([part(random_units(10, seed=13))], onto=None, dimensions=DIMENSIONS, go_on=lambda: True)
    for title in titles:
        snapshot.write(tmp_path, title, graph, tables, identity=IDENTITY)
    (tmp_path / "other").touch()

    found = snapshot.titles(tmp_path)
    snapshot.remove_all_but(tmp_path, set(found[:1]))

    assert found == [titles[4], titles[2], titles[3]]
    assert snapshot.titles(tmp_path) == found[:1]
    assert (tmp_path / "other").exists()
