"""HTTP/1.1 to one upstream: kept connections, deadlines, and every failure as an `UpstreamError`.

llhttp (by httptools) reads what comes, the event loop does sockets and TLS;
what is here is the pool, the deadlines and the body as it arrives.
docs/decisions/0001-http-client.md says why no client library does it.
"""

import asyncio
import base64
import re
import ssl
from collections import deque
from collections.abc import Callable, Mapping
from typing import cast
from urllib.parse import SplitResult, unquote, urlsplit

import httptools

from models.errors import ConfigError, UpstreamError

# How long an idle connection is kept, in seconds. Some servers close theirs sooner (uvicorn and Node after 5), some
# later: a request that crosses such an end is sent again, see `Transport`.
_KEEP_ALIVE = 30.0
# Nobody closes a connection for having been idle for less, in seconds.
_CROSSING = 1.0
# What the end of a finished body may take to arrive before its connection is given up, in seconds.
_LINGER = 0.05
# Bytes that may wait for a slow reader before the upstream is made to wait.
_HIGH_WATER = 256 * 1024
_MAX_HEADER_BYTES = 64 * 1024
_VISIBLE = re.compile(r"[!-~]+")


class Transport:
    """Follows no redirect, keeps no cookie, reads no proxy from the environment, unpacks nothing.

    Times are seconds. `read_timeout` is the longest silence, before the headers
    as well as between two pieces; `total_timeout` runs from the call to the
    last byte. Cancelling a call closes its connection at once.

    A kept connection that the upstream has closed is noticed before anything
    is written, and a fresh one is taken. The end of a kept connection may also
    cross the request: where it comes before a single byte of an answer, on a
    connection that had been idle for `crossing` seconds at least, the request
    is sent once more, on a fresh one. Nothing else is sent again: the upstream
    may have worked, and billed, for it, and a connection used a moment ago is
    closed by a failure, not for its idleness.
    """

    def __init__(
        self,
        *,
        name: str,
        base_url: str,
        connect_timeout: float,
        read_timeout: float,
        total_timeout: float,
        proxy: str | None,
        ca_file: str | None,
        keep_alive: float = _KEEP_ALIVE,
        crossing: float = _CROSSING,
    ) -> None:
        self._crossing = crossing
        self._name = name
        self._origin = _http_url(base_url, f"upstreams.{name}.base_url", schemes=("http", "https"))
        self._proxy = None if proxy is None else _http_url(proxy, f"upstreams.{name}.proxy", schemes=("http",))
        self._connect_timeout = connect_timeout
        self._read_timeout = read_timeout
        self._total_timeout = total_timeout
        self._tls = _tls(ca_file, name) if self._origin.scheme == "https" else None
        self._base_path = self._origin.path.rstrip("/")
        self._query = f"?{self._origin.query}" if self._origin.query else ""
        host = self._origin.netloc.rpartition("@")[2]
        self._fixed_headers = f"host: {host}\r\nuser-agent: keepgate\r\naccept-encoding: identity\r\n"
        if self._proxy is not None and self._tls is None:
            # A proxy of plain HTTP is told the whole address; one of TLS only connects, see `_tunnel`.
            self._base_path = f"http://{host}{self._base_path}"
            self._fixed_headers += _proxy_authorization(self._proxy)
        self._idle: deque[_Connection] = deque()  # the one used last is last
        self._keep_alive = keep_alive
        self._idle_check: asyncio.TimerHandle | None = None
        self._connections: set[_Connection] = set()
        self._closed = False

    async def send(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | None, *, once: bool = False
    ) -> "Answer":
        """Returns when the headers are here, whatever the status. `path` comes after that of the base URL. `once`: it
        is never sent again."""
        message = self._head(method, path, headers, body)
        if body is not None:
            message += body
        deadline = asyncio.get_running_loop().time() + self._total_timeout
        kept = self._kept()
        if kept is not None:
            idle = asyncio.get_running_loop().time() - kept.idle_since
            try:
                return await self._ask(kept, message, deadline)
            except _ClosedUnheard:
                if once or idle < self._crossing:
                    raise
        return await self._ask(await self._connect(deadline), message, deadline)

    async def _ask(self, connection: "_Connection", message: bytes, deadline: float) -> "Answer":
        loop = asyncio.get_running_loop()
        answer = Answer(connection, self._name, loop, read_timeout=self._read_timeout, deadline=deadline)
        connection.request(message, answer)
        await answer.headers_here()
        return answer

    async def close(self) -> None:
        """Ends calls that still run; safe to repeat."""
        self._closed = True
        if self._idle_check is not None:
            self._idle_check.cancel()
            self._idle_check = None
        for connection in tuple(self._connections):
            connection.abort()
        # The loop tells the connections in its next turn.
        await asyncio.sleep(0)

    def _head(self, method: str, path: str, headers: Mapping[str, str], body: bytes | None) -> bytes:
        lines = "".join([f"{key}: {value}\r\n" for key, value in headers.items()])
        if lines.count("\n") != len(headers) or lines.count("\r") != len(headers):
            raise UpstreamError(f"a header for the upstream {self._name!r} holds a line end")
        length = "" if body is None else f"content-length: {len(body)}\r\n"
        target = f"{self._base_path}{path}{self._query}"
        return f"{method} {target} HTTP/1.1\r\n{self._fixed_headers}{lines}{length}\r\n".encode("latin-1")

    def _kept(self) -> "_Connection | None":
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
        return None

    def _keep(self, connection: "_Connection") -> None:
        connection.idle_since = asyncio.get_running_loop().time()
        self._idle.append(connection)
        self._check_idle_later()

    def _check_idle_later(self) -> None:
        """One timer for all, set for the connection that was idle first; a burst must not leave its sockets open."""
        if self._idle_check is None and self._idle and not self._closed:
            loop = asyncio.get_running_loop()
            self._idle_check = loop.call_at(self._idle[0].idle_since + self._keep_alive, self._check_idle)

    def _check_idle(self) -> None:
        self._idle_check = None
        now = asyncio.get_running_loop().time()
        while self._idle and now - self._idle[0].idle_since >= self._keep_alive:
            self._idle.popleft().abort()
        self._check_idle_later()

    async def _connect(self, deadline: float) -> "_Connection":
        if self._closed:
            raise UpstreamError(f"the upstream {self._name!r} was closed", code="upstream_unavailable")
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(min(loop.time() + self._connect_timeout, deadline)):
                if self._proxy is not None:
                    return await self._through(self._proxy)
                host, port = _address(self._origin)
                _, connection = await loop.create_connection(self._new, host, port, ssl=self._tls)
                return connection
        except TimeoutError as error:
            raise UpstreamError(
                f"no connection to the upstream {self._name!r} in time", code="upstream_timeout"
            ) from error
        except OSError as error:  # ssl.SSLError and socket.gaierror are some
            reason = "check base_url"
            if isinstance(error, ssl.SSLError):
                reason = "its certificate is not trusted, or TLS failed; check base_url and ca_file"
            raise UpstreamError(
                f"no connection to the upstream {self._name!r}: {reason}", code="upstream_unavailable"
            ) from error

    async def _through(self, proxy: SplitResult) -> "_Connection":
        loop = asyncio.get_running_loop()
        raw, connection = await loop.create_connection(self._new, *_address(proxy))
        if self._tls is None:
            return connection
        host, port = _address(self._origin)
        tunnel = Answer(
            connection,
            self._name,
            loop,
            read_timeout=self._connect_timeout,
            deadline=loop.time() + self._connect_timeout,
        )
        target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        head = f"CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n{_proxy_authorization(proxy)}\r\n"
        connection.request(head.encode("latin-1"), tunnel)
        await tunnel.headers_here()
        if tunnel.status != 200:
            connection.abort()
            raise UpstreamError(
                f"the proxy of the upstream {self._name!r} answered with status {tunnel.status}",
                code="upstream_unavailable",
            )
        tunnel.detach()
        inner = self._new()
        encrypted = await loop.start_tls(raw, inner, self._tls, server_hostname=host)
        if encrypted is None:
            raise ConnectionResetError
        inner.connection_made(encrypted)
        return inner

    def _new(self) -> "_Connection":
        return _Connection(self._keep, self._idle, self._connections)


class Answer:
    """What came back: status and headers first, the body as it arrives."""

    def __init__(
        self,
        connection: "_Connection",
        name: str,
        loop: asyncio.AbstractEventLoop,
        *,
        read_timeout: float,
        deadline: float,
    ) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}  # names in lower case
        self.complete = False
        self._connection: _Connection | None = connection
        self._name = name
        self._loop = loop
        self._pieces: list[bytes] = []
        self._waiting = 0  # bytes in them
        self._error: UpstreamError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._read_timeout = read_timeout
        self._deadline = deadline
        self._heard_at = loop.time()
        self._heard = False
        self._timer = loop.call_at(min(deadline, self._heard_at + read_timeout), self._check_time)

    @property
    def media_type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    async def headers_here(self) -> None:
        while not self.status:
            if self._error is not None:
                raise self._error
            await self._wait()

    async def read(self, limit: int) -> bytes:
        """The whole body. More than `limit` bytes end the call as an `UpstreamError`."""
        pieces = []
        size = 0
        while piece := await self.next_piece():
            size += len(piece)
            if size > limit:
                self.abandon()
                raise UpstreamError(f"the upstream {self._name!r} sent more than {limit} bytes")
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def next_piece(self) -> bytes:
        """What has arrived since the last piece; waits if nothing has. Empty at the end of a complete body."""
        while not self._pieces:
            if self._error is not None:
                raise self._error
            if self.complete:
                return b""
            await self._wait()
        piece = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        if self._waiting > _HIGH_WATER and self._connection is not None:
            self._connection.resume()
            self._heard_at = self._loop.time()
        self._waiting = 0
        return piece

    async def finish(self) -> None:
        """No more is wanted, though a little may come: keeps the connection if the body ends at once."""
        try:
            async with asyncio.timeout(_LINGER):
                while await self.next_piece():
                    pass
        except (UpstreamError, TimeoutError):
            pass  # everything asked for is here; only the connection is lost
        self.abandon()

    def abandon(self) -> None:
        """Closes the connection unless the answer is complete; safe to repeat."""
        connection = self._connection
        if connection is not None:
            self.failed(f"the call to the upstream {self._name!r} was closed")
            connection.abort()

    def detach(self) -> None:
        """The connection is used for something else from now on."""
        self._timer.cancel()
        self._connection = None

    # What the connection tells

    def began(self, status: int) -> None:
        self.status = status
        self._wake()

    def heard(self) -> None:
        self._heard = True
        self._heard_at = self._loop.time()

    def received(self, piece: bytes) -> bool:
        """Whether the reader can take more for now."""
        self._pieces.append(piece)
        self._waiting += len(piece)
        self._wake()
        return self._waiting <= _HIGH_WATER

    def ended(self) -> None:
        self.complete = True
        self.detach()
        self._wake()

    def failed(self, message: str, *, code: str = "upstream_error") -> None:
        self._fail(UpstreamError(message, code=code))

    def lost(self) -> None:
        how = "cut its answer short" if self.status else "closed the connection without an answer"
        kind = UpstreamError if self._heard else _ClosedUnheard
        self._fail(kind(f"the upstream {self._name!r} {how}"))

    def garbled(self) -> None:
        self.failed(f"the upstream {self._name!r} does not speak HTTP as it should")

    def _fail(self, error: UpstreamError) -> None:
        """After what was received before."""
        if self._connection is not None:
            self.detach()
            self._error = error
            self._wake()

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        except asyncio.CancelledError:
            self.abandon()
            raise
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _check_time(self) -> None:
        # One timer for both deadlines: it looks back when it fires instead of being set anew for every piece.
        now = self._loop.time()
        if self._waiting > _HIGH_WATER:
            self._heard_at = now  # it is not the upstream that is silent
        due = min(self._deadline, self._heard_at + self._read_timeout)
        connection = self._connection
        if now < due:
            self._timer = self._loop.call_at(due, self._check_time)
        elif connection is not None:
            self.failed(f"the upstream {self._name!r} did not answer in time", code="upstream_timeout")
            connection.abort()


class _ClosedUnheard(UpstreamError):
    """The connection ended before a single byte of an answer."""


class _HeadersWithoutEnd(Exception):
    """More headers than any provider sends."""


class _SecondAnswer(Exception):
    """One request was answered twice: what follows the first answer must not become that of another call."""


class _Connection(asyncio.Protocol):
    """One connection: at most one request at a time, then back among the idle."""

    def __init__(
        self, keep: "Callable[[_Connection], None]", idle: "deque[_Connection]", connections: "set[_Connection]"
    ) -> None:
        self.idle_since = 0.0
        self._keep = keep
        self._idle = idle
        self._connections = connections
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._answer: Answer | None = None
        self._header_bytes = 0
        self._interim = False
        self._until_close = False

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def request(self, message: bytes, answer: Answer) -> None:
        self._answer = answer
        if self._transport is None:  # lost between connecting and here
            answer.lost()
        else:
            self._transport.write(message)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def resume(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # what a stream socket gets
        self._connections.add(self)

    def data_received(self, data: bytes) -> None:
        answer = self._answer
        if answer is None:  # nothing was asked: whoever comes next must not take it for an answer
            self.abort()
            return
        answer.heard()
        try:
            self._parser.feed_data(data)
            if not answer.status:
                self._count_header_bytes(len(data))
        except (httptools.HttpParserError, httptools.HttpParserUpgrade, _HeadersWithoutEnd):
            answer.garbled()
            self.abort()

    def connection_lost(self, _error: Exception | None) -> None:
        self._transport = None
        self._connections.discard(self)
        answer, self._answer = self._answer, None
        if answer is not None:
            if self._until_close and _error is None:
                answer.ended()
            else:
                answer.lost()
        elif self in self._idle:
            self._idle.remove(self)

    # httptools

    def on_message_begin(self) -> None:
        if self._answer is None:
            raise _SecondAnswer

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._answer is not None:
            self._answer.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        answer = self._answer
        if answer is None:
            return
        status = self._parser.get_status_code()
        self._interim = status < 200
        if self._interim:
            answer.headers.clear()
            return
        # A body without a length ends with the connection, which then is no error.
        self._until_close = "content-length" not in answer.headers and "transfer-encoding" not in answer.headers
        answer.began(status)

    def on_body(self, piece: bytes) -> None:
        if self._answer is not None and not self._answer.received(piece) and self._transport is not None:
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        if self._interim:
            return
        answer, self._answer = self._answer, None
        self._header_bytes = 0
        if answer is None or self._transport is None:
            return
        # An answer that came before all was sent leaves the connection in the middle of a request.
        if self._parser.should_keep_alive() and not self._transport.get_write_buffer_size() and self.usable:
            self._transport.resume_reading()
            self._keep(self)
        else:
            self._transport.close()
        answer.ended()

    def _count_header_bytes(self, count: int) -> None:
        # The parser keeps a header until it is whole, so what it was fed is counted.
        self._header_bytes += count
        if self._header_bytes > _MAX_HEADER_BYTES:
            raise _HeadersWithoutEnd


def _http_url(url: str, setting: str, *, schemes: tuple[str, ...]) -> SplitResult:
    expected = f"{setting}: must start with {' or '.join(f'{scheme}://' for scheme in schemes)} and name a host"
    try:
        parts = urlsplit(url)
        if parts.scheme not in schemes or not parts.hostname or parts.port == 0 or not _VISIBLE.fullmatch(url):
            raise ConfigError(expected)
    except ValueError as error:
        raise ConfigError(expected) from error
    return parts


def _address(url: SplitResult) -> tuple[str, int]:
    return url.hostname or "", url.port or (443 if url.scheme == "https" else 80)


def _proxy_authorization(proxy: SplitResult) -> str:
    if proxy.username is None:
        return ""
    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return f"proxy-authorization: Basic {base64.b64encode(pair.encode()).decode()}\r\n"


def _tls(ca_file: str | None, name: str) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if ca_file is not None:
        try:
            context.load_verify_locations(cafile=ca_file)
        except OSError as error:  # ssl.SSLError is one
            reason = "holds no certificate" if isinstance(error, ssl.SSLError) else error.strerror
            raise ConfigError(f"upstreams.{name}.ca_file: cannot be used: {ca_file}: {reason}") from error
    return context
