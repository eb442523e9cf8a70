"""Server-sent events: the `data` of each event out of bytes that arrive in any pieces.

Follows the event stream grammar of the HTML standard: lines end with LF, CRLF
or CR, a colon first makes a comment, several `data` lines are joined by LF, an
event without `data` is none. `event`, `id` and `retry` mean nothing here.
"""

_BOM = b"\xef\xbb\xbf"
_LINE_ENDS = (b"\n", b"\r")


class EventTooLong(ValueError):
    """An event grew beyond the limit before it ended."""


class EventReader:
    """Feed it pieces, it gives back the data of the events they complete.

    Bytes are split at ASCII line ends only, so a piece may end inside a
    character. The work is linear in the bytes fed, however small the pieces.
    """

    def __init__(self, *, max_event_bytes: int) -> None:
        self._max = max_event_bytes
        self._line = bytearray()  # of a line whose end has not arrived
        self._fields: list[bytes] = []  # the data lines of the event that is open
        self._size = 0  # of these
        self._after_cr = False  # an LF that comes next belongs to that line end
        self._begun = False

    def feed(self, piece: bytes) -> list[bytes]:
        """Raises `EventTooLong`; do not feed it further then."""
        if self._begun and not self._line and not self._fields and not self._after_cr:
            events = _whole_events(piece)
            if events is not None and len(piece) <= self._max:
                return events
        if self._after_cr and piece:
            self._after_cr = False
            if piece.startswith(b"\n"):
                piece = piece[1:]
        if b"\n" not in piece and b"\r" not in piece:
            self._line += piece
            self._check_size()
            return []
        self._line += piece
        lines = bytes(self._line).splitlines(keepends=True)
        self._line.clear()
        if not lines[-1].endswith(_LINE_ENDS):
            self._line += lines.pop()
        self._after_cr = piece.endswith(b"\r")
        events = []
        for line in lines:
            self._take(line.rstrip(b"\r\n"), events)
        self._check_size()
        return events

    def end(self) -> list[bytes]:
        """The event that the end of the stream left open, if any.

        The standard drops it; servers that forget the last empty line are
        common, and a reader of JSON notices when it is cut.
        """
        events: list[bytes] = []
        self._take(bytes(self._line), events)
        self._line.clear()
        self._take(b"", events)
        return events

    def _take(self, line: bytes, events: list[bytes]) -> None:
        if not self._begun:
            self._begun = True
            line = line.removeprefix(_BOM)
        if not line:
            if self._fields:
                events.append(b"\n".join(self._fields))
                self._fields.clear()
                self._size = 0
            return
        name, _, value = line.partition(b":")
        if name == b"data":
            self._fields.append(value.removeprefix(b" "))
            self._size += len(line)
            self._check_size()

    def _check_size(self) -> None:
        if self._size + len(self._line) > self._max:
            raise EventTooLong(f"an event of more than {self._max} bytes")


def _whole_events(piece: bytes) -> list[bytes] | None:
    """The usual case in a few C calls: one-line events, all complete. None if the piece is anything else."""
    if not piece.endswith(b"\n\n") or b"\r" in piece:
        return None
    blocks = piece[:-2].split(b"\n\n")
    for block in blocks:
        if not block.startswith(b"data: ") or b"\n" in block:
            return None
    return [block[6:] for block in blocks]
