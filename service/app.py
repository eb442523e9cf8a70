"""The ASGI application: inference first and by hand, everything else through FastAPI."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from importlib.metadata import version

import msgspec

from models.errors import GatewayError, RequestError
from models.request import Operation
from service.admin.api import management
from service.api import openai
from service.api.errors import error_headers, openai_body, status_of
from service.api.exchange import HeaderList, Message, Receive, Scope, Send, send_whole
from service.telemetry.metrics import render
from service.wiring import Runtime

_INFERENCE: dict[str, Operation] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completion",
    "/v1/embeddings": "embedding",
}
_JSON = (b"content-type", b"application/json")
_EXPOSED = (
    b"x-keepgate-request-id, x-keepgate-cache, cache-status, age, x-keepgate-similarity, x-keepgate-entry, "
    b"x-keepgate-tokens-saved, x-keepgate-upstream, x-keepgate-guardrails, x-keepgate-overhead-us, retry-after"
)


class App:
    """One worker's application. `runtime.state` is swapped on reload; a request keeps the one it began with."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._management = management(runtime)
        self._plain: dict[str, Callable[[Scope, Receive, Send], Awaitable[None]]] = {
            "/": self._root,
            "/health/live": self._live,
            "/health/ready": self._ready,
            "/metrics": self._metrics,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if self._runtime.state.cors_origins:
            answered, send = await self._cors(scope, send)
            if answered:
                return
        path: str = scope["path"]
        endpoint = "default"
        if path.startswith("/e/"):
            endpoint, _, rest = path[3:].partition("/")
            path = f"/{rest}"
        operation = _INFERENCE.get(path)
        if operation is not None and scope["method"] == "POST":
            await openai.serve(self._runtime.state.gateway, operation, endpoint, scope, receive, send)
        elif operation is not None:
            await _refuse(send, RequestError(f"{path} takes POST", code="method_not_allowed"), (b"allow", b"POST"))
        elif path == "/v1/models" or path.startswith("/v1/models/"):
            await self._models(path, endpoint, scope, send)
        elif (plain := self._plain.get(scope["path"])) is not None and scope["method"] in ("GET", "HEAD"):
            await plain(scope, receive, send)
        elif path.startswith("/v1/") or scope["path"].startswith("/e/"):
            await _refuse(send, RequestError(f"nothing is served at {path}", code="not_found"))
        else:
            await self._management(scope, receive, send)

    async def _models(self, path: str, endpoint: str, scope: Scope, send: Send) -> None:
        state = self._runtime.state
        if scope["method"] not in ("GET", "HEAD"):
            await _refuse(send, RequestError(f"{path} takes GET", code="method_not_allowed"), (b"allow", b"GET, HEAD"))
            return
        try:
            context = state.gateway.authenticate(
                dict(scope["headers"]), endpoint, request_id=openai.new_request_id(), started=time.perf_counter()
            )
            name = path.removeprefix("/v1/models").removeprefix("/")
            if name:
                body = openai.model_card(state.gateway, name, context)
            else:
                body = openai.model_list(state.gateway, await state.catalog.names(), context)
        except GatewayError as error:
            await _refuse(send, error)
            return
        await send_whole(send, 200, [_JSON], body)

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
        origin = asked.get(b"origin", b"")
        allowed = self._runtime.state.cors_origins
        if origin.decode("latin-1") not in allowed and "*" not in allowed:
            return False, send
        permission: HeaderList = [(b"access-control-allow-origin", origin), (b"vary", b"Origin")]
        if scope["method"] == "OPTIONS" and b"access-control-request-method" in asked:
            permission += [
                (b"access-control-allow-methods", b"GET, POST, PUT, DELETE, OPTIONS"),
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


async def _refuse(send: Send, error: GatewayError, *more: tuple[bytes, bytes]) -> None:
    request_id = openai.new_request_id()
    headers = [_JSON, (b"x-keepgate-request-id", request_id.encode()), *more, *error_headers(error)]
    with contextlib.suppress(ConnectionError):
        await send_whole(send, status_of(error), headers, openai_body(error, request_id))
