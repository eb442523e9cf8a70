"""What an answer came to: its usage, counted here where the upstream does not report it."""

import asyncio
from functools import cache
from typing import Any

import msgspec

from models.completion import Completion, Usage
from models.errors import UpstreamError
from models.request import Request
from service.caching import assembly
from service.context import Context
from service.pipeline.reserve import Reservation
from service.telemetry.metrics import Metrics


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

    In a thread: the vocabulary takes 0.3 s to load, and a megabyte of text as long to count.
    """
    return await asyncio.to_thread(_counted, request, answer)


def _counted(request: Request, answer: str) -> Usage:
    return Usage(_count(_asked(request)), _count(answer) if answer else 0, estimated=True)


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


def _count(text: str) -> int:
    # The one call that leaves the interpreter to others: the rest hold up the event loop from their thread.
    tokens, _ = _tokenizer().encode_batch_flat([text])
    return len(tokens) // 4


@cache
def _tokenizer() -> Any:
    # 34 MB that most deployments never need: upstreams report usage.
    import splintr

    return splintr.Tokenizer.from_pretrained("o200k_base")
