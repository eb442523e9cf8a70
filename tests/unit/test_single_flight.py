"""Who joins a flight gets all of it, and nobody holds up anybody."""

import asyncio

import pytest

from models.completion import Completion, Entry, Usage
from models.errors import UpstreamError
from service.caching.single_flight import Flight, FlightChunk, Flights

ENTRY = Entry(Completion(b"{}", "m", Usage(1, 1), ("stop",)), 0.0, 10.0, "key", "up/m")


async def payloads(flight: Flight) -> list[bytes]:
    return [chunk.payload async for batch in flight.read() for chunk in batch]


async def test_a_late_reader_gets_the_stream_from_its_start() -> None:
    flight = Flight(streamed=True)
    flight.push(FlightChunk(b"1", usage_only=False))
    early = asyncio.create_task(payloads(flight))
    await asyncio.sleep(0)
    flight.push(FlightChunk(b"2", usage_only=False))
    late = asyncio.create_task(payloads(flight))
    await asyncio.sleep(0)
    flight.push(FlightChunk(b"3", usage_only=False))
    flight.finish(ENTRY)

    assert await early == [b"1", b"2", b"3"]
    assert await late == [b"1", b"2", b"3"]


async def test_a_cancelled_reader_leaves_the_others_alone() -> None:
    flight = Flight(streamed=True)
    first, second = asyncio.create_task(flight.whole()), asyncio.create_task(flight.whole())
    await asyncio.sleep(0)

    first.cancel()
    await asyncio.sleep(0)
    flight.finish(ENTRY)

    assert await second is ENTRY


async def test_every_reader_gets_the_error() -> None:
    flight = Flight(streamed=False)
    readers = [asyncio.create_task(flight.whole()) for _ in range(3)]
    await asyncio.sleep(0)

    flight.fail(UpstreamError("no answer"))

    for reader in readers:
        with pytest.raises(UpstreamError, match="no answer"):
            await reader


async def test_the_last_to_leave_cancels_the_call() -> None:
    flights = Flights()
    flight = Flight(streamed=True)
    cancelled = asyncio.Event()

    async def fly() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    flight.join()
    flight.join()
    flights.start("key", flight, fly())
    await asyncio.sleep(0)

    assert not flight.leave()
    assert flight.leave()
    await asyncio.wait_for(cancelled.wait(), 1)
    await asyncio.sleep(0)
    assert flights.joinable("key") is None


async def test_a_flight_that_was_given_up_cannot_be_joined() -> None:
    flights = Flights()
    flight = Flight(streamed=True)
    flight.join()
    flights.start("key", flight, asyncio.Event().wait())  # type: ignore[arg-type]  # returns a bool nobody reads
    await asyncio.sleep(0)

    flight.leave()

    assert flights.joinable("key") is None


async def test_an_unexpected_failure_ends_the_wait() -> None:
    flights = Flights()
    flight = Flight(streamed=False)

    async def fly() -> None:
        raise KeyError("a bug")

    flight.join()
    flights.start("key", flight, fly())

    with pytest.raises(Exception, match="its log has the cause"):
        await flight.whole()
    assert flights.joinable("key") is None


async def test_a_finished_flight_outlives_its_readers_until_it_lands() -> None:
    flights = Flights()
    flight = Flight(streamed=False)
    written = asyncio.Event()

    async def fly() -> None:
        flight.finish(ENTRY)
        await written.wait()

    flight.join()
    flights.start("key", flight, fly())
    await flight.whole()

    assert not flight.leave()
    assert flights.joinable("key") is flight
    written.set()
    await flights.landed(1.0)
    assert flights.joinable("key") is None


async def test_what_has_not_landed_in_time_is_over_before_its_stores_are_closed() -> None:
    flights, flight = Flights(), Flight(streamed=False)
    given_back = False

    async def fly() -> None:
        nonlocal given_back
        flight.finish(ENTRY)
        try:
            await asyncio.Event().wait()  # a provider that takes its time to answer an audit
        finally:
            await asyncio.sleep(0)
            given_back = True

    flights.start(None, flight, fly())
    await asyncio.sleep(0)

    await flights.landed(0.01)

    assert given_back
    assert flight.entry is ENTRY
