"""Single entries in the management API: looked at, reported, and made before anybody asked."""

import asyncio
import io
import logging
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Body, Query, Request
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from models.errors import BackendError, RequestError
from service.caching.lookups import Verdict
from service.governance import issuing
from service.pipeline import feedback, warm
from service.wiring import Runtime, lookups_file

log = logging.getLogger("keepgate.admin")

_ID = r"^[0-9a-f]{64}$"
_LONGEST_REQUEST_ID = 128
_WALKING = 5.0  # seconds, for who only looks
# Seconds. Rows wait a moment to be written together.
_WRITTEN_WITHIN = 1.0
_LOOK_AGAIN = 0.2

EntryId = Annotated[str, InPath(pattern=_ID, description="As `x-keepgate-entry` has it: 64 hexadecimal digits.")]
EndpointName = Annotated[
    str | None, Query(min_length=1, description="Where to look; without it, in every endpoint there is.")
]


def _request_id(given: str) -> str:
    if not given or len(given) > _LONGEST_REQUEST_ID or not given.isascii() or not given.isprintable():
        raise ValueError("must be what x-keepgate-request-id said")
    return given


class Report(BaseModel):
    """What somebody says of an answer that came from the cache. A field that is not here is refused."""

    model_config = ConfigDict(extra="forbid")

    endpoint: str | None = Field(default=None, min_length=1, description="Where it was served; without it, everywhere.")
    request_id: Annotated[str, AfterValidator(_request_id)] | None = Field(
        default=None, description="`x-keepgate-request-id` of that answer: the label is then about that question."
    )
    verdict: Literal["wrong", "right"] = "wrong"
    by: Literal["people", "judge"] = Field(default="people", description="Who says so: a person, or a judge model.")


class Reported(BaseModel):
    """`removed` entries and `aliases` of them went. `asked`: the label is about the question of that request, and not
    only about the entry. `note` says what is missing."""

    entry: str
    verdict: str
    removed: int
    aliases: int
    recorded: bool
    asked: bool
    note: str = ""


class WarmUp(BaseModel):
    """What a warm-up came to."""

    entries: int
    renewed: int
    questions: int
    not_semantic: dict[str, int]
    blocked: int
    masked: int
    failed: int
    bad: int
    problems: list[str]


_REPORTS: Any = {
    "wrong": {"summary": "it answered another question", "value": {"request_id": "req_5b1e0a9cd37f00000012"}},
    "right": {"summary": "a label, and nothing goes", "value": {"verdict": "right", "request_id": "req_5b1e0a…"}},
}
_WARM_BODY: Any = {
    "required": True,
    "content": {
        "application/x-ndjson": {
            "schema": {"type": "string"},
            "example": '{"question": "Where is my invoice?", "answer": "Under Billing."}\n',
        },
        "application/json": {
            "schema": {"type": "array", "items": {"type": "object"}},
            "example": [
                {"question": "Where is my invoice?", "answer": "Under Billing."},
                {"question": "And in the app?", "answer": "Under You.", "system": "Be brief.", "model": "gpt-4o"},
            ],
        },
    },
}
_ENTRY_EXAMPLE = {
    "entry": "0378f5f2" * 8,
    "places": [
        {
            "endpoint": "support",
            "shared_by": "everyone",
            "created_at": 1795181508.5,
            "expires_at": 1795267908.5,
            "upstream": "openai/gpt-4o",
            "model": "gpt-4o-2024-08-06",
            "prompt_tokens": 4,
            "completion_tokens": 47,
            "estimated": False,
            "question_namespace": "6b1c7817" * 8,
            "alias_of": None,
            "aliases": 2,
            "masked": False,
            "guardrails": [],
        }
    ],
}
_SHOWN: dict[int | str, dict[str, Any]] = {200: {"content": {"application/json": {"example": _ENTRY_EXAMPLE}}}}


def entry_routes(runtime: Runtime) -> APIRouter:
    """Raises `RequestError` for an entry, an endpoint or a key that does not exist, `BackendError` of the stores."""
    router = APIRouter(prefix="/cache")

    @router.get("/entries/{entry_id}", summary="An entry, wherever it lies", responses=_SHOWN)
    async def show(
        entry_id: EntryId,
        endpoint: EndpointName = None,
        text: Annotated[bool, Query(description="With the texts of question and answer.")] = False,
    ) -> dict[str, Any]:
        places, whole = await _places(runtime, entry_id, endpoint)
        if not places:
            raise _nowhere(whole)
        return {"entry": entry_id, "places": [await _shown(runtime, entry_id, place, text=text) for place in places]}

    @router.post("/entries/{entry_id}/report", summary="Say that an answer from the cache was wrong, or right")
    async def report(
        entry_id: EntryId,
        said: Annotated[Report | None, Body(openapi_examples=_REPORTS)] = None,
    ) -> Reported:
        return await _reported(runtime, entry_id, said or Report())

    @router.post("/warm", summary="Make entries of questions and answers", openapi_extra={"requestBody": _WARM_BODY})
    async def warm_up(
        http: Request,
        endpoint: Annotated[str, Query(min_length=1)],
        model: Annotated[str | None, AfterValidator(issuing.checked_model), Query()] = None,
        key: Annotated[str | None, Query(description="Id of a virtual key: for who shares entries with it.")] = None,
        ttl: Annotated[
            float | None,
            BeforeValidator(issuing.lifetime, json_schema_input_type=float | str),
            Query(description="Seconds, or a duration such as 12h; else what the endpoint says."),
        ] = None,
    ) -> WarmUp:
        body = await http.body()
        try:
            pairs = warm.of_list(body) if body.lstrip()[:1] == b"[" else warm.lines(io.BytesIO(body))
        except warm.BadLine as error:
            raise RequestValidationError(
                [{"type": "value_error", "loc": ("body",), "ctx": {"error": error}}]
            ) from error
        gateway = runtime.state.gateway
        told = await warm.warm(
            gateway,
            pairs,
            endpoint=endpoint,
            key_id=key,
            model=model,
            ttl=ttl,
            progress=lambda _: None,
        )
        runtime.count_again()
        return WarmUp(**msgspec.structs.asdict(told))

    return router


async def _places(runtime: Runtime, entry_id: str, endpoint: str | None) -> tuple[list[feedback.Place], bool]:
    known = runtime.state.gateway.endpoints
    endpoints = sorted(known) if endpoint is None else [endpoint]
    held = await asyncio.to_thread(runtime.keyring.all)
    likely = feedback.likely_namespaces(endpoints, held)
    return await feedback.places(runtime.exact.store, entry_id, endpoint=endpoint, likely=likely)


def _nowhere(whole: bool) -> RequestError:
    more = "" if whole else " where the keys of this gateway lead; the store took too long to list the rest"
    return RequestError(
        f"no entry has that id{more}: it expired, was removed, or belongs to other stores; x-keepgate-entry of an "
        "answer from the cache names one",
        code="not_found",
        param="entry_id",
    )


async def _shown(runtime: Runtime, entry_id: str, place: feedback.Place, *, text: bool) -> dict[str, Any]:
    entry = place.entry
    shown: dict[str, Any] = {
        "endpoint": place.endpoint,
        "shared_by": place.namespace.partition("/")[2],
        "created_at": entry.created_at,
        "expires_at": entry.expires_at,
        "upstream": entry.upstream,
        "model": entry.completion.model,
        "prompt_tokens": entry.completion.usage.prompt_tokens,
        "completion_tokens": entry.completion.usage.completion_tokens,
        "estimated": entry.completion.usage.estimated,
        "question_namespace": entry.question or None,
        "alias_of": entry.alias_of or None,
        "aliases": None,
        "masked": entry.masked,
        "guardrails": list(entry.acted),
    }
    vectors = None if runtime.semantic is None else runtime.semantic.vectors
    found = await feedback.linked(runtime.exact.store, vectors, place, entry_id, walking=_WALKING)
    if found.whole:
        shown["aliases"] = len(found.aliases)
    if text:
        shown["question"] = found.text
        shown["answer"] = None if entry.alias_of else feedback.said(entry.completion)
    return shown


async def _reported(runtime: Runtime, entry_id: str, said: Report) -> Reported:
    path = lookups_file(runtime.state.settings)
    past = await _past(path, entry_id, said.request_id)
    lookup = past.lookup
    if lookup is not None and lookup.entry != entry_id:
        other = ValueError("names an answer that another entry was looked at for")
        raise RequestValidationError([{"type": "value_error", "loc": ("body", "request_id"), "ctx": {"error": other}}])
    endpoint = said.endpoint or (None if lookup is None else lookup.endpoint)
    places, whole = await _places(runtime, entry_id, endpoint)
    if not places and not past.endpoint:
        raise _nowhere(whole)
    told = Reported(entry=entry_id, verdict=said.verdict, removed=0, aliases=0, recorded=False, asked=False)
    notes = []
    if said.verdict == "wrong":
        vectors = None if runtime.semantic is None else runtime.semantic.vectors
        for place in places:
            gone, aliases, all_found = await feedback.removed(runtime.exact.store, vectors, place, entry_id)
            told.removed += gone
            told.aliases += aliases
            if not all_found:
                notes.append("time ran out before all aliases were found")
        if not whole:
            notes.append("the store took too long to list its namespaces: only those of known keys were looked at")
        if told.removed:
            runtime.count_again()
    where = endpoint or next((place.endpoint for place in places), past.endpoint)
    verdict = Verdict(
        time=time.time(),
        endpoint=where,
        entry=entry_id,
        wrong=said.verdict == "wrong",
        by=said.by,
        asked="" if lookup is None else lookup.asked,
        request_id=said.request_id or "",
    )
    told.asked = bool(verdict.asked)
    if said.request_id is not None and lookup is None:
        notes.append("that request is not in the log of look-ups, so the label is about the entry alone")
    told.recorded, why = await _recorded(runtime, path, verdict, past, fails=told.removed == 0)
    told.note = "; ".join([*notes, *([why] if why else [])])
    return told


async def _past(path: Path, entry_id: str, request_id: str | None) -> feedback.Past:
    """A request that was answered a moment ago may not be in the log yet."""
    waiting_ends = time.monotonic() + _WRITTEN_WITHIN
    while True:
        past = await asyncio.to_thread(feedback.past, path, entry_id, request_id)
        if request_id is None or past.lookup is not None or time.monotonic() > waiting_ends:
            return past
        await asyncio.sleep(_LOOK_AGAIN)


async def _recorded(
    runtime: Runtime, path: Path, verdict: Verdict, past: feedback.Past, *, fails: bool
) -> tuple[bool, str]:
    """Whether the label is in the log, and why not. Where `fails`, a log that cannot be written is raised: nothing else
    was done."""
    known = runtime.state.gateway.endpoints.get(verdict.endpoint)
    if known is not None and known[0].lookups == "off":
        return False, "the endpoint keeps no log of look-ups (cache.lookups)"
    said = msgspec.structs.replace(verdict, time=0.0)
    if any(msgspec.structs.replace(one, time=0.0) == said for one in past.verdicts):
        return True, ""  # the same was said before
    try:
        await asyncio.to_thread(feedback.recorded, path, verdict)
    except BackendError as error:
        if fails:
            raise
        log.warning("%s", error)
        return False, str(error)
    return True, ""
