"""The configuration: one YAML 1.2 file and the environment, read into a frozen tree.

Durations are seconds, sizes bytes. docs/configuration.md has the same fields for people.
"""

import difflib
import ipaddress
import math
import os
import re
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args
from urllib.parse import urlsplit

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, Strict, ValidationError

from backends import registry
from guardrails import registry as detectors
from guardrails.policy import Condition, PolicyError
from models.errors import ConfigError
from models.request import Dialect

_MAX_FILE = 1024 * 1024
_MAX_DEPTH = 32
_MAX_VALUES = 100_000
_TEN_YEARS = 3650 * 86400.0

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?) ?(ms|s|m|h|d)")
_BYTES = {"b": 1, "kb": 1024, "mb": 1024**2, "gb": 1024**3, "tb": 1024**4}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([KMGT]?B)", re.IGNORECASE)
_INTEGER = re.compile(r"[-+]?[0-9]{1,64}|0o[0-7]{1,64}|0x[0-9a-fA-F]{1,64}")
_NUMBER = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_REFERENCE = re.compile(r"env\.([A-Za-z_][A-Za-z0-9_]*)")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_PREFIX = re.compile(r"[A-Za-z0-9_-]{1,40}")
# What the onnx embedder builds from weights in a package; its module is too slow to import for a look at a name.
_PACKAGED_MODELS = ("all-MiniLM-L6-v2",)
# Which settings an embedder has a use for, by its kind; others, which a plugin brings, may use any.
_OF_EMBEDDERS = {
    "path": {"onnx", "sentence-transformers"},
    "revision": {"onnx", "sentence-transformers", "openai"},
    "file": {"onnx"},
    "base_url": {"openai"},
    "api_key": {"openai"},
    "dimensions": {"openai", "sentence-transformers"},
    "shorten": {"openai"},
}
_OR = "or a name on the hub such as BAAI/bge-small-en-v1.5"
_EMBEDDERS = {"onnx", "static", "sentence-transformers", "openai"}
_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(?:\.[A-Za-z0-9_-]+)*/[A-Za-z0-9](?:[A-Za-z0-9_-]|\.(?!\.)){0,95}")
_HUB_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}")
# They belong to the connection, which is the transport's.
_CONNECTION_HEADERS = frozenset({"connection", "content-length", "host", "te", "transfer-encoding", "upgrade"})


class _FromEnvironment(str):
    """A value out of the environment: text that becomes a number or a boolean where the field is one."""

    __slots__ = ()


def _typed(value: object) -> object:
    return _plain_scalar(value) if isinstance(value, _FromEnvironment) else value


def _duration(value: object) -> object:
    value = _typed(value)
    if isinstance(value, str) and (match := _DURATION.fullmatch(value)):
        value = float(match[1]) * _SECONDS[match[2]]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _TEN_YEARS:
        raise ValueError(
            "must be a duration of at most 3650d, such as 500ms, 30s, 10m, 1h or 7d, or a number of seconds"
        )
    return float(value)


def _size(value: object) -> object:
    value = _typed(value)
    if isinstance(value, str) and (match := _SIZE.fullmatch(value)):
        value = int(float(match[1]) * _BYTES[match[2].lower()])
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise ValueError("must be a size such as 512KB, 10MB or 1GB, or a number of bytes")
    return value


def _one_or_more(value: object) -> object:
    return (value,) if isinstance(value, str) else value


def _name(value: str) -> str:
    return _named(value, "it is part of URLs")


def _label(value: str) -> str:
    return _named(value, "it is part of headers and metrics")


def _named(value: str, reason: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError(
            f"must be at most 100 letters, digits, '.', '_' or '-', the first a letter or a digit: {reason}"
        )
    return value


def _text(value: str) -> str:
    if not value.strip() or not value.isprintable():
        raise ValueError("must not be empty or hold control characters")
    return value


def _secret(value: SecretStr) -> SecretStr:
    text = value.get_secret_value()
    if not text.strip() or not text.isprintable() or not text.isascii():  # it travels in a header
        raise ValueError("must be printable ASCII and not empty")
    return value


def _long(value: SecretStr) -> SecretStr:
    if len(value.get_secret_value()) < 32:
        raise ValueError("must have at least 32 characters: `openssl rand -hex 32` makes one")
    return value


def _prefix(value: str) -> str:
    if not _PREFIX.fullmatch(value):
        raise ValueError("must be at most 40 letters, digits, '_' or '-'")
    return value


def _of_1kb(value: int) -> int:
    if value < 1024:
        raise ValueError("must be at least 1KB")
    return value


def _of_1mb(value: int) -> int:
    if value < 1024**2:
        raise ValueError("must be at least 1MB")
    return value


def _file(value: Path) -> Path:
    if str(value) in ("", ".") or not str(value).isprintable():
        raise ValueError("must be a path without control characters")
    return value


def _located(url: str, *schemes: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in schemes and bool(parts.hostname) and parts.port != 0 and url.isprintable()
    except ValueError:  # brackets or a port that cannot be read
        return False


def _url(value: str) -> str:
    if not _located(value, "http", "https"):
        raise ValueError("must be a URL that starts with http:// or https:// and names a host")
    parts = urlsplit(value)
    if parts.query or parts.fragment:
        raise ValueError("must be a URL without query and fragment")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must not hold credentials: they belong in api_key")
    return value.rstrip("/")


def _proxy(value: str) -> str:
    if not _located(value, "http", "https"):
        raise ValueError("must be a URL that starts with http:// or https:// and names a host")
    return value


def _redis_url(value: SecretStr) -> SecretStr:
    url = value.get_secret_value()
    if not url.startswith("unix:///") and not _located(url, "redis", "rediss"):
        raise ValueError(
            "must be a URL that starts with redis://, rediss:// or unix:///; "
            "special characters of a password are written as %XX"
        )
    path = urlsplit(url).path.strip("/")
    if not url.startswith("unix:///") and path and not path.isdecimal():
        raise ValueError("what follows the port must be the number of a database")
    return value


def _host_and_port(value: str) -> str:
    if not _located(f"tcp://{value}", "tcp") or not value.rpartition(":")[2].isdecimal():
        raise ValueError("must be host:port")
    return value


def _origin(value: str) -> str:
    if value != "*" and not (_located(value, "http", "https") and value.count("/") == 2):
        raise ValueError("must be an origin such as https://app.example.com, without a path, or '*'")
    return value


def _headers(value: dict[str, str]) -> dict[str, str]:
    for name, text in value.items():
        if not _HEADER_NAME.fullmatch(name) or name.lower() in _CONNECTION_HEADERS:
            raise ValueError(f"{name!r} is not a header that can be set")
        if not text.isprintable() or not text.isascii():
            raise ValueError(f"the value of {name!r} must be printable ASCII")
    return value


Boolean = Annotated[bool, Strict(), BeforeValidator(_typed)]
Integer = Annotated[int, Strict(), BeforeValidator(_typed)]
Number = Annotated[float, Strict(), Field(allow_inf_nan=False), BeforeValidator(_typed)]
Share = Annotated[Number, Field(ge=0, le=1)]
Duration = Annotated[float, BeforeValidator(_duration)]
Period = Annotated[Duration, Field(gt=0)]
Size = Annotated[int, BeforeValidator(_size)]
Text = Annotated[str, AfterValidator(_text)]
Name = Annotated[str, AfterValidator(_name)]
Label = Annotated[str, AfterValidator(_label)]
Texts = Annotated[tuple[Text, ...], BeforeValidator(_one_or_more), Field(min_length=1)]
Secret = Annotated[SecretStr, AfterValidator(_secret)]
File = Annotated[Path, AfterValidator(_file)]
Url = Annotated[str, AfterValidator(_url)]
HostAndPort = Annotated[Text, AfterValidator(_host_and_port)]
Origin = Annotated[str, AfterValidator(_origin)]
Directions = Annotated[
    tuple[Literal["input", "output", "tool_args", "tool_result"], ...],
    BeforeValidator(_one_or_more),
    Field(min_length=1),
]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class TlsSettings(_Section):
    cert: File
    key: File


class ServerSettings(_Section):
    host: Text = "127.0.0.1"
    port: Annotated[Integer, Field(ge=0, le=65535)] = 8080
    workers: Annotated[Integer, Field(ge=1, le=256)] = 1
    max_body: Annotated[Size, AfterValidator(_of_1kb)] = 10 * 1024**2
    body_timeout: Period = 30.0
    drain: Duration = 30.0
    tls: TlsSettings | None = None
    cors_origins: tuple[Origin, ...] = ()


class StorageSettings(_Section):
    """`secret` makes placeholders; without it the gateway keeps one of its own."""

    path: File = Path("keepgate-data")
    secret: Annotated[Secret, AfterValidator(_long)] | None = None


class ExactCacheSettings(_Section):
    store: Text = "lmdb"
    max_size: Annotated[Size, AfterValidator(_of_1mb)] = 1024**3
    deadline: Period = 0.05


class VectorCacheSettings(_Section):
    """`deadline` covers the embedding and the search together. `m`, `ef_construction` and `ef` are for Redis and
    Qdrant, `index` for Redis; `max_entries` is for FAISS, where an entry costs each worker 2 to 5 KB of memory."""

    store: Text = "faiss"
    max_entries: Annotated[Integer, Field(ge=1)] = 50_000
    deadline: Period = 0.25
    index: Literal["hnsw", "flat"] = "hnsw"
    m: Annotated[Integer, Field(ge=4, le=128)] = 16
    ef_construction: Annotated[Integer, Field(ge=8, le=4096)] = 200
    ef: Annotated[Integer, Field(ge=8, le=4096)] = 128


class EmbedderSettings(_Section):
    """`revision` is a commit, tag or branch for models of the hub, and for an API any text: another makes all vectors
    anew. `remember` is how many texts keep their vector in memory."""

    kind: Text = "onnx"
    model: Text = "all-MiniLM-L6-v2"
    path: File | None = None
    revision: Text | None = None
    file: Text | None = None
    base_url: Url | None = None
    api_key: Secret | None = None
    dimensions: Annotated[Integer, Field(ge=1, le=65536)] | None = None
    shorten: Boolean = False
    remember: Annotated[Integer, Field(ge=0, le=10_000_000)] = 10_000


class CacheSettings(_Section):
    exact: ExactCacheSettings = ExactCacheSettings()
    vector: VectorCacheSettings = VectorCacheSettings()
    embedder: EmbedderSettings = EmbedderSettings()


class SentinelSettings(_Section):
    hosts: Annotated[tuple[HostAndPort, ...], Field(min_length=1)]
    master: Text
    user: Text | None = None
    password: Secret | None = None


class StoreTlsSettings(_Section):
    """`ca` is who signed the store's certificate, `cert` and `key` what the store knows the gateway by."""

    ca: File | None = None
    cert: File | None = None
    key: File | None = None


class RedisSettings(_Section):
    """The URL may hold a password. `connections` is the most a worker makes to a server."""

    url: Annotated[SecretStr, AfterValidator(_redis_url)] = SecretStr("redis://127.0.0.1:6379/0")
    sentinel: SentinelSettings | None = None
    cluster: Boolean = False
    tls: StoreTlsSettings = StoreTlsSettings()
    connections: Annotated[Integer, Field(ge=1, le=1024)] = 32
    prefix: Annotated[Text, AfterValidator(_prefix)] = "keepgate"


class QdrantSettings(_Section):
    """`grpc` None: where its port answers."""

    url: Url = "http://127.0.0.1:6333"
    api_key: Secret | None = None
    grpc: Boolean | None = None
    grpc_port: Annotated[Integer, Field(ge=1, le=65535)] = 6334
    ca_file: File | None = None
    prefix: Annotated[Text, AfterValidator(_prefix)] = "keepgate"


class QueueSettings(_Section):
    """Requests that wait for an upstream, in each worker."""

    size: Annotated[Integer, Field(ge=0, le=100_000)] = 100
    timeout: Period = 10.0


class BreakerSettings(_Section):
    """Opens after `failures` in a row; `rest` until the first probe."""

    failures: Annotated[Integer, Field(ge=1)] = 10
    rest: Period = 10.0


class UpstreamSettings(_Section):
    """Either one key or several; `dialects` None are the provider's; `max_concurrency` is of each worker."""

    name: Name
    provider: Text
    base_url: Url | None = None
    api_key: Secret | None = None
    api_keys: Annotated[tuple[Secret, ...], Field(min_length=1, max_length=100)] | None = None
    dialects: Annotated[tuple[Dialect, ...], BeforeValidator(_one_or_more), Field(min_length=1)] | None = None
    auth: Literal["key", "passthrough"] = "key"
    connect_timeout: Period = 5.0
    read_timeout: Period = 300.0
    total_timeout: Period = 600.0
    proxy: Annotated[str, AfterValidator(_proxy)] | None = Field(default=None, repr=False)
    ca_file: File | None = None
    stream_usage: Boolean = True
    headers: Annotated[dict[str, str], AfterValidator(_headers)] = Field(default_factory=dict, repr=False)
    max_concurrency: Annotated[Integer, Field(ge=1)] | None = None
    queue: QueueSettings = QueueSettings()
    breaker: BreakerSettings = BreakerSettings()

    @property
    def keys(self) -> tuple[str, ...]:
        """The values of `api_key` or `api_keys`."""
        given = self.api_keys or (() if self.api_key is None else (self.api_key,))
        return tuple(key.get_secret_value() for key in given)


class TargetSettings(_Section):
    upstream: Text
    model: Text
    weight: Annotated[Number, Field(gt=0)] = 1.0


class ModelSettings(_Section):
    """A name clients ask for. Fallbacks are `upstream/model`, tried in order.

    A `*` in the name stands for any text, and for the same text in the models
    of targets and fallbacks. `attempts` None is 3, or one for each of them.
    """

    name: Text
    targets: Annotated[tuple[TargetSettings, ...], Field(min_length=1)]
    fallbacks: tuple[Text, ...] = ()
    strategy: Literal["weighted", "least-busy", "least-latency"] = "weighted"
    sticky: Literal["none", "conversation"] = "none"
    timeout: Period | None = None
    attempts: Annotated[Integer, Field(ge=1, le=100)] | None = None


class RoutingSettings(_Section):
    """For models that do not say, and for names that are in no list of models."""

    timeout: Period | None = None
    attempts: Annotated[Integer, Field(ge=1, le=100)] | None = None


class SecondOpinionSettings(_Section):
    """`onnx` is a cross-encoder in the folder `path`, `judge` the language model `upstream/model`."""

    kind: Literal["onnx", "judge"]
    path: File | None = None
    model: Text | None = None
    deadline: Period = 0.05


class EndpointCacheSettings(_Section):
    """`replay_rate` is in tokens a second; `scope` None is `key` where the caller has one, else `endpoint`.
    `audit_rate` None is 0.01 where a limit is set, else 0."""

    mode: Literal["off", "exact", "semantic", "shadow"] = "semantic"
    threshold: Share | None = None
    max_wrong_hit_rate: Annotated[Number, Field(gt=0, lt=1)] | None = None
    audit_rate: Share | None = None
    lookups: Literal["off", "numbers", "texts"] = "numbers"
    second_opinion: SecondOpinionSettings | None = None
    ttl: Period = 3600.0
    ttl_jitter: Annotated[Number, Field(ge=0, le=0.5)] = 0.1
    stale_while_revalidate: Duration = 0.0
    scope: Literal["key", "team", "endpoint"] | None = None
    context: Literal["full", "last-turn-if-self-contained", "last-turn"] = "full"
    question_pattern: Text | None = None
    ignore_rules: tuple[Text, ...] = ()
    replay: Literal["instant", "paced"] = "instant"
    replay_rate: Annotated[Number, Field(gt=0)] = 50.0
    keep: tuple[Literal["stop", "length", "tool_calls"], ...] = ("stop",)
    max_temperature: Annotated[Number, Field(ge=0)] = 0.3
    fallback_answers: Boolean = False


class EndpointSettings(_Section):
    """`guardrails` None is the policy named `default`, an empty list is none at all."""

    name: Name
    cache: EndpointCacheSettings = EndpointCacheSettings()
    guardrails: tuple[Text, ...] | None = None


class RuleSettings(_Section):
    """`fail` None is `open` for `log` and else `closed`. `threshold` is the least confidence that counts, None the
    detector's own. What follows `threshold` is for one detector each, `options` for those of third parties."""

    detect: Texts
    on: Directions
    action: Literal["block", "redact", "mask", "log"]
    name: Label | None = None
    when: Text | None = None
    sample: Annotated[Number, Field(gt=0, le=1)] = 1.0
    timeout: Period = 5.0
    fail: Literal["open", "closed"] | None = None
    dry_run: Boolean = False
    send: Literal["masked", "original"] = "masked"
    threshold: Share | None = None
    pattern: Text | None = None
    group: Annotated[Integer, Field(ge=0, le=100)] = 0
    rules: File | None = None
    allow: Annotated[tuple[Text, ...], BeforeValidator(_one_or_more)] = ()
    model: Text | None = None
    entities: Texts | None = None
    language: Text = "en"
    options: dict[str, Any] = Field(default_factory=dict, repr=False)


class GuardrailSettings(_Section):
    name: Label
    rules: tuple[RuleSettings, ...] = ()


class KeysSettings(_Section):
    require: Boolean = False


class AdminSettings(_Section):
    """Without a token one is made at start and printed once."""

    token: Secret | None = None


class LogsSettings(_Section):
    """`requests` is `off`, `stderr` or the path of a file."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    requests: Text = "stderr"


class Settings(_Section):
    """Everything the gateway is told before it starts."""

    server: ServerSettings = ServerSettings()
    storage: StorageSettings = StorageSettings()
    cache: CacheSettings = CacheSettings()
    redis: RedisSettings | None = None
    qdrant: QdrantSettings | None = None
    upstreams: Annotated[tuple[UpstreamSettings, ...], Field(min_length=1)] = (
        UpstreamSettings(name="demo", provider="demo"),
    )
    models: tuple[ModelSettings, ...] = ()
    routing: RoutingSettings = RoutingSettings()
    endpoints: tuple[EndpointSettings, ...] = ()
    guardrails: tuple[GuardrailSettings, ...] = ()
    keys: KeysSettings = KeysSettings()
    admin: AdminSettings = AdminSettings()
    logs: LogsSettings = LogsSettings()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What will run and probably was not meant, one `path.to.key: …` each."""
        return tuple(f"{path}: {what}" for path, what in _doubts(self))


def load(path: Path | None, environ: Mapping[str, str], *, on_this_machine: bool = False) -> Settings:
    """The settings of the file, or the embedded defaults without one, under what the environment overrides.

    `on_this_machine` also checks what they name here and a start needs: files,
    folders, the host's name. Who only reads keys may lack the rights to that.

    Raises `ConfigError` with every problem found. Problems repeat names and
    paths, never another value: it may be a secret in the wrong place.
    """
    content, repeated = ({}, []) if path is None else _file_content(path)
    reading = _Reading(content, repeated, environ)
    doubtful, left_out = frozenset[str](), frozenset[str]()
    try:
        settings = Settings.model_validate(reading.tree)
    except ValidationError as error:
        reading.refuse(error)
        settings, doubtful, left_out = _what_can_be_used(reading.tree, error)
    found = [*_contradictions(settings, doubtful, on_this_machine=on_this_machine)]
    found += [(where, f"not in this version: {what}") for where, what in _not_in_this_version(settings)]
    reading.problems += [f"{where}: {what}" for where, what in found if not _lies_in(where, left_out)]
    if reading.problems:
        raise ConfigError(*dict.fromkeys(reading.problems))
    if any(endpoint.name == "default" for endpoint in settings.endpoints):
        return settings
    return settings.model_copy(update={"endpoints": (*settings.endpoints, EndpointSettings(name="default"))})


_LATER = {
    "upstream": {"bedrock"},
}


def _not_in_this_version(settings: Settings) -> Iterator[tuple[str, str]]:
    """What the format has a place for and nothing does yet.

    Refused rather than ignored: an operator who asks for a limit must not
    believe it is kept. Whoever builds one deletes its lines.
    """
    for path, seam, name in _implementations(settings):
        if name in _LATER.get(seam, ()) and not _is_registered(seam, name):
            yield path, f"{name}; use one of: {', '.join(sorted(registry.names(seam)))}"


def _contradictions(
    settings: Settings, doubtful: frozenset[str], *, on_this_machine: bool
) -> Iterator[tuple[str, str]]:
    """What is well formed and cannot work. Sections and items in `doubtful` are incomplete: nothing is concluded from
    what they lack."""
    server = settings.server
    if on_this_machine and not _resolves(server.host):
        yield "server.host", f"{server.host} is neither an address nor a name that can be looked up"
    elif not is_loopback(server.host) and not settings.keys.require and "keys" not in doubtful:
        yield (
            "server.host",
            "is open to others: set keys.require: true, or server.host to a loopback address",
        )
    if server.tls is not None:
        yield from _missing_file("server.tls.cert", server.tls.cert)
        yield from _missing_file("server.tls.key", server.tls.key)
    if on_this_machine:
        yield from _unusable_places(settings)
    for path, seam, name in _implementations(settings):
        if name not in _LATER.get(seam, ()) and not _is_registered(seam, name):
            known = sorted(registry.names(seam))
            yield path, f"must be one of: {', '.join(known)}{_suggested(name, known)}"
        elif (lacks := registry.not_installed(seam, name)) is not None:
            yield path, f"{name} {lacks}"
    if "cache" not in doubtful:
        yield from (
            (f"cache.embedder.{key}", problem) for key, problem in _embedder_contradictions(settings.cache.embedder)
        )
    if settings.redis is not None and "redis" not in doubtful:
        yield from _redis_contradictions(settings.redis)
    if settings.qdrant is not None and settings.qdrant.ca_file is not None and "qdrant" not in doubtful:
        yield from _missing_file("qdrant.ca_file", settings.qdrant.ca_file)
        if settings.qdrant.url.startswith("http://"):
            yield "qdrant.ca_file", "is for https://, and qdrant.url begins with http://"
    for section in ("upstreams", "models", "endpoints", "guardrails"):
        yield from _given_twice(section, [named.name for named in getattr(settings, section)])
    for at, upstream in enumerate(settings.upstreams):
        yield from _upstream_contradictions(f"upstreams.{at}", upstream, doubtful)
    for at, model in enumerate(settings.models):
        yield from _model_contradictions(f"models.{at}", model)
    if "upstreams" not in doubtful:
        known = [upstream.name for upstream in settings.upstreams]
        for at, model in enumerate(settings.models):
            yield from _unknown_upstreams(f"models.{at}", model, known)
        if not settings.keys.require and "keys" not in doubtful:
            yield from _unchecked_callers(settings)
    policies = ["default", *(policy.name for policy in settings.guardrails)]
    for at, endpoint in enumerate(settings.endpoints):
        if endpoint.cache.model_fields_set >= {"threshold", "max_wrong_hit_rate"}:
            yield f"endpoints.{at}.cache.max_wrong_hit_rate", "cannot be combined with threshold: set one of the two"
        if endpoint.cache.second_opinion is not None:
            where = f"endpoints.{at}.cache.second_opinion"
            unknown = None if "upstreams" in doubtful else {upstream.name: upstream for upstream in settings.upstreams}
            yield from _opinion_contradictions(where, endpoint.cache.second_opinion, unknown)
        for position, name in enumerate(endpoint.guardrails or ()):
            if name not in policies and "guardrails" not in doubtful:
                yield f"endpoints.{at}.guardrails.{position}", f"no policy is named {name!r}{_nearest(name, policies)}"
        for position in _repeated(endpoint.guardrails or ()):
            yield f"endpoints.{at}.guardrails.{position}", "is the same as one before it"
    for at, policy in enumerate(settings.guardrails):
        whole = f"guardrails.{at}" not in doubtful
        for position, rule in enumerate(policy.rules):
            yield from _rule_contradictions(f"guardrails.{at}.rules.{position}", rule, whole=whole)


def _embedder_contradictions(embedder: EmbedderSettings) -> Iterator[tuple[str, str]]:
    kind, given = embedder.kind, embedder.model_fields_set
    if kind == "openai":
        for key in ("base_url", "dimensions"):
            if getattr(embedder, key) is None:
                yield key, "is required with kind openai"
    for key, kinds in _OF_EMBEDDERS.items():
        if getattr(embedder, key) != EmbedderSettings.model_fields[key].default and kind in _EMBEDDERS - kinds:
            yield key, f"has no effect with kind {kind}: it is for {' and '.join(sorted(kinds))}"
    if kind not in _OF_EMBEDDERS["path"]:
        return
    if embedder.path is not None:
        if "model" in given:
            yield "model", "cannot be combined with path: set one of the two"
        if embedder.revision is not None:
            yield "revision", "cannot be combined with path: what is in the folder is its revision"
    elif _is_folder(embedder.model):
        yield "model", "is the path of a folder: write it as path"
    elif embedder.model in _PACKAGED_MODELS and kind == "onnx":
        yield from (
            (key, f"cannot be combined with {embedder.model}, which comes in a package: name a model of the hub")
            for key in ("revision", "file")
            if getattr(embedder, key) is not None
        )
    elif kind == "onnx" and not _HUB_NAME.fullmatch(embedder.model):
        packaged = ", ".join(_PACKAGED_MODELS)
        yield "model", f"no package carries {embedder.model!r}; known: {packaged}; or give the path of a folder, {_OR}"
    elif not _HUB_NAME.fullmatch(embedder.model) and not _NAME.fullmatch(embedder.model):
        yield "model", "must be a name on the hub such as BAAI/bge-small-en-v1.5"
    if embedder.revision is not None and (".." in embedder.revision or not _HUB_REVISION.fullmatch(embedder.revision)):
        yield "revision", "must be a commit, a tag or a branch of the model's repository on the hub"
    if embedder.file is not None and not _is_graph(embedder.file):
        yield "file", "must be the graph's path in the model's folder, such as onnx/model.onnx"


def _moves(embedder: EmbedderSettings) -> bool:
    """Whether it is a model of the hub under a name that may stand for another commit tomorrow."""
    packaged = embedder.kind == "onnx" and embedder.model in _PACKAGED_MODELS
    on_hub = embedder.kind in _OF_EMBEDDERS["path"] and embedder.path is None and not packaged
    return on_hub and not re.fullmatch(r"[0-9a-f]{40}", embedder.revision or "")


def _is_folder(model: str) -> bool:
    return model.startswith(("/", "./", "../", "~")) or model in (".", "..")


def _is_graph(file: str) -> bool:
    return file.endswith(".onnx") and not file.startswith("/") and ".." not in file.split("/")


def _opinion_contradictions(
    path: str, opinion: SecondOpinionSettings, upstreams: Mapping[str, UpstreamSettings] | None
) -> Iterator[tuple[str, str]]:
    """`upstreams` None: they are not known."""
    wanted, foreign = ("path", "model") if opinion.kind == "onnx" else ("model", "path")
    if getattr(opinion, wanted) is None:
        yield f"{path}.{wanted}", f"is required with kind {opinion.kind}"
    if getattr(opinion, foreign) is not None:
        yield f"{path}.{foreign}", f"does not belong to kind {opinion.kind}"
    if opinion.kind == "onnx" or opinion.model is None:
        return
    name, _, model = opinion.model.partition("/")
    if not name or not model:
        yield f"{path}.model", "must be upstream/model"
    elif upstreams is not None and name not in upstreams:
        yield f"{path}.model", f"no upstream is named {name!r}{_nearest(name, list(upstreams))}"
    elif upstreams is not None and upstreams[name].auth == "passthrough":
        yield f"{path}.model", f"{name} takes each caller's own credential, and a judge has none"


def _redis_contradictions(redis: RedisSettings) -> Iterator[tuple[str, str]]:
    url, tls = redis.url.get_secret_value(), redis.tls
    if redis.sentinel is not None and redis.cluster:
        yield "redis.cluster", "cannot be combined with redis.sentinel"
    if (redis.sentinel is not None or redis.cluster) and url.startswith("unix:"):
        yield "redis.url", "must name a host: sentinels and clusters have no socket"
    if redis.cluster and _database(url):
        yield "redis.url", "must end without the number of a database: a cluster has database 0 only"
    for name, file in (("ca", tls.ca), ("cert", tls.cert), ("key", tls.key)):
        if file is not None:
            yield from _missing_file(f"redis.tls.{name}", file)
            if not url.startswith("rediss://"):
                yield (
                    f"redis.tls.{name}",
                    "is for rediss://, and redis.url begins otherwise: nothing would be encrypted",
                )
    if tls.cert is not None and tls.key is None:
        yield "redis.tls.key", "is required with redis.tls.cert"
    if tls.key is not None and tls.cert is None:
        yield "redis.tls.cert", "is required with redis.tls.key"


def _database(url: str) -> int:
    path = "" if url.startswith("unix:") else urlsplit(url).path.strip("/")
    return int(path) if path.isdecimal() else 0


def _upstream_contradictions(
    path: str, upstream: UpstreamSettings, doubtful: frozenset[str]
) -> Iterator[tuple[str, str]]:
    known = registry.PROVIDERS.get(upstream.provider)
    if known is not None and "base_url" not in known and upstream.base_url is None and path not in doubtful:
        yield f"{path}.base_url", f"is required with provider {upstream.provider}"
    for key in ("api_key", "api_keys"):
        if upstream.auth == "passthrough" and getattr(upstream, key) is not None:
            yield f"{path}.{key}", "cannot be combined with auth: passthrough, which forwards the caller's credential"
    if upstream.api_key is not None and upstream.api_keys is not None:
        yield f"{path}.api_keys", "cannot be combined with api_key: write all of them here"
    for at in _repeated(upstream.keys if upstream.api_keys else ()):
        yield f"{path}.api_keys.{at}", "is the same as one before it"
    if upstream.ca_file is not None:
        yield from _missing_file(f"{path}.ca_file", upstream.ca_file)


def _model_contradictions(path: str, model: ModelSettings) -> Iterator[tuple[str, str]]:
    if model.sticky != "none" and model.strategy != "weighted":
        yield f"{path}.sticky", f"cannot be combined with strategy: {model.strategy}; a conversation keeps its target"
    if model.name.count("*") > 1:
        yield f"{path}.name", "can have one * only"
    places = [(f"targets.{at}.model", target.model) for at, target in enumerate(model.targets)]
    places += [(f"fallbacks.{at}", fallback) for at, fallback in enumerate(model.fallbacks)]
    for place, name in places:
        if name.count("*") > 1:
            yield f"{path}.{place}", "can have one * only"
        elif "*" in name and "*" not in model.name:
            yield f"{path}.{place}", "has a * that the name of the model does not have"


def _unusable_places(settings: Settings) -> Iterator[tuple[str, str]]:
    """What a start would stumble over in this machine's files. Nothing is made or changed."""
    if settings.server.tls is not None:
        yield from _tls_problems(settings.server.tls)
    home = settings.storage.path
    above = next(folder for folder in (home, *home.absolute().parents) if _holds(folder.exists))
    if not _holds(above.is_dir):
        yield "storage.path", f"{above} is a file; a folder is needed"
    elif not os.access(above, os.W_OK | os.X_OK):
        yield "storage.path", f"{above} cannot be written to"
    embedder = settings.cache.embedder
    if embedder.path is not None and embedder.kind in _OF_EMBEDDERS["path"]:
        if not _holds(embedder.path.is_dir):
            yield "cache.embedder.path", f"there is no folder {embedder.path}"
        elif lacking := _lacking(embedder.path, embedder):
            yield "cache.embedder.path", f"{embedder.path} lacks {lacking}"
    for at, endpoint in enumerate(settings.endpoints):
        opinion = endpoint.cache.second_opinion
        if opinion is None or opinion.kind != "onnx" or opinion.path is None:
            continue
        where, folder = f"endpoints.{at}.cache.second_opinion.path", opinion.path
        if not _holds(folder.is_dir):
            yield where, f"there is no folder {folder}"
        elif missing := [name for name in _OF_A_CROSS_ENCODER if not _holds((folder / name).is_file)]:
            yield where, f"{folder} lacks {', '.join(missing)}"
    if settings.logs.requests not in ("off", "stderr"):
        file = Path(settings.logs.requests)
        place = file if _holds(file.exists) else file.absolute().parent
        if _holds(file.is_dir):
            yield "logs.requests", f"{file} is a folder; a file is needed"
        elif place != file and not _holds(place.is_dir):
            yield "logs.requests", f"there is no folder {place}"
        elif not os.access(place, os.W_OK):
            yield "logs.requests", f"{place} cannot be written to"


def _lacking(folder: Path, embedder: EmbedderSettings) -> str:
    """What a model's folder needs and does not have, in words."""

    def there(*names: str) -> bool:
        return any(_holds((folder / name).is_file) for name in names)

    if embedder.kind == "sentence-transformers":
        return "" if there("modules.json", "config.json") else "modules.json or config.json"
    graphs = (embedder.file,) if embedder.file is not None else ("model.onnx", "onnx/model.onnx")
    beside = str(Path(graphs[0] if len(graphs) == 1 else graphs[-1]).parent / "tokenizer.json")
    missing = [graphs[0]] if not there(*graphs) else []
    missing += ["tokenizer.json"] if not there("tokenizer.json", beside) else []
    return " and ".join(missing)


def _tls_problems(tls: TlsSettings) -> Iterator[tuple[str, str]]:
    if not _holds(tls.cert.is_file) or not _holds(tls.key.is_file):
        return
    asked = False

    def passphrase() -> str:
        nonlocal asked
        asked = True
        return ""

    # A context each: the first does not get to see the key, so that the certificate is known to be one.
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(tls.cert)
    except OSError as error:
        yield "server.tls.cert", _unreadable(tls.cert, error) or f"{tls.cert} holds no certificate in PEM"
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tls.cert, tls.key, passphrase)
    except OSError as error:
        if asked:
            yield "server.tls.key", f"{tls.key} is encrypted: write it without a passphrase"
        elif isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH":
            yield "server.tls.key", f"{tls.key} does not belong to the certificate of server.tls.cert"
        else:
            yield "server.tls.key", _unreadable(tls.key, error) or f"{tls.key} holds no private key in PEM"


def _unreadable(file: Path, error: OSError) -> str | None:
    return None if isinstance(error, ssl.SSLError) else f"{file} cannot be read: {error.strerror}"


def _resolves(host: str) -> bool:
    try:
        socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):  # a label that is empty or too long is no name
        return False
    return True


def _unknown_upstreams(path: str, model: ModelSettings, known: Sequence[str]) -> Iterator[tuple[str, str]]:
    for at, target in enumerate(model.targets):
        if target.upstream not in known:
            yield (
                f"{path}.targets.{at}.upstream",
                f"no upstream is named {target.upstream!r}{_nearest(target.upstream, known)}",
            )
    for at, fallback in enumerate(model.fallbacks):
        upstream, _, name = fallback.partition("/")
        if not upstream or not name:
            yield f"{path}.fallbacks.{at}", "must be upstream/model"
        elif upstream not in known:
            yield f"{path}.fallbacks.{at}", f"no upstream is named {upstream!r}{_nearest(upstream, known)}"


def _unchecked_callers(settings: Settings) -> Iterator[tuple[str, str]]:
    """A caller's own credential is checked by the provider alone: who shows a bad one must not end at an upstream that
    is paid by the operator."""
    passed = {upstream.name for upstream in settings.upstreams if upstream.auth == "passthrough"}
    for at, model in enumerate(settings.models):
        led = [target.upstream for target in model.targets] + [name.partition("/")[0] for name in model.fallbacks]
        if not passed.isdisjoint(led) and not passed.issuperset(led):
            yield (
                f"models.{at}",
                "mixes upstreams with auth: passthrough and others: set keys.require: true, or keep the two apart",
            )


# Keys that say something to one detector.
_OF_DETECTORS = {
    "pattern": "regex",
    "group": "regex",
    "rules": "secrets",
    "allow": "secrets",
    "model": "presidio",
    "entities": "presidio",
    "language": "presidio",
}


_HEARS = "prompt_injection looks at what users write, and what tools and documents bring"
_UNHEARD = frozenset({"output", "tool_args"})
_UNBOUNDED = (
    "streamed answers wait from where a match may have begun, maybe to their end: what it matches has white space and "
    "no longest form; bound it, as in {0,100}"
)


def _rule_contradictions(path: str, rule: RuleSettings, *, whole: bool) -> Iterator[tuple[str, str]]:
    """Not `whole`: some of the policy could not be read, so nothing is missed."""
    if rule.action == "mask" and "output" in rule.on:
        yield f"{path}.action", "mask has nothing to restore on output: use redact, or take output out of `on`"
    of_file, problems = _secret_kinds(f"{path}.rules", rule.rules)
    yield from problems
    meanings = [detectors.meaning(word, secrets=of_file) for word in rule.detect]
    used = {meaning.detector for meaning in meanings if meaning is not None}
    for at, (word, meaning) in enumerate(zip(rule.detect, meanings, strict=True)):
        place = f"{path}.detect" if len(rule.detect) == 1 else f"{path}.detect.{at}"
        if meaning is None and not problems:
            yield place, f"nothing is called {word!r}{_nearest_word(word, of_file)}"
        elif word in rule.detect[:at]:
            yield place, "is the same as one before it"
        elif meaning is not None and (missing := detectors.not_installed(meaning.detector)) is not None:
            yield place, f"{word} {missing}"
        elif meaning is not None and meaning.detector not in detectors.BUILT_IN:
            try:
                detectors.class_of(meaning.detector)
            except ConfigError as error:
                yield place, str(error)
    if None not in meanings:
        for key in sorted(rule.model_fields_set & _OF_DETECTORS.keys(), key=list(_OF_DETECTORS).index):
            if _OF_DETECTORS[key] not in used:
                yield f"{path}.{key}", f"is for detect: {_OF_DETECTORS[key]}"
        if rule.options and used <= detectors.BUILT_IN.keys():
            yield f"{path}.options", "is for detectors of third parties"
    if "regex" in used and rule.pattern is None and whole:
        yield f"{path}.pattern", "is required with detect: regex"
    elif "regex" in used and rule.pattern is not None:
        try:
            detectors.built("regex", pattern=rule.pattern, group=rule.group)
        except detectors.CannotBuild as error:
            yield f"{path}.{error.option}", str(error)
    if rule.when is not None:
        try:
            Condition(rule.when)
        except PolicyError as error:
            yield f"{path}.when", str(error)
    if "prompt_injection" in used and _UNHEARD.issuperset(rule.on):
        yield f"{path}.on", f"must have input or tool_result: {_HEARS}"
    if "prompt_injection" in used and rule.threshold == 0:
        yield f"{path}.threshold", "must be greater than 0 with detect: prompt_injection"


def _secret_kinds(path: str, file: Path | None) -> tuple[frozenset[str] | None, list[tuple[str, str]]]:
    """What the rules of a file find, None without a file, and what is wrong with it."""
    if file is None:
        return None, []
    problems = [*_missing_file(path, file)]
    if problems:
        return None, problems
    try:
        return frozenset(rule.kind for rule in detectors.rule_file(file).rules), []
    except ConfigError as error:
        return None, [(path, problem) for problem in error.problems]


def _nearest_word(word: str, of_file: frozenset[str] | None) -> str:
    known = sorted(detectors.words() | (of_file or frozenset()))
    return (
        _suggested(word.lower(), known) or f"; known: {', '.join(sorted(detectors.names()))}, and kinds such as email"
    )


def _rule_doubts(path: str, rule: RuleSettings) -> Iterator[tuple[str, str]]:
    file = None if rule.rules is None else detectors.rule_file(rule.rules)
    if file is not None:
        yield from ((f"{path}.rules", note) for note in file.notes)
    kinds = None if file is None else {one.kind for one in file.rules}
    used = [meaning.detector for word in rule.detect if (meaning := detectors.meaning(word, secrets=kinds)) is not None]
    gates = rule.action != "log" and not rule.dry_run
    if rule.action == "mask" and not {"secrets", "detect_secrets"}.isdisjoint(used):
        yield f"{path}.action", "secrets are redacted: what is masked comes back in the answer"
    if "prompt_injection" in used and not _UNHEARD.isdisjoint(rule.on):
        yield f"{path}.on", f"has no effect on {' and '.join(sorted(_UNHEARD.intersection(rule.on)))}: {_HEARS}"
    if "hidden_text" in used and gates and "output" in rule.on:
        yield f"{path}.on", "hidden_text also finds chat templates that an answer explains; on input it has its use"
    classes = {name: detectors.class_of(name) for name in dict.fromkeys(used)}
    if gates and "output" in rule.on:
        for name, detector in classes.items():
            if name == "regex":
                if (
                    rule.pattern is not None
                    and detectors.built("regex", pattern=rule.pattern, group=rule.group).reach is None
                ):
                    yield f"{path}.pattern", _UNBOUNDED
            elif name != "prompt_injection" and not _is_settled_early(detector):
                yield f"{path}.on", f"streamed answers wait for their end: {name} looks at whole texts"
    if rule.send == "original" and all(getattr(detector, "inline", False) is True for detector in classes.values()):
        yield f"{path}.send", f"has no effect: {', '.join(classes)} always looks at the original"


def _is_settled_early(detector: object) -> bool:
    """Whether a stream need not end first. Of some it is not known before they are built."""
    return getattr(detector, "inline", True) is True and getattr(detector, "reach", 0) is not None


def _lies_in(where: str, items: frozenset[str]) -> bool:
    return any(where.startswith(f"{item}.") for item in items)


# Keys that say something to some stores, and what third parties make of them is theirs.
_REMOTE = ("redis", "qdrant")
_VECTOR_STORES = (*_REMOTE, "faiss", "flat")
_OF_A_CROSS_ENCODER = ("model.onnx", "tokenizer.json")
_OF_VECTOR_STORES = {
    "index": ("redis",),
    "m": _REMOTE,
    "ef_construction": _REMOTE,
    "ef": _REMOTE,
    "max_entries": ("faiss",),
}


def _doubts(settings: Settings) -> Iterator[tuple[str, str]]:
    stores = {settings.cache.exact.store, settings.cache.vector.store}
    for section in ("redis", "qdrant"):
        if getattr(settings, section) is not None and section not in stores:
            yield section, "nothing uses it: set cache.exact.store or cache.vector.store"
    vector = settings.cache.vector
    if vector.store == "redis" and settings.redis is not None and _database(settings.redis.url.get_secret_value()):
        yield (
            "redis.url",
            "the query engine of Redis knows database 0 only: vectors need a server with vector sets here",
        )
    embedder = settings.cache.embedder
    if vector.store in ("redis", "qdrant") and _moves(embedder):
        yield (
            "cache.embedder.revision",
            "is no commit: gateways that first start at other times may get other weights, and share no vectors then",
        )
    for key, used_by in _OF_VECTOR_STORES.items():
        if key in vector.model_fields_set and vector.store in _VECTOR_STORES and vector.store not in used_by:
            yield f"cache.vector.{key}", f"has no effect with store: {vector.store}"
    if settings.server.workers > 1:
        if settings.cache.exact.store == "memory":
            yield "cache.exact.store", "each worker has a cache of its own; lmdb is shared"
        if settings.cache.vector.store == "flat":
            yield "cache.vector.store", "each worker has an index of its own; faiss is shared"
    for at, upstream in enumerate(settings.upstreams):
        known = registry.PROVIDERS.get(upstream.provider, {"keyless": True})
        # At another address than the provider's own, something else may let it in.
        keyless = known.get("keyless", False) or ("base_url" in known and upstream.base_url is not None)
        if not keyless and not upstream.keys and upstream.auth == "key":
            yield f"upstreams.{at}.api_key", "requests will go out without a credential"
    for at, model in enumerate(settings.models):
        if len(model.targets) == 1 and model.strategy != "weighted":
            yield f"models.{at}.strategy", "has no effect with one target"
        if model.attempts is not None and model.attempts < len(model.targets) + len(model.fallbacks):
            yield f"models.{at}.attempts", "is less than targets and fallbacks together: some are never asked"
    for at, endpoint in enumerate(settings.endpoints):
        cache = endpoint.cache
        for key in ("threshold", "max_wrong_hit_rate", "audit_rate", "second_opinion"):
            if getattr(cache, key) is not None and key in cache.model_fields_set and cache.mode in ("off", "exact"):
                yield f"endpoints.{at}.cache.{key}", f"has no effect with mode: {cache.mode}"
        if cache.second_opinion is not None and cache.threshold is not None and cache.mode not in ("off", "exact"):
            yield f"endpoints.{at}.cache.second_opinion", "has no effect with a threshold: nobody is asked"
        if cache.lookups == "off" and cache.max_wrong_hit_rate is not None and cache.mode not in ("off", "exact"):
            yield (
                f"endpoints.{at}.cache.lookups",
                "off leaves keepgate tune nothing of the endpoint's own to certify from",
            )
        if cache.context == "last-turn":
            yield f"endpoints.{at}.cache.context", "last-turn answers follow-ups out of context: see docs/cache.md"
        if "replay_rate" in cache.model_fields_set and cache.replay == "instant":
            yield f"endpoints.{at}.cache.replay_rate", "has no effect with replay: instant"
    applied = {name for endpoint in settings.endpoints for name in endpoint.guardrails or ()}
    if any(endpoint.guardrails is None for endpoint in settings.endpoints):
        applied.add("default")
    for at, policy in enumerate(settings.guardrails):
        if policy.name not in applied:
            yield f"guardrails.{at}.name", f"no endpoint has the policy {policy.name!r}: it is not applied"
        for position, rule in enumerate(policy.rules):
            yield from _rule_doubts(f"guardrails.{at}.rules.{position}", rule)


def _implementations(settings: Settings) -> Iterator[tuple[str, str, str]]:
    """Every path that names one, its seam in the registry, and the name."""
    yield "cache.exact.store", "exact", settings.cache.exact.store
    yield "cache.vector.store", "vector", settings.cache.vector.store
    yield "cache.embedder.kind", "embedding", settings.cache.embedder.kind
    for at, upstream in enumerate(settings.upstreams):
        yield f"upstreams.{at}.provider", "upstream", upstream.provider


def _is_registered(seam: str, name: str) -> bool:
    return name in registry.BUILT_IN[seam] or name in registry.names(seam)


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, and where it leads is not ours to know
        return False


def _holds(check: Callable[[], bool]) -> bool:
    """A path's own test, and False for a path that cannot be tested: too long, or in a folder that is closed to us."""
    try:
        return check()
    except OSError:
        return False


def _missing_file(path: str, file: Path) -> Iterator[tuple[str, str]]:
    if not _holds(file.is_file):
        yield path, f"there is no file {file}"


def _given_twice(section: str, names: Sequence[str]) -> Iterator[tuple[str, str]]:
    for name, count in Counter(names).items():
        if count > 1:
            again = [at for at, other in enumerate(names) if other == name]
            yield from ((f"{section}.{at}.name", f"{name!r} is taken by {section}.{again[0]}") for at in again[1:])


def _repeated(values: Sequence[str]) -> Iterator[int]:
    return (at for at, value in enumerate(values) if value in values[:at])


def _nearest(name: str, known: Sequence[str]) -> str:
    return _suggested(name, known) or f"; known: {', '.join(known)}"


def _suggested(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


class _Reading:
    """The file's values under the environment's, and the problems met on the way."""

    def __init__(self, content: dict[str, Any], problems: Sequence[str], environ: Mapping[str, str]) -> None:
        self.problems = [*problems]
        self._sources: dict[str, str] = {}
        self._unset: set[str] = set()
        given = {section: value for section, value in content.items() if value is not None}
        self.tree = cast("dict[str, Any]", self._dereferenced(given, environ, ()))
        for variable in sorted(environ):
            self._override(variable, environ[variable])

    def refuse(self, error: ValidationError) -> None:
        for problem in _causes(error):
            path = _dotted(problem["loc"])
            if path not in self._unset:
                source = f" (set by {self._sources[path]})" if path in self._sources else ""
                self.problems.append(f"{path}: {_explained(problem)}{source}")

    def _dereferenced(self, value: object, environ: Mapping[str, str], path: tuple[str | int, ...]) -> object:
        if isinstance(value, dict):
            return {key: self._dereferenced(item, environ, (*path, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [self._dereferenced(item, environ, (*path, at)) for at, item in enumerate(value)]
        if isinstance(value, str) and (match := _REFERENCE.fullmatch(value)):
            if match[1] in environ:
                return _FromEnvironment(environ[match[1]])
            self.problems.append(f"{_dotted(path)}: the environment variable {match[1]} is not set")
            self._unset.add(_dotted(path))
            return ...  # of no field's type: what depends on it is not judged
        return value

    def _override(self, variable: str, value: str) -> None:
        section, *keys = variable.removeprefix("KEEPGATE_").lower().split("__")
        if not variable.startswith("KEEPGATE_") or not keys or section not in Settings.model_fields:
            return
        path = ".".join((section, *keys))
        if get_args(Settings.model_fields[section].annotation)[1:] == (...,):
            self.problems.append(f"{path}: lists are set in the file, not by {variable}")
            return
        within: Any = self.tree
        for key in (section, *keys[:-1]):
            if not isinstance(within, dict):
                break
            if within.get(key) is None:
                within[key] = {}
            within = within[key]
        if not isinstance(within, dict):
            self.problems.append(f"{path}: {variable} finds a value where it needs a mapping")
            return
        within[keys[-1]] = _FromEnvironment(value)
        self._sources[path] = variable


def _dotted(path: Sequence[str | int]) -> str:
    return ".".join(map(str, path))


_EXPLANATIONS = {
    "missing": "is required",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "string_type": "must be a string: put it in quotes",
    "path_type": "must be a path",
    "tuple_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "too_short": "must have at least one item",
    "greater_than": "must be greater than {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be less than {lt:g}",
    "less_than_equal": "must be at most {le:g}",
    "literal_error": "must be one of: {expected}",
    "value_error": "{error}",
}


def _causes(error: ValidationError) -> list[Any]:
    """The problems of `error` without the lists that are too short only for want of their refused items."""
    problems = error.errors(include_url=False, include_input=False)
    within = {problem["loc"][:length] for problem in problems for length in range(len(problem["loc"]))}
    return [problem for problem in problems if problem["type"] != "too_short" or problem["loc"] not in within]


def _explained(problem: Any) -> str:
    if problem["type"] == "extra_forbidden":
        *parents, key = problem["loc"]
        return f"unknown key{_nearest(key, list(_model_at(parents).model_fields))}"
    context = dict(problem.get("ctx", {}))
    if problem["type"] == "literal_error":
        context["expected"] = context["expected"].replace("'", "").replace(" or ", ", ")
    explanation = _EXPLANATIONS.get(problem["type"])
    return str(problem["msg"]) if explanation is None else explanation.format(**context)


def _model_at(path: Sequence[str | int]) -> type[BaseModel]:
    model: type[BaseModel] = Settings
    for step in path:
        if isinstance(step, str):
            model = next(_models_in(model.model_fields[step].annotation))
    return model


def _models_in(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)


# What stands where an item was left out, so that the others keep their places; nothing is reported of it.
_STAND_INS: dict[str, dict[str, Any]] = {
    "upstreams": {"provider": "demo"},
    "models": {"targets": [{"upstream": "none", "model": "none"}]},
    "endpoints": {},
    "guardrails": {},
}


def _what_can_be_used(tree: dict[str, Any], error: ValidationError) -> tuple[Settings, frozenset[str], frozenset[str]]:
    """The settings without what `error` refuses, so that a slip of the pen does not hide the problems behind it; the
    sections and items that lack something; and the items that were left out, where a stand-in is."""
    paths = [problem["loc"] for problem in _causes(error)]
    doubtful = {str(path[0]) for path in paths} | {_dotted(path[:2]) for path in paths if path[0] in _STAND_INS}
    left_out: set[str] = set()
    while True:
        refused = {_smallest_loss(problem, tree) for problem in _causes(error)}
        left_out |= {_dotted(path) for path in refused if len(path) == 2 and path[0] in _STAND_INS}
        tree = cast("dict[str, Any]", _without(tree, refused, ()))
        try:
            return Settings.model_validate(tree), frozenset(doubtful), frozenset(left_out)
        except ValidationError as further:  # what was left out is missed elsewhere
            error = further


def _smallest_loss(problem: Any, tree: object) -> tuple[str | int, ...]:
    """The path to leave out: of what lacks something, the item of a section's list or the whole section."""
    path: tuple[str | int, ...] = problem["loc"]
    if problem["type"] == "missing":
        return path[:2] if path[0] in _STAND_INS else path[:1]
    for depth, step in enumerate(path):
        if not isinstance(tree, dict | list):
            return path[:depth]  # the rest is inside a value that was written in short
        tree = cast("Any", tree)[step]
    return path


def _without(value: object, refused: set[tuple[str | int, ...]], path: tuple[str | int, ...]) -> object:
    if isinstance(value, dict):
        return {
            key: _without(item, refused, (*path, key)) for key, item in value.items() if (*path, key) not in refused
        }
    if isinstance(value, list):
        return [
            _without(item, refused, (*path, at)) if (*path, at) not in refused else _stand_in(path, at)
            for at, item in enumerate(value)
            if (*path, at) not in refused or path in _LISTS
        ]
    return value


_LISTS = {(section,) for section in _STAND_INS}


def _stand_in(path: tuple[str | int, ...], at: int) -> dict[str, Any]:
    return {"name": f"left-out-{at}", **_STAND_INS[str(path[0])]}


def _file_content(path: Path) -> tuple[dict[str, Any], Sequence[str]]:
    """The sections, and the keys that are given twice."""
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if len(content) > _MAX_FILE:
        raise ConfigError(f"{path}: is larger than 1 MB")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}: is not UTF-8 (line {line})") from error
    document = _Document()
    try:
        sections = document.read(text)
    except _NoConfiguration as error:
        raise ConfigError(f"{path}: {error}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise ConfigError(f"{path}: is not YAML: {error.problem or error.context}{where}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"{path}: is not YAML: {error.reason} (line {line})") from error
    if sections is None:
        return {}, []
    if not isinstance(sections, dict):
        raise ConfigError(f"{path}: must be a mapping of sections: {', '.join(Settings.model_fields)}")
    return sections, document.repeated


class _NoConfiguration(ValueError):
    """YAML, and of a kind that nothing can be read from. The message names the line."""


class _Document:
    """A YAML document as plain values, by the rules of the YAML 1.2 core schema.

    Built from the parser's events, with a stack of its own: PyYAML's composer
    reads YAML 1.1, lets a key overwrite an earlier one, and recurses until the
    process dies on a file of brackets. `repeated` are the problems that leave
    the rest readable.
    """

    def __init__(self) -> None:
        self.repeated: list[str] = []
        self._open: list[_Collection] = []
        self._anchors: dict[str, tuple[object, int]] = {}
        self._root: object = None
        self._count = 0

    def read(self, text: str) -> object:
        """Raises `_NoConfiguration`, or `yaml.YAMLError` for what is not YAML."""
        documents = 0
        for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise _NoConfiguration(f"line {_line(event)}: a second document begins")
            elif isinstance(event, yaml.AliasEvent):
                self._repeat(event)
            elif isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent):
                self._begin(event)
            elif isinstance(event, yaml.CollectionEndEvent):
                ended = self._open.pop()
                self._add(ended.value, event, ended.anchor, self._count - ended.count + 1)
        return self._root

    def _begin(self, event: yaml.ScalarEvent | yaml.CollectionStartEvent) -> None:
        line = _line(event)
        expects_key = bool(self._open) and self._open[-1].expects_key
        if event.tag not in (None, "!", "tag:yaml.org,2002:str"):
            raise _NoConfiguration(f"line {line}: tags such as {event.tag} have no meaning here")
        self._grow(1, line)
        if isinstance(event, yaml.ScalarEvent):
            plain = event.tag is None and event.implicit[0] and not expects_key
            self._add(_plain_scalar(event.value) if plain else event.value, event, event.anchor, 1)
            return
        if expects_key:
            raise _NoConfiguration(f"line {line}: a key must be a word or a quoted string")
        self._open.append(_Collection(event, self._count))
        if len(self._open) > _MAX_DEPTH:
            raise _NoConfiguration(f"line {line}: nested deeper than {_MAX_DEPTH} levels")

    def _repeat(self, event: yaml.AliasEvent) -> None:
        line = _line(event)
        if event.anchor not in self._anchors:
            raise _NoConfiguration(f"line {line}: *{event.anchor} refers to nothing that ended before it")
        value, size = self._anchors[event.anchor]
        self._grow(size, line)
        self._add(value, event, None, size)

    def _grow(self, values: int, line: int) -> None:
        self._count += values
        if self._count > _MAX_VALUES:
            raise _NoConfiguration(f"line {line}: more than {_MAX_VALUES} values, those that aliases repeat among them")

    def _add(self, value: object, event: yaml.Event, anchor: str | None, size: int) -> None:
        if anchor is not None:
            self._anchors[anchor] = (value, size)
        if not self._open:
            self._root = value
            return
        within = self._open[-1]
        if not within.expects_key:
            within.take(value)
            return
        line = _line(event)
        if not isinstance(value, str) or not value.isprintable():
            raise _NoConfiguration(f"line {line}: a key must be a word or a quoted string")
        within.key = value
        if value in within.lines:
            path = _dotted([collection.position for collection in self._open])
            self.repeated.append(f"{path}: is given twice, on line {within.lines[value]} and on line {line}")
        within.lines[value] = line


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 0


class _Collection:
    """A mapping or a list that has begun and not ended."""

    def __init__(self, event: yaml.CollectionStartEvent, count: int) -> None:
        self.is_mapping = isinstance(event, yaml.MappingStartEvent)
        self.anchor = event.anchor
        self.count = count
        self.key: str | None = None
        self.lines: dict[str, int] = {}
        self.mapping: dict[str, object] = {}
        self.items: list[object] = []

    @property
    def value(self) -> object:
        return self.mapping if self.is_mapping else self.items

    @property
    def expects_key(self) -> bool:
        return self.is_mapping and self.key is None

    @property
    def position(self) -> str | int:
        return len(self.items) if self.key is None else self.key

    def take(self, value: object) -> None:
        if self.key is None:
            self.items.append(value)
        else:
            self.mapping[self.key] = value
            self.key = None


def _plain_scalar(text: str) -> str | int | float | bool | None:
    """An unquoted scalar under the core schema: `on`, `off`, `yes`, `no`, `1h` and dates are strings."""
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if text in ("true", "True", "TRUE", "false", "False", "FALSE"):
        return text.lower() == "true"
    if _INTEGER.fullmatch(text):
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    if _NUMBER.fullmatch(text):
        return float(text)
    match text.lower().lstrip("+-"):
        case ".inf":
            return -math.inf if text.startswith("-") else math.inf
        case ".nan":
            return math.nan
    return text
