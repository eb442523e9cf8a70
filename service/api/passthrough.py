"""Routes without a cache: audio, images, files, batches, moderations and rerank as they are, and counts of tokens.

Keys, limits of size and time, and the log hold for them; no cache is asked.
Guardrails look at what is JSON, and at the fields of forms that are no files.
"""

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import Coroutine, Iterator, Sequence
from urllib.parse import quote

import msgspec

from backends.upstream.base import Passage
from guardrails.policy import Choice
from guardrails.restore import restored_whole
from models.errors import AccessError, GatewayError, LimitError, RequestError, UpstreamError
from models.request import Request
from service.api import anthropic_messages, anthropic_request, form, gemini_generate, gemini_request
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
from service.api.serve import new_request_id, stopping
from service.context import Context
from service.pipeline.admit import admit
from service.pipeline.forward import Forwarded, forward
from service.pipeline.gateway import Gateway
from service.pipeline.headers import forwarded
from service.pipeline.settle import estimated
from service.routing.aliases import Target
from service.routing.balance import in_order
from service.telemetry.recorder import Record, observe

log = logging.getLogger("keepgate.api")

_JSON = (b"content-type", b"application/json")
_UPSTREAM = b"x-keepgate-upstream"
_NOT_SERVED = frozenset({404, 405, 501})
_METHODS = frozenset({"GET", "POST", "DELETE"})
# Whatever was uploaded is not to become a page of this origin.
_NO_PAGE = ((b"x-content-type-options", b"nosniff"), (b"content-security-policy", b"sandbox"))
_IS_JSON = re.compile(r"application/json\b", re.I)
# What may stand in a path: nothing that climbs out of the API's own folder or ends the request line.
_PATH = re.compile(r"(?:/[A-Za-z0-9_~:@!$&'()*+,;=%-][A-Za-z0-9._~:@!$&'()*+,;=%-]*)+/?")
_QUERY = re.compile(r"[\x21-\x7e]*")
_ENCODED_DOT_OR_SLASH = re.compile(r"%(?:2e|2f|5c)", re.IGNORECASE)
# Where the model in the body is what is used, and all that is used.
_BY_MODEL = re.compile(r"/audio/.+|/images/.+|/moderations|/rerank")


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
        await asking.answer(dialect, _pass_on(asking, dialect, path, endpoint, scope))


async def _pass_on(asking: "_Asking", dialect: Dialect, path: str, endpoint: str, scope: Scope) -> None:
    context = asking.authenticate(scope, endpoint)
    method, query = scope["method"], scope["query_string"].decode("latin-1")
    if method not in _METHODS:
        raise RequestError(f"{scope['path']} takes GET, POST and DELETE", code="method_not_allowed")
    if not _PATH.fullmatch(path) or _ENCODED_DOT_OR_SLASH.search(path) or not _QUERY.fullmatch(query):
        raise RequestError("the path or its query has characters that are not passed on")
    # Google's clients may put their credential there.
    query = "&".join(part for part in query.split("&") if part.partition("=")[0] != "key")
    body = await asking.body(context)
    media_type = context.headers.get(b"content-type", b"application/json")
    targets, body = _led(asking.do, context, path, body, media_type, asking.record)
    body = await asking.screened_body(context, body, media_type)
    whole_path = f"{path}?{query}" if query else path
    passage = _passage(context, dialect, method, whole_path, body if body or method == "POST" else None, media_type)
    await asking.forward(context, targets, passage)


async def count_tokens(do: Gateway, path: str, endpoint: str, scope: Scope, receive: Receive, send: Send) -> None:
    """How many tokens a request has: by an upstream that speaks the client's dialect and counts, else estimated here.

    https://platform.claude.com/docs/en/api/messages-count-tokens
    https://ai.google.dev/api/tokens
    """
    model = gemini_generate.counted_model(path)
    dialect = ANTHROPIC if model is None else GEMINI_SSE
    with _recorded(do, endpoint, "count_tokens") as record:
        asking = _Asking(do, record, receive, send)
        await asking.answer(dialect, _count(asking, dialect, model, endpoint, scope))


async def _count(asking: "_Asking", dialect: Dialect, model: str | None, endpoint: str, scope: Scope) -> None:
    do, record = asking.do, asking.record
    context = asking.authenticate(scope, endpoint)
    raw = await asking.body(context)
    request = anthropic_request.decode_count(raw) if model is None else gemini_request.decode_count(raw, model)
    record.model = request.model
    targets = admit(request, context, do.aliases).targets
    request = await asking.screened(context, request)
    for target in targets:
        if dialect.name not in do.upstreams[target.upstream].dialects:
            continue
        try:
            await asking.forward(context, (target,), _counted_there(context, dialect, request, target))
        except (UpstreamError, LimitError) as error:
            # Not all who answer messages count their tokens, and an estimate is better than none.
            status = error.status if isinstance(error, UpstreamError) else None
            if asking.begun or (status is not None and status not in _NOT_SERVED):
                raise
        else:
            return
    record.upstream = record.upstream_model = ""
    usage = await estimated(request, "")
    record.status = 200
    shape = anthropic_messages.counted_tokens if model is None else gemini_generate.token_count
    headers = [_JSON, *_answer_headers(record, looked=asking.looked)]
    await send_whole(asking.send, 200, headers, shape(usage.prompt_tokens))


def _counted_there(context: Context, dialect: Dialect, request: Request, target: Target) -> Passage:
    if dialect is ANTHROPIC:
        body = msgspec.json.encode({**(request.native or {}), "model": target.model})
        return _passage(context, dialect, "POST", "/messages/count_tokens", body)
    collection, slash, name = target.model.partition("/")
    if not slash or collection not in ("models", "tunedModels"):
        collection, name = "models", target.model
    # A name may not climb out of its place in the path, nor the body name another model.
    asked = {**(request.native or {}), "model": f"{collection}/{name}"}
    body = msgspec.json.encode({"generateContentRequest": asked})
    return _passage(context, dialect, "POST", f"/{collection}/{quote(name, safe='')}:countTokens", body)


def _passage(
    context: Context,
    dialect: Dialect,
    method: str,
    path: str,
    body: bytes | None,
    media_type: bytes = b"application/json",
) -> Passage:
    credential = context.caller.credential
    authorization = None if credential is None else f"Bearer {credential}"
    return Passage(
        method,
        path,
        forwarded(context.headers),
        body,
        media_type.decode("latin-1"),
        authorization,
        dialect.name,
    )


class _Asking:
    """One request on its way to an upstream and back."""

    def __init__(self, do: Gateway, record: Record, receive: Receive, send: Send) -> None:
        self.do = do
        self.record = record
        self.send = send
        self.begun = False
        self.looked = False  # a guardrail did
        self._choice: Choice | None = None
        self._issued: dict[str, str] = {}
        self._receive = receive
        self._started = time.perf_counter()
        self._read = False

    async def answer(self, dialect: Dialect, work: Coroutine[None, None, None]) -> None:
        """Whatever `work` ends with is told in the dialect. Raises `ClientGone`."""
        try:
            await work
        except GatewayError as error:
            await self._refuse(dialect, error)
        except ClientGone:
            raise
        except asyncio.CancelledError:
            # The gateway is stopping, and this request outlived `server.drain`. Nothing comes after it in this task.
            await self._refuse(dialect, stopping())
        except Exception:  # the outermost, as in serve.py
            log.exception("a request failed in a way nobody thought of")
            await self._refuse(dialect, GatewayError("the gateway failed; its log has the cause"))

    def authenticate(self, scope: Scope, endpoint: str) -> Context:
        headers = header_map(scope["headers"])
        context = self.do.authenticate(headers, endpoint, request_id=self.record.request_id, started=self._started)
        if context.caller.key is not None:
            self.record.key_id = context.caller.key.key_id
        return context

    async def body(self, context: Context) -> bytes:
        limits = self.do.limits
        body = await read_body(context.headers, self._receive, limit=limits.max_body, timeout=limits.body_timeout)
        self._read = True
        return body

    async def screened(self, context: Context, request: Request) -> Request:
        """As it may be sent. Raises `ContentBlocked` or `GuardrailUnavailable`."""
        choice = self._choice = self.do.screens.choose(request, context)
        self.looked = bool(choice.rules)
        try:
            screened = await self.do.screens.request(request, context, choice)
        finally:
            self.record.guardrails = ", ".join(context.acted)
        self._issued = screened.issued
        return screened.request

    async def screened_body(self, context: Context, body: bytes, media_type: bytes) -> bytes:
        """The same for the body of a route whose fields are not known here."""
        if not body:
            self._choice = self.do.screens.choose(Request("chat", self.record.model, {}, body), context)
            return body
        if _is_form(media_type):
            return await self._screened_form(context, body, media_type)
        request = Request("chat", self.record.model, json_object(body), body)
        screened = await self.screened(context, request)
        # Written anew: of a field that occurs twice, the other was not looked at.
        return msgspec.json.encode(screened.body) if self.looked else body

    async def _screened_form(self, context: Context, body: bytes, media_type: bytes) -> bytes:
        values = form.texts(body, media_type)
        said = [value.decode("utf-8", "replace") for value in values]
        request = Request("chat", self.record.model, {"input": said}, body)
        screened = await self.screened(context, request)
        told = screened.body["input"]
        changed = {old: new.encode() for old, text, new in zip(values, said, told, strict=True) if text != new}
        return form.rewritten(body, media_type, changed) if changed else body

    async def forward(self, context: Context, targets: Sequence[Target], passage: Passage) -> None:
        record = self.record
        record.upstream, record.upstream_model = targets[0].upstream, targets[0].model
        with HangUp(self._receive):
            passed = await forward(passage, targets, context, self.do.board)
            try:
                record.upstream, record.upstream_model = passed.target.upstream, passed.target.model
                record.status = passed.status
                record.overhead_us = max(0, int((time.perf_counter() - self._started - context.waited) * 1e6))
                whole = await self._whole(passed, context)
                headers = _answer_headers(record, looked=self.looked)
                for name, value in passed.headers:
                    if whole is None or name != "content-length":
                        headers.append((name.encode("latin-1"), value.encode("latin-1", "replace")))
                headers += _NO_PAGE
                if whole is not None:
                    self.begun = True
                    await send_whole(self.send, passed.status, headers, whole)
                    return
                await send_start(self.send, passed.status, headers)
                self.begun = True
                async for piece in passed:
                    await send_part(self.send, piece)
                await send_end(self.send)
            finally:
                await passed.close()

    async def _whole(self, passed: Forwarded, context: Context) -> bytes | None:
        """An answer in JSON as it may be read, where a rule looks at it or something was masked; else None."""
        media_type = next((value for name, value in passed.headers if name == "content-type"), "")
        screens, choice = self.do.screens, self._choice
        if not _IS_JSON.match(media_type) or choice is None or not (self._issued or screens.looks_at_answers(choice)):
            return None
        began = time.perf_counter()
        body = b"".join([piece async for piece in passed])
        context.waited += time.perf_counter() - began
        if not body.strip():
            return body
        # An object is what rules are used to.
        before, after = (b"", b"") if body.lstrip()[:1] == b"{" else (b'{"output":', b"}")
        self.looked = True
        try:
            told, _ = await screens.answer(before + body + after, context, choice)
        finally:
            self.record.guardrails = ", ".join(context.acted)
        if self._issued:
            told = msgspec.json.encode(restored_whole(msgspec.json.decode(told), self._issued))
        return told[len(before) : len(told) - len(after)]

    async def _refuse(self, dialect: Dialect, error: GatewayError) -> None:
        record = self.record
        record.code = error.code
        if self.begun:
            # A body of no known form can only be cut off: the server closes a connection whose answer is not whole.
            return
        record.status = status_of(error)
        headers = [_JSON, *_answer_headers(record, looked=self.looked), *error_headers(error)]
        if error.code == "method_not_allowed":
            headers.append((b"allow", b"GET, POST, DELETE"))
        body = dialect.error(error, record.request_id)
        await send_whole(self.send, record.status, headers, body, close=not self._read)


def _answer_headers(record: Record, *, looked: bool) -> HeaderList:
    headers = [
        (b"x-keepgate-request-id", record.request_id.encode()),
        (b"x-keepgate-cache", b"bypass"),
        (b"cache-status", b"keepgate; fwd=bypass; detail=passthrough"),
        (b"x-keepgate-overhead-us", b"%d" % record.overhead_us),
    ]
    if looked:
        headers.append((b"x-keepgate-guardrails", (record.guardrails or "clean").encode("latin-1", "replace")))
    if record.upstream:
        led_to = f"{record.upstream}/{record.upstream_model}" if record.upstream_model else record.upstream
        headers.append((_UPSTREAM, led_to.encode("latin-1", "replace")))
    return headers


def _is_form(media_type: bytes) -> bool:
    return media_type.lower().startswith(b"multipart/")


def _led(
    do: Gateway, context: Context, path: str, body: bytes, media_type: bytes, record: Record
) -> tuple[Sequence[Target], bytes]:
    """The targets that the model leads to, or the upstream that the header names, and the body with the model's name
    there: that of the first target, which the others must share.

    Raises `RequestError` where neither is named and there are several, `AccessError` where the key may not ask it.
    """
    named = context.headers.get(_UPSTREAM, b"").decode("latin-1").strip()
    if named and named not in do.upstreams:
        raise RequestError(
            f"x-keepgate-upstream names no upstream; known: {', '.join(do.upstreams)}", param="x-keepgate-upstream"
        )
    is_form = _is_form(media_type)
    at = form.model_span(body, media_type) if is_form else None
    # JSON whatever it is called, as everywhere: `curl -d` calls it a form.
    fields = json_object(body) if body and not is_form else {}
    model = body[slice(*at)].decode("utf-8", "replace") if at is not None else fields.get("model")
    restricted = context.caller.key is not None and context.caller.key.models is not None
    if restricted and (model is None or not _BY_MODEL.fullmatch(path)):
        raise AccessError("this key may use some models only, and here no model says what is used", code="not_allowed")
    if model is None or (named and not restricted):
        if not named and len(do.upstreams) > 1:
            raise RequestError(
                f"name the upstream in the header x-keepgate-upstream: {', '.join(do.upstreams)}", param="model"
            )
        return (Target(named or next(iter(do.upstreams)), ""),), body
    record.model = model_name(model)
    route = admit(Request("chat", record.model, {}, b""), context, do.aliases)
    ordered = in_order(route, do.standings, streamed=False, draw=do.board.draw)
    targets = [target for target in ordered if named in ("", target.upstream)]
    if not targets:
        raise AccessError("this key may use that model at its own upstreams only", code="not_allowed")
    model = targets[0].model
    targets = [target for target in targets if target.model == model]
    if at is not None:
        return targets, body[: at[0]] + model.encode() + body[at[1] :]
    # Written anew from what was read: a field that occurs twice must not be another model over there.
    return targets, msgspec.json.encode({**fields, "model": model})
