"""A client's connection: uvicorn's, with bounds on everything that is no body, and no way to split a request.

llhttp reads a head and trailers of any length for as long as they take, and
uvicorn waits for the first byte for ever, as it does for the rest of a body
that was answered early and for a client that takes no answer: without these
bounds a few clients that send nothing else take all memory, or all file
descriptors.
"""

import asyncio
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from models.errors import RequestError
from service.api.errors import openai_body

# Beyond the first piece of it, which the socket already bounds. So are trailers, and what may stand between two chunks.
_LONGEST_HEAD = 64 * 1024
_HEAD_SECONDS = 30.0
# The rest of a body that was answered before it came: read so that the client gets to read the answer. How long that
# may take is the keep-alive timeout.
_LONGEST_REST = 1024 * 1024
# A client that takes nothing of what waits for it for so long is gone.
_UNSENT_SECONDS = 60.0


class Connection(HttpToolsProtocol):
    """Refuses a head that is too long (431) or too late (408, or a close where nothing came at all).

    An `Upgrade` is ignored, as RFC 9110 (section 7.8) allows, and trailers are
    dropped: neither changes what the request is or where it ends.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._head: object = None  # the scope of the head that was incomplete last
        self._head_bytes = 0
        self._late: asyncio.TimerHandle | None = None
        self._in_body = False  # the last request's head is complete, and the request is not
        self._body_came = False  # with the piece that is read now
        self._between_bytes = 0  # since a byte of the body came: chunk extensions and trailers
        self._rest_bytes = 0  # since the answer went out
        self._answering: RequestResponseCycle | None = None
        self._unsent = 0  # bytes that waited for the client when it was last looked at
        self._unsent_check: asyncio.TimerHandle | None = None

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        self._late = self.loop.call_later(_HEAD_SECONDS, self._too_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._in_time()
        self._all_sent()
        # uvicorn tells the last request only; with several in the pipeline that is not the one being answered.
        for cycle in (self._answering, *(waiting for waiting, _ in self.pipeline)):
            if cycle is not None:
                cycle.disconnected = True
                cycle.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._body_came = False
        try:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                self._read_on(memoryview(data)[upgrade.args[0] :])
        except httptools.HttpParserError:
            self._refuse(HTTPStatus.BAD_REQUEST, RequestError("the request is not HTTP/1.1 as it should be"))
            return
        if self._in_body:
            self._count_beside_body(len(data))
        self._count_head(len(data))

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_unsent()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():
            self._all_sent()

    # httptools

    def on_message_begin(self) -> None:
        # Here, and not for every byte: the timer also ends a connection that brings the rest of a body in drips.
        self._unset_keepalive_if_required()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            return  # this head is read once more without it
        super().on_headers_complete()
        if self._answering is None:
            self._answering = self.cycle
        self.headers = []  # trailers go here, and never among the headers (RFC 9110, section 6.5.1)
        self._in_body = True
        self._between_bytes = self._rest_bytes = 0

    def on_body(self, body: bytes) -> None:
        self._body_came = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._in_body:
            return  # its head is read once more, see `on_headers_complete`
        self._in_body = False
        super().on_message_complete()

    # uvicorn

    def on_response_complete(self) -> None:
        self._answering = self.pipeline[-1][0] if self.pipeline else None
        super().on_response_complete()
        if self.transport.is_closing():
            self._watch_unsent()

    # What is read

    def _read_on(self, rest: memoryview) -> None:
        """What follows a head with an `Upgrade`: llhttp takes it for another protocol; it is the body, or the next
        request."""
        while True:
            if self.parser.get_method() == b"CONNECT":
                self._refuse(HTTPStatus.BAD_REQUEST, RequestError("this is no proxy: CONNECT is not served"))
                return
            self._read_head_without_upgrade()
            try:
                self.parser.feed_data(rest)
            except httptools.HttpParserUpgrade as upgrade:
                rest = rest[upgrade.args[0] :]
            else:
                return

    def _read_head_without_upgrade(self) -> None:
        head = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        head += [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own
        self.parser.feed_data(b"\r\n".join([*head, b"", b""]))

    def _count_head(self, count: int) -> None:
        scope = self._begun()
        if scope is None or "method" in scope:  # the method is set when the head is complete
            if self._late is not None:
                self._in_time()
            return
        if scope is not self._head:
            self._head, self._head_bytes = scope, 0
        else:
            self._head_bytes += count
        if self._late is None:
            self._late = self.loop.call_later(_HEAD_SECONDS, self._too_late)
        if self._head_bytes > _LONGEST_HEAD:
            self._refuse(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                RequestError(f"the request line and headers are longer than {_LONGEST_HEAD} bytes"),
            )

    def _count_beside_body(self, count: int) -> None:
        if self.headers:
            self.headers = []
        self._between_bytes = 0 if self._body_came else self._between_bytes + count
        if self._between_bytes > _LONGEST_HEAD:
            self._refuse(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                RequestError(f"trailers, or what stands between two chunks, are longer than {_LONGEST_HEAD} bytes"),
            )
        elif self.cycle.response_complete:
            self._rest_bytes += count
            if self._rest_bytes > _LONGEST_REST:
                self._close()

    def _begun(self) -> Mapping[str, Any] | None:
        """The scope of the request whose head began last; uvicorn's own annotation leaves out that it may be None."""
        return self.scope

    def _in_time(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _too_late(self) -> None:
        self._late = None
        if self._begun() is None:
            self.transport.close()
            return
        message = f"the headers did not arrive within {_HEAD_SECONDS:g} s"
        self._refuse(HTTPStatus.REQUEST_TIMEOUT, RequestError(message, code="request_timeout"))

    # What is written

    def _refuse(self, status: HTTPStatus, error: RequestError) -> None:
        """Ends the connection, with an answer where one can be told from all others."""
        self._in_time()
        if self.transport.is_closing():
            return
        if self._another_answer_is_due():
            self.transport.abort()
            return
        answered = self._in_body and self.cycle.response_complete
        if not answered:
            body = openai_body(error, "")
            head = f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\nconnection: close\r\n"
            self.transport.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        self._close()

    def _another_answer_is_due(self) -> bool:
        """Nothing may be written into it, or before it."""
        if self._answering is None:
            return False
        return not self._in_body or self._answering is not self.cycle or self._answering.response_started

    def _close(self) -> None:
        self.transport.close()
        self._watch_unsent()

    def _watch_unsent(self) -> None:
        if self._unsent_check is None:
            self._unsent = self.transport.get_write_buffer_size()
            self._unsent_check = self.loop.call_later(_UNSENT_SECONDS, self._check_unsent)

    def _check_unsent(self) -> None:
        self._unsent_check = None
        if self.transport.get_write_buffer_size() < self._unsent:
            self._watch_unsent()
        else:
            self.transport.abort()

    def _all_sent(self) -> None:
        if self._unsent_check is not None:
            self._unsent_check.cancel()
            self._unsent_check = None
