"""Who calls for all: leases that are slow, that fail for a moment, and that nobody is left to hold."""

import asyncio

import pytest

from backends.exact.memory import MemoryStore
from backends.lease.memory import MemoryLeases
from models.errors import BackendError
from service.context import Caller, Context, Directives, Endpoint
from service.pipeline.exact_tier import ExactTier
from service.pipeline.lead import Lead, Leads
from service.telemetry.metrics import Metrics

CONTEXT = Context(
    request_id="r",
    endpoint=Endpoint(name="default"),
    caller=Caller(partition="everyone"),
    directives=Directives(mode="exact", threshold=0.9, ttl=60.0),
    started=0.0,
    headers={},
)


class LateLeases(MemoryLeases):
    """Grants what it is asked for at once, and says so when it is let; `renewals` of them fail first."""

    def __init__(self) -> None:
        super().__init__()
        self.granted = asyncio.Event()
        self.told = asyncio.Event()
        self.released = asyncio.Event()
        self.renewed = asyncio.Event()
        self.failing = 0

    async def acquire(self, key: str, *, owner: str, seconds: float) -> bool:
        granted = await super().acquire(key, owner=owner, seconds=seconds)
        self.granted.set()
        await self.told.wait()
        return granted

    async def renew(self, key: str, *, owner: str, seconds: float) -> bool:
        if self.failing:
            self.failing -= 1
            raise BackendError("not now")
        self.renewed.set()
        return await super().renew(key, owner=owner, seconds=seconds)

    async def release(self, key: str, *, owner: str) -> bool:
        self.released.set()
        return await super().release(key, owner=owner)


def leads(leases: MemoryLeases, *, deadline: float = 5.0, lease: float = 60.0) -> Leads:
    exact = ExactTier(MemoryStore(), deadline=None, metrics=Metrics())
    return Leads(leases, exact, deadline=deadline, lease=lease)


async def test_a_lease_that_is_granted_too_late_is_given_back() -> None:
    leases = LateLeases()

    taken = await leads(leases, deadline=0.01).take(CONTEXT, "key", patient=True)
    await asyncio.wait_for(leases.released.wait(), 5)
    leases.told.set()
    again = await leads(leases).take(CONTEXT, "key", patient=False)

    assert taken is None
    assert isinstance(again, Lead)
    await again.end()


async def test_who_hangs_up_while_it_asks_for_the_lead_leaves_no_lease_behind() -> None:
    leases = LateLeases()
    asking = asyncio.create_task(leads(leases).take(CONTEXT, "key", patient=True))
    await leases.granted.wait()

    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await asyncio.wait_for(leases.released.wait(), 5)
    leases.told.set()
    again = await leads(leases).take(CONTEXT, "key", patient=False)

    assert isinstance(again, Lead)
    await again.end()


async def test_a_lease_outlives_a_moment_in_which_it_cannot_be_renewed() -> None:
    leases = LateLeases()
    leases.told.set()
    leases.failing = 1

    lead = await leads(leases, lease=0.03).take(CONTEXT, "key", patient=True)
    await asyncio.wait_for(leases.renewed.wait(), 5)

    assert isinstance(lead, Lead)
    await lead.end()
