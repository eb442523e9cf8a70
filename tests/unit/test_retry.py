"""What a request does next: the plan, without anything that is done."""

import math
from email.utils import formatdate

import pytest

from models.errors import UpstreamError
from service.routing.aliases import Target
from service.routing.balance import Standing
from service.routing.retry import Ask, GiveUp, Option, Wait, backoff, next_step, outcome_of, wait_asked

NOW = 100.0


def option(
    name: str = "a", *, keys: int = 1, limit: int | None = None, busy: int = 0, queue: int = 100, failures: int = 1
) -> Option:
    standing = Standing(name, keys=keys, limit=limit, queue=queue, patience=10.0, failures=failures, rest=10.0)
    standing.in_flight = busy
    return Option(Target(name, "m"), standing)


def resting(seconds: float, name: str = "a") -> Option:
    rests = option(name)
    rests.standing.breakers[0].limited(NOW, seconds)
    return rests


def broken(name: str = "a") -> Option:
    opened = option(name)
    opened.standing.breakers[0].failed(NOW, probe=False)
    return opened


def tried(name: str = "a", *, times: int = 1, again_in: float = 0.0) -> Option:
    was = option(name)
    was.asked, was.again_at = times, NOW + again_in
    return was


def test_the_first_target_that_can_be_asked_is() -> None:
    wanted = option("c")

    step = next_step([broken("a"), resting(1.0, "b"), wanted, option("d")], now=NOW, calls=3)

    assert step == Ask(wanted, 0)


def test_a_full_upstream_yields_to_another() -> None:
    wanted = option("b")

    assert next_step([option(limit=2, busy=2), wanted], now=NOW, calls=3) == Ask(wanted, 0)


def test_every_target_is_asked_once_before_one_is_asked_again() -> None:
    last = option("c")

    assert next_step([tried("a"), tried("b"), last], now=NOW, calls=3) == Ask(last, 0)


def test_one_that_was_asked_less_often_comes_first() -> None:
    less = tried("b", times=1)

    assert next_step([tried("a", times=2), less], now=NOW, calls=3) == Ask(less, 0)


def test_the_shortest_backoff_is_waited_for() -> None:
    step = next_step([tried("a", again_in=0.5), tried("b", again_in=0.2)], now=NOW, calls=3)

    assert isinstance(step, Wait)
    assert step.seconds == pytest.approx(0.2)
    assert not step.queues


def test_a_short_rest_is_waited_for() -> None:
    rests = resting(2.0)

    assert next_step([rests], now=NOW, calls=3) == Wait(2.0, (), rests.standing)


def test_the_end_of_another_credentials_rest_is_not_waited_for() -> None:
    rests = option(keys=2)
    rests.standing.breakers[0].limited(NOW, 2.0)

    assert next_step([rests], now=NOW, calls=3) == Ask(rests, 1)


def test_nobody_waits_for_longer_than_five_seconds() -> None:
    assert isinstance(next_step([resting(5.0)], now=NOW, calls=3), Wait)
    assert next_step([resting(5.5)], now=NOW, calls=3) == GiveUp(full=False, seconds=5.5)
    assert isinstance(next_step([tried(again_in=5.5)], now=NOW, calls=3), GiveUp)


def test_nobody_waits_for_what_comes_after_the_deadline() -> None:
    assert next_step([resting(2.0)], now=NOW, calls=3, deadline=NOW + 1.9) == GiveUp(full=False, seconds=2.0)


def test_an_open_breaker_is_asked_only_in_need_and_by_one_at_a_time() -> None:
    opened, other = broken(), resting(2.0, "b")

    assert next_step([opened, other], now=NOW, calls=3) == Wait(2.0, (), other.standing)
    assert next_step([opened], now=NOW, calls=3) == Ask(opened, 0)

    opened.standing.begin(0)
    assert next_step([opened], now=NOW, calls=3) == GiveUp(full=False, seconds=10.0)


def test_in_need_nobody_is_asked_twice() -> None:
    opened = broken()
    opened.asked = 1

    assert next_step([opened], now=NOW, calls=2) == GiveUp(full=False, seconds=10.0)


def test_a_refused_credential_is_asked_last_of_all_and_once() -> None:
    refused, full = option("a", failures=2), option("b", limit=1, busy=1)
    refused.standing.breakers[0].refused(NOW, probe=False)

    assert isinstance(next_step([refused, full], now=NOW, calls=3), Wait)
    assert isinstance(next_step([refused, resting(2.0)], now=NOW, calls=3), Wait)
    assert next_step([refused, broken()], now=NOW, calls=3) == Ask(refused, 0)
    assert next_step([refused], now=NOW + 59.0, calls=3) == Ask(refused, 0)

    refused.asked = 1
    assert isinstance(next_step([refused], now=NOW, calls=2), GiveUp)


def test_with_all_calls_made_it_is_over() -> None:
    assert isinstance(next_step([option()], now=NOW, calls=0), GiveUp)


def test_with_every_place_taken_the_request_waits_in_every_queue() -> None:
    one, other = option("a", limit=1, busy=1), option("b", limit=1, busy=1)

    assert next_step([one, other], now=NOW, calls=3) == Wait(10.0, [one.standing, other.standing])


def test_a_full_queue_sheds() -> None:
    assert next_step([option(limit=1, busy=1, queue=0)], now=NOW, calls=3) == GiveUp(full=True, seconds=10.0)


def test_who_waited_long_enough_is_shed() -> None:
    assert next_step([option(limit=1, busy=1)], now=NOW, calls=3, patience=NOW) == GiveUp(full=True, seconds=10.0)


def test_a_rest_that_ends_sooner_cuts_the_wait_for_a_place() -> None:
    full = option("a", limit=1, busy=1)

    step = next_step([full, resting(3.0, "b")], now=NOW, calls=3)

    assert step == Wait(3.0, [full.standing])


def test_who_was_given_a_place_may_use_it() -> None:
    full = option(limit=1, busy=1)

    assert next_step([full], now=NOW, calls=3, held=full.standing) == Ask(full, 0)


def test_newcomers_do_not_crowd_round_a_resting_credential() -> None:
    rests = resting(1.0)
    rests.standing.resting = 100

    assert next_step([rests], now=NOW, calls=3) == GiveUp(full=False, seconds=1.0)

    rests.asked = 1  # it has been asked already, and is not a newcomer
    assert isinstance(next_step([rests], now=NOW, calls=2), Wait)


def test_without_a_target_that_understands_there_is_nothing_to_do() -> None:
    assert next_step([], now=NOW, calls=3) == GiveUp(full=False, seconds=0.0)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (UpstreamError("", code="upstream_unavailable"), "failed"),
        (UpstreamError("", code="upstream_timeout"), "failed"),
        (UpstreamError("broke off"), "failed"),
        (UpstreamError("", answered=200), "failed"),  # and could not be read
        (UpstreamError("", answered=302), "failed"),
        (UpstreamError("", answered=500), "failed"),
        (UpstreamError("", answered=529), "failed"),
        (UpstreamError("", status=429), "limited"),
        (UpstreamError("", answered=401), "refused"),
        (UpstreamError("", answered=403), "refused"),
        (UpstreamError("", status=408), "again"),
        (UpstreamError("", status=409), "again"),
        (UpstreamError("", status=400), "final"),
        (UpstreamError("", status=404), "final"),
        (UpstreamError("", status=422), "final"),
    ],
)
def test_a_failure_says_something_of_the_credential_the_upstream_or_the_request(
    error: UpstreamError, outcome: str
) -> None:
    assert outcome_of(error, own=True) == outcome


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (UpstreamError("", status=429), "again"),
        (UpstreamError("", status=401), "final"),
        (UpstreamError("", status=403), "final"),
        (UpstreamError("", answered=500), "failed"),
    ],
)
def test_what_a_callers_own_credential_got_says_nothing_of_the_upstream(error: UpstreamError, outcome: str) -> None:
    assert outcome_of(error, own=False) == outcome


def test_backoff_doubles_up_to_five_seconds_with_full_jitter() -> None:
    assert [backoff(asked, lambda: 1.0) for asked in (1, 2, 3, 5, 6, 100)] == [0.25, 0.5, 1.0, 4.0, 5.0, 5.0]
    assert backoff(3, lambda: 0.0) == 0.0
    assert backoff(3, lambda: 0.25) == 0.25


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        (" 7 ", 7.0),
        ("0.25", 0.25),
        ("0", 0.0),
        (formatdate(1000.0 + 30, usegmt=True), 30.0),
        (formatdate(1000.0 - 30, usegmt=True), 0.0),
        (None, None),
        ("", None),
        ("soon", None),
        ("-3", None),
        ("nan", None),
        ("inf", None),
        ("1e9", None),
        ("٣", None),
        ("9" * 400, None),
        ("Wed, 99 Foo 2099 99:99:99 GMT", None),
        ("Fri, 31 Dec 9999999 23:59:59 GMT", None),
    ],
)
def test_retry_after_is_seconds_or_a_date_and_anything_else_nothing(header: str | None, seconds: float | None) -> None:
    assert wait_asked(header, wall=lambda: 1000.0) == seconds


def test_no_header_makes_a_wait_that_is_no_number() -> None:
    for header in ("9" * 40, "0." + "9" * 38, "1.", "."):
        wait = wait_asked(header, wall=lambda: 0.0)
        assert wait is None or (math.isfinite(wait) and wait >= 0)
