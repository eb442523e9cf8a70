"""What the policies of an endpoint would do to texts, requests and answers, told before anybody relies on it."""

import asyncio
import codecs
import io
import json
import os
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, BinaryIO, Literal, NamedTuple, TextIO

import msgspec

from guardrails.engine import Found, Tally, screen
from guardrails.placeholders import Placeholders
from guardrails.policy import Facts, Phase, Policy, Rule, chosen
from guardrails.spans import Action
from guardrails.view import View, answer_segments, request_segments
from models.finding import Segment

Json = dict[str, Any]
Form = Literal["text", "request", "answer"]
Outcome = Literal["clean", "noted", "changed", "blocked", "unavailable"]

# What a request or an answer cannot be without, in one dialect or another.
_SAYS: dict[Phase, frozenset[str]] = {
    "input": frozenset({"messages", "contents", "prompt", "input"}),
    "output": frozenset({"choices", "content", "candidates", "output"}),
}
_GEMINI = frozenset({"contents", "candidates"})
# Where a log keeps it. A batch has its requests in `body`, `params` or `request`, and its answers in `response.body`,
# `result.message` or `response`, as OpenAI, Anthropic and Google write them.
_KEPT_IN: dict[Phase, tuple[str, ...]] = {
    "input": ("request", "body", "params"),
    "output": ("response", "answer", "body", "result", "message"),
}
_DEEPEST = 4
# The gateway has a key of its own, so there the same value has another placeholder.
_PLACEHOLDERS = Placeholders(b"keepgate guard scan")

_CONTEXT = 60
_PROGRESS = 2.0  # seconds between two lines
_COLOURS: dict[Action, str] = {"block": "41;97", "redact": "43;30", "mask": "46;30", "log": "42;30"}


class Item(NamedTuple):
    """`line` is where in the log it is. `view` is None for a plain text."""

    line: int | None
    form: Form
    model: str
    segments: Sequence[Segment]
    view: View | None = None


class Verdict(NamedTuple):
    """`sent` is what would go on instead; None where that is what came, or nothing. `failed` are the rules whose
    detector could not look, each with the reason."""

    item: Item
    outcome: Outcome
    acted: tuple[str, ...]
    found: tuple[Found, ...]
    failed: tuple[tuple[str, str], ...]
    sent: str | Json | None


def items(source: BinaryIO, *, phase: Phase) -> Iterator[Item]:
    """A log where the first line is an object of JSON, one item a line; else all of it is one body or one text.

    A line that is no request or answer is a text of its own, and bytes that
    are no UTF-8 are U+FFFD.
    """
    lines = _lines(source)
    before: list[bytes] = []
    for line in lines:
        before.append(line)
        if line.strip():
            break
    if before and _object(before[-1]) is not None:
        for number, line in enumerate(chain(before, lines), 1):
            if line.strip():
                yield _item(line, number, phase)
    else:
        yield _item(b"".join(chain(before, lines)), None, phase)


async def judge(item: Item, policies: Iterable[Policy], *, endpoint: str, phase: Phase) -> Verdict:
    """All rules that would apply to an anonymous caller without headers look, also those for a sample; none stops the
    others."""
    rules = chosen(policies, Facts(item.model, endpoint), 0.0).rules
    softened = [_softened(rule) for rule in rules]
    meant = {id(soft): rule for soft, rule in zip(softened, rules, strict=True)}
    tally = Tally()
    screened = await screen(
        item.segments,
        softened,
        phase=phase,
        joints=item.view.joints if item.view is not None else (),
        placeholders=_PLACEHOLDERS,
        tally=tally,
    )
    found = tuple(found._replace(rule=meant[id(found.rule)]) for found in screened.found)
    acting = {id(one.rule) for one in found}
    failing = {name for name, _ in tally.failed}
    outcome: Outcome = "clean"
    if any(rule.action == "block" and not rule.dry_run and id(rule) in acting for rule in rules):
        outcome = "blocked"
    elif any(rule.name in failing and rule.fail == "closed" and not rule.dry_run for rule in rules):
        outcome = "unavailable"
    elif screened.texts:
        outcome = "changed"
    elif found:
        outcome = "noted"
    sent: str | Json | None = None
    if outcome == "changed":
        sent = (
            item.view.rewritten(screened.texts, edits=screened.edits, resealed=screened.resealed)
            if item.view is not None
            else screened.texts[0]
        )
    acted = tuple(
        f"{rule.name}={rule.acts}{';dry-run' if rule.dry_run else ''}" for rule in rules if id(rule) in acting
    )
    return Verdict(item, outcome, acted, found, tuple(tally.failed), sent)


def run(
    source: BinaryIO,
    policies: Sequence[Policy],
    *,
    endpoint: str,
    phase: Phase,
    as_json: bool,
    out: TextIO,
) -> int:
    """The exit code: 1 where a detector could not look. Shows spans as it goes, or one object of JSON at the end."""
    return asyncio.run(_run(source, policies, endpoint=endpoint, phase=phase, as_json=as_json, out=out))


async def _run(
    source: BinaryIO, policies: Sequence[Policy], *, endpoint: str, phase: Phase, as_json: bool, out: TextIO
) -> int:
    colour = _is_coloured(out)
    outcomes: dict[Outcome, int] = dict.fromkeys(("clean", "noted", "changed", "blocked", "unavailable"), 0)
    acted: dict[str, int] = {}
    failed: dict[tuple[str, str], int] = {}
    told: list[Json] = []
    said = time.monotonic()
    for item in items(source, phase=phase):
        verdict = await judge(item, policies, endpoint=endpoint, phase=phase)
        outcomes[verdict.outcome] += 1
        for name in verdict.acted:
            acted[name] = acted.get(name, 0) + 1
        for failure in verdict.failed:
            failed[failure] = failed.get(failure, 0) + 1
        if as_json:
            if verdict.outcome != "clean" or verdict.failed or item.line is None:
                told.append(as_object(verdict))
        else:
            for line in shown(verdict, colour=colour):
                print(line, file=out)
        if time.monotonic() > said + _PROGRESS:
            said = time.monotonic()
            print(f"{sum(outcomes.values()):,} looked at, {outcomes['clean']:,} clean", file=sys.stderr)
    rules = [rule.name for policy in policies for rule in policy.rules]
    summary: Json = {"endpoint": endpoint, "phase": phase, "rules": rules, "outcomes": outcomes, "acted": acted}
    if as_json:
        print(json.dumps({**summary, "items": told}), file=out)
    else:
        print(_summed_up(summary), file=out)
    for (name, reason), times in failed.items():
        print(f"keepgate: {name} could not look ({times} times): {reason}", file=sys.stderr)
    return 1 if failed else 0


def as_object(verdict: Verdict) -> Json:
    """Findings by place, without the text found."""
    item = verdict.item
    segments = {segment.index: segment for segment in item.segments}
    findings = [
        {
            "rule": found.rule.name,
            "action": found.rule.acts,
            "dry_run": found.rule.dry_run,
            "kind": found.kind,
            "path": list(segments[found.segment].path),
            "role": segments[found.segment].role,
            "start": found.start,
            "end": found.end,
        }
        for found in sorted(verdict.found, key=lambda found: (found.segment, found.start, found.end))
    ]
    return {
        **({} if item.line is None else {"line": item.line}),
        "form": item.form,
        "outcome": verdict.outcome,
        "acted": list(verdict.acted),
        "failed": [{"rule": name, "reason": reason} for name, reason in verdict.failed],
        "findings": findings,
        **({} if verdict.sent is None else {"sent": verdict.sent}),
    }


def shown(verdict: Verdict, *, colour: bool) -> Iterator[str]:
    """Lines for a terminal: of each string that has findings, what is around them. What a terminal would act on, or
    not show, is written as an escape."""
    item = verdict.item
    if not verdict.found and not verdict.failed:
        return
    place = "" if item.line is None else f"line {item.line}: "
    yield f"{place}{_OUTCOMES[verdict.outcome]}: {', '.join(verdict.acted) or 'a detector could not look'}"
    by_segment: dict[int, list[Found]] = {}
    for found in sorted(verdict.found, key=lambda found: (found.segment, found.start, -found.end)):
        by_segment.setdefault(found.segment, []).append(found)
    for segment in item.segments:
        if segment.index in by_segment:
            if segment.path:
                yield f"  {_plain('.'.join(map(str, segment.path)))} ({segment.role})"
            yield from (f"    {line}" for line in _marked(segment.text, by_segment[segment.index], colour=colour))


_OUTCOMES: dict[Outcome, str] = {
    "clean": "goes on as it is",
    "noted": "goes on as it is, noted",
    "changed": "goes on changed",
    "blocked": "would be blocked",
    "unavailable": "would be refused, unscreened",
}


def _marked(text: str, found: Sequence[Found], *, colour: bool) -> list[str]:
    """Overlapping findings are marked as the one that covers them all, with what each is."""
    pieces: list[str] = []
    at = 0
    rest = deque(found)
    while rest:
        start, end = rest[0].start, rest[0].end
        group: list[Found] = []
        while rest and rest[0].start < end:
            group.append(rest.popleft())
            end = max(end, group[-1].end)
        pieces.append(_between(text[at:start], first=at == 0))
        said = ", ".join(dict.fromkeys(f"{_plain(one.kind)} {_does(one.rule)}" for one in group))
        if colour:
            worst = min((one.rule.acts for one in group), key=list(_COLOURS).index)
            pieces.append(f"\x1b[{_COLOURS[worst]}m{_plain(text[start:end])}\x1b[0m\x1b[2m ({said})\x1b[0m")
        else:
            pieces.append(f"[[{_plain(text[start:end])}]] ({said})")
        at = end
    after = text[at:]
    pieces.append(_plain(after) if len(after) <= _CONTEXT else f"{_plain(after[:_CONTEXT])}…")
    return "".join(pieces).splitlines()


def _does(rule: Rule) -> str:
    return f"{rule.acts}, dry run" if rule.dry_run else rule.acts


def _between(text: str, *, first: bool) -> str:
    if len(text) <= (_CONTEXT if first else 2 * _CONTEXT):
        return _plain(text)
    before = "" if first else _plain(text[:_CONTEXT])
    return f"{before}…{_plain(text[-_CONTEXT:])}"


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def _summed_up(summary: Json) -> str:
    outcomes = {name: number for name, number in summary["outcomes"].items() if number}
    counts = ", ".join(f"{number:,} {name}" for name, number in outcomes.items()) or "nothing to look at"
    rules = "1 rule" if len(summary["rules"]) == 1 else f"{len(summary['rules'])} rules"
    what = f"{summary['phase']} of endpoint {summary['endpoint']}, {rules}: {counts}"
    return "\n".join([what, *(f"  {name}: {number:,}" for name, number in summary["acted"].items())])


def _is_coloured(out: TextIO) -> bool:
    return out.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _softened(rule: Rule) -> Rule:
    """One that tells what it finds, where it would end the request."""
    action: Action = "redact" if rule.action == "block" else rule.action
    return msgspec.structs.replace(rule, action=action, fail="open")


# --- reading

_WIDE = {
    codecs.BOM_UTF32_LE: "utf-32",  # before those of UTF-16, which it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def _lines(source: BinaryIO) -> Iterator[bytes]:
    """In UTF-8, without a mark of the encoding: what `>` writes in a Windows shell has one, and may be UTF-16."""
    first = source.readline()
    coding = next((coding for mark, coding in _WIDE.items() if first.startswith(mark)), None)
    if coding is None:
        return chain((first.removeprefix(codecs.BOM_UTF8),), source)
    given = first + source.read()
    # Two bytes may be there by chance, but a text in UTF-16 has its spaces and line ends in zeros.
    return io.BytesIO(given.decode(coding, "replace").encode("utf-8", "replace") if b"\0" in given else given)


def _item(given: bytes, line: int | None, phase: Phase) -> Item:
    form: Form = "request" if phase == "input" else "answer"
    body = _body(_object(given), phase)
    if isinstance(body, str):
        return _text(body, line, phase)
    if body is None:
        return _text(given.decode("utf-8", "replace"), line, phase)
    if phase == "input" or body.keys() & _GEMINI:
        view = request_segments(body, "gemini" if body.keys() & _GEMINI else "openai")
    else:
        view = answer_segments(body)
    model = body.get("model")
    return Item(line, form, model if isinstance(model, str) else "", view.texts, view)


def _text(text: str, line: int | None, phase: Phase) -> Item:
    return Item(line, "text", "", [Segment(0, text, "user" if phase == "input" else "assistant")])


def _object(given: bytes) -> Json | None:
    try:
        return msgspec.json.decode(given, type=Json)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None


def _body(entry: Json | None, phase: Phase) -> Json | str | None:
    """The request or answer in an entry of a log, or its text; None where it is neither."""
    for _ in range(_DEEPEST):
        if entry is None or entry.keys() & _SAYS[phase]:
            return entry
        inner = next((entry[name] for name in _KEPT_IN[phase] if name in entry), None)
        if isinstance(inner, str):
            inner = _object(inner.encode("utf-8", "replace"))
        if not isinstance(inner, dict):
            text = entry.get("text")
            return text if isinstance(text, str) else None
        entry = inner
    return None
