"""Which of the spans that overlap wins, and texts that are looked at joined."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from guardrails.spans import SEAM, Span, joints, merged

SPANS = st.lists(
    st.builds(
        lambda start, length, action, rule: Span(start, start + length, f"k{rule}", action, rule),
        st.integers(0, 30),
        st.integers(1, 10),
        st.sampled_from(["redact", "mask"]),
        st.integers(0, 3),
    )
)


def test_the_severer_wins_and_covers_both() -> None:
    assert merged([Span(0, 20, "url", "mask", 0), Span(10, 30, "secret", "redact", 1)]) == [
        Span(0, 30, "secret", "redact", 1)
    ]


def test_among_equals_the_longer_wins() -> None:
    assert merged([Span(2, 6, "phone", "mask", 0), Span(0, 22, "iban", "mask", 1)]) == [Span(0, 22, "iban", "mask", 1)]


def test_of_the_same_length_the_earlier_rule_wins() -> None:
    assert merged([Span(0, 5, "b", "mask", 1), Span(0, 5, "a", "mask", 0)]) == [Span(0, 5, "a", "mask", 0)]


def test_a_short_winner_is_not_beaten_by_its_own_growth() -> None:
    chain = [Span(0, 4, "a", "mask", 0), Span(3, 8, "b", "mask", 1), Span(7, 13, "c", "mask", 2)]

    assert merged(chain) == [Span(0, 13, "c", "mask", 2)]


def test_spans_that_touch_stay_two() -> None:
    touching = [Span(0, 5, "a", "mask", 0), Span(5, 9, "b", "mask", 0)]

    assert merged(touching) == touching


@given(SPANS)
def test_all_that_was_found_is_covered_and_nothing_else(spans: list[Span]) -> None:
    result = merged(spans)

    covered = {place for span in result for place in range(span.start, span.end)}
    assert covered == {place for span in spans for place in range(span.start, span.end)}
    assert all(one.end <= other.start for one, other in pairwise(result))


@given(SPANS.flatmap(lambda spans: st.tuples(st.just(spans), st.permutations(spans))))
def test_the_order_they_were_found_in_does_not_matter(both: tuple[list[Span], list[Span]]) -> None:
    spans, shuffled = both

    assert merged(shuffled) == merged(spans)


def test_a_joint_tells_the_parts_of_what_crosses_a_seam() -> None:
    (joint,) = joints([(7, "my key AK"), (8, ""), (9, "IA12"), (12, "34 ok")])

    assert joint.text == "my key AKIA1234 ok"
    assert joint.split(7, 15) == [(7, 7, 9), (9, 0, 4), (12, 0, 2)]
    assert joint.split(0, 6) == []  # in one text, which was looked at itself


def test_of_long_texts_only_the_ends_are_joined() -> None:
    long = "x" * (3 * SEAM)

    first, second = joints([(0, "head"), (1, long), (2, "tail")])

    assert len(first.text) == 4 + SEAM
    assert first.split(3, 5) == [(0, 3, 4), (1, 0, 1)]
    assert second.split(SEAM - 2, SEAM + 1) == [(1, 3 * SEAM - 2, 3 * SEAM), (2, 0, 1)]


def test_one_long_text_is_no_joint() -> None:
    assert list(joints([(0, "x" * (3 * SEAM))])) == []


@given(
    st.lists(st.text(alphabet="ab", max_size=6), min_size=2).filter(lambda texts: sum(map(bool, texts)) > 1), st.data()
)
def test_what_a_joint_splits_is_what_was_found(texts: list[str], data: st.DataObject) -> None:
    (joint,) = joints(list(enumerate(texts)))
    start = data.draw(st.integers(0, len(joint.text)))
    end = data.draw(st.integers(start, len(joint.text)))

    pieces = joint.split(start, end)

    assert all(begin < stop for _, begin, stop in pieces) or start == end
    if pieces:
        assert "".join(texts[text][begin:stop] for text, begin, stop in pieces) == joint.text[start:end]
