"""What many tasks ask of a server at the same time, in one round trip."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from itertools import chain
from typing import Generic, TypeVar

from models.errors import BackendError

_OVER_SECONDS = 5.0  # what a server may take for one answer

Question = TypeVar("Question")
Answer = TypeVar("Answer")


class Rounds(Generic[Question, Answer]):
    """Who asks while `at_once` rounds are on their way goes with the next one, at most `most` together.

    `send` answers in the order it was asked; an answer that is an exception is
    raised to the one who asked, what `send` raises to all of its round. A
    question taken back (by cancellation) before its round began is not sent. A
    round that nobody waits for any more is cancelled.
    """

    def __init__(
        self,
        send: Callable[[list[Question]], Awaitable[Sequence[Answer | Exception]]],
        *,
        at_once: int,
        most: int,
    ) -> None:
        self._send = send
        self._at_once = at_once
        self._most = most
        self._waiting: deque[_Asked[Question, Answer]] = deque()
        self._beginning = False
        self._rounds: dict[asyncio.Task[Sequence[Answer | Exception]], _Round[Question, Answer]] = {}

    async def ask(self, question: Question) -> Answer:
        asked: _Asked[Question, Answer] = _Asked(question)
        self._waiting.append(asked)
        self._begin()
        try:
            return await asked.answer
        except asyncio.CancelledError:
            if asked.round is not None:
                asked.round.leave()
            raise

    async def over(self, *, within: float = _OVER_SECONDS) -> None:
        """Returns when everything asked before was answered: what the server did not in that time, in seconds, is
        answered with a `BackendError`."""
        end = time.monotonic() + within
        while self._rounds and (left := end - time.monotonic()) > 0:
            await asyncio.wait(self._rounds, timeout=left)
        for asked in chain(self._waiting, *(this.asked for this in self._rounds.values())):
            if not asked.answer.done():
                asked.answer.set_exception(BackendError("given up as the store was closed"))
        self._waiting.clear()
        for task in self._rounds:
            task.cancel()
        if self._rounds:
            await asyncio.wait(self._rounds)

    def _begin(self) -> None:
        # A round takes its questions when its task runs: all that were asked in this turn of the loop.
        if self._waiting and not self._beginning and len(self._rounds) < self._at_once:
            self._beginning = True
            this: _Round[Question, Answer] = _Round()
            this.task = asyncio.get_running_loop().create_task(self._go(this))
            self._rounds[this.task] = this
            this.task.add_done_callback(lambda task: self._end(this, task))

    async def _go(self, this: "_Round[Question, Answer]") -> Sequence[Answer | Exception]:
        self._beginning = False
        while self._waiting and len(this.asked) < self._most:
            asked = self._waiting.popleft()
            if not asked.answer.done():
                asked.round = this
                this.asked.append(asked)
        self._begin()
        this.waited_for = len(this.asked)
        return await self._send([asked.question for asked in this.asked]) if this.asked else []

    def _end(self, this: "_Round[Question, Answer]", task: "asyncio.Task[Sequence[Answer | Exception]]") -> None:
        del self._rounds[task]
        if task.cancelled():
            self._beginning = self._beginning and bool(this.asked)  # it may have been cancelled before it began
            for asked in this.asked:
                asked.answer.cancel()
        else:
            failure = task.exception()
            answers = task.result() if failure is None else [failure] * len(this.asked)
            for asked, answer in zip(this.asked, answers, strict=True):
                if asked.answer.done():
                    continue
                if isinstance(answer, BaseException):
                    asked.answer.set_exception(answer)
                else:
                    asked.answer.set_result(answer)
        self._begin()


class _Asked(Generic[Question, Answer]):
    __slots__ = ("answer", "question", "round")

    def __init__(self, question: Question) -> None:
        self.question = question
        self.answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.round: _Round[Question, Answer] | None = None


class _Round(Generic[Question, Answer]):
    def __init__(self) -> None:
        self.task: asyncio.Task[Sequence[Answer | Exception]] | None = None
        self.asked: list[_Asked[Question, Answer]] = []
        self.waited_for = 0

    def leave(self) -> None:
        self.waited_for -= 1
        if self.waited_for == 0 and self.task is not None:
            self.task.cancel()
