"""`keepgate tune --review`: a person says of one pair after another whether the stored answer serves."""

import contextlib
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

from service.caching.lookups import Lookup, Verdict
from service.tune import lookup_log
from service.tune.lookup_log import Log, Pair
from service.tune.undecided import Undecided
from service.tune.wording import count, paragraph, percent, plain, tell

_KEYS = "y same answer   n different   s skip   u undo   q quit"
_CTRL_C, _CTRL_D, _ESCAPE = "\x03", "\x04", "\x1b"

# The next key pressed, or "" when nobody is there any more.
Keys = Callable[[], str]


class Reviewed(NamedTuple):
    same: int
    different: int
    skipped: int
    gone: int


def review(
    log: Log,
    found: Undecided,
    *,
    storage: Path,
    endpoint: str,
    keys: Keys,
    most: int | None = None,
    out: TextIO | None = None,
    clock: Callable[[], float] = time.time,
) -> Reviewed:
    """Asks about each pair until there is none left, `most` have a verdict, or who is asked quits.

    Every verdict is on the disk before the next pair is shown; undoing one adds
    a line that takes it back. Raises `OSError` where one cannot be kept.
    """
    said: list[tuple[int, bool]] = []
    skipped: set[int] = set()
    gone = 0
    place = 0
    total = len(found.pairs) if most is None else min(most, len(found.pairs))
    while place < len(found.pairs) and (most is None or len(said) < most):
        pair = found.pairs[place]
        row = lookup_log.texts(log, pair)
        if row is None:
            gone += 1
            place += 1
            continue
        _show(row, found.chances[place], len(said) + 1, total, out)
        key = _asked(keys, out)
        if key == "q":
            break
        if key == "s":
            skipped.add(place)
            place += 1
        elif key == "u":
            if not said:
                tell("Nothing to undo.", out)
                continue
            place, wrong = said.pop()
            lookup_log.add(storage, [_verdict(found.pairs[place], endpoint, clock(), wrong=wrong, undone=True)])
            tell("Taken back.", out)
        else:
            wrong = key == "n"
            lookup_log.add(storage, [_verdict(pair, endpoint, clock(), wrong=wrong)])
            said.append((place, wrong))
            skipped.discard(place)
            place += 1
    different = sum(wrong for _, wrong in said)
    return Reviewed(len(said) - different, different, len(skipped), gone)


@contextlib.contextmanager
def keys_of(source: TextIO) -> Iterator[Keys]:
    """Single keys from a terminal, which is left as it was; from a pipe the first letter of each line."""
    if not source.isatty():
        yield lambda: _first(source.readline())
        return
    before = termios.tcgetattr(source)
    tty.setcbreak(source)
    try:
        yield lambda: source.read(1)
    finally:
        termios.tcsetattr(source, termios.TCSADRAIN, before)


def _first(line: str) -> str:
    """ "" at the end; a line without a letter is no key."""
    return (line.strip() or " ")[0] if line else ""


def _asked(keys: Keys, out: TextIO | None) -> str:
    while True:
        tell(f"{_KEYS}  > ", out, end="")
        key = keys()
        if key in ("", _CTRL_D):
            tell("", out)
            return "q"
        if key == _CTRL_C:
            raise KeyboardInterrupt
        tell(plain(key), out)
        if key.lower() in "ynsuq":
            return key.lower()


def _show(row: Lookup, chance: float, number: int, total: int, out: TextIO | None) -> None:
    told = f"cosine {row.cosine:.3f}, chance {percent(chance)}"
    compared = {"": "", "same": ", compared as the same", "different": ", compared as different"}[row.outcome]
    tell(f"\n--- {number} of {count(total, 'pair')}: {told}{compared}", out)
    for name, text in (
        ("asked", row.question),
        ("stored question", row.stored),
        ("stored answer", row.kept),
        ("fresh answer", row.fresh),
    ):
        if text:
            tell(f"{name}:\n{paragraph(text)}", out)
    tell("Does the stored answer serve who asked?", out)


def _verdict(pair: Pair, endpoint: str, now: float, *, wrong: bool, undone: bool = False) -> Verdict:
    return Verdict(
        time=now, endpoint=endpoint, entry=pair.entry, wrong=wrong, by="people", asked=pair.asked, undone=undone
    )


def standard_keys() -> contextlib.AbstractContextManager[Keys]:
    return keys_of(sys.stdin)
