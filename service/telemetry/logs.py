"""The application's log on stderr, one line an event.

    2026-11-20T06:40:00Z WARNING keepgate.cache the embedder missed its deadline

Loggers are named `keepgate.<area>`, those of backends after their modules.
uvicorn's are brought in; its access log is off, since the request log says
more.
"""

import logging
import re
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

LEVELS = ("debug", "info", "warning", "error", "critical")

_CREDENTIAL = re.compile(
    r"""
      (?P<key> (?<![A-Za-z0-9]) (?:kg|sk) - ) [A-Za-z0-9_-]{8,}
    | (?P<header> \b (?:authorization|x-api-key|x-goog-api-key|api-key) ["']* \s* [:=,] \s* (?:b?["'])?
                  (?: (?:bearer|basic) \s+ )? ) [^\s"',;]{8,}
    | (?P<bearer> \b bearer \s+ ) [^\s"',;]{12,}
    """,
    re.VERBOSE | re.IGNORECASE,
)
_OURS = frozenset({"models", "service", "backends", "guardrails"})
# What would end the line, or move the cursor of who reads it.
_CONTROL = {code: repr(chr(code))[1:-1] for code in (*range(32), *range(127, 160), 0x2028, 0x2029)}


def configure(level: str, *, stream: TextIO | None = None) -> None:
    """Sends the log of this process to `stream` (stderr), from `level` upwards.

    `level` is one of LEVELS in any case; ValueError if it is not. Libraries
    are heard from `warning` upwards. Calling it again replaces what it set.
    """
    if level.lower() not in LEVELS:
        raise ValueError(f"no log level {level!r}; levels: {', '.join(LEVELS)}")
    from_level = logging.getLevelNamesMapping()[level.upper()]
    lines = logging.StreamHandler(stream or sys.stderr)
    lines.setFormatter(LineFormatter())
    root = logging.getLogger()
    for earlier in [handler for handler in root.handlers if isinstance(handler.formatter, LineFormatter)]:
        root.removeHandler(earlier)
    root.addHandler(lines)
    root.setLevel(max(from_level, logging.WARNING))
    for ours in ("keepgate", "backends"):
        logging.getLogger(ours).setLevel(from_level)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.asgi"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(from_level)
    access = logging.getLogger("uvicorn.access")
    access.handlers.clear()
    access.propagate = False
    access.disabled = True


class LineFormatter(logging.Formatter):
    """Whatever is logged becomes one line, with its exceptions, and without what looks like a credential.

    Of exceptions it tells the types and the places; the message only where it
    is ours or the system's, since a library's may quote a request.
    """

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        line = f"{moment} {record.levelname} {record.name} {record.getMessage()}"
        if record.exc_info and record.exc_info[1]:
            line = f"{line}: {', caused by '.join(_causes(record.exc_info[1]))}"
        return redacted(line.translate(_CONTROL))


def redacted(text: str) -> str:
    """`text` without virtual keys, providers' keys, bearer tokens and values of credential headers."""
    return _CREDENTIAL.sub(lambda found: f"{found['key'] or found['header'] or found['bearer']}[redacted]", text)


def _told(error: BaseException) -> str:
    """The message, if it is one of ours or the system's: others quote what they choked on, prompts included."""
    ours = type(error).__module__.partition(".")[0] in _OURS
    if isinstance(error, OSError):
        return f": {error.strerror}" if error.strerror else ""
    return f": {error}" if ours and str(error) else ""


def _causes(error: BaseException | None) -> Iterator[str]:
    while error is not None:
        places = " > ".join(
            f"{'/'.join(Path(frame.f_code.co_filename).parts[-2:])}:{line} {frame.f_code.co_name}"
            for frame, line in traceback.walk_tb(error.__traceback__)
        )
        yield f"{type(error).__name__}{_told(error)} [{places}]"
        if isinstance(error, BaseExceptionGroup):
            for member in error.exceptions:
                yield from _causes(member)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
