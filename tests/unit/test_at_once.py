"""The short path writes what the messages would have written, and knows when it must not."""

import asyncio
from typing import Any

import pytest
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from service.api import at_once
from service.api.exchange import send_whole

HEADERS = [(b"content-type", b"application/json"), (b"age", b"3")]
BODY = b'{"a":1}'


class Wire:
    """A transport, and what uvicorn's cycle asks of a connection."""

    def __init__(self) -> None:
        self.written = b""
        self.completed = 0
        self.write_paused = False

    def write(self, data: bytes) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return False

    def close(self) -> None: ...

    def resume_reading(self) -> None: ...

    def complete(self) -> None:
        self.completed += 1


def cycle_over(wire: Wire, *, method: str = "POST", keep_alive: bool = True) -> RequestResponseCycle:
    anything: Any = wire
    nothing: Any = None
    scope: Any = {"type": "http", "method": method}
    return RequestResponseCycle(
        scope=scope,
        transport=anything,
        flow=anything,
        logger=nothing,
        access_logger=nothing,
        access_log=False,
        default_headers=[(b"date", b"today")],
        message_event=asyncio.Event(),
        expect_100_continue=False,
        keep_alive=keep_alive,
        on_response=wire.complete,
    )


async def test_both_ways_write_the_same() -> None:
    short, long = Wire(), Wire()
    through_messages = cycle_over(long)

    async def send(message: Any) -> None:
        await through_messages.send(message)

    await send_whole(cycle_over(short).send, 404, list(HEADERS), BODY)  # type: ignore[arg-type]  # ours are plain mappings
    await send_whole(send, 404, list(HEADERS), BODY)

    assert short.written == long.written
    assert short.written.endswith(b"content-length: 7\r\n\r\n" + BODY)
    assert (short.completed, long.completed) == (1, 1)


async def test_both_ways_leave_the_cycle_in_the_same_state() -> None:
    short, long = cycle_over(Wire()), cycle_over(Wire())

    async def send(message: Any) -> None:
        await long.send(message)

    await send_whole(short.send, 200, list(HEADERS), BODY)  # type: ignore[arg-type]  # ours are plain mappings
    await send_whole(send, 200, list(HEADERS), BODY)

    for state in ("response_started", "response_complete", "chunked_encoding", "expected_content_length", "keep_alive"):
        assert getattr(short, state) == getattr(long, state), state
    assert short.message_event.is_set() == long.message_event.is_set()


@pytest.mark.parametrize("value", [b"a\r\nx: y", b"a\nx", b"a\0"])
async def test_a_header_that_holds_a_line_break_is_never_written(value: bytes) -> None:
    wire = Wire()

    with pytest.raises(RuntimeError, match="line break"):
        at_once.sent(cycle_over(wire).send, 200, [(b"x-note", value)], BODY)

    assert wire.written == b""


@pytest.mark.parametrize("reason", ["head", "last answer", "slow client", "begun"])
async def test_the_messages_are_used_where_something_is_to_be_minded(reason: str) -> None:
    wire = Wire()
    cycle = cycle_over(wire, method="HEAD" if reason == "head" else "POST", keep_alive=reason != "last answer")
    wire.write_paused = reason == "slow client"
    cycle.response_started = reason == "begun"

    assert not at_once.sent(cycle.send, 200, HEADERS, BODY)
    assert wire.written == b""


async def test_nothing_is_written_to_a_client_that_has_gone() -> None:
    wire = Wire()
    cycle = cycle_over(wire)
    cycle.disconnected = True

    assert at_once.sent(cycle.send, 200, HEADERS, BODY)
    assert wire.written == b""


async def test_a_body_is_taken_once_it_has_come() -> None:
    cycle = cycle_over(Wire())
    cycle.body += b"half"
    assert at_once.received(cycle.receive) is None

    cycle.body += b" and half"
    cycle.more_body = False
    cycle.message_event.set()

    assert at_once.received(cycle.receive) == b"half and half"
    assert not cycle.message_event.is_set(), "what is waited for next is the disconnect"


async def test_another_servers_callables_are_left_alone() -> None:
    async def anything() -> None: ...

    assert at_once.received(anything) is None
    assert not at_once.sent(anything, 200, HEADERS, BODY)
