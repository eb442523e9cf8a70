import asyncio

import pytest

from guardrails.base import Detector
from guardrails.detectors.regex import RegexDetector
from guardrails.patterns import PatternError, ScanGaveUp
from models.finding import Finding, Segment


def detector(pattern: str) -> Detector:
    return RegexDetector(pattern)


async def test_reports_every_match_in_every_segment() -> None:
    segments = [
        Segment(index=3, text="é PROJ-1234, PROJ-99999"),
        Segment(index=7, text="none"),
        Segment(index=8, text="PROJ-0000"),
    ]

    found = await detector("PROJ-[0-9]{4}").detect(segments)

    assert found == [
        Finding(segment=3, kind="regex", start=2, end=11, rule="regex"),
        Finding(segment=3, kind="regex", start=13, end=22, rule="regex"),
        Finding(segment=8, kind="regex", start=0, end=9, rule="regex"),
    ]


async def test_reports_the_group_under_the_kind_it_was_given() -> None:
    tickets = RegexDetector(r"(?i)ticket\s+(\d+)", kind="ticket", group=1)

    found = await tickets.detect([Segment(index=0, text="see Ticket  42")])

    assert found == [Finding(segment=0, kind="ticket", start=12, end=14, rule="ticket")]
    assert tickets.kinds == {"ticket"}


@pytest.mark.parametrize(
    ("pattern", "reach"),
    [
        ("PROJ-[0-9]{4}", 0),
        (r"\bkey-\w+\b", 0),
        ("legal advice", 12),
        (r"\blegal advice\b", 13),
        (r"(?:one|three) \w{2,5}", 11),
        (r"\d{4}[ -]?\d{4}", 9),
        (r"legal\s+advice", None),
        ("a.b", 3),
        ("[^x]{3}", 3),
        (r"\S{3}", 3),  # what is no white space in ASCII may be some beyond
        ("a{2,}", 0),
        ("^key", 0),
        ("key$", 0),
        ("(?m)^key$", 0),
        ("(?m)^legal advice$", 13),
        (r"\p{Greek}{2}", None),
        ("漢\u3000字", 3),
        ("项目[0-9]{2,4}号", 7),  # a stream may end between any two of its letters
        ("(?i)café au lait|cafés", 12),
    ],
)
def test_reach_is_the_longest_match_that_may_hold_white_space(pattern: str, reach: int | None) -> None:
    assert detector(pattern).reach == reach


@pytest.mark.parametrize("pattern", [r"(?<!\d)\d{9}", r"(\w)\1", "x*", "(?=x)", r"\d{9}(?!\d)"])
def test_a_pattern_that_cannot_be_used_is_refused_at_load(pattern: str) -> None:
    with pytest.raises(PatternError, match=r"pattern 'regex': .*(in a group|Write out|at least one)"):
        detector(pattern)


def test_the_revision_changes_with_what_may_be_found() -> None:
    variants = [
        RegexDetector("(a)b"),
        RegexDetector("(a)c"),
        RegexDetector("(a)b", group=1),
        RegexDetector("(a)b", kind="ab"),
    ]

    assert len({variant.revision for variant in variants}) == 4
    assert RegexDetector("(a)b").revision == variants[0].revision


async def test_a_long_text_leaves_the_event_loop_free() -> None:
    text = ("foo" + "x" * 2000) * 1000 + "foobar"
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    running = asyncio.create_task(others())
    found = await detector("(?s)foo[^f]{1,500}bar|foobar").detect([Segment(index=0, text=text)])
    running.cancel()

    assert [(one.start, one.end) for one in found] == [(2_003_000, 2_003_006)]
    assert turns > 1


async def test_what_explodes_elsewhere_is_linear_here() -> None:
    assert await detector(r"^(\w+\s?)+$").detect([Segment(index=0, text="a" * 1_000_000 + "!")]) == []


async def test_a_pattern_that_reads_on_past_what_it_finds_is_an_error_of_the_detector() -> None:
    with pytest.raises(ScanGaveUp):
        await detector("(?s)x.*y|x").detect([Segment(index=0, text="x" * 300_000)])
