"""Stored questions under another embedder: all of them, as they were kept, at a bounded pace, whatever fails."""

import asyncio
import fcntl
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from backends.embedding.base import Role
from backends.exact.memory import MemoryStore
from backends.vector.base import Vector
from backends.vector.flat import FlatStore
from models.errors import BackendError, StoreFull, TextTooLong
from service.caching.stored import StoredQuestion, payload, read
from service.pipeline import reembedding
from service.pipeline.reembedding import Attempts, Both, Made, Reembedding, left_behind, note
from service.telemetry.metrics import Metrics

HERE = "default/everyone/n"
HOME = "default/everyone"
OLD = np.array([1.0, 0.0], np.float32)
NOW = 1000.0


class Time:
    """Passes when somebody sleeps or works, and only then."""

    def __init__(self) -> None:
        self.now = NOW
        self.slept = 0.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += seconds
        await asyncio.sleep(0)


class Words:
    """Three dimensions out of a text's length. `fails` calls fail first, and `poison` always."""

    revision, dimensions = "words/1", 3

    def __init__(self, time: Time, *, fails: int = 0, takes: float = 0.0, poison: str = "\0") -> None:
        self.texts: list[str] = []
        self.role: Role | None = None
        self._time = time
        self._fails = fails
        self._takes = takes
        self._poison = poison

    async def load(self) -> None:
        self._stumble()

    async def embed(self, texts: Sequence[str], *, role: Role) -> NDArray[np.float32]:
        self._stumble()
        self.role = role
        if any(self._poison in text for text in texts):
            raise BackendError("it has no direction")
        if any(len(text) > 40 for text in texts):
            raise TextTooLong("beyond the window")
        self._time.now += self._takes * len(texts)
        self.texts += texts
        rows: NDArray[np.float32] = np.array([[len(text), 1.0, 0.0] for text in texts], np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return rows

    async def close(self) -> None:
        """Nothing to close."""

    def _stumble(self) -> None:
        if self._fails:
            self._fails -= 1
            raise BackendError("not yet")


class FullAtFirst(FlatStore):
    full = 2

    async def upsert(self, namespace: str, entry_id: str, vector: Vector, payload: bytes, *, ttl: float | None) -> None:
        if self.full:
            self.full -= 1
            raise StoreFull("no room")
        await super().upsert(namespace, entry_id, vector, payload, ttl=ttl)


class Move:
    """A move between two stores of their own, whose time is `time`."""

    def __init__(self, directory: Path) -> None:
        self.time = Time()
        self.metrics = Metrics()
        self.exact = MemoryStore(clock=self.time)
        self.old = FlatStore(dimensions=2, clock=self.time)
        self.new = FlatStore(dimensions=3, clock=self.time)
        self.embedder = Words(self.time)
        self.lock = directory / "lock"

    async def keeps(self, *texts: str, ttl: float | None = 60.0) -> None:
        for text in texts:
            await self.exact.put(HOME, text, b"an answer", ttl=ttl)
            await self.old.upsert(HERE, text, OLD, payload(StoredQuestion(text, b"sketch")), ttl=ttl)

    def begin(self, *, both: Both | None = None) -> Reembedding:
        move = Reembedding(
            self.embedder,
            self.new,
            [self.old],
            self.exact,
            lock=self.lock,
            attempts=Attempts(self.metrics, sleep=self.time.sleep),
            metrics=self.metrics,
            clock=self.time,
            timer=self.time,
            sleep=self.time.sleep,
        )
        move.both = both
        return move

    async def found(self) -> dict[str, float]:
        """What the new store has, and until when."""
        return {stored.entry_id: stored.expires_at async for stored in self.new.entries("")}

    def degraded(self) -> float:
        return self.metrics.degraded.state()[("reembedding",)]


async def until(reached: Callable[[], bool]) -> None:
    while not reached():  # noqa: ASYNC110 - time stands still but for who works
        await asyncio.sleep(0)


@pytest.fixture
def here(tmp_path: Path) -> Move:
    return Move(tmp_path)


async def test_every_question_is_found_under_the_new_embedder_as_long_as_before(here: Move) -> None:
    await here.keeps("a", "bb", ttl=60.0)
    await here.keeps("ccc", ttl=None)
    here.time.now += 20

    await here.begin().run()

    assert await here.found() == pytest.approx({"a": NOW + 60, "bb": NOW + 60, "ccc": float("inf")})
    (nearest,) = await here.new.nearest(HERE, np.array([0.9, 0.4, 0.0], np.float32), limit=1)
    assert read(nearest.payload) == StoredQuestion("bb", b"sketch")
    assert here.embedder.role == "document"


async def test_more_questions_than_one_step_takes_are_all_found(here: Move) -> None:
    texts = [f"question {number}" for number in range(1000)]
    await here.keeps(*texts)

    move = here.begin()
    await move.run()

    assert sorted(await here.found()) == sorted(texts)
    assert (move.state, move.embedded, move.remaining) == ("done", 1000, 0)


async def test_what_is_there_already_is_not_embedded_again(here: Move) -> None:
    await here.keeps("a", "bb")
    await here.begin().run()
    await here.keeps("ccc")

    await here.begin().run()

    assert sorted(here.embedder.texts) == ["a", "bb", "ccc"]


async def test_what_was_kept_for_longer_since_is_brought_again(here: Move) -> None:
    await here.keeps("a", ttl=60.0)
    await here.begin().run()
    await here.keeps("a", ttl=600.0)

    await here.begin().run()

    assert await here.found() == pytest.approx({"a": NOW + 600})


async def test_a_text_that_is_refused_is_counted_and_left_out(here: Move) -> None:
    await here.keeps("a", "b" * 41, "ccc")

    move = here.begin()
    await move.run()

    assert sorted(await here.found()) == ["a", "ccc"]
    assert (move.embedded, move.refused) == (2, 1)


async def test_what_leads_to_no_answer_stays_behind(here: Move) -> None:
    await here.keeps("a", "bb", "ccc")
    await here.exact.delete(HOME, "a")
    await here.exact.delete(HOME, "bb")
    alias = payload(StoredQuestion("bb", alias_of="ccc"))
    await here.old.upsert(HERE, "bb", OLD, alias, ttl=60.0)

    await here.begin().run()

    assert sorted(await here.found()) == ["bb", "ccc"]


async def test_an_embedder_that_fails_for_a_while_is_asked_again(here: Move) -> None:
    here.embedder = Words(here.time, fails=9)
    await here.keeps("a", "bb", ttl=None)
    move = here.begin()

    loading = asyncio.create_task(move.load())
    await until(lambda: here.degraded() == 1)
    await loading
    recovered = here.degraded()
    await move.run()

    assert recovered == 0
    assert sorted(await here.found()) == ["a", "bb"]
    assert move.refused == 0


async def test_an_embedder_that_goes_down_midway_costs_no_question(here: Move) -> None:
    here.embedder = Words(here.time, fails=20)
    await here.keeps(*(f"question {number}" for number in range(20)), ttl=None)

    move = here.begin()
    await move.run()

    assert (move.embedded, move.refused, here.degraded()) == (20, 0, 0)


async def test_a_text_that_always_fails_does_not_hold_up_the_others(here: Move) -> None:
    here.embedder = Words(here.time, poison="☠")
    await here.keeps("a", "☠", "ccc", ttl=None)

    move = here.begin()
    await move.run()

    assert sorted(await here.found()) == ["a", "ccc"]
    assert (move.refused, here.degraded()) == (1, 0)


async def test_a_full_store_is_written_to_again(tmp_path: Path) -> None:
    here = Move(tmp_path)
    here.new = FullAtFirst(dimensions=3, clock=here.time)
    await here.keeps("a")

    await here.begin().run()

    assert sorted(await here.found()) == ["a"]
    assert here.degraded() == 0


async def test_it_works_no_more_than_half_of_the_time(here: Move) -> None:
    here.embedder = Words(here.time, takes=0.01)
    await here.keeps(*(f"question {number}" for number in range(100)), ttl=None)

    await here.begin().run()

    assert here.time.slept >= 100 * 0.01


async def test_what_remains_is_told_and_ends_at_nothing(here: Move) -> None:
    await here.keeps(*(f"question {number}" for number in range(100)), ttl=None)
    told = set()
    move = here.begin()
    running = asyncio.create_task(move.run())
    while not running.done():
        told.add(here.metrics.reembedding_remaining.state()[()])
        await asyncio.sleep(0)

    assert max(told) > 50
    assert {move.remaining, here.metrics.reembedding_remaining.state()[()]} == {0}


async def test_what_is_written_meanwhile_is_in_both(here: Move) -> None:
    both = Both(here.old, here.new, clock=here.time)
    await here.keeps("a")
    move = here.begin(both=both)
    await move.run()
    await here.exact.put(HOME, "bb", b"an answer", ttl=60.0)

    await both.upsert(HERE, "bb", OLD, payload(StoredQuestion("bb")), ttl=60.0)
    before = await here.found()
    await move.settle()

    assert sorted(before) == ["a"]
    assert sorted(await here.found()) == ["a", "bb"]
    assert [near.entry_id for near in await both.nearest(HERE, OLD, limit=2)] == ["a", "bb"]


async def test_what_goes_meanwhile_goes_from_both(here: Move) -> None:
    both = Both(here.old, here.new, clock=here.time)
    await here.keeps("a", "bb", "ccc")
    move = here.begin(both=both)
    await move.run()
    await both.upsert(HERE, "dddd", OLD, payload(StoredQuestion("dddd")), ttl=60.0)

    await both.delete(HERE, "a")
    await both.delete(HERE, "dddd")
    await move.settle()
    after = sorted(await here.found())
    cleared = await both.clear("default")

    assert after == ["bb", "ccc"]
    assert cleared == 2
    assert not await here.found()
    assert both.owes == 0


async def test_more_writes_than_are_noted_cost_another_pass_and_no_question(
    here: Move, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reembedding, "_OWED", 2)
    both = Both(here.old, here.new, clock=here.time)
    for text in ("a", "bb", "ccc", "dddd"):
        await here.exact.put(HOME, text, b"an answer", ttl=60.0)
        await both.upsert(HERE, text, OLD, payload(StoredQuestion(text)), ttl=60.0)
    noted = both.owes

    await here.begin(both=both).run()

    assert noted == 2
    assert sorted(await here.found()) == ["a", "bb", "ccc", "dddd"]
    assert not both.lost


async def test_one_process_at_a_time_does_it(here: Move) -> None:
    await here.keeps("a")
    other = os.open(here.lock, os.O_RDWR | os.O_CREAT)
    fcntl.flock(other, fcntl.LOCK_EX)
    move = here.begin()

    running = asyncio.create_task(move.run())
    await until(lambda: move.state == "waiting")
    embedded = list(here.embedder.texts)
    os.close(other)
    await running

    assert embedded == []
    assert here.embedder.texts == ["a"]


async def test_an_empty_store_is_done_at_once(here: Move) -> None:
    move = here.begin()

    await move.run()

    assert (move.state, move.embedded) == ("done", 0)


def test_what_was_served_before_is_left_behind(tmp_path: Path) -> None:
    file, one, two, three = tmp_path / "embedders.json", Made("one/1", 2), Made("two/1", 3), Made("three/1", 4)
    note(file, one, [])

    same, other = left_behind(file, one), left_behind(file, two)
    note(file, two, other)
    third, back = left_behind(file, three), left_behind(file, one)

    assert (same, other, third, back) == ([], [one], [two, one], [two])


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"serving": ["a"]}', b"\xff\xfe", None])
def test_a_note_that_cannot_be_read_leaves_nothing_behind(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "embedders.json"
    if content is not None:
        file.write_bytes(content)

    assert left_behind(file, Made("one/1", 2)) == []


def test_a_note_that_cannot_be_written_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    note(tmp_path / "nowhere" / "embedders.json", Made("one/1", 2), [])

    assert "embedders.json cannot be written" in caplog.text
