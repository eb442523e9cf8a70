"""Addresses of Redis, and what its errors say."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis import exceptions
from redis.asyncio import RedisCluster
from redis.asyncio.sentinel import MasterNotFoundError

from backends.redis_address import RedisAddress
from backends.redis_client import backend_errors, connect
from models.errors import BackendError, ConfigError, StoreFull


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        (RedisAddress(url="http://127.0.0.1:6379"), r"redis\.url: must be redis://"),
        (RedisAddress(url="127.0.0.1:6379"), r"redis\.url: must be redis://"),
        (RedisAddress(url="redis://:pass/word@127.0.0.1:6379"), r"redis\.url: must be .*%XX"),
        (RedisAddress(url="redis://127.0.0.1?max_connections=5"), r"redis\.url: .* takes db, .*nothing else"),
        (RedisAddress(url="redis://127.0.0.1?retry_on_timeout=yes"), r"redis\.url: .*nothing else"),
        (RedisAddress(url="redis://127.0.0.1?health_check_interval="), r"redis\.url: .*nothing else"),
        (RedisAddress(url="redis://127.0.0.1?ssl_cert_reqs=none"), r"redis\.url: .*nothing else"),
        (RedisAddress(url="redis://127.0.0.1:6379/main"), r"redis\.url: .* the number of a database"),
        (RedisAddress(url="redis://127.0.0.1:6379/1", cluster=True), "database 0 only"),
        (RedisAddress(url="unix:///run/redis.sock", cluster=True), "a cluster has a host and a port"),
        (RedisAddress(sentinel_hosts=("one:26379",)), r"redis\.sentinel\.master: .* missing"),
        (
            RedisAddress(sentinel_hosts=("one",), sentinel_master="keep"),
            r"redis\.sentinel\.hosts: 'one' must be host:port",
        ),
        (
            RedisAddress(url="unix:///run/redis.sock", sentinel_hosts=("one:26379",), sentinel_master="keep"),
            "sentinels name a host and a port, not a socket",
        ),
    ],
)
def test_an_address_that_cannot_be_one_says_which_setting_to_mend(address: RedisAddress, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as refused:
        connect(address)

    assert "word" not in str(refused.value).replace("password", "")


def test_a_client_is_made_without_a_connection() -> None:
    nowhere = RedisAddress(url="redis://user:secret@192.0.2.1:1/5")

    client = connect(nowhere)

    assert not isinstance(client, RedisCluster)
    options = client.connection_pool.connection_kwargs
    assert (options["host"], options["port"], options["db"]) == ("192.0.2.1", 1, 5)
    assert (options["username"], options["password"]) == ("user", "secret")
    assert options["retry"].get_retries() == 0


def test_files_of_certificates_matter_to_tls_only() -> None:
    address = RedisAddress(url="rediss://127.0.0.1", ca_file="ca.pem", cert_file="own.pem", key_file="own.key")

    with_tls = connect(address)
    without = connect(msgspec.structs.replace(address, url="redis://127.0.0.1"))

    assert not isinstance(with_tls, RedisCluster)
    assert not isinstance(without, RedisCluster)
    options = with_tls.connection_pool.connection_kwargs
    assert {name: options[name] for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")} == {
        "ssl_ca_certs": "ca.pem",
        "ssl_certfile": "own.pem",
        "ssl_keyfile": "own.key",
    }
    assert not any(name.startswith("ssl") for name in without.connection_pool.connection_kwargs)


def test_nothing_is_tried_twice() -> None:
    client: Any = connect(RedisAddress(url="rediss://127.0.0.1?db=1&ssl_cert_reqs=none"))

    connection = client.connection_pool.make_connection()
    assert connection.retry.get_retries() == 0
    assert connection.health_check_interval == 0


@pytest.mark.parametrize(
    "address",
    [
        RedisAddress(url="redis://user:hush@example.com:6379/0"),
        RedisAddress(url="redis://:hush@ignored", sentinel_hosts=("a:1", "b:2"), sentinel_master="m"),
        RedisAddress(sentinel_hosts=("a:1",), sentinel_master="m", sentinel_password="hush"),
        RedisAddress(url="unix://user:hush@/run/redis.sock"),
    ],
)
def test_what_an_address_is_shown_as_holds_no_password(address: RedisAddress) -> None:
    assert "hush" not in f"{address!r} {address}"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (exceptions.AuthenticationError("invalid username-password pair"), "the user or the password: see redis.url"),
        (exceptions.NoPermissionError("User bob has no permissions to run the 'set' command"), "lacks a permission"),
        (exceptions.ReadOnlyError("You can't write against a read only replica."), "must name the master"),
        (exceptions.BusyLoadingError("Redis is loading the dataset in memory"), "loading its data"),
        (exceptions.MovedError("3999 127.0.0.1:6381"), "set redis.cluster to true"),
        (exceptions.ClusterDownError("Hash slot not served"), "cannot serve this now: Hash slot not served"),
        (MasterNotFoundError("No master found for 'keep'"), "see redis.sentinel.hosts"),
        (exceptions.TimeoutError("Timeout reading from 127.0.0.1:6379"), "did not answer in time"),
        (exceptions.ConnectionError("Error 111 connecting to 127.0.0.1:1."), "no connection to Redis: Error 111"),
        (exceptions.ResponseError("unknown command 'GETX', with args beginning with: 'hush'"), "unknown command"),
        (exceptions.InvalidResponse("Protocol Error: b'hush'"), "Redis failed: InvalidResponse"),
        (ConnectionResetError(104, "Connection reset by peer"), "no connection to Redis: Connection reset by peer"),
    ],
)
def test_an_error_of_the_server_says_what_to_mend_and_nothing_that_was_sent(error: Exception, message: str) -> None:
    with pytest.raises(BackendError) as told, backend_errors():
        raise error

    assert message in str(told.value)
    assert "hush" not in str(told.value)
    assert told.value.__cause__ is error


def test_a_full_server_is_a_full_store() -> None:
    with pytest.raises(StoreFull, match="maxmemory"), backend_errors():
        raise exceptions.OutOfMemoryError("command not allowed when used memory > 'maxmemory'.")


def test_what_is_not_the_servers_passes() -> None:
    with pytest.raises(ZeroDivisionError), backend_errors():
        raise ZeroDivisionError


def test_the_client_is_not_imported_with_the_registry() -> None:
    program = "import sys, backends.registry, backends.redis_address; sys.exit('redis' in sys.modules)"

    ended = subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2], check=False)  # noqa: S603

    assert ended.returncode == 0
