"""The upstream that is always there: answers without a language model, and says so."""

import asyncio
import base64
import hashlib
import struct
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import msgspec

from backends.upstream.base import Call, ChunkStream, Passage, Passed, Reply
from models.completion import Chunk
from models.errors import Untranslatable, UpstreamError
from models.request import Dialect, Operation

_CREATED = 1_700_000_000
_FINGERPRINT = "keepgate-demo"
_DIMENSIONS = 384
_MAX_DIMENSIONS = 4096
_QUOTED = 160  # characters of the question that are repeated
_SETUP = (
    "To get real answers, name an upstream in a file, for example "
    "`upstreams: [{name: local, provider: openai-compatible, base_url: 'http://127.0.0.1:11434/v1'}]`, "
    "and start `keepgate serve --config FILE`."
)


class DemoUpstream:
    """Deterministic: the same request gets the same bytes, `id` and `created` included.

    Takes any model name. Usage counts words, not tokens. Tools are never
    called; the answer says so when some were offered. Embeddings are unit
    vectors made from a hash: equal texts are equal, others are unrelated.
    `chunk_delay` in seconds is waited between the chunks of a stream.
    """

    provider = "demo"
    capabilities: frozenset[Operation] = frozenset(("chat", "completion", "embedding"))
    dialects: frozenset[Dialect] = frozenset(("openai",))
    keys = 1

    def __init__(self, *, name: str = "demo", chunk_delay: float = 0.0) -> None:
        self.name = name
        self._chunk_delay = chunk_delay

    async def complete(self, call: Call) -> Reply:
        if call.operation == "embedding":
            return Reply(body=msgspec.json.encode(_embeddings(call)))
        answer = _Answer(_refused_between_dialects(call))
        return Reply(body=msgspec.json.encode(answer.whole()))

    async def stream(self, call: Call) -> ChunkStream:
        if call.operation == "embedding":
            raise _refused("embeddings are not streamed", "stream")
        answer = _Answer(_refused_between_dialects(call))
        return _Chunks([Chunk(msgspec.json.encode(chunk), chunk) for chunk in answer.chunks()], self._chunk_delay)

    async def forward(self, passage: Passage) -> Passed:
        raise _refused(f"the demo upstream has no {passage.path.partition('?')[0]}", "path")

    async def models(self) -> Sequence[str]:
        return ["demo"]

    async def close(self) -> None: ...


def _refused_between_dialects(call: Call) -> Call:
    if call.dialect != "openai" and call.refused:
        raise Untranslatable(call.refused, dialect="openai")
    return call


class _Answer:
    """What is said to one call, in the shape of its operation."""

    def __init__(self, call: Call) -> None:
        self._chat = call.operation == "chat"
        self._questions = [_last_user_text(call.body.get("messages"))] if self._chat else _prompts(call.body)
        tools = bool(call.body.get("tools"))
        self._texts = [_reply(question, tools=tools) for question in self._questions]
        self._id = ("chatcmpl-" if self._chat else "cmpl-") + _digest(call)
        self._model = call.model
        self._asked_words = _words(call.body.get("messages") if self._chat else self._questions)

    def whole(self) -> dict[str, Any]:
        choices: list[dict[str, Any]] = []
        for index, text in enumerate(self._texts):
            said = (
                {"message": {"role": "assistant", "content": text, "refusal": None}} if self._chat else {"text": text}
            )
            choices.append({"index": index, **said, "logprobs": None, "finish_reason": "stop"})
        head = self._head("chat.completion" if self._chat else "text_completion")
        return {**head, "choices": choices, "usage": self._usage()}

    def chunks(self) -> list[dict[str, Any]]:
        """The last one carries the usage, as from any upstream that was asked for it."""
        head = self._head("chat.completion.chunk" if self._chat else "text_completion")
        chunks = []
        for index, text in enumerate(self._texts):
            said: list[dict[str, Any]]
            if self._chat:
                said = [{"delta": {"role": "assistant", "content": ""}}]
                said += [{"delta": {"content": piece}} for piece in _pieces(text)]
            else:
                said = [{"text": piece} for piece in _pieces(text)]
            last: dict[str, Any] = {"delta": {}} if self._chat else {"text": ""}
            choices = [{"index": index, **part, "logprobs": None, "finish_reason": None} for part in said]
            choices.append({"index": index, **last, "logprobs": None, "finish_reason": "stop"})
            chunks += [{**head, "choices": [choice]} for choice in choices]
        return [*chunks, {**head, "choices": [], "usage": self._usage()}]

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": _CREATED,
            "model": self._model,
            "system_fingerprint": _FINGERPRINT,
        }

    def _usage(self) -> dict[str, int]:
        said = sum(len(text.split()) for text in self._texts)
        return {
            "prompt_tokens": self._asked_words,
            "completion_tokens": said,
            "total_tokens": self._asked_words + said,
        }


class _Chunks:
    dropped: tuple[str, ...] = ()

    def __init__(self, chunks: Sequence[Chunk], delay: float) -> None:
        self.headers: tuple[tuple[str, str], ...] = ()
        self._chunks = deque(chunks)
        self._delay = delay
        self._begun = False

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self

    async def __anext__(self) -> Chunk:
        if self._begun and self._delay and self._chunks:
            await asyncio.sleep(self._delay)
        self._begun = True
        if not self._chunks:
            raise StopAsyncIteration
        return self._chunks.popleft()

    async def close(self) -> None:
        self._chunks.clear()


def _reply(question: str, *, tools: bool) -> str:
    parts = ["This is Keepgate's demo upstream, not a language model: it cannot answer, it can only repeat."]
    short = " ".join(question.split())
    if len(short) > _QUOTED:
        short = short[:_QUOTED].rstrip() + "…"
    parts.append(f"You asked: “{short}”" if short else "You asked nothing.")
    if tools:
        parts.append("It calls no tools.")
    parts.append(_SETUP)
    return " ".join(parts)


def _last_user_text(messages: Any) -> str:
    for message in reversed(messages if isinstance(messages, list) else []):
        if isinstance(message, dict) and message.get("role") == "user":
            return _text(message.get("content"))
    return ""


def _text(content: Any) -> str:
    """The text of a message: a string, or the text parts among others."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return " ".join(text for text in texts if isinstance(text, str))


def _words(items: Any) -> int:
    texts = [_text(item.get("content")) if isinstance(item, dict) else str(item) for item in items or ()]
    return sum(len(text.split()) for text in texts)


def _prompts(body: Mapping[str, Any]) -> list[str]:
    prompt = body.get("prompt", "")
    if isinstance(prompt, list) and prompt and all(isinstance(each, str) for each in prompt):
        return prompt
    # Token numbers are repeated as such: there is no vocabulary to turn them into words.
    return [prompt if isinstance(prompt, str) else msgspec.json.encode(prompt).decode()]


def _pieces(text: str) -> list[str]:
    first, *rest = text.split(" ")
    return [first, *(f" {word}" for word in rest)]


def _embeddings(call: Call) -> dict[str, Any]:
    given = call.body.get("input")
    if not given or not isinstance(given, str | list):
        raise _refused("input must be a string or an array that is not empty", "input")
    tokens = isinstance(given, list) and isinstance(given[0], int)
    inputs = [given] if tokens or isinstance(given, str) else given
    dimensions = call.body.get("dimensions")
    if dimensions is None:
        dimensions = _DIMENSIONS
    if type(dimensions) is not int or not 1 <= dimensions <= _MAX_DIMENSIONS:
        raise _refused(f"dimensions must be an integer from 1 to {_MAX_DIMENSIONS}", "dimensions")
    encoding = call.body.get("encoding_format") or "float"
    if encoding not in {"float", "base64"}:
        raise _refused("encoding_format must be float or base64", "encoding_format")
    vectors: list[Any] = [_unit_vector(each, dimensions) for each in inputs]
    if encoding == "base64":
        vectors = [base64.b64encode(struct.pack(f"<{dimensions}f", *vector)).decode() for vector in vectors]
    words = _words([each if isinstance(each, str) else " ".join(map(str, each)) for each in inputs])
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(vectors)],
        "model": call.model,
        "usage": {"prompt_tokens": words, "total_tokens": words},
    }


def _unit_vector(text: Any, dimensions: int) -> list[float]:
    noise = hashlib.shake_128(msgspec.json.encode(text)).digest(4 * dimensions)
    # Offset by a half so that no vector can be all zero.
    numbers = [x + 0.5 for x in struct.unpack(f"<{dimensions}i", noise)]
    length = sum(x * x for x in numbers) ** 0.5
    return [x / length for x in numbers]


def _digest(call: Call) -> str:
    """Of what shapes the answer: a stream and the whole have the same."""
    asked = {key: value for key, value in call.body.items() if key not in {"stream", "stream_options"}}
    canonical = msgspec.json.encode([call.model, asked], order="deterministic")
    return hashlib.blake2b(canonical, digest_size=12).hexdigest()


def _refused(message: str, param: str) -> UpstreamError:
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": None}
    return UpstreamError(message, status=400, body=msgspec.json.encode({"error": error}))
