"""A judge's opinion on the best candidates, within a deadline. Without one, the verifier decides alone.

Whatever goes wrong here changes nothing: an opinion that is late, refused,
malformed or not to be had is none.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

import msgspec

from backends.judging.base import Judge
from backends.upstream.base import Call, Upstream
from models.errors import BackendError, ConfigError, GatewayError, TextRefused
from service.caching.second_opinion import DEFAULT, Weights, undecided, weighed
from service.pipeline.health import READING, Health
from service.telemetry.metrics import Metrics

_RELOAD_EVERY = 30.0


class SecondOpinion:
    """`deadline` in seconds, for all candidates of one look-up together."""

    def __init__(self, judge: Judge, *, weights: Weights = DEFAULT, deadline: float, metrics: Metrics) -> None:
        self._judge = judge
        self._weights = weights
        self._deadline = deadline
        self._health = Health("second_opinion", metrics)
        self._loaded = False
        # Part of what an endpoint's certificate is for.
        self.revision = f"{judge.revision}+{weights.revision}"

    async def load(self) -> None:
        """Loads the judge, trying again while it cannot be. Runs until it is there; until then nobody is asked."""
        while not self._loaded:
            try:
                await self._judge.load()
            except (BackendError, ConfigError, OSError) as error:
                self._health.failed(READING, error)
                await asyncio.sleep(_RELOAD_EVERY)
            else:
                self._health.works(READING)
                self._loaded = True

    async def weigh(
        self,
        asked: str,
        stored: Sequence[str],
        chances: Sequence[float | None],
        serves: Callable[[int, float], bool],
    ) -> list[float | None]:
        """The verifier's `chances` of the stored questions, None where vetoed, with the judge's say where it could
        change what is served. `serves` says from which P on the candidate at that place would be.

        Asks about one candidate after the other, and no more once one is served.
        """
        found = list(chances)
        if not self._loaded:
            return found
        places = undecided(chances, serves, self._weights)
        if not places:
            return found
        try:
            async with asyncio.timeout(self._deadline):
                for place, chance in places:
                    both = weighed(chance, await self._opinion(asked, stored[place]), self._weights)
                    found[place] = both
                    if serves(place, both):
                        break
        except (BackendError, TimeoutError) as error:
            self._health.failed(READING, error)
        return found

    async def close(self) -> None:
        await self._judge.close()

    async def _opinion(self, asked: str, stored: str) -> float | None:
        """None where there is nothing wrong with the judge, and it has no opinion on these two."""
        self._health.ask(READING)
        try:
            opinion = await self._judge.opinion(asked, stored)
        except TextRefused:
            return None
        self._health.works(READING)
        return opinion


def asking(upstream: Upstream, model: str, *, tokens: int) -> Callable[[Sequence[Mapping[str, str]]], Awaitable[str]]:
    """What a `LanguageModelJudge` asks with: a chat of that model, at temperature 0 and of at most so many tokens.

    Raises `BackendError` for whatever is no whole answer. Nothing of what the
    provider said is in its message.
    """

    async def ask(messages: Sequence[Mapping[str, str]]) -> str:
        body = {
            "model": model,
            "messages": [dict(message) for message in messages],
            "temperature": 0,
            "max_tokens": tokens,
        }
        try:
            reply = await upstream.complete(Call("chat", model, body, None))
            return _said(reply.body)
        except GatewayError as error:
            raise BackendError(f"the judge {upstream.name}/{model} did not answer ({error.code})") from None
        except msgspec.MsgspecError:
            # No cause: it may quote the answer.
            raise BackendError(f"the judge {upstream.name}/{model} answered something else than a chat") from None

    return ask


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class _Answer(msgspec.Struct):
    choices: list[_Choice]


def _said(body: bytes) -> str:
    """The text of the only choice. What was cut or filtered is no answer."""
    choices = msgspec.json.decode(body, type=_Answer).choices
    if len(choices) != 1 or choices[0].finish_reason != "stop":
        return ""
    return choices[0].message.content or ""
