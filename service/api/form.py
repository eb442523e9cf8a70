"""The field `model` of a form (RFC 7578), and where it lies in the body."""

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from models.errors import RequestError

_MAX_PARTS = 1000


def model_span(body: bytes, content_type: bytes) -> tuple[int, int] | None:
    """Where the value lies, None where there is no such field. Raises `RequestError` for what is no form, and for one
    that names two models: the gateway and the provider must not read different ones."""
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
    if len(reading.models) > 1:
        raise RequestError("the form names more than one model", param="model")
    return reading.models[0] if reading.models else None


class _Reading:
    """The parser is given the whole body at once, so its positions are those in the body."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.models: list[tuple[int, int]] = []
        self.whole = False
        self._parts = 0
        self._name = b""
        self._value = b""
        self._field: bytes | None = None
        self._begin = self._end = 0

    def part_begins(self) -> None:
        self._parts += 1
        if self._parts > _MAX_PARTS:
            raise RequestError(f"the form has more than {_MAX_PARTS} parts", param="body")
        self._field = None
        self._begin = self._end = 0

    def header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def header_ends(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._field = parse_options_header(self._value)[1].get(b"name")
        self._name = self._value = b""

    def content(self, data: bytes, start: int, end: int) -> None:
        if self._field != b"model":
            return
        if data is not self._body or self._begin:
            # Only a value with a line end in it comes in pieces, some from a buffer of the parser's own.
            raise RequestError("model must be a name of printable characters", param="model")
        self._begin, self._end = start, end

    def part_ends(self) -> None:
        if self._field == b"model":
            self.models.append((self._begin, self._end))

    def ends(self) -> None:
        self.whole = True
