import importlib.util
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import re2
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import guardrails.patterns
from guardrails.base import DetectorError
from guardrails.expression import longest_word, parse
from guardrails.patterns import LONG, Engine, Match, Pattern, PatternError, PatternSet, ScanGaveUp
from tests.support.examples import examples

ENGINES: tuple[Engine, ...] = ("hyperscan", "portable")

SHAPES = [
    "foo",
    "(?i)foo",
    "(?i)key[sk]+",
    r"\bfoo\b",
    r"\Bfoo",
    r"foo\B",
    "^foo",
    "foo$",
    r"\Afoo\s",
    r"foo\z",
    "(?m)^foo$",
    r"(?m)\n^",
    "(?m:x$)",
    "[a-f0-9]{4,8}",
    "[^x]{3}x",
    "[^a-z]+",
    "foo.bar",
    "foo.{0,40}bar",
    "(?s)foo.{0,40}?bar",
    "(?s)foo.*bar",
    "foo.*?bar.*?key",
    "x{2,3}",
    "x{3,}",
    "(?:foo|bar|key){2}",
    "(?:foo|)key",
    "(foo|key)+?x",
    r"\d{3}-\d{2}",
    r"[\w.-]{0,50}?foo[ \t\w.-]{0,20}[=:]\s*['\"]?([a-z0-9]{8})(?:['\"\s]|$)",
    r"(?i)[\W_]key",
    r"\S+@\w+",
    r"\pL{2,}",
    r"(?i)\p{Lu}{2}",
    r"\PL+",
    r"\p{Greek}+",
    r"[\p{Han}é]{2}",
    "[[:alpha:]]{5}",
    "[[:^alpha:]]{5}",
    "é+",
    "(?i)É",
    "👍x?",
    "[👍é]+",
    "ſk",
    r"(?i)[\x{100}-\x{200}]key",
    r"\x00",
    r"[\x00-\x1f]{2}",
    r"\Qfoo.\E",
    r"(?i:foo)BAR",
    "(?i)f(?-i)oo|key",
    r"foo(?P<tail>\w{0,3})\b",
    "-{5}foo-{5}",
    r"(?:\bfoo|\nkey)(?:x|$)",
]
FRAGMENTS = [
    *["foo", "FOO", "bar", "BAR", "key", "KEY", "\u212aey", "\u017fk", "sk", "x", "xxx", "K", "foo.", "deadbeef"],
    *[
        "é",
        "É",
        "e\u0301",
        "Ωμέγα",
        "漢字",
        "👍",
        "👍🏽",
        "\U000e0001",
        "12345678",
        "123-45",
        "-----",
        "=",
        ":",
        "'",
        '"',
    ],
    *["_", ".", "@", "\x00", "\n", "\r\n", " ", "\t", "\v", "\xa0", " " * 90, "x" * 130, "é" * 50],
]
ATOMS = [
    *[
        "foo",
        "key",
        "s",
        "k",
        "K",
        "é",
        "漢",
        "👍",
        "x",
        "(?i)sk",
        "fo{2,3}",
        "[a-f0-9]",
        "[^x]",
        r"[^\né]",
        "[[:upper:]]",
    ],
    *[r"[\x{17f}-\x{180}]", ".", "(?s:.)", r"\w", r"\W", r"\s", r"\d", r"\pL", r"\P{Lu}"],
    *[r"\b", r"\B", "^", "$", r"\A", r"\z", "(?m:^)", "(?m:$)"],
]

texts = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), max_size=24).map("".join)
expressions = st.recursive(
    st.sampled_from(ATOMS),
    lambda inner: st.one_of(
        st.lists(inner, min_size=2, max_size=4).map("".join),
        st.lists(inner, min_size=2, max_size=3).map(lambda parts: f"(?:{'|'.join(parts)})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "*?", "{2}", "{0,3}", "{1,40}", "{2,}"])).map(
            lambda pair: f"(?:{pair[0]}){pair[1]}"
        ),
        inner.map(lambda part: f"(?i:{part})"),
        inner.map(lambda part: f"({part})"),
    ),
    max_leaves=8,
)


def set_of(*expressions_: str, engine: Engine = "hyperscan") -> PatternSet:
    return PatternSet([Pattern(f"p{i}", expression) for i, expression in enumerate(expressions_)], engine=engine)


def by_re2_alone(expressions_: list[str], text: str) -> list[tuple[int, int, int]]:
    found = [
        (match.start(), position, match.end())
        for position, expression in enumerate(expressions_)
        for match in re2.finditer(expression, text)
    ]
    return [(position, start, end) for start, position, end in sorted(found)]


def spans(matches: list[Match]) -> list[tuple[int, int, int]]:
    return [(match.pattern, match.start, match.end) for match in matches]


ALL = {engine: set_of(*SHAPES, engine=engine) for engine in ENGINES}


@given(texts)
@example("\u212aeys foo " + "x" * 500 + " (\u017fk) foo.bar")
@example("a\n")
@settings(max_examples=examples(300), deadline=None)
def test_both_engines_find_what_re2_finds_in_the_whole_text_for_every_shape_of_pattern(text: str) -> None:
    expected = by_re2_alone(SHAPES, text)

    assert spans(ALL["hyperscan"].scan(text)) == expected
    assert spans(ALL["portable"].scan(text)) == expected


@given(st.lists(expressions, min_size=1, max_size=4), st.lists(texts, min_size=1, max_size=5))
@settings(max_examples=examples(150), deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_both_engines_find_what_re2_finds_whatever_the_pattern(candidates: list[str], some: list[str]) -> None:
    usable = []
    for candidate in candidates:
        try:
            set_of(candidate, engine="portable")
        except PatternError:
            continue
        usable.append(candidate)

    sets = [set_of(*usable, engine=engine) for engine in ENGINES]

    for text in some:
        expected = by_re2_alone(usable, text)
        assert [spans(patterns.scan(text)) for patterns in sets] == [expected, expected]


@pytest.mark.parametrize("engine", ENGINES)
def test_offsets_are_code_points(engine: Engine) -> None:
    text = "né 👍🏽 \x00漢 foo_é1 e\u0301 foo"

    [first, second] = set_of(r"foo(_é)?", engine=engine).scan(text)

    assert (first.start, first.end) == (9, 14)
    assert first.groups == ((9, 14), (12, 14))
    assert text[first.start : first.end] == "foo_é"
    assert second == Match(0, 19, 22, ((19, 22), (-1, -1)))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("expression", "found"),
    [
        (r"\bid-(\d+)|nr-\d+", ["12", "nr-7"]),  # the group, or the whole where it took no part
        (r"id-(\d*)", ["12"]),
        (r"id-([a-z]*)1", ["id-1"]),  # an empty group is none
    ],
)
def test_a_match_is_its_group(engine: Engine, expression: str, found: list[str]) -> None:
    text = "é id-12 nr-7"

    matches = PatternSet([Pattern("id", expression, group=1)], engine=engine).scan(text)

    assert [text[match.start : match.end] for match in matches] == found


@pytest.mark.parametrize("engine", ENGINES)
def test_one_separator_may_part_two_findings(engine: Engine) -> None:
    patterns = PatternSet([Pattern("nine", r"(?:^|\D)(\d{9})(?:\D|$)", group=1)], engine=engine)

    matches = patterns.scan("123456789é987654321 111222333")

    assert spans(matches) == [(0, 0, 9), (0, 10, 19), (0, 20, 29)]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_pattern_with_keywords_is_tried_only_where_one_of_them_is(engine: Engine) -> None:
    patterns = PatternSet([Pattern("hex", "[0-9a-f]{8}", keywords=("token", "secret"))], engine=engine)

    assert patterns.scan("id: deadbeef") == []
    assert spans(patterns.scan("My TOKEN: " + " " * 90_000 + "deadbeef")) == [(0, 90_010, 90_018)]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_match_far_from_the_last_is_found_in_its_own_window(engine: Engine) -> None:
    text = ("é" * 5_000 + " foo-1 ") * 3 + "foo-" + "9" * 12

    matches = set_of(r"\bfoo-\d{1,10}", r"foo-\d+$", engine=engine).scan(text)

    assert spans(matches) == [
        (0, 5_001, 5_006),
        (0, 10_008, 10_013),
        (0, 15_015, 15_020),
        (0, 15_021, 15_035),
        (1, 15_021, 15_037),
    ]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_lone_surrogate_is_a_character_like_any_other(engine: Engine) -> None:
    assert spans(set_of("foo", engine=engine).scan("\ud800é\udfff foo")) == [(0, 4, 7)]


@pytest.mark.parametrize("engine", ENGINES)
def test_no_patterns_find_nothing(engine: Engine) -> None:
    assert PatternSet([], engine=engine).scan("anything") == []


def test_what_hyperscan_cannot_look_for_is_always_tried() -> None:
    refused_when_parsed, refused_when_compiled = r"\p{Greek}{3}", "k" + "é" * 9_000
    patterns = set_of(refused_when_parsed, "foo", refused_when_compiled)

    assert spans(patterns.scan("foo Ωμέ " + refused_when_compiled)) == [(1, 0, 3), (0, 4, 7), (2, 8, 9_009)]


def test_more_hits_than_are_worth_reporting_change_nothing() -> None:
    text = "xyz" * 20_000
    expected = by_re2_alone([r"(?:xyz|yzx|zxy)[x-z]?", r"xyz(?:x|y|z){0,9}"], text)

    matches = set_of(r"(?:xyz|yzx|zxy)[x-z]?", r"xyz(?:x|y|z){0,9}").scan(text)

    assert spans(matches) == expected


@pytest.mark.parametrize("tail", ["", " ", "x" * 40])
def test_what_vectorscan_overlooks_is_not_left_to_it(tail: str) -> None:
    # Given these as they are, 5.4.12 misses the key after 14 to 31 other bytes, and the word after "://xxxx".
    patterns = set_of("key", "(?i)sfoo", "(?i)fooé", r"(?s)curl.*\|\s*python", r"é(?:ghp_\d{0,20}|kk[0-9a-f]*)?")

    for n in range(120):
        for before, found in (("x" * n, "key"), ("curl http://" + "x" * n + ":80/ 2>&1 | ", "python"), (" " * n, "é")):
            matches = patterns.scan(before + found + tail)
            assert [match.end for match in matches] == [len(before + found)]


def test_threads_share_a_set() -> None:
    patterns = ALL["hyperscan"]
    some = ["foo " * n + "x" * 7 * n + " key 123-45 é" for n in range(64)]
    expected = [patterns.scan(text) for text in some]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(patterns.scan, some * 8))

    assert found == expected * 8


def test_sets_come_and_go_while_others_scan() -> None:
    def once(n: int) -> list[tuple[int, int, int]]:
        return spans(set_of(f"foo{n % 7}", "bar").scan(f"bar foo{n % 7}"))

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(once, range(200)))

    assert found == [[(1, 0, 3), (0, 4, 8)]] * 200


async def test_a_long_text_is_scanned_aside_with_the_same_result() -> None:
    patterns = set_of("(?s)foo.*bar", "key")
    text = "foo" + "x" * LONG + "key bar"

    assert await patterns.scan_aside(text) == patterns.scan(text)
    assert spans(await patterns.scan_aside("a key")) == [(1, 2, 5)]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("unit", ["a", "xzx", "0123456789", "QUJD+/", "foo key bar "])
@pytest.mark.parametrize(
    "expression", [r"(\w+\s?)+:", "(x+x+)+y", "(a|a)*!", "(a?){50}a{50}c", r"(?:\d+)+!", "(.*)*(.*)*="]
)
def test_what_explodes_elsewhere_is_linear_here(expression: str, unit: str, engine: Engine) -> None:
    assert set_of(expression, engine=engine).scan(unit * (1_000_000 // len(unit))) == []


def test_a_pattern_that_reads_on_past_what_it_finds_is_stopped() -> None:
    patterns = set_of("(?s)x.*y|x")

    assert len(patterns.scan("x" * 100)) == 100
    with pytest.raises(ScanGaveUp, match="'p0' takes too long") as stopped:
        patterns.scan("x" * 400_000)
    assert isinstance(stopped.value, DetectorError)


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        (r"(?<=id )\d+", "look-around is not supported"),
        (r"\d+(?! EUR)", "look-around is not supported"),
        (r"(['\"]).*\1", "back-references are not supported"),
        ("(?>a+)b", "never backtrack"),
        ("a++b", "never backtrack"),
        (r"foo\Z", r"write \\z"),
        ("(foo", "missing"),
        ("[b-a]", "invalid character class range"),
        ("x{2000}", "too large"),
        (r"(?:\pL{100}){100}", "too large"),
        (".{1000}.{1000}.{1000}", "too large"),
        (r"\C+", "half a character"),
        ("x*", "matches the empty text"),
        (r"\b", "matches the empty text"),
        (r"\p{Greek}*", "matches the empty text"),
        ("\ud800", "not valid Unicode"),
    ],
)
def test_a_pattern_that_cannot_be_used_is_refused_with_the_reason(expression: str, says: str) -> None:
    with pytest.raises(PatternError, match=says) as refused:
        PatternSet([Pattern("fine", "foo"), Pattern("mine", expression)])

    assert refused.value.id == "mine"
    assert str(refused.value).startswith("pattern 'mine': ")


def test_a_group_that_is_not_there_is_refused() -> None:
    with pytest.raises(PatternError, match="no group 2, only 1"):
        PatternSet([Pattern("mine", "id-(.)", group=2)])


def test_the_engine_in_use_has_a_name() -> None:
    assert set_of("foo").engine == "hyperscan"
    assert set_of("foo", engine="portable").engine == "portable"
    assert PatternSet([]).engine == "hyperscan"


def test_where_hyperscan_has_no_wheel_the_portable_engine_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hyperscan", None)
    spec = importlib.util.spec_from_file_location("patterns_without_hyperscan", guardrails.patterns.__file__)
    assert spec is not None
    assert spec.loader is not None
    without = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(without)

    patterns = without.PatternSet([without.Pattern("id", "foo")])

    assert patterns.engine == "portable"
    assert spans(patterns.scan("a foo")) == [(0, 2, 5)]
    with pytest.raises(ValueError, match="no hyperscan"):
        without.PatternSet([], engine="hyperscan")


@pytest.mark.parametrize("engine", ENGINES)
def test_letters_beyond_ascii_that_fold_to_ascii_are_seen(engine: Engine) -> None:
    text = "é \u212aelvin=42, \u017fecret=7; kelvin=1 "

    matches = set_of(r"(?i)kelvin=\d+", r"(?i)secret=\d", "kelvin=1", engine=engine).scan(text * 3)

    assert spans(matches)[:4] == [(0, 2, 11), (1, 13, 21), (0, 23, 31), (2, 23, 31)]
    assert len(matches) == 12


@pytest.mark.parametrize(
    ("expression", "longest"),
    [
        ("[a-z]{20}", 20),
        (r"\b(?:sk|pk_)[a-z]{8,}\b", 10),
        (r"key\s+[a-f0-9]{32}", 32),
        (r"[a-f0-9]{32}\s+key", 32),
        ("(?:[a-z]{4}-){3}[a-z]{4}", 19),
        ("(?:[a-z]{9}|[a-z ]{30})", 0),
        ("(?:[a-z]{30})?x", 1),
        ("(?:ab c){5}", 2),
        ("[^x]{30}", 0),
        (r"[\w.]{3}[ ]?[\w.]{7}", 7),
        ("é{25}", 25),
    ],
)
def test_a_word_that_every_match_holds_is_known(expression: str, longest: int) -> None:
    assert longest_word(parse(expression).node) == longest
