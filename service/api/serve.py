"""One inference request, from its headers to its record, whichever dialect it is asked in."""

import asyncio
import contextlib
import itertools
import logging
import os
import re
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import msgspec

from guardrails.restore import Restorer, restored_whole
from models.completion import Completion, Entry
from models.errors import ContentBlocked, GatewayError, LimitError, NotCached, Untranslatable, UpstreamError
from models.request import Request
from service.api.dialect import Asked, Dialect, StreamEncoder
from service.api.errors import error_headers, status_of
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
from service.api.wording import in_words_of
from service.caching import assembly, replay
from service.caching.single_flight import Flight
from service.context import CacheOutcome, Context
from service.pipeline.gateway import Gateway, Hit
from service.telemetry.recorder import Record, observe

log = logging.getLogger("keepgate.api")

_JSON = (b"content-type", b"application/json")
_NOT_TO_BE_KEPT = (b"cache-control", b"no-cache")
_CLEAN = (b"x-keepgate-guardrails", b"clean")
# The names are the client's own words, and go back to nobody else.
_MOST_DROPPED = 10
_LONGEST_DROPPED = 512
_UNPRINTABLE = re.compile(r"[^ -~]")
_ids = itertools.count()
_ID_PREFIX = f"req_{os.urandom(6).hex()}"


class Exchange(msgspec.Struct, gc=False):
    """One request and what answering it needs. `encoder` is there once a stream has begun."""

    dialect: Dialect
    request_id: str
    started: float
    record: Record
    receive: Receive
    send: Send
    context: Context | None = None
    encoder: StreamEncoder | None = None
    issued: Mapping[str, str] = {}


async def serve(
    do: Gateway, dialect: Dialect, asked: Asked, endpoint: str, scope: Scope, receive: Receive, send: Send
) -> None:
    """Always answers, if anybody is there to be answered; raises nothing."""
    started = time.perf_counter()
    request_id = new_request_id()
    # A name that the configuration does not have is the client's own text, and no label.
    named = endpoint if endpoint in do.endpoints else ""
    record = Record(time=time.time(), request_id=request_id, endpoint=named, operation=asked.operation)
    exchange = Exchange(dialect, request_id, started, record, receive, send)
    headers = header_map(scope["headers"])
    do.metrics.inflight.add((), 1)
    do.users += 1
    read = False
    request: Request | None = None
    try:
        context = exchange.context = do.authenticate(headers, endpoint, request_id=request_id, started=started)
        if context.caller.key is not None:
            record.key_id = context.caller.key.key_id
        raw = await read_body(headers, receive, limit=do.limits.max_body, timeout=do.limits.body_timeout)
        read = True
        request = dialect.decode(raw, asked)
        record.stream = request.stream
        record.model = request.model
        answer = await do.answer(request, context)
        if isinstance(answer, Flight) and context.outcome == "coalesced":
            answer = await _followed(do, exchange, answer, request, context)
        if isinstance(answer, Hit):
            exchange.issued = answer.issued
            await _send_hit(exchange, answer.entry, request, context)
        else:
            await _send_flight(do, exchange, answer, request, context)
    except GatewayError as error:
        told = in_words_of(request, error) if request is not None and isinstance(error, Untranslatable) else error
        with contextlib.suppress(ClientGone):
            await _send_failure(exchange, told, close=not read)
    except ClientGone:
        record.client_gone = True
    except asyncio.CancelledError:
        # The gateway is stopping, and this request outlived `server.drain`. Nothing comes after it in this task.
        if record.status == 0 or exchange.encoder is not None:
            with contextlib.suppress(ClientGone):
                await _send_failure(exchange, stopping(), close=True)
    except Exception:  # the outermost: what nobody thought of is still answered, and never a silent end
        log.exception("a request failed in a way nobody thought of")
        with contextlib.suppress(ClientGone):
            failure = GatewayError("the gateway failed; its log has the cause")
            await _send_failure(exchange, failure, close=True)
    finally:
        do.users -= 1
        do.metrics.inflight.add((), -1)
        record.seconds = time.perf_counter() - started
        observe(do.metrics, record)
        if do.recorder is not None:
            do.recorder.record(record)


def new_request_id() -> str:
    """Unique over processes; tells nothing about the request."""
    return f"{_ID_PREFIX}{next(_ids):08x}"


# --- answers


async def _send_hit(exchange: Exchange, entry: Entry, request: Request, context: Context) -> None:
    headers = _hit_headers(entry, context, exchange.record)
    request.replayed = True
    if request.stream:
        with HangUp(exchange.receive):
            await _send_replay(exchange, entry.completion, request, context, headers)
    else:
        await _send_whole(exchange, entry.completion, request, context, headers)


async def _followed(
    do: Gateway, exchange: Exchange, flight: Flight, request: Request, context: Context
) -> Hit | Flight:
    """Another's flight, once there is something of it to send.

    Where it broke after it had begun, or is a stream that does not add up to a
    whole answer, nothing was sent to this client, and a healthy target may
    serve it: it is answered anew, once. So it is where the other's request was
    blocked, which may say more than this one.
    """
    arrived = time.perf_counter()
    try:
        with HangUp(exchange.receive), contextlib.suppress(GatewayError):
            await _ready(flight, request)
    except (ClientGone, asyncio.CancelledError):
        _tell(flight, context, exchange.record)
        flight.leave()
        raise
    context.waited += time.perf_counter() - arrived
    blocked = isinstance(flight.error, ContentBlocked) and not flight.upstream
    if not (flight.broke or blocked) and (request.stream or not flight.in_pieces):
        return flight
    flight.leave()
    return await do.answer(request, context, streams=False)


async def _ready(flight: Flight, request: Request) -> None:
    """Returns when there is something to send. Raises what the flight ended with before that."""
    if request.stream and flight.streamed:
        await flight.opened()
    else:
        await flight.whole()


async def _send_flight(do: Gateway, exchange: Exchange, flight: Flight, request: Request, context: Context) -> None:
    record = exchange.record
    request.replayed = follows = context.outcome == "coalesced"
    arrived = time.perf_counter()
    try:
        with HangUp(exchange.receive):
            await _ready(flight, request)
            context.waited += time.perf_counter() - arrived if follows else flight.waited
            _tell(flight, context, record)
            exchange.issued = flight.issued
            if follows and flight.issued:
                # Only its own: what the other masked where it changes no answer need not be what this one did.
                exchange.issued = await do.screens.issued(request, context)
            if flight.hit and flight.entry is not None:
                context.outcome = flight.hit
                headers = _hit_headers(flight.entry, context, record)
                request.replayed = True
            else:
                headers = _miss_headers(flight, context, record)
            if request.stream and flight.chunks:
                await _send_live(exchange, flight, request, context, headers)
                return
            completion = (await flight.whole()).completion
            if flight.in_pieces and not request.stream:
                raise UpstreamError(
                    "the answer came as a stream that does not add up to a whole; ask for a stream", answered=200
                )
            _count_tokens(completion, context, record)
            if request.stream:
                await _send_replay(exchange, completion, request, context, headers)
            else:
                await _send_whole(exchange, completion, request, context, headers)
    except (GatewayError, ClientGone, asyncio.CancelledError):
        _tell(flight, context, record)
        raise
    finally:
        flight.leave()


async def _send_whole(
    exchange: Exchange, completion: Completion, request: Request, context: Context, headers: HeaderList
) -> None:
    if request.replayed and request.dialect != "responses":  # which makes ids of its own
        completion = replay.unlinked(completion)
    if exchange.issued:
        told = restored_whole(msgspec.json.decode(completion.body), exchange.issued, json_content=_is_json(request))
        completion = msgspec.structs.replace(completion, body=msgspec.json.encode(told))
    body = exchange.dialect.whole(completion, request)
    headers.append(_JSON)
    _clock_first_byte(context, exchange.record, headers)
    await send_whole(exchange.send, 200, headers, body)


async def _begin_stream(exchange: Exchange, request: Request, context: Context, headers: HeaderList) -> StreamEncoder:
    encoder = exchange.dialect.stream(request)
    headers += ((b"content-type", encoder.media_type), _NOT_TO_BE_KEPT)
    _clock_first_byte(context, exchange.record, headers)
    first_token_seconds = time.perf_counter() - context.started
    await send_start(exchange.send, 200, headers)
    exchange.record.first_token_seconds = first_token_seconds
    exchange.encoder = encoder  # from here on an error is an event
    return encoder


async def _send_live(
    exchange: Exchange, flight: Flight, request: Request, context: Context, headers: HeaderList
) -> None:
    """A stream as it arrives. An error once it has begun is an event of the stream: the status has gone out."""
    encoder = await _begin_stream(exchange, request, context, headers)
    # An event that only one dialect has says nothing to an OpenAI client; the other encoders tell for themselves.
    events = request.dialect != "openai"
    usage_sent = False
    restorer = Restorer(exchange.issued, json_content=_is_json(request)) if exchange.issued else None
    async for batch in flight.read():
        wanted = [
            chunk.payload
            for chunk in batch
            if (request.include_usage or not chunk.usage_only) and (events or not chunk.event_only)
        ]
        usage_sent = usage_sent or any(chunk.usage_only for chunk in batch)
        if restorer is not None:
            wanted = [restored for payload in wanted for restored in restorer.feed(payload)]
        if wanted and (part := encoder.chunks(wanted)):
            await send_part(exchange.send, part)
    completion = (await flight.whole()).completion
    _count_tokens(completion, context, exchange.record)
    last = b"" if restorer is None else encoder.chunks(restorer.end())
    if request.include_usage and not usage_sent:
        last += encoder.chunks([_usage_chunk(completion, request)])
    await send_part(exchange.send, last + encoder.end(completion))
    await send_end(exchange.send)


async def _send_replay(
    exchange: Exchange, completion: Completion, request: Request, context: Context, headers: HeaderList
) -> None:
    encoder = await _begin_stream(exchange, request, context, headers)
    if request.replayed and request.dialect != "responses":
        completion = replay.unlinked(completion)
    whole: dict[str, Any] = msgspec.json.decode(completion.body)
    if exchange.issued:
        whole = restored_whole(whole, exchange.issued, json_content=_is_json(request))
    if not isinstance(whole.get("usage"), dict):
        whole["usage"] = assembly.usage_fields(completion.usage)
    chunks = replay.chunks(whole, request.operation, include_usage=request.include_usage)
    if exchange.dialect.usage_first:
        encoder.chunks([_usage_chunk(completion, request)])  # before its first event there is nothing to send
    if context.endpoint.replay == "paced":
        async for payload in _paced(chunks, context.endpoint.replay_rate):
            if part := encoder.chunks((payload,)):
                await send_part(exchange.send, part)
    else:
        for number, batch in enumerate(_batches(chunks, 256)):
            if number:
                await asyncio.sleep(0)  # a socket that takes everything at once never makes this task wait
            await send_part(exchange.send, encoder.chunks([msgspec.json.encode(chunk) for chunk in batch]))
    await send_part(exchange.send, encoder.end(completion))
    await send_end(exchange.send)


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


async def _break_off(exchange: Exchange, encoder: StreamEncoder, error: GatewayError) -> None:
    """Ends a stream that has begun."""
    exchange.record.code = error.code
    await send_part(exchange.send, encoder.error(error, exchange.request_id))
    await send_end(exchange.send)


async def _send_failure(exchange: Exchange, error: GatewayError, *, close: bool) -> None:
    """Whenever it came: an answer of its own, or the end of a stream that has begun."""
    if exchange.encoder is None:
        await _send_error(exchange, error, close=close)
    else:
        await _break_off(exchange, exchange.encoder, error)


async def _send_error(exchange: Exchange, error: GatewayError, *, close: bool) -> None:
    """`close`: the body was not read to its end, and what is left of it must not be waited for."""
    context, record = exchange.context, exchange.record
    status = status_of(error)
    unsent = isinstance(error, NotCached)
    outcome: CacheOutcome = "bypass" if context is None else context.outcome
    record.status, record.code, record.cache = status, error.code, outcome
    headers: HeaderList = [
        _JSON,
        (b"x-keepgate-request-id", exchange.request_id.encode()),
        (b"x-keepgate-cache", outcome.encode()),
        (b"cache-status", b"keepgate; detail=not-cached" if unsent else _cache_status(context).encode()),
        _guardrails(context, record),
    ]
    if isinstance(error, UpstreamError) and error.answered is not None and record.upstream:
        headers.append(_upstream(record.upstream, record.upstream_model))
    if context is not None and context.similarity is not None:
        headers.append((b"x-keepgate-similarity", b"%.4f" % context.similarity))
        record.similarity = context.similarity
    waited = 0.0 if context is None else context.waited
    record.overhead_us = max(0, int((time.perf_counter() - exchange.started - waited) * 1e6))
    headers.append((b"x-keepgate-overhead-us", b"%d" % record.overhead_us))
    headers += error_headers(error)
    body = exchange.dialect.error(error, exchange.request_id)
    await send_whole(exchange.send, status, headers, body, close=close)


# --- headers and the record


def _hit_headers(entry: Entry, context: Context, record: Record) -> HeaderList:
    now = time.time()
    age = max(0, int(now - entry.created_at))
    ttl = int(entry.expires_at - now)  # RFC 9211, section 2.4: below 0 where it is served stale
    saved = entry.completion.usage.prompt_tokens + entry.completion.usage.completion_tokens
    outcome = context.outcome
    record.status, record.cache, record.tokens_saved, record.entry = 200, outcome, saved, entry.entry_id
    record.detail = context.detail
    headers = [
        (b"x-keepgate-request-id", context.request_id.encode()),
        (b"x-keepgate-cache", outcome.encode()),
        (b"cache-status", b"keepgate; hit; ttl=%d; detail=%b" % (ttl, (context.detail or outcome).encode())),
        (b"age", b"%d" % age),
        (b"x-keepgate-tokens-saved", b"%d" % saved),
        _guardrails(context, record),
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
        _upstream(flight.upstream, flight.upstream_model),
        _guardrails(context, record),
    ]
    if context.similarity is not None:
        headers.append((b"x-keepgate-similarity", b"%.4f" % context.similarity))
    if flight.dropped:
        shown = ", ".join(flight.dropped[:_MOST_DROPPED])
        headers.append((b"x-keepgate-dropped", _UNPRINTABLE.sub("?", shown)[:_LONGEST_DROPPED].encode()))
    headers += [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in flight.headers]
    return headers


def _upstream(name: str, model: str) -> tuple[bytes, bytes]:
    return b"x-keepgate-upstream", f"{name}/{model}".encode("latin-1", "replace")


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
    context.acted = flight.acted
    record.detail, record.similarity, record.shadow = context.detail, flight.similarity, flight.shadow
    record.upstream, record.upstream_model = flight.upstream, flight.upstream_model
    record.cache = context.outcome


def _is_json(request: Request) -> bool:
    """Whether the answer's content is JSON as well, so that a value has to be written as one."""
    wanted = request.body.get("response_format")
    return isinstance(wanted, dict) and wanted.get("type") in ("json_schema", "json_object")


def _guardrails(context: Context | None, record: Record) -> tuple[bytes, bytes]:
    acted = () if context is None else context.acted
    if not acted:
        return _CLEAN
    record.guardrails = ", ".join(acted)
    return (b"x-keepgate-guardrails", record.guardrails.encode("latin-1", "replace"))


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


def stopping() -> GatewayError:
    return LimitError("the gateway is stopping; ask again", code="overloaded", retry_after="1")


def _usage_chunk(completion: Completion, request: Request) -> bytes:
    whole: dict[str, Any] = msgspec.json.decode(completion.body)
    *_, last = replay.chunks({**whole, "choices": []}, request.operation, include_usage=True)
    return msgspec.json.encode(last)
