"""The exact store, leases and secrets of Redis against servers that are locked, full, gone, silent or many."""

import asyncio
import contextlib
import random
import secrets
import signal
import ssl
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme

from backends.exact.redis import RedisStore
from backends.lease.redis import RedisLeases
from backends.redis_address import RedisAddress
from backends.redis_client import connect, shared_secret
from models.errors import BackendError, StoreFull
from tests.support.servers import Server, free_port, running
from tests.support.stores import redis_alone

HERE = "support/team:blue"


@pytest.fixture(autouse=True)
def _installed(store_server: Callable[[str], Server]) -> None:
    """Skips or fails the test where Redis cannot be started."""
    store_server("redis-alone")


@asynccontextmanager
async def opened(address: RedisAddress) -> AsyncIterator[RedisStore]:
    store = RedisStore(address=address)
    try:
        yield store
    finally:
        await store.close()


def at(server: Server | int, **options: object) -> RedisAddress:
    port = server if isinstance(server, int) else server.port
    return RedisAddress(**{"url": f"redis://127.0.0.1:{port}", "prefix": uuid.uuid4().hex, **options})  # type: ignore[arg-type]


@asynccontextmanager
async def talking(address: RedisAddress) -> AsyncIterator[Any]:
    client = connect(address)
    try:
        yield client
    finally:
        await client.aclose()


async def until(question: Callable[[], Awaitable[bool]], *, seconds: float) -> None:
    """Asks again and again; what fails meanwhile is a no."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(BackendError, TimeoutError):
            async with asyncio.timeout(0.5):
                if await question():
                    return
        assert time.monotonic() < deadline, f"not so after {seconds} s"
        await asyncio.sleep(0.02)


# --- getting in


@pytest.fixture
def certificates(tmp_path: Path) -> dict[str, str]:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    for name, issued in (("server", authority.issue_cert("127.0.0.1")), ("client", authority.issue_cert("gateway"))):
        issued.private_key_and_cert_chain_pem.write_to_path(tmp_path / f"{name}.pem")
    return {name: str(tmp_path / f"{name}.pem") for name in ("ca", "server", "client")}


@asynccontextmanager
async def tls_before(server: Server, certificates: dict[str, str], *, clients: bool = False) -> AsyncIterator[int]:
    """A port where TLS is spoken: the packaged Redis is built without. `clients` must show a certificate."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificates["ca"])
    context.load_cert_chain(certificates["server"])
    context.verify_mode = ssl.CERT_REQUIRED if clients else ssl.CERT_NONE

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(65_536):
                writer.write(piece)
                await writer.drain()
        writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", server.port)
        await asyncio.gather(pass_on(reader, back), pass_on(there, writer))

    listening = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=context)
    async with listening:
        yield listening.sockets[0].getsockname()[1]
        await until(lambda: _none_connected(listening), seconds=5)


async def _none_connected(listening: asyncio.Server) -> bool:
    return not listening._active_count  # type: ignore[attr-defined]  # public from Python 3.13 on


async def test_tls_is_spoken_with_a_server_whose_authority_is_named(
    store_server: Callable[[str], Server], certificates: dict[str, str]
) -> None:
    async with tls_before(store_server("redis-alone"), certificates) as port:
        url = f"rediss://127.0.0.1:{port}"
        async with opened(RedisAddress(url=url, ca_file=certificates["ca"])) as store:
            await store.put(HERE, "key", b"value", ttl=60)

            assert await store.get(HERE, "key") == b"value"


async def test_a_server_that_cannot_show_who_it_is_is_not_told_anything(
    store_server: Callable[[str], Server], certificates: dict[str, str]
) -> None:
    async with tls_before(store_server("redis-alone"), certificates) as port:
        url = f"rediss://:hush@127.0.0.1:{port}"
        async with opened(RedisAddress(url=url)) as store:
            with pytest.raises(BackendError, match="certificate") as refused:
                await store.get(HERE, "key")

    assert isinstance(refused.value.__cause__, Exception)
    assert "hush" not in str(refused.value)


async def test_a_server_that_asks_for_a_certificate_gets_ours(
    store_server: Callable[[str], Server], certificates: dict[str, str]
) -> None:
    async with tls_before(store_server("redis-alone"), certificates, clients=True) as port:
        url, ca, own = f"rediss://127.0.0.1:{port}", certificates["ca"], certificates["client"]
        async with opened(RedisAddress(url=url, ca_file=ca)) as nobody:
            with pytest.raises(BackendError):
                await nobody.get(HERE, "key")
        async with opened(RedisAddress(url=url, ca_file=ca, cert_file=own, key_file=own)) as store:
            await store.put(HERE, "key", b"value", ttl=60)

            assert await store.get(HERE, "key") == b"value"


async def test_a_certificate_file_that_is_missing_is_said(
    store_server: Callable[[str], Server], certificates: dict[str, str], tmp_path: Path
) -> None:
    async with tls_before(store_server("redis-alone"), certificates) as port:
        address = RedisAddress(url=f"rediss://127.0.0.1:{port}", ca_file=str(tmp_path / "nowhere.pem"))
        async with opened(address) as store:
            with pytest.raises(BackendError, match="no connection to Redis"):
                await store.get(HERE, "key")


async def test_a_password_lets_in_and_a_wrong_one_says_what_to_mend(tmp_path: Path) -> None:
    with redis_alone(tmp_path / "redis", "--requirepass", "p@ss/word") as server:
        async with opened(at(server, url=f"redis://:p%40ss%2Fword@127.0.0.1:{server.port}/1")) as store:
            await store.put(HERE, "key", b"value", ttl=60)
            assert await store.get(HERE, "key") == b"value"
        for wrong in ("", ":hush@", "somebody:hush@"):
            async with opened(at(server, url=f"redis://{wrong}127.0.0.1:{server.port}")) as locked_out:
                for ask in (locked_out.get(HERE, "key"), locked_out.put(HERE, "key", b"", ttl=None)):
                    with pytest.raises(BackendError, match=r"the user or the password: see redis\.url") as refused:
                        await ask
                    assert "hush" not in str(refused.value)


async def test_a_password_that_is_mended_on_the_server_is_enough(tmp_path: Path) -> None:
    with redis_alone(tmp_path / "redis", "--requirepass", "new") as server:
        url = f"redis://127.0.0.1:{server.port}"
        async with opened(at(server, url=url.replace("//", "//:old@"))) as store:
            with pytest.raises(BackendError):
                await store.get(HERE, "key")
            async with talking(RedisAddress(url=url.replace("//", "//:new@"))) as administrator:
                await administrator.config_set("requirepass", "old")

            assert await store.get(HERE, "key") is None


async def test_a_user_with_just_the_commands_that_are_told_can_do_all(tmp_path: Path) -> None:
    entries = "+mget +get +set +getrange +unlink +scan"
    leases = "+exists +pexpire +eval"
    with redis_alone(tmp_path / "redis") as server:
        async with talking(at(server)) as administrator:
            for name, rights in (("gateway", f"{entries} {leases}"), ("reader", "+mget +get")):
                await administrator.execute_command(
                    "ACL",
                    "SETUSER",
                    name,
                    "on",
                    ">secret",
                    "~keepgate:*",
                    "-@all",
                    "+client",
                    "+select",
                    *rights.split(),
                )
        address = RedisAddress(url=f"redis://gateway:secret@127.0.0.1:{server.port}")
        async with opened(address) as store:
            await asyncio.gather(*(store.put(HERE, str(number), b"value", ttl=60) for number in range(5)))
            assert await store.get(HERE, "1") == b"value"
            assert await store.delete(HERE, "1") is True
            assert await store.sizes() == {HERE: 4}
            assert len([entry async for entry in store.entries("")]) == 4
            assert await store.clear("") == 4
        held = RedisLeases(address=address)
        assert await held.acquire("key", owner="one", seconds=60) is True
        assert await held.renew("key", owner="one", seconds=60) is True
        assert await held.held("key") is True
        assert await held.release("key", owner="one") is True
        await held.close()
        assert len(await shared_secret(address, "placeholders", lambda: secrets.token_bytes(32))) == 32
        async with opened(RedisAddress(url=f"redis://reader:secret@127.0.0.1:{server.port}")) as reader:
            assert await reader.get(HERE, "key") is None
            with pytest.raises(BackendError, match=r"the user of redis\.url lacks a permission"):
                await reader.put(HERE, "key", b"value", ttl=None)


async def test_a_unix_socket_is_an_address(tmp_path: Path) -> None:
    path = tmp_path / "redis.sock"
    with redis_alone(tmp_path / "redis", "--unixsocket", str(path), "--requirepass", "secret"):
        async with opened(RedisAddress(url=f"unix://:secret@{path}?db=2")) as store:
            await store.put(HERE, "key", b"value", ttl=60)

            assert await store.get(HERE, "key") == b"value"


async def test_an_address_where_nobody_listens_is_told_at_once(tmp_path: Path) -> None:
    for url in (f"redis://127.0.0.1:{free_port()}", f"unix://{tmp_path}/nowhere.sock"):
        async with opened(RedisAddress(url=url)) as store:
            began = time.monotonic()
            with pytest.raises(BackendError, match="no connection to Redis"):
                await store.get(HERE, "key")

            assert time.monotonic() - began < 0.5


async def test_a_server_of_another_kind_is_named(tmp_path: Path) -> None:
    with redis_alone(tmp_path / "master") as master:
        link = ("--replicaof", "127.0.0.1", str(master.port))
        with (
            redis_alone(tmp_path / "replica", *link) as replica,
            redis_alone(tmp_path / "cluster", "--cluster-enabled", "yes", port=free_port(below=55_536)) as cluster,
        ):
            async with opened(at(replica)) as store:
                with pytest.raises(BackendError, match="must name the master"):
                    await store.put(HERE, "key", b"value", ttl=None)
            async with opened(at(cluster)) as store:
                with pytest.raises(BackendError, match="cluster"):
                    await store.get(HERE, "key")


# --- bad weather


async def test_a_full_server_is_a_full_store_that_still_reads(tmp_path: Path) -> None:
    with redis_alone(tmp_path / "redis", "--maxmemory", "8mb", "--maxmemory-policy", "noeviction") as server:
        async with opened(at(server)) as store:
            await store.put(HERE, "before", b"value", ttl=None)

            with pytest.raises(StoreFull, match="maxmemory"):
                await asyncio.gather(*(store.put(HERE, str(n), bytes(100_000), ttl=None) for n in range(200)))

            assert await store.get(HERE, "before") == b"value"
            assert await store.clear("") > 10
            await store.put(HERE, "after", b"value", ttl=None)


async def test_a_server_that_may_evict_is_never_full(tmp_path: Path) -> None:
    with redis_alone(tmp_path / "redis", "--maxmemory", "8mb", "--maxmemory-policy", "allkeys-lru") as server:
        async with opened(at(server)) as store:
            for turn in range(20):
                await asyncio.gather(*(store.put(HERE, f"{turn}.{n}", bytes(100_000), ttl=None) for n in range(20)))

            assert await store.get(HERE, "19.19") == bytes(100_000)
            assert sum((await store.sizes()).values()) < 80


async def test_a_server_that_comes_back_empty_is_used_again(tmp_path: Path) -> None:
    with redis_alone(tmp_path / "redis") as server:
        store = RedisStore(address=at(server))
        await asyncio.gather(*(store.put(HERE, str(n), b"value", ttl=60) for n in range(50)))
        port = server.port
    with pytest.raises(BackendError):
        await store.get(HERE, "1")

    with redis_alone(tmp_path / "redis", port=port):
        await until(lambda: _missed(store, "1"), seconds=5)
        await store.put(HERE, "1", b"again", ttl=60)

        assert await store.get(HERE, "1") == b"again"
        await store.close()


async def _missed(store: RedisStore, key: str) -> bool:
    return await store.get(HERE, key) is None


async def test_a_server_that_restarts_between_two_lookups_is_not_noticed(tmp_path: Path) -> None:
    with redis_alone(tmp_path / "redis") as server:
        store = RedisStore(address=at(server))
        await store.put(HERE, "key", b"value", ttl=60)
        port = server.port

    with redis_alone(tmp_path / "redis", port=port):
        await asyncio.sleep(0)

        assert await store.get(HERE, "key") is None
        await store.close()


async def test_a_server_that_hangs_costs_the_callers_deadline_and_answers_right_afterwards(tmp_path: Path) -> None:
    with redis_alone(tmp_path / "redis") as server:
        async with opened(at(server)) as store:
            for number in range(100):
                await store.put(HERE, str(number), str(number).encode(), ttl=60)
            server.signal(signal.SIGSTOP)

            async def impatient(number: int) -> float:
                began = time.monotonic()
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await store.get(HERE, str(number))
                return time.monotonic() - began

            waits = await asyncio.gather(*(impatient(number) for number in range(50)))
            waits += [await impatient(number) for number in range(5)]
            server.signal(signal.SIGCONT)
            found = await asyncio.gather(*(store.get(HERE, str(number)) for number in reversed(range(100))))

        assert max(waits) < 0.5
        assert sorted(waits)[len(waits) // 2] < 0.1
        assert found == [str(number).encode() for number in reversed(range(100))]


@pytest.mark.full
async def test_a_store_that_waits_for_a_hanging_server_closes_within_the_time_of_one_answer(tmp_path: Path) -> None:
    with redis_alone(tmp_path / "redis") as server:
        store = RedisStore(address=at(server))
        await store.put(HERE, "before", b"value", ttl=60)
        server.signal(signal.SIGSTOP)
        writing = [asyncio.create_task(store.put(HERE, str(number), b"value", ttl=60)) for number in range(2_000)]
        await asyncio.sleep(0)

        began = time.monotonic()
        await store.close()
        took = time.monotonic() - began

        server.signal(signal.SIGCONT)
        written = await asyncio.gather(*writing, return_exceptions=True)
        assert {type(answer) for answer in written} == {BackendError}
        assert took < 8


async def test_writes_underway_outlive_lookups_that_are_given_up(tmp_path: Path) -> None:
    with redis_alone(tmp_path / "redis") as server:
        async with opened(at(server)) as store:
            await store.put(HERE, "there", b"value", ttl=60)
            server.signal(signal.SIGSTOP)
            underway = [asyncio.create_task(store.put(HERE, f"sent {n}", b"value", ttl=60)) for n in range(2)]
            await asyncio.sleep(0)
            for _ in range(3):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.02):
                        await asyncio.gather(*(store.get(HERE, "there") for _ in range(200)))
            server.signal(signal.SIGCONT)

            await asyncio.gather(*underway)

            assert await store.get(HERE, "sent 1") == b"value"


async def test_replies_are_never_mixed_however_callers_leave(tmp_path: Path) -> None:
    chance = random.Random(7)  # noqa: S311 - when to leave
    with redis_alone(tmp_path / "redis") as server:
        async with opened(at(server)) as store:
            for number in range(200):
                await store.put(HERE, str(number), str(number).encode() * 50, ttl=60)
            left = answered = 0

            async def restless(number: int) -> None:
                nonlocal left, answered
                for turn in range(40):
                    try:
                        async with asyncio.timeout(chance.choice([0.0002, 0.001, 0.003, 0.01, None])):
                            if turn % 4 == 3:
                                await store.put(HERE, str(number), str(number).encode() * 50, ttl=60)
                            else:
                                assert await store.get(HERE, str(number)) == str(number).encode() * 50
                        answered += 1
                    except TimeoutError:
                        left += 1

            await asyncio.gather(*(restless(number) for number in range(200)))
            everything = {entry.key: entry.value async for entry in store.entries("")}

    assert left > 200
    assert answered > 1_000
    assert everything == {str(number): str(number).encode() * 50 for number in range(200)}


async def test_no_connection_is_lost_to_callers_that_leave(tmp_path: Path) -> None:
    chance = random.Random(8)  # noqa: S311 - when to leave
    with redis_alone(tmp_path / "redis") as server:
        leases = RedisLeases(address=at(server, connections=4))

        async def restless(number: int) -> None:
            for _ in range(20):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(chance.choice([0.0001, 0.0005, 0.002])):
                        await leases.held(str(number))

        tasks = [asyncio.create_task(restless(number)) for number in range(100)]
        await asyncio.sleep(0.02)
        for task in tasks[::2]:
            task.cancel()  # beside its own deadline
        await asyncio.gather(*tasks, return_exceptions=True)

        async with asyncio.timeout(2):
            held = await asyncio.gather(*(leases.held(str(number)) for number in range(20)))
        assert held == [False] * 20
        await leases.close()


async def test_what_has_expired_is_gone_from_the_server(store_server: Callable[[str], Server]) -> None:
    address = at(store_server("redis-alone"))
    async with opened(address) as store, talking(address) as server:
        await store.put(HERE, "short", b"value", ttl=0.05)
        await store.put(HERE, "long", b"value", ttl=60)
        await store.put(HERE, "for ever", b"value", ttl=None)

        async def one_is_gone() -> bool:
            return len(await server.keys(f"{address.prefix}:*")) == 2

        await until(one_is_gone, seconds=5)
        assert await store.sizes() == {HERE: 2}


async def test_what_others_keep_on_the_server_is_left_alone(store_server: Callable[[str], Server]) -> None:
    one, other = at(store_server("redis-alone")), at(store_server("redis-alone"))
    async with opened(one) as mine, opened(other) as theirs:
        await mine.put(HERE, "key", b"mine", ttl=60)
        await theirs.put(HERE, "key", b"theirs", ttl=60)

        gone = await mine.clear("")

        assert gone == 1
        assert await mine.sizes() == {}
        assert await theirs.get(HERE, "key") == b"theirs"


async def test_what_another_program_writes_below_the_prefix_is_passed_over(
    store_server: Callable[[str], Server],
) -> None:
    address = at(store_server("redis-alone"))
    async with opened(address) as store, talking(address) as client:
        await store.put(HERE, "key", b"value", ttl=60)
        for name in (b"\xff\xfe\x00key", b"no zero byte"):
            await client.set(address.prefix.encode() + b":exact:" + name, b"\x7f\xf0" + bytes(6) + b"theirs")

        assert await store.sizes() == {HERE: 1}
        assert [entry.key async for entry in store.entries("")] == ["key"]
        assert await store.clear("") == 1


async def test_a_secret_is_the_same_for_all_who_share_a_server(store_server: Callable[[str], Server]) -> None:
    address = at(store_server("redis-alone"))

    told = await asyncio.gather(
        *(shared_secret(address, "placeholders", lambda: secrets.token_bytes(32)) for _ in range(20))
    )
    other = await shared_secret(address, "other", lambda: secrets.token_bytes(32))

    assert len(set(told)) == 1
    assert len(told[0]) == 32
    assert other != told[0]


# --- sentinels


@asynccontextmanager
async def watched(directory: Path) -> AsyncIterator[tuple[Server, Server, str]]:
    """A master, its replica, and the address of the sentinel that watches them."""
    with ExitStack() as servers:
        locked = ("--requirepass", "secret", "--masterauth", "secret")
        master = servers.enter_context(redis_alone(directory / "master", *locked))
        link = ("--replicaof", "127.0.0.1", str(master.port), "--repl-diskless-sync-delay", "0")
        replica = servers.enter_context(redis_alone(directory / "replica", *locked, *link))
        port = free_port()
        configuration = directory / "sentinel.conf"
        configuration.write_text(
            f"port {port}\nbind 127.0.0.1\ndir {directory}\n"
            f"sentinel monitor keep 127.0.0.1 {master.port} 1\nsentinel auth-pass keep secret\n"
            "sentinel down-after-milliseconds keep 200\nsentinel failover-timeout keep 2000\nrequirepass watch\n"
        )
        command = [str(master.process.args[0]), str(configuration), "--sentinel"]  # type: ignore[index]
        servers.enter_context(running(command, port=port, log=directory / "sentinel.log", cwd=directory))
        async with talking(RedisAddress(url=f"redis://:watch@127.0.0.1:{port}")) as sentinel:

            async def knows_both() -> bool:
                known = await sentinel.sentinel_masters()
                return bool(known["keep"]["num-slaves"] == 1)

            await until(knows_both, seconds=20)
        yield master, replica, f"127.0.0.1:{port}"


async def test_a_store_behind_sentinels_follows_the_master(tmp_path: Path) -> None:
    async with watched(tmp_path) as (master, replica, sentinel):
        address = RedisAddress(
            url="redis://:secret@ignored:1/0",
            sentinel_hosts=(f"127.0.0.1:{free_port()}", sentinel),  # the first is down
            sentinel_master="keep",
            sentinel_password="watch",
        )
        async with opened(address) as store:
            await store.put(HERE, "key", b"value", ttl=600)
            async with talking(RedisAddress(url=f"redis://:secret@127.0.0.1:{replica.port}")) as survivor:

                async def copied() -> bool:
                    return bool(await survivor.dbsize() == 1)

                await until(copied, seconds=20)
            master.signal(signal.SIGKILL)

            async def written() -> bool:
                await store.put(HERE, "after", b"value", ttl=600)
                return True

            await until(written, seconds=20)
            assert await store.get(HERE, "key") == b"value"
            assert await store.get(HERE, "after") == b"value"


async def test_sentinels_that_do_not_know_the_name_or_us_are_said(tmp_path: Path) -> None:
    async with watched(tmp_path) as (_, _, sentinel):
        for name, password in (("other", "watch"), ("keep", "wrong")):
            address = RedisAddress(sentinel_hosts=(sentinel,), sentinel_master=name, sentinel_password=password)
            async with opened(address) as store:
                with pytest.raises(BackendError, match=r"redis\.sentinel"):
                    await store.get(HERE, "key")


# --- a cluster


@asynccontextmanager
async def three_nodes(directory: Path) -> AsyncIterator[list[Server]]:
    with ExitStack() as servers:
        options = (
            "--cluster-enabled",
            "yes",
            "--cluster-node-timeout",
            "1000",
            "--cluster-require-full-coverage",
            "no",
        )
        nodes, clients, buses = [], [], []
        for number in range(3):
            buses.append(free_port())
            bus = ("--cluster-port", str(buses[-1]))
            nodes.append(servers.enter_context(redis_alone(directory / str(number), *options, *bus)))
        async with talking(at(nodes[0])) as one, talking(at(nodes[1])) as two, talking(at(nodes[2])) as three:
            clients = [one, two, three]
            for client, (first, last) in zip(clients, ((0, 5460), (5461, 10922), (10923, 16383)), strict=True):
                await client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
            for node, port in zip(nodes[1:], buses[1:], strict=True):
                await one.execute_command("CLUSTER", "MEET", "127.0.0.1", node.port, port)

            async def well() -> bool:
                told = [await client.execute_command("CLUSTER", "INFO") for client in clients]
                return all(b"cluster_state:ok" in state and b"cluster_slots_assigned:16384" in state for state in told)

            await until(well, seconds=20)
        yield nodes


async def test_a_cluster_holds_what_one_server_would(tmp_path: Path) -> None:
    async with three_nodes(tmp_path) as nodes:
        address = at(nodes[1], cluster=True)
        async with opened(address) as store:
            names = [(f"a/{number % 7}", str(number)) for number in range(500)]
            await asyncio.gather(*(store.put(*name, name[1].encode(), ttl=60) for name in names))
            await store.put("ab", "{1}", bytes(1 << 20), ttl=None)

            found = await asyncio.gather(*(store.get(*name) for name in names))
            walked = [entry async for entry in store.entries("a")]
            sizes = await store.sizes()
            deleted = await store.delete("a/1", "1"), await store.delete("a/1", "1")
            swept = await asyncio.gather(*(store.delete("a/2", str(number)) for number in range(500)))
            gone = await store.clear("a")

            assert found == [name[1].encode() for name in names]
            assert sorted((entry.namespace, entry.key) for entry in walked) == sorted(names)
            assert sum(sizes.values()) == 501
            assert deleted == (True, False)
            assert sum(swept) == 72
            assert gone == 499 - 72
            assert await store.sizes() == {"ab": 1}
            assert await store.get("ab", "{1}") == bytes(1 << 20)
        for node in nodes:
            async with talking(at(node)) as client:
                used = (await client.info("stats"))["total_commands_processed"]
            assert used > 50
        leases = RedisLeases(address=address)
        got = await asyncio.gather(*(leases.acquire("key", owner=str(number), seconds=60) for number in range(200)))
        assert sum(got) == 1
        assert await leases.release("key", owner=str(got.index(True))) is True
        await leases.close()
        assert len({await shared_secret(address, "name", lambda: secrets.token_bytes(32)) for _ in range(3)}) == 1


async def test_a_cluster_that_lost_a_node_serves_what_the_others_hold(tmp_path: Path) -> None:
    async with three_nodes(tmp_path) as nodes, opened(at(nodes[0], cluster=True)) as store:
        for number in range(60):
            await store.put(HERE, str(number), b"value", ttl=600)
        nodes[2].signal(signal.SIGKILL)
        nodes[2].process.wait()

        async def the_others_serve() -> bool:
            served = 0
            for number in range(60):
                with contextlib.suppress(BackendError):
                    served += await store.get(HERE, str(number)) == b"value"
            return 20 < served < 60

        await until(the_others_serve, seconds=20)
