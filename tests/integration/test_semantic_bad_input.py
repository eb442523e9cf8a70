"""Questions that are hardly any, through the whole gateway: each gets its own answer, and the reason is told."""

import re
from collections.abc import Iterator, Sequence

import httpx
import pytest

from service.bench.mock_upstream import answer as mock_answer
from tests.support.gateway import Gateway, Json, Mock, eventually, running_gateway, settings, text_of

ENDPOINTS: list[Json] = [
    {"name": "default", "cache": {"mode": "semantic", "ttl": "1h", "ttl_jitter": 0}},
    {"name": "alone", "cache": {"mode": "semantic", "context": "last-turn-if-self-contained"}},
]
HISTORIES: dict[str, list[Json]] = {
    "first turn": [],
    "conversation": [
        {"role": "user", "content": "Tell me about Rome."},
        {"role": "assistant", "content": "It is a city of three million."},
    ],
    "other conversation": [
        {"role": "user", "content": "Tell me about yeast."},
        {"role": "assistant", "content": "It is a fungus."},
    ],
}
CODE = "def total(prices):\n    return sum(p for p in prices if p > 0)\n\nprint(total([3, 4]))"

# What is not compared, and the word that says why.
NOTHING_TO_COMPARE = {
    "empty": ("", "not-text"),
    "white space": (" \n\t\u00a0", "not-text"),
    "without width": ("\u200b\u200d\ufeff", "not-text"),
    "emoji": ("🙂🙃🔥", "not-text"),
    "emoji with joiners": ("👩‍👩‍👧‍👦 👍🏽", "not-text"),
    "punctuation": ("?!… — «»", "not-text"),
    "control characters": ("\u0000\u0001\u001b", "not-text"),
    "100,000 characters": (("How do I bake bread? " * 4762)[:100_000], "too-long"),
    "100,000 letters": ("a" * 100_000, "too-long"),
    "100,000 signs": ("大" * 100_000, "too-long"),
    "100,000 emoji": ("🙂" * 100_000, "too-long"),
    "more than the embedder's window": ("bread " * 400, "too-long"),
}

# What is: near one another in places, and each another question.
OTHER_QUESTIONS = (
    "如何重置我的密码？", "如何删除我的密码？", "北京的天气一般怎么样？", "上海的天气一般怎么样？",
    "パスワードを変更する方法", "パスワードを削除する方法", "비밀번호를 변경하는 방법", "비밀번호를 삭제하는 방법",
    "Как открыть счёт в банке?", "Как закрыть счёт в банке?", "كيف أفتح حسابا في البنك؟", "كيف أغلق حسابا في البنك؟",
    "Πώς ανοίγω λογαριασμό;", "Πώς κλείνω λογαριασμό;", "จะรีเซ็ตรหัสผ่านได้อย่างไร", "איך פותחים חשבון?",
    "मैं अपना पासवर्ड कैसे बदलूँ?", "Jak otworzyć konto w banku?", "Jak zamknąć konto w banku?",
    "What is the meaning of 👍?", "What is the meaning of 👎?", "🍕 or 🍣?", "🍣 and 🍕!",
    CODE, CODE.replace("sum(", "max("), CODE.replace("[3, 4]", "[3, 5]"), CODE.replace("prices", "costs"),
    "SELECT name FROM users WHERE id = 7;", "SELECT name FROM users WHERE id = 8;", "DELETE FROM users WHERE id = 7;",
    "git reset --hard HEAD~1", "git reset --soft HEAD~1", '{"a": [1, {"b": null}]}', '{"a": [1, {"b": true}]}',
    "^(\\d{3})-(\\d{4})$", "^(\\d{4})-(\\d{3})$", "a", "I", "7", "8", "12345 67890", "12345 67891",
    "H̷o̷w̷ do I̷ leave?", "\u202ehow do I stay?", "x² + y² = z²", "x³ + y³ = z³",
)  # fmt: skip

# Known to be taken for one another by the verifier: only signs that it does not read tell them apart.
SIGNS_ALONE = (
    (CODE, CODE.replace("p > 0", "p < 0")),
    ("def add(a, b):\n    return a + b", "def add(a, b):\n    return a - b"),
    ("Is 5 > 3 true?", "Is 5 < 3 true?"),
    ("What does == do in JavaScript?", "What does === do in JavaScript?"),
)

SURROGATES = (rb"\ud800", rb"How do I \udfff leave?", rb"\ud83d", rb"\udc4d\ud83d", b"\xed\xa0\x80", b"\xff")


@pytest.fixture(scope="module")
def strange(tmp_path_factory: pytest.TempPathFactory, provider: Mock) -> Iterator[Gateway]:
    directory = tmp_path_factory.mktemp("strange")
    with running_gateway(directory, settings(directory, provider.url, endpoints=ENDPOINTS)) as gateway:
        yield gateway


def ask(gateway: Gateway, endpoint: str, model: str, text: str, history: Sequence[Json] = ()) -> httpx.Response:
    answer = gateway.post(
        {"model": model, "messages": [*history, {"role": "user", "content": text}]}, endpoint=endpoint
    )
    assert answer.status_code == 200, answer.text
    return answer


def is_own(answer: httpx.Response, model: str, text: str) -> bool:
    """The first word of what the mock says is a hash of model and text."""
    return text_of(answer).split()[0] == mock_answer(model, text, 1)


def is_compared(gateway: Gateway, model: str, text: str) -> bool:
    """Whether something is stored that it is near to; an answer leaves before its vector is written."""
    looked = gateway.ask(text, model=model, headers={"Cache-Control": "only-if-cached"})
    return "x-keepgate-similarity" in looked.headers


def detail(answer: httpx.Response) -> str:
    found = re.search(r"detail=([\w-]+)", answer.headers["cache-status"])
    return "" if found is None else found[1]


@pytest.mark.parametrize("endpoint", ["default", "alone"])
@pytest.mark.parametrize("history", HISTORIES)
@pytest.mark.parametrize("name", NOTHING_TO_COMPARE)
def test_what_cannot_be_compared_is_answered_and_the_reason_told(
    strange: Gateway, model: str, name: str, history: str, endpoint: str
) -> None:
    text, reason = NOTHING_TO_COMPARE[name]

    answer = ask(strange, endpoint, model, text, HISTORIES[history])

    assert (answer.headers["x-keepgate-cache"], detail(answer)) == ("miss", reason)
    assert is_own(answer, model, text)


@pytest.mark.parametrize("endpoint", ["default", "alone"])
def test_no_strange_question_gets_the_answer_of_another(strange: Gateway, model: str, endpoint: str) -> None:
    texts = [*OTHER_QUESTIONS, *(text for text, _ in NOTHING_TO_COMPARE.values() if len(text) < 1_000)]
    wrong, told = [], set()

    for history in HISTORIES.values():
        for text in texts:
            answer = ask(strange, endpoint, model, text, history)
            told.add(detail(answer))
            if not is_own(answer, model, text):
                wrong.append((text, answer.headers["x-keepgate-cache"], answer.headers.get("x-keepgate-similarity")))
            if endpoint == "default":
                # Nobody asked it in this conversation before.
                assert answer.headers["x-keepgate-cache"] == "miss", (text, history)

    assert wrong == []
    # Those with letters were looked up: the verifier and the vetoes were asked.
    assert {"not-text", "verifier"} <= told


@pytest.mark.parametrize(("one", "other"), SIGNS_ALONE)
def test_a_sign_makes_another_question(strange: Gateway, model: str, one: str, other: str) -> None:
    ask(strange, "default", model, one)
    eventually(lambda: is_compared(strange, model, other))

    answer = ask(strange, "default", model, other)

    assert is_own(answer, model, other)


@pytest.mark.parametrize("text", OTHER_QUESTIONS[:20:3])
def test_the_same_strange_question_is_an_exact_hit(strange: Gateway, model: str, text: str) -> None:
    first = ask(strange, "default", model, text)

    again = strange.await_cached(text, model=model)

    assert again.headers["x-keepgate-cache"] == "exact"
    assert text_of(again) == text_of(first)


@pytest.mark.parametrize("place", ["question", "history"])
@pytest.mark.parametrize("half", SURROGATES)
def test_half_a_character_is_refused_and_hurts_nobody(strange: Gateway, model: str, half: bytes, place: str) -> None:
    said, before = (half, b"Hello") if place == "question" else (b"How do I leave?", half)
    turns = b'{"role":"user","content":"%b"},{"role":"assistant","content":"Yes?"},{"role":"user","content":"%b"}' % (
        before,
        said,
    )

    refused = strange.client.post(
        "/v1/chat/completions",
        content=b'{"model":"%b","messages":[%b]}' % (model.encode(), turns),
        headers={"content-type": "application/json"},
    )
    after = ask(strange, "default", model, "How do I leave?")

    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_request")
    assert "leave" not in refused.text
    assert is_own(after, model, "How do I leave?")
