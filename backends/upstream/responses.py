"""The OpenAI Responses dialect towards a provider.

https://platform.openai.com/docs/api-reference/responses
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from backends.upstream.base import Call
from backends.upstream.responses_answer import Events, whole
from backends.upstream.responses_request import translated
from backends.upstream.wire import ChunkDecoder, Sent, as_written
from models.request import Dialect, Operation

_PATH = "/responses"


class ResponsesWire:
    """What a client of this dialect wrote goes on as it is but for `model` and `stream`; all else is translated."""

    dialect: Dialect = "responses"
    operations: frozenset[Operation] = frozenset({"chat"})

    def request(self, call: Call, *, stream: bool) -> Sent:
        if call.dialect == self.dialect and call.native is not None:
            return Sent(_PATH, _as_sent(call.native, call.raw, call.model, stream=stream))
        body, dropped = translated(call, stream=stream)
        return Sent(_PATH, body, dropped)

    def whole(self, body: bytes, call: Call) -> bytes:
        return whole(body, call.model)

    def decoder(self, call: Call) -> ChunkDecoder:
        return Events(call.model)


def _as_sent(native: Mapping[str, Any], raw: bytes | None, model: str, *, stream: bool) -> bytes:
    if native.get("model") == model and bool(native.get("stream")) == stream:
        return as_written(raw, native)
    changed = {**native, "model": model, "stream": stream}
    if not stream:
        # The API takes options of a stream only where there is one.
        del changed["stream"]
        changed.pop("stream_options", None)
    return msgspec.json.encode(changed)
