"""The ceilings: an ASGI callable that only answers, and proxies that only pass on.

python -m benchmarks.bare callable PORT
python -m benchmarks.bare aiohttp|pyreqwest PORT UPSTREAM_URL
"""

import sys
from collections.abc import Awaitable, Callable, MutableMapping
from hashlib import blake2b
from typing import Any

import msgspec
import uvicorn

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Post = Callable[[bytes], Awaitable[bytes]]

_ANSWER = (
    b'{"id":"chatcmpl-bare","object":"chat.completion","choices":[{"message":{"content":"' + b"word " * 120 + b'"}}]}'
)


def callable_only() -> Callable[[Message, Receive, Send], Awaitable[None]]:
    """Read the body, decode it, hash it, look into a dict, reply: the least a hit can do."""
    kept: dict[bytes, bytes] = {}

    async def app(_scope: Message, receive: Receive, send: Send) -> None:
        body = (await receive())["body"]
        msgspec.json.decode(body)
        answer = kept.setdefault(blake2b(body).digest(), _ANSWER)
        await _reply(send, answer)

    return app


def proxy(client: str, url: str) -> Callable[[Message, Receive, Send], Awaitable[None]]:
    """Read the body, decode it, post it on, reply: the least a miss can do."""
    post: Post | None = None

    async def app(_scope: Message, receive: Receive, send: Send) -> None:
        nonlocal post
        body = (await receive())["body"]
        msgspec.json.decode(body)
        if post is None:
            post = _aiohttp(url) if client == "aiohttp" else _pyreqwest(url)
        await _reply(send, await post(body))

    return app


def _aiohttp(url: str) -> Post:
    import aiohttp

    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), auto_decompress=False)

    async def post(body: bytes) -> bytes:
        async with session.post(url, data=body, headers={"content-type": "application/json"}) as reply:
            return await reply.read()

    return post


def _pyreqwest(url: str) -> Post:
    from pyreqwest.client import ClientBuilder

    client = ClientBuilder().no_proxy().build()

    async def post(body: bytes) -> bytes:
        request = client.post(url).header("content-type", "application/json").body_bytes(body).build()
        return bytes(await (await request.send()).bytes())

    return post


async def _reply(send: Send, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def main(kind: str, port: str, url: str = "") -> None:
    app = callable_only() if kind == "callable" else proxy(kind, url)
    uvicorn.run(app, port=int(port), lifespan="off", access_log=False, log_level="warning", http="httptools")


if __name__ == "__main__":
    main(*sys.argv[1:])
