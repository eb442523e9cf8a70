"""Routes without a cache: audio, images, files, batches, moderations and rerank as they are, and counts of tokens.

Keys, limits of size and time, and the log hold for them; no cache is asked,
and nothing is read of a body but the model in it.
"""

import contextlib
import re
import time
from collections.abc import Iterator
from urllib.parse import quote

import msgspec

from backends.upstream.base import Passage
from models.errors import AccessError, GatewayError, RequestError, UpstreamError
from models.request import Request
from service.api import anthropic_messages, anthropic_request, gemini_generate, gemini_request
from service.api.anthropic_messages import ANTHROPIC
from service.api.body import json_object, model_name
from service.api.dialect import Dialect
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
from service.api.gemini_generate import GEMINI_SSE
from service.api.serve import new_request_id
from service.context import Context
from service.pipeline.admit import admit
from service.pipeline.call import forward
from service.pipeline.gateway import Gateway
from service.pipeline.headers import forwarded
from service.pipeline.settle import estimated
from service.routing.aliases import Target
from service.telemetry.recorder import Record, observe

_JSON = (b"content-type", b"application/json")
_UPSTREAM = b"x-keepgate-upstream"
_NOT_SERVED = frozenset({404, 405, 501})
_METHODS = frozenset({"GET", "POST", "DELETE"})
# What may stand in a path: nothing that climbs out of the API's own folder or ends the request line.
_PATH = re.compile(r"(?:/[A-Za-z0-9_~:@!$&'()*+,;=%-][A-Za-z0-9._~:@!$&'()*+,;=%-]*)+/?")
_QUERY = re.compile(r"[\x21-\x7e]*")
_ENCODED_DOT_OR_SLASH = re.compile(r"%(?:2e|2f|5c)", re.IGNORECASE)
# RFC 7578: a part's headers, an empty line, its content, the boundary.
_MODEL_PART = re.compile(
    rb'content-disposition: *form-data; *name="?model"?[^\r\n]*\r\n(?:[^\r\n]+\r\n)*\r\n', re.IGNORECASE
)


@contextlib.contextmanager
def _recorded(do: Gateway, endpoint: str, operation: str) -> Iterator[Record]:
    """One request in the log and the metrics, whatever becomes of it."""
    started = time.perf_counter()
    record = Record(
        time=time.time(),
        request_id=new_request_id(),
        endpoint=endpoint if endpoint in do.endpoints else "",
        operation=operation,
    )
    do.metrics.inflight.add((), 1)
    do.users += 1
    try:
        yield record
    except ClientGone:
        record.client_gone = True
    finally:
        do.users -= 1
        do.metrics.inflight.add((), -1)
        record.seconds = time.perf_counter() - started
        observe(do.metrics, record)
        if do.recorder is not None:
            do.recorder.record(record)


async def pass_on(
    do: Gateway, dialect: Dialect, path: str, endpoint: str, scope: Scope, receive: Receive, send: Send
) -> None:
    """`path` comes after `/v1`, as the client wrote it."""
    with _recorded(do, endpoint, "passthrough") as record:
        asking = _Asking(do, record, receive, send)
        try:
            context = asking.authenticate(scope, endpoint)
            method, query = scope["method"], scope["query_string"].decode("latin-1")
            if method not in _METHODS:
                raise RequestError(f"{scope['path']} takes GET, POST and DELETE", code="method_not_allowed")
            if not _PATH.fullmatch(path) or _ENCODED_DOT_OR_SLASH.search(path) or not _QUERY.fullmatch(query):
                raise RequestError("the path or its query has characters that are not passed on")
            body = await asking.body(context)
            media_type = context.headers.get(b"content-type", b"application/json")
            upstream, body = _led(do, context, body, media_type, record)
            whole_path = f"{path}?{query}" if query else path
            passage = _passage(context, dialect, method, whole_path, body or None, media_type)
            await asking.forward(context, Target(upstream, record.upstream_model), passage)
        except GatewayError as error:
            await asking.refuse(dialect, error)


async def count_tokens(do: Gateway, path: str, endpoint: str, scope: Scope, receive: Receive, send: Send) -> None:
    """How many tokens a request has: by an upstream that speaks the client's dialect and counts, else estimated here.

    https://platform.claude.com/docs/en/api/messages-count-tokens
    https://ai.google.dev/api/tokens
    """
    model = gemini_generate.counted_model(path)
    dialect = ANTHROPIC if model is None else GEMINI_SSE
    with _recorded(do, endpoint, "count_tokens") as record:
        asking = _Asking(do, record, receive, send)
        try:
            context = asking.authenticate(scope, endpoint)
            raw = await asking.body(context)
            request = anthropic_request.decode_count(raw) if model is None else gemini_request.decode_count(raw, model)
            record.model = request.model
            for target in admit(request, context, do.aliases).targets:
                if dialect.name in do.upstreams[target.upstream].dialects:
                    record.upstream, record.upstream_model = target.upstream, target.model
                    if model is None:
                        body = msgspec.json.encode({**(request.native or {}), "model": target.model})
                        asked = "/messages/count_tokens"
                    else:
                        body, asked = raw, f"/models/{quote(target.model, safe='')}:countTokens"
                    try:
                        await asking.forward(context, target, _passage(context, dialect, "POST", asked, body))
                    except UpstreamError as error:
                        # Not all who answer messages count their tokens.
                        if error.answered not in _NOT_SERVED:
                            raise
                    else:
                        return
            record.upstream = record.upstream_model = ""
            usage = await estimated(request, "")
            record.status = 200
            shape = anthropic_messages.counted_tokens if model is None else gemini_generate.token_count
            await send_whole(send, 200, [_JSON, *_answer_headers(record)], shape(usage.prompt_tokens))
        except GatewayError as error:
            await asking.refuse(dialect, error)


def _passage(
    context: Context,
    dialect: Dialect,
    method: str,
    path: str,
    body: bytes | None,
    media_type: bytes = b"application/json",
) -> Passage:
    credential = context.caller.credential
    headers = (*forwarded(context.headers), ("content-type", media_type.decode("latin-1")))
    authorization = None if credential is None else f"Bearer {credential}"
    return Passage(method, path, headers, body, authorization, dialect.name)


class _Asking:
    """One request on its way to an upstream and back."""

    def __init__(self, do: Gateway, record: Record, receive: Receive, send: Send) -> None:
        self._do = do
        self._record = record
        self._receive = receive
        self._send = send
        self._started = time.perf_counter()
        self._read = self._begun = False

    def authenticate(self, scope: Scope, endpoint: str) -> Context:
        headers = header_map(scope["headers"])
        context = self._do.authenticate(headers, endpoint, request_id=self._record.request_id, started=self._started)
        if context.caller.key is not None:
            self._record.key_id = context.caller.key.key_id
        return context

    async def body(self, context: Context) -> bytes:
        limits = self._do.limits
        body = await read_body(context.headers, self._receive, limit=limits.max_body, timeout=limits.body_timeout)
        self._read = True
        return body

    async def forward(self, context: Context, target: Target, passage: Passage) -> None:
        record = self._record
        with HangUp(self._receive):
            passed = await forward(passage, target, context, self._do.board)
            record.status = passed.status
            record.overhead_us = max(0, int((time.perf_counter() - self._started - context.waited) * 1e6))
            headers = _answer_headers(record)
            headers += [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in passed.headers]
            try:
                await send_start(self._send, passed.status, headers)
                self._begun = True
                async for piece in passed:
                    await send_part(self._send, piece)
                await send_end(self._send)
            finally:
                await passed.close()

    async def refuse(self, dialect: Dialect, error: GatewayError) -> None:
        record = self._record
        record.code = error.code
        if self._begun:
            # A body of no known form can only be cut off: the server closes a connection whose answer is not whole.
            return
        record.status = status_of(error)
        headers = [_JSON, *_answer_headers(record), *error_headers(error)]
        body = dialect.error(error, record.request_id)
        await send_whole(self._send, record.status, headers, body, close=not self._read)


def _answer_headers(record: Record) -> HeaderList:
    headers = [
        (b"x-keepgate-request-id", record.request_id.encode()),
        (b"x-keepgate-cache", b"bypass"),
        (b"cache-status", b"keepgate; fwd=bypass; detail=passthrough"),
        (b"x-keepgate-overhead-us", b"%d" % record.overhead_us),
    ]
    if record.upstream:
        led_to = f"{record.upstream}/{record.upstream_model}" if record.upstream_model else record.upstream
        headers.append((_UPSTREAM, led_to.encode("latin-1", "replace")))
    return headers


def _led(do: Gateway, context: Context, body: bytes, media_type: bytes, record: Record) -> tuple[str, bytes]:
    """The upstream that the header or the model names, and the body with the model's name there.

    Raises `RequestError` where neither does and there are several, `AccessError` where the key may not ask it.
    """
    named = context.headers.get(_UPSTREAM, b"").decode("latin-1").strip()
    if named and named not in do.upstreams:
        raise RequestError(
            f"x-keepgate-upstream names no upstream; known: {', '.join(do.upstreams)}", param="x-keepgate-upstream"
        )
    at = _model_span(body) if media_type.lower().startswith(b"multipart/") else None
    fields = json_object(body) if body and media_type.lower().startswith(b"application/json") else {}
    model = body[slice(*at)].decode("utf-8", "replace") if at is not None else fields.get("model")
    key = context.caller.key
    if model is None or (named and (key is None or key.models is None)):
        if key is not None and key.models is not None:
            raise AccessError("this key may use some models only, and the request names none", code="not_allowed")
        if not named and len(do.upstreams) > 1:
            raise RequestError(
                f"name the upstream in the header x-keepgate-upstream: {', '.join(do.upstreams)}", param="model"
            )
        record.upstream = named or next(iter(do.upstreams))
        return record.upstream, body
    record.model = model_name(model)
    target = admit(Request("chat", record.model, {}, b""), context, do.aliases).targets[0]
    record.upstream, record.upstream_model = named or target.upstream, target.model
    if target.model == model:
        return record.upstream, body
    if at is not None:
        return record.upstream, body[: at[0]] + target.model.encode() + body[at[1] :]
    return record.upstream, msgspec.json.encode({**fields, "model": target.model})


def _model_span(body: bytes) -> tuple[int, int] | None:
    """Where the value of the field `model` lies in a form."""
    found = _MODEL_PART.search(body)
    if found is None:
        return None
    end = body.find(b"\r\n", found.end())
    return (found.end(), end) if end != -1 else None
