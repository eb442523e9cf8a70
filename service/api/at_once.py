"""The short path of an exchange whose body is all there and whose answer is, too: most of them.

ASGI's messages cost an exact hit a quarter of its time: two coroutines and a
write each way, and two regular expressions for each header. Where uvicorn's
own `receive` and `send` are at hand and nothing has to be waited for, these do
in one step what they would do; anywhere else they say so, and the messages
are used. tests/integration/test_connections.py holds both ways to one result.
"""

from collections.abc import Sequence

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle


def received(receive: object) -> bytes | None:
    """The body, if all of it has come; else None."""
    cycle = getattr(receive, "__self__", None)
    if type(cycle) is not RequestResponseCycle or cycle.more_body or cycle.disconnected or cycle.response_complete:
        return None
    body = bytes(cycle.body)
    cycle.body = bytearray()
    # As `receive` does: what is waited for next is the disconnect.
    cycle.message_event.clear()
    return body


def sent(send: object, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> bool:
    """Whether the answer is written, or its client gone. `headers` have the content length and no `connection`."""
    cycle = getattr(send, "__self__", None)
    if (
        type(cycle) is not RequestResponseCycle
        or cycle.response_started
        or cycle.flow.write_paused
        or not cycle.keep_alive
        or cycle.scope["method"] == "HEAD"
    ):
        return False
    if cycle.disconnected:
        return True
    lines = [STATUS_LINE[status]]
    for name, value in (*cycle.default_headers, *headers):
        lines += (name, b": ", value, b"\r\n")
    lines.append(b"\r\n")
    head = b"".join(lines)
    if head.count(b"\n") != len(cycle.default_headers) + len(headers) + 2 or b"\0" in head:
        raise RuntimeError("a header holds a line break")
    cycle.response_started = True
    cycle.waiting_for_100_continue = False
    cycle.chunked_encoding = False
    cycle.transport.write(head + body)
    cycle.response_complete = True
    cycle.message_event.set()
    cycle.on_response()
    return True
