"""Where a text ends in the middle of a match."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrails.expression import NotUnderstood
from guardrails.patterns import Pattern, PatternSet
from guardrails.unfinished import Growing, Unfinished
from tests.support.examples import examples

LIMIT = 64


def unfinished(expression: str, *groups: int, after: int = 0, limit: int = LIMIT) -> Unfinished:
    return Unfinished([Growing(expression, frozenset(groups), after)], limit=limit)


@pytest.mark.parametrize(
    ("expression", "text", "opened"),
    [
        ("legal advice", "no legal ", 3),
        ("legal advice", "no legal a", 3),
        ("legal advice", "no legal b", 10),
        ("legal advice", "no legal advice", 15),  # all of it is there, and nothing follows
        ("legal advice", "no legal", 8),  # in the middle of a word nothing is cut
        (r"legal\s+advice", "legal \n \n ", 0),
        ("(?i)legal advice", "LEGAL ", 0),
        (r"\blegal advice\b", "illegal ", 8),
        (r"\blegal advice\b", "legal advice", 0),  # or legal advices
        ("one two|one three", "one t", 0),
        ("one (?:two )?three", "one two ", 0),
        (r"\d{4}(?: \d{4}){3}", "4111 1111 1", 0),
        (r"\d{4}(?: \d{4}){3}", "4111 1111 x", 11),
        ("项目[0-9]{2,4}号", "看项目12", 1),
        ("项目[0-9]{2,4}号", "看项目12天", 6),
        ("[^x]{3}", "xa ", 1),
        ("(?m)^key: .+$", "key: a b", 0),
        ("(?m)^key: .+$", "key: a b\n", 9),
        ("(?m)^key: .+$", "no key: a b", 11),
        ("^key .b", "key ", 0),
        ("^key .b", "a\nkey ", 6),
        (r'"[^"]*"', '"a b" and c ', 12),  # a closing quote opens nothing
        (r'"[^"]*"', '"a b" and "c ', 10),
    ],
)
def test_a_match_that_may_go_on_past_white_space_is_open(expression: str, text: str, opened: int) -> None:
    assert unfinished(expression).open_from(text) == opened


@pytest.mark.parametrize(
    ("text", "opened"),
    [
        ("a BEGIN x ", 2),
        ("a BEGIN x END", 13),
        ("a BEGIN x END and then ", 23),
        ("a BEGIN x END and BEGIN ", 18),
        ("a BEGIN x E", 2),
    ],
)
def test_a_lazy_repeat_ends_where_it_can(text: str, opened: int) -> None:
    assert unfinished(r"(?s)BEGIN.*?END").open_from(text) == opened


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        (r"a \w{1,4}? ?b?", "a b "),  # nothing has to follow
        (r"(?:(?:x \w+?y)+ ?)+", "x ay x "),  # another may have begun
        (r"x .*?y|x z", "x z "),  # the way before it may yet be taken
        (r"[ad]+[acd].*?d", "aad "),  # the same, where it begins a little further on
    ],
)
def test_a_match_that_another_way_may_take_over_is_open(expression: str, text: str) -> None:
    assert unfinished(expression).open_from(text) == 0


@pytest.mark.parametrize(
    "expression",
    [
        r"(?s)<<.*?>>",
        r'(?s)<<\s*=\s*"(.*?)">>',
        r"(?s)<<.*?>>|\[\[.*?\]\]",
        r"(?s)(?:<<|\[\[).*?(?:>>|\]\])",
    ],
)
def test_nothing_is_open_behind_the_end_of_a_lazy_repeat(expression: str) -> None:
    text = '<< = "a">> and '

    assert unfinished(expression).open_from(text) == len(text)


@pytest.mark.parametrize(
    ("text", "opened"),
    [
        ("password is ", 12),  # only its name so far
        ("password is: 'a ", 0),
        ("password is: 'a b", 0),
        ("password is: 'a b'", 18),
        ("password is: a ", 15),
    ],
)
def test_nothing_is_open_before_what_is_found_begins(text: str, opened: int) -> None:
    assert unfinished(r"password is: (?:'([^'\n]+)'|(\S+))", 1, 2).open_from(text) == opened


def test_a_group_that_may_be_missing_leaves_the_whole_match() -> None:
    assert unfinished(r"card no (\d+ \d+)?", 1).open_from("card ") == 0
    assert unfinished(r"card no (\d+ \d+)", 1).open_from("card ") == 5


def test_what_stands_behind_a_match_on_its_line_may_count() -> None:
    numbers = unfinished(r"\d{4}", after=10)

    assert numbers.open_from("a 1234 is ") == 2
    assert numbers.open_from("a 1234 is a number ") == 19
    assert numbers.open_from("a 1234\n ") == 8


def test_the_context_is_the_longest_way_to_what_is_found() -> None:
    assert unfinished(r"key ?= ?(\w+)", 1).context == 7
    assert unfinished(r"key ?= ?(\w+)").context == 1


@pytest.mark.parametrize("expression", [r"key\s*= (\w+)", "key {0,99}= (\\w+)"])
def test_what_is_found_too_far_behind_is_open_from_the_beginning(expression: str) -> None:
    assert unfinished(expression, 1).context == 1
    assert unfinished(expression, 1).open_from("a key = ") == 2


@pytest.mark.parametrize("expression", [r"\bghp_\w{36}", r"key = (\w+)\b", "a|b ", "[a-z]+ ?", "(?:^| )(a+)(?:[^a]|$)"])
def test_what_is_whole_where_a_stream_is_cut_is_not_looked_for(expression: str) -> None:
    assert not unfinished(expression, *([1] if "(" in expression else []))


def test_what_is_not_understood_is_said() -> None:
    with pytest.raises(NotUnderstood):
        unfinished(r"\p{Greek} x")


PATTERNS = [
    ("red fox", ()),
    (r"red\s{1,2}fox(?:es)?", ()),
    (r"\bred (?:blue )?fox\b", ()),
    (r"key ?[:=] ?(\S+ ?x)", (1,)),
    (r"key ?[:=] ?(?:'([^'\n]{1,9})'|(\w+ x))", (1, 2)),
    (r"(?:^|[^k])(key fox)(?:[^x]|$)", (1,)),
    (r"(?s)<<.*?>>", ()),
    (r"'[^'\n]+'", ()),
    (r"(?m)^key .*$", ()),
    (r"(?m)^key (\S+)[ ]{0,3};?$", (1,)),
    (r"<p>\s{0,4}(\w+)\s{0,4}</", (1,)),
    ("[目x] ?[目x]号", ()),
    (r"fox(?: \w){2,4}\b", ()),
    (r"(?i)x{2,}[ -]y*?z", ()),
]
WORDS = ["red", "fox", "foxes", "blue", "key", *":='xyz;目号ék", "xx", "<<", ">>", "<p>", "</"]
TEXTS = st.lists(st.sampled_from([*WORDS, *WORDS, " ", " ", " ", "  ", "\n"]), max_size=24).map("".join)


@settings(max_examples=examples(400))
@given(TEXTS, st.sampled_from(PATTERNS), st.integers(0, 100))
def test_what_is_not_open_stays_as_it_is(text: str, pattern: tuple[str, tuple[int, ...]], cut: int) -> None:
    expression, groups = pattern
    scan = PatternSet([Pattern("it", expression)]).scan
    there = text[: cut % (len(text) + 1)]
    place = max((at + 1 for at, char in enumerate(there) if char.isspace() or char >= "\u0e00"), default=0)
    known = min(place, unfinished(expression, *groups).open_from(there))

    def spans(text: str) -> list[tuple[int, int]]:
        found = [
            next((match.groups[group] for group in groups if match.groups[group][0] >= 0), match.groups[0])
            for match in scan(text)
        ]
        return [span for span in found if span[0] < known]

    assert spans(there) == spans(text)


@pytest.mark.parametrize("text", ['key = "' + "a " * 40_000, "<<" * 40_000, "key " * 20_000, "é " * 40_000])
def test_long_texts_are_read_in_no_time_to_speak_of(text: str) -> None:
    several = Unfinished([Growing(expression, frozenset(groups)) for expression, groups in PATTERNS], limit=LIMIT)
    several.open_from(text)
    began = time.thread_time()

    several.open_from(text)

    assert time.thread_time() - began < 0.2
