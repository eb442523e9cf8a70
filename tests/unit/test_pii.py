import unicodedata
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrails.detectors import pii
from guardrails.detectors.pii import PiiDetector
from guardrails.patterns import PatternSet
from models.finding import Role, Segment
from tests.support.examples import examples

DETECTOR = PiiDetector()


async def found(text: str, role: Role = "user") -> list[tuple[str, str]]:
    return [(one.kind, text[one.start : one.end]) for one in await DETECTOR.detect([Segment(0, text, role)])]


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("write to bob.o'neil+x@mail.example.co.uk, please", "email", "bob.o'neil+x@mail.example.co.uk"),
        ("<jürgen@müller.example>", "email", "jürgen@müller.example"),
        ("邮箱是bob@example.com请联系", "email", "bob@example.com"),
        ("用户@例え.jp", "email", "用户@例え.jp"),
        ("联系我们почта@пример.рф", "email", "почта@пример.рф"),
        (
            "請在十二月以前告訴我們的用户@例え.jp",
            "email",
            "前告訴我們的用户@例え.jp",
        ),  # nobody can tell where it begins
        ("bob＠example．com", "email", "bob＠example．com"),
        ("Mail bob@example.com.Thanks", "email", "bob@example.com"),
        ("mailto://bob@example.com", "email", "bob@example.com"),
        ("from 203.0.113.7:8080", "ip_address", "203.0.113.7"),
        ("allow 10.0.0.0/8 only", "ip_address", "10.0.0.0/8"),
        ("at [2001:db8::1]:443", "ip_address", "2001:db8::1"),
        ("::ffff:192.0.2.1", "ip_address", "::ffff:192.0.2.1"),
        ("fe80::1%eth0 is up", "ip_address", "fe80::1%eth0"),
        ("bind to :: now", "ip_address", "::"),
        ("00:1b:44:11:3a:b7", "mac_address", "00:1b:44:11:3a:b7"),
        ("001b.4411.3ab7", "mac_address", "001b.4411.3ab7"),
        ("pay to de89 3704 0044 0532 0130 00 today", "iban", "de89 3704 0044 0532 0130 00"),
        ("GB82-WEST-1234-5698-7654-32", "iban", "GB82-WEST-1234-5698-7654-32"),
        ("send to 1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa", "crypto_address", "1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa"),
        ("bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4", "crypto_address", "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4"),
        ("0x" + "ab" * 20, "crypto_address", "0x" + "ab" * 20),
        ("4111-1111-1111-1111 exp 12/29", "credit_card", "4111-1111-1111-1111"),
        ("amex 3782 822463 10005", "credit_card", "3782 822463 10005"),
        ("４１１１ １１１１ １１１１ １１１１", "credit_card", "４１１１ １１１１ １１１１ １１１１"),
        ("4111\u20131111\u20131111\u20131111", "credit_card", "4111\u20131111\u20131111\u20131111"),
        ("4111\u00a01111\u00a01111\u00a01111", "credit_card", "4111\u00a01111\u00a01111\u00a01111"),
        ("mine is 536-90-4399", "us_ssn", "536-90-4399"),
        ("SSN: 536904399", "us_ssn", "536904399"),
        ("born on 12 March 1980", "date_of_birth", "12 March 1980"),
        ("née le 12/03/1980", "date_of_birth", "12/03/1980"),
        ("passport number K1234567", "passport", "K1234567"),
        ("护照号码 E12345678", "passport", "E12345678"),
        ("NI number AB 12 34 56 C", "uk_nino", "AB 12 34 56 C"),
        ("NHS number: 943 476 5919", "uk_nhs", "943 476 5919"),
        ("Steuer-ID 86 095 742 719", "de_tax_id", "86 095 742 719"),
        ("sécurité sociale 2 55 08 14 168 025 38", "fr_nir", "2 55 08 14 168 025 38"),
        ("DNI 12345678Z", "es_dni", "12345678Z"),
        ("NIE X-1234567-L", "es_nie", "X-1234567-L"),
        ("RSSMRA85T10A562S", "it_codice_fiscale", "RSSMRA85T10A562S"),
        ("mój PESEL to 44051401359", "pl_pesel", "44051401359"),
        ("BSN 111222333", "nl_bsn", "111222333"),
        ("811218-9876", "se_personnummer", "811218-9876"),
        ("111.444.777-35", "br_cpf", "111.444.777-35"),
        ("11.222.333/0001-81", "br_cnpj", "11.222.333/0001-81"),
        ("Aadhaar 2345 6789 0124", "in_aadhaar", "2345 6789 0124"),
        ("PAN ABCPE1234F", "in_pan", "ABCPE1234F"),
        ("TFN 123 456 782", "au_tfn", "123 456 782"),
        ("ABN 51 824 753 556", "au_abn", "51 824 753 556"),
        ("Medicare 2123 45670 1", "au_medicare", "2123 45670 1"),
        ("my SIN is 193 456 787", "ca_sin", "193 456 787"),
        ("ITIN 912-78-1234", "us_itin", "912-78-1234"),
        ("NRIC S1234567D", "sg_nric", "S1234567D"),
        ("주민등록번호는 960121-1021413입니다", "kr_rrn", "960121-1021413"),
        ("マイナンバーは123456789018です", "jp_my_number", "123456789018"),
        ("身份证11010519491231002X", "cn_resident_id", "11010519491231002X"),
    ],
)
async def test_finds_each_kind_where_it_stands(text: str, kind: str, value: str) -> None:
    assert await found(text) == [(kind, value)]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("+1 (415) 555\u20110132 is me", "+1 (415) 555\u20110132"),
        ("(415) 555-0132", "(415) 555-0132"),
        ("415.555.0132 ext. 44", "415.555.0132 ext. 44"),
        ("12 415-555-0132", "415-555-0132"),
        ("+44 (0)20 7946 0958", "+44 (0)20 7946 0958"),
        ("0044 20 7946 0958", "0044 20 7946 0958"),
        ("06 12 34 56 78", "06 12 34 56 78"),
        ("ruf 0171/1234567 an", "0171/1234567"),
        ("(11) 98456-5666", "(11) 98456-5666"),
        ("Fax:\n9472 7916", "9472 7916"),
        ("9472 7916 office", "9472 7916"),
        ('{"phoneNumber": "4155550132"}', "4155550132"),
        ("手机13812345678", "13812345678"),
        ("98765 43210 is my mobile", "98765 43210"),
        ("order 77, phone 94727916", "94727916"),
    ],
)
async def test_finds_phone_numbers_by_their_form_or_a_word_beside_them(text: str, number: str) -> None:
    assert await found(text) == [("phone", number)]


@pytest.mark.parametrize(
    "text",
    [
        "order number 4155550132 of 12345678",
        "your phone order 94727916",
        "2024-01-15 10:20:30.123456 and 15/01/2024 10:20",
        "1700000000 or 1700000000000 since the epoch",
        "ISBN 978-3-16-148410-0 or 0-306-40615-2",
        "version 10.0.19.41, foo==1.2.3.4, Chrome/120.0.0.0",
        "the OID 1.3.6.1.5.5.7.48",
        "$1 234 567 890 or 1.234.567,89 or 149 597 870 km",
        "40.712776, -74.005974 and 3.14159265358979",
        "550e8400-e29b-41d4-a716-446655440000",
        "4000 5000 6000 7000 8000 9000",
        "1990 1991 1992 1993 1994 1995",
        "a[1::2] b[::-1] std::vector foo::bar 10:30:45",
        "icon@2x.png package@1.2.3 user@host x@ @y",
        "git@github.com:owner/name https://user:word@db.example.com/",
        "4111 1111 1111 1112",  # fails Luhn
        "GB82 WEST 1234 5698 7654 33",  # fails mod 97
        "1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNb",
        "ff:ff:ff:ff:ff:ff 00:00:00:00:00:00 01-05-12-23-34-45",
        "300.1.1.1 1.2.3 2001::db8::1",
        "the ZIP code 94107-1234",
        "serial number 123 456 782",
        "passport office, room 12",
    ],
)
async def test_leaves_alone_what_only_looks_like_it(text: str) -> None:
    assert await found(text) == []


async def test_offsets_are_code_points_of_the_original() -> None:
    text = "😀 שלום ４１１１１１１１１１１１１１１１ e\u0301 (bob@example.com) 电话+442079460958。"

    findings = await DETECTOR.detect([Segment(7, text)])

    assert [(one.segment, text[one.start : one.end]) for one in findings] == [
        (7, "４１１１１１１１１１１１１１１１"),
        (7, "bob@example.com"),
        (7, "+442079460958"),
    ]


@pytest.mark.parametrize(("role", "kinds"), [("user", ["us_ssn"]), ("tool_result", [])])
async def test_digits_alone_are_an_answer_from_a_person_and_nothing_from_a_tool(role: Role, kinds: list[str]) -> None:
    assert [kind for kind, _ in await found("536904398", role)] == kinds


async def test_a_number_beside_one_of_its_kind_needs_no_word_of_its_own() -> None:
    assert await found("SSNs 536904399 and more, 536904398, 536904397") == [
        ("us_ssn", "536904399"),
        ("us_ssn", "536904398"),
        ("us_ssn", "536904397"),
    ]


async def test_a_word_makes_it_surer() -> None:
    [alone] = await DETECTOR.detect([Segment(0, "it is 4111 1111 1111 1111")])
    [said] = await DETECTOR.detect([Segment(0, "my card is 4111 1111 1111 1111")])

    assert 0.5 <= alone.confidence < said.confidence


async def test_a_card_is_no_phone_number_because_nobody_asked_for_cards() -> None:
    phones = PiiDetector({"phone"})

    assert list(await phones.detect([Segment(0, "call 4111 1111 1111 1111 or 536-90-4399")])) == []


def test_what_is_asked_for_must_exist() -> None:
    with pytest.raises(ValueError, match=r"no personal data is called e-mail; known: .*email"):
        PiiDetector({"e-mail"})


async def test_a_list_is_one_for_240_characters() -> None:
    numbers = [f"{n:03}-45-6789"[:11].replace("-", "") for n in range(101, 151)]

    values = await found("SSNs " + ", ".join(numbers))

    assert [value for kind, value in values if kind == "us_ssn"] == numbers[:22]


@pytest.mark.parametrize(
    ("text", "opened"),
    [
        ("my card is ", ""),
        ("my card is 4111 1111 1", "4111 1111 1"),
        ("it is (415) 555-2671 is my ", "(415) 555-2671 is my "),  # a word may follow that says what it is
        ("it is (415) 555-2671\n", ""),
        ("it is (415) 555-2671 and the words behind it are many, and say nothing ", ""),
        ("so is K1234567 my ", "K1234567 my "),
        ("so is DE89 3704 0044 0532 ", "DE89 3704 0044 0532 "),
        ("so is DE89 3704 0044 0532 0130 00 ", "DE89 3704 0044 0532 0130 00 "),
        ("he was born on 12 ", "born on 12 "),
        ("he was born in Paris ", ""),
        ("in 2024 and 12 ", "12 "),
        ("write to bob@example.com ", ""),
        ("请联系bob@例子.", "bob@例子."),
        ("请联系。用户", "用户"),
        ("請在 12 月以前告訴我們關於這個項目", "我們關於這個項目"),
        ("536904398 ", "536904398 "),
        ("536904398 is ", "536904398 is "),
        ("K1234567 ", "K1234567 "),
        ("The ", ""),
        ("1 " * 400, "1 " * 128),
    ],
)
def test_a_stream_waits_for_numbers_and_the_words_behind_them(text: str, opened: str) -> None:
    assert text[DETECTOR.open_from(text) :] == opened


def test_for_addresses_a_stream_waits_for_no_number() -> None:
    addresses = PiiDetector({"email", "crypto_address"})

    assert addresses.reach == 0
    assert addresses.open_from("my card is 4111 1111 ") == 21
    assert addresses.open_from("用户@") == 0


def test_revision_is_the_same_for_the_same_patterns() -> None:
    assert PiiDetector().revision == PiiDetector({"email"}).revision
    assert len(DETECTOR.revision) == 16


PIECES = st.sampled_from(
    [
        "4111 1111 1111 1111",
        "bob@example.com",
        "+44 20 7946 0958",
        "::1",
        "GB82",
        "536-90-4399",
        "(0",
        "@",
        ".",
        "-",
        "１",
        "é",
        "字",
    ]
)


@settings(max_examples=examples(300), deadline=None)
@given(st.lists(st.one_of(PIECES, st.text(max_size=8)), max_size=12).map(" ".join))
async def test_any_text_gives_findings_in_order_inside_it(text: str) -> None:
    findings = list(await DETECTOR.detect([Segment(0, text)]))

    assert all(0 <= one.start < one.end <= len(text) for one in findings)
    assert all(one.end <= other.start for one, other in pairwise(findings))
    assert all(one.confidence >= 0.5 and one.kind in DETECTOR.kinds for one in findings)


@pytest.mark.parametrize(
    "text", ["call 415-555-0132 or bob@example.com, card 4111 1111 1111 1111", "DE89370400440532013000 ::1"]
)
async def test_both_engines_find_the_same(text: str) -> None:
    portable = PiiDetector()
    portable._patterns = PatternSet(pii._PATTERNS, engine="portable")

    assert list(await portable.detect([Segment(0, text)])) == list(await DETECTOR.detect([Segment(0, text)]))


def test_folded_text_is_as_long_as_the_original() -> None:
    every = "".join(chr(c) for c in range(0x20, 0x3000) if unicodedata.category(chr(c)) != "Cs")

    text = pii._Text(Segment(0, every))

    assert len(text.plain) == len(every)
    assert text.plain.isascii()


@pytest.mark.parametrize(
    "piece", ["1234567890", "1 2 3 4 5 6 7 8 9 0 ", "4111 ", "1.", "@", "a@", "a:", "(1)", "+4", "１", "GB82 ", "\0"]
)
async def test_a_hostile_text_takes_no_more_than_linear_time(piece: str) -> None:
    text = piece * (100_000 // len(piece))

    # Well under a second a run: anything quadratic meets the timeout of the suite.
    for _ in range(3):
        findings = await DETECTOR.detect([Segment(0, text)])

    assert len(findings) <= len(text)


@pytest.mark.parametrize(
    ("text", "kind", "number"),
    [
        (r"a\nNO7239825979190\nb", "iban", "NO7239825979190"),
        (r"a\n4343 2503 1146 8242\n", "credit_card", "4343 2503 1146 8242"),
        ("my social security number is 536228726", "us_ssn", "536228726"),
        ("number=4825651981744&cvv=1", "credit_card", "4825651981744"),
    ],
)
async def test_numbers_behind_an_escape_or_before_the_word(text: str, kind: str, number: str) -> None:
    findings = await PiiDetector().detect([Segment(0, text)])

    assert [(finding.kind, text[finding.start : finding.end]) for finding in findings] == [(kind, number)]
