"""What an answer came to: its usage, counted here where the upstream does not report it."""

import asyncio
import math
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Protocol

import msgspec

from models.completion import Completion, Usage
from models.errors import UpstreamError
from models.request import Request
from service.caching import assembly
from service.context import Context
from service.pipeline.reserve import Reservation
from service.telemetry.metrics import Metrics

# Characters. A longer text is counted by samples from all over it.
_MOST_COUNTED = 1_000_000
# What a text is cut into, in characters, and how many different words are remembered: both cost 65 bytes for each byte
# of a word, and a word may be a million letters long.
_PIECE = 2048
_REMEMBERED = 4096
# One at a time: counting is never what a caller waits for longest, and must not be what takes all the memory.
_counting = ThreadPoolExecutor(1, "keepgate-counting")


class Vocabulary(Protocol):
    """The part of splintr's tokenizer that is used. `encode_batch_flat` gives four bytes a token."""

    @property
    def cache_len(self) -> int: ...

    def encode_batch_flat(self, texts: list[str]) -> tuple[bytes, bytes]: ...

    def clear_cache(self) -> None: ...


def settle(reservation: Reservation, usage: Usage, request: Request, context: Context, metrics: Metrics) -> None:
    """Runs in the flight's exit path: a client that hung up still used these tokens."""
    del reservation  # nothing was set aside, so nothing is given back: see reserve.py
    for direction, tokens in (("prompt", usage.prompt_tokens), ("completion", usage.completion_tokens)):
        if tokens:
            metrics.tokens.add((context.endpoint.name, request.model, direction), tokens)


async def whole(body: bytes, request: Request) -> Completion:
    """A whole reply with its usage, the upstream's or ours. Raises `UpstreamError` for JSON of another shape."""
    completion, counted = assembly.whole(body, request.operation)
    if counted:
        return completion
    return msgspec.structs.replace(completion, usage=await estimated(request, _answered(body, request)))


async def estimated(request: Request, answer: str) -> Usage:
    """Counted with the o200k_base vocabulary: right for OpenAI's current models, near for others.

    In a thread: the vocabulary takes 0.3 s to load, and a megabyte of text nearly as long to count.
    """
    return await asyncio.get_running_loop().run_in_executor(_counting, _counted, request, answer)


def _counted(request: Request, answer: str) -> Usage:
    vocabulary = _o200k()
    prompt = tokens_in(_asked(request), vocabulary)
    return Usage(prompt, tokens_in(answer, vocabulary) if answer else 0, estimated=True)


def tokens_in(text: str, vocabulary: Vocabulary) -> int:
    """Takes bounded memory and time, whatever the text: it is cut, which adds a token in a thousand, and past a million
    characters the rest is taken to be like the samples."""
    every = _PIECE * max(1, math.ceil(len(text) / _MOST_COUNTED))
    pieces = [text[at : at + _PIECE] for at in range(0, len(text), every)]
    # The one call that leaves the interpreter to others: the rest hold up the event loop from their thread.
    tokens, _ = vocabulary.encode_batch_flat(pieces)
    if vocabulary.cache_len > _REMEMBERED:
        vocabulary.clear_cache()
    counted = len(tokens) // 4
    return counted if every == _PIECE else round(counted * len(text) / sum(map(len, pieces)))


def _asked(request: Request) -> str:
    if request.operation != "chat":
        value = request.body.get("prompt" if request.operation == "completion" else "input")
        return "\n".join(text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str))
    texts: list[str] = []
    for message in request.body["messages"]:
        content = message.get("content")
        parts = content if isinstance(content, list) else [{"text": content}]
        texts += [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]
    return "\n".join(texts)


def _answered(body: bytes, request: Request) -> str:
    if request.operation == "embedding":
        return ""
    try:
        choices = msgspec.json.decode(body)["choices"]
        texts = [choice.get("text") or (choice.get("message") or {}).get("content") for choice in choices]
    except (KeyError, TypeError, AttributeError) as error:
        raise UpstreamError("the upstream's answer is not one of this API") from error
    return "\n".join(text for text in texts if isinstance(text, str))


@cache
def _o200k() -> Vocabulary:
    # 34 MB that most deployments never need: upstreams report usage.
    import splintr

    vocabulary: Vocabulary = splintr.Tokenizer.from_pretrained("o200k_base")
    return vocabulary
