"""In which order targets are asked, and who gets a place when all are taken."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.request import Request
from service.routing.aliases import Route, Strategy, Target, route
from service.routing.balance import Standing, conversation_of, in_order, keys_in_order

PLACES = {name: name for name in "abcdef"}


def standings(**limits: int) -> dict[str, Standing]:
    return {name: Standing(name, limit=limits.get(name)) for name in PLACES}


def way(*targets: Target, strategy: Strategy = "weighted") -> Route:
    return route(targets, [Target("f", "fallback")], places=PLACES, strategy=strategy)


def first(
    route: Route,
    stand: dict[str, Standing],
    *,
    draw: Callable[[], float] = lambda: 0.5,
    conversation: bytes | None = None,
) -> str:
    return in_order(route, stand, streamed=False, draw=draw, conversation=conversation)[0].upstream


@pytest.mark.parametrize(("drawn", "asked"), [(0.0, "ab"), (0.24, "ab"), (0.26, "ba"), (0.999, "ba")])
def test_targets_are_drawn_by_weight_and_fallbacks_follow(drawn: float, asked: str) -> None:
    two = way(Target("a", "m", 1.0), Target("b", "m", 3.0))

    order = in_order(two, standings(), streamed=False, draw=lambda: drawn)

    assert [target.upstream for target in order] == [*asked, "f"]


def test_every_target_has_its_share_of_the_first_places() -> None:
    three = way(Target("a", "m", 1.0), Target("b", "m", 2.0), Target("c", "m", 7.0))
    draw = random.Random(1).random  # noqa: S311  # the same in every run

    counted = Counter(first(three, standings(), draw=draw) for _ in range(10_000))

    assert {name: round(count / 1000) for name, count in counted.items()} == {"a": 1, "b": 2, "c": 7}


def test_the_least_busy_for_its_weight_is_asked_first() -> None:
    stand = standings()
    stand["a"].in_flight, stand["b"].in_flight = 3, 4

    assert first(way(Target("a", "m", 1.0), Target("b", "m", 2.0), strategy="least-busy"), stand) == "b"
    assert first(way(Target("a", "m", 1.0), Target("b", "m", 1.0), strategy="least-busy"), stand) == "a"


def test_equally_busy_targets_share() -> None:
    draw = random.Random(2).random  # noqa: S311  # the same in every run
    two = way(Target("a", "m"), Target("b", "m"), strategy="least-busy")

    counted = Counter(first(two, standings(), draw=draw) for _ in range(1000))

    assert 400 < counted["a"] < 600


def test_the_fastest_of_late_is_asked_first_and_the_unmeasured_before_it() -> None:
    stand = standings()
    two = way(Target("a", "m"), Target("b", "m"), strategy="least-latency")
    stand["a"].took("m", 0.1, streamed=False)

    assert first(two, stand) == "b"

    stand["b"].took("m", 0.2, streamed=False)
    assert first(two, stand) == "a"

    for _ in range(20):
        stand["a"].took("m", 0.5, streamed=False)
    assert first(two, stand) == "b"


def test_one_in_twenty_requests_looks_at_the_others() -> None:
    stand = standings()
    draw = random.Random(3).random  # noqa: S311  # the same in every run
    two = way(Target("a", "m"), Target("b", "m"), strategy="least-latency")
    stand["a"].took("m", 0.1, streamed=False)
    stand["b"].took("m", 0.2, streamed=False)

    counted = Counter(first(two, stand, draw=draw) for _ in range(10_000))

    assert 150 < counted["b"] < 350


def test_no_client_makes_the_measured_times_grow_without_end() -> None:
    standing = Standing("a")

    for at in range(5000):
        standing.took(f"model-{at}", 0.1, streamed=False)

    assert standing.latency("model-4999", streamed=False) == 0.1
    assert standing.latency("model-0", streamed=False) == 0.0


# --- conversations


def conversations(count: int) -> list[bytes]:
    return [at.to_bytes(16) for at in range(count)]


def test_a_conversation_keeps_its_target_and_they_share_by_weight() -> None:
    two = way(Target("a", "m", 1.0), Target("b", "m", 3.0))

    firsts = [first(two, standings(), conversation=one) for one in conversations(4000)]
    again = [first(two, standings(), conversation=one, draw=lambda: 0.9) for one in conversations(4000)]

    assert firsts == again
    assert 900 < Counter(firsts)["a"] < 1100


def test_a_target_more_takes_its_share_and_moves_nobody_else() -> None:
    two = way(Target("a", "m"), Target("b", "m"))
    three = way(Target("a", "m"), Target("b", "m"), Target("c", "m"))

    moves = Counter(
        (first(two, standings(), conversation=one), first(three, standings(), conversation=one))
        for one in conversations(3000)
    )

    assert moves["a", "b"] == moves["b", "a"] == 0
    assert 800 < moves["a", "c"] + moves["b", "c"] < 1200


def test_a_conversation_keeps_its_credential_and_they_share_them_evenly() -> None:
    counted = Counter(keys_in_order(one, "a", 4)[0] for one in conversations(4000))

    assert keys_in_order(b"x" * 16, "a", 4) == keys_in_order(b"x" * 16, "a", 4)
    assert all(900 < counted[key] < 1100 for key in range(4))


def chat(*messages: object, operation: str = "chat") -> Request:
    return Request(operation, "m", {"messages": list(messages)}, b"")  # type: ignore[arg-type]  # a word of ours


SYSTEM = {"role": "system", "content": "be brief"}
HELLO = {"role": "user", "content": "hello"}
HI = {"role": "assistant", "content": "hi"}


def test_later_turns_belong_to_the_conversation_of_the_first() -> None:
    begun = conversation_of(chat(SYSTEM, HELLO), "me")

    assert begun is not None
    assert conversation_of(chat(SYSTEM, HELLO, HI, {"role": "user", "content": "more"}), "me") == begun
    assert conversation_of(chat(SYSTEM, HELLO), "you") != begun
    assert conversation_of(chat(HELLO), "me") != begun
    assert conversation_of(chat(SYSTEM, {"role": "user", "content": "bye"}), "me") != begun


@pytest.mark.parametrize("messages", ["text", None, {"role": "user"}])
def test_what_is_no_list_of_turns_is_no_conversation(messages: object) -> None:
    assert conversation_of(Request("chat", "m", {"messages": messages}, b""), "me") is None


def test_turns_of_any_shape_have_a_beginning() -> None:
    assert conversation_of(chat("text", 3, None, {"role": ["user"]}), "me") is not None
    assert conversation_of(chat(), "me") is not None


def test_embeddings_are_no_conversation() -> None:
    assert conversation_of(Request("embedding", "m", {"input": "x"}, b""), "me") is None


# --- credentials


def test_credentials_take_turns() -> None:
    standing = Standing("a", keys=3)
    asked = []

    for _ in range(6):
        key = standing.ready_key(0.0)
        assert key is not None
        standing.begin(key)
        asked.append(key)

    assert asked == [0, 1, 2, 0, 1, 2]


def test_a_resting_credential_is_passed_over_and_a_preferred_one_comes_first() -> None:
    standing = Standing("a", keys=3)
    standing.breakers[1].limited(0.0, 5.0)

    assert standing.ready_key(0.0, [1, 2, 0]) == 2
    assert standing.ready_key(5.0, [1, 2, 0]) == 1


# --- places


async def test_a_place_goes_to_who_has_waited_for_longest() -> None:
    standing = Standing("a", limit=1)
    standing.take()
    waiters = [asyncio.get_running_loop().create_future() for _ in range(3)]
    for waiter in waiters:
        standing.join(waiter)
    waiters[0].cancel()

    standing.release()

    assert waiters[1].result() is standing
    assert not waiters[2].done()
    assert standing.in_flight == 1
    assert standing.waiting == 1


Step = st.tuples(st.sampled_from(["take", "release", "join", "cancel"]), st.integers(0, 7))


@given(st.lists(Step, max_size=80))
def test_places_are_never_lost_and_never_more_than_there_are(steps: list[tuple[str, int]]) -> None:
    async def run() -> None:
        standing = Standing("a", limit=3)
        held = 0
        waiters: list[asyncio.Future[Standing | None]] = []
        for what, which in steps:
            if what == "take" and standing.in_flight < standing.limit:
                standing.take()
                held += 1
            elif what == "release" and held:
                held -= 1
                standing.release()
            elif what == "join" and standing.in_flight >= standing.limit:
                waiters.append(asyncio.get_running_loop().create_future())
                standing.join(waiters[-1])
            elif what == "cancel" and which < len(waiters) and not waiters[which].done():
                waiters[which].cancel()
            given = [waiter for waiter in waiters if waiter.done() and not waiter.cancelled()]
            held += len(given)
            waiters = [waiter for waiter in waiters if not waiter.done()]
            assert standing.in_flight == held <= 3
        while held:
            held -= 1
            standing.release()
            if any(waiter.done() for waiter in waiters):
                waiters = [waiter for waiter in waiters if not waiter.done()]
                held += 1
        assert standing.in_flight == 0
        assert not any(not waiter.done() for waiter in waiters)

    asyncio.run(run())
