"""Anthropic's dialect towards a provider: the Messages API.

What travels in it untouched, and what is lost on the way there and back, is
docs/dialects/anthropic.md.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from backends.upstream.anthropic_answer import EventDecoder, whole
from backends.upstream.anthropic_request import translate
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
    """What the client wrote, but for the model and whether it streams."""
    changed = dict(native)
    if native.get("model") != call.model:
        changed["model"] = call.model
    if stream:
        changed["stream"] = True
    elif native.get("stream"):
        del changed["stream"]
    if stream == (native.get("stream") is True) and changed.get("model") == native.get("model"):
        return as_written(call.raw, native)
    return msgspec.json.encode(changed)
