"""Warming up: answers that are known before anybody asked, kept as if an upstream had just given them.

Each question goes the way of a request (route, guardrails, identity, rules of
eligibility) but for the call, so that whoever asks it finds the entry.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import msgspec

from backends.vector.base import Vector
from models.completion import Completion, Entry
from models.errors import BackendError, ContentBlocked, GatewayError, RequestError, TextRefused
from models.request import Request
from service.caching.assembly import usage_fields
from service.caching.eligibility import keepable
from service.caching.identity import STATEFUL, Question, exact_key
from service.caching.single_flight import Flight
from service.caching.stored import sketched
from service.context import Caller, Context, Directives, Endpoint, Scope
from service.governance import keys
from service.pipeline.admit import admit
from service.pipeline.gateway import Gateway
from service.pipeline.settle import estimated

LONGEST_LINE = 1 << 20
# Why a question cannot be found by likeness where the embedder or the vector store failed.
DEGRADED = "degraded"
_AT_ONCE = 32
_PROBLEMS = 10
_LONGEST_MODEL = 256
NO_FIELDS: Mapping[str, Any] = {}
_BOM = b"\xef\xbb\xbf"


class Pair(msgspec.Struct, frozen=True):
    """A line: either a `question`, after `system` if there is one, or the `messages` of a conversation whose last turn
    asks. `request` holds further fields of the request that are part of what it is, such as `max_tokens`."""

    answer: str
    question: str | None = None
    system: str | None = None
    messages: list[dict[str, Any]] | None = None
    model: str | None = None
    request: dict[str, Any] = {}


class BadLine(Exception):
    """It cannot be used, and why."""


class Warmed(msgspec.Struct):
    """What a warm-up came to. `renewed` of the `entries` took the place of one that was there. `questions` can be found
    by likeness as well; of the others the rules of eligibility say why (`not_semantic`). `blocked` and `masked` by
    guardrails are not stored. `failed`: a store did not take them. `problems` names the first bad lines."""

    entries: int = 0
    renewed: int = 0
    questions: int = 0
    not_semantic: dict[str, int] = {}
    blocked: int = 0
    masked: int = 0
    failed: int = 0
    bad: int = 0
    problems: list[str] = []

    def found_bad(self, problem: str) -> None:
        self.bad += 1
        if len(self.problems) < _PROBLEMS:
            self.problems.append(problem)


Line = tuple[int, Pair | BadLine]

_pair = msgspec.json.Decoder(Pair).decode


def lines(source: BinaryIO) -> Iterator[Line]:
    """Of JSON Lines, each with its number; empty ones are passed over. Raises `OSError`."""
    number = 0
    while raw := source.readline(LONGEST_LINE + 1):
        number += 1
        if number == 1:
            raw = raw.removeprefix(_BOM)  # as spreadsheets write it
        if raw.strip():
            yield number, _parsed(raw)
        while len(raw) > LONGEST_LINE and not raw.endswith(b"\n"):
            raw = source.readline(LONGEST_LINE + 1)


def of_list(body: bytes) -> Iterator[Line]:
    """Of a JSON list. Raises `BadLine` for what is none."""
    try:
        items = msgspec.json.decode(body, type=list[msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BadLine("is no JSON list of objects with question and answer") from None
    return ((number, _parsed(bytes(item))) for number, item in enumerate(items, 1))


def _parsed(raw: bytes) -> Pair | BadLine:
    if len(raw) > LONGEST_LINE:
        return BadLine(f"is longer than {LONGEST_LINE >> 20} MB")
    try:
        return _checked(_pair(raw))
    except BadLine as error:
        return error
    except msgspec.ValidationError as error:
        return BadLine(f"is no question and answer: {error}")  # names fields, never what is in them
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return BadLine("is no JSON object")


def _checked(pair: Pair) -> Pair:
    if not pair.answer.strip():
        raise BadLine("has an empty answer")
    if pair.messages is None:
        if pair.question is None or not pair.question.strip():
            raise BadLine("has no question")
    elif pair.question is not None or pair.system is not None:
        raise BadLine("has messages: question and system belong in there")
    elif not pair.messages or pair.messages[-1].get("role") != "user":
        raise BadLine("has messages of which the last is not the user's")
    elif not all(isinstance(message.get("role"), str) for message in pair.messages):
        raise BadLine("has a message without a role")
    if pair.model is not None and not (pair.model.isprintable() and 0 < len(pair.model) <= _LONGEST_MODEL):
        raise BadLine("has no name of a model")
    _check_fields(pair.request)
    return pair


def fields_of(text: str) -> dict[str, Any]:
    """Further fields of requests, of a JSON object. Raises `BadLine`."""
    try:
        fields = msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        raise BadLine("is no JSON object") from None
    _check_fields(fields)
    return fields


def _check_fields(fields: Mapping[str, Any]) -> None:
    if not {"model", "messages"}.isdisjoint(fields):
        raise BadLine("has model or messages in request, where they do not belong")
    temperature = fields.get("temperature")
    if temperature is not None and (isinstance(temperature, bool) or not isinstance(temperature, int | float)):
        raise BadLine("has a request whose temperature is no number")
    if fields.get("n") not in (None, 1) or fields.get("logprobs"):
        raise BadLine("has a request for several choices or log probabilities, which one answer is not")
    if any(fields.get(name) for name in STATEFUL):
        raise BadLine("has a request that refers to what is kept elsewhere: nothing is kept of those")


async def warm(
    gateway: Gateway,
    pairs: Iterable[Line],
    *,
    endpoint: str,
    key_id: str | None = None,
    model: str | None = None,
    ttl: float | None = None,
    fields: Mapping[str, Any] = NO_FIELDS,
    progress: Callable[[Warmed], None],
) -> Warmed:
    """Makes entries of the endpoint, for those who share theirs with that key; None: with who has none. Safe to repeat:
    an entry that is there is put in its place with a new lifetime, of `ttl` seconds or what the endpoint says.

    `model` and `fields`, of the request, are for lines that do not name these
    themselves. Raises `RequestError` for an endpoint or a key that does not
    exist, and where nobody could ever be given the entries; `BackendError`
    where the embedder cannot be loaded.
    """
    context = await asyncio.to_thread(_context, gateway, endpoint, key_id, ttl)
    warming = _Warming(gateway, context, model, fields)
    under_way: dict[str, asyncio.Task[None]] = {}
    gateway.users += 1  # a change of embedders waits for it
    try:
        await warming.ready()
        for number, pair in pairs:
            if isinstance(pair, BadLine):
                warming.told.found_bad(f"line {number} {pair}")
                continue
            try:
                asked = warming.asked(pair)
            except BadLine as error:
                warming.told.found_bad(f"line {number} {error}")
                continue
            # The same question again: the later answer is the one that stays.
            if asked.key in under_way or len(under_way) >= _AT_ONCE:
                await _all(under_way)
            under_way[asked.key] = asyncio.create_task(warming.keep(asked, number))
            progress(warming.told)
        await _all(under_way)
    finally:
        gateway.users -= 1
        for task in under_way.values():
            task.cancel()
    return warming.told


async def _all(under_way: dict[str, asyncio.Task[None]]) -> None:
    await asyncio.gather(*under_way.values())
    under_way.clear()


def _context(gateway: Gateway, name: str, key_id: str | None, ttl: float | None) -> Context:
    found = gateway.endpoints.get(name)
    if found is None:
        known = ", ".join(sorted(gateway.endpoints))
        raise RequestError(f"no endpoint of that name; known: {known}", code="not_found", param="endpoint")
    endpoint, directives = found
    if endpoint.mode == "off":
        raise RequestError("the cache of this endpoint is off", param="endpoint")
    if "stop" not in endpoint.keep:
        raise RequestError("this endpoint keeps no answers that were told to their end (cache.keep)", param="endpoint")
    if ttl is not None:
        directives = msgspec.structs.replace(directives, ttl=ttl)
    return _fresh_context(endpoint, _caller(gateway, key_id, endpoint.scope), directives)


def _caller(gateway: Gateway, key_id: str | None, scope: Scope | None) -> Caller:
    if key_id is None:
        if gateway.keys_required and scope != "endpoint":
            raise RequestError(
                "keys are required, and entries of this endpoint are not everybody's: name a key, or set "
                "cache.scope: endpoint",
                param="key",
            )
        return Caller(partition="everyone")
    for key in gateway.keyring.all():
        if key.key_id == key_id:
            return Caller(partition=keys.partition_of(key, scope), key=key)
    raise RequestError("no key has that id; `keepgate keys list` shows them", code="not_found", param="key")


def _fresh_context(endpoint: Endpoint, caller: Caller, directives: Directives) -> Context:
    return Context(
        request_id="warm",
        endpoint=endpoint,
        caller=caller,
        directives=directives,
        started=time.perf_counter(),
        headers={},
    )


class _Asked(msgspec.Struct, frozen=True):
    """A line as the request that it stands for."""

    request: Request
    context: Context
    key: str
    meaning: tuple[str, ...]
    upstream: str
    model: str
    answer: str


class _Warming:
    def __init__(self, gateway: Gateway, context: Context, model: str | None, fields: Mapping[str, Any]) -> None:
        self._do = gateway
        self._context = context
        self._model = model
        self._fields = fields
        self.told = Warmed()

    async def ready(self) -> None:
        """Waits for an embedder that is being loaded."""
        semantic = self._do.semantic
        if semantic is None or self._context.endpoint.mode == "exact":
            return
        while not semantic.settled:  # noqa: ASYNC110  # seconds, once a warm-up
            await asyncio.sleep(0.05)
        if not semantic.loaded:
            raise BackendError("the embedder cannot be loaded: the log has the cause")

    def asked(self, pair: Pair) -> _Asked:
        """Raises `BadLine`."""
        do, named = self._do, pair.model or self._model or self._only_model()
        if named is None:
            raise BadLine("names no model, and none was given for all")
        messages = pair.messages
        if messages is None:
            first = [] if pair.system is None else [{"role": "system", "content": pair.system}]
            messages = [*first, {"role": "user", "content": pair.question}]
        body = {"model": named, "messages": messages, **self._fields, **pair.request}
        request = Request("chat", named, body, _encoded(body))
        context = _fresh_context(self._context.endpoint, self._context.caller, self._context.directives)
        try:
            route = admit(request, context, do.aliases)
        except GatewayError as error:
            raise BadLine(f"cannot be asked: {error.message}") from error
        targets = (*route.targets, *route.fallbacks)
        if any(target.upstream in do.passthrough for target in targets):
            raise BadLine("is for an upstream that takes each caller's own credential: nobody shares its answers")
        meaning = do.meaning_of(request, context, route, do.screens.choose(request, context, draw=0.0))
        try:
            key = exact_key(body, meaning)
        except (RecursionError, AttributeError, TypeError) as error:
            raise BadLine("is no request that could be asked") from error
        target = route.targets[0]
        return _Asked(request, context, key, meaning, target.upstream, target.model, pair.answer)

    async def keep(self, asked: _Asked, number: int) -> None:
        do, context, told = self._do, asked.context, self.told
        choice = do.screens.choose(asked.request, context, draw=0.0)
        try:
            screened = await do.screens.request(asked.request, context, choice)
            if screened.issued:
                told.masked += 1
                return
            completion = await _completion(screened.request, asked)
            body, whole = await do.screens.answer(completion.body, context, choice)
        except ContentBlocked:
            told.blocked += 1
            return
        except GatewayError as error:
            told.found_bad(f"line {number} was not screened: {error.message}")
            return
        if not (whole and screened.keepable and keepable(completion, context.endpoint.keep)):
            told.blocked += 1  # a rule that gates would not have let all of it pass
            return
        completion = msgspec.structs.replace(completion, body=body)
        flight = Flight(streamed=False)
        question = await do.question_in(screened.request, context, flight, asked.meaning, asked.request)
        entry = do.exact.entry(
            context,
            asked.key,
            completion,
            f"{asked.upstream}/{asked.model}",
            question="" if question is None else question.namespace,
        )
        renewed = await do.exact.again(context, asked.key) is not None
        if not await do.exact.keep(context, entry, asked_at=do.exact.now()):
            told.failed += 1
            return
        told.entries += 1
        told.renewed += renewed
        reason = flight.detail if question is None else await self._found_by_likeness(context, question, entry)
        if reason:
            told.not_semantic[reason] = told.not_semantic.get(reason, 0) + 1

    async def _found_by_likeness(self, context: Context, question: Question, entry: Entry) -> str:
        """Why it is not, or ""."""
        semantic = self._do.semantic
        if semantic is None:
            return ""
        try:
            vector: Vector = (await semantic.embedder.embed([question.text], role="document"))[0]
        except TextRefused:
            return "too-long"
        except BackendError:
            return DEGRADED
        if not await semantic.keep(context, question, vector, entry, sketch=sketched(entry.completion)):
            return DEGRADED
        self.told.questions += 1
        return ""

    def _only_model(self) -> str | None:
        models: Sequence[str] = list(self._do.aliases.models)
        return models[0] if len(models) == 1 else None


def _encoded(body: dict[str, Any]) -> bytes:
    try:
        return msgspec.json.encode(body)
    except RecursionError as error:
        raise BadLine("is nested too deeply") from error


async def _completion(request: Request, asked: _Asked) -> Completion:
    """As the upstream would have answered."""
    usage = await estimated(request, asked.answer)
    message = {"role": "assistant", "content": asked.answer}
    body = {
        "id": f"chatcmpl-{asked.key[:24]}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": asked.model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": usage_fields(usage),
    }
    return Completion(msgspec.json.encode(body), asked.model, usage, ("stop",))
