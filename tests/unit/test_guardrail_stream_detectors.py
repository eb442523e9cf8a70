"""What a stream lets out with the detectors there are, against what their rules make of the whole text."""

import string
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from random import Random
from statistics import mean, quantiles
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrails.base import Detector
from guardrails.detectors.hidden_text import HiddenTextDetector
from guardrails.detectors.pii import PiiDetector
from guardrails.detectors.regex import RegexDetector
from guardrails.detectors.secrets import SecretsDetector
from guardrails.engine import screen
from guardrails.policy import Rule
from guardrails.stream import StreamScreen
from models.completion import Chunk
from models.errors import ContentBlocked
from models.finding import Segment
from tests.support.examples import examples

DETECTORS: dict[str, Callable[[], Detector]] = {
    "secrets": SecretsDetector,
    "pii": PiiDetector,
    "hidden_text": HiddenTextDetector,
    "ticket": lambda: RegexDetector("PROJ-[0-9]{4}", kind="ticket"),
    "phrase": lambda: RegexDetector(r"(?i)legal\s+advice", kind="phrase"),
    "han": lambda: RegexDetector("项目[0-9]{2,4}号", kind="han"),
    "line": lambda: RegexDetector("(?im)^confidential: .*$", kind="line"),
    "plan": lambda: RegexDetector(r"secret plan (\w+ \w+)", kind="plan", group=1),
    "quoted": lambda: RegexDetector("(?s)<<.*?>>", kind="quoted"),
}
ALNUM, HEX, DIGITS = string.ascii_letters + string.digits, "0123456789abcdef", string.digits
PRIVATE = " PRIVATE" + " KEY-----"


@cache
def detector(name: str) -> Detector:
    return DETECTORS[name]()


class Writer:
    """Pieces of text that hold something, nearly something, or nothing; synthetic, all of them."""

    def __init__(self, random: Random) -> None:
        self.random = random

    def text(self) -> str:
        kinds = [self.secret, self.password, self.manifest, self.person, self.numbers, self.hidden, self.words]
        pieces = [self.random.choice(kinds)() for _ in range(self.random.randrange(1, 9))]
        return "".join(piece + self.random.choice([" ", " ", " ", "\n", ""]) for piece in pieces)

    def made_up(self, length: int, alphabet: str = ALNUM) -> str:
        return "".join(self.random.choices(alphabet, k=length))

    def secret(self) -> str:
        body = "\n".join(self.made_up(64) for _ in range(self.random.randrange(1, 9)))
        return self.random.choice(
            [
                "ghp" + "_" + self.made_up(36),
                "AKI" + "A" + self.made_up(16, string.ascii_uppercase) + " and its " + self.made_up(40),
                f'api_key = "{self.made_up(32)}"',
                f"aws_secret_access_key\n= {self.made_up(40)}",
                f"-----BEGIN{PRIVATE}\n{body}\n-----END{PRIVATE}",
                f"-----BEGIN{PRIVATE}\n{body}",
                f"machine example.com login ann password {self.made_up(9)}",
                f"PuTTY-User-Key-File-2: ssh-rsa\nPrivate-Lines: 2\n{self.made_up(64)}\n{self.made_up(30)}\nEnd",
                f"kubeadm join 192.0.2.1 --token {self.made_up(6, HEX)}.{self.made_up(16, HEX)}",
            ]
        )

    def password(self) -> str:
        quote = self.random.choice("'\"`")
        said = " ".join(self.made_up(self.random.randrange(1, 9)) for _ in range(self.random.randrange(1, 5)))
        closed = self.random.choice([quote, quote, "", ";"])
        return self.random.choice(
            [
                f"password = {quote}{said}{closed}",
                f"the password for the door is: {quote}{said}{closed}",
                f"PASSWORD {quote}{said}{quote} ;\n",
                f"<password> {self.made_up(12)}  </password>",
                f'<add key="dbPassword" value="{said}"/>',
                f"curl -X GET http://x.example -u 'ann:{said}' http://y.example",
                f"define('DB_PASSWORD', '{said}');",
                f"credentials {{ username 'a'\n password '{said}' }}",
                f"postgres://ann:{self.made_up(9)}项@db.example.com/x",
                "password is",
            ]
        )

    def manifest(self) -> str:
        values = "".join(f"  {self.made_up(3)}: {self.made_up(12)}=\n" for _ in range(self.random.randrange(3)))
        kind = self.random.choice(["Secret", "Secret", "ConfigMap"])
        parts = ["apiVersion: v1\n", f"kind: {kind}\n", f"data:\n{values}", "metadata:\n  name: x\n", "\n"]
        self.random.shuffle(parts)
        return "\n" + "".join(parts[1:]) + self.random.choice(["", "---\n", "```\nThen so\n"])

    def person(self) -> str:
        return self.random.choice(
            [
                *("4111 1111 1111 1111", "my card is 4111-1111-1111-1111", "378282246310005", "+1 415 555 2671"),
                *("call (415) 555-2671", "415 555 2671 ext. 12", "98765 43210 is my mobile", "415-555-2671\nphone"),
                *("DE89 3704 0044 0532 0130 00", "gb29 nwbk 6016 1331 9268 19", "536-22-8726", "ssn 078-05-1120"),
                *(
                    "ann.b@example.com",
                    "请联系bob@example.com谢谢",
                    "用户@例子.公司.cn",
                    "josé@correo.example",
                    "192.0.2.20",
                ),
                *("born in Paris on 12 March 1990", "date of birth: 12 ", "AB 12 34 56 C", "nino AB123456C"),
                *(
                    "电话：138 0013 8000。",
                    "手机13800138000",
                    "fe80::1ff:fe23:4567:890a%eth0",
                    "x[::2] and ::",
                    "K1234567",
                ),
                *("my passport is K1234567", "X1234567L is my passport", "00-11-22-33-44-55 is a mac", "1.2.3.4"),
            ]
        )

    def numbers(self) -> str:
        groups = [self.made_up(self.random.randrange(1, 6), DIGITS) for _ in range(self.random.randrange(1, 30))]
        listed = [self.made_up(9, DIGITS) for _ in range(self.random.randrange(1, 50))]
        word = self.random.choice(["", "ssn ", "BSN ", "card ", "tel. ", "passport "])
        return self.random.choice([" ".join(groups), "-".join(groups[:8]), word + ", ".join(listed), word + listed[0]])

    def hidden(self) -> str:
        return self.random.choice(
            [
                *("<|im_start|>", "<s> [INST] hi", "<s> a", "<｜begin▁of▁sentence｜>", "\u202eabc\u202c x", "a\u200bb"),
                *("\u2067שלום\u2069 b", "\u2066 open \n x", "s\u00ade\u00adc\u00adr\u00ade\u00adt", "中\u200b\u200b文"),
                *("中\u00ad文\u00ad中\u00ad文", "👩\u200d👧", "\u202a" + "a " * self.random.randrange(200)),
            ]
        )

    def words(self) -> str:
        known = (
            "the a brown fox key token secret plan x legal advice is number of date 2024-01-02 born pass curl login "
            "{ } ; = : ' \" ` < > << >> host server api 项目12号 项目 PROJ-12 PROJ-1234 confidential: "
            "我们今天去看电影吧，好不好？ \n"
        )
        return " ".join(self.random.choices(known.split(" "), k=self.random.randrange(1, 20)))


def rules(chosen: Sequence[tuple[str, Any]]) -> list[Rule]:
    return [
        Rule(name=f"test/{name}", detector=detector(name), action=action, on=frozenset({"output"}))
        for name, action in chosen
    ]


def chunk(text: str) -> Chunk:
    fields = {"choices": [{"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": None}]}
    return Chunk(msgspec.json.encode(fields), fields)


def said(one: Chunk) -> str:
    return "".join(choice["delta"].get("content") or "" for choice in one.fields["choices"])


async def whole(text: str, rules: Sequence[Rule]) -> str | None:
    """None where it is blocked."""
    try:
        screened = await screen([Segment(0, text, "assistant")], rules, phase="output")
    except ContentBlocked:
        return None
    return screened.texts.get(0, text)


async def check(seed: int, size: int, chosen: Sequence[tuple[str, Any]]) -> None:
    random = Random(seed)  # noqa: S311 - texts are no secret
    text = Writer(random).text()
    applying = rules(chosen)
    expected = await whole(text, applying)
    clean = await whole(text, [msgspec.structs.replace(rule, action="redact") for rule in applying])
    assert clean is not None
    cuts = [0]
    while cuts[-1] < len(text):
        cuts.append(min(len(text), cuts[-1] + random.randint(1, size)))

    screening = StreamScreen(applying)
    out = ""
    try:
        for start, end in pairwise(cuts):
            async for released in screening.feed(chunk(text[start:end]), more=random.random() < 0.3):
                out += said(released)
                assert clean.startswith(out)
        async for released in screening.end():
            out += said(released)
    except ContentBlocked:
        assert expected is None
        assert clean.startswith(out)
    else:
        assert out == expected


CHOSEN = st.lists(
    st.tuples(st.sampled_from(sorted(DETECTORS)), st.sampled_from(["redact", "redact", "redact", "block"])),
    min_size=1,
    max_size=4,
    unique_by=lambda one: one[0],
)


@given(st.integers(0, 2**64), st.sampled_from([1, 3, 8, 40]), CHOSEN)
@settings(max_examples=examples(150), deadline=None)
async def test_a_stream_says_what_the_whole_text_says(seed: int, size: int, chosen: Sequence[tuple[str, Any]]) -> None:
    await check(seed, size, chosen)


@pytest.mark.full
@pytest.mark.timeout(1800)
@given(st.integers(0, 2**64), st.sampled_from([1, 3, 8, 40]), CHOSEN)
@settings(max_examples=10_000, deadline=None)
async def test_ten_thousand_streams_say_what_the_whole_text_says(
    seed: int, size: int, chosen: Sequence[tuple[str, Any]]
) -> None:
    await check(seed, size, chosen)


PROSE = (
    "To reset your password, open the settings page, choose Security, and follow the 3 steps below; a token is sent "
    "to the address on file. Our shop has sold 12,400 keys since 2019 (not 1,024), and its secret is patience: wait "
    "24 hours, then call the API with `key = value` pairs.\n\n- First of all, read the data.\n- Then curl up.\n"
) * 8


@pytest.mark.parametrize("name", ["secrets", "pii", "hidden_text"])
async def test_little_is_held_of_prose(name: str) -> None:
    screening = StreamScreen(rules([(name, "redact")]))
    held, sent, out = [], 0, 0

    for at in range(0, len(PROSE), 4):
        sent += len(PROSE[at : at + 4])
        out += sum([len(said(one)) async for one in screening.feed(chunk(PROSE[at : at + 4]))])
        held.append(sent - out)

    assert mean(held) < 10
    assert quantiles(held, n=100)[98] <= 40


async def test_the_end_of_a_word_is_no_word_of_the_context() -> None:
    await check(263_555_789_714, 1, [("pii", "block")])
