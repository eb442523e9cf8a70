"""Server-sent events as the dialects write them: data alone, or under an event's name.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from collections.abc import Iterable

MEDIA_TYPE = b"text/event-stream; charset=utf-8"
DONE = b"data: [DONE]\n\n"


def event(payload: bytes) -> bytes:
    """JSON has no raw line breaks unless somebody put white space between its tokens."""
    if b"\n" in payload or b"\r" in payload:
        payload = payload.replace(b"\r", b"").replace(b"\n", b"\ndata: ")
    return b"data: " + payload + b"\n\n"


def named_event(name: str, payload: bytes) -> bytes:
    return b"event: %b\n%b" % (name.encode(), event(payload))


def events(payloads: Iterable[bytes]) -> bytes:
    return b"".join(map(event, payloads))
