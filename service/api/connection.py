"""A client's connection: uvicorn's, with a bound on what comes before a request's body.

llhttp reads a head of any length for as long as it takes, and uvicorn waits
for the first byte for ever: without these bounds a few clients that send
nothing else take all memory, or all file descriptors.
"""

import asyncio
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from models.errors import RequestError
from service.api.errors import openai_body

# Beyond the first piece of it, which the socket already bounds.
_LONGEST_HEAD = 64 * 1024
_HEAD_SECONDS = 30.0


class Connection(HttpToolsProtocol):
    """Refuses a head that is too long (431) or too late (408, or a close where nothing came at all)."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._head: object = None  # the scope of the head that was incomplete last
        self._head_bytes = 0
        self._late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        self._late = self.loop.call_later(_HEAD_SECONDS, self._too_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._in_time()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        scope = self._begun()
        if scope is None or "method" in scope:  # the method is set when the head is complete
            if self._late is not None:
                self._in_time()
            return
        if scope is not self._head:
            self._head, self._head_bytes = scope, 0
        else:
            self._head_bytes += len(data)
        if self._late is None:
            self._late = self.loop.call_later(_HEAD_SECONDS, self._too_late)
        if self._head_bytes > _LONGEST_HEAD:
            self._refuse(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                RequestError(f"the request line and headers are longer than {_LONGEST_HEAD} bytes"),
            )

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

    def _refuse(self, status: HTTPStatus, error: RequestError) -> None:
        self._in_time()
        if self.transport.is_closing():
            return
        if self.cycle and not self.cycle.response_complete:
            # An answer to an earlier request is on its way: nothing may be written into it.
            self.transport.abort()
            return
        body = openai_body(error, "")
        head = f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\nconnection: close\r\n"
        self.transport.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        self.transport.close()
