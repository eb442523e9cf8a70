"""The Gemini dialect towards a provider: `generateContent`, `streamGenerateContent` and `batchEmbedContents`.

https://ai.google.dev/api/generate-content and https://ai.google.dev/api/embeddings
"""

import time
from collections.abc import Callable
from typing import Final
from urllib.parse import quote

import msgspec

from backends.upstream import gemini_answer, gemini_request
from backends.upstream.base import Call
from backends.upstream.wire import Sent, as_written
from models.errors import Untranslatable
from models.request import Dialect, Operation

_COLLECTIONS: Final = ("models", "tunedModels")


class GeminiWire:
    """The model and whether to stream are said by the path. `now` gives seconds since the epoch."""

    dialect: Dialect = "gemini"
    operations: frozenset[Operation] = frozenset(("chat", "embedding"))

    def __init__(self, *, now: Callable[[], float] = time.time) -> None:
        self._now = now

    def request(self, call: Call, *, stream: bool) -> Sent:
        if call.operation == "embedding":
            body, dropped = gemini_request.embedding(call.body, call.model)
            return Sent(f"{_path(call.model)}:batchEmbedContents", msgspec.json.encode(body), dropped)
        method = "streamGenerateContent?alt=sse" if stream else "generateContent"
        path = f"{_path(call.model)}:{method}"
        if call.dialect == self.dialect and call.native is not None:
            asked = gemini_request.as_asked(call.native, call.model)
            same = asked is call.native
            return Sent(path, as_written(call.raw, asked) if same else msgspec.json.encode(asked))
        if call.refused:
            raise Untranslatable(call.refused, dialect=self.dialect)
        body, dropped = gemini_request.chat(call.body, call.model)
        return Sent(path, msgspec.json.encode(body), (*call.dropped, *dropped))

    def whole(self, body: bytes, call: Call) -> bytes:
        if call.operation == "embedding":
            return msgspec.json.encode(gemini_answer.embeddings(body, call))
        return msgspec.json.encode(gemini_answer.completion(body, call, created=int(self._now())))

    def decoder(self, call: Call) -> gemini_answer.Decoder:
        return gemini_answer.Decoder(call, created=int(self._now()))


def _path(model: str) -> str:
    """`models/` goes without saying; a name can hold no further slash."""
    collection, slash, name = model.partition("/")
    if not slash or collection not in _COLLECTIONS:
        collection, name = "models", model
    return f"/{collection}/{quote(name, safe='')}"
