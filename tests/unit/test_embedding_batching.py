"""Sharing, order and abandonment of embeddings under way."""

import asyncio
import threading
from collections.abc import Callable

import numpy as np
import pytest

from backends.embedding.batching import Batches, Memory, OneThread, SharedEmbeddings, Vector, unit
from models.errors import BackendError, TextRefused


class Desk:
    """Where texts are begun; the test finishes them."""

    def __init__(self) -> None:
        self.begun: dict[str, asyncio.Future[Vector]] = {}
        self.order: list[str] = []

    def begin(self, text: str) -> asyncio.Future[Vector]:
        self.order.append(text)
        self.begun[text] = asyncio.get_running_loop().create_future()
        return self.begun[text]

    def finish(self, text: str) -> None:
        self.begun[text].set_result(row(text))


def row(text: str) -> Vector:
    return np.array([len(text), 1.0], np.float32)


def shared(
    begin: Callable[[str], asyncio.Future[Vector]], *, waiting: int = 10, remembered: int = 0
) -> SharedEmbeddings:
    memory = Memory(texts=remembered, size=10_000) if remembered else None
    return SharedEmbeddings(begin, waiting=waiting, memory=memory)


async def asked(embeddings: SharedEmbeddings, *texts: str) -> asyncio.Task[list[Vector]]:
    """A caller that has asked and now waits."""
    task = asyncio.create_task(embeddings.embed(texts))
    await asyncio.sleep(0)
    return task


async def test_a_text_asked_for_by_three_is_begun_once() -> None:
    desk = Desk()
    embeddings = shared(desk.begin)
    callers = [await asked(embeddings, "a"), await asked(embeddings, "a", "bb"), await asked(embeddings, "bb", "a")]

    desk.finish("a")
    desk.finish("bb")

    assert [[int(v[0]) for v in await caller] for caller in callers] == [[1], [1, 2], [2, 1]]
    assert desk.order == ["a", "bb"]


async def test_a_text_goes_on_while_one_caller_still_waits() -> None:
    desk = Desk()
    embeddings = shared(desk.begin)
    leaving, staying = await asked(embeddings, "a"), await asked(embeddings, "a")

    leaving.cancel()
    await asyncio.wait([leaving])
    desk.finish("a")

    assert (await staying)[0][0] == 1


async def test_a_text_that_nobody_waits_for_is_cancelled_and_begun_anew_when_asked_again() -> None:
    desk = Desk()
    embeddings = shared(desk.begin)
    leaving = await asked(embeddings, "a")
    first = desk.begun["a"]

    leaving.cancel()
    await asyncio.wait([leaving])
    again = await asked(embeddings, "a")
    desk.finish("a")

    assert first.cancelled()
    assert (await again)[0][0] == 1
    assert desk.order == ["a", "a"]


async def test_an_error_reaches_everyone_who_waits_and_is_not_remembered() -> None:
    desk = Desk()
    embeddings = shared(desk.begin, remembered=10)
    callers = [await asked(embeddings, "a", "bb"), await asked(embeddings, "a")]

    desk.begun["a"].set_exception(BackendError("the model failed"))
    outcomes = await asyncio.gather(*callers, return_exceptions=True)
    again = await asked(embeddings, "a")
    desk.finish("a")

    assert [str(outcome) for outcome in outcomes] == ["the model failed"] * 2
    assert desk.begun["bb"].cancelled()
    assert (await again)[0][0] == 1


async def test_too_many_texts_are_refused_at_once_and_leave_nothing_behind() -> None:
    desk = Desk()
    embeddings = shared(desk.begin, waiting=2)
    waiting = await asked(embeddings, "a")

    with pytest.raises(BackendError, match="2 texts wait"):
        await embeddings.embed(["bb", "ccc"])

    assert desk.begun["bb"].cancelled()
    joined = await asked(embeddings, "a", "dddd")
    desk.finish("a")
    desk.finish("dddd")
    assert [len(await caller) for caller in (waiting, joined)] == [1, 2]


async def test_the_texts_used_last_are_remembered() -> None:
    desk = Desk()
    embeddings = shared(desk.begin, remembered=2)
    for text in ("a", "bb", "a", "ccc", "a", "bb"):
        caller = await asked(embeddings, text)
        if not caller.done():
            desk.finish(text)
        await caller

    # The second "a" kept it young, so "ccc" put "bb" out.
    assert desk.order == ["a", "bb", "ccc", "bb"]


async def test_one_thread_works_in_order_and_skips_what_was_abandoned() -> None:
    done: list[str] = []
    gate = threading.Event()

    def work(text: str) -> Vector:
        gate.wait(10)
        done.append(text)
        return row(text)

    thread = OneThread(work, name="test")
    embeddings = shared(thread.begin)
    callers = [await asked(embeddings, text) for text in ("first", "abandoned", "third")]

    callers[1].cancel()
    await asyncio.wait([callers[1]])
    gate.set()
    await callers[2]
    await thread.close()

    assert done == ["first", "third"]


async def test_closing_tells_waiters_that_it_was_closed_not_that_they_were_cancelled() -> None:
    gate = threading.Event()

    def work(text: str) -> Vector:
        gate.wait(10)
        return row(text)

    thread = OneThread(work, name="test")
    embeddings = shared(thread.begin)
    running, queued = await asked(embeddings, "a"), await asked(embeddings, "bb")

    closing = asyncio.create_task(thread.close())
    await asyncio.wait([queued])
    gate.set()
    await closing

    assert (await running)[0][0] == 1
    with pytest.raises(BackendError, match="closed"):
        await queued
    with pytest.raises(BackendError, match="closed"):
        await embeddings.embed(["ccc"])


class FarSide:
    """Receives batches; refuses those with `bad` in them; answers when `open`."""

    def __init__(self) -> None:
        self.received: list[list[str]] = []
        self.open = asyncio.Event()
        self.open.set()
        self.cancelled = 0
        self.called = asyncio.Event()

    async def send(self, texts: list[str]) -> list[Vector]:
        self.received.append(texts)
        self.called.set()
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if "bad" in texts:
            raise TextRefused("no")
        return [row(text) for text in texts]


async def test_texts_that_wait_together_share_calls_of_bounded_size() -> None:
    far = FarSide()
    embeddings = shared(Batches(far.send, size=2, calls=1).begin)

    await asyncio.gather(embeddings.embed(["a", "bb"]), embeddings.embed(["ccc"]), embeddings.embed(["a"]))

    assert far.received == [["a", "bb"], ["ccc"]]


async def test_a_refused_text_fails_alone() -> None:
    far = FarSide()
    embeddings = shared(Batches(far.send, size=10, calls=1).begin)

    good, bad = await asyncio.gather(embeddings.embed(["a", "bb"]), embeddings.embed(["bad"]), return_exceptions=True)

    assert not isinstance(good, BaseException)
    assert [int(vector[0]) for vector in good] == [1, 2]
    assert isinstance(bad, TextRefused)


async def test_a_call_whose_callers_all_left_is_cancelled_and_makes_room() -> None:
    far = FarSide()
    far.open.clear()
    embeddings = shared(Batches(far.send, size=10, calls=1).begin)
    leaving = [await asked(embeddings, "a"), await asked(embeddings, "bb")]
    await far.called.wait()

    for caller in leaving:
        caller.cancel()
    await asyncio.wait(leaving)
    far.open.set()

    assert len(await embeddings.embed(["ccc"])) == 1
    assert far.cancelled == 1


async def test_closing_ends_calls_in_flight() -> None:
    far = FarSide()
    far.open.clear()
    batches = Batches(far.send, size=10, calls=1)
    embeddings = shared(batches.begin)
    waiting = await asked(embeddings, "a")
    await far.called.wait()

    await batches.close()

    with pytest.raises(BackendError, match="closed"):
        await waiting
    assert far.cancelled == 1


@pytest.mark.parametrize("vector", [[0.0, 0.0], [float("nan"), 1.0], [float("inf"), 1.0]])
def test_a_vector_without_direction_is_an_error(vector: list[float]) -> None:
    with pytest.raises(BackendError, match="no direction"):
        unit(np.array(vector))
