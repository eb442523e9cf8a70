"""A deterministic provider for tests, demos and benchmarks: what `keepgate mock-upstream` runs.

It speaks the OpenAI dialect (chat, completions, embeddings, models) and
Anthropic's messages, whole and streamed. The answer is a function of the model
and of the last user text (`answer`), so a test can tell which question was
answered. Times are milliseconds.

Its behaviour can be changed while it runs. `PUT /mock` takes any of the fields
of `Behaviour` as JSON, `DELETE /mock` goes back to the start and forgets what
was counted, `GET /mock` tells what was asked:

    {"requests": {"/v1/chat/completions": 3}, "open_streams": 0, "cancelled": 1,
     "last": {"path": "…", "headers": {…}, "body": "…"}, "behaviour": {…}}

A model named `fault:NAME` (or `fault:NAME/model`) meets that fault whatever
the behaviour says.
"""

import asyncio
import base64
import functools
import hashlib
import math
import socket
import struct
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any, Literal, get_args

import msgspec
import uvicorn

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Json = dict[str, Any]

Fault = Literal[
    "500", "429", "401", "403", "400", "html", "malformed", "cut", "endless", "stall", "stall_midway", "truncated",
    "error_event", "no_done", "no_usage", "slow_headers", "whole", "empty", "huge", "redirect",
]  # fmt: skip

HELP = """\
While it runs: GET /mock tells what was asked, PUT /mock changes the behaviour
(JSON with any of latency, tokens, chunk_delay, error_rate, fault, fault_times),
DELETE /mock starts over. Times are milliseconds.

Faults, by PUT /mock {"fault": NAME, "fault_times": N} or as the model fault:NAME:
  500, 429 (Retry-After: 7), 401, 403, 400   that status, with a body of the dialect
  html, malformed, empty, redirect           a 200 that is no JSON; half of one; nothing; a 302
  truncated, huge                            shorter than its content-length; 80 MB
  stall, slow_headers                        never answers; answers after a second
  cut, stall_midway, endless                 a stream that breaks, falls silent, or never ends
  error_event, no_done, no_usage, whole      a stream with an error in it, without its end mark,
                                             without usage, or that is one JSON reply
"""

CREATED = 1_700_000_000
DIMENSIONS = 64
RETRY_AFTER = "7"
HUGE_BYTES = 80 * 2**20
SLOW_HEADERS_MS = 1000.0
_REMEMBERED = 1024
_FILLER = ("and", "so", "it", "goes", "on", "until", "enough", "words", "were", "said")
_JSON = b"application/json"
_SSE = b"text/event-stream; charset=utf-8"


class Behaviour(msgspec.Struct, forbid_unknown_fields=True):
    """`latency` before the headers and `chunk_delay` between chunks in milliseconds, `tokens` in words. `answers` are
    those to certain last user turns; to all others it says `answer`.

    `error_rate` of the requests get a 500, evenly spread. `fault` applies to
    the next `fault_times` requests, or to all when that is None.
    """

    latency: float = 0.0
    tokens: int = 100
    chunk_delay: float = 0.0
    error_rate: float = 0.0
    fault: Fault | None = None
    fault_times: int | None = None
    answers: dict[str, str] = {}

    def says(self, model: str, question: str, tokens: int) -> str:
        told = self.answers.get(question)
        return answer(model, question, tokens) if told is None else told


def answer(model: str, question: str, tokens: int) -> str:
    """What the mock says: `tokens` words that name the model and repeat the question."""
    digest = hashlib.blake2b(f"{model}\0{question}".encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
    words = [f"answer-{digest}", "from", model or "?", "to:", *question.split()]
    missing = tokens - len(words)
    if missing > 0:
        words += [_FILLER[i % len(_FILLER)] for i in range(missing)]
    return " ".join(words[:tokens])


def embedding(text: str, dimensions: int) -> list[float]:
    """A unit vector: the sum of one pseudo-random vector a word, so texts that share words are near each other."""
    words = text.lower().split() or [""]
    total = [sum(column) for column in zip(*(_word_vector(word, dimensions) for word in words), strict=True)]
    length = math.sqrt(sum(x * x for x in total)) or 1.0
    return [x / length for x in total]


@functools.lru_cache(maxsize=10_000)
def _word_vector(word: str, dimensions: int) -> tuple[float, ...]:
    noise = hashlib.shake_128(word.encode("utf-8", "surrogatepass")).digest(2 * dimensions)
    return tuple(x / 32768 for x in struct.unpack(f"<{dimensions}h", noise))


class _ClientGone(Exception):
    """The client hung up before the answer was finished."""


class _Rejected(Exception):
    """The request cannot be answered; `args[0]` says why."""


class MockUpstream:
    """The provider as an ASGI application."""

    def __init__(self, behaviour: Behaviour | None = None) -> None:
        self._initial = behaviour or Behaviour()
        self._reset()

    def _reset(self) -> None:
        self._behaviour = msgspec.structs.replace(self._initial)
        self._requests: Counter[str] = Counter()
        self._failed = 0
        self._open_streams = 0
        self._cancelled = 0
        self._last: tuple[str, list[tuple[bytes, bytes]], bytes] | None = None
        # Answers by path and body: a load generator asks the same again and should not measure this.
        self._remembered: dict[tuple[str, bytes], bytes] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        try:
            body = await _read_body(receive)
            if path == "/mock":
                await self._control(scope["method"], body, send)
                return
            self._requests[path] += 1
            self._last = (path, scope["headers"], body)
            await self._answer(path, body, receive, send)
        except _ClientGone:
            self._cancelled += 1

    async def _control(self, method: str, body: bytes, send: Send) -> None:
        if method == "PUT":
            try:
                changed = msgspec.to_builtins(self._behaviour) | msgspec.json.decode(body, type=dict[str, Any])
                self._behaviour = msgspec.convert(changed, Behaviour)
            except msgspec.MsgspecError as error:
                await _reply(send, 400, msgspec.json.encode({"error": {"message": str(error)}}))
                return
            self._remembered.clear()
        elif method == "DELETE":
            streams = self._open_streams
            self._reset()
            self._open_streams = streams
        elif method != "GET":
            await _reply(send, 405, b'{"error": {"message": "GET, PUT or DELETE"}}')
            return
        await _reply(send, 200, msgspec.json.encode(self._report()))

    def _report(self) -> Json:
        last = None
        if self._last is not None:
            path, headers, body = self._last
            last = {
                "path": path,
                "headers": {name.decode("latin-1"): value.decode("latin-1") for name, value in headers},
                "body": body.decode("utf-8", "replace"),
            }
        return {
            "requests": dict(self._requests),
            "open_streams": self._open_streams,
            "cancelled": self._cancelled,
            "last": last,
            "behaviour": self._behaviour,
        }

    async def _answer(self, path: str, body: bytes, receive: Receive, send: Send) -> None:
        behaviour = self._behaviour
        if behaviour.latency:
            await _pause(receive, behaviour.latency)
        calm = behaviour.fault is None and not behaviour.error_rate
        if calm and (known := self._remembered.get((path, body))) is not None:
            await _reply(send, 200, known, self._headers(path))
            return
        if path == "/v1/models":
            await _reply(send, 200, _MODELS, self._headers(path))
            return
        build = _DIALECTS.get(path)
        if build is None:
            await _reply(send, 404, _error(path, "not_found_error", f"the mock has no {path}"), self._headers(path))
            return
        try:
            asked = msgspec.json.decode(body, type=dict[str, Any])
            exchange = build(asked, behaviour)
        except (msgspec.MsgspecError, _Rejected) as error:
            await _reply(send, 400, _error(path, "invalid_request_error", str(error)), self._headers(path))
            return
        fault = self._due_fault(exchange.model)
        if fault is not None and fault not in _FAULTS:
            message = f"no fault is named {fault!r}; known: {', '.join(sorted(_FAULTS))}"
            await _reply(send, 400, _error(path, "invalid_request_error", message), self._headers(path))
            return
        if fault is None and not exchange.stream:
            reply = msgspec.json.encode(exchange.whole)
            if calm and len(body) < 16_384 and not exchange.model.startswith("fault:"):
                if len(self._remembered) >= _REMEMBERED:
                    self._remembered.clear()
                self._remembered[path, body] = reply
            await _reply(send, 200, reply, self._headers(path))
        elif fault in _BEFORE_THE_ANSWER:
            await self._fail(fault, path, exchange, receive, send)
        elif exchange.stream and fault != "whole":
            await self._stream(fault, path, exchange, receive, send)
        else:
            await self._whole(fault, path, exchange, receive, send)

    def _due_fault(self, model: str) -> str | None:
        if model.startswith("fault:"):
            return model.removeprefix("fault:").partition("/")[0]
        behaviour = self._behaviour
        if behaviour.fault is not None:
            fault = behaviour.fault
            if behaviour.fault_times is not None:
                behaviour.fault_times -= 1
                if behaviour.fault_times <= 0:
                    behaviour.fault = behaviour.fault_times = None
            return fault
        # Rounded down with a margin, so that ten times a tenth is one.
        if int(self._requests.total() * behaviour.error_rate + 1e-9) > self._failed:
            self._failed += 1
            return "500"
        return None

    def _headers(self, path: str) -> list[tuple[bytes, bytes]]:
        number = b"mock-%d" % self._requests.total()
        if path == "/v1/messages":
            return [(b"request-id", number), (b"anthropic-ratelimit-requests-remaining", b"99")]
        return [(b"x-request-id", number), (b"x-ratelimit-remaining-requests", b"99")]

    async def _fail(self, fault: str | None, path: str, exchange: "_Exchange", receive: Receive, send: Send) -> None:
        headers = self._headers(path)
        if fault == "stall":
            await _pause(receive, None)
        elif fault == "html":
            await _reply(send, 200, b"<!doctype html><title>Welcome</title>", headers, content_type=b"text/html")
        elif fault == "redirect":
            await _reply(send, 302, b"", [*headers, (b"location", b"/v1/models")])
        elif fault == "empty":
            await _reply(send, 200, b"", headers, content_type=_SSE if exchange.stream else _JSON)
        else:
            status = int(fault or "500")
            if status == 429:
                headers.append((b"retry-after", RETRY_AFTER.encode()))
            # Providers do echo the prompt in errors: a gateway must cope with it.
            message = f"the mock answers {status} to {exchange.question!r}"
            await _reply(send, status, _error(path, _ERROR_TYPES[status], message), headers)

    async def _whole(self, fault: str | None, path: str, exchange: "_Exchange", receive: Receive, send: Send) -> None:
        headers = self._headers(path)
        reply = exchange.whole
        if fault == "no_usage":
            reply = {name: value for name, value in reply.items() if name != "usage"}
        elif fault == "error_event":
            reply = {"error": {"message": "the mock broke off", "type": "server_error"}}
        encoded = msgspec.json.encode(reply)
        if fault == "malformed":
            await _reply(send, 200, encoded[: len(encoded) // 2], headers)
        elif fault in {"cut", "truncated"}:
            # Returning before the promised length closes the connection.
            await _start(send, 200, headers, _JSON, length=len(encoded) + 100)
            await _piece(send, encoded)
        elif fault in {"endless", "stall_midway"}:
            await _start(send, 200, headers, _JSON)
            await _piece(send, b" ")
            while True:
                await _pause(receive, 10.0 if fault == "endless" else None)
                await _piece(send, b" ")
        elif fault == "huge":
            await _start(send, 200, headers, _JSON)
            for _ in range(HUGE_BYTES // 65_536):
                await _piece(send, b" " * 65_536)
            await _piece(send, encoded, more=False)
        else:
            if fault == "slow_headers":
                await _pause(receive, SLOW_HEADERS_MS)
            await _reply(send, 200, encoded, headers)

    async def _stream(self, fault: str | None, path: str, exchange: "_Exchange", receive: Receive, send: Send) -> None:
        self._open_streams += 1
        try:
            await self._events(fault, path, exchange, receive, send)
        finally:
            self._open_streams -= 1

    async def _events(self, fault: str | None, path: str, exchange: "_Exchange", receive: Receive, send: Send) -> None:
        if fault == "slow_headers":
            await _pause(receive, SLOW_HEADERS_MS)
        events = list(exchange.events(usage=fault != "no_usage", end_mark=fault != "no_done"))
        delay = self._behaviour.chunk_delay
        await _start(send, 200, self._headers(path), _SSE)
        middle = max(1, len(events) // 2)
        for number, event in enumerate(events):
            if number == middle and fault in _MIDWAY:
                break
            if delay and number:
                await _pause(receive, delay)
            await _piece(send, event)
        else:
            await _piece(send, b"", more=False)
            return
        if fault == "endless":
            while True:
                await _pause(receive, delay or 10.0)
                await _piece(send, events[middle - 1])
        elif fault == "stall_midway":
            await _pause(receive, None)
        elif fault == "malformed":
            await _piece(send, b'data: {"id": "half", "choices": [{"ind\n\n')
            await _piece(send, b"", more=False)
        elif fault == "error_event":
            await _piece(send, exchange.error_event())
            await _piece(send, b"", more=False)
        elif fault == "huge":
            for _ in range(HUGE_BYTES // 65_536):
                await _piece(send, b": " + b"x" * 65_532 + b"\n\n")
            await _piece(send, b"", more=False)
        # "cut" and "truncated" return here: the server closes the connection without ending the body.


_FAULTS = frozenset(get_args(Fault))
_BEFORE_THE_ANSWER = frozenset({"stall", "html", "redirect", "empty", "500", "429", "401", "403", "400"})
_MIDWAY = frozenset({"cut", "truncated", "endless", "stall_midway", "malformed", "error_event", "huge"})
_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    500: "server_error",
}
_MODELS = msgspec.json.encode(
    {
        "object": "list",
        "data": [
            {"id": name, "object": "model", "created": CREATED, "owned_by": "mock"}
            for name in ("mock-large", "mock-small", "mock-embedding")
        ],
    }
)


class _Exchange:
    """One request and what will be answered, in the dialect it was asked in."""

    model: str
    question: str
    stream: bool
    whole: Json

    def events(self, *, usage: bool, end_mark: bool) -> Iterator[bytes]:
        raise NotImplementedError

    def error_event(self) -> bytes:
        return _data({"error": {"message": "the mock broke off", "type": "server_error", "code": None}})


class _Chat(_Exchange):
    def __init__(self, asked: Json, behaviour: Behaviour) -> None:
        tokens = behaviour.tokens
        messages = _a_list(asked, "messages")
        self.model = _a_string(asked, "model")
        self.question = _last_user_text(messages)
        self.stream = asked.get("stream") is True
        self._include_usage = bool((asked.get("stream_options") or {}).get("include_usage"))
        limit = _a_count(asked, "max_completion_tokens") or _a_count(asked, "max_tokens") or tokens
        text = behaviour.says(self.model, self.question, min(tokens, limit))
        self._words = _pieces(text)
        self._call = _forced_tool(asked, self.question)
        self._reason = "tool_calls" if self._call else "length" if limit < tokens else "stop"
        self._choices = _a_count(asked, "n") or 1
        self._id = f"chatcmpl-{_digest(self.model, self.question)}"
        self._usage = _usage(messages, self._words, self._choices)
        message: Json = {"role": "assistant", "content": None if self._call else text, "refusal": None}
        if self._call:
            message["tool_calls"] = [self._call]
        self.whole = {
            "id": self._id,
            "object": "chat.completion",
            "created": CREATED,
            "model": self.model,
            "choices": [
                {"index": index, "message": message, "logprobs": None, "finish_reason": self._reason}
                for index in range(self._choices)
            ],
            "usage": self._usage,
            "system_fingerprint": "fp_mock",
        }

    def events(self, *, usage: bool, end_mark: bool) -> Iterator[bytes]:
        for index in range(self._choices):
            yield self._chunk(index, {"role": "assistant", "content": None if self._call else ""})
        for delta in self._deltas():
            for index in range(self._choices):
                yield self._chunk(index, delta)
        for index in range(self._choices):
            yield self._chunk(index, {}, self._reason)
        if usage and self._include_usage:
            yield _data({**self._head, "choices": [], "usage": self._usage})
        if end_mark:
            yield b"data: [DONE]\n\n"

    def _deltas(self) -> Iterator[Json]:
        if self._call is None:
            yield from ({"content": word} for word in self._words)
            return
        function = self._call["function"]
        yield {"tool_calls": [{"index": 0, **self._call, "function": {**function, "arguments": ""}}]}
        for piece in _pieces(function["arguments"]):
            yield {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}

    @property
    def _head(self) -> Json:
        return {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": CREATED,
            "model": self.model,
            "system_fingerprint": "fp_mock",
        }

    def _chunk(self, index: int, delta: Json, reason: str | None = None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        return _data({**self._head, "choices": [choice]})


class _TextCompletion(_Exchange):
    def __init__(self, asked: Json, behaviour: Behaviour) -> None:
        tokens = behaviour.tokens
        prompt = asked.get("prompt", "")
        self.model = _a_string(asked, "model")
        self.question = prompt if isinstance(prompt, str) else msgspec.json.encode(prompt).decode()
        self.stream = asked.get("stream") is True
        self._include_usage = bool((asked.get("stream_options") or {}).get("include_usage"))
        self._words = _pieces(behaviour.says(self.model, self.question, tokens))
        self._head = {
            "id": f"cmpl-{_digest(self.model, self.question)}",
            "object": "text_completion",
            "created": CREATED,
            "model": self.model,
        }
        self._usage = _usage([{"content": self.question}], self._words, 1)
        self.whole = {**self._head, "choices": [self._choice("".join(self._words), "stop")], "usage": self._usage}

    def events(self, *, usage: bool, end_mark: bool) -> Iterator[bytes]:
        for word in self._words:
            yield _data({**self._head, "choices": [self._choice(word, None)]})
        yield _data({**self._head, "choices": [self._choice("", "stop")]})
        if usage and self._include_usage:
            yield _data({**self._head, "choices": [], "usage": self._usage})
        if end_mark:
            yield b"data: [DONE]\n\n"

    def _choice(self, text: str, reason: str | None) -> Json:
        return {"index": 0, "text": text, "logprobs": None, "finish_reason": reason}


class _Embeddings(_Exchange):
    stream = False

    def __init__(self, asked: Json, _behaviour: Behaviour) -> None:
        self.model = _a_string(asked, "model")
        given = asked.get("input", "")
        # Tokens (a list of numbers, or of such lists) are embedded as their JSON.
        several = isinstance(given, list) and not (given and isinstance(given[0], int))
        texts = [x if isinstance(x, str) else msgspec.json.encode(x).decode() for x in (given if several else [given])]
        self.question = texts[0] if texts else ""
        dimensions = _a_count(asked, "dimensions") or DIMENSIONS
        vectors: list[Any] = [embedding(text, dimensions) for text in texts]
        if asked.get("encoding_format") == "base64":
            vectors = [base64.b64encode(struct.pack(f"<{dimensions}f", *vector)).decode() for vector in vectors]
        words = sum(len(text.split()) for text in texts)
        self.whole = {
            "object": "list",
            "data": [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(vectors)],
            "model": self.model,
            "usage": {"prompt_tokens": words, "total_tokens": words},
        }


class _Messages(_Exchange):
    """Anthropic's dialect."""

    def __init__(self, asked: Json, behaviour: Behaviour) -> None:
        tokens = behaviour.tokens
        messages = _a_list(asked, "messages")
        self.model = _a_string(asked, "model")
        self.question = _last_user_text(messages)
        self.stream = asked.get("stream") is True
        limit = _a_count(asked, "max_tokens") or tokens
        text = behaviour.says(self.model, self.question, min(tokens, limit))
        self._words = _pieces(text)
        choice = asked.get("tool_choice") or {}
        tools = asked.get("tools") or []
        self._tool: str | None = choice.get("name") if choice.get("type") == "tool" else None
        if choice.get("type") == "any" and tools:
            self._tool = tools[0].get("name")
        usage = _usage(messages, self._words, 1)
        reason = "tool_use" if self._tool else "max_tokens" if limit < tokens else "end_turn"
        self.whole = {
            "id": f"msg_{_digest(self.model, self.question)}",
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": [self._tool_use({"query": self.question}) if self._tool else {"type": "text", "text": text}],
            "stop_reason": reason,
            "stop_sequence": None,
            "usage": {"input_tokens": usage["prompt_tokens"], "output_tokens": usage["completion_tokens"]},
        }

    def _tool_use(self, arguments: Json) -> Json:
        return {"type": "tool_use", "id": "toolu_mock", "name": self._tool, "input": arguments}

    def events(self, *, usage: bool, end_mark: bool) -> Iterator[bytes]:
        counted = self.whole["usage"] if usage else {"input_tokens": 0, "output_tokens": 0}
        start = {**self.whole, "content": [], "stop_reason": None, "usage": {**counted, "output_tokens": 1}}
        yield _named({"type": "message_start", "message": start})
        block = self._tool_use({}) if self._tool else {"type": "text", "text": ""}
        yield _named({"type": "content_block_start", "index": 0, "content_block": block})
        yield _named({"type": "ping"})
        arguments = msgspec.json.encode({"query": self.question}).decode()
        for piece in _pieces(arguments) if self._tool else self._words:
            kind, field = ("input_json_delta", "partial_json") if self._tool else ("text_delta", "text")
            yield _named({"type": "content_block_delta", "index": 0, "delta": {"type": kind, field: piece}})
        yield _named({"type": "content_block_stop", "index": 0})
        end = {"stop_reason": self.whole["stop_reason"], "stop_sequence": None}
        yield _named({"type": "message_delta", "delta": end, "usage": {"output_tokens": counted["output_tokens"]}})
        if end_mark:
            yield _named({"type": "message_stop"})

    def error_event(self) -> bytes:
        return _named({"type": "error", "error": {"type": "overloaded_error", "message": "the mock broke off"}})


_DIALECTS: dict[str, Callable[[Json, Behaviour], _Exchange]] = {
    "/v1/chat/completions": _Chat,
    "/v1/completions": _TextCompletion,
    "/v1/embeddings": _Embeddings,
    "/v1/messages": _Messages,
}


def _last_user_text(messages: list[Any]) -> str:
    for message in reversed(messages):
        if isinstance(message, dict) and message.get("role") == "user":
            return _text(message.get("content"))
    return ""


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return " ".join(str(part.get("text", "")) for part in parts if isinstance(part, dict))


def _forced_tool(asked: Json, question: str) -> Json | None:
    choice = asked.get("tool_choice")
    tools = asked.get("tools")
    name = None
    if isinstance(choice, dict):
        name = choice.get("function", {}).get("name")
    elif choice == "required" and tools:
        name = tools[0].get("function", {}).get("name")
    if name is None:
        return None
    arguments = msgspec.json.encode({"query": question}).decode()
    call_id = f"call_{_digest(name, question)}"
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _usage(messages: list[Any], words: list[str], choices: int) -> dict[str, int]:
    prompt = sum(len(_text(message.get("content")).split()) for message in messages if isinstance(message, dict))
    completion = len(words) * choices
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _pieces(text: str) -> list[str]:
    """Words, each but the first with the space before it, so that joining gives the text back."""
    first, *rest = text.split(" ")
    return [first, *(f" {word}" for word in rest)]


def _digest(*parts: str) -> str:
    return hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def _a_string(asked: Json, name: str) -> str:
    value = asked.get(name)
    if not isinstance(value, str):
        raise _Rejected(f"{name} must be a string")
    return value


def _a_count(asked: Json, name: str) -> int | None:
    value = asked.get(name)
    if value is not None and (type(value) is not int or not 1 <= value <= 100_000):
        raise _Rejected(f"{name} must be an integer from 1 to 100000")
    return value


def _a_list(asked: Json, name: str) -> list[Any]:
    value = asked.get(name)
    if not isinstance(value, list):
        raise _Rejected(f"{name} must be an array")
    return value


def _error(path: str, kind: str, message: str) -> bytes:
    if path == "/v1/messages":
        return msgspec.json.encode({"type": "error", "error": {"type": kind, "message": message}})
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": None, "code": None}})


def _data(payload: Json) -> bytes:
    return b"data: " + msgspec.json.encode(payload) + b"\n\n"


def _named(payload: Json) -> bytes:
    return f"event: {payload['type']}\n".encode() + _data(payload)


async def _read_body(receive: Receive) -> bytes:
    message = await receive()
    body: bytes = message.get("body", b"")
    if not message.get("more_body"):
        if message["type"] == "http.disconnect":
            raise _ClientGone
        return body
    pieces = [body]
    while message.get("more_body"):
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _ClientGone
        pieces.append(message.get("body", b""))
    return b"".join(pieces)


async def _pause(receive: Receive, milliseconds: float | None) -> None:
    """Waits, for ever if None. A client that hangs up meanwhile raises `_ClientGone`."""
    try:
        async with asyncio.timeout(None if milliseconds is None else milliseconds / 1000):
            while (await receive())["type"] != "http.disconnect":
                pass
    except TimeoutError:
        return
    raise _ClientGone


async def _reply(
    send: Send,
    status: int,
    body: bytes,
    headers: list[tuple[bytes, bytes]] | None = None,
    *,
    content_type: bytes = _JSON,
) -> None:
    await _start(send, status, headers or [], content_type, length=len(body))
    await _piece(send, body, more=False)


async def _start(
    send: Send, status: int, headers: list[tuple[bytes, bytes]], content_type: bytes, *, length: int | None = None
) -> None:
    headers.append((b"content-type", content_type))
    if length is not None:
        headers.append((b"content-length", b"%d" % length))
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def _piece(send: Send, body: bytes, *, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})


def run(
    *,
    host: str = "127.0.0.1",
    port: int,
    latency: float = 0.0,
    tokens: int = 100,
    chunk_delay: float = 0.0,
    error_rate: float = 0.0,
    certfile: str | None = None,
    keyfile: str | None = None,
) -> None:
    """Serves until SIGINT or SIGTERM. Port 0 takes a free one; stderr names it. Raises OSError if the port is taken."""
    app = MockUpstream(Behaviour(latency=latency, tokens=tokens, chunk_delay=chunk_delay, error_rate=error_rate))
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=2048)
    config = uvicorn.Config(
        app,
        lifespan="off",
        ws="none",
        access_log=False,
        # A fault that breaks a connection is no news; what can go wrong here ends the process instead.
        log_level="critical",
        date_header=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=1,
        ssl_certfile=certfile,
        ssl_keyfile=keyfile,
    )
    scheme = "https" if certfile else "http"
    print(f"mock upstream on {scheme}://{host}:{listener.getsockname()[1]}/v1", file=sys.stderr, flush=True)
    with listener:
        uvicorn.Server(config).run(sockets=[listener])
