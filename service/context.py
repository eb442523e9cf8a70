"""What the stages of one request share: the caller, the endpoint's policy, and what happened so far."""

from collections.abc import Mapping
from typing import Literal

import msgspec

from models.key import VirtualKey

Mode = Literal["off", "exact", "semantic", "shadow"]
Scope = Literal["key", "team", "endpoint"]
# What of a conversation's earlier turns makes two last turns another question.
Keeping = Literal["full", "last-turn-if-self-contained", "last-turn"]
CacheOutcome = Literal["exact", "semantic", "coalesced", "miss", "bypass"]


class Endpoint(msgspec.Struct, frozen=True, gc=False):
    """One application's policy, compiled from its settings. Times in seconds.

    `keep` are the finish reasons whose answers are stored. `ttl_jitter` is the
    largest share by which an entry's TTL is shortened, `stale` is how long an
    entry may be served past it while a fresh one is asked for. `threshold`
    None: the verifier decides; `limit` is the share of wrong semantic hits to
    bear, `audit_rate` the share of them that is compared with the upstream's
    answer. `lookups` is what the log of look-ups keeps. `off` are the
    eligibility rules that do not apply here.
    """

    name: str
    mode: Mode = "semantic"
    threshold: float | None = None
    limit: float | None = None
    audit_rate: float = 0.0
    lookups: Literal["off", "numbers", "texts"] = "numbers"
    ttl: float = 3600.0
    ttl_jitter: float = 0.1
    stale: float = 0.0
    scope: Scope | None = None
    replay: Literal["instant", "paced"] = "instant"
    replay_rate: float = 50.0
    keep: frozenset[str] = frozenset({"stop"})
    max_temperature: float = 0.3
    context: Keeping = "full"
    question_pattern: str | None = None
    off: frozenset[str] = frozenset()
    fallback_answers: bool = False


class Limits(msgspec.Struct, frozen=True, gc=False):
    """`max_body` in bytes, `body_timeout` in seconds."""

    max_body: int
    body_timeout: float


class Directives(msgspec.Struct, frozen=True, gc=False):
    """What the caller's headers ask of the cache, already tightened to what the endpoint allows. `threshold` is the
    least cosine of a semantic hit, whatever else decides.

    Two requests share a flight only where these are equal.
    """

    mode: Mode
    threshold: float
    ttl: float
    lookup: bool = True
    store: bool = True
    max_age: float | None = None
    only_if_cached: bool = False


class Caller(msgspec.Struct, frozen=True, gc=False):
    """Who asks. `partition` is the part of the cache they share entries in.

    `credential` is what they sent that is no virtual key; only an upstream
    with `auth: passthrough` ever sees it.
    """

    partition: str
    key: VirtualKey | None = None
    credential: str | None = None


class Context(msgspec.Struct, gc=False):
    """One request on its way. `started` and `waited` are seconds on the monotonic clock."""

    request_id: str
    endpoint: Endpoint
    caller: Caller
    directives: Directives
    started: float
    headers: Mapping[bytes, bytes]  # as they came, names in lower case
    meaning: tuple[str, ...] = ()  # header values that change what is answered: part of the identity

    waited: float = 0.0  # spent waiting for an upstream
    acted: tuple[str, ...] = ()  # what guardrails did, such as `default/secrets=redact`
    outcome: CacheOutcome = "bypass"
    detail: str = ""  # why: a word for `Cache-Status`
    similarity: float | None = None
    audit: bool = False  # a semantic hit is to be compared with the upstream's answer
    shadow: float | None = None
    upstream: str = ""
    upstream_model: str = ""
