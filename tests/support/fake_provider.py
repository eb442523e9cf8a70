"""Model vendors as real HTTP servers on loopback: as strict as the vendor, and able to fail in every way one does.

    with running(Anthropic()) as fake:            # of fake_anthropic; also OpenAI(), Gemini()
        fake.url                                  # http://127.0.0.1:PORT, what the vendor's SDK takes
        fake.base_url                             # the same with the API's version, what an upstream's `base_url` takes
        fake.script("ok", "500", Fault("429", retry_after="1"))    # what the next three calls meet
        fake.fail("reset", times=2)               # more to come after that; times=None: until `reset()`
        fake.fail_at_random(0.3, "500", "reset", seed=7)            # what calls meet that the script says nothing of
        fake.refuse(); fake.accept()              # no listening socket, every connection dropped; back on the same port
        fake.latency = 0.05; fake.chunk_delay = 0.01                # seconds
        fake.calls[-1].body["messages"]           # what was asked, with `credential`, `headers`, `status`, `outcome`
        fake.in_flight, fake.most_in_flight
        fake.reset()                              # forgets calls and faults

A credential is good when it begins with `key-` (`KEY` is one); any other is a
401. What is answered depends on the request and on marks such as `#tool` in
the last user text: see `fake_scenario.py`.

A fault is a name, or a `Fault` for more. Names:

    ok                          no fault (fills a place in a script)
    400 … 529                   that status with the vendor's body; `retry_after` "1", "ms:250" (retry-after-ms) or
                                "date:2" (an HTTP date two seconds ahead)
    html, empty, malformed      a page with status 502; nothing; half of the JSON (in a stream: of an event)
    reset, reset_midway         the connection is reset: before the headers; after half of the answer
    cut, unfinished             after half of it, the connection is closed; the answer ends as if that were all
    stall, stall_midway         silence, for `seconds` or until the caller leaves: before the headers; after half of it
    slow, drip                  `seconds` (0.5) before the headers; the answer in small pieces, `seconds` (0.01) apart
    error_first, error_midway   a stream whose first event is an error; one that has it after half (a whole answer: 503)
    endless                     the answer never ends

`Fault(…, credential=, model=, path=)` meets only the calls that have these (`path`: that end so).

The same over HTTP, for those in another process: `PUT /fake` with any of

    {"script": ["ok", {"name": "429", "times": 3}], "latency": 0.05, "chunk_delay": 0.01,
     "random": {"rate": 0.3, "faults": ["500"], "seed": 7}}

`GET /fake` (calls and counts), `DELETE /fake` (reset). `python -m tests.support.fake_provider anthropic --port 9001`
serves one alone.
"""

import argparse
import asyncio
import importlib
import itertools
import random
import socket
import threading
import time
import urllib.parse
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from tests.support.fake_faults import Call, Fault, Line, Outcome, Receive, Scope, Send, Weather, deliver
from tests.support.fake_vendor import KEY, Asked, Json, Refused, Reply, Vendor, whole

__all__ = ["KEY", "Call", "Fake", "Fault", "running"]


class Fake:
    """A running fake, as the tests' thread drives it."""

    def __init__(self, vendor: Vendor, port: int = 0) -> None:
        self.vendor = vendor
        self.weather = Weather()
        self._socket = _listening(port)
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.base_url = self.url + vendor.version
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listener: asyncio.Server | None = None
        self._state = ServerState()
        self._ended = asyncio.Event()
        self._forget()

    def _forget(self) -> None:
        self._calls: list[Call] = []
        self._numbers = itertools.count(1)
        self._under_way: set[int] = set()
        self._most = 0

    def script(self, *faults: str | Fault) -> None:
        """What the next calls meet, one each. Replaces what was left of the last one."""
        self.weather.script = [_fault(fault) for fault in faults]

    def fail(self, fault: str, *, times: int | None = 1, **more: Any) -> None:
        """Adds to the script. `more` are fields of `Fault`."""
        self.weather.script.append(Fault(fault, times=times, **more))

    def fail_at_random(self, rate: float, *faults: str | Fault, seed: int = 0) -> None:
        """That share of the calls of which the script says nothing."""
        self.weather.rate = rate
        self.weather.random = random.Random(seed)  # noqa: S311 - faults that come back with the seed
        self.weather.faults = [_fault(fault) for fault in faults]

    @property
    def latency(self) -> float:
        return self.weather.latency

    @latency.setter
    def latency(self, seconds: float) -> None:
        self.weather.latency = seconds

    @property
    def chunk_delay(self) -> float:
        return self.weather.chunk_delay

    @chunk_delay.setter
    def chunk_delay(self, seconds: float) -> None:
        self.weather.chunk_delay = seconds

    def refuse(self) -> None:
        """New connections are refused and those that are open dropped, until `accept`."""
        self._in_loop(self._close())

    def accept(self) -> None:
        self._in_loop(self._listen())

    @property
    def calls(self) -> list[Call]:
        """In the order in which they came."""
        return list(self._calls)

    @property
    def in_flight(self) -> int:
        return len(self._under_way)

    @property
    def most_in_flight(self) -> int:
        return self._most

    def reset(self) -> None:
        """Forgets calls and faults. Calls under way go on."""
        self.weather.clear()
        self._forget()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = await _read(scope, receive)
        if asked is None:
            return
        call = Call(
            number=next(self._numbers),
            method=asked.method,
            path=asked.path,
            query=asked.query,
            headers=asked.headers,
            raw=asked.body,
            credential=self.vendor.credential(asked),
            at=time.monotonic(),
        )
        transport = scope["state"]["transport"]
        if asked.path == "/fake":
            line = Line(transport, receive, send, call.end)
            await deliver(call, self._control(asked), None, Weather(), self.vendor, line)
            return
        under_way = self._under_way
        self._calls.append(call)
        under_way.add(call.number)
        self._most = max(self._most, len(under_way))

        def ended(outcome: Outcome) -> None:
            call.end(outcome)
            under_way.discard(call.number)

        fault = self.weather.due(call)
        call.fault = fault.name if fault else ""
        line = Line(transport, receive, send, ended)
        try:
            await deliver(call, self._reply(asked), fault, self.weather, self.vendor, line)
        finally:
            ended("broken")  # a fake that stops breaks off what is under way

    def _reply(self, asked: Asked) -> Reply:
        try:
            return self.vendor.answer(asked)
        except Refused as refused:
            return refused.reply

    def _control(self, asked: Asked) -> Reply:
        if asked.method == "DELETE":
            self.reset()
        elif asked.method == "PUT":
            try:
                self._take(msgspec.json.decode(asked.body, type=_Told))
            except (msgspec.MsgspecError, ValueError) as error:
                return whole({"error": str(error)}, status=400)
        told: Json = {"in_flight": self.in_flight, "most_in_flight": self.most_in_flight}
        return whole({"calls": [call.report() for call in self.calls], **told})

    def _take(self, told: "_Told") -> None:
        if told.script is not None:
            self.script(*told.script)
        if told.random is not None:
            self.fail_at_random(told.random.rate, *told.random.faults, seed=told.random.seed)
        if told.latency is not None:
            self.latency = told.latency
        if told.chunk_delay is not None:
            self.chunk_delay = told.chunk_delay

    async def serve(self, ready: threading.Event | None = None) -> None:
        """Until `stop`."""
        self._loop = asyncio.get_running_loop()
        await self._listen()
        if ready is not None:
            ready.set()
        try:
            await self._ended.wait()
        finally:
            await self._close()
            tasks = list(self._state.tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def stop(self) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._ended.set)

    async def _listen(self) -> None:
        if self._listener is not None:
            return
        if self._socket.fileno() < 0:
            self._socket = _listening(self.port)
        config = uvicorn.Config(self, ws="none", lifespan="off", log_config=None, access_log=False)
        config.load()
        self._listener = await asyncio.get_running_loop().create_server(
            lambda: _Connection(config, self._state, {}), sock=self._socket
        )

    async def _close(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for connection in list(self._state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)

    def _in_loop(self, work: Coroutine[Any, Any, None]) -> None:
        assert self._loop is not None, "the fake does not run"
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)


class _Chance(msgspec.Struct, forbid_unknown_fields=True):
    rate: float
    faults: list[str | Fault]
    seed: int = 0


class _Told(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `PUT /fake`."""

    script: list[str | Fault] | None = None
    random: _Chance | None = None
    latency: float | None = None
    chunk_delay: float | None = None


class _Connection(HttpToolsProtocol):
    """Gives the application the transport, which ASGI keeps to itself: a fault resets it."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["state"]["transport"] = self.transport


def _listening(port: int) -> socket.socket:
    listener = socket.create_server(("127.0.0.1", port), backlog=2048)
    # asyncio sees to this only for sockets that were made with the protocol's number: a body would wait for an ACK.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _fault(fault: str | Fault) -> Fault:
    return Fault(fault) if isinstance(fault, str) else fault


async def _read(scope: Scope, receive: Receive) -> Asked | None:
    """None if the caller left before the body had come."""
    pieces = []
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        pieces.append(message.get("body", b""))
        more = message.get("more_body", False)
    return Asked(
        method=scope["method"],
        path=scope["path"],
        query=dict(urllib.parse.parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)),
        headers={name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]},
        body=b"".join(pieces),
    )


@contextmanager
def running(vendor: Vendor) -> Iterator[Fake]:
    """Serves in a thread with a loop of its own, on a free port."""
    fake = Fake(vendor)
    ready = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(fake.serve(ready)), name=f"fake-{vendor.name}", daemon=True)
    thread.start()
    assert ready.wait(10), "the fake does not listen"
    try:
        yield fake
    finally:
        fake.stop()
        thread.join(10)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.support.fake_provider")
    parser.add_argument("vendor", choices=["anthropic", "openai", "gemini"])
    parser.add_argument("--port", type=int, default=0)
    chosen = parser.parse_args(arguments)
    module = importlib.import_module(f"tests.support.fake_{chosen.vendor}")
    vendors = {"anthropic": "Anthropic", "openai": "OpenAI", "gemini": "Gemini"}
    fake = Fake(getattr(module, vendors[chosen.vendor])(), chosen.port)
    print(f"fake {chosen.vendor} on {fake.base_url}", flush=True)
    asyncio.run(fake.serve())


if __name__ == "__main__":
    main()
