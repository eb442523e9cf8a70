import asyncio
import builtins
import logging
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from guardrails.base import DetectorError
from guardrails.detectors.presidio import PresidioDetector
from models.errors import ConfigError
from models.finding import Segment

pytest.importorskip("presidio_analyzer")

TEXT = "My ssn is 536-90-4399, mail bob@example.com or go to www.example.com"


@pytest.fixture(scope="module")
def detector() -> PresidioDetector:
    return PresidioDetector()


class Analyzer:
    """Answers as told, when let go."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.failure = failure
        self.begun = threading.Event()
        self.go = threading.Event()
        self.asked: list[str] = []

    def analyze(self, text: str, **_: Any) -> Sequence[Any]:
        self.asked.append(text)
        self.begun.set()
        if self.failure is not None:
            raise self.failure
        assert self.go.wait(10)
        return []


async def test_findings_have_our_kinds_and_places(detector: PresidioDetector) -> None:
    findings = await detector.detect([Segment(3, TEXT)])

    assert {(one.segment, one.kind, TEXT[one.start : one.end]) for one in findings} == {
        (3, "us_ssn", "536-90-4399"),
        (3, "email", "bob@example.com"),
    }


async def test_a_word_beside_a_number_raises_its_confidence(detector: PresidioDetector) -> None:
    [said] = await detector.detect([Segment(0, "my ssn is 536-90-4399")])
    [alone] = await detector.detect([Segment(0, "here is 536-90-4399")])

    assert said.confidence > alone.confidence


async def test_finds_at_every_place_of_a_long_text_once(detector: PresidioDetector) -> None:
    text = "bob@example.com and then " * 1000

    findings = await detector.detect([Segment(0, text)])

    assert sorted(one.start for one in findings) == list(range(0, len(text), 25))
    assert {text[one.start : one.end] for one in findings} == {"bob@example.com"}


async def test_the_event_loop_goes_on_meanwhile(detector: PresidioDetector) -> None:
    looking = asyncio.create_task(asyncio.to_thread(lambda: None))
    detection = asyncio.create_task(detector.detect([Segment(0, TEXT * 100)]))

    await looking

    assert not detection.done()
    assert len(await detection) == 200


def test_only_what_is_asked_for_is_a_kind() -> None:
    detector = PresidioDetector(entities=["email", "US_SSN"])

    assert detector.kinds == {"email", "us_ssn"}
    assert detector.inline is False
    assert detector.reach is None


def test_names_need_a_model(detector: PresidioDetector) -> None:
    assert "person" not in detector.kinds
    with pytest.raises(ConfigError, match="without a model does not know PERSON"):
        PresidioDetector(entities=["person"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "no_such_model"}, "spaCy has no model 'no_such_model'"),
        ({"language": "zz"}, "spaCy does not know the language 'zz'"),
        ({"model": "owner/no-such-model"}, "transformers cannot load 'owner/no-such-model'"),
    ],
)
def test_a_model_that_is_not_there_is_an_error_of_the_configuration(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PresidioDetector(**arguments)


def test_without_presidio_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *rest: Any) -> Any:
        if name == "presidio_analyzer":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)

    with pytest.raises(ConfigError, match=r"pip install 'keepgate\[presidio\]'"):
        PresidioDetector()


async def test_too_many_waiting_is_a_failure_and_not_a_queue_without_end(detector: PresidioDetector) -> None:
    analyzer = Analyzer()
    real, detector._analyzer = detector._analyzer, analyzer  # type: ignore[assignment]  # a fake
    try:
        waiting = [asyncio.create_task(detector.detect([Segment(0, "x")])) for _ in range(64)]
        await asyncio.sleep(0)

        with pytest.raises(DetectorError, match="64 requests waiting"):
            await detector.detect([Segment(0, "x")])

        analyzer.go.set()
        assert await asyncio.gather(*waiting) == [[]] * 64
    finally:
        analyzer.go.set()
        detector._analyzer = real


async def test_a_request_that_was_given_up_is_not_looked_at_further(detector: PresidioDetector) -> None:
    analyzer = Analyzer()
    real, detector._analyzer = detector._analyzer, analyzer  # type: ignore[assignment]  # a fake
    try:
        detection = asyncio.create_task(detector.detect([Segment(0, "x" * 100_000)]))
        assert await asyncio.to_thread(analyzer.begun.wait, 10)
        detection.cancel()
        await asyncio.gather(detection, return_exceptions=True)
        analyzer.go.set()

        await detector.detect([Segment(0, "next")])

        assert len(analyzer.asked) == 2
    finally:
        analyzer.go.set()
        detector._analyzer = real


async def test_its_failure_does_not_tell_the_text(detector: PresidioDetector) -> None:
    analyzer = Analyzer(ValueError("Did not find word 'hunter2'"))
    real, detector._analyzer = detector._analyzer, analyzer  # type: ignore[assignment]  # a fake
    try:
        with pytest.raises(DetectorError) as failure:
            await detector.detect([Segment(0, "hunter2")])
    finally:
        detector._analyzer = real

    assert str(failure.value) == "presidio failed: ValueError"
    assert failure.value.__cause__ is None


async def test_no_text_is_logged(detector: PresidioDetector, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        await detector.detect([Segment(0, TEXT)])

    assert "ssn" not in caplog.text
