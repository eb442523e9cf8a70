"""Endpoints as the management API shows them, and what of them it changes while the gateway runs."""

import asyncio
import math
import time
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Body
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from models.errors import RequestError
from service.caching.online import Watch
from service.caching.rule import Rule
from service.caching.tuned import Override, Tuned
from service.context import Endpoint
from service.pipeline.tuning import Known
from service.wiring import Runtime

_CHANGEABLE = ("threshold", "max_wrong_hit_rate", "audit_rate")


def _number(value: object) -> object:
    if isinstance(value, bool) or (value is not None and not isinstance(value, int | float)):
        raise ValueError("must be a number, or null for what the configuration says")
    return value


_Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
_Limit = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]


class Change(BaseModel):
    """A JSON merge patch (RFC 7396): a field that is not here stays as it is, null gives back the configuration's."""

    model_config = ConfigDict(extra="forbid")

    threshold: Annotated[_Share | None, BeforeValidator(_number)] = Field(
        default=None, description="The least cosine similarity of a semantic hit. Takes the place of a limit."
    )
    max_wrong_hit_rate: Annotated[_Limit | None, BeforeValidator(_number)] = Field(
        default=None, description="The share of wrong semantic hits to bear. Takes the place of a threshold."
    )
    audit_rate: Annotated[_Share | None, BeforeValidator(_number)] = Field(
        default=None, description="The share of semantic hits that is compared with the upstream's answer."
    )


_EXAMPLE = {
    "name": "support",
    "mode": "semantic",
    "threshold": None,
    "max_wrong_hit_rate": 0.02,
    "audit_rate": 0.01,
    "ttl": 86400.0,
    "ttl_jitter": 0.1,
    "stale_while_revalidate": 0.0,
    "scope": "endpoint",
    "context": "full",
    "max_temperature": 0.3,
    "lookups": "numbers",
    "ignore_rules": [],
    "question_pattern": None,
    "keep": ["stop"],
    "fallback_answers": False,
    "replay": "instant",
    "file": {"threshold": 0.92, "max_wrong_hit_rate": None, "audit_rate": None},
    "override": {"threshold": None, "max_wrong_hit_rate": 0.02, "audit_rate": None, "changed_at": 1795181510.5},
    "rule": {"by": "verifier", "cut": 0.985, "shadow": 0.97, "certified": False, "why": "not certified"},
    "in_words": "Not certified: until it is, the shipped verifier decides, at its cut for half the limit of 2 %.",
    "certificate": None,
    "shortfall": None,
    "watch": None,
    "entries": 1204,
}
_TOLD: dict[int | str, dict[str, Any]] = {200: {"content": {"application/json": {"example": _EXAMPLE}}}}
_CHANGES: Any = {
    "limit": {"summary": "bear 2 % of wrong hits", "value": {"max_wrong_hit_rate": 0.02}},
    "threshold": {"summary": "cosine of .95, and audit nothing", "value": {"threshold": 0.95, "audit_rate": 0}},
    "back": {"summary": "the configuration's threshold or limit again", "value": {"max_wrong_hit_rate": None}},
}


def endpoint_routes(runtime: Runtime) -> APIRouter:
    """Raises `RequestError` for an endpoint that does not exist, `BackendError` where a change cannot be kept."""
    router = APIRouter(prefix="/endpoints")

    @router.get("", summary="All endpoints: what the file says, what is in effect, and by what hits are decided")
    async def list_endpoints() -> list[dict[str, Any]]:
        await runtime.retune()  # another worker may have been told a moment ago
        entries = await runtime.entries_by_endpoint()
        return [_shown(runtime, name, entries) for name in runtime.state.gateway.endpoints]

    @router.get("/{name}", summary="One endpoint", responses=_TOLD)
    async def one_endpoint(name: str) -> dict[str, Any]:
        _check(runtime, name)
        await runtime.retune()
        return _shown(runtime, name, await runtime.entries_by_endpoint())

    @router.patch(
        "/{name}",
        summary="Change a threshold, a limit or the audits, for all gateways on this storage within seconds",
        responses=_TOLD,
    )
    async def change_endpoint(name: str, change: Annotated[Change, Body(openapi_examples=_CHANGES)]) -> dict[str, Any]:
        _check(runtime, name)
        given = {field: getattr(change, field) for field in change.model_fields_set}
        if given.get("threshold") is not None and given.get("max_wrong_hit_rate") is not None:
            both = ValueError("cannot be given together with max_wrong_hit_rate: one of the two decides")
            raise RequestValidationError(
                [{"type": "value_error", "loc": ("body", "threshold"), "ctx": {"error": both}}]
            )
        if given:
            await _put_into_effect(runtime, name, given)
        return _shown(runtime, name, await runtime.entries_by_endpoint())

    @router.delete("/{name}/override", summary="Back to what the configuration says", responses=_TOLD)
    async def give_back(name: str) -> dict[str, Any]:
        _check(runtime, name)
        await _put_into_effect(runtime, name, dict.fromkeys(_CHANGEABLE))
        return _shown(runtime, name, await runtime.entries_by_endpoint())

    return router


def _check(runtime: Runtime, name: str) -> None:
    known = runtime.state.gateway.endpoints
    if name not in known:
        raise RequestError(
            f"no endpoint of that name; known: {', '.join(sorted(known))}", code="not_found", param="name"
        )


async def _put_into_effect(runtime: Runtime, name: str, given: Mapping[str, float | None]) -> None:
    now = time.time()
    await asyncio.to_thread(runtime.tuning.change_override, name, lambda old: merged(old, given, now=now))
    await runtime.retune()


def merged(old: Override, given: Mapping[str, float | None], *, now: float) -> Override:
    """`given` put over `old`. A threshold takes the place of a limit that was there, and the other way round."""
    new = msgspec.structs.replace(old, **given, changed_at=now)
    if given.get("threshold") is not None:
        return msgspec.structs.replace(new, max_wrong_hit_rate=None)
    if given.get("max_wrong_hit_rate") is not None:
        return msgspec.structs.replace(new, threshold=None)
    return new


def _shown(runtime: Runtime, name: str, entries: Mapping[str, int]) -> dict[str, Any]:
    """What this worker serves by now."""
    state = runtime.state
    endpoint, _ = state.gateway.endpoints[name]
    written = next(one.cache for one in state.settings.endpoints if one.name == name)
    known = state.known.get(name, Known())
    rule = None if runtime.semantic is None else runtime.semantic.rules.get(name)
    overridden = msgspec.structs.replace(known.override, changed_at=0.0) != Override()
    return {
        "name": name,
        "mode": endpoint.mode,
        "threshold": endpoint.threshold,
        "max_wrong_hit_rate": endpoint.limit,
        "audit_rate": endpoint.audit_rate,
        "ttl": endpoint.ttl,
        "ttl_jitter": endpoint.ttl_jitter,
        "stale_while_revalidate": endpoint.stale,
        "scope": endpoint.scope,
        "context": endpoint.context,
        "max_temperature": endpoint.max_temperature,
        "lookups": endpoint.lookups,
        "ignore_rules": sorted(endpoint.off),
        "question_pattern": endpoint.question_pattern,
        "keep": sorted(endpoint.keep),
        "fallback_answers": endpoint.fallback_answers,
        "replay": endpoint.replay,
        "file": {field: getattr(written, field) for field in _CHANGEABLE},
        "override": msgspec.structs.asdict(known.override) if overridden else None,
        "rule": None if rule is None else _rule(rule),
        "in_words": in_words(endpoint, rule, known.tuned, known.watch),
        "certificate": None if known.tuned is None else msgspec.to_builtins(known.tuned.certificate),
        "shortfall": None if known.tuned is None else msgspec.to_builtins(known.tuned.shortfall),
        "watch": None if known.watch is None else _watch(known.watch),
        "entries": entries.get(name),
    }


def _rule(rule: Rule) -> dict[str, Any]:
    """A cut that nothing reaches is null."""
    return {
        "by": rule.by,
        "cut": _finite(rule.cut),
        "shadow": _finite(rule.shadow),
        "certified": rule.certified,
        "why": rule.why,
        "revision": rule.revision,
    }


def _watch(watch: Watch) -> dict[str, Any]:
    return {
        "limit": watch.limit,
        "certified": watch.certified,
        "cut": watch.cut,
        "seen": watch.seen,
        "wrong": watch.wrong,
        "lower": watch.lower,
        "upper": watch.upper,
        "tightened": watch.tightened,
        "relaxed": watch.relaxed,
    }


def _finite(cut: float) -> float | None:
    return cut if math.isfinite(cut) else None


def in_words(endpoint: Endpoint, rule: Rule | None, tuned: Tuned | None, watch: Watch | None) -> str:
    """By what semantic hits are decided now, in a sentence or two."""
    if rule is None or endpoint.mode not in ("semantic", "shadow"):
        return f"No semantic hits: the mode is {endpoint.mode}."
    told = _decided(endpoint, rule, tuned, watch)
    return f"Shadow: nothing is served, only recorded. {told}" if endpoint.mode == "shadow" else told


def _decided(endpoint: Endpoint, rule: Rule, tuned: Tuned | None, watch: Watch | None) -> str:
    limit = endpoint.limit
    if limit is None:
        if rule.by == "verifier":
            return "The shipped verifier decides, at its shipped cut. No limit is set, so no share is promised."
        return (
            f"A stored question of cosine {rule.cut:g} and above is served. No limit is set, so no share is promised."
        )
    share = f"{100 * limit:g} %"
    if not rule.certified:
        certify = f"`keepgate tune --endpoint {endpoint.name}` certifies it."
        # "not certified" itself, or in what way the certificate does not hold here.
        reason = "" if rule.why in ("", "not certified") else f" ({rule.why})"
        if rule.by == "verifier":
            return (
                f"Not certified{reason}: until it is, the shipped verifier decides, at its cut for half the limit of "
                f"{share}; what it would serve up to the limit is only recorded. {certify}"
            )
        return f"Not certified{reason}: no verifier knows this embedder, so nothing is served until it is. {certify}"
    certificate = None if tuned is None else tuned.certificate
    by = ""
    if certificate is not None:
        by = (
            f" ({certificate.samples:,} labels by {certificate.origin.labelled_by}, {certificate.origin.date}, "
            f"confidence {100 * certificate.confidence:g} %)"
        )
    told = f"Certified for at most {share} of wrong hits{by}."
    if not math.isfinite(rule.cut):
        return f"{told} Audits found the limit broken at every cut: nothing is served until they say otherwise."
    if rule.cut > rule.shadow:
        since = "" if watch is None else f", after {watch.tightened} such findings"
        return f"{told} Audits found the limit broken, and the cut is stricter than the certified one{since}."
    return told
