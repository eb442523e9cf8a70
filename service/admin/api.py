"""The management API under `/admin/api`, behind the admin token, and its page at `/docs`."""

import asyncio
import hmac
import time
from collections.abc import Mapping
from importlib.metadata import version
from typing import Annotated, Any

import msgspec
from fastapi import Depends, FastAPI, Query
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from models.errors import RequestError
from models.key import VirtualKey
from service.admin.endpoints import endpoint_routes
from service.admin.entries import entry_routes
from service.contents import Selection, Stores, cleared
from service.governance import issuing, keys
from service.wiring import Runtime

PREFIX = "/admin/api"

_bearer = HTTPBearer(auto_error=False, description="The admin token: `admin.token`, or the one printed at start.")

Name = Annotated[str, AfterValidator(issuing.checked_name)]
Model = Annotated[str, AfterValidator(issuing.checked_model)]
Lifetime = Annotated[float, BeforeValidator(issuing.lifetime, json_schema_input_type=float | str)]


class NewKey(BaseModel):
    """What a key may do; null is everything. A field that is not here is refused: it would limit nothing."""

    model_config = ConfigDict(extra="forbid")

    name: Name = Field(description="Whose key this is, for people.")
    team: Name | None = Field(default=None, description="Whom it shares entries with where cache.scope is team.")
    endpoints: Annotated[list[str], Field(min_length=1)] | None = None
    models: Annotated[list[Model], Field(min_length=1)] | None = None
    expires_in: Lifetime | None = Field(default=None, description="Seconds from now, or a duration such as 12h.")


class Cleared(BaseModel):
    """How many entries went."""

    entries: int


class Problem(BaseModel):
    message: str
    type: str
    param: str | None
    code: str
    request_id: str


class Refusal(BaseModel):
    """What every error looks like."""

    error: Problem


def is_admin(headers: Mapping[bytes, bytes], token: str) -> bool:
    """Whether `Authorization: Bearer` carries the token; the time it takes tells nothing about it."""
    scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
    return hmac.compare_digest(given.strip(), token.encode()) and scheme.lower() == b"bearer"


def management(runtime: Runtime) -> FastAPI:
    """Raises `RequestError`, `BackendError` and FastAPI's own errors through its exception handlers, which the caller
    sets. Who calls it has checked the token: FastAPI would read the whole body first."""
    app: FastAPI = FastAPIOffline(  # the page's scripts come from here: no content network sees who administers what
        redoc_url=None,
        title="Keepgate",
        version=version("keepgate"),
        description="The management API. Inference is served under /v1, as the OpenAI API has it.",
        responses={"default": {"model": Refusal, "description": "What went wrong"}},
    )
    # For the page, which offers to take a token.
    guarded: dict[str, Any] = {"dependencies": [Depends(_bearer)]}

    @app.get(f"{PREFIX}/status", summary="Version, tiers and endpoints", **guarded)
    async def status() -> dict[str, Any]:
        gateway = runtime.state.gateway
        return {
            "version": version("keepgate"),
            "tiers": runtime.tiers(),
            "verifier": runtime.judged_by(),
            "reembedding": runtime.reembedding(),
            "endpoints": {
                name: {"mode": e.mode, "threshold": e.threshold, "ttl": e.ttl, **runtime.decision(name)}
                for name, (e, _) in gateway.endpoints.items()
            },
            "upstreams": sorted(gateway.upstreams),
            "entries": await runtime.entries_by_endpoint(),
        }

    @app.get(f"{PREFIX}/keys", summary="All virtual keys, without their secrets", **guarded)
    async def list_keys() -> list[dict[str, Any]]:
        return [msgspec.to_builtins(key) for key in await asyncio.to_thread(runtime.keyring.all)]

    @app.post(f"{PREFIX}/keys", status_code=201, summary="Make a virtual key; its secret is shown once", **guarded)
    async def create_key(new: NewKey) -> dict[str, Any]:
        try:
            issuing.check_endpoints(new.endpoints, runtime.state.gateway.endpoints)
        except ValueError as error:
            problem = {"type": "value_error", "loc": ("body", "endpoints"), "ctx": {"error": error}}
            raise RequestValidationError([problem]) from error
        now = time.time()
        expires_at = None if new.expires_in is None else now + new.expires_in
        secret, key = keys.make(
            new.name, team=new.team, endpoints=new.endpoints, models=new.models, expires_at=expires_at, now=now
        )
        await asyncio.to_thread(runtime.keyring.add, keys.digest(secret), key)
        return {"key": secret, **msgspec.to_builtins(key)}

    @app.delete(f"{PREFIX}/keys/{{key_id}}", summary="Revoke a virtual key, at once on every worker", **guarded)
    async def revoke_key(key_id: str) -> dict[str, Any]:
        key: VirtualKey | None = await asyncio.to_thread(runtime.keyring.revoke, key_id, time.time())
        if key is None:
            raise RequestError(f"no key has that id; GET {PREFIX}/keys lists them", code="not_found", param="key_id")
        result: dict[str, Any] = msgspec.to_builtins(key)
        return result

    @app.delete(f"{PREFIX}/cache", summary="Remove the entries of one endpoint", **guarded)
    async def clear_cache(endpoint: Annotated[str, Query(min_length=1)]) -> Cleared:
        # Also what an endpoint left behind that the configuration no longer has.
        stores = Stores(runtime.exact.store, None if runtime.semantic is None else runtime.semantic.vectors)
        entries = await cleared(stores, Selection(endpoint=endpoint))
        runtime.count_again()
        known = runtime.state.gateway.endpoints
        if not entries and endpoint not in known:
            raise RequestError(
                f"no endpoint of that name; known: {', '.join(sorted(known))}", code="not_found", param="endpoint"
            )
        return Cleared(entries=entries)

    app.include_router(endpoint_routes(runtime), prefix=PREFIX, **guarded)
    app.include_router(entry_routes(runtime), prefix=PREFIX, **guarded)
    return app
