"""The ASGI application: inference first and by hand, everything else through FastAPI."""

import asyncio
import contextlib
import re
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from importlib.metadata import version
from typing import Any

import msgspec
from fastapi import Request as HttpRequest
from fastapi import Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from models.errors import AccessError, BackendError, GatewayError, RequestError
from models.request import Request
from service.admin.api import PREFIX as ADMIN
from service.admin.api import is_admin, management
from service.api import routes
from service.api.body import is_model_name
from service.api.dialect import Dialect
from service.api.errors import error_headers, openai_body, status_of
from service.api.exchange import (
    ClientGone,
    HeaderList,
    Message,
    Receive,
    Scope,
    Send,
    header_map,
    read_body,
    send_whole,
)
from service.api.openai_chat import OPENAI
from service.api.passthrough import count_tokens, pass_on
from service.api.serve import new_request_id, serve
from service.pipeline.admit import admit, visible
from service.telemetry.metrics import render
from service.wiring import Runtime

_JSON = (b"content-type", b"application/json")
_EXPOSED = (
    b"x-keepgate-request-id, x-keepgate-cache, cache-status, age, x-keepgate-similarity, x-keepgate-entry, "
    b"x-keepgate-tokens-saved, x-keepgate-upstream, x-keepgate-dropped, x-keepgate-guardrails, x-keepgate-overhead-us, "
    b"x-upstream-request-id, retry-after, x-should-retry"
)


_APIS = ("/v1/", "/anthropic/", "/openai/", "/genai/")
# What the management API takes: a key's description is a few hundred bytes.
_MAX_ADMIN_BODY = 1024**2
_LOOPBACK = rb"(?:localhost|127\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}|\[::1\])(?::[0-9]{1,5})?"
_LOOPBACK_HOST = re.compile(_LOOPBACK)
_LOOPBACK_ORIGIN = re.compile(rb"https?://" + _LOOPBACK)


class App:
    """One worker's application. `runtime.state` is swapped on reload; a request keeps the one it began with."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._management = management(runtime)
        for kind in (GatewayError, BackendError, RequestValidationError, HTTPException, Exception):
            self._management.add_exception_handler(kind, _refusal)
        self._plain: dict[str, Callable[[Scope, Receive, Send], Awaitable[None]]] = {
            "/": self._root,
            "/health/live": self._live,
            "/health/ready": self._ready,
            "/metrics": self._metrics,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            await self._answer(scope, receive, send)
        except ClientGone:
            return  # there is nobody to answer

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        endpoint = "default"
        if path.startswith("/e/"):
            endpoint, _, rest = path[3:].partition("/")
            path = f"/{rest}"
        place = routes.place(path, scope["query_string"], scope["headers"])
        if type(place) is routes.Inference and scope["method"] == "POST" and self._asks_nobody_back:
            # The usual case in a straight line: another coroutine on the way is a fortieth of an exact hit.
            state = self._runtime.state
            await serve(state.gateway, place.dialect, place.asked, endpoint, scope, receive, send)
        elif place is not None:
            await self._answer_client(place, path, endpoint, scope, receive, send)
        elif (plain := self._plain.get(scope["path"])) is not None:
            if scope["method"] in ("GET", "HEAD"):
                await plain(scope, receive, send)
            else:
                await _refuse(send, _not_allowed(path, "GET"), (b"allow", b"GET, HEAD"))
        elif path.startswith(_APIS) or scope["path"].startswith("/e/"):
            await _refuse(send, _not_served(path), dialect=routes.speaks(path))
        elif path.startswith(ADMIN):
            await self._administered(scope, receive, send)
        else:
            await self._management(scope, receive, send)

    @property
    def _asks_nobody_back(self) -> bool:
        """Whether neither origins nor pages play a part in who may ask."""
        state = self._runtime.state
        return state.settings.keys.require and not state.cors_origins

    async def _answer_client(
        self, place: routes.Place, path: str, endpoint: str, scope: Scope, receive: Receive, send: Send
    ) -> None:
        state = self._runtime.state
        if state.cors_origins:
            answered, send = await self._cors(scope, send)
            if answered:
                return
        if isinstance(place, routes.Models):
            await self._models(place, endpoint, scope, send)
            return
        if not state.settings.keys.require:
            # Nobody has to show a key, so a page in the operator's own browser could spend what the upstreams'
            # credentials allow: its requests are told by their Origin.
            for name, origin in scope["headers"]:
                if name == b"origin" and not _may_ask(origin, state.cors_origins):
                    await _refuse(send, _foreign_page(), dialect=routes.speaks(path))
                    return
        if isinstance(place, routes.PassedOn):
            if not state.settings.keys.require and not _is_ours(scope["headers"], state.cors_origins):
                await _refuse(send, _foreign_page(), dialect=routes.speaks(path))
                return
            written = routes.place(_as_written(scope), b"", [])
            if not isinstance(written, routes.PassedOn):
                await _refuse(send, _not_served(path), dialect=routes.speaks(path))
                return
            await pass_on(state.gateway, routes.speaks(path), written.path, endpoint, scope, receive, send)
        elif scope["method"] != "POST":
            await _refuse(send, _not_allowed(path, "POST"), (b"allow", b"POST"), dialect=routes.speaks(path))
        elif isinstance(place, routes.Inference):
            await serve(state.gateway, place.dialect, place.asked, endpoint, scope, receive, send)
        else:
            await count_tokens(state.gateway, place.path, endpoint, scope, receive, send)

    async def _administered(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Token first, then a bounded body, and only then FastAPI, which reads whatever it is sent."""
        headers = header_map(scope["headers"])
        if not is_admin(headers, self._runtime.admin_token):
            problem = AccessError("the admin token is required: Authorization: Bearer TOKEN")
            await _refuse(send, problem, (b"www-authenticate", b"Bearer"))
            return
        timeout = self._runtime.state.gateway.limits.body_timeout
        try:
            body = await read_body(headers, receive, limit=_MAX_ADMIN_BODY, timeout=timeout)
        except RequestError as error:
            if error.code == "request_too_large":  # another limit than the one the message would name
                error = RequestError(f"the body is larger than {_MAX_ADMIN_BODY} bytes", code=error.code)
            await _refuse(send, error, close=True)
            return
        except ClientGone:
            return
        # Bodies are JSON whatever they are called, as they are under /v1: `curl -d` calls them a form.
        typed = [(name, value) for name, value in scope["headers"] if name != b"content-type"]
        await self._management({**scope, "headers": [*typed, _JSON]}, _replayed(body, receive), send)

    async def _models(self, place: routes.Models, endpoint: str, scope: Scope, send: Send) -> None:
        state = self._runtime.state
        shown, name = place
        request_id = new_request_id()
        try:
            if scope["method"] not in ("GET", "HEAD"):
                raise _not_allowed(scope["path"], "GET")
            headers = header_map(scope["headers"])
            started = time.perf_counter()
            context = state.gateway.authenticate(headers, endpoint, request_id=request_id, started=started)
            if name:
                if not is_model_name(name):
                    raise RequestError("no model of that name", code="model_not_found", param="model")
                route = admit(Request("chat", name, {}, b""), context, state.gateway.aliases)
                body = shown.card(name, route.targets[0].upstream)
            else:
                body = shown.cards(visible(await state.catalog.names(), context, state.gateway.aliases))
        except GatewayError as error:
            allow = ((b"allow", b"GET, HEAD"),) if error.code == "method_not_allowed" else ()
            await _refuse(send, error, *allow, request_id=request_id, dialect=shown.dialect)
            return
        await send_whole(send, 200, [_JSON, (b"x-keepgate-request-id", request_id.encode())], body)

    async def _root(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        body = {"name": "keepgate", "version": version("keepgate"), "docs": "/docs"}
        await send_whole(send, 200, [_JSON], msgspec.json.encode(body))

    async def _live(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        await send_whole(send, 200, [_JSON], b'{"status":"live"}')

    async def _ready(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        tiers = self._runtime.tiers()
        ready = "loading" not in tiers.values()
        body = msgspec.json.encode({"status": "ready" if ready else "not ready", "tiers": tiers})
        await send_whole(send, 200 if ready else 503, [_JSON], body)

    async def _metrics(self, scope: Scope, _receive: Receive, send: Send) -> None:
        accept = dict(scope["headers"]).get(b"accept", b"").decode("latin-1")
        snapshots = await self._runtime.group.collect()
        entries = await self._runtime.entries_by_endpoint()
        body, content_type = await asyncio.to_thread(render, snapshots, accept, cache_entries=entries)
        await send_whole(send, 200, [(b"content-type", content_type.encode())], body)

    async def _cors(self, scope: Scope, send: Send) -> tuple[bool, Send]:
        """Answers a preflight, or gives a `send` that adds the headers a browser looks for."""
        asked = dict(scope["headers"])
        origin = asked.get(b"origin")
        if origin is None or not _is_listed(origin, self._runtime.state.cors_origins):
            return False, send
        permission: HeaderList = [(b"access-control-allow-origin", origin), (b"vary", b"Origin")]
        if scope["method"] == "OPTIONS" and b"access-control-request-method" in asked:
            permission += [
                (b"access-control-allow-methods", b"GET, POST, DELETE, OPTIONS"),
                (b"access-control-allow-headers", asked.get(b"access-control-request-headers", b"*")),
                (b"access-control-max-age", b"600"),
            ]
            await send({"type": "http.response.start", "status": 204, "headers": permission})
            await send({"type": "http.response.body", "body": b""})
            return True, send

        async def permitting(message: Message) -> None:
            if message["type"] == "http.response.start":
                exposing = (b"access-control-expose-headers", _EXPOSED)
                message = {**message, "headers": [*message["headers"], *permission, exposing]}
            await send(message)

        return False, permitting


def _is_listed(origin: bytes, allowed: Collection[str]) -> bool:
    return "*" in allowed or origin.decode("latin-1") in allowed


def _may_ask(origin: bytes, allowed: Collection[str]) -> bool:
    """Whether a page of `origin` may ask without a key: the operator named it, or it comes from this machine."""
    return _is_listed(origin, allowed) or _LOOPBACK_ORIGIN.fullmatch(origin) is not None


def _is_ours(headers: HeaderList, allowed: Collection[str]) -> bool:
    """Whether a request that shows no key was made on this machine, and not by a page that had its own name lead here.

    A browser sends no `Origin` with a page's GET of its own host. What is passed on may be read files and answers.
    """
    fields = header_map(headers)
    host = fields.get(b"host", b"")
    named = any(origin.partition("://")[2].encode() == host for origin in allowed)
    asked_by = fields.get(b"sec-fetch-site", b"none")
    return (named or _LOOPBACK_HOST.fullmatch(host) is not None) and asked_by in (b"none", b"same-origin")


def _as_written(scope: Scope) -> str:
    """The path before it was percent-decoded, without `/e/{endpoint}`."""
    raw: str = scope["raw_path"].decode("latin-1")
    return f"/{raw[3:].partition('/')[2]}" if raw.startswith("/e/") else raw


def _not_served(path: str) -> RequestError:
    return RequestError(f"nothing is served at {path}", code="not_found")


def _foreign_page() -> AccessError:
    return AccessError(
        "pages of this origin may not ask: set server.cors_origins, or keys.require: true", code="not_allowed"
    )


def _not_allowed(path: str, method: str) -> RequestError:
    return RequestError(f"{path} takes {method}", code="method_not_allowed")


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives a body which has been read, and after it what comes after."""
    pending = [body]

    async def replay() -> Message:
        if pending:
            return {"type": "http.request", "body": pending.pop(), "more_body": False}
        return await receive()

    return replay


async def _refuse(
    send: Send,
    error: GatewayError,
    *more: tuple[bytes, bytes],
    request_id: str | None = None,
    dialect: Dialect = OPENAI,
    close: bool = False,
) -> None:
    request_id = request_id or new_request_id()
    headers = [_JSON, (b"x-keepgate-request-id", request_id.encode()), *more, *error_headers(error)]
    with contextlib.suppress(ConnectionError):
        await send_whole(send, status_of(error), headers, dialect.error(error, request_id), close=close)


# --- errors of the management API, in the same shape


async def _refusal(request: HttpRequest, error: Exception) -> Response:
    problem, status = _as_refusal(request.url.path, error)
    request_id = new_request_id()
    headers = dict(getattr(error, "headers", None) or {})
    headers |= {name.decode(): value.decode("latin-1") for name, value in error_headers(problem)}
    headers["x-keepgate-request-id"] = request_id
    return Response(openai_body(problem, request_id), status, headers, media_type="application/json")


def _as_refusal(path: str, error: Exception) -> tuple[GatewayError, int]:
    match error:
        case GatewayError():
            return error, status_of(error)
        case BackendError():
            unavailable = GatewayError(str(error), code="store_unavailable")
            return unavailable, status_of(unavailable)
        case RequestValidationError():
            found = error.errors()
            params = ["" if p["type"] == "json_invalid" else ".".join(map(str, p["loc"][1:])) for p in found]
            message = "; ".join(f"{param or 'body'}: {_why(p)}" for param, p in zip(params, found, strict=True))
            return RequestError(message, param=params[0] or None), 422
        case HTTPException(status_code=404):
            return RequestError(f"nothing is served at {path}", code="not_found"), 404
        case HTTPException(status_code=405):
            return RequestError(f"{path} does not take that method", code="method_not_allowed"), 405
        case HTTPException(status_code=status) if status < 500:
            return RequestError(str(error.detail)), status
    # The server logs what it was.
    return GatewayError("this could not be done: the gateway's log has the cause"), 500


def _why(problem: Mapping[str, Any]) -> str:
    match problem["type"]:
        case "value_error":
            return str(problem["ctx"]["error"])
        case "extra_forbidden":
            return "unknown field"
        case "missing":
            return "is required"
        case "json_invalid":
            return "is no JSON"
    return str(problem["msg"])
