"""What a form (RFC 7578) says in its fields, and where the model lies in the body."""

from collections.abc import Mapping

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from models.errors import RequestError

_MAX_PARTS = 1000


def model_span(body: bytes, content_type: bytes) -> tuple[int, int] | None:
    """Where the value lies, None where there is no such field. Raises `RequestError` for what is no form, and for one
    that names two models: the gateway and the provider must not read different ones."""
    reading, _ = _read(body, content_type)
    if len(reading.models) > 1:
        raise RequestError("the form names more than one model", param="model")
    return reading.models[0] if reading.models else None


def texts(body: bytes, content_type: bytes) -> list[bytes]:
    """The values of its fields, but for the model and for files. Raises `RequestError` for what is no form."""
    return _read(body, content_type)[0].texts


def rewritten(body: bytes, content_type: bytes, values: Mapping[bytes, bytes]) -> bytes:
    """With other values, by what they were. Raises `RequestError` where another reader might still find an old one."""
    reading, boundary = _read(body, content_type)
    end = b"\r\n--" + boundary
    for old, new in values.items():
        body = body.replace(b"\r\n\r\n" + old + end, b"\r\n\r\n" + new + end)
    if _read(body, content_type)[0].texts != [values.get(text, text) for text in reading.texts]:
        raise RequestError("the form cannot be read", param="body")
    return body


def _read(body: bytes, content_type: bytes) -> tuple["_Reading", bytes]:
    """And the boundary."""
    media_type, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if media_type != b"multipart/form-data" or not boundary:
        raise RequestError("Content-Type must be multipart/form-data with a boundary", param="Content-Type")
    reading = _Reading(body)
    parser = MultipartParser(
        boundary,
        {
            "on_part_begin": reading.part_begins,
            "on_header_field": reading.header_name,
            "on_header_value": reading.header_value,
            "on_header_end": reading.header_ends,
            "on_part_data": reading.content,
            "on_part_end": reading.part_ends,
            "on_end": reading.ends,
        },
    )
    try:
        parser.write(body)
        parser.finalize()
    except FormParserError:
        raise RequestError("the form cannot be read", param="body") from None
    if not reading.whole:
        raise RequestError("the form has no end", param="body")
    return reading, boundary


class _Reading:
    """The parser is given the whole body at once, so its positions are those in the body."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.models: list[tuple[int, int]] = []
        self.texts: list[bytes] = []
        self.whole = False
        self._parts = 0
        self._name = b""
        self._value = b""
        self._field: bytes | None = None
        self._text: list[bytes] | None = None  # of a field that is no file
        self._begin = self._end = 0

    def part_begins(self) -> None:
        self._parts += 1
        if self._parts > _MAX_PARTS:
            raise RequestError(f"the form has more than {_MAX_PARTS} parts", param="body")
        self._field, self._text = None, []
        self._begin = self._end = 0

    def header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def header_ends(self) -> None:
        if self._name.lower() == b"content-disposition":
            options = parse_options_header(self._value)[1]
            self._field = options.get(b"name")
            self._text = None if b"filename" in options or self._field == b"model" else []
        self._name = self._value = b""

    def content(self, data: bytes, start: int, end: int) -> None:
        if self._text is not None:
            self._text.append(data[start:end])
        if self._field != b"model":
            return
        if data is not self._body or self._begin:
            # Only a value with a line end in it comes in pieces, some from a buffer of the parser's own.
            raise RequestError("model must be a name of printable characters", param="model")
        self._begin, self._end = start, end

    def part_ends(self) -> None:
        if self._field == b"model":
            self.models.append((self._begin, self._end))
        if self._text:
            self.texts.append(b"".join(self._text))

    def ends(self) -> None:
        self.whole = True
