"""The management API under `/admin/api`, behind the admin token, and its page at `/docs`."""

import asyncio
import hmac
import time
from importlib.metadata import version
from typing import Annotated, Any

import msgspec
from fastapi import Depends, FastAPI, HTTPException, Query
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel, Field

from models.key import VirtualKey
from service.governance import keys
from service.wiring import Runtime

_bearer = HTTPBearer(auto_error=False, description="The admin token: `admin.token`, or the one printed at start.")


class NewKey(BaseModel):
    """What a key may do; null is everything."""

    name: str = Field(min_length=1, max_length=128, description="Whose key this is, for people.")
    team: str | None = Field(default=None, min_length=1, max_length=128)
    endpoints: list[str] | None = None
    models: list[str] | None = None
    expires_in: float | None = Field(default=None, gt=0, description="Seconds from now.")


class Cleared(BaseModel):
    """How many entries went."""

    entries: int


def management(runtime: Runtime) -> FastAPI:
    app: FastAPI = FastAPIOffline(  # the page's scripts come from here: no content network sees who administers what
        redoc_url=None,
        title="Keepgate",
        version=version("keepgate"),
        description="The management API. Inference is served under /v1, as the OpenAI API has it.",
    )

    def admin(credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> None:
        given = credentials.credentials if credentials is not None else ""
        if not hmac.compare_digest(given.encode(), runtime.admin_token.encode()):
            raise HTTPException(401, "the admin token is required: Authorization: Bearer TOKEN")

    guarded: dict[str, Any] = {"dependencies": [Depends(admin)]}

    @app.get("/admin/api/status", summary="Version, tiers and endpoints", **guarded)
    async def status() -> dict[str, Any]:
        gateway = runtime.state.gateway
        return {
            "version": version("keepgate"),
            "tiers": runtime.tiers(),
            "endpoints": {
                name: {"mode": e.mode, "threshold": e.threshold, "ttl": e.ttl}
                for name, (e, _) in gateway.endpoints.items()
            },
            "upstreams": sorted(gateway.upstreams),
            "entries": await runtime.entries_by_endpoint(),
        }

    @app.get("/admin/api/keys", summary="All virtual keys, without their secrets", **guarded)
    async def list_keys() -> list[dict[str, Any]]:
        return [msgspec.to_builtins(key) for key in await asyncio.to_thread(runtime.keyring.all)]

    @app.post("/admin/api/keys", status_code=201, summary="Make a virtual key; its secret is shown once", **guarded)
    async def create_key(new: NewKey) -> dict[str, Any]:
        expires_at = None if new.expires_in is None else time.time() + new.expires_in
        secret, key = keys.make(
            new.name, team=new.team, endpoints=new.endpoints, models=new.models, expires_at=expires_at, now=time.time()
        )
        await asyncio.to_thread(runtime.keyring.add, keys.digest(secret), key)
        return {"key": secret, **msgspec.to_builtins(key)}

    @app.delete("/admin/api/keys/{key_id}", summary="Revoke a virtual key, at once on every worker", **guarded)
    async def revoke_key(key_id: str) -> dict[str, Any]:
        key: VirtualKey | None = await asyncio.to_thread(runtime.keyring.revoke, key_id, time.time())
        if key is None:
            raise HTTPException(404, "no key has that id; GET /admin/api/keys lists them")
        result: dict[str, Any] = msgspec.to_builtins(key)
        return result

    @app.delete("/admin/api/cache", summary="Remove the entries of one endpoint", **guarded)
    async def clear_cache(endpoint: Annotated[str, Query(min_length=1)]) -> Cleared:
        entries = await runtime.exact.store.clear(endpoint)
        if runtime.semantic is not None:
            await runtime.semantic.vectors.clear(endpoint)
        return Cleared(entries=entries)

    return app
