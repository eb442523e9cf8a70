"""When a credential of an upstream may be asked, and when it is left alone."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.routing.breaker import Breaker


def opened(at: float = 0.0) -> Breaker:
    breaker = Breaker(failures=3, rest=10.0)
    for _ in range(3):
        breaker.failed(at, probe=breaker.begin())
    return breaker


def test_it_opens_after_so_many_failures_in_a_row() -> None:
    breaker = Breaker(failures=3)

    for _ in range(2):
        breaker.failed(0.0, probe=breaker.begin())
    assert breaker.ready(0.0)

    breaker.failed(0.0, probe=breaker.begin())
    assert breaker.open
    assert not breaker.ready(0.0)


def test_a_success_in_between_counts_from_the_start_again() -> None:
    breaker = Breaker(failures=3)

    for _ in range(5):
        breaker.failed(0.0, probe=False)
        breaker.failed(0.0, probe=False)
        breaker.succeeded()

    assert not breaker.open


def test_after_its_rest_one_probe_at_a_time_goes_through() -> None:
    breaker = opened()

    assert not breaker.ready(9.9)
    assert breaker.ready(10.0)
    assert breaker.begin()
    assert not breaker.ready(10.0)


def test_a_probe_that_is_answered_closes_it() -> None:
    breaker = opened()

    breaker.answered(probe=breaker.ready(10.0) and breaker.begin())

    assert not breaker.open
    assert breaker.ready(10.0)


def test_each_probe_that_fails_doubles_the_rest_up_to_two_minutes() -> None:
    breaker = opened()
    rests = []

    now = 10.0
    for _ in range(6):
        breaker.failed(now, probe=breaker.begin())
        rests.append(breaker.ready_at - now)
        now = breaker.ready_at

    assert rests == [20.0, 40.0, 80.0, 120.0, 120.0, 120.0]


def test_the_rest_is_short_again_once_it_was_closed() -> None:
    breaker = opened()
    breaker.failed(10.0, probe=breaker.begin())
    breaker.answered(probe=breaker.begin())
    breaker.succeeded()

    for _ in range(3):
        breaker.failed(100.0, probe=breaker.begin())

    assert breaker.ready_at == 110.0


def test_a_probe_that_broke_after_its_first_word_makes_the_rest_longer() -> None:
    breaker = opened()
    breaker.answered(probe=breaker.begin())

    breaker.failed(11.0, probe=False)

    assert breaker.open
    assert breaker.ready_at == 31.0


def test_a_probe_whose_client_left_makes_room_for_the_next() -> None:
    breaker = opened()

    breaker.left(probe=breaker.begin())

    assert breaker.open
    assert breaker.ready(10.0)


def test_calls_from_before_it_opened_say_nothing() -> None:
    breaker = opened()

    breaker.failed(5.0, probe=False)
    breaker.answered(probe=False)
    breaker.succeeded()

    assert breaker.open
    assert breaker.ready_at == 10.0


def test_a_limit_rests_as_long_as_the_upstream_says() -> None:
    breaker = Breaker()

    breaker.limited(0.0, 7.0)

    assert not breaker.open
    assert not breaker.ready(6.9)
    assert breaker.ready(7.0)


def test_a_limit_without_a_word_rests_a_second_and_then_longer() -> None:
    breaker = Breaker()
    rests = []

    now = 0.0
    for _ in range(8):
        breaker.limited(now, None)
        rests.append(breaker.ready_at - now)
        now = breaker.ready_at

    assert rests == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]


def test_many_limits_at_once_count_as_one() -> None:
    breaker = Breaker()

    for _ in range(20):
        breaker.limited(0.0, None)

    assert breaker.ready_at <= 2.0


def test_no_upstream_can_put_a_credential_away_for_days() -> None:
    breaker = Breaker()

    breaker.limited(0.0, 1e9)

    assert breaker.ready(600.0)


def test_a_refused_credential_rests_for_a_minute_and_counts_as_a_failure() -> None:
    breaker = Breaker(failures=2, rest=10.0)

    breaker.refused(0.0, probe=False)
    assert not breaker.ready(59.9)
    assert breaker.ready(0.0, in_need=True)
    assert breaker.ready(60.0)

    breaker.refused(60.0, probe=False)
    assert breaker.open


@pytest.mark.parametrize("now", [1.0, 60.0])
def test_a_refused_credential_is_tried_by_one_call_at_a_time(now: float) -> None:
    breaker = Breaker()
    breaker.refused(0.0, probe=False)

    assert breaker.begin()
    assert not breaker.ready(now, in_need=True)
    assert breaker.rested_at(now) == math.inf

    breaker.refused(now, probe=True)
    assert breaker.ready(now, in_need=True)
    assert breaker.begin()
    breaker.answered(probe=True)
    assert breaker.ready(now)
    assert not breaker.begin()


def test_in_need_one_probe_at_a_time_need_not_wait() -> None:
    breaker = opened()

    assert breaker.ready(1.0, in_need=True)
    assert breaker.begin()
    assert not breaker.ready(1.0, in_need=True)

    breaker.answered(probe=True)
    assert breaker.ready(1.0)


def test_a_probe_in_need_that_fails_makes_no_rest_longer() -> None:
    breaker = opened()

    for _ in range(5):
        breaker.failed(1.0, probe=breaker.begin())

    assert breaker.open
    assert breaker.ready_at == 10.0


def test_who_was_told_to_wait_waits_in_need_too() -> None:
    breaker = Breaker()

    breaker.limited(0.0, 7.0)

    assert not breaker.ready(6.9, in_need=True)


def test_a_refused_credential_that_is_good_again_is_like_any_other() -> None:
    breaker = Breaker()
    breaker.refused(0.0, probe=False)

    breaker.succeeded()

    assert breaker.ready(0.0)


Event = st.sampled_from(["answered", "failed", "limited", "refused", "left"])


@given(st.lists(st.tuples(Event, st.floats(0, 30)), max_size=60))
def test_whatever_happens_it_can_be_asked_again_some_time(events: list[tuple[str, float]]) -> None:
    breaker = Breaker(failures=2, rest=5.0)
    now = 0.0
    for event, later in events:
        now += later
        if not breaker.ready(now):
            continue
        probe = breaker.begin()
        match event:
            case "answered":
                breaker.answered(probe=probe)
                breaker.succeeded()
            case "failed":
                breaker.failed(now, probe=probe)
            case "limited":
                breaker.answered(probe=probe)
                breaker.limited(now, None)
            case "refused":
                breaker.refused(now, probe=probe)
            case _:
                breaker.left(probe=probe)

    assert breaker.ready(now + 600.0)


@pytest.mark.parametrize("wait", [0.0, -5.0])
def test_a_limit_that_asks_for_no_wait_still_rests_a_moment(wait: float) -> None:
    breaker = Breaker()

    breaker.limited(0.0, wait)

    assert not breaker.ready(0.0)
    assert breaker.ready(0.1)
