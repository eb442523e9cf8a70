"""What a call to an upstream costs in CPU time: our transport beside two client libraries.

    keepgate mock-upstream --port 9411 &
    pip install aiohttp pyreqwest uvloop
    python -m benchmarks.http_clients http://127.0.0.1:9411/v1

Rounds are interleaved. CPU time of this process, all its threads included, is
what is measured: it is what a gateway has to spend, and other work on the
machine disturbs it little.
"""

import asyncio
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from importlib import import_module
from typing import Any

import msgspec
import uvloop

from backends.upstream.base import Call
from backends.upstream.providers import upstream as provider_upstream

CALLS = 2_000
AT_ONCE = 32
ROUNDS = 7
BODY = msgspec.json.encode(
    {
        "model": "mock-large",
        "messages": [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": "What is the capital of France, and how many people live there today?"},
        ],
        "temperature": 0.2,
    }
)
CALL = Call(operation="chat", model="mock-large", body=msgspec.json.decode(BODY), raw=BODY)
HEADERS = {"content-type": "application/json", "authorization": "Bearer x"}


async def main(base_url: str) -> None:
    aiohttp: Any = import_module("aiohttp")
    pyreqwest: Any = import_module("pyreqwest.client")
    url = f"{base_url}/chat/completions"
    upstream = provider_upstream(name="mock", provider="openai-compatible", base_url=base_url, api_keys=["x"])
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=600, sock_connect=5, sock_read=60),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
    )
    builder = pyreqwest.ClientBuilder().no_proxy().follow_redirects(False)
    builder = builder.gzip(False).brotli(False).zstd(False).deflate(False)
    client = builder.read_timeout(timedelta(seconds=60)).timeout(timedelta(seconds=600)).build()

    async def ours() -> None:
        await upstream.complete(CALL)

    async def with_aiohttp() -> None:
        async with session.post(url, data=BODY, headers=HEADERS, allow_redirects=False) as response:
            await response.read()

    async def with_pyreqwest() -> None:
        response = await client.post(url).headers(HEADERS).body_bytes(BODY).build().send()
        bytes(await response.bytes())

    kinds = {"ours, body checked": ours, "aiohttp": with_aiohttp, "pyreqwest": with_pyreqwest}
    spent: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(ROUNDS + 1):  # the first warms up
        for kind, call in kinds.items():
            spent[kind].append(await microseconds_a_call(call))
    for kind, rounds in spent.items():
        print(f"{kind:20}{statistics.median(rounds[1:]):8.1f} µs")
    await session.close()
    await client.close()
    await upstream.close()


async def microseconds_a_call(call: Callable[[], Awaitable[None]]) -> float:
    async def one_after_another() -> None:
        for _ in range(CALLS // AT_ONCE):
            await call()

    start = time.process_time()
    await asyncio.gather(*(one_after_another() for _ in range(AT_ONCE)))
    return (time.process_time() - start) / (CALLS // AT_ONCE * AT_ONCE) * 1e6


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
