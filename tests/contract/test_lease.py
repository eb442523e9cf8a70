"""What all leases do."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable

import pytest

from backends.lease.base import Leases
from backends.redis_address import RedisAddress
from backends.registry import create
from tests.support.servers import Server

SUITE = {"lease": {"memory", "redis"}}

PLACES = ["memory", "redis on redis", "redis on redis-alone", "redis on valkey"]


@pytest.fixture(params=PLACES)
async def leases(request: pytest.FixtureRequest, store_server: Callable[[str], Server]) -> AsyncIterator[Leases]:
    name, _, server = request.param.partition(" on ")
    options: dict[str, object] = {}
    if server:
        url = f"redis://127.0.0.1:{store_server(server).port}"
        options["address"] = RedisAddress(url=url, prefix=uuid.uuid4().hex)
    made: Leases = create("lease", name, **options)
    yield made
    await made.close()


async def free_after(leases: Leases, key: str) -> float:
    """Seconds until nobody holds `key`."""
    began = time.monotonic()
    while await leases.held(key):
        assert time.monotonic() < began + 10, "still held"
        await asyncio.sleep(0.005)
    return time.monotonic() - began


def test_every_implementation_is_run() -> None:
    assert {place.partition(" on ")[0] for place in PLACES} == SUITE["lease"]


async def test_only_the_first_gets_it(leases: Leases) -> None:
    first = await leases.acquire("key", owner="one", seconds=60)
    second = await leases.acquire("key", owner="two", seconds=60)
    again = await leases.acquire("key", owner="one", seconds=60)

    assert (first, second, again) == (True, False, False)


async def test_one_of_two_hundred_at_once_gets_it(leases: Leases) -> None:
    got = await asyncio.gather(*(leases.acquire("key", owner=str(number), seconds=60) for number in range(200)))

    assert sum(got) == 1


async def test_keys_do_not_know_each_other(leases: Leases) -> None:
    await leases.acquire("key", owner="one", seconds=60)

    assert await leases.acquire("key2", owner="two", seconds=60) is True
    assert await leases.held("ke") is False


async def test_it_is_held_until_its_owner_releases_it(leases: Leases) -> None:
    before = await leases.held("key")
    await leases.acquire("key", owner="one", seconds=60)
    during = await leases.held("key")
    released = await leases.release("key", owner="one")
    after = await leases.held("key")

    assert (before, during, released, after) == (False, True, True, False)
    assert await leases.acquire("key", owner="two", seconds=60) is True


async def test_nobody_releases_or_renews_what_is_anothers(leases: Leases) -> None:
    await leases.acquire("key", owner="one", seconds=60)

    assert await leases.release("key", owner="two") is False
    assert await leases.renew("key", owner="two", seconds=60) is False
    assert await leases.renew("key", owner="one", seconds=60) is True


async def test_nobody_releases_or_renews_what_is_not_held(leases: Leases) -> None:
    assert await leases.release("key", owner="one") is False
    assert await leases.renew("key", owner="one", seconds=60) is False
    assert await leases.held("key") is False


async def test_an_owner_that_died_is_in_the_way_for_its_time_only(leases: Leases) -> None:
    await leases.acquire("key", owner="dead", seconds=0.2)
    refused = await leases.acquire("key", owner="next", seconds=60)

    waited = await free_after(leases, "key")

    assert refused is False
    assert waited > 0.05
    assert await leases.acquire("key", owner="next", seconds=60) is True
    assert await leases.release("key", owner="dead") is False
    assert await leases.held("key") is True


async def test_a_renewal_counts_from_when_it_was_made(leases: Leases) -> None:
    await leases.acquire("key", owner="one", seconds=60)

    await leases.renew("key", owner="one", seconds=0.05)
    await free_after(leases, "key")

    assert await leases.renew("key", owner="one", seconds=60) is False


@pytest.mark.parametrize("name", ["ключ/日本語 🗝", "half \ud83d surrogate", "nul \x00", "", "k" * 5_000])
async def test_any_text_is_a_key_and_an_owner(leases: Leases, name: str) -> None:
    assert await leases.acquire(name, owner=name, seconds=60) is True
    assert await leases.acquire(name, owner="other", seconds=60) is False
    assert await leases.renew(name, owner=name, seconds=60) is True
    assert await leases.release(name, owner=name) is True


async def test_closing_twice_is_fine(leases: Leases) -> None:
    await leases.acquire("key", owner="one", seconds=60)

    await leases.close()
    await leases.close()
