"""The OpenAI dialect: chat completions, completions, embeddings and the list of models.

https://platform.openai.com/docs/api-reference
"""

import asyncio
import contextlib
import itertools
import logging
import os
import re
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import msgspec

from models.completion import Completion, Entry
from models.errors import GatewayError, LimitError, NotCached, RequestError, UpstreamError
from models.request import Operation, Request
from service.api import sse
from service.api.errors import error_headers, openai_body, status_of
from service.api.exchange import (
    ClientGone,
    HangUp,
    HeaderList,
    Receive,
    Scope,
    Send,
    header_map,
    read_body,
    send_end,
    send_part,
    send_start,
    send_whole,
)
from service.caching import assembly, replay
from service.caching.single_flight import Flight
from service.context import CacheOutcome, Context
from service.pipeline.admit import admit
from service.pipeline.gateway import Gateway, Hit
from service.telemetry.recorder import Record, observe

log = logging.getLogger("keepgate.api")

_JSON = (b"content-type", b"application/json")
_CLEAN = (b"x-keepgate-guardrails", b"clean")
_TEXT_FIELD: dict[Operation, str] = {"chat": "messages", "completion": "prompt", "embedding": "input"}
_LONGEST_NAME = 256
_POSITION = re.compile(r" \(byte \d+\)")
_ids = itertools.count()
_ID_PREFIX = f"req_{os.urandom(6).hex()}"


def decode(raw: bytes, operation: Operation) -> Request:
    """Raises `RequestError` that says which field cannot be used. Fields it does not know are kept."""
    try:
        body = msgspec.json.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        if isinstance(error, RecursionError):
            raise RequestError("the body is nested too deeply") from error
        if not raw:
            raise RequestError("the body is empty; send a JSON object") from error
        # Of the decoder's message only the position: the rest is its own business.
        place = _POSITION.search(str(error))
        raise RequestError(f"the body is not valid JSON in UTF-8{place[0] if place else ''}") from error
    if not isinstance(body, dict):
        raise RequestError("the body must be a JSON object")
    model = body.get("model")
    if not isinstance(model, str) or not _is_name(model):
        raise RequestError(f"model must be a name of 1 to {_LONGEST_NAME} printable characters", param="model")
    stream = body.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise RequestError("stream must be true or false", param="stream")
    options = body.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise RequestError("stream_options must be an object", param="stream_options")
    if operation == "chat":
        _check_messages(body.get("messages"))
    elif body.get(_TEXT_FIELD[operation]) is None:
        raise RequestError(f"{_TEXT_FIELD[operation]} is missing", param=_TEXT_FIELD[operation])
    elif operation == "embedding" and stream:
        raise RequestError("embeddings do not stream", param="stream")
    for name in ("n", "temperature"):
        value = body.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise RequestError(f"{name} must be a number", param=name)
    include_usage = bool(options and options.get("include_usage"))
    return Request(operation, model, body, raw, stream or False, include_usage)


async def serve(do: Gateway, operation: Operation, endpoint: str, scope: Scope, receive: Receive, send: Send) -> None:
    """One inference request, from its headers to its record."""
    started = time.perf_counter()
    request_id = new_request_id()
    # A name that the configuration does not have is the client's own text, and no label.
    named = endpoint if endpoint in do.endpoints else ""
    record = Record(time=time.time(), request_id=request_id, endpoint=named, operation=operation)
    headers = header_map(scope["headers"])
    do.metrics.inflight.add((), 1)
    do.users += 1
    context = None
    read = False
    try:
        context = do.authenticate(headers, endpoint, request_id=request_id, started=started)
        if context.caller.key is not None:
            record.key_id = context.caller.key.key_id
        raw = await read_body(headers, receive, limit=do.limits.max_body, timeout=do.limits.body_timeout)
        read = True
        request = decode(raw, operation)
        record.stream = request.stream
        record.model = request.model
        answer = await do.answer(request, context)
        if isinstance(answer, Hit):
            await _send_hit(answer.entry, request, context, record, receive, send)
        else:
            await _send_flight(answer, request, context, record, receive, send)
    except GatewayError as error:
        with contextlib.suppress(ClientGone):
            await _send_error(error, request_id, started, context, record, send, close=not read)
    except ClientGone:
        record.client_gone = True
    except asyncio.CancelledError:
        # The gateway is stopping, and this request outlived `server.drain`. Nothing comes after it in this task.
        if record.status == 0 or record.first_token_seconds is not None:
            with contextlib.suppress(ClientGone):
                await _send_failure(_stopping(), request_id, started, context, record, send)
    except Exception:  # the outermost: what nobody thought of is still answered, and never a silent end
        log.exception("a request failed in a way nobody thought of")
        with contextlib.suppress(ClientGone):
            failure = GatewayError("the gateway failed; its log has the cause")
            await _send_failure(failure, request_id, started, context, record, send)
    finally:
        do.users -= 1
        do.metrics.inflight.add((), -1)
        record.seconds = time.perf_counter() - started
        observe(do.metrics, record)
        if do.recorder is not None:
            do.recorder.record(record)


def model_list(gateway: Gateway, names: Sequence[str], context: Context) -> bytes:
    """`{"object": "list", "data": [{"id", "object", "created", "owned_by"}]}`, the names this key may use."""
    key = context.caller.key
    allowed = [name for name in names if key is None or key.models is None or name in key.models]
    return msgspec.json.encode({"object": "list", "data": [_card(gateway, name) for name in allowed]})


def model_card(gateway: Gateway, name: str, context: Context) -> bytes:
    """Raises `AccessError` or `RequestError` where a request with that model would."""
    if not _is_name(name):
        raise RequestError("no model of that name", code="model_not_found", param="model")
    asked = Request("chat", name, {}, b"")
    admit(asked, context, gateway.aliases)
    return msgspec.json.encode(_card(gateway, name))


def _card(gateway: Gateway, name: str) -> dict[str, Any]:
    owner = gateway.aliases.resolve(name).targets[0].upstream
    return {"id": name, "object": "model", "created": 0, "owned_by": owner}


def new_request_id() -> str:
    """Unique over processes; tells nothing about the request."""
    return f"{_ID_PREFIX}{next(_ids):08x}"


# --- answers


async def _send_hit(
    entry: Entry, request: Request, context: Context, record: Record, receive: Receive, send: Send
) -> None:
    headers = _hit_headers(entry, context, record)
    if not request.stream:
        headers.append(_JSON)
        _clock_first_byte(context, record, headers)
        await send_whole(send, 200, headers, entry.completion.body)
        return
    with HangUp(receive):
        await _send_replay(entry.completion, request, context, record, headers, send)


async def _send_flight(
    flight: Flight, request: Request, context: Context, record: Record, receive: Receive, send: Send
) -> None:
    follows = context.outcome == "coalesced"
    arrived = time.perf_counter()
    try:
        with HangUp(receive):
            if request.stream and flight.streamed:
                await flight.opened()
            else:
                await flight.whole()
            context.waited = time.perf_counter() - arrived if follows else flight.waited
            _tell(flight, context, record)
            if flight.hit and flight.entry is not None:
                context.outcome = "exact" if flight.hit == "exact" else "semantic"
                headers = _hit_headers(flight.entry, context, record)
            else:
                headers = _miss_headers(flight, context, record)
            if request.stream and flight.chunks:
                await _send_live(flight, request, context, record, headers, send)
            else:
                completion = (await flight.whole()).completion
                if flight.in_pieces and not request.stream:
                    raise UpstreamError("the answer came as a stream that does not add up to a whole; ask for a stream")
                _count_tokens(completion, context, record)
                if request.stream:
                    await _send_replay(completion, request, context, record, headers, send)
                else:
                    headers.append(_JSON)
                    _clock_first_byte(context, record, headers)
                    await send_whole(send, 200, headers, completion.body)
    except (GatewayError, ClientGone, asyncio.CancelledError):
        _tell(flight, context, record)
        raise
    finally:
        flight.leave()


async def _begin_stream(context: Context, record: Record, headers: HeaderList, send: Send) -> None:
    headers += sse.HEADERS
    _clock_first_byte(context, record, headers)
    first_token_seconds = time.perf_counter() - context.started
    await send_start(send, 200, headers)
    record.first_token_seconds = first_token_seconds  # from here on an error is an event


async def _break_off(error: GatewayError, request_id: str, record: Record, send: Send) -> None:
    """Ends a stream that has begun."""
    record.code = error.code
    await send_part(send, sse.event(openai_body(error, request_id)))
    await send_end(send)


async def _send_live(
    flight: Flight, request: Request, context: Context, record: Record, headers: HeaderList, send: Send
) -> None:
    """A stream as it arrives. An error once it has begun is an event of the stream: the status has gone out."""
    await _begin_stream(context, record, headers, send)
    usage_sent = False
    try:
        async for batch in flight.read():
            wanted = [chunk.payload for chunk in batch if request.include_usage or not chunk.usage_only]
            usage_sent = usage_sent or any(chunk.usage_only for chunk in batch)
            if wanted:
                await send_part(send, sse.events(wanted))
    except GatewayError as error:
        await _break_off(error, context.request_id, record, send)
        return
    entry = flight.entry
    if entry is not None:
        _count_tokens(entry.completion, context, record)
        if request.include_usage and not usage_sent:
            await send_part(send, sse.event(_usage_chunk(entry.completion, request)))
    await send_part(send, sse.DONE)
    await send_end(send)


async def _send_replay(
    completion: Completion, request: Request, context: Context, record: Record, headers: HeaderList, send: Send
) -> None:
    await _begin_stream(context, record, headers, send)
    whole: dict[str, Any] = msgspec.json.decode(completion.body)
    if not isinstance(whole.get("usage"), dict):
        whole["usage"] = assembly.usage_fields(completion.usage)
    chunks = replay.chunks(whole, request.operation, include_usage=request.include_usage)
    if context.endpoint.replay == "paced":
        async for payload in _paced(chunks, context.endpoint.replay_rate):
            await send_part(send, sse.event(payload))
    else:
        for number, batch in enumerate(_batches(chunks, 256)):
            if number:
                await asyncio.sleep(0)  # a socket that takes everything at once never makes this task wait
            await send_part(send, sse.events(map(msgspec.json.encode, batch)))
    await send_part(send, sse.DONE)
    await send_end(send)


async def _paced(chunks: Iterator[dict[str, Any]], rate: float) -> AsyncIterator[bytes]:
    """One chunk every `1 / rate` seconds, against the clock, so that lateness does not add up."""
    began = time.perf_counter()
    for number, chunk in enumerate(chunks):
        ahead = number / rate - (time.perf_counter() - began)
        if ahead > 0:
            await asyncio.sleep(ahead)
        yield msgspec.json.encode(chunk)


def _batches(chunks: Iterator[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    while batch := list(itertools.islice(chunks, size)):
        yield batch


async def _send_failure(
    error: GatewayError, request_id: str, started: float, context: Context | None, record: Record, send: Send
) -> None:
    """Ours, and whenever it came: an answer of its own, or the end of a stream that has begun."""
    if record.first_token_seconds is None:
        await _send_error(error, request_id, started, context, record, send, close=True)
    else:
        await _break_off(error, request_id, record, send)


async def _send_error(
    error: GatewayError,
    request_id: str,
    started: float,
    context: Context | None,
    record: Record,
    send: Send,
    *,
    close: bool,
) -> None:
    """`close`: the body was not read to its end, and what is left of it must not be waited for."""
    status = status_of(error)
    unsent = isinstance(error, NotCached)
    outcome: CacheOutcome = "bypass" if context is None else context.outcome
    record.status, record.code, record.cache = status, error.code, outcome
    headers: HeaderList = [
        _JSON,
        (b"x-keepgate-request-id", request_id.encode()),
        (b"x-keepgate-cache", outcome.encode()),
        (b"cache-status", b"keepgate; detail=not-cached" if unsent else _cache_status(context).encode()),
        _CLEAN,
    ]
    if context is not None and context.similarity is not None:
        headers.append((b"x-keepgate-similarity", b"%.4f" % context.similarity))
        record.similarity = context.similarity
    waited = 0.0 if context is None else context.waited
    record.overhead_us = max(0, int((time.perf_counter() - started - waited) * 1e6))
    headers.append((b"x-keepgate-overhead-us", b"%d" % record.overhead_us))
    headers += error_headers(error)
    await send_whole(send, status, headers, openai_body(error, request_id), close=close)


# --- headers and the record


def _hit_headers(entry: Entry, context: Context, record: Record) -> HeaderList:
    now = time.time()
    age = max(0, int(now - entry.created_at))
    ttl = max(0, int(entry.expires_at - now))
    saved = entry.completion.usage.prompt_tokens + entry.completion.usage.completion_tokens
    outcome = context.outcome
    record.status, record.cache, record.tokens_saved, record.entry = 200, outcome, saved, entry.entry_id
    headers = [
        (b"x-keepgate-request-id", context.request_id.encode()),
        (b"x-keepgate-cache", outcome.encode()),
        (b"cache-status", b"keepgate; hit; ttl=%d; detail=%b" % (ttl, outcome.encode())),
        (b"age", b"%d" % age),
        (b"x-keepgate-tokens-saved", b"%d" % saved),
        _CLEAN,
    ]
    if outcome == "semantic" and context.similarity is not None:
        record.similarity = context.similarity
        headers.append((b"x-keepgate-similarity", b"%.4f" % context.similarity))
        headers.append((b"x-keepgate-entry", entry.entry_id.encode()))
    return headers


def _miss_headers(flight: Flight, context: Context, record: Record) -> HeaderList:
    record.status, record.cache = 200, context.outcome
    headers = [
        (b"x-keepgate-request-id", context.request_id.encode()),
        (b"x-keepgate-cache", context.outcome.encode()),
        (b"cache-status", _cache_status(context).encode()),
        (b"x-keepgate-upstream", f"{flight.upstream}/{flight.upstream_model}".encode("latin-1", "replace")),
        _CLEAN,
    ]
    if context.similarity is not None:
        headers.append((b"x-keepgate-similarity", b"%.4f" % context.similarity))
    headers += [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in flight.headers]
    return headers


def _cache_status(context: Context | None) -> str:
    """What was not a hit, as RFC 9211, section 2, has it."""
    if context is None or context.outcome == "bypass":
        # Section 2.2: bypass is our policy's choice, request the client's.
        reason = "request" if context is not None and context.detail == "no-cache" else "bypass"
    else:
        reason = "miss"
    status = f"keepgate; fwd={reason}"
    if context is not None and context.outcome == "coalesced":
        status += "; collapsed"
    return f"{status}; detail={context.detail}" if context is not None and context.detail else status


def _tell(flight: Flight, context: Context, record: Record) -> None:
    """What the flight came to know, for the headers and the record."""
    context.detail = flight.detail or context.detail
    context.similarity = flight.similarity
    record.detail, record.similarity, record.shadow = context.detail, flight.similarity, flight.shadow
    record.upstream, record.upstream_model = flight.upstream, flight.upstream_model
    record.cache = context.outcome


def _count_tokens(completion: Completion, context: Context, record: Record) -> None:
    usage = completion.usage
    record.usage_estimated = usage.estimated
    if context.outcome in ("miss", "bypass"):
        record.prompt_tokens, record.completion_tokens = usage.prompt_tokens, usage.completion_tokens
    else:
        record.tokens_saved = usage.prompt_tokens + usage.completion_tokens


def _clock_first_byte(context: Context, record: Record, headers: HeaderList) -> None:
    record.overhead_us = max(0, int((time.perf_counter() - context.started - context.waited) * 1e6))
    headers.append((b"x-keepgate-overhead-us", b"%d" % record.overhead_us))


def _stopping() -> GatewayError:
    return LimitError("the gateway is stopping; ask again", code="overloaded", retry_after="1")


def _usage_chunk(completion: Completion, request: Request) -> bytes:
    whole: dict[str, Any] = msgspec.json.decode(completion.body)
    *_, last = replay.chunks({**whole, "choices": []}, request.operation, include_usage=True)
    return msgspec.json.encode(last)


def _is_name(model: str) -> bool:
    return 0 < len(model) <= _LONGEST_NAME and model.isprintable()


def _check_messages(messages: object) -> None:
    if not isinstance(messages, list) or not messages:
        raise RequestError("messages must be a list of at least one message", param="messages")
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise RequestError(f"messages[{number}] must be an object with a role", param=f"messages[{number}]")
