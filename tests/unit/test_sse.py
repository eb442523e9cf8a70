import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.upstream.sse import EventReader, EventTooLong


def read(*pieces: bytes, max_event_bytes: int = 1_000_000) -> list[bytes]:
    reader = EventReader(max_event_bytes=max_event_bytes)
    events = [event for piece in pieces for event in reader.feed(piece)]
    return [*events, *reader.end()]


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: a\n\ndata: b\n\n", [b"a", b"b"]),
        (b"data: a\r\n\r\ndata: b\r\n\r\n", [b"a", b"b"]),
        (b"data: a\r\rdata: b\r\r", [b"a", b"b"]),
        (b"data:a\n\n", [b"a"]),
        (b"data:  a\n\n", [b" a"]),  # one space belongs to the grammar, a second to the data
        (b"data: a\ndata: b\n\n", [b"a\nb"]),
        (b"data\n\n", [b""]),
        (b": a comment\n\n", []),
        (b": a comment\ndata: a\n\n", [b"a"]),
        (b"event: ping\nid: 7\nretry: 10\n\n", []),
        (b"event: delta\ndata: a\n\n", [b"a"]),
        (b"database: a\n\n", []),
        (b"\n\n\n\ndata: a\n\n", [b"a"]),
        (b"\xef\xbb\xbfdata: a\n\n", [b"a"]),
        (b"data: a\n\n\xef\xbb\xbfdata: b\n\n", [b"a"]),  # a byte order mark counts at the start only
        (b"data: a\x0bb\x0cc\xc2\x85d\n\n", [b"a\x0bb\x0cc\xc2\x85d"]),  # none of these ends a line
        (b"data: a\n\ndata: b", [b"a", b"b"]),  # the last empty line is missing
        (b"data: a\n\ndata: b\n", [b"a", b"b"]),
        (b"", []),
    ],
)
def test_reads_the_data_of_events(stream: bytes, events: list[bytes]) -> None:
    assert read(stream) == events


def test_splits_inside_a_character_and_inside_a_line_end_change_nothing() -> None:
    stream = "data: Zürich\r\n\r\ndata: 東京\r\n\r\n".encode()

    assert read(*(stream[i : i + 1] for i in range(len(stream)))) == ["Zürich".encode(), "東京".encode()]


def test_an_event_is_given_as_soon_as_its_end_is_here() -> None:
    reader = EventReader(max_event_bytes=100)

    assert reader.feed(b"data: a\n") == []
    assert reader.feed(b"\nda") == [b"a"]
    assert reader.feed(b"ta: b\r") == []
    assert reader.feed(b"\r") == [b"b"]


@pytest.mark.parametrize(
    "pieces",
    [
        [b"data: " + b"x" * 101 + b"\n\n"],
        [b"data: a\n\n", b"data: " + b"x" * 101 + b"\n\n"],
        [b"x" * 60, b"x" * 60],
        [b"data: " + b"x" * 60 + b"\n", b"data: " + b"x" * 60 + b"\n"],
    ],
)
def test_an_event_beyond_the_limit_is_refused_however_it_is_cut(pieces: list[bytes]) -> None:
    with pytest.raises(EventTooLong):
        read(*pieces, max_event_bytes=100)


def test_many_events_in_one_piece_may_exceed_the_limit_of_one() -> None:
    assert read(b"data: a\n\n" + b"data: a\n\n" * 50, max_event_bytes=100) == [b"a"] * 51


LINES = st.one_of(
    st.builds(lambda space, value: b"data:" + space + value, st.sampled_from([b"", b" "]), st.binary(max_size=12)),
    st.builds(lambda value: b": " + value, st.binary(max_size=6)),
    st.sampled_from(
        [b"", b"", b"", b"data", b"event: ping", b"id: 1", b"dat", b"\xef\xbb\xbfdata: x", b"data: [DONE]"]
    ),
)
STREAMS = st.lists(st.tuples(LINES, st.sampled_from([b"\n", b"\r\n", b"\r"])), max_size=20).map(
    lambda lines: b"".join(line + end for line, end in lines)
)


@given(stream=STREAMS, cuts=st.lists(st.integers(min_value=0, max_value=400), max_size=30))
def test_any_cutting_gives_the_events_of_the_grammar(stream: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    pieces = [stream[start:end] for start, end in itertools.pairwise(edges)]

    assert read(*pieces) == events_by_the_grammar(stream)


def events_by_the_grammar(stream: bytes) -> list[bytes]:
    """The same, the slow way, from the whole stream at once."""
    events: list[bytes] = []
    data: list[bytes] = []
    for line in [*re.split(rb"\r\n|\n|\r", stream.removeprefix(b"\xef\xbb\xbf")), b""]:
        if line == b"":
            if data:
                events.append(b"\n".join(data))
            data = []
        elif match := re.fullmatch(rb"data(?:: ?(.*))?", line, re.DOTALL):
            data.append(match[1] or b"")
    return events
