"""When a part of the cache is asked, and when it is given a rest."""

import pytest

from models.errors import BackendError
from service.pipeline.health import READING, WRITING, Health, Resting
from service.telemetry.metrics import Metrics
from tests.support.clock import ManualClock

BROKEN = BackendError("broken")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(0.0)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def health(metrics: Metrics, clock: ManualClock) -> Health:
    return Health("exact", metrics, clock=clock)


def fail(health: Health, times: int) -> None:
    for _ in range(times):
        health.ask(READING)
        health.failed(READING, BROKEN)


def test_two_failures_cost_nobody_the_cache(health: Health) -> None:
    fail(health, 2)

    health.ask(READING)


def test_after_three_failures_in_a_row_nobody_pays_for_a_fourth(health: Health) -> None:
    fail(health, 3)

    for _ in range(100):
        with pytest.raises(Resting, match="exact failed and is given a rest"):
            health.ask(READING)


def test_after_a_second_one_asks_and_the_others_do_not_wait_with_it(health: Health, clock: ManualClock) -> None:
    fail(health, 3)
    clock.advance(1.0)

    health.ask(READING)

    with pytest.raises(Resting):
        health.ask(READING)


def test_who_asks_in_vain_begins_another_rest(health: Health, clock: ManualClock) -> None:
    fail(health, 3)
    clock.advance(1.0)
    fail(health, 1)

    clock.advance(0.9)
    with pytest.raises(Resting):
        health.ask(READING)
    clock.advance(0.1)
    health.ask(READING)


def test_one_success_ends_the_rest_for_all(health: Health, metrics: Metrics) -> None:
    fail(health, 3)
    health.works(READING)

    for _ in range(10):
        health.ask(READING)
    assert not health.failing(READING)
    assert metrics.degraded.state() == {("exact",): 0}


def test_a_success_between_failures_counts_them_anew(health: Health) -> None:
    for _ in range(5):
        fail(health, 2)
        health.works(READING)

    health.ask(READING)


def test_what_was_not_asked_is_no_failure(health: Health, clock: ManualClock) -> None:
    fail(health, 3)
    clock.advance(0.9)
    health.failed(READING, Resting("not asked"))
    clock.advance(0.1)

    health.ask(READING)


def test_reading_rests_while_writing_goes_on_and_the_gauge_tells_of_both(health: Health, metrics: Metrics) -> None:
    fail(health, 3)
    health.ask(WRITING)
    health.failed(WRITING, BROKEN)
    health.works(READING)
    during = dict(metrics.degraded.state())
    health.works(WRITING)

    assert during == {("exact",): 1}
    assert metrics.degraded.state() == {("exact",): 0}


def test_operators_hear_of_it_once(health: Health, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "keepgate.cache")

    fail(health, 3)
    health.works(READING)
    health.works(READING)

    assert caplog.messages == [
        "the cache is degraded (exact, reading): broken",
        "the cache is well again (exact, reading)",
    ]


def test_time_that_ran_out_is_said_in_words(health: Health, caplog: pytest.LogCaptureFixture) -> None:
    health.failed(READING, TimeoutError())

    assert caplog.messages == ["the cache is degraded (exact, reading): no answer in time"]


def test_a_part_that_nobody_asked_is_told_as_well(metrics: Metrics, health: Health) -> None:
    assert not health.failing(READING)
    assert metrics.degraded.state() == {("exact",): 0}
