"""Tasks that share a round trip."""

import asyncio
import contextlib
from collections.abc import Sequence

import pytest

from backends.redis_rounds import Rounds
from models.errors import BackendError


class Server:
    """Answers a question with itself, ten times; a round at a time is let through by `release`."""

    def __init__(self, *, open_: bool = True) -> None:
        self.rounds: list[list[int]] = []
        self.cancelled = 0
        self._open = asyncio.Event()
        if open_:
            self._open.set()

    def release(self) -> None:
        self._open.set()

    async def send(self, questions: list[int]) -> Sequence[int | Exception]:
        self.rounds.append(questions)
        try:
            await self._open.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return [ValueError(str(question)) if question < 0 else question * 10 for question in questions]


async def test_who_asks_at_the_same_time_shares_a_round() -> None:
    server = Server()
    rounds = Rounds(server.send, at_once=2, most=64)

    answers = await asyncio.gather(*(rounds.ask(number) for number in range(10)))

    assert answers == [number * 10 for number in range(10)]
    assert server.rounds == [list(range(10))]


async def test_a_round_has_a_largest_size_and_rounds_a_largest_number() -> None:
    server = Server(open_=False)
    rounds = Rounds(server.send, at_once=2, most=4)
    asking = [asyncio.create_task(rounds.ask(number)) for number in range(11)]
    await settled()

    underway = list(server.rounds)
    server.release()
    answers = await asyncio.gather(*asking)

    assert underway == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert server.rounds == [*underway, [8, 9, 10]]
    assert answers == [number * 10 for number in range(11)]


async def test_a_refusal_is_told_to_the_one_who_asked() -> None:
    rounds = Rounds(Server().send, at_once=1, most=64)

    answers = await asyncio.gather(rounds.ask(1), rounds.ask(-2), rounds.ask(3), return_exceptions=True)

    assert answers[0] == 10
    assert isinstance(answers[1], ValueError)
    assert answers[2] == 30


async def test_a_failed_round_fails_all_of_it_and_no_other() -> None:
    async def send(questions: list[int]) -> Sequence[int]:
        if 1 in questions:
            raise OSError("gone")
        return questions

    rounds = Rounds(send, at_once=1, most=2)

    answers = await asyncio.gather(*(rounds.ask(number) for number in range(4)), return_exceptions=True)

    assert [type(answer) for answer in answers] == [OSError, OSError, int, int]
    assert await rounds.ask(7) == 7


async def test_a_question_taken_back_in_time_is_not_sent() -> None:
    server = Server(open_=False)
    rounds = Rounds(server.send, at_once=1, most=64)
    first = asyncio.create_task(rounds.ask(1))
    await settled()
    waiting = [asyncio.create_task(rounds.ask(number)) for number in (2, 3)]
    await settled()

    waiting[0].cancel()
    await settled()
    server.release()

    assert await first == 10
    assert await waiting[1] == 30
    assert server.rounds == [[1], [3]]


async def test_a_round_that_nobody_waits_for_is_given_up_and_makes_room() -> None:
    server = Server(open_=False)
    rounds = Rounds(server.send, at_once=1, most=64)
    both = [asyncio.create_task(rounds.ask(number)) for number in (1, 2)]
    await settled()

    both[0].cancel()
    await settled()
    after_one = server.cancelled
    both[1].cancel()
    await settled()
    server.release()

    assert (after_one, server.cancelled) == (0, 1)
    assert await rounds.ask(3) == 30


async def test_a_caller_that_leaves_does_not_take_the_answer_of_another() -> None:
    server = Server(open_=False)
    rounds = Rounds(server.send, at_once=1, most=64)
    asking = [asyncio.create_task(rounds.ask(number)) for number in range(5)]
    await settled()

    asking[2].cancel()
    server.release()
    answers = await asyncio.gather(*asking, return_exceptions=True)

    assert [answers[index] for index in (0, 1, 3, 4)] == [0, 10, 30, 40]
    assert isinstance(answers[2], asyncio.CancelledError)


async def test_over_waits_for_what_was_asked() -> None:
    server = Server(open_=False)
    rounds = Rounds(server.send, at_once=1, most=1)
    asking = [asyncio.create_task(rounds.ask(number)) for number in range(3)]
    await settled()

    over = asyncio.create_task(rounds.over())
    await settled()
    before = over.done()
    server.release()
    await over

    assert before is False
    assert server.rounds == [[0], [1], [2]]
    assert await asyncio.gather(*asking) == [0, 10, 20]


async def test_over_gives_up_what_a_server_does_not_answer() -> None:
    server = Server(open_=False)
    rounds = Rounds(server.send, at_once=1, most=2)
    asking = [asyncio.create_task(rounds.ask(number)) for number in range(5)]
    await settled()

    await rounds.over(within=0.01)

    answers = await asyncio.gather(*asking, return_exceptions=True)
    assert [type(answer) for answer in answers] == [BackendError] * 5
    assert (server.rounds, server.cancelled) == ([[0, 1]], 1)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def settled() -> None:
    """Every task that can go on has."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_round_ended_from_outside_ends_its_callers() -> None:
    server = Server(open_=False)
    rounds = Rounds(server.send, at_once=1, most=64)
    asking = asyncio.create_task(rounds.ask(1))
    await settled()

    for task in asyncio.all_tasks() - {asyncio.current_task(), asking}:
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asking
    server.release()

    assert asking.cancelled()
    with pytest.raises(ValueError, match="-5"):
        await rounds.ask(-5)
