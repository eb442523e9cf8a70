"""Anthropic's dialect towards a provider: the Messages API.

What travels in it untouched, and what is lost on the way there and back, is
docs/dialects/anthropic.md.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from backends.upstream.anthropic_answer import EventDecoder, whole
from backends.upstream.anthropic_request import THOUGHTS, translate
from backends.upstream.base import Call
from backends.upstream.wire import Sent, as_written
from models.errors import RequestError
from models.request import Dialect, Operation

_PATH: Final = "/messages"


class AnthropicWire:
    """`clock` gives seconds since the epoch, for when an answer was made: the API does not say."""

    dialect: Dialect = "anthropic"
    operations: frozenset[Operation] = frozenset({"chat"})

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock

    def request(self, call: Call, *, stream: bool) -> Sent:
        if call.dialect == self.dialect and call.native is not None:
            return Sent(_PATH, _as_asked(call, call.native, stream=stream))
        try:
            translated = translate(call, stream=stream)
            return Sent(_PATH, msgspec.json.encode(translated.body), translated.dropped)
        except RecursionError:
            raise RequestError("the body is nested too deeply") from None

    def whole(self, body: bytes, call: Call) -> bytes:
        del call
        return msgspec.json.encode(whole(body, int(self._clock())))

    def decoder(self, call: Call) -> EventDecoder:
        del call
        return EventDecoder(int(self._clock()))


def _as_asked(call: Call, native: Mapping[str, Any], *, stream: bool) -> bytes:
    """What the client wrote, but for the model and whether it streams.

    A turn that begins without thoughts, because another provider took it so
    far, cannot go on with a budget for them: the API would refuse it.
    """
    changed = dict(native)
    if _lacks_thoughts(native):
        del changed["thinking"]
    if native.get("model") != call.model:
        changed["model"] = call.model
    if stream:
        changed["stream"] = True
    elif native.get("stream"):
        del changed["stream"]
    if changed == native:
        return as_written(call.raw, native)
    return msgspec.json.encode(changed)


def _lacks_thoughts(native: Mapping[str, Any]) -> bool:
    match native:
        case {
            "thinking": {"type": "enabled"},
            "messages": [
                *_,
                {"role": "assistant", "content": [{"type": str(first)}, *_]},
                {"role": "user", "content": list(results)},
            ],
        }:
            called = any(isinstance(block, dict) and block.get("type") == "tool_result" for block in results)
            return called and first not in THOUGHTS
    return False
