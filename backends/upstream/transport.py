"""HTTP to one upstream: kept connections, deadlines, and every failure as an `UpstreamError`.

The only module that knows the HTTP library; docs/decisions/0001-http-client.md
says why it is this one.
"""

import asyncio
import io
import ssl
from collections.abc import Mapping
from typing import Literal

import aiohttp
import yarl

from models.errors import ConfigError, UpstreamError

# A body above this is written in pieces with turns of the event loop in between.
_LARGE_BODY = 256 * 1024
# How long an idle connection is kept, in seconds. Most servers close theirs later, at 60 or more.
_KEEP_ALIVE = 30.0
# What the end of a finished body may take to arrive before its connection is given up, in seconds.
_LINGER = 0.05
_HEADERS = {"user-agent": "keepgate", "accept-encoding": "identity"}


class Transport:
    """Follows no redirect, keeps no cookie, reads no proxy from the environment, unpacks nothing.

    Times are seconds. `read_timeout` is the longest silence, before the headers
    as well as between two pieces; `total_timeout` runs from the call to the
    last byte. Cancelling a call closes its connection.

    A kept connection that the upstream has closed is noticed before anything
    is written and a fresh one is taken. Once a request is on its way it is not
    sent again: the upstream may have worked, and billed, for it.
    """

    def __init__(
        self,
        *,
        name: str,
        connect_timeout: float,
        read_timeout: float,
        total_timeout: float,
        proxy: str | None,
        ca_file: str | None,
    ) -> None:
        self._name = name
        self._proxy = proxy
        self._timeout = aiohttp.ClientTimeout(
            total=total_timeout,
            sock_connect=connect_timeout,
            sock_read=read_timeout,
            ceil_threshold=float("inf"),  # deadlines as given, not rounded up to whole seconds
        )
        self._tls: ssl.SSLContext | Literal[True] = True if ca_file is None else _trusting(ca_file, name)
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

    async def send(self, method: str, url: yarl.URL, headers: Mapping[str, str], body: bytes | None) -> "Answer":
        """Returns when the headers are here, whatever the status."""
        payload = io.BytesIO(body) if body is not None and len(body) > _LARGE_BODY else body
        try:
            response = await self._open().request(method, url, data=payload, headers=headers, allow_redirects=False)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _translated(error, self._name) from error
        return Answer(response, self._name)

    def _open(self) -> aiohttp.ClientSession:
        # Not in the constructor: that runs before the event loop does.
        if self._session is None:
            if self._closed:
                raise UpstreamError(f"the upstream {self._name!r} was closed", code="upstream_unavailable")
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE, ssl=self._tls),
                timeout=self._timeout,
                headers=_HEADERS,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
                proxy=self._proxy,
                max_line_size=65_536,
                max_field_size=65_536,
            )
        return self._session

    async def close(self) -> None:
        """Ends calls that still run; safe to repeat."""
        self._closed = True
        session, self._session = self._session, None
        if session is not None:
            await session.close()


class Answer:
    """What came back: status and headers now, the body as it arrives."""

    def __init__(self, response: aiohttp.ClientResponse, name: str) -> None:
        self._response = response
        self._name = name
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers

    @property
    def media_type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    async def read(self, limit: int) -> bytes:
        """The whole body. More than `limit` bytes end the call as an `UpstreamError`."""
        length = self._response.content_length
        if length is not None and length <= limit:
            try:
                return await self._response.read()
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                raise _translated(error, self._name) from error
        pieces = []
        size = 0
        while piece := await self.next_piece():
            size += len(piece)
            if size > limit:
                self.abandon()
                raise UpstreamError(f"the upstream {self._name!r} sent more than {limit} bytes")
            pieces.append(piece)
        return b"".join(pieces)

    async def next_piece(self) -> bytes:
        """What has arrived since the last piece; waits if nothing has. Empty at the end of a complete body."""
        try:
            return await self._response.content.readany()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self.abandon()
            raise _translated(error, self._name) from error

    async def finish(self) -> None:
        """No more is wanted, though a little may come: keeps the connection if the body ends at once."""
        content = self._response.content
        try:
            async with asyncio.timeout(_LINGER):
                while not content.at_eof():
                    await content.readany()
        except (aiohttp.ClientError, TimeoutError, OSError):
            pass  # everything asked for is here; only the connection is lost
        self.abandon()

    def abandon(self) -> None:
        """Closes the connection unless the body was read to its end; safe to repeat."""
        self._response.close()


def _trusting(ca_file: str, name: str) -> ssl.SSLContext:
    context = ssl.create_default_context()
    try:
        context.load_verify_locations(cafile=ca_file)
    except OSError as error:  # ssl.SSLError is one
        reason = error.strerror or "holds no certificate"
        raise ConfigError(f"upstreams.{name}.ca_file: cannot be used: {ca_file}: {reason}") from error
    return context


def _translated(error: Exception, name: str) -> UpstreamError:
    """No word of the library's: its messages may hold URLs, and say little to who reads ours."""
    match error:
        case aiohttp.ConnectionTimeoutError():
            return UpstreamError(f"no connection to the upstream {name!r} in time", code="upstream_timeout")
        case TimeoutError():
            return UpstreamError(f"the upstream {name!r} did not answer in time", code="upstream_timeout")
        case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientConnectorSSLError():
            message = f"no TLS connection to the upstream {name!r}: its certificate is not trusted or TLS failed"
            return UpstreamError(f"{message}; check base_url and ca_file", code="upstream_unavailable")
        case aiohttp.ClientConnectorDNSError():
            message = f"the host of the upstream {name!r} was not found; check base_url"
            return UpstreamError(message, code="upstream_unavailable")
        case aiohttp.ClientConnectorError() | aiohttp.ClientHttpProxyError():
            return UpstreamError(f"no connection to the upstream {name!r}", code="upstream_unavailable")
        case aiohttp.ClientPayloadError():
            return UpstreamError(f"the answer of the upstream {name!r} was cut short")
        case aiohttp.ClientResponseError():
            return UpstreamError(f"the upstream {name!r} does not speak HTTP as it should")
        case aiohttp.InvalidURL():
            return UpstreamError(f"the address of the upstream {name!r} is no URL; check base_url")
        case _:
            return UpstreamError(f"the upstream {name!r} closed the connection")
