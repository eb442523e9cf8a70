import io
import logging
import re
from collections.abc import Iterator

import pytest

from models.errors import BackendError
from service.telemetry.logs import LineFormatter, configure, redacted

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ [A-Z]+ [a-z.]+ .*")


def test_an_event_is_one_line_with_its_time_level_and_area() -> None:
    record = logging.LogRecord("keepgate.cache", logging.WARNING, "", 0, "%s missed its deadline", ("it",), None)
    record.created = 1_795_156_800.9

    line = LineFormatter().format(record)

    assert line == "2026-11-20T06:40:00Z WARNING keepgate.cache it missed its deadline"


def test_nobody_can_forge_a_line_or_colour_a_terminal(stream: io.StringIO) -> None:
    configure("info", stream=stream)

    logging.getLogger("keepgate.api").info("model %s", "x\r\n2026-11-20T06:40:00Z ERROR keepgate.api forged \x1b[31m")

    (line,) = stream.getvalue().splitlines()
    assert line.endswith(r"model x\r\n2026-11-20T06:40:00Z ERROR keepgate.api forged \x1b[31m")


def test_an_exception_is_on_the_line_with_its_places_and_causes(stream: io.StringIO) -> None:
    configure("info", stream=stream)

    try:
        fail_for_a_reason()
    except RuntimeError:
        logging.getLogger("keepgate.cache").exception("no entry was written")

    (line,) = stream.getvalue().splitlines()
    assert re.search(
        r"no entry was written: RuntimeError "
        r"\[unit/test_logs.py:\d+ test_an_exception\w+ > unit/test_logs.py:\d+ fail_for_a_reason\], "
        r"caused by KeyError \[unit/test_logs.py:\d+ fail_for_a_reason\]$",
        line,
    )


def test_stores_are_heard_and_libraries_only_when_they_warn(stream: io.StringIO) -> None:
    configure("info", stream=stream)

    logging.getLogger("backends.vector.redis").info("vectors are in vector sets")
    logging.getLogger("somebody.else").info("connected")

    assert [line.partition(" INFO ")[2] for line in stream.getvalue().splitlines()] == [
        "backends.vector.redis vectors are in vector sets"
    ]


def test_the_members_of_an_exception_group_are_told(stream: io.StringIO) -> None:
    configure("info", stream=stream)
    group = ExceptionGroup("two tiers failed", [KeyError("exact"), ValueError("semantic")])

    logging.getLogger("keepgate.cache").error("reload", exc_info=group)

    assert "caused by KeyError [], caused by ValueError []" in stream.getvalue()


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("key kg-4f9aQx_7Zt-01 is unknown", "key kg-[redacted] is unknown"),
        ("Incorrect API key provided: sk-proj-abc123DEF456.", "Incorrect API key provided: sk-[redacted]."),
        ("sent Bearer eyJhbGciOiJIUzI1NiJ9.e30.x-y", "sent Bearer [redacted]"),
        ("b'authorization', b'Bearer abcdefgh'", "b'authorization', b'Bearer [redacted]'"),
        ("{'X-Api-Key': 'abcd1234efgh'}", "{'X-Api-Key': '[redacted]'}"),
        ("api-key: AIzaSyA-1234567890", "api-key: [redacted]"),
        ("Authorization: Basic dXNlcjpwYXNz", "Authorization: Basic [redacted]"),
        ("a bearer token is needed", "a bearer token is needed"),
        ("package kg-m and task-12345678 stay", "package kg-m and task-12345678 stay"),
    ],
)
def test_what_looks_like_a_credential_is_redacted(text: str, clean: str) -> None:
    assert redacted(text) == clean


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (BackendError("the map is full"), ": BackendError: the map is full ["),
        (OSError(28, "No space left on device"), ": OSError: No space left on device ["),
        (KeyError("a customer's words"), ": KeyError ["),
        (UnicodeEncodeError("utf-8", "a customer's words", 0, 1, "no"), ": UnicodeEncodeError ["),
    ],
)
def test_the_message_of_an_exception_is_told_where_it_is_ours(stream: io.StringIO, error: Exception, told: str) -> None:
    configure("info", stream=stream)

    logging.getLogger("keepgate.api").error("failed", exc_info=error)

    assert told in stream.getvalue()
    assert "customer" not in stream.getvalue()


def test_credentials_are_redacted_in_arguments_and_exceptions(stream: io.StringIO) -> None:
    configure("info", stream=stream)

    logging.getLogger("keepgate.api").error(
        "refused %s", "kg-0123456789abcdef", exc_info=BackendError("illegal header b'Bearer kg-0123456789abcdef'")
    )

    assert "0123456789" not in stream.getvalue()
    assert "refused kg-[redacted]: BackendError: illegal header b'Bearer" in stream.getvalue()


def test_libraries_are_heard_from_warning_upwards_and_the_gateway_from_its_level(stream: io.StringIO) -> None:
    configure("debug", stream=stream)

    logging.getLogger("keepgate.cache").debug("ours")
    logging.getLogger("somelibrary").info("theirs")
    logging.getLogger("somelibrary").warning("theirs matters")

    messages = [line.split(" ", 3)[3] for line in stream.getvalue().splitlines()]
    assert messages == ["ours", "theirs matters"]


def test_a_higher_level_holds_for_libraries_too(stream: io.StringIO) -> None:
    configure("error", stream=stream)

    logging.getLogger("somelibrary").warning("theirs")
    logging.getLogger("keepgate.cache").warning("ours")

    assert stream.getvalue() == ""


def test_uvicorn_writes_the_same_lines_and_no_access_log(stream: io.StringIO) -> None:
    logging.getLogger("uvicorn").addHandler(logging.StreamHandler(stream))
    configure("info", stream=stream)

    logging.getLogger("uvicorn.error").info("Application startup complete.")
    logging.getLogger("uvicorn.access").info('127.0.0.1 - "POST /v1/chat/completions HTTP/1.1" 200')

    (line,) = stream.getvalue().splitlines()
    assert LINE.fullmatch(line)
    assert line.endswith("INFO uvicorn.error Application startup complete.")


def test_configuring_again_replaces_the_level_and_writes_each_line_once(stream: io.StringIO) -> None:
    configure("debug", stream=stream)
    configure("WARNING", stream=stream)

    logging.getLogger("keepgate.cache").info("quiet")
    logging.getLogger("keepgate.cache").warning("once")

    assert len(stream.getvalue().splitlines()) == 1


def test_an_unknown_level_is_refused_with_those_that_exist() -> None:
    with pytest.raises(ValueError, match="no log level 'loud'; levels: debug, info, warning, error, critical"):
        configure("loud")


def fail_for_a_reason() -> None:
    try:
        raise KeyError("inner")
    except KeyError as error:
        raise RuntimeError("outer") from error


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Where a test sends the log; what configure changed is put back."""
    loggers = [logging.getLogger(name) for name in ("", "keepgate", "uvicorn", "uvicorn.error", "uvicorn.asgi")]
    access = logging.getLogger("uvicorn.access")
    before = [(logger, logger.level, logger.handlers[:], logger.propagate) for logger in [*loggers, access]]
    yield io.StringIO()
    access.disabled = False
    for logger, level, handlers, propagate in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers
        logger.propagate = propagate
