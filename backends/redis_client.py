"""Connections to Redis and Valkey: one server, a master that sentinels know, or a cluster."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from redis.asyncio import BlockingConnectionPool, Redis, RedisCluster, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthenticationWrongNumberOfArgsError,
    BusyLoadingError,
    ClusterDownError,
    ClusterError,
    ConnectionError,  # noqa: A004 - the name redis gives it; it is no OSError
    MaxConnectionsError,
    MovedError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
    TimeoutError,  # noqa: A004 - the name redis gives it; it is not the built-in one
)
from redis.maint_notifications import MaintNotificationsConfig

from backends.redis_address import RedisAddress
from models.errors import BackendError, ConfigError, StoreFull

# A backstop, seconds: the deadline of a lookup is its caller's, and far shorter.
_CONNECT_TIMEOUT = 2.0
_SOCKET_TIMEOUT = 5.0
_URL_TAKES = ("db", "password", "username")
_URL_OF_TLS_TAKES = ("ssl_cert_reqs", "ssl_check_hostname")
_SCAN_PAGE = 1_000  # keys a step looks at

Client = Redis | RedisCluster


def connect(address: RedisAddress) -> Client:
    """A client that connects at its first use and may be used by any number of tasks.

    Replies are bytes, in the shapes of RESP2 on every server. Nothing is tried
    twice and nobody waits before trying again; a connection whose command was
    cancelled is closed, so that its late reply is nobody's. Past
    `connections` callers wait for one to be free. Raises `ConfigError` for an
    address that cannot be one.
    """
    options = _options(address)
    if address.cluster:
        return _cluster(address, options)
    if address.sentinel_hosts:
        return _behind_sentinels(address, options)
    return Redis.from_pool(
        BlockingConnectionPool(max_connections=address.connections, timeout=_SOCKET_TIMEOUT, **options)
    )


@contextmanager
def backend_errors() -> Iterator[None]:
    """Turns what redis raises inside into `BackendError`, or `StoreFull` where there is no room."""
    try:
        yield
    except OutOfMemoryError as error:
        raise StoreFull("Redis is full: raise its maxmemory, or set its maxmemory-policy to volatile-lru") from error
    except RedisError as error:
        raise BackendError(_in_words(error)) from error
    except OSError as error:  # of a socket or of a certificate's file, where redis lets one through
        raise BackendError(f"no connection to Redis: {error.strerror or type(error).__name__}") from error


async def keys(client: Client, pattern: bytes) -> AsyncIterator[list[bytes]]:
    """The keys of the database, or of the cluster, that match the pattern, each once, a page at a time. `literal` makes
    a text a pattern. Raises what redis raises."""
    nodes: list[dict[str, Any]] = [{}]
    if isinstance(client, RedisCluster):
        await client.initialize()
        nodes = [{"target_nodes": node} for node in client.get_primaries()]
    seen: set[int] = set()  # a server that makes its table smaller meanwhile tells some twice
    for node in nodes:
        cursor: Any = 0
        while True:
            cursor, page = await client.execute_command("SCAN", cursor, "MATCH", pattern, "COUNT", _SCAN_PAGE, **node)
            if isinstance(cursor, dict):  # a cluster's, by node
                (cursor,) = cursor.values()
            fresh = [key for key in page if hash(key) not in seen]
            seen.update(map(hash, fresh))
            if fresh:
                yield fresh
            if not int(cursor):
                break


def literal(text: bytes) -> bytes:
    """As a pattern of keys."""
    return re.sub(rb"([\\*?\[\]^-])", rb"\\\1", text)


async def shared_secret(address: RedisAddress, name: str, make: Callable[[], bytes]) -> bytes:
    """What all who share the server and the prefix have by this name: whoever asks first makes it.

    It is kept for ever and in clear, so who may read the server knows it. A
    server that lost its data, or evicted this, has the next one make another.
    One try; raises `BackendError`.
    """
    client = connect(address)
    key = f"{address.prefix}:secret:{name}".encode()
    try:
        with backend_errors():
            await client.set(key, make(), nx=True)
            found: bytes | None = await client.execute_command("GET", key)
    finally:
        await client.aclose()
    if not found:
        raise BackendError("Redis lost a secret it had just been given")
    return found


def _in_words(error: RedisError) -> str:
    match error:
        case AuthenticationError() | AuthenticationWrongNumberOfArgsError():
            return "Redis refused the user or the password: see redis.url"
        case NoPermissionError():
            return f"the user of redis.url lacks a permission: {_safe(error)}"
        case ReadOnlyError():
            return "Redis is a read-only replica: redis.url must name the master, or set redis.sentinel"
        case BusyLoadingError():
            return "Redis is loading its data"
        case MovedError():
            return "Redis is a cluster: set redis.cluster to true"
        case MasterNotFoundError():
            return "no sentinel knows a master of that name: see redis.sentinel.hosts and redis.sentinel.master"
        case ClusterDownError() | ClusterError() | RedisClusterException():
            return f"the Redis cluster cannot serve this now: {_safe(error)}"
        case MaxConnectionsError():
            return "all connections to Redis are in use"
        case TimeoutError():
            return "Redis did not answer in time"
        case ConnectionError():
            return f"no connection to Redis: {_safe(error)}"
        case ResponseError():
            return f"Redis refused a command: {_safe(error)}"
        case _:
            return f"Redis failed: {type(error).__name__}"


# What asyncio and the kernel add to a refused connection: an address, and the number of the error.
_SOCKET_ADDRESS = re.compile(r"\(?'[^']{1,100}', \d+(?:, \d+)*\)?|\(\d+, '([^']{1,60})'\)")


def _safe(error: RedisError) -> str:
    """What it says before it may quote what was sent."""
    text = _SOCKET_ADDRESS.sub("", str(error))
    for quote in ("'", '"', "`", ", with args", " near "):
        text = text.partition(quote)[0]
    return text.strip(" .:")[:200]


def _options(address: RedisAddress) -> dict[str, Any]:
    """What every connection is made with."""
    try:
        options: dict[str, Any] = {**parse_url(address.url)}
    except ValueError as error:
        raise ConfigError(
            "redis.url: must be redis://host:port, rediss://host:port or unix:///path; "
            "special characters of a password are written as %XX"
        ) from error
    url = urlsplit(address.url)
    takes = {*_URL_TAKES, *(_URL_OF_TLS_TAKES if url.scheme == "rediss" else ())}
    if not {name for name, _ in parse_qsl(url.query, keep_blank_values=True)} <= takes:
        raise ConfigError(
            f"redis.url: after a question mark, {url.scheme}:// takes {', '.join(sorted(takes))} and nothing else"
        )
    path = url.path.strip("/")
    if options.get("connection_class") is not UnixDomainSocketConnection and path and not path.isdecimal():
        raise ConfigError("redis.url: what follows the port must be the number of a database")
    options |= {
        "client_name": "keepgate",
        "driver_info": None,
        "protocol": 2,
        "decode_responses": False,
        "health_check_interval": 0,
        # Where they are on, redis no longer looks whether a connection has an old reply in it.
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
        "retry": Retry(NoBackoff(), 0),
        "socket_connect_timeout": _CONNECT_TIMEOUT,
        "socket_timeout": _SOCKET_TIMEOUT,
    }
    if options.get("connection_class") is SSLConnection:
        files = {"ssl_ca_certs": address.ca_file, "ssl_certfile": address.cert_file, "ssl_keyfile": address.key_file}
        options |= {name: path for name, path in files.items() if path}
    return options


def _cluster(address: RedisAddress, options: dict[str, Any]) -> RedisCluster:
    kind = options.pop("connection_class", None)
    if kind is UnixDomainSocketConnection or options.pop("db", 0):
        raise ConfigError("redis.url: a cluster has a host and a port, and database 0 only")
    return _Cluster(
        **{"host": "127.0.0.1", **options},
        ssl=kind is SSLConnection,
        max_connections=address.connections,
        require_full_coverage=False,
    )


class _Cluster(RedisCluster):
    """One command at a time: where several open connections to a node at once, redis 8.1 breaks some of them. Pipelines
    are not counted: who sends them takes turns. Closes all it opened."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._turn = asyncio.Lock()

    async def execute_command(self, *args: Any, **kwargs: Any) -> Any:
        async with self._turn:
            return await super().execute_command(*args, **kwargs)

    async def aclose(self) -> None:
        await super().aclose()
        # Redis leaves the connections open where it had just lost a node.
        for nodes in ("nodes_cache", "startup_nodes"):
            await self.nodes_manager.aclose(nodes)


class _SentinelPool(SentinelConnectionPool, BlockingConnectionPool):
    """Asks the sentinels who the master is, and has its callers wait for a free connection."""

    async def aclose(self) -> None:
        await super().aclose()
        await self.sentinel_manager.aclose()


def _behind_sentinels(address: RedisAddress, options: dict[str, Any]) -> Redis:
    if not address.sentinel_master:
        raise ConfigError("redis.sentinel.master: the name that the sentinels know the master by is missing")
    kind = options.pop("connection_class", None)
    if kind is UnixDomainSocketConnection:
        raise ConfigError("redis.url: sentinels name a host and a port, not a socket")
    shared = {
        name: value for name, value in options.items() if name not in ("host", "port", "db", "username", "password")
    }
    sentinels = Sentinel(  # type: ignore[no-untyped-call]  # redis leaves it untyped
        [_host_and_port(host) for host in address.sentinel_hosts],
        sentinel_kwargs=shared
        | {
            "ssl": kind is SSLConnection,
            "username": address.sentinel_user or None,
            "password": address.sentinel_password or None,
            "socket_timeout": _CONNECT_TIMEOUT,
        },
    )
    for name in ("host", "port"):
        options.pop(name, None)
    pool = _SentinelPool(  # type: ignore[no-untyped-call]  # redis leaves it untyped
        address.sentinel_master,
        sentinels,
        ssl=kind is SSLConnection,
        max_connections=address.connections,
        timeout=_SOCKET_TIMEOUT,
        **options,
    )
    return Redis.from_pool(pool)


def _host_and_port(host: str) -> tuple[str, int]:
    name, _, port = host.rpartition(":")
    if not name or not port.isdecimal():
        raise ConfigError(f"redis.sentinel.hosts: {host!r} must be host:port")
    return name.strip("[]"), int(port)
